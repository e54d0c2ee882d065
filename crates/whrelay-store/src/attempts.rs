//! The log of attempts: appended with each verdict, read by place. It must not know who follows it.

use redb::ReadableTable;
use whrelay_core::delivery::{Attempt, Delivery, DeliveryKey, State};
use whrelay_core::time::Timestamp;

use crate::deliveries::{self, Before};
use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::record::{self, Seal, Unsealed};
use crate::rows::{AttemptMore, AttemptRow};
use crate::signatures::{self, SignatureClaim};
use crate::tables::{ATTEMPT_LOG, ATTEMPT_STATES, ATTEMPTS, DELIVERIES, SEQUENCES};
use crate::tx::{Tx, sequence, state_key};

/// An attempt and its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedAttempt {
    /// 1, 2, 3 … in the order they were recorded.
    pub place: u64,
    /// The attempt.
    pub attempt: Attempt,
    /// The place of the one before it of the same delivery.
    pub before: Option<u64>,
}

impl RedbStore {
    /// Records an attempt and what follows from it, in one transaction, once. A delivery that has
    /// ended meanwhile stays as it is, and only the attempt is logged, unless it was given up and has arrived.
    ///
    /// # Errors
    /// When it is unknown whether it is on disk: then it must be recorded again.
    pub async fn record(&self, attempt: Attempt) -> Result<(), StoreError> {
        self.write(512 + attempt.answer.len(), move |tx: &mut Tx<'_>| {
            record(tx, attempt)
        })
        .await
    }

    /// Does what [`RedbStore::record`] does, and in the same transaction claims the signature for the attempt's event.
    ///
    /// # Errors
    /// When it is unknown whether it is on disk: then it must be recorded again.
    pub async fn record_signed(
        &self,
        attempt: Attempt,
        claim: SignatureClaim,
    ) -> Result<(), StoreError> {
        self.write(640 + attempt.answer.len(), move |tx: &mut Tx<'_>| {
            signatures::claim(tx, &claim)?;
            record(tx, attempt)
        })
        .await
    }

    /// The place of the newest attempt; 0 where there is none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn last_attempt(&self) -> Result<u64, StoreError> {
        self.read(|tx| sequence(self.seal, &tx.open_table(SEQUENCES)?, ATTEMPT_LOG))
    }

    /// Attempts after a place, oldest first, up to `max`. Damaged ones are passed over.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn attempts_after(&self, after: u64, max: usize) -> Result<Vec<LoggedAttempt>, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(ATTEMPTS)?;
            table
                .range(after + 1..)?
                .filter_map(|entry| logged(self.seal, entry))
                .take(max)
                .collect()
        })
    }

    /// Attempts after which their deliveries were in one of these states, newest first by their start,
    /// up to `max`: those that started within the bounds, and beyond `after` where one is given.
    /// Damaged ones are passed over.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn attempts_by_start(
        &self,
        states: &[State],
        (since, until): (Timestamp, Timestamp),
        after: Option<(Timestamp, u64)>,
        max: usize,
    ) -> Result<Vec<LoggedAttempt>, StoreError> {
        self.read(|tx| {
            let (index, log) = (tx.open_table(ATTEMPT_STATES)?, tx.open_table(ATTEMPTS)?);
            let last = after.unwrap_or((until, u64::MAX));
            let mut places = Vec::new();
            for state in states {
                let state = state_key(*state);
                let first = (state, since.as_micros(), 0);
                let beyond = (state, last.0.as_micros(), last.1);
                if first > beyond {
                    continue;
                }
                for row in index.range(first..=beyond)?.rev().take(max + 1) {
                    let (_, at, place) = row?.0.value();
                    if Some((Timestamp::from_micros(at), place)) != after {
                        places.push((at, place));
                    }
                }
            }
            places.sort_unstable();
            let newest = places.into_iter().rev().take(max);
            let read = newest.map(|(_, place)| at_place(self.seal, &log, place));
            read.filter_map(Result::transpose).collect()
        })
    }

    /// The newest attempts of a delivery, newest first, up to `max`. Where one is damaged, those before
    /// it are not found.
    ///
    /// # Errors
    /// When the store cannot be read, or the delivery is damaged.
    pub fn attempts_of(
        &self,
        key: DeliveryKey,
        max: usize,
    ) -> Result<Vec<LoggedAttempt>, StoreError> {
        self.read(|tx| {
            let log = tx.open_table(ATTEMPTS)?;
            let delivery = deliveries::get(self.seal, &tx.open_table(DELIVERIES)?, key)?;
            let (mut next, mut found) = (delivery.and_then(|d| d.last_attempt), Vec::new());
            while let Some(place) = next.filter(|_| found.len() < max) {
                let Some(logged) = at_place(self.seal, &log, place)? else {
                    break;
                };
                // Rot could make a circle of it.
                next = logged.before.filter(|before| *before < place);
                found.push(logged);
            }
            Ok(found)
        })
    }
}

/// Logs an attempt, and moves its delivery on unless it has ended.
pub(crate) fn record(tx: &mut Tx<'_>, attempt: Attempt) -> Result<(), StoreError> {
    let key = attempt.key;
    // One that had ended while its last attempt was under way may be removed by now.
    let Some(mut delivery) = deliveries::get(tx.seal, tx.deliveries.open()?, key)? else {
        return Ok(());
    };
    // It goes to another destination by now, where its deadline may be another one.
    let is_untried = attempt.number == delivery.attempts;
    let is_moved = is_untried && attempt.destination != delivery.destination;
    if is_moved || delivery.has_recorded(&attempt) {
        return Ok(());
    }
    let place = tx.next(ATTEMPT_LOG)?;
    let before = delivery.last_attempt.replace(place);
    let was = Before::of(&delivery);
    if delivery.is_moved_by(&attempt) {
        delivery.follow(&attempt);
    }
    deliveries::update(tx, Some(was), &delivery)?;
    log(tx, place, attempt, before)
}

/// The row of an attempt in the index by state.
pub(crate) fn index_row(place: u64, attempt: &Attempt) -> (u8, i64, u64) {
    (state_key(attempt.state()), attempt.at.as_micros(), place)
}

fn log(
    tx: &mut Tx<'_>,
    place: u64,
    attempt: Attempt,
    before: Option<u64>,
) -> Result<(), StoreError> {
    let row = index_row(place, &attempt);
    let bucket = attempt.key.bucket;
    tx.attempt_states.open()?.insert(row, ())?;
    let (row_of, more) = AttemptRow::new(attempt, before);
    let more = record::encode(&more)?;
    let record = Unsealed::new(&row_of, &more)?.seal(tx.seal, &place.to_be_bytes());
    tx.attempts.open()?.insert(place, record.as_slice())?;
    tx.grow(bucket, cost(&record));
    Ok(())
}

/// About how many bytes an attempt takes, with its row in the index by state.
pub(crate) fn cost(record: &[u8]) -> usize {
    record.len() + 64
}

/// Removes the attempts of a delivery. Where one is damaged, those before it are not found, and stay.
pub(crate) fn remove_all(tx: &mut Tx<'_>, delivery: &Delivery) -> Result<(), StoreError> {
    let mut next = delivery.last_attempt;
    while let Some(place) = next {
        let removed = tx.attempts.open()?.remove(place)?;
        let Some(record) = removed.map(|record| record.value().to_vec()) else {
            return Ok(());
        };
        tx.shrink(delivery.key.bucket, cost(&record));
        let Some(logged) = open(tx.seal, place, &record) else {
            return Ok(());
        };
        let row = index_row(place, &logged.attempt);
        tx.attempt_states.open()?.remove(row)?;
        next = logged.before.filter(|before| *before < place);
    }
    Ok(())
}

fn at_place(
    seal: Seal,
    log: &impl ReadableTable<u64, &'static [u8]>,
    place: u64,
) -> Result<Option<LoggedAttempt>, StoreError> {
    let record = log.get(place)?;
    Ok(record.and_then(|record| open(seal, place, record.value())))
}

type Entry<'a> = (
    redb::AccessGuard<'a, u64>,
    redb::AccessGuard<'a, &'static [u8]>,
);

fn logged(
    seal: Seal,
    entry: Result<Entry<'_>, redb::StorageError>,
) -> Option<Result<LoggedAttempt, StoreError>> {
    let (place, record) = match entry {
        Ok(entry) => entry,
        Err(error) => return Some(Err(error.into())),
    };
    open(seal, place.value(), record.value()).map(Ok)
}

fn open(seal: Seal, place: u64, record: &[u8]) -> Option<LoggedAttempt> {
    match seal.open::<AttemptRow>("attempt", &place.to_be_bytes(), record) {
        Ok((row, more)) => Some(LoggedAttempt {
            place,
            before: row.before,
            attempt: row.into_attempt(AttemptMore::read(more).unwrap_or_default()),
        }),
        Err(error) => {
            tracing::error!(%error, "an attempt is passed over");
            None
        }
    }
}
