//! Ring 4, directories that go back: of the forwarder, of the agent, or of both, to any earlier copy, again and again,
//! while the other side runs, is away, or goes back too. Whatever still lies on a disk arrives.

mod clones;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use whrelay_tests::process::{Cloud, Home, Process};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender;

use crate::chance::Chance;
use crate::report;

/// Worlds for each kind.
const SEEDS: u64 = 4;
/// Things that happen in a world.
const STEPS: usize = 24;
/// How soon everything has to have arrived once nothing happens any more.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);

/// Which directories go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sides {
    Forwarder,
    Agent,
    Both,
}

/// Puts directories back. Says whether everything held.
pub(crate) fn run(binary: &str) -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut held = true;
    for retain in ["7d", "1ms"] {
        for sides in [Sides::Forwarder, Sides::Agent, Sides::Both] {
            let (began, mut total, mut failed) = (Instant::now(), Totals::default(), None);
            for seed in 0..SEEDS {
                let mut world = runtime.block_on(World::new(binary, retain, sides, seed));
                let ended = runtime.block_on(world.live());
                total.accepted += world.accepted;
                total.put_back += world.put_back;
                total.shown += usize::from(world.is_shown());
                failed = failed.or(ended.err().map(|why| format!("seed {seed}: {why}")));
            }
            if total.shown == 0 {
                failed = failed.or(Some("no side shows that a directory went back".to_owned()));
            }
            let whose = match sides {
                Sides::Forwarder => "the forwarder's directory goes",
                Sides::Agent => "the agent's directory goes",
                Sides::Both => "both directories go",
            };
            held &= report::judge(
                &format!("{whose} back to an earlier copy, again and again, --retain {retain}"),
                format!(
                    "{} times, {} events accepted, shown in {} of {SEEDS} worlds",
                    total.put_back, total.accepted, total.shown
                ),
                began,
                failed.map_or(Ok("all that lay on a disk arrived".to_owned()), Err),
            );
        }
        let began = Instant::now();
        held &= report::judge(
            &format!("both directories cloned, and all four running, --retain {retain}"),
            "2 pairs".to_owned(),
            began,
            runtime.block_on(clones::run(binary, retain)),
        );
    }
    held
}

#[derive(Default)]
struct Totals {
    accepted: usize,
    put_back: usize,
    /// Worlds of which a side shows it.
    shown: usize,
}

/// A copy of a directory, and the events that are in it.
struct Backup {
    dir: PathBuf,
    events: HashSet<String>,
}

struct World {
    chance: Chance,
    sides: Sides,
    retain: &'static str,
    there: Home,
    here: Home,
    cloud: Cloud,
    agent: Process,
    receiver: Receiver,
    url: String,
    /// What each side has on its disk.
    at_forwarder: HashSet<String>,
    at_agent: HashSet<String>,
    backups: (Vec<Backup>, Vec<Backup>),
    /// What has to arrive.
    owed: HashSet<String>,
    accepted: usize,
    put_back: usize,
    /// Whether an event may arrive twice: an agent went back.
    agent_went_back: bool,
}

impl World {
    async fn new(binary: &str, retain: &'static str, sides: Sides, seed: u64) -> Self {
        let (mut there, here) = (Home::new(binary), Home::new(binary));
        there.set("WHRELAY_RETAIN", retain);
        let (cloud, receiver) = (Cloud::start(&there).await, Receiver::start().await);
        let agent = listen(&here, &cloud, &receiver).await;
        let url = agent.all("ready")[0]["url"].as_str().unwrap().to_owned();
        Self {
            chance: Chance::new(seed ^ (sides as u64) << 8),
            sides,
            retain,
            there,
            here,
            cloud,
            agent,
            receiver,
            url,
            at_forwarder: HashSet::new(),
            at_agent: HashSet::new(),
            backups: (Vec::new(), Vec::new()),
            owed: HashSet::new(),
            accepted: 0,
            put_back: 0,
            agent_went_back: false,
        }
    }

    async fn live(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            match self.chance.below(4) {
                0 | 1 => self.post().await?,
                2 => self.back_up(),
                _ => self.go_back().await,
            }
        }
        self.post().await?;
        self.arrive().await?;
        let mut times: HashMap<String, usize> = HashMap::new();
        for event in self.receiver.events() {
            *times.entry(event).or_default() += 1;
        }
        let twice = times.iter().find(|(_, times)| **times > 1);
        match twice.filter(|_| !self.agent_went_back) {
            Some((event, times)) => Err(format!("{event} arrived {times} times")),
            None => Ok(()),
        }
    }

    /// Posts so many events at most, of which all arrive in half of the cases before anything else happens.
    async fn post(&mut self) -> Result<(), String> {
        self.post_some(20).await;
        match self.chance.permille(500) {
            true => self.arrive().await,
            false => Ok(()),
        }
    }

    async fn post_some(&mut self, most: u64) {
        for n in 0..1 + self.chance.below(most) {
            let id = sender::send(&self.url, format!("{n}")).await;
            self.accepted += 1;
            self.at_forwarder.insert(id.clone());
            self.owed.insert(id);
        }
    }

    /// Waits until all that is owed has arrived.
    async fn arrive(&mut self) -> Result<(), String> {
        let until = Instant::now() + ARRIVES_WITHIN;
        loop {
            let arrived: HashSet<_> = self.receiver.events().into_iter().collect();
            let missing = self.owed.difference(&arrived).count();
            if missing == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("{missing} of {} did not arrive", self.owed.len()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What the agent has said that it has stored.
    fn read_agent(&mut self) {
        for line in self.agent.all("received") {
            let id = line["event"].as_str().unwrap();
            self.at_agent.insert(id.to_owned());
        }
    }

    /// Copies a directory whose process stands still, as a snapshot does.
    fn back_up(&mut self) {
        let of_forwarder = match self.sides {
            Sides::Forwarder => true,
            Sides::Agent => false,
            Sides::Both => self.chance.permille(500),
        };
        self.read_agent();
        let name = format!("backup-{}", self.put_back + self.accepted);
        let (home, process, events) = match of_forwarder {
            true => (&self.there, &self.cloud.process, &self.at_forwarder),
            false => (&self.here, &self.agent, &self.at_agent),
        };
        let dir = home.path().join(name);
        process.freeze();
        copy(&data(home), &dir);
        process.thaw();
        let backup = Backup {
            dir,
            events: events.clone(),
        };
        match of_forwarder {
            true => self.backups.0.push(backup),
            false => self.backups.1.push(backup),
        }
    }

    async fn go_back(&mut self) {
        let both = self.sides == Sides::Both && self.chance.permille(300);
        let forwarder_first = self.chance.permille(500);
        let sides = match (both, forwarder_first) {
            (true, _) => vec![true, false],
            (false, first) => vec![match self.sides {
                Sides::Forwarder => true,
                Sides::Agent => false,
                Sides::Both => first,
            }],
        };
        for of_forwarder in sides {
            match of_forwarder {
                true => self.forwarder_goes_back().await,
                false => self.agent_goes_back().await,
            }
        }
    }

    async fn forwarder_goes_back(&mut self) {
        let Some(n) = self.backups.0.len().checked_sub(1) else {
            return;
        };
        let n = n - self.chance.index(n + 1);
        self.put_back += 1;
        // Half of the time its agent is away meanwhile.
        let is_away = self.chance.permille(500);
        if is_away {
            self.agent.terminate().await;
        }
        self.cloud.process.kill();
        self.read_agent();
        let backup = &self.backups.0[n];
        replace(&backup.dir, &data(&self.there));
        self.at_forwarder.clone_from(&backup.events);
        let arrived: HashSet<_> = self.receiver.events().into_iter().collect();
        let (at_forwarder, at_agent) = (&self.at_forwarder, &self.at_agent);
        let is_somewhere = |id: &String| {
            at_forwarder.contains(id) || at_agent.contains(id) || arrived.contains(id)
        };
        self.owed.retain(is_somewhere);
        self.cloud.start_again(&self.there).await;
        if is_away {
            if self.chance.permille(500) {
                self.post_some(5).await;
            }
            self.agent = listen(&self.here, &self.cloud, &self.receiver).await;
        }
    }

    async fn agent_goes_back(&mut self) {
        let Some(n) = self.backups.1.len().checked_sub(1) else {
            return;
        };
        let n = n - self.chance.index(n + 1);
        self.put_back += 1;
        self.agent_went_back = true;
        self.agent.kill();
        let backup = &self.backups.1[n];
        replace(&backup.dir, &data(&self.here));
        self.at_agent.clone_from(&backup.events);
        let arrived: HashSet<_> = self.receiver.events().into_iter().collect();
        let forgets = self.retain != "7d";
        let (at_forwarder, at_agent) = (&self.at_forwarder, &self.at_agent);
        // What it had confirmed its forwarder may have removed.
        let is_somewhere = |id: &String| {
            let kept = at_forwarder.contains(id) && !forgets;
            kept || at_agent.contains(id) || arrived.contains(id)
        };
        self.owed.retain(is_somewhere);
        if self.chance.permille(500) {
            self.post_some(5).await;
        }
        self.agent = listen(&self.here, &self.cloud, &self.receiver).await;
    }

    /// Whether either side shows that a directory went back.
    fn is_shown(&self) -> bool {
        [&self.there, &self.here].into_iter().any(|home| {
            let shown = home.run(&["status", "--json"]).stdout;
            String::from_utf8_lossy(&shown).contains("went back to an earlier copy")
        })
    }
}

async fn listen(home: &Home, cloud: &Cloud, receiver: &Receiver) -> Process {
    let to = receiver.target();
    let more = ["--to", &to, "--name", "laptop", "--schedule", "seconds"];
    home.listen(&[&cloud.flags()[..], &more].concat()).await.0
}

fn data(home: &Home) -> PathBuf {
    home.path().join(".local/share/whrelay")
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

fn replace(backup: &Path, place: &Path) {
    std::fs::remove_dir_all(place).unwrap();
    copy(backup, place);
}
