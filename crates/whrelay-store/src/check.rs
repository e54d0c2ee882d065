//! Finds what rot has done to a store, and mends the indexes, whose rows have no checksum of their own. It
//! must not judge records: they judge themselves.

use std::ops::Bound;

use redb::{ReadTransaction, ReadableTable};
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey, event_state};
use whrelay_core::retention::Part;

use crate::deliveries;
use crate::disk::Store;
use crate::error::StoreError;
use crate::events::{last_place, record_of};
use crate::index::{self, DueKey, Wait};
use crate::record::{self, Seal};
use crate::retention;
use crate::tables::{
    ATTEMPTS, DELIVERIES, DUE, EVENT_STATES, EVENTS, HEADS, QUARANTINE, REMOVALS, REMOVED,
    delivery_key, event_key,
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

impl Store {
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
            Audit::Due(after) => self.audit_due(tx, after, max),
            Audit::Deliveries(after) => self.audit_deliveries(tx, after, max),
            Audit::States(after) => self.audit_states(tx, after, max),
        })
    }

    fn audit_due(
        &self,
        tx: &ReadTransaction,
        after: Option<DueKey>,
        max: usize,
    ) -> Result<Audited, StoreError> {
        let (due, deliveries) = (tx.open_table(DUE)?, tx.open_table(DELIVERIES)?);
        let events = (tx.open_table(EVENTS)?, tx.open_table(HEADS)?);
        let (mut last, mut looked) = (after, 0);
        for entry in due.range(behind(after))? {
            if looked == max {
                return Ok(Audited::SoFar(Audit::Due(last)));
            }
            let row = entry?.0.value();
            let is_kept = keeps_due(self.seal, &deliveries, (&events.0, &events.1), row)?;
            // A row in the wrong place hides those behind it.
            if last >= Some(row) || !is_kept {
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
        let (due, deliveries) = (tx.open_table(DUE)?, tx.open_table(DELIVERIES)?);
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
            if let Some(row) = waiting_row(self.seal, &deliveries, place)
                && due.get(row)?.is_none()
            {
                return Ok(Audited::Damaged);
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
        Ok(Audited::Whole)
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
                restored += some.due.len() as u64;
                for row in some.due {
                    tx.due.open()?.insert(row, Wait::Turn as u8)?;
                }
                for ((bucket, state, id), seq) in some.states {
                    tx.event_states.open()?.insert((bucket, state, &id), seq)?;
                }
                from = some.last;
                if from.is_none() {
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
    /// In the index of what is due, behind this row.
    Due(Option<DueKey>),
    /// Among the deliveries, behind this one.
    Deliveries(Option<Place>),
    /// In the index of events by state, behind this row.
    States(Option<StateKey>),
}

impl Default for Audit {
    fn default() -> Self {
        Self::Due(None)
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
    due: Vec<DueKey>,
    states: Vec<StateRow>,
    /// The last delivery that was looked at, if there are more.
    last: Option<Place>,
}

/// A delivery's bucket, its event's place there, and its number.
type Place = (u32, u64, u32);

/// What is missing of some deliveries.
fn missing_rows(tx: &mut Tx<'_>, after: Option<Place>) -> Result<Missing, StoreError> {
    let seal = tx.seal;
    let (deliveries, due) = (tx.deliveries.open()?, tx.due.open()?);
    let (states, mut missing) = (tx.event_states.open()?, Missing::default());
    for (n, entry) in deliveries.range(behind(after))?.enumerate() {
        if n == MENDED_AT_ONCE {
            return Ok(missing);
        }
        let place = entry?.0.value();
        missing.last = Some(place);
        if let Some(row) = waiting_row(seal, deliveries, place)
            && due.get(row)?.is_none()
        {
            missing.due.push(row);
        }
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

/// The row that belongs to the delivery at a place, if it waits and is whole.
fn waiting_row(
    seal: Seal,
    deliveries: &impl ReadableTable<(u32, u64, u32), &'static [u8]>,
    (bucket, seq, ordinal): (u32, u64, u32),
) -> Option<DueKey> {
    let key = DeliveryKey {
        bucket: BucketId(bucket),
        seq: Seq(seq),
        ordinal,
    };
    let delivery: Delivery = deliveries::get(seal, deliveries, key).ok()??;
    index::due_row(&delivery)
}

/// Whether a row of the index of what is due is a delivery's own, or leads to what is damaged.
fn keeps_due<T: ReadableTable<(u32, u64), &'static [u8]>>(
    seal: Seal,
    deliveries: &impl ReadableTable<(u32, u64, u32), &'static [u8]>,
    (events, heads): (&T, &T),
    row: DueKey,
) -> Result<bool, StoreError> {
    let (_, key) = index::due_entry(row);
    match deliveries::get(seal, deliveries, key) {
        Ok(Some(delivery)) => Ok(index::due_row(&delivery) == Some(row)),
        // An event without its delivery is damaged, and named when it is due.
        Ok(None) => Ok(record_of(events, heads, (key.bucket.0, key.seq.0))?.is_some()),
        Err(_) => Ok(true),
    }
}

/// Removes the rows of the indexes that are not a delivery's or an event's own. By iteration: a row in the wrong place
/// cannot be looked up.
fn remove_stray_rows(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let seal = tx.seal;
    let (deliveries, events, heads) = (tx.deliveries.open()?, tx.events.open()?, tx.heads.open()?);
    let mut failed = None;
    tx.due.open()?.retain(|row, _| {
        let kept = keeps_due(seal, deliveries, (events, heads), row);
        kept.unwrap_or_else(|error| {
            failed.get_or_insert(error);
            true
        })
    })?;
    tx.event_states.open()?.retain(|(bucket, state, id), seq| {
        let own = state_row(seal, deliveries, BucketId(bucket), Seq(seq));
        own.map_or_else(
            |error| {
                failed.get_or_insert(error);
                true
            },
            |own| own == Some(((bucket, state, *id), seq)),
        )
    })?;
    failed.map_or(Ok(()), Err)
}
