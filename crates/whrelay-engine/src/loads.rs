//! Reading the view: which rows are accepted, when there are more, and how many are in memory.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::DestinationId;
use whrelay_core::order::Order;
use whrelay_core::queue::{DueBy, DuePage, Offset, QueueKind, QueuePage, Waiting, Wanted};
use whrelay_core::time::Timestamp;

use crate::Token;
use crate::destination::{Asked, Live};
use crate::engine::Engine;
use crate::input::Now;
use crate::limits;

/// Counts the rows loaded of all destinations. Unhealthy ones may have half of them at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    healthy: usize,
    unhealthy: usize,
    waiting_for_room: [VecDeque<DestinationId>; 2],
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        self.healthy + self.unhealthy
    }

    /// Rows that may be read for one more destination.
    pub(crate) fn room(&self, cap: usize, is_healthy: bool) -> usize {
        let all = cap.saturating_sub(self.len());
        let share = (cap / 2).saturating_sub(self.unhealthy);
        if is_healthy { all } else { all.min(share) }
    }

    pub(crate) fn replace(&mut self, before: (usize, bool), after: (usize, bool)) {
        let old = self.count(before.1);
        *old = old.saturating_sub(before.0);
        let new = self.count(after.1);
        *new = new.saturating_add(after.0);
    }

    fn count(&mut self, is_healthy: bool) -> &mut usize {
        if is_healthy {
            &mut self.healthy
        } else {
            &mut self.unhealthy
        }
    }

    /// Destinations that wait for room.
    pub(crate) fn waiting_for_room(&mut self, is_healthy: bool) -> &mut VecDeque<DestinationId> {
        &mut self.waiting_for_room[usize::from(is_healthy)]
    }

    /// The next destination for which there is room again.
    pub(crate) fn next_with_room(&mut self, cap: usize) -> Option<DestinationId> {
        let mut ready = [true, false].into_iter().filter(|is_healthy| {
            let is_waiting = !self.waiting_for_room[usize::from(*is_healthy)].is_empty();
            is_waiting && self.room(cap, *is_healthy) > 0
        });
        let is_healthy = ready.next()?;
        self.waiting_for_room(is_healthy).pop_front()
    }
}

/// How many rows of a page are accepted, so that what is loaded stays within what was asked for.
/// Half of them may be those that start in order, the same number of each bucket.
struct Share {
    order: Order,
    ranked: usize,
    of_each_bucket: usize,
    ordered: BTreeMap<BucketId, usize>,
}

impl Share {
    fn new(page: &[Waiting], asked: Asked, order: Order) -> Self {
        let mut share = Self {
            order,
            ranked: asked.fresh,
            of_each_bucket: asked.fresh,
            ordered: BTreeMap::new(),
        };
        for waiting in page
            .iter()
            .filter(|waiting| starts_in_order(order, waiting))
        {
            share.ordered.insert(waiting.key.bucket, 0);
        }
        if !share.ordered.is_empty() {
            share.ranked = (asked.fresh / 2).max(1);
            let ordered = asked.fresh.div_ceil(2) / share.ordered.len();
            share.of_each_bucket = ordered.max(1);
        }
        share
    }

    fn is_ordered(&self, waiting: &Waiting) -> bool {
        starts_in_order(self.order, waiting)
    }

    /// Whether one more row is accepted.
    fn takes(&mut self, waiting: &Waiting) -> bool {
        if self.is_ordered(waiting) {
            let taken = self.ordered.entry(waiting.key.bucket).or_default();
            *taken += 1;
            return *taken <= self.of_each_bucket;
        }
        let takes = self.ranked > 0;
        self.ranked = self.ranked.saturating_sub(1);
        takes
    }
}

fn starts_in_order(order: Order, waiting: &Waiting) -> bool {
    match (order, waiting.kind) {
        (Order::Fifo, QueueKind::Normal) => true,
        (Order::Arrival, _) | (Order::Fifo, QueueKind::Replay) => false,
    }
}

impl Engine {
    /// Takes note of a page of due destinations.
    pub(crate) fn due_destinations(&mut self, token: Token, page: DuePage, now: &Now) {
        let in_flight = &mut self.in_flight;
        let fresh = || in_flight.token();
        let (is_asked, action) = self.horizon.answered(token, page.next, now, fresh);
        if !is_asked {
            return;
        }
        self.actions.extend(action);
        for (id, at) in page.rows {
            self.due(id, at, false, now);
        }
    }

    /// A delivery was added. It is loaded without a read if nothing else is due that is not
    /// loaded: none of those would start before it.
    pub(crate) fn added(&mut self, id: DestinationId, delivery: Waiting, at: Offset, now: &Now) {
        // What is older than this may have been started, and changed, since.
        let is_new = at > self.newest && !self.in_flight.knows(delivery.key);
        let (is_paused, is_complete) = (self.is_paused, self.horizon.is_complete());
        let Some(destination) = self.destinations.get_mut(&id) else {
            return;
        };
        destination.live(now);
        let (by, order) = (destination.due_by(now), destination.settings.order);
        let worthwhile = destination.worthwhile_rows(destination.gate(is_paused, now), now);
        let live = destination.live(now);
        let is_healthy = live.breaker.is_healthy(live.slots);
        let is_all_loaded =
            is_complete && live.asked.is_none() && live.unshown.is_none() && !live.is_behind(&by);
        live.added = live.added.max(Some(at));
        let has_room = worthwhile.is_some_and(|rows| live.loaded.len() < rows)
            && self.rows.room(self.caps.loaded, is_healthy) > 0;
        let may_start = delivery.is_due(&by) && !starts_in_order(order, &delivery);
        if is_new && is_all_loaded && has_room && may_start {
            live.loaded.insert(delivery, order, &by);
            self.settle(id, now);
        } else {
            live.unshown = Some(at);
            self.due(id, delivery.due_at(None, by.now), true, now);
        }
    }

    /// Something of a destination is due at `at`. The view's rows repeat themselves; `is_new` if
    /// this is a delivery that was added or changed.
    pub(crate) fn due(&mut self, id: DestinationId, at: Timestamp, is_new: bool, now: &Now) {
        let is_paused = self.is_paused;
        let Some(destination) = self.destinations.get_mut(&id) else {
            return;
        };
        let is_paused = is_paused || destination.settings.paused;
        let live = destination.live(now);
        live.note_due(at);
        let is_unread = is_paused || live.breaker.is_away();
        if is_unread && (is_new || live.unread_deadline.is_none()) {
            // Its deadlines pass all the same.
            live.note_deadline(now.moment.certain.after(limits::DEADLINES_AGAIN));
        }
        if is_new && !live.is_after_failure(now) {
            live.read_after = None;
        }
        self.settle(id, now);
    }

    /// Takes note of a page of deliveries.
    pub(crate) fn loaded(
        &mut self,
        id: DestinationId,
        token: Token,
        page: &QueuePage,
        applied: Offset,
        now: &Now,
    ) {
        self.newest = self.newest.max(applied);
        let Some(destination) = self.destinations.get_mut(&id) else {
            return;
        };
        let (by, order) = (destination.due_by(now), destination.settings.order);
        let is_removed = destination.is_removed;
        let Some(live) = &mut destination.live else {
            return;
        };
        let Some(asked) = live.asked.filter(|asked| asked.token == token) else {
            return;
        };
        live.asked = None;
        live.unread_deadline = page.next_deadline_at;
        match asked.wanted {
            Wanted::All => {
                (live.unread, live.has_more) = (page.next_at, page.has_more);
                live.unshown = live.unshown.filter(|at| *at > applied);
            }
            Wanted::New => {
                live.has_unread_new = page.waiting.len() >= asked.max;
                live.is_ahead = true;
            }
            Wanted::Expired => {}
        }
        if let Some(at) = live.unread_later.take() {
            live.note_due(at);
        }
        let mut share = Share::new(&page.waiting, asked, order);
        let (began, certain) = (self.began_at, now.moment.certain);
        let (mut useful, mut first_left) = (0, None);
        for waiting in page.waiting.iter().take(asked.max) {
            if self.in_flight.knows(waiting.key) || is_removed {
                continue;
            }
            let is_wanted = waiting.is_expired(certain) || live.loaded.has(waiting.key);
            if is_wanted || share.takes(waiting) {
                let reason = waiting.reason.counted_from(began, by.now);
                let waiting = Waiting { reason, ..*waiting };
                useful += usize::from(waiting.is_expired(certain) || waiting.is_due(&by));
                live.loaded.insert(waiting, order, &by);
            } else {
                live.leave_out(waiting, order);
                if !starts_in_order(order, waiting) {
                    first_left.get_or_insert(*waiting);
                }
            }
        }
        // One that was added while an older one was unknown waits until that has started.
        if let Some(first) = first_left {
            for later in live.loaded.take_behind(&first, certain, &by) {
                live.leave_out(&later, order);
            }
        }
        live.read_after = live.pause_after(page, asked, useful, &by, now);
        self.forget_applied(id, now);
        self.settle(id, now);
    }

    /// A read failed.
    pub(crate) fn load_failed(&mut self, id: DestinationId, token: Token, now: &Now) {
        if let Some(live) = self.live_of(id)
            && live.asked.is_some_and(|asked| asked.token == token)
        {
            live.read_again(now);
            live.read_after = Some(now.instant + limits::LOAD_AGAIN);
            self.forget_applied(id, now);
            self.settle(id, now);
        }
    }

    /// A read that has no answer for too long counts as lost.
    pub(crate) fn give_read_up(&mut self, id: DestinationId, now: &Now) {
        let is_late = |asked: Asked| asked.at + limits::LOAD_PATIENCE <= now.instant;
        if let Some(live) = self.live_of(id)
            && live.asked.is_some_and(is_late)
        {
            live.read_again(now);
            self.forget_applied(id, now);
        }
    }

    /// Forgets deliveries that the view has applied, unless a running read may show them as they
    /// were before.
    pub(crate) fn forget_applied_unless_read(&mut self, id: DestinationId, now: &Now) {
        if self.live_of(id).is_some_and(|live| live.asked.is_none()) {
            self.forget_applied(id, now);
        }
    }

    /// No running read can show these deliveries as they were before. Where the order waited for
    /// one of them, the others are read again behind it.
    pub(crate) fn forget_applied(&mut self, id: DestinationId, now: &Now) {
        let Some(destination) = self.destinations.get_mut(&id) else {
            return;
        };
        let by = destination.due_by(now);
        let is_ordered = match destination.settings.order {
            Order::Fifo => true,
            Order::Arrival => false,
        };
        let Some(live) = &mut destination.live else {
            return;
        };
        for (key, blocks) in std::mem::take(&mut live.applied) {
            self.in_flight.forget(key);
            if is_ordered && blocks.is_some() {
                live.unload(&by);
                live.note_due(Timestamp::EPOCH);
            }
            live.unblock(blocks);
        }
    }
}

impl Live {
    /// A row of a page is not accepted: it is read again.
    pub(crate) fn leave_out(&mut self, waiting: &Waiting, order: Order) {
        self.note_deadline(waiting.deadline_at);
        if starts_in_order(order, waiting) {
            self.has_more = true;
        } else {
            self.note_due(Timestamp::EPOCH);
        }
    }

    /// Until when the view is not read again after `page`, of which so many rows are due.
    fn pause_after(
        &self,
        page: &QueuePage,
        asked: Asked,
        useful: usize,
        by: &DueBy,
        now: &Now,
    ) -> Option<Instant> {
        let soon = now.instant + limits::LOAD_AGAIN;
        let is_complete = page.waiting.len() < asked.max;
        let is_all = asked.wanted == Wanted::All;
        let has_next = is_all && page.next_at.is_some_and(|at| at <= by.now);
        if has_next && is_complete && now.settles_at().is_some() {
            // Everything that is due is loaded but the jobs that wait for the clock.
            return now.settles_at();
        }
        if useful == 0 && (has_next || self.is_overdue(now.moment.certain)) {
            return Some(soon);
        }
        // Those behind the first of a FIFO order are read again when that one is due, and not
        // for each delivery that is added behind them.
        let first_at = self.loaded.next_due_at(by, &self.busy);
        let is_waiting = first_at.filter(|at| *at > by.now && useful > 0);
        is_waiting.map(|at| now.instant_of(at).min(soon))
    }

    /// Forgets the running read, and notes that its rows have to be read again.
    pub(crate) fn read_again(&mut self, now: &Now) {
        let Some(asked) = self.asked.take() else {
            return;
        };
        if let Some(at) = self.unread_later.take() {
            self.note_due(at);
        }
        match asked.wanted {
            Wanted::Expired => self.note_deadline(now.moment.certain),
            Wanted::All | Wanted::New => self.note_due(Timestamp::EPOCH),
        }
    }

    /// Whether reading waits after a failure, rather than for the clock.
    fn is_after_failure(&self, now: &Now) -> bool {
        let soon = now.instant + limits::LOAD_AGAIN;
        self.read_after.is_some_and(|at| at <= soon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unhealthy_destinations_have_half_of_the_rows_at_most() {
        let mut rows = Rows::default();
        rows.replace((0, true), (4, false));
        assert_eq!((rows.room(10, false), rows.room(10, true)), (1, 6));
        rows.replace((4, false), (6, true));
        assert_eq!((rows.room(10, false), rows.room(10, true)), (4, 4));
    }

    #[test]
    fn a_destination_waits_for_room_of_its_kind() {
        let mut rows = Rows::default();
        rows.replace((0, true), (5, false));
        rows.waiting_for_room(false).push_back(DestinationId(1));
        assert_eq!(rows.next_with_room(10), None);
        rows.waiting_for_room(true).push_back(DestinationId(2));
        assert_eq!(rows.next_with_room(10), Some(DestinationId(2)));
        rows.replace((5, false), (0, true));
        assert_eq!(rows.next_with_room(10), Some(DestinationId(1)));
    }
}
