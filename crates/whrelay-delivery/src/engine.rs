//! The loop of one destination: due -> attempt -> verdict -> record. It must not decide anything
//! itself: `core` does, and the store remembers.

mod attempt;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use whrelay_core::breaker::{Change, Probing};
use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{Attempt, DeliveryKey, Step};
use whrelay_core::destination::Destination;
use whrelay_core::dispatch::{Dispatcher, Order};
use whrelay_core::limits;
use whrelay_core::outcome::Outcome;
use whrelay_core::target::Target;
use whrelay_core::time::Timestamp;
use whrelay_store::{DueScan, Head, Release, Store, StoreError, persist};

use crate::clock::Clock;
use crate::destination::Settings;
use crate::repair::Fetch;

/// What happened, for whoever watches.
#[derive(Clone, Debug)]
pub enum Notice {
    /// An attempt was made and recorded.
    Attempt(Box<Attempt>),
    /// The endpoint was lost or came back.
    Endpoint {
        /// Which of the two.
        change: Change,
        /// Deliveries that wait for it.
        waiting: u64,
    },
    /// An event is damaged on disk, and nobody else has it.
    Quarantined(DeliveryKey),
    /// An event was damaged on disk, and was fetched once more.
    Fetched(DeliveryKey),
}

/// Called with each notice about a destination; it must not block.
pub type Notify = Arc<dyn Fn(&Settings, Notice) + Send + Sync>;

/// Delivers what is due at one destination.
pub struct Engine {
    settings: watch::Receiver<Arc<Settings>>,
    store: Store,
    clock: Arc<Clock>,
    notify: Notify,
    fetch: Fetch,
    /// The place before which nothing waits in the line, where there is one.
    line: AtomicU64,
}

struct Finished {
    key: DeliveryKey,
    /// What the endpoint did, if it was asked, and by which settings.
    asked: Option<(Outcome, Arc<Settings>)>,
}

impl Finished {
    fn untried(key: DeliveryKey) -> Self {
        Self { key, asked: None }
    }
}

type Probe = Pin<Box<dyn Future<Output = bool> + Send>>;

struct Lane {
    /// The URL that the dispatcher knows.
    target: Target,
    dispatcher: Dispatcher,
    attempts: JoinSet<Result<Finished, StoreError>>,
    probe: Option<Probe>,
}

impl Engine {
    /// An engine for a destination.
    pub fn new(
        settings: watch::Receiver<Arc<Settings>>,
        store: Store,
        clock: Arc<Clock>,
        (notify, fetch): (Notify, Fetch),
    ) -> Self {
        Self {
            settings,
            store,
            clock,
            notify,
            fetch,
            line: AtomicU64::new(0),
        }
    }

    /// Delivers until `stop`, then lets attempts in flight finish for at most [`limits::DRAIN`].
    ///
    /// # Errors
    /// When the store has stopped for good: nothing can be recorded any more.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), StoreError> {
        let engine = self;
        let mut lane = tokio::select! {
            lane = engine.begin() => lane?,
            () = stop.cancelled() => return Ok(()),
        };
        let (mut commits, mut settings) = (engine.store.commits(), engine.settings.clone());
        while !stop.is_cancelled() {
            commits.mark_unchanged();
            let wait = match settings.borrow().is_paused {
                true => limits::REARM,
                false => engine.start_due(&mut lane)?,
            };
            tokio::select! {
                () = stop.cancelled() => {}
                Some(done) = lane.attempts.join_next() => engine.finish(&mut lane, done).await?,
                Ok(()) = commits.changed() => {}
                Ok(()) = settings.changed() => engine.change(&mut lane).await?,
                accepted = probe(&mut lane.probe) => engine.probed(&mut lane, accepted).await?,
                () = tokio::time::sleep(wait) => {}
            }
        }
        let drained = async {
            while let Some(done) = lane.attempts.join_next().await {
                joined(done)?;
            }
            Ok(())
        };
        tokio::time::timeout(limits::DRAIN, drained)
            .await
            .unwrap_or(Ok(()))
    }

    /// Takes up what waits where a process before left it: what backs off goes on doing so, and an endpoint
    /// that was offline is probed before anything is tried.
    async fn begin(&self) -> Result<Lane, StoreError> {
        let settings = self.settings();
        let longest = settings.options.policy.longest_backoff();
        self.release(Release::Begin { longest }).await?;
        self.find_line().await?;
        let dispatcher = dispatcher(&settings);
        let mut lane = Lane {
            target: settings.client.target().clone(),
            dispatcher,
            attempts: JoinSet::new(),
            probe: None,
        };
        self.plan_probe(&mut lane);
        Ok(lane)
    }

    /// How deliveries are made now.
    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// Takes up other settings. What is known of the endpoint is known of the URL.
    async fn change(&self, lane: &mut Lane) -> Result<(), StoreError> {
        let settings = self.settings();
        if lane.target == *settings.client.target() {
            let options = &settings.options;
            lane.dispatcher.change(options.max_in_flight, options.rate);
        } else {
            lane.target = settings.client.target().clone();
            let was_offline = lane.dispatcher.probe_at().is_some();
            let in_flight = std::mem::replace(&mut lane.dispatcher, dispatcher(&settings));
            lane.dispatcher.inherit(&in_flight);
            lane.probe = None;
            self.release(Release::Back).await?;
            if was_offline {
                self.note_change(Change::Online).await?;
            }
        }
        self.find_line().await?;
        self.plan_probe(lane);
        Ok(())
    }

    /// Starts what is due, as far as the window goes. Answers how long nothing else will be.
    fn start_due(self: &Arc<Self>, lane: &mut Lane) -> Result<Duration, StoreError> {
        let room = lane.dispatcher.room();
        if room == 0 {
            return Ok(limits::REARM);
        }
        let now = self.clock.now();
        let (scan, head) = match self.due(&lane.dispatcher, now, room) {
            Ok(found) => found,
            // The store reopens by itself; a commit or the timer comes back here.
            Err(error) if error.is_retryable() => return Ok(limits::REOPEN_EVERY),
            Err(error) => return Err(error),
        };
        let mut start = |key| {
            let engine = Arc::clone(self);
            lane.attempts
                .spawn(async move { engine.attempt(key).await });
        };
        let (mut ready, mut due) = (!scan.ready.is_empty(), scan.next_at);
        if let Some(Head { key, due_at }) = head {
            if due_at > now {
                due = due.map_or(Some(due_at), |at| Some(at.min(due_at)));
            } else {
                ready = true;
                let expired = || self.is_expired(key);
                if lane.dispatcher.claim_head(key, Instant::now(), expired) {
                    start(key);
                }
            }
        }
        for key in scan.ready {
            let expired = || self.is_expired(key);
            if lane.dispatcher.claim(key, Instant::now(), expired) {
                start(key);
            }
        }
        let due = due.map(|at| at.since(now));
        let instant = Instant::now();
        let paced = lane.dispatcher.paced_until(instant);
        let paced = paced.map(|at| at.saturating_duration_since(instant));
        let soonest = paced.filter(|_| ready).or(due);
        Ok(soonest.map_or(limits::REARM, |wait| wait.min(limits::REARM)))
    }

    /// Finds where the line begins, where there is one.
    async fn find_line(&self) -> Result<(), StoreError> {
        let Settings {
            id,
            bucket,
            options,
            ..
        } = &*self.settings();
        if options.order == Order::Fifo {
            let start = || async { self.store.line_start(bucket.id, *id) };
            let start = persist(start).await?;
            self.line.store(start.0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What is due, and where there is a line, its head if that may be asked for.
    fn due(
        &self,
        dispatcher: &Dispatcher,
        now: Timestamp,
        room: usize,
    ) -> Result<(DueScan, Option<Head>), StoreError> {
        let settings = self.settings();
        let (id, in_flight) = (settings.id, dispatcher.in_flight());
        match settings.options.order {
            Order::Arrival => Ok((self.store.due(id, now, in_flight, room)?, None)),
            Order::Fifo => {
                let replays = self.store.due_replays(id, now, in_flight, room)?;
                if !dispatcher.line_is_free() {
                    return Ok((replays, None));
                }
                Ok((replays, self.head()?))
            }
        }
    }

    /// The head of the line, where deliveries are made in order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn head(&self) -> Result<Option<Head>, StoreError> {
        let settings = self.settings();
        if settings.options.order != Order::Fifo {
            return Ok(None);
        }
        let from = Seq(self.line.load(Ordering::Relaxed));
        let (head, start) = self.store.head(settings.bucket.id, settings.id, from)?;
        // Unless the line begins anew meanwhile.
        let (Ok(_) | Err(_)) =
            self.line
                .compare_exchange(from.0, start.0, Ordering::Relaxed, Ordering::Relaxed);
        Ok(head)
    }

    fn is_expired(&self, key: DeliveryKey) -> bool {
        let certain = self.clock.moment().certain;
        let delivery = self.store.delivery(key).ok().flatten();
        delivery.is_some_and(|delivery| delivery.step(certain) == Step::Expire)
    }

    async fn finish(
        &self,
        lane: &mut Lane,
        done: Result<Result<Finished, StoreError>, JoinError>,
    ) -> Result<(), StoreError> {
        let Finished { key, asked } = joined(done)?;
        let now = Instant::now();
        // An attempt that was under way when the URL changed says nothing of the new one.
        let asked = asked.filter(|(_, by)| *by.client.target() == lane.target);
        let outcome = asked.map(|(outcome, _)| outcome);
        if let Some(change) = lane.dispatcher.finish(key, outcome.as_ref(), now) {
            self.note_change(change).await?;
        }
        self.plan_probe(lane);
        Ok(())
    }

    async fn probed(self: &Arc<Self>, lane: &mut Lane, accepted: bool) -> Result<(), StoreError> {
        if let Some(change) = lane.dispatcher.on_probe(accepted, Instant::now()) {
            self.note_change(change).await?;
        }
        if accepted {
            let engine = Arc::clone(self);
            let release = tokio::spawn(async move { engine.release(Release::Back).await });
            // Long enough to put the oldest first where little waits; where much does, the first
            // deliveries start while the rest is still being released.
            if let Ok(Ok(released)) = tokio::time::timeout(limits::RELEASED_FIRST, release).await {
                released?;
            }
        }
        self.plan_probe(lane);
        Ok(())
    }

    fn plan_probe(&self, lane: &mut Lane) {
        lane.probe = match (lane.dispatcher.probe_at(), lane.probe.take()) {
            (None, _) => None,
            (Some(_), Some(planned)) => Some(planned),
            (Some(at), None) => {
                let client = self.settings().client.clone();
                Some(Box::pin(async move {
                    tokio::time::sleep_until(at.into()).await;
                    client.probe().await
                }))
            }
        };
    }

    /// Stores that the endpoint was lost or came back, and tells it.
    async fn note_change(&self, change: Change) -> Result<(), StoreError> {
        let settings = self.settings();
        let since = match change {
            Change::Offline => Some(self.clock.now()),
            Change::Online => None,
        };
        let set = || {
            let change = move |stored: &mut Destination| stored.offline_since = since;
            self.store.change_destination(settings.id, change)
        };
        persist(set).await?;
        let counts = self.store.counts(settings.id).unwrap_or_default();
        let waiting = counts.queued + counts.stalled;
        (self.notify)(&settings, Notice::Endpoint { change, waiting });
        Ok(())
    }

    async fn release(&self, release: Release) -> Result<u64, StoreError> {
        let (id, now) = (self.settings().id, self.clock.now());
        persist(|| self.store.release(id, now, release)).await
    }
}

fn dispatcher(settings: &Settings) -> Dispatcher {
    let probing = match settings.client.target().is_loopback() {
        true => Probing::Loopback,
        false => Probing::Remote,
    };
    let (most, rate) = (settings.options.max_in_flight, settings.options.rate);
    match settings.is_offline {
        true => Dispatcher::doubtful(most, rate, probing, Instant::now()),
        false => Dispatcher::new(most, rate, probing),
    }
}

/// A task that panicked has told why on stderr; its delivery must not be forgotten, so the engine
/// stops, and the process with it.
fn joined<T>(done: Result<Result<T, StoreError>, JoinError>) -> Result<T, StoreError> {
    done.unwrap_or_else(|error| {
        Err(StoreError::Broken(
            format!("an attempt failed: {error}").into(),
        ))
    })
}

async fn probe(planned: &mut Option<Probe>) -> bool {
    let Some(future) = planned else {
        return std::future::pending().await;
    };
    let accepted = future.await;
    *planned = None;
    accepted
}
