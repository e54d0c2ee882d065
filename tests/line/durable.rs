//! Nothing accepted is lost, whatever goes away in between.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redb::StorageBackend;
use redb::backends::FileBackend;
use whrelay_agent::lines::{Line, LinkState};
use whrelay_core::delivery::DeadReason;
use whrelay_store::Medium;
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::eventually;
use whrelay_tests::proxy::Proxy;
use whrelay_tests::receiver::{Receiver, Reply};
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::{client, send};

async fn send_many(url: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for n in 0..count {
        ids.push(send(url, format!("{n}")).await);
    }
    ids
}

async fn arrived(receiver: &Receiver, ids: &[String]) {
    let wanted: HashSet<_> = ids.iter().cloned().collect();
    let all = || {
        wanted
            .is_subset(&receiver.events().into_iter().collect())
            .then_some(())
    };
    eventually("all events arrive", all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_for_an_absent_agent_are_kept_and_delivered_in_order() {
    let relay = Relay::start().await;
    let receiver = Receiver::start().await;
    let url = relay.input("default").await;
    let ids = send_many(&url, 40).await;
    let relay = relay.restart().await;
    let mut setup = Setup::new(&relay, receiver.target());
    setup.options.max_in_flight = Some(1);
    let agent = Agent::start(setup).await;
    arrived(&receiver, &ids).await;
    assert_eq!(receiver.events(), ids);
    let Line::Ready(ready) = &agent.lines()[0] else {
        unreachable!("the first line is ready")
    };
    assert_eq!(
        (ready.queued, &ready.url),
        (40, &url),
        "a pasted URL stays good"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_is_cut_again_and_again_neither_loses_nor_doubles() {
    let relay = Relay::start().await;
    let proxy = Proxy::to(relay.address).await;
    let receiver = Receiver::start().await;
    let mut setup = Setup::new(&relay, receiver.target());
    setup.forwarder = format!("http://{}", proxy.address).parse().unwrap();
    let agent = Agent::start(setup).await;
    let url = relay.input("default").await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.extend(send_many(&url, 25).await);
        proxy.cut();
    }
    arrived(&receiver, &ids).await;
    assert_eq!(receiver.count(), ids.len(), "delivered more than once");
    let downs = agent
        .lines()
        .iter()
        .filter(|l| {
            matches!(
                l,
                Line::Link {
                    state: LinkState::Disconnected,
                    ..
                }
            )
        })
        .count();
    assert!(downs > 0, "the cuts were noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_that_restarts_goes_on_where_it_was() {
    let mut relay = Relay::start().await;
    let receiver = Receiver::start().await;
    let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let url = relay.input("default").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.extend(send_many(&url, 10).await);
        relay = relay.restart().await;
    }
    ids.extend(send_many(&url, 10).await);
    arrived(&receiver, &ids).await;
    assert_eq!(receiver.count(), ids.len(), "delivered more than once");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_restarts_delivers_what_waited() {
    let relay = Relay::start().await;
    let mut receiver = Receiver::start().await;
    receiver.stop();
    let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let url = relay.input("default").await;
    let ids = send_many(&url, 10).await;
    agent.wait_state(&ids[0], "stalled").await;
    receiver.open_again().await;
    let _agent = agent.restart(Setup::new(&relay, receiver.target())).await;
    arrived(&receiver, &ids).await;
    assert_eq!(receiver.count(), ids.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_for_an_earlier_target_goes_to_the_new_one() {
    let relay = Relay::start().await;
    let mut old = Receiver::start().await;
    old.stop();
    let agent = Agent::start(Setup::new(&relay, old.target())).await;
    let ids = send_many(&relay.input("default").await, 5).await;
    agent.wait_state(&ids[0], "stalled").await;
    let new = Receiver::start().await;
    let _agent = agent.restart(Setup::new(&relay, new.target())).await;
    arrived(&new, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_lost_on_the_way_costs_a_duplicate_with_the_same_id() {
    let relay = Relay::start().await;
    let script = |r: &whrelay_tests::receiver::Received| {
        if r.header("x-whrelay-attempt") == "1" {
            Reply::Close
        } else {
            Reply::Status(200)
        }
    };
    let receiver = Receiver::scripted(script).await;
    let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let id = send(&relay.input("default").await, "x").await;
    agent.wait_state(&id, "sent").await;
    let attempts: Vec<_> = receiver
        .seen()
        .iter()
        .map(|r| r.header("x-whrelay-attempt"))
        .collect();
    assert_eq!(
        (receiver.events(), attempts),
        (vec![id.clone(), id], vec!["1".into(), "2".into()])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_cut_into_frames_that_an_agent_takes() {
    let relay = Relay::start().await;
    let url = relay.input("default").await;
    let mut ids = Vec::new();
    for _ in 0..9 {
        ids.push(send(&url, vec![1; 100 * 1024]).await);
    }
    ids.push(send(&url, vec![2; whrelay_core::limits::MAX_BODY]).await);
    let heavy = "h".repeat(60 * 1024);
    let client = client();
    for _ in 0..whrelay_core::limits::MAX_FRAME_EVENTS {
        let request = client.post(&url).header("x-heavy", &heavy).body("x");
        let answer = request.send().await.unwrap().text().await.unwrap();
        ids.push(whrelay_tests::sender::id_of(&answer));
    }
    let receiver = Receiver::start().await;
    let agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    arrived(&receiver, &ids).await;
    let cut = |l: &Line| {
        matches!(
            l,
            Line::Link {
                state: LinkState::Disconnected,
                ..
            }
        )
    };
    assert!(!agent.lines().iter().any(cut), "a frame was too large");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_passes_while_the_endpoint_is_offline() {
    let relay = Relay::start().await;
    let mut receiver = Receiver::start().await;
    receiver.stop();
    let mut setup = Setup::new(&relay, receiver.target());
    setup.options.deadline = Some(Duration::from_secs(2));
    let agent = Agent::start(setup).await;
    let ids = send_many(&relay.input("default").await, 20).await;
    for id in &ids {
        let dead = agent.wait_state(id, "dead").await;
        assert_eq!(dead.reason, Some(DeadReason::Deadline));
    }
}

/// A disk with so many bytes, of which writes to new places fail when it is full.
#[derive(Clone, Debug)]
struct Small {
    file: Arc<FileBackend>,
    full: Arc<AtomicBool>,
    allocated: Arc<AtomicU64>,
}

impl StorageBackend for Small {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        if end > self.allocated.load(Ordering::SeqCst) {
            if self.full.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.allocated.store(end, Ordering::SeqCst);
        }
        self.file.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

fn small_disk(path: std::path::PathBuf) -> (Medium, Arc<AtomicBool>) {
    let (full, allocated) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let switch = Arc::clone(&full);
    let medium = Medium::custom(move |builder| {
        let mut options = std::fs::OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        let file = Arc::new(FileBackend::new(file)?);
        let (full, allocated) = (Arc::clone(&switch), Arc::clone(&allocated));
        builder.create_with_backend(Small {
            file,
            full,
            allocated,
        })
    });
    (medium, full)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_answers_503_keeps_what_it_had_drains_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let (medium, full) = small_disk(dir.path().join("disk"));
    let relay = Relay::start_on(medium).await;
    let url = relay.input("default").await;
    let mut accepted = send_many(&url, 10).await;
    full.store(true, Ordering::SeqCst);
    let refused = loop {
        let response = client()
            .post(&url)
            .body(vec![7; 20_000])
            .send()
            .await
            .unwrap();
        if !response.status().is_success() {
            break response;
        }
        accepted.push(whrelay_tests::sender::id_of(
            &response.text().await.unwrap(),
        ));
    };
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let receiver = Receiver::start().await;
    let _agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    arrived(&receiver, &accepted).await;
    full.store(false, Ordering::SeqCst);
    let heal = async {
        while !client()
            .post(&url)
            .body("again")
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), heal)
        .await
        .expect("heals without a restart");
}
