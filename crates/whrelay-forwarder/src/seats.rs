//! The connections of a forwarder, what each does now, and which one has to go. It must not know what is asked
//! over them.

use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use whrelay_core::limits;

use crate::budget::Grant;
use crate::refusals::Reason;

/// Who a connection comes from: an IPv4 address, or the network of an IPv6 address, of which one sender has 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Peer(IpAddr);

impl Peer {
    pub(crate) fn of(address: IpAddr) -> Self {
        const HOST: u128 = u64::MAX as u128;
        match address.to_canonical() {
            IpAddr::V6(v6) => Self(IpAddr::V6((v6.to_bits() & !HOST).into())),
            v4 @ IpAddr::V4(_) => Self(v4),
        }
    }
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No byte of a request has come since it was opened, or since the last answer.
    Idle,
    /// A part of a request's head has come.
    Head,
    /// A request's body comes.
    Body,
    /// A request is complete and gets its answer.
    Busy,
    /// It is a tunnel.
    Tunnel,
}

impl Phase {
    const ALL: [Self; 5] = [Self::Idle, Self::Head, Self::Body, Self::Busy, Self::Tunnel];
    const BITS: u32 = 3;

    fn of(state: u64) -> Self {
        let tag = usize::try_from(state & ((1 << Self::BITS) - 1)).unwrap_or(0);
        Self::ALL.get(tag).copied().unwrap_or(Self::Busy)
    }
}

/// A connection's place among those that are served. It is given back by the last who serves it: a tunnel
/// goes on when HTTP is done with its connection.
pub(crate) struct Seat {
    pub(crate) id: u64,
    pub(crate) peer: Peer,
    pub(crate) address: IpAddr,
    /// Its phase, and since when it has made no progress, in milliseconds of the seats' own time.
    state: AtomicU64,
    /// Bytes since the last progress.
    stepped: AtomicUsize,
    /// What the head of the request under way holds beyond what every connection may.
    head: Mutex<Option<Grant>>,
    evicted: CancellationToken,
    cause: OnceLock<Reason>,
    seats: Arc<Seats>,
    _permit: OwnedSemaphorePermit,
    _tracked: TaskTrackerToken,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("id", &self.id)
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}

impl Seat {
    pub(crate) fn phase(&self) -> Phase {
        Phase::of(self.state.load(Ordering::Relaxed))
    }

    /// Enters a phase, which begins now.
    pub(crate) fn enter(&self, phase: Phase) {
        self.stepped.store(0, Ordering::Relaxed);
        let now = self.seats.now() << Phase::BITS;
        self.state.store(now | phase as u64, Ordering::Relaxed);
    }

    /// The request under way has its answer.
    pub(crate) fn answered(&self) {
        self.enter(Phase::Idle);
        drop(self.head().take());
    }

    /// Notes bytes that have come, or gone down a tunnel.
    pub(crate) fn moved(&self, bytes: usize) {
        let phase = self.phase();
        let all = self.stepped.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match phase {
            Phase::Idle => {
                self.enter(Phase::Head);
                self.stepped.store(bytes, Ordering::Relaxed);
            }
            Phase::Body | Phase::Tunnel if all >= limits::PROGRESS => self.enter(phase),
            // A head earns no time: the oldest goes first.
            Phase::Head | Phase::Body | Phase::Busy | Phase::Tunnel => {}
        }
    }

    /// Bytes of a head that have come.
    pub(crate) fn head_bytes(&self) -> usize {
        match self.phase() {
            Phase::Head => self.stepped.load(Ordering::Relaxed),
            Phase::Idle | Phase::Body | Phase::Busy | Phase::Tunnel => 0,
        }
    }

    /// What the head holds.
    pub(crate) fn head(&self) -> MutexGuard<'_, Option<Grant>> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long it has made no progress; `None` where it waits for us, so that it cannot be the one to go.
    pub(crate) fn stalled(&self) -> Option<Duration> {
        let state = self.state.load(Ordering::Relaxed);
        let since = Duration::from_millis(self.seats.now().saturating_sub(state >> Phase::BITS));
        (Phase::of(state) != Phase::Busy).then_some(since)
    }

    /// Closes it: its memory or its place is needed. The first cause counts.
    pub(crate) fn evict(&self, cause: Reason) {
        let _ = self.cause.set(cause);
        self.evicted.cancel();
    }

    pub(crate) fn is_evicted(&self) -> bool {
        self.evicted.is_cancelled()
    }

    /// Waits until it is to be closed, and says why.
    pub(crate) async fn until_evicted(&self) -> Reason {
        self.evicted.cancelled().await;
        self.cause.get().copied().unwrap_or(Reason::EvictedIdle)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.all().remove(&self.id);
    }
}

/// All connections.
pub(crate) struct Seats {
    epoch: Instant,
    last: AtomicU64,
    all: Mutex<HashMap<u64, Weak<Seat>>>,
}

impl Default for Seats {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            last: AtomicU64::new(0),
            all: Mutex::default(),
        }
    }
}

impl Seats {
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX >> Phase::BITS)
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Weak<Seat>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The seat of a new connection.
    pub(crate) fn take(
        self: &Arc<Self>,
        address: IpAddr,
        permit: OwnedSemaphorePermit,
        tracked: TaskTrackerToken,
    ) -> Arc<Seat> {
        let seat = Arc::new(Seat {
            id: self.last.fetch_add(1, Ordering::Relaxed),
            peer: Peer::of(address),
            address: address.to_canonical(),
            state: AtomicU64::new(self.now() << Phase::BITS),
            stepped: AtomicUsize::new(0),
            head: Mutex::default(),
            evicted: CancellationToken::new(),
            cause: OnceLock::new(),
            seats: Arc::clone(self),
            _permit: permit,
            _tracked: tracked,
        });
        self.all().insert(seat.id, Arc::downgrade(&seat));
        seat
    }

    /// Closes connections so that others find a place: those of the peer that has the most, and of them the one
    /// that has made no progress for longest. A connection whose request is complete stays, and so does a tunnel.
    pub(crate) fn evict(&self, count: usize) {
        let open: Vec<_> = self.all().values().filter_map(Weak::upgrade).collect();
        let mut peers = HashMap::<Peer, Vec<(Duration, Arc<Seat>)>>::new();
        let mut leaving = 0;
        for seat in open {
            match seat.stalled() {
                _ if seat.is_evicted() => leaving += 1,
                Some(stalled) if seat.phase() != Phase::Tunnel => {
                    peers.entry(seat.peer).or_default().push((stalled, seat));
                }
                Some(_) | None => {}
            }
        }
        for seats in peers.values_mut() {
            // From the end, the longest first.
            seats.sort_unstable_by_key(|(stalled, _)| *stalled);
        }
        let mut largest: BinaryHeap<_> =
            peers.iter().map(|(peer, all)| (all.len(), *peer)).collect();
        for _ in leaving..count {
            let Some((left, peer)) = largest.pop() else {
                return;
            };
            if let Some((_, seat)) = peers.get_mut(&peer).and_then(Vec::pop) {
                let cause = match seat.phase() {
                    Phase::Head => Reason::EvictedHead,
                    Phase::Body => Reason::EvictedBody,
                    Phase::Idle | Phase::Busy | Phase::Tunnel => Reason::EvictedIdle,
                };
                seat.evict(cause);
                largest.push((left - 1, peer));
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use tokio::sync::Semaphore;
    use tokio_util::task::TaskTracker;

    use super::*;

    /// A seat of a peer.
    pub(crate) fn seat(seats: &Arc<Seats>, peer: u8) -> Arc<Seat> {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned();
        let address = Ipv4Addr::new(192, 0, 2, peer).into();
        seats.take(
            address,
            permit.expect("a permit"),
            TaskTracker::new().token(),
        )
    }

    /// Pretends that a seat entered its phase earlier.
    pub(crate) fn age(seat: &Seat, phase: Phase, by: Duration) {
        let now = seat.seats.now().saturating_sub(by.as_millis() as u64);
        let state = now << Phase::BITS | phase as u64;
        seat.state.store(state, Ordering::Relaxed);
    }

    /// Seats that have been there for so long.
    pub(crate) fn aged(seconds: u64) -> Arc<Seats> {
        let now = Instant::now();
        Arc::new(Seats {
            epoch: now.checked_sub(Duration::from_secs(seconds)).unwrap_or(now),
            ..Seats::default()
        })
    }

    #[test]
    fn the_peer_with_the_most_connections_loses_its_oldest_first() {
        let seats = aged(100);
        let many: Vec<_> = (0..3).map(|_| seat(&seats, 1)).collect();
        let one = seat(&seats, 2);
        for (seat, old) in many.iter().zip([5, 9, 1]) {
            age(seat, Phase::Head, Duration::from_secs(old));
        }
        age(&one, Phase::Idle, Duration::from_secs(50));
        let evicted = || -> Vec<bool> { many.iter().map(|s| s.is_evicted()).collect() };
        seats.evict(1);
        assert_eq!(
            (evicted(), one.is_evicted()),
            (vec![false, true, false], false)
        );
        // Those that leave already are counted.
        seats.evict(1);
        assert_eq!(evicted(), [false, true, false]);
        seats.evict(4);
        assert!(evicted().iter().all(|gone| *gone) && one.is_evicted());
    }

    #[test]
    fn complete_requests_and_tunnels_keep_their_seats() {
        let seats = aged(100);
        let (busy, tunnel, body) = (seat(&seats, 1), seat(&seats, 1), seat(&seats, 1));
        busy.enter(Phase::Busy);
        tunnel.enter(Phase::Tunnel);
        body.enter(Phase::Body);
        seats.evict(3);
        let evicted = [busy, tunnel, body].map(|seat| seat.is_evicted());
        assert_eq!(evicted, [false, false, true]);
    }

    #[test]
    fn a_network_of_ipv6_is_one_peer() {
        let peer = |text: &str| Peer::of(text.parse().expect("an address"));
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:2"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
    }

    #[test]
    fn bytes_are_progress_only_in_steps_and_never_for_a_head() {
        let seats = aged(100);
        let one = seat(&seats, 1);
        let stalled = |phase, bytes| {
            age(&one, phase, Duration::from_secs(9));
            one.stepped.store(0, Ordering::Relaxed);
            one.moved(bytes);
            one.stalled().expect("not busy") >= Duration::from_secs(9)
        };
        assert!(stalled(Phase::Body, limits::PROGRESS - 1));
        assert!(!stalled(Phase::Body, limits::PROGRESS));
        assert!(stalled(Phase::Head, 2 * limits::PROGRESS));
        assert!(!stalled(Phase::Idle, 1));
        assert_eq!((one.phase(), one.head_bytes()), (Phase::Head, 1));
    }
}
