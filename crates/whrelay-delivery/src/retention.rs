//! When a store is swept of what has ended, and how much at once. It must not know how that is removed, nor what
//! it was.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use whrelay_core::limits;
use whrelay_core::retention::{Part, Retention};
use whrelay_core::time::Timestamp;
use whrelay_store::{Effort, Store, StoreError};

use crate::Clock;

/// What is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// What ended by then, whole: its time is over.
    Over(Timestamp),
    /// That part of the oldest that has ended: its space is needed.
    Oldest(Part),
}

/// A little of it, so that between two steps others get their turn.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What is to go.
    pub sweep: Sweep,
    /// Events that are looked at, at most.
    pub max_events: usize,
    /// Bytes of records after which no further one is looked at.
    pub max_bytes: usize,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Whole events.
    pub events: u64,
    /// Bodies of events that were kept otherwise.
    pub bodies: u64,
}

impl Removed {
    fn add(&mut self, other: Self) {
        self.events += other.events;
        self.bodies += other.bodies;
    }
}

/// Why a sweep was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The time of what went was over.
    Over,
    /// Space was needed.
    Room,
}

/// Who removes.
pub trait Sweeper {
    /// A sweep begins, of as many steps as it takes.
    fn begin(&mut self) {}

    /// Takes a step. Answers what was removed, and whether there may be more.
    fn step(
        &mut self,
        step: Step,
    ) -> impl Future<Output = Result<(Removed, bool), StoreError>> + Send;

    /// Tells what all steps of a sweep have removed, if anything.
    fn tell(&self, why: Why, removed: Removed);
}

/// Sweeps a store until `stop`: every minute what is over, and whenever its bound is near what is oldest.
///
/// # Errors
/// When the store has stopped for good.
pub async fn keep(
    retention: Retention,
    store: &Store,
    clock: &Clock,
    stop: &CancellationToken,
    mut sweeper: impl Sweeper,
) -> Result<(), StoreError> {
    let mut minute = Instant::now();
    while !stop.is_cancelled() {
        let due = Instant::now() >= minute;
        if due {
            minute = Instant::now() + limits::RETENTION_EVERY;
        }
        let swept = async {
            if due && let Some(by) = retention.over(clock.moment().certain) {
                remove_over(by, &mut sweeper).await?;
            }
            let room = make_room(retention, store, &mut sweeper).await?;
            if due {
                store.journal.give_back(Effort::Moment).await?;
            }
            Ok(room)
        };
        let room = match swept.await {
            Ok(room) => room,
            Err(error @ StoreError::Damaged(_)) => {
                tracing::error!(%error, "what has ended is not removed");
                false
            }
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "what has ended is removed later");
                false
            }
            Err(error) => return Err(error),
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep_until(minute) => {}
            () = lack_of_room(retention, store, room) => {}
        }
    }
    Ok(())
}

async fn remove_over(by: Timestamp, sweeper: &mut impl Sweeper) -> Result<(), StoreError> {
    let step = Step {
        sweep: Sweep::Over(by),
        max_events: limits::RETENTION_STEP,
        max_bytes: limits::RETENTION_STEP_BYTES,
    };
    let mut all = Removed::default();
    sweeper.begin();
    let ended = loop {
        match sweeper.step(step).await {
            Ok((removed, more)) => {
                all.add(removed);
                if !more {
                    break Ok(());
                }
            }
            Err(error) => break Err(error),
        }
    };
    if all != Removed::default() {
        sweeper.tell(Why::Over, all);
    }
    ended
}

/// Removes what is oldest until there is room. Answers whether there is.
async fn make_room(
    retention: Retention,
    store: &Store,
    sweeper: &mut impl Sweeper,
) -> Result<bool, StoreError> {
    let (mut all, mut more) = (Removed::default(), true);
    let mut ended = Ok(());
    sweeper.begin();
    while more
        && ended.is_ok()
        && retention.needs_room(store.view.size(), all != Removed::default())
    {
        match remove_oldest(retention, store, sweeper).await {
            Ok((removed, goes_on)) => {
                all.add(removed);
                more = goes_on;
            }
            Err(error) => ended = Err(error),
        }
    }
    if all != Removed::default() {
        sweeper.tell(Why::Room, all);
    }
    ended.map(|()| more)
}

/// Removes a little of what is oldest, and no more than has to go. Answers whether there may be more.
async fn remove_oldest(
    retention: Retention,
    store: &Store,
    sweeper: &mut impl Sweeper,
) -> Result<(Removed, bool), StoreError> {
    let excess = usize::try_from(retention.excess(store.view.size())).unwrap_or(usize::MAX);
    let held = store.view.held().await?;
    for part in held.order() {
        let step = Step {
            sweep: Sweep::Oldest(part),
            max_events: held.step(),
            max_bytes: excess.min(limits::RETENTION_STEP_BYTES),
        };
        let (removed, more) = sweeper.step(step).await?;
        if more {
            return Ok((removed, true));
        }
    }
    Ok((Removed::default(), false))
}

/// Waits until room is needed. Where there was nothing that could go, asking again at once would be in vain.
async fn lack_of_room(retention: Retention, store: &Store, room: bool) {
    let mut commits = store.journal.appended();
    if !room {
        tokio::time::sleep(limits::RETENTION_AGAIN).await;
    }
    while !retention.needs_room(store.view.size(), false) {
        if commits.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use whrelay_core::bucket::{Bucket, BucketKey, Seq};
    use whrelay_core::event::{Event, Request};
    use whrelay_core::id::EventId;
    use whrelay_core::retention::Bound;
    use whrelay_core::subscription::LeaseEpoch;
    use whrelay_store::{NewEvent, Options, Role};

    use super::*;

    const BOUND: u64 = 1_000_000;
    const RETENTION: Retention = Retention {
        max_disk: Some(Bound {
            bytes: BOUND,
            shared: false,
        }),
        ..Retention::ALL
    };

    struct Receipted<'a>(&'a Store, &'a Bucket);

    impl Sweeper for Receipted<'_> {
        async fn step(&mut self, step: Step) -> Result<(Removed, bool), StoreError> {
            let Self(store, bucket) = self;
            let Sweep::Oldest(part) = step.sweep else {
                return Ok((Removed::default(), false));
            };
            if store
                .view
                .oldest_receipted(&[bucket.id], part, Timestamp::LAST)
                .await?
                .is_empty()
            {
                return Ok((Removed::default(), false));
            }
            let most = (step.max_events, step.max_bytes);
            let went = store
                .journal
                .remove_receipted(vec![bucket.id], Timestamp::LAST, part, most);
            let (events, _) = went.await?;
            Ok((Removed { events, bodies: 0 }, true))
        }

        fn tell(&self, _: Why, _: Removed) {}
    }

    async fn store(dir: &std::path::Path) -> (Store, Bucket) {
        let options = Options {
            role: Role::Forwarder,
            cache: 4 << 20,
            name_seed: 7,
            purpose: "test",
            bound: None,
        };
        let store = Store::open(dir, &options).expect("opens");
        let name = "shop".parse().expect("a name");
        let key = BucketKey::mint(&name, [3; 26]);
        let (bucket, _) = store
            .catalog
            .ensure_bucket(&name, key)
            .await
            .expect("stored");
        (store, bucket)
    }

    async fn receive(store: &Store, bucket: &Bucket, n: u64) {
        let request = Request {
            method: "POST".into(),
            tail: String::new(),
            query: None,
            headers: Vec::new(),
            body: vec![7; 10_000].into(),
        };
        let event = Event {
            id: EventId::from_parts(Timestamp::EPOCH, u128::from(n)),
            bucket: bucket.name.clone(),
            received_at: Timestamp::EPOCH,
            request,
            removed_body: None,
        };
        let deliveries = Vec::new();
        let new = NewEvent { event, deliveries };
        let stored = store.journal.receive(bucket.id, vec![new], None).await;
        stored.expect("stored");
    }

    /// Once it paused after each sweep, and refused what there would have been room for.
    #[tokio::test]
    async fn a_sweep_that_made_room_is_followed_by_the_next_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, bucket) = store(dir.path()).await;
        for n in 1..=1000 {
            receive(&store, &bucket, n).await;
            let acked = store
                .journal
                .ack(bucket.id, "laptop", Seq(n), LeaseEpoch::default())
                .await;
            acked.expect("stored");
            let before = store.view.size();
            let room = make_room(RETENTION, &store, &mut Receipted(&store, &bucket)).await;
            assert!(
                room.expect("removed"),
                "there is always something that can go"
            );
            assert!(!RETENTION.needs_room(store.view.size(), false));
            let went = before - store.view.size();
            assert!(went < BOUND / 8, "{went} bytes went at once, of {before}");
        }
        let held = store.view.held().await.expect("read");
        assert!(held.bare > 20 && held.whole > 20, "{held:?}");
        assert!(held.bare <= held.whole + held.step() as u64, "{held:?}");
        let kept = store
            .journal
            .read_after(&bucket, Seq(0), 999, usize::MAX)
            .await;
        let kept = kept.expect("read").events;
        let newest = kept.last().expect("some").seq;
        assert_eq!((newest, kept.len() as u64), (Seq(1000), held.whole));
    }

    #[tokio::test]
    async fn where_nothing_can_go_there_is_no_room() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, bucket) = store(dir.path()).await;
        for n in 1..=100 {
            receive(&store, &bucket, n).await;
        }
        let size = store.view.size();
        let room = make_room(RETENTION, &store, &mut Receipted(&store, &bucket)).await;
        assert!(!room.expect("read") && size > BOUND && store.view.size() == size);
    }
}
