//! Ring 4, a closed terminal: `listen` gets SIGHUP while it delivers, and is started again. Nothing is lost, no attempt
//! is made twice under one number, and it ends in good order.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::receiver::{Receiver, Reply};
use whrelay_tests::sender;

use crate::arrivals::all_arrive;
use crate::chance::Chance;
use crate::report;

const SEED: u64 = 1;
/// How often the terminal is closed.
const TIMES: usize = 25;
/// Most posts between two times.
const POSTS: u64 = 30;
const ARRIVES_WITHIN: Duration = Duration::from_secs(30);

/// Says whether everything held.
pub(crate) fn run(binary: &str) -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let began = Instant::now();
    report::judge(
        "SIGHUP to `listen` while it delivers, and a new start",
        format!("{TIMES} times"),
        began,
        runtime.block_on(hang_up(binary)),
    )
}

async fn hang_up(binary: &str) -> Result<String, String> {
    let (there, here) = (Home::new(binary), Home::new(binary));
    let cloud = Cloud::start(&there).await;
    // Some are asked for again, some are never answered.
    let receiver =
        Receiver::scripted(
            |request| match request.header("x-whrelay-attempt").as_str() {
                "1" if request.body.first() == Some(&b'1') => Reply::Status(503),
                _ => Reply::Status(200),
            },
        )
        .await;
    let to = receiver.target();
    let args = ["--to", &to, "--schedule", "seconds"];
    let args = [&cloud.flags()[..], &args].concat();
    let (mut chance, mut heard) = (Chance::new(SEED), HashSet::new());
    let (mut listen, url) = here.listen(&args).await;
    for _ in 0..TIMES {
        for n in 0..1 + chance.below(POSTS) {
            heard.insert(sender::send(&url, format!("{}", n % 2)).await);
        }
        listen.hang_up();
        let ended = listen.ended().await;
        if ended.code() != Some(0) {
            return Err(format!("it ended with {ended}: {}", listen.stderr()));
        }
        (listen, _) = here.listen(&args).await;
    }
    all_arrive(&receiver, &heard, ARRIVES_WITHIN).await?;
    let mut times: HashMap<(String, String), usize> = HashMap::new();
    for request in receiver.seen() {
        let attempt = request.header("x-whrelay-attempt");
        *times.entry((request.event(), attempt)).or_default() += 1;
    }
    match times.iter().find(|(_, times)| **times > 1) {
        Some(((event, attempt), times)) => Err(format!(
            "attempt {attempt} of {event} was made {times} times"
        )),
        None => Ok(format!("{} events arrived, no attempt twice", heard.len())),
    }
}
