//! Finds and mends what rot has done to the index of what is due, whose rows have no checksum of
//! their own. It must not judge records: they judge themselves.

use std::collections::HashSet;

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey, DestinationId};

use crate::deliveries;
use crate::disk::Store;
use crate::error::StoreError;
use crate::index::{self, DueKey, Wait};
use crate::tables::{DELIVERIES, DUE};
use crate::tx::Tx;

impl Store {
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
                let Some(row) = waiting_row(&deliveries, entry?.0.value(), destination) else {
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
            let deliveries = tx.deliveries.open()?;
            for entry in deliveries.iter()? {
                let place = entry?.0.value();
                let row = waiting_row(deliveries, place, destination);
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
    deliveries: &impl ReadableTable<(u32, u64, u32), &'static [u8]>,
    (bucket, seq, ordinal): (u32, u64, u32),
    destination: DestinationId,
) -> Option<DueKey> {
    let key = DeliveryKey {
        bucket: BucketId(bucket),
        seq: Seq(seq),
        ordinal,
    };
    let delivery: Delivery = deliveries::get(deliveries, key).ok()??;
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
        let own = match deliveries::get(tx.deliveries.open()?, key) {
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
