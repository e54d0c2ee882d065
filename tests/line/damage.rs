//! A forwarder whose store is damaged: what cannot be taken in is said where an operator looks.

use redb::TableDefinition;
use whrelay_core::bucket::BucketKey;
use whrelay_store::{Medium, Options, Role, Store};
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::client;

const SEQUENCES: TableDefinition<'_, u32, (u64, u64)> = TableDefinition::new("sequences_v1");

/// `/readyz` said 200 and no more, while every post to the bucket was answered with 503.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_takes_nothing_in_is_named_by_readyz() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        role: Role::Forwarder,
        cache: 4 << 20,
        name_seed: 7,
        purpose: "test",
        bound: None,
    };
    let store = Store::open(dir.path(), &options).unwrap();
    let key = BucketKey::from_text("shop-key");
    store
        .ensure_bucket(&"shop".parse().unwrap(), key)
        .await
        .unwrap();
    store.close().await;
    let path = dir.path().join("store.redb");
    let file = redb::Database::open(&path).unwrap();
    let tx = file.begin_write().unwrap();
    // A last place with a checksum that does not fit.
    tx.open_table(SEQUENCES).unwrap().insert(1, (3, 0)).unwrap();
    tx.commit().unwrap();
    drop(file);
    let relay = Relay::start_on(Medium::custom(move |builder| builder.open(&path))).await;
    let ask = |path: &str| {
        let request = client().get(relay.url().join(path).unwrap());
        async move {
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        }
    };
    let posted = client().post(relay.url().join("/in/shop-key").unwrap());
    assert_eq!(posted.body("x").send().await.unwrap().status(), 503);
    let (status, said) = ask("/readyz").await;
    assert!(status == 503 && said.contains("damaged"), "{status} {said}");
    relay.input("other").await;
    let (status, said) = ask("/readyz").await;
    assert!(
        status == 200 && said.contains("bucket `shop`: "),
        "{status} {said}"
    );
    assert_eq!(ask("/healthz").await.0, 200);
}
