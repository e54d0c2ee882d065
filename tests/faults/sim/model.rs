//! The reference model of the store: its promises, without a disk. A commit is one assignment, so
//! that every crash falls between two of them. It must share no code with the store.

mod history;
mod removal;
#[path = "../../../crates/whrelay-engine/tests/engine/view.rs"]
mod view;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use whrelay_core::bucket::{Bucket, BucketId, BucketKey, BucketName, Seq};
use whrelay_core::delivery::{Attempt, DeadReason, Delivery, DeliveryKey, DestinationId, State};
use whrelay_core::destination::EndpointState;
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::queue::{DueCursor, DuePage, Offset, QueuePage, QueueQuery, WaitReason};
use whrelay_core::retry::Phase;
use whrelay_core::subscription::Subscription;
use whrelay_core::time::Timestamp;
use whrelay_store::{
    Added, Again, Batch, Begin, Changed, Found, NewDelivery, NewEvent, Receipt, Search, Source,
    SourceMark, StateCounts, StoredEvent,
};

use super::planted::Bug;
use super::vault::{Done, PowerCut, Vault, Write};
use view::{Record, View};

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    name: u128,
    buckets: Vec<Bucket>,
    destinations: Vec<(BucketId, String)>,
    /// Endpoints of which something is known.
    endpoints: HashMap<DestinationId, (EndpointState, Option<Timestamp>)>,
    events: BTreeMap<(BucketId, Seq), Event>,
    places: HashMap<EventId, (BucketId, Seq)>,
    deliveries: BTreeMap<DeliveryKey, Delivery>,
    /// The queues. A read counts its rows.
    queues: RefCell<View>,
    changed: Changed,
    counts: HashMap<(DestinationId, State), u64>,
    attempts: u64,
    last: HashMap<BucketId, Seq>,
    subscriptions: HashMap<(BucketId, String), Subscription>,
    opens: u64,
    /// Up to where a forwarder has removed bodies.
    bare: HashMap<BucketId, Seq>,
    sources: HashMap<BucketId, Source>,
    /// Compiled into the world's own store, switched on by one seed's run.
    planted: Option<Bug>,
}

impl Model {
    /// All buckets.
    pub(crate) fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// All destinations.
    pub(crate) fn targets(&self) -> impl Iterator<Item = DestinationId> {
        (1..=self.destinations.len() as u32).map(DestinationId)
    }

    fn put(&mut self, before: Option<&Delivery>, delivery: Delivery) {
        if let Some(before) = before
            && let Some(count) = self.counts.get_mut(&(before.destination, before.state))
        {
            *count -= 1;
        }
        let forgets = self.planted != Some(Bug::RetryAfterSent) || before.is_none();
        if delivery.wait.is_some() || forgets {
            self.list(&delivery);
        }
        if self.planted != Some(Bug::CountsDrift) || delivery.state != State::Dead {
            let place = (delivery.destination, delivery.state);
            *self.counts.entry(place).or_default() += 1;
        }
        self.deliveries.insert(delivery.key, delivery);
    }

    /// Brings the queue of a delivery's destination up to date.
    fn list(&mut self, delivery: &Delivery) {
        self.queues.get_mut().apply(&Record {
            destination: delivery.destination,
            key: delivery.key,
            next: delivery.waiting(),
        });
    }

    /// A delivery is due, at this time.
    fn note_due(&mut self, destination: DestinationId, at: Timestamp) {
        let due = self.changed.due.entry(destination).or_insert(at);
        *due = at.min(*due);
    }

    fn append(
        &mut self,
        bucket: BucketId,
        events: Vec<NewEvent>,
        mark: Option<SourceMark>,
    ) -> Done {
        let mut receipts = Vec::with_capacity(events.len());
        let kept = match self.planted {
            Some(Bug::CursorPastGap) if mark.is_some() && events.len() > 1 => events.len() - 1,
            _ => events.len(),
        };
        for NewEvent { event, deliveries } in events.into_iter().take(kept) {
            let (id, known) = (event.id, self.places.get(&event.id).copied());
            let known = known.filter(|_| self.planted != Some(Bug::AppendTwice));
            let duplicate = known.is_some();
            let (_, seq) = known.unwrap_or_else(|| (bucket, Seq(self.last_seq(bucket).0 + 1)));
            receipts.push(Receipt {
                event: id,
                seq,
                duplicate,
            });
            if duplicate {
                continue;
            }
            self.last.insert(bucket, seq);
            let bytes = event.request.body.len() as u64;
            self.events.insert((bucket, seq), event);
            self.places.insert(id, (bucket, seq));
            for (ordinal, new) in (0..).zip(deliveries) {
                let key = DeliveryKey {
                    bucket,
                    seq,
                    ordinal,
                };
                self.begin(begun(key, (id, bytes), &new), &new);
            }
        }
        if let Some(mark) = mark {
            self.advance(bucket, mark);
        }
        Done::Appended(receipts)
    }

    fn record(&mut self, attempt: &Attempt) -> Done {
        let found = self.deliveries.get(&attempt.key).cloned();
        if let Some(before) = found.filter(|before| !before.has_recorded(attempt)) {
            self.attempts += 1;
            let mut after = before.clone();
            after.last_attempt = Some(self.attempts);
            if before.is_moved_by(attempt) {
                after.follow(attempt);
            }
            if let (Some(WaitReason::NotBefore(at)), Some(Bug::ReturnBreaksHold)) =
                (after.wait, self.planted)
            {
                let since = attempt.at.after(attempt.duration);
                let delay = at.since(since);
                after.wait = Some(WaitReason::Backoff { since, delay });
            }
            self.put(Some(&before), after);
        }
        Done::Recorded
    }

    fn postpone(&mut self, key: DeliveryKey, now: Timestamp, delay: Duration) -> Done {
        let found = self.deliveries.get(&key).cloned();
        if let Some(before) = found.filter(|found| !found.state.is_finished()) {
            self.note_due(before.destination, now.after(delay));
            let after = Delivery {
                wait: Some(WaitReason::Backoff { since: now, delay }),
                ..before.clone()
            };
            self.put(Some(&before), after);
        }
        Done::Noted
    }

    fn retry_now(&mut self, keys: Vec<DeliveryKey>) -> Done {
        let mut hurried = Vec::new();
        for key in keys {
            let found = self.deliveries.get(&key).cloned();
            let Some(before) = found.filter(|found| !found.state.is_finished()) else {
                continue;
            };
            self.note_due(before.destination, Timestamp::EPOCH);
            let after = Delivery {
                wait: Some(WaitReason::Turn),
                ..before.clone()
            };
            self.put(Some(&before), after);
            hurried.push(key);
        }
        Done::Hurried(hurried)
    }

    fn again(&mut self, again: &Again) -> Done {
        let Again {
            bucket,
            seq,
            event,
            new,
        } = again;
        let event_there = self.events.get(&(*bucket, *seq));
        if event_there.is_none_or(|event| event.removed_body.is_some()) {
            return Done::Again(None);
        }
        let mut there = self.deliveries_of(*bucket, *seq);
        if self.planted == Some(Bug::ReplayReusesTheDelivery)
            && let Some(mut old) = there.pop()
        {
            let before = old.clone();
            (old.state, old.wait) = (State::Queued, Some(WaitReason::Turn));
            self.put(Some(&before), old.clone());
            return Done::Again(Some(Box::new(old)));
        }
        let ordinal = there.last().map_or(0, |last| last.key.ordinal + 1);
        let bytes = there.iter().map(|known| known.bytes).max().unwrap_or(0);
        let key = DeliveryKey {
            bucket: *bucket,
            seq: *seq,
            ordinal,
        };
        let delivery = self.begin(begun(key, (*event, bytes), new), new);
        Done::Again(Some(Box::new(delivery)))
    }

    fn begin(&mut self, mut delivery: Delivery, new: &NewDelivery) -> Delivery {
        if let (Some(WaitReason::NotBefore(at)), Some(Bug::HeldReplayReleased)) =
            (delivery.wait, self.planted)
        {
            let since = new.created_at;
            let delay = at.since(since);
            delivery.wait = Some(WaitReason::Backoff { since, delay });
        }
        match (delivery.wait, delivery.waiting()) {
            (Some(WaitReason::Turn), Some(waiting)) => self.changed.added.push(Added {
                destination: delivery.destination,
                delivery: waiting,
                at: Offset::default(),
            }),
            (Some(_), _) => self.note_due(delivery.destination, new.due_at),
            (None, _) => {}
        }
        self.put(None, delivery.clone());
        delivery
    }

    fn give_up(&mut self, attempt: &Attempt) -> Done {
        let waits = |d: &Delivery| !d.state.is_finished();
        let given_up = self.deliveries.get(&attempt.key).is_some_and(waits);
        if self.planted == Some(Bug::DiscardsWhatHasEnded)
            && let Some(before) = self.deliveries.get(&attempt.key).cloned()
        {
            let mut after = before.clone();
            after.follow(attempt);
            self.put(Some(&before), after);
        } else if given_up {
            let place = (attempt.destination, attempt.key);
            self.changed.withdrawn.push(place);
            self.record(attempt);
        }
        Done::GaveUp(given_up)
    }

    /// The state of an event: the least finished of those that wait, or else of the newest deliveries to
    /// each destination.
    fn state_of(&self, bucket: BucketId, seq: Seq) -> Option<State> {
        let all = self.deliveries_of(bucket, seq);
        for waiting in [State::Queued, State::Stalled] {
            if all.iter().any(|delivery| delivery.state == waiting) {
                return Some(waiting);
            }
        }
        let lasting = all.iter().any(|d| !d.one_off);
        let stands = all.iter().filter(|d| !lasting || !d.one_off);
        let stands: HashMap<_, _> = stands.map(|d| (d.destination, d)).collect();
        let states: Vec<_> = stands.into_values().map(|d| d.state).collect();
        match states.contains(&State::Dead) {
            true => Some(State::Dead),
            false => states.first().copied(),
        }
    }
}

fn begun(key: DeliveryKey, (event, bytes): (EventId, u64), new: &NewDelivery) -> Delivery {
    let wait = match new.due_at > new.created_at {
        true => WaitReason::NotBefore(new.due_at),
        false => WaitReason::Turn,
    };
    Delivery {
        key,
        id: new.id,
        event,
        destination: new.destination,
        created_at: new.created_at,
        deadline_at: new.deadline_at,
        attempts: 0,
        first_failed_at: None,
        phase: Phase::Fast,
        state: if new.passed_over {
            State::Dead
        } else {
            State::Queued
        },
        reason: new.passed_over.then_some(DeadReason::Discarded),
        wait: (!new.passed_over).then_some(wait),
        bytes,
        ended_at: new.passed_over.then_some(new.created_at),
        replay: new.replay,
        last_attempt: None,
        one_off: new.one_off,
    }
}

impl Vault for Model {
    fn birth(name: u128) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    fn plant(&mut self, bug: Option<Bug>) {
        self.planted = bug;
    }

    fn reopen(&mut self) {
        self.opens += 1;
        self.changed = Changed::default();
    }

    fn copy(&self) -> Self {
        self.clone()
    }

    fn opens(&self) -> u64 {
        self.opens
    }

    fn name(&self) -> String {
        format!("{:032x}", self.name)
    }

    fn ensure_bucket(&mut self, name: &BucketName) -> Bucket {
        if let Some(known) = self.buckets.iter().find(|bucket| bucket.name == *name) {
            return known.clone();
        }
        let bucket = Bucket {
            id: BucketId(self.buckets.len() as u32 + 1),
            name: name.clone(),
            key: BucketKey::from_text(name.as_str()),
        };
        self.buckets.push(bucket.clone());
        bucket
    }

    fn ensure_destination(&mut self, bucket: BucketId, target: &str) -> DestinationId {
        let wanted = (bucket, target.to_owned());
        let known = self.destinations.iter().position(|known| *known == wanted);
        let at = known.unwrap_or_else(|| {
            self.destinations.push(wanted);
            self.destinations.len() - 1
        });
        DestinationId(at as u32 + 1)
    }

    fn commit(&mut self, writes: Vec<Write>) -> Result<Vec<Done>, PowerCut> {
        let carry_out = |write| match write {
            Write::Append {
                bucket,
                events,
                mark,
            } => self.append(bucket, events, mark),
            Write::Ack {
                bucket,
                subscription,
                upto,
                lease,
            } => {
                let new = Subscription::new(self.bare_upto(bucket));
                let known = self.subscriptions.entry((bucket, subscription));
                known.or_insert(new).ack(upto, lease);
                Done::Acked
            }
            Write::Join { bucket, join } => self.join(bucket, &join),
            Write::Record(attempt) => self.record(&attempt),
            Write::Endpoint {
                destination,
                endpoint,
                back_since,
            } => {
                self.endpoints.insert(destination, (endpoint, back_since));
                let back = back_since.map(|back| (destination, back));
                self.queues.get_mut().back_since.extend(back);
                Done::Noted
            }
            Write::RetryNow(keys) => self.retry_now(keys),
            Write::Postpone { key, now, delay } => self.postpone(key, now, delay),
            Write::Again(again) => self.again(&again),
            Write::GiveUp(attempt) => self.give_up(&attempt),
            Write::Remove {
                bucket,
                found,
                by,
                part,
            } => self.remove(bucket, &found, by, part),
            Write::RemoveReceipted {
                bucket,
                by,
                part,
                max,
            } => self.remove_receipted(bucket, by, part, max),
        };
        Ok(writes.into_iter().map(carry_out).collect())
    }

    fn read_after(&self, bucket: &Bucket, after: Seq, events: usize, bytes: usize) -> Batch {
        let from = after.max(self.bare_upto(bucket.id));
        let first = (bucket.id, Seq(from.0 + 1));
        let mut batch = Batch {
            events: Vec::new(),
            upto: after,
            damaged: Vec::new(),
        };
        let mut weight = 0;
        let rest = self.events.range(first..=(bucket.id, Seq(u64::MAX)));
        for ((_, seq), event) in rest.filter(|(_, event)| event.removed_body.is_none()) {
            weight += event.request.body.len();
            if !batch.events.is_empty() && (batch.events.len() >= events || weight > bytes) {
                return batch;
            }
            batch.upto = *seq;
            batch.events.push(StoredEvent {
                seq: *seq,
                event: event.clone(),
            });
        }
        batch.upto = after.max(self.last_seq(bucket.id));
        batch
    }

    fn last_seq(&self, bucket: BucketId) -> Seq {
        self.last.get(&bucket).copied().unwrap_or_default()
    }

    fn bare_upto(&self, bucket: BucketId) -> Seq {
        let all = (bucket, Seq(0))..=(bucket, Seq(u64::MAX));
        let first = self.events.range(all).next();
        let kept = first.map_or(self.last_seq(bucket).0, |((_, seq), _)| seq.0 - 1);
        Seq(kept).max(self.bare.get(&bucket).copied().unwrap_or_default())
    }

    fn acked(&self, bucket: BucketId, subscription: &str) -> Seq {
        let known = self.subscriptions.get(&(bucket, subscription.to_owned()));
        known.map_or(Seq(0), |known| known.acked)
    }

    fn knows(&self, bucket: BucketId, subscription: &str) -> bool {
        let key = (bucket, subscription.to_owned());
        self.subscriptions.contains_key(&key)
    }

    fn seen_at(&self, bucket: BucketId, subscription: &str) -> Option<Timestamp> {
        let key = (bucket, subscription.to_owned());
        self.subscriptions.get(&key).and_then(|known| known.seen_at)
    }

    fn source(&self, bucket: BucketId) -> Option<Source> {
        self.sources.get(&bucket).cloned()
    }

    fn find(&self, event: EventId) -> Option<(BucketId, Seq)> {
        let place = self.places.get(&event).copied();
        place.filter(|place| self.events.contains_key(place))
    }

    fn event_at(&self, bucket: &Bucket, seq: Seq) -> Option<Event> {
        self.events.get(&(bucket.id, seq)).cloned()
    }

    fn queue(&self, destination: DestinationId, query: &QueueQuery) -> QueuePage {
        self.queues.borrow_mut().page(destination, query)
    }

    fn due_destinations(
        &self,
        until: Timestamp,
        after: Option<DueCursor>,
        max: usize,
        now: Timestamp,
    ) -> DuePage {
        let queues = self.queues.borrow();
        queues.due_destinations(until, after, max, now)
    }

    fn changed(&mut self) -> Changed {
        std::mem::take(&mut self.changed)
    }

    fn endpoint(&self, destination: DestinationId) -> (EndpointState, Option<Timestamp>) {
        let known = self.endpoints.get(&destination).copied();
        known.unwrap_or((EndpointState::Online, None))
    }

    fn search(
        &self,
        search: &Search,
        begin: Begin,
        after: Option<EventId>,
        max: usize,
    ) -> Vec<Found> {
        let mut found: Vec<Found> = self
            .places
            .iter()
            .map(|(id, (_, seq))| (*id, *seq))
            .collect();
        found.retain(|(_, seq)| {
            let state = match self.planted {
                Some(Bug::StateIndexLags) => self
                    .deliveries_of(search.bucket, *seq)
                    .first()
                    .map(|d| d.state),
                _ => self.state_of(search.bucket, *seq),
            };
            state.is_some_and(|state| search.states.contains(&state))
        });
        found.sort();
        if begin == Begin::Newest {
            found.reverse();
        }
        let beyond = |(id, _): &Found| match begin {
            Begin::Oldest => after.is_none_or(|after| *id > after),
            Begin::Newest => after.is_none_or(|after| *id < after),
        };
        found.into_iter().filter(beyond).take(max).collect()
    }

    fn delivery(&self, key: DeliveryKey) -> Option<Delivery> {
        self.deliveries.get(&key).cloned()
    }

    fn deliveries_of(&self, bucket: BucketId, seq: Seq) -> Vec<Delivery> {
        let key = |ordinal| DeliveryKey {
            bucket,
            seq,
            ordinal,
        };
        let all = self.deliveries.range(key(0)..=key(u32::MAX));
        all.map(|(_, delivery)| delivery.clone()).collect()
    }

    fn counts(&self, destination: DestinationId) -> StateCounts {
        let count = |state| self.counts.get(&(destination, state)).copied().unwrap_or(0);
        StateCounts {
            queued: count(State::Queued),
            stalled: count(State::Stalled),
            sent: count(State::Sent),
            dead: count(State::Dead),
        }
    }
}
