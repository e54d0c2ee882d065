//! Ring 4, a long run: steady load through the release binaries while the receiver fails, hangs and goes
//! away. Memory, open files and disk must not creep, and the counts must agree at the end.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;
use whrelay_tests::process::{Cloud, Home, Process};
use whrelay_tests::receiver::{Receiver, Reply};
use whrelay_tests::sender;

use crate::arrivals::all_arrive;
use crate::chance::Chance;
use crate::report;

/// Events a second.
const RATE: u64 = 200;
const BODY: usize = 1024;
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// The receiver is away for so long in every minute.
const AWAY: Duration = Duration::from_secs(5);
const ARRIVES_WITHIN: Duration = Duration::from_secs(120);
/// What an event costs on disk beside its body, generously: its head, two index rows, its delivery, two
/// attempts, and pages that are not full.
const OVERHEAD: u64 = 2048;
/// What a store has before its first event, its reserve included.
const CONSTANT: u64 = 16 << 20;
/// How much a process's memory may grow between the second quarter and the last.
const CREEP: u64 = 8 << 20;
/// The larger of the two stores' caches, in bytes: a process grows by filling it, so so much is stored before
/// anything is measured.
const CACHE: u64 = 16 << 20;
/// Senders while the caches fill.
const FILLING: usize = 32;
/// How many more files it may have open.
const MORE_FILES: u64 = 32;

/// Runs so many minutes. Says whether everything held.
pub(crate) fn run(binary: &str, minutes: u64) -> bool {
    let began = Instant::now();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let soaked = runtime.block_on(soak(binary, Duration::from_secs(60 * minutes)));
    let fault = "a long run with a receiver that fails and goes away (D12)";
    let tried = format!("{minutes} min at {RATE} events/s");
    report::judge(fault, tried, began, soaked)
}

/// What a process has at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    memory: u64,
    files: u64,
}

async fn soak(binary: &str, time: Duration) -> Result<String, String> {
    let (there, here) = (Home::new(binary), Home::new(binary));
    let cloud = Cloud::start(&there).await;
    let chance = std::sync::Mutex::new(Chance::new(1));
    let mut receiver = Receiver::scripted(move |_| match chance.lock().unwrap().below(100) {
        0..5 => Reply::Status(503),
        5..7 => Reply::Close,
        _ => Reply::Status(200),
    })
    .await;
    let to = receiver.target();
    let flags = [&["--to", &to], &cloud.flags()[..]].concat();
    let (listen, url) = here.listen(&flags).await;
    let client = sender::client();
    let (mut heard, mut samples) = (fill(&client, &url).await?, Vec::new());
    let (began, filled) = (Instant::now(), heard.len() as u64);
    let (mut sent, mut sampled, mut away) = (0, Instant::now(), false);
    while began.elapsed() < time {
        let answer = client.post(&url).body(vec![b'x'; BODY]).send().await;
        let answer = answer.map_err(|error| error.to_string())?;
        heard.insert(sender::id_of(&answer.text().await.unwrap()));
        sent += 1;
        tokio::time::sleep_until((began + Duration::from_micros(1_000_000 / RATE * sent)).into())
            .await;
        let into_minute = Duration::from_secs(began.elapsed().as_secs() % 60);
        if away != (into_minute < AWAY) {
            away = !away;
            match away {
                true => receiver.stop(),
                false => drop(receiver.open_again().await),
            }
        }
        if sampled.elapsed() >= SAMPLE_EVERY {
            sampled = Instant::now();
            samples.push([sample(&cloud.process), sample(&listen)]);
        }
    }
    if away {
        receiver.open_again().await;
    }
    all_arrive(&receiver, &heard, ARRIVES_WITHIN).await?;
    let sent = filled + sent;
    let mut told = Vec::new();
    for (n, (name, home)) in [("forwarder", &there), ("agent", &here)].iter().enumerate() {
        let of: Vec<_> = samples.iter().map(|both| both[n]).collect();
        told.push(format!("{name} {}", creep(name, &of)?));
        told.push(disk(name, home.path(), sent)?);
    }
    reconcile(&here, sent).await?;
    Ok(told.join(", "))
}

/// Fills both stores' caches; answers with the events.
async fn fill(client: &reqwest::Client, url: &str) -> Result<HashSet<String>, String> {
    let posts = (0..CACHE / BODY as u64).map(|_| async {
        let answer = client.post(url).body(vec![b'x'; BODY]).send().await;
        let text = answer.map_err(|error| error.to_string())?.text().await;
        Ok(sender::id_of(&text.map_err(|error| error.to_string())?))
    });
    let posts = futures_util::stream::iter(posts).buffer_unordered(FILLING);
    posts.try_collect().await
}

fn sample(process: &Process) -> Sample {
    let place = format!("/proc/{}", process.pid());
    let status = std::fs::read_to_string(format!("{place}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = resident.and_then(|rest| rest.trim().split(' ').next()?.parse().ok());
    Sample {
        memory: kilobytes.unwrap_or(u64::MAX / 1024) * 1024,
        files: std::fs::read_dir(format!("{place}/fd")).unwrap().count() as u64,
    }
}

/// Compares the second quarter with the last, median with median.
fn creep(name: &str, samples: &[Sample]) -> Result<String, String> {
    let quarter = samples.len() / 4;
    let median = |of: &[Sample], what: fn(&Sample) -> u64| {
        let mut all: Vec<_> = of.iter().map(what).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    let (early, late) = (&samples[quarter..2 * quarter], &samples[3 * quarter..]);
    let memory = |of| median(of, |sample| sample.memory);
    let files = |of| median(of, |sample| sample.files);
    let told = format!(
        "{:.1} -> {:.1} MB, {} -> {} files",
        memory(early) as f64 / 1e6,
        memory(late) as f64 / 1e6,
        files(early),
        files(late)
    );
    let grew = memory(late) > memory(early) + CREEP || files(late) > files(early) + MORE_FILES;
    if grew {
        return Err(format!("the {name} creeps: {told}"));
    }
    Ok(told)
}

/// Bytes that a home takes on disk, against what is alive in it.
fn disk(name: &str, home: &Path, events: u64) -> Result<String, String> {
    let (used, live) = (allocated(home), events * (BODY as u64 + OVERHEAD));
    let told = format!(
        "{:.0} MB on disk for {:.0} MB of events",
        used as f64 / 1e6,
        live as f64 / 1e6
    );
    if used > 2 * live + CONSTANT {
        return Err(format!("the {name} has {told}"));
    }
    Ok(told)
}

fn allocated(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).unwrap().map_while(Result::ok);
    let of = |entry: std::fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => allocated(&entry.path()),
        // In units of 512 bytes, whatever the file system's own are (stat(2)).
        false => entry.metadata().unwrap().blocks() * 512,
    };
    entries.map(of).sum()
}

/// Accepted = sent + dead + waiting.
async fn reconcile(home: &Home, accepted: u64) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let output = home.run(&["status", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let status: Value = serde_json::from_str(text.trim()).unwrap();
        let count = |key: &str| status[key].as_u64().unwrap_or_default();
        let (sent, dead) = (count("sent"), count("dead"));
        let waiting = count("queued") + count("stalled");
        if sent + dead + waiting == accepted && dead + waiting == 0 {
            return Ok(());
        }
        if began.elapsed() > ARRIVES_WITHIN {
            return Err(format!(
                "{accepted} accepted, but {sent} sent, {dead} dead, {waiting} waiting"
            ));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
