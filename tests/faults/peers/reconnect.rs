//! Thousands of agents whose forwarder is killed and comes back: all are served again soon, and
//! senders notice nothing. It must not dial otherwise than an agent does.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::task::{JoinHandle, JoinSet};
use whrelay_core::retry::{Jitter, reconnect_pause};
use whrelay_proto::frame::{Ack, Frame, Resume};
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::sender;

use super::frames::hello;
use super::socket::{Gate, Socket, said};
use super::{Told, ensure, gate_of};

/// Buckets that the agents share.
const BUCKETS: usize = 50;
/// How soon all have to be served again.
const SERVED_WITHIN: Duration = Duration::from_secs(60);
/// How long the forwarder is gone: the agents' pauses grow meanwhile.
const GONE_FOR: Duration = Duration::from_secs(2);
/// How long an input may take in the storm.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// What the agents have come to.
#[derive(Default)]
struct Crowd {
    /// Those that are welcome now.
    live: AtomicUsize,
    /// Events received, over all of them.
    events: AtomicUsize,
}

/// Connects so many, kills the forwarder and starts it again. Answers with what went wrong.
pub(crate) async fn storm(binary: &str, agents: usize) -> Told {
    let mut findings = Vec::new();
    let blown = blow(binary, agents, &mut findings).await;
    let counted = blown.unwrap_or_else(|why| {
        findings.push(format!("the storm: {why}"));
        "not all were served".to_owned()
    });
    Told {
        tried: format!("{agents} agents"),
        counted,
        findings,
    }
}

async fn blow(binary: &str, agents: usize, findings: &mut Vec<String>) -> Result<String, String> {
    let home = Home::new(binary);
    let mut cloud = Cloud::start(&home).await;
    let gate = gate_of(&cloud);
    let mut urls = Vec::new();
    for n in 0..BUCKETS {
        urls.push(ensure(&gate, &format!("crowd-{n}")).await);
    }
    let input = ensure(&gate, "senders").await;
    let (crowd, mut tasks) = (Arc::<Crowd>::default(), JoinSet::new());
    for n in 0..agents {
        tasks.spawn(live_on(gate.clone(), n, Arc::clone(&crowd)));
    }
    all(&crowd.live, agents)
        .await
        .map_err(|live| format!("{live} of {agents} connected"))?;
    let before = sent_to_all(&urls, &crowd, agents).await?;
    cloud.process.kill();
    all_gone(&crowd.live).await?;
    tokio::time::sleep(GONE_FOR).await;
    cloud.start_again(&home).await;
    let posting = Posting::start(&input);
    let served = all(&crowd.live, agents).await;
    let served = served.map_err(|live| format!("{live} of {agents} came back"))?;
    let after = sent_to_all(&urls, &crowd, agents).await?;
    let (mut took, refused) = posting.end().await;
    if refused > 0 {
        findings.push(format!("the storm: {refused} posts were not accepted"));
    }
    took.sort();
    let most = took.last().copied().unwrap_or_default();
    if most > ANSWERS_WITHIN || took.is_empty() {
        findings.push(format!(
            "the storm: {} posts, one took {most:?}",
            took.len()
        ));
    }
    tasks.shutdown().await;
    Ok(format!(
        "all back after {:.1} s, an event for each after {} ms (before: {} ms), {} posts in the storm took \
         {} ms by the median and {} ms at most",
        served.as_secs_f64(),
        after.as_millis(),
        before.as_millis(),
        took.len(),
        took[took.len() / 2].as_millis(),
        most.as_millis()
    ))
}

/// Waits until a counter has come to a number; answers with how long that took, or where it
/// stopped.
async fn all(counter: &AtomicUsize, number: usize) -> Result<Duration, usize> {
    let began = Instant::now();
    while counter.load(Ordering::SeqCst) != number {
        if began.elapsed() > SERVED_WITHIN {
            return Err(counter.load(Ordering::SeqCst));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(began.elapsed())
}

async fn all_gone(live: &AtomicUsize) -> Result<(), String> {
    let gone = all(live, 0).await;
    gone.map(drop)
        .map_err(|live| format!("{live} did not notice that the forwarder was gone"))
}

/// Sends an event to every bucket, and waits until every agent has its own, once.
async fn sent_to_all(urls: &[String], crowd: &Crowd, agents: usize) -> Result<Duration, String> {
    crowd.events.store(0, Ordering::SeqCst);
    let began = Instant::now();
    for url in urls {
        sender::send(url, "x").await;
    }
    let served = all(&crowd.events, agents).await;
    let served = served.map(|_| began.elapsed());
    served.map_err(|events| format!("{events} events came to {agents} agents"))
}

/// One agent, dialling again for ever.
async fn live_on(gate: Gate, n: usize, crowd: Arc<Crowd>) {
    let (mut failures, mut resume) = (0, None);
    let (bucket, name) = (format!("crowd-{}", n % BUCKETS), format!("agent-{n}"));
    loop {
        if let Ok(mut socket) = gate.enter().await {
            let hello = hello(&bucket, &name, resume.clone());
            socket.send(&said(Frame::Hello(hello))).await;
            serve(&mut socket, &mut resume, &mut failures, &crowd).await;
        }
        let pause = reconnect_pause(failures, Jitter(rand::random()));
        failures = failures.saturating_add(1);
        tokio::time::sleep(pause).await;
    }
}

/// One session, as long as it lives.
async fn serve(
    socket: &mut Socket,
    resume: &mut Option<Resume>,
    failures: &mut u32,
    crowd: &Crowd,
) {
    let mut live = false;
    while socket.read().await {
        if let Some(welcome) = socket.heard.welcome.as_ref().filter(|_| !live) {
            (live, *failures) = (true, 0);
            crowd.live.fetch_add(1, Ordering::SeqCst);
            let forwarder = welcome.forwarder.clone();
            let seq = resume.as_ref().map_or(welcome.start, |resume| resume.seq);
            *resume = Some(Resume::at(&forwarder, seq));
        }
        let places = std::mem::take(&mut socket.heard.places);
        crowd.events.fetch_add(places.len(), Ordering::SeqCst);
        if let (Some(last), Some(resume)) = (places.last(), resume.as_mut()) {
            resume.seq = *last;
            let _ = socket
                .stream
                .write_all(&said(Frame::Ack(Ack { upto: *last })))
                .await;
        }
    }
    if live {
        crowd.live.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Somebody who posts all the while.
struct Posting {
    on: Arc<AtomicBool>,
    task: JoinHandle<(Vec<Duration>, usize)>,
}

impl Posting {
    fn start(url: &str) -> Self {
        let (on, url) = (Arc::new(AtomicBool::new(true)), url.to_owned());
        let going = Arc::clone(&on);
        let task = tokio::spawn(async move {
            let (client, mut took, mut refused) = (sender::client(), Vec::new(), 0);
            let mut ids = HashSet::new();
            while going.load(Ordering::SeqCst) {
                let began = Instant::now();
                match client.post(&url).body("x").send().await {
                    Ok(answer) if answer.status().is_success() => {
                        took.push(began.elapsed());
                        ids.insert(sender::id_of(&answer.text().await.unwrap()));
                    }
                    Ok(_) | Err(_) => refused += 1,
                }
            }
            assert_eq!(ids.len(), took.len(), "an id for each");
            (took, refused)
        });
        Self { on, task }
    }

    async fn end(self) -> (Vec<Duration>, usize) {
        self.on.store(false, Ordering::SeqCst);
        self.task.await.unwrap()
    }
}
