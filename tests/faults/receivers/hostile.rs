//! A receiver that does what a mode says to an event's first requests, over bare TCP, and keeps a
//! ledger of what it was asked. It must not know what the product makes of that.

use std::collections::HashMap;
use std::io;
use std::net::Ipv6Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::modes::{Mode, Reads, Seen, Step};

/// Requests of an event that meet its mode; the next is answered as it should be.
pub(crate) const MISBEHAVES: usize = 2;
const FRIENDLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Bytes of a body that are read at once by one that reads slowly.
const SIP: usize = 64 << 10;
const BETWEEN_SIPS: Duration = Duration::from_millis(100);
/// Between blocks of what has no end, so that floods leave a busy machine some time.
const BREATH: Duration = Duration::from_millis(1);

/// One request that came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) event: String,
    pub(crate) attempt: u64,
    /// What the product has to have seen of it.
    pub(crate) seen: Seen,
    /// Whether it met its own mode.
    pub(crate) own: bool,
    pub(crate) replay: bool,
}

/// What a receiver knows and remembers.
pub(crate) struct Ledger {
    modes: HashMap<&'static str, Mode>,
    canary: u16,
    asked: Mutex<Vec<Asked>>,
    /// The most that one answer without an end could say before the connection was closed, in bytes.
    most_said: AtomicU64,
    betrayed: AtomicU64,
    /// Connections on which nothing is done until the attack is over.
    held: AtomicU64,
    over: CancellationToken,
}

impl Ledger {
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn most_said(&self) -> u64 {
        self.most_said.load(Ordering::Relaxed)
    }

    /// Requests that were left without an answer on a connection that had had one.
    pub(crate) fn betrayed(&self) -> u64 {
        self.betrayed.load(Ordering::Relaxed)
    }

    /// Says that the attack is over: connections that were left alone are read to their end.
    pub(crate) fn end(&self) {
        self.over.cancel();
    }

    /// Connections that were left alone and have no end: the other side keeps them.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::SeqCst)
    }

    /// Notes a request; answers with the mode it meets.
    fn note(&self, head: &Head) -> Option<Mode> {
        let mode = self.modes.get(head.path.trim_start_matches('/')).copied();
        let mut asked = self.asked.lock().unwrap();
        let before = asked.iter().filter(|asked| asked.event == head.event);
        let met = mode.filter(|_| before.count() < MISBEHAVES && !head.replay);
        let seen = met.map_or(Seen::Status(200), |mode| mode.seen);
        asked.push(head.asked(seen, met.is_some()));
        met
    }

    fn note_betrayed(&self, head: &Head) {
        self.betrayed.fetch_add(1, Ordering::Relaxed);
        self.asked
            .lock()
            .unwrap()
            .push(head.asked(Seen::Broken, false));
    }
}

/// A receiver on `::1` alone.
pub(crate) struct Hostile {
    port: u16,
    pub(crate) ledger: Arc<Ledger>,
}

impl Hostile {
    /// One that knows these modes, and leads away to a port.
    pub(crate) async fn start(modes: &[Mode], canary: u16) -> Self {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ledger = Arc::new(Ledger {
            modes: modes.iter().map(|mode| (mode.name, *mode)).collect(),
            canary,
            asked: Mutex::default(),
            most_said: AtomicU64::default(),
            betrayed: AtomicU64::default(),
            held: AtomicU64::default(),
            over: CancellationToken::new(),
        });
        let kept = Arc::clone(&ledger);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let ledger = Arc::clone(&ledger);
                // A connection that the other side closes has ended as it should.
                tokio::spawn(async move { serve(stream, &ledger).await.ok() });
            }
        });
        Self { port, ledger: kept }
    }

    pub(crate) fn target(&self) -> String {
        format!("localhost:{}", self.port)
    }
}

/// A request's head.
struct Head {
    path: String,
    event: String,
    attempt: u64,
    replay: bool,
    /// Bytes of the head and of the body.
    length: (usize, usize),
}

impl Head {
    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            let value = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
            value.map_or("", |(_, value)| value.trim())
        };
        Self {
            path: text.split(' ').nth(1).unwrap_or_default().to_owned(),
            event: field("x-whrelay-event-id").to_owned(),
            attempt: field("x-whrelay-attempt").parse().unwrap_or(0),
            replay: !field("x-whrelay-replay").is_empty(),
            length: (text.len(), field("content-length").parse().unwrap_or(0)),
        }
    }

    /// Waits for a request, and leaves it where it is; `None` where the other side has closed.
    async fn peek(stream: &TcpStream) -> io::Result<Option<Self>> {
        let mut buffer = vec![0; 8192];
        loop {
            let seen = stream.peek(&mut buffer).await?;
            if seen == 0 {
                return Ok(None);
            }
            if let Some(end) = buffer[..seen]
                .windows(4)
                .position(|four| four == b"\r\n\r\n")
            {
                let text = String::from_utf8_lossy(&buffer[..end + 4]).into_owned();
                return Ok(Some(Self::parse(&text)));
            }
            tokio::task::yield_now().await;
        }
    }

    fn asked(&self, seen: Seen, own: bool) -> Asked {
        Asked {
            event: self.event.clone(),
            attempt: self.attempt,
            seen,
            own,
            replay: self.replay,
        }
    }
}

async fn serve(mut stream: TcpStream, ledger: &Ledger) -> io::Result<()> {
    stream.set_nodelay(true)?;
    while let Some(head) = Head::peek(&stream).await? {
        let met = ledger.note(&head);
        read(
            &mut stream,
            &head,
            met.map_or(Reads::Whole, |mode| mode.reads),
        )
        .await?;
        let goes_on = match met {
            Some(mode) => act(&mut stream, &mode, ledger).await?,
            None => {
                stream.write_all(FRIENDLY).await?;
                true
            }
        };
        if !goes_on {
            break;
        }
    }
    Ok(())
}

async fn read(stream: &mut TcpStream, head: &Head, reads: Reads) -> io::Result<()> {
    let mut left = head.length.0 + head.length.1;
    let mut buffer = vec![0; left.min(SIP)];
    match reads {
        Reads::Nothing => return Ok(()),
        Reads::Whole | Reads::Slowly => {}
    }
    while left > 0 {
        let sip = buffer.len().min(left);
        left -= stream.read_exact(&mut buffer[..sip]).await?;
        if let Reads::Slowly = reads {
            tokio::time::sleep(BETWEEN_SIPS).await;
        }
    }
    Ok(())
}

/// Does what a mode says. Answers whether the connection goes on.
async fn act(stream: &mut TcpStream, mode: &Mode, ledger: &Ledger) -> io::Result<bool> {
    for step in mode.steps {
        match *step {
            Step::Say(bytes) => stream.write_all(bytes).await?,
            Step::Times(count, bytes) => stream.write_all(&bytes.repeat(count)).await?,
            Step::Forever(bytes) => say_for_ever(stream, bytes, mode, ledger).await?,
            Step::Drip(pause, bytes) => {
                for byte in bytes {
                    stream.write_all(&[*byte]).await?;
                    tokio::time::sleep(pause).await;
                }
            }
            Step::Status(status) => {
                let line = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(line.as_bytes()).await?;
            }
            Step::Lead => {
                let line = format!("Location: http://localhost:{}/\r\n\r\n", ledger.canary);
                stream.write_all(line.as_bytes()).await?;
            }
            Step::Ahead(seconds) => {
                let line = format!("Retry-After: {}\r\n\r\n", date_ahead(seconds));
                stream.write_all(line.as_bytes()).await?;
            }
            Step::Pause(pause) => tokio::time::sleep(pause).await,
            Step::Hang => {
                hold(stream, ledger).await;
                return Ok(false);
            }
            Step::Reset => {
                stream.set_zero_linger()?;
                return Ok(false);
            }
            Step::Betray => {
                if let Some(head) = Head::peek(stream).await? {
                    ledger.note_betrayed(&head);
                }
                return Ok(false);
            }
            Step::Next => return Ok(true),
        }
    }
    Ok(false)
}

async fn hold(stream: &mut TcpStream, ledger: &Ledger) {
    ledger.held.fetch_add(1, Ordering::SeqCst);
    ledger.over.cancelled().await;
    // Whether it ends with a word or with a reset, the other side has let it go.
    let _ = tokio::io::copy(stream, &mut tokio::io::sink()).await;
    ledger.held.fetch_sub(1, Ordering::SeqCst);
}

async fn say_for_ever(
    stream: &mut TcpStream,
    bytes: &[u8],
    mode: &Mode,
    ledger: &Ledger,
) -> io::Result<()> {
    let block = bytes.repeat(SIP.div_ceil(bytes.len()));
    let mut said = 0;
    loop {
        stream.write_all(&block).await?;
        said += block.len() as u64;
        if let Seen::Status(_) = mode.seen {
            ledger.most_said.fetch_max(said, Ordering::Relaxed);
        }
        tokio::time::sleep(BREATH).await;
    }
}

fn date_ahead(seconds: u8) -> String {
    let (ahead, form) = (format!("+{seconds} seconds"), "+%a, %d %b %Y %H:%M:%S GMT");
    let mut date = Command::new("date");
    let output = date
        .env("LC_ALL", "C")
        .args(["-u", "-d", &ahead, form])
        .output();
    String::from_utf8(output.unwrap().stdout)
        .unwrap()
        .trim()
        .to_owned()
}
