//! What the record of an attempt means, and what stands behind it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{Attempt, DeliveryKey, DestinationId, Signature, SignatureState};
use whrelay_core::event::Header;
use whrelay_core::id::{DeliveryId, EventId};
use whrelay_core::retry::{Pause, Verdict};
use whrelay_core::time::Timestamp;

use super::delivery::StateRow;
use super::{durable_since, micros, phase};
use crate::record;

#[derive(Serialize, Deserialize)]
pub(crate) struct AttemptRow {
    key: (u32, u64, u32),
    delivery: [u8; 16],
    event: [u8; 16],
    destination: u32,
    url: String,
    method: String,
    number: u32,
    at: i64,
    duration_us: u64,
    status: Option<u16>,
    error: Option<String>,
    answer: Vec<u8>,
    replay: bool,
    durable_since: Option<u32>,
    state: StateRow,
    next: Option<(i64, Option<u32>, u8)>,
    /// The place in the log of the attempt before it of the same delivery.
    pub(crate) before: Option<u64>,
}

/// What stands behind an [`AttemptRow`]. Rows of before format 8 have nothing there, those of format 8 no target.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct AttemptMore {
    answer_headers: Vec<(String, Vec<u8>)>,
    signature: Option<SignatureRow>,
    target: String,
}

#[derive(Serialize, Deserialize)]
struct SignatureRow {
    provider: String,
    state: u8,
    age_us: Option<u64>,
    expired: bool,
}

impl SignatureRow {
    fn new(signature: Signature) -> Self {
        let Signature {
            provider,
            state,
            age,
            expired,
        } = signature;
        Self {
            provider,
            state: match state {
                SignatureState::Unchecked => 0,
                SignatureState::Verified => 1,
                SignatureState::Renewed => 2,
                SignatureState::Repeated => 3,
                SignatureState::Stale => 4,
                SignatureState::Unverified => 5,
                SignatureState::Refused => 6,
            },
            age_us: age.map(micros),
            expired,
        }
    }

    fn into_signature(self) -> Signature {
        Signature {
            provider: self.provider,
            state: match self.state {
                1 => SignatureState::Verified,
                2 => SignatureState::Renewed,
                3 => SignatureState::Repeated,
                4 => SignatureState::Stale,
                5 => SignatureState::Unverified,
                6 => SignatureState::Refused,
                _ => SignatureState::Unchecked,
            },
            age: self.age_us.map(Duration::from_micros),
            expired: self.expired,
        }
    }
}

impl AttemptMore {
    /// From what stands behind a row. `None` where that makes no sense.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        record::decode(bytes).or_else(|| {
            let (answer_headers, signature) = record::decode(bytes)?;
            Some(Self {
                answer_headers,
                signature,
                target: String::new(),
            })
        })
    }

    /// What was known of the event's signature.
    pub(crate) fn into_signature(self) -> Option<Signature> {
        self.signature.map(SignatureRow::into_signature)
    }
}

impl AttemptRow {
    /// The row, and what stands behind it.
    pub(crate) fn new(attempt: Attempt, before: Option<u64>) -> (Self, AttemptMore) {
        let (state, reason) = (attempt.state(), attempt.reason());
        let Attempt {
            key,
            delivery,
            event,
            destination,
            target,
            url,
            method,
            number,
            at,
            duration,
            status,
            error,
            answer_headers,
            answer,
            signature,
            replay,
            phase,
            verdict,
        } = attempt;
        let header = |Header { name, value }: Header| (name, value.to_vec());
        let more = AttemptMore {
            answer_headers: answer_headers.into_iter().map(header).collect(),
            signature: signature.map(SignatureRow::new),
            target,
        };
        let next = match verdict {
            Verdict::RetryAt { at, phase, pause } => {
                Some((at.as_micros(), durable_since(phase), number_of(pause)))
            }
            Verdict::Sent | Verdict::Dead(_) => None,
        };
        let row = Self {
            key: (key.bucket.0, key.seq.0, key.ordinal),
            delivery: delivery.to_bytes(),
            event: event.to_bytes(),
            destination: destination.0,
            url,
            method,
            number,
            at: at.as_micros(),
            duration_us: micros(duration),
            status,
            error,
            answer,
            replay,
            durable_since: durable_since(phase),
            state: StateRow::new(state, reason),
            next,
            before,
        };
        (row, more)
    }

    pub(crate) fn into_attempt(self, more: AttemptMore) -> Attempt {
        let header = |(name, value): (String, Vec<u8>)| Header {
            name,
            value: value.into(),
        };
        let (bucket, seq, ordinal) = self.key;
        let verdict = match (self.next, self.state.split()) {
            (Some((at, since, pause)), _) => Verdict::RetryAt {
                at: Timestamp::from_micros(at),
                phase: phase(since),
                pause: pause_of(pause),
            },
            (None, (_, Some(reason))) => Verdict::Dead(reason),
            (None, (_, None)) => Verdict::Sent,
        };
        Attempt {
            key: DeliveryKey {
                bucket: BucketId(bucket),
                seq: Seq(seq),
                ordinal,
            },
            delivery: DeliveryId::from_bytes(self.delivery),
            event: EventId::from_bytes(self.event),
            destination: DestinationId(self.destination),
            target: more.target,
            url: self.url,
            method: self.method,
            number: self.number,
            at: Timestamp::from_micros(self.at),
            duration: Duration::from_micros(self.duration_us),
            status: self.status,
            error: self.error,
            answer_headers: more.answer_headers.into_iter().map(header).collect(),
            answer: self.answer,
            signature: more.signature.map(SignatureRow::into_signature),
            replay: self.replay,
            phase: phase(self.durable_since),
            verdict,
        }
    }
}

fn number_of(pause: Pause) -> u8 {
    match pause {
        Pause::Backoff => 0,
        Pause::Asked => 1,
        Pause::Offline => 2,
    }
}

fn pause_of(number: u8) -> Pause {
    match number {
        1 => Pause::Asked,
        2 => Pause::Offline,
        _ => Pause::Backoff,
    }
}
