//! An agent's steps: its process, its link and its store, as the real shells take them.

use std::collections::VecDeque;

use whrelay_core::backlog::{Backlog, Cut};
use whrelay_core::bucket::Seq;
use whrelay_core::delivery::Delivery;
use whrelay_core::destination::EndpointState;
use whrelay_core::id::{DeliveryId, EventId};
use whrelay_core::retry::{Jitter, reconnect_pause};
use whrelay_core::route;
use whrelay_core::time::Moment;
use whrelay_engine::Engine;
use whrelay_proto::frame::{Epoch, Frame, Hello, Known, RefusedCode, Resume, Who, WireEvent};
use whrelay_proto::{AgentAction, AgentSession, ProtocolError, codec};
use whrelay_store::{NewDelivery, NewEvent, SourceMark};

use crate::chance::Chance;

use super::catching_up;
use super::ledger::Verdicts;
use super::node::{AgentProcess, Desk, FarEnd, Link, NearEnd, ProcessClock, Purpose, Stage, Time};
use super::planted::{self, Bug};
use super::seen::Point;
use super::shell::{News, Shell, Told};
use super::vault::{Done, Vault, Write};
use super::world::World;

/// How long whoever runs an agent takes to start it again.
const RESTART: Time = 5_000_000;
/// How long an attempt may take.
pub(crate) const TIMEOUT: Time = 30_000_000;

impl<V: Vault> World<V> {
    pub(crate) fn start_agent(&mut self, n: usize) -> Verdicts {
        let node = &mut self.agents[n];
        node.vault.reopen();
        if !std::mem::take(&mut node.goes_on) {
            node.follows = Some(node.instance);
            node.instance = self.chance.bits();
        }
        let mut clock = ProcessClock::start(&node.machine, self.time);
        let now = clock.now(self.origin, &node.machine, self.time);
        let began = now.moment.now;
        let ahead = |d: &Delivery| d.attempts == 0 && d.next_attempt_at() > Some(began);
        let last = node.vault.last_seq(node.bucket.id).0;
        let deliveries = |seq| node.vault.deliveries_of(node.bucket.id, Seq(seq));
        if (1..=last).flat_map(deliveries).any(|d| ahead(&d)) {
            self.seen.note(Point::QueuedAheadOfTheClock);
        }
        for (id, _) in &node.targets {
            let (endpoint, back) = node.vault.endpoint(*id);
            let offline = endpoint == EndpointState::Offline;
            self.ledger.begin((n, *id), began, (offline, back));
            if offline {
                self.seen.note(Point::BegunOffline);
            }
        }
        self.ledger.begun.remove(&n);
        let wanted = match self.passes_over {
            true => catching_up::draw(&mut self.chance, began),
            false => Backlog::default(),
        };
        let now = planted::bent_now(self.planted, now);
        let mut shell = Shell::new(Engine::new(self.caps, now));
        if node.is_paused {
            let news = News::Paused;
            let at = self.time;
            shell.told.push(Told { news, at });
        }
        let targets = node.targets.len();
        node.process = Some(AgentProcess {
            clock,
            wanted,
            cut: None,
            desk: Desk::default(),
            shell,
            is_hurried: false,
            link: None,
            failures: 0,
            redial_at: self.time,
            waiting: VecDeque::new(),
            appending: false,
        });
        (0..targets).for_each(|target| self.configure(n, target, &now));
        Ok(())
    }

    /// The present, as an agent's process tells it.
    pub(crate) fn now_at(&mut self, n: usize) -> Moment {
        let node = &mut self.agents[n];
        match &mut node.process {
            Some(process) => process.clock.read(&node.machine, self.time),
            None => Moment {
                now: node.machine.wall(self.time),
                certain: node.machine.wall(self.time),
            },
        }
    }

    pub(crate) fn dial(&mut self, n: usize) -> Verdicts {
        let jitter = Jitter(self.chance.bits() as u32);
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        process.redial_at =
            self.time + reconnect_pause(process.failures, jitter).as_micros() as Time;
        process.failures += 1;
        if self.forwarder.process.is_none() {
            self.seen.note(Point::DialFailed);
            return Ok(());
        }
        let backlog_end = process.cut.as_ref().and_then(Cut::end);
        let resume = node.vault.source(node.bucket.id).map(|source| Resume {
            locator: source
                .locator
                .entries()
                .iter()
                .copied()
                .map(Known::new)
                .collect(),
            whole_after: source.whole_after.0,
            ..Resume::at(&source.forwarder, source.seq.0)
        });
        let who = Who {
            store: node.vault.name(),
            epoch: Epoch {
                opens: node.vault.opens(),
                instance: node.instance,
            },
            follows: node.follows,
            ..Who::default()
        };
        let (session, hello) = AgentSession::begin(Hello {
            who: Some(who),
            take_over: self.chance.permille(300),
            // Each subscription is owed everything here, whenever it began.
            backlog: Some(true),
            backlog_end: backlog_end.map(Known::new),
            ..Hello::new(node.bucket.name.as_str(), &node.subscription, resume)
        });
        let Frame::Hello(mut hello) = hello else {
            return Ok(());
        };
        // Small windows, so that credit runs out.
        hello.window_events = 1 + self.chance.below(6) as u32;
        hello.window_bytes = 64 + self.chance.below(512);
        self.last_link += 1;
        process.link = Some(self.last_link);
        let near = NearEnd {
            session,
            forwarder: None,
            start: Seq(0),
            received: Vec::new(),
        };
        self.links.push(Link {
            id: self.last_link,
            agent: n,
            near: Some(near),
            far: Some(FarEnd::default()),
            up: [codec::encode(Frame::Hello(hello))].into(),
            down: VecDeque::new(),
            there: Seq(0),
            cut: None,
        });
        Ok(())
    }

    pub(crate) fn frame_down(&mut self, link: usize) -> Verdicts {
        let Some(bytes) = self.links[link].down.pop_front() else {
            return Ok(());
        };
        let n = self.links[link].agent;
        let Some(near) = &mut self.links[link].near else {
            return Ok(());
        };
        match codec::decode(bytes).and_then(|frame| near.session.on_frame(frame)) {
            Ok(AgentAction::Welcomed(welcome)) => {
                self.seen.note(Point::FrameWelcome);
                near.forwarder = Some(welcome.forwarder.clone());
                near.start = Seq(welcome.start);
                let node = &mut self.agents[n];
                node.went_back = false;
                let source = node.vault.source(node.bucket.id);
                let reached = source.filter(|source| source.forwarder == welcome.forwarder);
                let cut = node.process.as_mut().and_then(|p| p.cut.as_mut());
                if let Some(cut) = cut
                    && self.planted != Some(Bug::BacklogOutlivesItsHistory)
                {
                    let reached = reached.map_or(0, |source| source.seq.0);
                    self.ledger.resumes(n, reached, welcome.start);
                    let lost_end = welcome.noticed.backlog_end_lost;
                    cut.resume(&welcome.forwarder, reached, welcome.start, lost_end);
                }
                let there = self.links[link].there;
                self.catch_up(n, &welcome, there);
            }
            Ok(AgentAction::Store { events, upto }) => {
                self.seen.note(Point::FrameEvents);
                let ids = events
                    .iter()
                    .map(|e| (e.seq, whrelay_core::id::EventId::from_bytes(e.head.id)));
                near.received.extend(ids);
                if self.planted == Some(Bug::AckBeforePersist) {
                    self.acknowledge(link, upto)?;
                }
                if let Some(process) = &mut self.agents[n].process {
                    process.waiting.push_back((events, upto));
                }
            }
            Ok(AgentAction::Refused(refused)) => {
                self.close_near(link);
                if matches!(refused.code, RefusedCode::Replaced | RefusedCode::InUse) {
                    if refused.code == RefusedCode::Replaced {
                        self.seen.note(Point::FrameReplaced);
                    }
                    self.stop_agent(n)?;
                    self.agents[n].rests_until = self.time + RESTART;
                }
            }
            Err(error) => {
                let gap = matches!(error, ProtocolError::Gap { .. });
                self.seen.note(if gap {
                    Point::BreachGap
                } else {
                    Point::BreachOther
                });
                self.cut_link(link);
                self.close_near(link);
            }
        }
        Ok(())
    }

    pub(crate) fn near_notices(&mut self, link: usize) -> Verdicts {
        self.close_near(link);
        Ok(())
    }

    fn close_near(&mut self, link: usize) {
        let n = self.links[link].agent;
        self.links[link].near = None;
        let abandons = self.chance.permille(500);
        let Some(process) = &mut self.agents[n].process else {
            return;
        };
        process.link = None;
        process.waiting.clear();
        // What waits for the writer and nobody waits for any more is left undone; what has begun is
        // finished, and nobody hears of it.
        let before = process.desk.asked.len();
        let append =
            |purpose: &Purpose| matches!(purpose, Purpose::Append { .. } | Purpose::Part { .. });
        if abandons {
            process.desk.asked.retain(|(_, purpose)| !append(purpose));
        }
        if process.desk.asked.len() < before {
            self.seen.note(Point::WriteAbandoned);
        }
        process.appending = false;
    }

    /// Puts what waits on disk, with its deliveries and the place it reaches, in one transaction.
    pub(crate) fn append(&mut self, n: usize) -> Verdicts {
        let now = self.now_at(n);
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        let link = self.links.iter().find(|link| Some(link.id) == process.link);
        let near = link.and_then(|link| link.near.as_ref());
        let begun = near.and_then(|near| Some((near.forwarder.clone()?, near.start)));
        let (Some((forwarder, start)), Some(link)) = (begun, process.link) else {
            process.waiting.clear();
            return Ok(());
        };
        let (events, reached) = take_some(&mut process.waiting, &mut self.chance);
        let ids = |event: &WireEvent| (Seq(event.seq), EventId::from_bytes(event.head.id));
        let noted = events.iter().map(ids).collect();
        let mut new = Vec::new();
        for event in events {
            let seq = event.seq;
            let event = event.into_event(node.bucket.name.clone());
            let passed_over = catching_up::passes_over(
                process.cut.as_mut(),
                (&forwarder, seq, event.received_at),
                self.planted,
            );
            let there = self.forwarder.has(event.id);
            let place = (seq, there);
            self.ledger.caught_up(n, place, &event, passed_over)?;
            if passed_over {
                self.seen.note(Point::PassedOver);
            }
            let to = match self.planted {
                Some(Bug::RouteIgnored) => node.targets.iter().map(|(id, _)| *id).collect(),
                _ => route::taking(&node.routes, |(prefix, _)| prefix, &event.request.tail)
                    .map(|(_, id)| *id)
                    .collect::<Vec<_>>(),
            };
            if to.len() < node.targets.len() {
                self.seen.note(Point::Routed);
            }
            let deliveries = to.into_iter().map(|destination| NewDelivery {
                id: DeliveryId::from_parts(now.now, u128::from(self.chance.bits())),
                destination,
                created_at: now.now,
                due_at: now.now,
                deadline_at: self.policy.deadline_of(now.now),
                replay: false,
                passed_over,
                one_off: false,
            });
            let deliveries = deliveries.collect();
            new.push(NewEvent { event, deliveries });
        }
        process.appending = true;
        let write = Write::Append {
            bucket: node.bucket.id,
            events: new,
            mark: Some(SourceMark {
                forwarder,
                start,
                seq: Seq(reached),
                events: noted,
            }),
        };
        let purpose = match process.waiting.is_empty() {
            true => Purpose::Append { link, reached },
            false => Purpose::Part { link },
        };
        process.desk.asked.push_back((write, purpose));
        Ok(())
    }

    pub(crate) fn appended(&mut self, n: usize, link: u64, reached: u64) -> Verdicts {
        if let Some(process) = &mut self.agents[n].process
            && process.link == Some(link)
        {
            process.appending = false;
            process.failures = 0;
        }
        match self.links.iter().position(|l| l.id == link) {
            Some(link) => self.acknowledge(link, reached),
            None => Ok(()),
        }
    }

    fn acknowledge(&mut self, link: usize, upto: u64) -> Verdicts {
        let Link {
            near, up, agent, ..
        } = &mut self.links[link];
        let Some(near) = near else {
            return Ok(());
        };
        let Some(ack) = near.session.persisted(upto) else {
            return Ok(());
        };
        up.push_back(codec::encode(ack));
        let upto = near.received.partition_point(|(seq, _)| *seq <= upto);
        let sent: Vec<_> = near.received.drain(..upto).map(|(_, id)| id).collect();
        let n = *agent;
        self.ledger.acked(n, &self.agents[n].vault, &sent)
    }

    pub(crate) fn crash_agent(&mut self, n: usize) -> Verdicts {
        let Some(process) = &self.agents[n].process else {
            return Ok(());
        };
        let asked = |is: fn(&Purpose) -> bool| process.desk.asked.iter().any(|(_, p)| is(p));
        let answered = |is: fn(&Purpose) -> bool| process.desk.answered.iter().any(|(_, p)| is(p));
        let stage = |is: fn(&Stage) -> bool| {
            let mut flights = process.shell.flights.iter();
            flights.any(|flight| is(&flight.stage))
        };
        let append: fn(&Purpose) -> bool = |p| matches!(p, Purpose::Append { .. });
        let verdict: fn(&Purpose) -> bool = |p| matches!(p, Purpose::Verdict { .. });
        let cases = [
            (
                asked(append) || !process.waiting.is_empty(),
                Point::CrashWithEventsUnpersisted,
            ),
            (answered(append), Point::CrashWithAppendUnheard),
            (
                stage(|s| matches!(s, Stage::Going)),
                Point::CrashBeforeRequest,
            ),
            (
                stage(|s| matches!(s, Stage::Answered { .. })),
                Point::CrashAfterRequest,
            ),
            (asked(verdict), Point::CrashWithVerdictUnwritten),
            (answered(verdict), Point::CrashWithVerdictUnheard),
            (
                asked(|p| matches!(p, Purpose::Endpoint)),
                Point::CrashWithEndpointUnwritten,
            ),
            (
                asked(|p| matches!(p, Purpose::Replay { .. })),
                Point::CrashWithReplayUnwritten,
            ),
        ];
        if cases.iter().all(|(is, _)| !is) {
            self.seen.note(Point::CrashWhileIdle);
        }
        for (_, point) in cases.iter().filter(|(is, _)| *is) {
            self.seen.note(*point);
        }
        self.seen.crashes += 1;
        self.stop_agent(n)
    }

    /// The process is gone, and with it everything that was not on disk.
    pub(crate) fn stop_agent(&mut self, n: usize) -> Verdicts {
        let Some(process) = self.agents[n].process.take() else {
            return Ok(());
        };
        // What is on disk counts, heard or not.
        for told in &process.shell.told {
            if let News::Appended { recorded, .. } = &told.news {
                self.ledger.recorded(&self.policy, recorded)?;
            }
        }
        for (done, purpose) in &process.desk.answered {
            if let Purpose::Verdict { verdict, .. } = purpose
                && *done != Done::Unknown
            {
                self.ledger.recorded(&self.policy, verdict)?;
            }
        }
        for flight in &process.shell.flights {
            self.ledger.cut(flight.delivery.id);
        }
        for link in 0..self.links.len() {
            if self.links[link].agent == n {
                self.links[link].near = None;
                self.cut_link(link);
            }
        }
        Ok(())
    }
}

/// A disk that has no space for all may have some for a part.
fn take_some(
    waiting: &mut VecDeque<(Vec<WireEvent>, u64)>,
    chance: &mut Chance,
) -> (Vec<WireEvent>, u64) {
    let all: usize = waiting.iter().map(|(events, _)| events.len()).sum();
    let part = match all > 1 && chance.permille(200) {
        true => 1 + chance.index(all - 1),
        false => usize::MAX,
    };
    take_part(waiting, part)
}

/// The first of what waits, so many at most, and the place that they reach.
fn take_part(waiting: &mut VecDeque<(Vec<WireEvent>, u64)>, part: usize) -> (Vec<WireEvent>, u64) {
    let (mut taken, mut reached) = (Vec::new(), 0);
    while taken.len() < part
        && let Some((mut events, upto)) = waiting.pop_front()
    {
        let rest = events.split_off(events.len().min(part - taken.len()));
        reached = match events.last() {
            Some(last) if !rest.is_empty() => last.seq,
            Some(_) | None => upto,
        };
        taken.append(&mut events);
        if !rest.is_empty() {
            waiting.push_front((rest, upto));
        }
    }
    (taken, reached)
}
