//! What an agent no longer keeps: events that have ended, and where space is needed first their bodies. It must
//! not know when.

use std::sync::Arc;

use whrelay_core::delivery::State;
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::retention::Retention;
use whrelay_core::time::Timestamp;
use whrelay_delivery::{Removed, Sweep, Sweeper, keep};
use whrelay_store::{Begin, Found, Part, Search, StoreError, Swept};

use crate::lanes::Lanes;
use crate::lines::Line;

/// Sweeps until the agent stops.
pub(crate) async fn run(lanes: Arc<Lanes>, retention: Retention) -> Result<(), StoreError> {
    let ended = Ended {
        lanes: &lanes,
        looked_upto: None,
    };
    keep(retention, &lanes.store, &lanes.clock, lanes.stop(), ended).await
}

struct Ended<'a> {
    lanes: &'a Lanes,
    /// How far this sweep has looked for what is over.
    looked_upto: Option<EventId>,
}

impl Ended<'_> {
    /// Events that have ended, from the oldest on.
    fn find(
        &self,
        until: Option<Timestamp>,
        after: Option<EventId>,
    ) -> Result<Vec<Found>, StoreError> {
        let search = Search {
            bucket: self.lanes.bucket.id,
            states: vec![State::Sent, State::Dead],
            since: None,
            until,
        };
        let store = &self.lanes.store;
        store.search(&search, Begin::Oldest, after, limits::RETENTION_STEP)
    }

    async fn remove(
        &self,
        found: Vec<Found>,
        by: Timestamp,
        part: Part,
    ) -> Result<Swept, StoreError> {
        let (store, bucket) = (&self.lanes.store, self.lanes.bucket.id);
        store.remove_finished(bucket, found, by, part).await
    }

    /// What was received by then may have ended by then.
    async fn over(&mut self, by: Timestamp) -> Result<(Removed, bool), StoreError> {
        let found = self.find(Some(by), self.looked_upto)?;
        let swept = self.remove(found, by, Part::Whole).await?;
        self.looked_upto = swept.upto;
        Ok((whole(&swept), swept.upto.is_some()))
    }

    /// Bodies first: what an event was and what became of it is worth more than what it said.
    async fn oldest(&mut self) -> Result<(Removed, bool), StoreError> {
        let removals = self.lanes.store.removals(self.lanes.bucket.id)?;
        let with_body = self.find(None, removals.bodies_upto)?;
        if !with_body.is_empty() {
            let swept = self.remove(with_body, Timestamp::LAST, Part::Body).await?;
            let bodies = swept.removed.len() as u64;
            return Ok((Removed { events: 0, bodies }, true));
        }
        let found = self.find(None, None)?;
        let swept = self.remove(found, Timestamp::LAST, Part::Whole).await?;
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
    async fn step(&mut self, sweep: Sweep) -> Result<(Removed, bool), StoreError> {
        match sweep {
            Sweep::Over(by) => self.over(by).await,
            Sweep::Oldest => self.oldest().await,
        }
    }

    fn tell(&self, sweep: Sweep, removed: Removed) {
        let reason = match sweep {
            Sweep::Over(_) => "retain",
            Sweep::Oldest => "max-disk",
        };
        (self.lanes.tell)(Line::Retention {
            bucket: self.lanes.bucket.name.to_string(),
            events: removed.events,
            bodies: removed.bodies,
            reason: reason.to_owned(),
        });
    }
}
