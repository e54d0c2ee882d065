//! What came before an agent began, and how much of it is wanted. What is not is known, and given up as
//! discarded. It must not know how anything is delivered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use whrelay_core::backlog::{Backlog, Cut};
use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::delivery::{Asked, Attempt, DeadReason, Delivery, State};
use whrelay_core::time::Timestamp;
use whrelay_proto::frame::Welcome;
use whrelay_store::{Begin, Search, Store, StoreError, persist};

use crate::lines::Line;

/// Events looked at in one step.
const CHUNK: usize = 256;

/// What is passed over of what came before an agent began.
#[derive(Debug, Default)]
pub(crate) struct Catching {
    cut: RwLock<Cut>,
    passed_over: AtomicU64,
}

impl Catching {
    /// From the first welcome of a process.
    pub(crate) fn new(wanted: Backlog, welcome: &Welcome) -> Self {
        Self {
            cut: RwLock::new(welcome.cut(wanted)),
            passed_over: AtomicU64::new(0),
        }
    }

    /// What is passed over.
    pub(crate) fn cut(&self) -> RwLockReadGuard<'_, Cut> {
        self.cut.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a received event is discarded as backlog. `seq` is its number in the forwarder's store.
    pub(crate) fn passes_over(&self, forwarder: &str, seq: u64, received_at: Timestamp) -> bool {
        let mut cut = self.cut.write().unwrap_or_else(PoisonError::into_inner);
        cut.passes_over(forwarder, seq, received_at)
    }

    /// A later session starts, of an agent that had come to `reached`. Answers whether the forwarder lost events
    /// that the agent does not have either.
    pub(crate) fn resume(&self, reached: u64, welcome: &Welcome) -> bool {
        let mut cut = self.cut.write().unwrap_or_else(PoisonError::into_inner);
        let lost_end = welcome.noticed.backlog_end_lost;
        cut.resume(&welcome.forwarder, reached, welcome.start, lost_end)
    }

    /// Counts what was passed over up to a place. Answers with all of it, once everything that was there
    /// before has come.
    pub(crate) fn passed_over(&self, count: u64, reached: u64) -> Option<u64> {
        self.passed_over.fetch_add(count, Ordering::Relaxed);
        let behind = self.cut().is_behind(reached);
        let passed_over = behind.then(|| self.passed_over.swap(0, Ordering::Relaxed));
        passed_over.filter(|count| *count > 0)
    }

    /// Gives up what waits in the agent's own store and is not wanted. Answers how many deliveries.
    pub(crate) async fn pass_over_here(
        &self,
        store: &Store,
        bucket: &Bucket,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let (wanted, here) = (self.cut().wanted(), self.cut().wanted_here());
        if wanted == Backlog::default() {
            return Ok(0);
        }
        let search = Search {
            bucket: bucket.id,
            states: vec![State::Queued, State::Stalled],
            since: None,
            until: None,
        };
        let (mut after, mut seen, mut passed) = (None, 0, 0);
        loop {
            let found = store
                .view
                .search(&search, Begin::Newest, after, CHUNK)
                .await?;
            let Some((last, _)) = found.last() else {
                return Ok(passed);
            };
            after = Some(*last);
            let mut given_up = Vec::new();
            for (id, seq) in found {
                seen += 1;
                let old = wanted.since.is_some_and(|since| id.minted_at() < since);
                if seen > here || old {
                    given_up.extend(given_up_at(store, bucket, seq, now).await?);
                }
            }
            let give_up = || store.journal.give_up(given_up.clone());
            passed += persist(give_up).await?.len() as u64;
        }
    }
}

/// Tells that something was passed over.
pub(crate) fn told(count: u64, what: &str, whose: &str) -> Line {
    let s = if count == 1 { "" } else { "s" };
    Line::warning(format!(
        "discarded {count} {what}{s} {whose}; `whrelay events --reason discarded` lists them"
    ))
}

/// The records that give up an event's queued deliveries. Damaged ones are left out: an attempt finds the damage.
async fn given_up_at(
    store: &Store,
    bucket: &Bucket,
    seq: Seq,
    now: Timestamp,
) -> Result<Vec<Attempt>, StoreError> {
    let event = match store.journal.event_at(bucket, seq).await {
        Err(StoreError::Damaged(_)) | Ok(None) => return Ok(Vec::new()),
        Err(error) => return Err(error),
        Ok(Some(event)) => event,
    };
    let deliveries = match store.view.deliveries_of(bucket.id, seq).await {
        Err(StoreError::Damaged(_)) => return Ok(Vec::new()),
        other => other?,
    };
    let destinations = store.catalog.destinations().await?;
    let waits = deliveries.into_iter().filter(|d| !d.state.is_finished());
    let attempt = |delivery: Delivery| {
        let to = destinations.iter().find(|to| to.id == delivery.destination);
        let target = to.map_or_else(String::new, |to| to.target.to_string());
        let asked = Asked {
            url: target.clone(),
            target,
            method: event.request.method.clone(),
        };
        let why = "passed over: it came before";
        Attempt::given_up(&delivery, asked, now, DeadReason::Discarded, why)
    };
    Ok(waits.map(attempt).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_over_is_told_once_when_all_of_it_has_come() {
        let welcome = Welcome {
            version: 1,
            forwarder: "f".into(),
            start: 10,
            waiting: 5,
            ..Welcome::default()
        };
        let catching = Catching::new(Backlog::default(), &welcome);
        assert_eq!(catching.passed_over(0, 15), None, "nothing was");
        assert_eq!(catching.passed_over(2, 14), None, "not all has come");
        assert_eq!(catching.passed_over(1, 15), Some(3));
        assert_eq!(catching.passed_over(0, 16), None, "it is said once");
    }
}
