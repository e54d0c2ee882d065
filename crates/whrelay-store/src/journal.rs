//! The journal: the only writer of events, deliveries and subscriptions. It must not know what is computed from it.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use whrelay_core::bucket::{Bucket, BucketId, Seq};
use whrelay_core::delivery::{Attempt, Delivery, DeliveryKey, DestinationId};
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::queue::Offset;
use whrelay_core::retention::{Bound, Part};
use whrelay_core::subscription::Subscription;
use whrelay_core::time::Timestamp;

use crate::changes::Changes;
use crate::deliveries::Again;
use crate::destinations::Moved;
use crate::error::StoreError;
use crate::events::{Batch, NewEvent, Receipt};
use crate::meta::Epoch;
use crate::retention::Swept;
use crate::signatures::SignatureClaim;
use crate::sources::{Source, SourceMark};
use crate::states::Found;
use crate::subscriptions::{NamedSubscription, Numbers, Subscribed};
use crate::writer::Effort;

/// What is written, and is the truth.
///
/// `Ok` means: on disk. An error for which [`StoreError::is_retryable`] is true means that nobody knows: the same call is
/// made again, and what it wrote before counts once. Numbers of a bucket grow; there may be gaps between them.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Which opening of which store this is.
    fn epoch(&self) -> &Epoch;
    /// How much events, deliveries and attempts may take before nothing new is received.
    fn bound(&self) -> Option<Bound>;
    /// The position of the newest write.
    fn appended(&self) -> watch::Receiver<Offset>;
    /// What changes in the queues of destinations from now on. The view shows it once it has applied the write.
    fn changes(&self) -> Changes;
    /// Waits until the journal has stopped for good, and says why: then the process must stop, too.
    async fn stopped(&self) -> StoreError;
    /// Finishes the writes that were asked for and lets go of the medium.
    async fn close(&self);

    /// Stores events, in order, with their deliveries and, at an agent, the place that they reach at its forwarder: all of
    /// it or nothing. An event whose id is known is left as it is.
    async fn receive(
        &self,
        bucket: BucketId,
        events: Vec<NewEvent>,
        mark: Option<SourceMark>,
    ) -> Result<Vec<Receipt>, StoreError>;
    /// Why a bucket receives nothing new: its bound or its share of it is reached.
    fn over_bound(&self, bucket: BucketId) -> Option<StoreError>;
    /// The buckets that receive nothing until the store is salvaged, since their last number is damaged, and what is.
    async fn refusing(&self, buckets: &[BucketId]) -> Result<Vec<(BucketId, String)>, StoreError>;
    /// Events after a number, in order: at least one if there is one, up to `max_events`, and no further one that would
    /// take them over `max_bytes`. Damaged ones are named.
    async fn read_after(
        &self,
        bucket: &Bucket,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Batch, StoreError>;
    /// The event of a number. `None` if there never was one, or retention has removed it.
    async fn event_at(&self, bucket: &Bucket, seq: Seq) -> Result<Option<Event>, StoreError>;
    /// The same without its body, and whether that is there.
    async fn head_at(&self, bucket: &Bucket, seq: Seq)
    -> Result<Option<(Event, bool)>, StoreError>;
    /// The ids of the events with these numbers. `None` for an event that nobody can name any more: it was removed, or is
    /// damaged.
    async fn ids_at(
        &self,
        bucket: BucketId,
        numbers: &[Seq],
    ) -> Result<Vec<Option<EventId>>, StoreError>;
    /// How many events have numbers behind `after` and up to `through`, of those that can still be sent.
    async fn count(&self, bucket: BucketId, after: Seq, through: Seq) -> Result<u64, StoreError>;
    /// The numbers of a bucket.
    async fn numbers(&self, bucket: BucketId) -> Result<Numbers, StoreError>;

    /// Where an event is. `None` if it is unknown, or retention has removed it.
    async fn find_event(&self, id: EventId) -> Result<Option<(BucketId, Seq)>, StoreError>;
    /// A delivery, also if the view does not show it yet.
    async fn delivery(&self, key: DeliveryKey) -> Result<Option<Delivery>, StoreError>;
    /// How far an agent has come at its forwarder.
    async fn source(&self, bucket: BucketId) -> Result<Option<Source>, StoreError>;
    /// Whether the signature is the event's. `None` if no event has claimed it.
    async fn has_signature(&self, claim: &SignatureClaim) -> Result<Option<bool>, StoreError>;
    /// Records an attempt and what follows from it, and claims the signature that it carried. A delivery that has ended
    /// meanwhile stays as it is. One that was discarded while this attempt was under way, and has arrived, is sent.
    async fn attempted(
        &self,
        attempt: Attempt,
        claim: Option<SignatureClaim>,
    ) -> Result<(), StoreError>;
    /// Claims a signature for an event. Returns false if another event has it.
    async fn claim_signature(&self, claim: SignatureClaim) -> Result<bool, StoreError>;
    /// Begins further deliveries of stored events, except of those whose bodies retention has removed.
    async fn replay(&self, all: Vec<Again>) -> Result<Vec<Delivery>, StoreError>;
    /// Ends deliveries that wait, as these attempts say. Answers which did wait.
    async fn give_up(&self, attempts: Vec<Attempt>) -> Result<Vec<DeliveryKey>, StoreError>;
    /// Lets a delivery that waits be due so much later than `now`, without an attempt.
    async fn postpone(
        &self,
        key: DeliveryKey,
        now: Timestamp,
        delay: Duration,
    ) -> Result<(), StoreError>;
    /// Lets deliveries that wait be due now. Answers which did wait.
    async fn retry_now(&self, keys: Vec<DeliveryKey>) -> Result<Vec<DeliveryKey>, StoreError>;
    /// Gives the deliveries that are queued for a destination to another one. Where an event has arrived there, or is queued
    /// for it, its delivery is discarded instead.
    async fn move_deliveries(
        &self,
        from: DestinationId,
        to: DestinationId,
        now: Timestamp,
    ) -> Result<Moved, StoreError>;
    /// Sets what is damaged apart: all deliveries of an event whose own record is, else only the delivery.
    async fn quarantine(
        &self,
        bucket: &Bucket,
        key: DeliveryKey,
        now: Timestamp,
    ) -> Result<(), StoreError>;
    /// Puts an event back in its place, where its record is damaged or gone.
    async fn restore_event(
        &self,
        bucket: &Bucket,
        seq: Seq,
        event: Event,
    ) -> Result<(), StoreError>;

    /// What is stored of a subscription.
    async fn subscription(&self, bucket: BucketId, name: &str) -> Result<Subscribed, StoreError>;
    /// The subscriptions of a bucket, or of all, by bucket and name.
    async fn subscriptions(
        &self,
        of: Option<BucketId>,
    ) -> Result<Vec<NamedSubscription>, StoreError>;
    /// Stores a subscription, or removes it, if `before` is what is stored of it. Answers whether `after` is stored.
    async fn put_subscription(
        &self,
        bucket: BucketId,
        name: &str,
        before: &Subscribed,
        after: Option<&Subscription>,
    ) -> Result<bool, StoreError>;

    /// Removes, of these events, those whose deliveries have all ended by then.
    async fn remove_finished(
        &self,
        bucket: BucketId,
        found: Vec<Found>,
        ended_by: Timestamp,
        part: Part,
        max_bytes: usize,
    ) -> Result<Swept, StoreError>;
    /// Removes the oldest events of buckets that every subscription has acknowledged. Answers how many, and to how many of
    /// the buckets it came.
    async fn remove_receipted(
        &self,
        buckets: Vec<BucketId>,
        received_by: Timestamp,
        part: Part,
        most: (usize, usize),
    ) -> Result<(u64, usize), StoreError>;
    /// Gives free space back to the file system. Answers whether it did.
    async fn give_back(&self, effort: Effort) -> Result<bool, StoreError>;
}
