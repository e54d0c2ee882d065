//! The engines of an agent's targets, and what is known of them. It must not know the tunnel.

use std::collections::HashSet;
use std::mem::Discriminant;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use whrelay_core::breaker::Change;
use whrelay_core::bucket::Bucket;
use whrelay_core::delivery::DestinationId;
use whrelay_core::id::DeliveryId;
use whrelay_core::route::{self, Prefix, Route};
use whrelay_core::target::Target;
use whrelay_core::time::Timestamp;
use whrelay_delivery::{Client, Clock, Destination, Engine, Fetch, Notice, Takes};
use whrelay_store::{Head, NewDelivery, Store, StoreError, persist};

use crate::error::AgentError;
use crate::lines::{AttemptLine, EndpointState, Line, LinkState};
use crate::orphans;
use crate::{Manner, Tell};

/// The note of the targets that only replays go to.
const ASIDE: &str = "aside";

/// A target that is delivered to.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) id: DestinationId,
    engine: Arc<Engine>,
    /// Which new events go there.
    prefixes: Vec<Prefix>,
}

/// The running engines.
pub(crate) struct Lanes {
    pub(crate) bucket: Bucket,
    pub(crate) store: Store,
    pub(crate) clock: Arc<Clock>,
    pub(crate) tell: Tell,
    fetch: Fetch,
    /// Why the tunnel is not up, and what kind of error that is; nothing while it is.
    down: Mutex<Option<(Discriminant<AgentError>, String)>>,
    manner: Manner,
    /// Whether a person wants nothing new to start.
    paused: watch::Sender<bool>,
    /// Why the store takes nothing new in, while it does not.
    refuses: watch::Sender<Option<String>>,
    served: Mutex<Vec<Served>>,
    /// Held while the note of other targets is changed.
    noting: tokio::sync::Mutex<()>,
    offline: Arc<Mutex<HashSet<DestinationId>>>,
    /// Targets that have answered since this agent started.
    answered: Arc<Mutex<HashSet<DestinationId>>>,
    engines: TaskTracker,
    stop: CancellationToken,
    broken: watch::Sender<Option<StoreError>>,
}

impl Lanes {
    pub(crate) fn new(
        bucket: Bucket,
        store: Store,
        manner: Manner,
        tell: Tell,
        fetch: Fetch,
        stop: CancellationToken,
    ) -> Self {
        Self {
            bucket,
            store,
            clock: Arc::default(),
            tell,
            fetch,
            down: Mutex::default(),
            manner,
            paused: watch::Sender::new(false),
            refuses: watch::Sender::default(),
            served: Mutex::default(),
            noting: tokio::sync::Mutex::default(),
            offline: Arc::default(),
            answered: Arc::default(),
            engines: TaskTracker::new(),
            stop,
            broken: watch::Sender::new(None),
        }
    }

    /// Starts the targets of the routes, and those that replays were sent to by name. With only one route,
    /// what waits for others goes there too.
    pub(crate) async fn configure(&self, routes: &[Route]) -> Result<(), AgentError> {
        let aside = self.waiting_aside().await?;
        let kept: Vec<_> = aside.iter().map(|(id, _)| *id).collect();
        if let [Route { target: only, .. }] = routes {
            let (store, bucket) = (&self.store, self.bucket.id);
            let id = persist(|| self.number(only)).await?;
            let adopted = persist(|| store.adopt(bucket, id, &kept)).await?;
            if adopted > 0 {
                let message = format!(
                    "{adopted} deliveries that were queued for earlier targets go to {only} now"
                );
                (self.tell)(Line::warning(message));
            }
        }
        for Route { prefix, target } in routes {
            let id = persist(|| self.number(target)).await?;
            self.serve(id, target, Takes::All)?;
            let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
            let same = served.iter_mut().filter(|served| served.id == id);
            same.for_each(|served| served.prefixes.push(prefix.clone()));
        }
        for (id, target) in &aside {
            self.serve(*id, target, Takes::Replays)?;
        }
        Ok(orphans::warn(self)?)
    }

    /// Delivers replays to a target of their own, also after a restart.
    pub(crate) async fn serve_for_replays(
        &self,
        target: &Target,
    ) -> Result<DestinationId, AgentError> {
        let _noting = self.noting.lock().await;
        let mut aside = self.aside()?;
        if !aside.contains(target) {
            aside.push(target.clone());
            self.set_aside(&aside).await?;
        }
        let id = self.number(target).await?;
        self.serve(id, target, Takes::Replays)?;
        Ok(id)
    }

    /// The number of a target in the store.
    async fn number(&self, target: &Target) -> Result<DestinationId, StoreError> {
        let (bucket, name) = (self.bucket.id, target.to_string());
        self.store.ensure_destination(bucket, &name).await
    }

    /// The targets that replays were sent to by name and for which something waits. Others are forgotten.
    async fn waiting_aside(&self) -> Result<Vec<(DestinationId, Target)>, StoreError> {
        let (known, aside) = (self.store.destinations()?, self.aside()?);
        let mut waiting = Vec::new();
        for target in &aside {
            let name = target.to_string();
            let Some((id, _)) = known.iter().find(|(_, known)| *known == name) else {
                continue;
            };
            if self.store.next_replay(*id)?.is_some() {
                waiting.push((*id, target.clone()));
            }
        }
        if waiting.len() < aside.len() {
            let left: Vec<_> = waiting.iter().map(|(_, target)| target.clone()).collect();
            persist(|| self.set_aside(&left)).await?;
        }
        Ok(waiting)
    }

    fn aside(&self) -> Result<Vec<Target>, StoreError> {
        let note = self.store.note(ASIDE)?.unwrap_or_default();
        Ok(note.lines().filter_map(|line| line.parse().ok()).collect())
    }

    async fn set_aside(&self, targets: &[Target]) -> Result<(), StoreError> {
        let names: Vec<_> = targets.iter().map(Target::to_string).collect();
        self.store.set_note(ASIDE, &names.join("\n")).await
    }

    /// Which events go where.
    pub(crate) fn routes(&self) -> Vec<(Prefix, DestinationId)> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |served: &Served| {
            let id = served.id;
            let prefixes = served.prefixes.clone().into_iter();
            prefixes.map(move |prefix| (prefix, id))
        };
        served.iter().flat_map(of).collect()
    }

    /// Delivers to a target, from now on and once.
    fn serve(&self, id: DestinationId, target: &Target, takes: Takes) -> Result<(), AgentError> {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served.iter().any(|served| served.id == id) {
            return Ok(());
        }
        let engine = Arc::new(self.engine(id, target, takes)?);
        served.push(Served {
            id,
            engine: Arc::clone(&engine),
            prefixes: Vec::new(),
        });
        let (stop, broken) = (self.stop.clone(), self.broken.clone());
        self.engines.spawn(async move {
            // An engine that panics must stop the agent, or its deliveries would wait for nobody.
            let run = tokio::spawn(engine.run(stop)).await;
            let ended = run.unwrap_or_else(|e| Err(StoreError::Broken(e.to_string().into())));
            if let Err(error) = ended {
                broken.send_replace(Some(error));
            }
        });
        Ok(())
    }

    fn engine(
        &self,
        id: DestinationId,
        target: &Target,
        takes: Takes,
    ) -> Result<Engine, AgentError> {
        let Manner {
            policy,
            timeout,
            max_in_flight,
            rate,
            order,
            fields,
            trust,
            signatures,
        } = self.manner.clone();
        let client = Client::new(target.clone(), fields, &trust, max_in_flight)?;
        let destination = Destination {
            id,
            bucket: self.bucket.clone(),
            policy,
            timeout,
            max_in_flight,
            rate,
            order,
            takes,
            signatures,
            input: self.store.note("input")?,
        };
        let (store, clock) = (self.store.clone(), Arc::clone(&self.clock));
        let notices = (self.notify(target), Arc::clone(&self.fetch));
        let paused = self.paused.subscribe();
        Ok(Engine::new(
            destination,
            store,
            client,
            clock,
            notices,
            paused,
        ))
    }

    fn notify(&self, target: &Target) -> whrelay_delivery::Notify {
        let (tell, offline) = (Arc::clone(&self.tell), Arc::clone(&self.offline));
        let answered = Arc::clone(&self.answered);
        let (bucket, target) = (self.bucket.name.to_string(), target.to_string());
        Arc::new(move |notice| match notice {
            Notice::Attempt(attempt) => {
                if attempt.status.is_some() {
                    let mut answered = answered.lock().unwrap_or_else(PoisonError::into_inner);
                    answered.insert(attempt.destination);
                }
                tell(Line::Attempt(AttemptLine::new(&attempt, &bucket, &target)));
            }
            Notice::Endpoint {
                destination,
                change,
                waiting,
            } => {
                let mut offline = offline.lock().unwrap_or_else(PoisonError::into_inner);
                let state = match change {
                    Change::Offline => {
                        offline.insert(destination);
                        EndpointState::Offline
                    }
                    Change::Online => {
                        offline.remove(&destination);
                        EndpointState::Online
                    }
                };
                tell(Line::Endpoint {
                    target: target.clone(),
                    state,
                    waiting,
                });
            }
            Notice::Restored(count) => {
                let message = format!(
                    "{count} deliveries to {target} had lost their place in a damaged index and are due again"
                );
                tell(Line::warning(message));
            }
            Notice::Quarantined(key) => {
                let message = format!(
                    "event {} of {bucket} is damaged on this disk and the forwarder no longer has it: its \
                     deliveries are dead (damaged)",
                    key.seq.0
                );
                tell(Line::warning(message));
            }
            Notice::Fetched(key) => {
                let message = format!(
                    "event {} of {bucket} was damaged on this disk and was fetched from the forwarder again",
                    key.seq.0
                );
                tell(Line::warning(message));
            }
        })
    }

    /// The targets delivered to.
    pub(crate) fn served(&self) -> Vec<Served> {
        self.served
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether anything is delivered to a target.
    pub(crate) fn serves(&self, id: DestinationId) -> bool {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.iter().any(|served| served.id == id)
    }

    /// The head of a target's line, where it is served in order.
    pub(crate) fn head(&self, id: DestinationId) -> Result<Option<Head>, StoreError> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let engine = served.iter().find(|served| served.id == id);
        let engine = engine.map(|served| Arc::clone(&served.engine));
        drop(served);
        engine.map_or(Ok(None), |engine| engine.head())
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

    /// The delivery of an event to a destination.
    pub(crate) fn new_delivery(
        &self,
        destination: DestinationId,
        created_at: Timestamp,
    ) -> NewDelivery {
        NewDelivery {
            id: DeliveryId::from_parts(created_at, rand::random()),
            destination,
            created_at,
            due_at: created_at,
            deadline_at: self.manner.policy.deadline_of(created_at),
            replay: false,
            passed_over: false,
            in_place_of: Vec::new(),
        }
    }

    /// Deliveries that wait, over all targets served.
    pub(crate) fn waiting(&self) -> u64 {
        let counts = self
            .served()
            .into_iter()
            .filter_map(|s| self.store.counts(s.id).ok());
        counts.map(|counts| counts.queued + counts.stalled).sum()
    }

    /// Whether deliveries are paused.
    pub(crate) fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Lets nothing new start, or lets it again. What is under way ends.
    pub(crate) fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
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

    /// Waits until an engine has stopped for good.
    pub(crate) async fn broken(&self) -> StoreError {
        let mut broken = self.broken.subscribe();
        match broken.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or(StoreError::Reopening),
            Err(_) => StoreError::Broken("the engines are gone".into()),
        }
    }

    /// Cancelled when the engines are to stop.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Waits for the engines, which have been told to stop.
    pub(crate) async fn finish(&self) {
        self.engines.close();
        self.engines.wait().await;
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
