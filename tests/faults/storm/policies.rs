//! The storm with every policy in use: deliveries in order and at a rate, a route, two targets for the
//! rest, replays and discards asked for while the agent is killed, starts that pass over what waits; and the
//! audit of what each promises.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use whrelay_tests::port;
use whrelay_tests::process::{Home, Process};
use whrelay_tests::receiver::{Received, Receiver};

use super::load::{self, Accepted, Load};
use super::{ARRIVES_WITHIN, QUIET_EVERY};
use crate::chance::Chance;
use crate::report::{self, Row};

/// One delivery at a time is slower than four senders.
const PAUSE: Duration = Duration::from_millis(10);
const RATE: &str = "1000/s";
/// Events that are delivered again at once.
const AGAIN: usize = 5;
/// What a start may want of what came before it.
const BACKLOGS: [[&str; 2]; 3] = [
    ["--backlog", "none"],
    ["--backlog", "newest=20"],
    ["--since", "50ms"],
];
/// How long a target is away before what waits for it is discarded or passed over.
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
    restarts: u32,
    /// The newest start that wanted less than all: what is sent after it is never passed over.
    passed_over: u32,
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

/// What the agent says of a delivery.
#[derive(Debug)]
struct Stored {
    event: String,
    delivery: String,
    place: usize,
    state: String,
}

impl Stored {
    /// Whether a start did not want it: discards are asked for at one target only.
    fn is_passed_over(&self) -> bool {
        self.state == "dead" && self.place != TO[0]
    }
}

/// Kills so many times. Says whether every promise was kept.
pub(super) async fn run(binary: &str, kills: u32) -> bool {
    let began = Instant::now();
    let mut storm = Storm::begin(binary).await;
    let mut findings = storm.blow(kills).await;
    storm.load.end().await;
    let stored = storm.stored();
    if findings.is_empty() {
        findings = storm.audit(&stored);
    }
    let passed_over = stored
        .iter()
        .filter(|stored| stored.is_passed_over())
        .count();
    for finding in findings.iter().take(20) {
        println!("policies: {finding}");
    }
    let requests: usize = storm.receivers.iter().map(Receiver::count).sum();
    report::tell(&Row {
        ring: 4,
        fault: "kill -9 under load with order, rate, a route, two targets, replays, discards and starts that \
                pass over what waits (K1-K16)"
            .to_owned(),
        tried: format!("{kills} kills, {} events accepted", storm.load.heard().len()),
        failures: u64::from(!findings.is_empty()),
        counted: format!(
            "{} posts without a 2xx, {requests} requests received, {} replays and {} discards said to be \
             done, {passed_over} deliveries passed over",
            storm.load.unheard(),
            storm.promised.again.len(),
            storm.promised.discarded.len()
        ),
        seconds: began.elapsed().as_secs_f64(),
    })
}

async fn listen(home: &Home, receivers: &[Receiver], more: &[&str]) -> (Process, String) {
    let [first, second] = TO.map(|n| receivers[n].target());
    let route = format!("{}={}", load::ASIDE, receivers[ASIDE].target());
    let mut args = vec!["--to", &first, "--to", &second, "--route", &route];
    args.extend(["--order", "fifo", "--rate", RATE]);
    args.extend(more);
    home.listen(&args).await
}

impl Storm {
    async fn begin(binary: &str) -> Self {
        let home = Home::new(binary);
        let mut receivers = Vec::new();
        for _ in 0..=ASIDE {
            receivers.push(Receiver::start().await);
        }
        let (listen, url) = listen(&home, &receivers, &["--bind", &port::quiet()]).await;
        Self {
            home,
            receivers,
            listen,
            chance: Chance::new(3),
            load: Load::new(&url, PAUSE),
            url,
            restarts: 0,
            passed_over: 0,
            promised: Promised::default(),
        }
    }

    /// Says what did not come to rest.
    async fn blow(&mut self, kills: u32) -> Vec<String> {
        for kill in 1..=kills {
            self.load.go();
            let pause = Duration::from_millis(self.chance.below(250) + 5);
            tokio::time::sleep(pause).await;
            match self.chance.below(7) {
                0 | 1 => self.replay().await,
                2 => self.discard().await,
                3 => self.kill_beside_one_away(&[]).await,
                4 => {
                    let backlog = BACKLOGS[self.chance.index(BACKLOGS.len())];
                    self.kill_beside_one_away(&backlog).await;
                    self.passed_over = self.restarts;
                }
                _ => self.kill(&[]).await,
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

    async fn kill(&mut self, backlog: &[&str]) {
        self.listen.kill();
        let (process, url) = listen(&self.home, &self.receivers, backlog).await;
        assert_eq!(url, self.url, "a pasted URL stays good");
        self.listen = process;
        self.restarts += 1;
        self.load.restarted(self.restarts);
    }

    async fn kill_beside_one_away(&mut self, backlog: &[&str]) {
        let away = self.chance.index(self.receivers.len());
        self.receivers[away].stop();
        tokio::time::sleep(AWAY).await;
        self.kill(backlog).await;
        self.receivers[away].open_again().await;
    }

    /// Asks for something and kills the agent under it; answers with what was said to be done.
    async fn ask(&mut self, args: &[&str]) -> HashSet<String> {
        let mut command = self.home.start(args);
        let under_way = Duration::from_millis(self.chance.below(UNDER_WAY));
        tokio::time::sleep(under_way).await;
        self.kill(&[]).await;
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
        let targets = |accepted: &Accepted| expected(&accepted.body).len() as u64;
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
    fn audit(&self, stored: &[Stored]) -> Vec<String> {
        let mut findings = Vec::new();
        let seen: Vec<_> = self.receivers.iter().map(Receiver::seen).collect();
        for (n, seen) in seen.iter().enumerate() {
            findings.extend(load::wrong(seen, &self.load.heard()));
            findings.extend(out_of_order(n, seen));
        }
        findings.extend(self.unsent(stored, &seen));
        findings.extend(self.astray(stored));
        findings.extend(self.unkept(stored));
        findings
    }

    /// What the agent says of every delivery.
    fn stored(&self) -> Vec<Stored> {
        let place = |target: &str| {
            let mut urls = self.receivers.iter().map(Receiver::target);
            urls.position(|url| target.ends_with(&url)).unwrap()
        };
        let mut stored = Vec::new();
        for event in self.json(&["events", "-n", "1000000", "--json"]) {
            for delivery in event["deliveries"].as_array().unwrap() {
                stored.push(Stored {
                    event: word(&event["event"]),
                    delivery: word(&delivery["delivery"]),
                    place: place(&word(&delivery["target"])),
                    state: word(&delivery["state"]),
                });
            }
        }
        stored
    }

    /// Deliveries that did not come to what they should: sent and received, or given up by a person.
    fn unsent(&self, stored: &[Stored], seen: &[Vec<Received>]) -> Vec<String> {
        let requested = |seen: &Vec<Received>| -> HashSet<String> {
            let ids = seen.iter();
            ids.map(|request| request.header("x-whrelay-delivery-id"))
                .collect()
        };
        let requested: Vec<_> = seen.iter().map(requested).collect();
        let heard = self.load.heard();
        let unsent = stored.iter().filter(|stored| {
            let Stored { place, state, .. } = stored;
            match &state[..] {
                "sent" => !requested[*place].contains(&stored.delivery),
                // What nobody heard a 2xx for may be of any time.
                "dead" if stored.is_passed_over() => heard
                    .get(&stored.event)
                    .is_some_and(|accepted| accepted.restarts >= self.passed_over),
                "dead" => false,
                _ => true,
            }
        });
        let unsent = unsent.map(|stored| format!("{stored:?} should be sent"));
        unsent.collect()
    }

    /// Events that are not there, or go to other targets than they should.
    fn astray(&self, stored: &[Stored]) -> Vec<String> {
        let mut known: HashMap<&str, HashSet<usize>> = HashMap::new();
        for Stored { event, place, .. } in stored {
            known.entry(event).or_default().insert(*place);
        }
        let heard = self.load.heard();
        let astray = heard.iter().filter_map(|(id, accepted)| {
            let places = known.get(&id[..]);
            let right = places == Some(&expected(&accepted.body));
            (!right).then(|| format!("{id} goes to {places:?}"))
        });
        astray.collect()
    }

    /// What commands said that they had done, and is not so.
    fn unkept(&self, stored: &[Stored]) -> Vec<String> {
        let states: HashMap<_, _> = stored
            .iter()
            .map(|stored| (&stored.delivery, &stored.state[..]))
            .collect();
        // Discards, and starts that pass over what waits, take replays that wait, too.
        let done = [
            (&self.promised.discarded, &["dead"][..], "discarded"),
            (&self.promised.again, &["sent", "dead"], "begun again"),
        ];
        let mut findings = Vec::new();
        for (ids, wanted, done) in done {
            for id in ids {
                let state = states.get(id).copied().unwrap_or("unknown");
                if !wanted.contains(&state) {
                    findings.push(format!("{id} was said to be {done} and is {state}"));
                }
            }
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
