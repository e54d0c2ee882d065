//! Ids of removed events are kept for a while, and not for ever.

use whrelay_core::delivery::State;
use whrelay_core::limits;
use whrelay_core::retention::{Bound, Part};
use whrelay_core::time::Timestamp;
use whrelay_store::{Begin, Options, Role, Search};

use crate::setup::*;

/// Where the oldest events waited no id was given up, and the bound filled with ids.
#[tokio::test]
async fn ids_of_removed_events_stay_few_though_older_events_wait() {
    const BOUND: u64 = 5_000_000;
    const STEP: u64 = 100;
    let options = Options {
        bound: Some(Bound {
            bytes: BOUND,
            shared: false,
        }),
        ..options(Role::Agent)
    };
    let store = in_memory(&options);
    let bucket = bucket(&store).await;
    let there = store.ensure_destination(bucket.id, "http://localhost:1");
    let there = there.await.expect("stored");
    let waiting = limits::TOMBSTONES_LOOKED_AT as u64 + STEP;
    let events = (1..=waiting).map(|n| to(n, there)).collect();
    store.append(bucket.id, events, None).await.expect("stored");
    let before = store.size();
    for first in (1..100).map(|step| waiting + step * STEP) {
        let ended = |n| {
            let mut new = to(n, there);
            new.deliveries[0].passed_over = true;
            new
        };
        let events = (first..first + STEP).map(ended).collect();
        store
            .append(bucket.id, events, None)
            .await
            .expect("there is room");
        let search = Search {
            bucket: bucket.id,
            states: vec![State::Dead],
            since: None,
            until: None,
        };
        let found = store.search(&search, Begin::Oldest, None, usize::MAX);
        let by = Timestamp::LAST;
        let removed =
            store.remove_finished(bucket.id, found.expect("read"), by, Part::Whole, usize::MAX);
        assert_eq!(removed.await.expect("stored").removed.len() as u64, STEP);
    }
    assert!(store.size() - before <= BOUND / 10 + 64 * STEP);
}
