//! Ring 4, a start after the worst: `listen` killed with so much in its stores, nothing of it in the
//! system's cache, and senders waiting. Needs root, to empty that cache.

use std::time::{Duration, Instant};

use whrelay_tests::process::Home;
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender;

use crate::report;

/// Bytes of a body.
const BODY: usize = 16 * 1024;
/// Senders while the stores are filled.
const SENDERS: usize = 64;
/// Starts that are timed.
const STARTS: usize = 3;
/// How soon it has to be ready.
const READY_WITHIN: Duration = Duration::from_secs(1);
/// How long the agent may take to have stored what the forwarder has.
const STORED_WITHIN: Duration = Duration::from_secs(600);

/// Fills both stores with so many gigabytes and starts again. Says whether it was ready in time.
pub(crate) fn run(binary: &str, gigabytes: u64) -> bool {
    let began = Instant::now();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let started = runtime.block_on(start_again(binary, gigabytes));
    let fault = "kill -9 with everything waiting, and a cold cache (finding 5)";
    let tried = format!("{STARTS} starts with {gigabytes} GB in each store");
    report::judge(fault, tried, began, started)
}

async fn start_again(binary: &str, gigabytes: u64) -> Result<String, String> {
    let home = Home::new(binary);
    let mut receiver = Receiver::start().await;
    let to = receiver.target();
    receiver.stop();
    let (mut listen, url) = home.listen(&["--to", &to]).await;
    let events = gigabytes * 1_000_000_000 / BODY as u64;
    let senders = (0..SENDERS).map(|n| {
        let (url, share) = (url.clone(), events / SENDERS as u64);
        tokio::spawn(async move {
            let (client, body) = (sender::client(), vec![n as u8; BODY]);
            for _ in 0..share {
                let answer = client.post(&url).body(body.clone()).send().await;
                assert!(answer.unwrap().status().is_success());
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.map_err(|error| error.to_string())?;
    }
    let stored = events / SENDERS as u64 * SENDERS as u64;
    let began = Instant::now();
    while (listen.all("received").len() as u64) < stored {
        if began.elapsed() > STORED_WITHIN {
            return Err("the agent does not come after".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut times = Vec::new();
    for _ in 0..STARTS {
        listen.kill();
        forget_files();
        let began = Instant::now();
        (listen, _) = home.listen(&["--to", &to]).await;
        times.push(began.elapsed());
    }
    let told: Vec<_> = times
        .iter()
        .map(|time| format!("{:.2}", time.as_secs_f64()))
        .collect();
    let told = format!("{stored} events waiting, ready after {} s", told.join(", "));
    match times.iter().all(|time| *time <= READY_WITHIN) {
        true => Ok(told),
        false => Err(told),
    }
}

/// Empties the system's cache of files.
fn forget_files() {
    let synced = std::process::Command::new("sync").status().unwrap();
    assert!(synced.success());
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}
