//! TCP connections to targets. It must not know what is sent over them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use whrelay_core::limits;

/// No connection came about: every address that was tried, and why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct DialError(String);

/// Connects to one host and port. `localhost` means both loopback addresses, and the one that
/// accepted is tried first from then on.
#[derive(Debug)]
pub struct Dialer {
    host: String,
    port: u16,
    winner: Mutex<Option<IpAddr>>,
}

impl Dialer {
    /// For a host (a name or an address, IPv6 with or without brackets) and port.
    pub fn new(host: &str, port: u16) -> Self {
        let host = host.trim_matches(['[', ']']).to_owned();
        Self {
            host,
            port,
            winner: Mutex::new(None),
        }
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
        Err(DialError(failures.join("; ")))
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let winner = *self
            .winner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut addresses: Vec<SocketAddr> = if self.host == "localhost" {
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
        let port = {
            let server = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
            server.local_addr().expect("an address").port()
        };
        let error = Dialer::new("localhost", port)
            .dial()
            .await
            .expect_err("refused")
            .to_string();
        let expected =
            format!("[::1]:{port}: connection refused; 127.0.0.1:{port}: connection refused");
        assert_eq!(error, expected);
    }

    #[tokio::test]
    async fn an_unknown_host_is_an_error_not_a_hang() {
        let error = Dialer::new("no-such-host.invalid", 80)
            .dial()
            .await
            .expect_err("unknown");
        assert!(
            error.to_string().starts_with("no-such-host.invalid:80: "),
            "{error}"
        );
    }
}
