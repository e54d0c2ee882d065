//! Receipts: forged ones, which must move nothing, and a session that a newer one takes over from a
//! half-open connection. It must not judge by what the forwarder says of itself: what a fresh
//! session is sent is the proof.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use whrelay_proto::frame::{Ack, Frame, Hello, RefusedCode, Resume};

use super::frames::hello;
use super::socket::{Gate, Socket, said};

/// The bucket whose receipts are forged.
pub(crate) const VICTIM: &str = "victim";
/// Events in it.
pub(crate) const EVENTS: u64 = 10;
/// Credit that a forger has.
const WINDOW: u32 = 3;
const WITHIN: Duration = Duration::from_secs(12);
/// How soon the newest of two sessions has to be live.
const WINS_WITHIN: Duration = Duration::from_secs(2);

/// What is forged: receipts in turn, and the place that is truly receipted afterwards.
const FORGED: [(&str, &[u64], u64); 8] = [
    ("nothing", &[0], 0),
    ("one beyond what was sent", &[4], 0),
    ("all that is stored", &[EVENTS], 0),
    ("beyond all that is stored", &[EVENTS + 1], 0),
    ("the last place there can be", &[u64::MAX], 0),
    ("going back", &[2, 1], 2),
    ("twice", &[2, 2], 2),
    ("beyond new credit", &[3, 7], 3),
];

/// Tries them all. Answers with how many there were, and what went wrong.
pub(crate) async fn attack(gate: &Gate) -> (u64, Vec<String>) {
    let mut found = Vec::new();
    for (n, (name, acks, place)) in FORGED.into_iter().enumerate() {
        let subscription = format!("forged-{n}");
        let forged = forge(gate, &subscription, acks).await;
        let intact = async { intact(gate, &subscription, place).await };
        let ended = match forged {
            Ok(()) => intact.await,
            forged @ Err(_) => forged,
        };
        found.extend(ended.err().map(|why| format!("an ack, {name}: {why}")));
    }
    let resumes = resumes(gate).await;
    found.extend(resumes.err().map(|why| format!("a resume: {why}")));
    let newest = newest_wins(gate).await;
    found.extend(newest.err().map(|why| format!("two sessions: {why}")));
    (FORGED.len() as u64 + 4, found)
}

async fn begin(gate: &Gate, hello: Hello) -> Result<Socket, String> {
    let mut socket = gate.enter().await?;
    socket.send(&said(Frame::Hello(hello))).await;
    let welcome = socket.until(WITHIN, |heard| heard.welcome.is_some()).await;
    welcome
        .then_some(())
        .ok_or_else(|| format!("not welcome: {:?}", socket.heard.refused))?;
    Ok(socket)
}

async fn ack(socket: &mut Socket, upto: u64) {
    socket.send(&said(Frame::Ack(Ack { upto }))).await;
}

async fn forge(gate: &Gate, subscription: &str, acks: &[u64]) -> Result<(), String> {
    let narrow = Hello {
        window_events: WINDOW,
        ..hello(VICTIM, subscription, None)
    };
    let mut socket = begin(gate, narrow).await?;
    let sent = |heard: &super::socket::Heard| heard.places.len() as u32 == WINDOW;
    if !socket.until(WITHIN, sent).await {
        return Err(format!("{:?} were sent", socket.heard.places));
    }
    for upto in acks {
        ack(&mut socket, *upto).await;
    }
    let cut = socket.until_cut(WITHIN).await;
    match socket.heard.refused {
        Some(refused) if cut && refused.code == RefusedCode::Protocol => Ok(()),
        said => Err(format!("it was taken: closed {cut}, said {said:?}")),
    }
}

/// Whether a fresh session is sent everything after a place, and nothing else.
async fn intact(gate: &Gate, subscription: &str, place: u64) -> Result<(), String> {
    let began = Instant::now();
    let due: Vec<_> = (place + 1..=EVENTS).collect();
    loop {
        let mut socket = begin(gate, hello(VICTIM, subscription, None)).await?;
        socket
            .until(WITHIN, |heard| heard.places.last() == Some(&EVENTS))
            .await;
        let places = &socket.heard.places;
        if *places == due {
            return Ok(());
        }
        // A true ack is recorded beside the tunnel, so a moment later; a forged one never goes
        // away.
        if places.len() < due.len() || began.elapsed() > WITHIN {
            return Err(format!("then {places:?} were sent, not {due:?}"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A place alone acknowledges nothing: of another store, or past the end of this one.
async fn resumes(gate: &Gate) -> Result<(), String> {
    let socket = begin(gate, hello(VICTIM, "asks", None)).await?;
    let own = socket
        .heard
        .welcome
        .map(|welcome| welcome.forwarder)
        .unwrap_or_default();
    for (n, forwarder, seq) in [
        (0, "another", 9),
        (1, "another", u64::MAX),
        (2, &own, EVENTS + 89),
        (3, &own, u64::MAX),
    ] {
        let resume = Resume::at(forwarder, seq);
        let subscription = format!("resumes-{n}");
        let socket = begin(gate, hello(VICTIM, &subscription, Some(resume))).await?;
        let began = socket.heard.welcome.as_ref().map(|welcome| welcome.start);
        if began != Some(0) {
            return Err(format!("{forwarder} {seq} began at {began:?}, not 0"));
        }
        drop(socket);
        intact(gate, &subscription, 0).await?;
    }
    Ok(())
}

/// The older of two sessions neither reads nor closes, as behind a cable that was pulled: the newer
/// one is live at once, and is sent what was in flight once.
async fn newest_wins(gate: &Gate) -> Result<(), String> {
    let mut old = begin(gate, hello(VICTIM, "handover", None)).await?;
    if !old
        .until(WITHIN, |heard| heard.places.len() as u64 == EVENTS)
        .await
    {
        return Err(format!("the older was sent {:?}", old.heard.places));
    }
    ack(&mut old, 4).await;
    let began = Instant::now();
    // What the older one has on disk, whether its ack was read or not.
    let forwarder = old
        .heard
        .welcome
        .as_ref()
        .map(|welcome| welcome.forwarder.clone());
    let resume = forwarder.map(|forwarder| Resume::at(&forwarder, 4));
    let mut new = begin(gate, hello(VICTIM, "handover", resume)).await?;
    if began.elapsed() > WINS_WITHIN {
        return Err(format!("live only after {:?}", began.elapsed()));
    }
    new.until(WITHIN, |heard| heard.places.last() == Some(&EVENTS))
        .await;
    // Where the forwarder had not read the ack, a place alone does not make up for it: then it sends all.
    let due = [5, 1].map(|first| (first..=EVENTS).collect::<Vec<_>>());
    if !due.contains(&new.heard.places) {
        return Err(format!(
            "the newer was sent {:?}, neither of {due:?}",
            new.heard.places
        ));
    }
    let cut = old.until_cut(WITHIN).await;
    let code = old.heard.refused.map(|refused| refused.code);
    match (cut, code) {
        (true, Some(RefusedCode::Replaced)) => {}
        ended => return Err(format!("the older ended with {ended:?}")),
    }
    ack(&mut new, EVENTS).await;
    // Closed only once it was read: a session that comes too early would replace it before.
    let _ = new.stream.shutdown().await;
    new.until_cut(WITHIN).await;
    let again = async |left: u64| {
        let socket = begin(gate, hello(VICTIM, "handover", None)).await?;
        let start = socket.heard.welcome.map(|welcome| welcome.start);
        (start == Some(left))
            .then_some(())
            .ok_or(format!("then it began at {start:?}"))
    };
    loop {
        let ended = again(EVENTS).await;
        if ended.is_ok() || began.elapsed() > WITHIN {
            return ended;
        }
    }
}
