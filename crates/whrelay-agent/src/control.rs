//! The local control API: what other commands of the same user ask of a running agent, over HTTP on a local socket.
//! It must not answer by itself.

mod client;
mod local;
mod server;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use whrelay_core::delivery::{Attempt, DeadReason, Delivery, State};
use whrelay_core::destination::Destination;
use whrelay_core::id::EventId;
use whrelay_core::time::Timestamp;

pub use self::client::{Client, Unanswered};
pub(crate) use self::server::Server;
use crate::lines::{EventLine, Line};
use crate::words;

/// In the data directory: where the socket is.
const FILE: &str = "control.json";
const PATH: &str = "/v1/ask";
/// Pieces of an answer that may wait for their reader.
const WAITING_PIECES: usize = 64;

/// What can be asked of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// Attempts, newest last.
    Attempts {
        /// Which.
        filter: Filter,
        /// How many of those that are.
        last: usize,
        /// Whether those that come are wanted too.
        follow: bool,
        /// Those logged after this place, instead of the last ones: a follower goes on.
        after: Option<u64>,
    },
    /// Events, newest last.
    Events {
        /// Which.
        filter: Filter,
        /// How many.
        last: usize,
    },
    /// One event with its attempts, headers and body.
    Show {
        /// Its id.
        event: String,
    },
    /// Events that were given up, counted by what their last attempts came to.
    Groups {
        /// Which.
        filter: Filter,
    },
    /// Deliver events again.
    Replay {
        /// Which.
        which: Which,
        /// How.
        how: ReplayHow,
    },
    /// Give up what waits.
    Discard {
        /// Which.
        which: Which,
        /// Whether only to tell which they are.
        dry_run: bool,
    },
    /// How the agent stands.
    Status,
    /// Try what is queued of an event now; deliver it again where nothing is.
    Retry {
        /// Its id.
        event: String,
    },
    /// Pause every destination that is delivered to, or resume them.
    Pause {
        /// Whether to pause.
        paused: bool,
    },
    /// The destinations.
    Destinations,
    /// Change a destination.
    SetDestination {
        /// Its name.
        name: String,
        /// What is to change.
        changes: Changes,
    },
    /// Remove a destination.
    RemoveDestination {
        /// Its name.
        name: String,
        /// What becomes of the deliveries that are queued for it.
        queue: Queued,
    },
}

/// What is to change of a destination.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Changes {
    /// Its URL.
    pub to: Option<String>,
    /// Options by name, as they would be typed.
    pub set: Vec<(String, String)>,
    /// Options that have their default again.
    pub reset: Vec<String>,
    /// Whether it is paused.
    pub paused: Option<bool>,
}

/// What becomes of the deliveries that are queued for a destination that is removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Queued {
    /// There must be none.
    None,
    /// They are dead, reason `discarded`.
    Discard,
    /// They go to the destination of this name.
    MoveTo(String),
}

/// The events that something is done to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// These.
    Ids(Vec<String>),
    /// All that a filter lets through.
    Filter(Filter),
}

/// How events are delivered again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReplayHow {
    /// A URL, or the name of a destination, instead of where events go.
    pub to: Option<String>,
    /// How fast they begin: a number and a unit, as in `10/s`.
    pub rate: Option<String>,
    /// In any order, instead of the oldest first.
    pub shuffle: bool,
    /// How often each.
    pub times: u32,
    /// How far all have come when the answer ends.
    pub until: Until,
    /// Whether only to tell which they are.
    pub dry_run: bool,
}

/// How far a replay has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// It waits its turn.
    #[default]
    Begun,
    /// It was tried, or its endpoint takes no connection.
    Tried,
    /// It was delivered or given up.
    Ended,
}

/// Which attempts or events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// From then on, in microseconds since 1970.
    pub since: Option<i64>,
    /// Until then, in microseconds since 1970.
    pub until: Option<i64>,
    /// In this state.
    #[serde(with = "words::maybe")]
    pub status: Option<State>,
    /// Given up for this reason.
    #[serde(with = "words::maybe")]
    pub reason: Option<DeadReason>,
    /// To the destination of this name or URL.
    pub target: Option<String>,
    /// Of this event.
    pub event: Option<String>,
    /// Of this bucket.
    pub bucket: Option<String>,
    /// That the sender calls this.
    #[serde(default)]
    pub kind: Option<String>,
}

impl Filter {
    pub(crate) fn wants_bucket(&self, bucket: &str) -> bool {
        self.bucket.as_deref().is_none_or(|wanted| wanted == bucket)
    }

    /// The states that are wanted.
    pub(crate) fn states(&self) -> Vec<State> {
        match (self.status, self.reason) {
            (Some(status), _) => vec![status],
            (None, Some(_)) => vec![State::Dead],
            (None, None) => State::ALL.to_vec(),
        }
    }

    pub(crate) fn wants_attempt(&self, attempt: &Attempt, to: Option<&Destination>) -> bool {
        self.wants_time(attempt.at)
            && self.wants_event(attempt.event)
            && self.wants_state(attempt.state(), attempt.reason())
            && self.wants_target(&attempt.target, to)
    }

    /// Whether an event as it is shown is what the filter is about.
    pub(crate) fn wants_event_line(&self, line: &EventLine) -> bool {
        self.wants_state(line.state, line.reason)
    }

    /// Whether a delivery is one of those that the filter is about.
    pub(crate) fn wants_delivery(&self, delivery: &Delivery, to: Option<&Destination>) -> bool {
        self.wants_state(delivery.state, delivery.reason) && self.wants_target("", to)
    }

    fn wants_state(&self, state: State, reason: Option<DeadReason>) -> bool {
        self.status.is_none_or(|wanted| wanted == state)
            && self.reason.is_none_or(|wanted| Some(wanted) == reason)
    }

    /// Whether a destination, or the URL of an attempt, is what the filter is about.
    fn wants_target(&self, attempted: &str, to: Option<&Destination>) -> bool {
        self.target.as_deref().is_none_or(|wanted| {
            let is_it = |to: &Destination| to.title() == wanted || to.target.to_string() == wanted;
            wanted == attempted || to.is_some_and(is_it)
        })
    }

    fn wants_event(&self, event: EventId) -> bool {
        let wanted = self.event.as_deref();
        wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(&event.to_string()))
    }

    pub(crate) fn wants_time(&self, at: Timestamp) -> bool {
        let at = at.as_micros();
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at <= until)
    }
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// A line.
    Line(Box<Line>),
    /// Raw bytes, as many as the line before said.
    Bytes(Bytes),
}

/// How a running agent is found.
#[derive(Serialize, Deserialize)]
struct Notice {
    socket: PathBuf,
    pid: u32,
}

impl Notice {
    fn path(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }
}
