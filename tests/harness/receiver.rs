//! A localhost endpoint that records what reached it, byte for byte, and answers by script. It
//! reads HTTP itself, so that no library tidies up what came.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncBufReadExt, AsyncWrite};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::port::Port;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    /// Method and request target.
    pub method: String,
    /// The request target.
    pub path: String,
    /// The same, as bytes.
    pub target: Vec<u8>,
    /// Header lines, in order, names as on the wire, values as bytes.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
    /// When it had come whole.
    pub at: Instant,
}

impl Received {
    /// All values of a header field.
    pub fn all(&self, name: &str) -> Vec<String> {
        let named = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .collect()
    }

    /// The first value of a header field, or nothing.
    pub fn header(&self, name: &str) -> String {
        self.all(name).into_iter().next().unwrap_or_default()
    }

    /// The event's id.
    pub fn event(&self) -> String {
        self.header("x-whrelay-event-id")
    }
}

/// What to answer.
#[derive(Clone, Debug)]
pub enum Reply {
    /// This status, and a short body.
    Status(u16),
    /// This status and these header lines.
    With(u16, Vec<(&'static str, String)>),
    /// Nothing, for ever.
    Hang,
    /// This status, once the token is cancelled.
    Later(u16, CancellationToken),
    /// Nothing: the connection is closed.
    Close,
    /// These bytes, then the connection is closed.
    Raw(Vec<u8>),
}

type Script = Arc<dyn Fn(&Received) -> Reply + Send + Sync>;

/// A scripted endpoint.
pub struct Receiver {
    port: Port,
    script: Script,
    seen: Arc<Mutex<Vec<Received>>>,
    open: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Receiver {
    /// One that answers 200.
    pub async fn start() -> Self {
        Self::scripted(|_| Reply::Status(200)).await
    }

    /// One that answers by script.
    pub async fn scripted(script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let (script, seen): (Script, _) = (Arc::new(script), Arc::default());
        let (port, open) = (Port::hold(), CancellationToken::new());
        let accepting = serve(&port, &script, &seen, open.clone());
        Self {
            port,
            script,
            seen,
            open,
            accepting,
        }
    }

    /// A target for it.
    pub fn target(&self) -> String {
        format!("localhost:{}", self.port())
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port.address.port()
    }

    /// Closes the port and cuts every connection.
    pub fn stop(&mut self) {
        self.open.cancel();
    }

    /// Opens the port again; answers when.
    pub async fn open_again(&mut self) -> Instant {
        self.stop();
        // The listener is gone when its task is.
        (&mut self.accepting).await.unwrap();
        self.open = CancellationToken::new();
        self.accepting = serve(&self.port, &self.script, &self.seen, self.open.clone());
        Instant::now()
    }

    /// What has come.
    pub fn seen(&self) -> Vec<Received> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests have come.
    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// The ids of the events that have come, in order.
    pub fn events(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(Received::event)
            .collect()
    }
}

fn serve(
    port: &Port,
    script: &Script,
    seen: &Arc<Mutex<Vec<Received>>>,
    open: CancellationToken,
) -> JoinHandle<()> {
    let (listener, script, seen) = (port.listen(), Arc::clone(script), Arc::clone(seen));
    tokio::spawn(async move {
        let accepting = async {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, seen, open) = (Arc::clone(&script), Arc::clone(&seen), open.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = open.cancelled() => {}
                        _ = connection(stream, script, seen) => {}
                    }
                });
            }
        };
        tokio::select! {
            () = open.cancelled() => {}
            () = accepting => {}
        }
    })
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn connection(
    mut stream: TcpStream,
    script: Script,
    seen: Arc<Mutex<Vec<Received>>>,
) -> std::io::Result<()> {
    let (reading, mut writing) = stream.split();
    let mut reading = BufReader::new(reading);
    while let Some(request) = read_request(&mut reading).await? {
        let reply = script(&request);
        seen.lock().unwrap().push(request);
        match reply {
            Reply::Status(status) => answer(&mut writing, status, &[]).await?,
            Reply::With(status, headers) => answer(&mut writing, status, &headers).await?,
            Reply::Hang => std::future::pending().await,
            Reply::Later(status, token) => {
                token.cancelled().await;
                answer(&mut writing, status, &[]).await?;
            }
            Reply::Close => return Ok(()),
            Reply::Raw(bytes) => return writing.write_all(&bytes).await,
        }
    }
    Ok(())
}

async fn answer(
    out: &mut (impl AsyncWrite + Unpin),
    status: u16,
    headers: &[(&str, String)],
) -> std::io::Result<()> {
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let text = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n{lines}\r\nok");
    out.write_all(text.as_bytes()).await
}

async fn read_request(
    reading: &mut (impl AsyncBufReadExt + Unpin),
) -> std::io::Result<Option<Received>> {
    let mut line = Vec::new();
    if reading.read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    let mut parts = line.trim_ascii_end().split(|byte| *byte == b' ');
    let (method, target) = (
        parts.next().unwrap_or_default().to_vec(),
        parts.next().unwrap_or_default().to_vec(),
    );
    let mut headers = Vec::new();
    loop {
        let mut line = Vec::new();
        reading.read_until(b'\n', &mut line).await?;
        let line = line.strip_suffix(b"\r\n").unwrap_or(&line);
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            break;
        };
        let name = String::from_utf8_lossy(&line[..colon]).into_owned();
        headers.push((name, line[colon + 1..].trim_ascii().to_vec()));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut request = Received {
        method: text(&method),
        path: text(&target),
        target,
        headers,
        body: Vec::new(),
        at: Instant::now(),
    };
    let length = request.header("content-length").parse().unwrap_or(0);
    assert_eq!(
        request.header("transfer-encoding"),
        "",
        "bodies are sent with their length"
    );
    request.body.resize(length, 0);
    reading.read_exact(&mut request.body).await?;
    request.at = Instant::now();
    Ok(Some(request))
}
