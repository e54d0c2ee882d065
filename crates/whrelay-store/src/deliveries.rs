//! Deliveries: begun with their event, due at a time, moved by attempts. A delivery that waits has
//! exactly one row in the index of what is due; one that is finished has none. It must not know how
//! a delivery is tried.

use std::collections::HashSet;

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{DeadReason, Delivery, DeliveryKey, DestinationId, State};
use whrelay_core::id::{DeliveryId, EventId};
use whrelay_core::limits;
use whrelay_core::retry::Phase;
use whrelay_core::time::Timestamp;

use crate::disk::Store;
use crate::error::StoreError;
use crate::record;
use crate::rows::{DeliveryRow, DestinationRow};
use crate::tables::{COUNTS, DELIVERIES, DESTINATIONS, DUE, delivery_key, delivery_tuple};
use crate::tx::{Tx, state_key};

/// Rows moved by one transaction where many move: between two, others get their turn.
const CHUNK: usize = 1000;

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

/// What is due at a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DueScan {
    /// Deliveries to try now, in order.
    pub ready: Vec<DeliveryKey>,
    /// When the next one is due, if none is ready.
    pub next_at: Option<Timestamp>,
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
            let table = tx.destinations.open()?;
            let known = all_destinations(table)?;
            let same = |row: &DestinationRow| row.bucket == bucket.0 && row.target == target;
            if let Some((id, _)) = known.iter().find(|(_, row)| same(row)) {
                return Ok(*id);
            }
            let id = known.iter().map(|(id, _)| id.0).max().unwrap_or(0) + 1;
            let row = DestinationRow {
                bucket: bucket.0,
                target,
            };
            let record = record::seal(&id.to_be_bytes(), &row)?;
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
        let all = self.read(|tx| all_destinations(&tx.open_table(DESTINATIONS)?))?;
        Ok(all.into_iter().map(|(id, row)| (id, row.target)).collect())
    }

    /// What is due at a destination, in order, up to `max`, leaving out what is in flight.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn due(
        &self,
        destination: DestinationId,
        now: Timestamp,
        in_flight: &HashSet<DeliveryKey>,
        max: usize,
    ) -> Result<DueScan, StoreError> {
        let mut scan = DueScan::default();
        self.read(|tx| {
            for entry in tx.open_table(DUE)?.range(whole(destination))? {
                let (at, key) = due_entry(entry?.0.value());
                if in_flight.contains(&key) {
                    continue;
                }
                if at > now {
                    scan.next_at = Some(at);
                    break;
                }
                if scan.ready.len() == max {
                    break;
                }
                scan.ready.push(key);
            }
            Ok(scan)
        })
    }

    /// A delivery.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when its bytes are not those that were written.
    pub fn delivery(&self, key: DeliveryKey) -> Result<Option<Delivery>, StoreError> {
        self.read(|tx| get(&tx.open_table(DELIVERIES)?, key))
    }

    /// The deliveries of an event, in the order they were begun.
    ///
    /// # Errors
    /// When the store cannot be read, or a record is damaged.
    pub fn deliveries_of(&self, bucket: BucketId, seq: Seq) -> Result<Vec<Delivery>, StoreError> {
        self.read(|tx| of_event(&tx.open_table(DELIVERIES)?, bucket, seq))
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
            let deliveries = of_event(tx.deliveries.open()?, bucket, seq)?;
            let ordinal = deliveries.last().map_or(0, |last| last.key.ordinal + 1);
            begin(tx, bucket, seq, ordinal, event, &new)
        })
        .await
    }

    /// Makes everything that waits for its backoff at a destination due now, oldest first, and with
    /// it what only waits its turn but was stored while the clock was ahead of `now`. What the
    /// target itself asked to wait for stays, within the longest wait it may ask for.
    ///
    /// # Errors
    /// When not all of it is on disk; what is, stays.
    pub async fn release(
        &self,
        destination: DestinationId,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut released = 0;
        let mut from = (i64::MIN, 0, 0, 0);
        loop {
            let (count, next) = self
                .write(CHUNK * 64, move |tx: &mut Tx<'_>| {
                    release_chunk(tx, destination, from, now)
                })
                .await?;
            released += count;
            match next {
                Some(next) => from = next,
                None => return Ok(released),
            }
        }
    }

    /// Moves what waits for other destinations of the bucket to `destination`, for it is where the
    /// bucket's events go now. An event that has a delivery there already is not doubled: the
    /// delivery elsewhere is discarded. Answers how many were moved.
    ///
    /// # Errors
    /// When not all of it is on disk; what is, stays.
    pub async fn adopt(
        &self,
        bucket: BucketId,
        destination: DestinationId,
    ) -> Result<u64, StoreError> {
        let mut adopted = 0;
        loop {
            let chunk = move |tx: &mut Tx<'_>| adopt_chunk(tx, bucket, destination);
            match self.write(CHUNK * 64, chunk).await? {
                (0, _) => return Ok(adopted),
                (_, moved) => adopted += moved,
            }
        }
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
                if let Ok(Some(delivery)) = get(&deliveries, key) {
                    let oldest = summary.oldest_at.get_or_insert(delivery.created_at);
                    *oldest = delivery.created_at.min(*oldest);
                }
            }
            Ok(summary)
        })
    }
}

type DueKey = (u32, i64, u32, u64, u32);
type DuePlace = (i64, u32, u64, u32);

fn whole(destination: DestinationId) -> std::ops::RangeInclusive<DueKey> {
    let id = destination.0;
    (id, i64::MIN, 0, 0, 0)..=(id, i64::MAX, u32::MAX, u64::MAX, u32::MAX)
}

fn due_entry((_, at, bucket, seq, ordinal): DueKey) -> (Timestamp, DeliveryKey) {
    let key = DeliveryKey {
        bucket: BucketId(bucket),
        seq: Seq(seq),
        ordinal,
    };
    (Timestamp::from_micros(at), key)
}

fn all_destinations(
    table: &impl ReadableTable<u32, &'static [u8]>,
) -> Result<Vec<(DestinationId, DestinationRow)>, StoreError> {
    let mut all = Vec::new();
    for entry in table.iter()? {
        let (id, record) = entry?;
        let key = id.value().to_be_bytes();
        if let Some((row, _)) =
            record::undamaged(record::open("destination", &key, record.value()))?
        {
            all.push((DestinationId(id.value()), row));
        }
    }
    Ok(all)
}

pub(crate) fn get(
    table: &impl ReadableTable<(u32, u64, u32), &'static [u8]>,
    key: DeliveryKey,
) -> Result<Option<Delivery>, StoreError> {
    let Some(record) = table.get(delivery_tuple(key))? else {
        return Ok(None);
    };
    let (row, _) = record::open::<DeliveryRow>("delivery", &delivery_key(key), record.value())?;
    Ok(Some(row.into_delivery(key)))
}

fn of_event(
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
        let (row, _) = record::open::<DeliveryRow>("delivery", &delivery_key(key), record.value())?;
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

/// Why a delivery waits, as its row in the index says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It is new, or was released: due by its age.
    Turn = 0,
    /// The target asked for the wait.
    Held = 1,
    /// It failed and backs off.
    Backoff = 2,
}

impl Wait {
    /// From a row of the index; what no release has written waits its turn.
    fn read(stored: u8) -> Self {
        match stored {
            1 => Self::Held,
            2 => Self::Backoff,
            _ => Self::Turn,
        }
    }
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
    let record = record::seal(&delivery_key(key), &DeliveryRow::new(delivery))?;
    tx.deliveries
        .open()?
        .insert(delivery_tuple(key), record.as_slice())?;
    let row = |destination: DestinationId, at: Timestamp| {
        (
            destination.0,
            at.as_micros(),
            key.bucket.0,
            key.seq.0,
            key.ordinal,
        )
    };
    if let Some(Waiting {
        destination,
        due_at: Some(at),
        ..
    }) = before
    {
        tx.due.open()?.remove(row(destination, at))?;
    }
    if let Some(at) = delivery.next_attempt_at {
        tx.due
            .open()?
            .insert(row(delivery.destination, at), wait as u8)?;
    }
    tx.count(
        before.map(|b| (b.destination, b.state)),
        (delivery.destination, delivery.state),
    );
    Ok(())
}

/// Takes a delivery out of the index. Its row is looked for, since a damaged delivery does not say
/// when it is due.
pub(crate) fn forget_due(tx: &mut Tx<'_>, key: DeliveryKey) -> Result<(), StoreError> {
    tx.due.open()?.retain(|row, _| due_entry(row).1 != key)?;
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

/// The delivery of a row in the index. A row that leads to none that waits is removed.
fn waiting_delivery(tx: &mut Tx<'_>, row: DueKey) -> Result<Option<Delivery>, StoreError> {
    let found = match get(tx.deliveries.open()?, due_entry(row).1) {
        Err(StoreError::Damaged(what)) => {
            tracing::error!(%what, "a delivery is set aside: its record is damaged");
            None
        }
        other => other?.filter(|delivery| !delivery.state.is_finished()),
    };
    if found.is_none() {
        tx.due.open()?.remove(row)?;
    }
    Ok(found)
}

fn release_chunk(
    tx: &mut Tx<'_>,
    destination: DestinationId,
    (at, bucket, seq, ordinal): DuePlace,
    now: Timestamp,
) -> Result<(u64, Option<DuePlace>), StoreError> {
    let longest = now.after(limits::MAX_RETRY_AFTER).as_micros();
    let (mut rows, mut next) = (Vec::new(), None);
    let from = (destination.0, at, bucket, seq, ordinal);
    for entry in tx.due.open()?.range(from..=*whole(destination).end())? {
        let (row, wait) = entry?;
        let row = row.value();
        if rows.len() == CHUNK {
            next = Some((row.1, row.2, row.3, row.4));
            break;
        }
        let released = match Wait::read(wait.value()) {
            Wait::Turn => row.1 > now.as_micros(),
            Wait::Held => row.1 > longest,
            Wait::Backoff => true,
        };
        if released {
            rows.push(row);
        }
    }
    let released = rows.len() as u64;
    for row in rows {
        if let Some(mut delivery) = waiting_delivery(tx, row)? {
            let before = Waiting::of(&delivery);
            delivery.next_attempt_at = Some(delivery.created_at.min(now));
            update(tx, Some(before), &delivery, Wait::Turn)?;
        }
    }
    Ok((released, next))
}

/// Moves some deliveries; answers how many rows were looked at, and how many deliveries moved.
fn adopt_chunk(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    destination: DestinationId,
) -> Result<(u64, u64), StoreError> {
    let mut rows = Vec::new();
    for (id, row) in all_destinations(tx.destinations.open()?)? {
        if row.bucket != bucket.0 || id == destination {
            continue;
        }
        for entry in tx.due.open()?.range(whole(id))?.take(CHUNK - rows.len()) {
            let (row, wait) = entry?;
            rows.push((row.value(), Wait::read(wait.value())));
        }
    }
    let mut moved = 0;
    for (row, wait) in &rows {
        let Some(mut delivery) = waiting_delivery(tx, *row)? else {
            continue;
        };
        let siblings =
            of_event(tx.deliveries.open()?, bucket, delivery.key.seq).unwrap_or_default();
        let there = |sibling: &Delivery| sibling.destination == destination && !sibling.replay;
        let before = Waiting::of(&delivery);
        if !delivery.replay && siblings.iter().any(there) {
            (delivery.state, delivery.reason) = (State::Dead, Some(DeadReason::Discarded));
            delivery.next_attempt_at = None;
        } else {
            delivery.destination = destination;
            moved += 1;
        }
        update(tx, Some(before), &delivery, *wait)?;
    }
    Ok((rows.len() as u64, moved))
}
