//! The deliveries of a node, for those who configure destinations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify as Signal;
use tokio_util::sync::CancellationToken;
use whrelay_core::delivery::DestinationId;
use whrelay_store::{Store, StoreError};

use super::Driver;
use crate::clock::Clock;
use crate::destination::Settings;
use crate::notice::Notify;
use crate::repair::Fetch;

/// What every attempt needs, whatever its destination.
pub(super) struct Tools {
    pub(super) store: Store,
    pub(super) clock: Arc<Clock>,
    pub(super) notify: Notify,
    pub(super) fetch: Fetch,
}

/// A destination as the driver knows it.
pub(super) struct Current {
    pub(super) settings: Arc<Settings>,
    /// Another number for each URL that it has had.
    pub(super) endpoint_id: u64,
}

impl Current {
    pub(super) fn is_same_endpoint(&self, settings: &Settings) -> bool {
        self.settings.client.target() == settings.client.target()
    }
}

#[derive(Default)]
struct Destinations {
    all: BTreeMap<DestinationId, Arc<Settings>>,
    /// Those that the driver does not know as they are now.
    changed: BTreeSet<DestinationId>,
}

/// Makes the deliveries of all destinations that it is given.
pub struct Deliveries {
    tools: Arc<Tools>,
    destinations: Mutex<Destinations>,
    changed: Signal,
}

impl Deliveries {
    /// Without destinations.
    pub fn new(store: Store, clock: Arc<Clock>, notify: Notify, fetch: Fetch) -> Self {
        Self {
            tools: Arc::new(Tools {
                store,
                clock,
                notify,
                fetch,
            }),
            destinations: Mutex::default(),
            changed: Signal::new(),
        }
    }

    /// Delivers to a destination from now on, or as these settings say.
    pub fn set(&self, settings: Settings) {
        let id = settings.id;
        let mut destinations = self.destinations();
        destinations.all.insert(id, Arc::new(settings));
        destinations.changed.insert(id);
        drop(destinations);
        self.changed.notify_one();
    }

    /// How deliveries to a destination are made, where any are.
    pub fn settings(&self, id: DestinationId) -> Option<Arc<Settings>> {
        self.destinations().all.get(&id).cloned()
    }

    /// How deliveries are made to each destination.
    pub fn all(&self) -> Vec<Arc<Settings>> {
        self.destinations().all.values().cloned().collect()
    }

    /// Delivers until `stop`, then lets attempts in flight end for a moment. It is called once.
    ///
    /// # Errors
    /// When the store has stopped for good: nothing can be recorded any more.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), StoreError> {
        Driver::new(self).run(stop).await
    }

    pub(super) fn tools(&self) -> Arc<Tools> {
        Arc::clone(&self.tools)
    }

    /// Waits until a destination is new or has changed.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Destinations that are new or have changed since the last call.
    pub(super) fn take_changed(&self) -> Vec<Arc<Settings>> {
        let mut destinations = self.destinations();
        let changed = std::mem::take(&mut destinations.changed).into_iter();
        changed
            .filter_map(|id| destinations.all.get(&id).cloned())
            .collect()
    }

    fn destinations(&self) -> MutexGuard<'_, Destinations> {
        self.destinations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
