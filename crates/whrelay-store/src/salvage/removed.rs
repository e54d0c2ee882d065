//! Leaves out what retention has removed: its pages may still lie in the file, and nothing of it may be
//! delivered again.

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};

use super::Kept;
use crate::attempts;
use crate::error::StoreError;
use crate::retention;
use crate::rows::{AttemptMore, AttemptRow, EventRow, RemovalsRow};
use crate::tables::event_key;
use crate::tx::Tx;

/// Removes it from what was gathered, and remembers that it is gone.
pub(super) fn leave_out(tx: &mut Tx<'_>, kept: &mut Kept) -> Result<(), StoreError> {
    if kept.removals.is_empty() && kept.removed.is_empty() {
        return Ok(());
    }
    leave_out_events(tx, kept)?;
    let gone = |key: (u32, u64, u32)| kept.is_removed(key.0, key.1);
    tx.deliveries.open()?.retain(|key, _| !gone(key))?;
    leave_out_attempts(tx, kept)?;
    for (bucket, row) in &kept.removals {
        // A body may have come back, from a page that still has it.
        let all = (*bucket, 0)..=(*bucket, u64::MAX);
        let first = tx.events.open()?.range(all)?.next().transpose()?;
        let before = first.map_or(u64::MAX, |(place, _)| place.value().1 - 1);
        let row = RemovalsRow {
            bodies_upto: [0; 16],
            bare_upto: row.bare_upto.min(before),
            ..*row
        };
        retention::put(tx, BucketId(*bucket), &row)?;
    }
    for (bucket, seq) in &kept.removed {
        let upto = kept.removals.get(bucket).map_or(0, |row| row.upto);
        if *seq > upto {
            retention::put_removed(tx, BucketId(*bucket), Seq(*seq))?;
        }
    }
    Ok(())
}

fn leave_out_events(tx: &mut Tx<'_>, kept: &mut Kept) -> Result<(), StoreError> {
    let seal = tx.seal;
    let mut gone = Vec::new();
    for table in [tx.events.open()?, tx.heads.open()?] {
        for entry in table.iter()? {
            let (place, record) = entry?;
            let (bucket, seq) = place.value();
            if kept.is_removed(bucket, seq) {
                let (bucket, seq) = (BucketId(bucket), Seq(seq));
                let key = event_key(bucket, seq);
                let (row, _): (EventRow, _) = seal.open("event", &key, record.value())?;
                gone.push((bucket, seq, row.id()));
            }
        }
    }
    for (bucket, seq, id) in gone {
        // It was counted when it was removed.
        let mut counted = RemovalsRow::default();
        retention::remove_records(tx, bucket, seq, Some(id), &mut counted)?;
        kept.events -= 1;
    }
    Ok(())
}

fn leave_out_attempts(tx: &mut Tx<'_>, kept: &mut Kept) -> Result<(), StoreError> {
    let seal = tx.seal;
    let mut gone = Vec::new();
    for entry in tx.attempts.open()?.iter()? {
        let (place, record) = entry?;
        let place = place.value();
        let (row, _): (AttemptRow, _) =
            seal.open("attempt", &place.to_be_bytes(), record.value())?;
        let attempt = row.into_attempt(AttemptMore::default());
        if kept.is_removed(attempt.key.bucket.0, attempt.key.seq.0) {
            let row = attempts::index_row(place, &attempt);
            let bucket = attempt.key.bucket;
            gone.push((place, row, (bucket, attempts::cost(record.value()))));
        }
    }
    for (place, row, (bucket, cost)) in gone {
        tx.attempts.open()?.remove(place)?;
        tx.attempt_states.open()?.remove(row)?;
        tx.shrink(bucket, cost);
        kept.attempts -= 1;
    }
    Ok(())
}
