//! Finds what rot has done to a store, and mends the indexes, whose rows have no checksum of their own. It
//! must not judge records: they judge themselves.

use std::collections::{HashMap, HashSet};

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata};
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey, DestinationId, event_state};
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

    /// Whether the indexes lead to every delivery of a destination that waits, and to every event by its
    /// state, and nowhere else. It looks at every row and every delivery, which takes a while where there
    /// are many; once `go_on` says no it stops, content.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn indexes_are_whole(
        &self,
        destination: DestinationId,
        go_on: impl Fn() -> bool,
    ) -> Result<bool, StoreError> {
        self.read(|tx| {
            let deliveries = tx.open_table(DELIVERIES)?;
            let (mut rows, mut before) = (0u64, None);
            for entry in tx.open_table(DUE)?.range(index::whole(destination))? {
                let row = entry?.0.value();
                // A row in the wrong place hides those behind it.
                if before >= Some(row) {
                    return Ok(false);
                }
                before = Some(row);
                let (_, key) = index::due_entry(row);
                let delivery = deliveries::get(self.seal, &deliveries, key).ok().flatten();
                if delivery.as_ref().and_then(index::due_row) != Some(row) {
                    return Ok(false);
                }
                rows += 1;
            }
            let states = tx.open_table(EVENT_STATES)?;
            // Each row leads to a delivery of its own, so where there are as many, none is missing.
            let (mut waiting, mut events) = (0, 0);
            for entry in deliveries.iter()? {
                if !go_on() {
                    return Ok(true);
                }
                let (bucket, seq, ordinal) = entry?.0.value();
                let (bucket, seq) = (BucketId(bucket), Seq(seq));
                let key = DeliveryKey {
                    bucket,
                    seq,
                    ordinal,
                };
                if let Ok(Some(delivery)) = deliveries::get(self.seal, &deliveries, key) {
                    let here = delivery.destination == destination;
                    waiting += u64::from(here && index::due_row(&delivery).is_some());
                }
                if ordinal > 0 {
                    continue;
                }
                if let Some((row, place)) = state_row(self.seal, &deliveries, bucket, seq)? {
                    let found = states.get((row.0, row.1, &row.2))?;
                    if found.map(|found| found.value()) != Some(place) {
                        return Ok(false);
                    }
                    events += 1;
                }
            }
            Ok(waiting == rows && events == states.len()?)
        })
    }

    /// Makes the indexes whole again: rows that lead nowhere are removed, and every delivery of the
    /// destination that waits, and every event, gets its own. Rows of what is damaged stay, so that it is
    /// named when it is due. Answers how many deliveries were put back.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn restore_indexes(&self, destination: DestinationId) -> Result<u64, StoreError> {
        self.write(4096, move |tx: &mut Tx<'_>| {
            let kept = clear_stray_rows(tx)?;
            let (mut missing, mut states) = (Vec::new(), HashMap::new());
            let seal = tx.seal;
            let deliveries = tx.deliveries.open()?;
            for entry in deliveries.iter()? {
                let place = entry?.0.value();
                let row = waiting_row(seal, deliveries, place, destination);
                missing.extend(row.filter(|row| !kept.contains(row)));
                if place.2 == 0 {
                    let (bucket, seq) = (BucketId(place.0), Seq(place.1));
                    states.extend(state_row(seal, deliveries, bucket, seq)?);
                }
            }
            for row in &missing {
                tx.due.open()?.insert(row, Wait::Turn as u8)?;
            }
            let table = tx.event_states.open()?;
            table.retain(|(bucket, state, id), place| {
                states.remove(&(bucket, state, *id)) == Some(place)
            })?;
            for ((bucket, state, id), place) in states {
                table.insert((bucket, state, &id), place)?;
            }
            Ok(missing.len() as u64)
        })
        .await
    }
}

type StateRow = ((u32, u8, [u8; 16]), u64);

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

/// The row that belongs to the delivery at a place, if it waits for the destination and is whole.
fn waiting_row(
    seal: Seal,
    deliveries: &impl ReadableTable<(u32, u64, u32), &'static [u8]>,
    (bucket, seq, ordinal): (u32, u64, u32),
    destination: DestinationId,
) -> Option<DueKey> {
    let key = DeliveryKey {
        bucket: BucketId(bucket),
        seq: Seq(seq),
        ordinal,
    };
    let delivery: Delivery = deliveries::get(seal, deliveries, key).ok()??;
    index::due_row(&delivery).filter(|_| delivery.destination == destination)
}

fn clear_stray_rows(tx: &mut Tx<'_>) -> Result<HashSet<DueKey>, StoreError> {
    let mut rows = Vec::new();
    for entry in tx.due.open()?.iter()? {
        rows.push(entry?.0.value());
    }
    let mut kept = HashSet::new();
    for row in rows {
        let (_, key) = index::due_entry(row);
        let own = match deliveries::get(tx.seal, tx.deliveries.open()?, key) {
            Ok(Some(delivery)) => index::due_row(&delivery),
            Ok(None) => {
                let place = (key.bucket.0, key.seq.0);
                record_of(tx.events.open()?, tx.heads.open()?, place)?.map(|_| row)
            }
            Err(_) => Some(row),
        };
        kept.extend(own.filter(|own| *own == row));
    }
    // By iteration: a row in the wrong place cannot be looked up.
    tx.due.open()?.retain(|row, _| kept.contains(&row))?;
    Ok(kept)
}
