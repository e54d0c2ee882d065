//! Events by state and age: an index with one row for each event that has deliveries, so that a search
//! meets only what it is for. It must not know what is done with what is found.

use redb::ReadTransaction;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{DeliveryKey, State};
use whrelay_core::id::EventId;
use whrelay_core::time::Timestamp;

use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::tables::EVENT_STATES;
use crate::tx::{Tx, state_key};

/// Which events are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// Of this bucket.
    pub bucket: BucketId,
    /// In one of these states.
    pub states: Vec<State>,
    /// Received from then on, to the millisecond.
    pub since: Option<Timestamp>,
    /// Received until then, to the millisecond.
    pub until: Option<Timestamp>,
}

/// At which end a search begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The oldest come first.
    Oldest,
    /// The newest come first.
    Newest,
}

/// An event that a search has found, by its id and its place.
pub type Found = (EventId, Seq);

impl RedbStore {
    /// Events that a search finds, by age, up to `max`; those beyond `after` where one is given. Where
    /// a delivery is damaged its event may be found under a state that it had before.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn search(
        &self,
        search: &Search,
        begin: Begin,
        after: Option<EventId>,
        max: usize,
    ) -> Result<Vec<Found>, StoreError> {
        self.read(|tx| find(tx, search, begin, after, max))
    }

    /// When the oldest event of a bucket that waits was received, to the millisecond.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn oldest_waiting(&self, bucket: BucketId) -> Result<Option<Timestamp>, StoreError> {
        let search = Search {
            bucket,
            states: vec![State::Queued, State::Stalled],
            since: None,
            until: None,
        };
        let oldest = self.search(&search, Begin::Oldest, None, 1)?;
        Ok(oldest.first().map(|(id, _)| id.minted_at()))
    }
}

fn find(
    tx: &ReadTransaction,
    search: &Search,
    begin: Begin,
    after: Option<EventId>,
    max: usize,
) -> Result<Vec<Found>, StoreError> {
    let table = tx.open_table(EVENT_STATES)?;
    let (mut first, mut last) = ([0; 16], [u8::MAX; 16]);
    if let Some(since) = search.since {
        first = EventId::from_parts(since, 0).to_bytes();
    }
    if let Some(until) = search.until {
        last = EventId::from_parts(until, u128::MAX).to_bytes();
    }
    let after = after.map(EventId::to_bytes);
    match (begin, after) {
        (Begin::Oldest, Some(after)) => first = first.max(after),
        (Begin::Newest, Some(after)) => last = last.min(after),
        (_, None) => {}
    }
    let mut found = Vec::new();
    for state in &search.states {
        let state = state_key(*state);
        if first > last {
            break;
        }
        let rows =
            table.range((search.bucket.0, state, &first)..=(search.bucket.0, state, &last))?;
        let row = |row: Result<_, redb::StorageError>| {
            let (key, place): (redb::AccessGuard<'_, (u32, u8, &[u8; 16])>, _) = row?;
            let place: redb::AccessGuard<'_, u64> = place;
            Ok((*key.value().2, Seq(place.value())))
        };
        let beyond = |row: &Result<([u8; 16], Seq), StoreError>| {
            row.as_ref().map_or(true, |(id, _)| Some(*id) != after)
        };
        let some: Result<Vec<_>, StoreError> = match begin {
            Begin::Oldest => rows.map(row).filter(beyond).take(max).collect(),
            Begin::Newest => rows.rev().map(row).filter(beyond).take(max).collect(),
        };
        found.extend(some?);
    }
    found.sort_unstable();
    if begin == Begin::Newest {
        found.reverse();
    }
    found.truncate(max);
    let named = |(id, seq)| (EventId::from_bytes(id), seq);
    Ok(found.into_iter().map(named).collect())
}

/// An event went from one state to another.
pub(crate) fn change(
    tx: &mut Tx<'_>,
    key: DeliveryKey,
    event: EventId,
    was: Option<State>,
    is: Option<State>,
) -> Result<(), StoreError> {
    let (id, table) = (event.to_bytes(), tx.event_states.open()?);
    if let Some(was) = was {
        table.remove((key.bucket.0, state_key(was), &id))?;
    }
    if let Some(is) = is {
        table.insert((key.bucket.0, state_key(is), &id), key.seq.0)?;
    }
    Ok(())
}
