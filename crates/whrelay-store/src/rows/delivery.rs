//! What the record of a delivery means.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use whrelay_core::delivery::{DeadReason, Delivery, DeliveryKey, DestinationId, State};
use whrelay_core::id::{DeliveryId, EventId};
use whrelay_core::queue::WaitReason;
use whrelay_core::time::Timestamp;

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) enum StateRow {
    Queued,
    Stalled,
    Sent,
    Rejected,
    Deadline,
    Attempts,
    Discarded,
    Damaged,
    Unclaimed,
}

impl StateRow {
    pub(super) fn new(state: State, reason: Option<DeadReason>) -> Self {
        match (state, reason) {
            (State::Queued, _) => Self::Queued,
            (State::Stalled, _) => Self::Stalled,
            (State::Sent, _) => Self::Sent,
            (State::Dead, Some(DeadReason::Deadline)) => Self::Deadline,
            (State::Dead, Some(DeadReason::Attempts)) => Self::Attempts,
            (State::Dead, Some(DeadReason::Discarded)) => Self::Discarded,
            (State::Dead, Some(DeadReason::Damaged)) => Self::Damaged,
            (State::Dead, Some(DeadReason::Unclaimed)) => Self::Unclaimed,
            (State::Dead, Some(DeadReason::Rejected) | None) => Self::Rejected,
        }
    }

    pub(super) fn split(self) -> (State, Option<DeadReason>) {
        match self {
            Self::Queued => (State::Queued, None),
            Self::Stalled => (State::Stalled, None),
            Self::Sent => (State::Sent, None),
            Self::Rejected => (State::Dead, Some(DeadReason::Rejected)),
            Self::Deadline => (State::Dead, Some(DeadReason::Deadline)),
            Self::Attempts => (State::Dead, Some(DeadReason::Attempts)),
            Self::Discarded => (State::Dead, Some(DeadReason::Discarded)),
            Self::Damaged => (State::Dead, Some(DeadReason::Damaged)),
            Self::Unclaimed => (State::Dead, Some(DeadReason::Unclaimed)),
        }
    }
}

/// Why a delivery waits.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum WaitRow {
    Turn,
    NotBefore(i64),
    Backoff { since: i64, delay_us: u64 },
    Offline { since: i64, delay_us: u64 },
}

impl WaitRow {
    fn new(wait: WaitReason) -> Self {
        match wait {
            WaitReason::Turn => Self::Turn,
            WaitReason::NotBefore(at) => Self::NotBefore(at.as_micros()),
            WaitReason::Backoff { since, delay } => Self::Backoff {
                since: since.as_micros(),
                delay_us: super::micros(delay),
            },
            WaitReason::Offline { since, delay } => Self::Offline {
                since: since.as_micros(),
                delay_us: super::micros(delay),
            },
        }
    }

    fn into_wait(self) -> WaitReason {
        let at = Timestamp::from_micros;
        match self {
            Self::Turn => WaitReason::Turn,
            Self::NotBefore(time) => WaitReason::NotBefore(at(time)),
            Self::Backoff { since, delay_us } => WaitReason::Backoff {
                since: at(since),
                delay: Duration::from_micros(delay_us),
            },
            Self::Offline { since, delay_us } => WaitReason::Offline {
                since: at(since),
                delay: Duration::from_micros(delay_us),
            },
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct DeliveryRow {
    id: [u8; 16],
    event: [u8; 16],
    destination: u32,
    created_at: i64,
    deadline_at: i64,
    attempts: u32,
    first_failed_at: Option<i64>,
    durable_since: Option<u32>,
    state: StateRow,
    wait: Option<WaitRow>,
    ended_at: Option<i64>,
    replay: bool,
    last_attempt: Option<u64>,
    one_off: bool,
    bytes: u64,
}

impl DeliveryRow {
    pub(crate) fn new(delivery: &Delivery) -> Self {
        let Delivery {
            key: _,
            id,
            event,
            destination,
            created_at,
            deadline_at,
            attempts,
            first_failed_at,
            phase,
            state,
            reason,
            wait,
            bytes,
            ended_at,
            replay,
            last_attempt,
            one_off,
        } = *delivery;
        Self {
            id: id.to_bytes(),
            event: event.to_bytes(),
            destination: destination.0,
            created_at: created_at.as_micros(),
            deadline_at: deadline_at.as_micros(),
            attempts,
            first_failed_at: first_failed_at.map(Timestamp::as_micros),
            durable_since: super::durable_since(phase),
            state: StateRow::new(state, reason),
            wait: wait.map(WaitRow::new),
            ended_at: ended_at.map(Timestamp::as_micros),
            replay,
            last_attempt,
            one_off,
            bytes,
        }
    }

    pub(crate) fn into_delivery(self, key: DeliveryKey) -> Delivery {
        let Self {
            id,
            event,
            destination,
            created_at,
            deadline_at,
            attempts,
            first_failed_at,
            durable_since,
            state,
            wait,
            ended_at,
            replay,
            last_attempt,
            one_off,
            bytes,
        } = self;
        let (state, reason) = state.split();
        Delivery {
            key,
            id: DeliveryId::from_bytes(id),
            event: EventId::from_bytes(event),
            destination: DestinationId(destination),
            created_at: Timestamp::from_micros(created_at),
            deadline_at: Timestamp::from_micros(deadline_at),
            attempts,
            first_failed_at: first_failed_at.map(Timestamp::from_micros),
            phase: super::phase(durable_since),
            state,
            reason,
            // What waits has a reason to, and what has ended has none.
            wait: match state.is_finished() {
                true => None,
                false => Some(wait.map_or(WaitReason::Turn, WaitRow::into_wait)),
            },
            bytes,
            ended_at: ended_at.map(Timestamp::from_micros),
            replay,
            last_attempt,
            one_off,
        }
    }
}

/// A delivery as format 9 has it.
#[derive(Deserialize)]
pub(crate) struct OldDeliveryRow {
    id: [u8; 16],
    event: [u8; 16],
    destination: u32,
    created_at: i64,
    deadline_at: i64,
    attempts: u32,
    first_failed_at: Option<i64>,
    durable_since: Option<u32>,
    state: StateRow,
    next_attempt_at: Option<i64>,
    ended_at: Option<i64>,
    replay: bool,
    last_attempt: Option<u64>,
    one_off: bool,
}

impl OldDeliveryRow {
    /// What it is today. One that failed waits for its endpoint's return, if not for the time that was set: its record
    /// does not say which.
    pub(crate) fn renewed(self) -> DeliveryRow {
        let Self {
            id,
            event,
            destination,
            created_at,
            deadline_at,
            attempts,
            first_failed_at,
            durable_since,
            state,
            next_attempt_at,
            ended_at,
            replay,
            last_attempt,
            one_off,
        } = self;
        let wait = next_attempt_at.map(|at| match attempts {
            0 if at > created_at => WaitRow::NotBefore(at),
            0 => WaitRow::Turn,
            _ => WaitRow::Offline {
                since: created_at,
                delay_us: u64::try_from(at.saturating_sub(created_at)).unwrap_or(0),
            },
        });
        DeliveryRow {
            id,
            event,
            destination,
            created_at,
            deadline_at,
            attempts,
            first_failed_at,
            durable_since,
            state,
            wait,
            ended_at,
            replay,
            last_attempt,
            one_off,
            bytes: 0,
        }
    }
}
