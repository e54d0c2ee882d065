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
pub struct Proxies {
    matcher: Arc<Matcher>,
    /// Hosts and ports of `NO_PROXY` that are named together: the matcher knows hosts alone.
    direct: Arc<[(String, u16)]>,
}

/// Why a forwarder is not asked through the proxy that is set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotThrough {
    /// It is no HTTP proxy.
    #[error(
        "{0} is a SOCKS proxy, which is not supported: name an HTTP proxy, or the forwarder in NO_PROXY"
    )]
    Socks(String),
    /// It would read the token.
    #[error(
        "the proxy {0} would read the token, since the forwarder's address is http: use its https address, or name the \
         forwarder in NO_PROXY"
    )]
    Plain(String),
}

impl Proxies {
    /// None: everything is reached directly.
    pub fn none() -> Self {
        Self::new("", "", "", "")
    }

    /// The proxy for `https://` forwarders, that for `http://` ones, the one for both where those are
    /// empty, and the hosts that are reached without.
    pub fn new(https: &str, http: &str, all: &str, no: &str) -> Self {
        let text = str::to_owned;
        let (mut hosts, mut direct) = (Vec::new(), Vec::new());
        for entry in no
            .split([',', ' ', '\t', '\n'])
            .filter(|entry| !entry.is_empty())
        {
            // `*.corp` and `.corp` are `corp` and what is below it.
            let entry = entry
                .strip_prefix('*')
                .filter(|rest| !rest.is_empty())
                .unwrap_or(entry);
            match entry
                .rsplit_once(':')
                .map(|(host, port)| (host, port.parse()))
            {
                Some((host, Ok(port))) if !host.ends_with(':') && !host.is_empty() => {
                    let host = host.trim_matches(['[', ']']).trim_start_matches('.');
                    direct.push((host.to_ascii_lowercase(), port));
                }
                Some(_) | None => hosts.push(entry),
            }
        }
        let matcher = Matcher::builder()
            .https(text(https))
            .http(text(http))
            .all(text(all))
            .no(hosts.join(","));
        Self {
            matcher: Arc::new(matcher.build()),
            direct: direct.into(),
        }
    }

    /// The proxy on the way to a forwarder. This machine is always reached directly.
    ///
    /// # Errors
    /// When the proxy that is set does not speak HTTP, or would read the token.
    pub(crate) fn toward(&self, forwarder: &Url) -> Result<Option<Intercept>, NotThrough> {
        let Some(proxy) = self.named_for(forwarder) else {
            return Ok(None);
        };
        let is_socks = proxy
            .uri()
            .scheme_str()
            .is_some_and(|scheme| scheme.starts_with("socks"));
        let named = proxy.uri().to_string();
        match forwarder.scheme() {
            _ if is_socks => Err(NotThrough::Socks(named)),
            "http" => Err(NotThrough::Plain(named)),
            _ => Ok(Some(proxy)),
        }
    }

    fn named_for(&self, forwarder: &Url) -> Option<Intercept> {
        let is_here = match forwarder.host()? {
            Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
        };
        let host = forwarder
            .host_str()?
            .trim_matches(['[', ']'])
            .to_ascii_lowercase();
        let port = forwarder.port_or_known_default();
        let is_direct = self.direct.iter().any(|(known, at)| {
            let below = host
                .strip_suffix(known)
                .is_some_and(|rest| rest.ends_with('.'));
            (host == *known || below) && port == Some(*at)
        });
        let uri = forwarder.as_str().parse().ok()?;
        if is_here || is_direct {
            None
        } else {
            self.matcher.intercept(&uri)
        }
    }

    /// What went wrong on the way to a forwarder. What a proxy refuses is not the forwarder's doing.
    pub(crate) fn why(&self, forwarder: &Url, error: &reqwest::Error) -> String {
        let why = crate::error::chain(error);
        match self.toward(forwarder) {
            Ok(Some(proxy)) if error.is_connect() => {
                format!("through the proxy {}: {why}", proxy.uri())
            }
            Ok(_) | Err(_) => why,
        }
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
            "intern.test *.corp, hooks.lab:8443,10.0.0.0/8",
        );
        let through = |url: &str| {
            let proxy = proxies.toward(&url.parse().expect("a URL"));
            proxy.map(|proxy| proxy.map(|proxy| proxy.uri().host().unwrap_or_default().to_owned()))
        };
        for direct in [
            "https://localhost",
            "http://127.9.9.9:1",
            "http://[::1]:1",
            "https://a.intern.test",
            "https://x.corp",
            "https://hooks.lab:8443",
            "https://10.1.2.3",
        ] {
            assert_eq!(through(direct), Ok(None), "{direct}");
        }
        for proxied in ["https://hooks.test", "https://hooks.lab", "https://notcorp"] {
            assert_eq!(through(proxied), Ok(Some("proxy".to_owned())), "{proxied}");
        }
        let plain = through("http://hooks.test");
        assert!(matches!(plain, Err(NotThrough::Plain(_))));
        let socks = Proxies::new("socks5://proxy:1080", "", "", "");
        let socks = socks.toward(&"https://hooks.test".parse().expect("a URL"));
        assert!(matches!(socks, Err(NotThrough::Socks(_))));
        assert!(!format!("{proxies:?}").contains("secret"));
    }
}
