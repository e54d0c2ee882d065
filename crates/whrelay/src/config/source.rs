//! Reads a configuration file, unless somebody else could have written it.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use crate::failure::{Code, Failure};

/// Bytes of a configuration file at most.
const MAX_BYTES: u64 = 64 * 1024;

/// What a file is to this user.
pub(crate) enum Source {
    /// Its text.
    Text(String),
    /// It is not read, for this reason.
    Ignored(String),
}

/// Reads a file. Returns `None` if it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<Source>, Failure> {
    let wrong = |error: &dyn std::fmt::Display| {
        let why = format!("{}: {error}", path.display());
        Failure::new(Code::Usage, why).hint("it has to be a file in TOML, in UTF-8")
    };
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(&error)),
        // Opening a pipe would wait for its other end.
        Ok(about) if !about.is_file() => return Err(wrong(&"it is not a file")),
        Ok(_) => {}
    }
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;

        // Some files of the system's wait for what has yet to happen.
        let at_once = rustix::fs::OFlags::NONBLOCK.bits();
        options.custom_flags(i32::from_ne_bytes(at_once.to_ne_bytes()));
    }
    let file = options.open(path).map_err(|e| wrong(&e))?;
    let about = file.metadata().map_err(|e| wrong(&e))?;
    if let Some(why) = writable_by_others(&about) {
        return Ok(Some(Source::Ignored(why)));
    }
    let mut text = String::new();
    let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
    read.map_err(|e| wrong(&e))?;
    match text.len() as u64 > MAX_BYTES {
        true => Err(wrong(&format!("it is larger than {MAX_BYTES} bytes"))),
        false => Ok(Some(Source::Text(text))),
    }
}

/// Why somebody else could have written a file, if somebody could. The administrator of a machine could write all.
#[cfg(unix)]
fn writable_by_others(about: &Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt;

    let ours = rustix::process::geteuid().as_raw();
    // Where each user has a group of their own, it is numbered as they are, and files are made writable for it.
    let own_group = about.gid() == ours && rustix::process::getegid().as_raw() == ours;
    if about.uid() != ours && about.uid() != 0 {
        Some(format!("it belongs to another user (uid {})", about.uid()))
    } else if about.mode() & 0o002 != 0 {
        Some("every user of this machine may write it".to_owned())
    } else if about.mode() & 0o020 != 0 && !own_group {
        Some(format!("its group (gid {}) may write it", about.gid()))
    } else {
        None
    }
}

#[cfg(not(unix))]
fn writable_by_others(_about: &Metadata) -> Option<String> {
    None
}
