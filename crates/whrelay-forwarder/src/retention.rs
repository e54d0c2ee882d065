//! What a forwarder no longer keeps: the oldest events of a bucket that every subscription has receipted, and
//! where space is needed first their bodies. It must not know when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use tokio::time::Instant;
use whrelay_core::bucket::BucketId;
use whrelay_core::limits;
use whrelay_core::retention::{Part, Retention};
use whrelay_core::time::Timestamp;
use whrelay_delivery::{Removed, Step, Sweep, Sweeper, Why, keep};
use whrelay_store::StoreError;

use crate::Shared;

/// Sweeps until the forwarder stops.
pub(crate) async fn run(shared: Arc<Shared>, retention: Retention) -> Result<(), StoreError> {
    let Shared {
        store, clock, stop, ..
    } = &*shared;
    keep(retention, store, clock, stop, Receipted::new(&shared)).await
}

/// Buckets that are asked in one transaction: some milliseconds.
const ASKED_AT_ONCE: usize = 1000;

/// When the oldest events of some buckets were received, of those that have any that may go.
type Asked = Vec<(Timestamp, BucketId)>;

/// When the oldest events of buckets were received, of which a part may go. It is asked of one bucket after a
/// step there, and of all buckets only where what is known is old, or leads nowhere.
#[derive(Default)]
struct Oldest {
    heap: BinaryHeap<Reverse<(Timestamp, BucketId)>>,
    /// When all buckets were asked.
    asked: Option<Instant>,
}

impl Oldest {
    /// Up to `max` buckets that have the oldest events, of those that were received by then. They are known no more
    /// until [`Oldest::learn`] has them again. `None` if all buckets have to be asked first.
    fn choose(
        &mut self,
        received_by: Timestamp,
        max: usize,
        sweep_began: Instant,
    ) -> Option<Asked> {
        let recent = sweep_began.checked_sub(limits::RETENTION_ASKS);
        if self.asked < Some(recent.unwrap_or(sweep_began)) {
            return None;
        }
        let known = self.pop(received_by, max);
        (!known.is_empty() || self.asked >= Some(sweep_began)).then_some(known)
    }

    /// What there is in buckets now.
    fn learn(&mut self, asked: impl IntoIterator<Item = (Timestamp, BucketId)>) {
        self.heap.extend(asked.into_iter().map(Reverse));
    }

    /// What all buckets have now.
    fn replace(&mut self, asked: Asked) {
        self.heap = asked.into_iter().map(Reverse).collect();
        self.asked = Some(Instant::now());
    }

    fn pop(&mut self, received_by: Timestamp, max: usize) -> Asked {
        let mut popped = Vec::new();
        while popped.len() < max
            && let Some(Reverse((at, bucket))) = self.heap.peek().copied()
            && at <= received_by
        {
            self.heap.pop();
            popped.push((at, bucket));
        }
        popped
    }
}

struct Receipted<'a> {
    shared: &'a Shared,
    bodies: Oldest,
    events: Oldest,
    /// Apart from `events`: the events of an ended subscription go earlier where space is needed.
    over: Oldest,
    /// When the sweep began.
    began: Instant,
}

impl<'a> Receipted<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            bodies: Oldest::default(),
            events: Oldest::default(),
            over: Oldest::default(),
            began: Instant::now(),
        }
    }

    /// A step in the buckets that have the oldest events to go. Answers how many went, and nothing where there is none.
    async fn remove(
        &mut self,
        received_by: Timestamp,
        part: Part,
        step: Step,
    ) -> Result<Option<u64>, StoreError> {
        let Shared { store, .. } = self.shared;
        let oldest = match step.sweep {
            Sweep::Oldest(Part::Body) => &mut self.bodies,
            Sweep::Oldest(Part::Whole) => &mut self.events,
            Sweep::Over(_) => &mut self.over,
        };
        // What is over goes in any order, so that one commit does for many buckets that have little of it.
        let max = match step.sweep {
            Sweep::Over(_) => step.max_events,
            Sweep::Oldest(_) => 1,
        };
        let chosen = loop {
            match oldest.choose(received_by, max, self.began) {
                Some(chosen) => break chosen,
                None => oldest.replace(ask_all(self.shared, part, received_by).await?),
            }
        };
        if chosen.is_empty() {
            return Ok(None);
        }
        let buckets: Vec<_> = chosen.iter().map(|(_, bucket)| *bucket).collect();
        let most = (step.max_events, step.max_bytes);
        let removed = store
            .journal
            .remove_receipted(buckets.clone(), received_by, part, most);
        let removed = removed.await;
        let looked_at = removed
            .as_ref()
            .map_or(buckets.len(), |(_, buckets)| *buckets);
        oldest.learn(
            store
                .view
                .oldest_receipted(&buckets[..looked_at], part, received_by)
                .await?,
        );
        oldest.learn(chosen.into_iter().skip(looked_at));
        removed.map(|(removed, _)| Some(removed))
    }
}

/// What all buckets have of which that part may go.
async fn ask_all(shared: &Shared, part: Part, by: Timestamp) -> Result<Asked, StoreError> {
    let all: Vec<_> = shared
        .registry
        .all()
        .iter()
        .map(|bucket| bucket.id)
        .collect();
    let mut found = Vec::new();
    for some in all.chunks(ASKED_AT_ONCE) {
        let view = &shared.store.view;
        found.append(&mut view.oldest_receipted(some, part, by).await?);
    }
    Ok(found)
}

impl Sweeper for Receipted<'_> {
    fn begin(&mut self) {
        self.began = Instant::now();
    }

    async fn step(&mut self, step: Step) -> Result<(Removed, bool), StoreError> {
        let (received_by, part) = match step.sweep {
            Sweep::Over(by) => (by, Part::Whole),
            Sweep::Oldest(part) => (Timestamp::LAST, part),
        };
        let went = self.remove(received_by, part, step).await?;
        let removed = match part {
            Part::Body => Removed {
                bodies: went.unwrap_or(0),
                events: 0,
            },
            Part::Whole => Removed {
                events: went.unwrap_or(0),
                bodies: 0,
            },
        };
        Ok((removed, went.is_some()))
    }

    fn tell(&self, why: Why, removed: Removed) {
        let why = match why {
            Why::Over => "its time is over",
            Why::Room => "space was needed",
        };
        tracing::info!(
            events = removed.events,
            bodies = removed.bodies,
            why,
            "what was receipted is removed"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    fn at(n: u32) -> Timestamp {
        Timestamp::from_micros(i64::from(n))
    }

    type Events = HashMap<BucketId, Vec<Timestamp>>;

    fn first(events: &Events, bucket: BucketId) -> Asked {
        let first = events[&bucket].first().copied();
        first.map(|at| (at, bucket)).into_iter().collect()
    }

    /// Sweeps buckets of two events each, of which a step takes one. Answers how often a bucket was asked, and in
    /// which order events went.
    fn sweep(max: usize) -> (usize, Vec<Timestamp>) {
        let all: Vec<_> = (1..=1000).map(BucketId).collect();
        let two = |bucket: BucketId| vec![at(bucket.0), at(5000 + bucket.0)];
        let mut events: Events = all.iter().map(|bucket| (*bucket, two(*bucket))).collect();
        let (mut oldest, mut asked) = (Oldest::default(), 0);
        let (began, mut order) = (Instant::now(), Vec::new());
        loop {
            let Some(chosen) = oldest.choose(NOW, max, began) else {
                asked += all.len();
                oldest.replace(all.iter().flat_map(|one| first(&events, *one)).collect());
                continue;
            };
            assert!(chosen.len() <= max);
            if chosen.is_empty() {
                return (asked, order);
            }
            for (_, bucket) in chosen {
                order.push(events.get_mut(&bucket).expect("known").remove(0));
                oldest.learn(first(&events, bucket));
                asked += 1;
            }
        }
    }

    /// Once each step asked every bucket: pruning beside 10,000 buckets took six times the CPU.
    #[test]
    fn a_sweep_asks_every_bucket_once_and_after_a_step_only_those_of_the_step() {
        for max in [1, 500] {
            let (asked, order) = sweep(max);
            assert_eq!(order.len(), 2000);
            assert!(order.is_sorted(), "the oldest go first: {order:?}");
            assert!(asked <= 3000, "{asked}");
        }
    }

    #[test]
    fn the_next_sweep_finds_what_was_receipted_since() {
        let mut oldest = Oldest::default();
        let began = Instant::now();
        assert_eq!(oldest.choose(NOW, 9, began), None);
        oldest.replace(Vec::new());
        assert_eq!(oldest.choose(NOW, 9, began), Some(Vec::new()));
        let later = Instant::now();
        assert_eq!(oldest.choose(at(8), 9, later), None);
        oldest.replace(vec![(at(7), BucketId(3)), (NOW, BucketId(1))]);
        let found = oldest.choose(at(8), 9, later);
        assert_eq!(found, Some(vec![(at(7), BucketId(3))]));
        let too_new = oldest.choose(at(8), 9, later);
        assert_eq!(too_new, Some(Vec::new()), "it was asked in this sweep");
    }
}
