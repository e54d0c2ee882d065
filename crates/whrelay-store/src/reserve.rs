//! Space kept back for the day the disk is full: then it is given up, and what is already stored can
//! still be delivered, recorded and receipted, while nothing new is taken in. It must not know redb.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use whrelay_core::limits;

use crate::private::private_file;

/// A file that only takes space.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            path: dir.join("reserve"),
        }
    }

    /// Takes the space, unless it is taken, where there is as much again beside it: a disk that has only what
    /// was given up is still full. It is not synced: the file system holds it all the same.
    pub(crate) fn take(&self) -> io::Result<()> {
        let mut file = private_file().open(&self.path)?;
        if file.metadata()?.len() >= limits::RESERVE {
            return Ok(());
        }
        let fill = |file: &mut File| {
            file.set_len(0)?;
            io::copy(&mut io::repeat(0).take(2 * limits::RESERVE), file)?;
            file.set_len(limits::RESERVE)
        };
        let filled = fill(&mut file);
        if filled.is_err() {
            // Part of a reserve would only be in the way.
            self.give_up();
        }
        filled
    }

    /// Gives the space back.
    pub(crate) fn give_up(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "the reserve could not be given up");
            }
            Ok(()) | Err(_) => {}
        }
    }
}
