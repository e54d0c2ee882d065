//! Who may start now at one destination: its order, its slots, its rate, and its breaker. It must not
//! know where deliveries are kept, nor how one is tried.

use std::collections::HashSet;
use std::str::FromStr;
use std::time::Instant;

use crate::breaker::{Breaker, Change, Probing};
use crate::delivery::DeliveryKey;
use crate::outcome::Outcome;
use crate::pace::{Pace, Rate};

/// Deliveries looked at, oldest due first, for a deadline that passed while the endpoint was
/// offline.
const EXPIRING: usize = 64;

/// In which order deliveries are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// They start in order of arrival, and one that is tried again holds nobody up.
    #[default]
    Arrival,
    /// One after the other: what is behind the oldest waits until that one has ended. Replays are
    /// made beside the line.
    Fifo,
}

impl Order {
    /// The word for it in flags and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Arrival => "arrival",
            Self::Fifo => "fifo",
        }
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "arrival" => Ok(Self::Arrival),
            "fifo" => Ok(Self::Fifo),
            other => Err(format!("unknown order `{other}`: use arrival or fifo")),
        }
    }
}

/// Gives out the slots of one destination.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    breaker: Breaker,
    pace: Option<Pace>,
    in_flight: HashSet<DeliveryKey>,
    /// The head of the line, where there is one and it holds a slot.
    head: Option<DeliveryKey>,
}

impl Dispatcher {
    /// For a destination that may have so many attempts in flight, and begin them so fast.
    pub fn new(max_in_flight: usize, rate: Option<Rate>, probing: Probing) -> Self {
        Self {
            breaker: Breaker::new(max_in_flight, probing),
            pace: rate.map(Pace::new),
            in_flight: HashSet::new(),
            head: None,
        }
    }

    /// The same for one that was offline when it was last asked: it is probed first.
    pub fn doubtful(
        max_in_flight: usize,
        rate: Option<Rate>,
        probing: Probing,
        now: Instant,
    ) -> Self {
        Self {
            breaker: Breaker::doubtful(max_in_flight, probing, now),
            ..Self::new(max_in_flight, rate, probing)
        }
    }

    /// Takes up another number of slots and another rate.
    pub fn change(&mut self, max_in_flight: usize, rate: Option<Rate>) {
        self.breaker.change(max_in_flight);
        self.pace = rate.map(Pace::new);
    }

    /// Keeps the slots that are held of one that it takes the place of.
    pub fn inherit(&mut self, before: &Self) {
        self.in_flight.clone_from(&before.in_flight);
        self.head = before.head;
    }

    /// Deliveries that hold a slot: each is given out once until it has finished.
    pub fn in_flight(&self) -> &HashSet<DeliveryKey> {
        &self.in_flight
    }

    /// How many due deliveries are worth looking at now.
    pub fn room(&self) -> usize {
        let window = if self.breaker.is_offline() {
            EXPIRING
        } else {
            self.breaker.window()
        };
        window.saturating_sub(self.in_flight.len())
    }

    /// From when on the rate lets the next attempt start; `None` where it does now.
    pub fn paced_until(&self, now: Instant) -> Option<Instant> {
        self.pace.and_then(|pace| pace.next_at(now))
    }

    /// Takes a slot for a due delivery. An offline endpoint is asked for nothing, and others no faster
    /// than their rate, but deadlines pass all the same: `expired` ones get a slot to be given up in.
    pub fn claim(
        &mut self,
        key: DeliveryKey,
        now: Instant,
        expired: impl FnOnce() -> bool,
    ) -> bool {
        if self.room() == 0 {
            return false;
        }
        let waits = self.breaker.is_offline() || self.paced_until(now).is_some();
        let expired = (waits || self.pace.is_some()) && expired();
        if waits && !expired {
            return false;
        }
        let claimed = self.in_flight.insert(key);
        if let Some(pace) = self.pace.as_mut().filter(|_| claimed && !expired) {
            pace.start(now);
        }
        claimed
    }

    /// Whether the head of the line may be asked for: no other holds a slot.
    pub fn line_is_free(&self) -> bool {
        self.head.is_none()
    }

    /// Takes a slot for the head of the line, where none before it holds one.
    pub fn claim_head(
        &mut self,
        key: DeliveryKey,
        now: Instant,
        expired: impl FnOnce() -> bool,
    ) -> bool {
        let claimed = self.line_is_free() && self.claim(key, now, expired);
        if claimed {
            self.head = Some(key);
        }
        claimed
    }

    /// Gives a slot back, and learns from what the endpoint did, if it was asked.
    pub fn finish(
        &mut self,
        key: DeliveryKey,
        outcome: Option<&Outcome>,
        now: Instant,
    ) -> Option<Change> {
        self.in_flight.remove(&key);
        self.head = self.head.filter(|head| *head != key);
        self.breaker.on_outcome(outcome?, now)
    }

    /// When to probe the endpoint, if it is offline.
    pub fn probe_at(&self) -> Option<Instant> {
        self.breaker.probe_at()
    }

    /// Learns from a probe. When the endpoint is back, the caller releases what waits for it.
    pub fn on_probe(&mut self, accepted: bool, now: Instant) -> Option<Change> {
        self.breaker.on_probe(accepted, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{BucketId, Seq};

    fn key(seq: u64) -> DeliveryKey {
        DeliveryKey {
            bucket: BucketId(1),
            seq: Seq(seq),
            ordinal: 0,
        }
    }

    #[test]
    fn a_slot_is_given_once_and_no_more_slots_than_there_are() {
        let (mut dispatcher, now) = (Dispatcher::new(2, None, Probing::Loopback), Instant::now());
        assert!(dispatcher.claim(key(1), now, || false));
        assert!(!dispatcher.claim(key(1), now, || false), "it has one");
        assert!(dispatcher.claim(key(2), now, || false));
        assert_eq!(dispatcher.room(), 0);
        assert!(!dispatcher.claim(key(3), now, || true));
        dispatcher.finish(key(1), None, now);
        assert!(dispatcher.claim(key(3), now, || false));
    }

    #[test]
    fn a_line_has_one_head_and_replays_pass_it() {
        let (mut dispatcher, now) = (Dispatcher::new(3, None, Probing::Loopback), Instant::now());
        assert!(dispatcher.claim_head(key(1), now, || false));
        assert!(!dispatcher.line_is_free());
        assert!(
            !dispatcher.claim_head(key(2), now, || false),
            "not its turn"
        );
        assert!(dispatcher.claim(key(3), now, || false), "a replay");
        dispatcher.finish(key(3), None, now);
        assert!(!dispatcher.line_is_free());
        dispatcher.finish(key(1), None, now);
        assert!(dispatcher.claim_head(key(2), now, || false));
    }

    #[test]
    fn offline_it_lets_only_the_expired_through() {
        let now = Instant::now();
        let mut dispatcher = Dispatcher::new(1, None, Probing::Loopback);
        assert!(dispatcher.claim(key(1), now, || false));
        let change = dispatcher.finish(key(1), Some(&Outcome::Unreachable), now);
        assert_eq!(change, Some(Change::Offline));
        assert!(!dispatcher.claim(key(2), now, || false));
        assert!(dispatcher.claim(key(3), now, || true));
        assert_eq!(dispatcher.on_probe(true, now), Some(Change::Online));
        assert!(
            !dispatcher.claim(key(2), now, || false),
            "one slot, and it is taken"
        );
    }

    #[test]
    fn a_rate_holds_attempts_back_and_nothing_that_is_only_given_up() {
        let now = Instant::now();
        let rate = "10/s".parse().expect("a rate");
        let mut dispatcher = Dispatcher::new(9, Some(rate), Probing::Loopback);
        assert!(dispatcher.claim(key(1), now, || false));
        assert!(!dispatcher.claim(key(2), now, || false));
        assert!(dispatcher.claim(key(3), now, || true));
        let next = dispatcher.paced_until(now).expect("a rate");
        assert_eq!(next, now + std::time::Duration::from_millis(100));
        assert!(dispatcher.claim(key(2), next, || false));
    }
}
