//! Reads a store whole without changing its file. It must not mend anything.

use std::path::Path;

use crate::check::Census;
use crate::disk::{Medium, Options, RedbStore};
use crate::error::{OpenError, StoreError};
use crate::incidents::Incident;
use crate::integrity;

/// What was found.
#[derive(Debug)]
pub struct Examined {
    /// What is wrong with its pages, if anything.
    pub structure: Result<(), String>,
    /// What its records are, where they can be read.
    pub census: Result<Census, StoreError>,
    /// What has happened to it, where that can be read.
    pub incidents: Vec<Incident>,
}

/// Examines the store of a directory that no process uses: the checksums of its pages, and its records.
///
/// # Errors
/// In use, not readable, another file, of another format or role. What is damaged is an answer, not an error.
pub async fn examine(dir: &Path, options: &Options) -> Result<Examined, OpenError> {
    let medium = Medium::read_only(dir, options.purpose)?;
    let structure = integrity::verify(&medium.path, options.cache);
    let (census, incidents) = match RedbStore::open_on(medium, options) {
        Ok(store) => {
            let census = store.census();
            let incidents = store.incidents().unwrap_or_default();
            store.close().await;
            (census, incidents)
        }
        Err(OpenError::Damaged { detail, .. }) => (Err(StoreError::Damaged(detail)), Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(Examined {
        structure,
        census,
        incidents,
    })
}
