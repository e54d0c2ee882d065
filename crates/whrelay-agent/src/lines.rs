//! What is said about an agent's work: one type per JSON line of the contract, shared by `listen`,
//! the control endpoint and the commands. It must not know who reads it, nor how it is coloured.

mod destination;
mod status;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use whrelay_core::delivery::{self, Attempt, DeadReason, Delivery, Signature, State};
use whrelay_core::event::{Event, Header};
use whrelay_core::retry::Phase;
use whrelay_core::time::Timestamp;

pub use self::destination::{DestinationLine, DestinationRemovedLine, OptionsLine};
pub use self::status::{HeadLine, IncidentStatus, RemovedStatus, StatusLine, TargetStatus};
use crate::answer::{self, Shown};
use crate::words;
pub use crate::words::{EndpointState, LinkState};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    /// The whole way works: the tunnel is up and its subscription confirmed.
    Ready(ReadyLine),
    /// An event is on the agent's disk.
    Received(ReceivedLine),
    /// An attempt was made and recorded.
    Attempt(AttemptLine),
    /// The tunnel came or went.
    Link {
        /// Which of the two.
        state: LinkState,
        /// Why it went.
        error: Option<String>,
    },
    /// A target stopped taking connections, or takes them again.
    Endpoint {
        /// The destination's name, or its URL where it has none.
        destination: String,
        /// Its URL.
        target: String,
        /// Which of the two.
        state: EndpointState,
        /// Deliveries that wait for it.
        waiting: u64,
    },
    /// Retention has removed what had ended.
    Retention {
        /// The bucket.
        bucket: String,
        /// Whole events.
        events: u64,
        /// Bodies of events that were kept otherwise.
        bodies: u64,
        /// `retain` where their time was over, `max-disk` where space was needed.
        reason: String,
    },
    /// Something a person should know.
    Warning {
        /// What.
        message: String,
    },
    /// An event, as `events` lists it.
    Event(EventLine),
    /// An event's own bytes, for `events show`.
    Content(ContentLine),
    /// Up to which place in the log attempts have been told, for `logs`.
    Reached {
        /// The place.
        place: u64,
    },
    /// Deliveries that came to the same.
    Group(GroupLine),
    /// A delivery was begun again.
    Replay(ReplayLine),
    /// A delivery was given up by a person.
    Discard(DiscardLine),
    /// How an agent stands.
    Status(StatusLine),
    /// A destination, as `destination` shows it.
    Destination(DestinationLine),
    /// A destination was removed.
    DestinationRemoved(DestinationRemovedLine),
    /// What was asked for cannot be done.
    Failure {
        /// Whether it is because something does not exist.
        not_found: bool,
        /// Why.
        message: String,
    },
}

impl Line {
    /// A warning.
    pub fn warning(message: impl Into<String>) -> Self {
        Self::Warning {
            message: message.into(),
        }
    }
}

/// See [`Line::Ready`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadyLine {
    /// The input URL.
    pub url: String,
    /// The bucket.
    pub bucket: String,
    /// The forwarder's address.
    pub forwarder: String,
    /// Where events go.
    pub targets: Vec<String>,
    /// Deliveries that wait from before.
    pub queued: u64,
    /// When the oldest event that waits was received.
    pub oldest: Option<String>,
    /// This process.
    pub pid: u32,
}

/// See [`Line::Received`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceivedLine {
    /// The event.
    pub event: String,
    /// The bucket.
    pub bucket: String,
    /// The request's method.
    pub method: String,
    /// The tail and query after the bucket key.
    pub path: String,
    /// Bytes of the body.
    pub bytes: u64,
    /// What the sender calls this kind of event, where it says so in a header or the body.
    pub kind: Option<String>,
    /// When the forwarder received it.
    pub at: String,
}

impl ReceivedLine {
    /// About an event.
    pub fn new(event: &Event) -> Self {
        let request = &event.request;
        Self {
            event: event.id.to_string(),
            bucket: event.bucket.to_string(),
            method: request.method.clone(),
            path: request.path_and_query(),
            bytes: event.body_len(),
            kind: whrelay_providers::kind(request),
            at: event.received_at.to_string(),
        }
    }
}

/// See [`Line::Attempt`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptLine {
    /// The event.
    pub event: String,
    /// The delivery.
    pub delivery: String,
    /// The bucket.
    pub bucket: String,
    /// The destination's name, or its URL where it has none.
    #[serde(default)]
    pub destination: String,
    /// The destination's URL then.
    pub target: String,
    /// The request's method.
    pub method: String,
    /// The URL it went to.
    pub url: String,
    /// 1, 2, 3 … within its delivery.
    pub attempt: u32,
    /// The answer's status.
    pub status: Option<u16>,
    /// What went wrong where there was no answer.
    pub error: Option<String>,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
    /// `sent`, `stalled` or `dead`.
    #[serde(with = "words")]
    pub state: State,
    /// Why it is dead.
    #[serde(with = "words::maybe")]
    pub reason: Option<DeadReason>,
    /// Why the target refused it, where that is known: `signature expired` or `signature unverified`.
    #[serde(default)]
    pub cause: Option<String>,
    /// What was known of the event's signature, where it has one that needs a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<SignatureLine>,
    /// When it is tried next.
    pub next_attempt_at: Option<String>,
    /// `fast` or `durable`.
    pub phase: String,
    /// Whether retries become rare with this failure: the one that hands the delivery over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub handoff: bool,
    /// The first bytes of the answer's body as text, told only where one event is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The same in base64, as they came, where the text is not the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_base64: Option<String>,
    /// The answer's header fields, told only where one event is shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answer_headers: Vec<(String, String)>,
    /// Whether a person asked for it again.
    pub replay: bool,
    /// When it started.
    pub at: String,
}

/// What was known of a signature at an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SignatureLine {
    /// Whose signature.
    pub provider: String,
    /// `unchecked`, `verified`, `renewed`, `repeated`, `stale`, `unverified` or `refused`.
    pub state: String,
    /// How old the signature was that the target got, in milliseconds.
    pub age_ms: Option<u64>,
    /// Whether that is older than the provider's own libraries accept.
    pub expired: bool,
}

impl SignatureLine {
    /// About a signature.
    pub(crate) fn new(signature: &Signature) -> Self {
        let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Self {
            provider: signature.provider.clone(),
            state: signature.state.as_str().to_owned(),
            age_ms: signature.age.map(ms),
            expired: signature.expired,
        }
    }
}

impl AttemptLine {
    /// About an attempt of a bucket's event at a destination.
    pub fn new(attempt: &Attempt, bucket: &str, destination: &str) -> Self {
        let (phase, handoff) = match (attempt.phase, attempt.next_phase()) {
            (_, Phase::Fast) => ("fast", false),
            (before, Phase::Durable { .. }) => ("durable", before == Phase::Fast),
        };
        Self {
            event: attempt.event.to_string(),
            delivery: attempt.delivery.to_string(),
            bucket: bucket.to_owned(),
            destination: destination.to_owned(),
            target: attempt.target.clone(),
            method: attempt.method.clone(),
            url: attempt.url.clone(),
            attempt: attempt.number,
            status: attempt.status,
            error: attempt.error.clone(),
            duration_ms: (attempt.duration.as_secs_f64() * 1e5).round() / 100.0,
            state: attempt.state(),
            reason: attempt.reason(),
            cause: attempt.cause().map(|cause| cause.as_str().to_owned()),
            signature: attempt.signature.as_ref().map(SignatureLine::new),
            next_attempt_at: attempt.next_attempt_at().map(|at| at.to_string()),
            phase: phase.to_owned(),
            handoff,
            answer: None,
            answer_base64: None,
            answer_headers: Vec::new(),
            replay: attempt.replay,
            at: attempt.at.to_string(),
        }
    }

    /// Whether the delivery was given up without this attempt being made: by a person, by its deadline, for its signature.
    pub fn was_given_up(&self) -> bool {
        self.state == State::Dead && self.status.is_none() && self.duration_ms == 0.0
    }

    /// With what is kept of the answer.
    pub(crate) fn with_answer(self, attempt: &Attempt) -> Self {
        let Shown { text, is_exact } = answer::shown(attempt);
        let field = |field: &Header| {
            let value = String::from_utf8_lossy(&field.value).into_owned();
            (field.name.clone(), value)
        };
        Self {
            answer: (!text.is_empty()).then_some(text),
            answer_base64: (!is_exact).then(|| STANDARD.encode(&attempt.answer)),
            answer_headers: attempt.answer_headers.iter().map(field).collect(),
            ..self
        }
    }
}

/// See [`Line::Event`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    /// The event.
    pub event: String,
    /// The bucket.
    pub bucket: String,
    /// The request's method.
    pub method: String,
    /// The tail and query after the bucket key.
    pub path: String,
    /// Bytes that the body has, or had.
    pub bytes: u64,
    /// What the sender calls this kind of event, where it says so in a header or the body.
    #[serde(default)]
    pub kind: Option<String>,
    /// The id that the provider gives it: its own retries have the same.
    #[serde(default)]
    pub provider_id: Option<String>,
    /// Whether retention has removed the body.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub body_removed: bool,
    /// When the forwarder received it.
    pub received_at: String,
    /// The least finished state of its deliveries; a replay stands for what it repeats.
    #[serde(with = "words")]
    pub state: State,
    /// Why it is dead.
    #[serde(with = "words::maybe")]
    pub reason: Option<DeadReason>,
    /// Why a target refused it, where that is known: `signature expired` or `signature unverified`.
    #[serde(default)]
    pub cause: Option<String>,
    /// What was known of its signature then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<SignatureLine>,
    /// Attempts over all its deliveries.
    pub attempts: u32,
    /// When one is tried next.
    pub next_attempt_at: Option<String>,
    /// Its deliveries.
    pub deliveries: Vec<DeliveryLine>,
}

/// A delivery and where it goes.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The delivery, as it is shown.
    pub delivery: Delivery,
    /// When it is tried next.
    pub next_attempt_at: Option<Timestamp>,
    /// The destination's name, or its URL where it has none.
    pub destination: String,
    /// Its URL.
    pub target: String,
}

impl Placed {
    fn line(&self) -> DeliveryLine {
        let Self {
            delivery,
            next_attempt_at: _,
            destination,
            target,
        } = self;
        DeliveryLine {
            delivery: delivery.id.to_string(),
            destination: destination.clone(),
            target: target.clone(),
            one_off: delivery.one_off,
            state: delivery.state,
            attempts: delivery.attempts,
        }
    }
}

/// One delivery of an [`EventLine`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeliveryLine {
    /// The delivery.
    pub delivery: String,
    /// The destination's name, or its URL where it has none.
    #[serde(default)]
    pub destination: String,
    /// Its URL.
    pub target: String,
    /// Whether it goes to the URL of a replay alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_off: bool,
    /// Where it stands.
    #[serde(with = "words")]
    pub state: State,
    /// Attempts made.
    pub attempts: u32,
}

impl EventLine {
    /// About an event and its deliveries, in the order they were begun.
    pub fn new(event: &Event, deliveries: &[Placed]) -> Self {
        let all: Vec<_> = deliveries
            .iter()
            .map(|placed| placed.delivery.clone())
            .collect();
        let last = || delivery::current(&all);
        let least = last().min_by_key(|delivery| delivery.state);
        let next_of = |delivery: &Delivery| {
            let mut placed = deliveries.iter();
            let placed = placed.find(|placed| placed.delivery.key == delivery.key);
            placed.and_then(|placed| placed.next_attempt_at)
        };
        let next = last().filter_map(next_of).min();
        let request = &event.request;
        let line = |placed: &Placed| placed.line();
        Self {
            event: event.id.to_string(),
            bucket: event.bucket.to_string(),
            method: request.method.clone(),
            path: request.path_and_query(),
            bytes: event.body_len(),
            kind: None,
            provider_id: None,
            body_removed: event.removed_body.is_some(),
            received_at: event.received_at.to_string(),
            state: least.map_or(State::Queued, |delivery| delivery.state),
            reason: least.and_then(|delivery| delivery.reason),
            cause: None,
            signature: None,
            attempts: deliveries
                .iter()
                .map(|placed| placed.delivery.attempts)
                .sum(),
            next_attempt_at: next.map(|at: Timestamp| at.to_string()),
            deliveries: deliveries.iter().map(line).collect(),
        }
    }

    /// The same event as two agents know it, each with deliveries of its own.
    #[must_use]
    pub fn beside(mut self, other: Self) -> Self {
        let least = match other.state < self.state {
            true => (other.state, other.reason),
            false => (self.state, self.reason),
        };
        let next = [self.next_attempt_at, other.next_attempt_at];
        self.deliveries.extend(other.deliveries);
        Self {
            state: least.0,
            reason: least.1,
            kind: self.kind.or(other.kind),
            provider_id: self.provider_id.or(other.provider_id),
            cause: self.cause.or(other.cause),
            signature: self.signature.or(other.signature),
            attempts: self.attempts + other.attempts,
            body_removed: self.body_removed && other.body_removed,
            next_attempt_at: next.into_iter().flatten().min(),
            ..self
        }
    }
}

/// See [`Line::Content`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContentLine {
    /// The header fields, in order; bytes that are no UTF-8 are replaced.
    pub headers: Vec<(String, String)>,
    /// Values in which bytes were replaced, as they are, by the field's place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<(usize, Vec<u8>)>,
    /// Bytes of the body that follow, raw, behind this line.
    pub body_bytes: u64,
}

impl ContentLine {
    /// Of an event.
    pub fn new(event: &Event) -> Self {
        let headers = &event.request.headers;
        let text = |header: &Header| {
            let value = String::from_utf8_lossy(&header.value).into_owned();
            (header.name.clone(), value)
        };
        let replaced = headers.iter().enumerate();
        let replaced = replaced.filter(|(_, h)| std::str::from_utf8(&h.value).is_err());
        Self {
            headers: headers.iter().map(text).collect(),
            replaced: replaced.map(|(n, h)| (n, h.value.to_vec())).collect(),
            body_bytes: event.request.body.len() as u64,
        }
    }

    /// The header fields, in order and as they are.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.headers.iter().enumerate().map(|(n, (name, value))| {
            let replaced = self.replaced.iter().find(|(at, _)| *at == n);
            let value = replaced.map_or(value.as_bytes(), |(_, bytes)| bytes);
            (name.as_str(), value)
        })
    }
}

/// See [`Line::Group`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupLine {
    /// How many.
    pub count: u64,
    /// Where they stand.
    #[serde(with = "words")]
    pub state: State,
    /// Why they were given up.
    #[serde(with = "words::maybe")]
    pub reason: Option<DeadReason>,
    /// The last answer's status.
    pub status: Option<u16>,
    /// What went wrong where there was no answer.
    pub error: Option<String>,
    /// Why they were refused, where that is known: `signature expired` or `signature unverified`.
    #[serde(default)]
    pub cause: Option<String>,
    /// Where they went, without the query.
    pub url: String,
    /// The newest of their events.
    pub newest: String,
}

/// See [`Line::Discard`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiscardLine {
    /// The event.
    pub event: String,
    /// The delivery.
    pub delivery: String,
    /// The destination's name, or its URL where it has none.
    #[serde(default)]
    pub destination: String,
    /// Where it would have gone.
    pub target: String,
}

/// See [`Line::Replay`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplayLine {
    /// The event.
    pub event: String,
    /// The new delivery.
    pub delivery: String,
    /// The destination's name, or its URL where it has none.
    #[serde(default)]
    pub destination: String,
    /// Where it goes.
    pub target: String,
    /// Where it stands.
    #[serde(with = "words")]
    pub state: State,
}
