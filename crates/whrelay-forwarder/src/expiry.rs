//! Subscriptions whose agents have not come back for a long time are ended, and those that were ended are forgotten
//! in their turn. It must not remove events.

use std::time::Duration;

use whrelay_core::limits;
use whrelay_core::time::Timestamp;
use whrelay_store::StoreError;

use crate::Shared;

/// Looks every minute until the forwarder stops.
pub(crate) async fn run(shared: &Shared) -> Result<(), StoreError> {
    while !shared.stop.is_cancelled() {
        match look(shared).await {
            Err(error) if !error.is_retryable() => return Err(error),
            Err(error) => tracing::warn!(%error, "subscriptions are looked at later"),
            Ok(()) => {}
        }
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = tokio::time::sleep(limits::RETENTION_EVERY) => {}
        }
    }
    Ok(())
}

async fn look(shared: &Shared) -> Result<(), StoreError> {
    let store = &shared.store;
    // A wrong clock must not end anything.
    let now = shared.clock.moment().certain;
    let over = shared.config.retention.over(now);
    for (bucket, known) in store.all_subscriptions()? {
        if known.ended.is_some() {
            if let Some(by) = over {
                for name in store.forget_ended(bucket, by).await? {
                    tracing::info!(
                        subscription = name,
                        "a subscription that was ended is forgotten"
                    );
                }
            }
            continue;
        }
        let Some(ttl) = shared.config.subscription_ttl else {
            continue;
        };
        let is_connected = shared.hub.connected(bucket, &known.name).is_some();
        match known.seen_at {
            // One that was never seen since this is kept has all its time before it.
            None => store.note_seen(bucket, &known.name, now).await?,
            Some(seen) if !is_connected && is_over(seen, ttl, now) => {
                let unclaimed = store.end_subscription(bucket, &known.name, now).await?;
                let name = &known.name;
                tracing::warn!(
                    subscription = name,
                    unclaimed,
                    "a subscription was ended: its agent was not seen for --subscription-ttl"
                );
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn is_over(seen: Timestamp, ttl: Duration, now: Timestamp) -> bool {
    now.since(seen) > ttl
}
