//! What the record of a destination means.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::DestinationId;
use whrelay_core::destination::{Destination, EndpointState, Kind, OptionSet};
use whrelay_core::order::Order;
use whrelay_core::outcome::RetryOn;
use whrelay_core::retry::Schedule;
use whrelay_core::time::Timestamp;

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct DestinationRow {
    pub(crate) bucket: u32,
    pub(crate) target: String,
    kind: KindRow,
    options: OptionsRow,
    paused_at: Option<i64>,
    offline_since: Option<i64>,
    is_failing: bool,
    back_since: Option<i64>,
}

/// What format 10 adds to a destination: it is not failing, and was never seen to return.
const ADDED: [u8; 2] = [0, 0];

#[derive(Clone, Serialize, Deserialize)]
enum KindRow {
    Lasting { name: String, is_named: bool },
    OneOff,
    Removed { name: String },
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct OptionsRow {
    schedule: Option<ScheduleRow>,
    deadline_us: Option<u64>,
    handoff_after_us: Option<u64>,
    max_attempts: Option<u32>,
    retries_all: Option<bool>,
    timeout_us: Option<u64>,
    max_in_flight: Option<u32>,
    rate: Option<String>,
    is_fifo: Option<bool>,
}

#[derive(Clone, Serialize, Deserialize)]
enum ScheduleRow {
    Seconds,
    Medium,
    Long,
    Listed(Vec<u64>),
}

impl DestinationRow {
    pub(crate) fn new(destination: &Destination) -> Self {
        let Destination {
            id: _,
            bucket,
            kind,
            target,
            options,
            paused_at,
            endpoint,
            offline_since,
            back_since,
        } = destination;
        Self {
            bucket: bucket.0,
            target: target.to_string(),
            kind: match kind {
                Kind::Lasting { name, is_named } => KindRow::Lasting {
                    name: name.to_string(),
                    is_named: *is_named,
                },
                Kind::OneOff => KindRow::OneOff,
                Kind::Removed { name } => KindRow::Removed {
                    name: name.to_string(),
                },
            },
            options: OptionsRow::new(options),
            paused_at: paused_at.map(Timestamp::as_micros),
            offline_since: offline_since.map(Timestamp::as_micros),
            is_failing: *endpoint == EndpointState::Failing,
            back_since: back_since.map(Timestamp::as_micros),
        }
    }

    /// A destination as format 9 has it.
    pub(crate) fn of_9(head: &[u8]) -> Option<Self> {
        let today = [head, &ADDED].concat();
        let (row, rest) = postcard::take_from_bytes(&today).ok()?;
        rest.is_empty().then_some(row)
    }

    /// The destination; `None` where a value is one that this version does not know.
    pub(crate) fn into_destination(self, id: DestinationId) -> Option<Destination> {
        let Self {
            bucket,
            target,
            kind,
            options,
            paused_at,
            offline_since,
            is_failing,
            back_since,
        } = self;
        let kind = match kind {
            KindRow::Lasting { name, is_named } => Kind::Lasting {
                name: name.parse().ok()?,
                is_named,
            },
            KindRow::OneOff => Kind::OneOff,
            KindRow::Removed { name } => Kind::Removed {
                name: name.parse().ok()?,
            },
        };
        Some(Destination {
            id,
            bucket: BucketId(bucket),
            kind,
            target: target.parse().ok()?,
            options: options.into_options(),
            paused_at: paused_at.map(Timestamp::from_micros),
            endpoint: match (offline_since, is_failing) {
                (Some(_), _) => EndpointState::Offline,
                (None, true) => EndpointState::Failing,
                (None, false) => EndpointState::Online,
            },
            offline_since: offline_since.map(Timestamp::from_micros),
            back_since: back_since.map(Timestamp::from_micros),
        })
    }

    /// Whether events go there that have no delivery yet.
    pub(crate) fn is_lasting(&self) -> bool {
        matches!(self.kind, KindRow::Lasting { .. })
    }
}

impl OptionsRow {
    fn new(options: &OptionSet) -> Self {
        let OptionSet {
            schedule,
            deadline,
            handoff_after,
            max_attempts,
            retry_on,
            timeout,
            max_in_flight,
            rate,
            order,
        } = options;
        let clamped = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            schedule: schedule.as_ref().map(ScheduleRow::new),
            deadline_us: deadline.map(super::micros),
            handoff_after_us: handoff_after.map(super::micros),
            max_attempts: *max_attempts,
            retries_all: retry_on.map(|on| on == RetryOn::NonSuccess),
            timeout_us: timeout.map(super::micros),
            max_in_flight: max_in_flight.map(clamped),
            rate: rate.map(|rate| rate.to_string()),
            is_fifo: order.map(|order| order == Order::Fifo),
        }
    }

    fn into_options(self) -> OptionSet {
        let Self {
            schedule,
            deadline_us,
            handoff_after_us,
            max_attempts,
            retries_all,
            timeout_us,
            max_in_flight,
            rate,
            is_fifo,
        } = self;
        OptionSet {
            schedule: schedule.map(ScheduleRow::into_schedule),
            deadline: deadline_us.map(Duration::from_micros),
            handoff_after: handoff_after_us.map(Duration::from_micros),
            max_attempts,
            retry_on: retries_all.map(|all| match all {
                true => RetryOn::NonSuccess,
                false => RetryOn::Transient,
            }),
            timeout: timeout_us.map(Duration::from_micros),
            max_in_flight: max_in_flight.map(|count| count as usize),
            rate: rate.and_then(|rate| rate.parse().ok()),
            order: is_fifo.map(|is_fifo| match is_fifo {
                true => Order::Fifo,
                false => Order::Arrival,
            }),
        }
    }
}

impl ScheduleRow {
    fn new(schedule: &Schedule) -> Self {
        match schedule {
            Schedule::Seconds => Self::Seconds,
            Schedule::Medium => Self::Medium,
            Schedule::Long => Self::Long,
            Schedule::Listed(pauses) => {
                Self::Listed(pauses.iter().copied().map(super::micros).collect())
            }
        }
    }

    fn into_schedule(self) -> Schedule {
        match self {
            Self::Seconds => Schedule::Seconds,
            Self::Medium => Schedule::Medium,
            Self::Long => Schedule::Long,
            Self::Listed(pauses) => {
                Schedule::Listed(pauses.into_iter().map(Duration::from_micros).collect())
            }
        }
    }
}

/// A destination as formats before 9 have it.
#[derive(Deserialize)]
pub(crate) struct OldDestinationRow {
    pub(crate) bucket: u32,
    pub(crate) target: String,
}

impl OldDestinationRow {
    /// What it is today, called so.
    pub(crate) fn named(self, kind: &Kind) -> DestinationRow {
        let Self { bucket, target } = self;
        DestinationRow {
            bucket,
            target,
            kind: match kind {
                Kind::Lasting { name, is_named } => KindRow::Lasting {
                    name: name.to_string(),
                    is_named: *is_named,
                },
                Kind::OneOff => KindRow::OneOff,
                Kind::Removed { name } => KindRow::Removed {
                    name: name.to_string(),
                },
            },
            options: OptionsRow::default(),
            paused_at: None,
            offline_since: None,
            is_failing: false,
            back_since: None,
        }
    }
}
