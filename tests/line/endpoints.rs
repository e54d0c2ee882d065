//! Endpoints as they are: answers that are not quite HTTP, ports with nobody behind them, servers of one connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use whrelay_agent::control::{Ask, Client, Piece};
use whrelay_agent::lines::{AttemptLine, EndpointState, Line};
use whrelay_core::delivery::State;
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::eventually;
use whrelay_tests::receiver::{Receiver, Reply};
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::send;

async fn ended(agent: &Agent, event: &str) -> AttemptLine {
    eventually("it ends", || {
        let mut all = agent.attempts().into_iter();
        all.find(|attempt| attempt.event == event && attempt.state.is_finished())
    })
    .await
}

/// What was done is not done again for a head that breaks rules: its status line says enough.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_line_decides_whatever_the_rest_of_the_head_is() {
    let many: String = (0..2000).map(|n| format!("X-{n}: 1\r\n")).collect();
    let chunked = "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n";
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Security-Policy: a;\r\n  b;\r\n\tc\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX-Name : 1\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a\u{1}b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nno field\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok",
        &format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 2\r\n\r\nok"),
        &format!("HTTP/1.0 200 OK\r\n{chunked}\r\n"),
    ] {
        let (relay, answer) = (Relay::start().await, head.as_bytes().to_vec());
        let receiver = Receiver::scripted(move |_| Reply::Raw(answer.clone())).await;
        let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
        let event = send(&relay.input("default").await, "once").await;
        let end = ended(&agent, &event).await;
        let about = head.chars().take(60).collect::<String>();
        assert_eq!(
            (end.state, end.status, end.attempt),
            (State::Sent, Some(200), 1),
            "{about}"
        );
        assert_eq!(receiver.count(), 1, "{about}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_with_a_broken_head_is_a_refusal() {
    let (relay, answer) = (
        Relay::start().await,
        b"HTTP/1.1  422 No\r\nbad field\r\n\r\n",
    );
    let receiver = Receiver::scripted(move |_| Reply::Raw(answer.to_vec())).await;
    let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let event = send(&relay.input("default").await, "once").await;
    let end = ended(&agent, &event).await;
    assert_eq!((end.state, end.status), (State::Dead, Some(422)));
}

/// A handler that leaves a body unread makes its server answer 400 to the next request on that connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_400_on_a_used_connection_is_asked_again_over_a_new_one() {
    let relay = Relay::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let _serving = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(leave_unread(stream, counted));
        }
    }));
    let mut setup = Setup::new(&relay, target);
    setup.options.max_in_flight = Some(1);
    let agent = Agent::start(setup).await;
    let url = relay.input("default").await;
    for n in 0..4 {
        let event = send(&url, format!("event {n}")).await;
        let end = ended(&agent, &event).await;
        assert_eq!((end.state, end.attempt), (State::Sent, 1), "event {n}");
    }
    assert!(requests.load(Ordering::Relaxed) > 4);
}

/// Answers 200 to the first request of a connection and 400 to others.
async fn leave_unread(mut stream: TcpStream, requests: Arc<AtomicUsize>) {
    let (mut buffer, mut answer) = ([0; 4096], "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    while let Ok(1..) = stream.read(&mut buffer).await {
        requests.fetch_add(1, Ordering::Relaxed);
        stream.write_all(answer.as_bytes()).await.unwrap();
        answer = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    }
}

/// A server of one connection at a time is there for others between events.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_not_kept_for_longer_than_a_second() {
    let relay = Relay::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let agent = Agent::start(Setup::new(&relay, target)).await;
    let event = send(&relay.input("default").await, "one").await;
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut buffer = vec![0; 4096];
    assert!(stream.read(&mut buffer).await.unwrap() > 0);
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    ended(&agent, &event).await;
    let closed = stream.read(&mut buffer);
    let closed = tokio::time::timeout(Duration::from_secs(5), closed).await;
    assert_eq!(closed.expect("closed").unwrap_or(0), 0);
}

/// A port that is forwarded to a container that is down accepts connections and closes them.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_with_nobody_behind_it_is_away_and_costs_no_attempts() {
    let relay = Relay::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    let forwarding = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            drop(stream);
        }
    });
    let agent = Agent::start(Setup::new(&relay, address.to_string())).await;
    assert_eq!(endpoint(&agent).await, EndpointState::Unknown);
    let url = relay.input("default").await;
    let mut events = Vec::new();
    for n in 0..3 {
        events.push(send(&url, format!("event {n}")).await);
    }
    agent
        .wait("offline", |line| {
            let offline = matches!(
                line,
                Line::Endpoint {
                    state: EndpointState::Offline,
                    ..
                }
            );
            offline.then_some(())
        })
        .await;
    assert_eq!(endpoint(&agent).await, EndpointState::Offline);
    let before = accepted.load(Ordering::Relaxed);
    let probed = || (accepted.load(Ordering::Relaxed) > before + 8).then_some(());
    eventually("it is looked at again and again", probed).await;
    let tried = agent.attempts().len();
    assert!(tried <= 3, "{tried} attempts at nobody");
    forwarding.abort();
    let _ = forwarding.await;
    let listener = TcpListener::bind(address).await.unwrap();
    let _serving = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    }));
    for event in &events {
        assert_eq!(ended(&agent, event).await.state, State::Sent);
    }
    assert_eq!(endpoint(&agent).await, EndpointState::Online);
}

async fn endpoint(agent: &Agent) -> EndpointState {
    let local = Client::find(agent.dir()).unwrap();
    let mut pieces = local.ask(&Ask::Status).await.unwrap();
    let Some(Piece::Line(line)) = pieces.recv().await else {
        unreachable!("it answers")
    };
    let Line::Status(status) = *line else {
        unreachable!("it is the status")
    };
    status.targets[0].endpoint
}
