//! The options of a destination's deliveries: those that a person has set, and what all of them come to.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::duration;
use crate::limits;
use crate::order::Order;
use crate::outcome::RetryOn;
use crate::pace::{Rate, RateError};
use crate::retry::{RetryPolicy, Schedule};

/// How many attempts there may be at once.
pub const IN_FLIGHT: RangeInclusive<usize> = 1..=1024;

/// How deliveries to one destination are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryOptions {
    /// How failures are retried.
    pub policy: RetryPolicy,
    /// Time for one attempt, over the whole exchange; zero for no bound.
    pub timeout: Duration,
    /// Attempts at once.
    pub max_in_flight: usize,
    /// How fast attempts may start.
    pub rate: Option<Rate>,
    /// In which order deliveries are made.
    pub order: Order,
}

impl Default for DeliveryOptions {
    fn default() -> Self {
        Self {
            policy: RetryPolicy::default(),
            timeout: Duration::from_secs(30),
            max_in_flight: limits::MAX_IN_FLIGHT,
            rate: None,
            order: Order::default(),
        }
    }
}

/// The options that a person has set; what is not set has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OptionSet {
    /// The pauses between attempts.
    pub schedule: Option<Schedule>,
    /// Time from a delivery's creation after which no attempt starts; zero for the schedule's own.
    pub deadline: Option<Duration>,
    /// Time from the first failure until the durable phase begins.
    pub handoff_after: Option<Duration>,
    /// Attempts after which a delivery is given up; zero for no bound.
    pub max_attempts: Option<u32>,
    /// Which answers are tried again.
    pub retry_on: Option<RetryOn>,
    /// Time for one attempt; zero for no bound.
    pub timeout: Option<Duration>,
    /// Attempts at once.
    pub max_in_flight: Option<usize>,
    /// How fast attempts may start.
    pub rate: Option<Rate>,
    /// In which order deliveries are made.
    pub order: Option<Order>,
}

impl OptionSet {
    /// What these options come to.
    pub fn options(&self) -> DeliveryOptions {
        let default = DeliveryOptions::default();
        let RetryPolicy {
            schedule,
            deadline,
            handoff_after,
            max_attempts,
            retry_on,
        } = default.policy;
        DeliveryOptions {
            policy: RetryPolicy {
                schedule: self.schedule.clone().unwrap_or(schedule),
                deadline: self.deadline.unwrap_or(deadline),
                handoff_after: self.handoff_after.unwrap_or(handoff_after),
                max_attempts: self.max_attempts.unwrap_or(max_attempts),
                retry_on: self.retry_on.unwrap_or(retry_on),
            },
            timeout: self.timeout.unwrap_or(default.timeout),
            max_in_flight: self.max_in_flight.unwrap_or(default.max_in_flight),
            rate: self.rate.or(default.rate),
            order: self.order.unwrap_or(default.order),
        }
    }

    /// These options, and where one is not set, that of `below`.
    #[must_use]
    pub fn over(&self, below: &Self) -> Self {
        let Self {
            schedule,
            deadline,
            handoff_after,
            max_attempts,
            retry_on,
            timeout,
            max_in_flight,
            rate,
            order,
        } = self.clone();
        Self {
            schedule: schedule.or_else(|| below.schedule.clone()),
            deadline: deadline.or(below.deadline),
            handoff_after: handoff_after.or(below.handoff_after),
            max_attempts: max_attempts.or(below.max_attempts),
            retry_on: retry_on.or(below.retry_on),
            timeout: timeout.or(below.timeout),
            max_in_flight: max_in_flight.or(below.max_in_flight),
            rate: rate.or(below.rate),
            order: order.or(below.order),
        }
    }

    /// The defaults, of those options that have one.
    pub fn defaults() -> Self {
        let DeliveryOptions {
            policy,
            timeout,
            max_in_flight,
            rate,
            order,
        } = DeliveryOptions::default();
        Self {
            schedule: Some(policy.schedule),
            deadline: Some(policy.deadline),
            handoff_after: Some(policy.handoff_after),
            max_attempts: Some(policy.max_attempts),
            retry_on: Some(policy.retry_on),
            timeout: Some(timeout),
            max_in_flight: Some(max_in_flight),
            rate,
            order: Some(order),
        }
    }

    /// Gives an option its default again.
    pub fn reset(&mut self, key: OptionKey) {
        match key {
            OptionKey::Schedule => self.schedule = None,
            OptionKey::Deadline => self.deadline = None,
            OptionKey::HandoffAfter => self.handoff_after = None,
            OptionKey::MaxAttempts => self.max_attempts = None,
            OptionKey::RetryOn => self.retry_on = None,
            OptionKey::Timeout => self.timeout = None,
            OptionKey::MaxInFlight => self.max_in_flight = None,
            OptionKey::Rate => self.rate = None,
            OptionKey::Order => self.order = None,
        }
    }

    /// Sets an option to what was typed for it.
    ///
    /// # Errors
    /// What to write instead.
    pub fn set(&mut self, key: OptionKey, text: &str) -> Result<(), String> {
        match key {
            OptionKey::Schedule => self.schedule = Some(text.parse()?),
            OptionKey::Deadline => self.deadline = Some(duration::parse(text)?),
            OptionKey::HandoffAfter => self.handoff_after = Some(duration::parse(text)?),
            OptionKey::MaxAttempts => {
                let count = text.parse().map_err(|_| "write a number, 0 for no bound")?;
                self.max_attempts = Some(count);
            }
            OptionKey::RetryOn => self.retry_on = Some(text.parse()?),
            OptionKey::Timeout => self.timeout = Some(duration::parse(text)?),
            OptionKey::MaxInFlight => {
                let count = text.parse().ok().filter(|count| IN_FLIGHT.contains(count));
                let (least, most) = IN_FLIGHT.into_inner();
                let count =
                    count.ok_or_else(|| format!("write a number from {least} to {most}"))?;
                self.max_in_flight = Some(count);
            }
            OptionKey::Rate => {
                self.rate = Some(text.parse().map_err(|error: RateError| error.to_string())?);
            }
            OptionKey::Order => self.order = Some(text.parse()?),
        }
        Ok(())
    }

    /// An option as it would be typed, where it is set.
    pub fn get(&self, key: OptionKey) -> Option<String> {
        match key {
            OptionKey::Schedule => self.schedule.as_ref().map(ToString::to_string),
            OptionKey::Deadline => self.deadline.map(duration::shown),
            OptionKey::HandoffAfter => self.handoff_after.map(duration::shown),
            OptionKey::MaxAttempts => self.max_attempts.map(|count| count.to_string()),
            OptionKey::RetryOn => self.retry_on.map(|on| on.as_str().to_owned()),
            OptionKey::Timeout => self.timeout.map(duration::shown),
            OptionKey::MaxInFlight => self.max_in_flight.map(|count| count.to_string()),
            OptionKey::Rate => self.rate.map(|rate| rate.to_string()),
            OptionKey::Order => self.order.map(|order| order.as_str().to_owned()),
        }
    }
}

/// The name of an option, as its flag without the hyphens before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKey {
    /// `schedule`
    Schedule,
    /// `deadline`
    Deadline,
    /// `handoff-after`
    HandoffAfter,
    /// `max-attempts`
    MaxAttempts,
    /// `retry-on`
    RetryOn,
    /// `timeout`
    Timeout,
    /// `max-in-flight`
    MaxInFlight,
    /// `rate`
    Rate,
    /// `order`
    Order,
}

impl OptionKey {
    /// All of them.
    pub const ALL: [OptionKey; 9] = [
        OptionKey::Schedule,
        OptionKey::Deadline,
        OptionKey::HandoffAfter,
        OptionKey::MaxAttempts,
        OptionKey::RetryOn,
        OptionKey::Timeout,
        OptionKey::MaxInFlight,
        OptionKey::Rate,
        OptionKey::Order,
    ];

    /// The word for it in flags and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Deadline => "deadline",
            Self::HandoffAfter => "handoff-after",
            Self::MaxAttempts => "max-attempts",
            Self::RetryOn => "retry-on",
            Self::Timeout => "timeout",
            Self::MaxInFlight => "max-in-flight",
            Self::Rate => "rate",
            Self::Order => "order",
        }
    }
}

impl fmt::Display for OptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text names no option.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown option `{0}`: use {known}", known = OptionKey::ALL.map(OptionKey::as_str).join(", "))]
pub struct UnknownOption(String);

/// With hyphens, as flags have them, or underscores, as files do.
impl FromStr for OptionKey {
    type Err = UnknownOption;

    fn from_str(text: &str) -> Result<Self, UnknownOption> {
        let wanted = text.replace('_', "-");
        let mut all = Self::ALL.into_iter();
        all.find(|key| key.as_str() == wanted)
            .ok_or_else(|| UnknownOption(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> OptionSet {
        OptionSet {
            schedule: Some(Schedule::Long),
            deadline: Some(Duration::from_secs(1)),
            handoff_after: Some(Duration::from_secs(2)),
            max_attempts: Some(3),
            retry_on: Some(RetryOn::NonSuccess),
            timeout: Some(Duration::from_secs(4)),
            max_in_flight: Some(5),
            rate: "6/s".parse().ok(),
            order: Some(Order::Fifo),
        }
    }

    #[test]
    fn each_option_is_set_laid_over_and_reset_by_itself() {
        assert_eq!(OptionSet::default().options(), DeliveryOptions::default());
        assert_eq!(OptionSet::defaults().options(), DeliveryOptions::default());
        for key in OptionKey::ALL {
            assert_eq!(key.as_str().parse(), Ok(key));
            assert_eq!(key.as_str().replace('-', "_").parse(), Ok(key));
            let mut set = full();
            let text = set.get(key).expect("it is set");
            set.reset(key);
            let kept = OptionKey::ALL
                .into_iter()
                .filter(|key| set.get(*key).is_some());
            assert_eq!(kept.count(), OptionKey::ALL.len() - 1, "{key}");
            assert_ne!(set.options(), full().options(), "{key}");
            assert_eq!(set.over(&full()), full(), "{key} is that of below");
            assert_eq!(set.set(key, &text), Ok(()));
            assert_eq!(set, full(), "{key} is read as it is shown");
            assert!(set.set(key, "nonsense").is_err(), "{key}");
        }
        assert_eq!(full().over(&OptionSet::default()), full());
    }
}
