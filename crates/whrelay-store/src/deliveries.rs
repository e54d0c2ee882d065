//! Deliveries: begun with their event, moved by attempts, each with its own row in the index while it
//! waits. It must not know how a delivery is tried.

use std::time::Duration;

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{
    Attempt, DeadReason, Delivery, DeliveryKey, DestinationId, State, event_state,
};
use whrelay_core::id::{DeliveryId, EventId};
use whrelay_core::queue::WaitReason;
use whrelay_core::retry::Phase;
use whrelay_core::time::Timestamp;

use crate::attempts;
use crate::changes::Added;
use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::queue::{self, Rows};
use crate::record::{self, Seal};
use crate::retention;
use crate::rows::DeliveryRow;
use crate::states;
use crate::tables::{COUNTS, DELIVERIES, delivery_key, delivery_tuple};
use crate::tx::{Tx, state_key};

/// A delivery to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDelivery {
    /// Its name.
    pub id: DeliveryId,
    /// Where it goes.
    pub destination: DestinationId,
    /// Now.
    pub created_at: Timestamp,
    /// When it is first due: now, or later.
    pub due_at: Timestamp,
    /// After this, no attempt starts.
    pub deadline_at: Timestamp,
    /// Whether a person asked for it again.
    pub replay: bool,
    /// Whether a person does not want it: then it is known, and ends as it begins.
    pub passed_over: bool,
    /// Whether it goes to the URL of this replay alone.
    pub one_off: bool,
}

/// A stored event, and another delivery of it to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// Its bucket.
    pub bucket: BucketId,
    /// Its place there.
    pub seq: Seq,
    /// Its id.
    pub event: EventId,
    /// The delivery.
    pub new: NewDelivery,
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

/// About how many bytes a delivery takes, with its row in the index of what is due.
const DELIVERY_COST: usize = 256;

impl RedbStore {
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

    /// Begins further deliveries of stored events: all of them or none, but for events that retention has
    /// removed, or their bodies. One that was begun already, as a try says whose end is unknown, is not
    /// begun twice.
    ///
    /// # Errors
    /// When they are not on disk.
    pub async fn deliver_again(&self, all: Vec<Again>) -> Result<Vec<Delivery>, StoreError> {
        self.write(256 * all.len(), move |tx: &mut Tx<'_>| {
            let mut begun = Vec::with_capacity(all.len());
            for Again {
                bucket,
                seq,
                event,
                new,
            } in &all
            {
                if !retention::has_body(tx, *bucket, *seq)? {
                    continue;
                }
                let there = of_event(tx.seal, tx.deliveries.open()?, *bucket, *seq);
                let there = record::undamaged(there)?.unwrap_or_default();
                let bytes = there.iter().map(|known| known.bytes).max().unwrap_or(0);
                if let Some(known) = there.into_iter().find(|known| known.id == new.id) {
                    begun.push(known);
                    continue;
                }
                let table = tx.deliveries.open()?;
                let last = (bucket.0, seq.0, 0)..=(bucket.0, seq.0, u32::MAX);
                let last = table.range(last)?.next_back().transpose()?;
                let ordinal = last.map_or(0, |(key, _)| key.value().2 + 1);
                begun.push(begin(tx, *bucket, *seq, ordinal, (*event, bytes), new)?);
            }
            Ok(begun)
        })
        .await
    }

    /// Gives deliveries up as these attempts say, where they still wait. Answers which did.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn give_up(&self, attempts: Vec<Attempt>) -> Result<Vec<DeliveryKey>, StoreError> {
        self.write(512 * attempts.len(), move |tx: &mut Tx<'_>| {
            let mut given_up = Vec::new();
            for attempt in attempts {
                let key = attempt.key;
                let found = get(tx.seal, tx.deliveries.open()?, key);
                if record::undamaged(found)?
                    .flatten()
                    .is_some_and(|delivery| !delivery.state.is_finished())
                {
                    tx.changed.note_withdrawn(attempt.destination, key);
                    attempts::record(tx, attempt)?;
                    given_up.push(key);
                }
            }
            Ok(given_up)
        })
        .await
    }

    /// Lets a delivery that waits be due so much later than `now`, without an attempt.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn postpone(
        &self,
        key: DeliveryKey,
        now: Timestamp,
        delay: Duration,
    ) -> Result<(), StoreError> {
        self.write(512, move |tx: &mut Tx<'_>| {
            let found = get(tx.seal, tx.deliveries.open()?, key)?;
            let Some(mut delivery) = found.filter(|delivery| !delivery.state.is_finished()) else {
                return Ok(());
            };
            let before = Before::of(&delivery);
            delivery.wait = Some(WaitReason::Backoff { since: now, delay });
            tx.changed.note_due(delivery.destination, now.after(delay));
            update(tx, Some(before), &delivery)
        })
        .await
    }

    /// Lets deliveries that wait be due now. Answers which did wait.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn retry_now(&self, keys: Vec<DeliveryKey>) -> Result<Vec<DeliveryKey>, StoreError> {
        self.write(512 * keys.len(), move |tx: &mut Tx<'_>| {
            let mut hurried = Vec::new();
            for key in keys {
                let found = record::undamaged(get(tx.seal, tx.deliveries.open()?, key))?.flatten();
                let Some(mut delivery) = found.filter(|found| !found.state.is_finished()) else {
                    continue;
                };
                let before = Before::of(&delivery);
                delivery.wait = Some(WaitReason::Turn);
                tx.changed.note_due(delivery.destination, Timestamp::EPOCH);
                update(tx, Some(before), &delivery)?;
                hurried.push(key);
            }
            Ok(hurried)
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

/// All deliveries of an event.
pub(crate) fn of_event(
    seal: Seal,
    table: &impl ReadableTable<(u32, u64, u32), &'static [u8]>,
    bucket: BucketId,
    seq: Seq,
) -> Result<Vec<Delivery>, StoreError> {
    each_of_event(seal, table, bucket, seq)?
        .into_iter()
        .collect()
}

/// The deliveries of an event that are not damaged.
pub(crate) fn whole_of_event(
    seal: Seal,
    table: &impl ReadableTable<(u32, u64, u32), &'static [u8]>,
    bucket: BucketId,
    seq: Seq,
) -> Result<Vec<Delivery>, StoreError> {
    let each = each_of_event(seal, table, bucket, seq)?;
    Ok(each.into_iter().flatten().collect())
}

fn each_of_event(
    seal: Seal,
    table: &impl ReadableTable<(u32, u64, u32), &'static [u8]>,
    bucket: BucketId,
    seq: Seq,
) -> Result<Vec<Result<Delivery, StoreError>>, StoreError> {
    let mut all = Vec::new();
    for entry in table.range((bucket.0, seq.0, 0)..=(bucket.0, seq.0, u32::MAX))? {
        let (key, record) = entry?;
        let key = DeliveryKey {
            bucket,
            seq,
            ordinal: key.value().2,
        };
        let opened = seal.open::<DeliveryRow>("delivery", &delivery_key(key), record.value());
        all.push(opened.map(|(row, _)| row.into_delivery(key)));
    }
    Ok(all)
}

/// Begins a delivery: it waits until it is first due. Where that is later, it was meant to be.
pub(crate) fn begin(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    seq: Seq,
    ordinal: u32,
    (event, bytes): (EventId, u64),
    new: &NewDelivery,
) -> Result<Delivery, StoreError> {
    let NewDelivery {
        id,
        destination,
        created_at,
        due_at,
        deadline_at,
        replay,
        passed_over,
        one_off,
    } = *new;
    let (state, reason, wait) = match passed_over {
        true => (State::Dead, Some(DeadReason::Discarded), None),
        false if due_at > created_at => (State::Queued, None, Some(WaitReason::NotBefore(due_at))),
        false => (State::Queued, None, Some(WaitReason::Turn)),
    };
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
        state,
        reason,
        wait,
        bytes,
        ended_at: passed_over.then_some(created_at),
        replay,
        last_attempt: None,
        one_off,
    };
    match (wait, delivery.waiting()) {
        (Some(WaitReason::Turn), Some(delivery)) => tx.changed.note_added(Added {
            destination,
            delivery,
            at: tx.at,
        }),
        (Some(_), _) => tx.changed.note_due(destination, due_at),
        (None, _) => {}
    }
    update(tx, None, &delivery)?;
    Ok(delivery)
}

/// Where a delivery stood in the indexes and the counts before a change.
#[derive(Clone, Copy)]
pub(crate) struct Before {
    destination: DestinationId,
    state: State,
    rows: Rows,
}

impl Before {
    pub(crate) fn of(delivery: &Delivery) -> Self {
        Self {
            destination: delivery.destination,
            state: delivery.state,
            rows: queue::rows(delivery),
        }
    }
}

/// Writes a delivery, and moves it in the indexes and the counts.
pub(crate) fn update(
    tx: &mut Tx<'_>,
    before: Option<Before>,
    delivery: &Delivery,
) -> Result<(), StoreError> {
    let key = delivery.key;
    if let Some(before) = before.filter(|before| before.destination != delivery.destination) {
        queue::touch(tx, before.destination)?;
    }
    queue::touch(tx, delivery.destination)?;
    let table = tx.deliveries.open()?;
    let mut of_event = whole_of_event(tx.seal, table, key.bucket, key.seq)?;
    let was = event_state(&of_event);
    let record = tx
        .seal
        .seal(&delivery_key(key), &DeliveryRow::new(delivery))?;
    table.insert(delivery_tuple(key), record.as_slice())?;
    match of_event.iter_mut().find(|other| other.key == key) {
        Some(same) => same.clone_from(delivery),
        None => of_event.push(delivery.clone()),
    }
    let is = event_state(&of_event);
    if was != is || before.is_none() {
        states::change(tx, key, delivery.event, was, is)?;
    }
    let rows = before.map_or([None; 4], |before| before.rows);
    queue::change(tx, rows, delivery)?;
    if before.is_none() {
        tx.grow(key.bucket, DELIVERY_COST);
    }
    tx.count(
        before.map(|b| (b.destination, b.state)),
        Some((delivery.destination, delivery.state)),
    );
    Ok(())
}

/// Removes a delivery that has ended. Its event's row in the index by state is the caller's.
pub(crate) fn remove(tx: &mut Tx<'_>, delivery: &Delivery) -> Result<(), StoreError> {
    let key = delivery_tuple(delivery.key);
    if tx.deliveries.open()?.remove(key)?.is_some() {
        tx.shrink(delivery.key.bucket, DELIVERY_COST);
        tx.count(Some((delivery.destination, delivery.state)), None);
    }
    attempts::remove_all(tx, delivery)
}

/// Gives up all deliveries of an event that is damaged. The rows of one that is damaged itself lead nowhere once that is
/// quarantined, and are removed when they are met.
pub(crate) fn stop_waiting(tx: &mut Tx<'_>, key: DeliveryKey) -> Result<(), StoreError> {
    let DeliveryKey { bucket, seq, .. } = key;
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
            let before = Before::of(&delivery);
            delivery.end(DeadReason::Damaged);
            tx.changed
                .note_withdrawn(delivery.destination, delivery.key);
            update(tx, Some(before), &delivery)?;
        }
    }
    Ok(())
}
