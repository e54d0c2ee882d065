//! Ring 4, hostile receivers: the release binary delivers to one that does everything a receiver must
//! not, beside one that is good and one that is refused. It must not know what a mode does.

mod hostile;
mod judge;
mod modes;

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde_json::Value;
use whrelay_store::{Options, Role, Store};
use whrelay_tests::eventually;
use whrelay_tests::process::{Home, Process};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender;

use self::hostile::Hostile;
use self::judge::{Policy, Told};
use self::modes::{MODES, Mode, PAUSE, TIMEOUT, matrix};
use crate::arrivals::all_arrive;
use crate::report::{self, Row};

/// Posts under way at once.
const POSTS: usize = 8;
/// Attempts at once: more than there are modes that hold one for its whole time.
const IN_FLIGHT: &str = "64";
/// Pauses in the schedule: more than closed connections cost on top of a mode.
const PAUSES: usize = 20;
/// How soon every event has to come to its end.
const FLOWS_WITHIN: Duration = Duration::from_secs(20);
/// How soon the refused target has to have everything once it accepts.
const DRAINS_WITHIN: Duration = Duration::from_secs(10);
/// How soon the good target has to have an event.
const HEALTHY_WITHIN: Duration = Duration::from_secs(3);
/// How soon what is done is said.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// How soon a connection that was given up has to be seen closed.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);
/// Most memory the process may ever have used, in kB: a few of the large bodies on their way.
const MEMORY: u64 = 400_000;
/// Most descriptors it may have open at the end: idle connections to its targets, and its own.
const DESCRIPTORS: usize = 250;
/// Most of an endless answer that may be taken, in bytes: what is read, and what kernels hold.
const TAKEN: u64 = 16 << 20;
/// Bytes of an answer that are kept.
const KEPT: usize = 4096;

/// Attacks under both policies at once. Says whether everything held.
pub(crate) fn run(binary: &str) -> bool {
    let began = Instant::now();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let modes = [MODES, &matrix()].concat();
    let found = runtime.block_on(async {
        let one = Side::begin(binary, Policy::Transient, "json", &modes).await;
        let other = Side::begin(binary, Policy::NonSuccess, "compact", &modes).await;
        let (one, other) = tokio::join!(one.attack(&modes), other.attack(&modes));
        [one, other]
    });
    for finding in found.iter().flat_map(|found| &found.findings) {
        println!("receivers: {finding}");
    }
    let sum = |count: fn(&Found) -> u64| found.iter().map(count).sum::<u64>();
    let most = |count: fn(&Found) -> u64| found.iter().map(count).max().unwrap_or(0);
    report::tell(&Row {
        ring: 4,
        fault:
            "hostile receivers beside a good one and a refused one, both retry policies (R1-R18)"
                .to_owned(),
        tried: format!(
            "{} modes, {} events",
            modes.len(),
            sum(|found| found.events)
        ),
        failures: sum(|found| found.findings.len() as u64),
        counted: format!(
            "{} attempts, {} requests on connections about to close, at most {} MB of memory, \
             {} descriptors, {} kB taken of an endless answer, the good target served within {} ms",
            sum(|found| found.attempts),
            sum(|found| found.betrayed),
            most(|found| found.memory) / 1000,
            most(|found| found.descriptors),
            most(|found| found.taken) / 1000,
            most(|found| found.slowest),
        ),
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// What one side has found and counted.
#[derive(Default)]
struct Found {
    findings: Vec<String>,
    events: u64,
    attempts: u64,
    betrayed: u64,
    memory: u64,
    descriptors: u64,
    taken: u64,
    /// Milliseconds until the good target had an event.
    slowest: u64,
}

impl Found {
    fn demand(&mut self, holds: bool, finding: impl FnOnce() -> String) {
        if !holds {
            self.findings.push(finding());
        }
    }
}

struct Sent {
    event: String,
    mode: Mode,
    at: Instant,
}

/// An agent under one policy, and its targets.
struct Side {
    home: Home,
    policy: Policy,
    output: &'static str,
    listen: Process,
    url: String,
    hostile: Hostile,
    healthy: Receiver,
    refused: Receiver,
    canary: Receiver,
}

/// A destination for each mode that gives no answer, since one of these slows down every delivery to
/// its destination. The other targets get these events, too.
fn routes_of_silent(modes: &[Mode], [hostile, others @ ..]: &[String; 3]) -> Vec<String> {
    let silent = modes.iter().filter(|mode| mode.seen.status().is_none());
    let routes = silent.enumerate().flat_map(|(n, mode)| {
        let path = mode.name;
        let own = format!("/{path}=silent-{n}={hostile}");
        let others = others.iter().map(move |other| format!("/{path}={other}"));
        std::iter::once(own).chain(others)
    });
    routes.collect()
}

impl Side {
    async fn begin(binary: &str, policy: Policy, output: &'static str, modes: &[Mode]) -> Self {
        let home = Home::new(binary);
        let (healthy, canary) = (Receiver::start().await, Receiver::start().await);
        let mut refused = Receiver::start().await;
        refused.stop();
        let hostile = Hostile::start(modes, canary.port()).await;
        let ready = home.path().join("ready");
        let schedule = vec![format!("{}ms", PAUSE.as_millis()); PAUSES].join(",");
        let timeout = format!("{}s", TIMEOUT.as_secs());
        let policy_text = policy.to_string();
        let targets = [hostile.target(), healthy.target(), refused.target()];
        let mut arguments = vec![
            "listen",
            "--output",
            output,
            "--ready-file",
            ready.to_str().unwrap(),
            "--retry-on",
            &policy_text,
            "--timeout",
            &timeout,
            "--schedule",
            &schedule,
            "--deadline",
            "72h",
            "--max-in-flight",
            IN_FLIGHT,
        ];
        // Named, since one URL without a name is one destination.
        let answering = format!("answering={}", targets[0]);
        for target in [&answering, &targets[1], &targets[2]] {
            arguments.extend(["--to", target]);
        }
        let routes = routes_of_silent(modes, &targets);
        for route in &routes {
            arguments.extend(["--route", route]);
        }
        let listen = home.start(&arguments);
        let url = eventually("ready", || {
            let line: Value = serde_json::from_slice(&fs::read(&ready).ok()?).ok()?;
            line["url"].as_str().map(str::to_owned)
        });
        let url = url.await;
        Self {
            home,
            policy,
            output,
            listen,
            url,
            hostile,
            healthy,
            refused,
            canary,
        }
    }

    async fn attack(mut self, modes: &[Mode]) -> Found {
        let mut found = Found::default();
        let sent = self.post(modes).await;
        self.flow(&sent).await;
        self.open_refused(&sent, &mut found).await;
        self.replay(&sent, &mut found);
        self.judge(&sent, &mut found).await;
        self.look_beside(&sent, &mut found);
        self.look_at_held(&mut found).await;
        self.look_at_process(&mut found);
        self.look_at_terminal(&sent, &mut found);
        let code = self.listen.terminate().await;
        found.demand(code == Some(0), || format!("it ended with {code:?}"));
        self.look_at_store(&sent, &mut found).await;
        for finding in &mut found.findings {
            *finding = format!("{}: {finding}", self.policy);
        }
        found
    }

    /// One event and more for each mode.
    async fn post(&self, modes: &[Mode]) -> Vec<Sent> {
        let each = modes.iter().flat_map(|mode| vec![*mode; mode.events]);
        let posts = each.map(|mode| {
            let url = format!("{}/{}", self.url, mode.name);
            async move {
                let event = sender::send_again(&url, vec![b'x'; mode.body]).await;
                let at = Instant::now();
                Sent { event, mode, at }
            }
        });
        stream::iter(posts).buffered(POSTS).collect().await
    }

    /// Waits until every event has had its last request. What has not is found by the judge.
    async fn flow(&self, sent: &[Sent]) {
        let began = Instant::now();
        let put_off = sent.iter().filter(|sent| sent.mode.puts_off());
        let waiting = put_off.count();
        while began.elapsed() < FLOWS_WITHIN {
            let (mut asked, mut ended) = (HashSet::new(), HashSet::new());
            for request in self.hostile.ledger.asked() {
                if self.policy.state_after(request.seen.status()) != "stalled" {
                    ended.insert(request.event.clone());
                }
                asked.insert(request.event);
            }
            if asked.len() == sent.len() && ended.len() + waiting == sent.len() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything waits for a target that refuses it, and arrives there once when it accepts.
    async fn open_refused(&mut self, sent: &[Sent], found: &mut Found) {
        let early = self.refused.count();
        found.demand(early == 0, || format!("{early} came where it is refused"));
        self.refused.open_again().await;
        let ids = sent.iter().map(|sent| sent.event.clone()).collect();
        if let Err(why) = all_arrive(&self.refused, &ids, DRAINS_WITHIN).await {
            found.findings.push(format!("once refused: {why}"));
        }
        let count = self.refused.count();
        found.demand(count == sent.len(), || {
            format!("once refused: {count} requests for {} events", sent.len())
        });
    }

    /// Asks again for what was put off for a day.
    fn replay(&self, sent: &[Sent], found: &mut Found) {
        let put_off = sent.iter().filter(|sent| sent.mode.puts_off());
        let ids: Vec<_> = put_off.map(|sent| sent.event.as_str()).collect();
        let output = self.home.run(&[&["replay", "--wait"], &ids[..]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        found.demand(output.status.success(), || format!("replay: {said}"));
    }

    /// What the agent says of its attempts at the hostile target, beside the ledger.
    async fn judge(&self, sent: &[Sent], found: &mut Found) {
        let (began, target) = (Instant::now(), format!("http://{}", self.hostile.target()));
        let asked = self.hostile.ledger.asked();
        let findings = loop {
            let told = Told::new(&self.attempts(), &target);
            let judged = sent.iter().filter_map(|sent| {
                let own = asked.iter().filter(|asked| asked.event == sent.event);
                let own: Vec<_> = own.cloned().collect();
                let judged = told.judge(self.policy, &sent.mode, &sent.event, &own);
                let Mode { fault, name, .. } = sent.mode;
                judged.err().map(|why| format!("{fault} {name}: {why}"))
            });
            let findings: Vec<_> = judged.collect();
            found.attempts = told.attempts() as u64;
            if findings.is_empty() || began.elapsed() > TOLD_WITHIN {
                break findings;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        found.findings.extend(findings);
        found.events = sent.len() as u64;
        found.betrayed = self.hostile.ledger.betrayed();
        found.demand(found.betrayed > 0, || "nothing was betrayed".to_owned());
    }

    /// The agent's lines, from where this side prints them.
    fn attempts(&self) -> Vec<Value> {
        if self.output == "json" {
            return self.listen.all("attempt");
        }
        let output = self.home.run(&["logs", "--json", "-n", "1000000"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    }

    /// The good target has got every event once and soon, and the canary nothing.
    fn look_beside(&self, sent: &[Sent], found: &mut Found) {
        let hits = self.canary.count();
        found.demand(hits == 0, || format!("R6: {hits} requests at the canary"));
        let seen = self.healthy.seen();
        let first = seen
            .iter()
            .filter(|r| r.header("x-whrelay-replay").is_empty());
        let first: Vec<_> = first.collect();
        found.demand(first.len() == sent.len(), || {
            format!(
                "{} requests at the good target, {} events",
                first.len(),
                sent.len()
            )
        });
        for Sent { event, mode, at } in sent {
            let arrived = first.iter().find(|request| request.event() == *event);
            let Some(arrived) = arrived else {
                found
                    .findings
                    .push(format!("{} is not at the good target", mode.name));
                continue;
            };
            let took = arrived.at.saturating_duration_since(*at);
            found.slowest = found.slowest.max(took.as_millis() as u64);
            found.demand(took < HEALTHY_WITHIN, || {
                format!("the good target had {} after {took:?}", mode.name)
            });
        }
    }

    /// It keeps no connection whose other side is silent behind its answer, or gave none.
    async fn look_at_held(&self, found: &mut Found) {
        let (ledger, began) = (&self.hostile.ledger, Instant::now());
        found.demand(ledger.held() > 0, || "nothing was left alone".to_owned());
        ledger.end();
        while ledger.held() > 0 && began.elapsed() < CLOSED_WITHIN {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let held = ledger.held();
        found.demand(held == 0, || format!("{held} silent connections are kept"));
    }

    /// It lives, and has not grown.
    fn look_at_process(&mut self, found: &mut Found) {
        found.demand(!self.listen.has_ended(), || {
            "the process has ended".to_owned()
        });
        let process = format!("/proc/{}", self.listen.pid());
        let status = fs::read_to_string(format!("{process}/status")).unwrap_or_default();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let memory = memory.and_then(|rest| rest.trim().split(' ').next()?.parse().ok());
        let open = fs::read_dir(format!("{process}/fd")).map_or(usize::MAX, Iterator::count);
        found.memory = memory.unwrap_or(u64::MAX);
        found.descriptors = open as u64;
        found.taken = self.hostile.ledger.most_said();
        let Found { memory, taken, .. } = *found;
        found.demand(memory < MEMORY, || format!("{memory} kB of memory"));
        found.demand(open < DESCRIPTORS, || {
            format!("{open} descriptors are open")
        });
        found.demand((1..TAKEN).contains(&taken), || {
            format!("R4: {taken} bytes of an endless answer were taken")
        });
    }

    /// No control character of a stranger's reaches whoever watches.
    fn look_at_terminal(&self, sent: &[Sent], found: &mut Found) {
        let mut shown = vec![("listen".to_owned(), self.listen.stdout())];
        let mut run = |args: &[&str]| shown.push((args.join(" "), self.home.run(args).stdout));
        run(&["logs", "-n", "1000000"]);
        run(&["logs", "--json", "-n", "1000000"]);
        run(&["events", "-n", "1000000"]);
        for Sent { event, mode, .. } in sent {
            if mode.name.contains("escapes") || mode.name == "garbage" {
                run(&["events", "show", event, "--attempts"]);
                run(&["events", "show", event, "--attempts", "--json"]);
            }
        }
        for (command, bytes) in shown {
            let text = String::from_utf8(bytes);
            let clean = text.as_ref().is_ok_and(|text| {
                !text.is_empty() && !text.chars().any(|c| c.is_control() && c != '\n')
            });
            found.demand(clean, || format!("`{command}` prints {text:?}"));
        }
    }

    /// Of an answer no more is kept than is said, and it is kept as it came.
    async fn look_at_store(&self, sent: &[Sent], found: &mut Found) {
        let place = ".local/share/whrelay/agents/embedded/default/default";
        let options = Options {
            role: Role::Agent,
            cache: 8 << 20,
            name_seed: rand::random(),
            purpose: "attack",
            bound: None,
        };
        let store = Store::open(&self.home.path().join(place), &options).unwrap();
        let logged = store.view.attempts_after(0, usize::MAX).await.unwrap();
        store.journal.close().await;
        for attempt in logged.iter().map(|logged| &logged.attempt) {
            let kept = attempt.answer.len();
            found.demand(kept <= KEPT, || format!("R4: {kept} bytes are kept"));
        }
        for Sent { event, mode, .. } in sent.iter().filter(|sent| !sent.mode.kept.is_empty()) {
            let own = logged.iter().map(|logged| &logged.attempt);
            let own = own.filter(|attempt| attempt.event.to_string() == *event);
            let whole = own.filter(|attempt| attempt.answer.starts_with(mode.kept));
            found.demand(whole.count() > 0, || {
                format!(
                    "{} {}: its answer was not kept as it came",
                    mode.fault, mode.name
                )
            });
        }
    }
}
