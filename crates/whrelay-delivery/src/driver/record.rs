//! The record of an attempt and what follows from it.

use whrelay_core::delivery::{Asked, Attempt, DeadReason, Delivery};
use whrelay_core::event::Event;
use whrelay_engine::Append;
use whrelay_store::{SignatureClaim, StoreError, persist};

use super::deliveries::Tools;
use super::exchange::{Made, asked, quarantine};
use crate::destination::Settings;
use crate::notice::Notice;

/// The error of a delivery whose deadline has passed.
const EXPIRED: &str = "the deadline has passed: not tried again";
/// The error of a delivery whose event does not verify.
const UNVERIFIED: &str = "its signature does not verify: not delivered (--unverified dead)";
/// The error of an attempt that did not report its end.
const LOST: &str = "the attempt did not end in time";

/// Records an attempt, or the end of a delivery without one, and shows it.
pub(super) async fn append(
    tools: &Tools,
    settings: &Settings,
    append: Append,
    made: Option<Box<Made>>,
) -> Result<(), StoreError> {
    let key = append.delivery.key;
    match record(tools, settings, append, made).await {
        Ok(attempt) => {
            if let Some(attempt) = attempt {
                (tools.notify)(settings, Notice::Attempt(Box::new(attempt)));
            }
            Ok(())
        }
        Err(StoreError::Damaged(what)) => quarantine(tools, settings, key, &what).await,
        Err(error) => Err(error),
    }
}

/// Writes the record. `None` if the delivery had ended before.
async fn record(
    tools: &Tools,
    settings: &Settings,
    append: Append,
    made: Option<Box<Made>>,
) -> Result<Option<Attempt>, StoreError> {
    let store = &tools.store;
    let (attempt, claim) = match made {
        Some(made) => of_exchange(*made, &append),
        None => match persist(|| load(tools, settings, &append)).await? {
            Some((delivery, event)) => {
                let asked = asked(&settings.client, &event);
                (of_nothing(delivery, asked, &append), None)
            }
            None => return Ok(None),
        },
    };
    persist(|| store.journal.attempted(attempt.clone(), claim)).await?;
    Ok(Some(attempt))
}

/// A delivery that waits, and its event without the body.
async fn load(
    tools: &Tools,
    settings: &Settings,
    append: &Append,
) -> Result<Option<(Delivery, Event)>, StoreError> {
    let key = append.delivery.key;
    let delivery = tools.store.journal.delivery(key).await?;
    let Some(delivery) = delivery.filter(|delivery| !delivery.state.is_finished()) else {
        return Ok(None);
    };
    match tools
        .store
        .journal
        .head_at(&settings.bucket, key.seq)
        .await?
    {
        Some((event, _)) => Ok(Some((delivery, event))),
        None => Err(StoreError::Damaged(format!("event {}", key.seq.0))),
    }
}

/// The record of an exchange, or of an event that was not sent for its signature.
fn of_exchange(made: Made, append: &Append) -> (Attempt, Option<SignatureClaim>) {
    let Made {
        delivery,
        asked,
        at,
        duration,
        note,
        claim,
        reply,
    } = made;
    let base = Attempt {
        number: append.number,
        duration,
        signature: note,
        verdict: append.verdict,
        ..Attempt::given_up(&delivery, asked, at, DeadReason::Rejected, UNVERIFIED)
    };
    let attempt = match reply {
        None => base,
        Some(reply) => Attempt {
            status: reply.status,
            error: reply.error,
            answer_headers: reply.answer_headers,
            answer: reply.answer,
            ..base
        },
    };
    (attempt, claim)
}

/// The record of an attempt that did not report its end, or of a delivery that ends without an attempt.
fn of_nothing(delivery: Delivery, asked: Asked, append: &Append) -> Attempt {
    let why = if append.tried { LOST } else { EXPIRED };
    Attempt {
        number: append.number,
        verdict: append.verdict,
        ..Attempt::given_up(&delivery, asked, append.at, DeadReason::Deadline, why)
    }
}
