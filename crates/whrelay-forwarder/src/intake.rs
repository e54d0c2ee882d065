//! Whether the store takes new events, by what became of the last ones. It must not write anything while the
//! store works.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::{Instant, timeout};
use whrelay_core::bucket::BucketId;
use whrelay_core::limits;
use whrelay_store::StoreError;

use crate::Shared;

const SLOW: &str = "the disk is too slow";

/// What became of the last events.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    /// Whether the last event of every bucket was stored.
    sound: AtomicBool,
    troubles: Mutex<Troubles>,
    /// Only one asks the store at a time.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Troubles {
    store: Option<String>,
    buckets: HashMap<BucketId, String>,
    /// When the store last said something.
    told: Option<Instant>,
}

impl Intake {
    /// Notes what became of an event; `None` where the store gave no answer in time.
    pub(crate) fn note<T>(&self, bucket: BucketId, outcome: Option<&Result<T, StoreError>>) {
        if matches!(outcome, Some(Ok(_))) && self.sound.load(Ordering::Relaxed) {
            return;
        }
        let mut troubles = self.troubles();
        troubles.told = Some(Instant::now());
        match outcome {
            Some(Ok(_)) => {
                troubles.store = None;
                troubles.buckets.remove(&bucket);
            }
            Some(Err(error @ (StoreError::Damaged(_) | StoreError::Share))) => {
                troubles.buckets.insert(bucket, error.to_string());
            }
            Some(Err(error)) => troubles.store = Some(error.to_string()),
            None => troubles.store = Some(SLOW.to_owned()),
        }
        let sound = troubles.store.is_none() && troubles.buckets.is_empty();
        self.sound.store(sound, Ordering::Relaxed);
    }

    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the last event of a bucket was refused, if it was.
    pub(crate) fn refusal(&self, bucket: BucketId) -> Option<String> {
        let troubles = self.troubles();
        let of_bucket = || troubles.buckets.get(&bucket).cloned();
        troubles.store.clone().or_else(of_bucket)
    }

    /// The buckets that take in no event, with why; or why none does. The store is asked only at the start and while
    /// something is wrong.
    pub(crate) async fn check(&self, shared: &Shared) -> Result<Vec<String>, String> {
        let store = &shared.store;
        store
            .catalog
            .note("ready")
            .await
            .map_err(|error| error.to_string())?;
        if store
            .journal
            .bound()
            .is_some_and(|bound| store.view.size() >= bound.bytes)
        {
            return Err(StoreError::Bound.to_string());
        }
        if self.sound.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let asking = self.asking.lock().await;
        let told = self.troubles().told;
        if told.is_none_or(|at| at.elapsed() >= limits::READY_EVERY) {
            self.ask(shared).await;
        }
        drop(asking);
        let troubles = self.troubles();
        if let Some(why) = &troubles.store {
            return Err(why.clone());
        }
        let buckets = shared.registry.all();
        let refusing = buckets.iter().filter_map(|bucket| {
            let why = troubles.buckets.get(&bucket.id)?;
            Some(format!("bucket `{}`: {why}", bucket.name))
        });
        let refusing: Vec<_> = refusing.collect();
        match refusing.first() {
            Some(why) if refusing.len() == buckets.len() => Err(why.clone()),
            // The other buckets take events.
            Some(_) | None => Ok(refusing),
        }
    }

    /// Asks the store to take in nothing: it refuses that as it would refuse an event, and writes nothing then.
    async fn ask(&self, shared: &Shared) {
        let buckets = shared.registry.all();
        let empty = shared.store.journal.receive(BucketId(0), Vec::new(), None);
        let answer = timeout(limits::INGEST_DEADLINE, empty).await;
        self.note(BucketId(0), answer.as_ref().ok());
        let all: Vec<_> = buckets.iter().map(|bucket| bucket.id).collect();
        // Where the store cannot be read, the note above says so.
        let damaged: HashMap<_, _> = shared
            .store
            .journal
            .refusing(&all)
            .await
            .into_iter()
            .flatten()
            .collect();
        for bucket in all {
            let why = damaged
                .get(&bucket)
                .map(|why| StoreError::Damaged(why.clone()));
            let why = why.or_else(|| shared.store.journal.over_bound(bucket));
            self.note(bucket, Some(&why.map_or(Ok(()), Err)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_outcome_of_a_bucket_decides_and_damage_is_its_own() {
        let intake = Intake::default();
        let sound = || intake.sound.load(Ordering::Relaxed);
        let (one, two) = (BucketId(1), BucketId(2));
        assert!(!sound(), "nothing is known before the first event");
        intake.note(one, Some(&Ok(())));
        assert!(sound());
        intake.note(one, Some(&Err::<(), _>(StoreError::Damaged("x".into()))));
        intake.note(two, Some(&Ok(())));
        assert!(!sound());
        intake.note(one, Some(&Ok(())));
        assert!(sound());
        intake.note::<()>(two, None);
        assert_eq!(intake.troubles().store.as_deref(), Some(SLOW));
        intake.note(one, Some(&Ok(())));
        assert!(sound());
    }
}
