//! Durable ingest of the real binary against two others, each in a process of its own: a server that
//! reads the body and answers, and a plain spike that commits bodies to one redb table in groups.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use whrelay_agent::Proxies;
use whrelay_core::token::Token;
use whrelay_delivery::Trust;
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

/// Serves the spike until it is killed: what group commit on redb costs without a product around it.
pub(crate) async fn spike() {
    type Waiting = (Bytes, oneshot::Sender<()>);
    let dir = tempfile::tempdir().unwrap();
    let mut builder = redb::Builder::new();
    let database = builder
        .set_cache_size(16 << 20)
        .create(dir.path().join("spike"))
        .unwrap();
    let (queue, mut waiting) = mpsc::channel::<Waiting>(8192);
    std::thread::spawn(move || {
        let (table, mut last) = (redb::TableDefinition::<u64, &[u8]>::new("events"), 0);
        while let Some(first) = waiting.blocking_recv() {
            let mut tx = database.begin_write().unwrap();
            tx.set_quick_repair(true);
            let mut group = Vec::new();
            {
                let mut table = tx.open_table(table).unwrap();
                let mut next = Some(first);
                while let Some((body, done)) = next {
                    last += 1;
                    table.insert(last, body.as_ref()).unwrap();
                    group.push(done);
                    next = waiting.try_recv().ok();
                }
            }
            tx.commit().unwrap();
            for done in group {
                done.send(()).unwrap();
            }
        }
    });
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    println!("{{\"url\":\"http://{}\"}}", listener.local_addr().unwrap());
    let answer = move |body: Bytes| {
        let queue = queue.clone();
        async move {
            let (done, stored) = oneshot::channel();
            queue.send((body, done)).await.unwrap();
            stored.await.unwrap();
            "{\"id\":\"evt_00000000000000000000000000\"}"
        }
    };
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
    let input = whrelay_agent::ensure_bucket(
        &url,
        &Proxies::none(),
        &Trust::default(),
        &token,
        &"bench".parse().unwrap(),
    )
    .await
    .unwrap();
    let path = path_of(&input.url);
    let plain = Running::start(&this_program(), &["spike"], home.path());
    println!(
        "connections | no-op/s | spike/s (of no-op) | whrelay/s (of no-op, of spike), medians of {ROUNDS}"
    );
    for connections in CONNECTIONS {
        let mut rounds = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (n, (to, path)) in [(&idle, "/"), (&plain, "/"), (&forwarder, &path)]
                .iter()
                .enumerate()
            {
                rounds[n].push(rate(address(to), path, connections, TIME).await);
            }
        }
        let [noop, spike, ours] = rounds.map(|mut all| {
            all.sort_by(f64::total_cmp);
            all[ROUNDS / 2]
        });
        println!(
            "{connections:>11} | {noop:>7.0} | {spike:>7.0} ({:.0}%) | {ours:>9.0} ({:.0}%, {:.0}%)",
            spike / noop * 100.0,
            ours / noop * 100.0,
            ours / spike * 100.0
        );
    }
    grouped().await;
}

/// How many events share a commit: only inside the process can that be seen.
async fn grouped() {
    let relay = Relay::start().await;
    let path = path_of(&relay.input("bench").await);
    let commits = relay.store.journal.appended();
    for connections in CONNECTIONS {
        let before = *commits.borrow();
        let durable = rate(relay.address, &path, connections, TIME).await;
        let synced = (commits.borrow().0 - before.0) as f64;
        let events = durable * TIME.as_secs_f64() / synced;
        println!("events per fsync at {connections} connections, in process: {events:.1}");
    }
}
