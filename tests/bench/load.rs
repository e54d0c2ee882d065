//! A closed loop of senders that cost as little as possible: one prepared request, sent again as
//! soon as it is answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The body of every request, in bytes.
pub(crate) const BODY: usize = 1024;

/// A POST of [`BODY`] bytes to a path.
pub(crate) fn request(path: &str) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
         User-Agent: bench\r\nContent-Length: {BODY}\r\n\r\n"
    );
    [head.into_bytes(), vec![b'x'; BODY]].concat()
}

/// Sends once and waits for the whole answer.
pub(crate) async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) {
    stream.write_all(request).await.unwrap();
    buffer.clear();
    loop {
        stream.read_buf(buffer).await.unwrap();
        if let Some(end) = find(buffer, b"\r\n\r\n") {
            let head = std::str::from_utf8(&buffer[..end])
                .unwrap()
                .to_ascii_lowercase();
            assert!(head.starts_with("http/1.1 200"), "{head}");
            let length = head.split("content-length: ").nth(1).unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            if buffer.len() >= end + 4 + length {
                return;
            }
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// Exchanges per second over so many connections.
pub(crate) async fn rate(to: SocketAddr, path: &str, connections: usize, time: Duration) -> f64 {
    let (count, request) = (Arc::new(AtomicU64::new(0)), Arc::new(request(path)));
    let began = Instant::now();
    let senders: Vec<_> = (0..connections)
        .map(|_| {
            let (count, request) = (Arc::clone(&count), Arc::clone(&request));
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(to).await.unwrap();
                stream.set_nodelay(true).unwrap();
                let mut buffer = Vec::with_capacity(1024);
                while began.elapsed() < time {
                    exchange(&mut stream, &request, &mut buffer).await;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

/// The value below which so many of a hundred lie.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}
