//! What `events --group` takes over an agent's store where very many deliveries were given up.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use whrelay_agent::Offline;
use whrelay_agent::control::{Ask, Filter, Piece};
use whrelay_core::bucket::Bucket;
use whrelay_core::delivery::{Asked, Attempt, DeadReason, State};
use whrelay_store::{RedbStore, Role};

use crate::lists::{BATCH, event, store, with_destination};

/// Asked so often; the best counts.
const TRIES: usize = 5;

pub(crate) async fn run() {
    let count = std::env::args().nth(2).and_then(|n| n.parse().ok());
    measure(count.unwrap_or(1_000_000)).await;
}

async fn measure(events: u64) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let store = store(dir.path(), Role::Agent, 8 << 20);
    let (bucket, there) = with_destination(&store).await;
    for first in (1..=events).step_by(BATCH as usize) {
        let some = (first..first + BATCH).map(|n| event(n, there)).collect();
        let stored = store.append(bucket.id, some, None).await.unwrap();
        let all = stored.iter().map(|receipt| receipt.seq.0);
        end(&store, &bucket, all.collect()).await;
    }
    let offline = Offline::new(
        store.into(),
        dir.path(),
        Default::default(),
        Arc::new(|_| {}),
    );
    let offline = offline.await.unwrap().unwrap();
    for status in [None, Some(State::Dead), Some(State::Sent)] {
        let (mut best, mut answer) = (f64::MAX, Vec::new());
        for _ in 0..TRIES {
            let began = Instant::now();
            answer = groups(&offline, status).await;
            best = best.min(began.elapsed().as_secs_f64());
        }
        let lines = answer.len();
        println!("groups of {events} dead events, filter {status:?}: {best:.3} s, {lines} lines");
    }
    offline.close().await;
}

async fn groups(offline: &Offline, status: Option<State>) -> Vec<Piece> {
    let filter = Filter {
        status,
        ..Filter::default()
    };
    let (out, mut pieces) = mpsc::channel(64);
    offline.local().answer(Ask::Groups { filter }, out).await;
    let mut all = Vec::new();
    while let Some(piece) = pieces.recv().await {
        all.push(piece);
    }
    all
}

async fn end(store: &RedbStore, bucket: &Bucket, seqs: Vec<u64>) {
    let mut attempts = Vec::new();
    for seq in seqs {
        let seq = whrelay_core::bucket::Seq(seq);
        let delivery = store.deliveries_of(bucket.id, seq).unwrap().remove(0);
        let asked = Asked {
            url: "http://localhost:1/orders".to_owned(),
            method: "POST".to_owned(),
            ..Asked::default()
        };
        let reason = DeadReason::Rejected;
        let attempt = Attempt::given_up(&delivery, asked, delivery.created_at, reason, "refused");
        attempts.push(attempt);
    }
    store.give_up(attempts).await.unwrap();
}
