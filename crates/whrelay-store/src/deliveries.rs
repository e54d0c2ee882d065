//! Deliveries: begun with their event, moved by attempts, each with its own row in the index while it
//! waits. It must not know how a delivery is tried.

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{DeadReason, Delivery, DeliveryKey, DestinationId, State};
use whrelay_core::id::{DeliveryId, EventId};
use whrelay_core::retry::Phase;
use whrelay_core::time::Timestamp;

use crate::disk::Store;
use crate::error::StoreError;
use crate::index::{Wait, due_entry, due_row, row, whole};
use crate::record::{self, Seal};
use crate::rows::{DeliveryRow, DestinationRow};
use crate::tables::{COUNTS, DELIVERIES, DESTINATIONS, DUE, delivery_key, delivery_tuple};
use crate::tx::{Tx, state_key};

/// A delivery to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDelivery {
    /// Its name.
    pub id: DeliveryId,
    /// Where it goes.
    pub destination: DestinationId,
    /// Now: it is due at once.
    pub created_at: Timestamp,
    /// After this, no attempt starts.
    pub deadline_at: Timestamp,
    /// Whether a person asked for it again.
    pub replay: bool,
}

/// Deliveries of one destination, by state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateCounts {
    /// Not tried yet.
    pub queued: u64,
    /// Failed so far.
    pub stalled: u64,
    /// Arrived.
    pub sent: u64,
    /// Given up.
    pub dead: u64,
}

/// What waits at one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitingSummary {
    /// When the oldest of what waits was created.
    pub oldest_at: Option<Timestamp>,
    /// When the next attempt is due.
    pub next_attempt_at: Option<Timestamp>,
}

impl Store {
    /// The number of a target of a bucket, given once and kept.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn ensure_destination(
        &self,
        bucket: BucketId,
        target: &str,
    ) -> Result<DestinationId, StoreError> {
        let target = target.to_owned();
        self.write(128, move |tx: &mut Tx<'_>| {
            let seal = tx.seal;
            let table = tx.destinations.open()?;
            let known = all_destinations(seal, table)?;
            let same = |row: &DestinationRow| row.bucket == bucket.0 && row.target == target;
            if let Some((id, _)) = known.iter().find(|(_, row)| same(row)) {
                return Ok(*id);
            }
            let id = known.iter().map(|(id, _)| id.0).max().unwrap_or(0) + 1;
            let row = DestinationRow {
                bucket: bucket.0,
                target,
            };
            let record = seal.seal(&id.to_be_bytes(), &row)?;
            table.insert(id, record.as_slice())?;
            Ok(DestinationId(id))
        })
        .await
    }

    /// All destinations and their targets.
    ///
    /// # Errors
    /// When the store cannot be read, or a record is damaged.
    pub fn destinations(&self) -> Result<Vec<(DestinationId, String)>, StoreError> {
        let all = self.read(|tx| all_destinations(self.seal, &tx.open_table(DESTINATIONS)?))?;
        Ok(all.into_iter().map(|(id, row)| (id, row.target)).collect())
    }

    /// A delivery.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when its bytes are not those that were written.
    pub fn delivery(&self, key: DeliveryKey) -> Result<Option<Delivery>, StoreError> {
        self.read(|tx| get(self.seal, &tx.open_table(DELIVERIES)?, key))
    }

    /// The deliveries of an event, in the order they were begun.
    ///
    /// # Errors
    /// When the store cannot be read, or a record is damaged.
    pub fn deliveries_of(&self, bucket: BucketId, seq: Seq) -> Result<Vec<Delivery>, StoreError> {
        self.read(|tx| of_event(self.seal, &tx.open_table(DELIVERIES)?, bucket, seq))
    }

    /// Begins another delivery of a stored event.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn deliver_again(
        &self,
        bucket: BucketId,
        seq: Seq,
        event: EventId,
        new: NewDelivery,
    ) -> Result<Delivery, StoreError> {
        self.write(256, move |tx: &mut Tx<'_>| {
            let deliveries = of_event(tx.seal, tx.deliveries.open()?, bucket, seq)?;
            let ordinal = deliveries.last().map_or(0, |last| last.key.ordinal + 1);
            begin(tx, bucket, seq, ordinal, event, &new)
        })
        .await
    }

    /// How many deliveries of a destination are in each state.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn counts(&self, destination: DestinationId) -> Result<StateCounts, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(COUNTS)?;
            let count = |state| -> Result<u64, StoreError> {
                Ok(table
                    .get((destination.0, state_key(state)))?
                    .map_or(0, |v| v.value()))
            };
            Ok(StateCounts {
                queued: count(State::Queued)?,
                stalled: count(State::Stalled)?,
                sent: count(State::Sent)?,
                dead: count(State::Dead)?,
            })
        })
    }

    /// What waits at a destination.
    ///
    /// # Errors
    /// When the store cannot be read, or a record is damaged.
    pub fn waiting(&self, destination: DestinationId) -> Result<WaitingSummary, StoreError> {
        self.read(|tx| {
            let deliveries = tx.open_table(DELIVERIES)?;
            let mut summary = WaitingSummary::default();
            for entry in tx.open_table(DUE)?.range(whole(destination))? {
                let (at, key) = due_entry(entry?.0.value());
                summary.next_attempt_at.get_or_insert(at);
                if let Ok(Some(delivery)) = get(self.seal, &deliveries, key) {
                    let oldest = summary.oldest_at.get_or_insert(delivery.created_at);
                    *oldest = delivery.created_at.min(*oldest);
                }
            }
            Ok(summary)
        })
    }
}

fn all_destinations(
    seal: Seal,
    table: &impl ReadableTable<u32, &'static [u8]>,
) -> Result<Vec<(DestinationId, DestinationRow)>, StoreError> {
    let mut all = Vec::new();
    for entry in table.iter()? {
        let (id, record) = entry?;
        let key = id.value().to_be_bytes();
        if let Some((row, _)) = record::undamaged(seal.open("destination", &key, record.value()))? {
            all.push((DestinationId(id.value()), row));
        }
    }
    Ok(all)
}

pub(crate) fn get(
    seal: Seal,
    table: &impl ReadableTable<(u32, u64, u32), &'static [u8]>,
    key: DeliveryKey,
) -> Result<Option<Delivery>, StoreError> {
    let Some(record) = table.get(delivery_tuple(key))? else {
        return Ok(None);
    };
    let (row, _) = seal.open::<DeliveryRow>("delivery", &delivery_key(key), record.value())?;
    Ok(Some(row.into_delivery(key)))
}

pub(crate) fn of_event(
    seal: Seal,
    table: &impl ReadableTable<(u32, u64, u32), &'static [u8]>,
    bucket: BucketId,
    seq: Seq,
) -> Result<Vec<Delivery>, StoreError> {
    let mut all = Vec::new();
    for entry in table.range((bucket.0, seq.0, 0)..=(bucket.0, seq.0, u32::MAX))? {
        let (key, record) = entry?;
        let key = DeliveryKey {
            bucket,
            seq,
            ordinal: key.value().2,
        };
        let (row, _) = seal.open::<DeliveryRow>("delivery", &delivery_key(key), record.value())?;
        all.push(row.into_delivery(key));
    }
    Ok(all)
}

/// Begins a delivery: it waits, and is due at once.
pub(crate) fn begin(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    seq: Seq,
    ordinal: u32,
    event: EventId,
    new: &NewDelivery,
) -> Result<Delivery, StoreError> {
    let NewDelivery {
        id,
        destination,
        created_at,
        deadline_at,
        replay,
    } = *new;
    let delivery = Delivery {
        key: DeliveryKey {
            bucket,
            seq,
            ordinal,
        },
        id,
        event,
        destination,
        created_at,
        deadline_at,
        attempts: 0,
        first_failed_at: None,
        phase: Phase::Fast,
        state: State::Queued,
        reason: None,
        next_attempt_at: Some(created_at),
        replay,
    };
    update(tx, None, &delivery, Wait::Turn)?;
    Ok(delivery)
}

/// Where a delivery stood in the index and the counts before a change.
#[derive(Clone, Copy)]
pub(crate) struct Waiting {
    destination: DestinationId,
    state: State,
    due_at: Option<Timestamp>,
}

impl Waiting {
    pub(crate) fn of(delivery: &Delivery) -> Self {
        let Delivery {
            destination,
            state,
            next_attempt_at: due_at,
            ..
        } = *delivery;
        Self {
            destination,
            state,
            due_at,
        }
    }
}

/// Writes a delivery, and moves it in the index and the counts.
pub(crate) fn update(
    tx: &mut Tx<'_>,
    before: Option<Waiting>,
    delivery: &Delivery,
    wait: Wait,
) -> Result<(), StoreError> {
    let key = delivery.key;
    let record = tx
        .seal
        .seal(&delivery_key(key), &DeliveryRow::new(delivery))?;
    tx.deliveries
        .open()?
        .insert(delivery_tuple(key), record.as_slice())?;
    if let Some(Waiting {
        destination,
        due_at: Some(at),
        ..
    }) = before
    {
        tx.due.open()?.remove(row(destination, at, key))?;
    }
    if let Some(row) = due_row(delivery) {
        tx.due.open()?.insert(row, wait as u8)?;
    }
    tx.count(
        before.map(|b| (b.destination, b.state)),
        (delivery.destination, delivery.state),
    );
    Ok(())
}

/// Gives up all deliveries of an event that is damaged.
pub(crate) fn stop_waiting(tx: &mut Tx<'_>, key: DeliveryKey) -> Result<(), StoreError> {
    let DeliveryKey { bucket, seq, .. } = key;
    tx.due
        .open()?
        .retain(|row, _| (row.2, row.3) != (bucket.0, seq.0))?;
    let range = (bucket.0, seq.0, 0)..=(bucket.0, seq.0, u32::MAX);
    let ordinals: Vec<u32> = tx
        .deliveries
        .open()?
        .range(range)?
        .map(|entry| Ok(entry?.0.value().2))
        .collect::<Result<_, StoreError>>()?;
    for ordinal in ordinals {
        let found = get(
            tx.seal,
            tx.deliveries.open()?,
            DeliveryKey {
                bucket,
                seq,
                ordinal,
            },
        );
        if let Ok(Some(mut delivery)) = found
            && !delivery.state.is_finished()
        {
            let before = Waiting::of(&delivery);
            (delivery.state, delivery.reason) = (State::Dead, Some(DeadReason::Rejected));
            delivery.next_attempt_at = None;
            update(tx, Some(before), &delivery, Wait::Turn)?;
        }
    }
    Ok(())
}
