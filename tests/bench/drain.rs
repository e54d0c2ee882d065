//! An endpoint that comes back to much that waits: how long until the first delivery, and until the last; and
//! then all of it again, as a replay.

use std::time::{Duration, Instant};

use whrelay_agent::control::{Ask, Client, Filter, Piece, ReplayHow, Which};
use whrelay_agent::lines::Line;
use whrelay_core::bucket::BucketName;
use whrelay_core::event::{Event, Request};
use whrelay_core::id::EventId;
use whrelay_core::time::Timestamp;
use whrelay_store::NewEvent;
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::relay::Relay;

const NOW: Timestamp = Timestamp::from_micros(1_795_000_000_000_000);
const BATCH: u64 = 500;

pub(crate) async fn run() {
    for events in [1_000, 100_000] {
        measure(events).await;
    }
}

async fn measure(events: u64) {
    let (relay, mut receiver) = (Relay::start().await, Receiver::start().await);
    let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    receiver.stop();
    fill(&relay, events).await;
    // What was stored behind the forwarder's back is found with the next that comes by its door.
    whrelay_tests::sender::send(&relay.input("default").await, "x").await;
    let events = events + 1;
    let there = agent
        .store
        .catalog
        .destinations()
        .await
        .unwrap()
        .remove(0)
        .id;
    until_read(async || {
        let counts = agent.store.view.counts(there).await.unwrap();
        counts.queued + counts.stalled >= events
    })
    .await;
    let up = receiver.open_again().await;
    until(|| receiver.count() > 0).await;
    let first = up.elapsed();
    until(|| receiver.count() as u64 >= events).await;
    let last = up.elapsed();
    println!(
        "{events} events waiting: the first after {first:.0?}, the last after {last:.1?} ({:.0}/s)",
        events as f64 / last.as_secs_f64()
    );
    until_read(async || agent.store.view.counts(there).await.unwrap().sent >= events).await;

    let began = Instant::now();
    let how = ReplayHow {
        times: 1,
        ..ReplayHow::default()
    };
    let which = Which::Filter(Filter::default());
    let client = Client::find(agent.dir()).unwrap();
    let mut pieces = client.ask(&Ask::Replay { which, how }).await.unwrap();
    let mut begun = 0;
    while let Some(piece) = pieces.recv().await {
        if let Piece::Line(line) = piece {
            begun += u64::from(matches!(*line, Line::Replay(_)));
        }
    }
    let asked = began.elapsed();
    until(|| receiver.count() as u64 >= events + begun).await;
    println!(
        "{begun} of them replayed: begun after {asked:.1?}, the last delivered after {:.1?}",
        began.elapsed()
    );
    agent.stop().await.unwrap();
}

async fn until(reached: impl Fn() -> bool) {
    until_read(async || reached()).await;
}

async fn until_read(reached: impl AsyncFn() -> bool) {
    while !reached().await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Puts events of 1 KiB where the forwarder has what it has accepted.
async fn fill(relay: &Relay, events: u64) {
    let name: BucketName = "default".parse().unwrap();
    let bucket = relay.store.catalog.buckets().await.unwrap().remove(0);
    for first in (0..events).step_by(BATCH as usize) {
        let some = (first..first + BATCH).map(|n| NewEvent {
            event: Event {
                id: EventId::from_parts(NOW.after(Duration::from_millis(n)), rand::random()),
                bucket: name.clone(),
                received_at: NOW.after(Duration::from_millis(n)),
                request: Request {
                    method: "POST".into(),
                    tail: "/orders".into(),
                    query: None,
                    headers: Vec::new(),
                    body: vec![n as u8; 1024].into(),
                },
                removed_body: None,
            },
            deliveries: Vec::new(),
        });
        let stored = relay
            .store
            .journal
            .receive(bucket.id, some.collect(), None)
            .await;
        stored.unwrap();
    }
}
