//! Durable ingest of the real binary against a server that reads the body and answers, each in a
//! process of its own, at several connections.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::any;
use tokio::net::TcpListener;
use whrelay_core::token::Token;
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::path_of;

use crate::load::rate;
use crate::process::{Running, this_program};

const TIME: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;
const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];

/// Serves the no-op until it is killed.
pub(crate) async fn no_op() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    println!("{{\"url\":\"http://{}\"}}", listener.local_addr().unwrap());
    let answer = |_body: Bytes| async { "{\"id\":\"evt_00000000000000000000000000\"}" };
    axum::serve(listener, Router::new().fallback(any(answer)))
        .await
        .unwrap();
}

fn address(running: &Running) -> SocketAddr {
    running
        .text("url")
        .trim_start_matches("http://")
        .parse()
        .unwrap()
}

pub(crate) async fn run() {
    let home = tempfile::tempdir().unwrap();
    let idle = Running::start(&this_program(), &["no-op"], home.path());
    let forwarder = Running::forwarder(home.path());
    let token = Token::parse(&forwarder.token()).unwrap();
    let url = forwarder.text("url").parse().unwrap();
    let input = whrelay_agent::ensure_bucket(&url, &token, &"bench".parse().unwrap())
        .await
        .unwrap();
    let path = path_of(&input);
    println!("connections | no-op/s | durable/s | ratio (median of {ROUNDS})");
    for connections in CONNECTIONS {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let plain = rate(address(&idle), "/", connections, TIME).await;
            let durable = rate(address(&forwarder), &path, connections, TIME).await;
            rounds.push((durable / plain, plain, durable));
        }
        rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ratio, plain, durable) = rounds[ROUNDS / 2];
        println!(
            "{connections:>11} | {plain:>7.0} | {durable:>9.0} | {:>4.0}%",
            ratio * 100.0
        );
    }
    grouped().await;
}

/// How many events share a commit: only inside the process can that be seen.
async fn grouped() {
    let relay = Relay::start().await;
    let path = path_of(&relay.input("bench").await);
    let commits = relay.store.commits();
    for connections in CONNECTIONS {
        let before = *commits.borrow();
        let durable = rate(relay.address, &path, connections, TIME).await;
        let synced = (*commits.borrow() - before) as f64;
        let events = durable * TIME.as_secs_f64() / synced;
        println!("events per fsync at {connections} connections, in process: {events:.1}");
    }
}
