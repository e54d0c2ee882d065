//! What retention removes is gone, takes no space, and is no loss; what waits stays.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::delivery::{DeadReason, DestinationId, State};
use whrelay_core::limits;
use whrelay_core::retention::{Bound, Part};
use whrelay_core::retry::{Pause, Phase, Verdict};
use whrelay_core::subscription::{Fate, Join, LeaseEpoch};
use whrelay_core::time::Timestamp;
use whrelay_store::{Again, Begin, Effort, Found, NewDelivery, Options, RedbStore, Role, Search};

use crate::setup::*;

const STALLED: Verdict = Verdict::RetryAt {
    at: NOW,
    phase: Phase::Fast,
    pause: Pause::Backoff,
};

/// A bucket with four events: sent, stalled, dead, and untried.
async fn four(store: &RedbStore) -> (Bucket, DestinationId) {
    let bucket = bucket(store).await;
    let there = store
        .ensure_destination(bucket.id, "http://localhost:1")
        .await
        .expect("stored");
    let events = (1..=4).map(|n| to(n, there)).collect();
    store.append(bucket.id, events, None).await.expect("stored");
    let verdicts = [Verdict::Sent, STALLED, Verdict::Dead(DeadReason::Rejected)];
    for (seq, verdict) in (1..).zip(verdicts) {
        record(store, &bucket, seq, verdict).await;
    }
    (bucket, there)
}

async fn record(store: &RedbStore, bucket: &Bucket, seq: u64, verdict: Verdict) {
    let delivery = store.deliveries_of(bucket.id, Seq(seq)).expect("read")[0].clone();
    let recorded = store.record(attempt(&delivery, verdict)).await;
    recorded.expect("stored");
}

fn all(store: &RedbStore, bucket: &Bucket) -> Vec<Found> {
    let search = Search {
        bucket: bucket.id,
        states: State::ALL.to_vec(),
        since: None,
        until: None,
    };
    store.search(&search, Begin::Oldest, None, 9).expect("read")
}

async fn remove(store: &RedbStore, bucket: &Bucket, by: Timestamp, part: Part) -> usize {
    let found = all(store, bucket);
    let removed = store
        .remove_finished(bucket.id, found, by, part, usize::MAX)
        .await;
    removed.expect("stored").removed.len()
}

fn places(store: &RedbStore, bucket: &Bucket) -> Vec<u64> {
    let batch = store.read_after(bucket, Seq(0), 99, 1 << 20).expect("read");
    assert_eq!(batch.damaged, [], "nothing is lost");
    batch.events.iter().map(|stored| stored.seq.0).collect()
}

#[tokio::test]
async fn what_has_ended_by_then_goes_whole_and_what_waits_stays() {
    let store = memory(Role::Agent);
    let (bucket, there) = four(&store).await;
    let before_it_ended = NOW;
    assert_eq!(
        remove(&store, &bucket, before_it_ended, Part::Whole).await,
        0
    );
    assert_eq!(
        remove(&store, &bucket, Timestamp::LAST, Part::Whole).await,
        2
    );
    assert_eq!(places(&store, &bucket), [2, 4]);
    assert_eq!(store.event_at(&bucket, Seq(3)).expect("read"), None);
    assert_eq!(store.deliveries_of(bucket.id, Seq(3)).expect("read"), []);
    let counts = store.counts(there).expect("read");
    assert_eq!(
        (counts.queued, counts.stalled, counts.sent, counts.dead),
        (1, 1, 0, 0)
    );
    assert_eq!(store.attempts_after(0, 9).expect("read").len(), 1);
    let removals = store.removals(bucket.id).expect("read");
    assert_eq!((removals.events, removals.sent, removals.dead), (2, 1, 1));
    assert!(indexes_are_whole(&store));
    assert!(store.census().expect("read").is_whole());
    record(&store, &bucket, 2, Verdict::Sent).await;
    record(&store, &bucket, 4, Verdict::Sent).await;
    assert_eq!(
        remove(&store, &bucket, Timestamp::LAST, Part::Whole).await,
        2
    );
    let ids = 4 * 64;
    assert_eq!(store.size(), ids, "all that was counted is counted back");
    let known = store.append(bucket.id, vec![to(2, there)], None).await;
    let known = known.expect("stored").remove(0);
    assert!(known.duplicate, "an event that comes again is known");
    assert_eq!(store.numbers(bucket.id).expect("read").pruned, Seq(4));
    let next = store.append(bucket.id, vec![to(5, there)], None).await;
    assert_eq!(
        next.expect("stored")[0].seq,
        Seq(5),
        "no place is given twice"
    );
}

#[tokio::test]
async fn bodies_go_first_and_what_an_event_was_stays() {
    let store = memory(Role::Agent);
    let (bucket, _) = four(&store).await;
    let (had, before) = (event(1).request.body.len() as u64, store.size());
    assert_eq!(
        remove(&store, &bucket, Timestamp::LAST, Part::Body).await,
        2
    );
    assert_eq!(
        remove(&store, &bucket, Timestamp::LAST, Part::Body).await,
        0
    );
    assert!(store.size() < before - had);
    let bare = store
        .event_at(&bucket, Seq(1))
        .expect("read")
        .expect("kept");
    assert_eq!((bare.removed_body, bare.request.body.len()), (Some(had), 0));
    assert_eq!(bare.request.headers, event(1).request.headers);
    let whole = store
        .event_at(&bucket, Seq(4))
        .expect("read")
        .expect("kept");
    assert_eq!(whole, event(4));
    let again = |seq: u64, n| Again {
        bucket: bucket.id,
        seq: Seq(seq),
        event: event(seq).id,
        new: NewDelivery {
            replay: true,
            ..new_delivery(n, DestinationId(1))
        },
    };
    for _ in 0..2 {
        let begun = store.deliver_again(vec![again(1, 8), again(4, 9)]).await;
        let begun: Vec<_> = begun.expect("stored").iter().map(|d| d.key.seq.0).collect();
        assert_eq!(begun, [4], "nothing is delivered without its body");
    }
    let there = store.deliveries_of(bucket.id, Seq(4)).expect("read");
    assert_eq!(there.len(), 2, "a second try begins nothing twice");
}

/// A step takes no longer than others can wait; what it leaves is for the next, not for a later sweep.
#[tokio::test]
async fn a_step_that_ends_early_says_how_far_it_looked() {
    const LARGE: usize = 12 << 20;
    let store = memory(Role::Agent);
    let bucket = bucket(&store).await;
    let there = store
        .ensure_destination(bucket.id, "http://localhost:1")
        .await
        .expect("stored");
    for n in 1..=3 {
        let mut new = to(n, there);
        new.event.request.body = Bytes::from(vec![0; LARGE]);
        let stored = store.append(bucket.id, vec![new], None).await;
        stored.expect("stored");
        record(&store, &bucket, n, Verdict::Sent).await;
    }
    let found = all(&store, &bucket);
    let swept = store
        .remove_finished(
            bucket.id,
            found,
            Timestamp::LAST,
            Part::Whole,
            limits::RETENTION_STEP_BYTES,
        )
        .await
        .expect("stored");
    let ids = [event(1).id, event(2).id];
    assert_eq!((&swept.removed[..], swept.upto), (&ids[..], Some(ids[1])));
    assert_eq!(places(&store, &bucket), [3]);
}

#[tokio::test]
async fn an_attempt_of_what_is_gone_by_now_leaves_nothing_behind() {
    let store = memory(Role::Agent);
    let (bucket, _) = four(&store).await;
    let delivery = store.deliveries_of(bucket.id, Seq(1)).expect("read")[0].clone();
    remove(&store, &bucket, Timestamp::LAST, Part::Whole).await;
    let last = store.last_attempt().expect("read");
    let late = store.record(attempt(&delivery, Verdict::Sent)).await;
    late.expect("stored");
    assert_eq!(store.last_attempt().expect("read"), last);
}

#[tokio::test]
async fn a_forwarder_keeps_what_not_every_subscription_has_receipted() {
    let store = memory(Role::Forwarder);
    let bucket = bucket(&store).await;
    let events = (1..=6).map(plain).collect();
    store.append(bucket.id, events, None).await.expect("stored");
    let sweep = async |by| {
        let removed = store.remove_receipted(bucket.id, by, Part::Whole, (2, usize::MAX));
        removed.await.expect("stored")
    };
    let oldest = || {
        store
            .oldest_receipted(&[bucket.id], Part::Whole, Timestamp::LAST)
            .expect("read")
            .pop()
            .map(|(at, _)| at)
    };
    assert_eq!(oldest(), None, "nobody has asked for them yet");
    assert_eq!(sweep(Timestamp::LAST).await, 0);
    for (name, upto) in [("laptop", 5), ("audit", 3)] {
        journal(&store)
            .ack(bucket.id, name, Seq(upto), LeaseEpoch::default())
            .await
            .expect("stored");
    }
    assert_eq!(oldest(), Some(NOW));
    assert_eq!(sweep(NOW.before(Duration::from_secs(1))).await, 0);
    assert_eq!(sweep(NOW).await, 2);
    assert_eq!(sweep(NOW).await, 1);
    assert_eq!((oldest(), sweep(NOW).await), (None, 0));
    assert_eq!(places(&store, &bucket), [4, 5, 6]);
    assert_eq!(store.find_event(event(3).id).expect("read"), None);
    let batch = store.read_after(&bucket, Seq(1), 1, 1).expect("read");
    assert_eq!(
        batch.events[0].seq,
        Seq(4),
        "an agent that is behind goes on there"
    );
}

#[tokio::test]
async fn a_forwarder_without_bodies_knows_what_came_and_sends_none_of_it() {
    let store = memory(Role::Forwarder);
    let bucket = bucket(&store).await;
    let events = (1..=6).map(plain).collect();
    store.append(bucket.id, events, None).await.expect("stored");
    for (name, upto) in [("laptop", 5), ("audit", 3)] {
        let acked = journal(&store)
            .ack(bucket.id, name, Seq(upto), LeaseEpoch::default())
            .await;
        acked.expect("stored");
    }
    let sweep = async |part, max| {
        let removed = store.remove_receipted(bucket.id, NOW, part, (max, usize::MAX));
        removed.await.expect("stored")
    };
    let before = store.size();
    assert_eq!(sweep(Part::Body, 2).await, 2);
    assert_eq!(sweep(Part::Body, 2).await, 1);
    assert_eq!(sweep(Part::Body, 2).await, 0, "not all have the fourth");
    let had: u64 = (1..=3).map(|n| event(n).body_len()).sum();
    assert!(store.size() < before - had / 2);
    for n in 1..=3 {
        let left = store.event_at(&bucket, Seq(n)).expect("read");
        let left = left.expect("kept");
        assert_eq!(left.removed_body, Some(event(n).body_len()));
        assert_eq!(left.request.headers, event(n).request.headers);
        let place = store.find_event(event(n).id).expect("read");
        assert_eq!(place, Some((bucket.id, Seq(n))));
    }
    assert_eq!(store.numbers(bucket.id).expect("read").pruned, Seq(3));
    assert_eq!(places(&store, &bucket), [4, 5, 6]);
    let census = store.census().expect("read");
    assert!(census.is_whole() && census.events == 6, "{census:?}");
    let removals = store.removals(bucket.id).expect("read");
    assert_eq!((removals.events, removals.bodies), (0, 3));
    assert_eq!(sweep(Part::Whole, 9).await, 3);
    assert_eq!(store.find_event(event(3).id).expect("read"), None);
    assert_eq!(places(&store, &bucket), [4, 5, 6]);
    let audit = journal(&store).ack(bucket.id, "audit", Seq(6), LeaseEpoch::default());
    audit.await.expect("stored");
    let laptop = journal(&store).ack(bucket.id, "laptop", Seq(6), LeaseEpoch::default());
    laptop.await.expect("stored");
    assert_eq!(sweep(Part::Body, 1).await, 1);
    assert_eq!(sweep(Part::Whole, 9).await, 3, "with bodies or without");
    assert_eq!(store.size(), 0, "all that was counted is counted back");
}

/// Where nothing is to be removed at the places that are looked at, the next look begins behind them.
#[tokio::test]
async fn a_forwarder_passes_over_what_has_no_body_to_remove() {
    let store = memory(Role::Forwarder);
    let bucket = bucket(&store).await;
    let events = (1..=6).map(|n| {
        let mut new = plain(n);
        if n < 4 {
            new.event.request.body = Bytes::new();
        }
        new
    });
    let stored = store.append(bucket.id, events.collect(), None).await;
    stored.expect("stored");
    let acked = journal(&store)
        .ack(bucket.id, "laptop", Seq(5), LeaseEpoch::default())
        .await;
    acked.expect("stored");
    let sweep = async || {
        let removed = store.remove_receipted(bucket.id, NOW, Part::Body, (3, usize::MAX));
        removed.await.expect("stored")
    };
    assert_eq!((sweep().await, sweep().await), (0, 2));
    let oldest = store.oldest_receipted(&[bucket.id], Part::Body, Timestamp::LAST);
    assert_eq!(oldest.expect("read"), []);
    let (_, has_body) = store.head_at(&bucket, Seq(1)).expect("read").expect("kept");
    assert!(has_body, "it never had another");
}

/// What a subscription never got, since it began later, nobody says that it has.
#[tokio::test]
async fn a_subscription_that_begins_late_has_not_receipted_what_was_gone_by_then() {
    let store = memory(Role::Forwarder);
    let bucket = bucket(&store).await;
    let events = (1..=4).map(plain).collect();
    store.append(bucket.id, events, None).await.expect("stored");
    let ack = async |name: &str, upto| {
        let acked = journal(&store)
            .ack(bucket.id, name, Seq(upto), LeaseEpoch::default())
            .await;
        acked.expect("stored");
    };
    ack("laptop", 3).await;
    let removed = store.remove_receipted(bucket.id, NOW, Part::Body, (2, usize::MAX));
    removed.await.expect("stored");
    ack("late", 2).await;
    ack("late", 4).await;
    let has = |name: &str| -> Vec<u64> {
        let stored = store.subscription(bucket.id, name).expect("read");
        let mine = stored.known().expect("there");
        (1..=4)
            .filter(|seq| mine.fate(Seq(*seq)) == Fate::Acknowledged)
            .collect()
    };
    assert_eq!((has("laptop"), has("late")), (vec![1, 2, 3], vec![3, 4]));
    let join = Join {
        claim: Some(claim(1)),
        ..join("laptop")
    };
    let joined = journal(&store).join(bucket.id, &join).await;
    let joined = joined.expect("stored").expect("room");
    assert_eq!(joined.after, Seq(2), "no more can be sent again");
    assert_eq!(has("laptop"), [1, 2]);
}

/// A page of bodies is not kept by the heads that were among them.
#[tokio::test]
async fn what_is_left_without_bodies_takes_its_own_space_and_no_more() {
    const EVENTS: u64 = 10_000;
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
    let bucket = bucket(&store).await;
    for first in (1..=EVENTS).step_by(500) {
        let large = |n| {
            let mut new = plain(n);
            new.event.request.body = Bytes::from(vec![7; 2000]);
            new
        };
        let events = (first..first + 500).map(large).collect();
        store.append(bucket.id, events, None).await.expect("stored");
    }
    let acked = journal(&store).ack(bucket.id, "laptop", Seq(EVENTS), LeaseEpoch::default());
    acked.await.expect("stored");
    let mut removed = 0;
    while removed < EVENTS {
        let some = store.remove_receipted(bucket.id, NOW, Part::Body, (500, usize::MAX));
        removed += some.await.expect("stored");
    }
    let given = store.give_back(Effort::Whatever).await;
    assert!(given.expect("open"));
    let (size, used) = (
        store.size(),
        whrelay_store::disk_used(dir.path()).expect("read"),
    );
    let fits = 2 * size + limits::RESERVE + MIB;
    assert!(used <= fits, "{used} bytes on disk for {size}");
}

#[tokio::test]
async fn at_its_bound_a_store_takes_nothing_in_and_lets_the_rest_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let bounded = Options {
        bound: Some(Bound {
            bytes: 5000,
            shared: false,
        }),
        ..options(Role::Agent)
    };
    let store = RedbStore::open(dir.path(), &bounded).expect("opens");
    let (bucket, there) = four(&store).await;
    let mut n = 4;
    let refused = loop {
        n += 1;
        if let Err(refused) = store.append(bucket.id, vec![to(n, there)], None).await {
            break refused;
        }
    };
    assert!(refused.is_retryable() && n < 20, "{n}: {refused}");
    let size = store.size();
    store.close().await;
    let store = RedbStore::open(dir.path(), &bounded).expect("opens");
    assert_eq!(store.size(), size, "it is known over restarts");
    record(&store, &bucket, 2, Verdict::Sent).await;
    remove(&store, &bucket, Timestamp::LAST, Part::Whole).await;
    let taken = store.append(bucket.id, vec![to(n, there)], None).await;
    taken.expect("there is room again");
}

#[tokio::test]
async fn the_disk_gets_back_what_is_free() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
    let bucket = bucket(&store).await;
    let there = store.ensure_destination(bucket.id, "http://localhost:1");
    let there = there.await.expect("stored");
    for n in 1..=100 {
        let mut new = if n == 100 { to(n, there) } else { plain(n) };
        new.event.request.body = Bytes::from(vec![n as u8; MIB as usize]);
        store
            .append(bucket.id, vec![new], None)
            .await
            .expect("stored");
    }
    let full = whrelay_store::disk_used(dir.path()).expect("read");
    assert!(
        !store.give_back(Effort::Moment).await.expect("open"),
        "nothing is free"
    );
    journal(&store)
        .ack(bucket.id, "laptop", Seq(99), LeaseEpoch::default())
        .await
        .expect("stored");
    let mut removed = 0;
    while removed < 99 {
        // Large ones go a few at a time, so that others get their turn.
        let most = (200, limits::RETENTION_STEP_BYTES);
        let some = store.remove_receipted(bucket.id, NOW, Part::Whole, most);
        let some = some.await.expect("stored");
        assert!((1..50).contains(&some), "{some} of {removed}");
        removed += some;
    }
    let (reads, reading) = mpsc::channel();
    let (leaves, leaving) = mpsc::channel::<()>();
    let reader = store.clone();
    let reader = thread::spawn(move || {
        reader.last_attempts(&[Some(1)], |_, _| {
            reads.send(()).expect("the test");
            // Its other end is dropped.
            let _ = leaving.recv();
        })
    });
    reading.recv().expect("it reads");
    let given = store.give_back(Effort::Moment).await.expect("open");
    assert!(!given, "someone reads");
    drop(leaves);
    reader.join().expect("no panic").expect("read");
    assert!(store.give_back(Effort::Moment).await.expect("open"));
    let left = whrelay_store::disk_used(dir.path()).expect("read");
    assert!(
        full > 100 * MIB && left < 8 * MIB,
        "{full} bytes, then {left}"
    );
    let batch = store
        .read_after(&bucket, Seq(0), 9, usize::MAX)
        .expect("read");
    assert_eq!(
        batch.events[0].event.request.body,
        vec![100u8; MIB as usize]
    );
    store
        .append(bucket.id, vec![plain(101)], None)
        .await
        .expect("it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_writes_go_on_while_the_disk_gets_its_space_back() {
    const MIB: usize = 1 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
    let bucket = bucket(&store).await;
    for n in 1..=120 {
        let mut new = plain(n);
        new.event.request.body = Bytes::from(vec![n as u8; MIB]);
        let stored = store.append(bucket.id, vec![new], None).await;
        stored.expect("stored");
    }
    let acked = journal(&store)
        .ack(bucket.id, "laptop", Seq(110), LeaseEpoch::default())
        .await;
    acked.expect("stored");
    while store.numbers(bucket.id).expect("read").pruned < Seq(110) {
        let most = (200, limits::RETENTION_STEP_BYTES);
        let removed = store.remove_receipted(bucket.id, NOW, Part::Whole, most);
        removed.await.expect("stored");
    }
    let done = Arc::new(AtomicBool::new(false));
    let reading = {
        let (store, bucket, done) = (store.clone(), bucket.clone(), Arc::clone(&done));
        std::thread::spawn(move || {
            let mut reads = 0;
            while !done.load(Ordering::SeqCst) {
                let event = store.event_at(&bucket, Seq(115)).expect("read");
                let body = event.expect("kept").request.body;
                assert!(body.iter().all(|byte| *byte == 115) && body.len() == MIB);
                reads += 1;
            }
            reads
        })
    };
    let giving = store.give_back(Effort::Moment);
    let writing = store.append(bucket.id, vec![plain(121)], None);
    let (given, written) = tokio::join!(giving, writing);
    assert!(given.expect("open"));
    assert_eq!(written.expect("stored")[0].seq, Seq(121));
    done.store(true, Ordering::SeqCst);
    let reads = reading.join();
    assert!(reads.expect("every read succeeds") > 0);
    assert!(whrelay_store::disk_used(dir.path()).expect("read") < 32 << 20);
}

#[tokio::test]
async fn an_event_of_which_a_delivery_is_damaged_stays_since_nobody_knows_how_it_ended() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opens");
    let bucket = bucket(&store).await;
    let mut new = plain(1);
    for n in [1, 2] {
        let target = format!("http://localhost:{n}");
        let there = store.ensure_destination(bucket.id, &target).await;
        new.deliveries.push(new_delivery(n, there.expect("stored")));
    }
    let lost = new.deliveries[1].id;
    store
        .append(bucket.id, vec![new], None)
        .await
        .expect("stored");
    record(&store, &bucket, 1, Verdict::Sent).await;
    store.close().await;
    assert!(crate::salvage::blot(dir.path(), &lost.to_bytes()) > 0);
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opens");
    let found = vec![(event(1).id, Seq(1))];
    for part in [Part::Body, Part::Whole] {
        let removed =
            store.remove_finished(bucket.id, found.clone(), Timestamp::LAST, part, usize::MAX);
        assert_eq!(removed.await.expect("stored").removed, []);
    }
    assert_eq!(
        store.event_at(&bucket, Seq(1)).expect("read"),
        Some(event(1))
    );
}

#[tokio::test]
async fn an_event_that_never_had_a_body_can_always_be_delivered_again() {
    let store = memory(Role::Agent);
    let bucket = bucket(&store).await;
    let there = store
        .ensure_destination(bucket.id, "http://localhost:1")
        .await;
    let mut new = to(1, there.expect("stored"));
    new.event.request.body = Bytes::new();
    store
        .append(bucket.id, vec![new], None)
        .await
        .expect("stored");
    record(&store, &bucket, 1, Verdict::Sent).await;
    assert_eq!(
        remove(&store, &bucket, Timestamp::LAST, Part::Body).await,
        0
    );
    let kept = store
        .event_at(&bucket, Seq(1))
        .expect("read")
        .expect("kept");
    assert_eq!(kept.removed_body, None);
}
