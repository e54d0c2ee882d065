//! Deliveries that are queued for destinations that are no longer configured: they are said, and their deadlines pass.

use std::collections::HashSet;
use std::sync::Arc;

use whrelay_core::delivery::{Asked, Attempt, DeadReason, Delivery, DeliveryKey};
use whrelay_core::destination::{Destination, Kind};
use whrelay_core::limits;
use whrelay_core::order::Order;
use whrelay_core::queue::{DueBy, QueueQuery, Wanted};
use whrelay_store::StoreError;

use crate::configured::{queued_for, waiting};
use crate::lines::{AttemptLine, Line};
use crate::runtime::Runtime;

/// Deliveries looked at in one step: between two, others get their turn.
const STEP: usize = 256;
/// Deliveries of one destination looked at in one round. Those behind are looked at once these have gone.
const ROUND: usize = 4096;

/// Warns of each destination that has a queue and is not configured, with the commands that help.
pub(crate) async fn warn(runtime: &Runtime) -> Result<(), StoreError> {
    for destination in unconfigured(runtime).await? {
        let queued = waiting(&runtime.store, &destination).await?;
        let (name, target) = (destination.title(), &destination.target);
        let queued = queued_for(queued, format!("{name} ({target})"));
        let bucket = &runtime.bucket.name;
        (runtime.tell)(Line::warning(format!(
            "{queued}, which is no longer configured: a start with `--to {name}`, too, delivers the queue; \
             `whrelay destination rm {name} --bucket {bucket}` moves it (--move-to NAME) or drops it (--discard)"
        )));
    }
    Ok(())
}

/// Lets deadlines pass until the agent stops.
pub(crate) async fn run(runtime: Arc<Runtime>) -> Result<(), StoreError> {
    while !runtime.stop().is_cancelled() {
        match expire(&runtime).await {
            Err(error) if !error.is_retryable() => return Err(error),
            // What was not looked at is in a moment.
            Ok(()) | Err(_) => {}
        }
        tokio::select! {
            () = runtime.stop().cancelled() => {}
            () = tokio::time::sleep(limits::EXPIRE_EVERY) => {}
        }
    }
    Ok(())
}

async fn expire(runtime: &Runtime) -> Result<(), StoreError> {
    for destination in unconfigured(runtime).await? {
        // Damaged ones stay where they are.
        let mut looked_at = HashSet::new();
        while looked_at.len() < ROUND {
            let found = overdue(runtime, &destination, looked_at.len() + STEP).await?;
            let new: Vec<_> = found
                .into_iter()
                .filter(|key| looked_at.insert(*key))
                .collect();
            if new.is_empty() {
                break;
            }
            let mut expired = Vec::new();
            for key in new {
                expired.extend(expired_at(runtime, key, &destination).await?);
            }
            if expired.is_empty() {
                tokio::task::yield_now().await;
                continue;
            }
            for key in runtime.store.journal.give_up(expired.clone()).await? {
                let attempt = expired.iter().find(|attempt| attempt.key == key);
                if let Some(attempt) = attempt {
                    let line = AttemptLine::new(
                        attempt,
                        runtime.bucket.name.as_str(),
                        &destination.title(),
                    );
                    (runtime.tell)(Line::Attempt(line));
                }
            }
        }
    }
    Ok(())
}

/// Deliveries whose deadlines have passed, earliest first.
async fn overdue(
    runtime: &Runtime,
    destination: &Destination,
    max: usize,
) -> Result<Vec<DeliveryKey>, StoreError> {
    let moment = runtime.clock.moment();
    let query = QueueQuery {
        order: Order::Arrival,
        due: DueBy {
            now: moment.now,
            not_before: moment.now,
            back_since: destination.back_since,
        },
        expired_by: moment.certain,
        wanted: Wanted::Expired,
        max,
    };
    let page = runtime.store.view.queue(destination.id, &query).await?;
    Ok(page.waiting.iter().map(|waiting| waiting.key).collect())
}

/// What the log will say of a delivery whose deadline has passed. What is damaged is left for the doctor to find.
async fn expired_at(
    runtime: &Runtime,
    key: DeliveryKey,
    destination: &Destination,
) -> Result<Option<Attempt>, StoreError> {
    let moment = runtime.clock.moment();
    let is_over = |delivery: &Delivery| {
        let waiting = delivery.waiting();
        waiting.is_some_and(|waiting| waiting.is_expired(moment.certain))
    };
    let find = async || {
        let delivery = runtime.store.journal.delivery(key).await?;
        let Some(delivery) = delivery.filter(is_over) else {
            return Ok(None);
        };
        let event = runtime
            .store
            .journal
            .head_at(&runtime.bucket, key.seq)
            .await?;
        Ok(event.map(|(event, _)| (delivery, event)))
    };
    let found = find().await;
    let (delivery, event) = match found {
        Ok(Some(found)) => found,
        Ok(None) | Err(StoreError::Damaged(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let asked = Asked {
        target: destination.target.to_string(),
        url: destination.target.to_string(),
        method: event.request.method,
    };
    let why = "the deadline has passed, and its destination is not configured";
    let reason = DeadReason::Deadline;
    Ok(Some(Attempt::given_up(
        &delivery, asked, moment.now, reason, why,
    )))
}

/// The lasting destinations that have a queue and are not delivered to.
async fn unconfigured(runtime: &Runtime) -> Result<Vec<Destination>, StoreError> {
    let mut found = Vec::new();
    for destination in runtime.store.catalog.destinations().await? {
        let is_lasting = matches!(destination.kind, Kind::Lasting { .. });
        if is_lasting
            && !runtime.serves(destination.id)
            && waiting(&runtime.store, &destination).await? > 0
        {
            found.push(destination);
        }
    }
    Ok(found)
}
