//! Whether the pages of a store's file fit together. It must not judge records, and never writes to the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{
    AccessGuard, Builder, Database, Key, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    StorageBackend, TableDefinition, Value,
};
use whrelay_core::limits;

use crate::error::{Fault, StoreError};
use crate::files::taken;
use crate::guard;
use crate::tables::*;

/// Where redb's header says whether its file was closed in good order, and the bit that says that it was not.
const STATE_AT: u64 = 9;
const NOT_CLOSED: u8 = 2;

/// How closely a file is looked at when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looks {
    /// Not at all.
    Not,
    /// At both ends of each table.
    Ends,
    /// At every row.
    Whole,
}

impl Looks {
    /// A file that was not closed in good order may be a copy that was made while it changed. It is looked at whole
    /// as long as that takes a moment.
    pub(crate) fn at(path: &Path) -> Self {
        let state = || -> io::Result<(u8, u64)> {
            let mut file = File::open(path)?;
            let mut state = [0];
            file.seek(SeekFrom::Start(STATE_AT))?;
            file.read_exact(&mut state)?;
            Ok((state[0], taken(path)?))
        };
        match state() {
            Ok((state, taken)) if state & NOT_CLOSED != 0 && taken <= limits::LOOKED_AT_WHOLE => {
                Self::Whole
            }
            Ok(_) | Err(_) => Self::Ends,
        }
    }
}

/// Looks at the rows of each table. It panics, or fails, where pages do not fit together.
pub(crate) fn look(database: &Database, looks: Looks) -> Result<(), StoreError> {
    if looks == Looks::Not {
        return Ok(());
    }
    let tx = database.begin_read()?;
    macro_rules! look_at {
        ($($table:ident)*) => { $(look_at(&tx, $table, looks)?;)* };
    }
    look_at! {
        META SEQUENCES BUCKETS EVENTS HEADS EVENT_IDS SUBSCRIPTIONS SOURCES DESTINATIONS DELIVERIES QUEUE
        DUE_DESTINATIONS EVENT_STATES ATTEMPTS ATTEMPT_STATES COUNTS TOKENS QUARANTINE REMOVALS REMOVED SIGNATURES
    }
    Ok(())
}

fn look_at<K: Key + 'static, V: Value + 'static>(
    tx: &redb::ReadTransaction,
    table: TableDefinition<'_, K, V>,
    looks: Looks,
) -> Result<(), StoreError> {
    let open = tx.open_table(table)?;
    let len = open.len()?;
    let is_whole = looks == Looks::Whole;
    let (rows, all) = walk::<K, V>(open.iter()?, is_whole)?;
    if !is_whole {
        walk::<K, V>(open.iter()?.rev(), false)?;
    }
    // Where not all were looked at, there are more.
    if (all && rows == len) || (!all && rows <= len) {
        return Ok(());
    }
    let name = redb::TableHandle::name(&table).to_owned();
    let why = format!("table {name} should have {len} rows and has {rows}");
    Err(Fault::structure(why).into())
}

/// Reads rows: all of them, or some of them, and no further one behind some bytes. Answers how many, and whether
/// those were all.
fn walk<'a, K: Key + 'static, V: Value + 'static>(
    rows: impl Iterator<Item = Result<(AccessGuard<'a, K>, AccessGuard<'a, V>), redb::StorageError>>,
    is_whole: bool,
) -> Result<(u64, bool), StoreError> {
    let (mut count, mut bytes) = (0, 0);
    for row in rows {
        let is_enough = count >= limits::ROWS_LOOKED_AT || bytes >= limits::BYTES_LOOKED_AT;
        if is_enough && !is_whole {
            return Ok((count, false));
        }
        let (key, value) = row?;
        K::as_bytes(&key.value());
        bytes += V::as_bytes(&value.value()).as_ref().len();
        count += 1;
    }
    Ok((count, true))
}

/// Verifies the checksums of all pages, as redb does it. What it finds wrong is said.
pub(crate) fn verify(path: &Path, cache: usize) -> Result<(), String> {
    let mut builder = Builder::new();
    builder.set_cache_size(cache);
    let verified = guard::catch(|| {
        let overlay = Overlay::open(path).map_err(|e| e.to_string())?;
        let opened = builder.create_with_backend(overlay);
        let mut database = opened.map_err(|e| e.to_string())?;
        match database.check_integrity() {
            Ok(true) => Ok(()),
            Ok(false) => Err("its newest commit is incomplete".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    });
    verified.unwrap_or_else(Err)
}

/// A file that is only read: what is written to it stays in memory.
#[derive(Debug)]
pub(crate) struct Overlay {
    state: Mutex<Laid>,
}

#[derive(Debug)]
struct Laid {
    file: File,
    /// Bytes of the file that are not covered by a later length.
    below: u64,
    len: u64,
    /// Blocks that were written, by number.
    blocks: BTreeMap<u64, Vec<u8>>,
}

/// What is kept in memory of one write, at least.
const BLOCK: u64 = 4096;

impl Overlay {
    /// Over a file as it is now.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let state = Mutex::new(Laid {
            file,
            below: len,
            len,
            blocks: BTreeMap::new(),
        });
        Ok(Self { state })
    }

    fn laid(&self) -> MutexGuard<'_, Laid> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Laid {
    /// Reads what lies below, and nothing but zeros behind its end.
    fn read_below(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        out.fill(0);
        let there = self.below.saturating_sub(offset).min(out.len() as u64) as usize;
        if there == 0 {
            return Ok(());
        }
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.read_exact(&mut out[..there])
    }

    /// The parts of a range, each within one block: its number, where in it, and where in the range.
    fn parts(
        offset: u64,
        len: usize,
    ) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = offset + done as u64;
            let within = (at % BLOCK) as usize;
            let part = (BLOCK as usize - within).min(len - done);
            let range = done..done + part;
            done += part;
            (part > 0).then_some((at / BLOCK, within, range))
        })
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.laid().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut laid = self.laid();
        if offset.saturating_add(out.len() as u64) > laid.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        laid.read_below(offset, out)?;
        for (block, within, range) in Laid::parts(offset, out.len()) {
            if let Some(bytes) = laid.blocks.get(&block) {
                let bytes = &bytes[within..within + range.len()];
                out[range].copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut laid = self.laid();
        // What was cut off reads as zeros when the file grows again.
        laid.below = laid.below.min(len);
        let kept = len.div_ceil(BLOCK);
        laid.blocks.retain(|block, _| *block < kept);
        if let Some(last) = laid.blocks.get_mut(&(len / BLOCK)) {
            last[(len % BLOCK) as usize..].fill(0);
        }
        laid.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut laid = self.laid();
        for (block, within, range) in Laid::parts(offset, data.len()) {
            let mut bytes = match laid.blocks.remove(&block) {
                Some(bytes) => bytes,
                None => {
                    let mut below = vec![0; BLOCK as usize];
                    laid.read_below(block * BLOCK, &mut below)?;
                    below
                }
            };
            bytes[within..within + range.len()].copy_from_slice(&data[range]);
            laid.blocks.insert(block, bytes);
        }
        laid.len = laid.len.max(offset + data.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_reads_what_was_written_and_leaves_the_file_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let below: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        std::fs::write(&path, &below).expect("written");
        let overlay = Overlay::open(&path).expect("opens");
        let mut model = below.clone();
        overlay.write(4000, &[7; 300]).expect("written");
        model[4000..4300].fill(7);
        overlay.set_len(9_000).expect("cut");
        overlay.set_len(12_000).expect("grown");
        model.truncate(9_000);
        model.resize(12_000, 0);
        overlay.write(11_000, &[9; 1000]).expect("written");
        model[11_000..].fill(9);
        let mut read = vec![1; 12_000];
        overlay.read(0, &mut read).expect("read");
        assert!(read == model, "other bytes than were written");
        assert!(
            overlay.read(11_990, &mut [0; 11]).is_err(),
            "behind its end"
        );
        assert!(
            std::fs::read(&path).expect("read") == below,
            "the file has changed"
        );
    }
}
