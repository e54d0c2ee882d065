//! Deficit round robin: which destination may start its next delivery.

use std::collections::VecDeque;

use whrelay_core::delivery::DestinationId;

use crate::limits;

/// Where a destination is queued for its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Queued {
    /// Nowhere: nothing of it can start.
    #[default]
    Out,
    /// Among those that start.
    Ready,
    /// Among the unhealthy ones that wait for a slot of theirs.
    Parked,
}

/// What a destination may still start in its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Credit {
    pub(crate) queued: Queued,
    deficit: u64,
    /// Whether its turn has begun.
    began: bool,
}

impl Credit {
    /// Whether a delivery of `bytes` may start. Adds the quantum once in each turn.
    pub(crate) fn covers(&mut self, bytes: u64) -> bool {
        if !self.began {
            self.began = true;
            self.deficit = self.deficit.saturating_add(limits::QUANTUM);
        }
        self.deficit >= cost(bytes)
    }

    pub(crate) fn spend(&mut self, bytes: u64) {
        self.deficit = self.deficit.saturating_sub(cost(bytes));
    }

    /// Ends the turn. A destination that leaves saves nothing up.
    pub(crate) fn end_turn(&mut self, queued: Queued) {
        self.began = false;
        self.queued = queued;
        if queued == Queued::Out {
            self.deficit = 0;
        }
    }
}

fn cost(bytes: u64) -> u64 {
    bytes.clamp(limits::LEAST_COST, limits::MOST_COST)
}

/// The destinations that have something to start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns {
    ready: VecDeque<DestinationId>,
    parked: VecDeque<DestinationId>,
}

impl Turns {
    pub(crate) fn first(&self) -> Option<DestinationId> {
        self.ready.front().copied()
    }

    pub(crate) fn remove_first(&mut self) {
        self.ready.pop_front();
    }

    pub(crate) fn push(&mut self, id: DestinationId) {
        self.ready.push_back(id);
    }

    pub(crate) fn park(&mut self, id: DestinationId) {
        self.parked.push_back(id);
    }

    pub(crate) fn next_parked(&mut self) -> Option<DestinationId> {
        self.parked.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_starts_a_quantum_of_bytes_and_at_most_four_deliveries() {
        let mut credit = Credit::default();
        let mut starts = 0;
        while credit.covers(100) {
            credit.spend(100);
            starts += 1;
        }
        assert_eq!(starts, 4);
    }

    #[test]
    fn a_large_event_starts_after_as_many_turns_as_it_has_quanta() {
        let mut credit = Credit::default();
        let mut turns = 1;
        while !credit.covers(10 * limits::QUANTUM) {
            credit.end_turn(Queued::Ready);
            turns += 1;
        }
        assert_eq!(turns, 10);
    }

    #[test]
    fn an_event_of_any_size_starts_after_64_turns() {
        let mut credit = Credit::default();
        let mut turns = 1;
        while !credit.covers(u64::MAX) {
            credit.end_turn(Queued::Ready);
            turns += 1;
        }
        assert_eq!(turns, 64);
    }

    #[test]
    fn a_destination_that_leaves_saves_nothing_up() {
        let mut credit = Credit::default();
        assert!(!credit.covers(2 * limits::QUANTUM));
        credit.end_turn(Queued::Out);
        assert!(!credit.covers(2 * limits::QUANTUM));
    }
}
