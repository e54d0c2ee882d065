//! How long what has ended is kept, and how much of it. It must not know what is kept, nor where.

use std::time::Duration;

use crate::time::Timestamp;

/// What a store keeps of what has ended. What waits is kept for as long as it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long, since it ended; zero for ever.
    pub retain: Duration,
    /// Bytes that a store may hold, all in all.
    pub max_disk: Option<u64>,
}

impl Retention {
    /// Everything, for ever.
    pub const ALL: Self = Self {
        retain: Duration::ZERO,
        max_disk: None,
    };

    /// What ended by then is over. `certain` is [`Moment::certain`](crate::time::Moment), since a wrong clock
    /// must not remove anything.
    pub fn over(&self, certain: Timestamp) -> Option<Timestamp> {
        (self.retain > Duration::ZERO).then(|| certain.before(self.retain))
    }

    /// Whether a store of that size needs room, so that the next event finds some: from nine tenths of its
    /// bound on, and once it does, until it is down to eight.
    pub fn needs_room(&self, size: u64, did: bool) -> bool {
        let tenths = if did { 8 } else { 9 };
        self.max_disk
            .is_some_and(|bound| size > bound / 10 * tenths)
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
        let bounded = Retention {
            max_disk: Some(1000),
            ..Retention::ALL
        };
        assert!(!bounded.needs_room(900, false) && bounded.needs_room(901, false));
        assert!(bounded.needs_room(801, true) && !bounded.needs_room(800, true));
        assert!(!Retention::ALL.needs_room(u64::MAX, false));
    }
}
