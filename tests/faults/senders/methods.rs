//! Methods and bodies of every sort (S2, S11, S13, S16). It must not know what a receiver makes of
//! them.

use whrelay_core::limits;

use super::case::{Arrival, BAD, CLOSED, Case, Kind, LATE, UNKNOWN, UNSUPPORTED, request};

/// What is registered (IANA's HTTP method registry), but for CONNECT.
const REGISTERED: &[&str] = &[
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "*",
];
const MADE_UP: &[&str] = &[
    "post", "Post", "pOST", "get", "head", "connect", "trace", "POSTX", "XPOST", "P", "HTTP",
    "HTTP-1.1", "WEBHOOK", "PURGE", "DEBUG", "TRACK", "0", "1.1", "-", "POST-", "_", "~", "!",
];
const TOKEN_MARKS: &[u8] = b"!#$%&'*+-.^_`|~";

/// Too little, as the head's end and what follows it.
const SHORT: &[&str] = &[
    "Content-Length: 5\r\n\r\n",
    "Content-Length: 5\r\n\r\nabcd",
    "Content-Length: 26214400\r\n\r\nabcd",
    "Transfer-Encoding: chunked\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n5",
    "Transfer-Encoding: chunked\r\n\r\n5\r\n",
    "Transfer-Encoding: chunked\r\n\r\n5\r\nhell",
    "Transfer-Encoding: chunked\r\n\r\n5\r\nhello",
    "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0",
    "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r",
    "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n",
    "Transfer-Encoding: chunked\r\n\r\n5;aaaaaa",
    "Transfer-Encoding: chunked\r\n\r\nffffff\r\nabc",
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
];

pub(crate) fn cases(path: &str) -> Vec<Case> {
    let known = REGISTERED
        .iter()
        .chain(MADE_UP)
        .flat_map(|method| ["", "x"].map(|body| whole(path, method, body.as_bytes())));
    let marked = (0..=u8::MAX).map(|byte| method_with(path, byte));
    let long = [100, 1_000, 8_000, 60_000].map(|length| whole(path, &"M".repeat(length), b"x"));
    let none = [
        (format!(" {path} HTTP/1.1\r\nHost: x\r\n\r\n"), BAD),
        (format!("{path} HTTP/1.1\r\nHost: x\r\n\r\n"), BAD),
        (format!("POST HTTP/1.1\r\nHost: x\r\n\r\n{path}"), BAD),
        (
            format!("CONNECT {path} HTTP/1.1\r\nHost: x\r\n\r\n"),
            UNSUPPORTED,
        ),
        (
            format!("CONNECT {path}/x?y HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"),
            UNSUPPORTED,
        ),
        (
            format!("CONNECT http://x{path} HTTP/1.1\r\nHost: x\r\n\r\n"),
            UNSUPPORTED,
        ),
        (
            "CONNECT example.test:443 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            UNKNOWN,
        ),
    ];
    let none = none.map(|(text, statuses)| Case::refused(Kind::Methods, text.into(), statuses));
    let short = SHORT.iter().flat_map(|rest| {
        let bytes = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{rest}").into_bytes();
        let gone = Case::refused(Kind::Bodies, bytes.clone(), BAD).hanging_up();
        [Case::refused(Kind::Bodies, bytes, LATE), gone]
    });
    let cases = known.chain(marked).chain(long).chain(none).chain(short);
    cases.chain(bodies(path)).chain(large(path)).collect()
}

fn whole(path: &str, method: &str, body: &[u8]) -> Case {
    let (target, lines) = (
        format!("{path}/m"),
        format!("Content-Length: {}\r\n", body.len()),
    );
    let bytes = request(method, &target, lines.as_bytes(), body);
    Case::accepted(Kind::Methods, bytes, Arrival::new(method, "/m", body))
}

/// A byte in the middle of a method.
fn method_with(path: &str, byte: u8) -> Case {
    if byte.is_ascii_alphanumeric() || TOKEN_MARKS.contains(&byte) {
        return whole(path, &format!("PO{}ST", char::from(byte)), b"x");
    }
    let rest = format!("ST {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let bytes = [b"PO", &[byte][..], rest.as_bytes()].concat();
    Case::refused(Kind::Methods, bytes, BAD)
}

/// What bodies are made of.
fn contents() -> Vec<Vec<u8>> {
    let text = |text: &str| text.as_bytes().to_vec();
    let deep = 100_000;
    vec![
        Vec::new(),
        text("x"),
        (0..=u8::MAX).collect(),
        (0..=u8::MAX).rev().cycle().take(70_000).collect(),
        text("\r\n"),
        text("\r\n\r\n"),
        text("0\r\n\r\n"),
        text("\n\n"),
        vec![0; 1000],
        vec![0xff; 1000],
        text("POST /hidden HTTP/1.1\r\nHost: x\r\n\r\n"),
        text("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        text("\u{feff}{}"),
        text("{\"a\": 1, \"a\": 2}"),
        text("{\"a\": 1e999999, \"b\": 99999999999999999999999999999999}"),
        text("{\"a\": \"\\ud800\"}"),
        text("{\"a\": ").repeat(deep),
        "[".repeat(deep).into_bytes(),
        format!("{}{}", "[".repeat(deep), "]".repeat(deep)).into_bytes(),
        text("a=1&a=2&%00=%ff&="),
        text("--x\r\nContent-Disposition: form-data; name=\"../../x\"\r\n\r\n\r\n--x--\r\n"),
        text("<!DOCTYPE x [<!ENTITY a \"b\">]><x>&a;</x>"),
        text("' OR 1=1; --"),
        text("\u{1b}[2J\u{1b}]0;x\u{7}"),
        text("\u{202e}\u{1f980}\0"),
    ]
}

/// Every content in every framing that has one reading.
fn bodies(path: &str) -> Vec<Case> {
    let chunked = |body: &[u8], sizes: &[usize]| {
        let (mut bytes, mut rest) = (Vec::new(), body);
        for size in sizes.iter().cycle() {
            let (chunk, after) = rest.split_at(rest.len().min(*size));
            if chunk.is_empty() {
                break;
            }
            bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            bytes.extend([chunk, b"\r\n"].concat());
            rest = after;
        }
        [bytes.as_slice(), b"0\r\n\r\n"].concat()
    };
    let mut cases = Vec::new();
    for (n, body) in contents().into_iter().enumerate() {
        for method in ["POST", "GET", "DELETE", "PUT"] {
            let length = format!("Content-Length: {}\r\n", body.len());
            let chunks = || "Transfer-Encoding: chunked\r\n".to_owned();
            let small: &[usize] = if body.len() > 1000 {
                &[1000, 1, 4095]
            } else {
                &[1]
            };
            let framings = [
                (length, body.clone()),
                (chunks(), chunked(&body, &[usize::MAX])),
                (chunks(), chunked(&body, small)),
            ];
            for (lines, rest) in framings {
                let tail = format!("/body/{n}");
                let bytes = request(method, format!("{path}{tail}"), lines.as_bytes(), &rest);
                let case = Case::accepted(Kind::Bodies, bytes, Arrival::new(method, &tail, &body));
                cases.push(if rest.len() < 600 && method == "PUT" {
                    case.dripping()
                } else {
                    case
                });
            }
        }
    }
    cases
}

/// As large as may be, and larger.
fn large(path: &str) -> Vec<Case> {
    let lines = |length: usize| format!("Content-Length: {length}\r\n").into_bytes();
    let most = vec![7; limits::MAX_BODY];
    let fits = request("POST", path, &lines(most.len()), &most);
    let over = vec![7; limits::MAX_BODY + 1];
    let chunk = format!("{:x}\r\n", over.len()).into_bytes();
    let chunk = [&chunk, &over[..], b"\r\n0\r\n\r\n"].concat();
    let refused = |lines: &[u8], body: &[u8]| {
        let bytes = request("POST", path, lines, body);
        Case::refused(Kind::Bodies, bytes, &[413, CLOSED])
    };
    vec![
        Case::accepted(Kind::Bodies, fits, Arrival::new("POST", "", &most)),
        refused(&lines(over.len()), &over),
        refused(b"Transfer-Encoding: chunked\r\n", &chunk),
        refused(&lines(10_000_000_000), b""),
        refused(&lines(usize::MAX / 2), b"x"),
    ]
}
