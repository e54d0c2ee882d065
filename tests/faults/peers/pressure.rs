//! Agents that cost memory: they read a byte a second or never, flood, or say nothing. It must not
//! judge the memory itself: who runs the forwarder reads its size.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use whrelay_core::limits;
use whrelay_proto::frame::{Ack, Frame, Hello};
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::sender;

use super::frames::{PREY, hello};
use super::socket::{Gate, PING, PONG, Socket, masked, said};
use super::{SLACK, Told, ensure, gate_of, most_memory};

/// The bucket of which much waits.
pub(crate) const HEAVY: &str = "heavy";
/// What waits in it.
pub(crate) const HEAVY_EVENTS: usize = 64;
pub(crate) const HEAVY_BODY: usize = 1 << 20;
/// Agents that read slowly, and as many that never do.
const SLOW: usize = 8;
/// Tunnels that read nothing while the largest events wait for them, and how many wait.
const DEAF: usize = 40;
const LARGEST_EVENTS: usize = 4;
/// Events for a tunnel of another bucket meanwhile.
const LIGHT_EVENTS: usize = 200;
/// How long each of these may take. All come from one address: its share of the memory is free again once a tunnel
/// that reads nothing is closed for it.
const SERVED_WITHIN: Duration = limits::TUNNEL_STALLED
    .saturating_mul(2)
    .saturating_add(SLACK);
/// How long all of these may take: the tunnels that read nothing are closed a few at a time, each after its stall.
const ALL_WITHIN: Duration = Duration::from_secs(60);
/// Most memory that they may make the forwarder use, in MB: the budget, an event that is gathered, stored, read or
/// encoded on each of two cores, three times each, and what every process of this size costs.
const DEAF_MEMORY: u64 = 128 + 6 * 26 + 64;
/// Agents that flood, with pings and with pongs.
const FLOODS: usize = 4;
/// What each of them sends, unless it is held up.
const FLOOD: usize = 96 << 20;
/// How long a flood goes on where it is held up.
const FLOODS_FOR: Duration = Duration::from_secs(8);
/// Connections of each kind that say nothing.
const SILENT: usize = 200;
const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// All of it at once. Answers with how many peers there were, and what went wrong.
pub(crate) async fn attack(gate: &Gate) -> (u64, Vec<String>) {
    let (slow, deaf, hailed, unhailed, silent) = tokio::join!(
        join_all((0..SLOW).map(|n| slow(gate, n))),
        join_all((0..SLOW).map(|n| deaf(gate, n))),
        join_all((0..FLOODS).flat_map(|n| [PING, PONG].map(|kind| flood(gate, kind, Some(n))))),
        join_all((0..FLOODS).map(|_| flood(gate, PING, None))),
        silence(gate),
    );
    let ends = [slow, deaf, hailed, unhailed, silent];
    let peers = ends.iter().map(Vec::len).sum::<usize>() as u64;
    (
        peers,
        ends.into_iter().flatten().filter_map(Result::err).collect(),
    )
}

async fn greedy(gate: &Gate, subscription: String) -> Result<Socket, String> {
    let mut socket = gate.enter_narrow().await?;
    let all = Hello {
        window_events: u32::MAX,
        window_bytes: u64::MAX,
        ..hello(HEAVY, &subscription, None)
    };
    socket.send(&said(Frame::Hello(all))).await;
    Ok(socket)
}

/// Reads a byte a second, while all there is waits for it.
async fn slow(gate: &Gate, n: usize) -> Result<(), String> {
    let mut socket = greedy(gate, format!("slow-{n}")).await?;
    let began = Instant::now();
    while began.elapsed() < limits::HEAD_TIMEOUT {
        if socket.stream.read_u8().await.is_err() {
            return Err("a slow reader was cut off before its time".into());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Never reads.
async fn deaf(gate: &Gate, n: usize) -> Result<(), String> {
    let _socket = greedy(gate, format!("deaf-{n}")).await?;
    tokio::time::sleep(limits::HEAD_TIMEOUT).await;
    Ok(())
}

/// Tunnels that read nothing, with a few of the largest events waiting for each of them, beside a tunnel of another
/// bucket that reads. Their forwarder is their own, so that its memory is theirs.
pub(crate) async fn deafness(binary: &str) -> Told {
    let home = Home::new(binary);
    let cloud = Cloud::start(&home).await;
    let gate = gate_of(&cloud);
    let (heavy, light) = (ensure(&gate, HEAVY).await, ensure(&gate, "light").await);
    for _ in 0..LARGEST_EVENTS {
        sender::send_again(&heavy, vec![7; limits::MAX_BODY]).await;
    }
    let mut findings = Vec::new();
    let mut tunnels = Vec::new();
    for n in 0..DEAF {
        match greedy(&gate, format!("deaf-{n}")).await {
            Ok(socket) => tunnels.push(socket),
            Err(why) => findings.push(why),
        }
    }
    let served = timeout(ALL_WITHIN, listens(&gate, &light)).await;
    let late = |_| Err("the tunnel that reads is not served in time".to_owned());
    let slowest = match served.unwrap_or_else(late) {
        Ok(slowest) => slowest,
        Err(why) => {
            findings.push(why);
            Duration::MAX
        }
    };
    let memory = most_memory(cloud.process.pid()).unwrap_or(u64::MAX);
    if memory > DEAF_MEMORY {
        findings.push(format!(
            "the forwarder used {memory} MB, more than {DEAF_MEMORY}"
        ));
    }
    drop(tunnels);
    Told {
        tried: format!("{DEAF} tunnels, {LARGEST_EVENTS} events of 25 MiB for each"),
        counted: format!(
            "the forwarder at {memory} MB at most, {LIGHT_EVENTS} events through another tunnel, each within {} ms",
            slowest.as_millis()
        ),
        findings,
    }
}

/// An agent that reads and acknowledges, and gets what is sent while it does. Answers how long the slowest event took.
async fn listens(gate: &Gate, url: &str) -> Result<Duration, String> {
    let mut slowest = Duration::ZERO;
    let mut socket = gate.enter().await?;
    let hello = hello("light", "reads", None);
    socket.send(&said(Frame::Hello(hello))).await;
    for n in 1..=LIGHT_EVENTS {
        let sent = Instant::now();
        sender::send_again(url, vec![1; 2000]).await;
        if !socket
            .until(SERVED_WITHIN, |heard| heard.places.len() == n)
            .await
        {
            return Err(format!("event {n} of another tunnel did not come"));
        }
        slowest = slowest.max(sent.elapsed());
        socket.send(&said(Frame::Ack(Ack { upto: n as u64 }))).await;
    }
    Ok(slowest)
}

/// Sends control frames, after a hello or without one, and never reads what they are answered with.
async fn flood(gate: &Gate, kind: u8, hail: Option<usize>) -> Result<(), String> {
    let mut socket = gate.enter_narrow().await?;
    if let Some(n) = hail {
        let hello = hello(PREY, &format!("flood-{kind}-{n}"), None);
        socket.send(&said(Frame::Hello(hello))).await;
    }
    let frame = masked(kind, &[7; 125]);
    let burst = frame.repeat(500);
    let sending = async {
        for _ in 0..FLOOD / burst.len() {
            if socket.stream.write_all(&burst).await.is_err() {
                break;
            }
        }
    };
    // It may be held up, or cut off: both are fine.
    let _ = timeout(FLOODS_FOR, sending).await;
    Ok(())
}

/// Peers that say nothing, or only half of what they have to: all are cut off.
async fn silence(gate: &Gate) -> Vec<Result<(), String>> {
    let (mut tunnels, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..SILENT {
        tunnels.push(gate.enter().await);
        for begun in ["", "GET /v1/tunnel HTTP/1.1\r\nHost: x\r\n"] {
            bare.push(begin(gate, begun).await);
        }
        // Once this is answered, those before it have been accepted: a connection that the listen
        // queue has no room for is open at this end only.
        let _ = sender::raw(gate.address, HEALTH).await;
    }
    let tunnels = join_all(tunnels.into_iter().map(|tunnel| async {
        let cut = tunnel?.until_cut(limits::HELLO_TIMEOUT + SLACK).await;
        cut.then_some(())
            .ok_or_else(|| "a tunnel without a hello stays open".to_owned())
    }));
    let bare = join_all(bare.into_iter().map(|begun| async {
        let mut stream = begun?;
        let closed = async { while let Ok(1..) = stream.read(&mut [0; 256]).await {} };
        let cut = timeout(limits::HEAD_TIMEOUT + SLACK, closed).await;
        cut.map_err(|_| "half a request stays open".to_owned())
    }));
    let (tunnels, bare) = tokio::join!(tunnels, bare);
    tunnels.into_iter().chain(bare).collect()
}

async fn begin(gate: &Gate, begun: &str) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(gate.address).await;
    let mut stream = stream.map_err(|error| error.to_string())?;
    let said = stream.write_all(begun.as_bytes()).await;
    said.map_err(|error| error.to_string())?;
    Ok(stream)
}
