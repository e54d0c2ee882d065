//! What is found by state and age, and what a person does to it.

use std::time::Duration;

use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::delivery::{Asked, Attempt, DeadReason, Delivery, DestinationId, State};
use whrelay_core::id::EventId;
use whrelay_core::queue::QueuePage;
use whrelay_core::retry::{Pause, Phase, Verdict};
use whrelay_core::time::Timestamp;
use whrelay_store::{Again, Begin, NewDelivery, NewEvent, RedbStore, Role, Search};

use crate::setup::{
    Destinations, NOW, attempt, bucket, due_at, event, indexes_are_whole, memory, new_delivery, to,
};

async fn store() -> (RedbStore, Bucket, DestinationId) {
    let store = memory(Role::Agent);
    let bucket = bucket(&store).await;
    let there = store
        .ensure_destination(bucket.id, "http://localhost:1")
        .await;
    (store, bucket, there.expect("stored"))
}

/// An event received so many seconds after [`NOW`].
fn at(seconds: u64, destination: DestinationId) -> NewEvent {
    let received_at = NOW.after(Duration::from_secs(seconds));
    let mut new = to(seconds, destination);
    new.event.received_at = received_at;
    new.event.id = EventId::from_parts(received_at, u128::from(seconds));
    new
}

fn first(store: &RedbStore, bucket: &Bucket, seq: u64) -> Delivery {
    let all = store.deliveries_of(bucket.id, Seq(seq)).expect("read");
    all.first().expect("a delivery").clone()
}

fn found(store: &RedbStore, bucket: &Bucket, states: &[State]) -> Vec<u64> {
    let search = Search {
        bucket: bucket.id,
        states: states.to_vec(),
        since: None,
        until: None,
    };
    let found = store
        .search(&search, Begin::Oldest, None, 99)
        .expect("read");
    found.into_iter().map(|(_, seq)| seq.0).collect()
}

async fn record(store: &RedbStore, bucket: &Bucket, seq: u64, verdict: Verdict) {
    let delivery = first(store, bucket, seq);
    let recorded = store.record(attempt(&delivery, verdict)).await;
    recorded.expect("stored");
}

const LATER: Verdict = Verdict::RetryAt {
    at: Timestamp::from_micros(NOW.as_micros() + 1_000_000),
    phase: Phase::Fast,
    pause: Pause::Backoff,
};

fn again(bucket: &Bucket, delivery: &Delivery, n: u64, later: u64) -> Again {
    let new = NewDelivery {
        replay: true,
        due_at: NOW.after(Duration::from_secs(later)),
        ..new_delivery(n, delivery.destination)
    };
    Again {
        bucket: bucket.id,
        seq: delivery.key.seq,
        event: delivery.event,
        new,
    }
}

#[tokio::test]
async fn an_event_is_found_by_its_least_finished_state_and_by_no_other() {
    let (store, bucket, there) = store().await;
    let events = (1..=4).map(|n| at(n, there)).collect();
    store.append(bucket.id, events, None).await.expect("stored");
    record(&store, &bucket, 1, Verdict::Sent).await;
    record(&store, &bucket, 2, LATER).await;
    record(&store, &bucket, 3, Verdict::Dead(DeadReason::Rejected)).await;
    let by = |states: &[State]| found(&store, &bucket, states);
    let each = || State::ALL.map(|state| by(&[state]));
    // In the order of `State::ALL`: queued, stalled, dead, sent.
    assert_eq!(each(), [vec![4], vec![2], vec![3], vec![1]]);
    assert_eq!(by(&[State::Dead, State::Queued]), [3, 4]);
    let dead = again(&bucket, &first(&store, &bucket, 3), 9, 0);
    let begun = store.deliver_again(vec![dead]).await.expect("stored");
    assert_eq!(each(), [vec![3, 4], vec![2], vec![], vec![1]]);
    let sent = attempt(&begun[0], Verdict::Sent);
    store.record(sent).await.expect("stored");
    assert_eq!(each(), [vec![4], vec![2], vec![], vec![1, 3]]);
    // A replay stands for what it repeats only once that has ended.
    let stalled = again(&bucket, &first(&store, &bucket, 2), 10, 0);
    let begun = store.deliver_again(vec![stalled]).await.expect("stored");
    let sent = attempt(&begun[0], Verdict::Sent);
    store.record(sent).await.expect("stored");
    assert_eq!(each(), [vec![4], vec![2], vec![], vec![1, 3]]);
    assert!(indexes_are_whole(&store));
}

#[tokio::test]
async fn a_search_goes_on_where_it_was_from_either_end_and_within_its_times() {
    let (store, bucket, there) = store().await;
    let events = (1..=7).map(|n| at(n, there)).collect();
    store.append(bucket.id, events, None).await.expect("stored");
    record(&store, &bucket, 3, Verdict::Sent).await;
    let mut search = Search {
        bucket: bucket.id,
        states: State::ALL.to_vec(),
        since: None,
        until: None,
    };
    let walk = |search: &Search, begin| {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let some = store.search(search, begin, after, 2).expect("read");
            let Some((last, _)) = some.last() else {
                return all;
            };
            after = Some(*last);
            all.extend(some.iter().map(|(_, seq)| seq.0));
        }
    };
    assert_eq!(walk(&search, Begin::Oldest), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(walk(&search, Begin::Newest), [7, 6, 5, 4, 3, 2, 1]);
    search.since = Some(NOW.after(Duration::from_secs(3)));
    search.until = Some(NOW.after(Duration::from_secs(5)));
    assert_eq!(walk(&search, Begin::Newest), [5, 4, 3]);
    search.until = Some(NOW);
    assert!(walk(&search, Begin::Newest).is_empty());
}

#[tokio::test]
async fn attempts_are_found_by_state_and_start_and_by_their_delivery() {
    let (store, bucket, there) = store().await;
    let events = (1..=2).map(|n| at(n, there)).collect();
    store.append(bucket.id, events, None).await.expect("stored");
    for (seq, seconds, verdict) in [
        (1, 5, LATER),
        (2, 1, LATER),
        (1, 9, Verdict::Sent),
        (2, 3, LATER),
    ] {
        let made = Attempt {
            at: NOW.after(Duration::from_secs(seconds)),
            ..attempt(&first(&store, &bucket, seq), verdict)
        };
        store.record(made).await.expect("stored");
    }
    let seconds = |found: Vec<whrelay_store::LoggedAttempt>| -> Vec<u64> {
        let since = |at: Timestamp| at.since(NOW).as_secs();
        found
            .into_iter()
            .map(|logged| since(logged.attempt.at))
            .collect()
    };
    let ever = (
        Timestamp::from_micros(i64::MIN),
        Timestamp::from_micros(i64::MAX),
    );
    let by = |states: &[State], bounds, after, max| {
        store
            .attempts_by_start(states, bounds, after, max)
            .expect("read")
    };
    assert_eq!(seconds(by(&State::ALL, ever, None, 9)), [9, 5, 3, 1]);
    assert_eq!(seconds(by(&[State::Stalled], ever, None, 2)), [5, 3]);
    let two = by(&[State::Stalled], ever, None, 2);
    let last = two.last().expect("two");
    let after = Some((last.attempt.at, last.place));
    assert_eq!(seconds(by(&[State::Stalled], ever, after, 9)), [1]);
    let bounds = (
        NOW.after(Duration::from_secs(2)),
        NOW.after(Duration::from_secs(5)),
    );
    assert_eq!(seconds(by(&State::ALL, bounds, None, 9)), [5, 3]);
    let of = |seq| {
        store
            .attempts_of(first(&store, &bucket, seq).key, 9)
            .expect("read")
    };
    assert_eq!((seconds(of(1)), seconds(of(2))), (vec![9, 5], vec![3, 1]));
}

#[tokio::test]
async fn only_what_waits_is_given_up_and_the_log_tells_of_it() {
    let (store, bucket, there) = store().await;
    let events = (1..=2).map(|n| at(n, there)).collect();
    store.append(bucket.id, events, None).await.expect("stored");
    record(&store, &bucket, 1, Verdict::Sent).await;
    let given_up = [1, 2].map(|seq| {
        let asked = Asked {
            target: "http://localhost:1".into(),
            url: "http://localhost:1/".into(),
            method: "POST".into(),
        };
        let delivery = first(&store, &bucket, seq);
        Attempt::given_up(&delivery, asked, NOW, DeadReason::Discarded, "unwanted")
    });
    let keys = store.give_up(given_up.to_vec()).await.expect("stored");
    assert_eq!(keys, [first(&store, &bucket, 2).key]);
    assert_eq!(first(&store, &bucket, 1).state, State::Sent);
    let dead = first(&store, &bucket, 2);
    assert_eq!(
        (dead.state, dead.reason),
        (State::Dead, Some(DeadReason::Discarded))
    );
    let log = store.attempts_of(dead.key, 9).expect("read");
    assert_eq!(log[0].attempt.error.as_deref(), Some("unwanted"));
    assert_eq!(due_at(&store, there, NOW), QueuePage::default());
}

#[tokio::test]
async fn what_is_passed_over_is_known_and_never_waits() {
    let (store, bucket, there) = store().await;
    let passed_over = NewDelivery {
        passed_over: true,
        one_off: false,
        ..new_delivery(1, there)
    };
    let new = NewEvent {
        event: event(1),
        deliveries: vec![passed_over],
    };
    store
        .append(bucket.id, vec![new], None)
        .await
        .expect("stored");
    let delivery = first(&store, &bucket, 1);
    assert_eq!(
        (delivery.state, delivery.reason),
        (State::Dead, Some(DeadReason::Discarded))
    );
    assert_eq!(due_at(&store, there, NOW), QueuePage::default());
    assert_eq!(store.counts(there).expect("read").dead, 1);
}
