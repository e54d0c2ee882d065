//! Where events go, in which order, and how much of what came before.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use whrelay_agent::lines::Line;
use whrelay_core::backlog::Backlog;
use whrelay_core::order::Order;
use whrelay_core::time::Timestamp;
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::eventually;
use whrelay_tests::receiver::{Received, Receiver, Reply};
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::send;

#[tokio::test(flavor = "multi_thread")]
async fn in_a_line_everything_waits_for_the_head() {
    let relay = Relay::start().await;
    let healthy = Arc::new(AtomicBool::new(false));
    let heals = Arc::clone(&healthy);
    let script = move |r: &Received| match r.body == b"0" && !heals.load(Ordering::Relaxed) {
        true => Reply::Status(503),
        false => Reply::Status(200),
    };
    let receiver = Receiver::scripted(script).await;
    let mut setup = Setup::new(&relay, receiver.target());
    setup.options.order = Some(Order::Fifo);
    let agent = Agent::start(setup).await;
    let url = relay.input("default").await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(send(&url, n.to_string()).await);
    }
    agent.wait_state(&ids[0], "stalled").await;
    let third =
        |line: &Line| matches!(line, Line::Attempt(attempt) if attempt.attempt == 3).then_some(());
    agent.wait("a third attempt", third).await;
    let local = whrelay_agent::control::Client::find(agent.dir()).unwrap();
    let asked = local.ask(&whrelay_agent::control::Ask::Status).await;
    let status = asked.unwrap().recv().await.unwrap();
    let whrelay_agent::control::Piece::Line(line) = status else {
        unreachable!("a line")
    };
    let Line::Status(status) = *line else {
        unreachable!("a status")
    };
    let head = status.targets[0].head.clone().unwrap();
    assert_eq!((&head.event, head.state.as_str()), (&ids[0], "stalled"));
    let only_head = receiver.events().iter().all(|id| *id == ids[0]);
    assert!(
        only_head,
        "what is behind the head was tried: {:?}",
        receiver.events()
    );
    healthy.store(true, Ordering::Relaxed);
    agent.wait_state(&ids[19], "sent").await;
    let mut order = receiver.events();
    order.dedup();
    assert_eq!(order, ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_path_chooses_the_target() {
    let relay = Relay::start().await;
    let (rest, stripe, also) = (
        Receiver::start().await,
        Receiver::start().await,
        Receiver::start().await,
    );
    let mut setup = Setup::new(&relay, rest.target());
    setup.targets.push(format!("/stripe/={}", stripe.target()));
    setup.targets.push(format!("/stripe={}", also.target()));
    let agent = Agent::start(setup).await;
    let url = relay.input("default").await;
    for path in ["", "/stripe", "/stripe/live?x=1", "/stripes", "/github"] {
        let id = send(&format!("{url}{path}"), path).await;
        agent.wait_state(&id, "sent").await;
    }
    eventually("both of the path", || {
        (stripe.count() == 2 && also.count() == 2).then_some(())
    })
    .await;
    let paths = |receiver: &Receiver| -> HashSet<String> {
        receiver.seen().into_iter().map(|r| r.path).collect()
    };
    let expect = |paths: &[&str]| -> HashSet<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
    };
    assert_eq!(paths(&stripe), expect(&["/stripe", "/stripe/live?x=1"]));
    assert_eq!(paths(&also), paths(&stripe));
    assert_eq!(paths(&rest), expect(&["/", "/stripes", "/github"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_a_target() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let relay = Relay::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let server = tokio::net::UnixListener::bind(&path).unwrap();
    let target = format!("unix:{}:/base", path.display());
    let agent = Agent::start(Setup::new(&relay, &target)).await;
    let served = tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\nhello") {
            stream.read_exact(&mut byte).await.unwrap();
            head.push(byte[0]);
        }
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .await
            .unwrap();
        String::from_utf8(head).unwrap()
    });
    let url = relay.input("default").await;
    let id = send(&format!("{url}/x?y=1"), "hello").await;
    let sent = agent.wait_state(&id, "sent").await;
    assert_eq!(sent.url, format!("{target}/x?y=1"));
    let head = served.await.unwrap();
    assert!(head.starts_with("POST /base/x?y=1 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nHost: localhost\r\n"), "{head}");
}

async fn backlog(wanted: Backlog, bodies: std::ops::Range<u32>) -> (Vec<String>, u64, Vec<String>) {
    let (relay, receiver) = (Relay::start().await, Receiver::start().await);
    let url = relay.input("default").await;
    let mut ids = Vec::new();
    for n in bodies {
        ids.push(send(&url, n.to_string()).await);
    }
    let mut setup = Setup::new(&relay, receiver.target());
    setup.backlog = wanted;
    let agent = Agent::start(setup).await;
    let ready = |line: &Line| {
        let Line::Ready(ready) = line else {
            return None;
        };
        Some(ready.queued)
    };
    let queued = agent.wait("ready", ready).await;
    let last = send(&url, "new").await;
    agent.wait_state(&last, "sent").await;
    ids.push(last);
    let passed = |line: &Line| {
        let Line::Warning { message } = line else {
            return None;
        };
        message.contains("discarded").then(|| message.clone())
    };
    let told = agent.lines().iter().filter_map(passed).collect();
    assert_eq!(receiver.events().last(), ids.last());
    (receiver.events(), queued, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_came_before_only_as_much_as_is_wanted() {
    let newest = |newest| Backlog {
        newest: Some(newest),
        since: None,
    };
    let (all, queued, told) = backlog(Backlog::default(), 0..5).await;
    assert_eq!((all.len(), queued, told.len()), (6, 5, 0));
    let (none, queued, told) = backlog(newest(0), 0..5).await;
    assert_eq!((none.len(), queued), (1, 0));
    assert!(
        told[0].starts_with("discarded 5 events that the forwarder held"),
        "{told:?}"
    );
    let (two, queued, told) = backlog(newest(2), 0..5).await;
    assert_eq!((two.len(), queued), (3, 2));
    assert!(told[0].starts_with("discarded 3 events"), "{told:?}");
    let long_ago = Backlog {
        newest: None,
        since: Some(Timestamp::EPOCH),
    };
    assert_eq!(backlog(long_ago, 0..3).await.0.len(), 4);
}

/// They were looked up, and no resolver has to know them.
#[tokio::test(flavor = "multi_thread")]
async fn every_name_under_localhost_is_this_machine() {
    let (relay, receiver) = (Relay::start().await, Receiver::start().await);
    for (name, host) in [
        ("one", "shop.localhost"),
        ("two", "localhost."),
        ("three", "a.b.LOCALHOST"),
    ] {
        let mut setup = Setup::new(&relay, format!("http://{host}:{}", receiver.port()));
        setup.name = name.to_owned();
        setup.wants_backlog = Some(false);
        let agent = Agent::start(setup).await;
        let id = send(&relay.input("default").await, host).await;
        agent.wait_state(&id, "sent").await;
    }
}
