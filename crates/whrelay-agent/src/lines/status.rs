//! How an agent stands, as `status` shows it.

use serde::{Deserialize, Serialize};
use whrelay_core::delivery::State;

use crate::words::{self, EndpointState, LinkState};

/// See [`Line::Status`](super::Line::Status).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusLine {
    /// The bucket.
    pub bucket: String,
    /// The agent's place in it.
    pub name: String,
    /// The forwarder's address.
    pub forwarder: String,
    /// The name of the forwarder's store, once events have come from there.
    #[serde(default)]
    pub forwarder_store: Option<String>,
    /// The input URL, as it was when the agent last started.
    pub url: Option<String>,
    /// The agent's process; none where it does not run.
    pub pid: Option<u32>,
    /// Whether its tunnel is up.
    pub link: LinkState,
    /// Why that is not, where the agent runs.
    #[serde(default)]
    pub link_error: Option<String>,
    /// Its targets.
    pub targets: Vec<TargetStatus>,
    /// Deliveries not tried yet.
    pub queued: u64,
    /// Deliveries that failed so far.
    pub stalled: u64,
    /// Deliveries that arrived.
    pub sent: u64,
    /// Deliveries given up.
    pub dead: u64,
    /// Events set aside because they are damaged on disk.
    pub quarantined: u64,
    /// When the oldest event that waits was received, to the millisecond.
    pub oldest_waiting_at: Option<String>,
    /// When something is tried next.
    pub next_attempt_at: Option<String>,
    /// Whether a person has paused deliveries.
    #[serde(default)]
    pub paused: bool,
    /// Bytes that the store's file takes on its disk.
    pub disk_bytes: u64,
    /// Bytes that events, deliveries and attempts take in it.
    pub stored_bytes: u64,
    /// How many of those there may be, where the agent runs and has a bound.
    pub max_disk: Option<u64>,
    /// Why nothing new is taken in, where nothing is.
    pub refuses: Option<String>,
    /// What retention has removed since the store began.
    pub removed: RemovedStatus,
    /// What has happened to the agent's directory or its forwarder's, oldest first.
    #[serde(default)]
    pub incidents: Vec<IncidentStatus>,
}

/// Something that its owner should know of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentStatus {
    /// When it was noticed last.
    pub at: String,
    /// `forwarder_went_back`, `agent_went_back`, `two_copies` or `taken_over`.
    pub kind: String,
    /// What it is, in words.
    pub message: String,
}

/// What retention has removed from a store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RemovedStatus {
    /// Whole events.
    pub events: u64,
    /// Bodies of events that were kept otherwise.
    pub bodies: u64,
    /// Deliveries that had arrived.
    pub sent: u64,
    /// Deliveries that had been given up.
    pub dead: u64,
}

/// One destination of a [`StatusLine`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// The destination's name, or its URL where it has none.
    #[serde(default)]
    pub destination: String,
    /// Its URL.
    pub target: String,
    /// Whether it is the URL of a replay alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_off: bool,
    /// Whether the agent runs and delivers to it.
    #[serde(default)]
    pub served: bool,
    /// Since when a person has paused it.
    #[serde(default)]
    pub paused_at: Option<String>,
    /// Whether it takes connections.
    pub endpoint: EndpointState,
    /// Deliveries that wait.
    pub waiting: u64,
    /// What everything behind it waits for, where deliveries are made in order.
    pub head: Option<HeadLine>,
}

/// The head of a line that is served in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadLine {
    /// Its event.
    pub event: String,
    /// Where it stands.
    #[serde(with = "words")]
    pub state: State,
    /// Attempts made.
    pub attempts: u32,
    /// When it is tried next.
    pub next_attempt_at: Option<String>,
}
