//! How far subscriptions have come, seen from both ends. It must not know tunnels.

use std::ops::Range;

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::retention::Part;

use crate::disk::Store;
use crate::error::StoreError;
use crate::events::last_place;
use crate::record::{self, Seal};
use crate::retention;
use crate::rows::{SourceRow, SubscriptionRow};
use crate::tables::{SOURCES, SUBSCRIPTIONS};
use crate::tx::Tx;

/// How far an agent's store has come with a forwarder's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceMark {
    /// The name of the forwarder's store.
    pub forwarder: String,
    /// The last place on the agent's disk.
    pub seq: Seq,
}

/// A subscription, as a forwarder knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Its name.
    pub name: String,
    /// Up to here nothing was sent any more when it first receipted.
    pub since: Seq,
    /// Up to here everything was receipted since.
    pub acked: Seq,
}

impl Subscription {
    /// Whether its agent has receipted what is at a place.
    pub fn has_receipted(&self, seq: Seq) -> bool {
        self.since < seq && seq <= self.acked
    }
}

impl Store {
    /// The place up to which a subscription has receipted; a new one begins before everything. It
    /// writes nothing, so that a full disk keeps nobody from draining it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn acked(&self, bucket: BucketId, name: &str) -> Result<Seq, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(SUBSCRIPTIONS)?;
            let row = get(self.seal, &table, bucket, name)?;
            Ok(row.map_or(Seq(0), |row| Seq(row.acked)))
        })
    }

    /// The subscriptions of a bucket, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn subscriptions(&self, bucket: BucketId) -> Result<Vec<Subscription>, StoreError> {
        self.read(|tx| {
            let mut all = Vec::new();
            let table = tx.open_table(SUBSCRIPTIONS)?;
            for entry in table.range(of_bucket(bucket))? {
                let (place, record) = entry?;
                let name = place.value().1;
                let row = open(self.seal, bucket, name, record.value())?;
                all.extend(row.map(|SubscriptionRow { acked, since }| Subscription {
                    name: name.to_owned(),
                    since: Seq(since),
                    acked: Seq(acked),
                }));
            }
            Ok(all)
        })
    }

    /// Moves a subscription's place forward: everything up to `upto` is on the agent's disk, if whoever says
    /// so still speaks for it when that is written. Never moves it back.
    ///
    /// # Errors
    /// When it is not on disk; a later ack makes up for it.
    pub async fn ack(
        &self,
        bucket: BucketId,
        name: &str,
        upto: Seq,
        speaks: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(64, move |tx: &mut Tx<'_>| {
            if !speaks() {
                return Ok(());
            }
            let since = match get(tx.seal, tx.subscriptions.open()?, bucket, &name)? {
                Some(row) if row.acked >= upto.0 => return Ok(()),
                Some(row) => row.since,
                None => retention::upto(tx.seal, tx.removals.open()?, bucket, Part::Body)?.0,
            };
            let acked = upto.0;
            put(tx, bucket, &name, SubscriptionRow { acked, since })
        })
        .await
    }

    /// Moves a subscription's place back: its agent has lost what it had receipted since. Answers the place
    /// behind which everything can be sent again: retention may be further.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn take_back(
        &self,
        bucket: BucketId,
        name: &str,
        upto: Seq,
    ) -> Result<Seq, StoreError> {
        let name = name.to_owned();
        self.write(64, move |tx: &mut Tx<'_>| {
            let bare = retention::upto(tx.seal, tx.removals.open()?, bucket, Part::Body)?;
            let row = get(tx.seal, tx.subscriptions.open()?, bucket, &name)?;
            let since = row.map_or(bare.0, |row| row.since);
            let start = upto.max(bare);
            let acked = start.0;
            put(tx, bucket, &name, SubscriptionRow { acked, since })?;
            Ok(start)
        })
        .await
    }

    /// The place of the bucket's newest event; 0 where there was none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn last_seq(&self, bucket: BucketId) -> Result<Seq, StoreError> {
        self.read(|tx| last_place(self.seal, tx, bucket).map(Seq))
    }

    /// How far this agent's store has come, if it ever stored anything of the bucket's.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn source(&self, bucket: BucketId) -> Result<Option<SourceMark>, StoreError> {
        self.read(|tx| {
            let Some(record) = tx.open_table(SOURCES)?.get(bucket.0)? else {
                return Ok(None);
            };
            let key = bucket.0.to_be_bytes();
            let opened = self.seal.open::<SourceRow>("source", &key, record.value());
            let mark = |(row, _): (SourceRow, _)| SourceMark {
                forwarder: row.forwarder,
                seq: Seq(row.seq),
            };
            Ok(record::undamaged(opened)?.map(mark))
        })
    }
}

pub(crate) fn key(bucket: BucketId, name: &str) -> Vec<u8> {
    [&bucket.0.to_be_bytes(), name.as_bytes()].concat()
}

fn of_bucket(bucket: BucketId) -> Range<(u32, &'static str)> {
    (bucket.0, "")..(bucket.0 + 1, "")
}

/// Ids absorb what is sent again, so a place that is damaged costs only time.
fn open(
    seal: Seal,
    bucket: BucketId,
    name: &str,
    record: &[u8],
) -> Result<Option<SubscriptionRow>, StoreError> {
    let opened = seal.open("subscription", &key(bucket, name), record);
    Ok(record::undamaged(opened)?.map(|(row, _)| row))
}

fn get(
    seal: Seal,
    table: &impl ReadableTable<(u32, &'static str), &'static [u8]>,
    bucket: BucketId,
    name: &str,
) -> Result<Option<SubscriptionRow>, StoreError> {
    match table.get((bucket.0, name))? {
        Some(record) => open(seal, bucket, name, record.value()),
        None => Ok(None),
    }
}

/// The place up to which every subscription of a bucket has receipted; 0 where there is none.
pub(crate) fn receipted_by_all(
    seal: Seal,
    table: &impl ReadableTable<(u32, &'static str), &'static [u8]>,
    bucket: BucketId,
) -> Result<Seq, StoreError> {
    let mut least = None;
    for entry in table.range(of_bucket(bucket))? {
        let (place, record) = entry?;
        let row = open(seal, bucket, place.value().1, record.value())?;
        let seq = row.map_or(0, |row| row.acked);
        least = Some(least.map_or(seq, |least: u64| seq.min(least)));
    }
    Ok(Seq(least.unwrap_or(0)))
}

pub(crate) fn put(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    name: &str,
    row: SubscriptionRow,
) -> Result<(), StoreError> {
    let record = tx.seal.seal(&key(bucket, name), &row)?;
    tx.subscriptions
        .open()?
        .insert((bucket.0, name), record.as_slice())?;
    Ok(())
}

/// Records, with the events themselves, how far the agent has come.
pub(crate) fn put_source(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    mark: &SourceMark,
) -> Result<(), StoreError> {
    let row = SourceRow {
        forwarder: mark.forwarder.clone(),
        seq: mark.seq.0,
    };
    let record = tx.seal.seal(&bucket.0.to_be_bytes(), &row)?;
    tx.sources.open()?.insert(bucket.0, record.as_slice())?;
    Ok(())
}
