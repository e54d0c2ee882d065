//! The lock on a data directory: one process at a time, and the others learn which. It must not
//! know what is in the directory.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::error::OpenError;
use crate::private::{create_private_dir, private_file};

/// A directory that this process alone may use, until this is dropped.
#[derive(Debug)]
pub(crate) struct DirLock {
    _file: File,
}

impl DirLock {
    /// Creates the directory (0700) where it is missing, and locks it. `purpose` is told to the
    /// processes that come second.
    pub(crate) fn take(dir: &Path, purpose: &str) -> Result<Self, OpenError> {
        let io = |error| OpenError::Io {
            path: dir.to_owned(),
            error,
        };
        create_private_dir(dir).map_err(io)?;
        let path = dir.join("lock");
        let mut file = private_file().open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(dir, &mut file)),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let holder = format!("{} {purpose}\n", std::process::id());
        let written = file.set_len(0).and_then(|()| file.rewind());
        written
            .and_then(|()| file.write_all(holder.as_bytes()))
            .map_err(io)?;
        Ok(Self { _file: file })
    }
}

fn in_use(dir: &Path, file: &mut File) -> OpenError {
    let mut text = String::new();
    // An unreadable holder is still a holder.
    let _ = file.read_to_string(&mut text);
    let (pid, purpose) = text.trim().split_once(' ').unwrap_or(("0", "unknown"));
    let (pid, purpose) = (pid.parse().unwrap_or(0), purpose.to_owned());
    OpenError::InUse {
        path: dir.to_owned(),
        pid,
        purpose,
    }
}
