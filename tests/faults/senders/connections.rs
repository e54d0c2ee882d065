//! Several requests on one connection, and connections that are abused (S12). It must not know when a
//! server may close one, only what must have been answered before.

use super::case::{Answer, Arrival, BAD, CLOSED, Case, Kind, LATE, UNKNOWN, UNSUPPORTED, request};

const HIDDEN: &str = "POST {path}/hidden HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nbad";

/// Refused requests whose body is a hidden one: `{path}` and `{hidden}` are filled in, and `{len}` is
/// the hidden one's length.
const UNREAD: &[(&str, &[u16])] = &[
    (
        "POST /in/nobody HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{hidden}",
        UNKNOWN,
    ),
    (
        "POST /in/nobody HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{hex}\r\n{hidden}\r\n0\r\n\r\n",
        UNKNOWN,
    ),
    (
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{hidden}",
        UNKNOWN,
    ),
    (
        "POST {path}/.. HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{hidden}",
        BAD,
    ),
    (
        "POST {path}/.. HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{hex}\r\n{hidden}\r\n0\r\n\r\n",
        BAD,
    ),
    (
        "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n{hex}\r\n{hidden}\r\n0\r\n\r\n",
        UNSUPPORTED,
    ),
    (
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n{hidden}",
        &[413],
    ),
    (
        "CONNECT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{hidden}",
        UNSUPPORTED,
    ),
    (
        "CONNECT {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{hex}\r\n{hidden}\r\n0\r\n\r\n",
        UNSUPPORTED,
    ),
    (
        "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{hidden}",
        &[405],
    ),
    (
        "GET /v1/tunnel HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{hidden}",
        &[400, 401, 426],
    ),
    (
        "GET /v1/buckets HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{hidden}",
        &[401],
    ),
    (
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n{hidden}",
        BAD,
    ),
    (
        "POST {path} HTTP/3.0\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{hidden}",
        BAD,
    ),
];

/// Heads that never end, told and untold.
const UNFINISHED: &[&str] = &[
    "",
    "P",
    "POST",
    "POST ",
    "POST {path}",
    "POST {path} HTTP/1.1",
    "POST {path} HTTP/1.1\r",
    "POST {path} HTTP/1.1\r\n",
    "POST {path} HTTP/1.1\r\nHost",
    "POST {path} HTTP/1.1\r\nHost: x",
    "POST {path} HTTP/1.1\r\nHost: x\r\n",
    "POST {path} HTTP/1.1\r\nHost: x\r\n\r",
    "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n",
    "\r\n\r\n\r\n",
    "\r\nPOST",
];

pub(crate) fn cases(path: &str) -> Vec<Case> {
    let hidden = HIDDEN.replace("{path}", path);
    let fill = |text: &str| {
        text.replace("{hidden}", &hidden)
            .replace("{len}", &hidden.len().to_string())
            .replace("{hex}", &format!("{:x}", hidden.len()))
            .replace("{path}", path)
            .into_bytes()
    };
    let unread = UNREAD
        .iter()
        .map(|(text, statuses)| Case::refused(Kind::Connections, fill(text), statuses));
    let unfinished = UNFINISHED.iter().flat_map(|text| {
        let late = Case::refused(Kind::Connections, fill(text), LATE);
        let gone = Case::refused(Kind::Connections, fill(text), &[400, CLOSED]).hanging_up();
        [late, gone]
    });
    let (ended, next) = (closing(path, &hidden), sequences(path));
    unread.chain(unfinished).chain(ended).chain(next).collect()
}

/// After these nothing more is read.
fn closing(path: &str, hidden: &str) -> Vec<Case> {
    [
        "HTTP/1.1\r\nHost: x\r\nConnection: close",
        "HTTP/1.1\r\nHost: x\r\nconnection: CLOSE",
        "HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, close",
        "HTTP/1.1\r\nHost: x\r\nConnection: close, keep-alive",
        "HTTP/1.1\r\nHost: x\r\nConnection: close\r\nConnection: keep-alive",
        "HTTP/1.0",
        "HTTP/1.0\r\nConnection: close",
        "HTTP/1.0\r\nConnection: x",
    ]
    .into_iter()
    .map(|head| {
        let bytes = format!("POST {path}/last {head}\r\nContent-Length: 1\r\n\r\nx{hidden}");
        Case::accepted(
            Kind::Connections,
            bytes.into(),
            Arrival::new("POST", "/last", b"x"),
        )
    })
    .collect()
}

/// A request among others, and its answer.
type Part = (Vec<u8>, Answer);

fn good(path: &str, method: &str, n: usize) -> Part {
    let (tail, body) = (format!("/part/{n}"), n.to_string());
    let lines = format!("Content-Length: {}\r\n", body.len());
    let bytes = request(
        method,
        format!("{path}{tail}"),
        lines.as_bytes(),
        body.as_bytes(),
    );
    (
        bytes,
        Answer::Accepted(Arrival::new(method, &tail, body.as_bytes())),
    )
}

fn coded(path: &str, lines: &str, n: usize) -> Part {
    let (tail, lines) = (
        format!("/part/{n}"),
        format!("{lines}Transfer-Encoding: chunked\r\n"),
    );
    let bytes = request(
        "POST",
        format!("{path}{tail}"),
        lines.as_bytes(),
        b"1\r\nx\r\n0\r\n\r\n",
    );
    (bytes, Answer::Accepted(Arrival::new("POST", &tail, b"x")))
}

fn refused(target: &str) -> Part {
    let statuses: &[u16] = if target.contains("..") {
        &[400]
    } else {
        UNKNOWN
    };
    (request("POST", target, b"", b""), Answer::Refused(statuses))
}

fn sequence(parts: Vec<Part>) -> Case {
    let (bytes, answers): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    Case::new(Kind::Connections, bytes.concat(), answers)
}

/// Pipelines: every part is answered, in order.
fn sequences(path: &str) -> Vec<Case> {
    let one = |n| good(path, "POST", n);
    let climbing = format!("{path}/..");
    let mixed = |n: usize| match n % 5 {
        0 => one(n),
        1 => coded(path, "", n),
        2 => good(path, "HEAD", n),
        3 => refused("/in/nobody"),
        _ => refused(&climbing),
    };
    let blank = |n| {
        let (bytes, answer) = one(n);
        ([b"\r\n\n\r\n", bytes.as_slice()].concat(), answer)
    };
    let expecting = |n| coded(path, "Expect: 100-continue\r\n", n);
    let upgrading = |n| coded(path, "Connection: Upgrade\r\nUpgrade: h2c\r\n", n);
    let junk = |text: &str| (text.as_bytes().to_vec(), Answer::Refused(BAD));
    let mut cases: Vec<Case> = [2, 3, 10, 50]
        .into_iter()
        .flat_map(|count| {
            [
                sequence((0..count).map(one).collect()),
                sequence((0..count).map(mixed).collect()),
                sequence((0..count).map(blank).collect()),
                sequence((0..count).map(|n| coded(path, "", n)).collect()),
            ]
        })
        .collect();
    cases.extend([
        sequence(
            (0..200)
                .map(|_| refused("/in/nobody"))
                .chain([one(1)])
                .collect(),
        ),
        sequence(vec![expecting(1), one(2)]),
        sequence(vec![upgrading(1), one(2)]),
        sequence(vec![one(1), junk("junk\r\n\r\n")]),
        sequence(vec![one(1), junk("\0")]),
        sequence(vec![coded(path, "", 1), junk("5\r\nhello\r\n0\r\n\r\n")]),
        sequence(vec![one(1), refused(&climbing), one(2)]),
        sequence(vec![good(path, "HEAD", 1), one(2), good(path, "HEAD", 3)]),
    ]);
    let dripped: Vec<Case> = [2, 3]
        .map(|count| sequence((0..count).map(mixed).collect()))
        .into();
    cases
        .into_iter()
        .chain(dripped.into_iter().map(Case::dripping))
        .collect()
}
