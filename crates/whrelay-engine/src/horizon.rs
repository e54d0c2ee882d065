//! When to look at which destination: those due within a minute, and pauses within the process.
//! Everything later stays in the view, which is asked again and again by page.

use std::collections::BTreeSet;
use std::time::Instant;

use whrelay_core::delivery::DestinationId;
use whrelay_core::queue::DueCursor;
use whrelay_core::time::Timestamp;

use crate::input::Now;
use crate::limits;
use crate::{Action, Token};

/// When one destination is looked at next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// By the time of schedules.
    pub(crate) due: Option<Timestamp>,
    /// By the monotonic clock.
    pub(crate) alarm: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Poll {
    At(Instant),
    Asked {
        token: Token,
        at: Instant,
        until: Timestamp,
        after: Option<DueCursor>,
    },
}

/// The looks of all destinations that have one, and the poll that finds the others.
#[derive(Clone, Debug)]
pub(crate) struct Horizon {
    due: BTreeSet<(Timestamp, DestinationId)>,
    alarms: BTreeSet<(Instant, DestinationId)>,
    /// `None` before the first poll, which is due at once.
    poll: Option<Poll>,
    /// A destination was added: the view is asked once more.
    is_stale: bool,
    /// Whether polls have found everything that was due when they ended.
    is_complete: bool,
}

impl Horizon {
    pub(crate) fn new() -> Self {
        Self {
            due: BTreeSet::new(),
            alarms: BTreeSet::new(),
            poll: None,
            is_stale: false,
            is_complete: false,
        }
    }

    pub(crate) fn replace(&mut self, id: DestinationId, old: Look, new: Look) {
        if let Some(at) = old.due.filter(|_| old.due != new.due) {
            self.due.remove(&(at, id));
        }
        if let Some(at) = old.alarm.filter(|_| old.alarm != new.alarm) {
            self.alarms.remove(&(at, id));
        }
        self.due.extend(new.due.map(|at| (at, id)));
        self.alarms.extend(new.alarm.map(|at| (at, id)));
    }

    /// A destination whose look has come, if there is one.
    pub(crate) fn first(&self, now: &Now) -> Option<DestinationId> {
        let due = self.due.first().filter(|(at, _)| *at <= now.moment.now);
        let alarm = self.alarms.first().filter(|(at, _)| *at <= now.instant);
        due.map(|(_, id)| *id).or(alarm.map(|(_, id)| *id))
    }

    /// When [`Horizon::first`] or a poll has something next.
    pub(crate) fn next_at(&self, now: &Now) -> Instant {
        let due = self.due.first().map(|(at, _)| now.instant_of(*at));
        let alarm = self.alarms.first().map(|(at, _)| *at);
        let poll = match self.poll {
            None => now.instant,
            Some(Poll::At(at) | Poll::Asked { at, .. }) => at,
        };
        due.into_iter().chain(alarm).fold(poll, Instant::min)
    }

    /// Whether every destination that has something due is known.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Whether the polls so far have missed a destination that is added now, so that it has to be
    /// read by itself. While a poll is running, another follows it instead.
    pub(crate) fn is_past(&mut self) -> bool {
        match self.poll {
            None => false,
            Some(Poll::At(_)) => true,
            Some(Poll::Asked { .. }) => {
                self.is_stale = true;
                self.is_complete = false;
                false
            }
        }
    }

    /// The poll, where one is due. An unanswered one is repeated.
    pub(crate) fn poll(&mut self, now: &Now, token: impl FnOnce() -> Token) -> Option<Action> {
        let (until, after) = match self.poll {
            None => (now.moment.now.after(limits::HORIZON), None),
            Some(Poll::At(at) | Poll::Asked { at, .. }) if at > now.instant => return None,
            Some(Poll::At(_)) => (now.moment.now.after(limits::HORIZON), None),
            Some(Poll::Asked { until, after, .. }) => (until, after),
        };
        if after.is_none() {
            self.is_stale = false;
        }
        Some(self.ask(token(), until, after, now))
    }

    /// Takes note of a page. Answers whether it was asked for, and the next page's action.
    pub(crate) fn answered(
        &mut self,
        answered: Token,
        next: Option<DueCursor>,
        now: &Now,
        token: impl FnOnce() -> Token,
    ) -> (bool, Option<Action>) {
        let Some(Poll::Asked {
            token: asked,
            until,
            after,
            ..
        }) = self.poll
        else {
            return (false, None);
        };
        if asked != answered {
            return (false, None);
        }
        // A page that does not lead on would be read for ever.
        if let Some(next) = next.filter(|next| after.is_none_or(|after| *next > after)) {
            return (true, Some(self.ask(token(), until, Some(next), now)));
        }
        self.is_complete = !self.is_stale;
        self.poll = (!self.is_stale).then(|| Poll::At(now.instant + limits::POLL_EVERY));
        (true, None)
    }

    /// A page could not be read: it is asked for again.
    pub(crate) fn failed(&mut self, failed: Token, now: &Now) {
        if let Some(Poll::Asked { token, at, .. }) = &mut self.poll
            && *token == failed
        {
            *at = now.instant + limits::LOAD_AGAIN;
        }
    }

    fn ask(
        &mut self,
        token: Token,
        until: Timestamp,
        after: Option<DueCursor>,
        now: &Now,
    ) -> Action {
        self.poll = Some(Poll::Asked {
            token,
            at: now.instant + limits::LOAD_PATIENCE,
            until,
            after,
        });
        Action::LoadDestinations {
            token,
            until,
            after,
            max: limits::DESTINATIONS_PAGE,
        }
    }
}
