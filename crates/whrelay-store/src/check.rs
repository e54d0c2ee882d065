//! Finds what rot has done to a store, and mends the index of what is due, whose rows have no checksum
//! of their own. It must not judge records: they judge themselves.

use std::collections::HashSet;

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey, DestinationId};
use whrelay_core::limits;

use crate::deliveries;
use crate::disk::Store;
use crate::error::StoreError;
use crate::index::{self, DueKey, Wait};
use crate::record::Seal;
use crate::tables::{ATTEMPTS, DELIVERIES, DUE, EVENTS, QUARANTINE, delivery_key};
use crate::tx::Tx;

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
        self.damaged_events == 0 && self.damaged_others == 0
    }
}

impl Store {
    /// Reads everything: each event, delivery and attempt. That takes minutes where there are many.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn census(&self) -> Result<Census, StoreError> {
        let (mut census, mut damaged) = (Census::default(), Vec::new());
        for bucket in self.buckets()? {
            let mut after = Seq(0);
            loop {
                let batch =
                    self.read_after(&bucket, after, limits::MAX_FRAME_EVENTS, limits::MAX_FRAME)?;
                census.events += batch.events.len() as u64;
                damaged.extend(batch.damaged.iter().map(|seq| (bucket.id.0, seq.0)));
                if batch.upto == after {
                    break;
                }
                after = batch.upto;
            }
        }
        self.read(|tx| {
            let (events, named) = (tx.open_table(EVENTS)?, tx.open_table(QUARANTINE)?);
            for place in damaged {
                match named.get(place)?.is_some() && events.get(place)?.is_none() {
                    true => census.lost_events += 1,
                    false => census.damaged_events += 1,
                }
            }
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

    /// Whether the index leads to every delivery of a destination that waits, and nowhere else. It
    /// looks at every row and every delivery, which takes a while where there are many; once `go_on`
    /// says no it stops, content.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn index_is_whole(
        &self,
        destination: DestinationId,
        go_on: impl Fn() -> bool,
    ) -> Result<bool, StoreError> {
        self.read(|tx| {
            let (due, deliveries) = (tx.open_table(DUE)?, tx.open_table(DELIVERIES)?);
            let (mut rows, mut before) = (HashSet::new(), None);
            for entry in due.range(index::whole(destination))? {
                let row = entry?.0.value();
                // A row in the wrong place hides those behind it.
                if before >= Some(row) {
                    return Ok(false);
                }
                before = Some(row);
                rows.insert(row);
            }
            let mut led_to = 0;
            for entry in deliveries.iter()? {
                if !go_on() {
                    return Ok(true);
                }
                let Some(row) = waiting_row(self.seal, &deliveries, entry?.0.value(), destination)
                else {
                    continue;
                };
                if !rows.contains(&row) {
                    return Ok(false);
                }
                led_to += 1;
            }
            Ok(led_to == rows.len())
        })
    }

    /// Makes the index whole again: rows that lead nowhere are removed, and every delivery of the
    /// destination that waits gets its own. Rows of what is damaged stay, so that it is named when it
    /// is due. Answers how many were put back.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn restore_index(&self, destination: DestinationId) -> Result<u64, StoreError> {
        self.write(4096, move |tx: &mut Tx<'_>| {
            let kept = clear_stray_rows(tx)?;
            let mut missing = Vec::new();
            let seal = tx.seal;
            let deliveries = tx.deliveries.open()?;
            for entry in deliveries.iter()? {
                let place = entry?.0.value();
                let row = waiting_row(seal, deliveries, place, destination);
                missing.extend(row.filter(|row| !kept.contains(row)));
            }
            for row in &missing {
                tx.due.open()?.insert(row, Wait::Turn as u8)?;
            }
            Ok(missing.len() as u64)
        })
        .await
    }
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
                tx.events.open()?.get(place)?.map(|_| row)
            }
            Err(_) => Some(row),
        };
        kept.extend(own.filter(|own| *own == row));
    }
    // By iteration: a row in the wrong place cannot be looked up.
    tx.due.open()?.retain(|row, _| kept.contains(&row))?;
    Ok(kept)
}
