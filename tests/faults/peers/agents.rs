//! Hostile agents against a real forwarder, and a bystander of another bucket who must not notice.
//! It must not be easy on either: what the bystander was sent, and what the store has, is compared.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use whrelay_store::{Options, Role, Store};
use whrelay_tests::process::{Cloud, Home, Process};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender;

use super::frames::{self, PREY};
use super::socket::Gate;
use super::{Told, acks, ensure, gate_of, handshakes, most_memory, mutants, pressure};
use crate::arrivals::all_arrive;

/// Most memory the forwarder may ever have used, in MB. Its cache, a frame for each of the readers
/// that do not read, and what every process of this size costs.
const MEMORY: u64 = 96;
/// How soon an event of the bystander's has to arrive, whatever the others do.
const ARRIVES_WITHIN: Duration = Duration::from_secs(2);
const BYSTANDER: &str = "bystander";
/// Pause between two events of the bystander's.
const EVERY: Duration = Duration::from_millis(25);

/// What happens beside the attack.
struct Bystander {
    listen: Process,
    receiver: Receiver,
    sending: Arc<AtomicBool>,
    /// When a 2xx was heard for each event.
    sender: JoinHandle<HashMap<String, Instant>>,
}

/// Runs it all. Answers with what was tried, and everything that went wrong.
pub(crate) async fn attack(binary: &str, seeds: u64) -> Told {
    let (there, here) = (Home::new(binary), Home::new(binary));
    let mut cloud = Cloud::start(&there).await;
    let gate = gate_of(&cloud);
    let victim = ensure(&gate, acks::VICTIM).await;
    let heavy = ensure(&gate, pressure::HEAVY).await;
    ensure(&gate, PREY).await;
    ensure(&gate, mutants::MUTANTS).await;
    for n in 0..acks::EVENTS {
        sender::send_again(&victim, n.to_string().into()).await;
    }
    for _ in 0..pressure::HEAVY_EVENTS {
        sender::send_again(&heavy, vec![7; pressure::HEAVY_BODY]).await;
    }
    let bystander = Bystander::start(&here, &cloud).await;
    let (handshakes, frames, mutants, acks, pressure) = tokio::join!(
        handshakes::attack(&gate),
        frames::attack(&gate),
        mutants::attack(&gate, seeds),
        acks::attack(&gate),
        pressure::attack(&gate),
    );
    let mut findings = mutants;
    let mut tried = seeds;
    let parts = [handshakes, frames, acks, pressure];
    for (cases, found) in parts {
        tried += cases;
        findings.extend(found);
    }
    let (served, found) = bystander.end().await;
    findings.extend(found);
    findings.extend(alive(&gate).await.err());
    let memory = most_memory(cloud.process.pid()).unwrap_or(u64::MAX);
    if memory > MEMORY {
        findings.push(format!(
            "the forwarder used {memory} MB, more than {MEMORY}"
        ));
    }
    findings.extend(unmarked(&cloud.process.stderr()));
    let ended = cloud.process.terminate().await;
    if ended != Some(0) {
        findings.push(format!("the forwarder ended with {ended:?}"));
    }
    findings.extend(places(&cloud, served.events).await);
    Told {
        tried: format!("{tried} hostile peers"),
        counted: format!(
            "{seeds} of them mutants by seed, the forwarder at {memory} MB at most, {} events of a \
             bystander's, each within {} ms",
            served.events,
            served.slowest.as_millis()
        ),
        findings,
    }
}

struct Served {
    events: u64,
    slowest: Duration,
}

impl Bystander {
    async fn start(home: &Home, cloud: &Cloud) -> Self {
        let receiver = Receiver::start().await;
        let to = receiver.target();
        let args = [
            &["--to", &to, "--bucket", BYSTANDER, "--name", "default"],
            &cloud.flags()[..],
        ]
        .concat();
        let (listen, url) = home.listen(&args).await;
        let sending = Arc::new(AtomicBool::new(true));
        let on = Arc::clone(&sending);
        let sender = tokio::spawn(async move {
            let mut heard = HashMap::new();
            while on.load(Ordering::SeqCst) {
                let id = sender::send(&url, vec![9; 500]).await;
                heard.insert(id, Instant::now());
                tokio::time::sleep(EVERY).await;
            }
            heard
        });
        Self {
            listen,
            receiver,
            sending,
            sender,
        }
    }

    /// Stops sending; says how it was served, and what was wrong with that.
    async fn end(mut self) -> (Served, Vec<String>) {
        self.sending.store(false, Ordering::SeqCst);
        let heard = self.sender.await.unwrap();
        let sent = heard.keys().cloned().collect();
        let arrived = all_arrive(&self.receiver, &sent, ARRIVES_WITHIN).await;
        let mut findings: Vec<_> = arrived.err().into_iter().collect();
        let (mut slowest, seen) = (Duration::ZERO, self.receiver.seen());
        for request in &seen {
            match heard.get(&request.event()) {
                Some(at) => slowest = slowest.max(request.at.saturating_duration_since(*at)),
                None => findings.push(format!("{} was never sent", request.event())),
            }
        }
        if seen.len() > heard.len() {
            findings.push(format!(
                "{} events arrived in {} requests",
                heard.len(),
                seen.len()
            ));
        }
        if slowest > ARRIVES_WITHIN {
            findings.push(format!("an event took {slowest:?}"));
        }
        let links = self.listen.all("link").len();
        if links != 1 {
            findings.push(format!("its tunnel came and went: {links} changes"));
        }
        let ended = self.listen.terminate().await;
        if ended != Some(0) {
            findings.push(format!("its agent ended with {ended:?}"));
        }
        let findings = findings
            .into_iter()
            .map(|why| format!("the bystander: {why}"));
        let events = heard.len() as u64;
        (Served { events, slowest }, findings.collect())
    }
}

async fn alive(gate: &Gate) -> Result<(), String> {
    let health = sender::client().get(format!("http://{}/healthz", gate.address));
    match health.send().await {
        Ok(answer) if answer.status().is_success() => Ok(()),
        answer => Err(format!("the forwarder does not answer: {answer:?}")),
    }
}

/// What a hostile agent calls itself must not write lines of its own, nor move a cursor, in the
/// log.
fn unmarked(log: &str) -> Option<String> {
    let control = |c: char| c.is_control() && c != '\n';
    let forged = log
        .lines()
        .find(|line| line.starts_with("fake") || line.contains(control));
    forged.map(|line| format!("the forwarder's log has {line:?}"))
}

/// Reads the places from the store of a forwarder that has stopped.
async fn places(cloud: &Cloud, served: u64) -> Vec<String> {
    let options = Options {
        role: Role::Forwarder,
        cache: 8 << 20,
        name_seed: 0,
        purpose: "audit",
        bound: None,
    };
    let dir = std::path::Path::new(&cloud.token_file).parent().unwrap();
    let store = Store::open(dir, &options).unwrap();
    let mut findings = Vec::new();
    let buckets = store.catalog.buckets().await.unwrap();
    let held = [
        (BYSTANDER, served),
        (acks::VICTIM, acks::EVENTS),
        (pressure::HEAVY, pressure::HEAVY_EVENTS as u64),
        (PREY, 0),
        (mutants::MUTANTS, 0),
    ];
    for (name, events) in held {
        let bucket = buckets
            .iter()
            .find(|bucket| bucket.name.as_str() == name)
            .unwrap();
        let last = store.journal.numbers(bucket.id).await.unwrap().last.0;
        if last != events {
            findings.push(format!("{name} has {last} events, not {events}"));
        }
    }
    let bystander = buckets
        .iter()
        .find(|bucket| bucket.name.as_str() == BYSTANDER)
        .unwrap();
    let stored = store.journal.subscription(bystander.id, "default").await;
    let stored = stored.unwrap();
    let place = stored.known().map_or(0, |known| known.acked.0);
    if place != served {
        findings.push(format!("the bystander's place is {place}, not {served}"));
    }
    if buckets.len() != held.len() {
        findings.push(format!("there are {} buckets", buckets.len()));
    }
    store.journal.close().await;
    findings
}
