//! A step of retention at a forwarder with several buckets.

use whrelay_core::bucket::{BucketKey, Seq};
use whrelay_core::retention::Part;
use whrelay_core::subscription::LeaseEpoch;
use whrelay_core::time::Timestamp;
use whrelay_store::{RedbStore, Role};

use crate::setup::*;

#[tokio::test]
async fn one_step_removes_from_several_buckets_as_much_as_it_may() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opens");
    let mut buckets = Vec::new();
    for n in 0..4u64 {
        let name = format!("bucket-{n}").parse().expect("a name");
        let key = BucketKey::mint(&name, [n as u8; 26]);
        let (bucket, _) = store.ensure_bucket(&name, key).await.expect("stored");
        let some = (1..=3).map(|k| plain(10 * n + k)).collect();
        store.append(bucket.id, some, None).await.expect("stored");
        let acked = journal(&store)
            .ack(bucket.id, "laptop", Seq(3), LeaseEpoch::default())
            .await;
        acked.expect("stored");
        buckets.push(bucket.id);
    }
    let step = |most| store.remove_receipted_of(buckets.clone(), NOW, Part::Whole, most);
    let left = || {
        let oldest = store.oldest_receipted(&buckets, Part::Whole, Timestamp::LAST);
        let oldest = oldest.expect("read").into_iter();
        oldest.map(|(_, bucket)| bucket).collect::<Vec<_>>()
    };
    assert_eq!(step((7, usize::MAX)).await.expect("stored"), (7, 3));
    assert_eq!(left(), buckets[2..]);
    assert_eq!(
        step((9, 0)).await.expect("stored"),
        (1, 3),
        "one goes in any case"
    );
    assert_eq!(step((9, usize::MAX)).await.expect("stored"), (4, 4));
    assert_eq!(left(), []);
}
