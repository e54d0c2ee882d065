//! Endpoints that follow a script.

use std::time::Duration;

use whrelay_core::delivery::DeliveryKey;
use whrelay_core::outcome::{Outcome, RetryAfter};
use whrelay_core::retry::Jitter;

use crate::world::{MS, SECOND};

/// What an endpoint does with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Behaviour {
    /// It answers with this status after so many microseconds.
    Answers(u16, u64),
    /// It takes no connection.
    Refuses,
    /// It takes connections and closes them.
    Closes,
    /// It takes connections, keeps them while they are idle, and closes them at a request.
    Breaks,
    /// It never answers; the attempt times out after so many microseconds.
    Hangs(u64),
    /// It never answers the first event, as above, and the others at once.
    HangsAtFirst(u64),
    /// It serves one request after the other, so many microseconds each, and goes on with those
    /// that have timed out.
    Single { each: u64, timeout: u64 },
    /// It answers each attempt by its own chance: this share of 256 fails, in every way.
    Random(u8),
    /// The same, but it is never away: it answers or takes too long.
    Flaky(u8),
}

/// What comes of an attempt is the same in every run.
pub(crate) fn random_outcome(share: u8, key: DeliveryKey, number: u32) -> (Outcome, u64) {
    let hash = hash(key, number);
    let status = |status| Outcome::Answered {
        status,
        retry_after: None,
    };
    let after = 1 + (hash >> 20) % (3 * SECOND);
    if hash % 256 >= u64::from(share) {
        return (status(200), after);
    }
    match (hash >> 8) % 8 {
        0 => (Outcome::Unreachable, MS),
        1 | 2 => (Outcome::Broken, MS),
        3 => (Outcome::TimedOut, 30 * SECOND),
        4 => (status(404), after),
        _ => (status(503), after),
    }
}

pub(crate) fn flaky_outcome(share: u8, key: DeliveryKey, number: u32) -> (Outcome, u64) {
    match random_outcome(share, key, number) {
        (Outcome::Unreachable | Outcome::Broken, _) => {
            let asked = Some(RetryAfter::Delay(Duration::from_secs(3)));
            let busy = Outcome::Answered {
                status: 429,
                retry_after: asked,
            };
            (busy, 10 * MS)
        }
        other => other,
    }
}

/// The chance of an attempt's backoff.
pub(crate) fn jitter_of(key: DeliveryKey, number: u32) -> Jitter {
    Jitter((hash(key, number) >> 32) as u32)
}

fn hash(key: DeliveryKey, number: u32) -> u64 {
    let mut hash = key.seq.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= u64::from(number).wrapping_mul(0xd1b5_4a32_d192_ed03);
    hash ^= u64::from(key.bucket.0).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash ^= hash >> 32;
    hash
}
