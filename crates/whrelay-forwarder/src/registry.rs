//! Which buckets there are, in memory, so that no request reads the disk to find its bucket. It
//! must not create one: the store does.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use whrelay_core::bucket::{Bucket, BucketId, BucketName};
use whrelay_store::{Store, StoreError};

/// The buckets by key and by name.
#[derive(Debug)]
pub(crate) struct Registry {
    maps: RwLock<Maps>,
}

#[derive(Debug, Default)]
struct Maps {
    /// Keys are hashed with a secret seed, so a look-up's time says nothing about a guess.
    by_key: HashMap<String, Arc<Bucket>>,
    by_name: BTreeMap<BucketName, Arc<Bucket>>,
}

impl Registry {
    pub(crate) async fn load(store: &Store) -> Result<Self, StoreError> {
        let registry = Self {
            maps: RwLock::default(),
        };
        for bucket in store.catalog.buckets().await? {
            registry.add(bucket);
        }
        Ok(registry)
    }

    pub(crate) fn add(&self, bucket: Bucket) {
        let bucket = Arc::new(bucket);
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.by_key
            .insert(bucket.key.expose().to_owned(), Arc::clone(&bucket));
        maps.by_name.insert(bucket.name.clone(), bucket);
    }

    pub(crate) fn by_key(&self, key: &str) -> Option<Arc<Bucket>> {
        self.maps
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_key
            .get(key)
            .cloned()
    }

    pub(crate) fn by_name(&self, name: &BucketName) -> Option<Arc<Bucket>> {
        self.maps
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_name
            .get(name)
            .cloned()
    }

    pub(crate) fn by_id(&self, id: BucketId) -> Option<Arc<Bucket>> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.by_name
            .values()
            .find(|bucket| bucket.id == id)
            .cloned()
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Bucket>> {
        self.after(None, usize::MAX)
    }

    /// Up to `max` by name, those behind a name where one is given.
    pub(crate) fn after(&self, name: Option<&BucketName>, max: usize) -> Vec<Arc<Bucket>> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let first = name.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = maps
            .by_name
            .range::<BucketName, _>((first, Bound::Unbounded));
        behind
            .take(max)
            .map(|(_, bucket)| Arc::clone(bucket))
            .collect()
    }
}
