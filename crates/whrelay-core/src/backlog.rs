//! How much is wanted of what came before an agent began. It must not know what becomes of the rest.

use crate::bucket::Seq;
use crate::id::EventId;
use crate::time::Timestamp;

/// How much is wanted of what came before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Only so many, the newest; everything where nothing is said.
    pub newest: Option<u64>,
    /// Only what was received from then on.
    pub since: Option<Timestamp>,
}

/// Where what came before ends at a forwarder's store, and what of it is passed over. Before it is known,
/// nothing is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    wanted: Backlog,
    forwarder: String,
    /// What was there before: places behind the one, up to the other.
    before: (u64, u64),
    /// The event at the last of them.
    last: Option<EventId>,
}

impl Cut {
    /// What was there when an agent began: so many places behind `start`, in the store of that name, and which
    /// event at the last of them.
    pub fn new(
        wanted: Backlog,
        forwarder: &str,
        (start, waiting): (u64, u64),
        last: Option<EventId>,
    ) -> Self {
        // Without its end nobody could tell when its numbers are given again.
        let start = match (waiting, last) {
            (0, None) => 0,
            _ => start,
        };
        Self {
            wanted,
            forwarder: forwarder.to_owned(),
            before: (start, start.saturating_add(waiting)),
            last,
        }
    }

    /// The newest event that was there before. A forwarder that does not have it any more has gone back to an
    /// earlier copy, and gives its number again.
    pub fn end(&self) -> Option<(Seq, EventId)> {
        self.last.map(|id| (Seq(self.before.1), id))
    }

    /// A session of that forwarder starts after `start`, and the agent had come to `reached`. Where that is a step
    /// back, or the forwarder lost the end of the backlog, its numbers belong to another history from here on: the
    /// events that get them now did not come before. Answers whether the forwarder lost events that the agent does
    /// not have either.
    pub fn resume(&mut self, forwarder: &str, reached: u64, start: u64, lost_end: bool) -> bool {
        if forwarder != self.forwarder || (start >= reached && !lost_end) {
            return false;
        }
        let is_lost = lost_end && !self.is_behind(reached);
        self.before = (0, 0);
        self.last = None;
        is_lost
    }

    /// How much is wanted.
    pub fn wanted(&self) -> Backlog {
        self.wanted
    }

    /// Whether an event is passed over: its place in a forwarder's store, and when it was received.
    pub fn passes_over(&self, forwarder: &str, place: u64, received_at: Timestamp) -> bool {
        let (_, last) = self.before;
        if place > last || forwarder != self.forwarder {
            return false;
        }
        let Backlog { newest, since } = self.wanted;
        let behind = newest.is_some_and(|newest| last - place >= newest);
        behind || since.is_some_and(|since| received_at < since)
    }

    /// Whether everything that was there before has come.
    pub fn is_behind(&self, reached: u64) -> bool {
        reached >= self.before.1
    }

    /// How many of the forwarder's are wanted, as far as that can be told before they come.
    pub fn expected(&self) -> u64 {
        let (start, last) = self.before;
        (last - start).min(self.wanted.newest.unwrap_or(u64::MAX))
    }

    /// How many of the agent's own are wanted, the newest; those at the forwarder are newer still.
    pub fn wanted_here(&self) -> u64 {
        let (start, last) = self.before;
        let newest = self.wanted.newest.unwrap_or(u64::MAX);
        newest.saturating_sub(last - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(n: u64) -> Backlog {
        Backlog {
            newest: Some(n),
            since: None,
        }
    }

    fn kept(wanted: Backlog, places: std::ops::RangeInclusive<u64>) -> Vec<u64> {
        let cut = Cut::new(wanted, "f", (10, 5), None);
        let at = |place: u64| Timestamp::from_micros(place as i64 * 1_000_000);
        places
            .filter(|place| !cut.passes_over("f", *place, at(*place)))
            .collect()
    }

    #[test]
    fn what_comes_later_is_never_passed_over() {
        assert_eq!(kept(newest(0), 11..=18), [16, 17, 18]);
        let cut = Cut::new(newest(0), "f", (10, 5), None);
        assert!(!cut.passes_over("another store", 11, Timestamp::from_micros(1)));
        assert!(!cut.is_behind(14) && cut.is_behind(15));
    }

    #[test]
    fn the_newest_and_those_since_then_are_kept() {
        assert_eq!(kept(newest(2), 11..=16), [14, 15, 16]);
        assert_eq!(kept(newest(9), 11..=16), [11, 12, 13, 14, 15, 16]);
        let since = Backlog {
            newest: None,
            since: Some(Timestamp::from_micros(13_000_000)),
        };
        assert_eq!(kept(since, 11..=16), [13, 14, 15, 16]);
        let here = |n| Cut::new(newest(n), "f", (10, 5), None).wanted_here();
        assert_eq!([here(0), here(5), here(7)], [0, 0, 2]);
        let expected = |n| Cut::new(newest(n), "f", (10, 5), None).expected();
        assert_eq!([expected(0), expected(2), expected(9)], [0, 2, 5]);
    }

    #[test]
    fn numbers_that_are_given_again_are_no_backlog() {
        let last = EventId::from_bytes([7; 16]);
        let mut cut = Cut::new(newest(0), "f", (0, 20), Some(last));
        assert_eq!(cut.end(), Some((Seq(20), last)));
        let now = Timestamp::EPOCH;
        assert!(!cut.resume("f", 7, 7, false) && !cut.resume("another store", 7, 5, true));
        assert!(cut.passes_over("f", 20, now));
        let (mut lost, mut behind) = (cut.clone(), cut.clone());
        assert!(lost.resume("f", 7, 7, true));
        assert!(!behind.resume("f", 20, 20, true), "the agent has them");
        assert!(!cut.resume("f", 7, 5, false));
        for cut in [cut, lost, behind] {
            assert!(!cut.passes_over("f", 6, now) && !cut.passes_over("f", 20, now));
            assert_eq!(cut.end(), None);
        }
    }

    #[test]
    fn without_a_backlog_and_its_end_nothing_is_passed_over() {
        let cut = Cut::new(newest(0), "f", (10, 0), None);
        assert!(!cut.passes_over("f", 10, Timestamp::EPOCH));
        let known = Some(EventId::from_bytes([7; 16]));
        let cut = Cut::new(newest(0), "f", (10, 0), known);
        assert!(cut.passes_over("f", 10, Timestamp::EPOCH));
    }
}
