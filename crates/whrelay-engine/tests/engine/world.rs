//! A node in virtual time: the engine, its journal and view, and endpoints that follow a script.

mod checks;
mod setup;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::{DeliveryKey, DestinationId};
use whrelay_core::destination::EndpointState;
use whrelay_core::order::Order;
use whrelay_core::outcome::Outcome;
use whrelay_core::queue::{Offset, Waiting};
use whrelay_core::retry::{Jitter, RetryPolicy, Verdict};
use whrelay_core::time::{Moment, Timestamp, TwoClocks};
use whrelay_engine::{Action, Append, Caps, Ended, Engine, Input, Now, Probing, Settings, Token};

use crate::endpoints::{Behaviour, flaky_outcome, jitter_of, random_outcome};
use crate::view::{Record, View};

pub(crate) const MS: u64 = 1000;
pub(crate) const SECOND: u64 = 1000 * MS;
pub(crate) const HOUR: u64 = 3600 * SECOND;
/// Wall time at the start of the world.
pub(crate) const BEGAN: i64 = 1_800_000_000_000_000;

/// Trouble between the engine and the world.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chaos {
    pub(crate) seed: u64,
    /// Shares of 256.
    pub(crate) lost: u8,
    pub(crate) late: u8,
    pub(crate) doubled: u8,
    pub(crate) failed: u8,
    /// Records that the view is behind.
    pub(crate) lag: usize,
}

/// A bug between the engine and the world, which the checks of the world have to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The view says that it has applied records before it has.
    AppliedEarly,
    /// The clock of schedules is a second ahead.
    ClockAhead,
    /// Every attempt has number 1.
    NumberRepeated,
    /// A record counts as written and is not.
    RecordLost,
    /// The engine hears of the end of an exchange that goes on.
    AnswerInvented,
}

#[derive(Clone, Debug)]
pub(crate) struct Started {
    pub(crate) at: u64,
    pub(crate) destination: DestinationId,
    pub(crate) key: DeliveryKey,
    pub(crate) number: u32,
}

#[derive(Clone, Debug)]
struct Exchange {
    destination: DestinationId,
    key: DeliveryKey,
    jitter: Jitter,
}

#[derive(Clone, Debug)]
enum Pending {
    Input(Input),
    Ends(Token, Outcome),
}

pub(crate) struct World {
    pub(crate) engine: Engine,
    caps: Caps,
    base: Instant,
    /// Microseconds since the start of the world.
    pub(crate) at: u64,
    /// What jumps have added to the wall clock, and when the last one was.
    jumped: i64,
    jumped_at: Option<Instant>,
    /// The clocks of the process, what they show, and when it began.
    clocks: TwoClocks,
    moment: Moment,
    process_began: (u64, Timestamp),
    /// Rows that a process before this one wrote.
    inherited: BTreeSet<(DestinationId, DeliveryKey)>,
    pub(crate) settings: BTreeMap<DestinationId, Settings>,
    pub(crate) endpoints: BTreeMap<DestinationId, Behaviour>,
    free_at: BTreeMap<DestinationId, u64>,
    pub(crate) journal: Vec<Record>,
    /// What the journal says of each delivery that has not ended.
    pub(crate) truth: BTreeMap<(DestinationId, DeliveryKey), Waiting>,
    pub(crate) view: View,
    pending: BTreeMap<(u64, u64), Pending>,
    order: u64,
    exchanges: BTreeMap<Token, Exchange>,
    unwritten: BTreeSet<Token>,
    pub(crate) chaos: Chaos,
    random: u64,
    next_seq: BTreeMap<BucketId, u64>,
    pub(crate) paused: bool,
    withdrawn: BTreeSet<(DestinationId, DeliveryKey)>,
    pub(crate) not_asked: usize,
    pub(crate) starts: Vec<Started>,
    pub(crate) ended: BTreeMap<(DestinationId, DeliveryKey), Verdict>,
    pub(crate) timed_out: usize,
    pub(crate) loads: usize,
    pub(crate) polls: usize,
    pub(crate) probes: usize,
    pub(crate) actions: usize,
    /// Actions after which the process dies.
    pub(crate) dies_after: Option<usize>,
    /// A bug planted between the engine and the world.
    pub(crate) planted: Option<Bug>,
}

pub(crate) fn settings() -> Settings {
    Settings {
        policy: RetryPolicy::default(),
        order: Order::Arrival,
        max_in_flight: 16,
        rate: None,
        timeout: Duration::from_secs(30),
        paused: false,
        endpoint_id: 0,
        probing: Probing::Loopback,
        endpoint: EndpointState::Online,
        back_since: None,
    }
}

impl World {
    pub(crate) fn new(caps: Caps) -> Self {
        let base = Instant::now();
        let began = Timestamp::from_micros(BEGAN);
        let moment = Moment {
            now: began,
            certain: began,
        };
        let now = Now {
            moment,
            instant: base,
            jumped_at: None,
        };
        Self {
            engine: Engine::new(caps, now),
            caps,
            base,
            at: 0,
            jumped: 0,
            jumped_at: None,
            clocks: TwoClocks::new(began),
            moment,
            process_began: (0, began),
            inherited: BTreeSet::new(),
            settings: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            free_at: BTreeMap::new(),
            journal: Vec::new(),
            truth: BTreeMap::new(),
            view: View::default(),
            pending: BTreeMap::new(),
            order: 0,
            exchanges: BTreeMap::new(),
            unwritten: BTreeSet::new(),
            chaos: Chaos::default(),
            random: 1,
            next_seq: BTreeMap::new(),
            paused: false,
            withdrawn: BTreeSet::new(),
            not_asked: 0,
            starts: Vec::new(),
            ended: BTreeMap::new(),
            timed_out: 0,
            loads: 0,
            polls: 0,
            probes: 0,
            actions: 0,
            dies_after: None,
            planted: None,
        }
    }

    pub(crate) fn with_chaos(caps: Caps, chaos: Chaos) -> Self {
        let mut world = Self::new(caps);
        world.random = chaos.seed | 1;
        world.chaos = chaos;
        world
    }

    pub(crate) fn now(&self) -> Now {
        let mut moment = self.moment;
        if self.planted == Some(Bug::ClockAhead) {
            moment.now = moment.now.after(Duration::from_secs(1));
        }
        Now {
            moment,
            instant: self.base + Duration::from_micros(self.at),
            jumped_at: self.jumped_at,
        }
    }

    /// The time by which schedules run. It never goes back while the process lives.
    pub(crate) fn wall(&self) -> Timestamp {
        self.moment.now
    }

    fn wall_clock(&self) -> Timestamp {
        Timestamp::from_micros(BEGAN + i64::try_from(self.at).unwrap() + self.jumped)
    }

    fn go_to(&mut self, at: u64) {
        self.at = at;
        let elapsed = Duration::from_micros(at - self.process_began.0);
        self.moment = self.clocks.read(self.wall_clock(), elapsed);
    }

    pub(crate) fn jump(&mut self, by: i64) {
        self.jumped += by;
        self.jumped_at = Some(self.now().instant);
        self.go_to(self.at);
    }

    pub(crate) fn set_clock_right(&mut self) {
        self.jump(-self.jumped);
    }

    pub(crate) fn chance(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn happens(&mut self, share: u8) -> bool {
        share > 0 && self.chance() % 256 < u64::from(share)
    }

    pub(crate) fn input(&mut self, input: Input) {
        let now = self.now();
        self.engine.handle(input, now);
    }

    /// Applies all records but the newest, which the view lags behind.
    fn apply(&mut self) {
        let upto = self.journal.len().saturating_sub(self.chaos.lag);
        if self.view.applied >= upto {
            return;
        }
        while self.view.applied < upto {
            let record = self.journal[self.view.applied].clone();
            self.view.apply(&record);
        }
        let ahead = if self.planted == Some(Bug::AppliedEarly) {
            9
        } else {
            0
        };
        let upto = Offset(upto as u64 + ahead);
        self.answer(Input::Applied { upto });
    }

    /// Lets the view follow to the end.
    pub(crate) fn catch_up(&mut self) {
        let lag = std::mem::take(&mut self.chaos.lag);
        self.apply();
        self.chaos.lag = lag;
    }

    /// Passes an answer on: at once, or late, twice or never.
    fn answer(&mut self, input: Input) {
        if self.happens(self.chaos.lost) {
            return;
        }
        let delay = match self.happens(self.chaos.late) {
            true => self.chance() % (2 * SECOND),
            false => 0,
        };
        if self.happens(self.chaos.doubled) {
            let again = delay + self.chance() % SECOND;
            self.plan(again, Pending::Input(input.clone()));
        }
        self.plan(delay, Pending::Input(input));
    }

    fn plan(&mut self, delay: u64, pending: Pending) {
        self.order += 1;
        self.pending.insert((self.at + delay, self.order), pending);
    }

    /// Runs for so many microseconds.
    pub(crate) fn run(&mut self, micros: u64) {
        let until = self.at + micros;
        loop {
            self.drain();
            let wake = self.engine.next_wake(self.now());
            let wake = (wake - self.base).as_nanos().div_ceil(1000);
            let wake = u64::try_from(wake).unwrap().max(self.at + 1);
            let first = self.pending.first_key_value().map(|((at, _), _)| *at);
            let next = first.map_or(wake, |at| at.min(wake));
            if next > until {
                self.go_to(until);
                self.drain();
                return;
            }
            self.go_to(next.max(self.at));
        }
    }

    fn drain(&mut self) {
        let mut turns = 0;
        loop {
            turns += 1;
            assert!(turns < 50_000, "the engine and the world talk for ever");
            let due = self.pending.first_key_value();
            if let Some((at, _)) = due.filter(|((at, _), _)| *at <= self.at) {
                let at = *at;
                let pending = self.pending.remove(&at).unwrap();
                self.happen(pending);
            } else if let Some(action) = self.engine.poll_action(self.now()) {
                self.actions += 1;
                if self.dies_after.is_some_and(|after| self.actions > after) {
                    self.dies_after = None;
                    self.crash();
                } else {
                    self.perform(action);
                }
            } else {
                return;
            }
        }
    }

    fn happen(&mut self, pending: Pending) {
        match pending {
            Pending::Input(input) => {
                if let Input::Appended { token, .. } = &input {
                    self.unwritten.remove(token);
                }
                self.input(input);
            }
            Pending::Ends(token, outcome) => {
                if self.planted == Some(Bug::AnswerInvented) {
                    // The engine hears of the end of the first exchange, whichever it was.
                    let first = self.exchanges.first_key_value();
                    let token = first.map_or(token, |(token, _)| *token);
                    let ended = Ended::Tried(Outcome::Broken);
                    let jitter = Jitter(0);
                    self.input(Input::Finished {
                        token,
                        ended,
                        jitter,
                    });
                    return;
                }
                let jitter = self.exchanges.remove(&token).map(|x| x.jitter);
                self.timed_out += usize::from(outcome == Outcome::TimedOut);
                self.answer(Input::Finished {
                    token,
                    ended: Ended::Tried(outcome),
                    jitter: jitter.unwrap_or(Jitter(0)),
                });
            }
        }
    }

    fn perform(&mut self, action: Action) {
        let is_failing = self.happens(self.chaos.failed);
        match action {
            Action::LoadDestinations {
                token,
                until,
                after,
                max,
            } => {
                self.polls += 1;
                let page = self.view.due_destinations(until, after, max, self.wall());
                self.answer(match is_failing {
                    true => Input::DestinationsFailed { token },
                    false => Input::DueDestinations {
                        token,
                        page,
                        applied: Offset(self.view.applied as u64),
                    },
                });
            }
            Action::Load(load) => {
                self.loads += 1;
                let page = self.view.page(load.destination, &load.query);
                let (destination, token) = (load.destination, load.token);
                self.answer(match is_failing {
                    true => Input::LoadFailed { destination, token },
                    false => Input::Loaded {
                        destination,
                        token,
                        page,
                        applied: Offset(self.view.applied as u64),
                    },
                });
            }
            Action::Start {
                token,
                destination,
                delivery,
                number,
            } => self.start(token, destination, delivery, number),
            Action::Append(append) => self.append(append, is_failing),
            Action::Probe { destination, .. } => self.probe(destination),
            Action::Endpoint {
                destination,
                state,
                back_since,
            } => {
                let settings = self.settings.get_mut(&destination).unwrap();
                settings.endpoint = state;
                settings.back_since = back_since;
                self.view
                    .back_since
                    .extend(back_since.map(|at| (destination, at)));
            }
        }
    }

    fn start(&mut self, token: Token, id: DestinationId, delivery: Waiting, number: u32) {
        let number = match self.planted {
            Some(Bug::NumberRepeated) => 1,
            Some(_) | None => number,
        };
        if self.withdrawn.contains(&(id, delivery.key)) {
            // The shell finds that it has ended when it reads the event.
            self.not_asked += 1;
            let (ended, jitter) = (Ended::NotAsked, Jitter(0));
            return self.answer(Input::Finished {
                token,
                ended,
                jitter,
            });
        }
        self.check_start(id, &delivery, number);
        let exchange = Exchange {
            destination: id,
            key: delivery.key,
            jitter: jitter_of(delivery.key, number),
        };
        self.exchanges.insert(token, exchange);
        self.unwritten.insert(token);
        self.starts.push(Started {
            at: self.at,
            destination: id,
            key: delivery.key,
            number,
        });
        let (outcome, after) = self.exchange(id, delivery.key, number);
        self.plan(after, Pending::Ends(token, outcome));
    }

    fn exchange(&mut self, id: DestinationId, key: DeliveryKey, number: u32) -> (Outcome, u64) {
        let answered = |status| Outcome::Answered {
            status,
            retry_after: None,
        };
        match self.endpoints[&id] {
            Behaviour::Answers(status, after) => (answered(status), after),
            Behaviour::Refuses => (Outcome::Unreachable, MS),
            Behaviour::Closes | Behaviour::Breaks => (Outcome::Broken, MS),
            Behaviour::Hangs(timeout) => (Outcome::TimedOut, timeout),
            Behaviour::HangsAtFirst(timeout) if key.seq.0 == 1 => (Outcome::TimedOut, timeout),
            Behaviour::HangsAtFirst(_) => (answered(200), MS),
            Behaviour::Single { each, timeout } => {
                let free_at = self.free_at.entry(id).or_default();
                *free_at = self.at.max(*free_at) + each;
                let after = *free_at - self.at;
                match after > timeout {
                    true => (Outcome::TimedOut, timeout),
                    false => (answered(200), after),
                }
            }
            Behaviour::Random(share) => random_outcome(share, key, number),
            Behaviour::Flaky(share) => flaky_outcome(share, key, number),
        }
    }

    fn append(&mut self, append: Append, is_failing: bool) {
        let token = append.token;
        if self.planted == Some(Bug::RecordLost) {
            let at = Offset(self.journal.len() as u64);
            return self.answer(Input::Appended { token, at });
        }
        let id = append.destination;
        let key = append.delivery.key;
        // A record is taken once: by its delivery and the number of its attempt.
        let before = self.truth.get(&(id, key));
        let is_known = before.is_none_or(|row| append.tried && row.attempts >= append.number);
        let is_written = !is_failing || self.chance().is_multiple_of(2);
        if is_written && !is_known {
            let next = append
                .delivery
                .following(append.number, &append.verdict, append.at);
            self.inherited.remove(&(id, key));
            match next {
                Some(next) => self.truth.insert((id, key), next),
                None => {
                    self.ended.insert((id, key), append.verdict);
                    self.truth.remove(&(id, key))
                }
            };
            self.journal.push(Record {
                destination: id,
                key,
                next,
            });
        }
        let at = Offset(self.journal.len() as u64);
        self.answer(match is_failing {
            true => Input::AppendFailed { token },
            false => Input::Appended { token, at },
        });
        self.apply();
    }
}
