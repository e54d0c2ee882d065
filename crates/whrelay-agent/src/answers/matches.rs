//! What a filter lets through: events and attempts, from the store's indexes. It must not know what is
//! done with them.

use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{Attempt, Delivery, State, current};
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::time::Timestamp;
use whrelay_store::{Begin, LoggedAttempt, Search, StoreError};

use super::{CHUNK, Destinations, Local};
use crate::control::Filter;
use crate::lines::{EventLine, Placed};

/// An event that a filter wants.
pub(super) struct Matched {
    pub(super) seq: Seq,
    pub(super) event: Event,
    /// All its deliveries, as they are shown.
    pub(super) deliveries: Vec<Placed>,
    pub(super) line: EventLine,
}

/// What a filter's state, reason and target are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judge {
    /// The event, as it is shown.
    Event,
    /// Any of its deliveries that count: one may be dead while another waits.
    Delivery,
}

/// The states under which events are found of which a delivery is in one of those that a filter wants: an event
/// is found under the least finished of its deliveries'.
pub(super) fn states_of(filter: &Filter) -> Vec<State> {
    let last = filter.states().into_iter().max();
    let upto = State::ALL.into_iter().filter(|s| Some(*s) <= last);
    with_offline(upto.collect())
}

/// What waits for an endpoint that is offline is shown as stalled, and stored as it was.
fn with_offline(mut states: Vec<State>) -> Vec<State> {
    if states.contains(&State::Stalled) && !states.contains(&State::Queued) {
        states.push(State::Queued);
    }
    states
}

/// Events that a filter wants, some at a time.
pub(super) struct Matches<'a> {
    local: &'a Local,
    filter: &'a Filter,
    judge: Judge,
    /// None where nothing can be found any more.
    search: Option<Search>,
    begin: Begin,
    after: Option<EventId>,
}

impl<'a> Matches<'a> {
    pub(super) fn new(local: &'a Local, filter: &'a Filter, begin: Begin, judge: Judge) -> Self {
        let states = match judge {
            Judge::Event => with_offline(filter.states()),
            Judge::Delivery => states_of(filter),
        };
        let wanted = filter.wants_bucket(local.bucket().name.as_str());
        let search = Search {
            bucket: local.bucket().id,
            states,
            since: filter.since.map(Timestamp::from_micros),
            until: filter.until.map(Timestamp::from_micros),
        };
        Self {
            local,
            filter,
            judge,
            search: wanted.then_some(search),
            begin,
            after: None,
        }
    }

    /// The next of them, maybe none; `None` when there are no more.
    pub(super) async fn some(
        &mut self,
        known: &Destinations,
    ) -> Result<Option<Vec<Matched>>, StoreError> {
        let Some(search) = &self.search else {
            return Ok(None);
        };
        let store = self.local.store();
        let found = match self.filter.event.as_deref().map(str::parse::<EventId>) {
            Some(Ok(id)) => {
                let place = store.journal.find_event(id).await?;
                self.search = None;
                place.map(|(_, seq)| (id, seq)).into_iter().collect()
            }
            Some(Err(_)) => return Ok(None),
            None => {
                store
                    .view
                    .search(search, self.begin, self.after, CHUNK)
                    .await?
            }
        };
        match found.last() {
            Some((last, _)) => self.after = Some(*last),
            None => return Ok(None),
        }
        let mut matched = Vec::new();
        for (_, seq) in found {
            matched.extend(self.look(seq, known).await?);
        }
        Ok(Some(matched))
    }

    async fn look(&self, seq: Seq, known: &Destinations) -> Result<Option<Matched>, StoreError> {
        let local = self.local;
        // What is damaged is set aside, and the rest is shown.
        // Nobody who looks for events asks what they said, and some are large.
        let (mut event, has_body) = match local.store().journal.head_at(local.bucket(), seq).await {
            Err(StoreError::Damaged(_)) | Ok(None) => return Ok(None),
            Err(error) => return Err(error),
            Ok(Some(found)) => found,
        };
        let deliveries = match local.shown_deliveries(seq, known).await {
            Err(StoreError::Damaged(_)) => return Ok(None),
            other => other?,
        };
        let mut line = EventLine::new(&event, &deliveries);
        line.body_removed = !has_body;
        event.removed_body = event.removed_body.filter(|_| !has_body);
        let in_time = self.filter.wants_time(event.received_at);
        let matched = Matched {
            seq,
            event,
            deliveries,
            line,
        };
        let wanted = match self.judge {
            Judge::Event => self.filter.wants_event_line(&matched.line),
            Judge::Delivery => !matched.current(self.filter, known).is_empty(),
        };
        let wanted = in_time && wanted && local.wants_kind(self.filter, seq).await?;
        Ok(wanted.then_some(matched))
    }
}

impl Matched {
    /// The deliveries that the event's state is about, where the filter is about them.
    pub(super) fn current(&self, filter: &Filter, known: &Destinations) -> Vec<Delivery> {
        let all: Vec<_> = self
            .deliveries
            .iter()
            .map(|placed| placed.delivery.clone())
            .collect();
        let wanted = |delivery: &&Delivery| {
            filter.wants_delivery(delivery, known.get(&delivery.destination))
        };
        current(&all).filter(wanted).cloned().collect()
    }
}

impl Local {
    /// The newest attempts that a filter wants, newest first.
    pub(super) async fn newest_attempts(
        &self,
        filter: &Filter,
        last: usize,
        known: &Destinations,
    ) -> Result<Vec<LoggedAttempt>, StoreError> {
        let wanted = |logged: &LoggedAttempt| {
            let attempt: &Attempt = &logged.attempt;
            filter.wants_attempt(attempt, known.get(&attempt.destination))
        };
        if let Some(event) = &filter.event {
            let Ok(id) = event.parse() else {
                return Ok(Vec::new());
            };
            let Some((_, seq)) = self.store().journal.find_event(id).await? else {
                return Ok(Vec::new());
            };
            let mut all = self.attempts_at(seq).await?;
            let is_kind = self.wants_kind(filter, seq).await?;
            all.retain(|logged| is_kind && wanted(logged));
            all.truncate(last);
            return Ok(all);
        }
        let bound = |at: Option<i64>, none| Timestamp::from_micros(at.unwrap_or(none));
        let bounds = (bound(filter.since, i64::MIN), bound(filter.until, i64::MAX));
        let (states, mut found, mut after) = (filter.states(), Vec::new(), None);
        while found.len() < last {
            let chunk = self
                .store()
                .view
                .attempts_by_start(&states, bounds, after, CHUNK)
                .await?;
            let Some(oldest) = chunk.last() else { break };
            after = Some((oldest.attempt.at, oldest.place));
            for logged in chunk.into_iter().filter(wanted) {
                if self.wants_kind(filter, logged.attempt.key.seq).await? {
                    found.push(logged);
                }
            }
        }
        found.truncate(last);
        Ok(found)
    }

    /// All attempts of an event, newest first.
    pub(super) async fn attempts_at(&self, seq: Seq) -> Result<Vec<LoggedAttempt>, StoreError> {
        let mut all = Vec::new();
        for delivery in self
            .store()
            .view
            .deliveries_of(self.bucket().id, seq)
            .await?
        {
            all.extend(
                self.store()
                    .view
                    .attempts_of(delivery.key, usize::MAX)
                    .await?,
            );
        }
        all.sort_by_key(|logged| std::cmp::Reverse((logged.attempt.at, logged.place)));
        Ok(all)
    }
}
