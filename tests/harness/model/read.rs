//! What is read: every question is answered by looking at everything.

use std::collections::BTreeSet;

use async_trait::async_trait;
use tokio::sync::watch;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{
    Delivery, DeliveryKey, DestinationId, State as Standing, event_state,
};
use whrelay_core::id::EventId;
use whrelay_core::order::Order;
use whrelay_core::queue::{
    DueCursor, DuePage, Offset, QueueKind, QueuePage, QueueQuery, WaitReason, Waiting, Wanted,
};
use whrelay_core::retention::{Bound, Held, Part};
use whrelay_core::time::Timestamp;
use whrelay_store::*;

use super::{Model, State, cost};

/// When a row is listed as due.
fn listed_at(row: &Waiting, back: Option<Timestamp>, now: Timestamp) -> Timestamp {
    match row.reason {
        WaitReason::Turn => row.created_at.min(now),
        WaitReason::Backoff { since, .. } | WaitReason::Offline { since, .. } if since > now => now,
        WaitReason::NotBefore(_) | WaitReason::Backoff { .. } | WaitReason::Offline { .. } => {
            row.due_at(back, now)
        }
    }
}

impl State {
    fn rows(&self, to: DestinationId) -> Vec<Waiting> {
        let of = self.deliveries.values().filter(|d| d.destination == to);
        of.filter_map(Delivery::waiting).collect()
    }

    fn page(&self, to: DestinationId, query: &QueueQuery) -> QueuePage {
        let (all, by) = (self.rows(to), query.due);
        let at = |row: &Waiting| listed_at(row, by.back_since, by.now);
        let is_fifo = query.order == Order::Fifo;
        let mut page: Vec<Waiting> = all.clone();
        page.retain(|row| row.deadline_at < query.expired_by && query.wanted != Wanted::New);
        page.sort_by_key(|row| (row.deadline_at, row.key));
        page.truncate(query.max);
        if query.wanted == Wanted::New {
            page.extend(all.iter().filter(|row| row.is_new()));
            page.sort_by_key(|row| (row.created_at, row.key));
        }
        if query.wanted == Wanted::All {
            let buckets: BTreeSet<_> = all.iter().map(|row| row.key.bucket).collect();
            let share = (query.max / 2 / buckets.len().max(1)).max(1);
            for bucket in buckets.iter().filter(|_| is_fifo) {
                let mut rows: Vec<_> = all.iter().filter(|row| row.key.bucket == *bucket).collect();
                rows.retain(|row| row.is_in_order(&by));
                page.extend(rows.into_iter().take(share));
            }
            let mut due = all.clone();
            due.retain(|row| !(is_fifo && row.kind == QueueKind::Normal));
            due.retain(|row| row.is_due(&by) || at(row) == by.now);
            due.sort_by_key(|row| (at(row), row.created_at, row.key));
            page.extend(due);
        }
        let mut seen = BTreeSet::new();
        page.retain(|row| seen.insert(row.key));
        page.truncate(query.max);
        let taken: BTreeSet<_> = page.iter().map(|row| row.key).collect();
        let others = all.iter().filter(|row| !taken.contains(&row.key));
        let follows = |row: &Waiting| {
            let is_behind = taken.iter().any(|key| key.bucket == row.key.bucket);
            is_fifo && row.is_in_order(&by) && is_behind
        };
        QueuePage {
            next_at: others.clone().filter(|row| !follows(row)).map(at).min(),
            has_more: others.clone().any(follows),
            next_deadline_at: others.map(|row| row.deadline_at).min(),
            waiting: page,
        }
    }

    pub(super) fn size(&self, of: Option<BucketId>) -> u64 {
        let events = self.events.iter();
        let events = events.filter(|((bucket, _), _)| of.is_none_or(|of| of == *bucket));
        events.map(|(_, event)| cost(event)).sum()
    }

    /// Why no further event is received.
    pub(super) fn refusal(
        &self,
        bound: Option<Bound>,
        bucket: BucketId,
        more: u64,
    ) -> Option<StoreError> {
        let bound = bound?;
        let takes_in = bound.takes_in(self.size(None), self.size(Some(bucket)), more);
        let refusal = if bound.shared {
            StoreError::Share
        } else {
            StoreError::Bound
        };
        (!takes_in).then_some(refusal)
    }

    fn found(&self, search: &Search) -> Vec<Found> {
        let fits = |event: &whrelay_core::event::Event| {
            let at = event.received_at.as_micros() / 1000;
            let ms = |at: Timestamp| at.as_micros() / 1000;
            search.since.is_none_or(|since| at >= ms(since))
                && search.until.is_none_or(|until| at <= ms(until))
        };
        let of = self
            .events
            .iter()
            .filter(|((bucket, _), _)| *bucket == search.bucket);
        let of = of.filter(|((bucket, seq), event)| {
            let state = event_state(&self.deliveries_of(*bucket, *seq));
            fits(event) && state.is_some_and(|state| search.states.contains(&state))
        });
        let mut found: Vec<Found> = of.map(|((_, seq), event)| (event.id, *seq)).collect();
        found.sort();
        found
    }
}

#[async_trait]
impl QueueView for Model {
    fn applied(&self) -> watch::Receiver<Offset> {
        self.applied.subscribe()
    }

    async fn due_destinations(
        &self,
        until: Timestamp,
        after: Option<DueCursor>,
        max: usize,
        now: Timestamp,
    ) -> Result<DuePage, StoreError> {
        let state = self.shown();
        let waiting = state.deliveries.values().filter(|d| d.wait.is_some());
        let ids: BTreeSet<_> = waiting.map(|d| d.destination).collect();
        let first = |destination: DestinationId| {
            let known = state.destinations.get(&destination);
            let back = known.and_then(|known| known.back_since);
            let rows = state.rows(destination);
            let at = rows.iter().map(|row| listed_at(row, back, now)).min()?;
            Some(DueCursor { at, destination })
        };
        let due: BTreeSet<_> = ids.into_iter().filter_map(first).collect();
        let due = due
            .into_iter()
            .filter(|row| row.at <= until && after.is_none_or(|after| *row > after));
        let page: Vec<_> = due.take(max).collect();
        Ok(DuePage {
            next: page.last().copied().filter(|_| page.len() == max),
            rows: page
                .into_iter()
                .map(|row| (row.destination, row.at))
                .collect(),
        })
    }

    async fn queue(&self, to: DestinationId, query: &QueueQuery) -> Result<QueuePage, StoreError> {
        Ok(self.shown().page(to, query))
    }

    async fn deliveries_of(&self, bucket: BucketId, seq: Seq) -> Result<Vec<Delivery>, StoreError> {
        Ok(self.shown().deliveries_of(bucket, seq))
    }

    async fn deliveries_after(
        &self,
        bucket: BucketId,
        after: Seq,
        max: usize,
    ) -> Result<Deliveries, StoreError> {
        let state = self.shown();
        let (mut all, mut upto) = (Vec::new(), None);
        let rows = state
            .deliveries
            .values()
            .filter(|d| d.key.bucket == bucket && d.key.seq > after);
        for delivery in rows {
            let seq = delivery.key.seq;
            let last = all.last().map(|last: &Delivery| last.key.seq);
            if all.len() >= max && last != Some(seq) {
                upto = last;
                break;
            }
            all.push(delivery.clone());
        }
        Ok(Deliveries { all, upto })
    }

    async fn deliveries_of_all(
        &self,
        bucket: BucketId,
        places: &[Seq],
    ) -> Result<Deliveries, StoreError> {
        let state = self.shown();
        let all = places
            .iter()
            .flat_map(|seq| state.deliveries_of(bucket, *seq));
        Ok(Deliveries {
            all: all.collect(),
            upto: None,
        })
    }

    async fn counts(&self, to: DestinationId) -> Result<StateCounts, StoreError> {
        let state = self.shown();
        let count = |wanted: Standing| {
            let of = state.deliveries.values().filter(|d| d.destination == to);
            of.filter(|d| d.state == wanted).count() as u64
        };
        Ok(StateCounts {
            queued: count(Standing::Queued),
            stalled: count(Standing::Stalled),
            sent: count(Standing::Sent),
            dead: count(Standing::Dead),
        })
    }

    async fn search(
        &self,
        search: &Search,
        begin: Begin,
        after: Option<EventId>,
        max: usize,
    ) -> Result<Vec<Found>, StoreError> {
        let mut found = self.shown().found(search);
        if begin == Begin::Newest {
            found.reverse();
        }
        let is_beyond = |id: EventId| match begin {
            Begin::Oldest => after.is_none_or(|after| id > after),
            Begin::Newest => after.is_none_or(|after| id < after),
        };
        Ok(found
            .into_iter()
            .filter(|(id, _)| is_beyond(*id))
            .take(max)
            .collect())
    }

    async fn oldest_waiting(&self, bucket: BucketId) -> Result<Option<Timestamp>, StoreError> {
        let states = vec![Standing::Queued, Standing::Stalled];
        let search = Search {
            bucket,
            states,
            since: None,
            until: None,
        };
        let found = self.shown().found(&search);
        Ok(found.first().map(|(id, _)| id.minted_at()))
    }

    async fn quarantined(&self) -> Result<Vec<(BucketId, Seq)>, StoreError> {
        Ok(Vec::new())
    }

    async fn last_attempt(&self) -> Result<u64, StoreError> {
        Ok(self.shown().last_attempt)
    }

    async fn attempts_after(
        &self,
        after: u64,
        max: usize,
    ) -> Result<Vec<LoggedAttempt>, StoreError> {
        let state = self.shown();
        Ok(state
            .attempts
            .range(after + 1..)
            .take(max)
            .map(|(_, logged)| logged.clone())
            .collect())
    }

    async fn attempts_by_start(
        &self,
        states: &[Standing],
        (since, until): (Timestamp, Timestamp),
        after: Option<(Timestamp, u64)>,
        max: usize,
    ) -> Result<Vec<LoggedAttempt>, StoreError> {
        let mut all: Vec<_> = self.shown().attempts.values().cloned().collect();
        all.retain(|logged| {
            let at = logged.attempt.at;
            let is_beyond = after.is_none_or(|after| (at, logged.place) < after);
            states.contains(&logged.attempt.state()) && at >= since && at <= until && is_beyond
        });
        all.sort_by_key(|logged| std::cmp::Reverse((logged.attempt.at, logged.place)));
        all.truncate(max);
        Ok(all)
    }

    async fn attempts_of(
        &self,
        key: DeliveryKey,
        max: usize,
    ) -> Result<Vec<LoggedAttempt>, StoreError> {
        let state = self.shown();
        let of = state
            .attempts
            .values()
            .rev()
            .filter(|logged| logged.attempt.key == key);
        Ok(of.take(max).cloned().collect())
    }

    async fn last_attempts(
        &self,
        all: &[Option<u64>],
        each: &mut (dyn for<'a> FnMut(usize, Option<LastAttempt<'a>>) + Send),
    ) -> Result<(), StoreError> {
        let state = self.shown();
        for (index, place) in all.iter().enumerate() {
            let logged = place.and_then(|place| state.attempts.get(&place));
            each(index, logged.map(|logged| LastAttempt::of(&logged.attempt)));
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.shown().size(None)
    }

    fn bucket_size(&self, bucket: BucketId) -> u64 {
        self.shown().size(Some(bucket))
    }

    async fn held(&self) -> Result<Held, StoreError> {
        let state = self.shown();
        let bare = state
            .events
            .values()
            .filter(|event| event.removed_body.is_some());
        let bare = bare.count() as u64;
        Ok(Held {
            whole: state.events.len() as u64 - bare,
            bare,
        })
    }

    async fn removals(&self, bucket: BucketId) -> Result<Removals, StoreError> {
        Ok(self
            .state()
            .removals
            .get(&bucket)
            .cloned()
            .unwrap_or_default())
    }

    async fn oldest_receipted(
        &self,
        buckets: &[BucketId],
        part: Part,
        by: Timestamp,
    ) -> Result<Vec<(Timestamp, BucketId)>, StoreError> {
        let state = self.shown();
        let oldest = buckets.iter().filter_map(|bucket| {
            let gone = state.removed.get(bucket).copied().unwrap_or_default();
            let from = if part == Part::Body { gone.1 } else { gone.0 };
            let through = state.removable_through(*bucket, by);
            let next = state.events.get(&(*bucket, Seq(from.0 + 1)));
            let at = next.map_or(Timestamp::EPOCH, |event| event.received_at);
            (from < through).then_some((at, *bucket))
        });
        Ok(oldest.collect())
    }

    async fn audit(&self, _: Audit, _: usize) -> Result<Audited, StoreError> {
        Ok(Audited::Whole)
    }

    async fn rebuild(&self) -> Result<u64, StoreError> {
        Ok(0)
    }
}
