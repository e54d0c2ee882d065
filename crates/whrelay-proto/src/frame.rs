//! What travels through the tunnel. These are wire types: conversions to and from the domain name
//! every field, so that a new one stops the build until both sides have decided.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use whrelay_core::bucket::BucketName;
use whrelay_core::event::{Event, Header, Request};
use whrelay_core::id::EventId;
use whrelay_core::time::Timestamp;

/// One websocket message.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Agent: who it is and where it stands.
    Hello(Hello),
    /// Forwarder: the subscription is live.
    Welcome(Welcome),
    /// Forwarder: no session, and why.
    Refused(Refused),
    /// Forwarder: events.
    Events(Events),
    /// Agent: what it has on disk.
    Ack(Ack),
}

impl Frame {
    /// The frame's name in errors and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Welcome(_) => "welcome",
            Self::Refused(_) => "refused",
            Self::Events(_) => "events",
            Self::Ack(_) => "ack",
        }
    }
}

/// An agent's first frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol version the agent speaks.
    pub oldest: u16,
    /// Newest protocol version the agent speaks.
    pub newest: u16,
    /// The bucket.
    pub bucket: String,
    /// The agent's place in the bucket.
    pub subscription: String,
    /// What the agent has on disk, if it ever had anything: it is a receipt for all of it.
    pub resume: Option<Resume>,
    /// Credit: events it takes before it has acknowledged them.
    pub window_events: u32,
    /// Credit, in body bytes.
    pub window_bytes: u64,
    /// The agent's software, for logs.
    pub agent: String,
}

/// How far an agent has come with one forwarder's store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resume {
    /// The forwarder store's own name.
    pub forwarder: String,
    /// The last event on the agent's disk.
    pub seq: u64,
}

/// A forwarder's answer to a hello.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version spoken from here on.
    pub version: u16,
    /// The forwarder store's own name.
    pub forwarder: String,
    /// Events follow after this place.
    pub start: u64,
    /// Events that wait for the agent now.
    pub waiting: u64,
    /// The forwarder's wall clock, in microseconds since 1970.
    pub clock: i64,
    /// When the oldest of what waits was received, in microseconds since 1970.
    #[serde(default)]
    pub oldest: Option<i64>,
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// For the agent to act on.
    pub code: RefusedCode,
    /// For a person to read.
    pub text: String,
}

/// The reasons for refusing or ending a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedCode {
    /// No such bucket.
    UnknownBucket,
    /// No version in common.
    Version,
    /// A newer session has the subscription's lease.
    Replaced,
    /// The forwarder stops.
    Stopping,
    /// The forwarder's own trouble: later.
    Unavailable,
    /// A breach of the protocol.
    Protocol,
    /// A reason of a later version.
    #[serde(other)]
    Unknown,
}

/// Events, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Events {
    /// The place the batch continues from.
    pub after: u64,
    /// The place it reaches: past its last event where events are missing from the store.
    pub upto: u64,
    /// The events.
    pub events: Vec<WireEvent>,
}

/// One event and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct WireEvent {
    /// Its place in the bucket.
    pub seq: u64,
    /// Everything but the body.
    pub head: EventHead,
    /// The body, as it came.
    pub body: Bytes,
}

/// An event without its body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventHead {
    /// The event's id.
    #[serde(with = "serde_bytes")]
    pub id: [u8; 16],
    /// When it was received, in microseconds since 1970.
    pub received_at: i64,
    /// The method.
    pub method: String,
    /// The path after the bucket key.
    pub tail: String,
    /// The query.
    pub query: Option<String>,
    /// The header fields.
    pub headers: Vec<WireHeader>,
}

impl EventHead {
    /// Bytes of the request's head: method, path, query, and the names and values of its fields.
    pub(crate) fn size(&self) -> usize {
        let fields = self.headers.iter();
        let fields: usize = fields.map(|field| field.0.len() + field.1.len()).sum();
        let query = self.query.as_ref().map_or(0, String::len);
        self.method.len() + self.tail.len() + query + fields
    }
}

/// A header field: its value need not be UTF-8.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireHeader(pub String, #[serde(with = "serde_bytes")] pub Vec<u8>);

/// What is on the agent's disk.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ack {
    /// Everything up to here.
    pub upto: u64,
}

impl WireEvent {
    /// The wire form of an event at its place; the bucket is the session's.
    pub fn new(seq: u64, event: Event) -> Self {
        let Event {
            id,
            bucket: _,
            received_at,
            request,
            // A forwarder has all of an event or nothing.
            removed_body: _,
        } = event;
        let Request {
            method,
            tail,
            query,
            headers,
            body,
        } = request;
        let wire = |Header { name, value }: Header| WireHeader(name, value.to_vec());
        let head = EventHead {
            id: id.to_bytes(),
            received_at: received_at.as_micros(),
            method,
            tail,
            query,
            headers: headers.into_iter().map(wire).collect(),
        };
        Self { seq, head, body }
    }

    /// Bytes that it takes of a window: what its head says, and its body.
    pub fn size(&self) -> u64 {
        (self.head.size() + self.body.len()) as u64
    }

    /// The event, in the session's bucket.
    pub fn into_event(self, bucket: BucketName) -> Event {
        let Self { seq: _, head, body } = self;
        let EventHead {
            id,
            received_at,
            method,
            tail,
            query,
            headers,
        } = head;
        let header = |WireHeader(name, value)| Header {
            name,
            value: Bytes::from(value),
        };
        Event {
            id: EventId::from_bytes(id),
            bucket,
            received_at: Timestamp::from_micros(received_at),
            request: Request {
                method,
                tail,
                query,
                headers: headers.into_iter().map(header).collect(),
                body,
            },
            removed_body: None,
        }
    }
}
