//! Whether a verdict follows from the policy: the contract's table, written a second time.

use std::time::Duration;

use whrelay_core::delivery::{Attempt, DeadReason, Delivery};
use whrelay_core::limits;
use whrelay_core::outcome::{Outcome, RetryOn};
use whrelay_core::retry::{Phase, RetryPolicy, Schedule};
use whrelay_core::time::{Moment, Timestamp};

use super::ledger::{Verdicts, hold};

/// A delivery ends only for a reason that is one.
pub(super) fn ended(
    policy: &RetryPolicy,
    before: &Delivery,
    outcome: Option<&Outcome>,
    reason: DeadReason,
    now: Moment,
) -> Verdicts {
    let holds = match reason {
        DeadReason::Rejected => match (outcome, policy.retry_on) {
            (Some(Outcome::Answered { status: 410, .. }), _) => true,
            (Some(Outcome::Answered { status, .. }), RetryOn::Transient) => {
                matches!(status, 300..=407 | 409..=424 | 426..=428 | 430..=499)
            }
            _ => false,
        },
        DeadReason::Deadline => now.certain >= before.deadline_at,
        DeadReason::Attempts => {
            let number = before.attempts + 1;
            let listed = match &policy.schedule {
                Schedule::Listed(pauses) => number as usize > pauses.len(),
                Schedule::Seconds | Schedule::Medium | Schedule::Long => false,
            };
            listed || (policy.max_attempts > 0 && number >= policy.max_attempts)
        }
        DeadReason::Discarded | DeadReason::Damaged | DeadReason::Unclaimed => false,
    };
    hold(holds, "C2", || {
        format!(
            "{} is dead ({}) after {outcome:?}",
            before.id,
            reason.as_str()
        )
    })
}

/// I16: the handoff happens once, and not before its time.
pub(super) fn handed_over(
    handed_over: &mut bool,
    policy: &RetryPolicy,
    before: &Delivery,
    attempt: &Attempt,
    phase: Phase,
) -> Verdicts {
    let holds = match (before.phase, phase) {
        (Phase::Fast, Phase::Fast) => !*handed_over,
        (Phase::Fast, Phase::Durable { since }) => {
            let first = before.first_failed_at.unwrap_or(attempt.at);
            let failed_for = attempt.at.after(attempt.duration).since(first);
            let first_time = !std::mem::replace(handed_over, true);
            // The verdict reads the clock a moment after the attempt's end.
            let time = failed_for + limits::JUMP >= policy.handoff_after;
            first_time && since == attempt.number && time
        }
        (was @ Phase::Durable { .. }, is) => was == is,
    };
    hold(holds, "I16", || {
        format!("{} went from {:?} to {phase:?}", before.id, before.phase)
    })
}

/// I9: the pause is the schedule's, lengthened by at most 30 %, or what the target asked for, or
/// what was left until the deadline.
pub(super) fn spaced(
    policy: &RetryPolicy,
    before: &Delivery,
    attempt: &Attempt,
    outcome: Option<&Outcome>,
    now: Moment,
    at: Timestamp,
) -> Verdicts {
    let scheduled = scheduled_pause(policy, attempt);
    let asked = match outcome {
        Some(Outcome::Answered {
            retry_after: Some(asked),
            ..
        }) => asked.wait(now.now),
        Some(_) | None => Duration::ZERO,
    };
    let pause = at.since(now.now);
    let left = before.deadline_at.since(now.certain);
    let least = scheduled.max(asked).min(left);
    let most = (scheduled + scheduled * 3 / 10).max(asked);
    hold(pause >= least && pause <= most, "I9", || {
        format!(
            "{} waits {pause:?} after attempt {}: {least:?} to {most:?} are allowed",
            before.id, attempt.number
        )
    })
}

/// The contract's table, written a second time.
fn scheduled_pause(policy: &RetryPolicy, attempt: &Attempt) -> Duration {
    let doubled = |base: u64, cap: u64, times: u32| {
        let seconds = base.saturating_mul(1u64.checked_shl(times.min(40)).unwrap_or(u64::MAX));
        Duration::from_secs(seconds.min(cap))
    };
    let cap = match &policy.schedule {
        Schedule::Listed(pauses) => return pauses[attempt.number as usize - 1],
        Schedule::Seconds => 60,
        Schedule::Medium => 3600,
        Schedule::Long => 6 * 3600,
    };
    match attempt.next_phase() {
        Phase::Fast => doubled(1, 30, attempt.number - 1),
        Phase::Durable { since } => doubled(30, cap, attempt.number - since),
    }
}
