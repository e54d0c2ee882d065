//! What came of an attempt, and whether that ends the delivery. It must not know when the next
//! attempt would be.

use std::str::FromStr;
use std::time::Duration;

use crate::limits;
use crate::time::Timestamp;

/// What a target asked of us with `Retry-After` (RFC 9110 section 10.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// A number of seconds.
    Delay(Duration),
    /// A point in time.
    At(Timestamp),
}

impl RetryAfter {
    /// Reads the header's value; what makes no sense asks for nothing.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.trim();
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let seconds = text.parse().unwrap_or(u64::MAX);
            return Some(Self::Delay(Duration::from_secs(seconds)));
        }
        Timestamp::from_http_date(text).map(Self::At)
    }

    /// How long to wait from `now`, within [0, 24 h].
    pub fn wait(self, now: Timestamp) -> Duration {
        let asked = match self {
            Self::Delay(delay) => delay,
            Self::At(at) => at.since(now),
        };
        asked.min(limits::MAX_RETRY_AFTER)
    }
}

/// What came of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The target answered.
    Answered {
        /// The answer's status code.
        status: u16,
        /// When it wants to be asked again.
        retry_after: Option<RetryAfter>,
    },
    /// No connection came about: refused, no route, or no such host. The endpoint is offline.
    Unreachable,
    /// There was a connection, but no answer: cut, garbled, TLS refused.
    Broken,
    /// No answer within the attempt's time.
    TimedOut,
    /// The request can never be sent to this target as it is.
    Unsendable,
}

/// Which answers are tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetryOn {
    /// 408, 425, 429, 5xx and everything that is no answer; other answers end the delivery.
    #[default]
    Transient,
    /// Everything but 2xx and 410.
    NonSuccess,
}

impl RetryOn {
    /// The word for it in flags and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::NonSuccess => "non-2xx",
        }
    }
}

impl FromStr for RetryOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "transient" => Ok(Self::Transient),
            "non-2xx" => Ok(Self::NonSuccess),
            other => Err(format!(
                "unknown answers `{other}`: use transient or non-2xx"
            )),
        }
    }
}

/// What an outcome means for its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It arrived.
    Success,
    /// It may arrive later.
    Retryable,
    /// It will never arrive like this.
    Permanent,
}

/// Sorts an outcome. 410 says that the endpoint is gone for good (RFC 9110 section 15.5.11), so it
/// is permanent under both policies.
pub fn classify(outcome: &Outcome, retry_on: RetryOn) -> Class {
    match (outcome, retry_on) {
        (
            Outcome::Answered {
                status: 200..=299, ..
            },
            _,
        ) => Class::Success,
        (Outcome::Answered { status: 410, .. } | Outcome::Unsendable, _) => Class::Permanent,
        (Outcome::Answered { .. }, RetryOn::NonSuccess) => Class::Retryable,
        (
            Outcome::Answered {
                status: 408 | 425 | 429 | 500..=599,
                ..
            },
            RetryOn::Transient,
        ) => Class::Retryable,
        (Outcome::Answered { .. }, RetryOn::Transient) => Class::Permanent,
        (Outcome::Unreachable | Outcome::Broken | Outcome::TimedOut, _) => Class::Retryable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answered(status: u16) -> Outcome {
        Outcome::Answered {
            status,
            retry_after: None,
        }
    }

    #[test]
    fn every_status_under_both_policies() {
        for status in 100..=999u16 {
            let success = (200..300).contains(&status);
            let transient = matches!(status, 408 | 425 | 429) || (500..600).contains(&status);
            let expected = |retry| match (success, retry) {
                (true, _) => Class::Success,
                (false, true) => Class::Retryable,
                (false, false) => Class::Permanent,
            };
            assert_eq!(
                classify(&answered(status), RetryOn::Transient),
                expected(transient)
            );
            assert_eq!(
                classify(&answered(status), RetryOn::NonSuccess),
                expected(status != 410)
            );
        }
    }

    #[test]
    fn transport_errors_are_never_final() {
        for outcome in [Outcome::Unreachable, Outcome::Broken, Outcome::TimedOut] {
            for policy in [RetryOn::Transient, RetryOn::NonSuccess] {
                assert_eq!(classify(&outcome, policy), Class::Retryable);
            }
        }
    }

    #[test]
    fn retry_after_in_both_forms() {
        let now = Timestamp::from_micros(784_111_777_000_000);
        let wait = |value: &str| RetryAfter::parse(value.as_bytes()).map(|r| r.wait(now).as_secs());
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait(" 0 "), Some(0));
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(wait("Sunday, 06-Nov-94 08:50:37 GMT"), Some(60));
        assert_eq!(wait("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(wait("99999999999999999999999"), Some(86_400));
        assert_eq!(wait("Fri, 31 Dec 9999 23:59:59 GMT"), Some(86_400));
        for nonsense in ["", "-1", "1.5", "soon", "0x10", "\u{661}"] {
            assert_eq!(wait(nonsense), None, "{nonsense}");
        }
    }

    proptest! {
        #[test]
        fn no_value_panics_and_none_asks_for_more_than_a_day(value: Vec<u8>, now: i64) {
            if let Some(asked) = RetryAfter::parse(&value) {
                prop_assert!(asked.wait(Timestamp::from_micros(now)) <= limits::MAX_RETRY_AFTER);
            }
        }
    }
}
