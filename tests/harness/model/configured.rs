//! What is configured.

use std::collections::BTreeSet;

use async_trait::async_trait;
use whrelay_core::bucket::{Bucket, BucketId, BucketKey, BucketName};
use whrelay_core::delivery::DestinationId;
use whrelay_core::destination::{Destination, EndpointState};
use whrelay_core::limits;
use whrelay_core::token::{Token, TokenDigest};
use whrelay_store::{Catalog, Incident, NewDestination, StoreError};

use super::Model;

#[async_trait]
impl Catalog for Model {
    async fn ensure_bucket(
        &self,
        name: &BucketName,
        key: BucketKey,
    ) -> Result<(Bucket, bool), StoreError> {
        Ok(self.write(|state| {
            if let Some(known) = state.buckets.iter().find(|bucket| bucket.name == *name) {
                return (known.clone(), false);
            }
            let bucket = Bucket {
                id: BucketId(state.buckets.len() as u32 + 1),
                name: name.clone(),
                key,
            };
            state.buckets.push(bucket.clone());
            (bucket, true)
        }))
    }

    async fn buckets(&self) -> Result<Vec<Bucket>, StoreError> {
        Ok(self.state().buckets.clone())
    }

    async fn destinations(&self) -> Result<Vec<Destination>, StoreError> {
        Ok(self.state().destinations.values().cloned().collect())
    }

    async fn destination(&self, id: DestinationId) -> Result<Option<Destination>, StoreError> {
        Ok(self.state().destinations.get(&id).cloned())
    }

    async fn add_destination(&self, new: NewDestination) -> Result<Destination, StoreError> {
        self.try_write(|state| {
            let last = state.destinations.keys().next_back();
            let destination = Destination {
                id: DestinationId(last.map_or(1, |last| last.0 + 1)),
                bucket: new.bucket,
                kind: new.kind,
                target: new.target,
                options: new.options,
                paused_at: None,
                endpoint: EndpointState::Online,
                offline_since: None,
                back_since: None,
            };
            let id = destination.id;
            state.destinations.insert(id, destination.clone());
            destination
        })
    }

    async fn replace_destination(
        &self,
        before: &Destination,
        after: &Destination,
    ) -> Result<bool, StoreError> {
        self.try_write(|state| {
            let stored = state.destinations.get_mut(&before.id);
            let Some(stored) = stored.filter(|stored| *stored == before || *stored == after) else {
                return false;
            };
            stored.clone_from(after);
            true
        })
    }

    async fn forget_destinations(&self) -> Result<(), StoreError> {
        self.try_write(|state| {
            let kept: BTreeSet<_> = state.deliveries.values().map(|d| d.destination).collect();
            let stays = |id: &DestinationId, known: &mut Destination| {
                known.name().is_some() || kept.contains(id)
            };
            state.destinations.retain(stays);
        })
    }

    async fn set_token(&self, token: &Token) -> Result<(), StoreError> {
        self.try_write(|state| {
            state.tokens = [(token.id().to_owned(), token.digest())].into();
        })
    }

    async fn token(&self, id: &str) -> Result<Option<TokenDigest>, StoreError> {
        Ok(self.state().tokens.get(id).cloned())
    }

    async fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        Ok(self.state().notes.get(name).cloned())
    }

    async fn set_note(&self, name: &str, value: &str) -> Result<(), StoreError> {
        self.try_write(|state| {
            state.notes.insert(name.to_owned(), value.to_owned());
        })
    }

    async fn incidents(&self) -> Result<Vec<Incident>, StoreError> {
        Ok(self.state().incidents.clone())
    }

    async fn add_incident(&self, incident: Incident) -> Result<(), StoreError> {
        self.try_write(|state| {
            let same =
                |known: &Incident| (&known.kind, &known.text) != (&incident.kind, &incident.text);
            state.incidents.retain(same);
            state.incidents.push(incident);
            let over = state.incidents.len().saturating_sub(limits::INCIDENTS);
            state.incidents.drain(..over);
        })
    }
}
