//! Every table, defined once. A table's name carries its version. It must not know how rows are
//! encoded. `docs/storage.md` describes the same and changes with this file.

use redb::{TableDefinition, TableError, WriteTransaction};
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::DeliveryKey;

/// The format this version writes.
pub(crate) const FORMAT: u32 = 11;
/// The oldest format this version migrates.
pub(crate) const OLDEST_FORMAT: u32 = 6;

/// Key: a name. Value: plain bytes (`format`, `role`, `id`, and notes).
pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta_v1");
/// Key: what is counted (a bucket's number, [`ATTEMPT_LOG`], [`SIZE`] or a bucket's [`bucket_size`]). Value: the
/// last number given, and its checksum under the store's seal, since a number that rots would be given twice.
pub(crate) const SEQUENCES: TableDefinition<'_, u32, (u64, u64)> =
    TableDefinition::new("sequences_v1");
/// Key: bucket. Value: record of `BucketRow`.
pub(crate) const BUCKETS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("buckets_v1");
/// Key: bucket, place. Value: record of `EventRow`, then the body as it came.
pub(crate) const EVENTS: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("events_v1");
/// Key: bucket, place. Value: record of `EventRow`, of an event whose body retention has removed. Among bodies
/// it would go on taking most of their pages.
pub(crate) const HEADS: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("heads_v1");
/// Key: event id. Value: bucket, place.
pub(crate) const EVENT_IDS: TableDefinition<'_, &[u8; 16], (u32, u64)> =
    TableDefinition::new("event_ids_v1");
/// Key: bucket, subscription. Value: record of `SubscriptionRow`.
pub(crate) const SUBSCRIPTIONS: TableDefinition<'_, (u32, &str), &[u8]> =
    TableDefinition::new("subscriptions_v4");
/// Key: bucket. Value: record of `SourceRow`: how far the agent has come at its forwarder.
pub(crate) const SOURCES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("sources_v2");
/// Key: destination. Value: record of `DestinationRow`.
pub(crate) const DESTINATIONS: TableDefinition<'_, u32, &[u8]> =
    TableDefinition::new("destinations_v3");
/// Key: bucket, place, number of the delivery. Value: record of `DeliveryRow`.
pub(crate) const DELIVERIES: TableDefinition<'_, (u32, u64, u32), &[u8]> =
    TableDefinition::new("deliveries_v4");
/// Key: destination; list, and 8 more for replays; a time in microseconds since 1970; then the delivery's key.
/// Value: when the delivery was created. List 0: new ones, by key (time 0) or, of replays, by creation; 1: by the time
/// before which they are not tried; 2: by the end of their backoff; 3: by when they failed; 4: those that were tried, by
/// key (time 0), no replays; 5: by deadline. A delivery that waits has a row in 5 and in each other list that fits.
pub(crate) const QUEUE: TableDefinition<'_, (u32, u8, i64, u32, u64, u32), i64> =
    TableDefinition::new("queue_v1");
/// Key: 0 and when the first delivery of a destination is due (0 for a new one, or if the endpoint returned since it
/// failed), or 1 and when the last of them that failed did so, in microseconds since 1970; then the destination.
/// Computed from [`QUEUE`].
pub(crate) const DUE_DESTINATIONS: TableDefinition<'_, (u8, i64, u32), ()> =
    TableDefinition::new("due_destinations_v1");
/// Key: bucket, state, event id. Value: place. An event that has deliveries has exactly one row here.
pub(crate) const EVENT_STATES: TableDefinition<'_, (u32, u8, &[u8; 16]), u64> =
    TableDefinition::new("event_states_v1");
/// Key: place in the log of attempts. Value: record of `AttemptRow`.
pub(crate) const ATTEMPTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("attempts_v2");
/// Key: the state after an attempt, its start in microseconds since 1970, its place in the log.
pub(crate) const ATTEMPT_STATES: TableDefinition<'_, (u8, i64, u64), ()> =
    TableDefinition::new("attempt_states_v1");
/// Key: destination, state. Value: deliveries in that state.
pub(crate) const COUNTS: TableDefinition<'_, (u32, u8), u64> = TableDefinition::new("counts_v1");
/// Key: a token's public id. Value: record of `TokenRow`.
pub(crate) const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tokens_v1");
/// Key: bucket, place of an event that is damaged on disk. Value: when that was found, in
/// microseconds since 1970. The damaged record itself stays where it is.
pub(crate) const QUARANTINE: TableDefinition<'_, (u32, u64), i64> =
    TableDefinition::new("quarantine_v1");

/// Key: bucket. Value: record of `RemovalsRow`.
pub(crate) const REMOVALS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("removals_v2");
/// Key: bucket, place of an event that retention has removed, behind the first one that is kept. Value: a
/// record without anything in it.
pub(crate) const REMOVED: TableDefinition<'_, (u32, u64), &[u8]> =
    TableDefinition::new("removed_v1");

/// Key: when a provider signed, in microseconds since 1970, and a digest of what it signed. Value: record of
/// `SignatureClaimRow`: the event whose signature may be made anew.
pub(crate) const SIGNATURES: TableDefinition<'_, (i64, &[u8; 16]), &[u8]> =
    TableDefinition::new("signatures_v1");

/// The key in [`SEQUENCES`] for the log of attempts; buckets count from 1.
pub(crate) const ATTEMPT_LOG: u32 = 0;
/// The key in [`SEQUENCES`] for the bytes that all events, deliveries and attempts take.
pub(crate) const SIZE: u32 = u32::MAX;
/// Above every bucket's number.
const BUCKET_SIZES: u32 = 1 << 31;

/// The key in [`SEQUENCES`] for the bytes that those of a bucket take.
pub(crate) fn bucket_size(bucket: BucketId) -> u32 {
    BUCKET_SIZES | bucket.0
}

/// The bucket whose size a key in [`SEQUENCES`] is for, if it is for one.
pub(crate) fn sized_bucket(key: u32) -> Option<BucketId> {
    (key > BUCKET_SIZES && key != SIZE).then_some(BucketId(key & !BUCKET_SIZES))
}

/// Creates every table, so that readers find them all.
pub(crate) fn create_all(tx: &WriteTransaction) -> Result<(), TableError> {
    tx.open_table(META)?;
    tx.open_table(SEQUENCES)?;
    tx.open_table(BUCKETS)?;
    tx.open_table(EVENTS)?;
    tx.open_table(HEADS)?;
    tx.open_table(EVENT_IDS)?;
    tx.open_table(SUBSCRIPTIONS)?;
    tx.open_table(SOURCES)?;
    tx.open_table(DESTINATIONS)?;
    tx.open_table(DELIVERIES)?;
    tx.open_table(QUEUE)?;
    tx.open_table(DUE_DESTINATIONS)?;
    tx.open_table(EVENT_STATES)?;
    tx.open_table(ATTEMPTS)?;
    tx.open_table(ATTEMPT_STATES)?;
    tx.open_table(COUNTS)?;
    tx.open_table(TOKENS)?;
    tx.open_table(QUARANTINE)?;
    tx.open_table(REMOVALS)?;
    tx.open_table(REMOVED)?;
    tx.open_table(SIGNATURES)?;
    Ok(())
}

/// The bytes of an event's key, as its checksum is seeded.
pub(crate) fn event_key(bucket: BucketId, seq: Seq) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&bucket.0.to_be_bytes());
    key[4..].copy_from_slice(&seq.0.to_be_bytes());
    key
}

/// The bytes of a delivery's key, as its checksum is seeded.
pub(crate) fn delivery_key(key: DeliveryKey) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..12].copy_from_slice(&event_key(key.bucket, key.seq));
    bytes[12..].copy_from_slice(&key.ordinal.to_be_bytes());
    bytes
}

/// A delivery's key as redb has it.
pub(crate) fn delivery_tuple(key: DeliveryKey) -> (u32, u64, u32) {
    (key.bucket.0, key.seq.0, key.ordinal)
}
