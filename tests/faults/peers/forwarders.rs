//! A rogue forwarder against real agents: none may crash, go where it is told, forget what it had
//! or obey a terminal's escapes; and each goes on by itself once a proper forwarder is back. It
//! must not make lies up: it plays those of the tables.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tokio::time::timeout;
use whrelay_core::limits;
use whrelay_core::token::Token;
use whrelay_proto::frame::Frame;
use whrelay_tests::process::{Cloud, Home, Process};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender;

use super::fates::{self, Fate, KEPT_OUT};
use super::lies::{self, Then};
use super::mutants::event;
use super::rogue::{Answer, Rogue, bucket_answer};
use super::socket::{PING, Socket, plain};
use super::{Told, ensure, gate_of, most_memory};

/// Most memory an agent may ever have used, in MB: a frame of the largest size, its event on the
/// way to the disk and to the target, the store's cache.
const MEMORY: u64 = 3 * (limits::MAX_FRAME >> 20) as u64 + 85;
/// Agents that are lied to, each with its share of the lies.
const LANES: usize = 4;
/// Agents that dial for the first time, at once.
const TOGETHER: usize = 6;
/// How soon an agent has to hang up, say that it has an event, or exit: its own timeouts, the
/// longest of which is for a connection, and a busy machine.
const WITHIN: Duration = Duration::from_secs(20);
/// How soon it has to go on once the proper forwarder is back: one pause, and a busy machine.
const BACK_WITHIN: Duration = Duration::from_secs(20);
/// The place of the first event of a rogue's.
const FIRST: u64 = 1000;
/// Room for the events of one lie.
const APART: u64 = 10;
const TINY: u64 = 100_000;
const TINY_FRAME: u64 = 500;
const FLOOD: usize = 512 << 20;
const FLOODS_FOR: Duration = Duration::from_secs(8);

/// What one agent was put through.
#[derive(Default)]
struct Found {
    tried: u64,
    memory: u64,
    findings: Vec<String>,
}

/// Runs it all. Answers with what was tried, and everything that went wrong.
pub(crate) async fn attack(binary: &str) -> Told {
    let first = first_dials(binary);
    let lanes = join_all((0..LANES).map(|lane| lie(binary, lane)));
    let (first, lanes, fates, tiny, silent, flood) = tokio::join!(
        first,
        lanes,
        on_stage("fates", binary, Kind::Fates),
        on_stage("tiny events", binary, Kind::Tiny),
        on_stage("silence", binary, Kind::Silence),
        on_stage("a flood", binary, Kind::Flood),
    );
    let all: Vec<_> = first
        .into_iter()
        .chain(lanes)
        .chain([fates, tiny, silent, flood])
        .collect();
    let memory = all
        .iter()
        .map(|found| found.memory)
        .max()
        .unwrap_or_default();
    let tried: u64 = all.iter().map(|found| found.tried).sum();
    Told {
        tried: format!("{tried} lies, {TINY} tiny events"),
        counted: format!("{} agents, at {memory} MB at most", all.len()),
        findings: all.into_iter().flat_map(|found| found.findings).collect(),
    }
}

/// An agent whose forwarder is replaced by a rogue, and comes back.
struct Stage {
    there: Home,
    here: Home,
    cloud: Cloud,
    receiver: Receiver,
    listen: Process,
    rogue: Rogue,
    url: String,
    /// Accepted by the proper forwarder before the rogue took its place.
    waiting: Vec<String>,
    place: u64,
}

impl Stage {
    async fn set(binary: &str) -> Self {
        let (there, here) = (Home::new(binary), Home::new(binary));
        let mut cloud = Cloud::start(&there).await;
        let gate = gate_of(&cloud);
        let url = ensure(&gate, "default").await;
        let mut waiting = Vec::new();
        for n in 0..3 {
            waiting.push(sender::send(&url, n.to_string()).await);
        }
        cloud.process.terminate().await;
        let receiver = Receiver::start().await;
        let rogue = Rogue::start(gate.address, bucket_answer()).await;
        let to = format!("{}/base", receiver.target());
        let args = [&["listen", "--to", &to], &cloud.flags()[..]].concat();
        let listen = here.start(&args);
        Self {
            there,
            here,
            cloud,
            receiver,
            listen,
            rogue,
            url,
            waiting,
            place: FIRST,
        }
    }

    /// The agent dials, is served as it should be, and says that it has an event.
    async fn good_session(&mut self) -> Result<Socket, String> {
        let mut socket = self.rogue.dial().await?.open().await?;
        let (after, upto) = (self.place, self.place + 1);
        self.place += APART;
        socket
            .send(&lies::told(Frame::Welcome(lies::welcome(after))))
            .await;
        socket
            .send(&lies::events(after, upto, vec![event(upto)]))
            .await;
        acked(&mut socket, upto).await?;
        Ok(socket)
    }

    /// Gives the proper forwarder its place back.
    async fn restore(&mut self) {
        self.rogue.close().await;
        self.cloud.start_again(&self.there).await;
        self.waiting.push(sender::send(&self.url, "new").await);
    }

    /// The proper forwarder is back: what it had, and something new, arrives at the target.
    async fn back(&mut self) -> Result<(), String> {
        self.restore().await;
        let began = Instant::now();
        loop {
            let arrived = self.receiver.events();
            let missing = self
                .waiting
                .iter()
                .filter(|id| !arrived.contains(id))
                .count();
            if missing == 0 {
                return Ok(());
            }
            if began.elapsed() > BACK_WITHIN {
                return Err(format!(
                    "{missing} of the proper forwarder's events did not arrive"
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What is wrong at the end, whatever was done.
    async fn end(mut self, name: &str, tried: u64, played: Result<(), String>) -> Found {
        let mut findings: Vec<_> = played.err().into_iter().collect();
        let memory = most_memory(self.listen.pid()).unwrap_or_default();
        if memory > MEMORY {
            findings.push(format!("the agent used {memory} MB, more than {MEMORY}"));
        }
        findings.extend(outside(&self.receiver));
        let list = self.here.output(&["events", "-n", "1000"]).await;
        let list =
            [list.stdout, list.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        if self.listen.has_ended() {
            findings.push(format!("the agent ended: {:?}", self.listen.stderr()));
        } else if self.listen.terminate().await != Some(0) {
            findings.push("the agent did not stop well".to_owned());
        }
        let said = self
            .listen
            .printed()
            .into_iter()
            .chain([self.listen.stderr()])
            .chain(list);
        findings.extend(said.filter_map(|text| obeyed(&text)));
        let findings = findings
            .into_iter()
            .map(|why| format!("{name}: {why}"))
            .collect();
        Found {
            tried,
            memory,
            findings,
        }
    }
}

async fn acked(socket: &mut Socket, upto: u64) -> Result<(), String> {
    let acked = socket.until(WITHIN, |heard| heard.acked >= upto).await;
    acked
        .then_some(())
        .ok_or_else(|| format!("{} was acknowledged, not {upto}", socket.heard.acked))
}

/// A request outside the base path, or one that climbs out of it.
fn outside(receiver: &Receiver) -> Vec<String> {
    let seen = receiver.seen().into_iter().map(|request| request.path);
    let out = seen.filter(|path| {
        let below = path
            .strip_prefix("/base")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']));
        let decoded = path
            .to_lowercase()
            .replace("%2e", ".")
            .replace("%2f", "/")
            .replace(['\\', ';'], "/");
        !below || decoded.split('/').any(|part| part == ".." || part == ".")
    });
    out.map(|path| format!("a request went to {path:?}"))
        .collect()
}

/// Text that a terminal would obey.
fn obeyed(text: &str) -> Option<String> {
    let lines = text.trim_end_matches('\n').split('\n');
    let control = |c: char| c.is_control() || c == '\u{202e}';
    let mut bad = lines.filter(|line| line.contains(control) || line.starts_with("fake"));
    bad.next().map(|line| format!("it printed {line:?}"))
}

/// An agent's first dial: it ends with the exit code of the contract, and says why.
async fn first_dials(binary: &str) -> Vec<Found> {
    let tries = lies::first()
        .into_iter()
        .map(|case| first_dial(binary, case));
    stream::iter(tries)
        .buffer_unordered(TOGETHER)
        .collect()
        .await
}

async fn first_dial(binary: &str, case: (&'static str, Answer, Answer, i32)) -> Found {
    let (name, bucket, tunnel, code) = case;
    let mut rogue = Rogue::start(([127, 0, 0, 1], 0).into(), bucket).await;
    let (home, url) = (Home::new(binary), format!("http://{}", rogue.address));
    let token: PathBuf = home.path().join("token");
    std::fs::write(&token, Token::mint(&[1; 53]).expose()).unwrap();
    let flags = ["--forwarder", &url, "--token-file", token.to_str().unwrap()];
    let mut listen = home.start(&[&["listen", "--to", "localhost:1"], &flags[..]].concat());
    let meeting = tokio::spawn(async move {
        let dial = rogue.dial().await?;
        let socket = dial.meet(&tunnel).await?;
        if let Some(mut socket) = socket {
            socket.until_cut(WITHIN).await;
        }
        Ok::<_, String>(())
    });
    let (began, mut memory) = (Instant::now(), 0);
    while !listen.has_ended() && began.elapsed() < WITHIN {
        memory = memory.max(most_memory(listen.pid()).unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    meeting.abort();
    let mut findings = Vec::new();
    if memory > MEMORY {
        findings.push(format!("the agent used {memory} MB"));
    }
    if listen.has_ended() {
        let ended = listen.ended().await.code();
        if ended != Some(code) {
            findings.push(format!("it ended with {ended:?}, not {code}"));
        }
    } else {
        findings.push("it did not end".to_owned());
    }
    let said = listen.stderr();
    if !said.contains("error: ") {
        findings.push(format!("it said {said:?}"));
    }
    findings.extend(obeyed(&said));
    let findings = findings
        .into_iter()
        .map(|why| format!("a first dial, {name}: {why}"))
        .collect();
    Found {
        tried: 1,
        memory,
        findings,
    }
}

/// One share of the lies, told to one agent.
async fn lie(binary: &str, lane: usize) -> Found {
    let mut stage = Stage::set(binary).await;
    let (mut tried, mut findings) = (0, Vec::new());
    let mut played = stage.good_session().await.map(drop);
    for n in (lane..lies::count()).step_by(LANES) {
        if played.is_err() {
            break;
        }
        let place = stage.place;
        let made = tokio::task::spawn_blocking(move || lies::nth(n, place));
        let (name, answer, then) = made.await.unwrap();
        stage.place += APART;
        let found = tell(&mut stage, &answer, then).await;
        findings.extend(found.err().map(|why| format!("a lie, {name}: {why}")));
        played = stage.good_session().await.map(drop);
        played = played.map_err(|why| format!("after the lie, {name}: {why}"));
        tried += 1;
    }
    if played.is_ok() {
        played = stage.back().await;
    }
    let mut found = stage.end("a rogue", tried, played).await;
    found.findings.extend(findings);
    found
}

async fn tell(stage: &mut Stage, answer: &Answer, then: Then) -> Result<(), String> {
    let dial = stage.rogue.dial().await?;
    let Some(mut socket) = dial.meet(answer).await? else {
        return Ok(());
    };
    match then {
        Then::Acks(upto) => acked(&mut socket, upto).await,
        Then::HangsUp => {
            let cut = socket.until_cut(WITHIN).await;
            cut.then_some(()).ok_or_else(|| "it was taken".to_owned())
        }
    }
}

/// What else an agent is put through, one agent each.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Fates,
    Tiny,
    Silence,
    Flood,
}

async fn on_stage(name: &str, binary: &str, kind: Kind) -> Found {
    let mut stage = Stage::set(binary).await;
    let (tried, played) = match kind {
        Kind::Fates => (fates::fates("").len() as u64, fates(&mut stage).await),
        Kind::Tiny => (1, tiny(&mut stage).await),
        Kind::Silence => (1, silence(&mut stage).await),
        Kind::Flood => (1, flood(&mut stage).await),
    };
    let played = match (played, kind) {
        (Ok(()), Kind::Fates | Kind::Silence | Kind::Flood) => stage.back().await,
        (played, _) => played,
    };
    stage.end(name, tried, played).await
}

/// Events that would go elsewhere, each with an id of its own; and one id again with another body.
async fn fates(stage: &mut Stage) -> Result<(), String> {
    let canary = Receiver::start().await;
    let address = canary.target().replace("localhost", "127.0.0.1");
    let all = fates::fates(&address);
    let (start, upto) = (0, all.len() as u64);
    let mut socket = stage.rogue.dial().await?.open().await?;
    socket
        .send(&lies::told(Frame::Welcome(lies::welcome(start))))
        .await;
    let events = all.iter().map(|(event, _)| event.clone()).collect();
    socket.send(&lies::events(start, upto, events)).await;
    let mut again = all[0].0.clone();
    (again.seq, again.head.tail, again.body) = (upto + 1, "/again".into(), "another".into());
    socket
        .send(&lies::events(upto, upto + 1, vec![again]))
        .await;
    acked(&mut socket, upto + 1).await?;
    let due = all.iter().filter(|(_, fate)| *fate != Fate::Never).count();
    let began = Instant::now();
    let states = loop {
        let states = states(&stage.here).await;
        let open = states
            .iter()
            .any(|state| state != "sent" && state != "dead");
        if (states.len() as u64 == upto && !open) || began.elapsed() > WITHIN {
            break states;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let sent = states.iter().filter(|state| *state == "sent").count();
    if (sent, states.len() as u64) != (due, upto) {
        return Err(format!(
            "{sent} of {} events were sent, not {due} of {upto}",
            states.len()
        ));
    }
    judge(&stage.receiver, &all)?;
    match canary.count() {
        0 => Ok(()),
        hits => Err(format!(
            "{hits} requests went to an address of the rogue's choice"
        )),
    }
}

async fn states(home: &Home) -> Vec<String> {
    let output = home.output(&["events", "-n", "100000", "--json"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter_map(|line| line["state"].as_str().map(str::to_owned))
        .collect()
}

/// What arrived, beside what was to arrive.
fn judge(
    receiver: &Receiver,
    all: &[(whrelay_proto::frame::WireEvent, Fate)],
) -> Result<(), String> {
    let seen = receiver.seen();
    let mut due: Vec<_> = all
        .iter()
        .filter_map(|(event, fate)| match fate {
            Fate::At(path) => Some((event.body.clone(), path.clone())),
            Fate::Never => None,
        })
        .collect();
    for request in &seen {
        let at = due.iter().position(|(body, _)| *body == request.body);
        let (_, path) = at
            .map(|at| due.swap_remove(at))
            .ok_or(format!("{} came by itself", request.path))?;
        if request.path != path {
            return Err(format!("a request went to {}, not {path}", request.path));
        }
        for name in KEPT_OUT {
            if !request.all(name).is_empty() {
                return Err(format!("a target was sent {name}: {:?}", request.all(name)));
            }
        }
        let once = |name: &str, value: &str| request.all(name) == [value];
        let own = request.event() != "evt_forged" && once("x-whrelay-attempt", "1");
        if !own || !once("host", &receiver.target()) || !once("x-plain", "kept") {
            return Err(format!("a target was sent {:?}", request.headers));
        }
        if request.all("content-length") != [request.body.len().to_string()] {
            return Err(format!(
                "a length was sent of {:?}",
                request.all("content-length")
            ));
        }
    }
    due.first()
        .map_or(Ok(()), |(_, path)| Err(format!("nothing came to {path}")))
}

/// Very many events while the target is away: all of them wait, and nothing is lost.
async fn tiny(stage: &mut Stage) -> Result<(), String> {
    stage.receiver.stop();
    let mut socket = stage.rogue.dial().await?.open().await?;
    socket
        .send(&lies::told(Frame::Welcome(lies::welcome(0))))
        .await;
    let mut sent = 0;
    while sent < TINY {
        let window = u64::from(limits::WINDOW_EVENTS) - TINY_FRAME;
        let room = socket
            .until(WITHIN, |heard| sent - heard.acked.min(sent) <= window)
            .await;
        if !room {
            return Err(format!(
                "{} of {sent} were acknowledged",
                socket.heard.acked
            ));
        }
        let events = (sent + 1..=sent + TINY_FRAME).map(event).collect();
        socket
            .send(&lies::events(sent, sent + TINY_FRAME, events))
            .await;
        sent += TINY_FRAME;
    }
    acked(&mut socket, TINY).await?;
    let held = waiting(&stage.here).await;
    if held != TINY {
        return Err(format!("{held} deliveries wait, not {TINY}"));
    }
    drop(socket);
    stage.restore().await;
    let began = Instant::now();
    let due = TINY + stage.waiting.len() as u64;
    loop {
        let held = waiting(&stage.here).await;
        if held == due {
            return Ok(());
        }
        if began.elapsed() > BACK_WITHIN {
            return Err(format!("{held} deliveries wait, not {due}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Deliveries that wait.
async fn waiting(home: &Home) -> u64 {
    let output = home.output(&["status", "--json"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let count = |line: &Value, key: &str| line[key].as_u64().unwrap_or_default();
    lines
        .map(|line| count(&line, "queued") + count(&line, "stalled"))
        .sum()
}

/// A forwarder that welcomes and then says nothing is taken for dead.
async fn silence(stage: &mut Stage) -> Result<(), String> {
    let mut socket = stage.good_session().await?;
    let began = Instant::now();
    if !socket.until_cut(limits::SILENCE + limits::PING_EVERY).await {
        return Err(format!("it was not noticed for {:?}", began.elapsed()));
    }
    if began.elapsed() < limits::PING_EVERY {
        return Err(format!("it was given up after {:?}", began.elapsed()));
    }
    stage.good_session().await.map(drop)
}

/// Pings without end, whose answers nobody reads.
async fn flood(stage: &mut Stage) -> Result<(), String> {
    let mut socket = stage.good_session().await?;
    let burst = plain(PING, &[7; 125]).repeat(500);
    let sending = async {
        for _ in 0..FLOOD / burst.len() {
            socket.send(&burst).await;
        }
    };
    // It may be held up: that is how it is kept small.
    let _ = timeout(FLOODS_FOR, sending).await;
    drop(socket);
    stage.good_session().await.map(drop)
}
