//! Where time enters: both clocks, read together. It must not know what is scheduled.

use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use whrelay_core::time::{Moment, Timestamp, TwoClocks};

/// The process's clock.
#[derive(Debug)]
pub struct Clock {
    started: Instant,
    clocks: Mutex<TwoClocks>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            clocks: Mutex::new(TwoClocks::new(wall())),
        }
    }
}

impl Clock {
    /// The present.
    pub fn moment(&self) -> Moment {
        let mut clocks = self
            .clocks
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        clocks.read(wall(), self.started.elapsed())
    }

    /// The present, for schedules and records.
    pub fn now(&self) -> Timestamp {
        self.moment().now
    }

    /// How often the wall clock has jumped, the present reading included: a change means that the
    /// machine slept or its clock was set.
    pub fn jumps(&self) -> u64 {
        self.moment();
        self.clocks
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .jumps()
    }
}

fn wall() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::EPOCH.after(since)
}
