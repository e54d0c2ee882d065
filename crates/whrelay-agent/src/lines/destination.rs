//! A destination, as `destination` shows it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use whrelay_core::destination::DeliveryOptions;

use crate::words::EndpointState;

/// See [`Line::Destination`](super::Line::Destination).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestinationLine {
    /// Its name.
    pub name: String,
    /// The bucket whose events go there.
    pub bucket: String,
    /// The agent's subscription.
    pub subscription: String,
    /// The address of its forwarder.
    pub forwarder: String,
    /// Its URL.
    pub target: String,
    /// Whether a person chose the name.
    pub named: bool,
    /// Whether a `listen` runs that delivers to it.
    pub served: bool,
    /// The paths whose events go there, while a `listen` runs.
    pub paths: Vec<String>,
    /// Since when a person has paused it.
    pub paused_at: Option<String>,
    /// Whether it takes connections.
    pub endpoint: EndpointState,
    /// Since when it takes none.
    pub offline_since: Option<String>,
    /// Deliveries not tried yet.
    pub queued: u64,
    /// Deliveries that failed so far.
    pub stalled: u64,
    /// Deliveries that arrived.
    pub sent: u64,
    /// Deliveries given up.
    pub dead: u64,
    /// When a delivery is tried next.
    pub next_attempt_at: Option<String>,
    /// How deliveries are made.
    pub options: OptionsLine,
    /// The options that a person has set; the others have their defaults.
    pub set: Vec<String>,
}

/// The options of a [`DestinationLine`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptionsLine {
    /// `seconds`, `medium`, `long`, or the pauses as they would be typed.
    pub schedule: String,
    /// Time from a delivery's creation after which no attempt starts; 0 for the schedule's own.
    pub deadline_ms: u64,
    /// Time from the first failure until retries become rare.
    pub handoff_after_ms: u64,
    /// Attempts after which a delivery is given up; 0 for no bound.
    pub max_attempts: u32,
    /// `transient` or `non-2xx`.
    pub retry_on: String,
    /// Time for one attempt; 0 for no bound.
    pub timeout_ms: u64,
    /// Attempts at once.
    pub max_in_flight: u64,
    /// How fast attempts may start, as `10/s`.
    pub rate: Option<String>,
    /// `arrival` or `fifo`.
    pub order: String,
}

impl OptionsLine {
    pub(crate) fn new(options: &DeliveryOptions) -> Self {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let DeliveryOptions {
            policy,
            timeout,
            max_in_flight,
            rate,
            order,
        } = options;
        Self {
            schedule: policy.schedule.to_string(),
            deadline_ms: ms(policy.deadline),
            handoff_after_ms: ms(policy.handoff_after),
            max_attempts: policy.max_attempts,
            retry_on: policy.retry_on.as_str().to_owned(),
            timeout_ms: ms(*timeout),
            max_in_flight: *max_in_flight as u64,
            rate: rate.map(|rate| rate.to_string()),
            order: order.as_str().to_owned(),
        }
    }
}

/// See [`Line::DestinationRemoved`](super::Line::DestinationRemoved).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestinationRemovedLine {
    /// Its name.
    pub name: String,
    /// The bucket.
    pub bucket: String,
    /// The destination that its queue went to.
    pub moved_to: Option<String>,
    /// Deliveries that go to it now.
    pub moved: u64,
    /// Deliveries that are dead now, reason `discarded`.
    pub discarded: u64,
}
