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
struct Oldest {
    part: Part,
    heap: BinaryHeap<Reverse<(Timestamp, BucketId)>>,
    /// When all buckets were asked.
    asked: Option<Instant>,
}

impl Oldest {
    fn new(part: Part) -> Self {
        Self {
            part,
            heap: BinaryHeap::new(),
            asked: None,
        }
    }

    /// The bucket that has the oldest event, if that was received by then. [`Oldest::ask_again`] asks it again.
    fn choose(
        &mut self,
        received_by: Timestamp,
        sweep_began: Instant,
        mut ask_all: impl FnMut(Part) -> Result<Asked, StoreError>,
    ) -> Result<Option<BucketId>, StoreError> {
        let recent = sweep_began.checked_sub(limits::RETENTION_ASKS);
        if self.asked < Some(recent.unwrap_or(sweep_began)) {
            self.ask(&mut ask_all)?;
        }
        let known = self.pop(received_by);
        if known.is_some() || self.asked >= Some(sweep_began) {
            return Ok(known);
        }
        self.ask(&mut ask_all)?;
        Ok(self.pop(received_by))
    }

    /// What there is in a bucket after a step.
    fn ask_again(&mut self, asked: Asked) {
        self.heap.extend(asked.into_iter().map(Reverse));
    }

    fn ask(
        &mut self,
        ask_all: &mut impl FnMut(Part) -> Result<Asked, StoreError>,
    ) -> Result<(), StoreError> {
        let now = Instant::now();
        self.heap = ask_all(self.part)?.into_iter().map(Reverse).collect();
        self.asked = Some(now);
        Ok(())
    }

    fn pop(&mut self, received_by: Timestamp) -> Option<BucketId> {
        let Reverse((at, bucket)) = *self.heap.peek()?;
        if at > received_by {
            return None;
        }
        self.heap.pop();
        Some(bucket)
    }
}

struct Receipted<'a> {
    shared: &'a Shared,
    bodies: Oldest,
    events: Oldest,
    /// When the sweep began.
    began: Instant,
}

impl<'a> Receipted<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            bodies: Oldest::new(Part::Body),
            events: Oldest::new(Part::Whole),
            began: Instant::now(),
        }
    }

    /// A step in the bucket that has the oldest event to go. Answers how many went, and nothing where there is none.
    async fn remove(
        &mut self,
        received_by: Timestamp,
        part: Part,
        step: Step,
    ) -> Result<Option<u64>, StoreError> {
        let Shared {
            store, registry, ..
        } = self.shared;
        let oldest = match part {
            Part::Body => &mut self.bodies,
            Part::Whole => &mut self.events,
        };
        let ask_all = |part| {
            let all: Vec<_> = registry.all().iter().map(|bucket| bucket.id).collect();
            let mut found = Vec::new();
            for some in all.chunks(ASKED_AT_ONCE) {
                found.append(&mut store.oldest_receipted(some, part)?);
            }
            Ok(found)
        };
        let Some(bucket) = oldest.choose(received_by, self.began, ask_all)? else {
            return Ok(None);
        };
        let most = (step.max_events, step.max_bytes);
        let removed = store.remove_receipted(bucket, received_by, part, most);
        let removed = removed.await;
        oldest.ask_again(store.oldest_receipted(&[bucket], part)?);
        removed.map(Some)
    }
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

    fn first(events: &HashMap<BucketId, Vec<Timestamp>>, bucket: BucketId) -> Asked {
        let first = events[&bucket].first().copied();
        first.map(|at| (at, bucket)).into_iter().collect()
    }

    /// Once each step asked every bucket: pruning beside 10,000 buckets took six times the CPU.
    #[test]
    fn a_sweep_asks_every_bucket_once_and_after_a_step_only_that_bucket() {
        let all: Vec<_> = (1..=1000).map(BucketId).collect();
        let mut events: HashMap<_, _> = (all.iter().copied())
            .map(|bucket| (bucket, vec![at(bucket.0), at(5000 + bucket.0)]))
            .collect();
        let (mut oldest, mut asked, mut steps) = (Oldest::new(Part::Whole), 0, 0);
        let (began, mut order) = (Instant::now(), Vec::new());
        loop {
            let ask = |_| {
                asked += all.len();
                Ok(all.iter().flat_map(|one| first(&events, *one)).collect())
            };
            let Some(bucket) = oldest.choose(NOW, began, ask).expect("read") else {
                break;
            };
            order.push(events.get_mut(&bucket).expect("known").remove(0));
            oldest.ask_again(first(&events, bucket));
            (asked, steps) = (asked + 1, steps + 1);
        }
        assert_eq!(steps, 2 * all.len());
        assert!(order.is_sorted(), "the oldest goes first: {order:?}");
        assert!(asked <= all.len() + steps, "{asked} in {steps} steps");
    }

    #[test]
    fn the_next_sweep_finds_what_was_receipted_since() {
        let mut oldest = Oldest::new(Part::Body);
        let began = Instant::now();
        let none = oldest.choose(NOW, began, |_| Ok(Vec::new()));
        assert_eq!(none.expect("read"), None);
        let later = Instant::now();
        let receipted = |_| Ok(vec![(at(7), BucketId(3)), (NOW, BucketId(1))]);
        let found = oldest.choose(at(8), later, receipted);
        assert_eq!(found.expect("read"), Some(BucketId(3)));
        let too_new = oldest.choose(at(8), later, |_| panic!("it was asked in this sweep"));
        assert_eq!(too_new.expect("known"), None);
    }
}
