//! From one format to the next, each in the transaction that opens the store: a crash leaves the old format or
//! the new one. A migration reads tables as they were, by definitions of its own; it must not use those of today.
//!
//! To add one: raise `FORMAT`, add a step here, and keep a fixture of the format before in `tests/fixtures`.

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::record::{self, Seal};
use crate::tables::create_all;

/// Brings a store of an older format to today's, step by step.
pub(crate) fn migrate(tx: &WriteTransaction, seal: Seal, from: u32) -> Result<(), StoreError> {
    for step in from..crate::tables::FORMAT {
        tracing::info!(from = step, to = step + 1, "the store is migrated");
        match step {
            6 => to_7::migrate(tx, seal)?,
            // A table more, and more behind an attempt's record, where the version before has nothing.
            7 => {}
            other => return Err(StoreError::Damaged(format!("format {other}"))),
        }
    }
    Ok(create_all(tx)?)
}

/// Subscriptions know who has them, agents what they have of a forwarder's history by id, and every bucket has a
/// size of its own.
mod to_7 {
    use super::*;

    const SEQUENCES: TableDefinition<'_, u32, (u64, u64)> = TableDefinition::new("sequences_v1");
    const BUCKETS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("buckets_v1");
    const EVENTS: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("events_v1");
    const HEADS: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("heads_v1");
    const OLD_SUBSCRIPTIONS: TableDefinition<'_, (u32, &str), &[u8]> =
        TableDefinition::new("subscriptions_v2");
    const SUBSCRIPTIONS: TableDefinition<'_, (u32, &str), &[u8]> =
        TableDefinition::new("subscriptions_v3");
    const OLD_SOURCES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("sources_v1");
    const SOURCES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("sources_v2");
    const SIZE: u32 = u32::MAX;
    const BUCKET_SIZES: u32 = 1 << 31;
    /// What an event takes beside its record.
    const EVENT_COST: u64 = 192;

    #[derive(Deserialize)]
    struct OldSubscription {
        acked: u64,
        since: u64,
    }

    /// With the fields that format 7 adds: never seen, no holders, not ended, nothing sent again.
    #[derive(Serialize)]
    struct Subscription {
        acked: u64,
        since: u64,
        seen_at: i64,
        holders: Vec<()>,
        ended: Option<()>,
        again_through: Option<u64>,
    }

    #[derive(Deserialize)]
    struct OldSource {
        forwarder: String,
        seq: u64,
    }

    #[derive(Serialize)]
    struct Source {
        forwarder: String,
        seq: u64,
        locator: Vec<(u64, [u8; 16])>,
        whole_after: u64,
    }

    pub(super) fn migrate(tx: &WriteTransaction, seal: Seal) -> Result<(), StoreError> {
        subscriptions(tx, seal)?;
        sources(tx, seal)?;
        sizes(tx, seal)
    }

    fn subscriptions(tx: &WriteTransaction, seal: Seal) -> Result<(), StoreError> {
        {
            let (old, mut new) = (
                tx.open_table(OLD_SUBSCRIPTIONS)?,
                tx.open_table(SUBSCRIPTIONS)?,
            );
            for entry in old.iter()? {
                let (place, row) = entry?;
                let (bucket, name) = place.value();
                let key = [&bucket.to_be_bytes(), name.as_bytes()].concat();
                let opened = seal.open::<OldSubscription>("subscription", &key, row.value());
                // Ids absorb what is sent again, so a row that is damaged costs only time.
                let Some((OldSubscription { acked, since }, _)) = record::undamaged(opened)? else {
                    continue;
                };
                let row = Subscription {
                    acked,
                    since,
                    seen_at: 0,
                    holders: Vec::new(),
                    ended: None,
                    again_through: None,
                };
                new.insert((bucket, name), seal.seal(&key, &row)?.as_slice())?;
            }
        }
        tx.delete_table(OLD_SUBSCRIPTIONS)?;
        Ok(())
    }

    fn sources(tx: &WriteTransaction, seal: Seal) -> Result<(), StoreError> {
        {
            let (old, mut new) = (tx.open_table(OLD_SOURCES)?, tx.open_table(SOURCES)?);
            for entry in old.iter()? {
                let (bucket, row) = entry?;
                let key = bucket.value().to_be_bytes();
                let opened = seal.open::<OldSource>("source", &key, row.value());
                let Some((OldSource { forwarder, seq }, _)) = record::undamaged(opened)? else {
                    continue;
                };
                let row = Source {
                    forwarder,
                    seq,
                    locator: Vec::new(),
                    whole_after: 0,
                };
                new.insert(bucket.value(), seal.seal(&key, &row)?.as_slice())?;
            }
        }
        tx.delete_table(OLD_SOURCES)?;
        Ok(())
    }

    /// A store with one bucket has its size already; of more, each has events only.
    fn sizes(tx: &WriteTransaction, seal: Seal) -> Result<(), StoreError> {
        let mut sequences = tx.open_table(SEQUENCES)?;
        let buckets = tx.open_table(BUCKETS)?;
        let buckets: Vec<u32> = buckets
            .iter()?
            .map(|entry| Ok(entry?.0.value()))
            .collect::<Result<_, StoreError>>()?;
        for bucket in &buckets {
            let size = match buckets.len() {
                1 => sequences.get(SIZE)?.map_or(0, |size| size.value().0),
                _ => events(tx, *bucket)?,
            };
            let key = BUCKET_SIZES | bucket;
            sequences.insert(key, (size, seal.check(key, size)))?;
        }
        Ok(())
    }

    fn events(tx: &WriteTransaction, bucket: u32) -> Result<u64, StoreError> {
        let mut size = 0;
        for table in [EVENTS, HEADS] {
            for entry in tx
                .open_table(table)?
                .range((bucket, 0)..=(bucket, u64::MAX))?
            {
                size += entry?.1.value().len() as u64 + EVENT_COST;
            }
        }
        Ok(size)
    }
}
