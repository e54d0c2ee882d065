//! A delivery's life: its states, its attempts, and what is known of each. It must not know how it
//! is stored or shown.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::bucket::{BucketId, Seq};
use crate::event::Header;
use crate::id::{DeliveryId, EventId};
use crate::queue::{QueueKind, WaitReason, Waiting};
use crate::retry::{Pause, Phase, Verdict};
use crate::time::Timestamp;

/// Why a delivery was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// The target refused it for good, or it can never be sent there.
    Rejected,
    /// Its time was up.
    Deadline,
    /// Its budget of attempts was used up.
    Attempts,
    /// A person gave it up.
    Discarded,
    /// Its event is damaged on disk, and nobody else has it.
    Damaged,
    /// Its subscription was ended before it was received.
    Unclaimed,
}

impl DeadReason {
    /// All of them.
    pub const ALL: [DeadReason; 6] = [
        DeadReason::Rejected,
        DeadReason::Deadline,
        DeadReason::Attempts,
        DeadReason::Discarded,
        DeadReason::Damaged,
        DeadReason::Unclaimed,
    ];

    /// The word for it in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Deadline => "deadline",
            Self::Attempts => "attempts",
            Self::Discarded => "discarded",
            Self::Damaged => "damaged",
            Self::Unclaimed => "unclaimed",
        }
    }
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DeadReason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|r| r.as_str() == text);
        found.ok_or_else(|| {
            format!(
                "unknown reason `{text}`: use rejected, deadline, attempts, discarded, damaged or unclaimed"
            )
        })
    }
}

/// Where a delivery stands, from least to most finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Not tried yet.
    Queued,
    /// Failed so far; the next attempt's time is known.
    Stalled,
    /// Given up.
    Dead,
    /// Arrived.
    Sent,
}

impl State {
    /// All of them.
    pub const ALL: [State; 4] = [State::Queued, State::Stalled, State::Dead, State::Sent];

    /// The word for it in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Stalled => "stalled",
            Self::Dead => "dead",
            Self::Sent => "sent",
        }
    }

    /// Whether nothing more will happen by itself.
    pub fn is_finished(self) -> bool {
        match self {
            Self::Queued | Self::Stalled => false,
            Self::Dead | Self::Sent => true,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|s| s.as_str() == text);
        found.ok_or_else(|| format!("unknown status `{text}`: use queued, stalled, sent or dead"))
    }
}

/// The number a store gives a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationId(pub u32);

/// Finds a delivery: its event's place, and its number among that event's deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryKey {
    /// The bucket.
    pub bucket: BucketId,
    /// The event's place in it.
    pub seq: Seq,
    /// 0 for the event's first delivery, 1 for its second …
    pub ordinal: u32,
}

/// One event on its way to one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Where it is found.
    pub key: DeliveryKey,
    /// Its name.
    pub id: DeliveryId,
    /// The event.
    pub event: EventId,
    /// Where it goes.
    pub destination: DestinationId,
    /// When it was created.
    pub created_at: Timestamp,
    /// After this, no attempt starts.
    pub deadline_at: Timestamp,
    /// Attempts recorded.
    pub attempts: u32,
    /// When the first failure was recorded.
    pub first_failed_at: Option<Timestamp>,
    /// Which backoff it is in.
    pub phase: Phase,
    /// Where it stands.
    pub state: State,
    /// Why it was given up.
    pub reason: Option<DeadReason>,
    /// Why it waits; `None` once it has ended.
    pub wait: Option<WaitReason>,
    /// The size of its event's body; 0 if unknown.
    pub bytes: u64,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Whether a person asked for it again.
    pub replay: bool,
    /// The place of its newest attempt in the log of attempts.
    pub last_attempt: Option<u64>,
    /// Whether it goes to the URL of this replay alone, and to no lasting destination.
    pub one_off: bool,
}

/// Where an event stands: the least finished state of its deliveries, of which `deliveries` are all. A
/// replay stands for what it repeats, once that has ended. `None` where it has none.
pub fn event_state(deliveries: &[Delivery]) -> Option<State> {
    current(deliveries).map(|delivery| delivery.state).min()
}

/// What an event's state is about: each delivery that has not ended, and the newest to each destination. Where
/// a one-off replay came to says nothing of the destinations.
pub fn current(deliveries: &[Delivery]) -> impl Iterator<Item = &Delivery> {
    let has_destination = deliveries.iter().any(|delivery| !delivery.one_off);
    deliveries.iter().filter(move |delivery| {
        let newer = |other: &Delivery| {
            let is_same =
                (other.destination, other.one_off) == (delivery.destination, delivery.one_off);
            is_same && other.key.ordinal > delivery.key.ordinal
        };
        let counts = !delivery.one_off || !has_destination;
        !delivery.state.is_finished() || (counts && !deliveries.iter().any(newer))
    })
}

/// When the last of an event's deliveries ended, of which `deliveries` are all. `None` while one waits, and
/// where there are none.
pub fn ended_at(deliveries: &[Delivery]) -> Option<Timestamp> {
    let ends = deliveries.iter().map(|delivery| {
        let finished = delivery.state.is_finished();
        finished.then(|| delivery.ended_at.unwrap_or(delivery.created_at))
    });
    ends.collect::<Option<Vec<_>>>()?.into_iter().max()
}

impl Delivery {
    /// When it is tried next, whatever its endpoint does meanwhile.
    pub fn next_attempt_at(&self) -> Option<Timestamp> {
        let due_at = |wait: WaitReason| wait.due_at(self.created_at, None, Timestamp::LAST);
        self.wait.map(due_at)
    }

    /// Its row in the queue of its destination; `None` once it has ended.
    pub fn waiting(&self) -> Option<Waiting> {
        Some(Waiting {
            key: self.key,
            kind: match self.replay {
                true => QueueKind::Replay,
                false => QueueKind::Normal,
            },
            created_at: self.created_at,
            deadline_at: self.deadline_at,
            reason: self.wait?,
            attempts: self.attempts,
            first_failed_at: self.first_failed_at,
            phase: self.phase,
            bytes: self.bytes,
        })
    }

    /// Ends without an attempt, at about the time it was due.
    pub fn end(&mut self, reason: DeadReason) {
        let due_at = self.next_attempt_at();
        self.wait = None;
        self.ended_at = Some(due_at.unwrap_or(self.created_at));
        (self.state, self.reason) = (State::Dead, Some(reason));
    }

    /// Whether an attempt still moves it: it has not ended, or only a person gave it up while it was under way
    /// and arrived.
    pub fn is_moved_by(&self, attempt: &Attempt) -> bool {
        let arrived = attempt.verdict == Verdict::Sent;
        !self.state.is_finished() || (self.reason == Some(DeadReason::Discarded) && arrived)
    }

    /// Whether an attempt is recorded already: where the answer to a record was lost, it is written again. One that was
    /// made has a number of its own. The end of a delivery without an attempt is recorded if the delivery has not ended.
    pub fn has_recorded(&self, attempt: &Attempt) -> bool {
        let ends = match attempt.verdict {
            Verdict::Dead(_) => !self.state.is_finished(),
            Verdict::Sent | Verdict::RetryAt { .. } => false,
        };
        attempt.number <= self.attempts && !ends
    }

    /// Moves on by what an attempt has shown. Attempt numbers never go back.
    pub fn follow(&mut self, attempt: &Attempt) {
        self.attempts = self.attempts.max(attempt.number);
        self.state = attempt.state();
        self.reason = attempt.reason();
        self.phase = attempt.next_phase();
        let ended_at = attempt.at.after(attempt.duration);
        self.wait = WaitReason::following(&attempt.verdict, ended_at);
        self.ended_at = self.state.is_finished().then_some(ended_at);
        if attempt.state() != State::Sent {
            self.first_failed_at.get_or_insert(ended_at);
        }
    }
}

/// What was known of a provider's signature when an attempt was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The provider.
    pub provider: String,
    /// What the secrets said.
    pub state: SignatureState,
    /// How old the signature was that the target got, where it says so.
    pub age: Option<Duration>,
    /// Whether that is older than the provider's own libraries accept.
    pub expired: bool,
}

/// What the secrets said about a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureState {
    /// There is no secret of this provider.
    Unchecked,
    /// It is good, and was sent as it came.
    Verified,
    /// It is good, and was made anew for this attempt.
    Renewed,
    /// It is good, but another event had it first: its time was not made anew.
    Repeated,
    /// It is good, but was too old when the event was received.
    Stale,
    /// It was not made with any of the secrets.
    Unverified,
    /// It is not good, and such events are not delivered.
    Refused,
}

impl SignatureState {
    /// All of them.
    pub const ALL: [SignatureState; 7] = [
        SignatureState::Unchecked,
        SignatureState::Verified,
        SignatureState::Renewed,
        SignatureState::Repeated,
        SignatureState::Stale,
        SignatureState::Unverified,
        SignatureState::Refused,
    ];

    /// The word for it in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Verified => "verified",
            Self::Renewed => "renewed",
            Self::Repeated => "repeated",
            Self::Stale => "stale",
            Self::Unverified => "unverified",
            Self::Refused => "refused",
        }
    }
}

impl Signature {
    /// Whether it is why a delivery was given up after this answer. Receivers answer a signature that they do not
    /// accept with one of these codes.
    pub fn cause(&self, status: Option<u16>) -> Option<Cause> {
        match (self.state, status) {
            (SignatureState::Refused, None) => Some(Cause::SignatureUnverified),
            (_, Some(400 | 401 | 403)) if self.expired => Some(Cause::SignatureExpired),
            (_, _) => None,
        }
    }
}

/// Why a target refused a delivery, where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Its signature was older than the provider's libraries accept.
    SignatureExpired,
    /// It does not verify, and such events are not delivered.
    SignatureUnverified,
}

impl Cause {
    /// The words for it in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SignatureExpired => "signature expired",
            Self::SignatureUnverified => "signature unverified",
        }
    }
}

/// One try, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The delivery tried.
    pub key: DeliveryKey,
    /// Its name.
    pub delivery: DeliveryId,
    /// The event.
    pub event: EventId,
    /// The destination.
    pub destination: DestinationId,
    /// The destination's URL then; nothing in logs of before that was kept.
    pub target: String,
    /// The URL it went to.
    pub url: String,
    /// The request's method.
    pub method: String,
    /// 1, 2, 3 … within its delivery.
    pub number: u32,
    /// When it started.
    pub at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// The answer's status code.
    pub status: Option<u16>,
    /// What went wrong where there was no answer.
    pub error: Option<String>,
    /// The answer's header fields, as many as are kept.
    pub answer_headers: Vec<Header>,
    /// The first bytes of the answer's body.
    pub answer: Vec<u8>,
    /// What was known of the event's signature, where it has one.
    pub signature: Option<Signature>,
    /// Whether the delivery is a replay.
    pub replay: bool,
    /// The phase of the backoff it was made in.
    pub phase: Phase,
    /// What follows.
    pub verdict: Verdict,
}

/// What an attempt asks, as the log tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The destination's URL.
    pub target: String,
    /// The URL of the request.
    pub url: String,
    /// Its method.
    pub method: String,
}

impl Attempt {
    /// That a delivery is given up untried, as the log tells it.
    pub fn given_up(
        delivery: &Delivery,
        asked: Asked,
        at: Timestamp,
        reason: DeadReason,
        why: &str,
    ) -> Self {
        let Asked {
            target,
            url,
            method,
        } = asked;
        Self {
            key: delivery.key,
            delivery: delivery.id,
            event: delivery.event,
            destination: delivery.destination,
            target,
            url,
            method,
            number: delivery.attempts,
            at,
            duration: Duration::ZERO,
            status: None,
            error: Some(why.to_owned()),
            answer_headers: Vec::new(),
            answer: Vec::new(),
            signature: None,
            replay: delivery.replay,
            phase: delivery.phase,
            verdict: Verdict::Dead(reason),
        }
    }

    /// Where its delivery stands after it.
    pub fn state(&self) -> State {
        match self.verdict {
            Verdict::Sent => State::Sent,
            Verdict::RetryAt { .. } => State::Stalled,
            Verdict::Dead(_) => State::Dead,
        }
    }

    /// Why its delivery was given up, if it was.
    pub fn reason(&self) -> Option<DeadReason> {
        match self.verdict {
            Verdict::Dead(reason) => Some(reason),
            Verdict::Sent | Verdict::RetryAt { .. } => None,
        }
    }

    /// Why it was refused, where that is known.
    pub fn cause(&self) -> Option<Cause> {
        let signature = self.signature.as_ref()?;
        let is_rejected = self.verdict == Verdict::Dead(DeadReason::Rejected);
        signature.cause(self.status).filter(|_| is_rejected)
    }

    /// When its delivery is tried next, if it is.
    pub fn next_attempt_at(&self) -> Option<Timestamp> {
        match self.verdict {
            Verdict::RetryAt { at, .. } => Some(at),
            Verdict::Sent | Verdict::Dead(_) => None,
        }
    }

    /// The phase its delivery is in after it.
    pub fn next_phase(&self) -> Phase {
        match self.verdict {
            Verdict::RetryAt { phase, .. } => phase,
            Verdict::Sent | Verdict::Dead(_) => self.phase,
        }
    }

    /// What its delivery waits for, if it is tried again.
    pub fn pause(&self) -> Option<Pause> {
        match self.verdict {
            Verdict::RetryAt { pause, .. } => Some(pause),
            Verdict::Sent | Verdict::Dead(_) => None,
        }
    }
}
