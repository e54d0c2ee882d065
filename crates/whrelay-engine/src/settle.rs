//! What follows for one destination after anything about it has changed: what is given up, read,
//! probed or queued to start, and when it is looked at next.

use std::time::{Duration, Instant};

use whrelay_core::delivery::{DeadReason, DestinationId};
use whrelay_core::order::Order;
use whrelay_core::queue::{QueueQuery, Waiting, Wanted};

use crate::action::{Action, Load};
use crate::destination::{Asked, Destination, Gate, Live};
use crate::engine::Engine;
use crate::horizon::Look;
use crate::input::Now;
use crate::limits;
use crate::turns::Queued;

/// A look never repeats at once, whatever the view answers.
const LEAST_PAUSE: Duration = Duration::from_millis(1);

impl Engine {
    /// Brings everything that depends on a destination up to date.
    pub(crate) fn settle(&mut self, id: DestinationId, now: &Now) {
        if !self.is_stopped {
            self.give_read_up(id, now);
            for expired in self.take_expired(id, now) {
                self.give_up(id, expired, DeadReason::Deadline, now);
            }
            self.unload_idle_rows(id, now);
            self.probe(id, now);
            self.queue_turn(id, now);
            self.read(id, now);
        }
        self.count_rows(id);
        self.plan_look(id, now);
        self.retire(id, now);
    }

    fn take_expired(&mut self, id: DestinationId, now: &Now) -> Vec<Waiting> {
        let live = self.live_of(id);
        live.map_or_else(Vec::new, |live| {
            live.loaded.take_expired(now.moment.certain)
        })
    }

    /// Rows are dropped where none of them can start soon.
    fn unload_idle_rows(&mut self, id: DestinationId, now: &Now) {
        let is_paused = self.is_paused;
        let Some(destination) = self.destinations.get_mut(&id) else {
            return;
        };
        let (gate, by) = (destination.gate(is_paused, now), destination.due_by(now));
        let (is_removed, order) = (destination.is_removed, destination.settings.order);
        let Some(live) = &mut destination.live else {
            return;
        };
        let keep_until = now.later(limits::KEEP_LOADED);
        let is_shut = match gate {
            Gate::Open(_) | Gate::Beside(_) | Gate::Full(_) => false,
            Gate::At(at) => at > keep_until,
            Gate::Shut => true,
        };
        let is_in_turn = match gate {
            Gate::Open(_) | Gate::At(_) => true,
            Gate::Beside(_) | Gate::Full(_) | Gate::Shut => false,
        };
        if is_in_turn && std::mem::take(&mut live.is_ahead) {
            for waiting in live.loaded.take_new() {
                live.leave_out(&waiting, order);
            }
        }
        let due_at = live.loaded.next_due_at(&by, &live.busy);
        if is_shut || due_at.is_some_and(|at| now.instant_of(at) > keep_until) {
            live.unload(&by);
        }
        if is_removed {
            (live.unread, live.unread_later, live.unread_deadline) = (None, None, None);
        }
    }

    fn probe(&mut self, id: DestinationId, now: &Now) {
        let Some(destination) = self.destinations.get_mut(&id) else {
            return;
        };
        let Some(live) = destination
            .live
            .as_mut()
            .filter(|_| !destination.is_removed)
        else {
            return;
        };
        if live.breaker.probe_at().is_some_and(|at| at <= now.instant) {
            live.breaker.on_probing(now.instant);
            self.actions.push_back(Action::Probe {
                destination: id,
                linger: limits::PROBE_LINGER,
            });
        }
    }

    /// Queues a destination that may start something.
    fn queue_turn(&mut self, id: DestinationId, now: &Now) {
        let is_paused = self.is_paused;
        let Some(destination) = self.destinations.get_mut(&id) else {
            return;
        };
        let (gate, by) = (destination.gate(is_paused, now), destination.due_by(now));
        let Some(live) = &mut destination.live else {
            return;
        };
        let is_ready = match gate {
            Gate::Open(_) => live.loaded.first_due(&by, &live.busy).is_some(),
            Gate::Beside(_) => live.loaded.first_new(&by).is_some(),
            Gate::Full(_) | Gate::At(_) | Gate::Shut => false,
        };
        let may_leave_parking = live.breaker.is_healthy(live.slots);
        match live.credit.queued {
            Queued::Out if is_ready => {}
            Queued::Parked if is_ready && may_leave_parking => {}
            Queued::Out | Queued::Parked | Queued::Ready => return,
        }
        live.credit.queued = Queued::Ready;
        self.turns.push(id);
    }

    /// Reads the view where something is due or expired that is not loaded.
    fn read(&mut self, id: DestinationId, now: &Now) {
        let (is_paused, cap) = (self.is_paused, self.caps.loaded);
        let Some(destination) = self.destinations.get_mut(&id) else {
            return;
        };
        let gate = destination.gate(is_paused, now);
        let Some((want, wanted)) = want(destination, gate, now) else {
            return;
        };
        let (due, order) = (destination.due_by(now), destination.settings.order);
        let Some(live) = &mut destination.live else {
            return;
        };
        let is_healthy = live.breaker.is_healthy(live.slots);
        let room = self.rows.room(cap, is_healthy);
        let fresh = want.min(room).min(limits::LOADED_AT_ONCE);
        if fresh == 0 {
            if !std::mem::replace(&mut live.is_queued_for_room, true) {
                self.rows.waiting_for_room(is_healthy).push_back(id);
            }
            return;
        }
        let known = live.slots + live.giving_up + live.remembered + live.applied.len();
        let token = self.in_flight.token();
        let max = fresh
            .saturating_add(known)
            .saturating_add(live.loaded.len());
        let max = match order {
            Order::Arrival => max,
            // Half of the rows are those that start in order.
            Order::Fifo => max.saturating_mul(2),
        };
        live.asked = Some(Asked {
            token,
            at: now.instant,
            max,
            fresh,
            wanted,
        });
        self.actions.push_back(Action::Load(Load {
            token,
            destination: id,
            query: QueueQuery {
                order,
                due,
                expired_by: now.moment.certain,
                wanted,
                max,
            },
        }));
    }

    fn count_rows(&mut self, id: DestinationId) {
        let Some(live) = self.destinations.get_mut(&id).and_then(|d| d.live.as_mut()) else {
            return;
        };
        let counted = (live.rows(), live.breaker.is_healthy(live.slots));
        let before = std::mem::replace(&mut live.counted, counted);
        self.rows.replace(before, counted);
    }

    fn plan_look(&mut self, id: DestinationId, now: &Now) {
        let (is_paused, is_stopped) = (self.is_paused, self.is_stopped);
        let Some(destination) = self.destinations.get_mut(&id) else {
            return;
        };
        let look = match is_stopped {
            true => Look::default(),
            false => look(destination, destination.gate(is_paused, now), now),
        };
        let Some(live) = &mut destination.live else {
            return;
        };
        let before = std::mem::replace(&mut live.look, look);
        self.horizon.replace(id, before, look);
        let is_waiting = is_paused && live.unread.is_some() && !is_stopped;
        if is_waiting && !std::mem::replace(&mut live.is_queued_for_room, true) {
            self.paused.push(id);
        }
    }

    /// Forgets everything but the settings where that is all worth remembering.
    fn retire(&mut self, id: DestinationId, now: &Now) {
        let Some(destination) = self.destinations.get_mut(&id) else {
            return;
        };
        let is_removed = destination.is_removed;
        if let Some(live) = &mut destination.live {
            let beyond = now.moment.now.after(limits::HORIZON);
            if live.unread.is_some_and(|at| at > beyond) {
                live.unread = None;
            }
            let flights = live.slots + live.giving_up + live.remembered;
            let is_gone = is_removed && flights == 0;
            if !is_gone && !live.is_idle(now) {
                return;
            }
            for (key, _) in std::mem::take(&mut live.applied) {
                self.in_flight.forget(key);
            }
            self.rows.replace(live.counted, (0, true));
            self.horizon.replace(id, live.look, Look::default());
            destination.live = None;
        }
        if is_removed {
            self.destinations.remove(&id);
        }
    }
}

/// How many rows are worth reading now, and which.
fn want(destination: &Destination, gate: Gate, now: &Now) -> Option<(usize, Wanted)> {
    let live = destination.live.as_ref()?;
    let is_early = live.read_after.is_some_and(|at| at > now.instant);
    if live.asked.is_some() || is_early || destination.is_removed {
        return None;
    }
    let max = destination.settings.max_in_flight.max(1);
    let most = max.saturating_mul(limits::LOADED_PER_SLOT);
    if live.remembered > most.max(limits::VIEW_LAG) {
        return None;
    }
    if let Some(worthwhile) = destination.worthwhile_rows(gate, now)
        && live.is_behind(&destination.due_by(now))
        && live.loaded.len() <= worthwhile / 2
    {
        let more = worthwhile.saturating_sub(live.loaded.len());
        return Some((more, Wanted::All));
    }
    if let Gate::Beside(_) = gate
        && live.has_unread_new
        && live.loaded.first_new(&destination.due_by(now)).is_none()
    {
        return Some((limits::LOADED_PER_SLOT, Wanted::New));
    }
    let is_overdue = live.is_overdue(now.moment.certain);
    is_overdue.then_some((most, Wanted::Expired))
}

/// When a destination is looked at next.
fn look(destination: &Destination, gate: Gate, now: &Now) -> Look {
    let Some(live) = destination.live.as_ref() else {
        return Look::default();
    };
    let by = destination.due_by(now);
    let present = now.moment.now;
    let is_overdue = live.asked.is_some() || live.is_overdue(now.moment.certain);
    let unread_deadline = live.unread_deadline.filter(|_| !is_overdue);
    let loaded_at = live.loaded.next_due_at(&by, &live.busy);
    let alarms = [
        live.breaker.probe_at().filter(|_| !destination.is_removed),
        live.asked.map(|asked| asked.at + limits::LOAD_PATIENCE),
        live.read_after.filter(|at| *at > now.instant),
        gate_at(live, gate, now),
        live.loaded.deadline_at().map(|at| now.instant_past(at)),
        unread_deadline.map(|at| now.instant_past(at)),
        now.settles_at().filter(|_| !live.loaded.is_empty()),
    ];
    let alarm = alarms.into_iter().flatten().min().map(|at| later(at, now));
    let due = live.unread.into_iter().chain(loaded_at);
    let due = due.filter(|at| *at > present).min();
    Look { due, alarm }
}

/// A look that was due before now is due after a pause.
fn later(at: Instant, now: &Now) -> Instant {
    if at > now.instant {
        at
    } else {
        now.instant + LEAST_PAUSE
    }
}

/// When a gate opens that something waits for; reading begins a little earlier.
fn gate_at(live: &Live, gate: Gate, now: &Now) -> Option<Instant> {
    let Gate::At(at) = gate else {
        return None;
    };
    let is_waiting = !live.loaded.is_empty() || live.unread.is_some_and(|d| d <= now.moment.now);
    let read_at = at
        .checked_sub(limits::KEEP_LOADED)
        .filter(|read| *read > now.instant);
    is_waiting.then(|| read_at.unwrap_or(at))
}
