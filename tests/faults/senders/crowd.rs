//! Senders that take memory and connections and bring nothing, beside a bystander of another bucket (S3, S11, S12).
//! It must not know how the forwarder tells them apart.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use whrelay_core::limits;
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::sender::path_of;

use crate::peers::{ensure, gate_of, most_memory};
use crate::report::Row;

/// Connections, more than the forwarder serves at once.
pub(crate) const CROWD: usize = limits::MAX_CONNECTIONS + 1_000;
/// Connections that a forwarder with few open files serves.
const FEW: usize = 2_048;
/// How many of them are opened at the same time.
const TOGETHER: usize = 64;
/// How soon a post of the bystander's has to be answered.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// Bodies that stay one byte short.
const SHORT: usize = 24;
/// A large body of the bystander's.
const LARGE: usize = 8 << 20;
/// How often the bystander posts a large one beside the bodies that stay short.
const LARGE_POSTS: usize = 10;
/// Bytes of a head that never ends.
const HEAD: usize = 118_000;
/// Memory of a process of this size with its store's cache, in MB.
const ITSELF: u64 = 64;
/// Memory of a connection that has begun a head, in kB.
const CONNECTION: u64 = 30;

/// A forwarder of its own, and a bystander.
struct Scene {
    cloud: Cloud,
    address: SocketAddr,
    /// Where the crowd sends to.
    path: String,
    bystander: JoinHandle<Served>,
    on: Arc<AtomicBool>,
    began: Instant,
    _home: Home,
}

/// What a bystander has seen.
#[derive(Debug, Default)]
struct Served {
    posts: usize,
    slowest: Duration,
    findings: Vec<String>,
}

/// Plays all scenes. Answers with what each came to.
pub(crate) async fn run(binary: &str) -> Vec<(Row, Vec<String>)> {
    let megabyte = |bytes: usize| (bytes >> 20) as u64;
    let connections = limits::MAX_CONNECTIONS as u64 * CONNECTION / 1000;
    let heads = megabyte(limits::MAX_LARGE_HEADS);
    let head = format!("POST /in/x HTTP/1.1\r\nHost: x\r\nX: {}", "a".repeat(HEAD));
    // They are closed after 10 s anyway: all of them have to be there before.
    let dir = tempfile::tempdir().unwrap();
    let few = dir.path().join("few");
    let files = FEW + limits::KEPT_FILES;
    let script = format!("#!/bin/sh\nulimit -n {files} && exec {binary} \"$@\"\n");
    std::fs::write(&few, script).unwrap();
    std::fs::set_permissions(&few, PermissionsExt::from_mode(0o700)).unwrap();
    let idle = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    vec![
        short_bodies(binary).await,
        crowd(
            binary,
            &head,
            CROWD,
            "heads of 118 kB that never end",
            ITSELF + heads + connections,
        )
        .await,
        crowd(
            few.to_str().unwrap(),
            idle,
            2 * FEW,
            "connections that idle after a request, twice as many as are served",
            ITSELF + connections,
        )
        .await,
    ]
}

impl Scene {
    async fn new(binary: &str) -> Self {
        let home = Home::new(binary);
        let cloud = Cloud::start(&home).await;
        let gate = gate_of(&cloud);
        let path = path_of(&ensure(&gate, "crowd").await);
        let (url, on) = (
            ensure(&gate, "bystander").await,
            Arc::new(AtomicBool::new(true)),
        );
        let posting = Arc::clone(&on);
        Self {
            address: cloud.url.trim_start_matches("http://").parse().unwrap(),
            cloud,
            path,
            bystander: tokio::spawn(async move { post_while(&url, &posting).await }),
            on,
            began: Instant::now(),
            _home: home,
        }
    }

    /// Ends it, and judges it.
    async fn end(mut self, tried: String, fault: &str, memory: u64) -> (Row, Vec<String>) {
        self.on.store(false, Ordering::SeqCst);
        let served = self.bystander.await.unwrap();
        let mut findings = served.findings;
        let most = most_memory(self.cloud.process.pid()).unwrap_or(u64::MAX);
        if most > memory {
            findings.push(format!("the forwarder used {most} MB, more than {memory}"));
        }
        if served.slowest > ANSWERS_WITHIN {
            findings.push(format!("a post took {:?}", served.slowest));
        }
        // What the crowd left must not hold the stop up.
        let stopping = Instant::now();
        let ended = self.cloud.process.terminate().await;
        if ended != Some(0) {
            findings.push(format!("the forwarder ended with {ended:?}"));
        }
        let row = Row {
            ring: 4,
            fault: format!("{fault}, beside a bystander (S3, S11, S12)"),
            tried,
            failures: findings.len() as u64,
            counted: format!(
                "{} posts of the bystander's, each answered within {} ms, {most} MB of memory at most, stopped \
                 within {} ms",
                served.posts,
                served.slowest.as_millis(),
                stopping.elapsed().as_millis()
            ),
            seconds: self.began.elapsed().as_secs_f64(),
        };
        (row, findings)
    }
}

/// Posts small bodies over a connection each.
async fn post_while(url: &str, on: &AtomicBool) -> Served {
    let client = reqwest::Client::builder().no_proxy();
    let client = client.pool_max_idle_per_host(0).timeout(2 * ANSWERS_WITHIN);
    let client = client.build().unwrap();
    let mut served = Served::default();
    while on.load(Ordering::SeqCst) {
        served.post(&client, url, b"small".to_vec()).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    served
}

impl Served {
    async fn post(&mut self, client: &reqwest::Client, url: &str, body: Vec<u8>) {
        let began = Instant::now();
        let bytes = body.len();
        let answer = client.post(url).body(body).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status);
        self.posts += 1;
        self.slowest = self.slowest.max(began.elapsed());
        if let Err(error) = answer {
            self.findings
                .push(format!("a post of {bytes} bytes: {error}"));
        }
    }
}

async fn short_bodies(binary: &str) -> (Row, Vec<String>) {
    let scene = Scene::new(binary).await;
    let large = ensure(&gate_of(&scene.cloud), "large").await;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        scene.path,
        limits::MAX_BODY
    );
    let bytes = Arc::new([head.as_bytes(), &vec![7; limits::MAX_BODY - 1]].concat());
    let mut writing = JoinSet::new();
    for _ in 0..SHORT {
        let (address, bytes) = (scene.address, Arc::clone(&bytes));
        writing.spawn(async move {
            let mut stream = TcpStream::connect(address).await.ok()?;
            // It may be closed before it has all of this.
            let _ = stream.write_all(&bytes).await;
            Some(stream)
        });
    }
    let held = writing.join_all().await;
    let client = whrelay_tests::sender::client();
    let mut served = Served::default();
    for _ in 0..LARGE_POSTS {
        served.post(&client, &large, vec![7; LARGE]).await;
    }
    drop(held);
    let tried = format!("{SHORT} bodies of 25 MiB, {LARGE_POSTS} posts of 8 MiB in another bucket");
    let memory = limits::MAX_INGEST_BYTES + limits::MAX_SMALL_BODIES + 4 * LARGE;
    let memory = ITSELF + (memory >> 20) as u64;
    let fault = "bodies that stay one byte short";
    let (mut row, mut findings) = scene.end(tried, fault, memory).await;
    if served.slowest > ANSWERS_WITHIN {
        let slowest = served.slowest;
        served
            .findings
            .push(format!("a large post took {slowest:?}"));
    }
    findings.extend(served.findings);
    row.failures = findings.len() as u64;
    row.counted += &format!(", large posts within {} ms", served.slowest.as_millis());
    (row, findings)
}

/// More connections than the forwarder serves, which send this and stay.
async fn crowd(
    binary: &str,
    begun: &str,
    connections: usize,
    fault: &str,
    memory: u64,
) -> (Row, Vec<String>) {
    let scene = Scene::new(binary).await;
    let begun = Arc::new(begun.as_bytes().to_vec());
    let mut opening = JoinSet::new();
    for n in 0..TOGETHER {
        let (address, begun) = (scene.address, Arc::clone(&begun));
        opening.spawn(async move {
            let mut open = Vec::new();
            for _ in (n..connections).step_by(TOGETHER) {
                let Ok(stream) = TcpStream::connect(address).await else {
                    continue;
                };
                open.push(tokio::spawn(stay(stream, Arc::clone(&begun))));
            }
            open
        });
    }
    let open: Vec<_> = opening.join_all().await.into_iter().flatten().collect();
    let tried = format!("{} connections", open.len());
    // The bystander has to get through while all of them are there.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ended = scene.end(tried, fault, memory).await;
    open.iter().for_each(JoinHandle::abort);
    ended
}

/// Sends, and reads until it is cut off.
async fn stay(mut stream: TcpStream, begun: Arc<Vec<u8>>) {
    let mut buffer = [0; 256];
    let _ = stream.write_all(&begun).await;
    while let Ok(1..) = stream.read(&mut buffer).await {}
}
