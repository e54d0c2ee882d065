//! When a sample is sent, and what makes it different from others. It must not read a clock.

use jiff::Timestamp;

/// When a webhook is sent, and what makes it different from others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    at: Timestamp,
    random: u128,
}

impl Stamp {
    pub(super) fn new(at: Timestamp, random: u128) -> Self {
        Self { at, random }
    }

    /// Microseconds since 1970.
    pub(super) fn micros(&self) -> i64 {
        self.at.as_microsecond()
    }

    /// Seconds since 1970.
    pub(super) fn unix(&self) -> i64 {
        self.at.as_second()
    }

    /// RFC 3339, to the second.
    pub(super) fn time(&self) -> String {
        self.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// So many hexadecimal digits.
    pub(super) fn hex(&self, digits: usize) -> String {
        let all = format!("{:032x}{:032x}", self.random, !self.random);
        all[..digits].to_owned()
    }

    /// A UUID of version 4 (RFC 9562).
    pub(super) fn uuid(&self) -> String {
        let hex = self.hex(32);
        let (a, b, c, d) = (&hex[..8], &hex[8..12], &hex[13..16], &hex[17..20]);
        format!("{a}-{b}-4{c}-8{d}-{}", &hex[20..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_have_the_shapes_that_providers_use() {
        let stamp = Stamp::new(Timestamp::UNIX_EPOCH, 0x1234);
        assert_eq!(stamp.time(), "1970-01-01T00:00:00Z");
        assert_eq!(stamp.hex(40).len(), 40);
        let uuid = stamp.uuid();
        assert_eq!((uuid.len(), &uuid[14..15], &uuid[19..20]), (36, "4", "8"));
    }
}
