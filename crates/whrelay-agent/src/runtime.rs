//! What an agent runs: the deliveries to its destinations, and what is known of them and of the tunnel.

use std::collections::HashSet;
use std::mem::Discriminant;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use whrelay_core::bucket::Bucket;
use whrelay_core::delivery::DestinationId;
use whrelay_core::destination::{Destination, OptionSet};
use whrelay_core::id::DeliveryId;
use whrelay_core::route::{self, Prefix};
use whrelay_core::time::Timestamp;
use whrelay_delivery::{Client, Clock, Deliveries, Fetch, Notice, Settings};
use whrelay_store::{NewDelivery, Store, StoreError};

use crate::error::AgentError;
use crate::lines::{AttemptLine, EndpointState, Line, LinkState};
use crate::{Requests, Tell};

/// What an agent runs.
pub(crate) struct Runtime {
    pub(crate) bucket: Bucket,
    pub(crate) store: Store,
    pub(crate) clock: Arc<Clock>,
    pub(crate) tell: Tell,
    /// How requests are made in this run.
    pub(crate) requests: Requests,
    /// How deliveries of one-off replays are made.
    pub(crate) replay_options: OptionSet,
    fetch: Fetch,
    /// Why the tunnel is not up, and what kind of error that is; nothing while it is.
    down: Mutex<Option<(Discriminant<AgentError>, String)>>,
    /// Why the store takes nothing new in, while it does not.
    refuses: watch::Sender<Option<String>>,
    deliveries: OnceLock<Arc<Deliveries>>,
    /// Which new events go to which destination, in the order of the arguments.
    routes: Mutex<Vec<(Prefix, DestinationId)>>,
    /// Held while destinations are added, renamed or removed.
    pub(crate) changing: tokio::sync::Mutex<()>,
    offline: Mutex<HashSet<DestinationId>>,
    /// Destinations that have answered since this agent started.
    answered: Mutex<HashSet<DestinationId>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    broken: watch::Sender<Option<StoreError>>,
}

impl Runtime {
    pub(crate) fn new(
        bucket: Bucket,
        store: Store,
        (requests, replay_options): (Requests, OptionSet),
        tell: Tell,
        fetch: Fetch,
        stop: CancellationToken,
    ) -> Self {
        Self {
            bucket,
            store,
            clock: Arc::default(),
            tell,
            requests,
            replay_options,
            fetch,
            down: Mutex::default(),
            refuses: watch::Sender::default(),
            deliveries: OnceLock::new(),
            routes: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            offline: Mutex::default(),
            answered: Mutex::default(),
            tasks: TaskTracker::new(),
            stop,
            broken: watch::Sender::new(None),
        }
    }

    /// Which events go where.
    pub(crate) fn routes(&self) -> Vec<(Prefix, DestinationId)> {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.clone()
    }

    /// Delivers to a destination from now on, or as it is now stored where that is done already.
    pub(crate) async fn serve(
        self: &Arc<Self>,
        destination: &Destination,
        prefixes: Vec<Prefix>,
    ) -> Result<(), AgentError> {
        let before = self.settings_of(destination.id);
        let client = before.as_ref().map(|before| &before.client);
        let settings = self.settings(destination, client).await?;
        let deliveries = self.deliveries.get_or_init(|| self.begin());
        deliveries.set(settings);
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let last = routes.iter().rposition(|(_, to)| *to == destination.id);
        let at = last.map_or(routes.len(), |last| last + 1);
        let new = prefixes.into_iter().map(|prefix| (prefix, destination.id));
        routes.splice(at..at, new);
        Ok(())
    }

    /// Begins to make deliveries.
    fn begin(self: &Arc<Self>) -> Arc<Deliveries> {
        let (store, clock) = (self.store.clone(), Arc::clone(&self.clock));
        let deliveries = Deliveries::new(store, clock, self.notify(), Arc::clone(&self.fetch));
        let deliveries = Arc::new(deliveries);
        let run = Arc::clone(&deliveries).run(self.stop.clone());
        let broken = self.broken.clone();
        self.tasks.spawn(async move {
            // Where it panics, the agent must stop, or deliveries would wait for nobody.
            let ended = tokio::spawn(run).await;
            let ended = ended.unwrap_or_else(|e| Err(StoreError::Broken(e.to_string().into())));
            if let Err(error) = ended {
                broken.send_replace(Some(error));
            }
        });
        deliveries
    }

    /// Delivers to a running destination as it is now stored.
    pub(crate) async fn refresh(
        self: &Arc<Self>,
        destination: &Destination,
    ) -> Result<(), AgentError> {
        match self.serves(destination.id) {
            true => self.serve(destination, Vec::new()).await,
            false => Ok(()),
        }
    }

    async fn settings(
        &self,
        destination: &Destination,
        before: Option<&Client>,
    ) -> Result<Settings, AgentError> {
        let Requests {
            fields,
            trust,
            signatures,
        } = &self.requests;
        let options = destination.options.options();
        let client = match before.filter(|client| *client.target() == destination.target) {
            Some(client) => client.clone(),
            None => {
                let target = destination.target.clone();
                Client::new(target, fields.clone(), trust, options.max_in_flight)?
            }
        };
        Ok(Settings {
            id: destination.id,
            bucket: self.bucket.clone(),
            title: destination.title(),
            options,
            is_paused: destination.paused_at.is_some(),
            endpoint: destination.endpoint,
            back_since: destination.back_since,
            client,
            signatures: signatures.clone(),
            input: self.store.catalog.note("input").await?,
        })
    }

    fn notify(self: &Arc<Self>) -> whrelay_delivery::Notify {
        let runtime = Arc::downgrade(self);
        Arc::new(move |settings, notice| {
            if let Some(runtime) = runtime.upgrade() {
                runtime.note(settings, notice);
            }
        })
    }

    /// Tells what has happened to deliveries.
    fn note(&self, settings: &Settings, notice: Notice) {
        let (bucket, target) = (&self.bucket.name, settings.client.target().to_string());
        (self.tell)(match notice {
            Notice::Attempt(attempt) => {
                if attempt.status.is_some() {
                    let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
                    answered.insert(attempt.destination);
                }
                let line = AttemptLine::new(&attempt, bucket.as_str(), &settings.title);
                Line::Attempt(line)
            }
            Notice::Endpoint { is_offline, queued } => {
                let mut offline = self.offline.lock().unwrap_or_else(PoisonError::into_inner);
                let state = match is_offline {
                    true => {
                        offline.insert(settings.id);
                        EndpointState::Offline
                    }
                    false => {
                        offline.remove(&settings.id);
                        EndpointState::Online
                    }
                };
                Line::Endpoint {
                    destination: settings.title.clone(),
                    target,
                    state,
                    waiting: queued,
                }
            }
            Notice::Quarantined(key) => Line::warning(format!(
                "event {} of {bucket} is damaged on this disk and the forwarder no longer has it: its \
                 deliveries are dead (damaged)",
                key.seq.0
            )),
            Notice::Fetched(key) => Line::warning(format!(
                "event {} of {bucket} was damaged on this disk and was fetched from the forwarder again",
                key.seq.0
            )),
        });
    }

    /// How deliveries are made to each destination that is delivered to.
    fn all_settings(&self) -> Vec<Arc<Settings>> {
        let deliveries = self.deliveries.get();
        deliveries
            .map(|deliveries| deliveries.all())
            .unwrap_or_default()
    }

    /// The destinations that are delivered to.
    pub(crate) fn served(&self) -> Vec<DestinationId> {
        let all = self.all_settings();
        all.iter().map(|settings| settings.id).collect()
    }

    /// Whether anything is delivered to a destination.
    pub(crate) fn serves(&self, id: DestinationId) -> bool {
        self.settings_of(id).is_some()
    }

    /// How deliveries to a destination are made, where any are.
    pub(crate) fn settings_of(&self, id: DestinationId) -> Option<Arc<Settings>> {
        self.deliveries.get()?.settings(id)
    }

    /// How a target stands: online is only what has answered.
    pub(crate) fn endpoint(&self, id: DestinationId) -> EndpointState {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.is_offline(id), answered.contains(&id)) {
            _ if !self.serves(id) => EndpointState::Unknown,
            (true, _) => EndpointState::Offline,
            (false, true) => EndpointState::Online,
            (false, false) => EndpointState::Unknown,
        }
    }

    /// Whether a target does not take connections.
    pub(crate) fn is_offline(&self, id: DestinationId) -> bool {
        self.offline
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&id)
    }

    /// The delivery of an event to a destination that is delivered to.
    pub(crate) fn new_delivery(
        &self,
        destination: DestinationId,
        created_at: Timestamp,
    ) -> NewDelivery {
        let settings = self.settings_of(destination);
        let policy = settings.map(|settings| settings.options.policy.clone());
        let deadline_at = policy.unwrap_or_default().deadline_of(created_at);
        new_delivery(destination, created_at, deadline_at)
    }

    /// Deliveries that wait, over all destinations that are delivered to.
    pub(crate) async fn waiting(&self) -> u64 {
        let mut waiting = 0;
        for id in self.served() {
            let counts = self.store.view.counts(id).await.unwrap_or_default();
            waiting += counts.queued + counts.stalled;
        }
        waiting
    }

    /// Whether every destination is paused.
    pub(crate) fn is_paused(&self) -> bool {
        let all = self.all_settings();
        !all.is_empty() && all.iter().all(|settings| settings.is_paused)
    }

    /// Why the store takes nothing new in, where it does not; and when that changes.
    pub(crate) fn refuses(&self) -> watch::Receiver<Option<String>> {
        self.refuses.subscribe()
    }

    /// Notes that the store takes nothing new in, or does again, and tells it once.
    pub(crate) fn set_refuses(&self, why: Option<String>) {
        let changed = self.refuses.send_if_modified(|refuses| {
            let changed = refuses.is_some() != why.is_some();
            refuses.clone_from(&why);
            changed
        });
        if changed {
            (self.tell)(refusal(why.as_deref()));
        }
    }

    /// Why the tunnel is not up; nothing while it is.
    pub(crate) fn down(&self) -> Option<String> {
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        down.as_ref().map(|(_, why)| why.clone())
    }

    /// Notes that the tunnel is up.
    pub(crate) fn set_up(&self) {
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) = None;
        (self.tell)(Line::Link {
            state: LinkState::Connected,
            error: None,
        });
    }

    /// Notes why the tunnel is not up, and tells it where it was up, or down for another kind of reason.
    pub(crate) fn set_down(&self, error: &AgentError) {
        let (kind, why) = (std::mem::discriminant(error), error.to_string());
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        let before = down.replace((kind, why.clone()));
        drop(down);
        if before.is_none_or(|(before, _)| before != kind) {
            (self.tell)(Line::Link {
                state: LinkState::Disconnected,
                error: Some(why),
            });
        }
    }

    /// Waits until deliveries have stopped for good.
    pub(crate) async fn broken(&self) -> StoreError {
        let mut broken = self.broken.subscribe();
        match broken.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or(StoreError::Reopening),
            Err(_) => StoreError::Broken("nothing is delivered any more".into()),
        }
    }

    /// Cancelled when deliveries are to stop.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Waits for deliveries to end, which have been told to stop.
    pub(crate) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What is said where nothing new is taken in for a reason, and where it is again.
pub(crate) fn refusal(why: Option<&str>) -> Line {
    Line::warning(match why {
        Some(why) => {
            format!("new events stay with the forwarder, since this store accepts none: {why}")
        }
        None => "this store accepts new events again".to_owned(),
    })
}

/// Where an event goes that has this tail: to each target once.
pub(crate) fn taking(routes: &[(Prefix, DestinationId)], tail: &str) -> Vec<DestinationId> {
    let mut ids: Vec<_> = route::taking(routes, |(prefix, _)| prefix, tail)
        .map(|(_, id)| *id)
        .collect();
    ids.dedup();
    ids
}

/// The delivery of an event to a destination.
pub(crate) fn new_delivery(
    destination: DestinationId,
    created_at: Timestamp,
    deadline_at: Timestamp,
) -> NewDelivery {
    NewDelivery {
        id: DeliveryId::from_parts(created_at, rand::random()),
        destination,
        created_at,
        due_at: created_at,
        deadline_at,
        replay: false,
        passed_over: false,
        one_off: false,
    }
}
