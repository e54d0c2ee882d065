//! Those who send webhooks: well behaved, and raw.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a sender waits after a 503.
const AGAIN: Duration = Duration::from_millis(200);

/// A client that adds nothing of its own.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Sends a body and answers with the event's id.
pub async fn send(url: &str, body: impl Into<reqwest::Body>) -> String {
    let response = client().post(url).body(body).send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    assert!(status.is_success(), "{status}: {text}");
    id_of(&text)
}

/// The same, and sends again after a 503, as providers do: a disk may be slow for a moment.
pub async fn send_again(url: &str, body: Vec<u8>) -> String {
    let (client, began) = (client(), Instant::now());
    loop {
        let response = client.post(url).body(body.clone()).send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        if status.is_success() {
            return id_of(&text);
        }
        let may_wait = status == 503 && began.elapsed() < crate::PATIENCE;
        assert!(may_wait, "{status}: {text}");
        tokio::time::sleep(AGAIN).await;
    }
}

/// The event id in an answer.
pub fn id_of(answer: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(answer).unwrap();
    json["id"].as_str().unwrap().to_owned()
}

/// The path of an input URL.
pub fn path_of(url: &str) -> String {
    url.parse::<url::Url>().unwrap().path().to_owned()
}

/// What came back to raw bytes: the status, and everything.
#[derive(Debug)]
pub struct RawAnswer {
    /// 0 where the connection was closed without a word.
    pub status: u16,
    /// Head and body.
    pub text: String,
}

/// Sends raw bytes and reads until the server closes, or an answer has come and it is silent.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> RawAnswer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(bytes).await;
    read_answer(&mut stream).await
}

/// Reads an answer.
pub async fn read_answer(stream: &mut TcpStream) -> RawAnswer {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let patience = if seen.is_empty() {
            crate::PATIENCE
        } else {
            Duration::from_millis(200)
        };
        match tokio::time::timeout(patience, stream.read(&mut buffer)).await {
            Ok(Ok(n)) if n > 0 => seen.extend_from_slice(&buffer[..n]),
            Ok(_) | Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&seen).into_owned();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    RawAnswer { status, text }
}
