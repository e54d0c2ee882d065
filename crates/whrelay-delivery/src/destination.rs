//! How one destination is delivered to. It must not know where that is.

use std::time::Duration;

use whrelay_core::bucket::Bucket;
use whrelay_core::delivery::DestinationId;
use whrelay_core::dispatch::Order;
use whrelay_core::pace::Rate;
use whrelay_core::retry::RetryPolicy;

use crate::signatures::Signatures;

/// How one destination is delivered to.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Its number in the store.
    pub id: DestinationId,
    /// The bucket whose events go there.
    pub bucket: Bucket,
    /// How failures are retried.
    pub policy: RetryPolicy,
    /// Time for one attempt, over the whole exchange; zero for no bound.
    pub timeout: Duration,
    /// Attempts at once.
    pub max_in_flight: usize,
    /// How fast attempts may start.
    pub rate: Option<Rate>,
    /// In which order deliveries are made.
    pub order: Order,
    /// What of all that waits there is delivered.
    pub takes: Takes,
    /// What becomes of providers' signatures.
    pub signatures: Signatures,
    /// The input URL that events came to, where it is known.
    pub input: Option<String>,
}

/// What an engine delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Everything that waits for its destination.
    All,
    /// Only what a person asked for again.
    Replays,
}
