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
use crate::events::record_of;
use crate::record::{self, Seal, Unsealed};
use crate::rows::{EventRow, RemovalsRow};
use crate::states::{self, Found};
use crate::subscriptions;
use crate::tables::{EVENTS, HEADS, REMOVALS, REMOVED, SUBSCRIPTIONS, event_key};
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

    /// The place up to which a forwarder has nothing to send any more: what is left there has no body.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn bare_upto(&self, bucket: BucketId) -> Result<Seq, StoreError> {
        self.read(|tx| bare_upto(self.seal, tx, bucket))
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
                let record = record_of(tx.events.open()?, tx.heads.open()?, (bucket.0, seq.0))?;
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

    /// Removes the oldest events of a bucket, or only their bodies: of up to `max` of those that every
    /// subscription has receipted and that were received by then. Where nobody has ever subscribed, everything
    /// is still to be delivered. Answers how many, and nothing once there are none to look at.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn remove_receipted(
        &self,
        bucket: BucketId,
        received_by: Timestamp,
        part: Part,
        max: usize,
    ) -> Result<Option<u64>, StoreError> {
        if !self.has_receipted(bucket, received_by, part)? {
            return Ok(None);
        }
        self.write(64 * max, move |tx: &mut Tx<'_>| {
            let mut row = read(tx.seal, tx.removals.open()?, bucket)?;
            let receipted =
                subscriptions::receipted_by_all(tx.seal, tx.subscriptions.open()?, bucket)?;
            let (mut removed, mut bytes) = (0, 0);
            for seq in (removed_already(&row, part) + 1..=receipted.0)
                .take(max)
                .map(Seq)
            {
                let found = {
                    let (events, heads) = (tx.events.open()?, tx.heads.open()?);
                    Receipted::at(tx.seal, events, heads, bucket, seq)?
                };
                if found.received_at > received_by || bytes > limits::RETENTION_STEP_BYTES {
                    break;
                }
                bytes += found.len;
                match part {
                    Part::Body => {
                        removed += u64::from(remove_body(tx, bucket, seq, &mut row)?);
                        row.bare_upto = seq.0;
                    }
                    Part::Whole => {
                        let there = remove_records(tx, bucket, seq, found.id)?;
                        removed += u64::from(there);
                        row.events += u64::from(there);
                        row.upto = seq.0;
                    }
                }
            }
            put(tx, bucket, &row)?;
            Ok(Some(removed))
        })
        .await
    }
}

impl Store {
    /// Whether there is something that [`Store::remove_receipted`] would look at: a look costs no commit.
    fn has_receipted(
        &self,
        bucket: BucketId,
        received_by: Timestamp,
        part: Part,
    ) -> Result<bool, StoreError> {
        self.read(|tx| {
            let receipted = tx.open_table(SUBSCRIPTIONS)?;
            let receipted = subscriptions::receipted_by_all(self.seal, &receipted, bucket)?;
            let removals = read(self.seal, &tx.open_table(REMOVALS)?, bucket)?;
            let first = Seq(removed_already(&removals, part) + 1);
            if first > receipted {
                return Ok(false);
            }
            let (events, heads) = (tx.open_table(EVENTS)?, tx.open_table(HEADS)?);
            let first = Receipted::at(self.seal, &events, &heads, bucket, first)?;
            Ok(first.received_at <= received_by)
        })
    }
}

/// The place up to which nothing of it is left.
fn removed_already(row: &RemovalsRow, part: Part) -> u64 {
    match part {
        Part::Body => row.upto.max(row.bare_upto),
        Part::Whole => row.upto,
    }
}

/// What every subscription has receipted.
struct Receipted {
    /// Unknown where it is damaged: it was passed over and named then.
    id: Option<EventId>,
    received_at: Timestamp,
    len: usize,
}

impl Receipted {
    /// What is at a place, if only that nothing is.
    fn at<T: ReadableTable<(u32, u64), &'static [u8]>>(
        seal: Seal,
        events: &T,
        heads: &T,
        bucket: BucketId,
        seq: Seq,
    ) -> Result<Self, StoreError> {
        let record = record_of(events, heads, (bucket.0, seq.0))?;
        let bytes = record.as_ref().map_or(&[][..], |record| record.value());
        let opened = seal.open::<EventRow>("event", &event_key(bucket, seq), bytes);
        let row = opened.ok().map(|(row, _)| row);
        Ok(Self {
            id: row.as_ref().map(EventRow::id),
            received_at: row.map_or(Timestamp::EPOCH, |row| row.received_at()),
            len: bytes.len(),
        })
    }
}

/// About how many bytes an event takes whose record has so many, with its rows in the indexes.
pub(crate) fn event_cost(record: usize) -> usize {
    record + 192
}

/// Whether an event is there and has its body still. One that is damaged is, as far as this goes.
pub(crate) fn has_body(tx: &mut Tx<'_>, bucket: BucketId, seq: Seq) -> Result<bool, StoreError> {
    Ok(tx.events.open()?.get((bucket.0, seq.0))?.is_some())
}

/// The place up to which retention has left nothing.
pub(crate) fn removed_upto(
    seal: Seal,
    tx: &ReadTransaction,
    bucket: BucketId,
) -> Result<Seq, StoreError> {
    Ok(Seq(read(seal, &tx.open_table(REMOVALS)?, bucket)?.upto))
}

/// The place up to which no event has a body to send.
pub(crate) fn bare_upto(
    seal: Seal,
    tx: &ReadTransaction,
    bucket: BucketId,
) -> Result<Seq, StoreError> {
    let row = read(seal, &tx.open_table(REMOVALS)?, bucket)?;
    Ok(Seq(removed_already(&row, Part::Body)))
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

/// Removes a body. What never had one is left: it can be delivered again.
fn remove_body(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    seq: Seq,
    row: &mut RemovalsRow,
) -> Result<bool, StoreError> {
    let (key, place) = (event_key(bucket, seq), (bucket.0, seq.0));
    let (head, whole) = {
        let Some(record) = tx.events.open()?.get(place)? else {
            return Ok(false);
        };
        let opened = tx.seal.open::<EventRow>("event", &key, record.value());
        let Some((event, body)) = record::undamaged(opened)?.filter(|(_, body)| !body.is_empty())
        else {
            return Ok(false);
        };
        let head = Unsealed::new(&event.without_body(body.len() as u64), &[])?;
        (head.seal(tx.seal, &key), record.value().len())
    };
    tx.events.open()?.remove(place)?;
    tx.heads.open()?.insert(place, head.as_slice())?;
    tx.shrink(event_cost(whole));
    tx.grow(event_cost(head.len()));
    row.bodies += 1;
    Ok(true)
}

/// Removes an event with its body or without. Answers whether it was there.
pub(crate) fn remove_records(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    seq: Seq,
    id: Option<EventId>,
) -> Result<bool, StoreError> {
    let (mut there, mut cost) = (false, 0);
    for table in [tx.events.open()?, tx.heads.open()?] {
        if let Some(record) = table.remove((bucket.0, seq.0))? {
            cost += event_cost(record.value().len());
            there = true;
        }
    }
    tx.shrink(cost);
    if let Some(id) = id {
        tx.event_ids.open()?.remove(&id.to_bytes())?;
    }
    Ok(there)
}

fn remove_event(
    tx: &mut Tx<'_>,
    (bucket, seq, event): (BucketId, Seq, EventId),
    all: &[Delivery],
    row: &mut RemovalsRow,
) -> Result<bool, StoreError> {
    remove_records(tx, bucket, seq, Some(event))?;
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
