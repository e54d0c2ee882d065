//! What waits for targets that are none now: it is told of, and its deadlines pass. It must not deliver.

use std::collections::HashSet;
use std::sync::Arc;

use whrelay_core::delivery::{Attempt, DeadReason, DeliveryKey, DestinationId, Step};
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
    for (_, target, waiting) in orphans(lanes)? {
        let message = format!(
            "{target} is no target now, and so much waits for it: {waiting} (`whrelay discard` gives it up)"
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
            for key in lanes.store.give_up(expired.clone()).await? {
                let attempt = expired.iter().find(|attempt| attempt.key == key);
                if let Some(attempt) = attempt {
                    let line = AttemptLine::new(attempt, lanes.bucket.name.as_str(), &target);
                    (lanes.tell)(Line::Attempt(line));
                }
            }
            seen.extend(due.ready);
        }
    }
    Ok(())
}

/// What the log will say of a delivery whose deadline has passed. What is damaged is left for the doctor to find.
fn expired(lanes: &Lanes, key: DeliveryKey, target: &str) -> Result<Option<Attempt>, StoreError> {
    let found = lanes.store.delivery(key).and_then(|delivery| {
        let event = lanes.store.head_at(&lanes.bucket, key.seq)?;
        Ok(delivery.zip(event))
    });
    let (delivery, (event, _)) = match found {
        Ok(Some(found)) => found,
        Ok(None) | Err(StoreError::Damaged(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let moment = lanes.clock.moment();
    Ok((delivery.step(moment.certain) == Step::Expire).then(|| {
        let request = (target.to_owned(), event.request.method);
        let why = "the deadline has passed, and its target is none now";
        Attempt::given_up(&delivery, request, moment.now, DeadReason::Deadline, why)
    }))
}

/// The targets that are none now, and how much waits for each.
fn orphans(lanes: &Lanes) -> Result<Vec<(DestinationId, String, u64)>, StoreError> {
    let (served, mut orphans) = (lanes.served(), Vec::new());
    for (id, target) in lanes.store.destinations()? {
        let counts = lanes.store.counts(id)?;
        let waiting = counts.queued + counts.stalled;
        if waiting > 0 && served.iter().all(|served| served.id != id) {
            orphans.push((id, target, waiting));
        }
    }
    Ok(orphans)
}
