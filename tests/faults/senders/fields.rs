//! Header fields, byte by byte (S1, S6, S8, S9, N8). It must not know which of them a receiver reads.

use super::case::{Answer, Arrival, BAD, Case, Kind, request};
use whrelay_core::limits;

/// What a field's name may be made of (RFC 9110 section 5.6.2).
const TOKEN: &[u8] =
    b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Fields of a hop, of its addressing, and of its framing, with a value that asks for nothing here.
const HOP: &[(&str, &str)] = &[
    ("Connection", "keep-alive"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Authenticate", "Basic"),
    ("Proxy-Authorization", "Basic eDp5"),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "trailers"),
    ("Trailer", "X"),
    ("Upgrade", "h2c"),
    ("HTTP2-Settings", "AAMAAABk"),
    ("Expect", "100-continue"),
    ("X-Whrelay-Event-Id", "evt_00000000000000000000000000"),
    ("X-Whrelay-Delivery-Id", "dlv_00000000000000000000000000"),
    ("X-Whrelay-Attempt", "99"),
    ("X-Whrelay-Bucket", "other"),
    ("X-Whrelay-Received-At", "1970-01-01T00:00:00Z"),
    ("X-Whrelay-Replay", "1"),
    ("X-Whrelay-", "x"),
    ("X-Whrelay-Made-Up", "x"),
];

/// Fields that travel, spoofed or not: nobody here believes them.
const TRAVEL: &[&str] = &[
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Real-IP",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-HTTP-Method-Override",
    "X-Host",
    "Forwarded",
    "Via",
    "True-Client-IP",
    "CF-Connecting-IP",
    "Client-IP",
    "X-Connection",
    "Connections",
    "Keep-Alives",
    "Proxy",
    "Proxy-Foo",
    "Hosts",
    "X-Host-Override",
    "Content-Lengths",
    "X-Content-Length",
    "X-Transfer-Encoding",
    "TE-X",
    "Trailers",
    "Upgrade-Insecure-Requests",
    "X-Whrelay",
    "X-Whrelays-Attempt",
    "Whrelay-Attempt",
    "Accept",
    "Accept-Encoding",
    "Authorization",
    "Cookie",
    "Date",
    "ETag",
    "If-Match",
    "Range",
    "Referer",
    "Origin",
    "User-Agent",
    "Content-Type",
    "Content-Encoding",
    "Content-Language",
    "Content-Location",
    "Content-Disposition",
    "Content-MD5",
    "Content-Range",
    "Digest",
    "Stripe-Signature",
    "X-Hub-Signature-256",
    "X-GitHub-Delivery",
    "webhook-signature",
    "traceparent",
    "Sec-WebSocket-Key",
    "Early-Data",
    "Alt-Used",
    "Warning",
    "Set-Cookie",
    "Server",
    "Location",
];

/// Values of `Connection`, and whether they name `X-Own`.
const NAMING: &[(&str, bool)] = &[
    ("X-Own", true),
    ("x-own", true),
    ("X-OWN", true),
    ("close, X-Own", true),
    ("X-Own, close", true),
    ("X-Own,close", true),
    (",X-Own,", true),
    (",,  ,X-Own", true),
    ("\tX-Own\t", true),
    ("X-Other, X-Own, X-More", true),
    ("keep-alive,\tX-Own", true),
    ("upgrade, X-Own", true),
    ("\u{e9}, X-Own", true),
    ("X-Owns", false),
    ("Own", false),
    ("X-Ow", false),
    ("\"X-Own\"", false),
    ("X-Own;q=1", false),
    ("X-Own X-Other", false),
    ("X_Own", false),
    ("*", false),
    ("", false),
    (",", false),
    ("close", false),
    ("keep-alive", false),
];

/// Ten megabytes of zeros, compressed twice.
const BOMB: &[u8] = b"\
    \x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xed\xd8\xbd\x09\xc2\x40\x00\x80\xd1\x4b\xa2\x10\
    \x2c\x74\x04\xdd\x43\x08\x56\xc1\xd2\xc6\x21\x6c\x5c\xc1\x03\x4b\x41\xac\xc4\x05\x52\x3b\
    \x83\xb5\x03\x88\x85\x1b\x88\x1b\xf8\x77\x6b\x1c\xef\x55\xdf\x0c\xdf\x78\x57\x87\xa4\xac\
    \x9e\x97\xa2\xf8\x47\x3c\x7c\xce\xaf\x7a\x10\x00\x00\x00\x80\xcc\xc5\xfb\xb6\x4a\x33\x20\
    \x4c\xbe\xb7\x76\xb1\x04\x00\x00\x00\x72\xb7\x1a\x0d\xe7\xe9\x05\xf4\xde\x9b\xc7\x7e\xd6\
    \x77\x47\x00\x72\xb3\x2e\xaf\xdd\xb4\x89\xc7\x53\xf8\x01\x6b\xc9\x47\x1c\x16\x26\x00\x00";

const PATH_OF_THEM: &str = "/fields";

/// A request with these lines: what is named in `kept` arrives.
fn sent(path: &str, lines: &[u8], kept: &[(&str, &[u8])]) -> Case {
    let target = format!("{path}{PATH_OF_THEM}");
    let arrival = Arrival::new("POST", PATH_OF_THEM, b"").with(kept);
    Case::accepted(Kind::Fields, request("POST", &target, lines, b""), arrival)
}

fn refused(path: &str, lines: &[u8], statuses: &'static [u16]) -> Case {
    let target = format!("{path}{PATH_OF_THEM}");
    Case::refused(Kind::Fields, request("POST", &target, lines, b""), statuses)
}

pub(crate) fn cases(path: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for byte in 0..=u8::MAX {
        cases.extend(name_with(path, byte));
        cases.extend(value_with(path, byte));
    }
    cases.extend(hop(path));
    cases.extend(travel(path));
    cases.extend(naming(path));
    cases.extend(repeats(path));
    cases.extend(sizes(path));
    cases.extend(coded(path));
    cases
}

/// A byte at the start, in the middle, and at the end of a name.
fn name_with(path: &str, byte: u8) -> Vec<Case> {
    let names = [vec![byte, b'n'], vec![b'n', byte, b'n'], vec![b'n', byte]];
    let case = |name: Vec<u8>| {
        let lines = [name.as_slice(), b": v\r\n"].concat();
        match (byte, name[0]) {
            // A lone LF there is an empty line: the head is over, and what follows is no request.
            (b'\n', b'\n') => {
                let mut case = sent(path, &lines, &[]);
                case.answers.push(Answer::Refused(BAD));
                case
            }
            // The name ends at the first colon; the rest is the value.
            (b':', b'n') => {
                let value = [&name[2..], b": v"].concat();
                sent(path, &lines, &[("n", &value)])
            }
            _ if TOKEN.contains(&byte) => {
                let name = String::from_utf8(name).unwrap();
                sent(path, &lines, &[(&name, b"v")])
            }
            _ => refused(path, &lines, BAD),
        }
    };
    names.into_iter().map(case).collect()
}

/// A byte at the start, in the middle, and at the end of a value.
fn value_with(path: &str, byte: u8) -> Vec<Case> {
    let values = [vec![byte, b'v'], vec![b'v', byte, b'v'], vec![b'v', byte]];
    let case = |(place, value): (usize, Vec<u8>)| {
        let lines = [b"X-Value: ", value.as_slice(), b"\r\n"].concat();
        match (byte, place) {
            // Around a value blanks are none of it, and a lone LF ends its line.
            (b' ' | b'\t', 0 | 2) | (b'\n', 2) => sent(path, &lines, &[("x-value", b"v")]),
            (b'\t' | b' '..=b'~' | 0x80.., _) => sent(path, &lines, &[("x-value", &value)]),
            _ => refused(path, &lines, BAD),
        }
    };
    values.into_iter().enumerate().map(case).collect()
}

/// Fields that are made anew, in three spellings and twice: not one of them travels.
fn hop(path: &str) -> Vec<Case> {
    let case = |(name, value): &(&str, &str)| {
        let (low, high) = (name.to_lowercase(), name.to_uppercase());
        [
            format!("{name}: {value}\r\nX-End: 1\r\n"),
            format!("{low}: {value}\r\nX-End: 1\r\n"),
            format!("{high}:{value}\r\nX-End: 1\r\n"),
            format!("{name}: {value}\r\nX-End: 1\r\n{low}: {value}\r\n"),
            format!("{name}:\r\nX-End: 1\r\n"),
        ]
        .map(|lines| sent(path, lines.as_bytes(), &[("x-end", b"1")]))
    };
    HOP.iter().flat_map(case).collect()
}

/// Fields that travel, with a value, without one, and twice around another.
fn travel(path: &str) -> Vec<Case> {
    let case = |name: &&str| {
        let one = format!("{name}: 127.0.0.1, evil.test\r\n");
        let none = format!("{name}:\r\n");
        let twice = format!(
            "{name}: b\r\nX-Mid: 1\r\n{}: a\r\n{name}: b\r\n",
            name.to_uppercase()
        );
        let mid: (&str, &[u8]) = ("x-mid", b"1");
        [
            sent(path, one.as_bytes(), &[(name, b"127.0.0.1, evil.test")]),
            sent(path, none.as_bytes(), &[(name, b"")]),
            sent(
                path,
                twice.as_bytes(),
                &[(name, b"b"), mid, (name, b"a"), (name, b"b")],
            ),
        ]
    };
    TRAVEL.iter().flat_map(case).collect()
}

fn naming(path: &str) -> Vec<Case> {
    let case = |(value, named): &(&str, bool)| {
        let own: (&str, &[u8]) = ("x-own", b"1");
        let kept: Vec<_> = (!named)
            .then_some(own)
            .into_iter()
            .chain([("x-end", &b"1"[..])])
            .collect();
        let before = format!("Connection: {value}\r\nX-Own: 1\r\nX-End: 1\r\n");
        let after = format!("X-Own: 1\r\nX-End: 1\r\nConnection: {value}\r\n");
        let second = format!("Connection: a\r\nX-Own: 1\r\nX-End: 1\r\nconnection: {value}\r\n");
        [before, after, second].map(|lines| sent(path, lines.as_bytes(), &kept))
    };
    let ours = "Connection: X-Whrelay-Event-Id, Content-Length, Host, X-Whrelay-Attempt\r\n";
    let ours = sent(path, ours.as_bytes(), &[]);
    NAMING.iter().flat_map(case).chain([ours]).collect()
}

fn repeats(path: &str) -> Vec<Case> {
    let case = |times: usize| {
        let values: Vec<String> = (0..times).map(|n| format!("{}", (n * 7) % times)).collect();
        let lines: String = values.iter().map(|v| format!("X-Again: {v}\r\n")).collect();
        let kept: Vec<_> = values.iter().map(|v| ("x-again", v.as_bytes())).collect();
        sent(path, lines.as_bytes(), &kept)
    };
    [2, 3, 5, 10, 50, 99].into_iter().map(case).collect()
}

/// How many, how long, and how much together.
fn sizes(path: &str) -> Vec<Case> {
    let many = |count: usize| -> String { (1..count).map(|n| format!("X-{n}: {n}\r\n")).collect() };
    let fit = [limits::MAX_HEADERS - 1, limits::MAX_HEADERS].map(|count| {
        let names: Vec<_> = (1..count)
            .map(|n| (format!("x-{n}"), n.to_string()))
            .collect();
        let kept: Vec<_> = names
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_bytes()))
            .collect();
        sent(path, many(count).as_bytes(), &kept)
    });
    let over = [1, 2, 100, 1000]
        .map(|more| refused(path, many(limits::MAX_HEADERS + more).as_bytes(), &[431, 0]));
    let long = [1_000, 8_000, 32_000, 60_000]
        .into_iter()
        .flat_map(|length| {
            let long = "a".repeat(length);
            let value = format!("X-Long: {long}\r\n");
            let name = format!("{long}: v\r\n");
            [
                sent(path, value.as_bytes(), &[("x-long", long.as_bytes())]),
                sent(path, name.as_bytes(), &[(&long, b"v")]),
            ]
        });
    let heavy = [65_600, 100_000, 300_000, 1_000_000]
        .into_iter()
        .flat_map(|length| {
            let long = "a".repeat(length);
            let lines = [format!("X-Long: {long}\r\n"), format!("{long}: v\r\n")];
            lines.map(|lines| refused(path, lines.as_bytes(), &[431, 400, 0]))
        });
    fit.into_iter()
        .chain(over)
        .chain(long)
        .chain(heavy)
        .collect()
}

/// Bodies in a content coding are stored as sent, whatever they would become.
fn coded(path: &str) -> Vec<Case> {
    let codings = [
        "gzip",
        "gzip, gzip",
        "x-gzip",
        "deflate",
        "br",
        "zstd",
        "identity",
        "made-up",
        "",
    ];
    let case = |coding: &str| {
        let lines = format!(
            "Content-Encoding: {coding}\r\nContent-Length: {}\r\n",
            BOMB.len()
        );
        let target = format!("{path}{PATH_OF_THEM}");
        let fields = [("content-encoding", coding.as_bytes())];
        let arrival = Arrival::new("POST", PATH_OF_THEM, BOMB).with(&fields);
        let bytes = request("POST", &target, lines.as_bytes(), BOMB);
        Case::accepted(Kind::Fields, bytes, arrival)
    };
    codings.into_iter().map(case).collect()
}
