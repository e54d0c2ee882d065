//! Memory that senders and agents make the forwarder use: who holds how much of it, and who has to give it back.
//! It must not know what the bytes are.
//!
//! Nobody is refused because others hold memory and bring nothing: the connection that has gone longest without
//! progress is closed first. What it held counts until it is really gone, so that a budget is never exceeded.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use whrelay_core::bucket::BucketId;
use whrelay_core::limits;

use crate::refusals::Reason;
use crate::seats::{Peer, Seat};

/// Who takes from a budget.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) seat: Arc<Seat>,
    pub(crate) bucket: Option<BucketId>,
}

/// Why there is no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Nobody gave any back in time.
    Late,
    /// The connection itself has to go.
    Evicted,
}

/// A number of bytes that connections share.
#[derive(Debug)]
pub(crate) struct Budget {
    total: usize,
    /// How long a holder goes without progress before it may be closed for others.
    patience: Duration,
    cause: Reason,
    state: Mutex<State>,
    released: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    holders: HashMap<u64, (Holder, usize)>,
    buckets: HashMap<BucketId, usize>,
    peers: HashMap<Peer, usize>,
    waiting: usize,
    /// When holders were last looked through.
    searched: Option<Instant>,
}

/// Bytes of a budget; given back by dropping it.
#[derive(Debug)]
pub(crate) struct Grant {
    budget: Arc<Budget>,
    holder: Holder,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(total: usize, patience: Duration, cause: Reason) -> Arc<Self> {
        Arc::new(Self {
            total,
            patience,
            cause,
            state: Mutex::default(),
            released: Notify::new(),
        })
    }

    /// Nothing yet: bytes are added.
    pub(crate) fn begin(self: &Arc<Self>, holder: Holder) -> Grant {
        Grant {
            budget: Arc::clone(self),
            holder,
            bytes: 0,
        }
    }

    /// Bytes that are held.
    #[cfg(test)]
    fn held(&self) -> usize {
        self.state().held
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bucket_share(&self) -> usize {
        self.total / limits::BUCKET_SHARE
    }

    fn peer_share(&self) -> usize {
        let (part, of) = limits::PEER_SHARE;
        self.total / of * part
    }

    /// Takes bytes, where all shares have room for them.
    fn try_take(&self, state: &mut State, holder: &Holder, bytes: usize) -> bool {
        if bytes == 0 {
            // A holder of nothing gives nothing back, and would be kept here for ever.
            return true;
        }
        if self.pressed(state, holder, bytes).is_some() {
            return false;
        }
        state.held += bytes;
        *state.peers.entry(holder.seat.peer).or_default() += bytes;
        if let Some(bucket) = holder.bucket {
            *state.buckets.entry(bucket).or_default() += bytes;
        }
        let held = state.holders.entry(holder.seat.id);
        held.or_insert_with(|| (holder.clone(), 0)).1 += bytes;
        true
    }

    /// The share that has no room for so many bytes more, and how many it lacks.
    fn pressed(&self, state: &State, holder: &Holder, bytes: usize) -> Option<(Share, usize)> {
        let over = |held: usize, share: usize| (held + bytes).checked_sub(share).filter(|n| *n > 0);
        let of_bucket = |bucket| state.buckets.get(&bucket).copied().unwrap_or(0);
        let of_peer = state.peers.get(&holder.seat.peer).copied().unwrap_or(0);
        let bucket = holder.bucket.and_then(|bucket| {
            let lacks = over(of_bucket(bucket), self.bucket_share())?;
            Some((Share::Bucket(bucket), lacks))
        });
        let peer = || {
            Some((
                Share::Peer(holder.seat.peer),
                over(of_peer, self.peer_share())?,
            ))
        };
        let all = || Some((Share::All, over(state.held, self.total)?));
        bucket.or_else(peer).or_else(all)
    }

    /// Closes the connections that have made no progress for longest, until what they hold is enough.
    fn make_room(&self, state: &mut State, holder: &Holder, bytes: usize) {
        let Some((share, lacks)) = self.pressed(state, holder, bytes) else {
            return;
        };
        let recently = |at: Instant| at.elapsed() < limits::BUDGET_SEARCH;
        if state.searched.is_some_and(recently) {
            return;
        }
        state.searched = Some(Instant::now());
        let (mut leaving, mut candidates) = (0, Vec::new());
        for (held, bytes) in state
            .holders
            .values()
            .filter(|(held, _)| share.includes(held))
        {
            if held.seat.is_evicted() {
                leaving += bytes;
            } else if let Some(stalled) = held.seat.stalled().filter(|s| *s >= self.patience) {
                candidates.push((state.weight_of(held), stalled, *bytes, held));
            }
        }
        candidates.sort_unstable_by_key(|(weight, stalled, ..)| (*weight, *stalled));
        // A little more, so that the search for them is rare.
        let lacks = lacks + self.total / limits::EVICTED_AT_ONCE;
        while leaving < lacks {
            let Some((_, _, bytes, held)) = candidates.pop() else {
                return;
            };
            held.seat.evict(self.cause);
            leaving += bytes;
        }
    }

    fn give_back(&self, holder: &Holder, bytes: usize) {
        let mut state = self.state();
        state.held -= bytes;
        subtract(&mut state.peers, holder.seat.peer, bytes);
        if let Some(bucket) = holder.bucket {
            subtract(&mut state.buckets, bucket, bytes);
        }
        let left = state.holders.get_mut(&holder.seat.id).map(|(_, held)| {
            *held -= bytes;
            *held
        });
        // Dropped outside of the lock: it may be the last of a seat.
        let gone = (left == Some(0)).then(|| state.holders.remove(&holder.seat.id));
        let waiting = state.waiting;
        drop(state);
        drop(gone);
        for _ in 0..waiting.min(limits::EVICTED_AT_ONCE) {
            self.released.notify_one();
        }
    }
}

/// What has no room left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    Bucket(BucketId),
    Peer(Peer),
    All,
}

impl Share {
    fn includes(self, holder: &Holder) -> bool {
        match self {
            Self::Bucket(bucket) => holder.bucket == Some(bucket),
            Self::Peer(peer) => holder.seat.peer == peer,
            Self::All => true,
        }
    }
}

impl State {
    /// What a holder's bucket holds, and its peer: who holds most gives up first.
    fn weight_of(&self, holder: &Holder) -> (usize, usize) {
        let bucket = holder.bucket.and_then(|bucket| self.buckets.get(&bucket));
        let peer = self.peers.get(&holder.seat.peer);
        (bucket.copied().unwrap_or(0), peer.copied().unwrap_or(0))
    }
}

fn subtract<K: Eq + Hash>(from: &mut HashMap<K, usize>, key: K, bytes: usize) {
    if let Entry::Occupied(mut entry) = from.entry(key) {
        *entry.get_mut() -= bytes;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

/// Counts one that waits.
struct Waiting<'a>(&'a Budget);

impl<'a> Waiting<'a> {
    fn at(budget: &'a Budget) -> Self {
        budget.state().waiting += 1;
        Self(budget)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

impl Grant {
    /// Takes more, where there is room at once.
    pub(crate) fn try_add(&mut self, bytes: usize) -> bool {
        let taken = self
            .budget
            .try_take(&mut self.budget.state(), &self.holder, bytes);
        self.bytes += if taken { bytes } else { 0 };
        taken
    }

    /// Takes more, and where there is no room, has others closed to make some.
    pub(crate) fn demand(&mut self, bytes: usize) -> bool {
        if self.try_add(bytes) {
            return true;
        }
        let mut state = self.budget.state();
        self.budget.make_room(&mut state, &self.holder, bytes);
        false
    }

    /// Takes more, and waits for that where it must. Answers how long that took.
    pub(crate) async fn add(&mut self, bytes: usize, within: Duration) -> Result<Duration, NoRoom> {
        if self.try_add(bytes) {
            return Ok(Duration::ZERO);
        }
        let (began, budget) = (Instant::now(), Arc::clone(&self.budget));
        let _waiting = Waiting::at(&budget);
        loop {
            if self.demand(bytes) {
                return Ok(began.elapsed());
            }
            if self.holder.seat.is_evicted() {
                return Err(NoRoom::Evicted);
            }
            let left = within.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(NoRoom::Late);
            }
            let pause = left.min(limits::BUDGET_RECHECK);
            tokio::select! {
                // What woke it, or that nothing did, changes nothing: it looks again.
                _ = timeout(pause, budget.released.notified()) => {}
                _ = self.holder.seat.until_evicted() => return Err(NoRoom::Evicted),
            }
        }
    }

    /// Gives back what is more than this.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let more = self.bytes.saturating_sub(bytes);
        if more > 0 {
            self.bytes -= more;
            self.budget.give_back(&self.holder, more);
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn holder(&self) -> Holder {
        self.holder.clone()
    }

    pub(crate) fn is_of(&self, budget: &Arc<Budget>) -> bool {
        Arc::ptr_eq(&self.budget, budget)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seats::tests::{age, aged, seat};
    use crate::seats::{Phase, Seats};

    const TOTAL: usize = 1 << 20;

    fn budget() -> Arc<Budget> {
        Budget::new(TOTAL, Duration::ZERO, Reason::EvictedBody)
    }

    fn holder(seats: &Arc<Seats>, peer: u8, bucket: u32) -> Holder {
        let seat = seat(seats, peer);
        seat.enter(Phase::Body);
        let bucket = Some(BucketId(bucket));
        Holder { seat, bucket }
    }

    #[test]
    fn neither_a_bucket_nor_a_peer_holds_all_of_a_budget() {
        let (budget, seats) = (budget(), Arc::<Seats>::default());
        let mut first = budget.begin(holder(&seats, 1, 1));
        assert!(first.try_add(TOTAL / 2) && !first.try_add(1));
        let mut same_peer = budget.begin(holder(&seats, 1, 2));
        assert!(same_peer.try_add(TOTAL / 4) && !same_peer.try_add(1));
        let mut other = budget.begin(holder(&seats, 2, 2));
        assert!(other.try_add(TOTAL / 4) && !other.try_add(1));
        assert_eq!(budget.held(), TOTAL);
        drop((first, same_peer, other));
        let state = budget.state();
        assert_eq!((state.held, state.holders.len()), (0, 0));
        assert!(state.buckets.is_empty() && state.peers.is_empty());
    }

    #[test]
    fn a_holder_of_nothing_is_not_kept() {
        let (budget, seats) = (budget(), Arc::<Seats>::default());
        let mut none = budget.begin(holder(&seats, 1, 1));
        assert!(none.try_add(0));
        drop(none);
        let state = budget.state();
        assert!(state.holders.is_empty() && state.peers.is_empty() && state.buckets.is_empty());
    }

    #[test]
    fn the_slowest_of_the_bucket_that_holds_most_is_closed_first() {
        let (budget, seats) = (budget(), aged(100));
        let big = [holder(&seats, 1, 1), holder(&seats, 2, 1)];
        let small = holder(&seats, 3, 2);
        let mut grants: Vec<_> = big.iter().map(|h| budget.begin(h.clone())).collect();
        assert!(grants.iter_mut().all(|grant| grant.try_add(TOTAL / 4)));
        let mut slow = budget.begin(small.clone());
        assert!(slow.try_add(TOTAL / 4));
        let mut rest = budget.begin(holder(&seats, 4, 3));
        assert!(rest.try_add(TOTAL / 4));
        rest.holder.seat.enter(Phase::Busy);
        for (holder, stalled) in [(&small, 9), (&big[1], 5), (&big[0], 1)] {
            age(&holder.seat, Phase::Body, Duration::from_secs(stalled));
        }
        let mut new = budget.begin(holder(&seats, 5, 4));
        assert!(!new.demand(1000));
        let gone = [&big[0], &big[1], &small].map(|holder| holder.seat.is_evicted());
        assert_eq!(gone, [false, true, false]);
        assert!(!new.try_add(1000), "what is leaving still counts");
        grants.pop();
        assert!(new.try_add(1000));
    }

    #[tokio::test]
    async fn a_wait_ends_when_memory_comes_back_and_is_never_longer_than_allowed() {
        let (budget, seats) = (budget(), Arc::<Seats>::default());
        let busy = holder(&seats, 1, 1);
        busy.seat.enter(Phase::Busy);
        let mut all = budget.begin(busy);
        assert!(all.try_add(TOTAL / 2));
        let mut late = budget.begin(holder(&seats, 2, 1));
        let no = late.add(1, Duration::from_millis(1)).await;
        assert_eq!(no, Err(NoRoom::Late));
        let mut next = budget.begin(holder(&seats, 2, 1));
        let waits = next.add(1, Duration::from_secs(60));
        let (waited, ()) = tokio::join!(waits, async { all.shrink_to(0) });
        assert!(waited.is_ok() && budget.state().waiting == 0);
        next.holder.seat.evict(Reason::EvictedBody);
        let no = next.add(TOTAL, Duration::from_secs(60)).await;
        assert_eq!(no, Err(NoRoom::Evicted));
    }
}
