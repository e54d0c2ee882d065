//! Which header fields reach a target. It must not know the body.

use std::str::FromStr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use whrelay_core::delivery::Delivery;
use whrelay_core::event::{Event, Header};
use whrelay_providers::Signed;

/// Fields of one connection or one hop (RFC 9110 section 7.6.1), of the message's framing, and of
/// its addressing: they are made anew for the target.
const REBUILT: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What `Host` a target gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostField {
    /// The target's own.
    #[default]
    Target,
    /// The one that the sender used.
    Sender,
    /// This one.
    Fixed(HeaderValue),
}

impl FromStr for HostField {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "rewrite" => Ok(Self::Target),
            "preserve" => Ok(Self::Sender),
            // An authority (RFC 9110 section 7.2).
            value => {
                let host = value.parse::<Authority>().ok();
                let value = host.and_then(|host| HeaderValue::try_from(host.as_str()).ok());
                value
                    .map(Self::Fixed)
                    .ok_or_else(|| "use rewrite, preserve, or a host such as shop.test".to_owned())
            }
        }
    }
}

/// A field of the user's own for requests, written `Name: value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    name: HeaderName,
    value: HeaderValue,
}

/// Why a field cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// It is not `Name: value`.
    #[error("not a header field: write Name: value")]
    Malformed,
    /// Its value is made for each message, or by whrelay.
    #[error("`{0}` cannot be set: it is made anew for each request")]
    Ours(String),
}

impl FromStr for Field {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        // What was meant for a value may be a secret.
        let malformed = || FieldError::Malformed;
        let (name, value) = text.split_once(':').ok_or_else(malformed)?;
        let name = HeaderName::try_from(name.trim()).map_err(|_| malformed())?;
        let value = HeaderValue::try_from(value.trim()).map_err(|_| malformed())?;
        let plain = name.as_str();
        let closes = plain == "connection" && value.as_bytes().eq_ignore_ascii_case(b"close");
        if plain != "host" && !closes && (REBUILT.contains(&plain) || is_ours(plain)) {
            return Err(FieldError::Ours(name.to_string()));
        }
        Ok(Self { name, value })
    }
}

impl Field {
    /// Its name, in lower case.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

/// What the user wants in requests, beside what the event says.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    host: HostField,
    /// Fields that take the place of the sender's of the same name.
    set: Vec<Field>,
}

impl Fields {
    /// These fields, and this `Host` unless one of them is that.
    pub fn new(host: HostField, mut set: Vec<Field>) -> Self {
        let hosts = set.extract_if(.., |field| field.name == http::header::HOST);
        let host = hosts
            .last()
            .map_or(host, |field| HostField::Fixed(field.value));
        Self { host, set }
    }

    /// The `Host` that a target gets for an event, where it is not the target's own.
    pub(crate) fn host(&self, sent: &[Header]) -> Option<HeaderValue> {
        match &self.host {
            HostField::Target => None,
            HostField::Fixed(value) => Some(value.clone()),
            HostField::Sender => {
                let sent = sent.iter().find(|h| h.name.eq_ignore_ascii_case("host"));
                sent.and_then(|host| HeaderValue::from_bytes(&host.value).ok())
            }
        }
    }

    fn apply(&self, sent: &[Header], headers: &mut HeaderMap) {
        let is_set = |name: &HeaderName| {
            let mut set = self.set.iter();
            set.any(|field| read_by_cgi(field.name.as_str()).eq(read_by_cgi(name.as_str())))
        };
        let replaced: Vec<_> = headers
            .keys()
            .filter(|name| is_set(name))
            .cloned()
            .collect();
        for name in replaced {
            headers.remove(name);
        }
        for Field { name, value } in &self.set {
            headers.append(name, value.clone());
        }
        // Where there is none, the connection puts the target's there.
        if let Some(host) = self.host(sent) {
            headers.insert(http::header::HOST, host);
        }
    }
}

/// The sender's fields, in order, with a signature made anew, those that the user has set, then ours. A name or value
/// that HTTP cannot carry is left out.
pub(crate) fn outgoing(
    event: &Event,
    delivery: &Delivery,
    number: u32,
    fields: &Fields,
    signed: Option<&Signed>,
) -> HeaderMap {
    let sent = event.request.headers.iter();
    let sent: Vec<_> = sent.map(|field| (&*field.name, &*field.value)).collect();
    let mut headers = HeaderMap::new();
    for (name, value) in travelling(&sent) {
        let parsed = (HeaderName::try_from(name), HeaderValue::from_bytes(value));
        if let (Ok(name), Ok(value)) = parsed {
            headers.append(name, value);
        }
    }
    for (name, value) in signed.into_iter().flat_map(|signed| &signed.fields) {
        let original = HeaderName::try_from(format!("x-whrelay-original-{name}"));
        let replaced = headers.remove(*name);
        if let (Ok(original), Some(value)) = (original, replaced) {
            headers.insert(original, value);
        }
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    fields.apply(&event.request.headers, &mut headers);
    let own = [
        ("x-whrelay-event-id", event.id.to_string()),
        ("x-whrelay-delivery-id", delivery.id.to_string()),
        ("x-whrelay-attempt", number.to_string()),
        ("x-whrelay-bucket", event.bucket.to_string()),
        ("x-whrelay-received-at", event.received_at.to_string()),
    ];
    let replay = delivery
        .replay
        .then(|| ("x-whrelay-replay", "1".to_owned()));
    for (name, value) in own.into_iter().chain(replay) {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    headers
}

/// The fields of a request that travel on, in order: those that are neither of its connection nor of its
/// framing, and not in our own name. A forwarder may spell them in capitals.
pub fn travelling<'a>(fields: &[(&'a str, &'a [u8])]) -> impl Iterator<Item = (&'a str, &'a [u8])> {
    let connection = fields
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("connection"));
    let named: Vec<_> = connection
        .flat_map(|(_, value)| value.split(|byte| *byte == b','))
        .map(|token| String::from_utf8_lossy(token).trim().to_ascii_lowercase())
        .collect();
    let travels = move |(name, _): &(&str, &[u8])| {
        let name = name.to_ascii_lowercase();
        !is_ours(&name) && !REBUILT.contains(&&*name) && !named.contains(&name)
    };
    fields.iter().copied().filter(travels)
}

/// Whether a target could read a field's name as one of ours.
fn is_ours(name: &str) -> bool {
    const OURS: &str = "x_whrelay_";
    read_by_cgi(name).take(OURS.len()).eq(OURS.chars())
}

/// A field's name as a target may read it. CGI (RFC 3875 section 4.1.18) and its followers turn `-` into `_`, some of
/// them every character that is neither a letter nor a digit, and drop the case.
fn read_by_cgi(name: &str) -> impl Iterator<Item = char> {
    name.chars().map(|c| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_lowercase(),
        false => '_',
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use whrelay_core::bucket::{BucketId, Seq};
    use whrelay_core::delivery::{DeliveryKey, DestinationId, State};
    use whrelay_core::event::Request;
    use whrelay_core::id::{DeliveryId, EventId};
    use whrelay_core::retry::Phase;
    use whrelay_core::time::Timestamp;

    fn sent(fields: &[(&str, &[u8])], replay: bool) -> HeaderMap {
        let header = |(name, value): &(&str, &[u8])| Header {
            name: (*name).to_owned(),
            value: Bytes::copy_from_slice(value),
        };
        let event = Event {
            id: EventId::from_parts(Timestamp::EPOCH, 1),
            bucket: "shop".parse().expect("a name"),
            received_at: Timestamp::EPOCH,
            request: Request {
                method: "POST".into(),
                tail: String::new(),
                query: None,
                headers: fields.iter().map(header).collect(),
                body: Bytes::new(),
            },
            removed_body: None,
        };
        let delivery = Delivery {
            key: DeliveryKey {
                bucket: BucketId(1),
                seq: Seq(1),
                ordinal: 0,
            },
            id: DeliveryId::from_parts(Timestamp::EPOCH, 1),
            event: event.id,
            destination: DestinationId(1),
            created_at: Timestamp::EPOCH,
            deadline_at: Timestamp::EPOCH,
            attempts: 0,
            first_failed_at: None,
            phase: Phase::Fast,
            state: State::Queued,
            reason: None,
            wait: None,
            bytes: 0,
            ended_at: None,
            replay,
            last_attempt: None,
            one_off: false,
        };
        outgoing(&event, &delivery, 3, &Fields::default(), None)
    }

    #[test]
    fn repeated_fields_stay_repeated_and_bytes_stay_bytes() {
        let headers = sent(
            &[("x-a", b"one"), ("x-b", b"\xff\xfe"), ("x-a", b"two")],
            false,
        );
        let values: Vec<_> = headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["one", "two"]);
        assert_eq!(headers["x-b"].as_bytes(), b"\xff\xfe");
    }

    #[test]
    fn capitals_from_a_rogue_forwarder_do_not_carry_framing_or_forged_fields_to_a_target() {
        let headers = sent(
            &[
                ("Connection", b"close, X-Hop"),
                ("X-Hop", b"1"),
                ("Transfer-Encoding", b"chunked"),
                ("Content-Length", b"5"),
                ("HOST", b"evil.test"),
                ("X-Whrelay-Attempt", b"99"),
                ("X-Whrelay-Replay", b"1"),
                ("X-Mine", b"1"),
            ],
            false,
        );
        assert_eq!(headers.len(), 6, "{headers:?}");
        assert_eq!(headers["x-whrelay-attempt"], "3");
        assert_eq!(headers["x-mine"], "1");
    }

    /// `HTTP_X_WHRELAY_ATTEMPT` is what a target behind CGI, WSGI, Rack or PHP sees of each.
    #[test]
    fn no_spelling_of_our_fields_travels() {
        for name in [
            "X-Whrelay-Attempt",
            "x_whrelay_attempt",
            "X_Whrelay-Replay",
            "X-WHRELAY_Event_Id",
            "x.whrelay.attempt",
            "x~whrelay!attempt",
        ] {
            let headers = sent(&[(name, b"99")], false);
            assert_eq!(headers.len(), 5, "{name}: {headers:?}");
            let set = format!("{name}: 99").parse::<Field>();
            assert!(set.is_err(), "{name}");
        }
        for name in [
            "x-whrelayed",
            "xwhrelay-attempt",
            "x-webhook-attempt",
            "x-whrelay",
        ] {
            let headers = sent(&[(name, b"99")], false);
            assert_eq!(headers[name], "99", "{name}");
        }
    }

    /// `HTTP_X_ENV` is what a target behind CGI sees of both.
    #[test]
    fn a_field_of_the_users_own_replaces_every_spelling_of_the_senders() {
        let own = "X-Env: dev".parse::<Field>().expect("a field");
        let fields = Fields::new(HostField::Target, vec![own]);
        let mut headers = HeaderMap::new();
        for name in ["x-env", "x_env", "x.env", "x-environment"] {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static("evil"),
            );
        }
        fields.apply(&[], &mut headers);
        let left: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(headers["x-env"], "dev");
        assert!(headers.contains_key("x-environment"));
    }

    #[test]
    fn fields_of_the_hop_and_forged_ones_do_not_travel() {
        let headers = sent(
            &[
                ("connection", b"close, X-Hop"),
                ("connection", b"x-other"),
                ("x-hop", b"1"),
                ("x-other", b"1"),
                ("transfer-encoding", b"chunked"),
                ("content-length", b"5"),
                ("host", b"evil.test"),
                ("x-whrelay-attempt", b"99"),
                ("x-whrelay-replay", b"1"),
            ],
            false,
        );
        let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        let own = [
            "event-id",
            "delivery-id",
            "attempt",
            "bucket",
            "received-at",
        ];
        assert_eq!(names, own.map(|name| format!("x-whrelay-{name}")));
        assert_eq!(headers["x-whrelay-attempt"], "3");
    }

    #[test]
    fn only_a_replay_says_so() {
        assert_eq!(sent(&[], true)["x-whrelay-replay"], "1");
        assert!(!sent(&[], false).contains_key("x-whrelay-replay"));
    }

    proptest! {
        #[test]
        fn no_field_however_absurd_panics(name in ".*", value: Vec<u8>) {
            sent(&[(&name, &value)], false);
        }
    }

    #[test]
    fn fields_that_are_set_replace_the_senders_and_the_rest_is_not_ours_to_set() {
        let typed = [
            "Authorization: Bearer x",
            "X-Two: 1",
            "x-two:2",
            "Host: shop.test",
        ];
        let typed = typed.map(|field| field.parse().expect("a field"));
        let fields = Fields::new(HostField::Target, typed.to_vec());
        let sent = [
            ("authorization", "theirs"),
            ("host", "hooks.test"),
            ("x-two", "0"),
        ];
        let sent = sent.map(|(name, value)| Header {
            name: name.to_owned(),
            value: Bytes::from_static(value.as_bytes()),
        });
        let mut headers = HeaderMap::new();
        headers.append("authorization", HeaderValue::from_static("theirs"));
        headers.append("x-two", HeaderValue::from_static("0"));
        fields.apply(&sent, &mut headers);
        assert_eq!(headers["authorization"], "Bearer x");
        assert_eq!(
            headers.get_all("x-two").iter().collect::<Vec<_>>(),
            ["1", "2"]
        );
        assert_eq!(headers["host"], "shop.test");
        Fields::new(HostField::Sender, Vec::new()).apply(&sent, &mut headers);
        assert_eq!(headers["host"], "hooks.test");
        for bad in ["", "x", "a b: c", "X: a\nb", ": x"] {
            let refused = bad.parse::<Field>().expect_err("refused");
            assert_eq!(refused, FieldError::Malformed);
        }
        for ours in ["Content-Length: 1", "connection: x", "X-Whrelay-Attempt: 9"] {
            let refused = ours.parse::<Field>().expect_err("refused");
            assert!(matches!(refused, FieldError::Ours(_)), "{ours}");
        }
    }
}
