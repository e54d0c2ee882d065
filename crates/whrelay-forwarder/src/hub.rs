//! Who is connected: wake-ups and leases. It carries no data, so losing a wake-up costs a look at
//! the store, never an event.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use whrelay_core::bucket::BucketId;

type Place = (BucketId, String);

/// The connected sessions.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    wakers: Mutex<HashMap<BucketId, watch::Sender<()>>>,
    leases: Mutex<Leases>,
}

#[derive(Debug, Default)]
struct Leases {
    live: HashMap<Place, (u64, CancellationToken)>,
    last: u64,
}

/// The right to be the live session of a subscription; given back by dropping it.
#[derive(Debug)]
pub(crate) struct Lease<'hub> {
    hub: &'hub Hub,
    place: Place,
    epoch: u64,
    /// Cancelled when a newer session has taken the lease.
    pub(crate) replaced: CancellationToken,
}

impl Hub {
    /// Takes the lease of a subscription. The session that had it is told at once: the newest
    /// wins, since the older one may be a half-open connection that nobody will ever close.
    pub(crate) fn lease(&self, bucket: BucketId, subscription: &str) -> Lease<'_> {
        let place = (bucket, subscription.to_owned());
        let replaced = CancellationToken::new();
        let mut leases = self.leases();
        leases.last += 1;
        let epoch = leases.last;
        let before = leases.live.insert(place.clone(), (epoch, replaced.clone()));
        if let Some((_, before)) = before {
            before.cancel();
        }
        Lease {
            hub: self,
            place,
            epoch,
            replaced,
        }
    }

    /// Wakes the sessions of a bucket: it has new events.
    pub(crate) fn wake(&self, bucket: BucketId) {
        let wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waker) = wakers.get(&bucket) {
            waker.send_replace(());
        }
    }

    /// Changes whenever the bucket has new events.
    pub(crate) fn wakes(&self, bucket: BucketId) -> watch::Receiver<()> {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        wakers
            .entry(bucket)
            .or_insert_with(|| watch::Sender::new(()))
            .subscribe()
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut leases = self.hub.leases();
        if leases
            .live
            .get(&self.place)
            .is_some_and(|(epoch, _)| *epoch == self.epoch)
        {
            leases.live.remove(&self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_session_wins_and_the_oldest_cannot_give_its_lease_away() {
        let hub = Hub::default();
        let first = hub.lease(BucketId(1), "a");
        let other = hub.lease(BucketId(1), "b");
        let second = hub.lease(BucketId(1), "a");
        assert!(first.replaced.is_cancelled() && !other.replaced.is_cancelled());
        drop(first);
        let third = hub.lease(BucketId(1), "a");
        assert!(second.replaced.is_cancelled() && !third.replaced.is_cancelled());
    }
}
