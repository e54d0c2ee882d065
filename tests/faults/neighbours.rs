//! Ring 4, neighbours at one forwarder: a bucket that nobody reads fills its share of the space, a name that never
//! comes back pins its bucket, two agents take one subscription from each other, and there are 10,000 buckets. The
//! others must not notice.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::Value;
use tokio::task::JoinSet;
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender;

use crate::arrivals::all_arrive;
use crate::peers::{Gate, gate_of};
use crate::report;

const BODY: usize = 20_000;
/// Posts after which a share that is not full yet will not be.
const MOST_POSTS: usize = 3000;
/// Posts to the bucket that is read.
const POSTS: usize = 500;
/// So many of them at once wait for their arrival.
const ROUND: usize = 25;
/// How often a subscription is taken.
const TURNS: usize = 8;
const ARRIVES_WITHIN: Duration = Duration::from_secs(30);
/// How soon a subscription that ends gives its space back: retention looks once a minute.
const FREED_WITHIN: Duration = Duration::from_secs(150);
const BUCKETS: usize = 10_000;
/// Who makes them, at once.
const SENDERS: usize = 64;

/// Says whether everything held.
pub(crate) fn run(binary: &str) -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let began = Instant::now();
    let unread = report::judge(
        "a bucket that nobody reads, beside one that is read, --max-disk 8MB",
        format!("{POSTS} posts to the other bucket"),
        began,
        runtime.block_on(unread(binary)),
    );
    let began = Instant::now();
    let taken = report::judge(
        "two agents that take one subscription from each other",
        format!("{TURNS} times"),
        began,
        runtime.block_on(taken(binary)),
    );
    let began = Instant::now();
    let pinned = report::judge(
        "a name that listened once and never came back, --subscription-ttl 1s",
        "1 bucket filled".to_owned(),
        began,
        runtime.block_on(pinned(binary)),
    );
    let began = Instant::now();
    let crowded = report::judge(
        "many buckets at one forwarder, killed and started again",
        format!("{BUCKETS} buckets"),
        began,
        runtime.block_on(crowded(binary)),
    );
    unread && taken && pinned && crowded
}

async fn unread(binary: &str) -> Result<String, String> {
    let (mut there, here) = (Home::new(binary), Home::new(binary));
    there.set("WHRELAY_MAX_DISK", "8MB");
    let (cloud, receiver) = (Cloud::start(&there).await, Receiver::start().await);
    let to = receiver.target();
    let args = ["--to", &to, "--bucket", "read"];
    let (_listen, read) = here.listen(&[&cloud.flags()[..], &args].concat()).await;
    let unread = bucket(&sender::client(), &gate_of(&cloud), "unread").await;
    let filled = fill(&unread).await?.len();
    let mut heard = HashSet::new();
    for _ in 0..POSTS / ROUND {
        for _ in 0..ROUND {
            let id = post(&read).await;
            heard.insert(id.map_err(|status| format!("the other bucket answered {status}"))?);
        }
        all_arrive(&receiver, &heard, ARRIVES_WITHIN).await?;
    }
    match post(&unread).await {
        Err(503) => Ok(format!(
            "refused after {filled} events, none of the other's"
        )),
        other => Err(format!("the full bucket answered {other:?}")),
    }
}

async fn taken(binary: &str) -> Result<String, String> {
    let homes = [Home::new(binary), Home::new(binary)];
    let (cloud, receiver) = (Cloud::start(&homes[0]).await, Receiver::start().await);
    let to = receiver.target();
    let args = ["--to", &to, "--name", "shared", "--take-over"];
    let args = [&cloud.flags()[..], &args].concat();
    let (mut holder, url) = homes[0].listen(&args).await;
    let mut heard = HashSet::new();
    for turn in 1..=TURNS {
        for _ in 0..5 {
            heard.insert(sender::send(&url, "x").await);
        }
        let (next, _) = homes[turn % 2].listen(&args).await;
        let ended = holder.ended().await.code();
        if ended != Some(6) {
            return Err(format!("the one that lost it ended with {ended:?}"));
        }
        holder = next;
    }
    all_arrive(&receiver, &heard, ARRIVES_WITHIN).await?;
    if !cloud.process.stderr().contains("again and again") {
        return Err("nobody is warned".to_owned());
    }
    let twice = receiver.events().len() - heard.len();
    Ok(format!(
        "{} events arrived, {twice} of them twice",
        heard.len()
    ))
}

/// What the name that stays away had not received is kept for `--retain`, and then gives its space back.
async fn pinned(binary: &str) -> Result<String, String> {
    let (mut there, here) = (Home::new(binary), Home::new(binary));
    for (name, value) in [
        ("WHRELAY_MAX_DISK", "8MB"),
        ("WHRELAY_SUBSCRIPTION_TTL", "1s"),
        ("WHRELAY_RETAIN", "1ms"),
    ] {
        there.set(name, value);
    }
    let (mut cloud, receiver) = (Cloud::start(&there).await, Receiver::start().await);
    let to = receiver.target();
    let flags = |name| [&cloud.flags()[..], &["--to", &to, "--name", name]].concat();
    let (mut gone, url) = here.listen(&flags("once")).await;
    gone.terminate().await;
    let (_stays, _) = here.listen(&flags("stays")).await;
    let mut heard = fill(&url).await?;
    let filled = heard.len();
    cloud.process.kill();
    cloud.start_again(&there).await;
    let began = Instant::now();
    loop {
        match post(&url).await {
            Ok(id) => {
                heard.insert(id);
                break;
            }
            Err(_) if began.elapsed() < FREED_WITHIN => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(status) => return Err(format!("{status} for {FREED_WITHIN:?}")),
        }
    }
    let took = began.elapsed();
    all_arrive(&receiver, &heard, ARRIVES_WITHIN).await?;
    Ok(format!(
        "refused after {filled} events, took in again after {:.1} s, all arrived at the other name",
        took.as_secs_f64()
    ))
}

async fn crowded(binary: &str) -> Result<String, String> {
    let home = Home::new(binary);
    let (mut cloud, receiver) = (Cloud::start(&home).await, Receiver::start().await);
    let gate = gate_of(&cloud);
    let mut making = JoinSet::new();
    for first in 0..SENDERS {
        let gate = gate.clone();
        making.spawn(async move {
            let client = sender::client();
            for n in (first..BUCKETS).step_by(SENDERS) {
                let url = bucket(&client, &gate, &format!("b{n:05}")).await;
                let posted = client.post(url).body("x").send().await;
                assert_eq!(posted.unwrap().status(), 200);
            }
        });
    }
    while let Some(made) = making.join_next().await {
        made.map_err(|error| error.to_string())?;
    }
    cloud.process.kill();
    let began = Instant::now();
    cloud.start_again(&home).await;
    let started = began.elapsed();
    let to = receiver.target();
    let last = format!("b{:05}", BUCKETS - 1);
    let args = ["--to", &to, "--bucket", &last];
    let (_listen, url) = home.listen(&[&cloud.flags()[..], &args].concat()).await;
    let mut heard = HashSet::new();
    for _ in 0..POSTS {
        heard.insert(sender::send(&url, "x").await);
    }
    all_arrive(&receiver, &heard, ARRIVES_WITHIN).await?;
    let doctor = home.run(&[&["doctor"][..], &cloud.flags()].concat());
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    if !doctor.contains(": accepted") {
        return Err(format!("doctor does not find the forwarder: {doctor}"));
    }
    let status = home.run(&["status", "--json"]).stdout;
    let status = String::from_utf8_lossy(&status).into_owned();
    let shown = status.matches("\"bucket\":\"b").count();
    if shown < BUCKETS {
        return Err(format!("status shows {shown} buckets"));
    }
    Ok(format!(
        "ready again after {:.2} s, {} events arrived, `doctor` and `status` know them all",
        started.as_secs_f64(),
        heard.len()
    ))
}

/// Posts to a bucket until its share is full.
async fn fill(url: &str) -> Result<HashSet<String>, String> {
    let mut taken = HashSet::new();
    while let Ok(id) = post(url).await {
        taken.insert(id);
        if taken.len() > MOST_POSTS {
            return Err(format!("{} events did not fill its share", taken.len()));
        }
    }
    Ok(taken)
}

/// The input URL of a bucket that is made.
async fn bucket(client: &Client, gate: &Gate, name: &str) -> String {
    let put = client.put(format!("http://{}/v1/buckets/{name}", gate.address));
    let made = put.bearer_auth(&gate.token).send().await.unwrap();
    let made: Value = made.json().await.unwrap();
    made["url"].as_str().unwrap().to_owned()
}

/// The event's id, or the status of the refusal.
async fn post(url: &str) -> Result<String, u16> {
    let posted = sender::client().post(url).body(vec![b'x'; BODY]);
    let answer = posted.send().await.unwrap();
    match answer.status().as_u16() {
        200 => {
            let accepted: Value = answer.json().await.unwrap();
            Ok(accepted["id"].as_str().unwrap().to_owned())
        }
        refused => Err(refused),
    }
}
