//! Points in time, and what two disagreeing clocks prove. It must never ask what time it is.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::limits;

/// Microseconds since 1970-01-01T00:00:00Z, UTC, saturating at the ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 1970-01-01T00:00:00Z, which is before everything that waits.
    pub const EPOCH: Timestamp = Timestamp(0);
    /// From the date of a header field, in any of its three forms (RFC 9110 section 5.6.7).
    pub fn from_http_date(text: &str) -> Option<Self> {
        let at = httpdate::parse_http_date(text).ok()?;
        let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(Self::EPOCH.after(since))
    }

    /// After everything.
    pub const LAST: Timestamp = Timestamp(i64::MAX);

    /// From microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole milliseconds since the epoch, zero for what lies before it.
    pub const fn as_millis(self) -> u64 {
        if self.0 < 0 {
            0
        } else {
            (self.0 / 1000) as u64
        }
    }

    /// How much later than `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Timestamp) -> Duration {
        u64::try_from(self.0.saturating_sub(earlier.0))
            .map_or(Duration::ZERO, Duration::from_micros)
    }

    /// This point, `by` later.
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(micros(by)))
    }

    /// This point, `by` earlier.
    pub fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(micros(by)))
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// RFC 3339, UTC, to the microsecond.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = (jiff::Timestamp::MIN, jiff::Timestamp::MAX);
        let end = if self.0 < 0 { ends.0 } else { ends.1 };
        let at = jiff::Timestamp::from_microsecond(self.0).unwrap_or(end);
        write!(f, "{at:.6}")
    }
}

impl FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.parse::<jiff::Timestamp>()?.as_microsecond()))
    }
}

/// The present, as far as two clocks can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The time by which schedules run. It never goes back, and a forward jump of the wall clock
    /// (a laptop that slept) moves it.
    pub now: Timestamp,
    /// The time that has passed for certain: `now` without the jumps, which may have been a wrong
    /// clock. Nothing expires before this says so.
    pub certain: Timestamp,
}

/// Merges the wall clock, which may jump, with a monotonic one, which may stop while the machine
/// sleeps.
#[derive(Clone, Debug)]
pub struct TwoClocks {
    wall_at_start: Timestamp,
    /// What jumps forward have added: never more than brings the time up to the wall clock, or one that was
    /// set back and right again would have skipped an hour that nobody slept.
    skipped: Duration,
    /// Wall minus monotonic, at the last reading.
    offset: i64,
    jumps: u64,
}

impl TwoClocks {
    /// Starts at `wall`, with the monotonic clock at zero.
    pub fn new(wall: Timestamp) -> Self {
        Self {
            wall_at_start: wall,
            skipped: Duration::ZERO,
            offset: wall.0,
            jumps: 0,
        }
    }

    /// Reads both clocks: the wall clock, and the time since the start by the monotonic one.
    pub fn read(&mut self, wall: Timestamp, elapsed: Duration) -> Moment {
        let offset = wall.0.saturating_sub(micros(elapsed));
        let jump = offset.saturating_sub(self.offset);
        if jump.unsigned_abs() >= limits::JUMP.as_micros() as u64 {
            self.offset = offset;
            self.jumps += 1;
            let ahead = offset.saturating_sub(self.wall_at_start.0);
            let ahead = Duration::from_micros(u64::try_from(ahead).unwrap_or(0));
            self.skipped = self.skipped.max(ahead);
        }
        let certain = self.wall_at_start.after(elapsed);
        Moment {
            now: certain.after(self.skipped),
            certain,
        }
    }

    /// How many jumps, either way, have been seen.
    pub fn jumps(&self) -> u64 {
        self.jumps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn shows_rfc3339_and_reads_it_back() {
        let at = Timestamp::from_micros(1_795_342_503_120_034);
        assert_eq!(at.to_string(), "2026-11-22T10:15:03.120034Z");
        assert_eq!(at.to_string().parse::<Timestamp>().ok(), Some(at));
    }

    #[test]
    fn extremes_neither_wrap_nor_panic() {
        for at in [Timestamp(i64::MIN), Timestamp(i64::MAX)] {
            assert!(!at.to_string().is_empty());
            assert!(at.after(Duration::MAX) >= at && at.before(Duration::MAX) <= at);
        }
    }

    #[test]
    fn sleep_moves_schedules_but_expires_nothing() {
        let start = Timestamp::from_micros(1_000_000_000);
        let mut clocks = TwoClocks::new(start);
        let awake = clocks.read(start.after(HOUR), HOUR);
        assert_eq!(awake.now, awake.certain);
        let woken = clocks.read(start.after(9 * HOUR), HOUR);
        assert_eq!(
            woken,
            Moment {
                now: start.after(9 * HOUR),
                certain: start.after(HOUR)
            }
        );
        assert_eq!(clocks.jumps(), 1);
    }

    #[test]
    fn a_jump_back_neither_stalls_nor_rewinds() {
        let start = Timestamp::from_micros(1_000_000_000_000);
        let mut clocks = TwoClocks::new(start);
        let before = clocks.read(start.after(HOUR), HOUR);
        let after = clocks.read(start, HOUR + Duration::from_secs(1));
        assert_eq!(after.now, before.now.after(Duration::from_secs(1)));
        assert_eq!(clocks.jumps(), 1);
    }

    #[test]
    fn a_clock_that_was_set_back_and_right_again_has_skipped_nothing() {
        let start = Timestamp::from_micros(1_000_000_000_000);
        let mut clocks = TwoClocks::new(start);
        clocks.read(start.before(HOUR), Duration::ZERO);
        let right = clocks.read(start.after(HOUR), HOUR);
        assert_eq!(right.now, start.after(HOUR));
        let woken = clocks.read(start.after(3 * HOUR), HOUR);
        assert_eq!(woken.now, start.after(3 * HOUR), "sleep still counts");
        assert_eq!(clocks.jumps(), 3);
    }

    #[test]
    fn slow_drift_is_no_jump() {
        let mut clocks = TwoClocks::new(Timestamp::EPOCH);
        let moment = clocks.read(Timestamp::EPOCH.after(HOUR + Duration::from_secs(4)), HOUR);
        assert_eq!(
            (moment.now, clocks.jumps()),
            (Timestamp::EPOCH.after(HOUR), 0)
        );
    }
}
