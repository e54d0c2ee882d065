//! Ring 4, hostile peers: agents that break every rule against a real forwarder, a forwarder that
//! does against real agents, and thousands of agents that come back at once. It must not lend the
//! product a hand: what is sent is made here, byte by byte.

mod acks;
mod agents;
mod fates;
mod forwarders;
mod frames;
mod handshakes;
mod lies;
mod mutants;
mod pressure;
mod reconnect;
mod rogue;
mod socket;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use socket::Gate;
use whrelay_agent::Proxies;
use whrelay_core::bucket::BucketName;
use whrelay_core::token::Token;
use whrelay_delivery::Trust;
use whrelay_tests::process::Cloud;

use crate::report::{self, Row};

/// Frames made by a seed each.
const SEEDS: u64 = 2200;
/// Agents that come back at once, where nobody says how many.
pub(crate) const AGENTS: usize = 2000;
/// What a busy machine adds to a timeout.
const SLACK: Duration = Duration::from_secs(5);
/// Files that a process holds open beside its agents' sockets.
const OTHER_FILES: usize = 2000;

/// What a part of the ring has tried.
struct Told {
    tried: String,
    counted: String,
    findings: Vec<String>,
}

/// Runs all of it at once. Says whether everything held.
pub(crate) fn run(binary: &str, agents: usize) -> bool {
    if let Err(why) = raise_files(agents + OTHER_FILES) {
        println!("peers: {why}");
        return false;
    }
    // Everything runs in a home of its own, from where a relative path leads nowhere.
    let binary = std::fs::canonicalize(binary).unwrap();
    let binary: Arc<str> = binary.to_str().unwrap().into();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let began = Instant::now();
    let timed = move |told: Told| (told, began.elapsed().as_secs_f64());
    let parts = runtime.block_on(async {
        let (for_storm, for_hostile) = (Arc::clone(&binary), Arc::clone(&binary));
        let storm = async move { timed(reconnect::storm(&for_storm, agents).await) };
        let hostile = async move { timed(agents::attack(&for_hostile, SEEDS).await) };
        let rogue = async { timed(forwarders::attack(&binary).await) };
        let (storm, hostile, rogue) =
            tokio::join!(tokio::spawn(storm), tokio::spawn(hostile), rogue);
        let (storm, hostile) = (storm.unwrap(), hostile.unwrap());
        let deaf = timed(pressure::deafness(&binary).await);
        [
            (
                "hostile agents at a forwarder (P1-P3, P6, N5, N7, N9, N12)",
                hostile,
            ),
            ("a rogue forwarder at agents (P5, N10, N12)", rogue),
            ("agents that come back at once (N8)", storm),
            (
                "tunnels that read nothing, beside one that reads (P3, N5)",
                deaf,
            ),
        ]
    });
    let mut held = true;
    for (fault, (told, seconds)) in parts {
        let Told {
            tried,
            counted,
            findings,
        } = told;
        for finding in &findings {
            println!("peers: {finding}");
        }
        held &= report::tell(&Row {
            ring: 4,
            fault: fault.to_owned(),
            tried,
            failures: findings.len() as u64,
            counted,
            seconds,
        });
    }
    held
}

/// Sees to it that this process, and those it starts, may hold so many files open: where they may
/// not, it begins again as a process that may.
fn raise_files(needed: usize) -> Result<(), String> {
    let limits = std::fs::read_to_string("/proc/self/limits").map_err(|error| error.to_string())?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft = line
        .and_then(|line| line.split_whitespace().nth(3))
        .unwrap_or_default();
    if soft == "unlimited" || soft.parse().is_ok_and(|soft: usize| soft >= needed) {
        return Ok(());
    }
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let script = format!("ulimit -n {needed} || exit 1; exec \"$0\" \"$@\"");
    if std::env::var_os(RAISED).is_some() {
        return Err(format!(
            "{needed} open files are needed, and {soft} is the limit"
        ));
    }
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &script])
        .arg(this)
        .args(std::env::args_os().skip(1));
    let error = shell.env(RAISED, "1").exec();
    Err(format!(
        "the limit of open files cannot be raised to {needed}: {error}"
    ))
}

/// Set once the limit was raised, so that it is tried once.
const RAISED: &str = "WHRELAY_FAULTS_RAISED";

pub(crate) fn gate_of(cloud: &Cloud) -> Gate {
    Gate {
        address: cloud.url.trim_start_matches("http://").parse().unwrap(),
        token: std::fs::read_to_string(&cloud.token_file)
            .unwrap()
            .trim()
            .to_owned(),
    }
}

/// The input URL of a bucket, created where it is missing.
pub(crate) async fn ensure(gate: &Gate, bucket: &str) -> String {
    let (url, token) = (
        format!("http://{}", gate.address),
        Token::parse(&gate.token).unwrap(),
    );
    let bucket: BucketName = bucket.parse().unwrap();
    let url = url.parse().unwrap();
    let made =
        whrelay_agent::ensure_bucket(&url, &Proxies::none(), &Trust::default(), &token, &bucket)
            .await;
    made.unwrap().url
}

/// The most memory a process has ever used, in MB; none once it has ended.
pub(crate) fn most_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes / 1024)
}
