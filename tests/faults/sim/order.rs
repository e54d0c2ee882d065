//! In which order deliveries start: by key in a FIFO order, else the oldest first, also after an
//! endpoint's return. It must not look into an engine: a page of a queue says what is older.

use std::collections::BTreeMap;

use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{Delivery, DeliveryKey};
use whrelay_core::order::Order;
use whrelay_core::queue::{DueBy, QueuePage, WaitReason, Waiting, Wanted};
use whrelay_core::time::{Moment, Timestamp};
use whrelay_engine::Load;

use super::ledger::{Ledger, Verdicts, hold};
use super::seen::Point;
use super::vault::Vault;
use super::world::World;

/// What pages have shown of one destination and has not started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    pages: u64,
    rows: BTreeMap<DeliveryKey, Row>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    waiting: Waiting,
    /// The first page that showed it so, and where on it.
    page: u64,
    place: usize,
    is_ahead: bool,
}

impl Shown {
    fn add<'a>(&mut self, rows: impl Iterator<Item = &'a Waiting>, asked_at: Timestamp) {
        self.pages += 1;
        for (place, waiting) in rows.enumerate() {
            let known = self.rows.get(&waiting.key);
            if known.is_none_or(|known| known.waiting != *waiting) {
                let row = Row {
                    waiting: *waiting,
                    page: self.pages,
                    place,
                    is_ahead: is_ahead(waiting, asked_at),
                };
                self.rows.insert(waiting.key, row);
            }
        }
    }

    pub(crate) fn has(&self, key: DeliveryKey) -> bool {
        self.rows.contains_key(&key)
    }

    /// What would start before a delivery that no page has shown.
    fn before(&self, delivery: &Waiting, by: &DueBy) -> Vec<Waiting> {
        let rank = |row: &Waiting| (row.due_at(by.back_since, by.now), row.created_at, row.key);
        let rows = self.rows.values().filter(|row| !row.is_ahead);
        let rows = rows.map(|row| row.waiting);
        rows.filter(|row| rank(row) < rank(delivery)).collect()
    }

    /// Takes out what starts. Answers what stood before it on the page that showed it first.
    pub(crate) fn start(&mut self, key: DeliveryKey) -> Vec<Waiting> {
        let first = self.rows.remove(&key).filter(|first| !first.is_ahead);
        let Some(first) = first else {
            return Vec::new();
        };
        let before = self.rows.values();
        let before = before.filter(|row| !row.is_ahead && row.page == first.page);
        let before = before.filter(|row| row.place < first.place);
        before.map(|row| row.waiting).collect()
    }
}

/// A clock that was set back makes times of the future of it, which count as the present: then the
/// order says nothing.
fn is_ahead(waiting: &Waiting, now: Timestamp) -> bool {
    let failed_at = match waiting.reason {
        WaitReason::Backoff { since, .. } | WaitReason::Offline { since, .. } => Some(since),
        WaitReason::Turn | WaitReason::NotBefore(_) => None,
    };
    waiting.created_at > now || failed_at > Some(now)
}

impl<V: Vault> World<V> {
    /// The engine is shown a page.
    pub(crate) fn show(&mut self, n: usize, load: &Load, page: &QueuePage) {
        let Some(process) = &mut self.agents[n].process else {
            return;
        };
        let Some(known) = process.shell.known.get(&load.destination) else {
            return;
        };
        let is_current = (known.order, known.back_since)
            == (load.query.order, load.query.due.back_since)
            && load.query.wanted == Wanted::All;
        if !is_current || known.order != Order::Arrival {
            return;
        }
        let (shell, asked_at) = (&mut process.shell, load.query.due.now);
        if !shell.wants(load.destination, asked_at) {
            return;
        }
        let mut shown = shell.shown.remove(&load.destination).unwrap_or_default();
        let rows = page.waiting.iter();
        shown.add(
            rows.filter(|row| !shell.is_known(row.key, asked_at)),
            asked_at,
        );
        shell.shown.insert(load.destination, shown);
    }

    /// C4: nothing starts before what is older, is due, and was shown before it.
    pub(crate) fn oldest_first(&mut self, n: usize, delivery: &Delivery, now: Moment) -> Verdicts {
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        let (shell, id) = (&mut process.shell, delivery.destination);
        let back_since = shell.known.get(&id).and_then(|known| known.back_since);
        let by = DueBy {
            now: now.now,
            not_before: now.certain.min(now.now),
            back_since,
        };
        let Some(shown) = shell.shown.get_mut(&id) else {
            return Ok(());
        };
        let unread = delivery.waiting().filter(|_| !shown.has(delivery.key));
        let before = match unread {
            Some(unread) => {
                self.seen.note(Point::StartedWithoutARead);
                match is_ahead(&unread, now.now) {
                    true => Vec::new(),
                    false => shown.before(&unread, &by),
                }
            }
            None => shown.start(delivery.key),
        };
        let is_retry = |delivery: &Delivery| delivery.wait != Some(WaitReason::Turn);
        let mut flights = shell.flights.iter().map(|flight| &flight.delivery);
        let is_held_up = flights.any(|running| running.destination == id && is_retry(running))
            || shell.has_left(id);
        for older in before {
            // Retries hold nothing new up.
            if is_held_up && !is_retry(delivery) && !older.is_new() {
                self.seen.note(Point::StartedBesideARetry);
                continue;
            }
            let is_started = shell.flights.iter().any(|f| f.delivery.key == older.key);
            let stored = node.vault.delivery(older.key);
            let waits = stored.and_then(|stored| stored.waiting()) == Some(older);
            let may_start = older.is_due(&by) && !older.is_expired(now.certain);
            hold(is_started || !waits || !may_start, "C4", || {
                format!("{} is tried, and {older:?} is older", delivery.id)
            })?;
        }
        Ok(())
    }
}

impl Ledger {
    /// C4: in a FIFO order nothing starts before what is ahead of it has ended.
    pub(crate) fn in_order<V: Vault>(vault: &V, delivery: &Delivery) -> Verdicts {
        let key = delivery.key;
        let ahead = (1..=key.seq.0)
            .flat_map(|seq| vault.deliveries_of(key.bucket, Seq(seq)))
            .find(|other| {
                other.destination == delivery.destination
                    && other.key < key
                    && !other.replay
                    && !other.state.is_finished()
            });
        hold(ahead.is_none() || delivery.replay, "C4", || {
            format!("{} is tried, and {ahead:?} is before it", delivery.id)
        })
    }
}
