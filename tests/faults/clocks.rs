//! Ring 4, clocks: the release binary under libfaketime while its wall clock is set forward and back,
//! and while the machine sleeps. Nothing may fire early, expire, or wait for a clock to come back.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use whrelay_tests::process::{Home, Process};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender;

use crate::arrivals::all_arrive;
use crate::report::{self, Row};
use crate::script;

const HOUR: i64 = 3600;
const JUMPS: [i64; 10] = [
    1,
    -1,
    60,
    -60,
    HOUR,
    -HOUR,
    24 * HOUR,
    -24 * HOUR,
    30 * 24 * HOUR,
    -30 * 24 * HOUR,
];
/// A clock that was behind by more than a schedule's window when an event was queued, and is right at
/// the next start, proves to that start that the event's time is up: docs/guarantees.md names it.
const BEHIND_AT_MOST: i64 = -15 * HOUR;
/// More than are tried at once, so that some wait for their turn and others for their backoff.
const EVENTS: usize = 40;
/// How soon everything has to arrive once its endpoint takes connections: probes, and a tunnel that
/// is dialled again after a jump.
const ARRIVES_WITHIN: Duration = Duration::from_secs(15);
const FROZEN_FOR: Duration = Duration::from_secs(3);

/// A clock that can be set, and the program under it.
struct Clock {
    dir: TempDir,
}

impl Clock {
    fn new(binary: &str) -> Self {
        let clock = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        clock.set(0);
        let text = format!(
            "export LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 \
             FAKETIME_DONT_FAKE_MONOTONIC=1\nexec {binary} \"$@\"",
            library().display(),
            clock.dir.path().join("time").display(),
        );
        script::write(&clock.program(), &text);
        clock
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("under-a-clock")
    }

    /// Sets it so many seconds off, in one step.
    fn set(&self, off: i64) {
        let (draft, place) = (self.dir.path().join("draft"), self.dir.path().join("time"));
        fs::write(&draft, format!("{off:+}\n")).unwrap();
        fs::rename(draft, place).unwrap();
    }
}

fn library() -> PathBuf {
    let architectures = fs::read_dir("/usr/lib").unwrap().map_while(Result::ok);
    let mut places =
        architectures.map(|entry| entry.path().join(Path::new("faketime/libfaketimeMT.so.1")));
    places.find(|path| path.exists()).expect("libfaketime")
}

/// Tries every jump, and a sleep. Says whether everything held.
pub(crate) fn run(binary: &str) -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (began, mut failures, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    let mut tried = 0;
    let mut note = |what: String, found: Result<Duration, String>| {
        tried += 1;
        match found {
            Ok(took) => slowest = slowest.max(took),
            Err(why) => {
                println!("{what}: {why}");
                failures += 1;
            }
        }
    };
    for jump in JUMPS {
        let found = runtime.block_on(jump_once(binary, jump));
        note(format!("a jump of {jump} s"), found);
    }
    note("a sleep".to_owned(), runtime.block_on(sleep_once(binary)));
    report::tell(&Row {
        ring: 4,
        fault:
            "the clock set by 1 s to 30 d and back, before and after a restart, and 8 h of sleep \
                (T1-T3)"
                .to_owned(),
        tried: format!("{tried} jumps"),
        failures,
        counted: format!("slowest arrival {:.1} s", slowest.as_secs_f64()),
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// What waits for an endpoint while the clock jumps arrives as soon as it is back; and what was queued
/// while the clock was wrong arrives at the next start, when it is right.
async fn jump_once(binary: &str, jump: i64) -> Result<Duration, String> {
    let clock = Clock::new(binary);
    let home = Home::new(clock.program().to_str().unwrap());
    let mut receiver = Receiver::start().await;
    let to = receiver.target();
    receiver.stop();
    let (mut listen, url) = home.listen(&["--to", &to]).await;
    let mut sent = queue(&url, &listen).await;
    clock.set(jump);
    receiver.open_again().await;
    let first = all_arrive(&receiver, &sent, ARRIVES_WITHIN).await?;
    if jump >= BEHIND_AT_MOST {
        receiver.stop();
        sent.extend(queue(&url, &listen).await);
        listen.kill();
        clock.set(0);
        receiver.open_again().await;
        let (again, _) = home.listen(&["--to", &to]).await;
        listen = again;
        all_arrive(&receiver, &sent, ARRIVES_WITHIN).await?;
    }
    alive(&home)?;
    drop(listen);
    Ok(first)
}

/// A laptop that sleeps for eight hours with deliveries waiting.
async fn sleep_once(binary: &str) -> Result<Duration, String> {
    let clock = Clock::new(binary);
    let home = Home::new(clock.program().to_str().unwrap());
    let mut receiver = Receiver::start().await;
    let to = receiver.target();
    receiver.stop();
    let (listen, url) = home.listen(&["--to", &to]).await;
    let sent = queue(&url, &listen).await;
    listen.freeze();
    tokio::time::sleep(FROZEN_FOR).await;
    clock.set(8 * HOUR);
    receiver.open_again().await;
    listen.thaw();
    let took = all_arrive(&receiver, &sent, ARRIVES_WITHIN).await?;
    alive(&home)?;
    Ok(took)
}

/// Sends a few events and waits until the agent has them and knows that its endpoint is offline.
async fn queue(url: &str, listen: &Process) -> HashSet<String> {
    let mut sent = HashSet::new();
    for n in 0..EVENTS {
        sent.insert(sender::send(url, n.to_string()).await);
    }
    for id in &sent {
        listen
            .wait("received", |line| line["event"] == id.as_str())
            .await;
    }
    listen
        .wait("endpoint", |line| line["state"] == "offline")
        .await;
    sent
}

/// Nothing has been given up.
fn alive(home: &Home) -> Result<(), String> {
    let output = home.run(&["status", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let dead: u64 = lines.filter_map(|line| line["dead"].as_u64()).sum();
    match dead {
        0 => Ok(()),
        _ => Err(format!("{dead} deliveries were given up")),
    }
}
