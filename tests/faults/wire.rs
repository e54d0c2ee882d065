//! Ring 3: the real shells of both ends, tasks, sockets and stores, over a wire that a seed makes bad:
//! cut, stalled without a word, refused, slow, and chopped into small pieces.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::relay::Relay;
use whrelay_tests::sender;

use crate::chance::Chance;
use crate::report::{self, Row};

const EVENTS: usize = 40;
/// Worlds at once.
const TOGETHER: usize = 12;
/// A wire that stalls is noticed after 25 s of silence; then the tunnel is dialled again.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);

/// What wires did, over all seeds.
#[derive(Debug, Default)]
struct Tally {
    cut: AtomicU64,
    stalled: AtomicU64,
    refused: AtomicU64,
    chopped: AtomicU64,
    delayed: AtomicU64,
}

fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Runs so many seeds. Says whether everything accepted arrived once and whole in each.
pub(crate) fn run(seeds: u64) -> bool {
    let began = Instant::now();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tally = Arc::new(Tally::default());
    let failures = runtime.block_on(async {
        let (mut running, mut failures) = (JoinSet::new(), 0);
        let mut next = 1;
        while next <= seeds || !running.is_empty() {
            while next <= seeds && running.len() < TOGETHER {
                let (seed, tally) = (next, Arc::clone(&tally));
                running.spawn(async move { (seed, try_seed(seed, tally).await) });
                next += 1;
            }
            match running.join_next().await {
                Some(Ok((_, Ok(())))) | None => {}
                Some(Ok((seed, Err(why)))) => {
                    println!("wire: seed {seed}: {why}");
                    failures += 1;
                }
                Some(Err(error)) => {
                    println!("wire: {error}");
                    failures += 1;
                }
            }
        }
        failures
    });
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    report::tell(&Row {
        ring: 3,
        fault: "the tunnel's wire cut, stalled, refused, slow, chopped (N1, N3, N6)".to_owned(),
        tried: format!("{seeds} seeds, {} events", seeds * EVENTS as u64),
        failures,
        counted: format!(
            "{} cuts, {} silent stalls, {} connections refused, {} pieces chopped, {} delayed",
            of(&tally.cut),
            of(&tally.stalled),
            of(&tally.refused),
            of(&tally.chopped),
            of(&tally.delayed)
        ),
        seconds: began.elapsed().as_secs_f64(),
    })
}

async fn try_seed(seed: u64, tally: Arc<Tally>) -> Result<(), String> {
    let mut chance = Chance::new(seed);
    let (relay, receiver) = (Relay::start().await, Receiver::start().await);
    let url = relay.input("default").await;
    let wire = Wire::to(relay.address, seed, tally).await;
    let setup = Setup {
        forwarder: format!("http://{}", wire.address).parse().unwrap(),
        ..Setup::new(&relay, receiver.target())
    };
    let agent = Agent::start(setup).await;
    wire.bad.store(true, Ordering::SeqCst);
    let (client, mut sent) = (sender::client(), HashMap::new());
    for _ in 0..EVENTS {
        let length = chance.index(*chance.clone().pick(&[16, 2000, 60_000]));
        let body: Vec<u8> = (0..length).map(|_| chance.bits() as u8).collect();
        let answer = client.post(&url).body(body.clone()).send().await;
        let text = answer.unwrap().text().await.unwrap();
        sent.insert(sender::id_of(&text), body);
        tokio::time::sleep(Duration::from_millis(chance.below(40))).await;
    }
    wire.bad.store(false, Ordering::SeqCst);
    let began = Instant::now();
    while receiver.count() < sent.len() && began.elapsed() < ARRIVES_WITHIN {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let seen = receiver.seen();
    let right = |r: &whrelay_tests::receiver::Received| sent.get(&r.event()) == Some(&r.body);
    agent.stop().await.map_err(|error| error.to_string())?;
    match seen.iter().filter(|received| right(received)).count() {
        whole if whole == sent.len() && seen.len() == whole => Ok(()),
        whole => Err(format!(
            "{} sent, {} requests, {whole} whole",
            sent.len(),
            seen.len()
        )),
    }
}

/// A wire to a server, good until it is told to be bad.
struct Wire {
    address: SocketAddr,
    bad: Arc<AtomicBool>,
}

/// What a piece of bytes meets.
#[derive(Clone, Copy)]
enum Fate {
    Passes,
    Cut,
    /// It and everything after it is swallowed, and nobody is told.
    Stalls,
    Chopped(usize),
    Delayed(u64),
}

#[derive(Clone)]
struct Mood {
    bad: Arc<AtomicBool>,
    chance: Arc<Mutex<Chance>>,
    tally: Arc<Tally>,
}

impl Mood {
    fn fate(&self) -> Fate {
        if !self.bad.load(Ordering::SeqCst) {
            return Fate::Passes;
        }
        let mut chance = self.chance.lock().unwrap();
        match chance.below(1000) {
            0..60 => {
                bump(&self.tally.cut);
                Fate::Cut
            }
            60..63 => {
                bump(&self.tally.stalled);
                Fate::Stalls
            }
            63..300 => {
                bump(&self.tally.chopped);
                Fate::Chopped(1 + chance.index(16))
            }
            300..500 => {
                bump(&self.tally.delayed);
                Fate::Delayed(chance.below(30))
            }
            _ => Fate::Passes,
        }
    }

    fn refuses(&self) -> bool {
        let refuses = self.bad.load(Ordering::SeqCst) && self.chance.lock().unwrap().permille(200);
        if refuses {
            bump(&self.tally.refused);
        }
        refuses
    }
}

impl Wire {
    async fn to(server: SocketAddr, seed: u64, tally: Arc<Tally>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let bad = Arc::<AtomicBool>::default();
        let mood = Mood {
            bad: Arc::clone(&bad),
            chance: Arc::new(Mutex::new(Chance::new(seed))),
            tally,
        };
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if mood.refuses() {
                    continue;
                }
                let mood = mood.clone();
                tokio::spawn(async move {
                    if let Ok(far) = TcpStream::connect(server).await {
                        let ((a, b), (c, d)) = (near.into_split(), far.into_split());
                        // The first end to be cut takes the other with it.
                        tokio::select! {
                            () = pass(a, d, mood.clone()) => {}
                            () = pass(c, b, mood) => {}
                        }
                    }
                });
            }
        });
        Self { address, bad }
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mood: Mood) {
    let mut buffer = vec![0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let piece = match mood.fate() {
            Fate::Passes => n,
            Fate::Cut => return,
            Fate::Stalls => return std::future::pending().await,
            Fate::Chopped(piece) => piece,
            Fate::Delayed(millis) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                n
            }
        };
        for part in buffer[..n].chunks(piece) {
            if to.write_all(part).await.is_err() {
                return;
            }
        }
    }
}
