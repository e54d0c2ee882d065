//! Which buckets there are, in memory, so that no request reads the disk to find its bucket. It
//! must not create one: the store does.

use std::collections::HashMap;
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
    by_name: HashMap<BucketName, Arc<Bucket>>,
}

impl Registry {
    pub(crate) fn load(store: &Store) -> Result<Self, StoreError> {
        let registry = Self {
            maps: RwLock::default(),
        };
        store
            .buckets()?
            .into_iter()
            .for_each(|bucket| registry.add(bucket));
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

    pub(crate) fn all(&self) -> Vec<Arc<Bucket>> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = maps.by_name.values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}
