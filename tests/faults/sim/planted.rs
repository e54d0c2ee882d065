//! Bugs planted on purpose, one at a time: a simulation that does not find them proves nothing. They
//! stand where a shell calls the pure parts or the store, as they would in the real ones: what goes
//! into the engine or comes out of it is bent here.

use std::time::Duration;

use whrelay_core::delivery::{Attempt, DeadReason};
use whrelay_core::destination::EndpointState;
use whrelay_core::order::Order;
use whrelay_core::outcome::Outcome;
use whrelay_core::queue::{Offset, QueuePage, QueueQuery, WaitReason, Waiting};
use whrelay_core::retry::{Pause, Phase, Verdict};
use whrelay_core::time::Timestamp;
use whrelay_engine::{Append, Now, Settings};

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumIter)]
pub(crate) enum Bug {
    AckBeforePersist,
    AnswerBeforeFsync,
    CursorPastGap,
    AppendTwice,
    ForwarderForgetsOnSend,
    ResumeFromTheEnd,
    NumbersAloneAcknowledge,
    BacklogOutlivesItsHistory,
    WrongTenant,
    OldSessionKeepsLease,
    CreditIgnored,
    LostWakeUp,
    AttemptBeforeItsTime,
    AttemptAfterDeadline,
    ExpiresByAJumpedClock,
    TurnWaitsForTheClock,
    RetryAfterSent,
    RetryAfterUndercut,
    ReturnBreaksHold,
    StartCutsBackoffShort,
    StartForgetsOffline,
    BackoffOvershoots,
    BackoffUndercut,
    HandoffAgainAndAgain,
    AttemptNumberStartsOver,
    DoubleClaim,
    WindowIgnored,
    RateIgnored,
    SlotNeverGivenBack,
    BreakerNeverProbes,
    RefusalCountsAsOpen,
    EndpointNotStored,
    AppendedBeforeTheDisk,
    StartsAgainAfterAFailedRead,
    WithdrawnForgotten,
    AddedAlwaysNew,
    PauseIgnored,
    NodePauseIgnored,
    RemovalIgnored,
    StopIgnored,
    OldestLast,
    RetriesWhatIsRejected,
    GivesUpOnTimeouts,
    SentWithoutAnAnswer,
    BodyTrimmed,
    RepeatedHeadersMerged,
    ReplayReusesTheDelivery,
    HeldReplayReleased,
    DiscardsWhatHasEnded,
    FifoIgnored,
    FifoHasTwoHeads,
    RouteIgnored,
    BacklogIgnored,
    BacklogTakesWhatIsNew,
    RetentionTakesWhatWaits,
    RetentionIsTooEarly,
    RetentionForgetsASubscription,
    BodiesForgetASubscription,
    StateIndexLags,
    CountsDrift,
    /// The disk's own: only the real store can show it.
    SyncForgotten,
}

/// The present as the engine is told it.
pub(crate) fn bent_now(bug: Option<Bug>, now: Now) -> Now {
    let mut moment = now.moment;
    if bug == Some(Bug::ExpiresByAJumpedClock) {
        moment.certain = moment.now;
    }
    Now { moment, ..now }
}

/// The same, where the engine is asked what starts.
pub(crate) fn bent_start(bug: Option<Bug>, now: Now) -> Now {
    let mut moment = now.moment;
    if bug == Some(Bug::AttemptBeforeItsTime) {
        moment.now = moment.now.after(Duration::from_secs(1));
    }
    Now { moment, ..now }
}

/// A destination's settings as the engine is told them.
pub(crate) fn bent_settings(bug: Option<Bug>, settings: Settings, now: &Now) -> Settings {
    let mut bent = settings;
    match bug {
        Some(Bug::StartCutsBackoffShort) => bent.back_since = Some(now.moment.now),
        Some(Bug::StartForgetsOffline) => bent.endpoint = EndpointState::Online,
        Some(Bug::WindowIgnored) => bent.max_in_flight = 9,
        Some(Bug::RateIgnored) => bent.rate = None,
        Some(Bug::FifoIgnored) => bent.order = Order::Arrival,
        Some(Bug::PauseIgnored) => bent.paused = false,
        Some(_) | None => {}
    }
    bent
}

/// A delivery that was added as the engine hears of it.
pub(crate) fn bent_added(
    bug: Option<Bug>,
    (mut delivery, mut at): (Waiting, Offset),
    now: Timestamp,
) -> Option<(Waiting, Offset)> {
    match bug {
        Some(Bug::TurnWaitsForTheClock) if delivery.created_at > now => return None,
        Some(Bug::AddedAlwaysNew) => at = Offset(u64::MAX),
        Some(bug) => bend_row(bug, &mut delivery, now),
        None => {}
    }
    Some((delivery, at))
}

fn bend_row(bug: Bug, row: &mut Waiting, now: Timestamp) {
    if bug == Bug::AttemptAfterDeadline {
        row.deadline_at = Timestamp::LAST;
    }
    if bug == Bug::OldestLast {
        // Each counts as created so long before the present as it was created after the epoch.
        let age = row.created_at.since(Timestamp::EPOCH);
        row.created_at = now.before(age);
    }
}

/// A page of a queue as the engine is shown it.
pub(crate) fn bent_page(bug: Option<Bug>, page: QueuePage, query: &QueueQuery) -> QueuePage {
    let mut bent = page;
    let now = query.due.now;
    match bug {
        Some(Bug::TurnWaitsForTheClock) => {
            let mut left = Vec::new();
            bent.waiting.retain(|row| {
                let is_ahead = row.reason == WaitReason::Turn && row.created_at > now;
                left.extend(is_ahead.then_some(row.created_at));
                !is_ahead
            });
            bent.next_at = bent.next_at.into_iter().chain(left).min();
        }
        Some(Bug::FifoHasTwoHeads) => bent.waiting.retain(|row| row.is_due(&query.due)),
        Some(bug) => bent
            .waiting
            .iter_mut()
            .for_each(|row| bend_row(bug, row, now)),
        None => {}
    }
    bent
}

/// Whether the engine never hears that this attempt is on disk.
pub(crate) fn drops_answer(bug: Option<Bug>, attempt: &Attempt) -> bool {
    bug == Some(Bug::SlotNeverGivenBack) && attempt.number % 4 == 3
}

/// A verdict as a planted bug would have it, with the outcome that it follows.
pub(crate) fn bent_verdict(
    bug: Option<Bug>,
    append: &Append,
    outcome: Option<&Outcome>,
) -> Verdict {
    let (verdict, number, now) = (append.verdict, append.number, append.at);
    match (bug, verdict) {
        (Some(Bug::GivesUpOnTimeouts), _) if outcome == Some(&Outcome::TimedOut) => {
            Verdict::Dead(DeadReason::Rejected)
        }
        (Some(Bug::SentWithoutAnAnswer), _) if outcome == Some(&Outcome::Broken) => Verdict::Sent,
        (Some(Bug::RetriesWhatIsRejected), Verdict::Dead(DeadReason::Rejected)) => {
            Verdict::RetryAt {
                at: now.after(Duration::from_millis(1)),
                phase: append.delivery.phase,
                pause: Pause::Backoff,
            }
        }
        (Some(bug), Verdict::RetryAt { at, phase, pause }) => {
            bent_retry(bug, (at, phase, pause), number, now)
        }
        (_, verdict) => verdict,
    }
}

fn bent_retry(
    bug: Bug,
    (at, phase, pause): (Timestamp, Phase, Pause),
    number: u32,
    now: Timestamp,
) -> Verdict {
    let is_asked = pause == Pause::Asked;
    let (at, phase) = match (bug, phase) {
        (Bug::RetryAfterUndercut, _) if is_asked => (now.after(Duration::from_secs(2)), phase),
        (Bug::BackoffOvershoots, _) if !is_asked && number > 5 => (at.after(at.since(now)), phase),
        (Bug::BackoffUndercut, _) if !is_asked => (at.before(at.since(now) / 2), phase),
        (Bug::HandoffAgainAndAgain, Phase::Durable { .. }) => {
            (at, Phase::Durable { since: number })
        }
        (_, phase) => (at, phase),
    };
    Verdict::RetryAt { at, phase, pause }
}
