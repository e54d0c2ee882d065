//! Ring 4: the release binary under load, killed with SIGKILL again and again, forwarder, agent and
//! receiver alike, or with the power of its disk cut; and then an audit of three ledgers: what senders
//! heard, what the receiver got, and what the agent says of it.

mod load;
mod policies;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use whrelay_tests::port;
use whrelay_tests::process::{Cloud, Home, Process};
use whrelay_tests::receiver::Receiver;

use self::load::Load;
use crate::arrivals::{all_arrive, missing};
use crate::chance::Chance;
use crate::ground::{Ground, Kind};
use crate::report::{self, Row};

/// After so many kills everything accepted so far has to arrive before the next.
const QUIET_EVERY: u32 = 10;
/// How long that may take.
const ARRIVES_WITHIN: Duration = Duration::from_secs(20);
/// Attempts that one kill can cut off: the default of `--max-in-flight`.
const IN_FLIGHT: usize = 16;

struct Storm {
    home: Home,
    /// The disk whose power is cut, where that is the fault.
    ground: Option<Ground>,
    receiver: Receiver,
    listen: Process,
    cloud: Option<Cloud>,
    chance: Chance,
    url: String,
    load: Load,
}

/// Kills so many times, half of them with an embedded forwarder and half with one of its own, and then half
/// as often with every policy in use. Says whether the ledgers agreed.
pub(crate) fn kill(binary: &str, kills: u32) -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut held = true;
        for separate in [false, true] {
            let storm = Storm::begin(binary, separate, None).await;
            held &= storm.blow(kills / 2).await;
        }
        held & policies::run(binary, kills / 4).await
    })
}

/// Cuts the power so many times, on each kind of file system, with an embedded forwarder and with one
/// of its own. Says whether the ledgers agreed.
pub(crate) fn cut_power(binary: &str, cuts: u32) -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut held = true;
        for kind in [Kind::Ext4, Kind::Xfs] {
            for separate in [false, true] {
                let ground = Some(Ground::new(kind));
                let storm = Storm::begin(binary, separate, ground).await;
                held &= storm.blow(cuts / 4).await;
            }
        }
        held
    })
}

async fn listen(
    home: &Home,
    receiver: &Receiver,
    cloud: Option<&Cloud>,
    first: &[&str],
) -> (Process, String) {
    let target = receiver.target();
    let mut args = vec!["--to", target.as_str()];
    match cloud {
        Some(cloud) => args.extend(cloud.flags()),
        None => args.extend(first),
    }
    home.listen(&args).await
}

impl Storm {
    async fn begin(binary: &str, separate: bool, ground: Option<Ground>) -> Self {
        let mut home = match &ground {
            Some(ground) => Home::within(binary, &ground.path()),
            None => Home::new(binary),
        };
        if separate {
            // Every start of either side removes what has ended.
            home.set("WHRELAY_RETAIN", "1ms");
        }
        let receiver = Receiver::start().await;
        let cloud = match separate {
            true => Some(Cloud::start(&home).await),
            false => None,
        };
        let first = ["--bind", &port::quiet()];
        let (listen, url) = listen(&home, &receiver, cloud.as_ref(), &first).await;
        Self {
            home,
            ground,
            receiver,
            listen,
            cloud,
            chance: Chance::new(u64::from(separate)),
            load: Load::new(&url, Duration::ZERO),
            url,
        }
    }

    async fn blow(mut self, kills: u32) -> bool {
        let began = Instant::now();
        if let Some(ground) = &self.ground {
            // What is there before the first event is not what is tried here.
            ground.sync();
        }
        let (mut slowest, mut held) = (Duration::ZERO, true);
        for kill in 1..=kills {
            self.load.go();
            let pause = Duration::from_millis(self.chance.below(250) + 5);
            tokio::time::sleep(pause).await;
            let quiet = match self.ground {
                Some(_) => {
                    self.cut_once().await;
                    true
                }
                None => {
                    self.kill_one().await;
                    kill % QUIET_EVERY == 0 || kill == kills
                }
            };
            if quiet {
                self.load.hush().await;
                match self.all_arrive().await {
                    Some(took) => slowest = slowest.max(took),
                    None => {
                        held = false;
                        break;
                    }
                }
            }
        }
        self.load.end().await;
        let audited = self.audit(kills).await;
        let heard = self.load.heard().len();
        let forwarder = match self.cloud {
            Some(_) => "forwarder and agent apart",
            None => "embedded forwarder",
        };
        let (fault, tried) = match &self.ground {
            Some(ground) => (format!("power cuts on {} (D5)", ground.kind), "cuts"),
            None => ("kill -9 under load (K1-K16)".to_owned(), "kills"),
        };
        let unheard = self.load.unheard();
        report::tell(&Row {
            ring: 4,
            fault: format!("{fault}, {forwarder}"),
            tried: format!("{kills} {tried}, {heard} events accepted"),
            failures: u64::from(!held) + u64::from(!audited),
            counted: format!(
                "{unheard} posts without a 2xx, {} requests received, slowest catch-up {:.1} s",
                self.receiver.count(),
                slowest.as_secs_f64()
            ),
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    async fn kill_one(&mut self) {
        match (self.chance.below(6), &mut self.cloud) {
            (0, _) => {
                self.receiver.stop();
                self.receiver.open_again().await;
            }
            (1 | 2, Some(cloud)) => {
                cloud.process.kill();
                cloud.start_again(&self.home).await;
            }
            (3, Some(cloud)) => {
                cloud.process.kill();
                self.listen.kill();
                cloud.start_again(&self.home).await;
                self.listen_again().await;
            }
            _ => {
                self.listen.kill();
                self.listen_again().await;
            }
        }
    }

    /// Every process is frozen first: a real cut lets nobody answer after it.
    async fn cut_once(&mut self) {
        let Some(ground) = &self.ground else { return };
        self.listen.freeze();
        if let Some(cloud) = &self.cloud {
            cloud.process.freeze();
        }
        ground.cut();
        self.listen.kill();
        if let Some(cloud) = &mut self.cloud {
            cloud.process.kill();
        }
        ground.restore();
        if let Some(cloud) = &mut self.cloud {
            cloud.start_again(&self.home).await;
        }
        self.listen_again().await;
    }

    async fn listen_again(&mut self) {
        let (process, url) = listen(&self.home, &self.receiver, self.cloud.as_ref(), &[]).await;
        assert_eq!(url, self.url, "a pasted URL stays good");
        self.listen = process;
    }

    /// Waits until everything accepted has arrived. Where something has not, it says all there is to
    /// know about it.
    async fn all_arrive(&self) -> Option<Duration> {
        let heard = self.load.ids();
        let arrived = all_arrive(&self.receiver, &heard, ARRIVES_WITHIN).await;
        if arrived.is_err() {
            self.tell_of(&missing(&self.receiver, &heard));
        }
        arrived.ok()
    }

    fn tell_of(&self, missing: &[String]) {
        let shown = |args: &[&str]| {
            let output = self.home.run(args);
            String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr)
        };
        println!(
            "{} events have not arrived; status: {}",
            missing.len(),
            shown(&["status", "--json"])
        );
        for id in missing.iter().take(5) {
            println!("{}", shown(&["events", "show", id, "--json"]));
        }
        println!("listen said: {}", self.listen.stderr());
    }

    /// The three ledgers, beside each other.
    async fn audit(&self, kills: u32) -> bool {
        let stored = self.final_states().await;
        let (heard, seen) = (self.load.heard(), self.receiver.seen());
        let mut findings = load::wrong(&seen, &heard);
        let arrived: HashSet<_> = seen.iter().map(|request| request.event()).collect();
        let extra = seen.len() - arrived.len();
        if extra > kills as usize * IN_FLIGHT {
            findings.push(format!("{extra} requests came again, after {kills} kills"));
        }
        let removes = self.cloud.is_some();
        for id in heard.keys() {
            let state = stored.get(id).map(String::as_str);
            let removed = removes && state.is_none() && arrived.contains(id);
            if state != Some("sent") && !removed {
                findings.push(format!("{id} is {:?} and not sent", stored.get(id)));
            }
        }
        let made_up = arrived
            .iter()
            .filter(|id| !stored.contains_key(*id))
            .count();
        if made_up > 0 && !removes {
            findings.push(format!("{made_up} events arrived that are not stored"));
        }
        for finding in findings.iter().take(20) {
            println!("audit: {finding}");
        }
        findings.is_empty()
    }

    /// What the agent says of every event, once it has recorded the last attempts.
    async fn final_states(&self) -> HashMap<String, String> {
        let began = Instant::now();
        loop {
            let states = self.states();
            let waits = states.values().any(|state| state != "sent");
            if !waits || began.elapsed() > ARRIVES_WITHIN {
                return states;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the agent says of every event.
    fn states(&self) -> HashMap<String, String> {
        let output = self.home.run(&["events", "-n", "1000000", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        lines
            .map(|line| (word(&line["event"]), word(&line["state"])))
            .collect()
    }
}
