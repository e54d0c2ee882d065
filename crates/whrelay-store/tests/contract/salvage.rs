//! Stores that nothing opens any more: what is whole is saved, what is lost is named, and nothing that a
//! sender wrote is taken for the store's own.

use std::fs;
use std::path::Path;

use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::delivery::{DestinationId, State};
use whrelay_core::retention::Part;
use whrelay_core::retry::Verdict;
use whrelay_core::subscription::LeaseEpoch;
use whrelay_core::time::Timestamp;
use whrelay_store::{
    Begin, Effort, NewEvent, RedbStore, Role, SalvageError, Salvaged, Search, SourceMark, salvage,
};

use crate::setup::*;

const LATER: Timestamp = Timestamp::from_micros(i64::MAX);
const EVENTS: u64 = 60;

pub(crate) fn save(dir: &Path) -> Result<Salvaged, SalvageError> {
    let mut n = 1000;
    let ids = || {
        n += 1;
        n
    };
    salvage(dir, NOW, LATER, ids)
}

fn file(dir: &Path) -> std::path::PathBuf {
    dir.join("store.redb")
}

/// Makes redb's own structure senseless: what leads to the leaves is at the front.
pub(crate) fn behead(dir: &Path) {
    let mut bytes = fs::read(file(dir)).expect("a store");
    bytes[..4096].fill(0xee);
    fs::write(file(dir), bytes).expect("written");
}

/// Changes a byte of every copy of a text in the file; answers how many there were.
pub(crate) fn blot(dir: &Path, text: &[u8]) -> usize {
    let mut bytes = fs::read(file(dir)).expect("a store");
    let places: Vec<_> = bytes
        .windows(text.len())
        .enumerate()
        .filter(|(_, window)| *window == text)
        .map(|(place, _)| place)
        .collect();
    for place in &places {
        bytes[*place] ^= 1;
    }
    fs::write(file(dir), bytes).expect("written");
    places.len()
}

/// An agent with events of which the odd ones are sent.
async fn agent(dir: &Path) -> (Bucket, DestinationId) {
    let store = RedbStore::open(dir, &options(Role::Agent)).expect("opens");
    let name = "shop".parse().expect("a name");
    let key = whrelay_core::bucket::BucketKey::from_text("shop");
    let (bucket, _) = store.ensure_bucket(&name, key).await.expect("a bucket");
    let there = store.ensure_destination(bucket.id, "http://localhost:1");
    let there = there.await.expect("stored");
    for n in 1..=EVENTS {
        let mark = SourceMark {
            forwarder: "cloud".into(),
            start: Seq(0),
            seq: Seq(n),
            events: Vec::new(),
        };
        let stored = store
            .append(bucket.id, vec![to(n, there)], Some(mark))
            .await;
        let seq = stored.expect("stored")[0].seq;
        if n % 2 == 1 {
            let delivery = store.deliveries_of(bucket.id, seq).expect("read").remove(0);
            let recorded = store.record(attempt(&delivery, Verdict::Sent)).await;
            recorded.expect("stored");
        }
    }
    store.close().await;
    (bucket, there)
}

#[tokio::test]
async fn a_store_without_a_head_comes_back_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bucket, there) = agent(dir.path()).await;
    behead(dir.path());
    assert!(RedbStore::open(dir.path(), &options(Role::Agent)).is_err());
    let saved = save(dir.path()).expect("saved");
    assert_eq!(
        (saved.role, saved.events, saved.deliveries, saved.attempts),
        (Role::Agent, EVENTS, EVENTS, EVENTS / 2)
    );
    assert!(saved.lost.is_empty() && saved.begun_again == 0);
    assert!(saved.kept.exists(), "the damaged file is kept");
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opens");
    for n in 1..=EVENTS {
        let found = store.event_at(&bucket, Seq(n)).expect("read");
        assert_eq!(found, Some(event(n)));
    }
    let counts = store.counts(there).expect("read");
    assert_eq!((counts.queued, counts.sent), (EVENTS / 2, EVENTS / 2));
    assert_eq!(
        due(&store, there, NOW),
        (2..=EVENTS).step_by(2).collect::<Vec<_>>()
    );
    assert!(indexes_are_whole(&store));
    let mark = store.source(bucket.id).expect("read").expect("a mark");
    assert_eq!(mark.seq, Seq(EVENTS));
    let next = store.append(bucket.id, vec![to(99, there)], None).await;
    assert_eq!(next.expect("stored")[0].seq, Seq(EVENTS + 1));
}

#[tokio::test]
async fn an_agent_asks_its_forwarder_again_for_what_is_lost_and_for_nothing_that_was_sent() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bucket, there) = agent(dir.path()).await;
    // The paths of an event that was sent and of one that was not, as their records have them.
    for n in [7, 8] {
        let tail = [&[2, b'/', b'0' + n][..], &[1, 9][..]].concat();
        assert!(blot(dir.path(), &tail) > 0);
    }
    let saved = save(dir.path()).expect("saved");
    assert_eq!(saved.events, EVENTS - 2);
    assert_eq!(saved.lost, [(bucket.id, Seq(8))]);
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opens");
    let census = store.census().expect("read");
    assert!(
        census.is_whole() && census.lost_events == 2,
        "all is named: {census:?}"
    );
    let mark = store.source(bucket.id).expect("read").expect("a mark");
    assert_eq!((mark.forwarder.as_str(), mark.seq), ("cloud", Seq(0)));
    let again = vec![to(7, there), to(8, there), to(9, there)];
    let receipts = store.append(bucket.id, again, None).await.expect("stored");
    let new: Vec<_> = receipts.iter().map(|receipt| !receipt.duplicate).collect();
    assert_eq!(new, [false, true, false]);
}

#[tokio::test]
async fn what_retention_had_removed_does_not_come_back_and_is_no_loss() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bucket, there) = agent(dir.path()).await;
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opens");
    let search = Search {
        bucket: bucket.id,
        states: vec![State::Sent],
        since: None,
        until: None,
    };
    let sent = store
        .search(&search, Begin::Oldest, None, 20)
        .expect("read");
    let removed = store
        .remove_finished(bucket.id, sent, Timestamp::LAST, Part::Whole, usize::MAX)
        .await
        .expect("stored")
        .removed;
    assert_eq!(removed.len(), 20);
    let (size, removals) = (store.size(), store.removals(bucket.id).expect("read"));
    store.close().await;
    behead(dir.path());
    let saved = save(dir.path()).expect("saved");
    assert_eq!(
        (saved.events, saved.attempts),
        (EVENTS - 20, EVENTS / 2 - 20)
    );
    assert!(saved.lost.is_empty() && saved.begun_again == 0, "{saved:?}");
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opens");
    for id in removed {
        assert_eq!(store.find_event(id).expect("read"), None);
    }
    assert_eq!(store.removals(bucket.id).expect("read"), removals);
    // The ids of what was removed are not saved.
    assert_eq!(store.size(), size - 20 * 64);
    let counts = store.counts(there).expect("read");
    assert_eq!((counts.queued, counts.sent), (EVENTS / 2, EVENTS / 2 - 20));
    assert!(store.census().expect("read").is_whole());
}

/// Pages that still have a body that was removed may be all that is left of an event, so they count; what
/// is counted of them is what they take.
#[tokio::test]
async fn a_body_that_comes_back_is_counted_and_can_be_removed_again() {
    let sent = |store: &RedbStore, bucket: &Bucket| {
        let search = Search {
            bucket: bucket.id,
            states: vec![State::Sent],
            since: None,
            until: None,
        };
        store
            .search(&search, Begin::Oldest, None, 99)
            .expect("read")
    };
    let sweep = async |store: &RedbStore, bucket: &Bucket, part| {
        let found = sent(store, bucket);
        let swept = store.remove_finished(bucket.id, found, Timestamp::LAST, part, usize::MAX);
        swept.await.expect("stored").removed.len()
    };
    let (dir, other) = (tempfile::tempdir(), tempfile::tempdir());
    let (dir, other) = (dir.expect("a directory"), other.expect("a directory"));
    let (bucket, _) = agent(dir.path()).await;
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opens");
    let bodies = sweep(&store, &bucket, Part::Body).await;
    assert!(bodies > 1);
    store.close().await;
    behead(dir.path());
    let saved = save(dir.path()).expect("saved");
    assert_eq!((saved.events, saved.begun_again), (EVENTS, 0));
    assert!(saved.lost.is_empty(), "{saved:?}");
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opens");
    let removals = store.removals(bucket.id).expect("read");
    assert_eq!(
        (removals.bodies, removals.bodies_upto),
        (bodies as u64, None)
    );
    sweep(&store, &bucket, Part::Body).await;
    let (bucket_there, _) = agent(other.path()).await;
    let never_damaged = RedbStore::open(other.path(), &options(Role::Agent)).expect("opens");
    sweep(&never_damaged, &bucket_there, Part::Body).await;
    assert_eq!(store.size(), never_damaged.size());
    for (_, seq) in sent(&store, &bucket) {
        let event = store.event_at(&bucket, seq).expect("read");
        assert!(event.expect("kept").removed_body.is_some());
    }
    assert!(store.census().expect("read").is_whole());
}

/// Where no page has the bodies any more, what is left of events is saved, and nothing is lost or sent bare.
#[tokio::test]
async fn events_without_bodies_are_saved_as_they_are() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
    let bucket = bucket(&store).await;
    let events = (1..=300).map(|n| {
        let mut new = plain(n);
        if n <= 200 {
            new.event.request.body = format!("what goes: {n}").into();
        }
        new
    });
    let stored = store.append(bucket.id, events.collect(), None).await;
    stored.expect("stored");
    let acked = journal(&store).ack(bucket.id, "laptop", Seq(200), LeaseEpoch::default());
    acked.await.expect("stored");
    let removed = store.remove_receipted(bucket.id, NOW, Part::Body, (300, usize::MAX));
    assert_eq!(removed.await.expect("stored"), 200);
    store.give_back(Effort::Whatever).await.expect("open");
    let size = store.size();
    store.close().await;
    // What is left of the bodies' pages.
    blot(dir.path(), b"what goes: ");
    behead(dir.path());
    let saved = save(dir.path()).expect("saved");
    assert_eq!((saved.events, saved.lost.len()), (300, 0));
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
    assert_eq!(store.size(), size);
    let batch = store.read_after(&bucket, Seq(0), 999, usize::MAX);
    let batch = batch.expect("read");
    assert_eq!(batch.damaged, []);
    let read: Vec<_> = batch.events.iter().map(|stored| stored.seq.0).collect();
    assert_eq!(read, (201..=300).collect::<Vec<_>>());
    let left = store.event_at(&bucket, Seq(1)).expect("read");
    assert!(left.expect("kept").removed_body.is_some());
    assert!(store.census().expect("read").is_whole());
}

#[tokio::test]
async fn a_bucket_that_retention_has_emptied_gives_no_place_twice() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
    let bucket = bucket(&store).await;
    let events = (1..=300).map(plain).collect();
    store.append(bucket.id, events, None).await.expect("stored");
    journal(&store)
        .ack(bucket.id, "laptop", Seq(300), LeaseEpoch::default())
        .await
        .expect("stored");
    let removed = store.remove_receipted(bucket.id, NOW, Part::Whole, (300, usize::MAX));
    assert_eq!(removed.await.expect("stored"), 300);
    store.close().await;
    // Every copy of the last place given there: what is left knows only that all up to 300 is gone.
    assert!(blot(dir.path(), &300u64.to_le_bytes()) > 0);
    behead(dir.path());
    save(dir.path()).expect("saved");
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
    let next = store.append(bucket.id, vec![plain(301)], None).await;
    assert_eq!(next.expect("stored")[0].seq, Seq(301));
}

#[tokio::test]
async fn an_event_that_lost_its_deliveries_is_delivered_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opens");
    let bucket = bucket(&store).await;
    let there = store.ensure_destination(bucket.id, "http://localhost:1");
    let there = there.await.expect("stored");
    let bare = NewEvent {
        event: event(1),
        deliveries: Vec::new(),
    };
    store
        .append(bucket.id, vec![bare], None)
        .await
        .expect("stored");
    store.close().await;
    behead(dir.path());
    assert_eq!(save(dir.path()).expect("saved").begun_again, 1);
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opens");
    let deliveries = store.deliveries_of(bucket.id, Seq(1)).expect("read");
    assert_eq!(deliveries[0].state, State::Queued);
    assert_eq!(deliveries[0].destination, there);
    assert_eq!(due(&store, there, NOW), [1]);
}

#[tokio::test]
async fn a_forwarder_keeps_keys_and_receipts_under_a_new_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
    let bucket = bucket(&store).await;
    for n in 1..=EVENTS {
        let stored = store.append(bucket.id, vec![plain(n)], None).await;
        stored.expect("stored");
        journal(&store)
            .ack(bucket.id, "laptop", Seq(n / 2), LeaseEpoch::default())
            .await
            .expect("stored");
    }
    let old = store.id().to_owned();
    store.close().await;
    behead(dir.path());
    let saved = save(dir.path()).expect("saved");
    assert_eq!((saved.role, saved.events), (Role::Forwarder, EVENTS));
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
    assert_ne!(store.id(), old, "what agents know of places may go too far");
    assert_eq!(
        store.buckets().expect("read"),
        std::slice::from_ref(&bucket)
    );
    assert_eq!(
        store.acked(bucket.id, "laptop").expect("read"),
        Seq(EVENTS / 2)
    );
    let all = store
        .read_after(&bucket, Seq(0), 999, usize::MAX)
        .expect("read");
    assert!(all.damaged.is_empty());
    assert!(all.events.iter().zip(1..).all(|(s, n)| s.event == event(n)));
    assert_eq!(all.upto, Seq(EVENTS));
}

#[tokio::test]
async fn pages_in_a_body_are_a_body() {
    let (there, here) = (tempfile::tempdir(), tempfile::tempdir());
    let (there, here) = (there.expect("a directory"), here.expect("a directory"));
    agent(there.path()).await;
    let planted = fs::read(file(there.path())).expect("a store");
    let mut other = options(Role::Forwarder);
    other.name_seed = 8;
    let store = RedbStore::open(here.path(), &other).expect("opens");
    let bucket = bucket(&store).await;
    // At every place that a page can have within a body.
    for shift in (0..4096).step_by(512) {
        let mut new = plain(shift);
        new.event.request.body = [vec![0; shift as usize], planted.clone()].concat().into();
        store
            .append(bucket.id, vec![new], None)
            .await
            .expect("stored");
    }
    store.close().await;
    behead(here.path());
    let saved = save(here.path()).expect("saved");
    assert_eq!((saved.role, saved.events), (Role::Forwarder, 8));
    assert_eq!((saved.deliveries, saved.attempts), (0, 0));
}

#[tokio::test]
async fn what_is_no_store_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    agent(dir.path()).await;
    let length = fs::metadata(file(dir.path())).expect("a store").len();
    let noise: Vec<u8> = (0..length).map(|n| (n * n % 251) as u8).collect();
    fs::write(file(dir.path()), &noise).expect("written");
    let refused = save(dir.path()).expect_err("nothing is whole");
    assert!(matches!(refused, SalvageError::Nothing { .. }), "{refused}");
    assert_eq!(fs::read(file(dir.path())).expect("there"), noise);
    let left = fs::read_dir(dir.path()).expect("listed").count();
    assert_eq!(left, 4, "the file, the lock, the name and the reserve");
}
