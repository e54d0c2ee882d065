//! Who may start now at one destination: its slots, and its breaker. It must not know where
//! deliveries are kept, nor how one is tried.

use std::collections::HashSet;
use std::time::Instant;

use crate::breaker::{Breaker, Change};
use crate::delivery::DeliveryKey;
use crate::outcome::Outcome;

/// Deliveries looked at, oldest due first, for a deadline that passed while the endpoint was
/// offline.
const EXPIRING: usize = 64;

/// Gives out the slots of one destination.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    breaker: Breaker,
    in_flight: HashSet<DeliveryKey>,
}

impl Dispatcher {
    /// For a destination that may have so many attempts in flight.
    pub fn new(max_in_flight: usize) -> Self {
        Self {
            breaker: Breaker::new(max_in_flight),
            in_flight: HashSet::new(),
        }
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

    /// Takes a slot for a due delivery. An offline endpoint is asked for nothing, but deadlines
    /// pass all the same, so that `expired` ones get a slot to be given up in.
    pub fn claim(&mut self, key: DeliveryKey, expired: impl FnOnce() -> bool) -> bool {
        if self.room() == 0 || (self.breaker.is_offline() && !expired()) {
            return false;
        }
        self.in_flight.insert(key)
    }

    /// Gives a slot back, and learns from what the endpoint did, if it was asked.
    pub fn finish(
        &mut self,
        key: DeliveryKey,
        outcome: Option<&Outcome>,
        now: Instant,
    ) -> Option<Change> {
        self.in_flight.remove(&key);
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
        let mut dispatcher = Dispatcher::new(2);
        assert!(dispatcher.claim(key(1), || false));
        assert!(!dispatcher.claim(key(1), || false), "it has one");
        assert!(dispatcher.claim(key(2), || false));
        assert_eq!(dispatcher.room(), 0);
        assert!(!dispatcher.claim(key(3), || true));
        dispatcher.finish(key(1), None, Instant::now());
        assert!(dispatcher.claim(key(3), || false));
    }

    #[test]
    fn offline_it_lets_only_the_expired_through() {
        let now = Instant::now();
        let mut dispatcher = Dispatcher::new(1);
        assert!(dispatcher.claim(key(1), || false));
        let change = dispatcher.finish(key(1), Some(&Outcome::Unreachable), now);
        assert_eq!(change, Some(Change::Offline));
        assert!(!dispatcher.claim(key(2), || false));
        assert!(dispatcher.claim(key(3), || true));
        assert_eq!(dispatcher.on_probe(true, now), Some(Change::Online));
        assert!(
            !dispatcher.claim(key(2), || false),
            "one slot, and it is taken"
        );
    }
}
