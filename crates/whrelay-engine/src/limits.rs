//! Every number of the scheduler, with its reason.

use std::time::Duration;

pub use whrelay_core::limits::REARM;

/// Destinations due within this time are kept in memory, the rest stay in the view.
pub const HORIZON: Duration = Duration::from_secs(60);
/// How often the view is asked for destinations that become due: twice in a [`HORIZON`], so that
/// one lost answer delays nothing.
pub const POLL_EVERY: Duration = Duration::from_secs(30);
/// Destinations in one page of that answer.
pub const DESTINATIONS_PAGE: usize = 1000;
/// Deliveries loaded for each slot of a destination: one runs, and one follows without a read.
pub const LOADED_PER_SLOT: usize = 2;
/// A destination is not read while the view lags behind more finished deliveries of it than this:
/// a read shows them all again.
pub const VIEW_LAG: usize = 256;
/// Deliveries loaded by one read: a read of the view stays short.
pub const LOADED_AT_ONCE: usize = 512;
/// Deliveries loaded for all destinations together.
pub const MAX_LOADED: usize = 20_000;
/// Attempts in flight to all destinations together.
pub const MAX_ATTEMPTS: usize = 1024;
/// An attempt starts while fewer bytes than this are in flight. The last one may exceed it, so
/// that an event larger than the rest of the space never waits for ever.
pub const MAX_BYTES: u64 = 256 * 1024 * 1024;
/// Finished deliveries remembered until the view has applied them. When so many are, nothing new
/// starts until the view follows.
pub const MAX_REMEMBERED: usize = 50_000;
/// Rows are dropped where nothing of a destination can start for this long: they are read again.
pub const KEEP_LOADED: Duration = Duration::from_secs(1);

/// Bytes that a destination may start at each of its turns.
pub const QUANTUM: u64 = 256 * 1024;
/// The least that a delivery costs its destination: at most four small ones start in one turn.
pub const LEAST_COST: u64 = QUANTUM / 4;
/// The most that a delivery costs its destination: 16 MiB, which are 64 turns.
pub const MOST_COST: u64 = QUANTUM * 64;

/// So many attempts in a row that had a connection and no answer show that the endpoint is away.
/// One may be a connection that the server closed for its age, two a restart.
pub const BROKEN_RUN: u32 = 3;
/// A success after failures calls backed-off deliveries back if so many failed in a row …
pub const FAILED_RUN: u32 = 3;
/// … and the first of them failed this long ago. Backoffs are about as long as the failures have
/// lasted, so a shorter spell leaves nothing to gain; and an endpoint that fails at random would
/// otherwise have its backoffs ended at each success.
pub const RECALL_AFTER: Duration = Duration::from_secs(2);
/// First pause between two trials of an endpoint that probes cannot judge.
pub const TRIAL_FIRST: Duration = Duration::from_secs(1);
/// Longest pause between two trials: the cap of the fast phase of retries.
pub const TRIAL_LONGEST: Duration = Duration::from_secs(30);
/// First pause between probes of an endpoint that is away.
pub const PROBE_FIRST: Duration = Duration::from_millis(100);
/// Longest pause between probes of an endpoint on this machine: the first delivery starts within
/// 0.3 s of the return.
pub const PROBE_LOOPBACK: Duration = Duration::from_millis(200);
/// Longest pause between probes of an endpoint elsewhere: the first delivery starts within a second
/// of the return.
pub const PROBE_REMOTE: Duration = Duration::from_millis(750);
/// How long a probed connection has to stay open: a proxy whose server is away accepts and closes
/// within a millisecond or two. With [`PROBE_LOOPBACK`] a return is noticed within 0.25 s.
pub const PROBE_LINGER: Duration = Duration::from_millis(50);
/// A probe without an answer is repeated after this.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// Pause before the view is read again after a failed or fruitless read.
pub const LOAD_AGAIN: Duration = Duration::from_millis(250);
/// A read without an answer is repeated after this.
pub const LOAD_PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a record is appended again after a failure.
pub const APPEND_AGAIN: Duration = Duration::from_millis(250);
/// A record without an answer is appended again after this. It is taken once, by its key.
pub const APPEND_PATIENCE: Duration = Duration::from_secs(30);
/// An attempt counts as timed out when its time has passed and so much more.
pub const ATTEMPT_PATIENCE: Duration = Duration::from_secs(60);
/// Deadlines of a destination whose deliveries cannot start are read again this long after new
/// ones were added.
pub const DEADLINES_AGAIN: Duration = Duration::from_secs(10);
/// How long a wall clock has to run evenly after a jump before jobs trust it.
pub const CLOCK_SETTLES: Duration = Duration::from_secs(120);
