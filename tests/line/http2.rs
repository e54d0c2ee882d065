//! Senders that speak HTTP/2 without asking first, as proxies inside a network do.

use std::time::Duration;

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
use tokio::time::timeout;
use whrelay_core::bucket::Seq;
use whrelay_core::limits;
use whrelay_delivery::{Fields, HostField};
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::{id_of, path_of, send};
use whrelay_tests::{PATIENCE, eventually};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// Waits until a sender's connection has ended, however.
async fn ended(connection: JoinHandle<hyper::Result<()>>) {
    let _how = timeout(PATIENCE, connection).await.expect("it ends");
}

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
    setup.requests.fields = Fields::new(HostField::Sender, Vec::new());
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
    ended(sender.connection).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_give_way_to_new_ones() {
    // One address gets a share of the memory.
    let most = limits::MAX_HTTP2_BYTES / limits::HTTP2_BYTES;
    let relay = Relay::start().await;
    let url = relay.input("default").await;
    let first = Sender::new(&relay).await;
    assert_eq!(first.post(&url, vec![]).await, 200);
    let mut open = Vec::new();
    for _ in 0..most {
        let sender = Sender::new(&relay).await;
        assert_eq!(sender.post(&url, vec![]).await, 200);
        open.push(sender);
    }
    ended(first.connection).await;
    send(&url, "over HTTP/1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_cancelled_keep_no_place() {
    const MOST: usize = 40;
    let relay = Relay::start_small(MOST).await;
    let url = relay.input("default").await;
    let mut open = Vec::new();
    for n in 0..2 * MOST {
        let sender = Sender::new(&relay).await;
        // It resets its stream before, while or after it gets its answer.
        let patience = Duration::from_micros(100 * n as u64);
        let _cancelled = timeout(patience, sender.post(&url, vec![1])).await;
        open.push(sender);
    }
    for _ in 0..10 {
        timeout(PATIENCE, send(&url, "new")).await.unwrap();
    }
    relay.ask_to_stop();
    timeout(limits::DRAIN / 2, relay.stopped()).await.unwrap();
}

/// A client that says what it wants.
async fn raw(relay: &Relay, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(relay.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// The headers of a POST whose body is still to come, as a client sends them first (RFC 7541 section 6.2.2).
fn begun(url: &str) -> Vec<u8> {
    let path = path_of(url);
    let mut fields = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    fields.extend(path.bytes());
    fields.extend(b"\x01\x01x");
    let length = u8::try_from(fields.len()).unwrap();
    let head = [0, 0, length, 1, 4, 0, 0, 0, 1];
    [PREFACE, SETTINGS, &head, &fields].concat()
}

/// Reads until the forwarder has closed a connection.
async fn closed(mut stream: TcpStream) {
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    // Whether it ends with a reset depends on what of it was read.
    let _ended = read.expect("it is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ignores_its_end_is_cut_off() {
    const MOST: usize = 40;
    let relay = Relay::start_small(MOST).await;
    let url = relay.input("default").await;
    let begun = begun(&url);
    let mut open = Vec::new();
    for _ in 0..2 * MOST {
        open.push(raw(&relay, &begun).await);
    }
    for _ in 0..10 {
        timeout(PATIENCE, send(&url, "new")).await.unwrap();
    }
    closed(open.swap_remove(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_request_ends_by_itself() {
    let relay = Relay::start().await;
    let part = raw(&relay, &PREFACE[..10]).await;
    let whole = raw(&relay, &[PREFACE, SETTINGS].concat()).await;
    let idle = Sender::new(&relay).await;
    let url = relay.input("default").await;
    assert_eq!(idle.post(&url, vec![]).await, 200);
    tokio::join!(closed(part), closed(whole), ended(idle.connection));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_http_2_end_the_connection() {
    let relay = Relay::start().await;
    let url = relay.input("default").await;
    let http1 = format!("POST {} HTTP/1.1\r\nHost: x\r\n\r\n", path_of(&url));
    for after in [b"", SETTINGS, b"\0\0\x01\x01\x05\0\0\0\x01\x7f"] {
        let mut stream = raw(&relay, &[PREFACE, after, http1.as_bytes()].concat()).await;
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        let _ended = read.expect("it is closed");
        let is_answered = answer.windows(4).any(|it| it == b"HTTP");
        assert!(!is_answered, "{answer:?}");
    }
    let bucket = relay.store.catalog.buckets().await.unwrap().remove(0);
    let stored = relay
        .store
        .journal
        .read_after(&bucket, Seq(0), 10, usize::MAX)
        .await;
    assert_eq!(stored.unwrap().events.len(), 0);
}
