//! How one destination is delivered to in this run: what is stored of it, and what holds for the run alone.

use whrelay_core::bucket::Bucket;
use whrelay_core::delivery::DestinationId;
use whrelay_core::destination::DeliveryOptions;

use crate::http::Client;
use crate::signatures::Signatures;

/// How one destination is delivered to.
#[derive(Clone)]
pub struct Settings {
    /// Its number in the store.
    pub id: DestinationId,
    /// The bucket whose events go there.
    pub bucket: Bucket,
    /// What people call it.
    pub title: String,
    /// How its deliveries are made.
    pub options: DeliveryOptions,
    /// Whether a person has paused it.
    pub is_paused: bool,
    /// Whether its endpoint took no connection when it was last asked.
    pub is_offline: bool,
    /// What speaks to its URL.
    pub client: Client,
    /// What becomes of providers' signatures.
    pub signatures: Signatures,
    /// The input URL that events came to, where it is known.
    pub input: Option<String>,
}
