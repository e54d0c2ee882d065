//! What the engine asks of its shell.

use std::time::Duration;

use whrelay_core::delivery::DestinationId;
use whrelay_core::destination::EndpointState;
use whrelay_core::queue::{DueCursor, QueueKind, QueueQuery, Waiting};
use whrelay_core::retry::Verdict;
use whrelay_core::time::Timestamp;

use crate::Token;

/// A read of one destination's queue in the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// Its name.
    pub token: Token,
    /// The destination.
    pub destination: DestinationId,
    /// What is read.
    pub query: QueueQuery,
}

/// An attempt and its verdict, or a delivery that is given up untried: one record.
///
/// It is known by its delivery and its number, and is taken once. A record about a delivery that
/// has ended changes nothing and counts as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Its name; that of the start if there was one.
    pub token: Token,
    /// The destination.
    pub destination: DestinationId,
    /// The delivery as it was before.
    pub delivery: Waiting,
    /// The number of its newest attempt.
    pub number: u32,
    /// Whether the request was made.
    pub tried: bool,
    /// What follows.
    pub verdict: Verdict,
    /// When that was decided: `delivery.following(number, &verdict, at)` is its next row.
    pub at: Timestamp,
}

/// What the engine asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read which destinations have something due. A new delivery, and a backoff that began after
    /// the present, count as due at once.
    LoadDestinations {
        /// Its name.
        token: Token,
        /// Due by then.
        until: Timestamp,
        /// Where the page begins; `None` for the first.
        after: Option<DueCursor>,
        /// Rows at most.
        max: usize,
    },
    /// Read one destination's queue.
    Load(Load),
    /// Make attempt `number` of a delivery. `Finished` has to follow, with the same token.
    Start {
        /// Its name.
        token: Token,
        /// The destination.
        destination: DestinationId,
        /// The delivery.
        delivery: Waiting,
        /// The number of the attempt.
        number: u32,
    },
    /// Write a record, then answer `Appended` or `AppendFailed`. The same record may be asked for
    /// again.
    Append(Append),
    /// Connect to the endpoint, and answer `Probed`.
    Probe {
        /// The destination.
        destination: DestinationId,
        /// How long a connection has to stay open to count as open.
        linger: Duration,
    },
    /// The endpoint's state changed: store it with the destination, and show it if the endpoint
    /// went offline or has returned.
    Endpoint {
        /// The destination.
        destination: DestinationId,
        /// Its state.
        state: EndpointState,
        /// When it was last seen to return.
        back_since: Option<Timestamp>,
    },
}

impl Append {
    /// Whether this is the delivery of a received event rather than a replay.
    pub fn is_normal(&self) -> bool {
        match self.delivery.kind {
            QueueKind::Normal => true,
            QueueKind::Replay => false,
        }
    }
}
