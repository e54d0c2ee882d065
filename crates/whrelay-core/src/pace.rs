//! How fast attempts may start at one destination: evenly, so many in so long. It must not know what
//! starts, and must not wait.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::limits;

/// So many attempts in a second, a minute or an hour: `10/s`, `600/m`, `100/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    per: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
}

/// Why a text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown rate `{0}`: write how many in a second, minute or hour, such as 10/s, 600/m or 100/h"
)]
pub struct RateError(String);

impl Rate {
    /// The time from one start to the next.
    pub fn interval(self) -> Duration {
        let seconds = match self.per {
            Unit::Second => 1,
            Unit::Minute => 60,
            Unit::Hour => 3600,
        };
        Duration::from_secs(seconds) / self.count
    }

    /// How many may start at one moment: timers are too coarse for each to have its own.
    pub fn burst(self) -> u32 {
        let share = limits::PACE_SLACK.as_nanos() / self.interval().as_nanos().max(1);
        u32::try_from(share).unwrap_or(u32::MAX).saturating_add(1)
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let parts = text.split_once('/').and_then(|(count, unit)| {
            let count = count.parse().ok().filter(|count| *count > 0)?;
            let per = match unit {
                "s" => Unit::Second,
                "m" => Unit::Minute,
                "h" => Unit::Hour,
                _ => return None,
            };
            Some(Self { count, per })
        });
        parts.ok_or_else(|| RateError(text.to_owned()))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per {
            Unit::Second => 's',
            Unit::Minute => 'm',
            Unit::Hour => 'h',
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// Keeps one destination to its rate. What was not used is not saved up.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    interval: Duration,
    slack: Duration,
    /// When the next start is due, were they all evenly spaced.
    due: Option<Instant>,
}

impl Pace {
    /// For a rate; the first start is due at once.
    pub fn new(rate: Rate) -> Self {
        let interval = rate.interval();
        Self {
            interval,
            slack: interval * (rate.burst() - 1),
            due: None,
        }
    }

    /// From when on the next attempt may start; `None` where it may now.
    pub fn next_at(&self, now: Instant) -> Option<Instant> {
        let free = self.due? - self.slack;
        (free > now).then_some(free)
    }

    /// Notes that an attempt starts.
    pub fn start(&mut self, now: Instant) {
        self.due = Some(self.due.map_or(now, |due| due.max(now)) + self.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(text: &str) -> Rate {
        text.parse().expect("a rate")
    }

    #[test]
    fn rates_are_read_and_shown_and_nonsense_is_refused() {
        for (text, millis) in [("10/s", 100), ("600/m", 100), ("1/h", 3_600_000)] {
            assert_eq!(rate(text).interval(), Duration::from_millis(millis));
            assert_eq!(rate(text).to_string(), text);
        }
        for bad in [
            "",
            "10",
            "0/s",
            "-1/s",
            "10/d",
            "1.5/s",
            "10/",
            "/s",
            "99999999999/s",
        ] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pause_is_no_credit() {
        let began = Instant::now();
        let mut pace = Pace::new(rate("10/s"));
        pace.start(began);
        let later = began + Duration::from_secs(60);
        pace.start(later);
        assert_eq!(
            pace.next_at(later),
            Some(later + Duration::from_millis(100))
        );
    }

    proptest! {
        #[test]
        fn no_more_starts_than_the_rate_and_one_burst(
            count in 1u32..5000,
            looks in prop::collection::vec(0u64..20_000, 1..400),
        ) {
            let rate = Rate { count, per: Unit::Second };
            let (mut pace, began) = (Pace::new(rate), Instant::now());
            let (mut now, mut starts) = (began, 0u32);
            for micros in looks {
                now += Duration::from_micros(micros);
                while pace.next_at(now).is_none() {
                    pace.start(now);
                    starts += 1;
                }
                let passed = now.duration_since(began).as_secs_f64();
                let allowed = passed * f64::from(count) + f64::from(rate.burst()) + 1e-6;
                prop_assert!(f64::from(starts) <= allowed, "{starts} of {allowed}");
            }
        }
    }
}
