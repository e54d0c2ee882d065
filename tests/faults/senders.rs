//! Ring 4, bad senders: raw requests from tables, each with the one reading it may have, and thousands
//! of slow connections; through a forwarder of its own and an agent to an endpoint under a base path.
//! It must not take a library's word for what was sent or what arrived.

mod case;
mod connections;
mod crowd;
mod exchange;
mod fields;
mod methods;
mod paths;
mod slow;
mod smuggling;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use whrelay_core::tail;
use whrelay_tests::process::{Cloud, Home, Process};
use whrelay_tests::receiver::{Received, Receiver, Reply};
use whrelay_tests::sender;

use crate::report::{self, Row};
use case::{Arrival, BASE, Case, Kind};
use exchange::Played;

/// Cases at once. Some take as long as a slow sender may.
const TOGETHER: usize = 200;
/// The tables have at least so many cases of these kinds, and of all.
const AT_LEAST: [(Kind, usize); 3] = [
    (Kind::Smuggling, 60),
    (Kind::Paths, 200),
    (Kind::Fields, 300),
];
const ALL_AT_LEAST: usize = 1_000;
/// How long everything accepted may take to arrive.
const ARRIVES_WITHIN: Duration = Duration::from_secs(20);
/// Most memory that the forwarder may ever have held, in kilobytes.
const MEMORY: u64 = 400_000;
/// Files that this process and the forwarder may each have open.
const FILES: u64 = crowd::CROWD as u64 + 600;
/// Fields that are ours, each exactly once.
const OURS: [&str; 5] = [
    "event-id",
    "delivery-id",
    "attempt",
    "bucket",
    "received-at",
];

/// Tries every case, and then the slow ones. Says whether everything held.
pub(crate) fn run(binary: &str) -> bool {
    if files_allowed() < FILES {
        return run_with_files();
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut place = Place::new(binary).await;
        let cases = place.try_cases().await;
        let slow = place.try_slow().await;
        drop(place);
        let crowds = try_crowds(binary).await;
        cases && slow && crowds
    })
}

fn files_allowed() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.unwrap().split_whitespace().next().unwrap();
    soft.parse().unwrap_or(u64::MAX)
}

/// Starts this program again with as many files as it needs; what it starts has them too.
fn run_with_files() -> bool {
    let script = "ulimit -n \"$0\" && exec \"$@\"";
    let mut again = Command::new("sh");
    again.args(["-c", script, &FILES.to_string()]);
    again
        .arg(std::env::current_exe().unwrap())
        .args(std::env::args().skip(1));
    println!(
        "senders: {FILES} open files are needed and not allowed: {}",
        again.exec()
    );
    false
}

/// The whole way, from an input URL to an endpoint.
struct Place {
    cloud: Cloud,
    listen: Process,
    receiver: Receiver,
    url: String,
    path: String,
    address: SocketAddr,
    /// Everything lives in it.
    _home: Home,
}

/// What the cases came to.
#[derive(Default)]
struct Ledger {
    /// What must arrive for an event, and the case it is of.
    by_id: HashMap<String, (usize, Option<Arrival>)>,
    /// The same for a 2xx that has no room for an id.
    nameless: Vec<(usize, Option<Arrival>)>,
    findings: Vec<String>,
}

impl Place {
    async fn new(binary: &str) -> Self {
        let home = Home::new(binary);
        let cloud = Cloud::start(&home).await;
        let receiver = Receiver::scripted(reply).await;
        let to = format!("{}{BASE}", receiver.target());
        let (listen, url) = home
            .listen(&[&["--to", &to], &cloud.flags()[..]].concat())
            .await;
        Self {
            address: cloud.url.trim_start_matches("http://").parse().unwrap(),
            path: sender::path_of(&url),
            cloud,
            listen,
            receiver,
            url,
            _home: home,
        }
    }

    fn cases(&self) -> Vec<Case> {
        let tables = [
            smuggling::cases,
            paths::cases,
            fields::cases,
            methods::cases,
            connections::cases,
        ];
        tables
            .into_iter()
            .flat_map(|table| table(&self.path))
            .collect()
    }

    async fn try_cases(&mut self) -> bool {
        let (began, cases) = (Instant::now(), Arc::new(self.cases()));
        let mut ledger = Ledger::default();
        for (n, played) in self.play(&cases).await {
            ledger.note(&cases, n, played);
        }
        ledger.findings.extend(too_few(&cases));
        let accepted = ledger.by_id.len() + ledger.nameless.len();
        self.settle(accepted, &mut ledger.findings).await;
        let seen = self.receiver.seen();
        ledger.audit(&cases, &seen, &self.receiver.target());
        let memory = self.still_well(&mut ledger.findings).await;
        let mut kinds = BTreeMap::<Kind, usize>::new();
        for case in cases.iter() {
            *kinds.entry(case.kind).or_default() += 1;
        }
        let kinds: Vec<_> = kinds
            .iter()
            .map(|(kind, n)| format!("{n} {kind}"))
            .collect();
        tell(ledger.findings, |failures| Row {
            ring: 4,
            fault: "requests that are malformed, smuggled, climbing, spoofed or cut short \
                (S1, S2, S4-S9, S11-S13, S16, S18)"
                .to_owned(),
            tried: format!("{} requests: {}", cases.len(), kinds.join(", ")),
            failures,
            counted: format!(
                "{accepted} accepted, {} arrived, {} MB of memory at most",
                seen.len() - 1,
                memory / 1000
            ),
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    async fn play(&self, cases: &Arc<Vec<Case>>) -> Vec<(usize, Played)> {
        let (mut playing, room) = (JoinSet::new(), Arc::new(Semaphore::new(TOGETHER)));
        for n in 0..cases.len() {
            let (cases, address) = (Arc::clone(cases), self.address);
            let permit = Arc::clone(&room).acquire_owned().await.unwrap();
            playing.spawn(async move {
                let played = exchange::play(address, &cases[n]).await;
                drop(permit);
                (n, played)
            });
        }
        playing.join_all().await
    }

    /// Waits until the agent has an event sent after all of these, and the endpoint has as many.
    async fn settle(&self, accepted: usize, findings: &mut Vec<String>) {
        let last = sender::send(&self.url, "the last").await;
        self.listen
            .wait("received", |line| line["event"] == last.as_str())
            .await;
        let stored = self.listen.all("received").len();
        if stored != accepted + 1 {
            findings.push(format!("{accepted} accepted, and {} stored", stored - 1));
        }
        let began = Instant::now();
        let arrived = || self.receiver.events().contains(&last);
        while (self.receiver.count() <= accepted || !arrived()) && began.elapsed() < ARRIVES_WITHIN
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The forwarder lives, answers, and has not grown; says how much memory it has held.
    async fn still_well(&mut self, findings: &mut Vec<String>) -> u64 {
        let health = sender::client()
            .get(format!("{}/readyz", self.cloud.url))
            .send()
            .await;
        if self.cloud.process.has_ended() || !health.is_ok_and(|h| h.status().is_success()) {
            findings.push(format!(
                "the forwarder is not well: {}",
                self.cloud.process.stderr()
            ));
        }
        let status = format!("/proc/{}/status", self.cloud.process.pid());
        let status = std::fs::read_to_string(status).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let memory = line.and_then(|line| line.trim().split(' ').next()?.parse().ok());
        let memory = memory.unwrap_or(u64::MAX);
        if memory > MEMORY {
            findings.push(format!("the forwarder has held {memory} kB"));
        }
        memory
    }

    async fn try_slow(&mut self) -> bool {
        let (began, before) = (Instant::now(), self.receiver.count());
        let mut told = slow::run(self.address, &self.url, &self.path).await;
        self.settle(before + told.posts, &mut told.findings).await;
        self.still_well(&mut told.findings).await;
        let counted = told.counted();
        tell(told.findings, |failures| Row {
            ring: 4,
            fault: "senders that say nothing, half a head, a body by the byte, or nothing more \
                (S3, S11, S12)"
                .to_owned(),
            tried: slow::Told::tried(),
            failures,
            counted,
            seconds: began.elapsed().as_secs_f64(),
        })
    }
}

/// Says whether all of them held.
async fn try_crowds(binary: &str) -> bool {
    let mut held = true;
    for (row, findings) in crowd::run(binary).await {
        held &= tell(findings, |_| row);
    }
    held
}

fn tell(findings: Vec<String>, row: impl FnOnce(u64) -> Row) -> bool {
    for finding in findings.iter().take(40) {
        println!("senders: {finding}");
    }
    report::tell(&row(findings.len() as u64))
}

/// An answer to HEAD has no body, and the usual reply has one.
fn reply(request: &Received) -> Reply {
    match request.method.as_str() {
        "HEAD" => Reply::Raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec()),
        _ => Reply::Status(200),
    }
}

fn too_few(cases: &[Case]) -> Vec<String> {
    let mut findings = Vec::new();
    for (kind, least) in AT_LEAST {
        let count = cases.iter().filter(|case| case.kind == kind).count();
        if count < least {
            findings.push(format!("only {count} {kind}"));
        }
    }
    if cases.len() < ALL_AT_LEAST {
        findings.push(format!("only {} cases", cases.len()));
    }
    findings
}

impl Ledger {
    fn note(&mut self, cases: &[Case], n: usize, played: Played) {
        let Played { accepted, findings } = played;
        for (id, arrival) in accepted {
            match id {
                Some(id) => drop(self.by_id.insert(id, (n, arrival))),
                None => self.nameless.push((n, arrival)),
            }
        }
        let shown = cases[n].shown();
        self.findings
            .extend(findings.iter().map(|finding| format!("{shown}: {finding}")));
    }

    /// What arrived, beside what was announced.
    fn audit(&mut self, cases: &[Case], seen: &[Received], target: &str) {
        for received in seen {
            let path = received.path.split('?').next().unwrap_or_default();
            if !path.starts_with(BASE) || tail::climbs(path) {
                self.findings
                    .push(format!("{path} is not under the base path"));
            }
            if received.body == b"the last" {
                continue;
            }
            let announced = self.announced(received);
            let (case, arrival) = match announced {
                Some((n, arrival)) => (cases[n].shown(), arrival),
                None => ("nothing".to_owned(), None),
            };
            let differs = match arrival {
                Some(arrival) => differs(&arrival, received, target),
                None => Some("was not to arrive".to_owned()),
            };
            if let Some(why) = differs {
                let (method, path) = (&received.method, &received.path);
                self.findings
                    .push(format!("{case}: {method} {path}: {why}"));
            }
        }
        let missing = self
            .by_id
            .drain()
            .map(|(_, left)| left)
            .chain(self.nameless.drain(..));
        let missing = missing.map(|(n, _)| format!("{}: did not arrive", cases[n].shown()));
        self.findings.extend(missing.collect::<Vec<_>>());
    }

    fn announced(&mut self, received: &Received) -> Option<(usize, Option<Arrival>)> {
        self.by_id.remove(&received.event()).or_else(|| {
            let is_it = |(_, arrival): &(usize, Option<Arrival>)| {
                arrival.as_ref().is_some_and(|arrival| {
                    arrival.method == received.method
                        && arrival.target == received.target
                        && arrival.body == received.body
                })
            };
            let at = self.nameless.iter().position(is_it)?;
            Some(self.nameless.swap_remove(at))
        })
    }
}

/// Where a request is not what was announced.
fn differs(arrival: &Arrival, received: &Received, target: &str) -> Option<String> {
    let Arrival {
        method,
        target: path,
        fields,
        body,
    } = arrival;
    if *method != received.method || *path != received.target {
        return Some(format!("and not {method} {}", path.escape_ascii()));
    }
    if *body != received.body {
        let (here, there) = (received.body.len(), body.len());
        return Some(format!("another body, of {here} bytes and not {there}"));
    }
    let mut names = vec!["host".to_owned(), "content-length".to_owned()];
    names.extend(OURS.map(|name| format!("x-whrelay-{name}")));
    let once = |name: &String| match received.all(name).len() {
        0 => name == "content-length",
        times => times == 1,
    };
    if let Some(name) = names.iter().find(|name| !once(name)) {
        return Some(format!(
            "{name} is there {} times",
            received.all(name).len()
        ));
    }
    if received.header("host") != target || received.header("x-whrelay-attempt") != "1" {
        return Some("addressed to another, or not the first attempt".to_owned());
    }
    let lower = received
        .headers
        .iter()
        .map(|(name, value)| (name.to_lowercase(), value.clone()));
    let mut arrived: Vec<_> = lower.filter(|(name, _)| !names.contains(name)).collect();
    let mut announced = fields.clone();
    // Stable: the order within a name is kept, that between names is nobody's promise.
    arrived.sort_by(|a, b| a.0.cmp(&b.0));
    announced.sort_by(|a, b| a.0.cmp(&b.0));
    let difference = arrived.iter().zip(&announced).find(|(a, b)| a != b);
    match difference.is_none() && arrived.len() == announced.len() {
        true => None,
        false => Some(format!(
            "{} fields and not {}, {difference:?}",
            arrived.len(),
            announced.len()
        )),
    }
}
