//! How a tunnel's websocket closes: with a code, and on both sides (RFC 6455 section 5.5.1).

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use whrelay_agent::lines::Line;
use whrelay_core::limits;
use whrelay_proto::frame::{Frame, Hello, Refused, RefusedCode, Welcome};
use whrelay_proto::{AgentSession, SUBPROTOCOL, codec};
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::proxy::Proxy;
use whrelay_tests::receiver::Receiver;
use whrelay_tests::relay::Relay;

use crate::peers::dial;

/// The code with which the other side closes, once the connection has ended in good order.
async fn closed(socket: &mut WebSocketStream<TcpStream>) -> CloseCode {
    let mut code = None;
    while let Some(message) = socket.next().await {
        assert_eq!(code, None, "nothing comes after a close");
        if let Message::Close(close) = message.unwrap() {
            code = Some(close.unwrap().code);
        }
    }
    code.unwrap()
}

fn close(code: CloseCode) -> Message {
    let reason = "".into();
    Message::Close(Some(CloseFrame { code, reason }))
}

fn hello(bucket: &str) -> Message {
    let (_, hello) = AgentSession::begin(Hello::new(bucket, "laptop", None));
    Message::Binary(codec::encode(hello))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_says_by_the_code_why_it_closes() {
    let relay = Relay::start().await;
    let garbage = Message::Binary(vec![9, 9, 9].into());
    let text = Message::Text("hello".into());
    let large = Message::Binary(vec![1; limits::MAX_AGENT_FRAME + 1].into());
    for (said, code) in [
        (vec![garbage], CloseCode::Protocol),
        (vec![text], CloseCode::Protocol),
        (vec![large], CloseCode::Size),
        (vec![hello("unknown")], CloseCode::Policy),
        (vec![], CloseCode::Policy),
        (vec![close(CloseCode::Normal)], CloseCode::Normal),
        (vec![close(CloseCode::Away)], CloseCode::Away),
    ] {
        let mut socket = dial(&relay, |_| {}).await.unwrap();
        for message in &said {
            socket.send(message.clone()).await.unwrap();
        }
        assert_eq!(closed(&mut socket).await, code, "after {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_none_is_a_protocol_error() {
    let relay = Relay::start().await;
    let mut socket = dial(&relay, |_| {}).await.unwrap();
    // A client has to mask what it sends.
    let unmasked = [0x82, 0x01, 0x00];
    socket.get_mut().write_all(&unmasked).await.unwrap();
    assert_eq!(closed(&mut socket).await, CloseCode::Protocol);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_that_stops_says_so() {
    let relay = Relay::start().await;
    relay.input("default").await;
    let mut socket = dial(&relay, |_| {}).await.unwrap();
    socket.send(hello("default")).await.unwrap();
    let welcome = socket.next().await.unwrap().unwrap();
    assert!(welcome.is_binary());
    relay.ask_to_stop();
    assert_eq!(closed(&mut socket).await, CloseCode::Away);
    relay.stopped().await;
}

/// A forwarder's place: it gives the bucket, opens one tunnel, and reads the hello.
async fn forwarder(listener: TcpListener) -> WebSocketStream<TcpStream> {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let (mut key, mut line) = (None, String::new());
        while stream.read_line(&mut line).await.unwrap() > 2 {
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("sec-websocket-key")
            {
                key = Some(derive_accept_key(value.trim().as_bytes()));
            }
            line.clear();
        }
        assert!(stream.buffer().is_empty(), "a request without a body");
        let mut stream = stream.into_inner();
        let Some(key) = key else {
            let body = r#"{"name":"default","url":"http://127.0.0.1:1/in/default-x"}"#;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n", body.len());
            let answer = format!("{head}connection: close\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            continue;
        };
        let head =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
        let head = format!(
            "{head}sec-websocket-protocol: {SUBPROTOCOL}\r\nsec-websocket-accept: {key}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        assert!(socket.next().await.unwrap().unwrap().is_binary(), "a hello");
        return socket;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_says_by_the_code_why_it_closes_and_answers_a_close() {
    let relay = Relay::start().await;
    let stopping = Frame::Refused(Refused {
        code: RefusedCode::Stopping,
        text: "the forwarder stops".into(),
    });
    let garbage = Message::Binary(vec![9, 9, 9].into());
    for (said, code) in [
        (garbage, CloseCode::Protocol),
        (Message::Text("welcome".into()), CloseCode::Protocol),
        (Message::Binary(codec::encode(stopping)), CloseCode::Normal),
        (close(CloseCode::Away), CloseCode::Away),
    ] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut setup = Setup::new(&relay, "localhost:1");
        setup.forwarder = format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let failing = tokio::spawn(Agent::fails(setup));
        let mut socket = forwarder(listener).await;
        socket.send(said.clone()).await.unwrap();
        assert_eq!(closed(&mut socket).await, code, "after {said}");
        assert!(failing.await.unwrap().is_retryable());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_closes_its_tunnel() {
    let relay = Relay::start().await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut setup = Setup::new(&relay, "localhost:1");
    setup.forwarder = format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let starting = tokio::spawn(Agent::start(setup));
    let mut socket = forwarder(listener).await;
    let welcome = Frame::Welcome(Welcome {
        version: 1,
        forwarder: "stand-in".into(),
        ..Welcome::default()
    });
    let welcome = Message::Binary(codec::encode(welcome));
    socket.send(welcome).await.unwrap();
    let stopping = starting.await.unwrap().stop();
    let (stopped, code) = tokio::join!(stopping, closed(&mut socket));
    stopped.unwrap();
    assert_eq!(code, CloseCode::Normal);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_says_that_its_tunnel_was_cut_again_while_idle() {
    let relay = Relay::start().await;
    let impatient = Proxy::impatient(relay.address, Duration::from_secs(3)).await;
    let mut setup = Setup::new(&relay, Receiver::start().await.target());
    setup.forwarder = format!("http://{}", impatient.address).parse().unwrap();
    let agent = Agent::start(setup).await;
    let cut = |line: &Line| {
        let Line::Link { error, .. } = line else {
            return None;
        };
        error.clone().filter(|why| why.contains("again after"))
    };
    let why = agent.wait("the second cut", cut).await;
    assert!(why.contains("after 3 s without traffic"), "{why}");
}
