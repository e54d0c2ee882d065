//! A node's store: its journal, the view of it, and the catalog. It must not know what keeps them.

use std::path::Path;
use std::sync::Arc;

use crate::catalog::Catalog;
use crate::disk::{Options, RedbStore};
use crate::error::OpenError;
use crate::journal::Journal;
use crate::view::QueueView;

/// Everything of a node that survives a crash.
#[derive(Clone)]
pub struct Store {
    /// What was received and what became of it.
    pub journal: Arc<dyn Journal>,
    /// What is computed from the journal.
    pub view: Arc<dyn QueueView>,
    /// What is configured.
    pub catalog: Arc<dyn Catalog>,
}

impl Store {
    /// Opens the store of a directory, and creates both where they are missing.
    ///
    /// # Errors
    /// In use, not writable, another file, damaged, of a newer format: nothing is changed then.
    pub fn open(dir: &Path, options: &Options) -> Result<Self, OpenError> {
        RedbStore::open(dir, options).map(Self::from)
    }

    /// The store's own name: another store never has it.
    pub fn id(&self) -> &str {
        &self.journal.epoch().store
    }
}

impl From<RedbStore> for Store {
    fn from(store: RedbStore) -> Self {
        Self {
            journal: Arc::new(store.clone()),
            view: Arc::new(store.clone()),
            catalog: Arc::new(store),
        }
    }
}
