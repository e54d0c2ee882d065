//! Reads of one destination's queue. `core::queue` defines the query and the page.

use std::collections::{BTreeSet, HashSet};
use std::ops::{Bound, RangeBounds};
use std::vec;

use redb::{Range, ReadableTable};
use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::{DeliveryKey, DestinationId};
use whrelay_core::order::Order;
use whrelay_core::queue::{QueueKind, QueuePage, QueueQuery, WaitReason, Waiting, Wanted};
use whrelay_core::retry::Phase;
use whrelay_core::time::Timestamp;

use super::{Leads, List, QueueKey, QueueRow, Tables, is_replay, key_of, list};
use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::tables::QUEUE;

/// Rows that lead nowhere and are met by one read. Where there are more, the rest is read once these are removed.
const MAX_STRAYS: usize = 1024;

/// Failed deliveries that a read sorts by their age. Of more than these, those that failed first start first.
const MAX_SORTED: usize = 1024;

/// What a read of a queue has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueRead {
    /// What was asked for.
    pub page: QueuePage,
    /// Rows to remove: they lead to nothing that waits.
    pub strays: Vec<QueueRow>,
}

impl RedbStore {
    /// Reads the queue of a destination. Damaged deliveries are among the rows: an attempt finds the damage.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn queue(
        &self,
        destination: DestinationId,
        query: &QueueQuery,
    ) -> Result<QueueRead, StoreError> {
        self.read_now(|tx| {
            let tables = Tables::open(tx)?;
            let queue = tx.open_table(QUEUE)?;
            let targets = tables.targets(self.seal);
            let leads = |row| targets.of(row);
            let mut reader = Reader {
                queue: &queue,
                leads: &leads,
                destination,
                query,
                seen: HashSet::new(),
                found: QueueRead::default(),
            };
            reader.read()?;
            Ok(reader.found)
        })
    }
}

/// When the rows of a list are due.
#[derive(Clone, Copy)]
enum DueAt {
    /// At the time that they have.
    Own,
    /// When their deliveries were created, and at once if that was in the future.
    Created,
    /// When their deliveries were created, since their endpoint has returned.
    Recalled,
    /// At once.
    Now,
}

impl DueAt {
    fn rank(self, (row, created_at): (QueueKey, Timestamp), now: Timestamp) -> Rank {
        let due_at = match self {
            Self::Own => Timestamp::from_micros(row.2),
            Self::Created => created_at.min(now),
            Self::Recalled => created_at.min(Timestamp::from_micros(row.2)),
            Self::Now => now,
        };
        (due_at, created_at, key_of(row))
    }
}

/// One list of a queue, in the order in which its deliveries start.
struct Source<'a> {
    /// Its first rows, where the list has another order.
    sorted: vec::IntoIter<(QueueKey, Timestamp)>,
    rows: Range<'a, QueueKey, i64>,
    /// Its next row, and when that delivery was created.
    next: Option<(QueueKey, Timestamp)>,
    /// Rows up to this time are due.
    until: Timestamp,
    due_at: DueAt,
}

/// A row, when its delivery was created, and what it says.
type Job = ((QueueKey, Timestamp), Waiting);

/// When a row is due, when its delivery was created, and which it is.
type Rank = (Timestamp, Timestamp, DeliveryKey);

impl Source<'_> {
    fn advance(&mut self) -> Result<(), StoreError> {
        self.next = match self.sorted.next() {
            Some(next) => Some(next),
            None => self.read()?,
        };
        Ok(())
    }

    fn read(&mut self) -> Result<Option<(QueueKey, Timestamp)>, StoreError> {
        let next = self.rows.next().transpose()?;
        Ok(next.map(|(row, created)| (row.value(), Timestamp::from_micros(created.value()))))
    }

    /// The same list, by the ranks of its deliveries.
    fn sort(mut self, now: Timestamp) -> Result<Self, StoreError> {
        let mut all: Vec<_> = self.next.take().into_iter().collect();
        while all.len() < MAX_SORTED
            && let Some(next) = self.read()?
        {
            all.push(next);
        }
        all.sort_by_key(|next| self.due_at.rank(*next, now));
        self.sorted = all.into_iter();
        self.advance()?;
        Ok(self)
    }

    fn rank(&self, now: Timestamp) -> Option<Rank> {
        Some(self.due_at.rank(self.next?, now))
    }

    fn is_due(&self) -> bool {
        let at = self.next.map(|(row, _)| Timestamp::from_micros(row.2));
        at.is_some_and(|at| at <= self.until)
    }
}

struct Reader<'a, T, L> {
    queue: &'a T,
    leads: &'a L,
    destination: DestinationId,
    query: &'a QueueQuery,
    /// Deliveries of the page.
    seen: HashSet<DeliveryKey>,
    found: QueueRead,
}

impl<'a, T, L> Reader<'a, T, L>
where
    T: ReadableTable<QueueKey, i64>,
    L: Fn(QueueKey) -> Result<Leads, StoreError>,
{
    fn read(&mut self) -> Result<(), StoreError> {
        match (self.query.wanted, self.query.order) {
            (Wanted::Expired, _) => self.expired()?,
            (Wanted::New, _) => self.turns()?,
            (Wanted::All, Order::Fifo) => {
                self.expired()?;
                self.ordered()?;
                self.due(&[true])?;
                self.not_before()?;
            }
            (Wanted::All, Order::Arrival) => {
                self.expired()?;
                self.due(&[false, true])?;
            }
        }
        self.deadlines()
    }

    fn has_room(&self) -> bool {
        self.found.page.waiting.len() < self.query.max && self.found.strays.len() < MAX_STRAYS
    }

    fn source(
        &self,
        wanted: List,
        is_replays: bool,
        times: impl RangeBounds<Timestamp>,
    ) -> Result<Source<'a>, StoreError> {
        let all = list(self.destination, wanted.number(is_replays));
        let (mut first, mut last) = (*all.start(), *all.end());
        match times.start_bound() {
            Bound::Excluded(at) => first.2 = at.as_micros().saturating_add(1),
            Bound::Included(at) => first.2 = at.as_micros(),
            Bound::Unbounded => {}
        }
        match times.end_bound() {
            Bound::Excluded(at) => last.2 = at.as_micros().saturating_sub(1),
            Bound::Included(at) => last.2 = at.as_micros(),
            Bound::Unbounded => {}
        }
        let queue: &'a T = self.queue;
        let rows = match first <= last {
            true => queue.range(first..=last)?,
            false => queue.range(first..first)?,
        };
        let mut source = Source {
            sorted: Vec::new().into_iter(),
            rows,
            next: None,
            until: Timestamp::LAST,
            due_at: DueAt::Own,
        };
        source.advance()?;
        Ok(source)
    }

    /// The delivery of a row, if it still waits. A row without one is noted as a stray.
    fn look(
        &mut self,
        (row, created_at): (QueueKey, Timestamp),
    ) -> Result<Option<Waiting>, StoreError> {
        Ok(match (self.leads)(row)? {
            Leads::Waiting(delivery) => delivery.waiting(),
            Leads::Damaged => Some(damaged(row, created_at)),
            Leads::Nowhere => {
                self.found.strays.push(QueueRow(row));
                None
            }
        })
    }

    fn take(&mut self, waiting: Waiting) {
        if self.seen.insert(waiting.key) {
            self.found.page.waiting.push(waiting);
        }
    }

    /// Puts what is due on the page, by rank.
    fn merge(&mut self, sources: &mut [Source<'a>]) -> Result<(), StoreError> {
        let now = self.query.due.now;
        while self.has_room() {
            let due = sources.iter_mut().filter(|source| source.is_due());
            let Some(source) = due.min_by_key(|source| source.rank(now)) else {
                return Ok(());
            };
            if let Some(next) = source.next
                && !self.seen.contains(&key_of(next.0))
                && let Some(waiting) = self.look(next)?
            {
                self.take(waiting);
            }
            source.advance()?;
        }
        Ok(())
    }

    /// When the first row is due that is not on the page.
    fn first_left(&mut self, mut source: Source<'a>) -> Result<Option<Timestamp>, StoreError> {
        let now = self.query.due.now;
        while let Some(next) = source.next {
            if self.found.strays.len() >= MAX_STRAYS {
                return Ok(Some(now));
            }
            if !self.seen.contains(&key_of(next.0)) && self.look(next)?.is_some() {
                return Ok(source.rank(now).map(|(due_at, ..)| due_at));
            }
            source.advance()?;
        }
        Ok(None)
    }

    fn note_next(&mut self, at: Option<Timestamp>) {
        let next_at = &mut self.found.page.next_at;
        *next_at = next_at.iter().copied().chain(at).min();
    }

    /// Those whose deadlines have passed.
    fn expired(&mut self) -> Result<(), StoreError> {
        let by = ..self.query.expired_by;
        let mut sources = Vec::with_capacity(2);
        for is_replays in [false, true] {
            sources.push(self.source(List::Deadline, is_replays, by)?);
        }
        self.merge(&mut sources)
    }

    /// Those that wait for nothing but their turn.
    fn turns(&mut self) -> Result<(), StoreError> {
        let mut sources = self.new_ones(false)?;
        sources.append(&mut self.new_ones(true)?);
        self.merge(&mut sources)
    }

    /// The new deliveries: those of each bucket are listed by key.
    fn new_ones(&self, is_replays: bool) -> Result<Vec<Source<'a>>, StoreError> {
        if is_replays {
            let due_at = DueAt::Created;
            let source = self.source(List::Turn, true, ..)?;
            return Ok(vec![Source { due_at, ..source }]);
        }
        let buckets = self.buckets(&[List::Turn])?;
        let sources = buckets
            .into_iter()
            .map(|bucket| self.of_bucket(List::Turn, bucket));
        sources.collect()
    }

    /// What is due, whatever the order.
    fn due(&mut self, kinds: &[bool]) -> Result<(), StoreError> {
        let due = self.query.due;
        let back_since = due.back_since.filter(|back| *back <= due.now);
        let mut sources = Vec::with_capacity(5 * kinds.len());
        for is_replays in kinds {
            let source = |list| self.source(list, *is_replays, ..);
            sources.append(&mut self.new_ones(*is_replays)?);
            sources.push(Source {
                until: due.not_before,
                ..source(List::NotBefore)?
            });
            sources.push(Source {
                until: due.now,
                ..source(List::BackoffEnd)?
            });
            // Those that failed are listed by when they did, and the oldest starts first.
            if let Some(back) = back_since {
                let source = self.source(List::FailedAt, *is_replays, ..back)?;
                let due_at = DueAt::Recalled;
                sources.push(Source { due_at, ..source }.sort(due.now)?);
            }
            let after_now = (Bound::Excluded(due.now), Bound::Unbounded);
            let source = self.source(List::FailedAt, *is_replays, after_now)?;
            let due_at = DueAt::Now;
            sources.push(Source { due_at, ..source }.sort(due.now)?);
        }
        let first = self.found.page.waiting.len();
        self.merge(&mut sources)?;
        // Where the clock was set back, keys and ages differ.
        self.found.page.waiting[first..].sort_by_key(|waiting| {
            let due_at = waiting.due_at(due.back_since, due.now).min(due.now);
            (due_at, waiting.created_at, waiting.key)
        });
        for source in sources {
            let at = self.first_left(source)?;
            self.note_next(at);
        }
        Ok(())
    }

    /// Those that start in order, the first ones of each bucket.
    fn ordered(&mut self) -> Result<(), StoreError> {
        let due_jobs = self.due_jobs()?;
        let mut buckets = self.buckets(&[List::Turn, List::Ordered])?;
        buckets.extend(due_jobs.iter().map(|((row, _), _)| BucketId(row.3)));
        let share = (self.query.max / 2 / buckets.len().max(1)).max(1);
        for bucket in buckets {
            let jobs = due_jobs.iter().filter(|((row, _), _)| row.3 == bucket.0);
            self.ordered_of(bucket, jobs.copied().collect(), share)?;
        }
        Ok(())
    }

    fn ordered_of(
        &mut self,
        bucket: BucketId,
        mut jobs: Vec<Job>,
        share: usize,
    ) -> Result<(), StoreError> {
        jobs.sort_by_key(|((row, _), _)| std::cmp::Reverse(key_of(*row)));
        let mut new = self.of_bucket(List::Turn, bucket)?;
        let mut tried = self.of_bucket(List::Ordered, bucket)?;
        let mut taken = 0;
        loop {
            let key = |next: Option<(QueueKey, Timestamp)>| next.map(|(row, _)| key_of(row));
            let job = jobs.last().map(|((row, _), _)| key_of(*row));
            let first = [key(new.next), key(tried.next), job];
            let Some(first) = first.into_iter().flatten().min() else {
                return Ok(());
            };
            let mut next = None;
            for source in [&mut new, &mut tried] {
                if key(source.next) == Some(first) {
                    next = source.next;
                    source.advance()?;
                }
            }
            if job == Some(first) {
                next = next.or(jobs.pop().map(|(next, _)| next));
            }
            if self.seen.contains(&first) {
                taken += 1;
                continue;
            }
            let Some(next) = next else {
                continue;
            };
            if taken >= share || !self.has_room() {
                self.note_more(bucket);
                return Ok(());
            }
            if let Some(waiting) = self.look(next)? {
                self.take(waiting);
                taken += 1;
            }
        }
    }

    /// There are more rows of this bucket that start in order.
    fn note_more(&mut self, bucket: BucketId) {
        match self.seen.iter().any(|key| key.bucket == bucket) {
            true => self.found.page.has_more = true,
            false => self.note_next(Some(self.query.due.now)),
        }
    }

    fn of_bucket(&self, wanted: List, bucket: BucketId) -> Result<Source<'a>, StoreError> {
        let (destination, list) = (self.destination.0, wanted.number(false));
        let queue: &'a T = self.queue;
        let first = (destination, list, 0, bucket.0, 0, 0);
        let last = (destination, list, 0, bucket.0, u64::MAX, u32::MAX);
        let mut source = Source {
            sorted: Vec::new().into_iter(),
            rows: queue.range(first..=last)?,
            next: None,
            until: Timestamp::LAST,
            due_at: DueAt::Created,
        };
        source.advance()?;
        Ok(source)
    }

    /// The buckets whose deliveries are in one of these lists, which are listed by key.
    fn buckets(&self, lists: &[List]) -> Result<BTreeSet<BucketId>, StoreError> {
        let mut buckets = BTreeSet::new();
        for wanted in lists {
            let all = list(self.destination, wanted.number(false));
            let mut from = *all.start();
            while let Some(first) = self.queue.range(from..=*all.end())?.next().transpose()? {
                let row = first.0.value();
                buckets.insert(BucketId(row.3));
                let next = (row.0, row.1, row.2, row.3, u64::MAX, u32::MAX);
                // A row in the wrong place would lead back.
                if next <= from {
                    break;
                }
                from = next;
            }
        }
        Ok(buckets)
    }

    /// Jobs whose time has come: they join the order now.
    fn due_jobs(&mut self) -> Result<Vec<Job>, StoreError> {
        let mut jobs = Vec::new();
        let mut source = self.source(List::NotBefore, false, ..=self.query.due.not_before)?;
        while let Some(next) = source.next.filter(|_| jobs.len() < self.query.max) {
            if let Some(waiting) = self.look(next)? {
                jobs.push((next, waiting));
            }
            source.advance()?;
        }
        Ok(jobs)
    }

    /// When the first job joins the order. What was tried is in it already.
    fn not_before(&mut self) -> Result<(), StoreError> {
        let mut source = self.source(List::NotBefore, false, ..)?;
        while let Some(next) = source.next {
            if !self.seen.contains(&key_of(next.0))
                && let Some(waiting) = self.look(next)?
                && !waiting.is_in_order(&self.query.due)
            {
                let WaitReason::NotBefore(at) = waiting.reason else {
                    return Ok(());
                };
                self.note_next(Some(at));
                return Ok(());
            }
            source.advance()?;
        }
        Ok(())
    }

    /// The earliest deadline of those that are not on the page.
    fn deadlines(&mut self) -> Result<(), StoreError> {
        for is_replays in [false, true] {
            let source = self.source(List::Deadline, is_replays, ..)?;
            let at = self.first_left(source)?;
            let next_at = &mut self.found.page.next_deadline_at;
            *next_at = next_at.iter().copied().chain(at).min();
        }
        Ok(())
    }
}

/// A delivery of which only its row is known.
fn damaged(row: QueueKey, created_at: Timestamp) -> Waiting {
    Waiting {
        key: key_of(row),
        kind: match is_replay(row) {
            true => QueueKind::Replay,
            false => QueueKind::Normal,
        },
        created_at,
        deadline_at: Timestamp::LAST,
        reason: WaitReason::Turn,
        attempts: 0,
        first_failed_at: None,
        phase: Phase::Fast,
        bytes: 0,
    }
}
