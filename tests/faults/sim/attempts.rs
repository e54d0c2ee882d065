//! From an attempt's start to its record: what the engine asks, and what of it reaches the disk. It
//! must not decide what follows.

use std::time::Duration;

use whrelay_core::delivery::{Asked, Attempt, DeadReason, Delivery, DestinationId};
use whrelay_core::destination::EndpointState;
use whrelay_core::order::Order;
use whrelay_core::outcome::Outcome;
use whrelay_core::queue::{Offset, WaitReason, Waiting};
use whrelay_core::retry::{Jitter, Pause, Phase, Verdict};
use whrelay_core::time::{Moment, Timestamp};
use whrelay_engine::{Append, Ended, Input, Settings, Token};

use super::ledger::{Ledger, Recorded, Start, Verdicts, hold};
use super::node::{Flight, Purpose, Stage};
use super::planted::{self, Bug};
use super::seen::{Point, Seen};
use super::shell::{News, Told};
use super::vault::{Done, Vault, Write};
use super::world::World;

/// How much later a delivery is due whose event could not be read.
const UNREADABLE: Duration = Duration::from_secs(30);

impl<V: Vault> World<V> {
    /// Starts what the engine wants started, unless its event has gone or it has ended.
    pub(crate) fn begin_attempt(
        &mut self,
        n: usize,
        (token, destination): (Token, DestinationId),
        row: &Waiting,
        number: u32,
    ) -> Verdicts {
        let now = self.now_at(n);
        let is_unreadable = !self.is_calm() && self.chance.permille(10);
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        let delivery = node.vault.delivery(row.key);
        let event = node.vault.event_at(&node.bucket, row.key.seq);
        let looks = !matches!(
            self.planted,
            Some(Bug::RetryAfterSent | Bug::WithdrawnForgotten)
        );
        let waits = |delivery: &Delivery| !looks || !delivery.state.is_finished();
        let (Some(delivery), Some(event)) = (delivery.filter(waits), event) else {
            process.shell.leave(token, destination, row.key);
            self.seen.note(Point::NotAsked);
            self.not_asked(n, token);
            return Ok(());
        };
        if is_unreadable {
            self.seen.note(Point::Unreadable);
            process.shell.leave(token, destination, row.key);
            let (key, now, delay) = (row.key, now.now, UNREADABLE);
            let write = Write::Postpone { key, now, delay };
            let purpose = Purpose::Postpone { token };
            process.desk.asked.push_back((write, purpose));
            return Ok(());
        }
        hold(delivery.destination == destination, "C2", || {
            format!("{} goes to another destination", delivery.id)
        })?;
        process.shell.flights.push(Flight {
            token,
            delivery: delivery.clone(),
            event,
            at: now.now,
            stage: Stage::Going,
            outcome: None,
            decided: None,
            is_asked: false,
        });
        if self.planted == Some(Bug::DoubleClaim) {
            self.not_asked(n, token);
        }
        let number = match self.planted {
            Some(Bug::AttemptNumberStartsOver) => 1,
            Some(_) | None => number,
        };
        self.judge_start(n, &delivery, number, now)
    }

    /// The engine hears that an attempt was not made.
    pub(crate) fn not_asked(&mut self, n: usize, token: Token) {
        let (time, ended, jitter) = (self.time, Ended::NotAsked, Jitter(0));
        if let Some(process) = &mut self.agents[n].process {
            let input = Input::Finished {
                token,
                ended,
                jitter,
            };
            process.shell.tell(input, time);
        }
    }

    /// Judges an attempt that starts.
    fn judge_start(&mut self, n: usize, delivery: &Delivery, number: u32, now: Moment) -> Verdicts {
        let node = &self.agents[n];
        let Some(process) = &node.process else {
            return Ok(());
        };
        let (shell, id) = (&process.shell, delivery.destination);
        let running = shell.running(id);
        let is_quiet = shell.is_paused || shell.is_stopping;
        let Some(settings) = shell.known.get(&id).cloned() else {
            let id = delivery.id;
            return hold(false, "C2", || {
                format!("{id} is tried at a destination that was removed")
            });
        };
        hold(!is_quiet && !settings.paused, "C2", || {
            format!("{} is tried while nothing new may start", delivery.id)
        })?;
        self.note_start(n, delivery, &settings, now.now);
        if settings.order == Order::Fifo {
            Ledger::in_order(&self.agents[n].vault, delivery)?;
        }
        self.oldest_first(n, delivery, now)?;
        self.ledger.start(&Start {
            agent: n,
            delivery,
            number,
            now,
            running,
            time: self.time,
            settings: &settings,
        })
    }

    fn note_start(&mut self, n: usize, delivery: &Delivery, settings: &Settings, now: Timestamp) {
        let node = &self.agents[n];
        let Some(process) = &node.process else {
            return;
        };
        let (shell, id) = (&process.shell, delivery.destination);
        if shell.running(id) == settings.max_in_flight {
            self.seen.note(Point::SlotsFull);
        }
        if settings.endpoint == EndpointState::Offline {
            self.seen.note(Point::TriedWhileAway);
        }
        match delivery.wait {
            Some(WaitReason::Backoff { since, delay } | WaitReason::Offline { since, delay })
                if since.after(delay) > now =>
            {
                self.seen.note(Point::RecalledBackoff);
            }
            Some(_) | None => {}
        }
        let place = (n, id);
        if self.ledger.is_paced(place, settings.rate, self.time) {
            self.seen.note(Point::Paced);
        }
        if settings.order == Order::Fifo && !delivery.replay {
            self.seen.note(Point::FirstInOrderTried);
            let last = node.vault.last_seq(node.bucket.id).0;
            if delivery.attempts > 0 && delivery.key.seq.0 < last {
                self.seen.note(Point::FifoHole);
            }
        }
    }

    /// The endpoint has answered, or has not: the engine hears it.
    pub(crate) fn answer(&mut self, n: usize, f: usize) -> Verdicts {
        let jitter = Jitter(self.chance.bits() as u32);
        let Some(now) = self.engine_now(n) else {
            return Ok(());
        };
        let decided = self.now_at(n);
        let Some(process) = &mut self.agents[n].process else {
            return Ok(());
        };
        let shell = &mut process.shell;
        let flight = &mut shell.flights[f];
        flight.stage = Stage::Recording;
        flight.decided = Some((now.moment.now, decided));
        let Some(outcome) = flight.outcome else {
            return Ok(());
        };
        let (token, id) = (flight.token, flight.delivery.destination);
        if let Outcome::Answered { .. } = outcome {
            self.ledger.lives((n, id), now.moment.now);
        }
        let input = Input::Finished {
            token,
            ended: Ended::Tried(outcome),
            jitter,
        };
        shell.engine.handle(input, now);
        shell.is_woken = true;
        Ok(())
    }

    /// A record is asked to be written. One that is asked for again has the same text.
    pub(crate) fn ask_record(&mut self, n: usize, append: &Append) {
        let (planted, time) = (self.planted, self.time);
        let now = self.now_at(n);
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return;
        };
        let (token, shell) = (append.token, &mut process.shell);
        let at = Offset(shell.commits);
        let recorded = match shell.flight(token) {
            Some(flight) => {
                if flight.end(append, now) {
                    self.seen.note(Point::AppendedAgain);
                }
                flight.record(append, planted)
            }
            None => {
                let stored = node.vault.delivery(append.delivery.key);
                let Some(before) = stored.filter(|before| !before.state.is_finished()) else {
                    // It has ended, and counts as written.
                    shell.tell(Input::Appended { token, at }, time);
                    return;
                };
                Recorded {
                    attempt: Attempt {
                        number: append.number,
                        verdict: append.verdict,
                        ..given_up(&before, append.at)
                    },
                    before,
                    // What was not tried in time counts as an attempt that took too long.
                    outcome: append.tried.then_some(Outcome::TimedOut),
                    now: moment_of(append, now),
                }
            }
        };
        if planted == Some(Bug::AppendedBeforeTheDisk) {
            shell.tell(Input::Appended { token, at }, time);
        }
        let write = Write::Record(Box::new(recorded.attempt.clone()));
        let purpose = Purpose::Verdict {
            token,
            verdict: Box::new(recorded),
            at: 0,
        };
        process.desk.asked.push_back((write, purpose));
    }

    /// The store has answered: the engine is told that a record is on disk, or that nobody knows.
    pub(crate) fn told_of(
        &mut self,
        n: usize,
        done: &Done,
        (token, at): (Token, u64),
        recorded: Box<Recorded>,
    ) {
        let heard_at = self.heard_at();
        let Some(process) = &mut self.agents[n].process else {
            return;
        };
        let shell = &mut process.shell;
        if *done == Done::Unknown {
            self.seen.note(Point::AppendUnknown);
            shell.tell(Input::AppendFailed { token }, heard_at);
            return;
        }
        let at = Offset(at);
        let news = News::Appended {
            token,
            at,
            recorded,
        };
        let told = Told { news, at: heard_at };
        shell.told.push(told);
    }

    /// The engine hears that a record is on disk, maybe once more.
    pub(crate) fn on_disk(&mut self, n: usize, token: Token, recorded: &Recorded) -> Verdicts {
        let Some(process) = &mut self.agents[n].process else {
            return Ok(());
        };
        let shell = &mut process.shell;
        let id = recorded.before.destination;
        shell.flights.retain(|flight| flight.token != token);
        let is_away = shell
            .known
            .get(&id)
            .is_some_and(|known| known.endpoint == EndpointState::Offline);
        note_verdict(&mut self.seen, &recorded.before, &recorded.attempt, is_away);
        self.ledger.recorded(&self.policy, recorded)
    }

    /// A bug: what runs is started once more.
    pub(crate) fn start_again(&mut self, n: usize) -> Verdicts {
        let now = self.now_at(n);
        let Some(process) = &self.agents[n].process else {
            return Ok(());
        };
        let Some(flight) = process.shell.flights.first() else {
            return Ok(());
        };
        let delivery = flight.delivery.clone();
        let number = delivery.attempts + 1;
        self.judge_start(n, &delivery, number, now)
    }
}

impl Flight {
    /// The engine has decided what follows. Says whether it had asked for the record before.
    fn end(&mut self, append: &Append, now: Moment) -> bool {
        let is_heard = self.decided.is_some_and(|(at, _)| at == append.at);
        if !is_heard {
            // It took too long, which was decided before: its request is given up.
            self.stage = Stage::Recording;
            self.decided = Some((append.at, moment_of(append, now)));
            self.outcome = Some(Outcome::TimedOut);
        }
        std::mem::replace(&mut self.is_asked, true)
    }

    /// What is recorded of it.
    fn record(&self, append: &Append, planted: Option<Bug>) -> Recorded {
        let now = Moment {
            now: append.at,
            certain: append.at,
        };
        let attempt = Attempt {
            number: append.number,
            at: self.at,
            duration: append.at.since(self.at),
            error: None,
            verdict: planted::bent_verdict(planted, append, self.outcome.as_ref()),
            ..given_up(&self.delivery, append.at)
        };
        Recorded {
            before: self.delivery.clone(),
            attempt,
            outcome: self.outcome,
            now: self.decided.map_or(now, |(_, moment)| moment),
        }
    }
}

/// The present when a record was decided, which may have been a little before `now`.
fn moment_of(append: &Append, now: Moment) -> Moment {
    Moment {
        now: append.at,
        certain: now.certain,
    }
}

/// That a delivery is given up, without what only a person reads.
pub(crate) fn given_up(delivery: &Delivery, at: Timestamp) -> Attempt {
    let (asked, reason) = (Asked::default(), DeadReason::Deadline);
    Attempt::given_up(delivery, asked, at, reason, "")
}

fn note_verdict(seen: &mut Seen, before: &Delivery, attempt: &Attempt, is_away: bool) {
    match attempt.verdict {
        Verdict::Sent if before.replay => seen.note(Point::ReplaySent),
        Verdict::Sent if before.attempts == 0 => seen.note(Point::SentAtOnce),
        Verdict::Sent => seen.note(Point::SentAfterFailures),
        Verdict::RetryAt { pause, phase, .. } => {
            let asked = pause == Pause::Asked;
            seen.note(if asked { Point::Held } else { Point::Stalled });
            if before.phase == Phase::Fast && phase != Phase::Fast {
                seen.note(Point::HandedOver);
            }
        }
        Verdict::Dead(DeadReason::Rejected) => seen.note(Point::DeadRejected),
        Verdict::Dead(DeadReason::Deadline) => {
            seen.note(Point::DeadDeadline);
            if is_away {
                seen.note(Point::ExpiredWhileOffline);
            }
        }
        Verdict::Dead(DeadReason::Attempts) => seen.note(Point::DeadAttempts),
        Verdict::Dead(DeadReason::Discarded | DeadReason::Damaged | DeadReason::Unclaimed) => {}
    }
}
