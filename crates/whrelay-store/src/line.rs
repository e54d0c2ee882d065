//! The line of a destination that is served in order: the oldest delivery that has not ended is its head,
//! and the others wait behind it. It must not know how one is tried.

use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey, DestinationId};
use whrelay_core::time::Timestamp;

use crate::disk::Store;
use crate::error::StoreError;
use crate::events::last_place;
use crate::index::{Lane, due_entry};
use crate::record::Seal;
use crate::rows::DeliveryRow;
use crate::tables::{DELIVERIES, DUE, QUARANTINE, delivery_key};

/// The head of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The delivery.
    pub key: DeliveryKey,
    /// When it is due; long ago where it is damaged, so that it is found to be.
    pub due_at: Timestamp,
}

impl Store {
    /// The place before which nothing waits in a destination's line, as its index says.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn line_start(
        &self,
        bucket: BucketId,
        destination: DestinationId,
    ) -> Result<Seq, StoreError> {
        self.read(|tx| {
            let mut start = Seq(last_place(self.seal, tx, bucket)? + 1);
            for entry in tx.open_table(DUE)?.range(Lane::Line.rows(destination))? {
                let (_, key) = due_entry(entry?.0.value());
                start = start.min(key.seq);
            }
            Ok(start)
        })
    }

    /// The first delivery of a destination's line that has not ended, from a place on; and the place before
    /// which nothing waits. One that is damaged and not set aside yet may be of the line, and stands in it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn head(
        &self,
        bucket: BucketId,
        destination: DestinationId,
        from: Seq,
    ) -> Result<(Option<Head>, Seq), StoreError> {
        let found = |head: Head| Ok((Some(head), head.key.seq));
        self.read(|tx| {
            let quarantine = tx.open_table(QUARANTINE)?;
            let rest = (bucket.0, from.0, 0)..=(bucket.0, u64::MAX, u32::MAX);
            for entry in tx.open_table(DELIVERIES)?.range(rest)? {
                let (place, record) = entry?;
                let (_, seq, ordinal) = place.value();
                let key = DeliveryKey {
                    bucket,
                    seq: Seq(seq),
                    ordinal,
                };
                match open(self.seal, key, record.value()) {
                    Ok(delivery) => {
                        let in_line = delivery.destination == destination && !delivery.replay;
                        if let Some(due_at) = delivery.next_attempt_at.filter(|_| in_line) {
                            return found(Head { key, due_at });
                        }
                    }
                    Err(_) if quarantine.get((bucket.0, seq))?.is_none() => {
                        let due_at = Timestamp::EPOCH;
                        return found(Head { key, due_at });
                    }
                    Err(_) => {}
                }
            }
            let end = Seq(last_place(self.seal, tx, bucket)? + 1);
            Ok((None, end.max(from)))
        })
    }
}

fn open(seal: Seal, key: DeliveryKey, record: &[u8]) -> Result<Delivery, StoreError> {
    let (row, _) = seal.open::<DeliveryRow>("delivery", &delivery_key(key), record)?;
    Ok(row.into_delivery(key))
}
