//! What it costs to verify a provider's signatures: the line with and without its secret, in turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::net::TcpStream;
use whrelay_core::event::Request;
use whrelay_core::time::Timestamp;
use whrelay_providers::{Key, Keyring, Provider, sign};
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::path_of;

use crate::load::{BODY, exchange};

const EVENTS: usize = 20_000;
const CONNECTIONS: usize = 64;
const ROUNDS: usize = 3;

pub(crate) async fn run() {
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (with_secret, figures) in [false, true].into_iter().zip(&mut figures) {
            figures.push(delivered(with_secret).await);
        }
    }
    let [without, with] = figures.map(|mut figures| {
        figures.sort_by(f64::total_cmp);
        figures[ROUNDS / 2]
    });
    let ratio = with / without;
    println!("delivered without the secret {without:.0}/s, with it {with:.0}/s, {ratio:.2} times");
}

fn key() -> Key {
    Key::new(Provider::Stripe, "whsec_bench").unwrap()
}

/// How many events a second were delivered, to the last one.
async fn delivered(with_secret: bool) -> f64 {
    let (receiver, relay) = (Receiver::start().await, Relay::start().await);
    let mut setup = Setup::new(&relay, receiver.target());
    if with_secret {
        setup.requests.signatures.keys = Arc::new(Keyring::new(vec![key()]));
    }
    let _agent = Agent::start(setup).await;
    let path = path_of(&relay.input("default").await);
    let requests: Arc<Vec<_>> = Arc::new((0..EVENTS).map(|n| signed(&path, n)).collect());
    let (next, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    for _ in 0..CONNECTIONS {
        let (requests, next, to) = (Arc::clone(&requests), Arc::clone(&next), relay.address);
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(to).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut buffer = Vec::with_capacity(1024);
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                exchange(&mut stream, request, &mut buffer).await;
            }
        });
    }
    while receiver.count() < EVENTS {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    EVENTS as f64 / began.elapsed().as_secs_f64()
}

/// A request of its own, signed now.
fn signed(path: &str, n: usize) -> Vec<u8> {
    let body = format!("{:BODY$}", format!(r#"{{"id":"evt_{n}","type":"bench"}}"#));
    let now = Timestamp::EPOCH.after(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
    let unsigned = Request {
        method: "POST".to_owned(),
        tail: String::new(),
        query: None,
        headers: Vec::new(),
        body: body.clone().into(),
    };
    let signature = sign(&key(), &unsigned, "", now).unwrap().fields.remove(0).1;
    format!(
        "POST {path} HTTP/1.1\r\nHost: bench\r\nStripe-Signature: {signature}\r\n\
         Content-Length: {BODY}\r\n\r\n{body}"
    )
    .into_bytes()
}
