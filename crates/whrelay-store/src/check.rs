//! Finds what rot has done to a store, and mends the indexes, whose rows have no checksum of their own. It
//! must not judge records: they judge themselves.

use std::ops::Bound;

use redb::{ReadTransaction, ReadableTable};
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{DeliveryKey, DestinationId, event_state};
use whrelay_core::retention::Part;
use whrelay_core::time::Timestamp;

use crate::deliveries;
use crate::destinations;
use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::events::{last_place, record_of};
use crate::queue::{self, DueKey, Leads, QueueKey, Summary, Tables, Targets, next_queued};
use crate::record::{self, Seal};
use crate::retention;
use crate::tables::{
    ATTEMPTS, DELIVERIES, DESTINATIONS, DUE_DESTINATIONS, EVENT_STATES, EVENTS, HEADS, QUARANTINE,
    QUEUE, REMOVALS, REMOVED, delivery_key, event_key,
};
use crate::tx::{Tx, state_key};

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Events that are whole.
    pub events: u64,
    /// Events that are damaged or gone.
    pub damaged_events: u64,
    /// Events that a salvage has named as lost.
    pub lost_events: u64,
    /// Deliveries and attempts that are whole.
    pub others: u64,
    /// Deliveries and attempts that are damaged.
    pub damaged_others: u64,
    /// Buckets that can take nothing in, since what is known of their last places is damaged.
    pub refusing_buckets: u64,
}

impl Census {
    fn note<T>(&mut self, record: Option<T>) {
        match record {
            Some(_) => self.others += 1,
            None => self.damaged_others += 1,
        }
    }

    /// Whether nothing is damaged, beside what is known to be lost.
    pub fn is_whole(&self) -> bool {
        self.damaged_events == 0 && self.damaged_others == 0 && self.refusing_buckets == 0
    }
}

impl RedbStore {
    /// Reads everything: each event, delivery and attempt. That takes minutes where there are many.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn census(&self) -> Result<Census, StoreError> {
        let mut census = Census::default();
        for bucket in self.buckets()? {
            census.refusing_buckets += self.refusing(&[bucket.id])?.len() as u64;
            let counted = self.read(|tx| self.count_events(tx, bucket.id, &mut census));
            // Where the last place is damaged, the bucket is counted with those that refuse.
            record::undamaged(counted)?;
        }
        self.read(|tx| {
            for entry in tx.open_table(DELIVERIES)?.iter()? {
                let (key, record) = entry?;
                let (bucket, seq, ordinal) = key.value();
                let key = DeliveryKey {
                    bucket: BucketId(bucket),
                    seq: Seq(seq),
                    ordinal,
                };
                census.note(self.seal.parts(&delivery_key(key), record.value()));
            }
            for entry in tx.open_table(ATTEMPTS)?.iter()? {
                let (place, record) = entry?;
                let key = place.value().to_be_bytes();
                census.note(self.seal.parts(&key, record.value()));
            }
            Ok(())
        })?;
        Ok(census)
    }

    /// Looks at every place of a bucket.
    fn count_events(
        &self,
        tx: &ReadTransaction,
        bucket: BucketId,
        census: &mut Census,
    ) -> Result<(), StoreError> {
        let (events, heads) = (tx.open_table(EVENTS)?, tx.open_table(HEADS)?);
        let (named, removed) = (tx.open_table(QUARANTINE)?, tx.open_table(REMOVED)?);
        let gone = retention::upto(self.seal, &tx.open_table(REMOVALS)?, bucket, Part::Whole)?;
        for seq in gone.0 + 1..=last_place(self.seal, tx, bucket)? {
            let place = (bucket.0, seq);
            match record_of(&events, &heads, place)? {
                Some(record) => {
                    let key = event_key(bucket, Seq(seq));
                    match self.seal.parts(&key, record.value()) {
                        Some(_) => census.events += 1,
                        None => census.damaged_events += 1,
                    }
                }
                None if removed.get(place)?.is_some() => {}
                None if named.get(place)?.is_some() => census.lost_events += 1,
                None => census.damaged_events += 1,
            }
        }
        Ok(())
    }

    /// Looks at some rows of the indexes, or deliveries, from where an audit has come to. The indexes are whole where they
    /// lead to every delivery that waits and to every event by its state, and nowhere else.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn audit(&self, from: Audit, max: usize) -> Result<Audited, StoreError> {
        self.read(|tx| match from {
            Audit::Queue(after) => self.audit_queue(tx, after, max),
            Audit::Deliveries(after) => self.audit_deliveries(tx, after, max),
            Audit::States(after) => self.audit_states(tx, after, max),
            Audit::Destinations(after) => self.audit_destinations(tx, after, max),
            Audit::DueDestinations(after) => self.audit_due_destinations(tx, after, max),
        })
    }

    fn audit_queue(
        &self,
        tx: &ReadTransaction,
        after: Option<QueueKey>,
        max: usize,
    ) -> Result<Audited, StoreError> {
        let (queue, tables) = (tx.open_table(QUEUE)?, Tables::open(tx)?);
        let targets = tables.targets(self.seal);
        let (mut last, mut looked) = (after, 0);
        for entry in queue.range(behind(after))? {
            if looked == max {
                return Ok(Audited::SoFar(Audit::Queue(last)));
            }
            let row = entry?.0.value();
            // A row in the wrong place hides those behind it.
            if last >= Some(row) || matches!(targets.of(row)?, Leads::Nowhere) {
                return Ok(Audited::Damaged);
            }
            (last, looked) = (Some(row), looked + 1);
        }
        Ok(Audited::SoFar(Audit::Deliveries(None)))
    }

    fn audit_deliveries(
        &self,
        tx: &ReadTransaction,
        after: Option<Place>,
        max: usize,
    ) -> Result<Audited, StoreError> {
        let (queue, deliveries) = (tx.open_table(QUEUE)?, tx.open_table(DELIVERIES)?);
        let states = tx.open_table(EVENT_STATES)?;
        let (mut last, mut looked) = (after, 0);
        for entry in deliveries.range(behind(after))? {
            if looked == max {
                return Ok(Audited::SoFar(Audit::Deliveries(last)));
            }
            let place = entry?.0.value();
            if last >= Some(place) {
                return Ok(Audited::Damaged);
            }
            (last, looked) = (Some(place), looked + 1);
            for (row, _) in waiting_rows(self.seal, &deliveries, place) {
                if queue.get(row)?.is_none() {
                    return Ok(Audited::Damaged);
                }
            }
            let (bucket, seq) = (BucketId(place.0), Seq(place.1));
            if place.2 == 0
                && let Some((row, seq)) = state_row(self.seal, &deliveries, bucket, seq)?
                && states
                    .get((row.0, row.1, &row.2))?
                    .map(|found| found.value())
                    != Some(seq)
            {
                return Ok(Audited::Damaged);
            }
        }
        Ok(Audited::SoFar(Audit::States(None)))
    }

    /// Every destination that has a queue is found by when something of it is due.
    fn audit_destinations(
        &self,
        tx: &ReadTransaction,
        after: Option<DestinationId>,
        max: usize,
    ) -> Result<Audited, StoreError> {
        let (queue, due) = (tx.open_table(QUEUE)?, tx.open_table(DUE_DESTINATIONS)?);
        let destinations = tx.open_table(DESTINATIONS)?;
        let (mut last, mut looked) = (after, 0);
        let next = |last: Option<DestinationId>| last.map_or(0, |last| last.0.saturating_add(1));
        while let Some(id) = next_queued(&queue, DestinationId(next(last)))? {
            if looked == max {
                return Ok(Audited::SoFar(Audit::Destinations(last)));
            }
            let summary = summary(self.seal, &queue, &destinations, id)?;
            for row in summary.rows(id) {
                if due.get(row)?.is_none() {
                    return Ok(Audited::Damaged);
                }
            }
            if last >= Some(id) {
                break;
            }
            (last, looked) = (Some(id), looked + 1);
        }
        Ok(Audited::SoFar(Audit::DueDestinations(None)))
    }

    fn audit_due_destinations(
        &self,
        tx: &ReadTransaction,
        after: Option<DueKey>,
        max: usize,
    ) -> Result<Audited, StoreError> {
        let (queue, due) = (tx.open_table(QUEUE)?, tx.open_table(DUE_DESTINATIONS)?);
        let destinations = tx.open_table(DESTINATIONS)?;
        let (mut last, mut looked) = (after, 0);
        for entry in due.range(behind(after))? {
            if looked == max {
                return Ok(Audited::SoFar(Audit::DueDestinations(last)));
            }
            let row = entry?.0.value();
            let id = DestinationId(row.2);
            let summary = summary(self.seal, &queue, &destinations, id)?;
            if last >= Some(row) || !summary.rows(id).any(|own| own == row) {
                return Ok(Audited::Damaged);
            }
            (last, looked) = (Some(row), looked + 1);
        }
        Ok(Audited::Whole)
    }

    fn audit_states(
        &self,
        tx: &ReadTransaction,
        after: Option<StateKey>,
        max: usize,
    ) -> Result<Audited, StoreError> {
        let (states, deliveries) = (tx.open_table(EVENT_STATES)?, tx.open_table(DELIVERIES)?);
        let (mut last, mut looked) = (after, 0);
        let from = after
            .as_ref()
            .map(|(bucket, state, id)| (*bucket, *state, id));
        for entry in states.range(behind(from))? {
            if looked == max {
                return Ok(Audited::SoFar(Audit::States(last)));
            }
            let (key, seq) = entry?;
            let (bucket, state, id) = key.value();
            let (row, seq) = ((bucket, state, *id), seq.value());
            let own = state_row(self.seal, &deliveries, BucketId(bucket), Seq(seq))?;
            if last >= Some(row) || own != Some((row, seq)) {
                return Ok(Audited::Damaged);
            }
            (last, looked) = (Some(row), looked + 1);
        }
        Ok(Audited::SoFar(Audit::Destinations(None)))
    }

    /// Makes the indexes whole again: rows that lead nowhere are removed, and every delivery that waits, and every
    /// event, gets its own. Rows of what is damaged stay, so that it is named when it is due. Answers how many
    /// deliveries were put back.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn restore_indexes(&self) -> Result<u64, StoreError> {
        self.write(4096, move |tx: &mut Tx<'_>| {
            remove_stray_rows(tx)?;
            let (mut restored, mut from) = (0, None);
            loop {
                let some = missing_rows(tx, from)?;
                restored += some.deliveries;
                for (row, created_at) in some.rows {
                    tx.queue.open()?.insert(row, created_at)?;
                    tx.changed.note_due(DestinationId(row.0), Timestamp::EPOCH);
                }
                for ((bucket, state, id), seq) in some.states {
                    tx.event_states.open()?.insert((bucket, state, &id), seq)?;
                }
                from = some.last;
                if from.is_none() {
                    restore_due_destinations(tx)?;
                    return Ok(restored);
                }
            }
        })
        .await
    }
}

/// Where an audit of the indexes has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// In the queues, behind this row.
    Queue(Option<QueueKey>),
    /// Among the deliveries, behind this one.
    Deliveries(Option<Place>),
    /// In the index of events by state, behind this row.
    States(Option<StateKey>),
    /// Among destinations with a queue, behind this one.
    Destinations(Option<DestinationId>),
    /// Among the times when destinations have something due, behind this row.
    DueDestinations(Option<DueKey>),
}

impl Default for Audit {
    fn default() -> Self {
        Self::Queue(None)
    }
}

/// What an audit has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audited {
    /// Nothing so far; it goes on from there.
    SoFar(Audit),
    /// Everything has been looked at, and is as it should be.
    Whole,
    /// The indexes disagree with the deliveries.
    Damaged,
}

/// Everything behind a key, or everything.
fn behind<K>(after: Option<K>) -> (Bound<K>, Bound<K>) {
    (
        after.map_or(Bound::Unbounded, Bound::Excluded),
        Bound::Unbounded,
    )
}

/// Deliveries looked at for rows that are missing, before those are put back.
const MENDED_AT_ONCE: usize = 10_000;

/// Rows that are missing in the indexes.
#[derive(Default)]
struct Missing {
    /// With when their deliveries were created.
    rows: Vec<(QueueKey, i64)>,
    /// How many deliveries lack a row.
    deliveries: u64,
    states: Vec<StateRow>,
    /// The last delivery that was looked at, if there are more.
    last: Option<Place>,
}

/// A delivery's bucket, its event's place there, and its number.
type Place = (u32, u64, u32);

/// What is missing of some deliveries.
fn missing_rows(tx: &mut Tx<'_>, after: Option<Place>) -> Result<Missing, StoreError> {
    let seal = tx.seal;
    let (deliveries, queue) = (tx.deliveries.open()?, tx.queue.open()?);
    let (states, mut missing) = (tx.event_states.open()?, Missing::default());
    for (n, entry) in deliveries.range(behind(after))?.enumerate() {
        if n == MENDED_AT_ONCE {
            return Ok(missing);
        }
        let place = entry?.0.value();
        missing.last = Some(place);
        let known = missing.rows.len();
        for (row, created_at) in waiting_rows(seal, deliveries, place) {
            if queue.get(row)?.is_none() {
                missing.rows.push((row, created_at));
            }
        }
        missing.deliveries += u64::from(missing.rows.len() > known);
        let (bucket, seq) = (BucketId(place.0), Seq(place.1));
        if place.2 == 0
            && let Some((row, seq)) = state_row(seal, deliveries, bucket, seq)?
            && states
                .get((row.0, row.1, &row.2))?
                .map(|found| found.value())
                != Some(seq)
        {
            missing.states.push((row, seq));
        }
    }
    missing.last = None;
    Ok(missing)
}

type StateKey = (u32, u8, [u8; 16]);
type StateRow = (StateKey, u64);

/// The row that belongs to an event in the index by state, if a delivery of it is whole.
fn state_row(
    seal: Seal,
    deliveries: &impl ReadableTable<(u32, u64, u32), &'static [u8]>,
    bucket: BucketId,
    seq: Seq,
) -> Result<Option<StateRow>, StoreError> {
    let of_event = deliveries::whole_of_event(seal, deliveries, bucket, seq)?;
    let state = event_state(&of_event);
    let event = of_event.first().map(|delivery| delivery.event.to_bytes());
    let row = state.zip(event);
    Ok(row.map(|(state, event)| ((bucket.0, state_key(state), event), seq.0)))
}

/// The rows that belong to the delivery at a place, if it waits and is whole, and when it was created.
fn waiting_rows(
    seal: Seal,
    deliveries: &impl ReadableTable<(u32, u64, u32), &'static [u8]>,
    (bucket, seq, ordinal): Place,
) -> impl Iterator<Item = (QueueKey, i64)> {
    let key = DeliveryKey {
        bucket: BucketId(bucket),
        seq: Seq(seq),
        ordinal,
    };
    let delivery = deliveries::get(seal, deliveries, key).ok().flatten();
    let created_at = delivery.as_ref().map_or(0, |d| d.created_at.as_micros());
    let rows = delivery.as_ref().map_or([None; 4], queue::rows);
    rows.into_iter().flatten().map(move |row| (row, created_at))
}

/// What the queue of a destination says of when it is due.
fn summary(
    seal: Seal,
    queue: &impl ReadableTable<QueueKey, i64>,
    destinations: &impl ReadableTable<u32, &'static [u8]>,
    id: DestinationId,
) -> Result<Summary, StoreError> {
    Summary::of(queue, id, || {
        destinations::back_since(seal, destinations, id)
    })
}

/// Computes from all queues when their destinations are due.
fn restore_due_destinations(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let (queue, destinations) = (tx.queue.open()?, tx.destinations.open()?);
    let due = tx.due_destinations.open()?;
    due.retain(|_, ()| false)?;
    let mut next = Some(DestinationId(0));
    while let Some(id) = next
        .map(|from| next_queued(queue, from))
        .transpose()?
        .flatten()
    {
        for row in summary(tx.seal, queue, destinations, id)?.rows(id) {
            due.insert(row, ())?;
        }
        next = id.0.checked_add(1).map(DestinationId);
    }
    Ok(())
}

/// Removes the rows of the indexes that are not a delivery's or an event's own. By iteration: a row in the wrong place
/// cannot be looked up.
fn remove_stray_rows(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let seal = tx.seal;
    let targets = Targets {
        seal,
        deliveries: &*tx.deliveries.open()?,
        events: &*tx.events.open()?,
        heads: &*tx.heads.open()?,
        quarantine: &*tx.quarantine.open()?,
    };
    let mut failed = None;
    let mut keeps = |kept: Result<bool, StoreError>| {
        kept.unwrap_or_else(|error| {
            failed.get_or_insert(error);
            true
        })
    };
    tx.queue.open()?.retain(|row, _| {
        let leads = targets.of(row);
        keeps(leads.map(|leads| !matches!(leads, Leads::Nowhere)))
    })?;
    tx.event_states.open()?.retain(|(bucket, state, id), seq| {
        let own = state_row(seal, targets.deliveries, BucketId(bucket), Seq(seq));
        keeps(own.map(|own| own == Some(((bucket, state, *id), seq))))
    })?;
    failed.map_or(Ok(()), Err)
}
