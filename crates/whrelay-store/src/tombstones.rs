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

/// Up to which id the last step looked. Ids of events that are still there are passed over once, and not again in
/// each step.
const LOOKED_UPTO: &str = "tombstones";

/// Removes the oldest kept ids where there are too many. Ids are in order of age.
pub(crate) fn trim(tx: &mut Tx<'_>, bound: Option<Bound>) -> Result<(), StoreError> {
    let events = tx.events.open()?.len()? + tx.heads.open()?.len()?;
    let kept = tx.event_ids.open()?.len()?.saturating_sub(events);
    let excess = kept.saturating_sub(most(bound));
    if excess == 0 {
        return Ok(());
    }
    let from = tx.meta.open()?.get(LOOKED_UPTO)?;
    let from = from.and_then(|from| from.value().try_into().ok());
    let from: [u8; 16] = from.unwrap_or_default();
    let mut some: Vec<([u8; 16], (u32, u64))> = Vec::new();
    for entry in tx
        .event_ids
        .open()?
        .range::<&[u8; 16]>(&from..)?
        .take(limits::TOMBSTONES_LOOKED_AT)
    {
        let (id, place) = entry?;
        some.push((*id.value(), place.value()));
    }
    // Behind the newest it begins anew.
    let mut looked_upto = match some.len() < limits::TOMBSTONES_LOOKED_AT {
        true => [0; 16],
        false => some.last().map_or([0; 16], |(id, _)| *id),
    };
    let mut removed = 0;
    for (id, place) in some {
        if removed == excess {
            looked_upto = id;
            break;
        }
        if record_of(tx.events.open()?, tx.heads.open()?, place)?.is_some() {
            continue;
        }
        tx.event_ids.open()?.remove(&id)?;
        tx.shrink(BucketId(place.0), COST);
        removed += 1;
    }
    tx.meta
        .open()?
        .insert(LOOKED_UPTO, looked_upto.as_slice())?;
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
