//! The whole retry brain: what to do next after an attempt. It must not know the clock, chance,
//! the network or the store.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::delivery::DeadReason;
use crate::duration;
use crate::limits;
use crate::outcome::{Class, Outcome, RetryOn, classify};
use crate::time::{Moment, Timestamp};

const FAST_BASE: Duration = Duration::from_secs(1);
const FAST_CAP: Duration = Duration::from_secs(30);
const DURABLE_BASE: Duration = Duration::from_secs(30);

/// When the attempts of a delivery follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Gives up after 25 minutes; at most a minute between attempts.
    Seconds,
    /// Gives up after 16 hours; at most an hour between attempts.
    Medium,
    /// Gives up after 30 days; at most six hours between attempts.
    Long,
    /// Exactly these pauses; when they are used up, so is the delivery.
    Listed(Vec<Duration>),
}

impl Schedule {
    /// How long after its creation a delivery is given up, where no deadline is set.
    pub fn window(&self) -> Duration {
        match self {
            Self::Seconds => Duration::from_secs(25 * 60),
            Self::Medium => Duration::from_secs(16 * 3600),
            Self::Long => Duration::from_secs(30 * 86_400),
            // The list bounds itself; jitter and the attempts' own time come on top.
            Self::Listed(pauses) => pauses.iter().fold(limits::MAX_RETRY_AFTER, |sum, pause| {
                sum.saturating_add(pause.saturating_mul(2))
            }),
        }
    }

    fn durable_cap(&self) -> Duration {
        match self {
            Self::Seconds => Duration::from_secs(60),
            Self::Medium | Self::Listed(_) => Duration::from_secs(3600),
            Self::Long => Duration::from_secs(6 * 3600),
        }
    }
}

/// As it would be typed.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seconds => f.write_str("seconds"),
            Self::Medium => f.write_str("medium"),
            Self::Long => f.write_str("long"),
            Self::Listed(pauses) => {
                for (n, pause) in pauses.iter().enumerate() {
                    let comma = if n > 0 { "," } else { "" };
                    write!(f, "{comma}{}", duration::shown(*pause))?;
                }
                Ok(())
            }
        }
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "seconds" => Ok(Self::Seconds),
            "medium" => Ok(Self::Medium),
            "long" => Ok(Self::Long),
            list => {
                if list.split(',').count() > limits::MAX_PAUSES {
                    let most = limits::MAX_PAUSES;
                    return Err(format!("a schedule has at most {most} pauses"));
                }
                let pauses = list.split(',').map(duration::parse_some);
                let pauses = pauses.collect::<Result<_, _>>();
                let hint = |e| format!("{e}; or use seconds, medium or long");
                pauses.map(Self::Listed).map_err(hint)
            }
        }
    }
}

/// How a destination's deliveries are retried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The pauses.
    pub schedule: Schedule,
    /// Time from a delivery's creation after which no attempt starts; zero for the schedule's own.
    pub deadline: Duration,
    /// Time from the first failure until the durable phase begins.
    pub handoff_after: Duration,
    /// Attempts after which the delivery is given up; zero for no bound but the deadline.
    pub max_attempts: u32,
    /// Which answers are tried again.
    pub retry_on: RetryOn,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            schedule: Schedule::Medium,
            deadline: Duration::ZERO,
            handoff_after: Duration::from_secs(15 * 60),
            max_attempts: 0,
            retry_on: RetryOn::Transient,
        }
    }
}

impl RetryPolicy {
    /// The time after which no attempt of a delivery created at `created_at` starts.
    pub fn deadline_of(&self, created_at: Timestamp) -> Timestamp {
        let window = if self.deadline.is_zero() {
            self.schedule.window()
        } else {
            self.deadline
        };
        created_at.after(window)
    }

    /// The longest that a delivery backs off, also by a schedule that was in use before.
    pub fn longest_backoff(&self) -> Duration {
        let listed = match &self.schedule {
            Schedule::Listed(pauses) => pauses.iter().max().copied(),
            Schedule::Seconds | Schedule::Medium | Schedule::Long => None,
        };
        let longest = Schedule::Long.durable_cap().max(listed.unwrap_or_default());
        Jitter(u32::MAX).stretch(longest)
    }
}

/// Which of the two backoffs a delivery is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// From the first failure: short pauses.
    #[default]
    Fast,
    /// After the handoff: long pauses.
    Durable {
        /// The number of the attempt whose failure handed the delivery over.
        since: u32,
    },
}

/// What has happened to a delivery, the attempt just made included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryHistory {
    /// Attempts made, this one included: 1 or more.
    pub attempts: u32,
    /// When the first failure was recorded, if one was.
    pub first_failed_at: Option<Timestamp>,
    /// The phase before this attempt.
    pub phase: Phase,
    /// After this, no attempt starts.
    pub deadline_at: Timestamp,
}

/// A random fraction in [0, 1), as 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jitter(pub u32);

impl Jitter {
    /// Upward only: `delay` plus a uniform part of its 30 %.
    pub fn stretch(self, delay: Duration) -> Duration {
        let share = delay.as_micros().saturating_mul(3) / 10;
        let extra = share.saturating_mul(u128::from(self.0)) >> 32;
        delay.saturating_add(Duration::from_micros(
            u64::try_from(extra).unwrap_or(u64::MAX),
        ))
    }

    /// Full jitter: a uniform part of `ceiling`.
    pub fn part_of(self, ceiling: Duration) -> Duration {
        let part = ceiling.as_micros().saturating_mul(u128::from(self.0)) >> 32;
        Duration::from_micros(u64::try_from(part).unwrap_or(u64::MAX))
    }
}

/// What a delivery waits for until it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Its backoff. The endpoint's return cuts it short.
    Backoff,
    /// The time that the target itself asked for. Nothing cuts it short.
    Asked,
    /// An endpoint that took no connection. Its return ends the wait, also after a restart.
    Offline,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it arrived.
    Sent,
    /// Try again.
    RetryAt {
        /// Not before this.
        at: Timestamp,
        /// The phase from now on.
        phase: Phase,
        /// What it waits for.
        pause: Pause,
    },
    /// Nothing: it will not arrive.
    Dead(DeadReason),
}

/// Decides what follows an attempt. Total over its inputs; see `docs/guarantees.md` for the rules.
pub fn decide(
    policy: &RetryPolicy,
    history: DeliveryHistory,
    outcome: &Outcome,
    now: Moment,
    jitter: Jitter,
) -> Verdict {
    match classify(outcome, policy.retry_on) {
        Class::Success => return Verdict::Sent,
        Class::Permanent => return Verdict::Dead(DeadReason::Rejected),
        Class::Retryable => {}
    }
    if policy.max_attempts > 0 && history.attempts >= policy.max_attempts {
        return Verdict::Dead(DeadReason::Attempts);
    }
    if now.certain >= history.deadline_at {
        return Verdict::Dead(DeadReason::Deadline);
    }
    let phase = phase_after(policy, &history, now.now);
    let Some(scheduled) = pause(policy, history.attempts, phase) else {
        return Verdict::Dead(DeadReason::Attempts);
    };
    let scheduled = jitter.stretch(scheduled);
    let asked = asked_wait(outcome, now.now);
    let left = history.deadline_at.since(now.certain);
    let at = now.now.after(scheduled.max(asked).min(left));
    let pause = if *outcome == Outcome::Unreachable {
        Pause::Offline
    } else if asked.is_zero() {
        Pause::Backoff
    } else {
        Pause::Asked
    };
    Verdict::RetryAt { at, phase, pause }
}

fn phase_after(policy: &RetryPolicy, history: &DeliveryHistory, now: Timestamp) -> Phase {
    let first_failed_at = history.first_failed_at.unwrap_or(now);
    match history.phase {
        Phase::Fast if now.since(first_failed_at) >= policy.handoff_after => Phase::Durable {
            since: history.attempts,
        },
        phase @ (Phase::Fast | Phase::Durable { .. }) => phase,
    }
}

fn pause(policy: &RetryPolicy, attempts: u32, phase: Phase) -> Option<Duration> {
    if let Schedule::Listed(pauses) = &policy.schedule {
        return pauses.get(attempts.saturating_sub(1) as usize).copied();
    }
    Some(match phase {
        Phase::Fast => exponential(FAST_BASE, FAST_CAP, attempts.saturating_sub(1)),
        Phase::Durable { since } => {
            let cap = policy.schedule.durable_cap();
            exponential(DURABLE_BASE, cap, attempts.saturating_sub(since))
        }
    })
}

fn asked_wait(outcome: &Outcome, now: Timestamp) -> Duration {
    match outcome {
        Outcome::Answered {
            retry_after: Some(asked),
            ..
        } => asked.wait(now),
        Outcome::Answered {
            retry_after: None, ..
        }
        | Outcome::Unreachable
        | Outcome::Broken
        | Outcome::TimedOut
        | Outcome::Unsendable => Duration::ZERO,
    }
}

/// `base` doubled `doublings` times, at most `cap`.
pub fn exponential(base: Duration, cap: Duration, doublings: u32) -> Duration {
    base.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX))
        .min(cap)
}

/// How long to wait before the tunnel is dialled again after `failures` in a row: full jitter.
pub fn reconnect_pause(failures: u32, jitter: Jitter) -> Duration {
    let ceiling = exponential(limits::RECONNECT_BASE, limits::RECONNECT_CAP, failures);
    jitter.part_of(ceiling)
}

#[cfg(test)]
mod tests;
