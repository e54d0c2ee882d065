//! The view answers queries and is computed from the journal. It must not show records that are not on disk.

use async_trait::async_trait;
use tokio::sync::watch;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey, DestinationId, State};
use whrelay_core::id::EventId;
use whrelay_core::queue::{DueCursor, DuePage, Offset, QueuePage, QueueQuery};
use whrelay_core::retention::{Held, Part};
use whrelay_core::time::Timestamp;

use crate::attempts::LoggedAttempt;
use crate::briefs::{Deliveries, LastAttempt};
use crate::check::{Audit, Audited};
use crate::deliveries::StateCounts;
use crate::error::StoreError;
use crate::retention::Removals;
use crate::states::{Begin, Found, Search};

/// What is computed from the journal. It may be behind it, and is never ahead of what is on disk.
#[async_trait]
pub trait QueueView: Send + Sync {
    /// The position up to which reads show the journal, at least.
    fn applied(&self) -> watch::Receiver<Offset>;

    /// Destinations that have something due by a time, earliest first; then those of which a delivery has failed after
    /// that time: they count as due at `now`.
    async fn due_destinations(
        &self,
        until: Timestamp,
        after: Option<DueCursor>,
        max: usize,
        now: Timestamp,
    ) -> Result<DuePage, StoreError>;
    /// Reads the queue of a destination. Damaged deliveries are among the rows: an attempt finds the damage.
    async fn queue(
        &self,
        destination: DestinationId,
        query: &QueueQuery,
    ) -> Result<QueuePage, StoreError>;

    /// The deliveries of an event, in the order they were begun.
    async fn deliveries_of(&self, bucket: BucketId, seq: Seq) -> Result<Vec<Delivery>, StoreError>;
    /// Deliveries of a bucket behind a number, of at least `max` rows where there are as many.
    async fn deliveries_after(
        &self,
        bucket: BucketId,
        after: Seq,
        max: usize,
    ) -> Result<Deliveries, StoreError>;
    /// The deliveries of these events, which are in order of their numbers.
    async fn deliveries_of_all(
        &self,
        bucket: BucketId,
        places: &[Seq],
    ) -> Result<Deliveries, StoreError>;
    /// How many deliveries of a destination are in each state.
    async fn counts(&self, destination: DestinationId) -> Result<StateCounts, StoreError>;

    /// Events that a search finds, by age, up to `max`, behind `after`.
    async fn search(
        &self,
        search: &Search,
        begin: Begin,
        after: Option<EventId>,
        max: usize,
    ) -> Result<Vec<Found>, StoreError>;
    /// When the oldest event of a bucket that waits was received, to the millisecond.
    async fn oldest_waiting(&self, bucket: BucketId) -> Result<Option<Timestamp>, StoreError>;
    /// The events that are set apart.
    async fn quarantined(&self) -> Result<Vec<(BucketId, Seq)>, StoreError>;

    /// The place of the newest attempt in the log; 0 if there is no attempt.
    async fn last_attempt(&self) -> Result<u64, StoreError>;
    /// Attempts after a place in the log, oldest first, up to `max`.
    async fn attempts_after(
        &self,
        after: u64,
        max: usize,
    ) -> Result<Vec<LoggedAttempt>, StoreError>;
    /// Attempts after which their deliveries were in one of these states, newest first by their start, up to `max`: those
    /// that started within the bounds, and beyond `after`.
    async fn attempts_by_start(
        &self,
        states: &[State],
        bounds: (Timestamp, Timestamp),
        after: Option<(Timestamp, u64)>,
        max: usize,
    ) -> Result<Vec<LoggedAttempt>, StoreError>;
    /// The newest attempts of a delivery, newest first, up to `max`.
    async fn attempts_of(
        &self,
        key: DeliveryKey,
        max: usize,
    ) -> Result<Vec<LoggedAttempt>, StoreError>;
    /// The last attempt of each delivery, by its index in `all`, which are places in the log.
    async fn last_attempts(
        &self,
        all: &[Option<u64>],
        each: &mut (dyn for<'a> FnMut(usize, Option<LastAttempt<'a>>) + Send),
    ) -> Result<(), StoreError>;

    /// Bytes that events, deliveries and attempts take, as they are counted against the bound.
    fn size(&self) -> u64;
    /// The same of one bucket.
    fn bucket_size(&self, bucket: BucketId) -> u64;
    /// How many events there are.
    async fn held(&self) -> Result<Held, StoreError>;
    /// What retention has removed.
    async fn removals(&self, bucket: BucketId) -> Result<Removals, StoreError>;
    /// When the first event of each of these buckets was received of which that part may go.
    async fn oldest_receipted(
        &self,
        buckets: &[BucketId],
        part: Part,
        by: Timestamp,
    ) -> Result<Vec<(Timestamp, BucketId)>, StoreError>;

    /// Compares some rows with what they are computed from.
    async fn audit(&self, from: Audit, max: usize) -> Result<Audited, StoreError>;
    /// Computes the view again. Answers how many rows were wrong.
    async fn rebuild(&self) -> Result<u64, StoreError>;
}

impl dyn QueueView + '_ {
    /// Waits until reads show the journal up to a position.
    pub async fn wait_applied(&self, at: Offset) {
        let mut applied = self.applied();
        // A store that has stopped says so at the next read.
        let _ = applied.wait_for(|applied| *applied >= at).await;
    }
}
