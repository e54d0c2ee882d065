//! Deliveries counted by what their last attempt came to. It must not read events unless a kind is asked for: there may
//! be a million.

use std::collections::HashMap;

use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{Cause, DeadReason, Delivery, State, current};
use whrelay_core::id::EventId;
use whrelay_core::time::Timestamp;
use whrelay_store::{Begin, Deliveries, LastAttempt, Search, StoreError};

use super::matches::states_of;
use super::{Destinations, Local, Out, Stop};
use crate::control::Filter;
use crate::lines::{GroupLine, Line};

/// Rows read in one transaction: a millisecond, so that others get their turn, and few enough to stay in a
/// processor's cache.
const ROWS: usize = 1024;
/// Where at least one of so many deliveries is in a wanted state, all are read in the order in which they lie
/// on disk: looking each up costs more.
const DENSE: u64 = 8;
/// Groups that are compared one by one before they are looked up: most deliveries are of one of a few.
const COMPARED: usize = 8;

impl Local {
    /// Deliveries that a filter is about, counted by what their last attempt came to, where, and why
    /// they were given up.
    pub(super) async fn groups(&self, filter: &Filter, out: &Out) -> Result<(), Stop> {
        let known = self.destinations().await?;
        let mut groups = Groups::default();
        let mut walk = Walk::new(self, filter).await?;
        while let Some(some) = walk.some().await? {
            groups.add(self, filter, &known, some).await?;
            if out.0.is_closed() {
                return Err(Stop::Gone);
            }
            tokio::task::yield_now().await;
        }
        for line in groups.into_lines() {
            out.line(Line::Group(line)).await?;
        }
        Ok(())
    }
}

/// Which deliveries are read, and how far that has come.
enum Next {
    /// All behind a place.
    After(Seq),
    /// Those of events that a search finds, behind one.
    Found(Search, Option<EventId>),
    /// Those of one event.
    Of(Seq),
    Nothing,
}

/// The deliveries among which those are that a filter is about, some at a time.
struct Walk<'a> {
    local: &'a Local,
    filter: &'a Filter,
    next: Next,
}

impl<'a> Walk<'a> {
    async fn new(local: &'a Local, filter: &'a Filter) -> Result<Self, StoreError> {
        let next = match filter.event.as_deref().map(str::parse::<EventId>) {
            _ if !filter.wants_bucket(local.bucket().name.as_str()) => Next::Nothing,
            Some(Ok(id)) => {
                let place = local.store().journal.find_event(id).await?;
                place.map_or(Next::Nothing, |(_, seq)| Next::Of(seq))
            }
            Some(Err(_)) => Next::Nothing,
            None => Self::all_or_found(local, filter).await?,
        };
        Ok(Self {
            local,
            filter,
            next,
        })
    }

    async fn all_or_found(local: &Local, filter: &Filter) -> Result<Next, StoreError> {
        let search = Search {
            bucket: local.bucket().id,
            states: states_of(filter),
            since: filter.since.map(Timestamp::from_micros),
            until: filter.until.map(Timestamp::from_micros),
        };
        if search.since.is_some() || search.until.is_some() {
            return Ok(Next::Found(search, None));
        }
        let (mut wanted, mut all) = (0u64, 0u64);
        for destination in local.store().catalog.destinations().await? {
            let counts = local.store().view.counts(destination.id).await?;
            for state in State::ALL {
                let count = match state {
                    State::Queued => counts.queued,
                    State::Stalled => counts.stalled,
                    State::Dead => counts.dead,
                    State::Sent => counts.sent,
                };
                all = all.saturating_add(count);
                if search.states.contains(&state) {
                    wanted = wanted.saturating_add(count);
                }
            }
        }
        Ok(match wanted.saturating_mul(DENSE) >= all {
            true => Next::After(Seq(0)),
            false => Next::Found(search, None),
        })
    }

    /// The next of them, maybe none; `None` when there are no more.
    async fn some(&mut self) -> Result<Option<Vec<Delivery>>, StoreError> {
        let (store, bucket) = (self.local.store(), self.local.bucket().id);
        let (found, next) = match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::Nothing => return Ok(None),
            Next::After(seq) => {
                let Deliveries { all, upto } =
                    store.view.deliveries_after(bucket, seq, ROWS).await?;
                (all, upto.map_or(Next::Nothing, Next::After))
            }
            Next::Of(seq) => (
                store.view.deliveries_of_all(bucket, &[seq]).await?.all,
                Next::Nothing,
            ),
            Next::Found(search, after) => {
                let found = store
                    .view
                    .search(&search, Begin::Oldest, after, ROWS)
                    .await?;
                let Some((last, _)) = found.last().copied() else {
                    return Ok(None);
                };
                let mut places: Vec<_> = found.into_iter().map(|(_, seq)| seq).collect();
                places.sort_unstable();
                let all = store.view.deliveries_of_all(bucket, &places).await?.all;
                (all, Next::Found(search, Some(last)))
            }
        };
        self.next = next;
        self.in_time(found).await.map(Some)
    }

    /// Those of events that were received in the filter's time and are of its kind, as far as these are given.
    async fn in_time(&self, found: Vec<Delivery>) -> Result<Vec<Delivery>, StoreError> {
        let filter = self.filter;
        if filter.since.is_none() && filter.until.is_none() && filter.kind.is_none() {
            return Ok(found);
        }
        let mut kept = Vec::with_capacity(found.len());
        for of_event in found.chunk_by(|a, b| a.key.seq == b.key.seq) {
            let first = &of_event[0];
            if self.is_in_time(first).await? && self.local.wants_kind(filter, first.key.seq).await?
            {
                kept.extend_from_slice(of_event);
            }
        }
        Ok(kept)
    }

    /// Ids are minted when their events are received, and say when to the millisecond: only where that is not
    /// enough is the event asked.
    async fn is_in_time(&self, delivery: &Delivery) -> Result<bool, StoreError> {
        let minted = delivery.event.minted_at();
        let first = self.filter.wants_time(minted);
        let last = Timestamp::from_micros(minted.as_micros().saturating_add(999));
        if first == self.filter.wants_time(last) && self.filter.event.is_none() {
            return Ok(first);
        }
        let store = self.local.store();
        match store
            .journal
            .head_at(self.local.bucket(), delivery.key.seq)
            .await
        {
            Err(StoreError::Damaged(_)) | Ok(None) => Ok(false),
            Err(error) => Err(error),
            Ok(Some((event, _))) => Ok(self.filter.wants_time(event.received_at)),
        }
    }
}

struct Group {
    line: GroupLine,
    newest: EventId,
}

impl Group {
    fn is(&self, delivery: &Delivery, last: Option<LastAttempt<'_>>, url: &str) -> bool {
        self.line.state == delivery.state
            && self.line.reason == delivery.reason
            && self.line.status == last.and_then(|last| last.status)
            && self.line.error.as_deref() == last.and_then(|last| last.error)
            && self.line.cause.as_deref() == cause(delivery, last)
            && self.line.url == url
    }
}

/// What its signature has to do with a delivery that was refused.
fn cause(delivery: &Delivery, last: Option<LastAttempt<'_>>) -> Option<&'static str> {
    let is_rejected = delivery.reason == Some(DeadReason::Rejected);
    let cause = last.and_then(|last| last.signature_cause);
    cause.filter(|_| is_rejected).map(Cause::as_str)
}

/// What was counted so far.
#[derive(Default)]
struct Groups {
    all: Vec<Group>,
    /// By what they have in common.
    places: HashMap<GroupLine, usize>,
}

impl Groups {
    /// Counts those that a filter is about. Of an event all are given, or none.
    async fn add(
        &mut self,
        local: &Local,
        filter: &Filter,
        known: &Destinations,
        mut all: Vec<Delivery>,
    ) -> Result<(), StoreError> {
        for delivery in all.iter_mut().filter(|d| !d.state.is_finished()) {
            // What waits for an endpoint that is offline has failed so far, tried or not.
            if local.runtime.is_offline(delivery.destination) {
                delivery.state = State::Stalled;
            }
        }
        let targets: HashMap<_, _> = known
            .iter()
            .map(|(id, to)| (*id, to.target.to_string()))
            .collect();
        let target = |delivery: &Delivery| -> &str {
            targets
                .get(&delivery.destination)
                .map_or("", String::as_str)
        };
        let mut wanted = Vec::with_capacity(all.len());
        for of_event in all.chunk_by(|a, b| a.key.seq == b.key.seq) {
            let fits = |d: &&Delivery| filter.wants_delivery(d, known.get(&d.destination));
            wanted.extend(current(of_event).filter(fits));
        }
        let places: Vec<_> = wanted.iter().map(|d| d.last_attempt).collect();
        local
            .store()
            .view
            .last_attempts(&places, &mut |index, last| {
                self.count(wanted[index], last, target(wanted[index]));
            })
            .await
    }

    fn count(&mut self, delivery: &Delivery, last: Option<LastAttempt<'_>>, target: &str) {
        let url = last.map_or(target, |last| last.url);
        let url = url.split('?').next().unwrap_or_default();
        let mut first = self.all.iter().take(COMPARED);
        let place = match first.position(|group| group.is(delivery, last, url)) {
            Some(place) => place,
            None => self.place(delivery, last, url),
        };
        let group = &mut self.all[place];
        group.line.count += 1;
        group.newest = group.newest.max(delivery.event);
    }

    fn place(&mut self, delivery: &Delivery, last: Option<LastAttempt<'_>>, url: &str) -> usize {
        let line = GroupLine {
            count: 0,
            state: delivery.state,
            reason: delivery.reason,
            status: last.and_then(|last| last.status),
            error: last.and_then(|last| last.error).map(str::to_owned),
            cause: cause(delivery, last).map(str::to_owned),
            url: url.to_owned(),
            newest: String::new(),
        };
        if let Some(place) = self.places.get(&line) {
            return *place;
        }
        let place = self.all.len();
        self.places.insert(line.clone(), place);
        let newest = delivery.event;
        self.all.push(Group { line, newest });
        place
    }

    /// The largest first.
    fn into_lines(mut self) -> Vec<GroupLine> {
        self.all.sort_by(|a, b| {
            let larger = b.line.count.cmp(&a.line.count);
            let url = a.line.url.cmp(&b.line.url);
            larger.then(url).then(b.newest.cmp(&a.newest))
        });
        let line = |Group { line, newest }: Group| GroupLine {
            newest: newest.to_string(),
            ..line
        };
        self.all.into_iter().map(line).collect()
    }
}
