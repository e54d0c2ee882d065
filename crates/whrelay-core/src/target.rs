//! Where deliveries go: what a person may type for a target, and the URL an event gets there. It
//! must not connect or resolve.

use std::fmt;
use std::str::FromStr;

use url::{Host, Url};

use crate::tail;

/// Why a text is not a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No URL can be made of it.
    #[error("`{0}` is not a target: {1}")]
    NotAUrl(String, String),
    /// A URL, but not http or https.
    #[error("`{0}` is not a target: the scheme `{1}` cannot be delivered to")]
    Scheme(String, String),
    /// It carries a user name, a password or a fragment.
    #[error("`{0}` is not a target: user names, passwords and fragments are not sent")]
    Extras(String),
}

/// An HTTP endpoint that deliveries go to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    url: Url,
    /// The socket it listens on, where it is no port.
    socket: Option<String>,
}

/// The tail would climb out of the target's base path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path could escape the target's base path")]
pub struct Climbs;

impl Target {
    /// Host to connect to.
    pub fn host(&self) -> Host<&str> {
        self.url.host().unwrap_or(Host::Domain("localhost"))
    }

    /// Port to connect to.
    pub fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or(80)
    }

    /// The value of `Host`: the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        match self.url.port() {
            Some(port) => format!("{}:{port}", self.host()),
            None => self.host().to_string(),
        }
    }

    /// Whether it is on this machine by its name or address.
    pub fn is_loopback(&self) -> bool {
        match self.host() {
            Host::Domain(name) => is_localhost(name),
            Host::Ipv4(ip) => ip.is_loopback(),
            Host::Ipv6(ip) => ip.is_loopback(),
        }
    }

    /// Whether it is in a private network by its address, or by a name that public DNS does not
    /// have: one without a dot, or under a suffix that is reserved for such networks.
    pub fn is_private(&self) -> bool {
        match self.host() {
            Host::Domain(name) => is_private_name(name),
            Host::Ipv4(ip) => ip.is_private() || ip.is_link_local() || ip.is_loopback(),
            Host::Ipv6(ip) => {
                ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
            }
        }
    }

    /// The path of the Unix socket to connect to, where it is not host and port.
    pub fn socket(&self) -> Option<&str> {
        self.socket.as_deref()
    }

    /// The URL an event gets here, as people read it: base path, then the tail as raw bytes; the
    /// target's query, then the sender's.
    ///
    /// # Errors
    /// When the tail could climb out of the base path.
    pub fn url_for(&self, event_tail: &str, query: Option<&str>) -> Result<String, Climbs> {
        let path = self.path_for(event_tail, query)?;
        Ok(match &self.socket {
            Some(socket) => format!("unix:{socket}:{path}"),
            None => format!("{}://{}{path}", self.url.scheme(), self.authority()),
        })
    }

    /// The same URL as it is requested: over a socket, of `localhost`.
    ///
    /// # Errors
    /// When the tail could climb out of the base path.
    pub fn request_url(&self, event_tail: &str, query: Option<&str>) -> Result<String, Climbs> {
        let path = self.path_for(event_tail, query)?;
        Ok(format!(
            "{}://{}{path}",
            self.url.scheme(),
            self.authority()
        ))
    }

    fn path_for(&self, event_tail: &str, query: Option<&str>) -> Result<String, Climbs> {
        let rooted = event_tail.is_empty() || event_tail.starts_with('/');
        if !rooted || tail::climbs(event_tail) {
            return Err(Climbs);
        }
        let base = self.url.path();
        let joined = match event_tail {
            "" => base.to_owned(),
            rest => format!("{}{rest}", base.strip_suffix('/').unwrap_or(base)),
        };
        let query = query.filter(|query| !query.is_empty() || self.url.query().is_none());
        let queries: Vec<&str> = self.url.query().into_iter().chain(query).collect();
        let mark = if queries.is_empty() { "" } else { "?" };
        Ok(format!("{joined}{mark}{}", queries.join("&")))
    }

    /// `unix:/path/to/socket`, and maybe a colon and a base path.
    fn over_socket(text: &str, rest: &str) -> Result<Self, TargetError> {
        let (socket, base) = match rest.split_once(":/") {
            Some((socket, base)) => (socket, format!("/{base}")),
            None => (rest, String::new()),
        };
        if !socket.starts_with('/') || socket.contains('\0') {
            let why = "a socket's path begins with /, as in unix:/run/app.sock";
            return Err(TargetError::NotAUrl(text.into(), why.into()));
        }
        let http: Self = format!("http://localhost{base}").parse()?;
        Ok(Self {
            socket: Some(socket.to_owned()),
            ..http
        })
    }
}

/// Whether a name means this machine, whatever a resolver says (RFC 6761 section 6.3).
pub fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or_default();
    last.eq_ignore_ascii_case("localhost")
}

/// RFC 6762 (`local`), RFC 8375 (`home.arpa`) and ICANN's `internal`; `lan` is what routers use.
const PRIVATE_SUFFIXES: [&str; 4] = ["local", "home.arpa", "internal", "lan"];

fn is_private_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_under = |suffix: &&str| {
        let rest = name.strip_suffix(*suffix);
        rest.is_some_and(|rest| rest.ends_with('.'))
    };
    is_localhost(&name) || !name.contains('.') || PRIVATE_SUFFIXES.iter().any(is_under)
}

/// Accepts `3000`, `:3000`, `localhost:3000`, `localhost:3000/base`, `http(s)://host[:port]/base`,
/// `unix:/path/to/socket` and `unix:/path/to/socket:/base`.
impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if let Some(rest) = text.strip_prefix("unix:") {
            return Self::over_socket(text, rest);
        }
        if !text.contains("://") && is_mistyped_port(text) {
            let why = "a port has digits only; http:// makes it a host";
            return Err(TargetError::NotAUrl(text.into(), why.into()));
        }
        let full = if text.contains("://") {
            text.to_owned()
        } else if begins_with_port(text.strip_prefix(':').unwrap_or(text)) {
            format!("http://localhost:{}", text.trim_start_matches(':'))
        } else {
            format!("http://{text}")
        };
        let authority = full
            .split("://")
            .nth(1)
            .and_then(|rest| rest.split(['/', '?']).next());
        if authority.is_some_and(str::is_empty) {
            return Err(TargetError::NotAUrl(
                text.into(),
                "the host is missing".into(),
            ));
        }
        if authority.is_some_and(|a| a.ends_with(':')) {
            return Err(TargetError::NotAUrl(
                text.into(),
                "the port is missing".into(),
            ));
        }
        let url =
            Url::parse(&full).map_err(|e| TargetError::NotAUrl(text.into(), e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(TargetError::Scheme(text.into(), url.scheme().into()));
        }
        if url.port() == Some(0) {
            return Err(TargetError::NotAUrl(
                text.into(),
                "port 0 takes no connections".into(),
            ));
        }
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return Err(TargetError::Extras(text.into()));
        }
        let socket = None;
        Ok(Self { url, socket })
    }
}

/// Whether a text begins as a port does, and is neither that nor an address.
fn is_mistyped_port(text: &str) -> bool {
    let host = text.split(['/', '?', ':']).next().unwrap_or_default();
    let begins = host.starts_with(|c: char| c.is_ascii_digit());
    begins && !host.contains('.') && !host.bytes().all(|b| b.is_ascii_digit())
}

fn begins_with_port(text: &str) -> bool {
    let port = text.split(['/', '?']).next().unwrap_or_default();
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// The target as people read it: without a lone trailing slash.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = self.url.path() == "/" && self.url.query().is_none();
        if let Some(socket) = &self.socket {
            write!(f, "unix:{socket}")?;
            let base = &self.url[url::Position::BeforePath..];
            return if bare { Ok(()) } else { write!(f, ":{base}") };
        }
        let text = self.url.as_str();
        f.write_str(if bare {
            text.trim_end_matches('/')
        } else {
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(text: &str) -> Target {
        text.parse().expect("a target")
    }

    #[test]
    fn every_way_to_type_a_target() {
        for (typed, shown) in [
            ("3000", "http://localhost:3000"),
            (":3000", "http://localhost:3000"),
            ("3000/hook", "http://localhost:3000/hook"),
            ("localhost:3000", "http://localhost:3000"),
            ("localhost:3000/base/", "http://localhost:3000/base/"),
            ("127.0.0.1:80", "http://127.0.0.1"),
            (
                "https://example.test:8443/x?y=1",
                "https://example.test:8443/x?y=1",
            ),
            ("http://[::1]:9/", "http://[::1]:9"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
            ("unix:/run/app.sock:/", "unix:/run/app.sock"),
            (
                "unix:/run/a:b.sock:/base?x=1",
                "unix:/run/a:b.sock:/base?x=1",
            ),
        ] {
            assert_eq!(target(typed).to_string(), shown, "{typed}");
        }
    }

    #[test]
    fn addresses_and_names_that_public_dns_does_not_have_are_private() {
        for (url, is_private) in [
            ("http://10.1.2.3", true),
            ("http://172.31.0.1:80", true),
            ("http://192.168.0.1", true),
            ("http://169.254.1.1", true),
            ("http://[fd00::1]", true),
            ("http://[fe80::1]", true),
            ("http://api", true),
            ("http://NAS.local.", true),
            ("http://a.b.internal", true),
            ("3000", true),
            ("http://example.com", false),
            ("http://local.example", false),
            ("http://notlocal.com", false),
            ("http://8.8.8.8", false),
            ("http://172.32.0.1", false),
            ("http://[2001:db8::1]", false),
        ] {
            assert_eq!(target(url).is_private(), is_private, "{url}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for bad in [
            "",
            "ftp://x",
            ":",
            ":x",
            "localhost:99999",
            "http://",
            "http://a b",
            "http://u:p@h/",
            "3000#x",
            "0",
            "unix:",
            "unix:s",
            "unix::/base",
            "unix:/s:/b#x",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_socket_is_asked_as_localhost_and_shown_as_itself() {
        let socket = target("unix:/run/app.sock:/base");
        let shown = socket.url_for("/x", Some("q=1"));
        assert_eq!(shown.as_deref(), Ok("unix:/run/app.sock:/base/x?q=1"));
        let asked = socket.request_url("/x", Some("q=1"));
        assert_eq!(asked.as_deref(), Ok("http://localhost/base/x?q=1"));
        assert_eq!(socket.socket(), Some("/run/app.sock"));
        assert_eq!(target("3000").socket(), None);
    }

    #[test]
    fn tail_and_query_are_appended_raw() {
        let url = |t: &str, tail, query| target(t).url_for(tail, query).expect("no climb");
        assert_eq!(
            url("localhost:3000/base", "/a%20b/c", Some("x=1&y=%2F&x=2")),
            "http://localhost:3000/base/a%20b/c?x=1&y=%2F&x=2"
        );
        assert_eq!(url("3000", "", None), "http://localhost:3000/");
        assert_eq!(
            url("3000/base/", "/x", None),
            "http://localhost:3000/base/x"
        );
        assert_eq!(
            url("3000/b?k=v", "//x", Some("q")),
            "http://localhost:3000/b//x?k=v&q"
        );
        assert_eq!(url("3000/b?k=v", "", None), "http://localhost:3000/b?k=v");
        assert_eq!(target("3000/b").url_for("/../x", None), Err(Climbs));
        assert_eq!(target("3000").url_for("@evil.test/", None), Err(Climbs));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<Target>();
        }

        #[test]
        fn what_is_shown_is_the_same_target(port in 1u16.., base in "(/[a-z0-9]{1,5}){0,3}/?") {
            let t = target(&format!("localhost:{port}{base}"));
            prop_assert_eq!(target(&t.to_string()), t);
        }
    }
}
