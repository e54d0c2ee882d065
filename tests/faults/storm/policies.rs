//! The storm with every policy in use: deliveries in order and at a rate, a route, two targets for the
//! rest, replays and discards asked for while the agent is killed; and the audit of what each promises.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use whrelay_tests::process::{Home, Process};
use whrelay_tests::receiver::{Received, Receiver};

use super::load::{self, Load};
use super::{ARRIVES_WITHIN, QUIET_EVERY};
use crate::chance::Chance;
use crate::report::{self, Row};

/// One delivery at a time is slower than four senders.
const PAUSE: Duration = Duration::from_millis(10);
const RATE: &str = "1000/s";
/// Events that are delivered again at once.
const AGAIN: usize = 5;
/// How long a target is away when what waits for it is discarded.
const AWAY: Duration = Duration::from_millis(60);
/// The longest that a command goes on before the agent is killed under it, in milliseconds.
const UNDER_WAY: u64 = 120;

/// The targets of `--to`; discards are made at the first.
const TO: [usize; 2] = [0, 1];
/// The target of the route.
const ASIDE: usize = 2;

struct Storm {
    home: Home,
    receivers: Vec<Receiver>,
    listen: Process,
    chance: Chance,
    url: String,
    load: Load,
    promised: Promised,
}

/// What commands said that they had done.
#[derive(Default)]
struct Promised {
    /// Deliveries that were begun again.
    again: HashSet<String>,
    /// Deliveries that were given up.
    discarded: HashSet<String>,
}

/// Kills so many times. Says whether every promise was kept.
pub(super) async fn run(binary: &str, kills: u32) -> bool {
    let began = Instant::now();
    let mut storm = Storm::begin(binary).await;
    let mut findings = storm.blow(kills).await;
    storm.load.end().await;
    if findings.is_empty() {
        findings = storm.audit();
    }
    for finding in findings.iter().take(20) {
        println!("policies: {finding}");
    }
    let requests: usize = storm.receivers.iter().map(Receiver::count).sum();
    report::tell(&Row {
        ring: 4,
        fault: "kill -9 under load with order, rate, a route, two targets, replays and discards (K1-K16)"
            .to_owned(),
        tried: format!("{kills} kills, {} events accepted", storm.load.heard().len()),
        failures: u64::from(!findings.is_empty()),
        counted: format!(
            "{} posts without a 2xx, {requests} requests received, {} replays and {} discards said to be \
             done",
            storm.load.unheard(),
            storm.promised.again.len(),
            storm.promised.discarded.len()
        ),
        seconds: began.elapsed().as_secs_f64(),
    })
}

async fn listen(home: &Home, receivers: &[Receiver]) -> (Process, String) {
    let [first, second] = TO.map(|n| receivers[n].target());
    let route = format!("{}={}", load::ASIDE, receivers[ASIDE].target());
    home.listen(&[
        "--to", &first, "--to", &second, "--route", &route, "--order", "fifo", "--rate", RATE,
    ])
    .await
}

impl Storm {
    async fn begin(binary: &str) -> Self {
        let home = Home::new(binary);
        let mut receivers = Vec::new();
        for _ in 0..=ASIDE {
            receivers.push(Receiver::start().await);
        }
        let (listen, url) = listen(&home, &receivers).await;
        Self {
            home,
            receivers,
            listen,
            chance: Chance::new(3),
            load: Load::new(&url, PAUSE),
            url,
            promised: Promised::default(),
        }
    }

    /// Says what did not come to rest.
    async fn blow(&mut self, kills: u32) -> Vec<String> {
        for kill in 1..=kills {
            self.load.go();
            let pause = Duration::from_millis(self.chance.below(250) + 5);
            tokio::time::sleep(pause).await;
            match self.chance.below(6) {
                0 | 1 => self.replay().await,
                2 => self.discard().await,
                3 => {
                    let n = self.chance.index(self.receivers.len());
                    self.receivers[n].stop();
                    self.kill().await;
                    self.receivers[n].open_again().await;
                }
                _ => self.kill().await,
            }
            if kill % QUIET_EVERY == 0 || kill == kills {
                self.load.hush().await;
                if let Err(why) = self.rests().await {
                    return vec![why];
                }
            }
        }
        Vec::new()
    }

    async fn kill(&mut self) {
        self.listen.kill();
        let (process, url) = listen(&self.home, &self.receivers).await;
        assert_eq!(url, self.url, "a pasted URL stays good");
        self.listen = process;
    }

    /// Asks for something and kills the agent under it; answers with what was said to be done.
    async fn ask(&mut self, args: &[&str]) -> HashSet<String> {
        let mut command = self.home.start(args);
        let under_way = Duration::from_millis(self.chance.below(UNDER_WAY));
        tokio::time::sleep(under_way).await;
        self.kill().await;
        command.ended().await;
        let kind = args[0];
        let done = command.all(kind).into_iter();
        done.map(|line| word(&line["delivery"])).collect()
    }

    async fn replay(&mut self) {
        let seen = self.receivers[TO[0]].events();
        let mut args = vec!["replay", "--json"];
        for _ in 0..AGAIN.min(seen.len()) {
            args.push(&seen[self.chance.index(seen.len())]);
        }
        if args.len() > 2 {
            let begun = self.ask(&args).await;
            self.promised.again.extend(begun);
        }
    }

    async fn discard(&mut self) {
        self.receivers[TO[0]].stop();
        tokio::time::sleep(AWAY).await;
        let target = self.receivers[TO[0]].target();
        let args = ["discard", "--target", &target, "--json"];
        let discarded = self.ask(&args).await;
        self.promised.discarded.extend(discarded);
        self.receivers[TO[0]].open_again().await;
    }

    /// Waits until everything that was accepted has been taken in and nothing waits any more.
    async fn rests(&self) -> Result<(), String> {
        let began = Instant::now();
        let targets = |body: &Vec<u8>| expected(body).len() as u64;
        let least: u64 = self.load.heard().values().map(targets).sum();
        loop {
            let status = self.json(&["status", "--json"]).remove(0);
            let count = |state: &str| status[state].as_u64().unwrap();
            let (waiting, ended) = (
                count("queued") + count("stalled"),
                count("sent") + count("dead"),
            );
            if waiting == 0 && ended >= least {
                return Ok(());
            }
            if began.elapsed() > ARRIVES_WITHIN {
                return Err(format!("of {least} or more it is left at {status}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn json(&self, args: &[&str]) -> Vec<Value> {
        let output = self.home.run(args);
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().unwrap()
    }

    /// What senders heard, what commands said, what the receivers got and what the agent says of it.
    fn audit(&self) -> Vec<String> {
        let heard = self.load.heard();
        let seen: Vec<_> = self.receivers.iter().map(Receiver::seen).collect();
        let mut findings = Vec::new();
        for (n, seen) in seen.iter().enumerate() {
            findings.extend(load::wrong(seen, &heard));
            findings.extend(out_of_order(n, seen));
        }
        let requested = |n: usize| -> HashSet<_> {
            let ids = seen[n].iter();
            ids.map(|request| request.header("x-whrelay-delivery-id"))
                .collect()
        };
        let requested: Vec<_> = (0..seen.len()).map(requested).collect();
        let place = |target: &str| {
            let mut urls = self.receivers.iter().map(Receiver::target);
            urls.position(|url| target.ends_with(&url)).unwrap()
        };
        let (mut known, mut states) = (HashMap::new(), HashMap::new());
        for event in self.json(&["events", "-n", "1000000", "--json"]) {
            let mut places = HashSet::new();
            for delivery in event["deliveries"].as_array().unwrap() {
                let (id, at) = (
                    word(&delivery["delivery"]),
                    place(&word(&delivery["target"])),
                );
                let state = word(&delivery["state"]);
                places.insert(at);
                let right = match &state[..] {
                    "sent" => requested[at].contains(&id),
                    "dead" => at == TO[0],
                    _ => false,
                };
                if !right {
                    findings.push(format!("{id} is {state} at target {at}"));
                }
                states.insert(id, state);
            }
            known.insert(word(&event["event"]), places);
        }
        for (id, body) in heard.iter() {
            if known.get(id) != Some(&expected(body)) {
                findings.push(format!("{id} goes to {:?}", known.get(id)));
            }
        }
        let unkept = |ids: &HashSet<String>, wanted: &[&str]| {
            let state = |id: &String| states.get(id).map_or("unknown", String::as_str);
            let unkept = ids.iter().filter(|id| !wanted.contains(&state(id)));
            unkept.cloned().collect::<Vec<_>>()
        };
        for id in unkept(&self.promised.discarded, &["dead"]) {
            findings.push(format!("{id} was said to be discarded"));
        }
        // Discards take replays that wait, too.
        for id in unkept(&self.promised.again, &["sent", "dead"]) {
            findings.push(format!("{id} was said to be begun again"));
        }
        findings
    }
}

/// Where an event goes.
fn expected(body: &[u8]) -> HashSet<usize> {
    match load::is_aside(body) {
        true => HashSet::from([ASIDE]),
        false => HashSet::from(TO),
    }
}

/// In order, a sender's later event never comes before an earlier one has ended. Replays have no order.
fn out_of_order(place: usize, seen: &[Received]) -> Vec<String> {
    let (mut findings, mut last) = (Vec::new(), HashMap::new());
    let in_line = seen
        .iter()
        .filter(|request| request.header("x-whrelay-replay").is_empty());
    for request in in_line {
        let (sender, n) = load::turn_of(&request.body);
        let before = last.insert(sender, n).unwrap_or(0);
        if n < before {
            let event = request.event();
            findings.push(format!("{event} came to target {place} behind a later one"));
        }
        if !expected(&request.body).contains(&place) {
            findings.push(format!("{} came to target {place}", request.event()));
        }
    }
    findings
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
