//! Files that the user names, with secrets or webhooks in them. It must not know what is in them.

use std::io::{self, Write};
use std::path::Path;

use whrelay_store::Draft;

/// Begins a file that takes the place of the one that is there.
pub(crate) fn create(path: &Path) -> io::Result<Draft> {
    Draft::create_among(path, rand::random())
}

/// Writes a file, whole.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut draft = create(path)?;
    draft.write_all(bytes)?;
    draft.keep()
}

/// Whether there is a file; an error where there is something that must not be replaced or followed.
pub(crate) fn is_there(path: &Path) -> Result<bool, String> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.to_string()),
        Ok(about) if about.is_file() => Ok(true),
        Ok(_) => Err("it is a link, a directory or a device".to_owned()),
    }
}
