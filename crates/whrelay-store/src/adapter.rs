//! The contracts of the store as redb keeps them. It must not decide anything.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinError;
use whrelay_core::bucket::{Bucket, BucketId, BucketKey, BucketName, Seq};
use whrelay_core::delivery::{Attempt, Delivery, DeliveryKey, DestinationId, State};
use whrelay_core::destination::Destination;
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::queue::{DueCursor, DuePage, Offset, QueuePage, QueueQuery};
use whrelay_core::retention::{Bound, Held, Part};
use whrelay_core::subscription::Subscription;
use whrelay_core::time::Timestamp;
use whrelay_core::token::{Token, TokenDigest};

use crate::attempts::LoggedAttempt;
use crate::briefs::{Deliveries, LastAttempt};
use crate::catalog::Catalog;
use crate::changes::Changes;
use crate::check::{Audit, Audited};
use crate::deliveries::{Again, StateCounts};
use crate::destinations::{Moved, NewDestination};
use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::events::{Batch, NewEvent, Receipt};
use crate::incidents::Incident;
use crate::journal::Journal;
use crate::meta::Epoch;
use crate::retention::{Removals, Swept};
use crate::signatures::SignatureClaim;
use crate::sources::{Source, SourceMark};
use crate::states::{Begin, Found, Search};
use crate::subscriptions::{NamedSubscription, Numbers, Subscribed};
use crate::view::QueueView;
use crate::writer::Effort;

#[async_trait]
impl Journal for RedbStore {
    fn epoch(&self) -> &Epoch {
        Self::epoch(self)
    }

    fn bound(&self) -> Option<Bound> {
        Self::bound(self)
    }

    fn appended(&self) -> watch::Receiver<Offset> {
        Self::commits(self)
    }

    fn changes(&self) -> Changes {
        Self::changes(self)
    }

    async fn find_event(&self, id: EventId) -> Result<Option<(BucketId, Seq)>, StoreError> {
        Self::find_event(self, id)
    }

    async fn delivery(&self, key: DeliveryKey) -> Result<Option<Delivery>, StoreError> {
        Self::delivery(self, key)
    }

    async fn source(&self, bucket: BucketId) -> Result<Option<Source>, StoreError> {
        Self::source(self, bucket)
    }

    async fn has_signature(&self, claim: &SignatureClaim) -> Result<Option<bool>, StoreError> {
        Self::has_signature(self, claim)
    }

    async fn stopped(&self) -> StoreError {
        Self::broken(self).await
    }

    async fn close(&self) {
        Self::clone(self).close().await;
    }

    async fn receive(
        &self,
        bucket: BucketId,
        events: Vec<NewEvent>,
        mark: Option<SourceMark>,
    ) -> Result<Vec<Receipt>, StoreError> {
        Self::append(self, bucket, events, mark).await
    }

    fn over_bound(&self, bucket: BucketId) -> Option<StoreError> {
        Self::over_bound(self, bucket)
    }

    async fn refusing(&self, buckets: &[BucketId]) -> Result<Vec<(BucketId, String)>, StoreError> {
        Self::refusing(self, buckets)
    }

    async fn read_after(
        &self,
        bucket: &Bucket,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Batch, StoreError> {
        Self::read_after(self, bucket, after, max_events, max_bytes)
    }

    async fn event_at(&self, bucket: &Bucket, seq: Seq) -> Result<Option<Event>, StoreError> {
        Self::event_at(self, bucket, seq)
    }

    async fn head_at(
        &self,
        bucket: &Bucket,
        seq: Seq,
    ) -> Result<Option<(Event, bool)>, StoreError> {
        Self::head_at(self, bucket, seq)
    }

    async fn ids_at(
        &self,
        bucket: BucketId,
        numbers: &[Seq],
    ) -> Result<Vec<Option<EventId>>, StoreError> {
        Self::ids_at(self, bucket, numbers)
    }

    async fn count(&self, bucket: BucketId, after: Seq, through: Seq) -> Result<u64, StoreError> {
        let Numbers { pruned, last } = Self::numbers(self, bucket)?;
        // These numbers have no gaps.
        Ok(through.min(last).0.saturating_sub(after.max(pruned).0))
    }

    async fn numbers(&self, bucket: BucketId) -> Result<Numbers, StoreError> {
        Self::numbers(self, bucket)
    }

    async fn attempted(
        &self,
        attempt: Attempt,
        claim: Option<SignatureClaim>,
    ) -> Result<(), StoreError> {
        match claim {
            Some(claim) => Self::record_signed(self, attempt, claim).await,
            None => Self::record(self, attempt).await,
        }
    }

    async fn claim_signature(&self, claim: SignatureClaim) -> Result<bool, StoreError> {
        Self::claim_signature(self, claim).await
    }

    async fn replay(&self, all: Vec<Again>) -> Result<Vec<Delivery>, StoreError> {
        Self::deliver_again(self, all).await
    }

    async fn give_up(&self, attempts: Vec<Attempt>) -> Result<Vec<DeliveryKey>, StoreError> {
        Self::give_up(self, attempts).await
    }

    async fn postpone(
        &self,
        key: DeliveryKey,
        now: Timestamp,
        delay: Duration,
    ) -> Result<(), StoreError> {
        Self::postpone(self, key, now, delay).await
    }

    async fn retry_now(&self, keys: Vec<DeliveryKey>) -> Result<Vec<DeliveryKey>, StoreError> {
        Self::retry_now(self, keys).await
    }

    async fn move_deliveries(
        &self,
        from: DestinationId,
        to: DestinationId,
        now: Timestamp,
    ) -> Result<Moved, StoreError> {
        Self::move_deliveries(self, from, to, now).await
    }

    async fn quarantine(
        &self,
        bucket: &Bucket,
        key: DeliveryKey,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        Self::quarantine(self, bucket, key, now).await
    }

    async fn restore_event(
        &self,
        bucket: &Bucket,
        seq: Seq,
        event: Event,
    ) -> Result<(), StoreError> {
        Self::restore_event(self, bucket, seq, event).await
    }

    async fn subscription(&self, bucket: BucketId, name: &str) -> Result<Subscribed, StoreError> {
        Self::subscription(self, bucket, name)
    }

    async fn subscriptions(
        &self,
        of: Option<BucketId>,
    ) -> Result<Vec<NamedSubscription>, StoreError> {
        Self::subscriptions(self, of)
    }

    async fn put_subscription(
        &self,
        bucket: BucketId,
        name: &str,
        before: &Subscribed,
        after: Option<&Subscription>,
    ) -> Result<bool, StoreError> {
        Self::put_subscription(self, bucket, name, before, after).await
    }

    async fn remove_finished(
        &self,
        bucket: BucketId,
        found: Vec<Found>,
        ended_by: Timestamp,
        part: Part,
        max_bytes: usize,
    ) -> Result<Swept, StoreError> {
        Self::remove_finished(self, bucket, found, ended_by, part, max_bytes).await
    }

    async fn remove_receipted(
        &self,
        buckets: Vec<BucketId>,
        received_by: Timestamp,
        part: Part,
        most: (usize, usize),
    ) -> Result<(u64, usize), StoreError> {
        Self::remove_receipted_of(self, buckets, received_by, part, most).await
    }

    async fn give_back(&self, effort: Effort) -> Result<bool, StoreError> {
        Self::give_back(self, effort).await
    }
}

#[async_trait]
impl QueueView for RedbStore {
    fn applied(&self) -> watch::Receiver<Offset> {
        // Both are one file, and written in one transaction.
        Self::commits(self)
    }

    async fn due_destinations(
        &self,
        until: Timestamp,
        after: Option<DueCursor>,
        max: usize,
        now: Timestamp,
    ) -> Result<DuePage, StoreError> {
        Self::due_destinations(self, until, after, max, now)
    }

    async fn queue(
        &self,
        destination: DestinationId,
        query: &QueueQuery,
    ) -> Result<QueuePage, StoreError> {
        let read = Self::queue(self, destination, query)?;
        if !read.strays.is_empty() {
            let (store, strays) = (Self::clone(self), read.strays);
            // Where that fails, the next read finds them again.
            tokio::spawn(async move { store.remove_strays(strays).await });
        }
        Ok(read.page)
    }

    async fn deliveries_of(&self, bucket: BucketId, seq: Seq) -> Result<Vec<Delivery>, StoreError> {
        Self::deliveries_of(self, bucket, seq)
    }

    async fn deliveries_after(
        &self,
        bucket: BucketId,
        after: Seq,
        max: usize,
    ) -> Result<Deliveries, StoreError> {
        Self::deliveries_after(self, bucket, after, max)
    }

    async fn deliveries_of_all(
        &self,
        bucket: BucketId,
        places: &[Seq],
    ) -> Result<Deliveries, StoreError> {
        Self::deliveries_of_all(self, bucket, places)
    }

    async fn counts(&self, destination: DestinationId) -> Result<StateCounts, StoreError> {
        Self::counts(self, destination)
    }

    async fn search(
        &self,
        search: &Search,
        begin: Begin,
        after: Option<EventId>,
        max: usize,
    ) -> Result<Vec<Found>, StoreError> {
        Self::search(self, search, begin, after, max)
    }

    async fn oldest_waiting(&self, bucket: BucketId) -> Result<Option<Timestamp>, StoreError> {
        Self::oldest_waiting(self, bucket)
    }

    async fn quarantined(&self) -> Result<Vec<(BucketId, Seq)>, StoreError> {
        Self::quarantined(self)
    }

    async fn last_attempt(&self) -> Result<u64, StoreError> {
        Self::last_attempt(self)
    }

    async fn attempts_after(
        &self,
        after: u64,
        max: usize,
    ) -> Result<Vec<LoggedAttempt>, StoreError> {
        Self::attempts_after(self, after, max)
    }

    async fn attempts_by_start(
        &self,
        states: &[State],
        bounds: (Timestamp, Timestamp),
        after: Option<(Timestamp, u64)>,
        max: usize,
    ) -> Result<Vec<LoggedAttempt>, StoreError> {
        Self::attempts_by_start(self, states, bounds, after, max)
    }

    async fn attempts_of(
        &self,
        key: DeliveryKey,
        max: usize,
    ) -> Result<Vec<LoggedAttempt>, StoreError> {
        Self::attempts_of(self, key, max)
    }

    async fn last_attempts(
        &self,
        all: &[Option<u64>],
        each: &mut (dyn for<'a> FnMut(usize, Option<LastAttempt<'a>>) + Send),
    ) -> Result<(), StoreError> {
        Self::last_attempts(self, all, |index, last| each(index, last))
    }

    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn bucket_size(&self, bucket: BucketId) -> u64 {
        Self::bucket_size(self, bucket)
    }

    async fn held(&self) -> Result<Held, StoreError> {
        Self::held(self)
    }

    async fn removals(&self, bucket: BucketId) -> Result<Removals, StoreError> {
        Self::removals(self, bucket)
    }

    async fn oldest_receipted(
        &self,
        buckets: &[BucketId],
        part: Part,
        by: Timestamp,
    ) -> Result<Vec<(Timestamp, BucketId)>, StoreError> {
        Self::oldest_receipted(self, buckets, part, by)
    }

    async fn audit(&self, from: Audit, max: usize) -> Result<Audited, StoreError> {
        let store = self.clone();
        let looked = tokio::task::spawn_blocking(move || store.audit(from, max));
        let broken = |error: JoinError| Err(StoreError::Broken(error.to_string().into()));
        looked.await.unwrap_or_else(broken)
    }

    async fn rebuild(&self) -> Result<u64, StoreError> {
        Self::restore_indexes(self).await
    }
}

#[async_trait]
impl Catalog for RedbStore {
    async fn ensure_bucket(
        &self,
        name: &BucketName,
        key: BucketKey,
    ) -> Result<(Bucket, bool), StoreError> {
        Self::ensure_bucket(self, name, key).await
    }

    async fn buckets(&self) -> Result<Vec<Bucket>, StoreError> {
        Self::buckets(self)
    }

    async fn destinations(&self) -> Result<Vec<Destination>, StoreError> {
        Self::destinations(self)
    }

    async fn destination(&self, id: DestinationId) -> Result<Option<Destination>, StoreError> {
        Self::destination(self, id)
    }

    async fn add_destination(&self, new: NewDestination) -> Result<Destination, StoreError> {
        Self::add_destination(self, new).await
    }

    async fn replace_destination(
        &self,
        before: &Destination,
        after: &Destination,
    ) -> Result<bool, StoreError> {
        Self::replace_destination(self, before, after).await
    }

    async fn forget_destinations(&self) -> Result<(), StoreError> {
        Self::forget_destinations(self).await
    }

    async fn set_token(&self, token: &Token) -> Result<(), StoreError> {
        Self::set_token(self, token).await
    }

    async fn token(&self, id: &str) -> Result<Option<TokenDigest>, StoreError> {
        Self::token(self, id)
    }

    async fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        Self::note(self, name)
    }

    async fn set_note(&self, name: &str, value: &str) -> Result<(), StoreError> {
        Self::set_note(self, name, value).await
    }

    async fn incidents(&self) -> Result<Vec<Incident>, StoreError> {
        Self::incidents(self)
    }

    async fn add_incident(&self, incident: Incident) -> Result<(), StoreError> {
        Self::add_incident(self, incident).await
    }
}
