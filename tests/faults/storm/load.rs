//! Senders, and what they heard. They must not know what is done to those who answer.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::task::JoinSet;
use whrelay_tests::receiver::Received;
use whrelay_tests::sender;

use crate::chance::Chance;

/// Senders at once, each with one request under way.
const SENDERS: u8 = 4;
/// Bytes of a body behind those that say whose it is.
const BODY: usize = 2048;
/// Every other event goes below this path.
pub(super) const ASIDE: &str = "/aside";

/// What senders heard a 2xx for, by the event's id.
type Heard = HashMap<String, Accepted>;

/// One event that a sender heard a 2xx for.
pub(super) struct Accepted {
    pub(super) body: Vec<u8>,
    /// How often the agent had been started again before it was sent.
    pub(super) restarts: u32,
}

/// Senders on an input URL.
pub(super) struct Load {
    shared: Arc<Shared>,
    senders: JoinSet<()>,
}

struct Shared {
    url: String,
    /// Between two requests of a sender.
    pause: Duration,
    heard: Mutex<Heard>,
    sending: AtomicBool,
    /// Posts under way.
    busy: AtomicU64,
    /// Requests for which a sender heard nothing, or no 2xx.
    unheard: AtomicU64,
    restarts: AtomicU32,
}

impl Load {
    /// Senders that wait until they are let go.
    pub(super) fn new(url: &str, pause: Duration) -> Self {
        let shared = Arc::new(Shared {
            url: url.to_owned(),
            pause,
            heard: Mutex::default(),
            sending: AtomicBool::default(),
            busy: AtomicU64::default(),
            unheard: AtomicU64::default(),
            restarts: AtomicU32::default(),
        });
        let mut senders = JoinSet::new();
        for name in 0..SENDERS {
            senders.spawn(Arc::clone(&shared).send(name));
        }
        Self { shared, senders }
    }

    /// Lets them send.
    pub(super) fn go(&self) {
        self.shared.sending.store(true, Ordering::SeqCst);
    }

    /// Tells them that the agent has been started again, so often.
    pub(super) fn restarted(&self, times: u32) {
        self.shared.restarts.store(times, Ordering::SeqCst);
    }

    /// Lets them finish what they have begun, and begin nothing more.
    pub(super) async fn hush(&self) {
        self.shared.sending.store(false, Ordering::SeqCst);
        while self.shared.busy.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends them.
    pub(super) async fn end(&mut self) {
        self.hush().await;
        self.senders.shutdown().await;
    }

    /// What they heard a 2xx for.
    pub(super) fn heard(&self) -> MutexGuard<'_, Heard> {
        self.shared.heard.lock().unwrap()
    }

    /// The ids of that.
    pub(super) fn ids(&self) -> HashSet<String> {
        self.heard().keys().cloned().collect()
    }

    /// Requests for which a sender heard nothing, or no 2xx.
    pub(super) fn unheard(&self) -> u64 {
        self.shared.unheard.load(Ordering::Relaxed)
    }
}

impl Shared {
    async fn send(self: Arc<Self>, name: u8) {
        let (client, mut chance) = (sender::client(), Chance::new(u64::from(name)));
        let aside = format!("{}{ASIDE}", self.url);
        for n in 0u64.. {
            self.busy.fetch_add(1, Ordering::SeqCst);
            while !self.sending.load(Ordering::SeqCst) {
                self.busy.fetch_sub(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
                self.busy.fetch_add(1, Ordering::SeqCst);
            }
            let (mut body, length) = (turn(name, n), chance.index(BODY));
            body.extend((0..length).map(|_| chance.bits() as u8));
            let url = if is_aside(&body) { &aside } else { &self.url };
            let restarts = self.restarts.load(Ordering::SeqCst);
            let answer = client.post(url).body(body.clone()).send().await;
            let text = match answer {
                Ok(answer) if answer.status().is_success() => answer.text().await.ok(),
                Ok(_) | Err(_) => None,
            };
            match text {
                Some(text) => {
                    let id = sender::id_of(&text);
                    let accepted = Accepted { body, restarts };
                    self.heard.lock().unwrap().insert(id, accepted);
                }
                None => {
                    self.unheard.fetch_add(1, Ordering::Relaxed);
                    // Nobody is there: the core is worth more to those who start.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            self.busy.fetch_sub(1, Ordering::SeqCst);
            if self.pause.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(self.pause).await;
            }
        }
    }
}

/// What a body begins with: its sender, and which of its events it is.
fn turn(name: u8, n: u64) -> Vec<u8> {
    [&[name][..], &n.to_be_bytes()].concat()
}

/// Whose event that is, and which of its events.
pub(super) fn turn_of(body: &[u8]) -> (u8, u64) {
    let n = body[1..9].try_into().unwrap();
    (body[0], u64::from_be_bytes(n))
}

/// Whether an event goes below [`ASIDE`].
pub(super) fn is_aside(body: &[u8]) -> bool {
    turn_of(body).1 % 2 == 1
}

/// What is wrong with requests whatever was done: changed bodies, attempts that count backwards.
pub(super) fn wrong(seen: &[Received], heard: &Heard) -> Vec<String> {
    let mut findings = Vec::new();
    let mut numbers: HashMap<String, u64> = HashMap::new();
    for request in seen {
        let event = request.event();
        let accepted = heard.get(&event);
        if accepted.is_some_and(|accepted| accepted.body != request.body) {
            findings.push(format!("{event} arrived changed"));
        }
        let number = request.header("x-whrelay-attempt").parse().unwrap_or(0);
        let delivery = request.header("x-whrelay-delivery-id");
        let last = numbers.entry(delivery).or_default();
        if number < *last {
            findings.push(format!("{event}: attempt {number} after {last}"));
        }
        *last = number;
    }
    findings
}
