//! The index of what is due: read in order by the engine, emptied at once when an endpoint is back.
//! A delivery that waits has exactly one row in it; one that is finished has none. It must not know
//! how a delivery is tried.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey, DestinationId};
use whrelay_core::limits;
use whrelay_core::retry::Pause;
use whrelay_core::time::Timestamp;

use crate::deliveries::{Before, get, update};
use crate::disk::Store;
use crate::error::StoreError;
use crate::tables::DUE;
use crate::tx::Tx;

/// Rows moved by one transaction where many move: between two, others get their turn.
const CHUNK: usize = 1000;
/// Rows looked at without a pause, where most of them stay.
const LOOKED_AT: usize = 20_000;

/// What is due at a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DueScan {
    /// Deliveries to try now, in order.
    pub ready: Vec<DeliveryKey>,
    /// When the next one is due, if none is ready.
    pub next_at: Option<Timestamp>,
}

impl Store {
    /// What is due at a destination, in order, up to `max`, leaving out what is in flight.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn due(
        &self,
        destination: DestinationId,
        now: Timestamp,
        in_flight: &HashSet<DeliveryKey>,
        max: usize,
    ) -> Result<DueScan, StoreError> {
        let lanes = [Lane::Line, Lane::Replays];
        self.due_in(&lanes, destination, now, in_flight, max)
    }

    /// When the next delivery to a destination is due, whether or not that is past.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn next_due(&self, destination: DestinationId) -> Result<Option<Timestamp>, StoreError> {
        self.next_in(&[Lane::Line, Lane::Replays], destination)
    }

    /// The same, of replays only.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn next_replay(&self, destination: DestinationId) -> Result<Option<Timestamp>, StoreError> {
        self.next_in(&[Lane::Replays], destination)
    }

    fn next_in(
        &self,
        lanes: &[Lane],
        destination: DestinationId,
    ) -> Result<Option<Timestamp>, StoreError> {
        self.read(|tx| {
            let (table, mut next) = (tx.open_table(DUE)?, None);
            for lane in lanes {
                if let Some(first) = table.range(lane.rows(destination))?.next() {
                    let (at, _) = due_entry(first?.0.value());
                    next = next.map_or(Some(at), |next: Timestamp| Some(at.min(next)));
                }
            }
            Ok(next)
        })
    }

    /// The same as [`Store::due`], of replays only.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn due_replays(
        &self,
        destination: DestinationId,
        now: Timestamp,
        in_flight: &HashSet<DeliveryKey>,
        max: usize,
    ) -> Result<DueScan, StoreError> {
        self.due_in(&[Lane::Replays], destination, now, in_flight, max)
    }

    fn due_in(
        &self,
        lanes: &[Lane],
        destination: DestinationId,
        now: Timestamp,
        in_flight: &HashSet<DeliveryKey>,
        max: usize,
    ) -> Result<DueScan, StoreError> {
        let (mut ready, mut next_at) = (Vec::new(), None);
        self.read_now(|tx| {
            let table = tx.open_table(DUE)?;
            for lane in lanes {
                let mut room = max;
                for entry in table.range(lane.rows(destination))? {
                    let (at, key) = due_entry(entry?.0.value());
                    if in_flight.contains(&key) {
                        continue;
                    }
                    if at > now {
                        next_at = next_at.map_or(Some(at), |next| Some(at.min(next)));
                        break;
                    }
                    if room == 0 {
                        break;
                    }
                    room -= 1;
                    ready.push((at, key));
                }
            }
            Ok(())
        })?;
        if lanes.len() > 1 {
            ready.sort_unstable();
            ready.truncate(max);
        }
        let ready = ready.into_iter().map(|(_, key)| key).collect();
        Ok(DueScan { ready, next_at })
    }

    /// Makes what waits at a destination due now, oldest first, where there is no reason to wait any more;
    /// with it what only waits its turn but was stored while the clock was ahead of `now`. What the
    /// target itself, or a person, asked to wait for stays, within the longest wait that may be asked for.
    ///
    /// # Errors
    /// When not all of it is on disk; what is, stays.
    pub async fn release(
        &self,
        destination: DestinationId,
        now: Timestamp,
        release: Release,
    ) -> Result<u64, StoreError> {
        let mut released = 0;
        let mut from = *whole(destination).start();
        loop {
            let (rows, next) = self.read(|tx| {
                let table = tx.open_table(DUE)?;
                releasable(&table, from..=*whole(destination).end(), now, release)
            })?;
            if !rows.is_empty() {
                let run = move |tx: &mut Tx<'_>| release_rows(tx, &rows, now, release);
                released += self.write(CHUNK * 64, run).await?;
            }
            match next {
                // Rot can put rows in the wrong place: a walk that would turn back ends instead.
                Some(next) if next > from => from = next,
                Some(_) | None => return Ok(released),
            }
            tokio::task::yield_now().await;
        }
    }

    /// Removes the rows of the index that lead to a delivery which does not wait: damage, or the
    /// delivery has been finished since it was looked for.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn forget(&self, key: DeliveryKey) -> Result<(), StoreError> {
        self.write(64, move |tx: &mut Tx<'_>| {
            let waits =
                get(tx.seal, tx.deliveries.open()?, key)?.is_some_and(|d| !d.state.is_finished());
            if waits { Ok(()) } else { forget_due(tx, key) }
        })
        .await
    }
}

pub(crate) type DueKey = (u32, i64, u32, u64, u32);

/// Which of a destination's deliveries: a replay has no place in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Line,
    Replays,
}

impl Lane {
    fn of(replay: bool) -> Self {
        if replay { Self::Replays } else { Self::Line }
    }

    fn number(self, destination: DestinationId) -> u32 {
        destination.0 * 2
            + match self {
                Self::Line => 0,
                Self::Replays => 1,
            }
    }

    pub(crate) fn rows(self, destination: DestinationId) -> RangeInclusive<DueKey> {
        let lane = self.number(destination);
        (lane, i64::MIN, 0, 0, 0)..=(lane, i64::MAX, u32::MAX, u64::MAX, u32::MAX)
    }
}

/// Everything that waits for a destination.
pub(crate) fn whole(destination: DestinationId) -> RangeInclusive<DueKey> {
    let first = *Lane::Line.rows(destination).start();
    first..=*Lane::Replays.rows(destination).end()
}

pub(crate) fn due_entry((_, at, bucket, seq, ordinal): DueKey) -> (Timestamp, DeliveryKey) {
    let key = DeliveryKey {
        bucket: BucketId(bucket),
        seq: Seq(seq),
        ordinal,
    };
    (Timestamp::from_micros(at), key)
}

/// Why a delivery waits, as its row in the index says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It is new, or was released: due by its age.
    Turn = 0,
    /// The target, or a person, asked for the wait.
    Held = 1,
    /// It failed and backs off.
    Backoff = 2,
    /// Its endpoint took no connection.
    Offline = 3,
}

impl From<Pause> for Wait {
    fn from(pause: Pause) -> Self {
        match pause {
            Pause::Asked => Self::Held,
            Pause::Backoff => Self::Backoff,
            Pause::Offline => Self::Offline,
        }
    }
}

/// Why waits are cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The endpoint takes connections again: nothing waits that only backs off.
    Back,
    /// A process begins: what would wait for longer than anything backs off was stored while the clock was
    /// ahead.
    Begin {
        /// How long that is.
        longest: Duration,
    },
}

impl Wait {
    /// From a row of the index; what no release has written waits its turn.
    fn read(stored: u8) -> Self {
        match stored {
            1 => Self::Held,
            2 => Self::Backoff,
            3 => Self::Offline,
            _ => Self::Turn,
        }
    }
}

/// The row that a delivery has in the index while it waits.
pub(crate) fn due_row(delivery: &Delivery) -> Option<DueKey> {
    let at = delivery.next_attempt_at?;
    let lane = Lane::of(delivery.replay).number(delivery.destination);
    let DeliveryKey {
        bucket,
        seq,
        ordinal,
    } = delivery.key;
    Some((lane, at.as_micros(), bucket.0, seq.0, ordinal))
}

/// Takes a delivery out of the index. Its row is looked for, since a damaged delivery does not say
/// when it is due.
pub(crate) fn forget_due(tx: &mut Tx<'_>, key: DeliveryKey) -> Result<(), StoreError> {
    tx.due.open()?.retain(|row, _| due_entry(row).1 != key)?;
    Ok(())
}

/// The delivery of a row in the index. A row that leads to none, or is not that delivery's own, is
/// removed.
pub(crate) fn waiting_delivery(
    tx: &mut Tx<'_>,
    row: DueKey,
) -> Result<Option<Delivery>, StoreError> {
    let found = match get(tx.seal, tx.deliveries.open()?, due_entry(row).1) {
        Err(StoreError::Damaged(what)) => {
            tracing::error!(%what, "a delivery is set aside: its record is damaged");
            None
        }
        other => other?.filter(|delivery| due_row(delivery) == Some(row)),
    };
    if found.is_none() {
        tx.due.open()?.remove(row)?;
    }
    Ok(found)
}

/// Some rows of what is released, and where to look on.
fn releasable(
    table: &impl ReadableTable<DueKey, u8>,
    range: RangeInclusive<DueKey>,
    now: Timestamp,
    release: Release,
) -> Result<(Vec<DueKey>, Option<DueKey>), StoreError> {
    let mut rows = Vec::new();
    for (n, entry) in table.range(range)?.enumerate() {
        let (row, wait) = entry?;
        let row = row.value();
        if rows.len() == CHUNK || n == LOOKED_AT {
            return Ok((rows, Some(row)));
        }
        if is_released(row, Wait::read(wait.value()), now, release) {
            rows.push(row);
        }
    }
    Ok((rows, None))
}

fn is_released(row: DueKey, wait: Wait, now: Timestamp, release: Release) -> bool {
    let is_behind = |wait: Duration| row.1 > now.after(wait).as_micros();
    match (wait, release) {
        (Wait::Turn, _) => is_behind(Duration::ZERO),
        (Wait::Backoff | Wait::Offline, Release::Back) => true,
        (Wait::Backoff | Wait::Offline, Release::Begin { longest }) => is_behind(longest),
        (Wait::Held, _) => is_behind(limits::MAX_RETRY_AFTER),
    }
}

/// Makes deliveries due that wait as these rows say, and still do. Answers how many.
fn release_rows(
    tx: &mut Tx<'_>,
    rows: &[DueKey],
    now: Timestamp,
    release: Release,
) -> Result<u64, StoreError> {
    let mut released = 0;
    for row in rows {
        let wait = tx
            .due
            .open()?
            .get(*row)?
            .map(|wait| Wait::read(wait.value()));
        if !wait.is_some_and(|wait| is_released(*row, wait, now, release)) {
            continue;
        }
        if let Some(mut delivery) = waiting_delivery(tx, *row)? {
            let before = Before::of(&delivery);
            delivery.next_attempt_at = Some(delivery.created_at.min(now));
            // Only its return says that an endpoint is no longer offline.
            let wait = match (wait, release) {
                (Some(Wait::Offline), Release::Begin { .. }) => Wait::Offline,
                _ => Wait::Turn,
            };
            update(tx, Some(before), &delivery, wait)?;
            released += 1;
        }
    }
    Ok(released)
}

/// Some rows of what is queued for a destination, in order.
pub(crate) fn waiting_rows(
    due: &impl ReadableTable<DueKey, u8>,
    destination: DestinationId,
    max: usize,
) -> Result<Vec<DueKey>, StoreError> {
    let rows = due.range(whole(destination))?.take(max);
    rows.map(|entry| Ok(entry?.0.value())).collect()
}

/// The destination that a row is of.
pub(crate) fn destination_of((lane, ..): DueKey) -> DestinationId {
    DestinationId(lane / 2)
}

/// The first destination from this number on for which something is queued.
pub(crate) fn next_queued(
    due: &impl ReadableTable<DueKey, u8>,
    from: DestinationId,
) -> Result<Option<DestinationId>, StoreError> {
    let first = due.range(*whole(from).start()..)?.next().transpose()?;
    let found = first.map(|(row, _)| destination_of(row.value()));
    // A row in the wrong place would lead back.
    Ok(found.filter(|found| *found >= from))
}
