//! What a forwarder no longer keeps: the oldest events of a bucket that every subscription has receipted, and
//! where space is needed first their bodies. It must not know when.

use std::sync::Arc;

use whrelay_core::retention::{Part, Retention};
use whrelay_core::time::Timestamp;
use whrelay_delivery::{Removed, Step, Sweep, Sweeper, Why, keep};
use whrelay_store::StoreError;

use crate::Shared;

/// Sweeps until the forwarder stops.
pub(crate) async fn run(shared: Arc<Shared>, retention: Retention) -> Result<(), StoreError> {
    let Shared {
        store, clock, stop, ..
    } = &*shared;
    keep(retention, store, clock, stop, Receipted(&shared)).await
}

struct Receipted<'a>(&'a Shared);

impl Receipted<'_> {
    /// A step in the bucket that has the oldest event to go. Answers how many went, and nothing where there is none.
    async fn remove(
        &self,
        received_by: Timestamp,
        part: Part,
        step: Step,
    ) -> Result<Option<u64>, StoreError> {
        let Shared {
            store, registry, ..
        } = self.0;
        let mut oldest = None;
        for bucket in registry.all() {
            let found = store.oldest_receipted(bucket.id, part, received_by)?;
            let found = found.filter(|at| *at <= received_by);
            oldest = oldest.into_iter().chain(found.zip(Some(bucket.id))).min();
        }
        let Some((_, bucket)) = oldest else {
            return Ok(None);
        };
        let most = (step.max_events, step.max_bytes);
        let removed = store.remove_receipted(bucket, received_by, part, most);
        removed.await.map(Some)
    }
}

impl Sweeper for Receipted<'_> {
    async fn step(&mut self, step: Step) -> Result<(Removed, bool), StoreError> {
        let (received_by, part) = match step.sweep {
            Sweep::Over(by) => (by, Part::Whole),
            Sweep::Oldest(part) => (Timestamp::LAST, part),
        };
        let went = self.remove(received_by, part, step).await?;
        let removed = match part {
            Part::Body => Removed {
                bodies: went.unwrap_or(0),
                events: 0,
            },
            Part::Whole => Removed {
                events: went.unwrap_or(0),
                bodies: 0,
            },
        };
        Ok((removed, went.is_some()))
    }

    fn tell(&self, why: Why, removed: Removed) {
        let why = match why {
            Why::Over => "its time is over",
            Why::Room => "space was needed",
        };
        tracing::info!(
            events = removed.events,
            bodies = removed.bodies,
            why,
            "what was receipted is removed"
        );
    }
}
