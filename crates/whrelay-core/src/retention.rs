//! How long what has ended is kept, and how much of it. It must not know what is kept, nor where.

use std::time::Duration;

use crate::limits;
use crate::time::Timestamp;

/// What a store keeps of what has ended. What waits is kept for as long as it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long, since it ended; zero for ever.
    pub retain: Duration,
    /// How much a store may hold, all in all.
    pub max_disk: Option<Bound>,
    /// Bytes of the largest event: there has to be room for it where nothing waits.
    pub largest: u64,
}

/// How much a store may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Bytes of everything in it.
    pub bytes: u64,
    /// Whether several buckets share it, none of which may stop the others.
    pub shared: bool,
}

impl Bound {
    /// What one bucket may fill. Where several share a store, the last quarter is kept for those that hold
    /// little.
    pub fn most(self) -> u64 {
        match self.shared {
            true => self.bytes / 4 * 3,
            false => self.bytes,
        }
    }

    /// Whether a bucket that has `own` bytes may take in so many more, in a store that has `total`. In the last
    /// quarter only one that then holds no more than what is left may, so that there is always something left for
    /// another.
    pub fn takes_in(self, total: u64, own: u64, more: u64) -> bool {
        if !self.shared {
            return total < self.bytes;
        }
        total + more <= self.most() || own + more <= self.bytes.saturating_sub(total)
    }
}

/// How much of an event goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its body. What it was and what became of it stays.
    Body,
    /// All of it, its deliveries and their attempts too.
    Whole,
}

/// How many events a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// With their bodies.
    pub whole: u64,
    /// Without.
    pub bare: u64,
}

impl Held {
    /// What goes first where room is needed, then what else could go. Bodies first: what an event was and what
    /// became of it is worth more than what it said. But once as many events have none, the oldest go whole, so
    /// that what came last can still be delivered.
    pub fn order(self) -> [Part; 2] {
        match self.bare < self.whole {
            true => [Part::Body, Part::Whole],
            false => [Part::Whole, Part::Body],
        }
    }

    /// How many go at once: few of few, or those that were received last would go with the oldest.
    pub fn step(self) -> usize {
        let some = self.whole.saturating_add(self.bare) / 16;
        usize::try_from(some).map_or(limits::RETENTION_STEP, |some| {
            some.clamp(1, limits::RETENTION_STEP)
        })
    }
}

impl Retention {
    /// Everything, for ever.
    pub const ALL: Self = Self {
        retain: Duration::ZERO,
        max_disk: None,
        largest: 0,
    };

    /// What ended by then is over. `certain` is [`Moment::certain`](crate::time::Moment), since a wrong clock
    /// must not remove anything.
    pub fn over(&self, certain: Timestamp) -> Option<Timestamp> {
        (self.retain > Duration::ZERO).then(|| certain.before(self.retain))
    }

    /// Whether a store of that size needs room, so that the next event finds some: from nine tenths of its
    /// bound on, or where the largest event has no room any more, and once it does, until a tenth more is free.
    pub fn needs_room(&self, size: u64, did: bool) -> bool {
        self.max_disk.is_some_and(|bound| {
            let upto = self.filled(bound);
            let more = if did { bound.most() / 10 } else { 0 };
            size > upto.saturating_sub(more)
        })
    }

    /// How many bytes have to go, once a store of that size needs room.
    pub fn excess(&self, size: u64) -> u64 {
        self.max_disk.map_or(0, |bound| {
            let upto = self.filled(bound).saturating_sub(bound.most() / 10);
            size.saturating_sub(upto)
        })
    }

    /// How much a store may hold before it needs room.
    fn filled(&self, bound: Bound) -> u64 {
        let most = bound.most();
        most - (most / 10).max(self.largest.min(most / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn what_is_kept_for_ever_is_never_over() {
        let now = Timestamp::EPOCH.after(9 * DAY);
        assert_eq!(Retention::ALL.over(now), None);
        let week = Retention {
            retain: 7 * DAY,
            ..Retention::ALL
        };
        assert_eq!(week.over(now), Some(Timestamp::EPOCH.after(2 * DAY)));
    }

    #[test]
    fn room_is_made_before_there_is_none_and_then_enough_of_it() {
        let bound = Bound {
            bytes: 1000,
            shared: false,
        };
        let bounded = Retention {
            max_disk: Some(bound),
            ..Retention::ALL
        };
        assert!(!bounded.needs_room(900, false) && bounded.needs_room(901, false));
        assert!(bounded.needs_room(801, true) && !bounded.needs_room(800, true));
        assert_eq!((bounded.excess(950), bounded.excess(800)), (150, 0));
        assert!(!Retention::ALL.needs_room(u64::MAX, false));
        let large = Retention {
            largest: 300,
            ..bounded
        };
        assert!(!large.needs_room(700, false) && large.needs_room(701, false));
        assert!(large.needs_room(601, true) && !large.needs_room(600, true));
        assert_eq!(large.excess(750), 150);
    }

    #[test]
    fn a_bucket_that_fills_a_shared_store_leaves_room_for_the_others() {
        let shared = Bound {
            bytes: 1000,
            shared: true,
        };
        let fill = |total: u64| {
            let mut own = 0;
            while shared.takes_in(total + own, own, 1) {
                own += 1;
            }
            own
        };
        let first = fill(0);
        assert_eq!(first, 750);
        let second = fill(first);
        assert_eq!(second, 125);
        assert_eq!(fill(first + second), 63, "and so on, never nothing");
        let alone = Bound {
            shared: false,
            ..shared
        };
        assert!(alone.takes_in(999, 999, 9) && !alone.takes_in(1000, 0, 1));
        assert!(!shared.takes_in(740, 740, 300), "one event may be large");
    }

    #[test]
    fn bodies_go_first_and_about_as_many_events_keep_theirs_as_have_none() {
        let mut held = Held {
            whole: 1000,
            bare: 0,
        };
        while held.whole > 10 {
            let some = held.step() as u64;
            assert!((1..=62).contains(&some), "{held:?}");
            match held.order()[0] {
                Part::Body => {
                    held.whole -= some;
                    held.bare += some;
                }
                Part::Whole => held.bare -= some,
            }
            assert!(held.bare <= held.whole + 2 * some, "{held:?}");
        }
        let many = Held {
            whole: u64::MAX,
            bare: 9,
        };
        assert_eq!((many.order()[0], many.step()), (Part::Body, 500));
        let none = Held::default();
        assert_eq!((none.order()[0], none.step()), (Part::Whole, 1));
    }
}
