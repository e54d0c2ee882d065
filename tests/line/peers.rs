//! Agents that should not be served, and agents that share.

use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use whrelay_agent::AgentError;
use whrelay_core::bucket::{Bucket, BucketId, Seq};
use whrelay_core::limits;
use whrelay_core::retention::Part;
use whrelay_core::subscription::LeaseEpoch;
use whrelay_core::time::Timestamp;
use whrelay_core::token::Token;
use whrelay_proto::frame::{Ack, Frame, Hello, Known, Refused, RefusedCode, Resume};
use whrelay_proto::{AgentAction, AgentSession, SUBPROTOCOL, codec};
use whrelay_store::StoredEvent;
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::{client, send};
use whrelay_tests::{eventually, eventually_read};

/// Far beyond what the system's own buffers hold of what a peer does not read.
const HELD_UP: usize = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_takes_a_subscription_from_another_only_if_it_asks_to() {
    let relay = Relay::start().await;
    let (first, second) = (Receiver::start().await, Receiver::start().await);
    let old = Agent::start(Setup::new(&relay, first.target())).await;
    let mut setup = Setup::new(&relay, second.target());
    let refused = Agent::fails(setup.clone()).await;
    assert!(matches!(refused, AgentError::InUse(_)), "{refused}");
    setup.take_over = true;
    let new = Agent::start(setup).await;
    let replaced = old.ended().await.unwrap_err();
    assert!(matches!(replaced, AgentError::Replaced(_)), "{replaced}");
    new.warned("took over").await;
    send(&relay.input("default").await, "x").await;
    eventually("the newer one gets it", || {
        (second.count() == 1).then_some(())
    })
    .await;
    assert_eq!(first.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_other_names_get_every_event_and_other_buckets_none() {
    let relay = Relay::start().await;
    let receivers = [
        Receiver::start().await,
        Receiver::start().await,
        Receiver::start().await,
    ];
    let mut agents = Vec::new();
    for (receiver, (bucket, name)) in
        receivers
            .iter()
            .zip([("default", "a"), ("default", "b"), ("other", "a")])
    {
        let mut setup = Setup::new(&relay, receiver.target());
        (setup.bucket, setup.name) = (bucket.into(), name.into());
        agents.push(Agent::start(setup).await);
    }
    let url = relay.input("default").await;
    for n in 0..10 {
        send(&url, format!("{n}")).await;
    }
    for receiver in &receivers[..2] {
        eventually("ten", || (receiver.count() == 10).then_some(())).await;
    }
    assert_eq!(receivers[2].count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_needed_and_checked() {
    let relay = Relay::start().await;
    let mut setup = Setup::new(&relay, "localhost:1");
    setup.token = Token::mint(&[1; 53]);
    let refused = Agent::fails(setup).await;
    assert!(matches!(refused, AgentError::Unauthorised(_)), "{refused}");
    let url = relay.url();
    for (path, method) in [
        ("v1/buckets", "GET"),
        ("v1/buckets/x", "PUT"),
        ("v1/events/evt_x", "GET"),
        ("v1/tunnel", "GET"),
    ] {
        let method = method.parse().unwrap();
        let request = client().request(method, format!("{url}{path}"));
        let response = request.bearer_auth("whr_adm_x").send().await.unwrap();
        assert_eq!(response.status(), 401, "{path}");
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_at_the_forwarders_address_is_said_at_once() {
    let relay = Relay::start().await;
    let mut nobody = Receiver::start().await;
    nobody.stop();
    let mut setup = Setup::new(&relay, "localhost:1");
    setup.forwarder = format!("http://{}", nobody.target()).parse().unwrap();
    let refused = Agent::fails(setup).await;
    assert!(
        matches!(refused, AgentError::Unreachable { .. }),
        "{refused}"
    );
    let stranger = Receiver::start().await;
    let mut setup = Setup::new(&relay, "localhost:1");
    setup.forwarder = format!("http://{}", stranger.target()).parse().unwrap();
    let refused = Agent::fails(setup).await;
    assert!(
        matches!(refused, AgentError::Unreachable { .. }),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_does_not_fill_an_agents_memory() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let writing = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = b"HTTP/1.1 200 OK\r\n\r\n{\"url\":\"";
        stream.write_all(head).await.unwrap();
        let (more, mut written) = ([b'a'; 4096], 0);
        while stream.write_all(&more).await.is_ok() {
            written += more.len();
        }
        written
    });
    let mut setup = Setup::new(&Relay::start().await, "localhost:1");
    setup.forwarder = format!("http://{address}").parse().unwrap();
    let refused = Agent::fails(setup).await;
    assert!(
        matches!(refused, AgentError::Unreachable { .. }),
        "{refused}"
    );
    let written = writing.await.unwrap();
    assert!(written < HELD_UP, "{written} bytes were taken");
}

pub(crate) type Socket = tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>;

pub(crate) async fn dial(
    relay: &Relay,
    change: impl FnOnce(&mut http::HeaderMap),
) -> Result<Socket, tokio_tungstenite::tungstenite::Error> {
    let mut request = format!("ws://{}/v1/tunnel", relay.address).into_client_request()?;
    let headers = request.headers_mut();
    headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
    headers.insert(
        "authorization",
        format!("Bearer {}", relay.token.expose()).parse().unwrap(),
    );
    change(headers);
    let stream = tokio::net::TcpStream::connect(relay.address).await?;
    tokio_tungstenite::client_async(request, stream)
        .await
        .map(|(socket, _)| socket)
}

async fn status(relay: &Relay, change: impl FnOnce(&mut http::HeaderMap)) -> u16 {
    match dial(relay, change).await {
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => response.status().as_u16(),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_and_other_protocols_are_refused_before_the_upgrade() {
    let relay = Relay::start().await;
    let origin = |h: &mut http::HeaderMap| {
        h.insert("origin", "https://evil.test".parse().unwrap());
    };
    assert_eq!(status(&relay, origin).await, 403);
    let other = |h: &mut http::HeaderMap| {
        h.insert("sec-websocket-protocol", "mqtt".parse().unwrap());
    };
    assert_eq!(status(&relay, other).await, 400);
    let nobody = |h: &mut http::HeaderMap| {
        h.remove("authorization");
    };
    assert_eq!(status(&relay, nobody).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_resumes_from_is_its_receipt() {
    let relay = Relay::start().await;
    let url = relay.input("default").await;
    for n in 0..5 {
        send(&url, format!("{n}")).await;
    }
    let bucket = relay.store.catalog.buckets().await.unwrap().remove(0);
    let stored = stored(&relay, &bucket).await;
    let number = |n: usize| stored[n].seq.0;
    let known = |n: usize| Known(number(n), stored[n].event.id.to_bytes());
    let never = Known(99, [7; 16]);
    for (forwarder, seq, locator, acked) in [
        ("another", 4, vec![known(3)], 0),
        // A number alone says nothing, whatever it is.
        (relay.store.id(), 4, vec![], 0),
        (relay.store.id(), 1 << 60, vec![], 0),
        (
            relay.store.id(),
            number(2),
            vec![known(1), known(2)],
            number(2),
        ),
        (relay.store.id(), 99, vec![known(4), never], number(4)),
    ] {
        let resume = Some(Resume {
            locator,
            ..Resume::at(forwarder, seq)
        });
        let (_, hello) = AgentSession::begin(Hello::new("default", "lost-its-ack", resume));
        let mut socket = dial(&relay, |_| {}).await.unwrap();
        socket
            .send(Message::Binary(codec::encode(hello)))
            .await
            .unwrap();
        socket.next().await.unwrap().unwrap();
        is_recorded(&relay, bucket.id, "lost-its-ack", acked).await;
    }
}

/// An agent that lost what it had asks for it again: until it has it, retention must not take it.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_asks_for_again_is_kept_until_it_has_it() {
    let relay = Relay::start().await;
    let url = relay.input("default").await;
    for n in 0..5 {
        send(&url, format!("{n}")).await;
    }
    let bucket = relay.store.catalog.buckets().await.unwrap().remove(0);
    let stored = stored(&relay, &bucket).await;
    let numbers: Vec<u64> = stored.iter().map(|stored| stored.seq.0).collect();
    relay
        .store
        .journal
        .ack(bucket.id, "laptop", Seq(numbers[4]), LeaseEpoch::default())
        .await
        .unwrap();
    let resume = Some(Resume::at(relay.store.id(), numbers[1]));
    let (mut session, hello) = AgentSession::begin(Hello::new("default", "laptop", resume));
    let mut socket = dial(&relay, |_| {}).await.unwrap();
    let hello = Message::Binary(codec::encode(hello));
    socket.send(hello).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 3 {
        let message = socket.next().await.unwrap().unwrap();
        let frame = codec::decode(message.into_data()).unwrap();
        match session.on_frame(frame).unwrap() {
            AgentAction::Welcomed(welcome) => {
                assert_eq!((welcome.start, welcome.waiting), (numbers[1], 3));
                let store = &relay.store;
                let removed = store.journal.remove_receipted(
                    vec![bucket.id],
                    Timestamp::LAST,
                    Part::Body,
                    (99, usize::MAX),
                );
                assert_eq!(removed.await.unwrap(), (2, 1));
            }
            AgentAction::Store { events, .. } => told.extend(events.iter().map(|e| e.seq)),
            AgentAction::Refused(refused) => panic!("{refused:?}"),
        }
    }
    assert_eq!(told, numbers[2..]);
    let Some(ack) = session.persisted(numbers[4]) else {
        panic!("nothing to receipt")
    };
    let ack = Message::Binary(codec::encode(ack));
    socket.send(ack).await.unwrap();
    is_recorded(&relay, bucket.id, "laptop", numbers[4]).await;
}

async fn stored(relay: &Relay, bucket: &Bucket) -> Vec<StoredEvent> {
    let journal = &relay.store.journal;
    let stored = journal.read_after(bucket, Seq(0), 99, usize::MAX).await;
    stored.unwrap().events
}

/// Waits until a subscription has acknowledged everything up to a number.
async fn is_recorded(relay: &Relay, bucket: BucketId, name: &str, upto: u64) {
    let what = format!("{upto} is recorded");
    eventually_read(&what, async || {
        let stored = relay
            .store
            .journal
            .subscription(bucket, name)
            .await
            .unwrap();
        let acked = stored.known().map(|known| known.acked.0);
        (acked == Some(upto)).then_some(())
    })
    .await;
}

/// What the forwarder says to some bytes after a good start, until it closes.
async fn last_words(socket: &mut Socket, message: Message) -> Option<Refused> {
    // It may have closed already.
    let _ = socket.send(message).await;
    let mut refused = None;
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message
            && let Ok(Frame::Refused(words)) = codec::decode(bytes)
        {
            refused = Some(words);
        }
    }
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_whose_answers_nobody_reads_do_not_fill_the_forwarders_memory() {
    let relay = Relay::start().await;
    let mut socket = dial(&relay, |_| {}).await.unwrap();
    let ping = [&[0x89, 0xfd, 0, 0, 0, 0][..], &[7; 125]].concat();
    let (burst, mut written) = (ping.repeat(500), 0);
    let sending = async {
        while written < HELD_UP && socket.get_mut().write_all(&burst).await.is_ok() {
            written += burst.len();
        }
    };
    // Either it is held up, or it is cut off for want of a hello.
    let _ = tokio::time::timeout(limits::HELLO_TIMEOUT, sending).await;
    assert!(written < HELD_UP, "{written} bytes were taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_a_tunnel_ends_that_tunnel_only() {
    let relay = Relay::start().await;
    let receiver = Receiver::start().await;
    let _agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let url = relay.input("default").await;
    let hello = |bucket: &str| {
        let (_, hello) = AgentSession::begin(Hello::new(bucket, "mallory", None));
        Message::Binary(codec::encode(hello))
    };
    let ack = |upto| Message::Binary(codec::encode(Frame::Ack(Ack { upto })));
    let huge = Message::Binary(vec![1; limits::MAX_AGENT_FRAME + 1].into());
    for (first, second, code) in [
        (
            Message::Binary(vec![9, 9, 9].into()),
            None,
            Some(RefusedCode::Protocol),
        ),
        (
            Message::Text("hello".into()),
            None,
            Some(RefusedCode::Protocol),
        ),
        (ack(1), None, Some(RefusedCode::Protocol)),
        (hello("nowhere"), None, Some(RefusedCode::UnknownBucket)),
        (hello("../x"), None, Some(RefusedCode::UnknownBucket)),
        (
            hello("default"),
            Some(ack(u64::MAX)),
            Some(RefusedCode::Protocol),
        ),
        (
            hello("default"),
            Some(hello("default")),
            Some(RefusedCode::Protocol),
        ),
        (huge, None, None),
    ] {
        let mut socket = dial(&relay, |_| {}).await.unwrap();
        let message = match second {
            None => first,
            Some(second) => {
                socket.send(first).await.unwrap();
                second
            }
        };
        let words = last_words(&mut socket, message).await;
        assert_eq!(words.map(|refused| refused.code), code);
    }
    send(&url, "x").await;
    eventually("the good one is served", || {
        (receiver.count() == 1).then_some(())
    })
    .await;
}
