//! A model of the journal and of the view that is computed from it.

use std::collections::{BTreeMap, BTreeSet};

use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::{DeliveryKey, DestinationId};
use whrelay_core::order::Order;
use whrelay_core::queue::{
    DueCursor, DuePage, QueueKind, QueuePage, QueueQuery, WaitReason, Waiting, Wanted,
};
use whrelay_core::time::Timestamp;

/// What a record says of one delivery: where it waits, or that it has ended.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) destination: DestinationId,
    pub(crate) key: DeliveryKey,
    pub(crate) next: Option<Waiting>,
}

/// Rows computed from the records applied so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) applied: usize,
    rows: BTreeMap<DestinationId, BTreeMap<DeliveryKey, Waiting>>,
    /// Endpoint states are stored with the destination, not in the journal.
    pub(crate) back_since: BTreeMap<DestinationId, Timestamp>,
    /// Rows looked at.
    pub(crate) rows_read: usize,
}

impl View {
    pub(crate) fn apply(&mut self, record: &Record) {
        let rows = self.rows.entry(record.destination).or_default();
        match record.next {
            Some(next) => rows.insert(record.key, next),
            None => rows.remove(&record.key),
        };
        self.applied += 1;
    }

    pub(crate) fn due_destinations(
        &self,
        until: Timestamp,
        after: Option<DueCursor>,
        max: usize,
        now: Timestamp,
    ) -> DuePage {
        let rows = self.rows.iter().filter_map(|(id, rows)| {
            let back = self.back_since.get(id).copied();
            let at = rows.values().map(|row| listed_at(row, back, now)).min()?;
            (at <= until).then_some((at, *id))
        });
        let all: BTreeSet<_> = rows.collect();
        let later = all.into_iter().filter(|(at, destination)| {
            let cursor = DueCursor {
                at: *at,
                destination: *destination,
            };
            after.is_none_or(|after| cursor > after)
        });
        let page: Vec<_> = later.take(max).map(|(at, id)| (id, at)).collect();
        let next = page.last().filter(|_| page.len() == max);
        let next = next.map(|(destination, at)| DueCursor {
            at: *at,
            destination: *destination,
        });
        DuePage { rows: page, next }
    }

    pub(crate) fn page(&mut self, destination: DestinationId, load: &QueueQuery) -> QueuePage {
        let Some(rows) = self.rows.get(&destination) else {
            return QueuePage::default();
        };
        let all: Vec<Waiting> = rows.values().copied().collect();
        let mut page: Vec<Waiting> = Vec::new();
        let mut expired: Vec<&Waiting> = all.iter().collect();
        expired.retain(|row| row.deadline_at < load.expired_by);
        expired.sort_by_key(|row| (row.deadline_at, row.key));
        if load.wanted != Wanted::New {
            page.extend(expired.into_iter().take(load.max));
        }
        if load.wanted == Wanted::All && load.order == Order::Fifo {
            page.extend(firsts(&all, load));
        }
        match load.wanted {
            Wanted::All => page.extend(due(&all, load)),
            Wanted::New => page.extend(due(&all, load).iter().filter(|row| row.is_new())),
            Wanted::Expired => {}
        }
        let mut seen = BTreeSet::new();
        page.retain(|row| seen.insert(row.key));
        page.truncate(load.max);
        let taken: BTreeSet<_> = page.iter().map(|row| row.key).collect();
        let others = all.iter().filter(|row| !taken.contains(&row.key));
        let (back, now) = (load.due.back_since, load.due.now);
        self.rows_read += page.len();
        let follows = |row: &&Waiting| {
            let is_ordered = load.order == Order::Fifo && row.is_in_order(&load.due);
            is_ordered && taken.iter().any(|key| key.bucket == row.key.bucket)
        };
        let free = others.clone().filter(|row| !follows(row));
        QueuePage {
            next_at: free.map(|row| listed_at(row, back, now)).min(),
            has_more: others.clone().any(|row| follows(&row)),
            next_deadline_at: others.map(|row| row.deadline_at).min(),
            waiting: page,
        }
    }
}

/// When the view lists a row as due.
fn listed_at(row: &Waiting, back: Option<Timestamp>, now: Timestamp) -> Timestamp {
    match row.reason {
        WaitReason::Turn => row.created_at.min(now),
        WaitReason::Backoff { since, .. } | WaitReason::Offline { since, .. } if since > now => now,
        WaitReason::NotBefore(_) | WaitReason::Backoff { .. } | WaitReason::Offline { .. } => {
            row.due_at(back, now)
        }
    }
}

/// The first deliveries of each bucket that are in order.
fn firsts(all: &[Waiting], load: &QueueQuery) -> Vec<Waiting> {
    let mut buckets: BTreeMap<BucketId, Vec<Waiting>> = BTreeMap::new();
    for row in all.iter().filter(|row| row.is_in_order(&load.due)) {
        buckets.entry(row.key.bucket).or_default().push(*row);
    }
    let share = (load.max / 2 / buckets.len().max(1)).max(1);
    let firsts = buckets.into_values().flat_map(|mut rows| {
        rows.sort_by_key(|row| row.key);
        rows.into_iter().take(share)
    });
    firsts.collect()
}

fn due(all: &[Waiting], load: &QueueQuery) -> Vec<Waiting> {
    let mut due: Vec<Waiting> = all.to_vec();
    due.retain(|row| {
        let is_ordered = load.order == Order::Fifo && row.kind == QueueKind::Normal;
        let is_odd = match row.reason {
            WaitReason::Backoff { since, .. } | WaitReason::Offline { since, .. } => {
                since > load.due.now
            }
            WaitReason::Turn | WaitReason::NotBefore(_) => false,
        };
        !is_ordered && (row.is_due(&load.due) || is_odd)
    });
    let by = &load.due;
    due.sort_by_key(|row| {
        (
            listed_at(row, by.back_since, by.now),
            row.created_at,
            row.key,
        )
    });
    due
}
