//! Senders that hold connections and memory and bring nothing: the others must not notice.

use std::io;
use std::sync::{Arc, Condvar, Mutex};

use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use whrelay_core::limits;
use whrelay_store::Medium;
use whrelay_tests::eventually;
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::{client, path_of, read_answer, send};

const LARGE: usize = 8 << 20;

async fn begin(relay: &Relay, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(relay.address).await.unwrap();
    // The forwarder may close it before it has all of this.
    let _ = stream.write_all(bytes).await;
    stream
}

fn head(path: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")
}

/// A request whose head the forwarder has read: it asks for the body.
async fn begin_body(relay: &Relay, path: &str, length: usize) -> TcpStream {
    let expects = "\r\nExpect: 100-continue\r\n\r\n";
    let head = head(path, length).replace("\r\n\r\n", expects);
    let mut stream = begin(relay, head.as_bytes()).await;
    let asked = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut read = [0; 25];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, asked);
    stream
}

/// How many connections were closed to make room.
async fn evicted(relay: &Relay) -> u64 {
    let status = client().get(relay.url().join("/v1/status").unwrap());
    let status = status.bearer_auth(relay.token.expose()).send().await;
    let status: serde_json::Value = status.unwrap().json().await.unwrap();
    let counts = status["refused"].as_object().unwrap();
    let evicted = counts.iter().filter(|(why, _)| why.starts_with("evicted"));
    evicted.map(|(_, count)| count.as_u64().unwrap()).sum()
}

/// They held all memory for bodies for a minute, and other buckets got 503.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_stay_one_byte_short_do_not_stop_another_bucket() {
    let relay = Arc::new(Relay::start().await);
    let short = path_of(&relay.input("short").await);
    let bystander = relay.input("bystander").await;
    let mut holding = JoinSet::new();
    for _ in 0..11 {
        let (relay, head) = (Arc::clone(&relay), head(&short, limits::MAX_BODY));
        holding.spawn(async move {
            let body = vec![7; limits::MAX_BODY - 1];
            begin(&relay, &[head.as_bytes(), &body].concat()).await
        });
    }
    let mut held = Vec::new();
    while let Some(stream) = holding.join_next().await {
        held.push(stream.unwrap());
    }
    for _ in 0..6 {
        send(&bystander, "small").await;
        send(&bystander, vec![7; LARGE]).await;
    }
    assert!(evicted(&relay).await > 0, "none ended by itself");
}

/// The bodies that stay one byte short are closed once their own bucket needs the memory, too.
#[tokio::test(flavor = "multi_thread")]
async fn the_slowest_body_gives_way_to_a_new_one_of_its_bucket_and_is_answered_503() {
    let relay = Relay::start().await;
    let url = relay.input("default").await;
    let most = limits::MAX_INGEST_BYTES / limits::BUCKET_SHARE;
    let bytes = head(&path_of(&url), limits::MAX_BODY).into_bytes();
    let body = vec![7; limits::MAX_BODY - 1];
    let mut held = Vec::new();
    for _ in 0..most / limits::MAX_BODY {
        held.push(begin(&relay, &[&bytes[..], &body].concat()).await);
    }
    send(&url, vec![7; LARGE]).await;
    let answer = read_answer(&mut held[0]).await;
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert!(answer.text.contains("retry-after"), "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_sender_gets_the_place_of_the_oldest_idle_or_unfinished_connection() {
    const MOST: usize = 40;
    let relay = Relay::start_small(MOST).await;
    let url = relay.input("default").await;
    let mut open = Vec::new();
    for n in 0..4 * MOST {
        let begun = [
            "",
            "POST /in/x HTTP",
            "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        ][n % 3];
        open.push(begin(&relay, begun.as_bytes()).await);
    }
    for _ in 0..10 {
        send(&url, "new").await;
    }
    assert!(evicted(&relay).await > 0, "none ended by itself");
    let mut oldest = open.swap_remove(0);
    let read = oldest.read(&mut [0; 16]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_by_the_byte_do_not_keep_new_senders_out() {
    const MOST: usize = 40;
    let relay = Relay::start_small(MOST).await;
    let url = relay.input("default").await;
    // One that is announced as too large is read for a moment, too, so that its sender gets the answer.
    for length in [1000, limits::MAX_BODY + 1] {
        let before = evicted(&relay).await;
        let begun = head(&path_of(&url), length) + "a";
        let mut open = Vec::new();
        for _ in 0..2 * MOST {
            open.push(begin(&relay, begun.as_bytes()).await);
        }
        for _ in 0..10 {
            send(&url, "new").await;
        }
        assert!(evicted(&relay).await > before, "none ended by itself");
    }
}

/// Its body was read first, without an end.
#[tokio::test(flavor = "multi_thread")]
async fn a_management_request_without_a_token_is_answered_before_its_body_comes() {
    let relay = Relay::start().await;
    relay.input("default").await;
    let path = "/v1/buckets/default/subscriptions/a/replay";
    let begun =
        head(path, 2_000_000).replace("\r\n\r\n", "\r\nContent-Type: application/json\r\n\r\n");
    let mut unfinished = begin(&relay, begun.as_bytes()).await;
    assert_eq!(read_answer(&mut unfinished).await.status, 401);
}

/// A disk that syncs only while its gate is open.
#[derive(Debug)]
struct Gated {
    memory: InMemoryBackend,
    gate: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    /// Syncs that have come to it while it was closed.
    waiting: Mutex<usize>,
}

impl Gate {
    fn close(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }
}

impl StorageBackend for Gated {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.memory.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        let closed = self.gate.closed.lock().unwrap();
        *self.gate.waiting.lock().unwrap() += usize::from(*closed);
        drop(self.gate.opened.wait_while(closed, |closed| *closed));
        self.memory.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.memory.write(offset, data)
    }
}

/// Half a head held a stop up for 10 s, new senders hung meanwhile, and a slow body did both.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_complete_requests_and_waits_for_nobody_who_brings_nothing() {
    let gate = Arc::<Gate>::default();
    let at = Arc::clone(&gate);
    let relay = Relay::start_on(Medium::custom(move |builder| {
        builder.create_with_backend(Gated {
            memory: InMemoryBackend::new(),
            gate: Arc::clone(&at),
        })
    }))
    .await;
    let url = relay.input("default").await;
    let path = path_of(&url);
    let mut half = begin(&relay, b"POST /in/x HTTP/1.1\r\nHost").await;
    let mut idle = begin(&relay, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(read_answer(&mut idle).await.status, 200);
    let mut slow = begin_body(&relay, &path, 1000).await;
    slow.write_all(b"abc").await.unwrap();
    gate.close(true);
    let complete = tokio::spawn(client().post(&url).body("complete").send());
    let waits = || (*gate.waiting.lock().unwrap() > 0).then_some(());
    eventually("the event waits for its sync", waits).await;
    relay.ask_to_stop();
    let mut rest = [0; 1024];
    for stream in [&mut half, &mut idle] {
        let read = stream.read(&mut rest).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
    while TcpStream::connect(relay.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    gate.close(false);
    assert_eq!(complete.await.unwrap().unwrap().status(), 200);
    let answer = read_answer(&mut slow).await;
    assert_eq!(answer.status, 503, "{}", answer.text);
    relay.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_makes_progress_ends_well_while_the_forwarder_stops() {
    let relay = Relay::start().await;
    let path = path_of(&relay.input("default").await);
    let pieces = 20;
    let mut upload = begin_body(&relay, &path, pieces * limits::DRAIN_PROGRESS).await;
    let piece = vec![7; limits::DRAIN_PROGRESS];
    upload.write_all(&piece).await.unwrap();
    relay.ask_to_stop();
    for _ in 1..pieces {
        upload.write_all(&piece).await.unwrap();
    }
    assert_eq!(read_answer(&mut upload).await.status, 200);
    relay.stopped().await;
}

/// It was ready as long as it could be read, while every post was answered 503.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_at_its_bound_is_not_ready() {
    let relay = Relay::start_bounded(20_000).await;
    let url = relay.input("default").await;
    let ready = async || {
        let answer = client().get(format!("{}readyz", relay.url())).send().await;
        let answer = answer.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(ready().await, (200, "ready\n".to_owned()));
    let post = async || {
        let answer = client().post(&url).body(vec![7; 5_000]).send().await;
        answer.unwrap().status().as_u16()
    };
    while post().await == 200 {}
    let (status, why) = ready().await;
    assert!(status == 503 && why.contains("--max-disk"), "{why}");
    let alive = client().get(format!("{}healthz", relay.url())).send().await;
    assert_eq!(alive.unwrap().status(), 200);
}
