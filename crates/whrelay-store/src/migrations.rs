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
            8 => to_9::migrate(tx, seal)?,
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

/// Destinations have names, and a delivery that was begun in place of others has their destination, as if that had
/// had another URL before.
mod to_9 {
    use std::collections::BTreeMap;

    use whrelay_core::destination::DestinationName;
    use whrelay_core::target::Target;

    use super::*;

    const OLD_DESTINATIONS: TableDefinition<'_, u32, &[u8]> =
        TableDefinition::new("destinations_v1");
    const DESTINATIONS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("destinations_v2");
    const DELIVERIES: TableDefinition<'_, (u32, u64, u32), &[u8]> =
        TableDefinition::new("deliveries_v3");
    const COUNTS: TableDefinition<'_, (u32, u8), u64> = TableDefinition::new("counts_v1");

    #[derive(Deserialize)]
    struct OldDestination {
        bucket: u32,
        target: String,
    }

    #[derive(Serialize)]
    struct Destination {
        bucket: u32,
        target: String,
        kind: Kind,
        options: [Option<()>; 9],
        paused_at: Option<i64>,
        offline_since: Option<i64>,
    }

    #[derive(Serialize)]
    enum Kind {
        Lasting { name: String, is_named: bool },
        OneOff,
        Removed { name: String },
    }

    /// Id, event, destination, and so on; the number of the state is the ninth.
    type Delivery = (
        ([u8; 16], [u8; 16], u32, i64, i64, u32),
        (Option<i64>, Option<u32>, u32, Option<i64>, Option<i64>),
        (bool, Option<u64>),
    );
    /// With the numbers of those that it was begun in place of. In a delivery of today, one byte has this place: 0, as
    /// of an empty list, where it is no one-off.
    type OldDelivery = (Delivery, Vec<u32>);

    /// What is known of a destination's deliveries.
    #[derive(Default)]
    struct Seen {
        waiting: u64,
        own: u64,
        replays: u64,
    }

    pub(super) fn migrate(tx: &WriteTransaction, seal: Seal) -> Result<(), StoreError> {
        let mut seen: BTreeMap<u32, Seen> = BTreeMap::new();
        let mut replacing = Vec::new();
        for entry in tx.open_table(DELIVERIES)?.iter()? {
            let (key, record) = entry?;
            let key = key.value();
            let opened = seal.open::<OldDelivery>("delivery", &bytes_of(key), record.value());
            let Some(((delivery, in_place_of), _)) = record::undamaged(opened)? else {
                continue;
            };
            let of = seen.entry(delivery.0.2).or_default();
            of.waiting += u64::from(delivery.1.2 < 2);
            match delivery.2.0 && in_place_of.is_empty() {
                true => of.replays += 1,
                false => of.own += 1,
            }
            if !in_place_of.is_empty() {
                replacing.push((key, in_place_of));
            }
        }
        for (key, in_place_of) in replacing {
            replace(tx, seal, key, &in_place_of)?;
        }
        destinations(tx, seal, &seen)?;
        tx.delete_table(OLD_DESTINATIONS)?;
        Ok(())
    }

    /// Gives deliveries that have ended the destination of the one that was begun in their place.
    fn replace(
        tx: &WriteTransaction,
        seal: Seal,
        key: (u32, u64, u32),
        in_place_of: &[u32],
    ) -> Result<(), StoreError> {
        let mut deliveries = tx.open_table(DELIVERIES)?;
        let read = |table: &redb::Table<'_, (u32, u64, u32), &[u8]>, key| {
            let Some(record) = table.get(key)? else {
                return Ok(None);
            };
            let opened = seal.open::<OldDelivery>("delivery", &bytes_of(key), record.value());
            Ok::<_, StoreError>(record::undamaged(opened)?.map(|(delivery, _)| delivery))
        };
        let Some((by, _)) = read(&deliveries, key)? else {
            return Ok(());
        };
        let sealed = seal.seal(&bytes_of(key), &(by, false))?;
        deliveries.insert(key, sealed.as_slice())?;
        for ordinal in in_place_of {
            let key = (key.0, key.1, *ordinal);
            let Some((mut old, others)) = read(&deliveries, key)? else {
                continue;
            };
            // One that waits has a row in the index, which says where it goes.
            if old.1.2 < 2 {
                continue;
            }
            let state = if old.1.2 == 2 { 2 } else { 3 };
            count(tx, (old.0.2, state), -1)?;
            count(tx, (by.0.2, state), 1)?;
            old.0.2 = by.0.2;
            let sealed = seal.seal(&bytes_of(key), &(old, others))?;
            deliveries.insert(key, sealed.as_slice())?;
        }
        Ok(())
    }

    fn count(tx: &WriteTransaction, key: (u32, u8), change: i64) -> Result<(), StoreError> {
        let mut counts = tx.open_table(COUNTS)?;
        let before = counts.get(key)?.map_or(0, |count| count.value());
        counts.insert(key, before.saturating_add_signed(change))?;
        Ok(())
    }

    /// The newest one to which more than replays went is `default`: it was the target, or one of them. One of before
    /// for which nothing waits is only kept for what had ended there.
    fn destinations(
        tx: &WriteTransaction,
        seal: Seal,
        seen: &BTreeMap<u32, Seen>,
    ) -> Result<(), StoreError> {
        let (old, mut new) = (
            tx.open_table(OLD_DESTINATIONS)?,
            tx.open_table(DESTINATIONS)?,
        );
        let mut all = Vec::new();
        for entry in old.iter()? {
            let (id, record) = entry?;
            let id = id.value();
            let opened =
                seal.open::<OldDestination>("destination", &id.to_be_bytes(), record.value());
            all.extend(record::undamaged(opened)?.map(|(row, _)| (id, row)));
        }
        let is_one_off = |id: &u32| seen.get(id).is_some_and(|of| of.own == 0 && of.replays > 0);
        let newest = all
            .iter()
            .map(|(id, _)| *id)
            .filter(|id| !is_one_off(id))
            .max();
        let mut names: Vec<DestinationName> = vec![DestinationName::first()];
        for (id, OldDestination { bucket, target }) in all {
            let name = match target.parse::<Target>() {
                _ if Some(id) == newest => DestinationName::first(),
                Ok(target) => DestinationName::made_of(&target, |name| names.contains(name)),
                Err(error) => return Err(StoreError::Damaged(error.to_string())),
            };
            names.push(name.clone());
            let name = name.to_string();
            let waits = seen.get(&id).is_some_and(|of| of.waiting > 0);
            let kind = match (is_one_off(&id), waits || Some(id) == newest) {
                (true, _) => Kind::OneOff,
                (false, true) => Kind::Lasting {
                    name,
                    is_named: false,
                },
                (false, false) => Kind::Removed { name },
            };
            let row = Destination {
                bucket,
                target,
                kind,
                options: [None; 9],
                paused_at: None,
                offline_since: None,
            };
            new.insert(id, seal.seal(&id.to_be_bytes(), &row)?.as_slice())?;
        }
        Ok(())
    }

    fn bytes_of((bucket, seq, ordinal): (u32, u64, u32)) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&bucket.to_be_bytes());
        bytes[4..12].copy_from_slice(&seq.to_be_bytes());
        bytes[12..].copy_from_slice(&ordinal.to_be_bytes());
        bytes
    }
}
