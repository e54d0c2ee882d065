//! What an agent's store carries out, and what comes back: known, unknown or lost. It must not know
//! what an engine does about it.

use whrelay_core::delivery::{DeadReason, Delivery, State};

use super::ledger::{Ledger, Verdicts, hold};
use super::node::Purpose;
use super::retention::alone;
use super::seen::Point;
use super::vault::{Done, Vault, Write};
use super::world::World;

/// What becomes of a write, and of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Known,
    /// It is on disk, and nobody knows.
    Unknown,
    /// It is not, and nobody knows.
    Lost,
}

impl<V: Vault> World<V> {
    pub(crate) fn commit_agent(&mut self, n: usize) -> Verdicts {
        let is_calm = self.is_calm();
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        let group = 1 + self.chance.index(process.desk.asked.len());
        let group = alone(process.desk.asked.iter().map(|(write, _)| write), group);
        let (mut writes, mut fates) = (Vec::new(), Vec::new());
        for (write, purpose) in process.desk.asked.drain(..group) {
            let is_record = matches!(purpose, Purpose::Verdict { .. });
            let fails = is_record && !is_calm && self.chance.permille(20);
            let fate = match fails {
                false => Fate::Known,
                true if self.chance.permille(500) => Fate::Unknown,
                true => Fate::Lost,
            };
            if fate != Fate::Lost {
                writes.push(write);
            }
            fates.push((fate, purpose));
        }
        let told = writes.clone();
        let first = writes.first().cloned();
        first.iter().for_each(|write| self.may_remove(n, write));
        let Ok(done) = self.agents[n].vault.commit(writes) else {
            return self.crash_agent(n);
        };
        first.iter().try_for_each(|write| self.removed(n, write))?;
        for (write, done) in told.iter().zip(&done) {
            self.written(n, write, done);
        }
        self.answer_writes(n, done, fates);
        let changed = self.agents[n].vault.changed();
        let records = told.iter().any(|write| matches!(write, Write::Record(_)));
        self.tell_changes(n, changed, records);
        self.endpoints_are_stored(n)?;
        Ledger::audit(&self.agents[n])
    }

    /// What is on disk is known outside.
    fn written(&mut self, n: usize, write: &Write, done: &Done) {
        if let Write::Record(attempt) | Write::GiveUp(attempt) = write {
            self.ledger.moves((n, attempt.destination), self.time);
        }
        match (write, done) {
            (Write::Record(attempt), _) => self.ledger.waits(attempt),
            (Write::Again(again), Done::Again(Some(_))) => self.ledger.held(&again.new),
            (Write::Postpone { key, now, delay }, _) => {
                let delivery = self.agents[n].vault.delivery(*key);
                if let Some(delivery) = delivery.filter(|found| found.wait.is_some()) {
                    self.ledger.postponed(n, &delivery, (*now, *delay));
                }
            }
            (_, Done::Hurried(keys)) => {
                for key in keys {
                    let delivery = self.agents[n].vault.delivery(*key);
                    let id = delivery.map(|delivery| delivery.id);
                    id.into_iter().for_each(|id| self.ledger.hurried(id));
                }
            }
            (_, _) => {}
        }
    }

    /// Each write has an answer, though maybe not the true one.
    fn answer_writes(&mut self, n: usize, done: Vec<Done>, fates: Vec<(Fate, Purpose)>) {
        let Some(process) = &mut self.agents[n].process else {
            return;
        };
        process.shell.commits += 1;
        let commits = process.shell.commits;
        let mut done = done.into_iter();
        for (fate, mut purpose) in fates {
            if let Purpose::Verdict { at, .. } = &mut purpose {
                *at = commits;
            }
            let done = match fate {
                Fate::Lost => None,
                Fate::Unknown => done.next().map(|_| Done::Unknown),
                Fate::Known => done.next(),
            };
            let done = done.unwrap_or(Done::Unknown);
            process.desk.answered.push_back((done, purpose));
        }
    }

    pub(crate) fn settle_agent(&mut self, n: usize) -> Verdicts {
        let Some(process) = &mut self.agents[n].process else {
            return Ok(());
        };
        let Some((done, purpose)) = process.desk.answered.pop_front() else {
            return Ok(());
        };
        match purpose {
            Purpose::Append { link, reached } => {
                if let Done::Appended(receipts) = done
                    && receipts.iter().any(|receipt| receipt.duplicate)
                {
                    self.seen.note(Point::DuplicateAbsorbed);
                }
                self.appended(n, link, reached)
            }
            Purpose::Part { link } => {
                self.seen.note(Point::AppendedInParts);
                if process.link == Some(link) {
                    process.appending = false;
                }
                Ok(())
            }
            Purpose::Verdict { token, verdict, at } => {
                self.told_of(n, &done, (token, at), verdict);
                Ok(())
            }
            Purpose::Replay { rows } => self.left_alone(n, &rows),
            Purpose::Discard { row } => {
                if done == Done::GaveUp(true) {
                    self.seen.note(Point::Discarded);
                }
                self.left_alone(n, &[*row])
            }
            Purpose::Postpone { token } => {
                self.not_asked(n, token);
                Ok(())
            }
            Purpose::Post { .. } | Purpose::Join { .. } | Purpose::Ack => Ok(()),
            Purpose::Endpoint | Purpose::Hurry | Purpose::Retention => Ok(()),
        }
    }

    /// I17: what a person does leaves the rows that have ended as they are. What was given up while it arrived
    /// has arrived.
    fn left_alone(&mut self, n: usize, rows: &[Delivery]) -> Verdicts {
        let node = &self.agents[n];
        for row in rows.iter().filter(|row| row.state.is_finished()) {
            // An attempt that was under way is still logged.
            let now = node.vault.delivery(row.key).map(|now| Delivery {
                last_attempt: row.last_attempt,
                ..now
            });
            if now.is_none() && self.ledger.gone.contains(&(n, row.event)) {
                continue;
            }
            let sent = now.as_ref().is_some_and(|now| now.state == State::Sent);
            let arrived = row.reason == Some(DeadReason::Discarded) && sent;
            hold(arrived || now.as_ref() == Some(row), "I17", || {
                format!("{} had ended, and was changed", row.id)
            })?;
        }
        Ok(())
    }
}
