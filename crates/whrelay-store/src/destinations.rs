//! Destinations as they are stored: a few rows, read as a list.

use std::collections::HashSet;

use redb::ReadableTable;
use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::{DeadReason, Delivery, DestinationId, State};
use whrelay_core::destination::{Destination, EndpointState, Kind, OptionSet};
use whrelay_core::queue::WaitReason;
use whrelay_core::target::Target;
use whrelay_core::time::Timestamp;

use crate::deliveries::{Before, update, whole_of_event};
use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::queue::{self, Leads, QueueKey, key_of, next_queued, waiting_rows};
use crate::record::{self, Seal};
use crate::rows::DestinationRow;
use crate::tables::{COUNTS, DESTINATIONS, QUEUE};
use crate::tx::Tx;

/// Deliveries that one transaction moves: between two, others get their turn.
const CHUNK: usize = 1000;

/// A destination to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDestination {
    /// The bucket whose events go there.
    pub bucket: BucketId,
    /// What it is to people.
    pub kind: Kind,
    /// Its URL.
    pub target: Target,
    /// The options that a person has set.
    pub options: OptionSet,
}

/// What became of the deliveries that were queued for a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// They go to the other destination now.
    pub moved: u64,
    /// Their events have arrived there, or are queued for it, so they were discarded.
    pub discarded: u64,
}

impl RedbStore {
    /// All destinations, in order of their numbers. One whose row is damaged is named `damaged-NUMBER` while deliveries
    /// are queued for it, and left out otherwise.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn destinations(&self) -> Result<Vec<Destination>, StoreError> {
        self.read(|tx| {
            let destinations = tx.open_table(DESTINATIONS)?;
            all(self.seal, &destinations, &tx.open_table(QUEUE)?)
        })
    }

    /// Adds a destination.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn add_destination(&self, new: NewDestination) -> Result<Destination, StoreError> {
        self.write(256, move |tx: &mut Tx<'_>| {
            let id = DestinationId(last_number(tx)?.saturating_add(1));
            let NewDestination {
                bucket,
                kind,
                target,
                options,
            } = new;
            let destination = Destination {
                id,
                bucket,
                kind,
                target,
                options,
                paused_at: None,
                endpoint: EndpointState::Online,
                offline_since: None,
                back_since: None,
            };
            put(tx, &destination)?;
            Ok(destination)
        })
        .await
    }

    /// The destination of this number.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn destination(&self, id: DestinationId) -> Result<Option<Destination>, StoreError> {
        self.read(|tx| {
            let destinations = tx.open_table(DESTINATIONS)?;
            known(self.seal, &destinations, &tx.open_table(QUEUE)?, id)
        })
    }

    /// Replaces a destination that is stored as `before`. False if it is stored otherwise by now, or gone.
    ///
    /// # Errors
    /// When the change is not on disk.
    pub async fn replace_destination(
        &self,
        before: &Destination,
        after: &Destination,
    ) -> Result<bool, StoreError> {
        let (before, after) = (before.clone(), after.clone());
        self.write(256, move |tx: &mut Tx<'_>| {
            let id = before.id;
            let stored = known(tx.seal, tx.destinations.open()?, tx.queue.open()?, id)?;
            if stored != Some(before) {
                return Ok(false);
            }
            queue::touch(tx, id)?;
            put(tx, &after)?;
            Ok(true)
        })
        .await
    }

    /// Drops the rows of one-off and removed destinations of which no delivery is kept.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn forget_destinations(&self) -> Result<(), StoreError> {
        let over = self.read(|tx| {
            let counts = tx.open_table(COUNTS)?;
            let mut over = Vec::new();
            for destination in readable(self.seal, &tx.open_table(DESTINATIONS)?)? {
                let id = destination.id.0;
                let mut kept = 0;
                for entry in counts.range((id, 0)..=(id, u8::MAX))? {
                    kept += entry?.1.value();
                }
                if kept == 0 && destination.name().is_none() {
                    over.push(id);
                }
            }
            Ok(over)
        })?;
        if over.is_empty() {
            return Ok(());
        }
        self.write(64, move |tx: &mut Tx<'_>| {
            for id in over {
                tx.destinations.open()?.remove(id)?;
            }
            Ok(())
        })
        .await
    }

    /// Lets the deliveries that are queued for a destination go to another one. Where an event has arrived there, or is
    /// queued for it, its delivery is discarded instead.
    ///
    /// # Errors
    /// When not all of it is on disk; what is, stays.
    pub async fn move_deliveries(
        &self,
        from: DestinationId,
        to: DestinationId,
        now: Timestamp,
    ) -> Result<Moved, StoreError> {
        let mut all = Moved::default();
        loop {
            let rows = self.read(|tx| waiting_rows(&tx.open_table(QUEUE)?, from, CHUNK))?;
            if rows.is_empty() {
                return Ok(all);
            }
            let moving = move |tx: &mut Tx<'_>| move_rows(tx, to, &rows, now);
            let Moved { moved, discarded } = self.write(CHUNK * 64, moving).await?;
            all.moved += moved;
            all.discarded += discarded;
        }
    }
}

fn move_rows(
    tx: &mut Tx<'_>,
    to: DestinationId,
    rows: &[QueueKey],
    now: Timestamp,
) -> Result<Moved, StoreError> {
    let mut all = Moved::default();
    for row in rows {
        let mut delivery = match tx.leads(*row)? {
            Leads::Waiting(delivery) => *delivery,
            Leads::Damaged | Leads::Nowhere => {
                queue::touch(tx, DestinationId(row.0))?;
                tx.queue.open()?.remove(row)?;
                continue;
            }
        };
        let before = Before::of(&delivery);
        let is_scheduled = delivery.replay && delivery.next_attempt_at() > Some(now);
        tx.changed
            .note_withdrawn(delivery.destination, delivery.key);
        if went_to(tx, &delivery, to)? {
            delivery.end(DeadReason::Discarded);
            delivery.ended_at = Some(now);
            all.discarded += 1;
        } else {
            delivery.destination = to;
            all.moved += 1;
            // The other endpoint has asked for nothing, and nobody knows whether it is offline.
            if !is_scheduled {
                delivery.wait = Some(WaitReason::Turn);
            }
            tx.changed
                .note_due(to, delivery.next_attempt_at().unwrap_or(now));
        }
        update(tx, Some(before), &delivery)?;
    }
    Ok(all)
}

/// Whether the event of a delivery goes, or went, to a destination anyway.
fn went_to(tx: &mut Tx<'_>, delivery: &Delivery, to: DestinationId) -> Result<bool, StoreError> {
    let (seal, key) = (tx.seal, delivery.key);
    let siblings = whole_of_event(seal, tx.deliveries.open()?, key.bucket, key.seq)?;
    let goes_there =
        |other: &Delivery| other.destination == to && !other.replay && other.state != State::Dead;
    Ok(!delivery.replay && siblings.iter().any(goes_there))
}

pub(crate) fn put(tx: &mut Tx<'_>, destination: &Destination) -> Result<(), StoreError> {
    let id = destination.id.0;
    let record = tx
        .seal
        .seal(&id.to_be_bytes(), &DestinationRow::new(destination))?;
    tx.destinations.open()?.insert(id, record.as_slice())?;
    Ok(())
}

fn get(
    seal: Seal,
    table: &impl ReadableTable<u32, &'static [u8]>,
    id: DestinationId,
) -> Result<Option<Destination>, StoreError> {
    let Some(record) = table.get(id.0)? else {
        return Ok(None);
    };
    read(seal, id, record.value()).map(Some)
}

/// A destination; of one that is damaged, what its queue says.
fn known(
    seal: Seal,
    table: &impl ReadableTable<u32, &'static [u8]>,
    queue: &impl ReadableTable<QueueKey, i64>,
    id: DestinationId,
) -> Result<Option<Destination>, StoreError> {
    match get(seal, table, id) {
        Ok(Some(found)) => Ok(Some(found)),
        Ok(None) | Err(StoreError::Damaged(_)) => damaged(queue, id),
        Err(error) => Err(error),
    }
}

/// When the endpoint of a destination was last seen to return. Nothing is known of one that is damaged.
pub(crate) fn back_since(
    seal: Seal,
    table: &impl ReadableTable<u32, &'static [u8]>,
    id: DestinationId,
) -> Result<Option<Timestamp>, StoreError> {
    let found = match get(seal, table, id) {
        Err(StoreError::Damaged(_)) => None,
        found => found?,
    };
    Ok(found.and_then(|destination| destination.back_since))
}

fn read(seal: Seal, id: DestinationId, record: &[u8]) -> Result<Destination, StoreError> {
    let key = id.0.to_be_bytes();
    let (row, _) = seal.open::<DestinationRow>("destination", &key, record)?;
    let damaged = || StoreError::Damaged(format!("destination {}", id.0));
    row.into_destination(id).ok_or_else(damaged)
}

/// The destinations whose rows are whole, in order.
fn readable(
    seal: Seal,
    table: &impl ReadableTable<u32, &'static [u8]>,
) -> Result<Vec<Destination>, StoreError> {
    let mut readable = Vec::new();
    for entry in table.iter()? {
        let (id, record) = entry?;
        let id = DestinationId(id.value());
        readable.extend(record::undamaged(read(seal, id, record.value()))?);
    }
    Ok(readable)
}

fn all(
    seal: Seal,
    table: &impl ReadableTable<u32, &'static [u8]>,
    due: &impl ReadableTable<QueueKey, i64>,
) -> Result<Vec<Destination>, StoreError> {
    let mut all = readable(seal, table)?;
    let known: HashSet<_> = all.iter().map(|destination| destination.id).collect();
    let mut next = Some(DestinationId(0));
    while let Some(from) = next {
        let Some(id) = next_queued(due, from)? else {
            break;
        };
        if !known.contains(&id) {
            all.extend(damaged(due, id)?);
        }
        next = id.0.checked_add(1).map(DestinationId);
    }
    all.sort_unstable_by_key(|destination| destination.id);
    Ok(all)
}

/// A destination whose row is damaged or gone, with the deliveries that are queued for it. A person decides what
/// becomes of them, since nobody knows where they were to go.
fn damaged(
    due: &impl ReadableTable<QueueKey, i64>,
    id: DestinationId,
) -> Result<Option<Destination>, StoreError> {
    let Some(row) = waiting_rows(due, id, 1)?.pop() else {
        return Ok(None);
    };
    let unknown = (
        format!("damaged-{}", id.0).parse(),
        "http://damaged.invalid".parse(),
    );
    let (Ok(name), Ok(target)) = unknown else {
        return Err(StoreError::Damaged(format!("destination {}", id.0)));
    };
    Ok(Some(Destination {
        id,
        bucket: key_of(row).bucket,
        kind: Kind::Lasting {
            name,
            is_named: true,
        },
        target,
        options: OptionSet::default(),
        paused_at: None,
        endpoint: EndpointState::Online,
        offline_since: None,
        back_since: None,
    }))
}

/// The largest number in use. A destination that is damaged keeps its number, and what is queued for it.
fn last_number(tx: &mut Tx<'_>) -> Result<u32, StoreError> {
    let last = tx.destinations.open()?.last()?.map(|(id, _)| id.value());
    let queued = tx.queue.open()?.last()?;
    let queued = queued.map(|(row, _)| row.value().0);
    Ok(last.max(queued).unwrap_or(0))
}
