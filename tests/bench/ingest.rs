//! Durable ingest against a server that reads the body and answers, at several connections.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::any;
use tokio::net::TcpListener;
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::path_of;

use crate::load::rate;

const TIME: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;

async fn no_op() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = |_body: Bytes| async { "{\"id\":\"evt_00000000000000000000000000\"}" };
    let router = Router::new().fallback(any(answer));
    tokio::spawn(axum::serve(listener, router).into_future());
    address
}

pub(crate) async fn run() {
    let idle = no_op().await;
    let relay = Relay::start().await;
    let path = path_of(&relay.input("bench").await);
    let commits = relay.store.commits();
    println!("connections | no-op/s | durable/s | ratio | events per fsync (median of {ROUNDS})");
    for connections in [1, 16, 64, 256] {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let plain = rate(idle, "/", connections, TIME).await;
            let before = *commits.borrow();
            let durable = rate(relay.address, &path, connections, TIME).await;
            let synced = (*commits.borrow() - before) as f64;
            rounds.push((
                durable / plain,
                plain,
                durable,
                durable * TIME.as_secs_f64() / synced,
            ));
        }
        rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ratio, plain, durable, grouped) = rounds[ROUNDS / 2];
        println!(
            "{connections:>11} | {plain:>7.0} | {durable:>9.0} | {:>4.0}% | {grouped:.1}",
            ratio * 100.0
        );
    }
}
