//! How far an agent's store has come with its forwarder's, and by which events. It must not know tunnels.

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::history::Locator;
use whrelay_core::id::EventId;

use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::record;
use crate::rows::SourceRow;
use crate::tables::SOURCES;
use crate::tx::Tx;

/// How far an agent's store has come with a forwarder's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The name of the forwarder's store.
    pub forwarder: String,
    /// The last number on the agent's disk.
    pub seq: Seq,
    /// Events up to there, by their numbers at the forwarder.
    pub locator: Locator,
    /// Behind this number all events came here; those before went to others of its subscription.
    pub whole_after: Seq,
}

/// How much further an agent's store has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceMark {
    /// The name of the forwarder's store.
    pub forwarder: String,
    /// The session started after this number.
    pub start: Seq,
    /// The last number on the agent's disk.
    pub seq: Seq,
    /// The events that came, by their numbers at the forwarder.
    pub events: Vec<(Seq, EventId)>,
}

impl RedbStore {
    /// How far this agent's store has come, if it ever stored anything of the bucket's.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn source(&self, bucket: BucketId) -> Result<Option<Source>, StoreError> {
        self.read(|tx| {
            let Some(record) = tx.open_table(SOURCES)?.get(bucket.0)? else {
                return Ok(None);
            };
            let key = bucket.0.to_be_bytes();
            let opened = self.seal.open::<SourceRow>("source", &key, record.value());
            Ok(record::undamaged(opened)?.map(|(row, _)| {
                let SourceRow {
                    forwarder,
                    seq,
                    locator,
                    whole_after,
                } = row;
                Source {
                    forwarder,
                    seq: Seq(seq),
                    locator: locator_of(&locator),
                    whole_after: Seq(whole_after),
                }
            }))
        })
    }
}

fn locator_of(entries: &[(u64, [u8; 16])]) -> Locator {
    let entry = |(seq, id): &(u64, [u8; 16])| (Seq(*seq), EventId::from_bytes(*id));
    Locator::from_entries(entries.iter().map(entry))
}

/// Records, with the events themselves, how far the agent has come.
pub(crate) fn put(tx: &mut Tx<'_>, bucket: BucketId, mark: &SourceMark) -> Result<(), StoreError> {
    let key = bucket.0.to_be_bytes();
    let before = match tx.sources.open()?.get(bucket.0)? {
        Some(record) => {
            let opened = tx.seal.open::<SourceRow>("source", &key, record.value());
            record::undamaged(opened)?.map(|(row, _)| row)
        }
        None => None,
    };
    let before = before.filter(|row| row.forwarder == mark.forwarder);
    let whole_after = match &before {
        Some(row) if mark.start.0 <= row.seq => row.whole_after.min(mark.start.0),
        Some(_) | None => mark.start.0,
    };
    let mut locator = before.map_or_else(Locator::default, |row| locator_of(&row.locator));
    for (seq, id) in &mark.events {
        locator.note(*seq, *id);
    }
    locator.end_at(mark.seq);
    let entry = |(seq, id): &(Seq, EventId)| (seq.0, id.to_bytes());
    let row = SourceRow {
        forwarder: mark.forwarder.clone(),
        seq: mark.seq.0,
        locator: locator.entries().iter().map(entry).collect(),
        whole_after,
    };
    put_row(tx, bucket, &row)
}

pub(crate) fn put_row(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    row: &SourceRow,
) -> Result<(), StoreError> {
    let record = tx.seal.seal(&bucket.0.to_be_bytes(), row)?;
    tx.sources.open()?.insert(bucket.0, record.as_slice())?;
    Ok(())
}
