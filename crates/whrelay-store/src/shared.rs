//! What the writer of a store and all its readers share. It must not know what either does.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use redb::Database;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use whrelay_core::limits;
use whrelay_core::queue::Offset;

use crate::changes::Feed;
use crate::error::StoreError;
use crate::sizes::Sizes;

/// What the writer and all readers share.
pub(crate) struct Shared {
    pub(crate) database: RwLock<Option<Arc<Database>>>,
    /// Bytes that events, deliveries and attempts take.
    pub(crate) sizes: Sizes,
    /// Whether the file is being made smaller, which takes a moment.
    pub(crate) moving: AtomicBool,
    /// What commits change in queues, for those who follow that.
    pub(crate) changes: Feed,
    /// Counts commits.
    pub(crate) commits: watch::Sender<Offset>,
    /// Why the store has stopped for good.
    pub(crate) broken: watch::Sender<Option<StoreError>>,
    /// The store's file.
    pub(crate) path: PathBuf,
}

impl Shared {
    /// The store stops for good, and with it the process: what waits on would only be refused for ever. Answers
    /// why, with the file.
    pub(crate) fn stop(&self, error: StoreError) -> StoreError {
        let error = error.of(&self.path);
        self.broken.send_if_modified(|broken| {
            let first = broken.is_none();
            if first {
                tracing::error!(%error, "the store has stopped");
                *broken = Some(error.clone());
            }
            first
        });
        error
    }

    fn current(&self) -> RwLockReadGuard<'_, Option<Arc<Database>>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open database, unless it is being reopened.
    pub(crate) fn database(&self) -> Option<Arc<Database>> {
        self.current().clone()
    }

    /// The same for one who reads, and waits while the file is made smaller. A thread that has other tasks to
    /// do leaves them to another meanwhile.
    pub(crate) fn readable(&self) -> Option<Arc<Database>> {
        let open = self.database();
        if open.is_some() {
            return open;
        }
        let wait = || {
            let until = Instant::now() + limits::FILE_MOVES;
            loop {
                let moves = self.moving.load(Ordering::Relaxed) && Instant::now() < until;
                let open = self.database();
                if open.is_some() || !moves {
                    return open;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
            Ok(_) | Err(_) => wait(),
        }
    }

    pub(crate) fn replace(&self, database: Option<Arc<Database>>) {
        let mut current = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = database;
    }
}
