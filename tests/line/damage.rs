//! A forwarder whose store is damaged: what cannot be taken in is said where an operator looks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::TableDefinition;
use tempfile::TempDir;
use whrelay_core::bucket::{BucketKey, Seq};
use whrelay_core::subscription::LeaseEpoch;
use whrelay_core::time::Timestamp;
use whrelay_store::{Medium, Options, Role, Store};
use whrelay_tests::eventually_read;
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::client;

const SEQUENCES: TableDefinition<'_, u32, (u64, u64)> = TableDefinition::new("sequences_v1");

/// A store of the buckets `other` and `shop`, whose last number in `shop` is damaged.
struct Damaged {
    path: PathBuf,
    _dir: TempDir,
}

impl Damaged {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            role: Role::Forwarder,
            cache: 4 << 20,
            name_seed: 7,
            purpose: "test",
            bound: None,
        };
        let store = Store::open(dir.path(), &options).unwrap();
        for name in ["shop", "other"] {
            let key = BucketKey::from_text(format!("{name}-key"));
            let bucket = store
                .catalog
                .ensure_bucket(&name.parse().unwrap(), key)
                .await;
            let bucket = bucket.unwrap().0.id;
            let acked = store
                .journal
                .ack(bucket, "laptop", Seq(1), LeaseEpoch::default())
                .await;
            acked.unwrap();
            let long_ago = Timestamp::from_micros(1);
            store
                .journal
                .note_seen(bucket, "laptop", long_ago)
                .await
                .unwrap();
        }
        store.journal.close().await;
        let path = dir.path().join("store.redb");
        damage(&path, 1);
        Self { path, _dir: dir }
    }

    fn medium(&self) -> Medium {
        let path = self.path.clone();
        Medium::custom(move |builder| builder.open(&path))
    }
}

/// Gives a bucket a last number with a checksum that does not fit.
fn damage(path: &Path, bucket: u32) {
    let file = redb::Database::open(path).unwrap();
    let tx = file.begin_write().unwrap();
    let mut sequences = tx.open_table(SEQUENCES).unwrap();
    sequences.insert(bucket, (3, 0)).unwrap();
    drop(sequences);
    tx.commit().unwrap();
}

async fn ask(relay: &Relay, path: &str) -> (u16, String) {
    let asked = client().get(relay.url().join(path).unwrap());
    let asked = asked.bearer_auth(relay.token.expose());
    let answer = asked.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn post(relay: &Relay, path: &str) -> u16 {
    let posted = client().post(relay.url().join(path).unwrap());
    let answer = posted.body("x").send().await.unwrap();
    answer.status().as_u16()
}

/// `/readyz` said 200 and no more, while every post to the bucket was answered with 503.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_takes_nothing_in_is_named_by_readyz_and_hides_no_other_in_status() {
    let damaged = Damaged::new().await;
    let relay = Relay::start_on(damaged.medium()).await;
    assert_eq!(post(&relay, "/in/shop-key").await, 503);
    let (status, said) = ask(&relay, "/readyz").await;
    assert!(
        status == 200 && said.contains("bucket `shop`: "),
        "{status} {said}"
    );
    assert_eq!(post(&relay, "/in/other-key").await, 200);
    let (status, said) = ask(&relay, "/v1/status").await;
    assert_eq!(status, 200, "{said}");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let [other, shop] = &said["buckets"].as_array().unwrap()[..] else {
        panic!("{said}")
    };
    assert_eq!(other["events"], 1, "{said}");
    assert!(
        shop["refuses"].as_str().unwrap().contains("damaged"),
        "{said}"
    );
    assert_eq!(ask(&relay, "/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_none_of_whose_buckets_takes_anything_in_is_not_ready() {
    let damaged = Damaged::new().await;
    damage(&damaged.path, 2);
    let relay = Relay::start_on(damaged.medium()).await;
    let (status, said) = ask(&relay, "/readyz").await;
    assert!(status == 503 && said.contains("damaged"), "{status} {said}");
    assert_eq!(ask(&relay, "/healthz").await.0, 200);
}

/// The one whose bucket is damaged stopped the forwarder.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_cannot_be_ended_stops_neither_others_from_it_nor_the_forwarder() {
    let damaged = Damaged::new().await;
    let ttl = Duration::from_millis(1);
    let relay = Relay::start_expiring(damaged.medium(), Some(ttl)).await;
    let buckets = relay.store.catalog.buckets().await.unwrap();
    let ended = async |name: &str| {
        let of = buckets.iter().find(|b| b.name.as_str() == name).unwrap().id;
        let stored = relay.store.journal.subscription(of, "laptop").await;
        stored.unwrap().known().unwrap().ended
    };
    eventually_read("the other one is ended", async || ended("other").await).await;
    let shop = ended("shop").await;
    assert_eq!(shop, None, "the end of its bucket is not known");
    assert_eq!(post(&relay, "/in/other-key").await, 200);
}
