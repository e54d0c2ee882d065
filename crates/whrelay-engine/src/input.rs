//! What the engine learns, and the present as it learns it.

use std::time::{Duration, Instant};

use whrelay_core::delivery::{DeadReason, DeliveryKey, DestinationId};
use whrelay_core::destination::EndpointState;
use whrelay_core::order::Order;
use whrelay_core::outcome::Outcome;
use whrelay_core::pace::Rate;
use whrelay_core::queue::{DueBy, DuePage, Offset, QueuePage, Waiting};
use whrelay_core::retry::{Jitter, RetryPolicy};
use whrelay_core::time::{Moment, Timestamp};

use crate::Token;
use crate::limits;

/// The present.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The time of schedules and the time of deadlines.
    pub moment: Moment,
    /// The monotonic clock, for pauses within the process.
    pub instant: Instant,
    /// When the wall clock last jumped, if it has.
    pub jumped_at: Option<Instant>,
}

impl Now {
    /// When jobs trust the wall clock again. `None` if they do.
    pub(crate) fn settles_at(&self) -> Option<Instant> {
        let settles_at = self.jumped_at?.checked_add(limits::CLOCK_SETTLES)?;
        (settles_at > self.instant).then_some(settles_at)
    }

    pub(crate) fn due_by(&self, back_since: Option<Timestamp>) -> DueBy {
        let Moment { now, certain } = self.moment;
        let not_before = match self.settles_at() {
            Some(_) => certain.min(now),
            None => now,
        };
        DueBy {
            now,
            not_before,
            back_since,
        }
    }

    /// The instant at which schedules reach `at`.
    pub(crate) fn instant_of(&self, at: Timestamp) -> Instant {
        self.later(at.since(self.moment.now))
    }

    /// The first instant at which `deadline` has passed for certain.
    pub(crate) fn instant_past(&self, deadline: Timestamp) -> Instant {
        let left = deadline.since(self.moment.certain);
        self.later(left.saturating_add(Duration::from_micros(1)))
    }

    /// This instant, `by` later. A sum that no clock can show counts as a day.
    pub(crate) fn later(&self, by: Duration) -> Instant {
        let day = Duration::from_secs(86_400);
        self.instant + by.min(day)
    }
}

/// How an endpoint that is away may be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// It is on this machine: every 100 to 200 ms for ever.
    Loopback,
    /// It is in a private network: at most 750 ms apart.
    Private,
    /// It belongs to somebody else: never. Real attempts show whether it is back.
    Public,
}

/// What a probe shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// The endpoint took no connection.
    Refused,
    /// It took a connection and closed it before `linger` had passed.
    Closed,
    /// It took a connection, which stayed open.
    Open,
}

/// What the engine needs of a destination's configuration and stored state.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How its deliveries are retried.
    pub policy: RetryPolicy,
    /// In which order they start.
    pub order: Order,
    /// Attempts in flight at most.
    pub max_in_flight: usize,
    /// How fast attempts start.
    pub rate: Option<Rate>,
    /// Time for one attempt; zero for none.
    pub timeout: Duration,
    /// Whether nothing new starts.
    pub paused: bool,
    /// Which endpoint it is: where this changes, nothing that is known of the former one counts.
    pub endpoint_id: u64,
    /// How it is probed.
    pub probing: Probing,
    /// The stored state of the endpoint. It counts when the endpoint is new to the engine.
    pub endpoint: EndpointState,
    /// The stored time of its last return. The later one of this and the engine's counts.
    pub back_since: Option<Timestamp>,
}

/// How an exchange ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The request was made.
    Tried(Outcome),
    /// No request was made, and none will be.
    GivenUp(DeadReason),
    /// Nothing was done: the delivery had ended, or its event could not be read now.
    NotAsked,
}

/// What the engine learns.
#[derive(Clone, Debug)]
pub enum Input {
    /// A destination was configured or changed or, with `None`, removed.
    Destination {
        /// The destination.
        id: DestinationId,
        /// Its settings.
        settings: Option<Settings>,
    },
    /// The answer to `LoadDestinations`.
    DueDestinations {
        /// The token of the action.
        token: Token,
        /// The page.
        page: DuePage,
        /// What the view has applied.
        applied: Offset,
    },
    /// `LoadDestinations` could not be answered.
    DestinationsFailed {
        /// The token of the action.
        token: Token,
    },
    /// A new delivery was written; the view may not show it yet. It starts without a read if
    /// everything else that is due is loaded. Losing this costs a poll; where it waits for a read,
    /// [`Input::Due`] tells when the view shows it.
    Added {
        /// Its destination.
        destination: DestinationId,
        /// The delivery.
        delivery: Waiting,
        /// The position of its record.
        at: Offset,
    },
    /// The view has applied a delivery that is due at `at`. Losing this costs a poll.
    Due {
        /// Its destination.
        destination: DestinationId,
        /// When it is due; anything in the past for a new delivery.
        at: Timestamp,
    },
    /// The answer to `Load`.
    Loaded {
        /// The destination.
        destination: DestinationId,
        /// The token of the action.
        token: Token,
        /// The page.
        page: QueuePage,
        /// What the view had applied before it was read.
        applied: Offset,
    },
    /// `Load` could not be answered.
    LoadFailed {
        /// The destination.
        destination: DestinationId,
        /// The token of the action.
        token: Token,
    },
    /// An exchange has ended.
    Finished {
        /// The token of its start.
        token: Token,
        /// How.
        ended: Ended,
        /// The chance of its backoff.
        jitter: Jitter,
    },
    /// A record is on disk. Its slot is free, and it may be shown.
    Appended {
        /// The token of the action.
        token: Token,
        /// Its position.
        at: Offset,
    },
    /// Whether a record is on disk is unknown. It is appended again.
    AppendFailed {
        /// The token of the action.
        token: Token,
    },
    /// The view has applied the journal up to and with this position. Losing this costs a poll.
    Applied {
        /// The position.
        upto: Offset,
    },
    /// Another record ended or changed a delivery: it was discarded, pruned or postponed.
    Withdrawn {
        /// Its destination.
        destination: DestinationId,
        /// The delivery.
        key: DeliveryKey,
        /// The position of the record.
        at: Offset,
    },
    /// The answer to `Probe`.
    Probed {
        /// The destination.
        destination: DestinationId,
        /// What it showed.
        result: ProbeResult,
    },
    /// Nothing new starts anywhere, or does again.
    Pause(bool),
    /// Nothing new starts any more. What is in flight is finished and recorded.
    Stop,
}
