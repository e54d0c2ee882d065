//! How far subscriptions have come, seen from both ends. It must not know tunnels.

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};

use crate::disk::Store;
use crate::error::StoreError;
use crate::events::last_place;
use crate::record::{self, Seal};
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

impl Store {
    /// The place up to which a subscription has receipted; a new one begins before everything. It
    /// writes nothing, so that a full disk keeps nobody from draining it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn acked(&self, bucket: BucketId, name: &str) -> Result<Seq, StoreError> {
        self.read(|tx| {
            Ok(acked(self.seal, &tx.open_table(SUBSCRIPTIONS)?, bucket, name)?.unwrap_or_default())
        })
    }

    /// The subscriptions of a bucket by name, each with the place up to which it has receipted.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn subscriptions(&self, bucket: BucketId) -> Result<Vec<(String, Seq)>, StoreError> {
        self.read(|tx| all(self.seal, &tx.open_table(SUBSCRIPTIONS)?, bucket))
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
            match acked(tx.seal, tx.subscriptions.open()?, bucket, &name)? {
                Some(seq) if seq >= upto => Ok(()),
                Some(_) | None => put(tx, bucket, &name, upto),
            }
        })
        .await
    }

    /// Moves a subscription's place back: its agent has lost what it had receipted since.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn take_back(
        &self,
        bucket: BucketId,
        name: &str,
        upto: Seq,
    ) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(64, move |tx: &mut Tx<'_>| put(tx, bucket, &name, upto))
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

fn acked(
    seal: Seal,
    table: &impl ReadableTable<(u32, &'static str), &'static [u8]>,
    bucket: BucketId,
    name: &str,
) -> Result<Option<Seq>, StoreError> {
    let Some(record) = table.get((bucket.0, name))? else {
        return Ok(None);
    };
    let key = key(bucket, name);
    // Ids absorb what is sent again, so a place that is damaged costs only time.
    let opened = seal.open::<SubscriptionRow>("subscription", &key, record.value());
    Ok(record::undamaged(opened)?.map(|(row, _)| Seq(row.acked)))
}

fn all(
    seal: Seal,
    table: &impl ReadableTable<(u32, &'static str), &'static [u8]>,
    bucket: BucketId,
) -> Result<Vec<(String, Seq)>, StoreError> {
    let mut all = Vec::new();
    for entry in table.range((bucket.0, "")..(bucket.0 + 1, ""))? {
        let (place, _) = entry?;
        let name = place.value().1;
        let seq = acked(seal, table, bucket, name)?.unwrap_or_default();
        all.push((name.to_owned(), seq));
    }
    Ok(all)
}

/// The place up to which every subscription of a bucket has receipted; 0 where there is none.
pub(crate) fn receipted_by_all(
    seal: Seal,
    table: &impl ReadableTable<(u32, &'static str), &'static [u8]>,
    bucket: BucketId,
) -> Result<Seq, StoreError> {
    let all = all(seal, table, bucket)?;
    let least = all.into_iter().map(|(_, seq)| seq).min();
    Ok(least.unwrap_or_default())
}

pub(crate) fn put(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    name: &str,
    seq: Seq,
) -> Result<(), StoreError> {
    let record = tx
        .seal
        .seal(&key(bucket, name), &SubscriptionRow { acked: seq.0 })?;
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
