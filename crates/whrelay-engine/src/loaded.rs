//! The deliveries of one destination that were read from the view and wait in memory.

use std::collections::BTreeMap;

use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::DeliveryKey;
use whrelay_core::order::Order;
use whrelay_core::queue::{DueBy, QueueKind, Waiting};
use whrelay_core::time::Timestamp;

/// Oldest due first, then oldest created, then by key.
type Rank = (Timestamp, Timestamp, DeliveryKey);

/// Buckets whose order waits for a delivery, with the number of such deliveries.
pub(crate) type Busy = BTreeMap<BucketId, u32>;

/// The loaded deliveries of one destination.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// Those that start in the order of their keys, each after the one before it has ended.
    ordered: BTreeMap<DeliveryKey, Waiting>,
    /// The others, as they start.
    ranked: BTreeMap<Rank, Waiting>,
    ranks: BTreeMap<DeliveryKey, Rank>,
    /// No deadline is earlier.
    deadline_at: Timestamp,
}

impl Default for Loaded {
    fn default() -> Self {
        Self {
            ordered: BTreeMap::new(),
            ranked: BTreeMap::new(),
            ranks: BTreeMap::new(),
            deadline_at: Timestamp::LAST,
        }
    }
}

impl Loaded {
    pub(crate) fn len(&self) -> usize {
        self.ordered.len() + self.ranked.len()
    }

    pub(crate) fn has(&self, key: DeliveryKey) -> bool {
        self.ranks.contains_key(&key) || self.ordered.contains_key(&key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// No deadline in here is earlier than this.
    pub(crate) fn deadline_at(&self) -> Option<Timestamp> {
        (!self.is_empty()).then_some(self.deadline_at)
    }

    pub(crate) fn insert(&mut self, waiting: Waiting, order: Order, by: &DueBy) {
        self.remove(waiting.key);
        self.deadline_at = self.deadline_at.min(waiting.deadline_at);
        match (order, waiting.kind) {
            (Order::Fifo, QueueKind::Normal) => {
                self.ordered.insert(waiting.key, waiting);
            }
            (Order::Arrival, _) | (Order::Fifo, QueueKind::Replay) => {
                let rank = rank(&waiting, by);
                self.ranked.insert(rank, waiting);
                self.ranks.insert(waiting.key, rank);
            }
        }
    }

    pub(crate) fn remove(&mut self, key: DeliveryKey) -> Option<Waiting> {
        let rank = self.ranks.remove(&key);
        let ranked = rank.and_then(|rank| self.ranked.remove(&rank));
        ranked.or_else(|| self.ordered.remove(&key))
    }

    /// Removes those whose deadline has passed.
    pub(crate) fn take_expired(&mut self, certain: Timestamp) -> Vec<Waiting> {
        if self.deadline_at >= certain {
            return Vec::new();
        }
        let all = self.ordered.values().chain(self.ranked.values());
        let expired: Vec<Waiting> = all.filter(|row| row.is_expired(certain)).copied().collect();
        for row in &expired {
            self.remove(row.key);
        }
        let left = self.ordered.values().chain(self.ranked.values());
        let earliest = left.map(|row| row.deadline_at).min();
        self.deadline_at = earliest.unwrap_or(Timestamp::LAST);
        expired
    }

    /// Removes those that would start after `first`, unless their deadline has passed.
    pub(crate) fn take_behind(
        &mut self,
        first: &Waiting,
        certain: Timestamp,
        by: &DueBy,
    ) -> Vec<Waiting> {
        let behind = self.ranked.range(rank(first, by)..).map(|(_, row)| *row);
        let behind: Vec<Waiting> = behind.filter(|row| !row.is_expired(certain)).collect();
        for row in &behind {
            self.remove(row.key);
        }
        behind
    }

    /// The one that starts next, if it is due.
    pub(crate) fn first_due(&self, by: &DueBy, busy: &Busy) -> Option<Waiting> {
        let ranked = self.ranked.values().find(|row| row.is_due(by));
        let ordered = self.firsts(busy).filter(|row| row.is_due(by));
        let all = ordered.chain(ranked);
        all.min_by_key(|row| rank(row, by)).copied()
    }

    /// Removes those that are new.
    pub(crate) fn take_new(&mut self) -> Vec<Waiting> {
        let new = self.ranked.values().filter(|row| row.is_new());
        let new: Vec<Waiting> = new.copied().collect();
        for row in &new {
            self.remove(row.key);
        }
        new
    }

    /// The first of those that are new, if it is due.
    pub(crate) fn first_new(&self, by: &DueBy) -> Option<Waiting> {
        let mut new = self.ranked.values().filter(|row| row.is_new());
        new.find(|row| row.is_due(by)).copied()
    }

    /// When the next one that may start is due, past or future.
    pub(crate) fn next_due_at(&self, by: &DueBy, busy: &Busy) -> Option<Timestamp> {
        let all = self.firsts(busy).chain(self.ranked.values());
        all.map(|row| row.due_at(by.back_since, by.now)).min()
    }

    /// Forgets all. Answers when the first of them is due and the earliest deadline.
    pub(crate) fn clear(&mut self, by: &DueBy, busy: &Busy) -> Option<(Timestamp, Timestamp)> {
        let deadline_at = self.deadline_at()?;
        let due_at = self.next_due_at(by, busy).unwrap_or(by.now);
        *self = Self::default();
        Some((due_at, deadline_at))
    }

    /// Whether a delivery of this bucket is here that starts in order.
    pub(crate) fn has_ordered(&self, bucket: BucketId) -> bool {
        let first = self.ordered.range(first_key(bucket)..).next();
        first.is_some_and(|(key, _)| key.bucket == bucket)
    }

    /// The first of each bucket in order, unless its bucket is busy.
    fn firsts<'a>(&'a self, busy: &'a Busy) -> impl Iterator<Item = &'a Waiting> {
        let mut next = self.ordered.first_key_value().map(|(_, row)| row);
        let firsts = std::iter::from_fn(move || {
            let first = next?;
            let bucket = first.key.bucket.0.checked_add(1).map(BucketId);
            next = bucket.and_then(|bucket| {
                self.ordered
                    .range(first_key(bucket)..)
                    .next()
                    .map(|(_, row)| row)
            });
            Some(first)
        });
        firsts.filter(|row| !busy.contains_key(&row.key.bucket))
    }
}

fn first_key(bucket: BucketId) -> DeliveryKey {
    DeliveryKey {
        bucket,
        seq: Seq(0),
        ordinal: 0,
    }
}

fn rank(row: &Waiting, by: &DueBy) -> Rank {
    (row.due_at(by.back_since, by.now), row.created_at, row.key)
}
