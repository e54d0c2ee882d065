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
