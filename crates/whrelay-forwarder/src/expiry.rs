//! Subscriptions whose agents have not come back for a long time are ended, and those that were ended are forgotten
//! in their turn. It must not remove events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use whrelay_core::bucket::BucketId;
use whrelay_core::limits;
use whrelay_core::time::Timestamp;
use whrelay_store::{Ending, StoreError, Subscription};

use crate::Shared;

/// Looks every minute until the forwarder stops.
pub(crate) async fn run(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let began = Instant::now();
    // While the forwarder was down no agent could be heard of.
    let grace = shared.config.subscription_ttl;
    let grace = grace.map_or(Duration::ZERO, |ttl| ttl.min(limits::TTL_GRACE));
    while !shared.stop.is_cancelled() {
        let wait = grace.checked_sub(began.elapsed());
        match look(shared, wait.is_none()).await {
            Err(error) if !error.is_retryable() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "could not check subscriptions; trying again in a minute");
            }
            Ok(()) => {}
        }
        let next = wait.map_or(limits::RETENTION_EVERY, |wait| {
            wait.min(limits::RETENTION_EVERY)
        });
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = tokio::time::sleep(next) => {}
        }
    }
    Ok(())
}

async fn look(shared: &Arc<Shared>, may_end: bool) -> Result<(), StoreError> {
    for (bucket, known) in shared.store.all_subscriptions()? {
        let name = known.name.clone();
        match look_at(shared, bucket, known, may_end).await {
            // One bucket must not stop the others.
            Err(StoreError::Damaged(what)) => {
                tracing::warn!(
                    bucket = bucket.0,
                    subscription = name,
                    what,
                    "could not check a subscription"
                );
            }
            looked => looked?,
        }
    }
    Ok(())
}

async fn look_at(
    shared: &Arc<Shared>,
    bucket: BucketId,
    known: Subscription,
    may_end: bool,
) -> Result<(), StoreError> {
    let (store, name) = (&shared.store, known.name);
    // A wrong clock must not end anything.
    let now = shared.clock.moment().certain;
    if known.ended.is_some() {
        for name in store.forget_ended(bucket).await? {
            tracing::info!(
                bucket = bucket.0,
                subscription = name,
                "removed an ended subscription"
            );
        }
        return Ok(());
    }
    let Some(ttl) = shared.config.subscription_ttl else {
        return Ok(());
    };
    match known.seen_at {
        // One that was never seen since this is kept has all its time before it.
        None => return store.note_seen(bucket, &name, now).await,
        Some(seen) if may_end && is_over(seen, ttl, now) => {}
        Some(_) => return Ok(()),
    }
    let (hub, of) = (Arc::clone(shared), name.clone());
    let is_away = move |seen: Option<Timestamp>| {
        hub.hub.connected(bucket, &of).is_none() && seen.is_none_or(|seen| is_over(seen, ttl, now))
    };
    let ended = store.end_subscription(bucket, &name, now, is_away).await?;
    if let Ending::Ended { unclaimed } = ended {
        tracing::warn!(
            bucket = bucket.0,
            subscription = name,
            unclaimed,
            "a subscription was ended: its agent was not seen for --subscription-ttl"
        );
    }
    Ok(())
}

fn is_over(seen: Timestamp, ttl: Duration, now: Timestamp) -> bool {
    now.since(seen) > ttl
}
