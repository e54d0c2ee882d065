//! The state of one destination. An idle one is its settings and nothing else.

use std::time::Instant;

use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::DeliveryKey;
use whrelay_core::destination::EndpointState;
use whrelay_core::order::Order;
use whrelay_core::pace::{Pace, Rate};
use whrelay_core::queue::{DueBy, Offset, Wanted};
use whrelay_core::retry::{RetryPolicy, Schedule};
use whrelay_core::time::Timestamp;

use crate::Token;
use crate::breaker::{Breaker, Opens, Rules};
use crate::horizon::Look;
use crate::input::{Now, Settings};
use crate::limits;
use crate::loaded::{Busy, Loaded};
use crate::turns::{Credit, Queued};

/// One destination.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) settings: Settings,
    /// It is no longer configured; attempts in flight are still recorded.
    pub(crate) is_removed: bool,
    /// What is known of it beyond its settings, where that is anything.
    pub(crate) live: Option<Box<Live>>,
}

/// A read of the view that has not been answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) token: Token,
    pub(crate) at: Instant,
    /// Rows asked for.
    pub(crate) max: usize,
    /// Rows expected that are new: they count as loaded.
    pub(crate) fresh: usize,
    pub(crate) wanted: Wanted,
}

/// What is known of a destination that is not idle.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) loaded: Loaded,
    pub(crate) breaker: Breaker,
    pub(crate) pace: Option<Pace>,
    pub(crate) busy: Busy,
    /// Attempts that take a slot.
    pub(crate) slots: usize,
    /// Those of them that were tried before.
    pub(crate) retries: usize,
    /// Deliveries that are given up and not on disk yet.
    pub(crate) giving_up: usize,
    /// Deliveries remembered until the view has applied them.
    pub(crate) remembered: usize,
    /// Deliveries that the view applied while a read was running, which may show them as before,
    /// with the buckets whose order waits for them.
    pub(crate) applied: Vec<(DeliveryKey, Option<BucketId>)>,
    pub(crate) asked: Option<Asked>,
    /// No read begins before this.
    pub(crate) read_after: Option<Instant>,
    /// When the earliest delivery is due that is not loaded.
    pub(crate) unread: Option<Timestamp>,
    /// The same of deliveries that were added while a read was running.
    pub(crate) unread_later: Option<Timestamp>,
    /// The position of the newest delivery that was added.
    pub(crate) added: Option<Offset>,
    /// A page shows all deliveries that were added and are not loaded if the view had applied this.
    pub(crate) unshown: Option<Offset>,
    /// The earliest deadline of deliveries that are not loaded.
    pub(crate) unread_deadline: Option<Timestamp>,
    /// Whether new deliveries may be due that are not loaded.
    pub(crate) has_unread_new: bool,
    /// Whether new deliveries are loaded that others come before which are not.
    pub(crate) is_ahead: bool,
    /// Whether the last read left deliveries out that start in order.
    pub(crate) has_more: bool,
    pub(crate) credit: Credit,
    pub(crate) look: Look,
    /// What it counts among the rows loaded of all destinations, and whether as a healthy one.
    pub(crate) counted: (usize, bool),
    /// Whether it is queued for room among loaded rows, or for the end of a pause.
    pub(crate) is_queued_for_room: bool,
}

/// Whether deliveries of a destination may start, apart from being due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// They may, and this many may be in flight.
    Open(usize),
    /// All of this many slots are taken by retries: one new delivery may start beside them.
    Beside(usize),
    /// All of this many slots are taken.
    Full(usize),
    /// They may from then on.
    At(Instant),
    /// Not before something else happens.
    Shut,
}

impl Destination {
    pub(crate) fn new(settings: Settings, now: &Now) -> Self {
        let mut destination = Self {
            settings,
            is_removed: false,
            live: None,
        };
        if destination.settings.endpoint != EndpointState::Online {
            let live = Live::new(&destination.settings, now);
            destination.live = Some(Box::new(live));
        }
        destination
    }

    pub(crate) fn live(&mut self, now: &Now) -> &mut Live {
        let settings = &self.settings;
        let live = self.live.get_or_insert_with(|| {
            let online = Settings {
                endpoint: EndpointState::Online,
                ..settings.clone()
            };
            Box::new(Live::new(&online, now))
        });
        &mut *live
    }

    /// Whether deliveries may start. `is_paused` is that of the node.
    pub(crate) fn gate(&self, is_paused: bool, now: &Now) -> Gate {
        let Some(live) = &self.live else {
            return Gate::Shut;
        };
        if is_paused || self.settings.paused || self.is_removed {
            return Gate::Shut;
        }
        let paced = live.pace.and_then(|pace| pace.next_at(now.instant));
        match live.breaker.opens(live.slots, now.instant) {
            Opens::Later => Gate::Shut,
            Opens::At(at) => Gate::At(at),
            Opens::Now(window) => {
                let most = self.settings.max_in_flight.max(1);
                let window = window.min(most);
                let is_held_up =
                    live.breaker.may_hang() && live.slots == live.retries && live.slots < most;
                match (live.slots < window, self.settings.order) {
                    (true, _) => paced.map_or(Gate::Open(window), Gate::At),
                    (false, Order::Arrival) if is_held_up => {
                        paced.map_or(Gate::Beside(window), Gate::At)
                    }
                    (false, Order::Arrival | Order::Fifo) => Gate::Full(window),
                }
            }
        }
    }

    /// The time by which its deliveries count as due.
    pub(crate) fn due_by(&self, now: &Now) -> DueBy {
        now.due_by(self.settings.back_since)
    }

    /// Rows worth having in memory, if reading is worthwhile at all.
    pub(crate) fn worthwhile_rows(&self, gate: Gate, now: &Now) -> Option<usize> {
        let window = match gate {
            Gate::Open(window) | Gate::Beside(window) | Gate::Full(window) => window,
            Gate::At(at) if at <= now.later(limits::KEEP_LOADED) => self.settings.max_in_flight,
            Gate::At(_) | Gate::Shut => return None,
        };
        let is_slow = |rate: Rate| rate.interval() > limits::KEEP_LOADED;
        let window = match self.settings.rate {
            Some(rate) if is_slow(rate) => 1,
            Some(_) | None => window.clamp(1, self.settings.max_in_flight.max(1)),
        };
        Some(window.saturating_mul(limits::LOADED_PER_SLOT))
    }
}

/// What the breaker has to know of the settings.
pub(crate) fn rules(settings: &Settings) -> Rules {
    let RetryPolicy {
        max_attempts,
        schedule,
        ..
    } = &settings.policy;
    let is_listed = match schedule {
        Schedule::Listed(_) => true,
        Schedule::Seconds | Schedule::Medium | Schedule::Long => false,
    };
    Rules {
        max_in_flight: settings.max_in_flight,
        probing: settings.probing,
        spends_attempts: *max_attempts == 0 && !is_listed,
    }
}

/// The breaker of an endpoint that is new to the engine.
pub(crate) fn breaker(settings: &Settings, now: &Now) -> Breaker {
    let rules = rules(settings);
    match settings.endpoint {
        EndpointState::Online => Breaker::new(rules),
        EndpointState::Failing => Breaker::failing(rules, now.instant),
        EndpointState::Offline => Breaker::doubtful(rules, now.instant),
    }
}

impl Live {
    fn new(settings: &Settings, now: &Now) -> Self {
        Self {
            loaded: Loaded::default(),
            breaker: breaker(settings, now),
            pace: settings.rate.map(Pace::new),
            busy: Busy::new(),
            slots: 0,
            retries: 0,
            giving_up: 0,
            remembered: 0,
            applied: Vec::new(),
            asked: None,
            read_after: None,
            unread: None,
            unread_later: None,
            unread_deadline: None,
            added: None,
            unshown: None,
            has_unread_new: true,
            is_ahead: false,
            has_more: false,
            credit: Credit::default(),
            look: Look::default(),
            counted: (0, true),
            is_queued_for_room: false,
        }
    }

    /// Something that is not loaded is due at `at`.
    pub(crate) fn note_due(&mut self, at: Timestamp) {
        let unread = match self.asked {
            Some(_) => &mut self.unread_later,
            None => &mut self.unread,
        };
        *unread = Some(unread.map_or(at, |known| known.min(at)));
        self.has_unread_new = true;
    }

    /// Something that is not loaded has its deadline at `at`.
    pub(crate) fn note_deadline(&mut self, at: Timestamp) {
        let known = self.unread_deadline;
        self.unread_deadline = Some(known.map_or(at, |known| known.min(at)));
    }

    /// Forgets what is loaded. It is read again.
    pub(crate) fn unload(&mut self, by: &DueBy) {
        if let Some((due_at, deadline_at)) = self.loaded.clear(by, &self.busy) {
            self.unshown = self.added;
            self.has_more = false;
            self.note_due(due_at);
            self.note_deadline(deadline_at);
        }
    }

    /// Rows that it has or has asked for.
    pub(crate) fn rows(&self) -> usize {
        self.loaded.len() + self.asked.map_or(0, |asked| asked.fresh)
    }

    /// Whether something is due that is not loaded.
    pub(crate) fn is_behind(&self, by: &DueBy) -> bool {
        self.unread.is_some_and(|at| at <= by.now)
    }

    /// Whether a deadline has passed of something that is not loaded.
    pub(crate) fn is_overdue(&self, certain: Timestamp) -> bool {
        self.unread_deadline.is_some_and(|at| at < certain)
    }

    /// Whether the settings are all that is worth remembering.
    pub(crate) fn is_idle(&self, now: &Now) -> bool {
        let Self {
            loaded,
            breaker,
            pace,
            busy,
            slots,
            retries: _,
            giving_up,
            remembered,
            applied,
            asked,
            read_after: _,
            unread,
            unread_later,
            added: _,
            unshown,
            unread_deadline: _,
            has_unread_new: _,
            is_ahead: _,
            has_more,
            credit,
            look: _,
            counted: _,
            is_queued_for_room,
        } = self;
        let is_paced = pace.is_some_and(|pace| pace.next_at(now.instant).is_some());
        let is_empty = loaded.is_empty() && busy.is_empty() && applied.is_empty();
        let is_read =
            asked.is_none() && unread.is_none() && unread_later.is_none() && unshown.is_none();
        is_empty
            && is_read
            && slots + giving_up + remembered == 0
            && breaker.is_new()
            && credit.queued == Queued::Out
            && !is_paced
            && !is_queued_for_room
            && !has_more
    }
}
