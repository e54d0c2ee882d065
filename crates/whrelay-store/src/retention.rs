//! Removing what has ended: whole events, or only their bodies. What waits is never removed, whoever asks. It
//! must not know when something is to go, nor why.
//!
//! Places are given without gaps, so each that is emptied is remembered, or it would be taken for a loss: one
//! by one behind the first that is kept, and all before that as one number.

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata};
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{self, Delivery, State};
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::retention::{Held, Part};
use whrelay_core::time::Timestamp;

use crate::deliveries;
use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::events::record_of;
use crate::record::{self, Seal, Unsealed};
use crate::rows::{EventRow, RemovalsRow};
use crate::sizes::Coming;
use crate::states::{self, Found};
use crate::subscriptions;
use crate::tables::{EVENTS, HEADS, REMOVALS, REMOVED, SUBSCRIPTIONS, event_key};
use crate::tombstones;
use crate::tx::Tx;

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

impl RedbStore {
    /// Bytes that events, deliveries and attempts take, as they are counted against the bound. The file has
    /// more: pages that are not full, or free.
    pub fn size(&self) -> u64 {
        self.shared.sizes.total()
    }

    /// Why a bucket takes nothing new in, where its bound or its share of it is reached.
    pub fn over_bound(&self, bucket: BucketId) -> Option<StoreError> {
        let none = Coming::default();
        self.shared.sizes.refusal(self.bound(), bucket, &none, 1)
    }

    /// The same of one bucket.
    pub fn bucket_size(&self, bucket: BucketId) -> u64 {
        self.shared.sizes.of(bucket)
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

    /// How many events there are.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn held(&self) -> Result<Held, StoreError> {
        self.read(|tx| {
            Ok(Held {
                whole: tx.open_table(EVENTS)?.len()?,
                bare: tx.open_table(HEADS)?.len()?,
            })
        })
    }

    /// Removes, of these events in order of age, those whose deliveries have all ended by then, until their
    /// records had more than `max_bytes`.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn remove_finished(
        &self,
        bucket: BucketId,
        found: Vec<Found>,
        ended_by: Timestamp,
        part: Part,
        max_bytes: usize,
    ) -> Result<Swept, StoreError> {
        if found.is_empty() {
            return Ok(Swept::default());
        }
        let (weight, bound) = (weight(part, found.len(), max_bytes), self.bound());
        self.write(weight, move |tx: &mut Tx<'_>| {
            let mut row = read(tx.seal, tx.removals.open()?, bucket)?;
            let (mut swept, mut bytes) = (Swept::default(), 0);
            for (event, seq) in found {
                if bytes > max_bytes {
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
            tombstones::trim(tx, bound)?;
            Ok(swept)
        })
        .await
    }

    /// When the first event of each of these buckets was received of which that part could go at a forwarder,
    /// since every subscription has receipted it. A bucket that has none is left out. Where nobody has ever
    /// subscribed, everything is still to be delivered.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn oldest_receipted(
        &self,
        buckets: &[BucketId],
        part: Part,
        by: Timestamp,
    ) -> Result<Vec<(Timestamp, BucketId)>, StoreError> {
        self.read(|tx| {
            let (subscribed, removals) = (tx.open_table(SUBSCRIPTIONS)?, tx.open_table(REMOVALS)?);
            let (events, heads) = (tx.open_table(EVENTS)?, tx.open_table(HEADS)?);
            let mut oldest = Vec::new();
            for bucket in buckets.iter().copied() {
                let receipted =
                    subscriptions::removable_through(self.seal, &subscribed, bucket, by)?;
                let upto = upto(self.seal, &removals, bucket, part)?;
                if upto < receipted {
                    let first = Seq(upto.0 + 1);
                    let first = Candidate::at(self.seal, &events, &heads, bucket, first)?;
                    oldest.push((first.received_at, bucket));
                }
            }
            Ok(oldest)
        })
    }

    /// Removes the oldest events of one bucket, as [`RedbStore::remove_receipted_of`] does of many.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn remove_receipted(
        &self,
        bucket: BucketId,
        received_by: Timestamp,
        part: Part,
        most: (usize, usize),
    ) -> Result<u64, StoreError> {
        let removed = self.remove_receipted_of(vec![bucket], received_by, part, most);
        removed.await.map(|(removed, _)| removed)
    }

    /// Removes the oldest events of buckets, or only their bodies, one bucket after the other: of up to
    /// `max_events` places, until their records had more than `max_bytes`, those that every subscription has
    /// receipted and that were received by then. Answers how many, and how many of the buckets it came to.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn remove_receipted_of(
        &self,
        buckets: Vec<BucketId>,
        received_by: Timestamp,
        part: Part,
        (max_events, max_bytes): (usize, usize),
    ) -> Result<(u64, usize), StoreError> {
        let weight = weight(part, max_events, max_bytes);
        self.write(weight, move |tx: &mut Tx<'_>| {
            let (mut removed, mut looked_at) = (0, 0);
            let mut left = Left {
                events: max_events,
                bytes: Some(max_bytes),
            };
            for bucket in buckets {
                if left.is_nothing() {
                    break;
                }
                looked_at += 1;
                removed += remove_in(tx, bucket, received_by, part, &mut left)?;
            }
            Ok((removed, looked_at))
        })
        .await
    }
}

/// How much a step may still look at.
struct Left {
    events: usize,
    /// None where more bytes were looked at than it could.
    bytes: Option<usize>,
}

impl Left {
    fn is_nothing(&self) -> bool {
        self.events == 0 || self.bytes.is_none()
    }
}

/// A step in one bucket.
fn remove_in(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    received_by: Timestamp,
    part: Part,
    left: &mut Left,
) -> Result<u64, StoreError> {
    let mut row = read(tx.seal, tx.removals.open()?, bucket)?;
    let table = tx.subscriptions.open()?;
    let receipted = subscriptions::removable_through(tx.seal, table, bucket, received_by)?;
    let mut removed = 0;
    for seq in (removed_upto(&row, part).0 + 1..=receipted.0).map(Seq) {
        if left.is_nothing() {
            break;
        }
        let (events, heads) = (tx.events.open()?, tx.heads.open()?);
        let found = Candidate::at(tx.seal, events, heads, bucket, seq)?;
        if found.received_at > received_by {
            break;
        }
        left.events -= 1;
        left.bytes = left.bytes.and_then(|bytes| bytes.checked_sub(found.len));
        removed += u64::from(match part {
            Part::Body => {
                row.bare_upto = seq.0;
                remove_body(tx, bucket, seq, &mut row)?
            }
            Part::Whole => {
                row.upto = seq.0;
                remove_records(tx, bucket, seq, found.id, &mut row)?
            }
        });
    }
    put(tx, bucket, &row)?;
    Ok(removed)
}

/// About how many bytes are written to remove that part of so many events.
fn weight(part: Part, events: usize, max_bytes: usize) -> usize {
    match part {
        Part::Body => max_bytes.min(1024 * events),
        Part::Whole => 128 * events,
    }
}

/// What a forwarder may remove.
struct Candidate {
    /// Unknown where it is damaged: it was passed over and named then.
    id: Option<EventId>,
    received_at: Timestamp,
    len: usize,
}

impl Candidate {
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

/// The place up to which retention has removed that part of everything.
pub(crate) fn upto(
    seal: Seal,
    removals: &impl ReadableTable<u32, &'static [u8]>,
    bucket: BucketId,
    part: Part,
) -> Result<Seq, StoreError> {
    Ok(removed_upto(&read(seal, removals, bucket)?, part))
}

fn removed_upto(row: &RemovalsRow, part: Part) -> Seq {
    Seq(match part {
        Part::Body => row.upto.max(row.bare_upto),
        Part::Whole => row.upto,
    })
}

/// Whether retention has emptied a place.
pub(crate) fn is_removed(
    seal: Seal,
    tx: &ReadTransaction,
    bucket: BucketId,
    seq: Seq,
) -> Result<bool, StoreError> {
    let there = tx.open_table(REMOVED)?.get((bucket.0, seq.0))?.is_some();
    Ok(there || seq <= upto(seal, &tx.open_table(REMOVALS)?, bucket, Part::Whole)?)
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
    tx.shrink(bucket, event_cost(whole));
    tx.grow(bucket, event_cost(head.len()));
    row.bodies += 1;
    Ok(true)
}

/// Removes an event with its body or without, and its id where one is given. Answers whether it was there.
pub(crate) fn remove_records(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    seq: Seq,
    id: Option<EventId>,
    row: &mut RemovalsRow,
) -> Result<bool, StoreError> {
    let (mut there, mut cost) = (false, 0);
    for table in [tx.events.open()?, tx.heads.open()?] {
        if let Some(record) = table.remove((bucket.0, seq.0))? {
            cost += event_cost(record.value().len());
            there = true;
        }
    }
    tx.shrink(bucket, cost);
    row.events += u64::from(there);
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
    remove_records(tx, bucket, seq, None, row)?;
    tombstones::leave(tx, bucket);
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
