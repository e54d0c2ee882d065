//! Both directories cloned, and all four running: each pair goes its own way from there, and nothing is lost or doubled.

use std::collections::HashSet;

use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender;

use super::{ARRIVES_WITHIN, copy, data, listen};
use crate::arrivals::all_arrive;

/// Posts to each pair, in turn.
const ROUNDS: usize = 20;

/// A forwarder and an agent, and their clones.
pub(super) async fn run(binary: &str, retain: &str) -> Result<String, String> {
    let mut homes = [Home::new(binary), Home::new(binary)];
    for home in &mut homes {
        home.set("WHRELAY_RETAIN", retain);
    }
    let [one, other] = &homes;
    let receivers = [Receiver::start().await, Receiver::start().await];
    let mut cloud = Cloud::start(one).await;
    let mut agent = listen(one, &cloud, &receivers[0]).await;
    let url = agent.all("ready")[0]["url"].as_str().unwrap().to_owned();
    let before = post(&url, 5).await;
    all_arrive(&receivers[0], &before, ARRIVES_WITHIN).await?;
    agent.terminate().await;
    let waiting = post(&url, 5).await;
    cloud.process.terminate().await;
    std::fs::create_dir_all(data(other).parent().unwrap()).unwrap();
    copy(&data(one), &data(other));
    cloud.start_again(one).await;
    let clone = Cloud::start(other).await;
    // The clone is another machine's, whose forwarder has another address.
    let [from, to] = [&cloud.url, &clone.url].map(|url| {
        let name = url.replace("://", "_").replace(':', "_");
        data(other).join("agents").join(name)
    });
    std::fs::rename(from, to).unwrap();
    let pairs = [(one, &cloud), (other, &clone)];
    let mut inputs = Vec::new();
    let mut agents = Vec::new();
    for ((home, cloud), receiver) in pairs.into_iter().zip(&receivers) {
        let agent = listen(home, cloud, receiver).await;
        let input = format!("{}{}", cloud.url, sender::path_of(&url));
        inputs.push(input);
        agents.push(agent);
    }
    let mut owed = [waiting.clone(), waiting];
    for _ in 0..ROUNDS {
        for (input, owed) in inputs.iter().zip(&mut owed) {
            owed.extend(post(input, 1).await);
        }
    }
    for ((receiver, owed), known) in receivers.iter().zip(&owed).zip([before.len(), 0]) {
        all_arrive(receiver, owed, ARRIVES_WITHIN).await?;
        let came = receiver.events().len();
        if came != owed.len() + known {
            return Err(format!("{came} requests for {} events", owed.len() + known));
        }
    }
    let accepted: usize = owed.iter().map(HashSet::len).sum();
    Ok(format!("{accepted} events arrived, each once"))
}

async fn post(url: &str, count: usize) -> HashSet<String> {
    let mut ids = HashSet::new();
    for n in 0..count {
        ids.insert(sender::send(url, format!("{n}")).await);
    }
    ids
}
