//! What travels through the tunnel. These are wire types: conversions to and from the domain name
//! every field, so that a new one stops the build until both sides have decided.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use whrelay_core::backlog::{Backlog, Cut};
use whrelay_core::bucket::{BucketName, Seq};
use whrelay_core::event::{Event, Header, Request};
use whrelay_core::history::{Claim, Locator};
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::time::Timestamp;

use crate::{NEWEST_VERSION, OLDEST_VERSION};

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
    /// What the agent has on disk, if it ever had anything: it acknowledges all of it that the forwarder has, too.
    pub resume: Option<Resume>,
    /// Credit: events it takes before it has acknowledged them.
    pub window_events: u32,
    /// Credit, in body bytes.
    pub window_bytes: u64,
    /// The agent's software, for logs.
    pub agent: String,
    /// Who the agent is.
    #[serde(default)]
    pub who: Option<Who>,
    /// Whether it takes the subscription from another agent that has it.
    #[serde(default)]
    pub take_over: bool,
    /// Whether it wants what came before, should its subscription be new; nothing where it does not say.
    #[serde(default)]
    pub backlog: Option<bool>,
    /// The newest event that the forwarder had when this process of the agent began. The forwarder says whether it
    /// has another one with that number.
    #[serde(default)]
    pub backlog_end: Option<Known>,
}

impl Hello {
    /// What an agent of this version says, and nothing of itself.
    pub fn new(bucket: &str, subscription: &str, resume: Option<Resume>) -> Self {
        Self {
            oldest: OLDEST_VERSION,
            newest: NEWEST_VERSION,
            bucket: bucket.to_owned(),
            subscription: subscription.to_owned(),
            resume,
            window_events: limits::WINDOW_EVENTS,
            window_bytes: limits::WINDOW_BYTES,
            agent: concat!("whrelay/", env!("CARGO_PKG_VERSION")).to_owned(),
            who: None,
            take_over: false,
            backlog: None,
            backlog_end: None,
        }
    }
}

/// Which agent it is, and on which machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The name of its store.
    pub store: String,
    /// Which opening of that store it runs on.
    pub epoch: Epoch,
    /// The instance of the opening before it, where that is known.
    #[serde(default)]
    pub follows: Option<u64>,
    /// Its machine, for people.
    pub host: String,
    /// Its user there, for people.
    pub user: String,
}

/// One opening of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// How often it was opened: a number that is lower than before belongs to an earlier copy.
    pub opens: u64,
    /// Random: no other opening has it.
    pub instance: u64,
}

impl Epoch {
    /// Whether it belongs to an earlier copy of a directory that had this opening.
    pub fn is_earlier_than(self, known: Self) -> bool {
        self.instance != known.instance && self.opens <= known.opens
    }
}

/// How far an agent has come with one forwarder's store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resume {
    /// The forwarder store's own name.
    pub forwarder: String,
    /// The last event on the agent's disk.
    pub seq: u64,
    /// Events up to there, oldest first, dense near the end and ever sparser before it; empty in earlier versions.
    #[serde(default)]
    pub locator: Vec<Known>,
    /// The opening of the forwarder's store that the agent knows, if it does.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    /// Behind this place the agent was sent all events; those before went to others of its subscription.
    #[serde(default)]
    pub whole_after: u64,
}

/// An event by its place and its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known(pub u64, #[serde(with = "serde_bytes")] pub [u8; 16]);

impl Known {
    /// An event at a place.
    pub fn new((seq, id): (Seq, EventId)) -> Self {
        Self(seq.0, id.to_bytes())
    }

    /// The same, in the words of the core.
    pub fn entry(&self) -> (Seq, EventId) {
        (Seq(self.0), EventId::from_bytes(self.1))
    }
}

impl Resume {
    /// A place alone, which proves nothing.
    pub fn at(forwarder: &str, seq: u64) -> Self {
        Self {
            forwarder: forwarder.to_owned(),
            seq,
            locator: Vec::new(),
            epoch: None,
            whole_after: 0,
        }
    }

    /// What it claims, where it is about this forwarder's store.
    pub fn claim(&self, forwarder: &str) -> Option<Claim> {
        (self.forwarder == forwarder).then(|| Claim {
            seq: Seq(self.seq),
            locator: Locator::from_entries(self.locator.iter().map(Known::entry)),
            whole_after: Seq(self.whole_after),
        })
    }
}

/// A forwarder's answer to a hello.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// The newest event there.
    #[serde(default)]
    pub newest: Option<Known>,
    /// Which opening of the forwarder's store it runs on.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    /// What the forwarder has noticed about the agent's directory, its own, or the subscription.
    #[serde(default)]
    pub noticed: Noticed,
}

impl Welcome {
    /// What of the backlog is passed over, at the first welcome of a process.
    pub fn cut(&self, wanted: Backlog) -> Cut {
        let before = (self.start, self.waiting);
        let newest = self.newest.as_ref().map(Known::entry);
        Cut::new(wanted, &self.forwarder, before, newest)
    }
}

/// What a forwarder has noticed as an agent came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noticed {
    /// The forwarder's directory went back to an earlier copy; the last place that the agent has.
    #[serde(default)]
    pub forwarder_went_back: Option<u64>,
    /// The agent's directory went back to an earlier copy; the last place that it acknowledged before.
    #[serde(default)]
    pub agent_went_back: Option<u64>,
    /// Another process runs on a copy of the agent's directory.
    #[serde(default)]
    pub copy_of: Option<Other>,
    /// Another agent had the subscription before.
    #[serde(default)]
    pub taken_from: Option<Other>,
    /// Events that are kept and not sent, since the subscription is new and begins now.
    #[serde(default)]
    pub skipped: u64,
    /// Another event than the agent named, or none, has the number of the end of its backlog: the forwarder gives
    /// numbers again.
    #[serde(default)]
    pub backlog_end_lost: bool,
}

/// Another agent, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    /// Its machine.
    pub host: String,
    /// Its user there.
    pub user: String,
    /// When it was last heard of, in microseconds since 1970.
    pub seen_at: Option<i64>,
    /// Whether it is connected.
    pub live: bool,
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
    /// Another agent has the subscription, and this one did not ask to take it over.
    InUse,
    /// The bucket has as many subscriptions as it may have.
    TooManySubscriptions,
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
