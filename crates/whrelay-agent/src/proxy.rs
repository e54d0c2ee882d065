//! Proxies on the way to the forwarder. It must not read the environment, and nothing goes to a target
//! through one.

use std::sync::Arc;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::net::TcpStream;
use tower_service::Service;
use url::{Host, Url};
use whrelay_core::limits;

/// Which proxies are used, in the words of `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
#[derive(Clone, Debug)]
pub struct Proxies(Arc<Matcher>);

impl Proxies {
    /// None: everything is reached directly.
    pub fn none() -> Self {
        Self::new("", "", "", "")
    }

    /// The proxy for `https://` forwarders, that for `http://` ones, the one for both where those are
    /// empty, and the hosts that are reached without.
    pub fn new(https: &str, http: &str, all: &str, no: &str) -> Self {
        let text = str::to_owned;
        let matcher = Matcher::builder()
            .https(text(https))
            .http(text(http))
            .all(text(all))
            .no(text(no));
        Self(Arc::new(matcher.build()))
    }

    /// The proxy on the way to a forwarder. This machine is always reached directly.
    pub(crate) fn toward(&self, forwarder: &Url) -> Option<Intercept> {
        let here = match forwarder.host()? {
            Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
        };
        let uri = forwarder.as_str().parse().ok()?;
        if here { None } else { self.0.intercept(&uri) }
    }
}

/// A connection to `host:port` through a proxy (`CONNECT`, RFC 9110 section 9.3.6).
pub(crate) async fn connect(
    proxy: &Intercept,
    host: &str,
    port: u16,
) -> Result<TcpStream, Box<dyn std::error::Error + Send + Sync>> {
    let mut dialer = HttpConnector::new();
    dialer.set_connect_timeout(Some(limits::CONNECT_TIMEOUT));
    let mut tunnel = Tunnel::new(proxy.uri().clone(), dialer);
    if let Some(auth) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(auth.clone());
    }
    let connected = tunnel.call(format!("{host}:{port}").parse()?).await;
    let through = |e| format!("through the proxy {}: {e}", proxy.uri());
    let connected = connected.map_err(|e| through(crate::error::chain(&e)))?;
    Ok(connected.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_and_named_hosts_are_reached_directly() {
        let proxies = Proxies::new(
            "http://user:secret@proxy:3128",
            "",
            "http://other:1",
            "intern.test",
        );
        let through = |url: &str| {
            let proxy = proxies.toward(&url.parse().expect("a URL"));
            proxy.map(|proxy| proxy.uri().host().unwrap_or_default().to_owned())
        };
        for direct in [
            "https://localhost",
            "http://127.9.9.9:1",
            "http://[::1]:1",
            "https://a.intern.test",
        ] {
            assert_eq!(through(direct), None, "{direct}");
        }
        assert_eq!(through("https://hooks.test").as_deref(), Some("proxy"));
        assert_eq!(through("http://hooks.test").as_deref(), Some("other"));
        assert!(!format!("{proxies:?}").contains("secret"));
    }
}
