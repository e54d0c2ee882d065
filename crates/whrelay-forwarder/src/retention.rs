//! What a forwarder no longer keeps: the oldest events of a bucket that every subscription has receipted. It
//! must not know when.

use std::sync::Arc;

use whrelay_core::limits;
use whrelay_core::retention::Retention;
use whrelay_core::time::Timestamp;
use whrelay_delivery::{Removed, Sweep, Sweeper, keep};
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

impl Sweeper for Receipted<'_> {
    async fn step(&mut self, sweep: Sweep) -> Result<(Removed, bool), StoreError> {
        let received_by = match sweep {
            Sweep::Over(by) => by,
            Sweep::Oldest => Timestamp::LAST,
        };
        let (step, mut events) = (limits::RETENTION_STEP, 0);
        for bucket in self.0.registry.all() {
            let removed = self.0.store.remove_receipted(bucket.id, received_by, step);
            events += removed.await?;
        }
        let bodies = 0;
        Ok((Removed { events, bodies }, events > 0))
    }

    fn tell(&self, sweep: Sweep, removed: Removed) {
        let why = match sweep {
            Sweep::Over(_) => "their time is over",
            Sweep::Oldest => "space was needed",
        };
        tracing::info!(
            events = removed.events,
            why,
            "receipted events were removed"
        );
    }
}
