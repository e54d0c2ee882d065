//! Does what the engine asks, and tells it what came of it. It must not decide anything itself: the engine does, and the
//! store remembers.

mod deliveries;
mod endpoints;
mod exchange;
mod record;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use whrelay_core::delivery::DestinationId;
use whrelay_core::limits;
use whrelay_core::queue::{DueCursor, DuePage, Offset, QueuePage};
use whrelay_core::retry::Jitter;
use whrelay_core::time::Timestamp;
use whrelay_engine::{Action, Append, Caps, Ended, Engine, Input, Load, ProbeResult, Token};
use whrelay_store::{Added, Changed, Changes, StoreError};

use self::deliveries::{Current, Tools};
use self::endpoints::Endpoints;
use self::exchange::Made;

pub use self::deliveries::Deliveries;

/// What a task has done.
enum Done {
    /// Destinations that have something due were read, or could not be.
    Destinations(Token, Option<DuePage>, Offset),
    /// A queue was read, or could not be.
    Loaded(DestinationId, Token, Option<QueuePage>, Offset),
    /// An exchange has ended.
    Finished(Token, Ended, Option<Box<Made>>),
    /// A record is on disk, at this position at the latest.
    Appended(Token, Offset),
    /// An endpoint was probed by its URL of then.
    Probed(DestinationId, u64, ProbeResult),
    /// The state of an endpoint is on disk.
    Stored(DestinationId),
}

/// Inputs of the engine that wait until the view has applied their records.
enum Unapplied {
    /// Deliveries of these destinations are due at these times.
    Due(BTreeMap<DestinationId, Timestamp>),
    /// Records and withdrawals, which the engine remembers until then.
    Remembered,
}

type Task = Result<Done, StoreError>;

/// What has happened.
enum Heard {
    Done(Task),
    Changed(Changed),
    /// The view has applied more.
    Applied,
    Nothing,
}

/// The engine and everything around it.
struct Driver {
    deliveries: Arc<Deliveries>,
    tools: Arc<Tools>,
    changes: Changes,
    /// How far the view has come.
    applied: watch::Receiver<Offset>,
    /// What the view has not applied yet, by position.
    unapplied: VecDeque<(Offset, Unapplied)>,
    engine: Engine,
    known: BTreeMap<DestinationId, Current>,
    tasks: JoinSet<Task>,
    /// Tasks that are probes: nobody waits for them at the end.
    probes: usize,
    /// What exchanges have shown that are not recorded yet.
    made: BTreeMap<Token, Box<Made>>,
    /// Records that are being written.
    appending: BTreeSet<Token>,
    /// Exchanges that the engine no longer waits for.
    overdue: BTreeSet<Token>,
    endpoints: Endpoints,
}

impl Driver {
    fn new(deliveries: Arc<Deliveries>) -> Self {
        let tools = deliveries.tools();
        let engine = Engine::new(Caps::default(), tools.clock.reading());
        let changes = tools.store.journal.changes();
        let applied = tools.store.view.applied();
        Self {
            deliveries,
            tools,
            changes,
            applied,
            unapplied: VecDeque::new(),
            engine,
            known: BTreeMap::new(),
            tasks: JoinSet::new(),
            probes: 0,
            made: BTreeMap::new(),
            appending: BTreeSet::new(),
            overdue: BTreeSet::new(),
            endpoints: Endpoints::default(),
        }
    }

    /// Delivers until `stop`, then lets attempts in flight end for at most [`limits::DRAIN`].
    async fn run(mut self, stop: CancellationToken) -> Result<(), StoreError> {
        let deliveries = Arc::clone(&self.deliveries);
        // What was written before is read, not told.
        let store = &self.tools.store;
        let appended = *store.journal.appended().borrow();
        tokio::select! {
            () = stop.cancelled() => {}
            () = store.view.wait_applied(appended) => {}
        }
        let mut heard = Heard::Nothing;
        while !stop.is_cancelled() {
            // The engine takes no note of deliveries for destinations that it does not know.
            self.configure().await;
            self.hear(heard)?;
            self.act()?;
            let wake = self.engine.next_wake(self.tools.clock.reading());
            heard = tokio::select! {
                () = stop.cancelled() => Heard::Nothing,
                () = deliveries.changed() => Heard::Nothing,
                heard = self.wait(wake) => heard,
            };
        }
        self.hear(heard)?;
        self.tell(Input::Stop);
        let drained = async {
            self.act()?;
            while !self.engine.is_idle() || self.tasks.len() > self.probes {
                let wake = self.engine.next_wake(self.tools.clock.reading());
                let heard = self.wait(wake).await;
                self.hear(heard)?;
                self.act()?;
            }
            Ok(())
        };
        tokio::time::timeout(limits::DRAIN, drained)
            .await
            .unwrap_or(Ok(()))
    }

    /// Waits until something has happened. Dropping the future loses none of it.
    async fn wait(&mut self, wake: Instant) -> Heard {
        tokio::select! {
            Some(done) = self.tasks.join_next() => Heard::Done(joined(done)),
            changed = self.changes.next() => Heard::Changed(changed),
            Ok(()) = self.applied.changed(), if !self.unapplied.is_empty() => Heard::Applied,
            () = sleep_until(wake.into()) => Heard::Nothing,
        }
    }

    /// Tells the engine what has happened.
    fn hear(&mut self, heard: Heard) -> Result<(), StoreError> {
        match heard {
            Heard::Done(done) => {
                self.done(done?);
                while let Some(done) = self.tasks.try_join_next() {
                    self.done(joined(done)?);
                }
            }
            Heard::Changed(changed) => self.changed(changed),
            Heard::Applied => self.hear_applied(),
            Heard::Nothing => {}
        }
        Ok(())
    }

    fn tell(&mut self, input: Input) {
        self.engine.handle(input, self.tools.clock.reading());
    }

    /// Tells the engine which destinations are new or have changed.
    async fn configure(&mut self) {
        for settings in self.deliveries.take_changed() {
            let id = settings.id;
            let before = self.known.get(&id);
            let endpoint_id = match before {
                Some(before) if before.is_same_endpoint(&settings) => before.endpoint_id,
                Some(before) => {
                    self.endpoints.replaced(&self.tools, &settings).await;
                    before.endpoint_id + 1
                }
                None => {
                    self.endpoints.begin(&settings);
                    0
                }
            };
            let for_engine = settings.for_engine(endpoint_id);
            let current = Current {
                settings,
                endpoint_id,
            };
            self.known.insert(id, current);
            self.tell(Input::Destination {
                id,
                settings: Some(for_engine),
            });
        }
    }

    /// Does everything that the engine asks for now.
    fn act(&mut self) -> Result<(), StoreError> {
        while let Some(action) = self.engine.poll_action(self.tools.clock.reading()) {
            match action {
                Action::LoadDestinations {
                    token,
                    until,
                    after,
                    max,
                } => self.load_destinations(token, until, (after, max)),
                Action::Load(load) => self.load(load),
                Action::Start {
                    token,
                    destination,
                    delivery,
                    number,
                } => {
                    let Some(current) = self.known.get(&destination) else {
                        self.not_asked(token);
                        continue;
                    };
                    let (tools, settings) =
                        (Arc::clone(&self.tools), Arc::clone(&current.settings));
                    self.tasks.spawn(async move {
                        let (ended, made) =
                            exchange::attempt(&tools, settings, delivery.key, number).await?;
                        Ok(Done::Finished(token, ended, made))
                    });
                }
                Action::Append(append) => self.append(append),
                Action::Probe {
                    destination,
                    linger,
                } => {
                    if let Some(current) = self.known.get(&destination) {
                        let client = current.settings.client.clone();
                        let endpoint_id = current.endpoint_id;
                        self.probes += 1;
                        self.tasks.spawn(async move {
                            let result = client.probe(linger).await;
                            Ok(Done::Probed(destination, endpoint_id, result))
                        });
                    }
                }
                Action::Endpoint {
                    destination,
                    state,
                    back_since,
                } => {
                    self.endpoints.set(destination, (state, back_since));
                    self.store_endpoint(destination);
                }
            }
        }
        Ok(())
    }

    fn done(&mut self, done: Done) {
        // The engine knows a delivery by what it has heard of it last.
        self.hear_changes();
        match done {
            Done::Destinations(token, page, applied) => self.tell(match page {
                Some(page) => Input::DueDestinations {
                    token,
                    page,
                    applied,
                },
                None => Input::DestinationsFailed { token },
            }),
            Done::Loaded(destination, token, page, applied) => self.tell(match page {
                Some(page) => Input::Loaded {
                    destination,
                    token,
                    page,
                    applied,
                },
                None => Input::LoadFailed { destination, token },
            }),
            Done::Finished(token, ended, made) => {
                if self.overdue.remove(&token) {
                    return;
                }
                if let Some(made) = made {
                    self.made.insert(token, made);
                }
                self.tell(Input::Finished {
                    token,
                    ended,
                    jitter: Jitter(rand::random()),
                });
            }
            Done::Appended(token, at) => {
                self.appending.remove(&token);
                self.unapplied.push_back((at, Unapplied::Remembered));
                self.hear_applied();
                self.tell(Input::Appended { token, at });
            }
            Done::Probed(destination, endpoint_id, result) => {
                self.probes -= 1;
                let known = self.known.get(&destination);
                if known.is_some_and(|known| known.endpoint_id == endpoint_id) {
                    self.tell(Input::Probed {
                        destination,
                        result,
                    });
                }
            }
            Done::Stored(destination) => {
                self.endpoints.stored(destination);
                self.store_endpoint(destination);
            }
        }
    }

    fn hear_changes(&mut self) {
        let changed = self.changes.take();
        if !changed.is_empty() {
            self.changed(changed);
        }
    }

    fn changed(&mut self, changed: Changed) {
        let Changed {
            added,
            due,
            withdrawn,
            at,
        } = changed;
        // A new delivery that is unloaded is found again once the view shows it.
        let is_ahead = *self.applied.borrow() < at;
        let mut due = due;
        for added in added.iter().filter(|_| is_ahead) {
            let earliest = due.entry(added.destination);
            earliest.or_insert(added.delivery.created_at);
        }
        if !due.is_empty() {
            self.unapplied.push_back((at, Unapplied::Due(due)));
        }
        if !withdrawn.is_empty() {
            self.unapplied.push_back((at, Unapplied::Remembered));
        }
        self.hear_applied();
        for Added {
            destination,
            delivery,
            at,
        } in added
        {
            self.tell(Input::Added {
                destination,
                delivery,
                at,
            });
        }
        for (destination, key) in withdrawn {
            self.tell(Input::Withdrawn {
                destination,
                key,
                at,
            });
        }
    }

    /// Tells the engine what the view has applied.
    fn hear_applied(&mut self) {
        let upto = *self.applied.borrow_and_update();
        while self.unapplied.front().is_some_and(|(at, _)| *at <= upto) {
            let applied = self.unapplied.pop_front();
            if let Some((_, Unapplied::Due(due))) = applied {
                for (destination, at) in due {
                    self.tell(Input::Due { destination, at });
                }
            }
        }
        self.tell(Input::Applied { upto });
    }

    fn load_destinations(
        &mut self,
        token: Token,
        until: Timestamp,
        (after, max): (Option<DueCursor>, usize),
    ) {
        let tools = Arc::clone(&self.tools);
        self.tasks.spawn(async move {
            let (view, now) = (&tools.store.view, tools.clock.now());
            let applied = *view.applied().borrow();
            let page = readable(view.due_destinations(until, after, max, now).await)?;
            Ok(Done::Destinations(token, page, applied))
        });
    }

    fn load(&mut self, load: Load) {
        let view = Arc::clone(&self.tools.store.view);
        self.tasks.spawn(async move {
            let Load {
                token,
                destination,
                query,
            } = load;
            let applied = *view.applied().borrow();
            let page = readable(view.queue(destination, &query).await)?;
            Ok(Done::Loaded(destination, token, page, applied))
        });
    }

    fn append(&mut self, append: Append) {
        let token = append.token;
        let Some(current) = self.known.get(&append.destination) else {
            return;
        };
        // The engine asks again after a while; the one that is being written is repeated by itself.
        if !self.appending.insert(token) {
            return;
        }
        let (tools, settings) = (Arc::clone(&self.tools), Arc::clone(&current.settings));
        let made = self.made.remove(&token);
        if append.tried && made.is_none() {
            self.overdue.insert(token);
        }
        self.tasks.spawn(async move {
            record::append(&tools, &settings, append, made).await?;
            let at = *tools.store.journal.appended().borrow();
            Ok(Done::Appended(token, at))
        });
    }

    fn store_endpoint(&mut self, id: DestinationId) {
        let Some(current) = self.known.get(&id) else {
            return;
        };
        let settings = Arc::clone(&current.settings);
        if let Some(write) = self.endpoints.next(&self.tools, settings) {
            self.tasks.spawn(async move {
                write.await?;
                Ok(Done::Stored(id))
            });
        }
    }

    fn not_asked(&mut self, token: Token) {
        self.tell(Input::Finished {
            token,
            ended: Ended::NotAsked,
            jitter: Jitter(0),
        });
    }
}

/// What was read. `None` if it cannot be read now: the engine asks again.
fn readable<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error @ StoreError::Broken(_)) => Err(error),
        Err(error @ StoreError::Damaged(_)) => {
            tracing::error!(%error, "a queue cannot be read");
            Ok(None)
        }
        Err(StoreError::Full | StoreError::Bound | StoreError::Share | StoreError::Reopening) => {
            Ok(None)
        }
    }
}

/// A task that panicked has told why on stderr; its delivery must not be forgotten, so the driver
/// stops, and the process with it.
fn joined(done: Result<Task, JoinError>) -> Task {
    done.unwrap_or_else(|error| {
        Err(StoreError::Broken(
            format!("an attempt failed: {error}").into(),
        ))
    })
}
