//! Where time enters: the wall clock and two clocks that nobody can set, read together. It must not know what is
//! scheduled.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use whrelay_core::limits;
use whrelay_core::time::{Moment, Timestamp, TwoClocks};
use whrelay_engine::Now;

/// The process's clock.
#[derive(Debug)]
pub struct Clock {
    started: Instant,
    readings: Mutex<Readings>,
}

#[derive(Debug)]
struct Readings {
    clocks: TwoClocks,
    /// What the wall clock showed when the machine was started, by the clock that counts sleep.
    booted_at: Timestamp,
    jumped_at: Option<Instant>,
}

impl Default for Clock {
    fn default() -> Self {
        let started = Instant::now();
        let wall = wall();
        Self {
            started,
            readings: Mutex::new(Readings {
                clocks: TwoClocks::new(wall),
                booted_at: wall.before(awake_and_asleep(started)),
                jumped_at: None,
            }),
        }
    }
}

impl Clock {
    /// The present, for the engine.
    pub fn reading(&self) -> Now {
        // The clocks are read under the lock, so that no reading is older than the one before it.
        let mut readings = self.readings();
        let instant = Instant::now();
        let (wall, up) = (wall(), awake_and_asleep(self.started));
        let booted_at = wall.before(up);
        let moved = booted_at.since(readings.booted_at) + readings.booted_at.since(booted_at);
        if moved >= limits::JUMP {
            // Sleep moves both clocks alike: this one was set.
            (readings.booted_at, readings.jumped_at) = (booted_at, Some(instant));
        }
        let elapsed = instant.saturating_duration_since(self.started);
        Now {
            moment: readings.clocks.read(wall, elapsed),
            instant,
            jumped_at: readings.jumped_at,
        }
    }

    /// The present.
    pub fn moment(&self) -> Moment {
        self.reading().moment
    }

    /// The present, for schedules and records.
    pub fn now(&self) -> Timestamp {
        self.moment().now
    }

    /// How often the wall clock has jumped, the present reading included: a change means that the
    /// machine slept or its clock was set.
    pub fn jumps(&self) -> u64 {
        self.reading();
        self.readings().clocks.jumps()
    }

    fn readings(&self) -> MutexGuard<'_, Readings> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wall() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::EPOCH.after(since)
}

/// A clock that runs while the machine sleeps.
#[cfg(unix)]
fn awake_and_asleep(_: Instant) -> Duration {
    use rustix::time::{ClockId, clock_gettime};

    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: ClockId = ClockId::Boottime;
    // On macOS this one counts sleep, and `Instant` does not.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: ClockId = ClockId::Monotonic;

    Duration::try_from(clock_gettime(CLOCK)).unwrap_or_default()
}

/// A clock that runs while the machine sleeps: on Windows, `Instant` does.
#[cfg(not(unix))]
fn awake_and_asleep(started: Instant) -> Duration {
    started.elapsed()
}
