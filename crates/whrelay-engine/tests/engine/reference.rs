//! A reference scheduler: a sorted list of everything, no pages, no view, no slots of a node. It
//! makes the same starts in the same order as the engine.

use std::time::{Duration, Instant};

use whrelay_core::delivery::DeliveryKey;
use whrelay_core::order::Order;
use whrelay_core::outcome::{Class, Outcome, classify};
use whrelay_core::pace::Pace;
use whrelay_core::queue::{QueueKind, Waiting};
use whrelay_core::retry::decide;
use whrelay_core::time::{Moment, Timestamp};
use whrelay_engine::Settings;

use crate::endpoints::{flaky_outcome, jitter_of};
use crate::world::{BEGAN, SECOND};

/// When, which, and the number of the attempt.
pub(crate) type Start = (u64, DeliveryKey, u32);

pub(crate) struct Reference {
    settings: Settings,
    share: u8,
    base: Instant,
    arrivals: Vec<(u64, Waiting)>,
    waiting: Vec<Waiting>,
    running: Vec<(u64, Waiting, Outcome)>,
    pace: Option<Pace>,
    back: Option<Timestamp>,
    window: usize,
    may_hang: bool,
    failed: u32,
    unanswered: u32,
    failing_since: Option<u64>,
    starts: Vec<Start>,
}

fn stamp(at: u64) -> Timestamp {
    Timestamp::from_micros(BEGAN + i64::try_from(at).unwrap())
}

fn micros(at: Timestamp) -> u64 {
    u64::try_from(at.as_micros() - BEGAN).unwrap_or(0)
}

impl Reference {
    pub(crate) fn new(settings: Settings, share: u8, arrivals: Vec<(u64, Waiting)>) -> Self {
        Self {
            share,
            base: Instant::now(),
            arrivals,
            waiting: Vec::new(),
            running: Vec::new(),
            pace: settings.rate.map(Pace::new),
            back: None,
            window: settings.max_in_flight,
            may_hang: false,
            failed: 0,
            unanswered: 0,
            failing_since: None,
            starts: Vec::new(),
            settings,
        }
    }

    pub(crate) fn run(mut self, until: u64) -> Vec<Start> {
        let mut at = 0;
        while at <= until {
            self.end_attempts(at);
            while self
                .arrivals
                .first()
                .is_some_and(|(arrives, _)| *arrives <= at)
            {
                self.waiting.push(self.arrivals.remove(0).1);
            }
            self.waiting.retain(|row| !row.is_expired(stamp(at)));
            while let Some(row) = self.next(at) {
                self.start(row, at);
            }
            at = self.next_time(at);
        }
        self.starts
    }

    fn due_at(&self, row: &Waiting, at: u64) -> Timestamp {
        row.due_at(self.back, stamp(at))
    }

    fn may_start(&self, row: &Waiting) -> bool {
        let is_ordered =
            |row: &Waiting| self.settings.order == Order::Fifo && row.kind == QueueKind::Normal;
        let running = self.running.iter().map(|(_, row, _)| row);
        let mut others = self.waiting.iter().chain(running);
        let is_before = |other: &Waiting| {
            is_ordered(other) && other.key.bucket == row.key.bucket && other.key < row.key
        };
        !is_ordered(row) || !others.any(is_before)
    }

    fn next(&self, at: u64) -> Option<Waiting> {
        let instant = self.base + Duration::from_micros(at);
        let is_paced = self
            .pace
            .is_some_and(|pace| pace.next_at(instant).is_some());
        let (running, most) = (self.running.len(), self.settings.max_in_flight);
        let has_slot = running < self.window.min(most);
        let is_held_up = self.may_hang
            && self.running.iter().all(|(_, row, _)| !row.is_new())
            && self.settings.order == Order::Arrival
            && running < most;
        if is_paced || !(has_slot || is_held_up) {
            return None;
        }
        let mut rows: Vec<&Waiting> = self.waiting.iter().collect();
        rows.retain(|row| self.may_start(row) && self.due_at(row, at) <= stamp(at));
        rows.retain(|row| has_slot || row.is_new());
        rows.sort_by_key(|row| (self.due_at(row, at), row.created_at, row.key));
        rows.first().map(|row| **row)
    }

    fn start(&mut self, row: Waiting, at: u64) {
        let number = row.attempts + 1;
        self.waiting.retain(|other| other.key != row.key);
        self.starts.push((at, row.key, number));
        let (outcome, after) = flaky_outcome(self.share, row.key, number);
        self.running.push((at + after, row, outcome));
        if let Some(pace) = &mut self.pace {
            pace.start(self.base + Duration::from_micros(at));
        }
    }

    fn end_attempts(&mut self, at: u64) {
        let all = std::mem::take(&mut self.running);
        let (ended, running) = all.into_iter().partition(|(ends, _, _)| *ends <= at);
        self.running = running;
        let ended: Vec<(u64, Waiting, Outcome)> = ended;
        for (_, row, outcome) in ended {
            let moment = Moment {
                now: stamp(at),
                certain: stamp(at),
            };
            let policy = &self.settings.policy;
            let (number, jitter) = (row.attempts + 1, jitter_of(row.key, row.attempts + 1));
            let verdict = decide(policy, row.history(), &outcome, moment, jitter);
            let class = classify(&outcome, policy.retry_on);
            self.waiting
                .extend(row.following(number, &verdict, stamp(at)));
            self.learn(&outcome, class, at);
        }
    }

    /// A time-out leaves one slot, beside which one new delivery may start; a success after a long spell of failures calls back.
    fn learn(&mut self, outcome: &Outcome, class: Class, at: u64) {
        let is_final = class != Class::Retryable;
        let is_long = self
            .failing_since
            .is_some_and(|since| at - since >= 2 * SECOND);
        if *outcome == Outcome::TimedOut {
            (self.window, self.unanswered, self.may_hang) = (1, self.unanswered + 1, true);
        } else if is_long && (self.unanswered >= 3 || (is_final && self.failed >= 3)) {
            (self.window, self.unanswered, self.back) = (1, 0, Some(stamp(at)));
        } else {
            self.unanswered = 0;
            self.window += usize::from(is_final);
            self.may_hang &= !is_final || self.window < self.settings.max_in_flight;
        }
        self.window = self.window.min(self.settings.max_in_flight);
        match is_final {
            true => (self.failed, self.failing_since) = (0, None),
            false => {
                self.failed += 1;
                self.failing_since.get_or_insert(at);
            }
        }
    }

    /// The next time at which anything can differ.
    fn next_time(&self, at: u64) -> u64 {
        let instant = self.base + Duration::from_micros(at);
        let paced = self.pace.and_then(|pace| pace.next_at(instant));
        let paced = paced.map(|next| (next - self.base).as_nanos().div_ceil(1000) as u64);
        let ends = self.running.iter().map(|(ends, _, _)| *ends);
        let arrives = self.arrivals.iter().map(|(arrives, _)| *arrives);
        let due = self.waiting.iter().map(|row| micros(self.due_at(row, at)));
        let deadlines = self.waiting.iter().map(|row| micros(row.deadline_at) + 1);
        let all = ends.chain(arrives).chain(due).chain(deadlines).chain(paced);
        all.filter(|next| *next > at).min().unwrap_or(u64::MAX)
    }
}
