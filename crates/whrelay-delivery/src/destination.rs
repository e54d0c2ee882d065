//! How one destination is delivered to in this run: what is stored of it, and what holds for the run alone.

use whrelay_core::bucket::Bucket;
use whrelay_core::delivery::DestinationId;
use whrelay_core::destination::{DeliveryOptions, EndpointState};
use whrelay_core::time::Timestamp;
use whrelay_engine::Probing;

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
    /// The stored state of its endpoint.
    pub endpoint: EndpointState,
    /// When its endpoint was last seen to return.
    pub back_since: Option<Timestamp>,
    /// What speaks to its URL.
    pub client: Client,
    /// What becomes of providers' signatures.
    pub signatures: Signatures,
    /// The input URL that events came to, where it is known.
    pub input: Option<String>,
}

impl Settings {
    /// What the engine has to know of it. Another number means another URL.
    pub(crate) fn for_engine(&self, endpoint_id: u64) -> whrelay_engine::Settings {
        let DeliveryOptions {
            policy,
            timeout,
            max_in_flight,
            rate,
            order,
        } = &self.options;
        let target = self.client.target();
        whrelay_engine::Settings {
            policy: policy.clone(),
            order: *order,
            max_in_flight: *max_in_flight,
            rate: *rate,
            timeout: *timeout,
            paused: self.is_paused,
            endpoint_id,
            probing: match (target.is_loopback(), target.is_private()) {
                (true, _) => Probing::Loopback,
                (false, true) => Probing::Private,
                (false, false) => Probing::Public,
            },
            endpoint: self.endpoint,
            back_since: self.back_since,
        }
    }
}
