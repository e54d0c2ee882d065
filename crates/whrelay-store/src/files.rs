//! The files of a store's directory, seen from outside. It must not open one as a database.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::error::OpenError;
use crate::private::write_private;

/// Keeps a store's own name beside it: without it nothing can be told to be the store's.
const NAME: &str = "name";
const REDB_MAGIC: &[u8; 9] = b"redb\x1A\x0A\xA9\x0D\x0A";

/// The length of a file says little: redb makes it grow in strides, with nothing behind them.
#[cfg(unix)]
pub(crate) fn taken(path: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    const BLOCK: u64 = 512;
    fs::metadata(path).map(|file| file.blocks() * BLOCK)
}

#[cfg(not(unix))]
pub(crate) fn taken(path: &Path) -> std::io::Result<u64> {
    fs::metadata(path).map(|file| file.len())
}

/// Removes what a crash has left half done.
pub(crate) fn remove_draft(draft: &Path) -> std::io::Result<()> {
    match fs::remove_file(draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A store's own name, from the randomness it is made of.
pub(crate) fn name_from(seed: u128) -> String {
    format!("{seed:032x}")
}

/// The name of the store in a directory, as it is kept beside it.
pub(crate) fn kept_name(dir: &Path) -> Result<String, OpenError> {
    let path = dir.join(NAME);
    match fs::read_to_string(&path) {
        Ok(name) => Ok(name.trim().to_owned()),
        Err(error) => Err(OpenError::Io { path, error }),
    }
}

/// Keeps a store's name beside it, where it is not kept yet.
pub(crate) fn keep_name(dir: &Path, name: &str) -> Result<(), OpenError> {
    if kept_name(dir).is_ok_and(|kept| kept == name) {
        return Ok(());
    }
    let path = dir.join(NAME);
    write_private(&path, name.as_bytes()).map_err(|error| OpenError::Io { path, error })
}

pub(crate) fn check_magic(path: &Path) -> Result<(), OpenError> {
    let mut magic = Vec::new();
    let read = File::open(path).and_then(|f| f.take(9).read_to_end(&mut magic));
    read.map_err(|error| OpenError::Io {
        path: path.to_owned(),
        error,
    })?;
    if magic == REDB_MAGIC {
        Ok(())
    } else {
        Err(unknown(path))
    }
}

/// The error for a file without a readable header: damaged if a store's name lies beside it, else not a store.
pub(crate) fn unknown(path: &Path) -> OpenError {
    let path = path.to_owned();
    match path.parent().is_some_and(|dir| kept_name(dir).is_ok()) {
        true => OpenError::Damaged {
            path,
            detail: "its header is not readable".to_owned(),
        },
        false => OpenError::Foreign { path },
    }
}
