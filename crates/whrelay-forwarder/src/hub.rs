//! Who is connected: wake-ups and leases. It carries no data, so losing a wake-up costs a look at
//! the store, never an event.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use whrelay_core::bucket::BucketId;
use whrelay_core::limits;
use whrelay_core::subscription::LeaseEpoch;
use whrelay_core::time::Timestamp;
use whrelay_proto::frame::Who;
use whrelay_proto::lease::Rival;
use whrelay_store::Epoch;

type Key = (BucketId, String);

/// The connected sessions.
#[derive(Debug)]
pub(crate) struct Hub {
    wakers: Mutex<HashMap<BucketId, watch::Sender<()>>>,
    leases: Mutex<Leases>,
}

#[derive(Debug)]
struct Leases {
    live: HashMap<Key, Live>,
    last: LeaseEpoch,
}

impl Leases {
    fn next(&mut self) -> LeaseEpoch {
        self.last = self.last.next();
        self.last
    }
}

#[derive(Debug)]
struct Live {
    epoch: LeaseEpoch,
    who: Option<Who>,
    since: Timestamp,
    heard: Instant,
    /// It is being sent something, which is bounded by itself.
    writes: bool,
    /// When agents took the subscription from others that were connected, lately.
    taken: Vec<Instant>,
    end: Arc<End>,
}

/// How a session ends that loses its lease.
#[derive(Debug, Default)]
pub(crate) struct End {
    /// Cancelled when the lease is lost.
    pub(crate) lost: CancellationToken,
    why: OnceLock<Lost>,
}

/// Why a lease was lost.
#[derive(Clone, Debug)]
pub(crate) enum Lost {
    /// To another session of the subscription.
    To(Option<Who>, Timestamp),
    /// The subscription was changed: its agent has to come again.
    Changed(&'static str),
}

impl End {
    fn end(&self, why: Lost) {
        // The first reason is the one that counts.
        let _ = self.why.set(why);
        self.lost.cancel();
    }

    /// Why the lease was lost, once it is.
    pub(crate) fn why(&self) -> Option<&Lost> {
        self.why.get()
    }
}

/// A session that has a subscription.
#[derive(Clone, Debug)]
pub(crate) struct Incumbent {
    pub(crate) who: Option<Who>,
    pub(crate) since: Timestamp,
    pub(crate) rival: Rival,
}

/// The right to be the live session of a subscription; given back by dropping it.
#[derive(Debug)]
pub(crate) struct Lease<'hub> {
    hub: &'hub Hub,
    key: Key,
    pub(crate) epoch: LeaseEpoch,
    pub(crate) end: Arc<End>,
    /// How often agents took it from others that were connected, lately.
    pub(crate) taken: usize,
}

impl Hub {
    /// Nobody is connected. Its leases are newer than those of processes that had the store before.
    pub(crate) fn new(store: &Epoch) -> Self {
        let leases = Leases {
            live: HashMap::new(),
            last: LeaseEpoch::before_first(store.opens),
        };
        Self {
            wakers: Mutex::default(),
            leases: Mutex::new(leases),
        }
    }

    /// A lease that is newer than all others, of nobody.
    pub(crate) fn newer(&self) -> LeaseEpoch {
        self.leases().next()
    }

    /// Takes the lease of a subscription. The session that had it is told at once, since it may be a half-open
    /// connection that nobody will ever close; but one that was heard of lately is replaced only by its own agent,
    /// unless another asks for it. Answers who had it.
    pub(crate) fn lease(
        &self,
        (bucket, subscription): (BucketId, &str),
        who: Option<&Who>,
        take_over: bool,
        now: Timestamp,
    ) -> Result<(Lease<'_>, Option<Incumbent>), Incumbent> {
        let key = (bucket, subscription.to_owned());
        let mut leases = self.leases();
        let incumbent = leases.live.get(&key).map(|live| Incumbent {
            who: live.who.clone(),
            since: live.since,
            rival: Rival::of(who, live.who.as_ref()),
        });
        if let (Some(live), Some(incumbent)) = (leases.live.get(&key), &incumbent) {
            let is_heard = live.writes || live.heard.elapsed() < limits::PRESENCE;
            if is_heard && !incumbent.rival.replaces(take_over) {
                return Err(incumbent.clone());
            }
        }
        let mut taken = leases
            .live
            .get(&key)
            .map_or_else(Vec::new, |live| live.taken.clone());
        taken.retain(|at| at.elapsed() < limits::TAKEN_LATELY);
        let from_another =
            |incumbent: &Incumbent| matches!(incumbent.rival, Rival::Copy | Rival::Other);
        if incumbent.as_ref().is_some_and(from_another) {
            taken.push(Instant::now());
        }
        let times = taken.len();
        let (epoch, end) = (leases.next(), Arc::new(End::default()));
        let live = Live {
            epoch,
            who: who.cloned(),
            since: now,
            heard: Instant::now(),
            writes: false,
            taken,
            end: Arc::clone(&end),
        };
        if let Some(before) = leases.live.insert(key.clone(), live) {
            before.end.end(Lost::To(who.cloned(), now));
        }
        let lease = Lease {
            hub: self,
            key,
            epoch,
            end,
            taken: times,
        };
        Ok((lease, incumbent))
    }

    /// Ends the session of a subscription, if one is connected; its agent comes again.
    pub(crate) fn end(&self, bucket: BucketId, subscription: &str, why: &'static str) {
        let key = (bucket, subscription.to_owned());
        if let Some(live) = self.leases().live.get(&key) {
            live.end.end(Lost::Changed(why));
        }
    }

    /// Since when a subscription's agent is connected, if it is.
    pub(crate) fn connected(&self, bucket: BucketId, subscription: &str) -> Option<Timestamp> {
        let key = (bucket, subscription.to_owned());
        self.leases().live.get(&key).map(|live| live.since)
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

impl Lease<'_> {
    /// Notes that the session's agent was heard of.
    pub(crate) fn heard(&self) {
        self.change(|live| live.heard = Instant::now());
    }

    /// Notes that the session's agent is being sent something, until the answer is dropped.
    pub(crate) fn writes(&self) -> Writes<'_> {
        self.change(|live| live.writes = true);
        Writes(self)
    }

    fn change(&self, change: impl FnOnce(&mut Live)) {
        let mut leases = self.hub.leases();
        let live = leases.live.get_mut(&self.key);
        if let Some(live) = live.filter(|live| live.epoch == self.epoch) {
            change(live);
        }
    }
}

/// Something is being sent.
#[derive(Debug)]
pub(crate) struct Writes<'lease>(&'lease Lease<'lease>);

impl Drop for Writes<'_> {
    fn drop(&mut self) {
        self.0.change(|live| live.writes = false);
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut leases = self.hub.leases();
        if leases
            .live
            .get(&self.key)
            .is_some_and(|live| live.epoch == self.epoch)
        {
            leases.live.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use whrelay_proto::frame;

    use super::*;

    fn hub() -> Hub {
        Hub::new(&Epoch {
            store: "s".to_owned(),
            opens: 1,
            instance: 0,
            follows: None,
        })
    }

    fn who(store: &str, opens: u64) -> Who {
        Who {
            store: store.into(),
            epoch: frame::Epoch {
                opens,
                instance: opens,
            },
            follows: opens.checked_sub(1),
            ..Who::default()
        }
    }

    fn lease<'hub>(
        hub: &'hub Hub,
        name: &str,
        who: &Who,
        take_over: bool,
    ) -> Result<Lease<'hub>, Incumbent> {
        let key = (BucketId(1), name);
        let leased = hub.lease(key, Some(who), take_over, Timestamp::EPOCH);
        leased.map(|(lease, _)| lease)
    }

    #[test]
    fn the_newest_session_wins_and_the_oldest_cannot_give_its_lease_away() {
        let (hub, agent) = (hub(), who("x", 1));
        let first = lease(&hub, "a", &agent, false).expect("free");
        let other = lease(&hub, "b", &agent, false).expect("free");
        let second = lease(&hub, "a", &who("x", 2), false).expect("its successor");
        assert!(first.end.lost.is_cancelled() && !other.end.lost.is_cancelled());
        drop(first);
        let third = lease(&hub, "a", &who("x", 3), false).expect("its successor");
        assert!(second.end.lost.is_cancelled() && !third.end.lost.is_cancelled());
    }

    #[test]
    fn an_agent_that_is_sent_something_large_says_nothing_and_keeps_its_subscription() {
        let hub = hub();
        let first = lease(&hub, "a", &who("x", 1), false).expect("free");
        let long_ago = Instant::now().checked_sub(limits::PRESENCE * 2);
        first.change(|live| live.heard = long_ago.expect("a machine that is up"));
        let writes = first.writes();
        let refused = lease(&hub, "a", &who("y", 1), false).expect_err("in use");
        assert_eq!(refused.rival, Rival::Other);
        drop(writes);
        let _second = lease(&hub, "a", &who("y", 1), false).expect("nobody has heard of the first");
        assert!(first.end.lost.is_cancelled());
    }

    #[test]
    fn another_agent_has_to_ask_for_a_subscription_that_is_in_use() {
        let hub = hub();
        let first = lease(&hub, "a", &who("x", 1), false).expect("free");
        let refused = lease(&hub, "a", &who("y", 1), false).expect_err("in use");
        assert_eq!(refused.rival, Rival::Other);
        let takes = |name: &str| {
            let (key, who) = ((BucketId(2), "a"), who(name, 1));
            let leased = hub.lease(key, Some(&who), true, Timestamp::EPOCH);
            leased.expect("asked for").0
        };
        let again = ["x", "y", "x", "y"].map(takes);
        assert_eq!(again.each_ref().map(|lease| lease.taken), [0, 1, 2, 3]);
        assert!(!first.end.lost.is_cancelled());
        let _taken = lease(&hub, "a", &who("y", 1), true).expect("taken over");
        assert!(first.end.lost.is_cancelled());
        let Some(Lost::To(Some(by), _)) = first.end.why() else {
            unreachable!("it was told to whom")
        };
        assert_eq!(by.store, "y");
    }
}
