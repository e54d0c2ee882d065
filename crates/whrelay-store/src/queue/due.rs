//! Which destinations have something due: one row for each that has a queue, and one for each of which something has
//! failed. They are brought up to date once for each commit.

use std::ops::Bound;

use redb::ReadableTable;
use whrelay_core::delivery::DestinationId;
use whrelay_core::queue::{DueCursor, DuePage};
use whrelay_core::time::Timestamp;

use super::{List, QueueKey, list};
use crate::destinations;
use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::tables::DUE_DESTINATIONS;
use crate::tx::Tx;

/// What the time is of; the time; the destination.
pub(crate) type DueKey = (u8, i64, u32);

/// When the first of a destination's deliveries is due.
const DUE: u8 = 0;
/// When the last of those that failed has failed.
const FAILED: u8 = 1;

/// The rows of a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    due_at: Option<i64>,
    failed_at: Option<i64>,
}

impl Summary {
    /// What the queue of a destination says.
    pub(crate) fn of(
        queue: &impl ReadableTable<QueueKey, i64>,
        id: DestinationId,
        back_since: impl FnOnce() -> Result<Option<Timestamp>, StoreError>,
    ) -> Result<Self, StoreError> {
        let of_both = |wanted: List| {
            let lists = [false, true].map(|replays| list(id, wanted.number(replays)));
            lists.into_iter()
        };
        let earliest = |wanted: List| -> Result<Option<i64>, StoreError> {
            let mut found: Option<i64> = None;
            for rows in of_both(wanted) {
                if let Some(first) = queue.range(rows)?.next() {
                    let at = first?.0.value().2;
                    found = Some(found.map_or(at, |found| found.min(at)));
                }
            }
            Ok(found)
        };
        let mut summary = Self::default();
        for rows in of_both(List::FailedAt) {
            if let Some(last) = queue.range(rows)?.next_back() {
                summary.failed_at = summary.failed_at.max(Some(last?.0.value().2));
            }
        }
        if earliest(List::Turn)?.is_some() {
            summary.due_at = Some(Timestamp::EPOCH.as_micros());
            return Ok(summary);
        }
        let timed = earliest(List::NotBefore)?;
        summary.due_at = timed;
        if let Some(ends_at) = earliest(List::BackoffEnd)? {
            let failed_at = earliest(List::FailedAt)?.map(Timestamp::from_micros);
            let is_over = back_since()?.is_some_and(|back| failed_at.is_some_and(|at| at < back));
            let at = if is_over {
                Timestamp::EPOCH.as_micros()
            } else {
                ends_at
            };
            summary.due_at = Some(timed.map_or(at, |timed| timed.min(at)));
        }
        Ok(summary)
    }

    /// Its rows.
    pub(crate) fn rows(self, id: DestinationId) -> impl Iterator<Item = DueKey> {
        let due = self.due_at.map(|at| (DUE, at, id.0));
        let failed = self.failed_at.map(|at| (FAILED, at, id.0));
        due.into_iter().chain(failed)
    }
}

/// Notes how the queue of a destination stands before it, or its endpoint's return, changes.
pub(crate) fn touch(tx: &mut Tx<'_>, id: DestinationId) -> Result<(), StoreError> {
    if !tx.touched.contains_key(&id) {
        let before = summary(tx, id)?;
        tx.touched.insert(id, before);
    }
    Ok(())
}

/// Brings the rows of all destinations up to date whose queues have changed.
pub(crate) fn settle(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    for (id, before) in std::mem::take(&mut tx.touched) {
        let after = summary(tx, id)?;
        if before == after {
            continue;
        }
        let table = tx.due_destinations.open()?;
        for row in before.rows(id) {
            table.remove(row)?;
        }
        for row in after.rows(id) {
            table.insert(row, ())?;
        }
    }
    Ok(())
}

fn summary(tx: &mut Tx<'_>, id: DestinationId) -> Result<Summary, StoreError> {
    let seal = tx.seal;
    let (queue, destinations) = (tx.queue.open()?, tx.destinations.open()?);
    Summary::of(queue, id, || {
        destinations::back_since(seal, destinations, id)
    })
}

impl RedbStore {
    /// Destinations that have something due by a time, earliest first; then those of which a delivery has failed after
    /// that time, since a wrong clock wrote that: they count as due at `now`. A new delivery is due at once.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn due_destinations(
        &self,
        until: Timestamp,
        after: Option<DueCursor>,
        max: usize,
        now: Timestamp,
    ) -> Result<DuePage, StoreError> {
        self.read_now(|tx| {
            let table = tx.open_table(DUE_DESTINATIONS)?;
            let mut page = DuePage::default();
            let after = after.map(|after| (after.at.as_micros(), after.destination.0));
            for (of, times) in [
                (DUE, (i64::MIN, until.as_micros())),
                (FAILED, (until.as_micros().saturating_add(1), i64::MAX)),
            ] {
                let (first, last) = ((of, times.0, 0), (of, times.1, u32::MAX));
                let from = match after.map(|(at, id)| (of, at, id)) {
                    Some(after) if after >= last => continue,
                    Some(after) if after >= first => Bound::Excluded(after),
                    Some(_) | None => Bound::Included(first),
                };
                for entry in table.range((from, Bound::Included(last)))? {
                    if page.rows.len() == max {
                        return Ok(page);
                    }
                    let (_, at, id) = entry?.0.value();
                    let (at, destination) = (Timestamp::from_micros(at), DestinationId(id));
                    page.rows
                        .push((destination, if of == DUE { at } else { now }));
                    page.next = Some(DueCursor { at, destination });
                }
            }
            page.next = None;
            Ok(page)
        })
    }
}
