//! The queues of destinations: what is due, what has failed, whose deadline passes. They are computed from the deliveries
//! and changed with them, in the same transaction.

mod due;
mod read;

use redb::{ReadTransaction, ReadableTable};
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey, DestinationId};
use whrelay_core::queue::WaitReason;
use whrelay_core::time::Timestamp;

use crate::deliveries::get;
use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::events::record_of;
use crate::record::Seal;
use crate::tables::{DELIVERIES, EVENTS, HEADS, QUARANTINE};
use crate::tx::Tx;

pub(crate) use self::due::{DueKey, Summary, settle, touch};
pub use self::read::QueueRead;

/// Destination; list, and eight more for replays; time; then the delivery's key.
pub(crate) type QueueKey = (u32, u8, i64, u32, u64, u32);

/// As many rows as a delivery may have.
pub(crate) type Rows = [Option<QueueKey>; 4];

/// A row of a queue that leads to no delivery that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRow(pub(crate) QueueKey);

/// In which order the rows of a destination are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum List {
    /// New deliveries: by key, and replays by the time when they were created.
    Turn = 0,
    /// Those with a time of their own: by that.
    NotBefore = 1,
    /// Those that failed: by the end of their backoffs.
    BackoffEnd = 2,
    /// The same: by when they failed.
    FailedAt = 3,
    /// Those that were tried and are no replays: by key, for a FIFO order.
    Ordered = 4,
    /// All of them: by their deadlines.
    Deadline = 5,
}

impl List {
    /// The number of this list, or of the same list of replays.
    pub(crate) fn number(self, replays: bool) -> u8 {
        self as u8 + if replays { REPLAYS } else { 0 }
    }
}

const REPLAYS: u8 = 8;

/// Whether a row is a replay's.
pub(crate) fn is_replay(row: QueueKey) -> bool {
    row.1 >= REPLAYS
}

/// The rows that a delivery has while it waits.
pub(crate) fn rows(delivery: &Delivery) -> Rows {
    let Some(wait) = delivery.wait else {
        return [None; 4];
    };
    let row = |list: List, at: Timestamp| {
        let DeliveryKey {
            bucket,
            seq,
            ordinal,
        } = delivery.key;
        let list = list.number(delivery.replay);
        let at = at.as_micros();
        Some((delivery.destination.0, list, at, bucket.0, seq.0, ordinal))
    };
    let deadline = row(List::Deadline, delivery.deadline_at);
    let ordered = row(List::Ordered, Timestamp::EPOCH).filter(|_| !delivery.replay);
    match wait {
        WaitReason::Turn if delivery.replay => {
            [row(List::Turn, delivery.created_at), deadline, None, None]
        }
        WaitReason::Turn => [row(List::Turn, Timestamp::EPOCH), deadline, None, None],
        WaitReason::NotBefore(at) => {
            // A job joins the order at its time.
            let ordered = ordered.filter(|_| delivery.attempts > 0);
            [row(List::NotBefore, at), deadline, ordered, None]
        }
        WaitReason::Backoff { since, delay } | WaitReason::Offline { since, delay } => [
            row(List::BackoffEnd, since.after(delay)),
            deadline,
            ordered,
            row(List::FailedAt, since),
        ],
    }
}

/// Moves a delivery from the rows that it had to those that it has.
pub(crate) fn change(tx: &mut Tx<'_>, before: Rows, delivery: &Delivery) -> Result<(), StoreError> {
    let after = rows(delivery);
    let queue = tx.queue.open()?;
    for row in before.into_iter().flatten() {
        if !after.contains(&Some(row)) {
            queue.remove(row)?;
        }
    }
    for row in after.into_iter().flatten() {
        if !before.contains(&Some(row)) {
            queue.insert(row, delivery.created_at.as_micros())?;
        }
    }
    Ok(())
}

/// The delivery that a row leads to.
pub(crate) fn key_of((_, _, _, bucket, seq, ordinal): QueueKey) -> DeliveryKey {
    DeliveryKey {
        bucket: BucketId(bucket),
        seq: Seq(seq),
        ordinal,
    }
}

/// All rows of a list.
pub(crate) fn list(destination: DestinationId, list: u8) -> std::ops::RangeInclusive<QueueKey> {
    (destination.0, list, i64::MIN, 0, 0, 0)
        ..=(destination.0, list, i64::MAX, u32::MAX, u64::MAX, u32::MAX)
}

/// What a row leads to.
pub(crate) enum Leads {
    /// A delivery that waits as the row says.
    Waiting(Box<Delivery>),
    /// A delivery that is damaged, or its event without it.
    Damaged,
    /// Nothing that waits, or damage that is quarantined.
    Nowhere,
}

/// The tables that say what a row leads to.
#[derive(Clone, Copy)]
pub(crate) struct Targets<'a, D, E, Q> {
    pub(crate) seal: Seal,
    pub(crate) deliveries: &'a D,
    pub(crate) events: &'a E,
    pub(crate) heads: &'a E,
    pub(crate) quarantine: &'a Q,
}

impl<D, E, Q> Targets<'_, D, E, Q>
where
    D: ReadableTable<(u32, u64, u32), &'static [u8]>,
    E: ReadableTable<(u32, u64), &'static [u8]>,
    Q: ReadableTable<(u32, u64), i64>,
{
    /// What a row leads to: an event without its delivery is damaged.
    pub(crate) fn of(&self, row: QueueKey) -> Result<Leads, StoreError> {
        let key = key_of(row);
        let place = (key.bucket.0, key.seq.0);
        let is_damaged = match get(self.seal, self.deliveries, key) {
            Ok(Some(delivery)) if rows(&delivery).contains(&Some(row)) => {
                return Ok(Leads::Waiting(Box::new(delivery)));
            }
            Ok(Some(_)) => false,
            Ok(None) => record_of(self.events, self.heads, place)?.is_some(),
            Err(StoreError::Damaged(_)) => true,
            Err(error) => return Err(error),
        };
        let is_known = self.quarantine.get(place)?.is_some();
        Ok(match is_damaged && !is_known {
            true => Leads::Damaged,
            false => Leads::Nowhere,
        })
    }
}

type Deliveries = redb::ReadOnlyTable<(u32, u64, u32), &'static [u8]>;
type Events = redb::ReadOnlyTable<(u32, u64), &'static [u8]>;
type Quarantine = redb::ReadOnlyTable<(u32, u64), i64>;

/// The same tables of one consistent state.
pub(crate) struct Tables {
    deliveries: Deliveries,
    events: Events,
    heads: Events,
    quarantine: Quarantine,
}

impl Tables {
    pub(crate) fn open(tx: &ReadTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            deliveries: tx.open_table(DELIVERIES)?,
            events: tx.open_table(EVENTS)?,
            heads: tx.open_table(HEADS)?,
            quarantine: tx.open_table(QUARANTINE)?,
        })
    }

    pub(crate) fn targets(&self, seal: Seal) -> Targets<'_, Deliveries, Events, Quarantine> {
        Targets {
            seal,
            deliveries: &self.deliveries,
            events: &self.events,
            heads: &self.heads,
            quarantine: &self.quarantine,
        }
    }
}

impl RedbStore {
    /// Removes rows of queues that lead to no delivery that waits, where they still do not.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn remove_strays(&self, strays: Vec<QueueRow>) -> Result<(), StoreError> {
        self.write(64 * strays.len(), move |tx: &mut Tx<'_>| {
            for QueueRow(row) in strays {
                if let Leads::Nowhere = tx.leads(row)? {
                    touch(tx, DestinationId(row.0))?;
                    tx.queue.open()?.remove(row)?;
                    // A read that they filled may have missed others.
                    tx.changed.note_due(DestinationId(row.0), Timestamp::EPOCH);
                }
            }
            Ok(())
        })
        .await
    }
}

/// The first destination from this number on for which something is queued.
pub(crate) fn next_queued(
    queue: &impl ReadableTable<QueueKey, i64>,
    from: DestinationId,
) -> Result<Option<DestinationId>, StoreError> {
    let first = (from.0, 0, i64::MIN, 0, 0, 0);
    let found = queue.range(first..)?.next().transpose()?;
    let found = found.map(|(row, _)| DestinationId(row.value().0));
    // A row in the wrong place would lead back.
    Ok(found.filter(|found| *found >= from))
}

/// Some of what is queued for a destination, earliest deadline first.
pub(crate) fn waiting_rows(
    queue: &impl ReadableTable<QueueKey, i64>,
    destination: DestinationId,
    max: usize,
) -> Result<Vec<QueueKey>, StoreError> {
    let mut found = Vec::new();
    for replays in [false, true] {
        let rows = queue.range(list(destination, List::Deadline.number(replays)))?;
        for entry in rows.take(max - found.len()) {
            found.push(entry?.0.value());
        }
    }
    Ok(found)
}
