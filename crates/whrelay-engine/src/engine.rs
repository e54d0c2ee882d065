//! The engine: inputs go in, actions come out, and nothing else happens.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use whrelay_core::delivery::DestinationId;
use whrelay_core::pace::Pace;
use whrelay_core::queue::Offset;
use whrelay_core::time::Timestamp;

use crate::action::Action;
use crate::destination::{Destination, Live, breaker, rules};
use crate::horizon::Horizon;
use crate::in_flight::InFlight;
use crate::input::{Input, Now, Settings};
use crate::limits;
use crate::loads::Rows;
use crate::slots::{Caps, Slots};
use crate::turns::Turns;

/// Decides everything that may happen next, for every destination of a node.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(crate) caps: Caps,
    pub(crate) destinations: BTreeMap<DestinationId, Destination>,
    pub(crate) horizon: Horizon,
    pub(crate) in_flight: InFlight,
    pub(crate) slots: Slots,
    pub(crate) turns: Turns,
    pub(crate) rows: Rows,
    pub(crate) actions: VecDeque<Action>,
    /// Destinations that wait for the end of a pause of the node.
    pub(crate) paused: Vec<DestinationId>,
    pub(crate) is_paused: bool,
    pub(crate) is_stopped: bool,
    /// The time when the process started.
    pub(crate) began_at: Timestamp,
    /// What the view has applied.
    pub(crate) applied_upto: Offset,
    /// The newest position of which the engine may know what followed.
    pub(crate) newest: Offset,
}

impl Engine {
    /// What an idle destination takes in memory, apart from the map's own overhead and the pauses
    /// of a listed schedule.
    pub const BYTES_OF_AN_IDLE_DESTINATION: usize =
        size_of::<Destination>() + size_of::<DestinationId>();

    /// An engine without destinations. The process starts at `now`.
    pub fn new(caps: Caps, now: Now) -> Self {
        Self {
            caps,
            destinations: BTreeMap::new(),
            horizon: Horizon::new(),
            in_flight: InFlight::default(),
            slots: Slots::new(caps),
            turns: Turns::default(),
            rows: Rows::default(),
            actions: VecDeque::new(),
            paused: Vec::new(),
            is_paused: false,
            is_stopped: false,
            began_at: now.moment.now,
            applied_upto: Offset::default(),
            newest: Offset::default(),
        }
    }

    /// Learns something. Inputs may be late, repeated or in any order.
    pub fn handle(&mut self, input: Input, now: Now) {
        let now = &now;
        match input {
            Input::Destination { id, settings } => self.configure(id, settings, now),
            Input::DueDestinations {
                token,
                page,
                applied,
            } => {
                self.applied(applied, now);
                self.due_destinations(token, page, now);
            }
            Input::DestinationsFailed { token } => self.horizon.failed(token, now),
            Input::Added {
                destination,
                delivery,
                at,
            } => self.added(destination, delivery, at, now),
            Input::Due { destination, at } => self.due(destination, at, true, now),
            Input::Loaded {
                destination,
                token,
                page,
                applied,
            } => self.loaded(destination, token, &page, applied, now),
            Input::LoadFailed { destination, token } => self.load_failed(destination, token, now),
            Input::Finished {
                token,
                ended,
                jitter,
            } => self.finished(token, ended, jitter, now),
            Input::Appended { token, at } => self.appended(token, at, now),
            Input::AppendFailed { token } => self.append_failed(token, now),
            Input::Applied { upto } => self.applied(upto, now),
            Input::Withdrawn {
                destination,
                key,
                at,
            } => self.withdraw(destination, key, at, now),
            Input::Probed {
                destination,
                result,
            } => {
                if let Some(live) = self.live_of(destination) {
                    let sign = live.breaker.on_probe(result, now.instant);
                    self.follow_sign(destination, sign, now);
                    self.settle(destination, now);
                }
            }
            Input::Pause(is_paused) => self.pause(is_paused, now),
            Input::Stop => self.stop(),
        }
    }

    /// The next thing to do. `None` if nothing is to be done before [`Engine::next_wake`] or the
    /// next input.
    pub fn poll_action(&mut self, now: Now) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            if let Some(token) = self.in_flight.first_overdue(now.instant) {
                self.overdue(token, &now);
            } else if self.is_stopped {
                return None;
            } else if let Some(id) = self.horizon.first(&now) {
                self.settle(id, &now);
            } else if let Some(id) = self.rows.next_with_room(self.caps.loaded) {
                if let Some(live) = self.live_of(id) {
                    live.is_queued_for_room = false;
                }
                self.settle(id, &now);
            } else {
                let start = self.poll_start(&now);
                if start.is_none() && !self.actions.is_empty() {
                    continue;
                }
                let in_flight = &mut self.in_flight;
                return start.or_else(|| self.horizon.poll(&now, || in_flight.token()));
            }
        }
    }

    /// When to call [`Engine::poll_action`] again if nothing else happens: within a second, since
    /// the machine may sleep.
    pub fn next_wake(&self, now: Now) -> Instant {
        let rearm = now.instant + limits::REARM;
        let overdue_at = self.in_flight.next_overdue_at();
        let wake = overdue_at.map_or(rearm, |at| at.min(rearm));
        if self.is_stopped {
            return wake;
        }
        wake.min(self.horizon.next_at(&now)).max(now.instant)
    }

    /// Whether everything that was started is on disk.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.actions.is_empty()
    }

    /// Deliveries loaded or being read.
    pub fn loaded_rows(&self) -> usize {
        self.rows.len()
    }

    /// Destinations of which more is known than their settings. Counts them one by one.
    pub fn live_destinations(&self) -> usize {
        let all = self.destinations.values();
        all.filter(|destination| destination.live.is_some()).count()
    }

    pub(crate) fn live_of(&mut self, id: DestinationId) -> Option<&mut Live> {
        self.destinations.get_mut(&id)?.live.as_deref_mut()
    }

    fn configure(&mut self, id: DestinationId, settings: Option<Settings>, now: &Now) {
        match (settings, self.destinations.get_mut(&id)) {
            (Some(settings), None) => {
                let mut destination = Destination::new(checked(settings, now), now);
                if self.horizon.is_past() {
                    destination.live(now).note_due(Timestamp::EPOCH);
                }
                self.destinations.insert(id, destination);
            }
            (Some(settings), Some(destination)) => {
                change(destination, checked(settings, now), now);
                self.forget_applied_unless_read(id, now);
            }
            (None, Some(destination)) => {
                destination.is_removed = true;
                let by = destination.due_by(now);
                destination.live(now).unload(&by);
            }
            (None, None) => return,
        }
        self.settle(id, now);
    }

    fn pause(&mut self, is_paused: bool, now: &Now) {
        self.is_paused = is_paused;
        if is_paused {
            return;
        }
        for id in std::mem::take(&mut self.paused) {
            if let Some(live) = self.live_of(id) {
                live.is_queued_for_room = false;
            }
            self.settle(id, now);
        }
    }

    fn stop(&mut self) {
        self.is_stopped = true;
        self.actions.retain(|action| match action {
            Action::Append(_) | Action::Endpoint { .. } => true,
            Action::LoadDestinations { .. }
            | Action::Load(_)
            | Action::Start { .. }
            | Action::Probe { .. } => false,
        });
    }
}

/// A return in the future was written by a wrong clock.
fn checked(settings: Settings, now: &Now) -> Settings {
    let back_since = settings.back_since.filter(|at| *at <= now.moment.now);
    Settings {
        back_since,
        ..settings
    }
}

fn change(destination: &mut Destination, settings: Settings, now: &Now) {
    let old = &destination.settings;
    let is_moved = old.endpoint_id != settings.endpoint_id;
    let settings = Settings {
        back_since: old.back_since.max(settings.back_since),
        endpoint: match is_moved {
            true => settings.endpoint,
            false => old.endpoint,
        },
        ..settings
    };
    let was_removed = std::mem::take(&mut destination.is_removed);
    if *old == settings && !was_removed {
        return;
    }
    let is_rate_new = old.rate != settings.rate;
    let is_order_new = old.order != settings.order;
    destination.settings = settings;
    let settings = destination.settings.clone();
    let rate = settings.rate;
    let by = destination.due_by(now);
    let live = destination.live(now);
    match is_moved {
        true => live.breaker = breaker(&settings, now),
        false => live.breaker.configure(rules(&settings), now.instant),
    }
    if is_rate_new {
        live.pace = rate.map(Pace::new);
    }
    live.unload(&by);
    live.note_due(Timestamp::EPOCH);
    if is_order_new {
        // Its rows are those of the old order: among them the first of the new one may be missing.
        live.read_again(now);
    }
}
