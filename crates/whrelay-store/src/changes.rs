//! What commits have changed in the queues of destinations, told once each. It must not know who listens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;
use whrelay_core::delivery::{DeliveryKey, DestinationId};
use whrelay_core::limits;
use whrelay_core::queue::{Offset, Waiting};
use whrelay_core::time::Timestamp;

use crate::disk::RedbStore;

/// A delivery that was added and is due at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// Its destination.
    pub destination: DestinationId,
    /// The delivery.
    pub delivery: Waiting,
    /// The position of its commit.
    pub at: Offset,
}

/// What commits have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// New deliveries that are due at once, in order. Where there are very many, the later ones are among `due`.
    pub added: Vec<Added>,
    /// Destinations with a delivery that was added or is due at another time, and when the first such is due. What the
    /// record of an attempt changes is not among them.
    pub due: BTreeMap<DestinationId, Timestamp>,
    /// The position of the newest of these commits.
    pub at: Offset,
    /// Deliveries that were ended, or given to another destination, without an attempt. Where there are very many, some
    /// are left out.
    pub withdrawn: Vec<(DestinationId, DeliveryKey)>,
}

impl Changed {
    /// A delivery of a destination is due at a time.
    pub(crate) fn note_due(&mut self, destination: DestinationId, at: Timestamp) {
        let due = self.due.entry(destination).or_insert(at);
        *due = at.min(*due);
    }

    /// A delivery was added, and is due at once.
    pub(crate) fn note_added(&mut self, added: Added) {
        if self.added.len() < limits::ADDED_TOLD {
            self.added.push(added);
        } else {
            self.note_due(added.destination, added.delivery.created_at);
        }
    }

    /// A delivery no longer waits for a destination.
    pub(crate) fn note_withdrawn(&mut self, destination: DestinationId, key: DeliveryKey) {
        if self.withdrawn.len() < limits::WITHDRAWN_TOLD {
            self.withdrawn.push((destination, key));
        }
    }

    fn add(&mut self, other: &Self) {
        self.at = self.at.max(other.at);
        for added in &other.added {
            self.note_added(*added);
        }
        for (destination, at) in &other.due {
            self.note_due(*destination, *at);
        }
        for (destination, key) in &other.withdrawn {
            self.note_withdrawn(*destination, *key);
        }
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.due.is_empty() && self.withdrawn.is_empty()
    }
}

/// What one listener has not been told yet.
#[derive(Default)]
struct Pending {
    changed: Mutex<Changed>,
    more: Notify,
}

/// Everyone who listens to what is committed to a store.
#[derive(Default)]
pub struct Feed(Mutex<Vec<Weak<Pending>>>);

impl Feed {
    /// What commits change from now on.
    pub fn listen(&self) -> Changes {
        let pending = Arc::new(Pending::default());
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.push(Arc::downgrade(&pending));
        Changes { pending }
    }

    /// Tells what a commit has changed.
    pub fn add(&self, changed: &Changed) {
        if changed.is_empty() {
            return;
        }
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| match listener.upgrade() {
            Some(listener) => {
                let mut pending = listener
                    .changed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                pending.add(changed);
                drop(pending);
                listener.more.notify_one();
                true
            }
            None => false,
        });
    }
}

/// What commits change from now on.
pub struct Changes {
    pending: Arc<Pending>,
}

impl Changes {
    /// Waits for changes since the last call. Dropping the future loses none of them.
    pub async fn next(&mut self) -> Changed {
        loop {
            let changed = self.take();
            if !changed.is_empty() {
                return changed;
            }
            self.pending.more.notified().await;
        }
    }

    /// Changes since the last call, without waiting.
    pub fn take(&mut self) -> Changed {
        let pending = &self.pending.changed;
        std::mem::take(&mut *pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl RedbStore {
    /// What commits change in the queues of destinations from now on.
    pub fn changes(&self) -> Changes {
        self.shared.changes.listen()
    }
}
