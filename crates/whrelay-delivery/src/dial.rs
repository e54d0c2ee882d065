//! Connections to targets. It must not know what is sent over them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
#[cfg(unix)]
use tokio_util::either::Either;
use whrelay_core::limits;
use whrelay_core::target::{Target, is_localhost};

/// A connection.
#[cfg(unix)]
pub(crate) type Stream = Either<TcpStream, UnixStream>;
/// A connection.
#[cfg(not(unix))]
pub(crate) type Stream = TcpStream;

/// A connection as hyper wants it.
pub(crate) struct Socket(pub(crate) Stream);

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// No connection came about: every address that was tried, and why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct DialError(String);

/// The way to a target.
#[derive(Debug)]
pub(crate) enum Way {
    /// Over its host and port.
    Host(Dialer),
    /// Over the Unix socket of this path.
    Socket(String),
}

impl Way {
    pub(crate) fn to(target: &Target) -> Self {
        match target.socket() {
            Some(socket) => Self::Socket(socket.to_owned()),
            None => Self::Host(Dialer::new(&target.host().to_string(), target.port())),
        }
    }

    /// Connects within a time.
    ///
    /// # Errors
    /// As [`Dialer::dial_within`].
    pub(crate) async fn dial_within(&self, time: Duration) -> Result<Stream, DialError> {
        match self {
            Self::Socket(socket) => dial_socket(socket, time).await,
            Self::Host(dialer) => {
                let stream = dialer.dial_within(time).await?;
                #[cfg(unix)]
                let stream = Either::Left(stream);
                Ok(stream)
            }
        }
    }
}

/// Connects to one host and port. `localhost` means both loopback addresses, and the one that
/// accepted is tried first from then on.
#[derive(Debug)]
pub struct Dialer {
    host: String,
    port: u16,
    winner: Mutex<Option<IpAddr>>,
    /// Whether it was said what `localhost` is in a container.
    hinted: AtomicBool,
}

impl Dialer {
    /// For a host (a name or an address, IPv6 with or without brackets) and port.
    pub fn new(host: &str, port: u16) -> Self {
        let host = host.trim_matches(['[', ']']).to_owned();
        Self {
            host,
            port,
            winner: Mutex::new(None),
            hinted: AtomicBool::new(false),
        }
    }

    /// Tries 127.0.0.1 before ::1, for `localhost`: a forwarder listens there, and another user of the machine may at
    /// the other address.
    #[must_use]
    pub fn v4_first(self) -> Self {
        self.remember(Ipv4Addr::LOCALHOST.into());
        self
    }

    /// Connects within [`limits::CONNECT_TIMEOUT`].
    ///
    /// # Errors
    /// As [`Dialer::dial_within`].
    pub async fn dial(&self) -> Result<TcpStream, DialError> {
        self.dial_within(limits::CONNECT_TIMEOUT).await
    }

    /// Connects. Each address gets its share of the time, so that one that is silent does not use
    /// up that of the others.
    ///
    /// # Errors
    /// When no address accepted in time: it names each.
    pub async fn dial_within(&self, time: Duration) -> Result<TcpStream, DialError> {
        let deadline = Instant::now() + time;
        let named = |error: &dyn std::fmt::Display| {
            DialError(format!("{}:{}: {error}", self.host, self.port))
        };
        let resolved = timeout_at(deadline, self.addresses()).await;
        let addresses = resolved.map_err(|e| named(&e))?.map_err(|e| named(&e))?;
        let (mut failures, count) = (Vec::new(), addresses.len());
        for (tried, address) in addresses.into_iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(count - tried).unwrap_or(u32::MAX);
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    self.remember(address.ip());
                    // Small requests must not wait for acknowledgements; without it they only do.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => failures.push(format!("{address}: {}", reason(&error))),
                Err(_) => failures.push(format!("{address}: timed out")),
            }
        }
        let mut said = failures.join("; ");
        // Once is enough: every attempt would repeat it.
        if is_localhost(&self.host) && in_container() && !self.hinted.swap(true, Relaxed) {
            said += IN_A_CONTAINER;
        }
        Err(DialError(said))
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let winner = *self
            .winner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut addresses: Vec<SocketAddr> = if is_localhost(&self.host) {
            let both = [
                IpAddr::from(Ipv6Addr::LOCALHOST),
                IpAddr::from(Ipv4Addr::LOCALHOST),
            ];
            both.map(|ip| SocketAddr::new(ip, self.port)).to_vec()
        } else {
            lookup_host((self.host.as_str(), self.port))
                .await?
                .collect()
        };
        addresses.sort_by_key(|address| Some(address.ip()) != winner);
        Ok(addresses)
    }

    fn remember(&self, ip: IpAddr) {
        *self
            .winner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(ip);
    }
}

#[cfg(unix)]
async fn dial_socket(socket: &str, time: Duration) -> Result<Stream, DialError> {
    match timeout(time, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => Ok(Either::Right(stream)),
        Ok(Err(error)) => Err(DialError(format!("{socket}: {}", reason(&error)))),
        Err(_) => Err(DialError(format!("{socket}: timed out"))),
    }
}

#[cfg(not(unix))]
async fn dial_socket(socket: &str, _: Duration) -> Result<Stream, DialError> {
    Err(DialError(format!(
        "{socket}: this system has no such sockets"
    )))
}

const IN_A_CONTAINER: &str =
    " (localhost is this container; its host is often called host.docker.internal)";

/// Whether this process is in a container, as the runtimes mark it.
fn in_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"]
        .iter()
        .any(|mark| Path::new(mark).exists())
}

fn reason(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return "connection refused".to_owned();
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn free_port() -> u16 {
        let server = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        server.local_addr().expect("an address").port()
    }

    #[tokio::test]
    async fn localhost_finds_a_server_on_either_address_and_remembers_it() {
        for ip in ["127.0.0.1", "::1"] {
            let server = TcpListener::bind((ip, 0)).await.expect("a port");
            let address = server.local_addr().expect("an address");
            let dialer = Dialer::new("localhost", address.port());
            let stream = dialer.dial().await.expect("connected");
            assert_eq!(stream.peer_addr().expect("a peer"), address);
            assert_eq!(dialer.addresses().await.expect("resolved")[0], address);
        }
    }

    #[tokio::test]
    async fn a_refusal_names_every_address() {
        let port = free_port().await;
        let refused = Dialer::new("localhost", port).dial().await;
        let error = refused.expect_err("refused").to_string();
        let expected =
            format!("[::1]:{port}: connection refused; 127.0.0.1:{port}: connection refused");
        let said = if in_container() { IN_A_CONTAINER } else { "" };
        assert_eq!(error, expected + said);
    }

    #[tokio::test]
    async fn an_unknown_host_is_an_error_not_a_hang() {
        let unknown = Dialer::new("no-such-host.invalid", 80).dial().await;
        let error = unknown.expect_err("unknown").to_string();
        assert!(error.starts_with("no-such-host.invalid:80: "), "{error}");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_socket_is_connected_to_and_one_that_is_missing_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("app.sock");
        let target = format!("unix:{}:/base", path.display());
        let way = Way::to(&target.parse().expect("a target"));
        let dial = || way.dial_within(limits::PROBE_TIMEOUT);
        let missing = dial().await.expect_err("missing").to_string();
        assert!(
            missing.starts_with(&path.display().to_string()),
            "{missing}"
        );
        let _server = tokio::net::UnixListener::bind(&path).expect("a socket");
        assert!(dial().await.is_ok());
    }

    #[tokio::test]
    async fn a_forwarder_on_localhost_is_asked_at_127_0_0_1_first() {
        let v4 = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = v4.local_addr().expect("bound").port();
        let _other_user = TcpListener::bind(("::1", port)).await.expect("the port");
        let dialed = Dialer::new("localhost", port).v4_first().dial().await;
        let peer = dialed.expect("connected").peer_addr().expect("a peer");
        assert!(peer.is_ipv4(), "{peer}");
    }
}
