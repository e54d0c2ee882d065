//! The steps of a lane, an agent's deliveries to one target: look, try, decide, record, probe.

use std::time::Duration;

use whrelay_core::breaker::Change;
use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{Attempt, DeadReason, Delivery, DeliveryKey, Step};
use whrelay_core::dispatch::Order;
use whrelay_core::outcome::Outcome;
use whrelay_core::retry::{DeliveryHistory, Jitter, Pause, Phase, Verdict, decide};
use whrelay_core::time::Moment;
use whrelay_store::{Head, Release};

use super::ledger::{Ledger, Recorded, Start, Verdicts};
use super::node::{Flight, Purpose, Stage, Time};
use super::planted::Bug;
use super::seen::{Point, Seen};
use super::vault::{Vault, Write};
use super::world::World;

impl<V: Vault> World<V> {
    /// Starts what is due, as far as there are slots.
    pub(crate) fn look(&mut self, n: usize, l: usize) -> Verdicts {
        let now = self.now_at(n);
        let planted = self.planted;
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        let lane = &mut process.lanes[l];
        (lane.wake, lane.look_at) = (false, None);
        let room = match planted {
            Some(Bug::WindowIgnored) => 9,
            _ => lane.dispatcher.room(),
        };
        if room == 0 {
            self.seen.note(Point::SlotsFull);
            return Ok(());
        }
        let until = match planted {
            Some(Bug::AttemptBeforeItsTime) => now.now.after(Duration::from_secs(1)),
            _ => now.now,
        };
        let none = Default::default();
        let in_flight = match planted {
            Some(Bug::DoubleClaim) => &none,
            _ => lane.dispatcher.in_flight(),
        };
        let in_line = self.order == Order::Fifo && planted != Some(Bug::LineIgnored);
        let scan = match in_line {
            true => node.vault.due_replays(lane.id, until, in_flight, room),
            false => node.vault.due(lane.id, until, in_flight, room),
        };
        let mut next_at = scan.next_at;
        let mut ready: Vec<_> = scan.ready.into_iter().map(|key| (key, false)).collect();
        let passes = planted == Some(Bug::LineHasTwoHeads);
        if in_line && (lane.dispatcher.line_is_free() || passes) {
            let (head, start) = node.vault.head(node.bucket.id, lane.id, lane.line);
            lane.line = start;
            if let Some(Head { key, due_at }) = head {
                if passes && lane.dispatcher.in_flight().contains(&key) {
                    lane.line = Seq(key.seq.0 + 1);
                }
                match due_at <= until {
                    true => ready.insert(0, (key, true)),
                    false => next_at = next_at.into_iter().chain([due_at]).min(),
                }
            }
        }
        if let Some(at) = next_at {
            let wait = at.since(now.now).as_micros() as Time;
            lane.look_at = Some(self.time + wait);
        }
        let some = !ready.is_empty();
        for (key, heads) in ready {
            self.claim(n, l, (key, heads), now)?;
        }
        if some {
            self.look_when_paced(n, l);
        }
        Ok(())
    }

    /// What the rate holds back is looked at again when it no longer does.
    fn look_when_paced(&mut self, n: usize, l: usize) {
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return;
        };
        let instant = process.clock.instant(self.origin, &node.machine, self.time);
        let lane = &mut process.lanes[l];
        if let Some(at) = lane.dispatcher.paced_until(instant) {
            self.seen.note(Point::Paced);
            let wait = at.saturating_duration_since(instant).as_micros() as Time;
            lane.look_at = Some(self.time + wait);
        }
    }

    fn claim(
        &mut self,
        n: usize,
        l: usize,
        (key, heads): (DeliveryKey, bool),
        now: Moment,
    ) -> Verdicts {
        let planted = self.planted;
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        let instant = process.clock.instant(self.origin, &node.machine, self.time);
        let lane = &mut process.lanes[l];
        let delivery = node.vault.delivery(key);
        let expired = delivery
            .as_ref()
            .is_some_and(|d| d.step(now.certain) == Step::Expire);
        let claimed = match heads && planted != Some(Bug::LineHasTwoHeads) {
            true => lane.dispatcher.claim_head(key, instant, || expired),
            false => lane.dispatcher.claim(key, instant, || expired),
        };
        if !claimed && !matches!(planted, Some(Bug::DoubleClaim | Bug::WindowIgnored)) {
            return Ok(());
        }
        let event = node.vault.event_at(&node.bucket, key.seq);
        let (Some(delivery), Some(event)) = (delivery, event) else {
            lane.dispatcher.finish(key, None, self.origin);
            return Ok(());
        };
        if delivery.state.is_finished() && planted != Some(Bug::RetryAfterSent) {
            lane.dispatcher.finish(key, None, self.origin);
            return Ok(());
        }
        let jumped = planted == Some(Bug::ExpiresByAJumpedClock) && now.now > delivery.deadline_at;
        let mut history = match delivery.step(now.certain) {
            Step::Attempt(history) if !jumped => history,
            Step::Attempt(_) | Step::Expire if planted != Some(Bug::AttemptAfterDeadline) => {
                return self.expire(n, l, delivery);
            }
            Step::Attempt(_) | Step::Expire => DeliveryHistory {
                attempts: delivery.attempts + 1,
                first_failed_at: delivery.first_failed_at,
                phase: delivery.phase,
                deadline_at: delivery.deadline_at,
            },
        };
        if planted == Some(Bug::AttemptNumberStartsOver) {
            history.attempts = 1;
        }
        lane.flights.push(Flight {
            key,
            delivery,
            event,
            history,
            at: now.now,
            stage: Stage::Going,
        });
        let (running, flight) = (lane.flights.len(), &lane.flights[lane.flights.len() - 1]);
        if self.order == Order::Fifo {
            self.seen.note(Point::HeadTried);
            Ledger::in_line(&node.vault, &flight.delivery)?;
        }
        self.ledger.start(&Start {
            agent: n,
            delivery: &flight.delivery,
            number: history.attempts,
            now,
            running,
            max_in_flight: self.max_in_flight,
            time: self.time,
            rate: self.rate,
        })
    }

    fn expire(&mut self, n: usize, lane: usize, delivery: Delivery) -> Verdicts {
        let now = self.now_at(n);
        let attempt = Attempt {
            number: delivery.attempts,
            verdict: Verdict::Dead(DeadReason::Deadline),
            ..attempt_of(&delivery, 0, now)
        };
        self.ask_verdict(
            n,
            lane,
            Recorded {
                before: delivery,
                attempt,
                outcome: None,
                now,
            },
        );
        Ok(())
    }

    fn ask_verdict(&mut self, n: usize, lane: usize, verdict: Recorded) {
        let Some(process) = &mut self.agents[n].process else {
            return;
        };
        let write = Write::Record(Box::new(verdict.attempt.clone()));
        let verdict = Box::new(verdict);
        let purpose = Purpose::Verdict { lane, verdict };
        process.desk.asked.push_back((write, purpose));
    }

    /// The endpoint has answered, or has not: what follows is decided, and asked to be recorded.
    pub(crate) fn answer(&mut self, n: usize, l: usize, f: usize) -> Verdicts {
        let now = self.now_at(n);
        let jitter = Jitter(self.chance.bits() as u32);
        let (planted, policy) = (self.planted, &self.policy);
        let Some(process) = &mut self.agents[n].process else {
            return Ok(());
        };
        let flight = &mut process.lanes[l].flights[f];
        let Stage::Answered { outcome, .. } =
            std::mem::replace(&mut flight.stage, Stage::Recording)
        else {
            return Ok(());
        };
        let mut verdict = decide(policy, flight.history, &outcome, now, jitter);
        if let Some(bug) = planted {
            verdict = bent(bug, verdict, &outcome, flight, now);
        }
        let mut attempt = attempt_of(&flight.delivery, flight.history.attempts, now);
        attempt.at = flight.at;
        attempt.duration = now.now.since(flight.at);
        attempt.verdict = verdict;
        let recorded = Recorded {
            before: flight.delivery.clone(),
            attempt,
            outcome: Some(outcome),
            now,
        };
        self.ask_verdict(n, l, recorded);
        Ok(())
    }

    /// The attempt is on disk: its slot is free again.
    pub(super) fn finish(&mut self, n: usize, l: usize, verdict: &Recorded) -> Verdicts {
        let Recorded {
            before,
            attempt,
            outcome,
            ..
        } = verdict;
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        let instant = process.clock.instant(self.origin, &node.machine, self.time);
        let lane = &mut process.lanes[l];
        let mine = |flight: &Flight| flight.key == before.key;
        if let Some(f) = lane.flights.iter().position(mine) {
            lane.flights.swap_remove(f);
        }
        lane.wake = true;
        let offline = lane.dispatcher.probe_at().is_some();
        let keeps = self.planted == Some(Bug::SlotNeverGivenBack) && attempt.number % 4 == 3;
        if !keeps {
            let change = lane
                .dispatcher
                .finish(before.key, outcome.as_ref(), instant);
            if change == Some(Change::Offline) {
                self.seen.note(Point::Offline);
                let write = Write::Endpoint {
                    destination: lane.id,
                    offline_since: Some(attempt.at),
                };
                process.desk.asked.push_back((write, Purpose::Endpoint));
            }
        }
        note_verdict(&mut self.seen, before, attempt, offline);
        self.ledger.recorded(&self.policy, verdict)
    }

    pub(crate) fn probe(&mut self, n: usize, l: usize) -> Verdicts {
        let now = self.now_at(n);
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        let instant = process.clock.instant(self.origin, &node.machine, self.time);
        let lane = &mut process.lanes[l];
        let accepts = self.endpoints[lane.endpoint].accepts();
        let accepts = accepts && self.planted != Some(Bug::BreakerNeverProbes);
        match lane.dispatcher.on_probe(accepts, instant) {
            Some(Change::Online) => {
                self.seen.note(Point::Online);
                self.ledger.probed(n, lane.id);
                let write = Write::Endpoint {
                    destination: lane.id,
                    offline_since: None,
                };
                process.desk.asked.push_back((write, Purpose::Endpoint));
                let write = Write::Release {
                    destination: lane.id,
                    now: now.now,
                    release: Release::Back,
                };
                let purpose = Purpose::Release { lane: l };
                process.desk.asked.push_back((write, purpose));
            }
            Some(Change::Offline) | None => self.seen.note(Point::ProbeRefused),
        }
        Ok(())
    }
}

fn attempt_of(delivery: &Delivery, number: u32, now: Moment) -> Attempt {
    Attempt {
        key: delivery.key,
        delivery: delivery.id,
        event: delivery.event,
        destination: delivery.destination,
        target: String::new(),
        url: String::new(),
        method: String::new(),
        number,
        at: now.now,
        duration: Duration::ZERO,
        status: None,
        error: None,
        answer_headers: Vec::new(),
        answer: Vec::new(),
        signature: None,
        replay: delivery.replay,
        phase: delivery.phase,
        verdict: Verdict::Sent,
    }
}

fn note_verdict(seen: &mut Seen, before: &Delivery, attempt: &Attempt, offline: bool) {
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
            if offline {
                seen.note(Point::ExpiredWhileOffline);
            }
        }
        Verdict::Dead(DeadReason::Attempts) => seen.note(Point::DeadAttempts),
        Verdict::Dead(DeadReason::Discarded | DeadReason::Damaged | DeadReason::Unclaimed) => {}
    }
}

/// A verdict as a planted bug would have it.
fn bent(bug: Bug, verdict: Verdict, outcome: &Outcome, flight: &Flight, now: Moment) -> Verdict {
    let number = flight.history.attempts;
    match (bug, verdict) {
        (
            Bug::RetryAfterUndercut,
            Verdict::RetryAt {
                phase,
                pause: Pause::Asked,
                ..
            },
        ) => Verdict::RetryAt {
            at: now.now.after(Duration::from_secs(2)),
            phase,
            pause: Pause::Asked,
        },
        (
            Bug::BackoffOvershoots,
            Verdict::RetryAt {
                at,
                phase,
                pause: pause @ (Pause::Backoff | Pause::Offline),
            },
        ) if number > 5 => {
            let at = at.after(at.since(now.now));
            Verdict::RetryAt { at, phase, pause }
        }
        (
            Bug::BackoffUndercut,
            Verdict::RetryAt {
                at,
                phase,
                pause: pause @ (Pause::Backoff | Pause::Offline),
            },
        ) => Verdict::RetryAt {
            at: at.before(at.since(now.now) / 2),
            phase,
            pause,
        },
        (
            Bug::HandoffAgainAndAgain,
            Verdict::RetryAt {
                at,
                phase: Phase::Durable { .. },
                pause,
            },
        ) => Verdict::RetryAt {
            at,
            phase: Phase::Durable { since: number },
            pause,
        },
        (Bug::RetriesWhatIsRejected, Verdict::Dead(DeadReason::Rejected)) => Verdict::RetryAt {
            at: now.now.after(Duration::from_millis(1)),
            phase: flight.history.phase,
            pause: Pause::Backoff,
        },
        (Bug::GivesUpOnTimeouts, _) if *outcome == Outcome::TimedOut => {
            Verdict::Dead(DeadReason::Rejected)
        }
        (Bug::SentWithoutAnAnswer, _) if *outcome == Outcome::Broken => Verdict::Sent,
        (_, verdict) => verdict,
    }
}
