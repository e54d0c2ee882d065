//! Ring 4, a full disk: a file system of 24 MB under the forwarder, or under the agent, filled up and
//! given space again. Needs root.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use whrelay_tests::process::{Cloud, Home, Process};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender;

use crate::arrivals::all_arrive;
use crate::ground::{Ground, Kind};
use crate::report::{self, Row};

const SIZE: &str = "24M";
/// What takes space away at first, and is removed to give it back.
const BALLAST: usize = 10 << 20;
const BODY: usize = 20_000;
/// Posts after which a disk that is not full yet will not be.
const MOST_POSTS: usize = 3000;
/// How soon a refusal has to come.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);
/// How soon a store has to take in again, once there is space.
const HEALS_WITHIN: Duration = Duration::from_secs(10);
/// How soon what can be delivered has to be.
const DRAINS_WITHIN: Duration = Duration::from_secs(20);

/// How soon retention makes space: it looks once a minute, and may have to look twice.
const RETAINS_WITHIN: Duration = Duration::from_secs(150);

/// Events that a start does not want.
const UNWANTED: usize = 20;

/// Fills both kinds of disk. Says whether everything held.
pub(crate) fn run(binary: &str) -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let forwarder = runtime.block_on(forwarder_full(binary));
    let agent = runtime.block_on(agent_full(binary));
    let retained = runtime.block_on(retained(binary));
    let told = |whose: &str, found: Result<Told, String>, seconds| {
        let (failures, counted) = match found {
            Ok(Told { accepted, counted }) => (0, format!("{accepted} events accepted, {counted}")),
            Err(why) => (1, why),
        };
        report::tell(&Row {
            ring: 4,
            fault: format!("the disk of the {whose} full ({SIZE}B, D1, D2)"),
            tried: "1 disk".to_owned(),
            failures,
            counted,
            seconds,
        })
    };
    let forwarder = told("forwarder is", forwarder.0, forwarder.1);
    let agent = told("agent is", agent.0, agent.1);
    let retained = told("agent stays", retained.0, retained.1);
    forwarder && agent && retained
}

struct Told {
    accepted: usize,
    counted: String,
}

struct Place {
    ground: Ground,
    home: Home,
}

impl Place {
    fn small(binary: &str) -> Self {
        let ground = Ground::of_size(Kind::Ext4, SIZE);
        std::fs::write(ground.path().join("ballast"), vec![7; BALLAST]).unwrap();
        let home = Home::within(binary, &ground.path());
        Self { ground, home }
    }

    fn free(&self) {
        std::fs::remove_file(self.ground.path().join("ballast")).unwrap();
    }
}

async fn forwarder_full(binary: &str) -> (Result<Told, String>, f64) {
    let began = Instant::now();
    let (there, here) = (Place::small(binary), Home::new(binary));
    let found = fill_forwarder(&there, &here).await;
    (found, began.elapsed().as_secs_f64())
}

async fn fill_forwarder(there: &Place, here: &Home) -> Result<Told, String> {
    let cloud = Cloud::start(&there.home).await;
    let receiver = Receiver::start().await;
    let to = receiver.target();
    let flags = [&["--to", &to], &cloud.flags()[..]].concat();
    // Nobody drains it while it fills.
    let (mut listen, url) = here.listen(&flags).await;
    listen.kill();
    let mut heard = HashSet::new();
    let refused = post_until_refused(&url, &mut heard).await?;
    if ready(&cloud).await {
        return Err("/readyz says that a full disk takes events in".to_owned());
    }
    let (_listen, _) = here.listen(&flags).await;
    let drained = all_arrive(&receiver, &heard, DRAINS_WITHIN).await?;
    if post(&url).await.is_ok() {
        return Err("a full disk took something in".to_owned());
    }
    there.free();
    let healed = heal(&url, &mut heard).await?;
    if !ready(&cloud).await {
        return Err("/readyz does not say that it healed".to_owned());
    }
    all_arrive(&receiver, &heard, DRAINS_WITHIN).await?;
    let counted = format!(
        "refused within {} ms, all drained while full within {} ms, took in again after {} ms",
        refused.as_millis(),
        drained.as_millis(),
        healed.as_millis()
    );
    let accepted = heard.len();
    Ok(Told { accepted, counted })
}

async fn ready(cloud: &Cloud) -> bool {
    let answer = sender::client().get(format!("{}/readyz", cloud.url));
    answer.send().await.unwrap().status().is_success()
}

async fn agent_full(binary: &str) -> (Result<Told, String>, f64) {
    let began = Instant::now();
    let (there, here) = (Home::new(binary), Place::small(binary));
    let found = fill_agent(&there, &here).await;
    (found, began.elapsed().as_secs_f64())
}

async fn fill_agent(there: &Home, here: &Place) -> Result<Told, String> {
    let cloud = Cloud::start(there).await;
    let mut receiver = Receiver::start().await;
    receiver.stop();
    let other = Receiver::start().await;
    let (to, to_other) = (receiver.target(), other.target());
    let targets = ["--to", &to, "--to", &to_other];
    let policies = ["--order", "fifo", "--rate", "2000/s"];
    let flags = [&targets[..], &policies, &cloud.flags()].concat();
    let (mut listen, url) = here.home.listen(&flags).await;
    let mut heard = HashSet::new();
    // More than the agent's disk holds: the forwarder keeps the rest.
    for _ in 0..2 * (24 << 20) / BODY {
        heard.insert(
            post(&url)
                .await
                .map_err(|status| format!("the forwarder said {status}"))?,
        );
    }
    let stored = settled(&listen).await;
    let given_up = discard_one(here, &listen)?;
    // It starts on a full disk, too, after a stop and after a kill.
    listen.terminate().await;
    let (mut listen, _) = here.home.listen(&flags).await;
    listen.kill();
    let (_listen, _) = here.home.listen(&flags).await;
    receiver.open_again().await;
    grows_to(&receiver, stored - 1, DRAINS_WITHIN).await?;
    if receiver.events().contains(&given_up) {
        return Err("what was discarded while the disk was full was delivered".to_owned());
    }
    let begun = here
        .home
        .run(&["replay", &given_up, "--json"])
        .status
        .success();
    here.free();
    let before = receiver.count();
    let healed = grows_to(&receiver, before + 1, HEALS_WITHIN).await?;
    // Half as many again fit well into what was given back.
    grows_to(&receiver, before + stored / 2, DRAINS_WITHIN).await?;
    if begun {
        let again = HashSet::from([given_up.clone()]);
        all_arrive(&receiver, &again, DRAINS_WITHIN).await?;
    }
    let arrived = receiver.events();
    let times = arrived.iter().filter(|id| **id == given_up).count();
    if times != usize::from(begun) {
        return Err(format!(
            "a replay began: {begun}, and arrived {times} times"
        ));
    }
    let arrived = arrived.into_iter().collect();
    all_arrive(&other, &arrived, DRAINS_WITHIN).await?;
    let counted = format!(
        "{stored} stored and, after two starts, delivered in order or discarded while full, took in again \
         after {} ms",
        healed.as_millis()
    );
    let accepted = heard.len();
    Ok(Told { accepted, counted })
}

async fn retained(binary: &str) -> (Result<Told, String>, f64) {
    let began = Instant::now();
    let (there, here) = (Home::new(binary), Place::small(binary));
    let found = fill_and_retain(&there, &here).await;
    (found, began.elapsed().as_secs_f64())
}

/// A disk that stays full: what retention removes leaves space in the store's own file, and that will do.
async fn fill_and_retain(there: &Home, here: &Place) -> Result<Told, String> {
    let cloud = Cloud::start(there).await;
    let mut receiver = Receiver::start().await;
    let to = receiver.target();
    let flags = [&["--to", &to, "--retain", "1s"], &cloud.flags()[..]].concat();
    let (mut listen, url) = here.home.listen(&flags).await;
    let mut heard = HashSet::new();
    while !refuses(&listen) {
        let posted = post(&url).await;
        heard.insert(posted.map_err(|status| format!("the forwarder said {status}"))?);
        if heard.len() > MOST_POSTS {
            return Err("the disk was never full".to_owned());
        }
    }
    let before = receiver.count();
    for _ in 0..before {
        let posted = post(&url).await;
        heard.insert(posted.map_err(|status| format!("the forwarder said {status}"))?);
    }
    let took = all_arrive(&receiver, &heard, RETAINS_WITHIN).await?;
    // What a start does not want is passed over, and what comes behind it is not.
    receiver.stop();
    let mut unwanted = HashSet::new();
    for _ in 0..UNWANTED {
        let posted = post(&url).await;
        unwanted.insert(posted.map_err(|status| format!("the forwarder said {status}"))?);
    }
    listen.terminate().await;
    let catching_up = [&flags[..], &["--backlog", "none"]].concat();
    let (_listen, _) = here.home.listen(&catching_up).await;
    let posted = post(&url).await;
    let wanted = HashSet::from([posted.map_err(|status| format!("the forwarder said {status}"))?]);
    receiver.open_again().await;
    all_arrive(&receiver, &wanted, RETAINS_WITHIN).await?;
    if receiver.events().iter().any(|id| unwanted.contains(id)) {
        return Err("what was not wanted was delivered".to_owned());
    }
    heard.extend(wanted);
    let counted = format!(
        "{before} stored before it was full, as many again within {} s, {UNWANTED} passed over by a start",
        took.as_secs()
    );
    let accepted = heard.len();
    Ok(Told { accepted, counted })
}

fn refuses(listen: &Process) -> bool {
    let warnings = listen.all("warning");
    let last = warnings.last().and_then(|line| line["message"].as_str());
    last.is_some_and(|message| message.contains("accepts none"))
}

/// Waits until so many requests have come.
async fn grows_to(receiver: &Receiver, count: usize, within: Duration) -> Result<Duration, String> {
    let began = Instant::now();
    while receiver.count() < count {
        if began.elapsed() > within {
            let had = receiver.count();
            return Err(format!("{had} of {count} requests came within {within:?}"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(began.elapsed())
}

/// Gives up one of those that wait, which needs no space. Says which.
fn discard_one(here: &Place, listen: &Process) -> Result<String, String> {
    let received = listen.all("received");
    let last = received.last().ok_or("nothing was stored")?;
    let id = last["event"].as_str().unwrap().to_owned();
    let discarded = here.home.run(&["discard", &id]);
    match discarded.status.success() {
        true => Ok(id),
        false => Err(String::from_utf8_lossy(&discarded.stderr).into_owned()),
    }
}

/// How many events an agent has received, once that no longer grows.
async fn settled(listen: &Process) -> usize {
    let mut seen = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let now = listen.all("received").len();
        if now == seen {
            return now;
        }
        seen = now;
    }
}

async fn post(url: &str) -> Result<String, u16> {
    let answer = sender::client().post(url).body(vec![7; BODY]).send().await;
    let answer = answer.map_err(|_| 0u16)?;
    let status = answer.status();
    match answer.text().await {
        Ok(text) if status.is_success() => Ok(sender::id_of(&text)),
        Ok(_) | Err(_) => Err(status.as_u16()),
    }
}

async fn post_until_refused(url: &str, heard: &mut HashSet<String>) -> Result<Duration, String> {
    for _ in 0..MOST_POSTS {
        let began = Instant::now();
        match post(url).await {
            Ok(id) => drop(heard.insert(id)),
            Err(503) if began.elapsed() < REFUSED_WITHIN => return Ok(began.elapsed()),
            Err(status) => return Err(format!("{status} after {:?}", began.elapsed())),
        }
    }
    Err("the disk was never full".to_owned())
}

async fn heal(url: &str, heard: &mut HashSet<String>) -> Result<Duration, String> {
    let began = Instant::now();
    while began.elapsed() < HEALS_WITHIN {
        if let Ok(id) = post(url).await {
            heard.insert(id);
            return Ok(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err("it did not heal".to_owned())
}
