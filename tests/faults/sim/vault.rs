//! What a node keeps through a crash: the model by which the world judges, or the real store on a
//! disk that lies. It must not know who writes, nor why.

use std::time::Duration;

use super::planted::Bug;
use whrelay_core::bucket::{Bucket, BucketId, BucketName, Seq};
use whrelay_core::delivery::{Attempt, Delivery, DeliveryKey, DestinationId};
use whrelay_core::destination::EndpointState;
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::queue::{DueCursor, DuePage, QueuePage, QueueQuery};
use whrelay_core::retention::Part;
use whrelay_core::subscription::{Join, Joined, LeaseEpoch};
use whrelay_core::time::Timestamp;
use whrelay_store::{
    Again, Batch, Begin, Changed, Found, NewEvent, Receipt, Search, Source, SourceMark, StateCounts,
};

/// A write, as the store's own functions take them.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    Append {
        bucket: BucketId,
        events: Vec<NewEvent>,
        mark: Option<SourceMark>,
    },
    Ack {
        bucket: BucketId,
        subscription: String,
        upto: Seq,
        lease: LeaseEpoch,
    },
    Join {
        bucket: BucketId,
        join: Box<Join>,
    },
    Record(Box<Attempt>),
    /// An endpoint was lost, or came back.
    Endpoint {
        destination: DestinationId,
        endpoint: EndpointState,
        back_since: Option<Timestamp>,
    },
    RetryNow(Vec<DeliveryKey>),
    /// An event could not be read: its delivery is due so much later.
    Postpone {
        key: DeliveryKey,
        now: Timestamp,
        delay: Duration,
    },
    Again(Again),
    GiveUp(Box<Attempt>),
    Remove {
        bucket: BucketId,
        found: Vec<Found>,
        by: Timestamp,
        part: Part,
    },
    RemoveReceipted {
        bucket: BucketId,
        by: Timestamp,
        part: Part,
        max: usize,
    },
}

/// What a committed write answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Appended(Vec<Receipt>),
    Acked,
    Joined(Option<Box<Joined>>),
    Recorded,
    /// Nobody knows whether it is on disk.
    Unknown,
    Noted,
    /// Those that wait and are due now.
    Hurried(Vec<DeliveryKey>),
    /// Nothing where the event, or its body, is gone.
    Again(Option<Box<Delivery>>),
    GaveUp(bool),
    Removed(u64),
}

/// The power went while a write was on its way: nobody knows whether it is on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PowerCut;

/// Durable state. Reads see what is committed, and only that.
pub(crate) trait Vault {
    /// An empty one. `name` is the store's own.
    fn birth(name: u128) -> Self;
    /// Switches a planted bug on, where it is one of the store's.
    fn plant(&mut self, bug: Option<Bug>);
    /// Comes back after the process or the power went. What was answered is there.
    fn reopen(&mut self);
    /// A copy of the directory as it is now.
    fn copy(&self) -> Self;
    fn name(&self) -> String;
    /// How often it was opened.
    fn opens(&self) -> u64;
    fn ensure_bucket(&mut self, name: &BucketName) -> Bucket;
    fn ensure_destination(&mut self, bucket: BucketId, target: &str) -> DestinationId;
    /// Carries writes out, in order, in as few commits as it likes. Once it returns they are on
    /// disk.
    fn commit(&mut self, writes: Vec<Write>) -> Result<Vec<Done>, PowerCut>;

    fn read_after(&self, bucket: &Bucket, after: Seq, events: usize, bytes: usize) -> Batch;
    fn last_seq(&self, bucket: BucketId) -> Seq;
    fn bare_upto(&self, bucket: BucketId) -> Seq;
    fn acked(&self, bucket: BucketId, subscription: &str) -> Seq;
    fn knows(&self, bucket: BucketId, subscription: &str) -> bool;
    /// When an agent joined the subscription last: no two joins are alike.
    fn seen_at(&self, bucket: BucketId, subscription: &str) -> Option<Timestamp>;
    fn source(&self, bucket: BucketId) -> Option<Source>;
    fn find(&self, event: EventId) -> Option<(BucketId, Seq)>;
    fn event_at(&self, bucket: &Bucket, seq: Seq) -> Option<Event>;
    fn queue(&self, destination: DestinationId, query: &QueueQuery) -> QueuePage;
    fn due_destinations(
        &self,
        until: Timestamp,
        after: Option<DueCursor>,
        max: usize,
        now: Timestamp,
    ) -> DuePage;
    /// What commits have changed in queues since this was asked last.
    fn changed(&mut self) -> Changed;
    /// The stored state of an endpoint, and when it was last seen to return.
    fn endpoint(&self, destination: DestinationId) -> (EndpointState, Option<Timestamp>);
    fn search(
        &self,
        search: &Search,
        begin: Begin,
        after: Option<EventId>,
        max: usize,
    ) -> Vec<Found>;
    fn delivery(&self, key: DeliveryKey) -> Option<Delivery>;
    fn deliveries_of(&self, bucket: BucketId, seq: Seq) -> Vec<Delivery>;
    fn counts(&self, destination: DestinationId) -> StateCounts;
}
