//! Events: appended once, read in order or by id. It must not know where they came from.

use redb::{AccessGuard, ReadOnlyTable, ReadTransaction, ReadableTable};
use whrelay_core::bucket::{Bucket, BucketId, BucketName, Seq};
use whrelay_core::delivery::DeliveryKey;
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::retention::Part;
use whrelay_core::time::Timestamp;

use crate::deliveries::{self, NewDelivery};
use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::record::{Seal, Unsealed};
use crate::retention;
use crate::rows::EventRow;
use crate::sources::{self, SourceMark};
use crate::tables::{
    EVENT_IDS, EVENTS, HEADS, QUARANTINE, REMOVALS, REMOVED, SEQUENCES, event_key,
};
use crate::tombstones;
use crate::tx::{Tx, sequence};

/// An event to store, with the deliveries it begins.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// The event.
    pub event: Event,
    /// Where it goes; none at a forwarder, whose agents read it.
    pub deliveries: Vec<NewDelivery>,
}

/// An event is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The event.
    pub event: EventId,
    /// Its place in the bucket.
    pub seq: Seq,
    /// Whether it was there before, so that nothing was stored.
    pub duplicate: bool,
}

/// An event as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its place in the bucket.
    pub seq: Seq,
    /// The event.
    pub event: Event,
}

/// Events in order.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The events.
    pub events: Vec<StoredEvent>,
    /// The place they reach, damaged events passed over included.
    pub upto: Seq,
    /// Places of events found damaged.
    pub damaged: Vec<Seq>,
}

/// A bucket that is read in order.
struct Walk {
    bucket: BucketId,
    heads: ReadOnlyTable<(u32, u64), &'static [u8]>,
    removed: ReadOnlyTable<(u32, u64), &'static [u8]>,
}

impl Walk {
    /// Names what is missing before a place: places are given without gaps, and what retention removes is
    /// remembered.
    fn pass_over(&self, batch: &mut Batch, place: u64) -> Result<(), StoreError> {
        for seq in (batch.upto.0 + 1..place).map(Seq) {
            let place = (self.bucket.0, seq.0);
            if self.removed.get(place)?.is_none() && self.heads.get(place)?.is_none() {
                batch.damaged.push(seq);
            }
        }
        Ok(())
    }
}

struct Prepared {
    id: EventId,
    /// The size of its body.
    bytes: u64,
    record: Unsealed,
    deliveries: Vec<NewDelivery>,
}

impl RedbStore {
    /// Puts events on disk, in order, together with their deliveries and, at an agent, the place
    /// they reach at its forwarder: all of it or nothing. An event whose id is there already is
    /// left as it is.
    ///
    /// # Errors
    /// When it is unknown whether they are on disk.
    pub async fn append(
        &self,
        bucket: BucketId,
        events: Vec<NewEvent>,
        mark: Option<SourceMark>,
    ) -> Result<Vec<Receipt>, StoreError> {
        let prepare = |NewEvent { event, deliveries }: NewEvent| {
            let id = event.id;
            let (row, body) = EventRow::new(event);
            Ok(Prepared {
                id,
                bytes: body.len() as u64,
                record: Unsealed::new(&row, &body)?,
                deliveries,
            })
        };
        let prepared: Vec<_> = events
            .into_iter()
            .map(prepare)
            .collect::<Result<_, StoreError>>()?;
        let weight = prepared.iter().map(|p| p.record.len()).sum();
        self.take_in(bucket, weight, move |tx: &mut Tx<'_>| {
            let put = prepared
                .into_iter()
                .map(|event| put_event(tx, bucket, event));
            let receipts = put.collect::<Result<Vec<_>, _>>()?;
            if let Some(mark) = &mark {
                sources::put(tx, bucket, mark)?;
            }
            Ok(receipts)
        })
        .await
    }

    /// Reads events after a place, in order, at least one if there is one: up to `max_events`, and
    /// no further one that would take their records over `max_bytes`. Those whose bodies retention has removed
    /// are passed over; damaged ones are, and named.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn read_after(
        &self,
        bucket: &Bucket,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Batch, StoreError> {
        let mut batch = Batch {
            events: Vec::new(),
            upto: after,
            damaged: Vec::new(),
        };
        let mut bytes = 0usize;
        self.read_now(|tx| {
            let table = tx.open_table(EVENTS)?;
            let walk = Walk {
                bucket: bucket.id,
                heads: tx.open_table(HEADS)?,
                removed: tx.open_table(REMOVED)?,
            };
            // A key that has rotted may lie anywhere; nothing was ever stored past the last place.
            let last = last_place(self.seal, tx, bucket.id)?;
            let removals = tx.open_table(REMOVALS)?;
            let bare = retention::upto(self.seal, &removals, bucket.id, Part::Body)?;
            batch.upto = after.max(bare.min(Seq(last)));
            for entry in table.range((bucket.id.0, batch.upto.0 + 1)..=(bucket.id.0, last))? {
                let (key, record) = entry?;
                bytes = bytes.saturating_add(record.value().len());
                let full = batch.events.len() >= max_events || bytes > max_bytes;
                if full && !batch.events.is_empty() {
                    return Ok(batch);
                }
                let seq = Seq(key.value().1);
                if seq <= batch.upto {
                    // A key that has rotted: its own place is missing, and named as that.
                    continue;
                }
                walk.pass_over(&mut batch, seq.0)?;
                batch.upto = seq;
                match open_event(
                    self.seal,
                    bucket.id,
                    seq,
                    bucket.name.clone(),
                    record.value(),
                ) {
                    Ok(event) => batch.events.push(StoredEvent { seq, event }),
                    Err(_) => batch.damaged.push(seq),
                }
            }
            walk.pass_over(&mut batch, last + 1)?;
            batch.upto = after.max(Seq(last));
            Ok(batch)
        })
    }

    /// Those of these buckets that take no event until the store is salvaged, since what is known of their last
    /// places is damaged, and what is damaged.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn refusing(&self, buckets: &[BucketId]) -> Result<Vec<(BucketId, String)>, StoreError> {
        self.read(|tx| {
            let mut refusing = Vec::new();
            for bucket in buckets.iter().copied() {
                match takes_in(self.seal, tx, bucket) {
                    Err(StoreError::Damaged(what)) => refusing.push((bucket, what)),
                    looked => looked?,
                }
            }
            Ok(refusing)
        })
    }

    /// Where an event is; nothing where retention has removed it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn find_event(&self, id: EventId) -> Result<Option<(BucketId, Seq)>, StoreError> {
        self.read(|tx| {
            let (events, heads) = (tx.open_table(EVENTS)?, tx.open_table(HEADS)?);
            tombstones::place_of(&tx.open_table(EVENT_IDS)?, &events, &heads, id)
        })
    }

    /// What the event at a place was, without its body, and whether that is there; `None` where none was ever
    /// stored, or retention has removed it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when its bytes are not those that were written, or it is gone.
    pub fn head_at(&self, bucket: &Bucket, seq: Seq) -> Result<Option<(Event, bool)>, StoreError> {
        self.record_at(bucket.id, seq, |row, body| {
            let has_body = row.has_body();
            let row = match has_body {
                true => row.without_body(body.len() as u64),
                false => row,
            };
            (row.into_event(bucket.name.clone(), &[]), has_body)
        })
    }

    /// The event at a place; `None` where none was ever stored, or retention has removed it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when its bytes are not those that were written, or it is gone.
    pub fn event_at(&self, bucket: &Bucket, seq: Seq) -> Result<Option<Event>, StoreError> {
        self.record_at(bucket.id, seq, |row, body| {
            row.into_event(bucket.name.clone(), body)
        })
    }

    fn record_at<T>(
        &self,
        bucket: BucketId,
        seq: Seq,
        made: impl FnOnce(EventRow, &[u8]) -> T,
    ) -> Result<Option<T>, StoreError> {
        self.read(|tx| {
            let (events, heads) = (tx.open_table(EVENTS)?, tx.open_table(HEADS)?);
            let Some(record) = record_of(&events, &heads, (bucket.0, seq.0))? else {
                let last = last_place(self.seal, tx, bucket)?;
                let removed = retention::is_removed(self.seal, tx, bucket, seq)?;
                return match (1..=last).contains(&seq.0) && !removed {
                    true => Err(StoreError::Damaged(format!("event {}", seq.0))),
                    false => Ok(None),
                };
            };
            let key = event_key(bucket, seq);
            let (row, body) = self.seal.open("event", &key, record.value())?;
            Ok(Some(made(row, body)))
        })
    }

    /// Quarantines what is damaged: all deliveries of an event whose own record is, else only the delivery. What is left of
    /// it stays on disk. Nothing happens where both are whole.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn quarantine(
        &self,
        bucket: &Bucket,
        key: DeliveryKey,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let name = bucket.name.clone();
        self.write(64, move |tx: &mut Tx<'_>| {
            let place = (key.bucket.0, key.seq.0);
            let is_whole = match record_of(tx.events.open()?, tx.heads.open()?, place)? {
                Some(record) => {
                    open_event(tx.seal, key.bucket, key.seq, name, record.value()).is_ok()
                }
                None => false,
            };
            let delivery = deliveries::get(tx.seal, tx.deliveries.open()?, key);
            if is_whole && matches!(delivery, Ok(Some(_))) {
                return Ok(());
            }
            tx.quarantine.open()?.insert(place, now.as_micros())?;
            match is_whole {
                // Its rows in the queue lead nowhere now, and are removed when they are met.
                true => Ok(()),
                false => deliveries::stop_waiting(tx, key),
            }
        })
        .await
    }

    /// Puts an event back in its place, where its record is damaged or gone.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn restore_event(
        &self,
        bucket: &Bucket,
        seq: Seq,
        event: Event,
    ) -> Result<(), StoreError> {
        let (id, bucket) = (event.id, bucket.id);
        let (row, body) = EventRow::new(event);
        let record = Unsealed::new(&row, &body)?;
        self.write(record.len(), move |tx: &mut Tx<'_>| {
            let place = (bucket.0, seq.0);
            let record = record.seal(tx.seal, &event_key(bucket, seq));
            let before = tx.events.open()?.insert(place, record.as_slice())?;
            let before = before.map_or(0, |before| retention::event_cost(before.value().len()));
            tx.shrink(bucket, before);
            tx.grow(bucket, retention::event_cost(record.len()));
            tx.event_ids.open()?.insert(&id.to_bytes(), place)?;
            tx.quarantine.open()?.remove(place)?;
            Ok(())
        })
        .await
    }

    /// Places of the events set aside.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn quarantined(&self) -> Result<Vec<(BucketId, Seq)>, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(QUARANTINE)?;
            let place = |entry: Result<_, redb::StorageError>| {
                let (key, _): (
                    redb::AccessGuard<'_, (u32, u64)>,
                    redb::AccessGuard<'_, i64>,
                ) = entry?;
                let (bucket, seq) = key.value();
                Ok((BucketId(bucket), Seq(seq)))
            };
            table.iter()?.map(place).collect()
        })
    }
}

/// The last place given in a bucket.
pub(crate) fn last_place(
    seal: Seal,
    tx: &ReadTransaction,
    bucket: BucketId,
) -> Result<u64, StoreError> {
    let last = sequence(seal, &tx.open_table(SEQUENCES)?, bucket.0)?;
    let (events, heads) = (tx.open_table(EVENTS)?, tx.open_table(HEADS)?);
    if last == 0 && !is_new(seal, &events, &heads, &tx.open_table(REMOVALS)?, bucket)? {
        return Err(lost_sequence(bucket));
    }
    Ok(last)
}

/// Whether no place of a bucket was ever given, by what is left of all that was at one.
fn is_new<T: ReadableTable<(u32, u64), &'static [u8]>>(
    seal: Seal,
    events: &T,
    heads: &T,
    removals: &impl ReadableTable<u32, &'static [u8]>,
    bucket: BucketId,
) -> Result<bool, StoreError> {
    let all = (bucket.0, 0)..=(bucket.0, u64::MAX);
    let there = events.range(all.clone())?.next().is_some() || heads.range(all)?.next().is_some();
    Ok(!there && retention::upto(seal, removals, bucket, Part::Body)? == Seq(0))
}

/// Whether a bucket can take anything in: its last place is known, and the next one is free.
fn takes_in(seal: Seal, tx: &ReadTransaction, bucket: BucketId) -> Result<(), StoreError> {
    let next = last_place(seal, tx, bucket)? + 1;
    let (events, heads) = (tx.open_table(EVENTS)?, tx.open_table(HEADS)?);
    match record_of(&events, &heads, (bucket.0, next))? {
        Some(_) => Err(given_before(bucket, next)),
        None => Ok(()),
    }
}

fn given_before(bucket: BucketId, place: u64) -> StoreError {
    let bucket = bucket.0;
    StoreError::Damaged(format!(
        "the last number of bucket {bucket} (number {place} was given already)"
    ))
}

fn lost_sequence(bucket: BucketId) -> StoreError {
    StoreError::Damaged(format!("the last number of bucket {}", bucket.0))
}

/// An event's record: whole, or what is left of it without its body.
pub(crate) fn record_of<'a, T: ReadableTable<(u32, u64), &'static [u8]>>(
    events: &'a T,
    heads: &'a T,
    place: (u32, u64),
) -> Result<Option<AccessGuard<'a, &'static [u8]>>, StoreError> {
    match events.get(place)? {
        Some(record) => Ok(Some(record)),
        None => Ok(heads.get(place)?),
    }
}

fn put_event(tx: &mut Tx<'_>, bucket: BucketId, new: Prepared) -> Result<Receipt, StoreError> {
    let id = new.id.to_bytes();
    if let Some(place) = tx.event_ids.open()?.get(&id)? {
        return Ok(Receipt {
            event: new.id,
            seq: Seq(place.value().1),
            duplicate: true,
        });
    }
    if tx.last(bucket.0)? == 0 {
        let (events, heads) = (tx.events.open()?, tx.heads.open()?);
        if !is_new(tx.seal, events, heads, tx.removals.open()?, bucket)? {
            return Err(lost_sequence(bucket));
        }
    }
    let next = tx.last(bucket.0)? + 1;
    if record_of(tx.events.open()?, tx.heads.open()?, (bucket.0, next))?.is_some() {
        return Err(given_before(bucket, next));
    }
    let seq = Seq(tx.next(bucket.0)?);
    let record = new.record.seal(tx.seal, &event_key(bucket, seq));
    let place = (bucket.0, seq.0);
    tx.events.open()?.insert(place, record.as_slice())?;
    tx.event_ids.open()?.insert(&id, (bucket.0, seq.0))?;
    tx.grow(bucket, retention::event_cost(record.len()));
    for (ordinal, delivery) in (0..).zip(new.deliveries) {
        deliveries::begin(tx, bucket, seq, ordinal, (new.id, new.bytes), &delivery)?;
    }
    Ok(Receipt {
        event: new.id,
        seq,
        duplicate: false,
    })
}

fn open_event(
    seal: Seal,
    bucket: BucketId,
    seq: Seq,
    name: BucketName,
    record: &[u8],
) -> Result<Event, StoreError> {
    let key = event_key(bucket, seq);
    let (row, body): (EventRow, &[u8]) = seal.open("event", &key, record)?;
    Ok(row.into_event(name, body))
}
