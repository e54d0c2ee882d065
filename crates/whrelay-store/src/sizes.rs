//! How many bytes each bucket takes, in memory, so that the writer can refuse before it writes. It must not
//! decide what becomes of what is refused.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use redb::ReadableTable;
use whrelay_core::bucket::BucketId;
use whrelay_core::retention::Bound;

use crate::error::StoreError;
use crate::record::Seal;
use crate::tables::{SIZE, sized_bucket};
use crate::tx::sequence;

/// Bytes of events, deliveries and attempts, by bucket.
#[derive(Debug, Default)]
pub(crate) struct Sizes(RwLock<Inner>);

#[derive(Debug, Default)]
struct Inner {
    total: u64,
    buckets: HashMap<BucketId, u64>,
}

/// What a group of writes takes in that is not stored yet.
#[derive(Debug, Default)]
pub(crate) struct Coming {
    total: u64,
    buckets: HashMap<BucketId, u64>,
}

impl Coming {
    fn of(&self, bucket: BucketId) -> u64 {
        self.buckets.get(&bucket).copied().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, bucket: BucketId, bytes: usize) {
        self.total += bytes as u64;
        *self.buckets.entry(bucket).or_default() += bytes as u64;
    }
}

impl Sizes {
    /// As they were stored. Nothing rests on them, so that one which is damaged counts as nothing.
    pub(crate) fn read(
        seal: Seal,
        table: &impl ReadableTable<u32, (u64, u64)>,
    ) -> Result<Self, StoreError> {
        let mut buckets = HashMap::new();
        for entry in table.iter()? {
            let key = entry?.0.value();
            if let (Some(bucket), Ok(size)) = (sized_bucket(key), sequence(seal, table, key)) {
                buckets.insert(bucket, size);
            }
        }
        let total = sequence(seal, table, SIZE).unwrap_or_else(|_| buckets.values().sum());
        Ok(Self(RwLock::new(Inner { total, buckets })))
    }

    /// Of a store of which only the file's size is known.
    pub(crate) fn unknown(total: u64) -> Self {
        let buckets = HashMap::new();
        Self(RwLock::new(Inner { total, buckets }))
    }

    fn inner(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of all buckets.
    pub(crate) fn total(&self) -> u64 {
        self.inner().total
    }

    /// Of a bucket.
    pub(crate) fn of(&self, bucket: BucketId) -> u64 {
        self.inner().buckets.get(&bucket).copied().unwrap_or(0)
    }

    /// Why a bucket does not take in so many bytes, where the bound or its share of it is reached.
    pub(crate) fn refusal(
        &self,
        bound: Option<Bound>,
        bucket: BucketId,
        coming: &Coming,
        bytes: usize,
    ) -> Option<StoreError> {
        let bound = bound?;
        let (total, own) = (
            self.total() + coming.total,
            self.of(bucket) + coming.of(bucket),
        );
        if bound.takes_in(total, own, bytes as u64) {
            return None;
        }
        Some(match bound.shared {
            true => StoreError::Share,
            false => StoreError::Bound,
        })
    }

    /// These buckets have these sizes now.
    pub(crate) fn set(&self, changed: &[(BucketId, u64)]) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (bucket, size) in changed {
            let before = inner.buckets.insert(*bucket, *size).unwrap_or(0);
            inner.total = inner.total.saturating_sub(before).saturating_add(*size);
        }
    }

    /// All of them are as another says.
    pub(crate) fn replace(&self, other: Self) {
        let other = other.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = other;
    }
}
