//! Senders that speak HTTP/2 without asking first, as proxies inside a network do.

use axum::body::Bytes;
use futures_util::future::try_join_all;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use whrelay_core::bucket::Seq;
use whrelay_core::limits;
use whrelay_delivery::{Fields, HostField};
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::eventually;
use whrelay_tests::receiver::Receiver;
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::{id_of, path_of, send};

struct Sender {
    requests: SendRequest<Full<Bytes>>,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Sender {
    async fn new(relay: &Relay) -> Self {
        let stream = TcpStream::connect(relay.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let spoken = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (requests, connection) = spoken.unwrap();
        let connection = tokio::spawn(connection);
        Self {
            requests,
            connection,
        }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let mut requests = self.requests.clone();
        requests.ready().await?;
        requests.send_request(request).await
    }

    async fn post(&self, url: &str, body: Vec<u8>) -> StatusCode {
        let request = Request::post(url).body(Full::from(body)).unwrap();
        self.send(request).await.unwrap().status()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_delivered_with_the_fields_that_http_1_has() {
    let (relay, receiver) = (Relay::start().await, Receiver::start().await);
    let url = relay.input("default").await;
    let mut setup = Setup::new(&relay, receiver.target());
    setup.manner.fields = Fields::new(HostField::Sender, Vec::new());
    let _agent = Agent::start(setup).await;
    let sender = Sender::new(&relay).await;
    let request = Request::post(format!("{url}/some/path?a=1"))
        .header("cookie", "one=1")
        .header("x-kind", "h2")
        .header("cookie", "two=2")
        .body(Full::from("payload"))
        .unwrap();
    let answer = sender.send(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let answer = answer.into_body().collect().await.unwrap().to_bytes();
    let id = id_of(std::str::from_utf8(&answer).unwrap());
    let request = eventually("a request", || receiver.seen().pop()).await;
    assert_eq!(request.event(), id);
    assert_eq!(request.path, "/some/path?a=1");
    assert_eq!(request.body, b"payload");
    assert_eq!(request.all("cookie"), ["one=1; two=2"]);
    assert_eq!(request.header("x-kind"), "h2");
    assert_eq!(request.header("host"), relay.address.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_and_the_largest_body_are_taken() {
    let relay = Relay::start().await;
    let url = relay.input("default").await;
    let sender = Sender::new(&relay).await;
    assert_eq!(sender.post(&url, vec![1; limits::MAX_BODY]).await, 200);
    assert_eq!(sender.post(&url, vec![1; limits::MAX_BODY + 1]).await, 413);
    let (url, sender) = (&url, &sender);
    let statuses = (0..100u8).map(|n| async move {
        let request = Request::post(url).body(Full::from(vec![n; 100])).unwrap();
        sender.send(request).await.map(|answer| answer.status())
    });
    let statuses = try_join_all(statuses).await.unwrap();
    assert!(statuses.iter().all(|it| *it == 200), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_an_unknown_path_and_a_large_head_are_refused() {
    let relay = Relay::start().await;
    let url = relay.input("default").await;
    let sender = Sender::new(&relay).await;
    let mut request = Request::post(&url).body(Full::default()).unwrap();
    let headers = request.headers_mut();
    headers.insert("host", "another.example".parse().unwrap());
    assert_eq!(sender.send(request).await.unwrap().status(), 400);
    assert_eq!(sender.post(&format!("{}x", relay.url()), vec![]).await, 404);
    let large = "x".repeat(limits::MAX_HEAD);
    let request = Request::post(&url).header("x-large", large);
    let answer = sender.send(request.body(Full::default()).unwrap()).await;
    assert_eq!(answer.unwrap().status(), 431);
    assert_eq!(sender.post(&url, vec![]).await, 200, "it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_ends_when_the_forwarder_stops() {
    let relay = Relay::start().await;
    let url = relay.input("default").await;
    let sender = Sender::new(&relay).await;
    assert_eq!(sender.post(&url, vec![]).await, 200);
    relay.ask_to_stop();
    relay.stopped().await;
    let _ended = sender.connection.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_give_way_to_new_ones() {
    let most = limits::MAX_HTTP2_BYTES / limits::HTTP2_BYTES;
    let relay = Relay::start().await;
    let url = relay.input("default").await;
    let first = Sender::new(&relay).await;
    assert_eq!(first.post(&url, vec![]).await, 200);
    let mut open = Vec::new();
    for _ in 0..most + 10 {
        let sender = Sender::new(&relay).await;
        assert_eq!(sender.post(&url, vec![]).await, 200);
        open.push(sender);
    }
    let _ended = first.connection.await.unwrap();
    send(&url, "over HTTP/1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_http_2_end_the_connection() {
    let relay = Relay::start().await;
    let url = relay.input("default").await;
    let http1 = format!("POST {} HTTP/1.1\r\nHost: x\r\n\r\n", path_of(&url));
    let settings = "\0\0\0\u{4}\0\0\0\0\0";
    for after in ["", settings, "\0\0\u{1}\u{1}\u{5}\0\0\0\u{1}\u{7f}"] {
        let begin = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        let bytes = [begin, after, &http1].concat();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Whether it ends with a reset depends on what of it was read.
        let _ended = stream.read_to_end(&mut answer).await;
        let is_answered = answer.windows(4).any(|it| it == b"HTTP");
        assert!(!is_answered, "{answer:?}");
    }
    let bucket = relay.store.buckets().unwrap().remove(0);
    let stored = relay.store.read_after(&bucket, Seq(0), 10, usize::MAX);
    assert_eq!(stored.unwrap().events.len(), 0);
}
