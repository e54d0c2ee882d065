//! What commands do to the destinations of an agent that runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use whrelay_agent::control::{Ask, Changes, Client, Piece};
use whrelay_agent::lines::Line;
use whrelay_core::retry::Schedule;
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::eventually;
use whrelay_tests::receiver::{Receiver, Reply};
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::send;

/// Everything that an agent answers.
async fn ask(agent: &Agent, ask: Ask) -> Vec<Line> {
    let client = Client::find(agent.dir()).unwrap();
    let (mut pieces, mut lines) = (client.ask(&ask).await.unwrap(), Vec::new());
    while let Some(piece) = pieces.recv().await {
        if let Piece::Line(line) = piece {
            lines.push(*line);
        }
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_delivery_is_tried_at_once_and_one_that_ended_is_replayed() {
    let (relay, fine) = (Relay::start().await, Arc::new(AtomicBool::new(false)));
    let is_fine = Arc::clone(&fine);
    let receiver = Receiver::scripted(move |_| match is_fine.load(Ordering::Relaxed) {
        true => Reply::Status(200),
        false => Reply::Status(503),
    })
    .await;
    let mut setup = Setup::new(&relay, receiver.target());
    let hour = std::time::Duration::from_secs(3600);
    setup.options.schedule = Some(Schedule::Listed(vec![hour; 9]));
    let agent = Agent::start(setup).await;
    let event = send(&relay.input("default").await, "x").await;
    agent.wait_state(&event, "stalled").await;
    fine.store(true, Ordering::Relaxed);
    let retry = || Ask::Retry {
        event: event.clone(),
    };
    let told = ask(&agent, retry()).await;
    assert!(matches!(&told[..], [Line::Replay(_)]), "{told:?}");
    let sent = agent.wait_state(&event, "sent").await;
    assert_eq!(
        (sent.attempt, sent.replay),
        (2, false),
        "no second delivery"
    );
    ask(&agent, retry()).await;
    eventually("it is replayed", || {
        let mut all = agent.attempts().into_iter();
        all.any(|attempt| attempt.replay).then_some(())
    })
    .await;
    assert_eq!(receiver.count(), 3);
}

/// What is changed of a destination, of which nothing else is known.
fn set(changes: Changes) -> Ask {
    Ask::SetDestination {
        name: "default".to_owned(),
        changes,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_option_that_is_changed_counts_from_the_next_attempt() {
    let relay = Relay::start().await;
    let receiver = Receiver::scripted(|_| Reply::Status(404)).await;
    let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let url = relay.input("default").await;
    let first = send(&url, "x").await;
    agent.wait_state(&first, "dead").await;
    let changes = Changes {
        set: vec![("retry-on".to_owned(), "non-2xx".to_owned())],
        ..Changes::default()
    };
    ask(&agent, set(changes)).await;
    let second = send(&url, "y").await;
    agent.wait_state(&second, "stalled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_and_changes_nothing() {
    let (relay, receiver) = (Relay::start().await, Receiver::start().await);
    let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let before = agent.store.catalog.destinations().await.unwrap();
    let one = |key: &str, value: &str| Changes {
        set: vec![(key.to_owned(), value.to_owned())],
        ..Changes::default()
    };
    for changes in [
        one("speed", "9"),
        one("rate", "fast"),
        one("max-in-flight", "0"),
        Changes {
            to: Some("ftp://x".to_owned()),
            ..Changes::default()
        },
        Changes {
            reset: vec!["speed".to_owned()],
            ..Changes::default()
        },
    ] {
        let told = ask(&agent, set(changes.clone())).await;
        assert!(
            matches!(&told[..], [Line::Failure { .. }]),
            "{changes:?}: {told:?}"
        );
    }
    assert_eq!(agent.store.catalog.destinations().await.unwrap(), before);
}
