//! A server that looks like a forwarder and is none: whoever holds it decides how each dial is met.
//! It must not know which answers are lies.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use whrelay_proto::SUBPROTOCOL;

use super::socket::{Socket, read_head};

/// Longest wait for an agent that dials again: its pause, and a busy machine.
const DIALS_WITHIN: Duration = Duration::from_secs(20);

/// What somebody who dials is met with.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// These bytes, and the connection is closed.
    Bytes(Vec<u8>),
    /// These bytes, and more without end.
    Endless(Vec<u8>),
    /// Nothing, for ever.
    Silence,
    /// A tunnel, and in it these bytes once the agent has said hello.
    Tunnel(Vec<u8>),
}

/// A rogue at an address.
pub(crate) struct Rogue {
    pub(crate) address: SocketAddr,
    dials: mpsc::Receiver<Dial>,
    accepting: JoinHandle<()>,
}

/// An agent that asks for a tunnel.
pub(crate) struct Dial {
    stream: TcpStream,
    key: String,
}

/// The answer of a proper forwarder to somebody who asks for a bucket.
pub(crate) fn bucket_answer() -> Answer {
    let body = r#"{"name":"default","url":"http://127.0.0.1:1/in/default-x"}"#;
    Answer::Bytes(http("200 OK", "Content-Type: application/json\r\n", body))
}

/// An answer of HTTP, as bytes.
pub(crate) fn http(status: &str, fields: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{fields}\r\n{body}").into_bytes()
}

impl Rogue {
    /// Serves at an address: whoever asks for a bucket gets this answer.
    pub(crate) async fn start(address: SocketAddr, bucket: Answer) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dialled, dials) = mpsc::channel(16);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(meet(stream, bucket.clone(), dialled.clone()));
            }
        });
        Self {
            address,
            dials,
            accepting,
        }
    }

    /// Waits for an agent that asks for a tunnel.
    pub(crate) async fn dial(&mut self) -> Result<Dial, String> {
        let dial = timeout(DIALS_WITHIN, self.dials.recv()).await;
        dial.ok()
            .flatten()
            .ok_or_else(|| "the agent did not dial".to_owned())
    }

    /// Gives its address free, and lets go of everybody who waits.
    pub(crate) async fn close(&mut self) {
        self.accepting.abort();
        // It ends only because it was told to.
        let _ = (&mut self.accepting).await;
        self.dials.close();
        while self.dials.try_recv().is_ok() {}
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn meet(mut stream: TcpStream, bucket: Answer, dialled: mpsc::Sender<Dial>) {
    let head = read_head(&mut stream).await;
    if head.starts_with("PUT /v1/buckets/") {
        return give(stream, &bucket).await;
    }
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key")
            .then(|| value.trim().to_owned())
    });
    if let Some(key) = key {
        // Nobody may be left to be told.
        let _ = dialled.send(Dial { stream, key }).await;
    }
}

async fn give(mut stream: TcpStream, answer: &Answer) {
    // The agent may hang up at any time.
    match answer {
        Answer::Bytes(bytes) | Answer::Tunnel(bytes) => {
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
        }
        Answer::Endless(bytes) => {
            let _ = stream.write_all(bytes).await;
            let more = vec![b'a'; 1 << 20];
            while stream.write_all(&more).await.is_ok() {}
        }
        Answer::Silence => {
            let _ = stream.readable().await;
            std::future::pending().await
        }
    }
}

impl Dial {
    /// Opens a tunnel, as a proper forwarder does, and reads the hello.
    pub(crate) async fn open(self) -> Result<Socket, String> {
        let Self { mut stream, key } = self;
        let head = switching(&derive_accept_key(key.as_bytes()), SUBPROTOCOL);
        stream
            .write_all(&head)
            .await
            .map_err(|error| error.to_string())?;
        let mut socket = Socket::of_server(stream);
        let hello = socket
            .until(DIALS_WITHIN, |heard| heard.hello.is_some())
            .await;
        hello
            .then_some(socket)
            .ok_or_else(|| "the agent said no hello".to_owned())
    }

    /// Meets it with an answer, until the agent hangs up or no more is needed.
    pub(crate) async fn meet(self, answer: &Answer) -> Result<Option<Socket>, String> {
        match answer {
            Answer::Tunnel(bytes) => {
                let mut socket = self.open().await?;
                socket.send(bytes).await;
                Ok(Some(socket))
            }
            Answer::Bytes(bytes) => {
                let key = derive_accept_key(self.key.as_bytes());
                let text = String::from_utf8_lossy(bytes).replace("ACCEPT", &key);
                give(self.stream, &Answer::Bytes(text.into_bytes())).await;
                Ok(None)
            }
            Answer::Endless(_) => {
                give(self.stream, answer).await;
                Ok(None)
            }
            Answer::Silence => {
                let mut socket = Socket::of_server(self.stream);
                let left = socket.until_cut(DIALS_WITHIN).await;
                left.then_some(None)
                    .ok_or_else(|| "the agent waits for ever".to_owned())
            }
        }
    }
}

/// The head that opens a tunnel.
pub(crate) fn switching(accept: &str, subprotocol: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    )
    .into_bytes()
}
