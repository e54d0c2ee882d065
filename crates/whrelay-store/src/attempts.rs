//! The log of attempts: appended with each verdict, read by place. It must not know who follows it.

use whrelay_core::delivery::Attempt;

use crate::deliveries::{self, Waiting};
use crate::disk::Store;
use crate::error::StoreError;
use crate::index::Wait;
use crate::record::Seal;
use crate::rows::AttemptRow;
use crate::tables::{ATTEMPT_LOG, ATTEMPTS, SEQUENCES};
use crate::tx::{Tx, sequence};

/// An attempt and its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedAttempt {
    /// 1, 2, 3 … in the order they were recorded.
    pub place: u64,
    /// The attempt.
    pub attempt: Attempt,
}

impl Store {
    /// Records an attempt and what follows from it, in one transaction. A delivery that was
    /// finished meanwhile stays as it is: only the attempt is logged.
    ///
    /// # Errors
    /// When it is unknown whether it is on disk: then it must be recorded again.
    pub async fn record(&self, attempt: Attempt) -> Result<(), StoreError> {
        self.write(512 + attempt.answer.len(), move |tx: &mut Tx<'_>| {
            let key = attempt.key;
            if let Some(mut delivery) = deliveries::get(tx.seal, tx.deliveries.open()?, key)?
                && !delivery.state.is_finished()
            {
                let before = Waiting::of(&delivery);
                delivery.follow(&attempt);
                let wait = if attempt.is_held() {
                    Wait::Held
                } else {
                    Wait::Backoff
                };
                deliveries::update(tx, Some(before), &delivery, wait)?;
            }
            let place = tx.next(ATTEMPT_LOG)?;
            let record = tx
                .seal
                .seal(&place.to_be_bytes(), &AttemptRow::new(attempt))?;
            tx.attempts.open()?.insert(place, record.as_slice())?;
            Ok(())
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

    /// Attempts before a place, newest first, up to `max`. Damaged ones are passed over.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn attempts_before(
        &self,
        before: u64,
        max: usize,
    ) -> Result<Vec<LoggedAttempt>, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(ATTEMPTS)?;
            table
                .range(..before)?
                .rev()
                .filter_map(|entry| logged(self.seal, entry))
                .take(max)
                .collect()
        })
    }
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
    let place = place.value();
    match seal.open::<AttemptRow>("attempt", &place.to_be_bytes(), record.value()) {
        Ok((row, _)) => Some(Ok(LoggedAttempt {
            place,
            attempt: row.into_attempt(),
        })),
        Err(error) => {
            tracing::error!(%error, "an attempt is passed over");
            None
        }
    }
}
