//! The whole line, sender to localhost: throughput in a closed loop, and the latency it adds to a
//! direct POST at a steady rate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::any;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::receiver::{Receiver, Reply};
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::path_of;

use crate::load::{exchange, percentile, rate, request};

const TIME: Duration = Duration::from_secs(5);
const STEADY: usize = 1000;
const EVERY: Duration = Duration::from_millis(5);

struct Sink {
    address: SocketAddr,
    count: Arc<AtomicU64>,
    arrivals: mpsc::UnboundedReceiver<Instant>,
}

async fn sink() -> Sink {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let (arrived, arrivals) = mpsc::unbounded_channel();
    let counter = Arc::clone(&count);
    let answer = move |headers: HeaderMap, _body: Bytes| {
        counter.fetch_add(1, Ordering::Relaxed);
        if headers.contains_key("x-timed") {
            arrived.send(Instant::now()).unwrap();
        }
        async { "ok" }
    };
    tokio::spawn(axum::serve(listener, Router::new().fallback(any(answer))).into_future());
    Sink {
        address,
        count,
        arrivals,
    }
}

/// How a neighbour answers.
type Answers = fn() -> Reply;

/// How often each neighbour is measured; the median counts.
const ROUNDS: usize = 5;

/// What a healthy target's deliveries take beside another target that gets every event too.
pub(crate) async fn beside() {
    let neighbours: [(&str, Option<Answers>); 5] = [
        ("nobody", None),
        ("one that answers 200", Some(|| Reply::Status(200))),
        ("one that refuses connections", Some(|| Reply::Close)),
        ("one that answers 500", Some(|| Reply::Status(500))),
        ("one that never answers", Some(|| Reply::Hang)),
    ];
    let mut figures = vec![Vec::new(); neighbours.len()];
    for _ in 0..ROUNDS {
        for ((name, reply), figures) in neighbours.iter().zip(&mut figures) {
            let (mut sink, relay) = (sink().await, Relay::start().await);
            let mut setup = Setup::new(&relay, sink.address.to_string());
            let mut neighbour = None;
            if let Some(reply) = *reply {
                let mut receiver = Receiver::scripted(move |_| reply()).await;
                setup.targets.push(receiver.target());
                if name.contains("refuses") {
                    receiver.stop();
                }
                neighbour = Some(receiver);
            }
            let _agent = Agent::start(setup).await;
            let path = path_of(&relay.input("default").await);
            let took = latencies(relay.address, &path, &mut sink).await;
            figures.push((percentile(&took, 99), percentile(&took, 50)));
            drop(neighbour);
        }
    }
    let medians: Vec<_> = figures
        .iter_mut()
        .map(|figures| {
            figures.sort();
            figures[ROUNDS / 2]
        })
        .collect();
    for ((name, _), (p99, p50)) in neighbours.iter().zip(&medians) {
        let ratio = p99.as_secs_f64() / medians[0].0.as_secs_f64();
        println!("beside {name}: p50 {p50:.2?}, p99 {p99:.2?}, {ratio:.2} times");
    }
}

/// From sending to arrival, one at a time at a steady rate.
async fn latencies(to: SocketAddr, path: &str, sink: &mut Sink) -> Vec<Duration> {
    let timed = String::from_utf8(request(path))
        .unwrap()
        .replacen("\r\n", "\r\nX-Timed: 1\r\n", 1);
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut ticks, mut buffer) = (tokio::time::interval(EVERY), Vec::new());
    let mut all = Vec::with_capacity(STEADY);
    for _ in 0..STEADY {
        ticks.tick().await;
        let sent = Instant::now();
        exchange(&mut stream, timed.as_bytes(), &mut buffer).await;
        all.push(sink.arrivals.recv().await.unwrap() - sent);
    }
    all.sort();
    all
}

pub(crate) async fn run() {
    let mut sink = sink().await;
    let relay = Relay::start().await;
    let agent = Agent::start(Setup::new(&relay, sink.address.to_string())).await;
    let path = path_of(&relay.input("default").await);
    let direct = latencies(sink.address, "/", &mut sink).await;
    let through = latencies(relay.address, &path, &mut sink).await;
    for (name, percent) in [("p50", 50), ("p99", 99)] {
        let (direct, through) = (percentile(&direct, percent), percentile(&through, percent));
        let added = through.saturating_sub(direct);
        println!("{name} at 200/s: direct {direct:.2?}, through {through:.2?}, added {added:.2?}");
    }
    let (before, began) = (sink.count.load(Ordering::Relaxed), Instant::now());
    let accepted = rate(relay.address, &path, 64, TIME).await;
    let sent = (accepted * TIME.as_secs_f64()) as u64;
    while sink.count.load(Ordering::Relaxed) - before < sent {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let delivered = sent as f64 / began.elapsed().as_secs_f64();
    println!(
        "64 connections: accepted {accepted:.0}/s, delivered {delivered:.0}/s to the last one"
    );
    drop(agent);
}
