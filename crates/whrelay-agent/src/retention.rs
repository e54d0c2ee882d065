//! What an agent no longer keeps: events that have ended, and where space is needed first their bodies. It must
//! not know when.

use std::sync::Arc;

use whrelay_core::delivery::State;
use whrelay_core::id::EventId;
use whrelay_core::retention::{Part, Retention};
use whrelay_core::time::Timestamp;
use whrelay_delivery::{Removed, Step, Sweep, Sweeper, Why, keep};
use whrelay_store::{Begin, Found, Search, StoreError, Swept};

use crate::lines::Line;
use crate::runtime::Runtime;

/// Sweeps until the agent stops.
pub(crate) async fn run(runtime: Arc<Runtime>, retention: Retention) -> Result<(), StoreError> {
    let ended = Ended {
        runtime: &runtime,
        looked_upto: None,
    };
    keep(
        retention,
        &runtime.store,
        &runtime.clock,
        runtime.stop(),
        ended,
    )
    .await
}

struct Ended<'a> {
    runtime: &'a Runtime,
    /// How far this sweep has looked for what is over.
    looked_upto: Option<EventId>,
}

impl Ended<'_> {
    /// Events that have ended, from the oldest on.
    async fn find(
        &self,
        until: Option<Timestamp>,
        after: Option<EventId>,
        max: usize,
    ) -> Result<Vec<Found>, StoreError> {
        let search = Search {
            bucket: self.runtime.bucket.id,
            states: vec![State::Sent, State::Dead],
            since: None,
            until,
        };
        let store = &self.runtime.store;
        store.view.search(&search, Begin::Oldest, after, max).await
    }

    async fn remove(
        &self,
        found: Vec<Found>,
        by: Timestamp,
        part: Part,
        step: Step,
    ) -> Result<Swept, StoreError> {
        let (store, bucket) = (&self.runtime.store, self.runtime.bucket.id);
        let swept = store
            .journal
            .remove_finished(bucket, found, by, part, step.max_bytes);
        swept.await
    }

    /// What was received by then may have ended by then.
    async fn over(&mut self, by: Timestamp, step: Step) -> Result<(Removed, bool), StoreError> {
        let found = self
            .find(Some(by), self.looked_upto, step.max_events)
            .await?;
        let swept = self.remove(found, by, Part::Whole, step).await?;
        self.looked_upto = swept.upto;
        Ok((whole(&swept), swept.upto.is_some()))
    }

    async fn bodies(&self, step: Step) -> Result<(Removed, bool), StoreError> {
        let removals = self
            .runtime
            .store
            .view
            .removals(self.runtime.bucket.id)
            .await?;
        let found = self
            .find(None, removals.bodies_upto, step.max_events)
            .await?;
        let swept = self.remove(found, Timestamp::LAST, Part::Body, step);
        let swept = swept.await?;
        let bodies = swept.removed.len() as u64;
        Ok((Removed { events: 0, bodies }, swept.upto.is_some()))
    }

    async fn oldest(&self, step: Step) -> Result<(Removed, bool), StoreError> {
        let found = self.find(None, None, step.max_events).await?;
        let swept = self.remove(found, Timestamp::LAST, Part::Whole, step);
        let swept = swept.await?;
        Ok((whole(&swept), !swept.removed.is_empty()))
    }
}

fn whole(swept: &Swept) -> Removed {
    Removed {
        events: swept.removed.len() as u64,
        bodies: 0,
    }
}

impl Sweeper for Ended<'_> {
    async fn step(&mut self, step: Step) -> Result<(Removed, bool), StoreError> {
        match step.sweep {
            Sweep::Over(by) => self.over(by, step).await,
            Sweep::Oldest(Part::Body) => self.bodies(step).await,
            Sweep::Oldest(Part::Whole) => self.oldest(step).await,
        }
    }

    fn tell(&self, why: Why, removed: Removed) {
        let reason = match why {
            Why::Over => "retain",
            Why::Room => "max-disk",
        };
        (self.runtime.tell)(Line::Retention {
            bucket: self.runtime.bucket.name.to_string(),
            events: removed.events,
            bodies: removed.bodies,
            reason: reason.to_owned(),
        });
    }
}
