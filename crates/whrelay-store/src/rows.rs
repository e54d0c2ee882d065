//! What records mean: one type per table, apart from the domain types. Conversions name every
//! field, so that a new one stops the build until the disk has decided. It must not know redb.

// By path, since a fuzzer has this file as its own.
#[path = "rows/attempt.rs"]
mod attempt;
#[path = "rows/delivery.rs"]
mod delivery;
#[path = "rows/destination.rs"]
mod destination;

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use whrelay_core::bucket::{Bucket, BucketId, BucketKey, BucketName};
use whrelay_core::event::{Event, Header, Request};
use whrelay_core::id::EventId;
use whrelay_core::retry::Phase;
use whrelay_core::time::Timestamp;

pub(crate) use self::attempt::{AttemptMore, AttemptRow};
pub(crate) use self::delivery::{DeliveryRow, OldDeliveryRow};
pub(crate) use self::destination::{DestinationRow, OldDestinationRow};

#[derive(Serialize, Deserialize)]
pub(crate) struct BucketRow {
    pub(crate) name: String,
    pub(crate) key: String,
}

impl BucketRow {
    pub(crate) fn into_bucket(self, id: BucketId) -> Option<Bucket> {
        let Self { name, key } = self;
        Some(Bucket {
            id,
            name: name.parse().ok()?,
            key: BucketKey::from_text(key),
        })
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct EventRow {
    id: [u8; 16],
    received_at: i64,
    method: String,
    tail: String,
    query: Option<String>,
    headers: Vec<(String, Vec<u8>)>,
    removed_body: Option<u64>,
}

impl EventRow {
    /// The row, and the body that rests behind it.
    pub(crate) fn new(event: Event) -> (Self, Bytes) {
        let Event {
            id,
            bucket: _,
            received_at,
            request,
            removed_body,
        } = event;
        let Request {
            method,
            tail,
            query,
            headers,
            body,
        } = request;
        let header = |Header { name, value }: Header| (name, value.to_vec());
        let row = Self {
            id: id.to_bytes(),
            received_at: received_at.as_micros(),
            method,
            tail,
            query,
            headers: headers.into_iter().map(header).collect(),
            removed_body,
        };
        (row, body)
    }

    pub(crate) fn id(&self) -> EventId {
        EventId::from_bytes(self.id)
    }

    pub(crate) fn into_event(self, bucket: BucketName, body: &[u8]) -> Event {
        let Self {
            id,
            received_at,
            method,
            tail,
            query,
            headers,
            removed_body,
        } = self;
        let header = |(name, value): (String, Vec<u8>)| Header {
            name,
            value: value.into(),
        };
        let headers = headers.into_iter().map(header).collect();
        let body = Bytes::copy_from_slice(body);
        Event {
            id: EventId::from_bytes(id),
            bucket,
            received_at: Timestamp::from_micros(received_at),
            request: Request {
                method,
                tail,
                query,
                headers,
                body,
            },
            removed_body,
        }
    }

    /// The same without its body, which had so many bytes.
    pub(crate) fn without_body(self, had: u64) -> Self {
        Self {
            removed_body: Some(had),
            ..self
        }
    }

    pub(crate) fn has_body(&self) -> bool {
        self.removed_body.is_none()
    }

    pub(crate) fn received_at(&self) -> Timestamp {
        Timestamp::from_micros(self.received_at)
    }
}

/// What retention has removed from a bucket.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct RemovalsRow {
    /// Nothing is left up to this place.
    pub(crate) upto: u64,
    /// Of what is left up to this place, a forwarder sends nothing any more.
    pub(crate) bare_upto: u64,
    pub(crate) events: u64,
    pub(crate) bodies: u64,
    pub(crate) sent: u64,
    pub(crate) dead: u64,
    /// At an agent: of finished events up to this id the bodies are removed.
    pub(crate) bodies_upto: [u8; 16],
}

impl RemovalsRow {
    /// The later of two states: each number only ever grows.
    pub(crate) fn max(&self, other: &Self) -> Self {
        Self {
            upto: self.upto.max(other.upto),
            bare_upto: self.bare_upto.max(other.bare_upto),
            events: self.events.max(other.events),
            bodies: self.bodies.max(other.bodies),
            sent: self.sent.max(other.sent),
            dead: self.dead.max(other.dead),
            bodies_upto: self.bodies_upto.max(other.bodies_upto),
        }
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct SubscriptionRow {
    pub(crate) acked: u64,
    /// Nothing up to here was ever meant for it.
    pub(crate) since: u64,
    /// When its agent was last heard of; 0 where that was before this was kept.
    pub(crate) seen_at: i64,
    /// The agents that had it, the last one last.
    pub(crate) holders: Vec<HolderRow>,
    pub(crate) ended: Option<EndedRow>,
    /// Everything that is not acknowledged up to here is sent again, to whichever agent comes: it was acknowledged
    /// before, and whoever had it may have lost it.
    pub(crate) again_through: Option<u64>,
    /// The newest lease that was taken.
    pub(crate) lease: u64,
}

/// What format 11 adds to a subscription: no lease was taken.
const NO_LEASE: [u8; 1] = [0];

impl SubscriptionRow {
    /// A subscription as format 10 has it.
    pub(crate) fn of_10(head: &[u8]) -> Option<Self> {
        let today = [head, &NO_LEASE].concat();
        let (row, rest) = postcard::take_from_bytes(&today).ok()?;
        rest.is_empty().then_some(row)
    }
}

/// An agent that had a subscription.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct HolderRow {
    pub(crate) store: String,
    pub(crate) opens: u64,
    pub(crate) instance: u64,
    pub(crate) host: String,
    pub(crate) user: String,
    /// It began after this place.
    pub(crate) since: u64,
    /// Behind this place it had all events.
    pub(crate) whole_after: u64,
    /// Up to here it acknowledged when it had it.
    pub(crate) acked: u64,
}

/// The end of a subscription.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct EndedRow {
    pub(crate) at: i64,
    /// The last number given by then: what it had not acknowledged up to there is unclaimed.
    pub(crate) through: u64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct SourceRow {
    pub(crate) forwarder: String,
    pub(crate) seq: u64,
    /// Events that came from there by their numbers there, as a locator keeps them.
    pub(crate) locator: Vec<(u64, [u8; 16])>,
    /// Behind this number all events came here.
    pub(crate) whole_after: u64,
}

/// What has happened to a directory that its owner should know of.
#[derive(Serialize, Deserialize)]
pub(crate) struct IncidentRow {
    pub(crate) at: i64,
    pub(crate) kind: String,
    pub(crate) text: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct TokenRow {
    pub(crate) digest: [u8; 32],
}

fn durable_since(phase: Phase) -> Option<u32> {
    match phase {
        Phase::Fast => None,
        Phase::Durable { since } => Some(since),
    }
}

fn phase(durable_since: Option<u32>) -> Phase {
    durable_since.map_or(Phase::Fast, |since| Phase::Durable { since })
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Which event a signature belongs to.
#[derive(Serialize, Deserialize)]
pub(crate) struct SignatureClaimRow {
    pub(crate) event: [u8; 16],
}
