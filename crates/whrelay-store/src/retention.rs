//! Removing what has ended: whole events, or only their bodies. What waits is never removed, whoever asks. It
//! must not know when something is to go, nor why.
//!
//! Places are given without gaps, so each that is emptied is remembered, or it would be taken for a loss: one
//! by one behind the first that is kept, and all before that as one number.

use std::sync::atomic::Ordering;

use redb::{ReadTransaction, ReadableTable};
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{self, Delivery, State};
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::time::Timestamp;

use crate::deliveries;
use crate::disk::Store;
use crate::error::StoreError;
use crate::record::{self, Seal, Unsealed};
use crate::rows::{EventRow, RemovalsRow};
use crate::states::{self, Found};
use crate::subscriptions;
use crate::tables::{EVENTS, REMOVALS, REMOVED, SUBSCRIPTIONS, event_key};
use crate::tx::Tx;

/// How much of an event goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its body. What it was and what became of it stays.
    Body,
    /// All of it, its deliveries and their attempts too.
    Whole,
}

/// What retention has removed from a bucket since its store began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removals {
    /// Whole events.
    pub events: u64,
    /// Bodies of events that were kept otherwise.
    pub bodies: u64,
    /// Deliveries removed that had arrived.
    pub sent: u64,
    /// Deliveries removed that had been given up.
    pub dead: u64,
    /// Of finished events up to this one the bodies are removed.
    pub bodies_upto: Option<EventId>,
}

/// What a step over events that were found came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Those that were removed, or their bodies.
    pub removed: Vec<EventId>,
    /// The last one that was looked at: a step ends early where much has gone.
    pub upto: Option<EventId>,
}

impl Store {
    /// Bytes that events, deliveries and attempts take, as they are counted against the bound. The file has
    /// more: pages that are not full, or free.
    pub fn size(&self) -> u64 {
        self.shared.size.load(Ordering::Relaxed)
    }

    /// What retention has removed.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn removals(&self, bucket: BucketId) -> Result<Removals, StoreError> {
        let row = self.read(|tx| read(self.seal, &tx.open_table(REMOVALS)?, bucket))?;
        let none = row.bodies_upto == [0; 16];
        Ok(Removals {
            events: row.events,
            bodies: row.bodies,
            sent: row.sent,
            dead: row.dead,
            bodies_upto: (!none).then(|| EventId::from_bytes(row.bodies_upto)),
        })
    }

    /// The place up to which nothing is left.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn removed_upto(&self, bucket: BucketId) -> Result<Seq, StoreError> {
        self.read(|tx| removed_upto(self.seal, tx, bucket))
    }

    /// Removes, of these events in order of age, those whose deliveries have all ended by then: as many as
    /// can go without keeping others waiting.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn remove_finished(
        &self,
        bucket: BucketId,
        found: Vec<Found>,
        ended_by: Timestamp,
        part: Part,
    ) -> Result<Swept, StoreError> {
        if found.is_empty() {
            return Ok(Swept::default());
        }
        self.write(128 * found.len(), move |tx: &mut Tx<'_>| {
            let mut row = read(tx.seal, tx.removals.open()?, bucket)?;
            let (mut swept, mut bytes) = (Swept::default(), 0);
            for (event, seq) in found {
                if bytes > limits::RETENTION_STEP_BYTES {
                    break;
                }
                swept.upto = Some(event);
                let record = tx.events.open()?.get((bucket.0, seq.0))?;
                bytes += record.map_or(0, |record| record.value().len());
                if part == Part::Body {
                    row.bodies_upto = row.bodies_upto.max(event.to_bytes());
                }
                let all = deliveries::of_event(tx.seal, tx.deliveries.open()?, bucket, seq);
                // Where one is damaged nobody knows whether it has ended.
                let Some(all) = record::undamaged(all)? else {
                    continue;
                };
                if delivery::ended_at(&all).is_none_or(|ended_at| ended_at > ended_by) {
                    continue;
                }
                let did = match part {
                    Part::Body => remove_body(tx, bucket, seq, &mut row)?,
                    Part::Whole => remove_event(tx, (bucket, seq, event), &all, &mut row)?,
                };
                swept.removed.extend(did.then_some(event));
            }
            close_up(tx, bucket, &mut row)?;
            put(tx, bucket, &row)?;
            Ok(swept)
        })
        .await
    }

    /// Removes the oldest events of a bucket, up to `max`: those that every subscription has receipted and
    /// that were received by then. Where nobody has ever subscribed, everything is still to be delivered.
    /// Answers how many.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn remove_receipted(
        &self,
        bucket: BucketId,
        received_by: Timestamp,
        max: usize,
    ) -> Result<u64, StoreError> {
        if !self.has_receipted(bucket, received_by)? {
            return Ok(0);
        }
        self.write(64 * max, move |tx: &mut Tx<'_>| {
            let mut row = read(tx.seal, tx.removals.open()?, bucket)?;
            let receipted =
                subscriptions::receipted_by_all(tx.seal, tx.subscriptions.open()?, bucket)?;
            let (mut gone, mut bytes) = (Vec::new(), 0);
            let range = (bucket.0, row.upto + 1)..=(bucket.0, receipted.0);
            if range.is_empty() {
                return Ok(0);
            }
            for entry in tx.events.open()?.range(range)?.take(max) {
                let (key, record) = entry?;
                let seq = Seq(key.value().1);
                let (record, key) = (record.value(), event_key(bucket, seq));
                // One that is damaged was passed over and named; its id is not known any more.
                let opened = tx.seal.open::<EventRow>("event", &key, record).ok();
                if opened
                    .as_ref()
                    .is_some_and(|(row, _)| row.received_at() > received_by)
                {
                    break;
                }
                gone.push((seq, opened.map(|(row, _)| row.id()), record.len()));
                bytes += record.len();
                if bytes > limits::RETENTION_STEP_BYTES {
                    break;
                }
            }
            let removed = gone.len() as u64;
            for (seq, id, len) in gone {
                tx.events.open()?.remove((bucket.0, seq.0))?;
                if let Some(id) = id {
                    tx.event_ids.open()?.remove(&id.to_bytes())?;
                }
                tx.shrink(event_cost(len));
                row.upto = seq.0;
            }
            row.events += removed;
            put(tx, bucket, &row)?;
            Ok(removed)
        })
        .await
    }
}

impl Store {
    /// Whether there is something that [`Store::remove_receipted`] would remove: a look costs no commit.
    fn has_receipted(&self, bucket: BucketId, received_by: Timestamp) -> Result<bool, StoreError> {
        self.read(|tx| {
            let receipted = tx.open_table(SUBSCRIPTIONS)?;
            let receipted = subscriptions::receipted_by_all(self.seal, &receipted, bucket)?;
            let upto = removed_upto(self.seal, tx, bucket)?;
            if upto >= receipted {
                return Ok(false);
            }
            let events = tx.open_table(EVENTS)?;
            let range = (bucket.0, upto.0 + 1)..=(bucket.0, receipted.0);
            let Some(first) = events.range(range)?.next() else {
                return Ok(false);
            };
            let (key, record) = first?;
            let key = event_key(bucket, Seq(key.value().1));
            let opened = self.seal.open::<EventRow>("event", &key, record.value());
            Ok(opened.map_or(true, |(row, _)| row.received_at() <= received_by))
        })
    }
}

/// About how many bytes an event takes whose record has so many, with its rows in the indexes.
pub(crate) fn event_cost(record: usize) -> usize {
    record + 192
}

/// Whether an event is there and has its body still. One that is damaged is, as far as this goes.
pub(crate) fn has_body(tx: &mut Tx<'_>, bucket: BucketId, seq: Seq) -> Result<bool, StoreError> {
    let seal = tx.seal;
    let Some(record) = tx.events.open()?.get((bucket.0, seq.0))? else {
        return Ok(false);
    };
    let key = event_key(bucket, seq);
    let opened = seal.open::<EventRow>("event", &key, record.value());
    Ok(opened.map_or(true, |(row, _)| row.has_body()))
}

/// The place up to which retention has left nothing.
pub(crate) fn removed_upto(
    seal: Seal,
    tx: &ReadTransaction,
    bucket: BucketId,
) -> Result<Seq, StoreError> {
    Ok(Seq(read(seal, &tx.open_table(REMOVALS)?, bucket)?.upto))
}

/// Whether retention has emptied a place.
pub(crate) fn is_removed(
    seal: Seal,
    tx: &ReadTransaction,
    bucket: BucketId,
    seq: Seq,
) -> Result<bool, StoreError> {
    let there = tx.open_table(REMOVED)?.get((bucket.0, seq.0))?.is_some();
    Ok(there || seq <= removed_upto(seal, tx, bucket)?)
}

/// One that is damaged says nothing: then what is missing is named as lost, which is the lesser evil.
fn read(
    seal: Seal,
    table: &impl ReadableTable<u32, &'static [u8]>,
    bucket: BucketId,
) -> Result<RemovalsRow, StoreError> {
    let Some(record) = table.get(bucket.0)? else {
        return Ok(RemovalsRow::default());
    };
    let opened = seal.open("removals", &bucket.0.to_be_bytes(), record.value());
    Ok(record::undamaged(opened)?.map_or_else(RemovalsRow::default, |(row, _)| row))
}

pub(crate) fn put(tx: &mut Tx<'_>, bucket: BucketId, row: &RemovalsRow) -> Result<(), StoreError> {
    let record = tx.seal.seal(&bucket.0.to_be_bytes(), row)?;
    tx.removals.open()?.insert(bucket.0, record.as_slice())?;
    Ok(())
}

/// Notes that retention has emptied a place.
pub(crate) fn put_removed(tx: &mut Tx<'_>, bucket: BucketId, seq: Seq) -> Result<(), StoreError> {
    let record = tx.seal.seal(&event_key(bucket, seq), &())?;
    let place = (bucket.0, seq.0);
    tx.removed.open()?.insert(place, record.as_slice())?;
    Ok(())
}

fn remove_body(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    seq: Seq,
    row: &mut RemovalsRow,
) -> Result<bool, StoreError> {
    let (key, place) = (event_key(bucket, seq), (bucket.0, seq.0));
    let (bare, had) = {
        let Some(record) = tx.events.open()?.get(place)? else {
            return Ok(false);
        };
        let opened = tx.seal.open::<EventRow>("event", &key, record.value());
        let opened = record::undamaged(opened)?;
        let Some((event, body)) = opened.filter(|(e, body)| e.has_body() && !body.is_empty())
        else {
            return Ok(false);
        };
        let had = body.len();
        let bare = Unsealed::new(&event.without_body(had as u64), &[])?;
        (bare.seal(tx.seal, &key), had)
    };
    tx.shrink(had);
    tx.events.open()?.insert(place, bare.as_slice())?;
    row.bodies += 1;
    Ok(true)
}

fn remove_event(
    tx: &mut Tx<'_>,
    (bucket, seq, event): (BucketId, Seq, EventId),
    all: &[Delivery],
    row: &mut RemovalsRow,
) -> Result<bool, StoreError> {
    let removed = tx.events.open()?.remove((bucket.0, seq.0))?;
    if let Some(len) = removed.map(|record| record.value().len()) {
        tx.shrink(event_cost(len));
    }
    tx.event_ids.open()?.remove(&event.to_bytes())?;
    if let Some(first) = all.first() {
        states::change(tx, first.key, event, delivery::event_state(all), None)?;
    }
    for delivery in all {
        deliveries::remove(tx, delivery)?;
        match delivery.state {
            State::Sent => row.sent += 1,
            State::Dead => row.dead += 1,
            State::Queued | State::Stalled => {}
        }
    }
    put_removed(tx, bucket, seq)?;
    row.events += 1;
    Ok(true)
}

/// Places that are empty from the first on are remembered as one number.
fn close_up(tx: &mut Tx<'_>, bucket: BucketId, row: &mut RemovalsRow) -> Result<(), StoreError> {
    let table = tx.removed.open()?;
    for _ in 0..limits::RETENTION_PLACES {
        if table.remove((bucket.0, row.upto + 1))?.is_none() {
            break;
        }
        row.upto += 1;
    }
    Ok(())
}
