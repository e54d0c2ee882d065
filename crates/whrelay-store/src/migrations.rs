//! From one format to the next, each in the transaction that opens the store: a crash leaves the old format or
//! the new one. A migration reads tables as they were, by definitions of its own; it must not use those of today.
//!
//! To add one: raise `FORMAT`, add a step here, and keep a fixture of the format before in `tests/fixtures`.

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::record::{self, Seal, Unsealed};
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
            9 => to_10::migrate(tx, seal)?,
            10 => to_11::migrate(tx, seal)?,
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

/// Deliveries store why they wait, and queues have a list for each order of reading.
mod to_10 {
    use std::collections::BTreeMap;

    use super::*;

    type Key = (u32, u64, u32);
    type Record = &'static [u8];

    const OLD_DELIVERIES: TableDefinition<'_, Key, Record> = TableDefinition::new("deliveries_v3");
    const DELIVERIES: TableDefinition<'_, Key, Record> = TableDefinition::new("deliveries_v4");
    const OLD_DUE: TableDefinition<'_, (u32, i64, u32, u64, u32), u8> =
        TableDefinition::new("due_v2");
    const QUEUE: TableDefinition<'_, (u32, u8, i64, u32, u64, u32), i64> =
        TableDefinition::new("queue_v1");
    const DUE_DESTINATIONS: TableDefinition<'_, (u8, i64, u32), ()> =
        TableDefinition::new("due_destinations_v1");
    const OLD_DESTINATIONS: TableDefinition<'_, u32, Record> =
        TableDefinition::new("destinations_v2");
    const DESTINATIONS: TableDefinition<'_, u32, Record> = TableDefinition::new("destinations_v3");

    /// Id, event, destination, when it was created, deadline, attempts.
    type Start = ([u8; 16], [u8; 16], u32, i64, i64, u32);
    /// First failure, begin of the durable phase, the number of the state.
    type History = (Option<i64>, Option<u32>, u32);
    /// End, replay, the last attempt, one-off.
    type End = (Option<i64>, bool, Option<u64>, bool);

    #[derive(Serialize)]
    enum Wait {
        Turn,
        NotBefore(i64),
        Backoff { since: i64, delay_us: u64 },
        Offline { since: i64, delay_us: u64 },
    }

    /// When the first delivery of a destination is due, and when the last of them has failed.
    type Due = BTreeMap<u32, (i64, Option<i64>)>;

    pub(super) fn migrate(tx: &WriteTransaction, seal: Seal) -> Result<(), StoreError> {
        destinations(tx, seal)?;
        let mut due = Due::new();
        deliveries(tx, seal, &mut due)?;
        {
            let mut table = tx.open_table(DUE_DESTINATIONS)?;
            for (id, (due_at, failed_at)) in due {
                table.insert((0, due_at, id), ())?;
                if let Some(at) = failed_at {
                    table.insert((1, at, id), ())?;
                }
            }
        }
        tx.delete_table(OLD_DELIVERIES)?;
        tx.delete_table(OLD_DUE)?;
        tx.delete_table(OLD_DESTINATIONS)?;
        Ok(())
    }

    /// A destination is not failing, and was never seen to return.
    fn destinations(tx: &WriteTransaction, seal: Seal) -> Result<(), StoreError> {
        let (old, mut new) = (
            tx.open_table(OLD_DESTINATIONS)?,
            tx.open_table(DESTINATIONS)?,
        );
        for entry in old.iter()? {
            let (id, record) = entry?;
            let key = id.value().to_be_bytes();
            let record = match seal.parts(&key, record.value()) {
                Some((head, _)) => Unsealed::of_head(&[head, &[0, 0]].concat()).seal(seal, &key),
                // What is damaged stays so, under its number.
                None => record.value().to_vec(),
            };
            new.insert(id.value(), record.as_slice())?;
        }
        Ok(())
    }

    fn deliveries(tx: &WriteTransaction, seal: Seal, due: &mut Due) -> Result<(), StoreError> {
        let (old, mut new) = (tx.open_table(OLD_DELIVERIES)?, tx.open_table(DELIVERIES)?);
        let (old_due, mut queue) = (tx.open_table(OLD_DUE)?, tx.open_table(QUEUE)?);
        for entry in old.iter()? {
            let (key, record) = entry?;
            let key = key.value();
            type Old = (Start, History, Option<i64>, End);
            let opened = seal.open::<Old>("delivery", &bytes_of(key), record.value());
            let Some(((start, history, at, end), _)) = record::undamaged(opened)? else {
                new.insert(key, record.value())?;
                continue;
            };
            let wait = at.map(|at| {
                let row = (start.2 * 2 + u32::from(end.1), at, key.0, key.1, key.2);
                let why = old_due.get(row)?.map_or(0, |why| why.value());
                Ok::<_, StoreError>(wait(why, at, start.3))
            });
            let wait = wait.transpose()?;
            if let Some(wait) = &wait {
                for (list, at) in rows(wait, &start, end.1) {
                    let list = list + if end.1 { 8 } else { 0 };
                    queue.insert((start.2, list, at, key.0, key.1, key.2), start.3)?;
                }
                note(due, start.2, wait);
            }
            let today = (start, history, wait, end, 0u64);
            let sealed = seal.seal(&bytes_of(key), &today)?;
            new.insert(key, sealed.as_slice())?;
        }
        damaged(seal, &old, &old_due, &mut queue, due)
    }

    /// A delivery that is damaged stays due, so that it is named.
    fn damaged(
        seal: Seal,
        old: &impl ReadableTable<Key, Record>,
        old_due: &impl ReadableTable<(u32, i64, u32, u64, u32), u8>,
        queue: &mut redb::Table<'_, (u32, u8, i64, u32, u64, u32), i64>,
        due: &mut Due,
    ) -> Result<(), StoreError> {
        for entry in old_due.iter()? {
            let (to, at, bucket, seq, ordinal) = entry?.0.value();
            let key = (bucket, seq, ordinal);
            let is_whole = match old.get(key)? {
                Some(record) => seal.parts(&bytes_of(key), record.value()).is_some(),
                None => false,
            };
            if !is_whole {
                let (destination, is_replay) = (to / 2, to % 2 == 1);
                let (list, time) = if is_replay { (8, at) } else { (0, 0) };
                queue.insert((destination, list, time, bucket, seq, ordinal), at)?;
                note(due, destination, &Wait::Turn);
            }
        }
        Ok(())
    }

    /// Why a delivery waits. When it failed is not known, and before its endpoint returns again in any case.
    fn wait(why: u8, at: i64, created_at: i64) -> Wait {
        let delay_us = u64::try_from(at.saturating_sub(created_at)).unwrap_or(0);
        let since = created_at;
        match why {
            1 => Wait::NotBefore(at),
            2 => Wait::Backoff { since, delay_us },
            3 => Wait::Offline { since, delay_us },
            _ => Wait::Turn,
        }
    }

    /// The lists of a delivery, and its time in each.
    fn rows(wait: &Wait, start: &Start, is_replay: bool) -> Vec<(u8, i64)> {
        let (created_at, deadline_at, attempts) = (start.3, start.4, start.5);
        let mut rows = vec![(5, deadline_at)];
        match *wait {
            Wait::Turn => rows.push((0, if is_replay { created_at } else { 0 })),
            Wait::NotBefore(at) => {
                rows.push((1, at));
                if attempts > 0 && !is_replay {
                    rows.push((4, 0));
                }
            }
            Wait::Backoff { since, delay_us } | Wait::Offline { since, delay_us } => {
                rows.push((2, end_of(since, delay_us)));
                rows.push((3, since));
                if !is_replay {
                    rows.push((4, 0));
                }
            }
        }
        rows
    }

    fn end_of(since: i64, delay_us: u64) -> i64 {
        since.saturating_add_unsigned(delay_us)
    }

    fn note(due: &mut Due, id: u32, wait: &Wait) {
        let (due_at, failed_at) = match *wait {
            Wait::Turn => (0, None),
            Wait::NotBefore(at) => (at, None),
            Wait::Backoff { since, delay_us } | Wait::Offline { since, delay_us } => {
                (end_of(since, delay_us), Some(since))
            }
        };
        let of = due.entry(id).or_insert((due_at, failed_at));
        *of = (of.0.min(due_at), of.1.max(failed_at));
    }

    fn bytes_of((bucket, seq, ordinal): Key) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&bucket.to_be_bytes());
        bytes[4..12].copy_from_slice(&seq.to_be_bytes());
        bytes[12..].copy_from_slice(&ordinal.to_be_bytes());
        bytes
    }
}

/// Subscriptions store the newest lease that was taken.
mod to_11 {
    use super::*;

    type Key = (u32, &'static str);

    const OLD: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("subscriptions_v3");
    const NEW: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("subscriptions_v4");

    pub(super) fn migrate(tx: &WriteTransaction, seal: Seal) -> Result<(), StoreError> {
        {
            let (old, mut new) = (tx.open_table(OLD)?, tx.open_table(NEW)?);
            for entry in old.iter()? {
                let (place, record) = entry?;
                let (bucket, name) = place.value();
                let key = [&bucket.to_be_bytes(), name.as_bytes()].concat();
                let record = match seal.parts(&key, record.value()) {
                    Some((head, _)) => Unsealed::of_head(&[head, &[0]].concat()).seal(seal, &key),
                    // What is damaged stays so, under its name.
                    None => record.value().to_vec(),
                };
                new.insert((bucket, name), record.as_slice())?;
            }
        }
        tx.delete_table(OLD)?;
        Ok(())
    }
}
