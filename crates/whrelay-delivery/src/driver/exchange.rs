//! One attempt: the event is loaded and the request made once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use whrelay_core::delivery::{Asked, DeadReason, Delivery, DeliveryKey, Signature};
use whrelay_core::event::Event;
use whrelay_core::limits;
use whrelay_core::time::Timestamp;
use whrelay_engine::Ended;
use whrelay_store::{SignatureClaim, StoreError, persist};

use super::deliveries::Tools;
use crate::destination::Settings;
use crate::http::{Client, Reply};
use crate::notice::Notice;
use crate::repair::{Repair, repair};
use crate::signatures::Attested;

/// What an exchange has shown, to be recorded with the verdict.
pub(super) struct Made {
    pub(super) delivery: Delivery,
    pub(super) asked: Asked,
    pub(super) at: Timestamp,
    pub(super) duration: Duration,
    pub(super) note: Option<Signature>,
    pub(super) claim: Option<SignatureClaim>,
    /// `None` if no request was made, since the event does not verify.
    pub(super) reply: Option<Reply>,
}

/// What became of an attempt, and what is to be recorded of it.
type Attempted = (Ended, Option<Box<Made>>);

const NOT_ASKED: Attempted = (Ended::NotAsked, None);

/// Tries a delivery once.
pub(super) async fn attempt(
    tools: &Tools,
    settings: Arc<Settings>,
    key: DeliveryKey,
    number: u32,
) -> Result<Attempted, StoreError> {
    match load(tools, &settings, key).await {
        Ok(Some((delivery, event))) => try_once(tools, &settings, delivery, event, number).await,
        Ok(None) => Ok(NOT_ASKED),
        Err(StoreError::Damaged(what)) => fetch_again(tools, &settings, key, &what).await,
        Err(StoreError::Full | StoreError::Bound | StoreError::Share | StoreError::Reopening) => {
            Ok(NOT_ASKED)
        }
        Err(error @ StoreError::Broken(_)) => Err(error),
    }
}

/// A delivery that waits, and its event. `None` if it has ended.
async fn load(
    tools: &Tools,
    settings: &Settings,
    key: DeliveryKey,
) -> Result<Option<(Delivery, Event)>, StoreError> {
    let delivery = tools.store.journal.delivery(key).await?;
    if delivery.as_ref().is_some_and(|d| d.state.is_finished()) {
        return Ok(None);
    }
    let event = tools
        .store
        .journal
        .event_at(&settings.bucket, key.seq)
        .await?;
    match (delivery, event) {
        // Another destination has it by now.
        (Some(delivery), Some(_)) if delivery.destination != settings.id => Ok(None),
        (Some(delivery), Some(event)) if event.removed_body.is_none() => {
            Ok(Some((delivery, event)))
        }
        (None, None) => Ok(None),
        (Some(_), Some(_) | None) | (None, Some(_)) => {
            // They are written in one transaction, so only damage takes one and leaves one; and a
            // delivery that waits keeps its event's body.
            Err(StoreError::Damaged(format!("event {}", key.seq.0)))
        }
    }
}

async fn try_once(
    tools: &Tools,
    settings: &Settings,
    delivery: Delivery,
    event: Event,
    number: u32,
) -> Result<Attempted, StoreError> {
    let client = &settings.client;
    let (input, url) = (settings.input.as_deref(), client.seen_url(&event));
    let (signatures, now) = (&settings.signatures, tools.clock.moment());
    let attested = signatures.for_attempt(&tools.store, &event, (input, &url), now);
    let Attested {
        signed,
        note,
        claim,
    } = match attested.await? {
        Ok(attested) => attested,
        Err(refused) => {
            let made = Made {
                asked: asked(client, &event),
                delivery,
                at: now.now,
                duration: Duration::ZERO,
                note: Some(refused),
                claim: None,
                reply: None,
            };
            return Ok((Ended::GivenUp(DeadReason::Rejected), Some(Box::new(made))));
        }
    };
    let (at, started) = (tools.clock.now(), Instant::now());
    let timeout = settings.options.timeout;
    let reply = client
        .send(&event, &delivery, number, signed.as_ref(), timeout)
        .await;
    let outcome = reply.outcome;
    let made = Made {
        asked: asked(client, &event),
        delivery,
        at,
        duration: started.elapsed(),
        note,
        claim,
        reply: Some(reply),
    };
    Ok((Ended::Tried(outcome), Some(Box::new(made))))
}

/// Asks for a damaged event once more, and puts it in its place; it is dead only if nobody has it.
async fn fetch_again(
    tools: &Tools,
    settings: &Settings,
    key: DeliveryKey,
    what: &str,
) -> Result<Attempted, StoreError> {
    let delivery = match tools.store.journal.delivery(key).await {
        Ok(Some(delivery)) => delivery,
        Err(error) if error.is_retryable() => return Ok(NOT_ASKED),
        Ok(None) | Err(_) => {
            quarantine(tools, settings, key, what).await?;
            return Ok(NOT_ASKED);
        }
    };
    let is_over = tools.clock.moment().certain > delivery.deadline_at;
    let bucket = &settings.bucket;
    let fetched = (tools.fetch)(delivery.event).await;
    match repair(fetched, delivery.event, is_over) {
        Repair::Restore(event) => {
            let restore = || {
                let event = (*event).clone();
                tools.store.journal.restore_event(bucket, key.seq, event)
            };
            persist(restore).await?;
            (tools.notify)(settings, Notice::Fetched(key));
        }
        Repair::GiveUp => quarantine(tools, settings, key, what).await?,
        Repair::AskAgain => {
            let now = tools.clock.now();
            persist(|| tools.store.journal.postpone(key, now, limits::FETCH_AGAIN)).await?;
        }
    }
    Ok(NOT_ASKED)
}

/// Sets a damaged event or delivery apart.
pub(super) async fn quarantine(
    tools: &Tools,
    settings: &Settings,
    key: DeliveryKey,
    what: &str,
) -> Result<(), StoreError> {
    tracing::error!(%what, "quarantined");
    let now = tools.clock.now();
    persist(|| tools.store.journal.quarantine(&settings.bucket, key, now)).await?;
    (tools.notify)(settings, Notice::Quarantined(key));
    Ok(())
}

/// What an attempt asks, as the log tells it.
pub(super) fn asked(client: &Client, event: &Event) -> Asked {
    Asked {
        target: client.target().to_string(),
        url: client.url(event),
        method: event.request.method.clone(),
    }
}
