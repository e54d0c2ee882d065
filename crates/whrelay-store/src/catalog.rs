//! The catalog: what people configure, and what they are told. It must not know events.

use async_trait::async_trait;
use whrelay_core::bucket::{Bucket, BucketKey, BucketName};
use whrelay_core::delivery::DestinationId;
use whrelay_core::destination::Destination;
use whrelay_core::token::{Token, TokenDigest};

use crate::destinations::NewDestination;
use crate::error::StoreError;
use crate::incidents::Incident;

/// What is configured. A write is on disk when it is answered.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// A bucket of this name; a new one gets this key. Says whether it is new.
    async fn ensure_bucket(
        &self,
        name: &BucketName,
        key: BucketKey,
    ) -> Result<(Bucket, bool), StoreError>;
    /// All buckets.
    async fn buckets(&self) -> Result<Vec<Bucket>, StoreError>;

    /// All destinations, in order of their numbers. One whose row is damaged is named `damaged-NUMBER` while deliveries are
    /// queued for it, and left out otherwise.
    async fn destinations(&self) -> Result<Vec<Destination>, StoreError>;
    /// The destination of this number.
    async fn destination(&self, id: DestinationId) -> Result<Option<Destination>, StoreError>;
    /// Adds a destination.
    async fn add_destination(&self, new: NewDestination) -> Result<Destination, StoreError>;
    /// Replaces a destination that is stored as `before` with `after`. False if it is stored otherwise by now, or gone:
    /// then it is to be read again.
    async fn replace_destination(
        &self,
        before: &Destination,
        after: &Destination,
    ) -> Result<bool, StoreError>;
    /// Drops one-off and removed destinations of which no delivery is kept.
    async fn forget_destinations(&self) -> Result<(), StoreError>;

    /// Lets the owner of a token in.
    async fn set_token(&self, token: &Token) -> Result<(), StoreError>;
    /// The digest of a token, by its id.
    async fn token(&self, id: &str) -> Result<Option<TokenDigest>, StoreError>;

    /// A note of the process that uses the store.
    async fn note(&self, name: &str) -> Result<Option<String>, StoreError>;
    /// Keeps a note.
    async fn set_note(&self, name: &str, value: &str) -> Result<(), StoreError>;

    /// What has happened to the directory that its owner should know of, oldest first.
    async fn incidents(&self) -> Result<Vec<Incident>, StoreError>;
    /// Keeps an incident.
    async fn add_incident(&self, incident: Incident) -> Result<(), StoreError>;
}

impl dyn Catalog {
    /// Changes a destination, however often others change it meanwhile. `None` if no destination has this number.
    ///
    /// # Errors
    /// When the change is not on disk.
    pub async fn change_destination(
        &self,
        id: DestinationId,
        change: impl Fn(&mut Destination),
    ) -> Result<Option<Destination>, StoreError> {
        loop {
            let Some(before) = self.destination(id).await? else {
                return Ok(None);
            };
            let mut after = before.clone();
            change(&mut after);
            if after == before || self.replace_destination(&before, &after).await? {
                return Ok(Some(after));
            }
        }
    }
}
