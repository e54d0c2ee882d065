//! A flood through a store near its bound: what is refused while there is always something that can go, and
//! what the files take.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender::client;

use crate::process::{Running, binary};

const EVENTS: usize = 120_000;
const SENDERS: usize = 16;
const BODY: usize = 2000;

pub(crate) async fn run() {
    let home = tempfile::tempdir_in(".").unwrap();
    let receiver = Receiver::start().await;
    let to = receiver.target();
    let args = [
        "listen",
        "--json",
        "--to",
        &to,
        "--max-disk",
        "50MB",
        "--max-in-flight",
        "64",
    ];
    let listen = Running::start(&binary(), &args, home.path());
    let (url, began) = (listen.text("url"), Instant::now());
    let sending = (0..SENDERS).map(|_| tokio::spawn(send(url.clone())));
    let mut refused = 0;
    for sender in sending.collect::<Vec<_>>() {
        refused += sender.await.unwrap();
    }
    let rate = EVENTS as f64 / began.elapsed().as_secs_f64();
    println!(
        "{EVENTS} events of {BODY} B through 50 MB, {rate:.0}/s: {refused} refused, files {:?} MB",
        stores(home.path())
    );
}

/// Sends a share of the events, and says how many were refused.
async fn send(url: String) -> usize {
    let (client, body) = (client(), vec![7u8; BODY]);
    let mut refused = 0;
    for _ in 0..EVENTS / SENDERS {
        let sent = client.post(&url).body(body.clone()).send().await.unwrap();
        refused += usize::from(!sent.status().is_success());
        // The connection is used again once the answer is read.
        sent.bytes().await.unwrap();
    }
    refused
}

/// What each store's file takes on its disk, in megabytes.
fn stores(dir: &Path) -> Vec<u64> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(stores(&path));
        } else if path.ends_with("store.redb") {
            found.push(fs::metadata(&path).unwrap().blocks() * 512 / 1_000_000);
        }
    }
    found
}
