//! What it costs a forwarder to remove what is over, in one bucket and beside very many.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use whrelay_core::bucket::{BucketKey, BucketName, Seq};
use whrelay_core::delivery::DestinationId;
use whrelay_core::limits;
use whrelay_core::retention::Retention;
use whrelay_core::subscription::LeaseEpoch;
use whrelay_forwarder::Config;
use whrelay_store::{Journal, NewEvent, RedbStore, Role};

use crate::lists::{event, store};

const EVENTS: u64 = 300_000;

pub(crate) async fn run() {
    for buckets in [1, 10_000] {
        measure(buckets).await;
    }
}

async fn measure(buckets: u64) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let store = store(dir.path(), Role::Forwarder, 64 << 20);
    fill(&store, buckets).await;
    let (stop, listener) = (CancellationToken::new(), TcpListener::bind("127.0.0.1:0"));
    let config = Config {
        public_url: "http://localhost".into(),
        retention: Retention {
            retain: Duration::from_micros(1),
            ..Retention::ALL
        },
        max_connections: limits::MAX_CONNECTIONS,
        max_body: limits::MAX_BODY,
        subscription_ttl: None,
    };
    let (listener, before) = (listener.await.unwrap(), cpu());
    let running = whrelay_forwarder::run(listener, store.clone().into(), config, stop.clone());
    let running = tokio::spawn(running);
    let mut commits = store.commits();
    while store.held().unwrap().whole > 0 {
        commits.changed().await.unwrap();
    }
    let took = cpu() - before;
    println!("removed {EVENTS} events of {buckets} buckets: {took:.1} s of CPU");
    stop.cancel();
    running.await.unwrap().unwrap();
    store.close().await;
}

/// Events of an hour of the past, in turn to each bucket, all receipted.
async fn fill(store: &RedbStore, buckets: u64) {
    let each = EVENTS / buckets;
    let mut filling = Vec::new();
    for bucket in 0..buckets {
        let name: BucketName = format!("bucket-{bucket}").parse().unwrap();
        let key = BucketKey::from_text(name.to_string());
        let (bucket_id, _) = store.ensure_bucket(&name, key).await.unwrap();
        let store = store.clone();
        filling.push(tokio::spawn(async move {
            let new = |n| NewEvent {
                deliveries: Vec::new(),
                ..event(n * buckets + bucket, DestinationId(1))
            };
            for first in (0..each).step_by(500) {
                let some = (first..(first + 500).min(each)).map(new).collect();
                store.append(bucket_id.id, some, None).await.unwrap();
            }
            let journal: &dyn Journal = &store;
            let acked = journal.ack(bucket_id.id, "laptop", Seq(each), LeaseEpoch::default());
            acked.await.unwrap();
        }));
    }
    for filled in filling {
        filled.await.unwrap();
    }
}

/// Seconds of CPU that this process has used.
fn cpu() -> f64 {
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = |n: usize| fields.split(' ').nth(n).unwrap().parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / TICKS
}
