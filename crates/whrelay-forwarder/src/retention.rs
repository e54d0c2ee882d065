//! What a forwarder no longer keeps: the oldest events of a bucket that every subscription has receipted, and
//! where space is needed first their bodies. It must not know when.

use std::sync::Arc;

use whrelay_core::limits;
use whrelay_core::retention::Retention;
use whrelay_core::time::Timestamp;
use whrelay_delivery::{Removed, Sweep, Sweeper, keep};
use whrelay_store::{Part, StoreError};

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
    /// A step in each bucket. Answers how many were removed, and nothing once there are none to look at.
    async fn remove(&self, received_by: Timestamp, part: Part) -> Result<Option<u64>, StoreError> {
        let Shared {
            store, registry, ..
        } = self.0;
        let mut all = None;
        for bucket in registry.all() {
            let step = limits::RETENTION_STEP;
            let removed = store.remove_receipted(bucket.id, received_by, part, step);
            if let Some(removed) = removed.await? {
                all = Some(all.unwrap_or(0) + removed);
            }
        }
        Ok(all)
    }
}

impl Sweeper for Receipted<'_> {
    async fn step(&mut self, sweep: Sweep) -> Result<(Removed, bool), StoreError> {
        let received_by = match sweep {
            Sweep::Over(by) => by,
            Sweep::Oldest => {
                // Bodies first: that an event came, and who has it, is worth more than what it said.
                if let Some(bodies) = self.remove(Timestamp::LAST, Part::Body).await? {
                    return Ok((Removed { events: 0, bodies }, true));
                }
                Timestamp::LAST
            }
        };
        let events = self.remove(received_by, Part::Whole).await?;
        let removed = Removed {
            events: events.unwrap_or(0),
            bodies: 0,
        };
        Ok((removed, events.is_some()))
    }

    fn tell(&self, sweep: Sweep, removed: Removed) {
        let why = match sweep {
            Sweep::Over(_) => "their time is over",
            Sweep::Oldest => "space was needed",
        };
        tracing::info!(
            events = removed.events,
            bodies = removed.bodies,
            why,
            "what was receipted is removed"
        );
    }
}
