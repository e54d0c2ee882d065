//! The slots of the node: attempts and bytes in flight, half of them reserved for healthy
//! destinations.

use crate::limits;

/// What one node may have in flight and in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Attempts in flight.
    pub attempts: usize,
    /// An attempt starts while fewer bytes than this are in flight.
    pub bytes: u64,
    /// Deliveries loaded.
    pub loaded: usize,
    /// Finished deliveries remembered until the view has applied them.
    pub remembered: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            attempts: limits::MAX_ATTEMPTS,
            bytes: limits::MAX_BYTES,
            loaded: limits::MAX_LOADED,
            remembered: limits::MAX_REMEMBERED,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    attempts: usize,
    bytes: u64,
}

impl Use {
    fn leaves_room(self, attempts: usize, bytes: u64) -> bool {
        self.attempts < attempts.max(1) && (self.bytes < bytes || self.attempts == 0)
    }
}

/// Counts what is in flight.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    caps: Caps,
    all: Use,
    unhealthy: Use,
}

impl Slots {
    pub(crate) fn new(caps: Caps) -> Self {
        Self {
            caps,
            all: Use::default(),
            unhealthy: Use::default(),
        }
    }

    /// Whether any attempt may start.
    pub(crate) fn is_free(&self) -> bool {
        self.all.leaves_room(self.caps.attempts, self.caps.bytes)
    }

    /// Whether an attempt at an unhealthy destination may start: such attempts take half at most.
    pub(crate) fn is_free_for_unhealthy(&self) -> bool {
        let Caps {
            attempts, bytes, ..
        } = self.caps;
        self.unhealthy.leaves_room(attempts / 2, bytes / 2)
    }

    pub(crate) fn take(&mut self, bytes: u64, healthy: bool) {
        for used in self.counted(healthy) {
            used.attempts = used.attempts.saturating_add(1);
            used.bytes = used.bytes.saturating_add(bytes);
        }
    }

    pub(crate) fn free(&mut self, bytes: u64, healthy: bool) {
        for used in self.counted(healthy) {
            used.attempts = used.attempts.saturating_sub(1);
            used.bytes = used.bytes.saturating_sub(bytes);
        }
    }

    fn counted(&mut self, healthy: bool) -> impl Iterator<Item = &mut Use> {
        let unhealthy = (!healthy).then_some(&mut self.unhealthy);
        std::iter::once(&mut self.all).chain(unhealthy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(attempts: usize, bytes: u64) -> Slots {
        Slots::new(Caps {
            attempts,
            bytes,
            ..Caps::default()
        })
    }

    #[test]
    fn half_of_the_slots_are_reserved_for_healthy_destinations() {
        let mut slots = slots(4, 1000);
        slots.take(1, false);
        assert!(slots.is_free_for_unhealthy());
        slots.take(1, false);
        assert!(!slots.is_free_for_unhealthy() && slots.is_free());
        slots.take(1, true);
        slots.take(1, true);
        assert!(!slots.is_free());
        slots.free(1, false);
        assert!(slots.is_free() && slots.is_free_for_unhealthy());
    }

    #[test]
    fn the_last_attempt_may_exceed_the_bytes_and_the_next_waits() {
        let mut slots = slots(10, 100);
        slots.take(99, true);
        assert!(slots.is_free());
        slots.take(5000, true);
        assert!(!slots.is_free());
        slots.free(5000, true);
        assert!(slots.is_free());
    }

    #[test]
    fn an_event_larger_than_all_bytes_starts_alone() {
        let mut slots = slots(10, 0);
        assert!(slots.is_free() && slots.is_free_for_unhealthy());
        slots.take(1, false);
        assert!(!slots.is_free());
    }
}
