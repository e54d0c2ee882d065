//! Events that try to get to somewhere else than an agent's target, each with its fate. It must not
//! ask the product which of them climb.

use whrelay_core::id::EventId;
use whrelay_core::time::Timestamp;
use whrelay_proto::frame::{WireEvent, WireHeader};

use super::mutants::event;

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It reaches the target there.
    At(String),
    /// No request is made for it.
    Never,
}

/// Events that try to get somewhere else, with the path at which they may arrive. `CANARY` stands
/// for an address that no agent has any business with.
pub(crate) fn fates(canary: &str) -> Vec<(WireEvent, Fate)> {
    let climbing = [
        "/..",
        "/../admin",
        "/../../admin",
        "/a/../../admin",
        "/./x",
        "/%2e%2e/admin",
        "/%2E%2e%2fadmin",
        "/.%2e/admin",
        "/..%2fadmin",
        "/..%5cadmin",
        "/..\\admin",
        "/a/%2e%2e/%2e%2e/admin",
        "/..;/admin",
    ];
    let bad = [
        "/a b",
        "/a\r\nX-Injected: 1",
        "/a\0b",
        "/a HTTP/1.1\r\nHost: CANARY\r\n\r\nGET /b",
    ];
    let fine = [
        ("", "/base"),
        ("/", "/base/"),
        ("/x", "/base/x"),
        ("//CANARY/x", "/base//CANARY/x"),
        ("/@CANARY/", "/base/@CANARY/"),
        ("/http://CANARY/", "/base/http://CANARY/"),
        ("/%252e%252e/x", "/base/%252e%252e/x"),
        ("/...", "/base/..."),
    ];
    let never = climbing
        .into_iter()
        .chain(bad)
        .map(|tail| ("POST", tail, Fate::Never));
    let there = fine
        .into_iter()
        .map(|(tail, path)| ("POST", tail, Fate::At(path.replace("CANARY", canary))));
    let methods = ["", "GET /x", "G\r\nET", "CONNECT", "\0", "P\u{d6}ST"];
    let methods = methods
        .into_iter()
        .map(|method| (method, "/m", Fate::Never));
    let all = never
        .chain(there)
        .chain(methods)
        .enumerate()
        .map(|(n, (method, tail, fate))| {
            let mut event = event(n as u64 + 1);
            event.head.id =
                EventId::from_parts(Timestamp::from_micros(9_000_000), n as u128).to_bytes();
            event.head.method = method.to_owned();
            event.head.tail = tail.replace("CANARY", canary);
            event.head.headers = spoofed(canary);
            (event, fate)
        });
    all.collect()
}

/// Fields that only an agent may set, that frame a message, or that would end a line.
pub(crate) fn spoofed(canary: &str) -> Vec<WireHeader> {
    let fields = [
        ("Host", canary),
        ("Transfer-Encoding", "chunked"),
        ("Content-Length", "7"),
        ("Connection", "X-Named, close"),
        ("X-Named", "1"),
        ("Keep-Alive", "1"),
        ("Upgrade", "h2c"),
        ("TE", "trailers"),
        ("Trailer", "x"),
        ("Expect", "100-continue"),
        ("Proxy-Connection", "1"),
        ("Proxy-Authorization", "Basic eA=="),
        ("X-Whrelay-Event-Id", "evt_forged"),
        ("X-Whrelay-Delivery-Id", "dlv_forged"),
        ("X-Whrelay-Attempt", "77"),
        ("X-WHRELAY-Replay", "1"),
        ("x-Whrelay-Forged", "1"),
        ("x-crlf", "a\r\nX-Injected: 1"),
        ("x-nul", "a\0b"),
        ("x bad", "1"),
        ("x-bad\r\nX-Injected", "1"),
        ("", "1"),
        ("x-plain", "kept"),
    ];
    let wire = |(name, value): (&str, &str)| WireHeader(name.to_owned(), value.as_bytes().to_vec());
    fields.map(wire).into()
}

/// Names of fields that a target must never see from an event.
pub(crate) const KEPT_OUT: [&str; 15] = [
    "transfer-encoding",
    "x-named",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "expect",
    "proxy-connection",
    "proxy-authorization",
    "x-whrelay-forged",
    "x-whrelay-replay",
    "x-injected",
    "x-crlf",
    "x-nul",
    "connection",
];
