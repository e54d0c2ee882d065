//! Values as they are typed. It must not know which flag they are for.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use url::Url;
use whrelay_core::duration;
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::route::Prefix;
use whrelay_delivery::Trust;

/// Something an event has to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Matcher {
    Path(Prefix),
    Method(String),
    Kind(String),
}

pub(super) fn matcher(text: &str) -> Result<Matcher, String> {
    match text.split_once('=') {
        Some(("path", path)) => {
            let prefix = path.parse::<Prefix>();
            prefix.map(Matcher::Path).map_err(|e| e.to_string())
        }
        Some(("method", method)) => Ok(Matcher::Method(method.to_uppercase())),
        Some(("kind", kind)) => Ok(Matcher::Kind(kind.to_owned())),
        Some(_) | None => Err("use path=/…, method=… or kind=…".into()),
    }
}

/// A share, in percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Percent(pub(crate) u8);

pub(super) fn percent(text: &str) -> Result<Percent, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse();
    let percent = number.ok().filter(|percent| *percent <= 100);
    percent
        .map(Percent)
        .ok_or_else(|| "use 0% to 100%".to_owned())
}

/// A path with `~` at its beginning as shells read it: they leave it in `--flag=~/x`, files and the environment.
pub(crate) fn expanded(path: PathBuf) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        (_, _) => path,
    }
}

/// Which program makes the URL public.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PublicBy {
    /// The first that is installed: cloudflared, then ngrok.
    Any,
    Cloudflared,
    Ngrok,
    /// `ssh -R` to this host.
    Ssh(String),
}

impl std::str::FromStr for PublicBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("ssh:")) {
            ("auto", _) => Ok(Self::Any),
            ("cloudflared", _) => Ok(Self::Cloudflared),
            ("ngrok", _) => Ok(Self::Ngrok),
            // What begins with a minus would be read as an option.
            (_, Some(host)) if is_host(host) => Ok(Self::Ssh(host.to_owned())),
            (_, _) => Err("use auto, cloudflared, ngrok, or ssh:USER@HOST".to_owned()),
        }
    }
}

fn is_host(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '@' | '.' | '-' | '_');
    !text.is_empty() && !text.starts_with('-') && text.chars().all(plain)
}

/// Certificates that were read from a file.
#[derive(Clone, Debug)]
pub(crate) struct CaFile(pub(crate) Trust);

pub(super) fn ca_file(path: &str) -> Result<CaFile, String> {
    let pem = std::fs::read(expanded(path.into())).map_err(|e| format!("{path}: {e}"))?;
    let trust = Trust::default().with_pem(&pem);
    trust.map(CaFile).map_err(|e| format!("{path}: {e}"))
}

/// Where to listen: a port is one of the loopback interface.
pub(super) fn bind(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix("localhost:");
    let port = port.or(text.strip_prefix(':')).unwrap_or(text);
    match (text.parse(), port.parse::<u16>()) {
        (Ok(address), _) => Ok(address),
        (Err(_), Ok(port)) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        (Err(_), Err(_)) => Err("write 8080, localhost:8080 or an address with its port".into()),
    }
}

/// The least a store may be bound to, in bytes: below, hardly an event fits.
const LEAST_DISK: u64 = 1_000_000;

pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let bytes = text.trim().parse::<bytesize::ByteSize>().ok();
    bytes
        .map(|bytes| bytes.as_u64())
        // What is beyond all numbers is read as the largest.
        .filter(|bytes| (LEAST_DISK..u64::MAX).contains(bytes))
        .ok_or_else(|| "write 1MB or more, such as 500MB, 2GB or 10GiB".to_owned())
}

/// The largest body that a forwarder takes.
pub(super) fn max_body(text: &str) -> Result<usize, String> {
    let bytes = text.trim().parse::<bytesize::ByteSize>().ok();
    bytes
        .and_then(|bytes| usize::try_from(bytes.as_u64()).ok())
        .filter(|bytes| (limits::SMALLEST_MAX_BODY..=limits::LARGEST_MAX_BODY).contains(bytes))
        .ok_or_else(|| "write a size from 1KiB to 100MiB, such as 25MiB".to_owned())
}

/// The id of an event.
pub(super) fn event(text: &str) -> Result<String, String> {
    let id = text.parse::<EventId>();
    id.map(|id| id.to_string()).map_err(|e| e.to_string())
}

/// How many of the events from before are wanted; all where nothing is said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newest(pub(crate) Option<u64>);

pub(super) fn backlog(text: &str) -> Result<Newest, String> {
    match (text, text.strip_prefix("newest=").map(str::parse)) {
        ("all", _) => Ok(Newest(None)),
        ("none", _) => Ok(Newest(Some(0))),
        (_, Some(Ok(newest))) => Ok(Newest(Some(newest))),
        (_, Some(Err(_)) | None) => Err("use all, none or newest=N".into()),
    }
}

/// A point in time, in microseconds since 1970: a time, of this machine's zone where it names none, or a
/// duration back from now.
pub(super) fn when(text: &str) -> Result<i64, String> {
    let local = |at: jiff::civil::DateTime| at.to_zoned(jiff::tz::TimeZone::system()).ok();
    let zoned = text
        .parse()
        .ok()
        .or_else(|| Some(local(text.parse().ok()?)?.timestamp()));
    let back = || jiff::SignedDuration::try_from(duration::parse(text).ok()?).ok();
    let then = zoned.or_else(|| jiff::Timestamp::now().checked_sub(back()?).ok());
    then.map(jiff::Timestamp::as_microsecond).ok_or_else(|| {
        "write a duration such as 30s, 5m, 2h or 7d, or a time such as 2026-11-22, \
         2026-11-22T10:15:03 or 2026-11-22T10:15:03Z"
            .to_owned()
    })
}

/// A point in time that is over.
pub(super) fn past(text: &str) -> Result<i64, String> {
    let at = when(text)?;
    match at <= jiff::Timestamp::now().as_microsecond() {
        true => Ok(at),
        false => Err("that is still to come".into()),
    }
}

/// A forwarder's address. Without a scheme it is https, except on this machine: a token must not
/// cross a network in the clear unless somebody says so.
pub(super) fn forwarder_url(text: &str) -> Result<Url, String> {
    let host = text.split(['/', ':']).next().unwrap_or_default();
    let local = host == "localhost" || host.starts_with("127.") || text.starts_with("[::1]");
    let full = match (text.contains("://"), local) {
        (true, _) => text.to_owned(),
        (false, true) => format!("http://{text}"),
        (false, false) => format!("https://{text}"),
    };
    let url = Url::parse(&full).map_err(|e| e.to_string())?;
    let nobody = url.username().is_empty() && url.password().is_none();
    let plain = url.query().is_none() && url.fragment().is_none() && nobody;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !plain {
        return Err("a forwarder's URL is http(s)://host[:port]".into());
    }
    // The token would be stored there as an event, and delivered.
    if is_input(&url) {
        return Err(
            "this is the input URL of a bucket, which senders use: remove /in/… from it".into(),
        );
    }
    Ok(url)
}

/// Whether a URL is one that webhooks are sent to, as a proxy or server may read its path.
fn is_input(url: &Url) -> bool {
    let path = percent_decoded(url.path().as_bytes());
    let mut segments = path.split(|byte| matches!(byte, b'/' | b'\\' | b';'));
    segments.any(|segment| segment.eq_ignore_ascii_case(b"in"))
}

fn percent_decoded(bytes: &[u8]) -> Vec<u8> {
    let (mut decoded, mut rest) = (Vec::with_capacity(bytes.len()), bytes);
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| byte == b'%');
        let hex = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        decoded.push(hex.unwrap_or(byte));
        rest = if hex.is_some() { &after[2..] } else { after };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_url_is_no_forwarder() {
        for text in [
            "http://localhost:8080/in/default-k3j",
            "hooks.example.com/in/",
            "https://hooks.example.com/whrelay/in/default-k3j/stripe",
            "https://hooks.example.com/in",
            "https://hooks.example.com/%69n/default-k3j",
            "https://hooks.example.com/in;x/default-k3j",
            "https://hooks.example.com/in%2Fdefault-k3j",
        ] {
            let refused = forwarder_url(text).expect_err("refused");
            assert!(refused.contains("input URL"), "{refused}");
        }
        for text in ["https://hooks.example.com/inbox", "in.example.com"] {
            assert!(forwarder_url(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_token_crosses_no_network_in_the_clear_by_default() {
        let url = |text| forwarder_url(text).map(|url| url.to_string());
        assert_eq!(
            url("hooks.example.com"),
            Ok("https://hooks.example.com/".into())
        );
        assert_eq!(url("localhost:8080"), Ok("http://localhost:8080/".into()));
        assert_eq!(url("http://10.0.0.1"), Ok("http://10.0.0.1/".into()));
        assert!(url("https://u:p@h").is_err() && url("https://h/?q").is_err());
    }

    #[test]
    fn times_and_durations_back_from_now() {
        for typed in [
            "2026-11-22T10:15:03Z",
            "2h",
            "2026-11-22 10:15:03",
            "2026-11-22",
        ] {
            assert!(when(typed).is_ok(), "{typed}");
        }
        assert!(when("2999-01-01").is_ok() && past("2999-01-01").is_err());
    }

    #[test]
    fn a_port_is_one_of_this_machine() {
        let there = Ok(([127, 0, 0, 1], 8080).into());
        for typed in ["8080", ":8080", "localhost:8080", "127.0.0.1:8080"] {
            assert_eq!(bind(typed), there, "{typed}");
        }
        assert_eq!(
            bind("[::1]:80"),
            Ok("[::1]:80".parse().expect("an address"))
        );
        assert!(bind("example.com:80").is_err() && bind("127.0.0.1").is_err());
    }
}
