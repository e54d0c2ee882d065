//! What is written.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use whrelay_core::bucket::{Bucket, BucketId, Seq};
use whrelay_core::delivery::{
    Attempt, DeadReason, Delivery, DeliveryKey, DestinationId, State as Standing, ended_at,
};
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::queue::{Offset, WaitReason};
use whrelay_core::retention::{Bound, Part};
use whrelay_core::retry::Phase;
use whrelay_core::subscription::Subscription;
use whrelay_core::time::Timestamp;
use whrelay_store::*;

use super::{Model, State, cost};

impl State {
    fn begin(&mut self, key: DeliveryKey, event: &Event, new: &NewDelivery) -> Delivery {
        let (state, reason, wait) = match new.passed_over {
            true => (Standing::Dead, Some(DeadReason::Discarded), None),
            false if new.due_at > new.created_at => (
                Standing::Queued,
                None,
                Some(WaitReason::NotBefore(new.due_at)),
            ),
            false => (Standing::Queued, None, Some(WaitReason::Turn)),
        };
        let delivery = Delivery {
            key,
            id: new.id,
            event: event.id,
            destination: new.destination,
            created_at: new.created_at,
            deadline_at: new.deadline_at,
            attempts: 0,
            first_failed_at: None,
            phase: Phase::Fast,
            state,
            reason,
            wait,
            bytes: event.request.body.len() as u64,
            ended_at: new.passed_over.then_some(new.created_at),
            replay: new.replay,
            last_attempt: None,
            one_off: new.one_off,
        };
        if wait.is_some() {
            self.tell_due(&delivery);
        }
        self.deliveries.insert(key, delivery.clone());
        delivery
    }

    fn tell_due(&mut self, delivery: &Delivery) {
        let (destination, at) = (delivery.destination, Offset(self.position));
        match (delivery.wait, delivery.waiting()) {
            (Some(WaitReason::Turn), Some(delivery)) if delivery.attempts == 0 => {
                self.changed.added.push(Added {
                    destination,
                    delivery,
                    at,
                });
            }
            _ => {
                self.changed.due.insert(destination, Timestamp::EPOCH);
            }
        }
    }

    fn receive(&mut self, bucket: BucketId, events: Vec<NewEvent>, gaps: bool) -> Vec<Receipt> {
        let mut receipts = Vec::with_capacity(events.len());
        for NewEvent { event, deliveries } in events {
            let id = event.id;
            if let Some((_, seq)) = self.places.get(&id).copied() {
                receipts.push(Receipt {
                    event: id,
                    seq,
                    duplicate: true,
                });
                continue;
            }
            let last = self.last.entry(bucket).or_default();
            *last += 1 + u64::from(gaps && (*last + 1).is_multiple_of(3));
            let seq = Seq(*last);
            for (ordinal, new) in (0..).zip(&deliveries) {
                let key = DeliveryKey {
                    bucket,
                    seq,
                    ordinal,
                };
                self.begin(key, &event, new);
            }
            self.places.insert(id, (bucket, seq));
            self.events.insert((bucket, seq), event);
            receipts.push(Receipt {
                event: id,
                seq,
                duplicate: false,
            });
        }
        receipts
    }

    fn reach(&mut self, bucket: BucketId, mark: SourceMark) {
        let known = self.sources.remove(&bucket);
        let known = known.filter(|known| known.forwarder == mark.forwarder);
        let whole_after = match &known {
            Some(known) if mark.start <= known.seq => known.whole_after.min(mark.start),
            Some(_) | None => mark.start,
        };
        let mut locator = known.map(|known| known.locator).unwrap_or_default();
        mark.events
            .iter()
            .for_each(|(seq, id)| locator.note(*seq, *id));
        locator.end_at(mark.seq);
        let (forwarder, seq) = (mark.forwarder, mark.seq);
        self.sources.insert(
            bucket,
            Source {
                forwarder,
                seq,
                locator,
                whole_after,
            },
        );
    }

    fn record(&mut self, attempt: Attempt) {
        let Some(delivery) = self.deliveries.get_mut(&attempt.key) else {
            return;
        };
        let is_untried = attempt.number == delivery.attempts;
        let is_moved = is_untried && attempt.destination != delivery.destination;
        if is_moved || delivery.has_recorded(&attempt) {
            return;
        }
        self.last_attempt += 1;
        let place = self.last_attempt;
        let before = delivery.last_attempt.replace(place);
        if delivery.is_moved_by(&attempt) {
            delivery.follow(&attempt);
        }
        self.attempts.insert(
            place,
            LoggedAttempt {
                place,
                attempt,
                before,
            },
        );
    }

    fn waiting_mut(&mut self, key: DeliveryKey) -> Option<&mut Delivery> {
        let found = self.deliveries.get_mut(&key);
        found.filter(|delivery| !delivery.state.is_finished())
    }

    fn claim(&mut self, claim: &SignatureClaim) -> bool {
        let key = (claim.signed_at, claim.digest);
        *self.signatures.entry(key).or_insert(claim.event) == claim.event
    }

    fn move_one(&mut self, key: DeliveryKey, to: DestinationId, now: Timestamp) -> bool {
        let all = self.deliveries_of(key.bucket, key.seq);
        let goes_there = |other: &Delivery| {
            other.destination == to && !other.replay && other.state != Standing::Dead
        };
        let Some(delivery) = self.deliveries.get_mut(&key) else {
            return false;
        };
        self.changed.withdrawn.push((delivery.destination, key));
        if !delivery.replay && all.iter().any(goes_there) {
            delivery.end(DeadReason::Discarded);
            delivery.ended_at = Some(now);
            return false;
        }
        let is_scheduled = delivery.replay && delivery.next_attempt_at() > Some(now);
        delivery.destination = to;
        if !is_scheduled {
            delivery.wait = Some(WaitReason::Turn);
        }
        self.changed.due.insert(to, Timestamp::EPOCH);
        true
    }

    /// Removes an event, or its body. Says whether it was there.
    fn remove(&mut self, bucket: BucketId, seq: Seq, part: Part) -> bool {
        let removals = self.removals.entry(bucket).or_default();
        let Some(event) = self.events.get_mut(&(bucket, seq)) else {
            return false;
        };
        if part == Part::Body {
            let had = event.request.body.len() as u64;
            let is_there = event.removed_body.is_none();
            event.removed_body.get_or_insert(had);
            event.request.body = Default::default();
            removals.bodies += u64::from(is_there);
            return is_there;
        }
        removals.events += 1;
        self.places.remove(&event.id);
        self.events.remove(&(bucket, seq));
        for delivery in self.deliveries_of(bucket, seq) {
            let removals = self.removals.entry(bucket).or_default();
            removals.sent += u64::from(delivery.state == Standing::Sent);
            removals.dead += u64::from(delivery.state == Standing::Dead);
            self.deliveries.remove(&delivery.key);
            self.attempts
                .retain(|_, logged| logged.attempt.key != delivery.key);
        }
        true
    }
}

#[async_trait]
impl Journal for Model {
    fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    fn bound(&self) -> Option<Bound> {
        self.bound
    }

    fn appended(&self) -> watch::Receiver<Offset> {
        self.appended.subscribe()
    }

    fn changes(&self) -> Changes {
        self.feed.listen()
    }

    async fn find_event(&self, id: EventId) -> Result<Option<(BucketId, Seq)>, StoreError> {
        Ok(self.state().places.get(&id).copied())
    }

    async fn delivery(&self, key: DeliveryKey) -> Result<Option<Delivery>, StoreError> {
        Ok(self.state().deliveries.get(&key).cloned())
    }

    async fn source(&self, bucket: BucketId) -> Result<Option<Source>, StoreError> {
        Ok(self.state().sources.get(&bucket).cloned())
    }

    async fn has_signature(&self, claim: &SignatureClaim) -> Result<Option<bool>, StoreError> {
        let state = self.state();
        let by = state.signatures.get(&(claim.signed_at, claim.digest));
        Ok(by.map(|event| *event == claim.event))
    }

    async fn stopped(&self) -> StoreError {
        std::future::pending().await
    }

    async fn close(&self) {}

    async fn receive(
        &self,
        bucket: BucketId,
        events: Vec<NewEvent>,
        mark: Option<SourceMark>,
    ) -> Result<Vec<Receipt>, StoreError> {
        let gaps = self.liberties.has_gaps;
        let bytes = events.iter().map(|new| cost(&new.event)).sum();
        if let Some(refusal) = self.state().refusal(self.bound, bucket, bytes) {
            return Err(refusal);
        }
        let receive = |state: &mut State| {
            let receipts = state.receive(bucket, events, gaps);
            mark.clone()
                .into_iter()
                .for_each(|mark| state.reach(bucket, mark));
            receipts
        };
        match mark {
            Some(_) => self.try_write(receive),
            // A sender asks again.
            None => Ok(self.write(receive)),
        }
    }

    fn over_bound(&self, bucket: BucketId) -> Option<StoreError> {
        self.state().refusal(self.bound, bucket, 1)
    }

    async fn refusing(&self, _: &[BucketId]) -> Result<Vec<(BucketId, String)>, StoreError> {
        Ok(Vec::new())
    }

    async fn read_after(
        &self,
        bucket: &Bucket,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Batch, StoreError> {
        let state = self.state();
        let after = after.max(state.bare_upto(bucket.id));
        let (mut events, mut bytes) = (Vec::new(), 0);
        for ((_, seq), event) in state.events.range((bucket.id, Seq(after.0 + 1))..) {
            bytes += event.request.body.len() + 200;
            let is_full = events.len() >= max_events || bytes > max_bytes;
            if !events.is_empty() && is_full || *seq > state.last_seq(bucket.id) {
                break;
            }
            let (seq, event) = (*seq, event.clone());
            events.push(StoredEvent { seq, event });
        }
        let upto = events.last().map_or(after, |last| last.seq);
        let damaged = Vec::new();
        Ok(Batch {
            events,
            upto,
            damaged,
        })
    }

    async fn event_at(&self, bucket: &Bucket, seq: Seq) -> Result<Option<Event>, StoreError> {
        Ok(self.state().events.get(&(bucket.id, seq)).cloned())
    }

    async fn head_at(
        &self,
        bucket: &Bucket,
        seq: Seq,
    ) -> Result<Option<(Event, bool)>, StoreError> {
        let event = self.event_at(bucket, seq).await?;
        Ok(event.map(|mut event| {
            let has_body = event.removed_body.is_none();
            event
                .removed_body
                .get_or_insert(event.request.body.len() as u64);
            event.request.body = Default::default();
            (event, has_body)
        }))
    }

    async fn ids_at(
        &self,
        bucket: BucketId,
        numbers: &[Seq],
    ) -> Result<Vec<Option<EventId>>, StoreError> {
        let state = self.state();
        let id = |seq: &Seq| Some(state.events.get(&(bucket, *seq))?.id);
        Ok(numbers.iter().map(id).collect())
    }

    async fn count(&self, bucket: BucketId, after: Seq, through: Seq) -> Result<u64, StoreError> {
        let state = self.state();
        let after = after.max(state.bare_upto(bucket));
        let is_there = |((of, seq), _): &(&(BucketId, Seq), &Event)| {
            *of == bucket && *seq > after && *seq <= through
        };
        Ok(state.events.iter().filter(is_there).count() as u64)
    }

    async fn numbers(&self, bucket: BucketId) -> Result<Numbers, StoreError> {
        let state = self.state();
        let (pruned, last) = (state.bare_upto(bucket), state.last_seq(bucket));
        Ok(Numbers { pruned, last })
    }

    async fn attempted(
        &self,
        attempt: Attempt,
        claim: Option<SignatureClaim>,
    ) -> Result<(), StoreError> {
        self.try_write(|state| {
            claim.iter().for_each(|claim| {
                state.claim(claim);
            });
            state.record(attempt);
        })
    }

    async fn claim_signature(&self, claim: SignatureClaim) -> Result<bool, StoreError> {
        self.try_write(|state| state.claim(&claim))
    }

    async fn replay(&self, all: Vec<Again>) -> Result<Vec<Delivery>, StoreError> {
        self.try_write(|state| {
            let mut begun = Vec::new();
            for Again {
                bucket, seq, new, ..
            } in all
            {
                let event = state.events.get(&(bucket, seq)).cloned();
                let Some(event) = event.filter(|event| event.removed_body.is_none()) else {
                    continue;
                };
                let there = state.deliveries_of(bucket, seq);
                let ordinal = there.last().map_or(0, |last| last.key.ordinal + 1);
                let known = there.into_iter().find(|known| known.id == new.id);
                let key = DeliveryKey {
                    bucket,
                    seq,
                    ordinal,
                };
                begun.push(known.unwrap_or_else(|| state.begin(key, &event, &new)));
            }
            begun
        })
    }

    async fn give_up(&self, attempts: Vec<Attempt>) -> Result<Vec<DeliveryKey>, StoreError> {
        self.try_write(|state| {
            let mut given_up = Vec::new();
            for attempt in attempts {
                let (key, destination) = (attempt.key, attempt.destination);
                if state.waiting_mut(key).is_some() {
                    state.changed.withdrawn.push((destination, key));
                    state.record(attempt);
                    given_up.push(key);
                }
            }
            given_up
        })
    }

    async fn postpone(
        &self,
        key: DeliveryKey,
        now: Timestamp,
        delay: Duration,
    ) -> Result<(), StoreError> {
        self.try_write(|state| {
            let found = state.waiting_mut(key).map(|delivery| {
                delivery.wait = Some(WaitReason::Backoff { since: now, delay });
                delivery.clone()
            });
            found.iter().for_each(|delivery| state.tell_due(delivery));
        })
    }

    async fn retry_now(&self, keys: Vec<DeliveryKey>) -> Result<Vec<DeliveryKey>, StoreError> {
        self.try_write(|state| {
            let mut hurried = Vec::new();
            for key in keys {
                if let Some(delivery) = state.waiting_mut(key) {
                    delivery.wait = Some(WaitReason::Turn);
                    let destination = delivery.destination;
                    state.changed.due.insert(destination, Timestamp::EPOCH);
                    hurried.push(key);
                }
            }
            hurried
        })
    }

    async fn move_deliveries(
        &self,
        from: DestinationId,
        to: DestinationId,
        now: Timestamp,
    ) -> Result<Moved, StoreError> {
        self.try_write(|state| {
            let waits = |d: &&Delivery| d.destination == from && d.wait.is_some();
            let all: Vec<_> = state
                .deliveries
                .values()
                .filter(waits)
                .map(|d| d.key)
                .collect();
            let moves = all.iter().filter(|key| state.move_one(**key, to, now));
            let moved = moves.count() as u64;
            let discarded = all.len() as u64 - moved;
            Moved { moved, discarded }
        })
    }

    async fn quarantine(&self, _: &Bucket, _: DeliveryKey, _: Timestamp) -> Result<(), StoreError> {
        Ok(())
    }

    async fn restore_event(
        &self,
        bucket: &Bucket,
        seq: Seq,
        event: Event,
    ) -> Result<(), StoreError> {
        self.try_write(|state| {
            state.events.insert((bucket.id, seq), event);
        })
    }

    async fn subscription(&self, bucket: BucketId, name: &str) -> Result<Subscribed, StoreError> {
        Ok(self.state().subscribed(bucket, name))
    }

    async fn subscriptions(
        &self,
        of: Option<BucketId>,
    ) -> Result<Vec<NamedSubscription>, StoreError> {
        let state = self.state();
        let all = state.subscriptions.iter();
        let all = all.filter(|((bucket, _), _)| of.is_none_or(|of| of == *bucket));
        let named = all.map(|((bucket, name), known)| NamedSubscription {
            bucket: *bucket,
            name: name.clone(),
            stored: Subscribed::Known(known.clone()),
        });
        Ok(named.collect())
    }

    async fn put_subscription(
        &self,
        bucket: BucketId,
        name: &str,
        before: &Subscribed,
        after: Option<&Subscription>,
    ) -> Result<bool, StoreError> {
        self.try_write(|state| {
            let stored = state.subscribed(bucket, name);
            let key = (bucket, name.to_owned());
            match after {
                _ if stored.known() == after => return true,
                _ if stored != *before => return false,
                Some(after) => state.subscriptions.insert(key, after.clone()),
                None => state.subscriptions.remove(&key),
            };
            true
        })
    }

    async fn remove_finished(
        &self,
        bucket: BucketId,
        found: Vec<Found>,
        ended_by: Timestamp,
        part: Part,
        _: usize,
    ) -> Result<Swept, StoreError> {
        self.try_write(|state| {
            let mut swept = Swept::default();
            for (event, seq) in found {
                swept.upto = Some(event);
                let ended = ended_at(&state.deliveries_of(bucket, seq));
                let is_over = ended.is_some_and(|ended| ended <= ended_by);
                if part == Part::Body {
                    let removals = state.removals.entry(bucket).or_default();
                    removals.bodies_upto = removals.bodies_upto.max(Some(event));
                }
                if is_over && state.remove(bucket, seq, part) {
                    swept.removed.push(event);
                }
            }
            swept
        })
    }

    async fn remove_receipted(
        &self,
        buckets: Vec<BucketId>,
        received_by: Timestamp,
        part: Part,
        (max_events, _): (usize, usize),
    ) -> Result<(u64, usize), StoreError> {
        self.try_write(|state| {
            let (mut removed, looked_at) = (0, buckets.len());
            for bucket in buckets {
                let through = state.removable_through(bucket, received_by);
                let gone = state.removed.get(&bucket).copied().unwrap_or_default();
                let from = if part == Part::Body { gone.1 } else { gone.0 };
                for seq in (from.0 + 1..=through.0).map(Seq).take(max_events) {
                    let event = state.events.get(&(bucket, seq));
                    if event.is_some_and(|event| event.received_at > received_by) {
                        break;
                    }
                    removed += u64::from(state.remove(bucket, seq, part));
                    let gone = state.removed.entry(bucket).or_default();
                    match part {
                        Part::Body => gone.1 = seq,
                        Part::Whole => gone.0 = seq,
                    }
                }
            }
            (removed, looked_at)
        })
    }

    async fn give_back(&self, _: Effort) -> Result<bool, StoreError> {
        Ok(false)
    }
}
