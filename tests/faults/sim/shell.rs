//! The shell around an agent's engine: what the engine asks for is done in steps of the world, and
//! each answer is heard when the world likes: late, twice, in another order, or never where the
//! engine bears that. It must not decide what starts, nor what follows.

use std::collections::BTreeMap;
use std::time::Duration;

use whrelay_core::delivery::{DeliveryKey, DestinationId};
use whrelay_core::destination::EndpointState;
use whrelay_core::queue::{DueCursor, Offset, QueuePage};
use whrelay_core::time::{Moment, Timestamp};
use whrelay_engine::limits::{PROBE_LINGER, REARM};
use whrelay_engine::{Action, Engine, Input, Load, Now, ProbeResult, Settings, Token};
use whrelay_store::Changed;

use super::ledger::{Recorded, Verdicts, hold};
use super::node::{Flight, ProcessClock, Purpose, Stage, Time};
use super::order::Shown;
use super::planted::{self, Bug};
use super::seen::Point;
use super::vault::{Vault, Write};
use super::world::World;

/// Longest delay of an answer.
pub(crate) const LATE: Time = 2_000_000;
/// Waits of the engine that are passed over in one step: it polls its view at least this often.
const MOST_REARMS: u32 = 40;

/// A read of the store that was asked for.
#[derive(Clone, Debug)]
pub(crate) enum Read {
    Queue(Load),
    Destinations {
        token: Token,
        until: Timestamp,
        after: Option<DueCursor>,
        max: usize,
    },
}

/// What the engine is to hear, and not before when.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) news: News,
    pub(crate) at: Time,
}

/// What the engine is to hear.
#[derive(Clone, Debug)]
pub(crate) enum News {
    /// It means itself.
    Plain(Input),
    /// A destination's configuration, as it is by then.
    Configured(usize),
    /// Whether the node is paused by then.
    Paused,
    /// A page of a queue, what was asked, and what the view had applied.
    Loaded {
        load: Load,
        page: QueuePage,
        applied: Offset,
    },
    /// A record is on disk.
    Appended {
        token: Token,
        at: Offset,
        recorded: Box<Recorded>,
    },
    /// A probe's result, and whether it is true.
    Probed {
        destination: DestinationId,
        result: ProbeResult,
        is_true: bool,
    },
}

/// The engine of an agent's process and everything that is on its way to or from it.
#[derive(Clone, Debug)]
pub(crate) struct Shell {
    pub(crate) engine: Engine,
    /// Destinations as the engine knows them.
    pub(crate) known: BTreeMap<DestinationId, Settings>,
    pub(crate) is_paused: bool,
    /// It was told to stop.
    pub(crate) is_stopping: bool,
    /// Whether the engine may have something to do now, and when it has at the latest.
    pub(crate) is_woken: bool,
    pub(crate) wake_at: Time,
    pub(crate) reads: Vec<Read>,
    pub(crate) told: Vec<Told>,
    pub(crate) probes: Vec<DestinationId>,
    pub(crate) flights: Vec<Flight>,
    /// Deliveries that the engine started and that are not tried.
    unread: BTreeMap<Token, (DestinationId, DeliveryKey)>,
    /// When the engine last gave up a read of a destination, since it heard of such a delivery.
    given_up: BTreeMap<DestinationId, Timestamp>,
    /// Commits of this process: the position of what they wrote.
    pub(crate) commits: u64,
    /// States of endpoints that were asked to be stored.
    endpoints: BTreeMap<DestinationId, (EndpointState, Option<Timestamp>)>,
    /// What reads show, as far as the engine knows.
    applied: Offset,
    /// Where the records of deliveries are, until the engine hears that reads show them, and when
    /// it heard.
    pub(crate) recorded: BTreeMap<DeliveryKey, (Offset, Option<Timestamp>)>,
    /// What pages have shown of each destination that orders by arrival.
    pub(crate) shown: BTreeMap<DestinationId, Shown>,
}

impl Shell {
    pub(crate) fn new(engine: Engine) -> Self {
        Self {
            engine,
            known: BTreeMap::new(),
            is_paused: false,
            is_stopping: false,
            is_woken: true,
            wake_at: 0,
            reads: Vec::new(),
            told: Vec::new(),
            probes: Vec::new(),
            flights: Vec::new(),
            unread: BTreeMap::new(),
            given_up: BTreeMap::new(),
            commits: 0,
            endpoints: BTreeMap::new(),
            applied: Offset::default(),
            recorded: BTreeMap::new(),
            shown: BTreeMap::new(),
        }
    }

    pub(crate) fn flight(&mut self, token: Token) -> Option<&mut Flight> {
        self.flights.iter_mut().find(|flight| flight.token == token)
    }

    /// Attempts at a destination whose records are not known to be on disk.
    pub(crate) fn running(&self, id: DestinationId) -> usize {
        let mine = |flight: &&Flight| flight.delivery.destination == id;
        self.flights.iter().filter(mine).count()
    }

    /// What the engine started is not tried.
    pub(crate) fn leave(&mut self, token: Token, id: DestinationId, key: DeliveryKey) {
        self.unread.insert(token, (id, key));
        if let Some(shown) = self.shown.get_mut(&id) {
            shown.start(key);
        }
    }

    /// Whether the engine started something at a destination that is not tried, and has not heard so.
    pub(crate) fn has_left(&self, id: DestinationId) -> bool {
        self.unread.values().any(|(to, _)| *to == id)
    }

    /// The engine hears that an attempt has ended.
    pub(crate) fn finished(&mut self, token: Token, now: Timestamp) {
        if let Some((id, _)) = self.unread.remove(&token) {
            self.given_up.insert(id, now);
        }
    }

    /// Whether the engine still wants the answer to a read that it asked for then.
    pub(crate) fn wants(&self, id: DestinationId, asked_at: Timestamp) -> bool {
        let given_up = self.given_up.get(&id);
        given_up.is_none_or(|given_up| asked_at > *given_up)
    }

    pub(crate) fn tell(&mut self, input: Input, at: Time) {
        let news = News::Plain(input);
        self.told.push(Told { news, at });
    }

    /// The engine hears where the record of a delivery is.
    pub(crate) fn note_record(&mut self, key: DeliveryKey, at: Offset, now: Timestamp) {
        let heard_at = (at <= self.applied).then_some(now);
        let known = self.recorded.get(&key);
        if known.is_none_or(|(known, _)| at > *known) {
            self.recorded.insert(key, (at, heard_at));
        }
    }

    /// The engine hears that reads show records up to a position.
    pub(crate) fn applied(&mut self, upto: Offset, now: Timestamp) {
        self.applied = upto.max(self.applied);
        for (at, heard_at) in self.recorded.values_mut() {
            if *at <= upto {
                heard_at.get_or_insert(now);
            }
        }
    }

    /// Whether a page that was asked for then may show a delivery as it was before.
    pub(crate) fn is_known(&self, key: DeliveryKey, asked_at: Timestamp) -> bool {
        let recorded = self.recorded.get(&key);
        let is_late = recorded.is_some_and(|(_, heard)| heard.is_none_or(|at| at >= asked_at));
        let mut unread = self.unread.values();
        is_late
            || unread.any(|(_, unread)| *unread == key)
            || self.flights.iter().any(|flight| flight.delivery.key == key)
    }

    /// When it has something to do by itself.
    pub(crate) fn next_timer(&self) -> Option<Time> {
        let flights = self.flights.iter().filter_map(|flight| match flight.stage {
            Stage::Answered { at } => Some(at),
            Stage::Going | Stage::Recording => None,
        });
        let told = self.told.iter().map(|told| told.at);
        flights.chain(told).chain([self.wake_at]).min()
    }

    /// How long the engine may be left alone. A process that could sleep looks every second; here
    /// nothing happens in those that the world does not know of.
    fn wait(&self, now: Now) -> Duration {
        let mut waited = Duration::ZERO;
        for _ in 0..MOST_REARMS {
            let moment = Moment {
                now: now.moment.now.after(waited),
                certain: now.moment.certain.after(waited),
            };
            let instant = now.instant + waited;
            let then = Now {
                moment,
                instant,
                ..now
            };
            let wake = self.engine.next_wake(then);
            if wake < instant + REARM {
                return waited + wake.saturating_duration_since(instant);
            }
            waited += REARM;
        }
        waited
    }
}

impl<V: Vault> World<V> {
    /// The present as an agent's engine is told it.
    pub(crate) fn engine_now(&mut self, n: usize) -> Option<Now> {
        let (node, planted) = (&mut self.agents[n], self.planted);
        let process = node.process.as_mut()?;
        let clock: &mut ProcessClock = &mut process.clock;
        let now = clock.now(self.origin, &node.machine, self.time);
        Some(planted::bent_now(planted, now))
    }

    /// When an answer is heard: mostly at once.
    pub(crate) fn heard_at(&mut self) -> Time {
        match self.chance.permille(100) {
            true => self.time + self.chance.below(LATE),
            false => self.time,
        }
    }

    /// The engine is asked what it wants next.
    pub(crate) fn poll(&mut self, n: usize) -> Verdicts {
        let Some(now) = self.engine_now(n) else {
            return Ok(());
        };
        let now = planted::bent_start(self.planted, now);
        let time = self.time;
        let Some(process) = &mut self.agents[n].process else {
            return Ok(());
        };
        let shell = &mut process.shell;
        let Some(action) = shell.engine.poll_action(now) else {
            let wait = shell.wait(now).as_nanos().div_ceil(1000).max(1) as Time;
            (shell.is_woken, shell.wake_at) = (false, time + wait);
            if shell.is_stopping && shell.engine.is_idle() && process.desk.asked.is_empty() {
                self.seen.note(Point::StoppedInPeace);
                return self.stop_agent(n);
            }
            return Ok(());
        };
        shell.is_woken = true;
        self.detail(&action);
        let Some(process) = &mut self.agents[n].process else {
            return Ok(());
        };
        let shell = &mut process.shell;
        match action {
            Action::LoadDestinations {
                token,
                until,
                after,
                max,
            } => shell.reads.push(Read::Destinations {
                token,
                until,
                after,
                max,
            }),
            Action::Load(load) => shell.reads.push(Read::Queue(load)),
            Action::Start {
                token,
                destination,
                delivery,
                number,
            } => return self.begin_attempt(n, (token, destination), &delivery, number),
            Action::Append(append) => self.ask_record(n, &append),
            Action::Probe {
                destination,
                linger,
            } => {
                shell.probes.push(destination);
                return hold(linger == PROBE_LINGER, "C2", || {
                    format!("a probe lingers {linger:?}")
                });
            }
            Action::Endpoint {
                destination,
                state,
                back_since,
            } => return self.ask_endpoint(n, destination, state, back_since),
        }
        Ok(())
    }

    /// An endpoint's state changed: it is stored with its destination.
    fn ask_endpoint(
        &mut self,
        n: usize,
        destination: DestinationId,
        endpoint: EndpointState,
        back_since: Option<Timestamp>,
    ) -> Verdicts {
        let Some(process) = &mut self.agents[n].process else {
            return Ok(());
        };
        if let Some(known) = process.shell.known.get_mut(&destination) {
            if known.back_since != back_since {
                process.shell.shown.remove(&destination);
                self.seen.note(Point::Returned);
            }
            (known.endpoint, known.back_since) = (endpoint, back_since);
        }
        self.seen.note(match endpoint {
            EndpointState::Online => Point::Online,
            EndpointState::Failing => Point::Failing,
            EndpointState::Offline => Point::Offline,
        });
        let stored = (endpoint, back_since);
        process.shell.endpoints.insert(destination, stored);
        let write = Write::Endpoint {
            destination,
            endpoint,
            back_since,
        };
        if self.planted != Some(Bug::EndpointNotStored) {
            process.desk.asked.push_back((write, Purpose::Endpoint));
        }
        self.ledger.endpoint((n, destination), back_since)
    }

    /// C2: the state of an endpoint is on disk once everything that was asked is.
    pub(crate) fn endpoints_are_stored(&self, n: usize) -> Verdicts {
        let node = &self.agents[n];
        let Some(process) = &node.process else {
            return Ok(());
        };
        let mut all = process.shell.endpoints.iter();
        let is_stored = |(id, asked): (&DestinationId, &_)| node.vault.endpoint(*id) == *asked;
        let is_written = !process.desk.asked.is_empty() || all.all(is_stored);
        hold(is_written, "C2", || {
            "the state of an endpoint is not stored".to_owned()
        })
    }

    /// The store is read for the engine. What it says is heard later.
    pub(crate) fn read(&mut self, n: usize, r: usize) -> Verdicts {
        let (now, at) = (self.now_at(n).now, self.heard_at());
        let fails = !self.is_calm() && self.chance.permille(15);
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        let shell = &mut process.shell;
        if fails {
            self.seen.note(Point::ReadFailed);
        }
        let news = match shell.reads.swap_remove(r) {
            Read::Destinations { token, .. } if fails => {
                News::Plain(Input::DestinationsFailed { token })
            }
            Read::Destinations {
                token,
                until,
                after,
                max,
            } => News::Plain(Input::DueDestinations {
                token,
                page: node.vault.due_destinations(until, after, max, now),
                applied: Offset(shell.commits),
            }),
            Read::Queue(load) if fails => News::Plain(Input::LoadFailed {
                destination: load.destination,
                token: load.token,
            }),
            Read::Queue(load) => {
                let page = node.vault.queue(load.destination, &load.query);
                let applied = Offset(shell.commits);
                News::Loaded {
                    load,
                    page,
                    applied,
                }
            }
        };
        shell.told.push(Told { news, at });
        Ok(())
    }

    /// An endpoint is asked whether it takes connections.
    pub(crate) fn probe(&mut self, n: usize, p: usize) -> Verdicts {
        let at = self.heard_at();
        let planted = self.planted;
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        let destination = process.shell.probes.swap_remove(p);
        let endpoint = node.targets.iter().find(|(id, _)| *id == destination);
        let Some((_, endpoint)) = endpoint else {
            return Ok(());
        };
        let shows = self.endpoints[*endpoint].shows();
        self.seen.note(match shows {
            ProbeResult::Refused => Point::ProbeRefused,
            ProbeResult::Closed => Point::ProbeClosed,
            ProbeResult::Open => Point::ProbeOpen,
        });
        let result = match planted {
            Some(Bug::BreakerNeverProbes) => ProbeResult::Refused,
            Some(Bug::RefusalCountsAsOpen) => ProbeResult::Open,
            Some(_) | None => shows,
        };
        let news = News::Probed {
            destination,
            result,
            is_true: result == shows,
        };
        process.shell.told.push(Told { news, at });
        Ok(())
    }

    /// What a commit changed in queues is told, and may be lost: that costs a poll.
    pub(crate) fn tell_changes(&mut self, n: usize, changed: Changed, records: bool) {
        let Some(process) = &self.agents[n].process else {
            return;
        };
        let upto = Offset(process.shell.commits);
        let added = changed.added.into_iter().map(|added| Input::Added {
            destination: added.destination,
            delivery: added.delivery,
            at: upto,
        });
        let due = changed.due.into_iter();
        let due = due.map(|(destination, at)| Input::Due { destination, at });
        let withdrawn = changed.withdrawn.into_iter().map(|(destination, key)| {
            let at = upto;
            Input::Withdrawn {
                destination,
                key,
                at,
            }
        });
        let applied = records.then_some(Input::Applied { upto });
        let all: Vec<_> = due.chain(added).chain(withdrawn).chain(applied).collect();
        for input in all {
            if let Input::Withdrawn {
                destination, key, ..
            } = &input
            {
                self.note_withdrawn(n, *destination, *key);
                if self.planted == Some(Bug::WithdrawnForgotten) {
                    continue;
                }
            }
            if self.chance.permille(60) {
                self.seen.note(Point::ChangeLost);
                continue;
            }
            let at = self.heard_at();
            if let Some(process) = &mut self.agents[n].process {
                process.shell.tell(input, at);
            }
        }
    }

    fn note_withdrawn(&mut self, n: usize, id: DestinationId, key: DeliveryKey) {
        let Some(process) = &self.agents[n].process else {
            return;
        };
        let shell = &process.shell;
        if shell
            .flights
            .iter()
            .any(|flight| flight.delivery.key == key)
        {
            self.seen.note(Point::WithdrawnInFlight);
        } else if shell.shown.get(&id).is_some_and(|shown| shown.has(key)) {
            self.seen.note(Point::WithdrawnWhileLoaded);
        }
    }
}
