//! What waits for targets that are none now: it is told of, and its deadlines pass. It must not deliver.

use std::collections::HashSet;
use std::sync::Arc;

use whrelay_core::delivery::{Attempt, DeadReason, Delivery, DeliveryKey, DestinationId, Step};
use whrelay_core::limits;
use whrelay_store::StoreError;

use crate::lanes::Lanes;
use crate::lines::{AttemptLine, Line};

/// Deliveries looked at in one step: between two, others get their turn.
const STEP: usize = 256;
/// Deliveries of one target looked at in one round. Those behind are looked at once these have gone.
const ROUND: usize = 4096;

/// Warns of each target that is none now and for which something waits.
pub(crate) fn warn(lanes: &Lanes) -> Result<(), StoreError> {
    for (id, target, waiting) in orphans(lanes)? {
        if lanes.serves(id) {
            continue;
        }
        let message = format!(
            "{waiting} deliveries are queued for {target}, which is no longer configured (`whrelay discard --target {target}` drops them)"
        );
        (lanes.tell)(Line::warning(message));
    }
    Ok(())
}

/// Lets deadlines pass until the agent stops.
pub(crate) async fn run(lanes: Arc<Lanes>) -> Result<(), StoreError> {
    while !lanes.stop().is_cancelled() {
        match expire(&lanes).await {
            Err(error) if !error.is_retryable() => return Err(error),
            // What was not looked at is in a moment.
            Ok(()) | Err(_) => {}
        }
        tokio::select! {
            () = lanes.stop().cancelled() => {}
            () = tokio::time::sleep(limits::EXPIRE_EVERY) => {}
        }
    }
    Ok(())
}

async fn expire(lanes: &Lanes) -> Result<(), StoreError> {
    for (id, target, _) in orphans(lanes)? {
        let mut seen = HashSet::new();
        while seen.len() < ROUND {
            let due = lanes.store.due(id, lanes.clock.now(), &seen, STEP)?;
            if due.ready.is_empty() {
                break;
            }
            let expired = due.ready.iter().map(|key| expired(lanes, *key, &target));
            let expired = expired.collect::<Result<Vec<_>, _>>()?;
            let expired: Vec<_> = expired.into_iter().flatten().collect();
            seen.extend(due.ready);
            if expired.is_empty() {
                tokio::task::yield_now().await;
                continue;
            }
            for key in lanes.store.give_up(expired.clone()).await? {
                let attempt = expired.iter().find(|attempt| attempt.key == key);
                if let Some(attempt) = attempt {
                    let line = AttemptLine::new(attempt, lanes.bucket.name.as_str(), &target);
                    (lanes.tell)(Line::Attempt(line));
                }
            }
        }
    }
    Ok(())
}

/// What the log will say of a delivery whose deadline has passed. What is damaged is left for the doctor to find.
fn expired(lanes: &Lanes, key: DeliveryKey, target: &str) -> Result<Option<Attempt>, StoreError> {
    let moment = lanes.clock.moment();
    let is_over = |delivery: &Delivery| {
        // A replay that was sent there by name has an engine of its own.
        let is_tried = delivery.replay && lanes.serves(delivery.destination);
        !is_tried && delivery.step(moment.certain) == Step::Expire
    };
    let found = lanes.store.delivery(key).and_then(|delivery| {
        let Some(delivery) = delivery.filter(is_over) else {
            return Ok(None);
        };
        let event = lanes.store.head_at(&lanes.bucket, key.seq)?;
        Ok(event.map(|(event, _)| (delivery, event)))
    });
    let (delivery, event) = match found {
        Ok(Some(found)) => found,
        Ok(None) | Err(StoreError::Damaged(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let request = (target.to_owned(), event.request.method);
    let why = "the deadline has passed, and its target is none now";
    let reason = DeadReason::Deadline;
    Ok(Some(Attempt::given_up(
        &delivery, request, moment.now, reason, why,
    )))
}

/// The targets that are none now, and how much waits for each.
fn orphans(lanes: &Lanes) -> Result<Vec<(DestinationId, String, u64)>, StoreError> {
    let (routes, mut orphans) = (lanes.routes(), Vec::new());
    for (id, target) in lanes.store.destinations()? {
        let counts = lanes.store.counts(id)?;
        let waiting = counts.queued + counts.stalled;
        if waiting > 0 && routes.iter().all(|(_, routed)| *routed != id) {
            orphans.push((id, target, waiting));
        }
    }
    Ok(orphans)
}
