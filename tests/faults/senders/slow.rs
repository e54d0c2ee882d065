//! Five thousand senders that are slow on purpose, beside a healthy one (S3, S11, S12). It must not
//! know what the healthy one sends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use whrelay_core::limits;
use whrelay_tests::sender;

pub(crate) const SLOW: usize = 5_000;
/// How often it is measured without them, and with them.
const ROUNDS: usize = 3;
/// Each measurement is so many short ones, of which the median counts.
const SLICES: usize = 5;
const SLICE: Duration = Duration::from_millis(500);
/// Healthy posts at once, and how often each is made.
const HEALTHY: usize = 4;
const EVERY: Duration = Duration::from_millis(10);
/// How much slower the slowest hundredth may be with them.
const SLOWED_AT_MOST: f64 = 2.0;
/// A byte each.
const DRIP: Duration = Duration::from_secs(2);
/// Room for a busy machine, beside a limit.
const SLACK: Duration = Duration::from_secs(4);

/// A way to be slow.
#[derive(Clone, Copy, Debug)]
enum Way {
    Silent,
    HalfLine,
    HeadNowAndThen,
    BodyNowAndThen,
    Idle,
}
/// The first to be cut come last, so that all are there while it is measured.
const WAYS: [Way; 5] = [
    Way::Silent,
    Way::HalfLine,
    Way::HeadNowAndThen,
    Way::Idle,
    Way::BodyNowAndThen,
];

impl Way {
    /// What is sent first.
    fn begins(self, path: &str) -> String {
        match self {
            Self::Silent => String::new(),
            Self::HalfLine => format!("POST {path}"),
            Self::HeadNowAndThen => format!("POST {path} HTTP/1.1\r\nHost: x\r\nX: "),
            Self::BodyNowAndThen => {
                format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            }
            Self::Idle => "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        }
    }

    fn drips(self) -> bool {
        match self {
            Self::HeadNowAndThen | Self::BodyNowAndThen => true,
            Self::Silent | Self::HalfLine | Self::Idle => false,
        }
    }

    /// By when it must have been cut.
    fn limit(self) -> Duration {
        match self {
            Self::BodyNowAndThen => limits::BODY_GRACE + SLACK,
            Self::Silent | Self::HalfLine | Self::HeadNowAndThen | Self::Idle => {
                limits::HEAD_TIMEOUT + SLACK
            }
        }
    }

    /// Whether what it heard before the end is what it should have.
    fn right(self, heard: &str) -> bool {
        match self {
            Self::Silent | Self::HalfLine | Self::HeadNowAndThen => {
                heard.is_empty() || heard.starts_with("HTTP/1.1 408")
            }
            Self::BodyNowAndThen => heard.starts_with("HTTP/1.1 408"),
            Self::Idle => heard.starts_with("HTTP/1.1 200") && heard.ends_with("\r\n\r\nok\n"),
        }
    }
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Told {
    without: Vec<Duration>,
    with: Vec<Duration>,
    pub(crate) posts: usize,
    slowest: Duration,
    pub(crate) findings: Vec<String>,
}

impl Told {
    pub(crate) fn tried() -> String {
        format!("{SLOW} connections at once, {ROUNDS} times")
    }

    pub(crate) fn counted(&self) -> String {
        let ms = |times: &[Duration]| median(times).as_secs_f64() * 1000.0;
        format!(
            "{} healthy posts, p99 {:.1} ms without them and {:.1} ms with them, the last cut after {:.1} s",
            self.posts,
            ms(&self.without),
            ms(&self.with),
            self.slowest.as_secs_f64()
        )
    }
}

/// Measures in turn without them and with them.
pub(crate) async fn run(address: SocketAddr, url: &str, path: &str) -> Told {
    let mut told = Told::default();
    let (client, mut ratios) = (sender::client(), Vec::new());
    for _ in 0..ROUNDS {
        let without = measure(&client, url, &mut told).await;
        let open = Arc::<AtomicUsize>::default();
        let mut slow = begin(address, path, &open).await;
        let with = measure(&client, url, &mut told).await;
        ratios.push(median(&with).as_secs_f64() / median(&without).as_secs_f64());
        told.without.extend(without);
        told.with.extend(with);
        let still = open.load(Ordering::SeqCst);
        if still < SLOW {
            told.findings.push(format!(
                "only {still} of {SLOW} were open while it was measured"
            ));
        }
        while let Some(ended) = slow.join_next().await {
            match ended.unwrap() {
                Ok(after) => told.slowest = told.slowest.max(after),
                Err(why) => told.findings.push(why),
            }
        }
    }
    // Each round for itself: what else the machine does changes from one to the next.
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[ROUNDS / 2];
    if ratio > SLOWED_AT_MOST {
        told.findings
            .push(format!("the healthy one became {ratio:.1} times slower"));
    }
    told
}

type Ended = Result<Duration, String>;

/// Connects all of them.
async fn begin(address: SocketAddr, path: &str, open: &Arc<AtomicUsize>) -> JoinSet<Ended> {
    let mut slow = JoinSet::new();
    for n in 0..SLOW {
        let (way, open) = (WAYS[n * WAYS.len() / SLOW], Arc::clone(open));
        let stream = TcpStream::connect(address).await.unwrap();
        let first = way.begins(path);
        slow.spawn(async move {
            open.fetch_add(1, Ordering::SeqCst);
            let ended = be_slow(stream, way, &first).await;
            open.fetch_sub(1, Ordering::SeqCst);
            ended
        });
    }
    while open.load(Ordering::SeqCst) < SLOW {
        tokio::task::yield_now().await;
    }
    slow
}

/// Goes on until it is cut; says after how long.
async fn be_slow(mut stream: TcpStream, way: Way, first: &str) -> Ended {
    let began = Instant::now();
    let end = sleep_until((began + way.limit()).into());
    let mut end = std::pin::pin!(end);
    let (mut ticks, mut heard, mut buffer) = (interval(DRIP), Vec::new(), [0; 1024]);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream
        .write_all(first.as_bytes())
        .await
        .map_err(|error| format!("{way:?}: {error}"))?;
    loop {
        tokio::select! {
            () = end.as_mut() => return Err(format!("{way:?} was not cut")),
            read = stream.read(&mut buffer) => match read {
                Ok(n @ 1..) => heard.extend_from_slice(&buffer[..n]),
                Ok(0) | Err(_) => break,
            },
            _ = ticks.tick(), if way.drips() => {
                // Where it has been cut, reading says so, after what was answered.
                let _ = stream.write_all(b"a").await;
            }
        }
    }
    let heard = String::from_utf8_lossy(&heard);
    match way.right(&heard) {
        true => Ok(began.elapsed()),
        false => Err(format!("{way:?} heard {heard:?}")),
    }
}

/// The slowest hundredth of healthy posts, in each slice.
async fn measure(client: &Client, url: &str, told: &mut Told) -> Vec<Duration> {
    let mut slices = Vec::new();
    for _ in 0..SLICES {
        let mut senders = JoinSet::new();
        for _ in 0..HEALTHY {
            let (client, url) = (client.clone(), url.to_owned());
            senders.spawn(async move { post_for_a_slice(&client, &url).await });
        }
        let mut times: Vec<Duration> = Vec::new();
        while let Some(found) = senders.join_next().await {
            match found.unwrap() {
                Ok(found) => {
                    told.posts += found.len();
                    times.extend_from_slice(&found[1..]);
                }
                Err(why) => told.findings.push(why),
            }
        }
        times.sort();
        slices.extend(times.get(times.len().saturating_sub(1) * 99 / 100));
    }
    slices
}

/// The first one connects, and is not measured.
async fn post_for_a_slice(client: &Client, url: &str) -> Result<Vec<Duration>, String> {
    let mut times = vec![post(client, url).await?];
    let (began, mut ticks) = (Instant::now(), interval(EVERY));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while began.elapsed() < SLICE {
        ticks.tick().await;
        times.push(post(client, url).await?);
    }
    Ok(times)
}

async fn post(client: &Client, url: &str) -> Result<Duration, String> {
    let asked = Instant::now();
    let answer = client.post(url).body("healthy").send().await;
    match answer.and_then(reqwest::Response::error_for_status) {
        Ok(_) => Ok(asked.elapsed()),
        Err(error) => Err(format!("a healthy post: {error}")),
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
