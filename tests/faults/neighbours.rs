//! Ring 4, neighbours at one forwarder: a bucket that nobody reads fills its share of the space, and two agents take
//! one subscription from each other. The others must not notice.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender;

use crate::arrivals::all_arrive;
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
    unread && taken
}

async fn unread(binary: &str) -> Result<String, String> {
    let (mut there, here) = (Home::new(binary), Home::new(binary));
    there.set("WHRELAY_MAX_DISK", "8MB");
    let (cloud, receiver) = (Cloud::start(&there).await, Receiver::start().await);
    let to = receiver.target();
    let args = ["--to", &to, "--bucket", "read"];
    let (_listen, read) = here.listen(&[&cloud.flags()[..], &args].concat()).await;
    let unread = bucket(&cloud, "unread").await;
    let mut filled = 0;
    while post(&unread).await.is_ok() {
        filled += 1;
        if filled > MOST_POSTS {
            return Err(format!("{filled} events did not fill its share"));
        }
    }
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

async fn bucket(cloud: &Cloud, name: &str) -> String {
    let token = std::fs::read_to_string(&cloud.token_file).unwrap();
    let put = sender::client().put(format!("{}/v1/buckets/{name}", cloud.url));
    let made = put.bearer_auth(token.trim()).send().await.unwrap();
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
