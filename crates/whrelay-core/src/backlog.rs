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
    /// The last number that was given before.
    last: u64,
    /// The event that has it.
    last_id: Option<EventId>,
    /// How many events were there before and are sent.
    waiting: u64,
    /// The largest number that has come, and how many have come.
    come: (u64, u64),
    /// Up to this number there are as many newer ones as are wanted.
    old: u64,
}

impl Cut {
    /// What was there when an agent began: so many events behind `start`, in the store of that name, and the last of them,
    /// if it can be named.
    pub fn new(
        wanted: Backlog,
        forwarder: &str,
        (start, waiting): (u64, u64),
        end: Option<(Seq, EventId)>,
    ) -> Self {
        let last = match (waiting, end) {
            (_, Some((seq, _))) => seq.0,
            // Without its end nobody could tell when its numbers are given again.
            (0, None) => 0,
            (_, None) => start.saturating_add(waiting),
        };
        Self {
            wanted,
            forwarder: forwarder.to_owned(),
            last,
            last_id: end.map(|(_, id)| id),
            waiting,
            ..Self::default()
        }
    }

    /// The newest event that was there before. A forwarder that does not have it any more has gone back to an
    /// earlier copy, and gives its number again.
    pub fn end(&self) -> Option<(Seq, EventId)> {
        self.last_id.map(|id| (Seq(self.last), id))
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
        (self.last, self.last_id, self.waiting, self.old) = (0, None, 0, 0);
        is_lost
    }

    /// How much is wanted.
    pub fn wanted(&self) -> Backlog {
        self.wanted
    }

    /// Whether a received event is discarded as backlog. `seq` is its number in the forwarder's store.
    pub fn passes_over(&mut self, forwarder: &str, seq: u64, received_at: Timestamp) -> bool {
        if seq > self.last || forwarder != self.forwarder {
            return false;
        }
        let Backlog { newest, since } = self.wanted;
        let (largest, count) = self.come;
        if seq > largest {
            self.come = (seq, count + 1);
            // Numbers have gaps, and damaged events do not come: the smaller one of both counts is nearer to the truth.
            let newer = (self.last - seq).min(self.waiting.saturating_sub(count + 1));
            if newest.is_some_and(|newest| newer >= newest) {
                self.old = seq;
            }
        }
        seq <= self.old || since.is_some_and(|since| received_at < since)
    }

    /// Whether everything that was there before has come.
    pub fn is_behind(&self, reached: u64) -> bool {
        reached >= self.last
    }

    /// How many of the forwarder's are wanted, as far as that can be told before they come.
    pub fn expected(&self) -> u64 {
        self.waiting.min(self.wanted.newest.unwrap_or(u64::MAX))
    }

    /// How many of the agent's own are wanted, the newest; those at the forwarder are newer still.
    pub fn wanted_here(&self) -> u64 {
        let newest = self.wanted.newest.unwrap_or(u64::MAX);
        newest.saturating_sub(self.waiting)
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
        let mut cut = Cut::new(wanted, "f", (10, 5), None);
        let at = |place: u64| Timestamp::from_micros(place as i64 * 1_000_000);
        places
            .filter(|place| !cut.passes_over("f", *place, at(*place)))
            .collect()
    }

    #[test]
    fn what_comes_later_is_never_passed_over() {
        assert_eq!(kept(newest(0), 11..=18), [16, 17, 18]);
        let mut cut = Cut::new(newest(0), "f", (10, 5), None);
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
    fn the_newest_are_counted_where_numbers_have_gaps_and_where_some_do_not_come() {
        let end = Some((Seq(20), EventId::from_bytes([7; 16])));
        let mut cut = Cut::new(newest(2), "f", (10, 4), end);
        let mut passes_over = |seq| cut.passes_over("f", seq, Timestamp::EPOCH);
        assert_eq!(
            [12, 15, 17, 20].map(&mut passes_over),
            [true, true, false, false]
        );
        // They come again over another link.
        assert_eq!(
            [12, 15, 17, 20, 21].map(passes_over),
            [true, true, false, false, false]
        );
        let mut cut = Cut::new(newest(2), "f", (10, 5), None);
        let passes_over = |seq| cut.passes_over("f", seq, Timestamp::EPOCH);
        assert_eq!(
            [11, 13, 14, 15].map(passes_over),
            [true, true, false, false]
        );
    }

    #[test]
    fn numbers_that_are_given_again_are_no_backlog() {
        let last = (Seq(20), EventId::from_bytes([7; 16]));
        let mut cut = Cut::new(newest(0), "f", (0, 20), Some(last));
        assert_eq!(cut.end(), Some(last));
        let now = Timestamp::EPOCH;
        assert!(!cut.resume("f", 7, 7, false) && !cut.resume("another store", 7, 5, true));
        assert!(cut.passes_over("f", 20, now));
        let (mut lost, mut behind) = (cut.clone(), cut.clone());
        assert!(lost.resume("f", 7, 7, true));
        assert!(!behind.resume("f", 20, 20, true), "the agent has them");
        assert!(!cut.resume("f", 7, 5, false));
        for mut cut in [cut, lost, behind] {
            assert!(!cut.passes_over("f", 6, now) && !cut.passes_over("f", 20, now));
            assert_eq!(cut.end(), None);
        }
    }

    #[test]
    fn without_a_backlog_and_its_end_nothing_is_passed_over() {
        let mut cut = Cut::new(newest(0), "f", (10, 0), None);
        assert!(!cut.passes_over("f", 10, Timestamp::EPOCH));
        let known = Some((Seq(10), EventId::from_bytes([7; 16])));
        let mut cut = Cut::new(newest(0), "f", (10, 0), known);
        assert!(cut.passes_over("f", 10, Timestamp::EPOCH));
    }
}
