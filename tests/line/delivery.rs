//! Bytes, verdicts and endpoints that come and go.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use whrelay_agent::lines::{EndpointState, Line};
use whrelay_core::delivery::DeadReason;
use whrelay_core::limits;
use whrelay_core::retry::Schedule;
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::eventually;
use whrelay_tests::receiver::{Received, Receiver, Reply};
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::{client, send};

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_and_every_repeated_header_arrives() {
    let relay = Relay::start().await;
    let receiver = Receiver::start().await;
    let base = format!("{}/base?k=v", receiver.target());
    let _agent = Agent::start(Setup::new(&relay, base)).await;
    let url = relay.input("default").await;
    let body: Vec<u8> = (0..=255u8).cycle().take(70_000).collect();
    let response = client()
        .patch(format!("{url}/a%20b//c?x=1&y=%2F&x=2"))
        .header("X-Repeat", "one")
        .header("X-Repeat", "two")
        .header(
            "X-Bytes",
            http::HeaderValue::from_bytes(b"caf\xe9 \xff").unwrap(),
        )
        .header("Connection", "X-Hop")
        .header("X-Hop", "stays here")
        .body(body.clone())
        .send();
    assert_eq!(response.await.unwrap().status(), 200);
    let got = eventually("it arrives", || receiver.seen().into_iter().next()).await;
    assert_eq!(
        (got.method.as_str(), got.path.as_str()),
        ("PATCH", "/base/a%20b//c?k=v&x=1&y=%2F&x=2")
    );
    assert!(got.body == body, "the body changed");
    assert_eq!(got.all("x-repeat"), ["one", "two"]);
    let bytes = got
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("x-bytes"));
    assert_eq!(
        bytes.map(|(_, value)| value.as_slice()),
        Some(&b"caf\xe9 \xff"[..])
    );
    assert!(got.all("x-hop").is_empty() && got.all("connection").is_empty());
    assert_eq!(got.all("host"), [receiver.target()]);
    for name in ["accept-encoding", "user-agent"] {
        assert!(got.all(name).is_empty(), "{name} was added");
    }
    assert_eq!(got.header("accept"), "*/*", "the sender's own");
    let ours = got
        .headers
        .iter()
        .filter(|(name, _)| name.to_lowercase().starts_with("x-whrelay-"));
    assert_eq!(ours.count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_and_an_empty_body_pass() {
    let relay = Relay::start().await;
    let receiver = Receiver::start().await;
    let _agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let url = relay.input("default").await;
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PROPFIND"] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let status = client()
            .request(method, &url)
            .send()
            .await
            .unwrap()
            .status();
        assert_eq!(status, 200);
    }
    eventually("all arrive", || (receiver.count() == 6).then_some(())).await;
    let mut methods: Vec<_> = receiver.seen().into_iter().map(|r| r.method).collect();
    methods.sort();
    assert_eq!(
        methods,
        ["DELETE", "GET", "HEAD", "OPTIONS", "PROPFIND", "PUT"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_body_arrives_whole_beside_small_ones() {
    let relay = Relay::start_taking(limits::LARGEST_MAX_BODY).await;
    let receiver = Receiver::start().await;
    let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let url = relay.input("default").await;
    let mut seed = 7u32;
    let mut noise = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    };
    let body: Vec<u8> = std::iter::repeat_with(&mut noise)
        .take(limits::LARGEST_MAX_BODY)
        .collect();
    let (large, small) = tokio::join!(send(&url, body.clone()), send(&url, "small"));
    agent.wait_state(&small, "sent").await;
    agent.wait_state(&large, "sent").await;
    let got = receiver
        .seen()
        .into_iter()
        .find(|r| r.event() == large)
        .unwrap();
    assert!(got.body == body, "the body changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_decide_and_retry_after_is_obeyed() {
    let relay = Relay::start().await;
    let script = |r: &Received| match (r.path.as_str(), r.header("x-whrelay-attempt").as_str()) {
        ("/later", "1") => Reply::With(429, vec![("Retry-After", "2".into())]),
        ("/bad", _) => Reply::Status(422),
        ("/moved", _) => Reply::With(302, vec![("Location", "http://localhost:1/".into())]),
        ("/gone", _) => Reply::Status(410),
        ("/flaky", "1") => Reply::Status(500),
        ("/garbage", "1") => Reply::Raw(b"\x1b[2J not http\r\n\r\n".to_vec()),
        _ => Reply::Status(204),
    };
    let receiver = Receiver::scripted(script).await;
    let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let url = relay.input("default").await;
    let mut ids = Vec::new();
    for path in ["/later", "/bad", "/moved", "/gone", "/flaky", "/garbage"] {
        ids.push(send(&format!("{url}{path}"), "x").await);
    }
    for (id, status) in ids[1..4].iter().zip([422, 302, 410]) {
        let dead = agent.wait_state(id, "dead").await;
        assert_eq!(
            (dead.status, dead.reason),
            (Some(status), Some(DeadReason::Rejected))
        );
        assert_eq!((dead.attempt, dead.next_attempt_at), (1, None));
    }
    for id in [&ids[0], &ids[4], &ids[5]] {
        let stalled = agent.wait_state(id, "stalled").await;
        assert!(stalled.next_attempt_at.is_some());
        let sent = agent.wait_state(id, "sent").await;
        assert_eq!(
            (sent.attempt, sent.status, sent.phase.as_str()),
            (2, Some(204), "fast")
        );
    }
    let at = |attempt: &str| {
        let seen = receiver.seen();
        let found = seen
            .iter()
            .find(|r| r.event() == ids[0] && r.header("x-whrelay-attempt") == attempt);
        found.map(|r| r.at).unwrap()
    };
    assert!(
        at("2") - at("1") >= Duration::from_secs(2),
        "Retry-After was undercut"
    );
    let garbled = agent.wait_state(&ids[5], "stalled").await;
    assert!(garbled.status.is_none() && garbled.error.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_end_a_delivery() {
    let relay = Relay::start().await;
    let receiver = Receiver::scripted(|_| Reply::Status(503)).await;
    let url = relay.input("default").await;
    let mut few = Setup::new(&relay, receiver.target());
    few.options.max_attempts = Some(2);
    let agent = Agent::start(few).await;
    let id = send(&url, "x").await;
    let dead = agent.wait_state(&id, "dead").await;
    assert_eq!((dead.attempt, dead.reason), (2, Some(DeadReason::Attempts)));

    let mut short = Setup::new(&relay, receiver.target());
    short.options.deadline = Some(Duration::from_millis(1500));
    short.options.max_attempts = Some(0);
    let agent = agent.restart(short).await;
    let (id, sent_at) = (send(&url, "y").await, Instant::now());
    let dead = agent.wait_state(&id, "dead").await;
    assert_eq!(dead.reason, Some(DeadReason::Deadline));
    let last = receiver
        .seen()
        .into_iter()
        .rfind(|r| r.event() == id)
        .unwrap();
    assert!(
        last.at.duration_since(sent_at) < Duration::from_millis(1500),
        "tried after the deadline"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_is_a_failure_and_its_late_answer_changes_nothing() {
    let relay = Relay::start().await;
    let script = |r: &Received| {
        if r.header("x-whrelay-attempt") == "1" {
            Reply::Hang
        } else {
            Reply::Status(200)
        }
    };
    let receiver = Receiver::scripted(script).await;
    let mut setup = Setup::new(&relay, receiver.target());
    setup.options.timeout = Some(Duration::from_millis(300));
    let agent = Agent::start(setup).await;
    let id = send(&relay.input("default").await, "x").await;
    let stalled = agent.wait_state(&id, "stalled").await;
    assert!(stalled.error.unwrap().contains("0.3 s"));
    assert_eq!(agent.wait_state(&id, "sent").await.attempt, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_delivery_holds_nothing_else_up() {
    let relay = Relay::start().await;
    let script = |r: &Received| {
        if r.path == "/hang" {
            Reply::Hang
        } else {
            Reply::Status(200)
        }
    };
    let receiver = Receiver::scripted(script).await;
    let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let url = relay.input("default").await;
    send(&format!("{url}/hang"), "x").await;
    eventually("it hangs", || (receiver.count() == 1).then_some(())).await;
    for n in 0..50 {
        let id = send(&url, format!("{n}")).await;
        agent.wait_state(&id, "sent").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_comes_back_gets_everything_at_once_oldest_first() {
    let relay = Relay::start().await;
    let mut receiver = Receiver::start().await;
    receiver.stop();
    let mut setup = Setup::new(&relay, receiver.target());
    // A backoff that would take an hour must not matter.
    setup.options.schedule = Some(Schedule::Listed(vec![Duration::from_secs(3600); 9]));
    setup.options.max_in_flight = Some(1);
    let agent = Agent::start(setup).await;
    let url = relay.input("default").await;
    let mut ids = Vec::new();
    for n in 0..30 {
        ids.push(send(&url, format!("{n}")).await);
    }
    let stalled = agent.wait_state(&ids[0], "stalled").await;
    assert!(
        stalled.error.unwrap().contains("127.0.0.1"),
        "both addresses are named"
    );
    let offline = |line: &Line| {
        matches!(
            line,
            Line::Endpoint {
                state: EndpointState::Offline,
                ..
            }
        )
        .then_some(())
    };
    agent.wait("offline", offline).await;
    let up = receiver.open_again().await;
    agent.wait_state(&ids[29], "sent").await;
    let first = receiver.seen()[0].at;
    assert!(
        first.duration_since(up) < Duration::from_secs(1),
        "the return was noticed too late"
    );
    assert_eq!(receiver.events(), ids);
    let attempts = agent.attempts();
    assert!(
        attempts.iter().all(|a| a.attempt <= 2),
        "waiting used up attempts"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_dead_target_holds_no_other_up() {
    let relay = Relay::start().await;
    let receiver = Receiver::start().await;
    let mut dead = Receiver::start().await;
    dead.stop();
    let mut setup = Setup::new(&relay, dead.target());
    setup.targets.push(receiver.target());
    let _agent = Agent::start(setup).await;
    let url = relay.input("default").await;
    for n in 0..20 {
        send(&url, format!("{n}")).await;
    }
    eventually("the living one gets all", || {
        (receiver.count() == 20).then_some(())
    })
    .await;
    dead.open_again().await;
    eventually("the other one too", || (dead.count() == 20).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_answers_cost_an_attempt_and_no_more() {
    let relay = Relay::start().await;
    let long =
        |n: usize| format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "a".repeat(n)).into_bytes();
    let continues = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)
        + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let endless = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_vec(),
        vec![0; 300_000],
    ]
    .concat();
    let script = move |r: &Received| match (r.path.as_str(), r.header("x-whrelay-attempt").as_str())
    {
        ("/head", "1") => Reply::Raw(long(2_000_000)),
        ("/body", _) => Reply::Raw(endless.clone()),
        ("/continue", _) => Reply::Raw(continues.clone().into_bytes()),
        ("/nul", "1") => Reply::Raw(b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n".to_vec()),
        ("/early", "1") => Reply::Raw(b"HTTP/1.1 2".to_vec()),
        _ => Reply::Status(200),
    };
    let receiver = Receiver::scripted(script).await;
    let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let url = relay.input("default").await;
    for (path, attempts) in [
        // Its status was seen: what was done is not done again.
        ("/head", 1),
        ("/body", 1),
        ("/continue", 1),
        ("/nul", 1),
        ("/early", 2),
    ] {
        let id = send(&format!("{url}{path}"), "x").await;
        assert_eq!(
            agent.wait_state(&id, "sent").await.attempt,
            attempts,
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_an_unread_request_keeps_no_connection_behind_it() {
    let relay = Relay::start().await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut setup = Setup::new(&relay, format!("localhost:{port}"));
    setup.options.timeout = Some(Duration::from_secs(3));
    let agent = Agent::start(setup).await;
    let answered = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.peek(&mut [0]).await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        stream
    });
    let length = 16 << 20;
    let id = send(&relay.input("default").await, vec![7; length]).await;
    let mut stream = answered.await.unwrap();
    let sent = agent.wait_state(&id, "sent").await;
    assert_eq!((sent.attempt, sent.status), (1, Some(200)));
    // Closed or reset, with less than was to come.
    let mut sink = tokio::io::sink();
    let reading = tokio::io::copy(&mut stream, &mut sink);
    let read = tokio::time::timeout(Duration::from_secs(5), reading).await;
    let read = read.expect("the connection is kept").unwrap_or(0);
    assert!(read < length as u64, "{read} bytes were kept for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_does_not_wait_for_a_request_that_is_refused_unread() {
    let relay = Relay::start().await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut setup = Setup::new(&relay, format!("localhost:{port}"));
    // As for a breakpoint: only the connection's end can end the wait.
    setup.options.timeout = Some(Duration::ZERO);
    let agent = Agent::start(setup).await;
    let answered = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.peek(&mut [0]).await.unwrap();
        let answer = b"HTTP/1.1 413 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.unwrap();
        stream
    });
    let id = send(&relay.input("default").await, vec![7; 16 << 20]).await;
    let stream = answered.await.unwrap();
    drop(stream);
    eventually("it is told", || {
        let attempts = agent.attempts();
        attempts.into_iter().find(|attempt| attempt.event == id)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_never_exceeded_and_holds_nothing_back_for_good() {
    let (relay, receiver) = (Relay::start().await, Receiver::start().await);
    let url = relay.input("default").await;
    for n in 0..10 {
        send(&url, n.to_string()).await;
    }
    let mut setup = Setup::new(&relay, receiver.target());
    setup.options.rate = Some("20/s".parse().unwrap());
    let _agent = Agent::start(setup).await;
    eventually("all arrive", || (receiver.count() == 10).then_some(())).await;
    let seen = receiver.seen();
    let took = seen[9].at - seen[0].at;
    // Nine pauses of 50 ms, less what the first request may have been late.
    assert!(took >= Duration::from_millis(400), "{took:?}");
}
