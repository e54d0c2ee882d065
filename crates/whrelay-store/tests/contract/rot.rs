//! Tables whose rows have no checksum, altered behind the store's back: what is gone is named, what
//! can be found again is, and no walk goes astray.

use std::path::Path;

use redb::{Database, TableDefinition};
use whrelay_core::bucket::{Bucket, BucketKey, Seq};
use whrelay_core::delivery::{DeadReason, DestinationId};
use whrelay_core::destination::Destination;
use whrelay_core::retention::Part;
use whrelay_core::subscription::LeaseEpoch;
use whrelay_core::time::Timestamp;
use whrelay_store::{Ending, RedbStore, Role, StoreError};

use crate::setup::*;

const BUCKETS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("buckets_v1");
const DESTINATIONS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("destinations_v3");
const EVENTS: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("events_v1");
const SUBSCRIPTIONS: TableDefinition<'_, (u32, &str), &[u8]> =
    TableDefinition::new("subscriptions_v4");
const HEADS: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("heads_v1");
type QueueKey = (u32, u8, i64, u32, u64, u32);
const QUEUE: TableDefinition<'_, QueueKey, i64> = TableDefinition::new("queue_v1");
const DUE_DESTINATIONS: TableDefinition<'_, (u8, i64, u32), ()> =
    TableDefinition::new("due_destinations_v1");
const DELIVERIES: TableDefinition<'_, (u32, u64, u32), &[u8]> =
    TableDefinition::new("deliveries_v4");
const SEQUENCES: TableDefinition<'_, u32, (u64, u64)> = TableDefinition::new("sequences_v1");

async fn filled(dir: &Path) -> (RedbStore, Bucket, DestinationId) {
    let store = RedbStore::open(dir, &options(Role::Agent)).expect("opens");
    let bucket = bucket(&store).await;
    let there = store
        .ensure_destination(bucket.id, "http://localhost:1")
        .await
        .expect("stored");
    store
        .append(bucket.id, (1..=4).map(|n| to(n, there)).collect(), None)
        .await
        .expect("stored");
    (store, bucket, there)
}

/// Closes an agent's store, alters its file, and opens it again.
async fn altered(
    store: RedbStore,
    dir: &Path,
    alter: impl FnOnce(&redb::WriteTransaction),
) -> RedbStore {
    altered_role(store, dir, Role::Agent, alter).await
}

async fn altered_role(
    store: RedbStore,
    dir: &Path,
    role: Role,
    alter: impl FnOnce(&redb::WriteTransaction),
) -> RedbStore {
    store.close().await;
    let file = Database::open(dir.join("store.redb")).expect("closed");
    let tx = file.begin_write().expect("a transaction");
    alter(&tx);
    tx.commit().expect("altered");
    drop(file);
    RedbStore::open(dir, &options(role)).expect("opens")
}

fn queued(store: &RedbStore, there: DestinationId) -> Vec<u64> {
    let read = store.queue(there, &query(store, there, NOW)).expect("read");
    seqs(&read.page)
}

/// The rows of a new delivery: its turn and its deadline.
fn new_rows(there: DestinationId, bucket: &Bucket, seq: u64) -> [QueueKey; 2] {
    let (to, bucket) = (there.0, bucket.id.0);
    [
        (to, 0, 0, bucket, seq, 0),
        (to, 5, i64::MAX, bucket, seq, 0),
    ]
}

#[tokio::test]
async fn a_delivery_that_lost_a_row_gets_it_back_and_a_stray_row_goes() {
    for lost in [0, 1] {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, bucket, there) = filled(dir.path()).await;
        assert!(indexes_are_whole(&store));
        let store = altered(store, dir.path(), |tx| {
            let mut table = tx.open_table(QUEUE).expect("the queue");
            table
                .remove(new_rows(there, &bucket, 2)[lost])
                .expect("removed");
            let stray = new_rows(there, &bucket, 99)[lost];
            table.insert(stray, NOW.as_micros()).expect("put");
        })
        .await;
        assert!(!indexes_are_whole(&store));
        assert_eq!(store.restore_indexes().await.expect("restored"), 1);
        assert_eq!(queued(&store, there), [1, 2, 3, 4]);
        assert!(indexes_are_whole(&store));
    }
}

#[tokio::test]
async fn a_destination_that_is_listed_at_a_wrong_time_or_not_at_all_is_found() {
    for (removed, added) in [(true, None), (false, Some((0, 7))), (false, Some((1, 7)))] {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, _, there) = filled(dir.path()).await;
        let store = altered(store, dir.path(), |tx| {
            let mut table = tx.open_table(DUE_DESTINATIONS).expect("the table");
            if removed {
                assert!(table.remove((0, 0, there.0)).expect("removed").is_some());
            }
            if let Some((of, at)) = added {
                table.insert((of, at, there.0), ()).expect("put");
            }
        })
        .await;
        assert!(!indexes_are_whole(&store));
        assert_eq!(store.restore_indexes().await.expect("restored"), 0);
        assert!(indexes_are_whole(&store));
        let due = store.due_destinations(NOW, None, 9, NOW).expect("read");
        assert_eq!(due.rows, [(there, Timestamp::EPOCH)]);
    }
}

#[tokio::test]
async fn what_rots_keeps_its_number_and_what_is_stored_under_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, bucket, there) = filled(dir.path()).await;
    let store = altered(store, dir.path(), |tx| {
        for (table, number) in [(BUCKETS, bucket.id.0), (DESTINATIONS, there.0)] {
            let mut table = tx.open_table(table).expect("a table");
            table.insert(number, &b"rot"[..]).expect("put");
        }
    })
    .await;
    let key = BucketKey::from_text("other");
    let name = "other".parse().expect("a name");
    let (other, created) = store.ensure_bucket(&name, key).await.expect("stored");
    assert!(created && other.id > bucket.id, "{other:?}");
    let elsewhere = store.ensure_destination(other.id, "http://localhost:2");
    assert!(elsewhere.await.expect("stored") > there);
    assert_eq!(queued(&store, there), [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_destination_without_a_whole_row_is_named_with_its_queue_and_its_number_is_not_given_again()
 {
    for rots in [true, false] {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, bucket, there) = filled(dir.path()).await;
        let store = altered(store, dir.path(), |tx| {
            let mut table = tx.open_table(DESTINATIONS).expect("a table");
            if rots {
                table.insert(there.0, &b"rot"[..]).expect("put");
            } else {
                table.remove(there.0).expect("removed");
            }
        })
        .await;
        let named = |store: &RedbStore| -> Vec<_> {
            let all = store.destinations().expect("read");
            let name = |d: &Destination| d.name().map(ToString::to_string);
            all.iter().map(|d| (d.id, name(d))).collect()
        };
        let damaged = Some(format!("damaged-{}", there.0));
        assert_eq!(named(&store), [(there, damaged)]);
        let new = store.ensure_destination(bucket.id, "http://localhost:1");
        let new = new.await.expect("stored");
        assert!(new > there);
        let moved = store.move_deliveries(there, new, NOW).await.expect("moved");
        assert_eq!(moved.moved, 4);
        assert_eq!(queued(&store, new), [1, 2, 3, 4]);
        assert_eq!(named(&store).len(), 1, "nothing is queued for it any more");
    }
}

#[tokio::test]
async fn rows_that_lead_nowhere_are_named_and_removed_and_others_are_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, bucket, there) = filled(dir.path()).await;
    let store = altered(store, dir.path(), |tx| {
        let mut table = tx.open_table(QUEUE).expect("the queue");
        for seq in [98, 99] {
            for row in new_rows(there, &bucket, seq) {
                table.insert(row, NOW.as_micros()).expect("put");
            }
        }
    })
    .await;
    for left in [true, false] {
        let read = store
            .queue(there, &query(&store, there, NOW))
            .expect("read");
        assert_eq!(seqs(&read.page), [1, 2, 3, 4]);
        assert_eq!(!read.strays.is_empty(), left);
        store.remove_strays(read.strays).await.expect("stored");
    }
    assert!(indexes_are_whole(&store));
}

#[tokio::test]
async fn a_damaged_delivery_is_due_until_it_is_quarantined() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, bucket, there) = filled(dir.path()).await;
    let store = altered(store, dir.path(), |tx| {
        let mut table = tx.open_table(DELIVERIES).expect("the deliveries");
        table.insert((bucket.id.0, 2, 0), &b"rot"[..]).expect("put");
    })
    .await;
    assert_eq!(queued(&store, there), [1, 2, 3, 4]);
    let key = due_at(&store, there, NOW).waiting[1].key;
    store.quarantine(&bucket, key, NOW).await.expect("stored");
    let read = store
        .queue(there, &query(&store, there, NOW))
        .expect("read");
    assert_eq!(seqs(&read.page), [1, 3, 4]);
    store.remove_strays(read.strays).await.expect("stored");
    assert_eq!(due(&store, there, NOW), [1, 3, 4]);
}

#[tokio::test]
async fn deliveries_of_an_event_that_is_quarantined_are_dead_and_others_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, bucket, there) = filled(dir.path()).await;
    let store = altered(store, dir.path(), |tx| {
        let mut table = tx.open_table(EVENTS).expect("the events");
        table.insert((bucket.id.0, 2), &b"rot"[..]).expect("put");
    })
    .await;
    let key = due_at(&store, there, NOW).waiting[1].key;
    let mut changes = store.changes();
    store.quarantine(&bucket, key, NOW).await.expect("stored");
    assert_eq!(changes.next().await.withdrawn, [(there, key)]);
    assert_eq!(due(&store, there, NOW), [1, 3, 4]);
    let dead = store.delivery(key).expect("read").expect("there");
    assert_eq!(dead.reason, Some(DeadReason::Damaged));
    assert_eq!(store.quarantined().expect("read"), [(bucket.id, Seq(2))]);
}

#[tokio::test]
async fn a_key_that_rotted_is_named_and_moves_no_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, bucket, _) = filled(dir.path()).await;
    let b = bucket.id.0;
    let store = altered(store, dir.path(), |tx| {
        let mut table = tx.open_table(EVENTS).expect("the events");
        for (seq, far) in [(2, 1 << 50), (4, 1 << 51)] {
            let record = table.remove((b, seq)).expect("removed");
            let record = record.map(|r| r.value().to_vec()).expect("there");
            table.insert((b, far), record.as_slice()).expect("put");
        }
    })
    .await;
    let batch = store
        .read_after(&bucket, Seq(0), 99, usize::MAX)
        .expect("read");
    let found: Vec<_> = batch.events.iter().map(|s| s.seq.0).collect();
    assert_eq!((found, batch.upto), (vec![1, 3], Seq(4)));
    assert_eq!(batch.damaged, [Seq(2), Seq(4)]);
    let gone = store.event_at(&bucket, Seq(2)).expect_err("it was stored");
    assert!(matches!(gone, StoreError::Damaged(_)), "{gone}");
    assert_eq!(store.event_at(&bucket, Seq(5)).expect("read"), None);
}

#[tokio::test]
async fn a_place_is_never_given_twice_though_the_last_one_rotted() {
    for rotten in [Some((6, !4)), Some((2, !2)), None] {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, bucket, there) = filled(dir.path()).await;
        let store = altered(store, dir.path(), |tx| {
            let mut table = tx.open_table(SEQUENCES).expect("the sequences");
            match rotten {
                Some(pair) => drop(table.insert(bucket.id.0, pair).expect("put")),
                None => drop(table.remove(bucket.id.0).expect("removed")),
            }
        })
        .await;
        let written = store.append(bucket.id, vec![to(9, there)], None).await;
        assert!(written.is_err(), "{rotten:?}: {written:?}");
    }
}

/// It stopped the process, which stopped again at the first event after each start.
#[tokio::test]
async fn a_bucket_whose_last_place_went_back_refuses_and_the_others_do_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, bucket, there) = filled(dir.path()).await;
    let key = BucketKey::from_text("other");
    let name = "other".parse().expect("a name");
    let (other, _) = store.ensure_bucket(&name, key).await.expect("stored");
    let all = [bucket.id, other.id];
    assert_eq!(store.refusing(&all).expect("read"), []);
    let mut earlier = None;
    let store = altered(store, dir.path(), |tx| {
        let table = tx.open_table(SEQUENCES).expect("the sequences");
        let row = redb::ReadableTable::get(&table, bucket.id.0).expect("read");
        earlier = row.map(|row| row.value());
    })
    .await;
    let stored = store.append(bucket.id, vec![to(5, there)], None);
    stored.await.expect("stored");
    let store = altered(store, dir.path(), |tx| {
        let mut table = tx.open_table(SEQUENCES).expect("the sequences");
        let row = earlier.expect("four places were given");
        table.insert(bucket.id.0, row).expect("put");
    })
    .await;
    let refusing = store.refusing(&all).expect("read");
    assert_eq!(refusing.len(), 1, "{refusing:?}");
    assert_eq!(refusing[0].0, bucket.id);
    for n in [6, 7] {
        let refused = store.append(bucket.id, vec![to(n, there)], None).await;
        let refused = refused.expect_err("its place was given before");
        assert!(matches!(refused, StoreError::Damaged(_)), "{refused}");
    }
    let census = store.census().expect("read");
    assert!(
        !census.is_whole() && census.refusing_buckets == 1,
        "{census:?}"
    );
    let stored = store.append(other.id, vec![to(8, there)], None);
    stored.await.expect("the other bucket takes it in");
}

/// Nor where all that was at the places of a bucket has lost its body, or is gone.
#[tokio::test]
async fn a_place_is_never_given_twice_though_retention_emptied_it_and_the_last_one_is_lost() {
    for part in [Part::Body, Part::Whole] {
        let dir = tempfile::tempdir().expect("a directory");
        let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
        let bucket = bucket(&store).await;
        let stored = store.append(bucket.id, vec![plain(1), plain(2)], None);
        stored.await.expect("stored");
        let acked = journal(&store)
            .ack(bucket.id, "laptop", Seq(2), LeaseEpoch::default())
            .await;
        acked.expect("stored");
        let removed = store.remove_receipted(bucket.id, NOW, part, (9, usize::MAX));
        assert_eq!(removed.await.expect("stored"), 2);
        let store = altered_role(store, dir.path(), Role::Forwarder, |tx| {
            let mut table = tx.open_table(SEQUENCES).expect("the sequences");
            drop(table.remove(bucket.id.0).expect("removed"));
        })
        .await;
        let written = store.append(bucket.id, vec![plain(9)], None).await;
        assert!(written.is_err(), "{part:?}: {written:?}");
        let read = store.read_after(&bucket, Seq(0), 9, usize::MAX);
        assert!(read.is_err(), "{part:?}: {read:?}");
    }
}

/// It began now, as a new one beside others does, and what was queued for it was skipped; and as long as nobody could
/// read its place, nothing of its bucket was ever removed.
#[tokio::test]
async fn a_subscription_whose_record_is_damaged_is_sent_everything_or_can_be_ended() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
    let bucket = bucket(&store).await;
    let stored = store.append(bucket.id, (1..=4).map(plain).collect(), None);
    stored.await.expect("stored");
    for name in ["a", "damaged", "gone"] {
        joined(&store, &bucket, join(name)).await;
    }
    let store = altered_role(store, dir.path(), Role::Forwarder, |tx| {
        let mut table = tx.open_table(SUBSCRIPTIONS).expect("the subscriptions");
        for name in ["damaged", "gone"] {
            table.insert((bucket.id.0, name), &b"rot"[..]).expect("put");
        }
    })
    .await;
    assert_eq!(joined(&store, &bucket, join("damaged")).await.after, Seq(0));
    for name in ["a", "damaged"] {
        let acked = journal(&store)
            .ack(bucket.id, name, Seq(4), LeaseEpoch::default())
            .await;
        acked.expect("stored");
    }
    let remove = || store.remove_receipted(bucket.id, NOW, Part::Whole, (9, usize::MAX));
    assert_eq!(
        remove().await.expect("stored"),
        0,
        "nobody knows what it has"
    );
    let ended = journal(&store).end_subscription(bucket.id, "gone", None, NOW);
    assert_eq!(ended.await.expect("stored"), Ending::Ended { unclaimed: 0 });
    assert_eq!(remove().await.expect("stored"), 4);
}

#[tokio::test]
async fn what_is_left_of_an_event_is_named_when_it_rots() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
    let bucket = bucket(&store).await;
    let stored = store.append(bucket.id, (1..=4).map(plain).collect(), None);
    stored.await.expect("stored");
    let acked = journal(&store)
        .ack(bucket.id, "laptop", Seq(3), LeaseEpoch::default())
        .await;
    acked.expect("stored");
    let removed = store.remove_receipted(bucket.id, NOW, Part::Body, (9, usize::MAX));
    assert_eq!(removed.await.expect("stored"), 3);
    let b = bucket.id.0;
    let store = altered_role(store, dir.path(), Role::Forwarder, |tx| {
        let mut table = tx.open_table(HEADS).expect("the heads");
        table.insert((b, 1), &b"rot"[..]).expect("put");
        table.remove((b, 2)).expect("removed");
    })
    .await;
    let census = store.census().expect("read");
    assert_eq!((census.events, census.damaged_events), (2, 2));
    for seq in [1, 2] {
        let damaged = store.event_at(&bucket, Seq(seq));
        assert!(
            matches!(damaged, Err(StoreError::Damaged(_))),
            "{damaged:?}"
        );
    }
    // What is damaged is in nobody's way.
    let removed = store.remove_receipted(bucket.id, NOW, Part::Whole, (9, usize::MAX));
    assert_eq!(removed.await.expect("stored"), 2);
    let batch = store
        .read_after(&bucket, Seq(0), 9, usize::MAX)
        .expect("read");
    assert_eq!((batch.events.len(), batch.damaged.len()), (1, 0));
}

#[tokio::test]
async fn rows_hidden_behind_a_stray_one_are_found_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, bucket, there) = filled(dir.path()).await;
    // The destination of the third row, where a search begins, has rotted in place: the file is altered, not
    // the table.
    store.close().await;
    let file = dir.path().join("store.redb");
    let row = |to: u32| {
        let [(_, list, time, bucket, seq, ordinal), _] = new_rows(there, &bucket, 3);
        let key = [&to.to_le_bytes()[..], &[list], &time.to_le_bytes()].concat();
        let place = [
            &bucket.to_le_bytes()[..],
            &seq.to_le_bytes(),
            &ordinal.to_le_bytes(),
        ];
        [key, place.concat()].concat()
    };
    let (whole, rotten) = (row(there.0), row(there.0 | 16));
    let mut bytes = std::fs::read(&file).expect("a store");
    let places: Vec<_> = bytes
        .windows(whole.len())
        .enumerate()
        .filter(|(_, window)| *window == whole)
        .map(|(place, _)| place)
        .collect();
    for place in places {
        bytes[place..place + rotten.len()].copy_from_slice(&rotten);
    }
    std::fs::write(&file, bytes).expect("written");
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opens");
    assert!(!indexes_are_whole(&store));
    store.restore_indexes().await.expect("restored");
    assert_eq!(queued(&store, there), [1, 2, 3, 4]);
}
