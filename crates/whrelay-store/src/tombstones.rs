//! Ids of events that an agent's retention has removed: kept a while longer, so that an event is not delivered
//! again because its forwarder sends it again. It must not know why it would.

use redb::{ReadableTable, ReadableTableMetadata};
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::retention::Bound;

use crate::error::StoreError;
use crate::events::record_of;
use crate::tx::Tx;

/// About how many bytes a kept id takes.
const COST: usize = 64;

/// The event that was at a place leaves its id behind.
pub(crate) fn leave(tx: &mut Tx<'_>, bucket: BucketId) {
    tx.grow(bucket, COST);
}

/// How many ids are kept: a tenth of the store's bound at most.
fn most(bound: Option<Bound>) -> u64 {
    let share = bound.map_or(u64::MAX, |bound| bound.bytes / 10 / COST as u64);
    share.min(limits::TOMBSTONES)
}

/// Removes the oldest kept ids where there are too many. Ids are in order of age, so that those of events that
/// are still there and older are few.
pub(crate) fn trim(tx: &mut Tx<'_>, bound: Option<Bound>) -> Result<(), StoreError> {
    let events = tx.events.open()?.len()? + tx.heads.open()?.len()?;
    let kept = tx.event_ids.open()?.len()?.saturating_sub(events);
    let excess = kept.saturating_sub(most(bound));
    if excess == 0 {
        return Ok(());
    }
    let mut oldest: Vec<([u8; 16], (u32, u64))> = Vec::new();
    for entry in tx
        .event_ids
        .open()?
        .iter()?
        .take(limits::TOMBSTONES_LOOKED_AT)
    {
        let (id, place) = entry?;
        oldest.push((*id.value(), place.value()));
    }
    let mut removed = 0;
    for (id, place) in oldest {
        let there = record_of(tx.events.open()?, tx.heads.open()?, place)?.is_some();
        if there || removed == excess {
            continue;
        }
        tx.event_ids.open()?.remove(&id)?;
        tx.shrink(BucketId(place.0), COST);
        removed += 1;
    }
    Ok(())
}

/// Where an event is that has not been removed.
pub(crate) fn place_of<T: ReadableTable<(u32, u64), &'static [u8]>>(
    ids: &impl ReadableTable<&'static [u8; 16], (u32, u64)>,
    events: &T,
    heads: &T,
    id: EventId,
) -> Result<Option<(BucketId, Seq)>, StoreError> {
    let Some(place) = ids.get(&id.to_bytes())?.map(|place| place.value()) else {
        return Ok(None);
    };
    let there = record_of(events, heads, place)?.is_some();
    Ok(there.then_some((BucketId(place.0), Seq(place.1))))
}
