//! Subscriptions whose agents have not come back for a long time are ended, and those that were ended are forgotten
//! in their turn. It must not remove events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use whrelay_core::bucket::BucketId;
use whrelay_core::limits;
use whrelay_core::subscription::Subscription;
use whrelay_core::time::Timestamp;
use whrelay_store::{Ending, NamedSubscription, StoreError};

use crate::Shared;

/// What becomes of a subscription that is looked at.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// It was never seen since this is kept: it has all its time before it.
    NoteSeen,
    /// Its agent was not seen for so long.
    End,
    /// It was ended, and is forgotten once nothing of it is kept.
    Forget,
}

/// Looks every minute until the forwarder stops.
pub(crate) async fn run(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let began = Instant::now();
    let grace = shared.config.subscription_ttl.map_or(Duration::ZERO, grace);
    while !shared.stop.is_cancelled() {
        let up = began.elapsed();
        match look(shared, up).await {
            Err(error) if !error.is_retryable() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "could not check subscriptions; trying again in a minute");
            }
            Ok(()) => {}
        }
        let rest = grace.checked_sub(up).unwrap_or(limits::RETENTION_EVERY);
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = tokio::time::sleep(rest.min(limits::RETENTION_EVERY)) => {}
        }
    }
    Ok(())
}

/// While the forwarder was down no agent could be heard of.
fn grace(ttl: Duration) -> Duration {
    ttl.min(limits::TTL_GRACE)
}

/// Judges a subscription, so long after the forwarder was started.
fn judge(known: &Subscription, ttl: Option<Duration>, up: Duration, now: Timestamp) -> Verdict {
    match (known.ended, ttl, known.seen_at) {
        (Some(_), _, _) => Verdict::Forget,
        (None, None, _) => Verdict::Keep,
        (None, Some(_), None) => Verdict::NoteSeen,
        (None, Some(ttl), Some(seen)) if up >= grace(ttl) && is_over(seen, ttl, now) => {
            Verdict::End
        }
        (None, Some(_), Some(_)) => Verdict::Keep,
    }
}

async fn look(shared: &Arc<Shared>, up: Duration) -> Result<(), StoreError> {
    for one in shared.store.journal.subscriptions(None).await? {
        match look_at(shared, &one, up).await {
            // One bucket must not stop the others.
            Err(StoreError::Damaged(what)) => {
                tracing::warn!(
                    bucket = one.bucket.0,
                    subscription = one.name,
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
    one: &NamedSubscription,
    up: Duration,
) -> Result<(), StoreError> {
    let NamedSubscription {
        bucket,
        name,
        stored,
    } = one;
    let (store, bucket) = (&shared.store, *bucket);
    let Some(known) = stored.known() else {
        return Ok(());
    };
    // A wrong clock must not end anything.
    let now = shared.clock.moment().certain;
    match judge(known, shared.config.subscription_ttl, up, now) {
        Verdict::Keep => Ok(()),
        Verdict::NoteSeen => store.journal.note_seen(bucket, name, now).await,
        Verdict::End => end(shared, (bucket, name), known, now).await,
        Verdict::Forget => {
            for name in store.journal.forget_ended(bucket).await? {
                tracing::info!(
                    bucket = bucket.0,
                    subscription = name,
                    "removed an ended subscription"
                );
            }
            Ok(())
        }
    }
}

/// Ends a subscription unless its agent has come meanwhile.
async fn end(
    shared: &Arc<Shared>,
    (bucket, name): (BucketId, &str),
    known: &Subscription,
    now: Timestamp,
) -> Result<(), StoreError> {
    let last = known.last_session();
    if shared.hub.connected(bucket, name).is_some() {
        return Ok(());
    }
    let ended = shared
        .store
        .journal
        .end_subscription(bucket, name, Some(last), now);
    if let Ending::Ended { unclaimed } = ended.await? {
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

#[cfg(test)]
mod tests {
    use whrelay_core::bucket::Seq;
    use whrelay_core::subscription::Ended;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn seen_at(seen: Option<Timestamp>) -> Subscription {
        Subscription {
            seen_at: seen,
            ..Subscription::default()
        }
    }

    /// After a night in which the forwarder was down, it ended subscriptions whose agents were about to come back.
    #[test]
    fn agents_have_time_to_return_after_a_start() {
        let now = Timestamp::from_micros(1_800_000_000_000_000);
        let known = seen_at(Some(now.before(HOUR * 9)));
        let after = |ttl, up| judge(&known, Some(ttl), up, now);
        assert_eq!(after(HOUR * 8, Duration::ZERO), Verdict::Keep);
        let short = limits::TTL_GRACE.saturating_sub(Duration::from_millis(1));
        assert_eq!(after(HOUR * 8, short), Verdict::Keep);
        assert_eq!(after(HOUR * 8, limits::TTL_GRACE), Verdict::End);
        // Nobody waits longer than the time itself.
        let second = Duration::from_secs(1);
        assert_eq!(after(second, Duration::ZERO), Verdict::Keep);
        assert_eq!(after(second, second), Verdict::End);
        assert_eq!(after(HOUR * 10, HOUR), Verdict::Keep);
    }

    #[test]
    fn who_was_never_seen_is_not_ended_and_without_a_time_nobody_is() {
        let now = Timestamp::from_micros(1_800_000_000_000_000);
        let never = seen_at(None);
        assert_eq!(judge(&never, Some(HOUR), HOUR, now), Verdict::NoteSeen);
        assert_eq!(judge(&never, None, HOUR, now), Verdict::Keep);
        let ended = Subscription {
            ended: Some(Ended {
                through: Seq(3),
                at: now,
            }),
            ..never
        };
        for ttl in [None, Some(HOUR)] {
            assert_eq!(judge(&ended, ttl, Duration::ZERO, now), Verdict::Forget);
        }
    }
}
