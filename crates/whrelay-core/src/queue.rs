//! One row of a destination's queue: which delivery it is, why it waits, and when it is due.

use std::time::Duration;

use crate::delivery::{DeliveryKey, DestinationId};
use crate::order::Order;
use crate::retry::{DeliveryHistory, Pause, Phase, Verdict};
use crate::time::Timestamp;

/// A position in the journal. A later record has a larger one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

/// Whether a delivery is the first of its event to a destination or was asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QueueKind {
    /// The delivery of a received event. `--order fifo` orders these.
    Normal,
    /// A person asked for it again. It has no position in a FIFO order.
    Replay,
}

/// Why a delivery waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// It is new. It is due at once, in order of its creation.
    Turn,
    /// A job, a person or `Retry-After` set this time. Nothing makes it earlier.
    NotBefore(Timestamp),
    /// It failed at `since`. The endpoint's return ends the wait.
    Backoff {
        /// When it failed.
        since: Timestamp,
        /// How long it waits from then.
        delay: Duration,
    },
    /// The endpoint took no connection at `since`. The endpoint's return ends the wait.
    Offline {
        /// When it failed.
        since: Timestamp,
        /// How long it waits from then.
        delay: Duration,
    },
}

/// By when deliveries of one destination count as due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueBy {
    /// The time by which schedules run.
    pub now: Timestamp,
    /// The time by which [`WaitReason::NotBefore`] runs. It is earlier than `now` while a wall
    /// clock that was set ahead has not been stable for long enough.
    pub not_before: Timestamp,
    /// When the endpoint was last seen to return.
    pub back_since: Option<Timestamp>,
}

impl WaitReason {
    /// Why a delivery waits after `verdict`, which was reached at `now`. `None` if it has ended.
    pub fn following(verdict: &Verdict, now: Timestamp) -> Option<Self> {
        let Verdict::RetryAt { at, pause, .. } = *verdict else {
            return None;
        };
        let (since, delay) = (now, at.since(now));
        Some(match pause {
            Pause::Asked => Self::NotBefore(at),
            Pause::Backoff => Self::Backoff { since, delay },
            Pause::Offline => Self::Offline { since, delay },
        })
    }

    /// When a delivery that was created at `created_at` is due.
    ///
    /// A backoff that began before the endpoint returned is over, and the oldest delivery starts
    /// first. A time of creation or failure in the future was written by a wrong clock and counts
    /// as `now`; a return in the future is ignored.
    pub fn due_at(
        &self,
        created_at: Timestamp,
        back_since: Option<Timestamp>,
        now: Timestamp,
    ) -> Timestamp {
        match *self {
            Self::Turn => created_at.min(now),
            Self::NotBefore(at) => at,
            Self::Backoff { since, delay } | Self::Offline { since, delay } => {
                let since = since.min(now);
                match back_since {
                    Some(back) if back > since && back <= now => created_at.min(since),
                    Some(_) | None => since.after(delay),
                }
            }
        }
    }

    /// The same reason with a failure in the future moved to `began`: a wrong clock wrote it.
    /// `began` is when the process started, so that the wait ends while the process runs.
    pub fn counted_from(self, began: Timestamp, now: Timestamp) -> Self {
        match self {
            Self::Backoff { since, delay } if since > now => Self::Backoff {
                since: began.min(now),
                delay,
            },
            Self::Offline { since, delay } if since > now => Self::Offline {
                since: began.min(now),
                delay,
            },
            Self::Turn | Self::NotBefore(_) | Self::Backoff { .. } | Self::Offline { .. } => self,
        }
    }
}

/// What is asked of one destination's queue.
///
/// The answer has `max` rows at most, in this order:
/// 1. deliveries whose deadline is before `expired_by`, earliest deadline first;
/// 2. of [`Wanted::All`], and for [`Order::Fifo`] alone: those that are
///    [in order](Waiting::is_in_order), due or not, by key; half of `max` at most, and the same
///    number of each bucket;
/// 3. of [`Wanted::All`]: other due ones by `(due_at, created_at, key)`; for [`Order::Fifo`]
///    replays alone. A view may list the new ones of a bucket by key, which differs where a clock
///    was set back, and of more than 1,000 failed ones those first that failed first.
///
/// A row whose `since` is after `due.now` counts as due here: the engine decides about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueQuery {
    /// In which order its deliveries start.
    pub order: Order,
    /// By when deliveries count as due.
    pub due: DueBy,
    /// Deadlines before this have passed.
    pub expired_by: Timestamp,
    /// Which deliveries are asked for.
    pub wanted: Wanted,
    /// Rows at most.
    pub max: usize,
}

/// Which deliveries of a queue are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All that are due, and those that start in order.
    All,
    /// Those whose deadlines have passed.
    Expired,
    /// Those that wait for their [turn](WaitReason::Turn) and for nothing else: none of the list
    /// above, but by `(created_at, key)`. The page says nothing of other rows but their deadlines.
    New,
}

/// Some rows of one destination's queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuePage {
    /// The rows.
    pub waiting: Vec<Waiting>,
    /// When the earliest other row is due that does not follow a returned one in a FIFO order.
    pub next_at: Option<Timestamp>,
    /// Whether there are other rows that follow a returned one in a FIFO order.
    pub has_more: bool,
    /// The earliest deadline of all other rows. `None` if there is no other.
    pub next_deadline_at: Option<Timestamp>,
}

/// The position behind a page of due destinations: the last row of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DueCursor {
    /// Its time.
    pub at: Timestamp,
    /// Its destination.
    pub destination: DestinationId,
}

/// Destinations that have something due: each once, with its earliest time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DuePage {
    /// The rows, in order.
    pub rows: Vec<(DestinationId, Timestamp)>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<DueCursor>,
}

/// One row of a destination's queue: enough to decide everything without another read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The delivery.
    pub key: DeliveryKey,
    /// Whether it is a replay.
    pub kind: QueueKind,
    /// When it was created.
    pub created_at: Timestamp,
    /// After this, no attempt starts.
    pub deadline_at: Timestamp,
    /// Why it waits.
    pub reason: WaitReason,
    /// Attempts recorded.
    pub attempts: u32,
    /// When the first failure was recorded.
    pub first_failed_at: Option<Timestamp>,
    /// Which backoff it is in.
    pub phase: Phase,
    /// The size of its event; 0 if unknown.
    pub bytes: u64,
}

impl Waiting {
    /// When it is due; see [`WaitReason::due_at`].
    pub fn due_at(&self, back_since: Option<Timestamp>, now: Timestamp) -> Timestamp {
        self.reason.due_at(self.created_at, back_since, now)
    }

    /// Whether it is due.
    pub fn is_due(&self, by: &DueBy) -> bool {
        let limit = match self.reason {
            WaitReason::NotBefore(_) => by.not_before,
            WaitReason::Turn | WaitReason::Backoff { .. } | WaitReason::Offline { .. } => by.now,
        };
        self.due_at(by.back_since, by.now) <= limit
    }

    /// Whether later deliveries of its bucket wait for it under `--order fifo`. A replay has no
    /// position in that order, and a job has none before its time.
    pub fn is_in_order(&self, by: &DueBy) -> bool {
        let is_job = match self.reason {
            WaitReason::NotBefore(_) => self.attempts == 0,
            WaitReason::Turn | WaitReason::Backoff { .. } | WaitReason::Offline { .. } => false,
        };
        self.kind == QueueKind::Normal && (!is_job || self.is_due(by))
    }

    /// Whether it waits for nothing but a slot: it is new, or a person wants it tried now.
    pub fn is_new(&self) -> bool {
        self.reason == WaitReason::Turn
    }

    /// Whether its deadline has passed. `certain` is [`Moment::certain`](crate::time::Moment).
    pub fn is_expired(&self, certain: Timestamp) -> bool {
        certain > self.deadline_at
    }

    /// Its history once the next attempt has been made.
    pub fn history(&self) -> DeliveryHistory {
        DeliveryHistory {
            attempts: self.attempts.saturating_add(1),
            first_failed_at: self.first_failed_at,
            phase: self.phase,
            deadline_at: self.deadline_at,
        }
    }

    /// The same row after attempt `number` ended at `now` with `verdict`. `None` if it has ended.
    pub fn following(&self, number: u32, verdict: &Verdict, now: Timestamp) -> Option<Self> {
        let Verdict::RetryAt { phase, .. } = *verdict else {
            return None;
        };
        Some(Self {
            attempts: self.attempts.max(number),
            first_failed_at: self.first_failed_at.or(Some(now)),
            phase,
            reason: WaitReason::following(verdict, now)?,
            ..*self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{BucketId, Seq};
    use proptest::prelude::*;

    const fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const BACKOFF: WaitReason = WaitReason::Backoff {
        since: at(100),
        delay: HOUR,
    };

    #[test]
    fn a_return_ends_backoffs_that_began_before_it_and_no_others() {
        let due = |back| BACKOFF.due_at(at(0), back, at(200));
        assert_eq!(due(None), at(3700));
        assert_eq!(due(Some(at(150))), at(0), "the oldest starts first");
        assert_eq!(due(Some(at(90))), at(3700), "it failed after the return");
        assert_eq!(due(Some(at(900))), at(3700), "a wrong clock wrote it");
    }

    #[test]
    fn a_return_never_moves_a_time_that_was_asked_for() {
        let job = WaitReason::NotBefore(at(31_536_000));
        for back in [None, Some(at(0)), Some(at(199))] {
            assert_eq!(job.due_at(at(0), back, at(200)), at(31_536_000));
        }
    }

    #[test]
    fn a_failure_in_the_future_counts_from_now() {
        let now = at(50);
        assert_eq!(BACKOFF.due_at(at(0), None, now), at(3650));
        let moved = BACKOFF.counted_from(at(40), now);
        assert_eq!(moved.due_at(at(0), None, now), at(3640));
        assert_eq!(BACKOFF.counted_from(at(40), at(100)), BACKOFF);
    }

    #[test]
    fn a_job_joins_the_order_at_its_time_and_a_replay_never() {
        let row = |kind, reason, attempts| Waiting {
            key: DeliveryKey {
                bucket: BucketId(1),
                seq: Seq(1),
                ordinal: 0,
            },
            kind,
            created_at: at(0),
            deadline_at: Timestamp::LAST,
            reason,
            attempts,
            first_failed_at: None,
            phase: Phase::Fast,
            bytes: 0,
        };
        let by = DueBy {
            now: at(100),
            not_before: at(100),
            back_since: None,
        };
        let (early, later) = (
            WaitReason::NotBefore(at(99)),
            WaitReason::NotBefore(at(101)),
        );
        for (kind, reason, attempts, is_in_order) in [
            (QueueKind::Normal, WaitReason::Turn, 0, true),
            (QueueKind::Normal, BACKOFF, 1, true),
            (QueueKind::Normal, early, 0, true),
            (QueueKind::Normal, later, 0, false),
            (QueueKind::Normal, later, 1, true),
            (QueueKind::Replay, WaitReason::Turn, 0, false),
        ] {
            let row = row(kind, reason, attempts);
            assert_eq!(row.is_in_order(&by), is_in_order, "{row:?}");
        }
    }

    #[test]
    fn a_verdict_says_why_the_delivery_waits_next() {
        let retry = |pause| Verdict::RetryAt {
            at: at(130),
            phase: Phase::Fast,
            pause,
        };
        let (since, delay) = (at(100), Duration::from_secs(30));
        for (pause, reason) in [
            (Pause::Asked, WaitReason::NotBefore(at(130))),
            (Pause::Backoff, WaitReason::Backoff { since, delay }),
            (Pause::Offline, WaitReason::Offline { since, delay }),
        ] {
            assert_eq!(WaitReason::following(&retry(pause), at(100)), Some(reason));
        }
        assert_eq!(WaitReason::following(&Verdict::Sent, at(100)), None);
    }

    proptest! {
        #[test]
        fn no_row_panics(created: i64, since: i64, delay: u64, back: Option<i64>, now: i64) {
            let (since, delay) = (Timestamp::from_micros(since), Duration::from_micros(delay));
            let (created, now) = (Timestamp::from_micros(created), Timestamp::from_micros(now));
            let back = back.map(Timestamp::from_micros);
            for reason in [
                WaitReason::Turn,
                WaitReason::NotBefore(since),
                WaitReason::Backoff { since, delay },
                WaitReason::Offline { since, delay },
            ] {
                let due = reason.due_at(created, back, now);
                prop_assert!(due <= reason.due_at(created, None, now));
            }
        }
    }
}
