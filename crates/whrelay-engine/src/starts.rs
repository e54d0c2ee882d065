//! From the start of a delivery to the view's knowledge of how it ended.

use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::{DeadReason, DeliveryKey, DestinationId};
use whrelay_core::order::Order;
use whrelay_core::outcome::{Outcome, classify};
use whrelay_core::queue::{Offset, QueueKind, Waiting};
use whrelay_core::retry::{Jitter, Verdict, decide};
use whrelay_core::time::Timestamp;

use crate::Token;
use crate::action::{Action, Append};
use crate::breaker::Sign;
use crate::destination::{Gate, Live};
use crate::engine::Engine;
use crate::in_flight::{Flight, Remembered, Slot, Stage};
use crate::input::{Ended, Now};
use crate::limits;
use crate::turns::Queued;

impl Engine {
    /// The next attempt that may start.
    pub(crate) fn poll_start(&mut self, now: &Now) -> Option<Action> {
        if self.is_paused || self.is_stopped {
            return None;
        }
        self.unpark();
        while self.slots.is_free() && self.in_flight.remembered() < self.caps.remembered {
            let id = self.turns.first().or_else(|| self.unpark())?;
            let Some((delivery, is_healthy)) = self.next_of(id, now) else {
                self.turns.remove_first();
                self.end_turn(id, Queued::Out);
                self.settle(id, now);
                continue;
            };
            if !is_healthy && !self.slots.is_free_for_unhealthy() {
                self.turns.remove_first();
                self.end_turn(id, Queued::Parked);
                self.turns.park(id);
                continue;
            }
            let covers = |live: &mut Live| live.credit.covers(delivery.bytes);
            if !self.live_of(id).is_some_and(covers) {
                self.turns.remove_first();
                self.end_turn(id, Queued::Ready);
                self.turns.push(id);
                continue;
            }
            return Some(self.start(id, delivery, now));
        }
        None
    }

    /// The delivery that a queued destination starts next, and whether the destination is healthy.
    fn next_of(&mut self, id: DestinationId, now: &Now) -> Option<(Waiting, bool)> {
        let destination = self.destinations.get(&id)?;
        let by = destination.due_by(now);
        let live = destination.live.as_ref()?;
        let first = match destination.gate(self.is_paused, now) {
            Gate::Open(_) => live.loaded.first_due(&by, &live.busy)?,
            Gate::Beside(_) => live.loaded.first_new(&by)?,
            Gate::Full(_) | Gate::At(_) | Gate::Shut => return None,
        };
        let is_startable = live.credit.queued == Queued::Ready;
        (is_startable && !first.is_expired(now.moment.certain))
            .then(|| (first, live.breaker.is_healthy(live.slots)))
    }

    fn end_turn(&mut self, id: DestinationId, queued: Queued) {
        if let Some(live) = self.live_of(id) {
            live.credit.end_turn(queued);
        }
    }

    fn start(&mut self, id: DestinationId, delivery: Waiting, now: &Now) -> Action {
        let token = self.in_flight.token();
        let mut timeout = None;
        let (mut is_healthy, mut endpoint_id) = (true, 0);
        if let Some(destination) = self.destinations.get_mut(&id) {
            timeout = Some(destination.settings.timeout).filter(|time| !time.is_zero());
            endpoint_id = destination.settings.endpoint_id;
            let live = destination.live(now);
            is_healthy = live.breaker.is_healthy(live.slots);
            live.loaded.remove(delivery.key);
            live.slots += 1;
            live.retries += usize::from(!delivery.is_new());
            live.block(&delivery);
            live.credit.spend(delivery.bytes);
            if let Some(pace) = &mut live.pace {
                pace.start(now.instant);
            }
        }
        let slot = Slot {
            is_healthy,
            endpoint_id,
        };
        self.slots.take(delivery.bytes, is_healthy);
        self.in_flight.insert(token, (delivery, id), Some(slot));
        let overdue_at = timeout.map(|time| now.later(time) + limits::ATTEMPT_PATIENCE);
        self.in_flight.set_overdue(token, overdue_at);
        self.settle(id, now);
        Action::Start {
            token,
            destination: id,
            delivery,
            number: delivery.attempts.saturating_add(1),
        }
    }

    /// Gives a delivery up untried. That takes no slot of the node.
    pub(crate) fn give_up(
        &mut self,
        id: DestinationId,
        delivery: Waiting,
        reason: DeadReason,
        now: &Now,
    ) {
        let token = self.in_flight.token();
        if let Some(live) = self.live_of(id) {
            live.giving_up += 1;
            live.block(&delivery);
        }
        self.in_flight.insert(token, (delivery, id), None);
        self.append(
            token,
            (delivery.attempts, false),
            Verdict::Dead(reason),
            now,
        );
    }

    /// An exchange has ended.
    pub(crate) fn finished(&mut self, token: Token, ended: Ended, jitter: Jitter, now: &Now) {
        let Some(flight) = self.in_flight.get(token) else {
            return;
        };
        let Stage::Running = flight.stage else {
            return;
        };
        let (delivery, id) = (flight.delivery, flight.destination);
        let endpoint_id = flight.slot.map(|slot| slot.endpoint_id);
        match ended {
            Ended::Tried(outcome) => {
                let verdict = self.decide((id, endpoint_id), &delivery, &outcome, jitter, now);
                let number = delivery.attempts.saturating_add(1);
                self.append(token, (number, true), verdict, now);
            }
            Ended::GivenUp(reason) => {
                let number = delivery.attempts;
                self.append(token, (number, false), Verdict::Dead(reason), now);
            }
            Ended::NotAsked => self.not_asked(token, now),
        }
        self.settle(id, now);
    }

    /// Decides what follows an attempt, and lets the breaker learn from it if it went to the
    /// endpoint that the destination has now.
    fn decide(
        &mut self,
        (id, endpoint_id): (DestinationId, Option<u64>),
        delivery: &Waiting,
        outcome: &Outcome,
        jitter: Jitter,
        now: &Now,
    ) -> Verdict {
        let destination = self.destinations.get_mut(&id);
        let policy = destination.as_ref().map(|d| d.settings.policy.clone());
        let policy = policy.unwrap_or_default();
        let verdict = decide(&policy, delivery.history(), outcome, now.moment, jitter);
        let class = classify(outcome, policy.retry_on);
        if let Some(destination) = destination
            && endpoint_id == Some(destination.settings.endpoint_id)
        {
            let breaker = &mut destination.live(now).breaker;
            let sign = breaker.on_outcome(outcome, class, now.instant);
            self.follow_sign(id, sign, now);
        }
        verdict
    }

    /// Calls deliveries back, and reports the endpoint's state, where it has changed.
    pub(crate) fn follow_sign(&mut self, id: DestinationId, sign: Option<Sign>, now: &Now) {
        let (Some(sign), Some(destination)) = (sign, self.destinations.get_mut(&id)) else {
            return;
        };
        let by = destination.due_by(now);
        if sign == Sign::Back {
            destination.settings.back_since = Some(now.moment.now);
            let live = destination.live(now);
            // A running read may lack those that the return calls back: they are the oldest.
            live.read_again(now);
            live.unload(&by);
            live.note_due(Timestamp::EPOCH);
            live.read_after = None;
        }
        let state = destination.live(now).breaker.endpoint();
        destination.settings.endpoint = state;
        self.actions.push_back(Action::Endpoint {
            destination: id,
            state,
            back_since: destination.settings.back_since,
        });
        self.forget_applied_unless_read(id, now);
    }

    fn append(&mut self, token: Token, (number, tried): (u32, bool), verdict: Verdict, now: &Now) {
        let Some(flight) = self.in_flight.get(token) else {
            return;
        };
        let append = Append {
            token,
            destination: flight.destination,
            delivery: flight.delivery,
            number,
            tried,
            verdict,
            at: now.moment.now,
        };
        self.actions.push_back(Action::Append(append.clone()));
        self.in_flight.append(token, append);
        let overdue_at = now.instant + limits::APPEND_PATIENCE;
        self.in_flight.set_overdue(token, Some(overdue_at));
    }

    /// Nothing was done: the delivery is read again after a pause.
    fn not_asked(&mut self, token: Token, now: &Now) {
        let Some(flight) = self.in_flight.remove(token) else {
            return;
        };
        self.in_flight.forget(flight.delivery.key);
        self.free_slot(&flight);
        let (id, bucket) = (flight.destination, bucket_of(&flight.delivery));
        let Some(destination) = self.destinations.get_mut(&id) else {
            return;
        };
        let by = destination.due_by(now);
        let is_ordered = match destination.settings.order {
            Order::Fifo => bucket.is_some(),
            Order::Arrival => false,
        };
        if let Some(live) = &mut destination.live {
            live.unblock(bucket);
            // A running read may show it as it was before, and those behind it in the order wait.
            live.read_again(now);
            if is_ordered {
                live.unload(&by);
            }
            live.note_due(Timestamp::EPOCH);
            live.read_after = Some(now.instant + limits::LOAD_AGAIN);
        }
        self.forget_applied_unless_read(id, now);
    }

    /// A record is on disk: its slot is free.
    pub(crate) fn appended(&mut self, token: Token, at: Offset, now: &Now) {
        let Some(flight) = self.in_flight.get(token) else {
            return;
        };
        let Stage::Appending(append) = flight.stage.clone() else {
            return;
        };
        let Some(flight) = self.in_flight.remove(token) else {
            return;
        };
        self.free_slot(&flight);
        let id = flight.destination;
        let next = flight
            .delivery
            .following(append.number, &append.verdict, append.at);
        let bucket = bucket_of(&flight.delivery);
        let mut blocks = None;
        let Some(destination) = self.destinations.get_mut(&id) else {
            self.in_flight.forget(flight.delivery.key);
            return;
        };
        let back_since = destination.settings.back_since;
        let live = destination.live(now);
        live.remembered += 1;
        match next {
            Some(_) => blocks = bucket,
            None => live.unblock(bucket),
        }
        if live.has_more && bucket.is_some_and(|bucket| !live.loaded.has_ordered(bucket)) {
            live.note_due(Timestamp::EPOCH);
        }
        let remembered = Remembered {
            destination: id,
            key: flight.delivery.key,
            next: next.map(|next| {
                let due_at = next.due_at(back_since, now.moment.now);
                (due_at, next.deadline_at)
            }),
            blocks,
        };
        self.newest = self.newest.max(at);
        self.in_flight.remember(at, remembered);
        self.forget_what_the_view_has(now);
        self.settle(id, now);
    }

    fn free_slot(&mut self, flight: &Flight) {
        let live = self.live_of(flight.destination);
        let Some(slot) = flight.slot else {
            if let Some(live) = live {
                live.giving_up = live.giving_up.saturating_sub(1);
            }
            return;
        };
        if let Some(live) = live {
            live.slots = live.slots.saturating_sub(1);
            let was_retry = usize::from(!flight.delivery.is_new());
            live.retries = live.retries.saturating_sub(was_retry);
        }
        self.slots.free(flight.delivery.bytes, slot.is_healthy);
    }

    /// Queues an unhealthy destination that waits for a slot, where one is free.
    fn unpark(&mut self) -> Option<DestinationId> {
        while self.slots.is_free_for_unhealthy() {
            let id = self.turns.next_parked()?;
            if let Some(live) = self.live_of(id)
                && live.credit.queued == Queued::Parked
            {
                live.credit.queued = Queued::Ready;
                self.turns.push(id);
                return Some(id);
            }
        }
        None
    }

    /// The view has applied the journal up to `upto`.
    pub(crate) fn applied(&mut self, upto: Offset, now: &Now) {
        self.applied_upto = self.applied_upto.max(upto);
        self.newest = self.newest.max(upto);
        self.forget_what_the_view_has(now);
    }

    fn forget_what_the_view_has(&mut self, now: &Now) {
        let mut changed = Vec::new();
        while let Some(remembered) = self.in_flight.pop_applied(self.applied_upto) {
            let Remembered {
                destination: id,
                key,
                next,
                blocks,
            } = remembered;
            changed.push(id);
            let Some(live) = self.live_of(id) else {
                self.in_flight.forget(key);
                continue;
            };
            live.remembered = live.remembered.saturating_sub(1);
            if let Some((due_at, deadline_at)) = next {
                live.note_due(due_at);
                live.note_deadline(deadline_at);
            }
            let is_read = live.asked.is_some();
            live.applied.push((key, blocks));
            if !is_read {
                self.forget_applied(id, now);
            }
        }
        changed.dedup();
        for id in changed {
            self.settle(id, now);
        }
    }

    /// Somebody else ended or changed a delivery.
    pub(crate) fn withdraw(&mut self, id: DestinationId, key: DeliveryKey, at: Offset, now: &Now) {
        let Some(destination) = self.destinations.get_mut(&id) else {
            return;
        };
        let live = destination.live(now);
        live.loaded.remove(key);
        live.remembered += 1;
        let remembered = Remembered {
            destination: id,
            key,
            next: Some((Timestamp::EPOCH, Timestamp::LAST)),
            blocks: None,
        };
        self.newest = self.newest.max(at);
        self.in_flight.withdraw(at, remembered);
        self.forget_what_the_view_has(now);
        self.settle(id, now);
    }

    /// A flight has no answer for too long.
    pub(crate) fn overdue(&mut self, token: Token, now: &Now) {
        let Some(flight) = self.in_flight.get(token) else {
            return;
        };
        match flight.stage.clone() {
            Stage::Running => {
                let ended = Ended::Tried(Outcome::TimedOut);
                self.finished(token, ended, Jitter(0), now);
            }
            Stage::Appending(append) => {
                self.actions.push_back(Action::Append(append));
                let overdue_at = now.instant + limits::APPEND_PATIENCE;
                self.in_flight.set_overdue(token, Some(overdue_at));
            }
        }
    }

    /// Whether a record is on disk is unknown.
    pub(crate) fn append_failed(&mut self, token: Token, now: &Now) {
        if let Some(flight) = self.in_flight.get(token)
            && let Stage::Appending(_) = flight.stage
        {
            let again_at = now.instant + limits::APPEND_AGAIN;
            self.in_flight.set_overdue(token, Some(again_at));
        }
    }
}

/// The bucket whose order waits for a delivery.
fn bucket_of(delivery: &Waiting) -> Option<BucketId> {
    match delivery.kind {
        QueueKind::Normal => Some(delivery.key.bucket),
        QueueKind::Replay => None,
    }
}

impl Live {
    fn block(&mut self, delivery: &Waiting) {
        if let Some(bucket) = bucket_of(delivery) {
            *self.busy.entry(bucket).or_default() += 1;
        }
    }

    pub(crate) fn unblock(&mut self, bucket: Option<BucketId>) {
        let Some(bucket) = bucket else {
            return;
        };
        if let Some(count) = self.busy.get_mut(&bucket) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.busy.remove(&bucket);
            }
        }
    }
}
