//! What has happened to a store's directory that its owner should know of: kept, so that it is still said when
//! somebody looks. It must not know how it was noticed.

use redb::ReadableTable;
use whrelay_core::limits;
use whrelay_core::time::Timestamp;

use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::record::{self, Seal};
use crate::rows::IncidentRow;
use crate::tables::META;
use crate::tx::Tx;

const NAME: &str = "incidents";

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// When it was noticed.
    pub at: Timestamp,
    /// What it is, in a word that scripts can rely on.
    pub kind: String,
    /// What it is, in a sentence.
    pub text: String,
}

impl RedbStore {
    /// What has happened, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn incidents(&self) -> Result<Vec<Incident>, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(META)?;
            let record = table.get(NAME)?;
            let rows = record.map_or(Ok(Vec::new()), |record| open(self.seal, record.value()))?;
            let incident = |IncidentRow { at, kind, text }| Incident {
                at: Timestamp::from_micros(at),
                kind,
                text,
            };
            Ok(rows.into_iter().map(incident).collect())
        })
    }

    /// Keeps what has happened. What happens again in the same words is kept once, as of now; the oldest make room.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn add_incident(&self, incident: Incident) -> Result<(), StoreError> {
        self.write(256, move |tx: &mut Tx<'_>| {
            let Incident { at, kind, text } = incident;
            let at = at.as_micros();
            let mut rows = match tx.meta.open()?.get(NAME)? {
                Some(record) => open(tx.seal, record.value())?,
                None => Vec::new(),
            };
            rows.retain(|row| (&row.kind, &row.text) != (&kind, &text));
            rows.push(IncidentRow { at, kind, text });
            rows.drain(..rows.len().saturating_sub(limits::INCIDENTS));
            let record = tx.seal.seal(NAME.as_bytes(), &rows)?;
            tx.meta.open()?.insert(NAME, record.as_slice())?;
            Ok(())
        })
        .await
    }
}

/// Rows that are damaged say nothing.
fn open(seal: Seal, record: &[u8]) -> Result<Vec<IncidentRow>, StoreError> {
    let opened = seal.open::<Vec<IncidentRow>>(NAME, NAME.as_bytes(), record);
    Ok(record::undamaged(opened)?.map_or_else(Vec::new, |(rows, _)| rows))
}
