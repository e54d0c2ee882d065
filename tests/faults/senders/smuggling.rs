//! Requests that two readers could cut in two ways (S4, S5). It must not know what hyper does: each
//! has one reading, or none.

use super::case::{Arrival, BAD, CLOSED, Case, Kind, LATE, UNKNOWN, UNSUPPORTED, request};

/// What a second reader would find. It must never arrive, nor be answered.
const HIDDEN: &str = "POST {path}/hidden HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nbad";

/// Header lines, what follows the head, and the body that is read. `{hidden}` is a hidden request,
/// `{len}` and `{hex}` its length, and `{all}` the length of what follows the head. Where both framings
/// are there, the chunks are read, and nothing after them; a lone LF ends a line, as RFC 9112 section
/// 2.2 has it; and what asks for another protocol stays this one.
const READ: &[(&str, &str, &str)] = &[
    (
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "5\r\nhello\r\n0\r\n\r\n{hidden}",
        "hello",
    ),
    (
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        "5\r\nhello\r\n0\r\n\r\n{hidden}",
        "hello",
    ),
    (
        "Content-Length: {all}\r\nTransfer-Encoding: chunked\r\n",
        "0\r\n\r\n{hidden}",
        "",
    ),
    (
        "Transfer-Encoding: chunked\r\nContent-Length: {all}\r\n",
        "0\r\n\r\n{hidden}",
        "",
    ),
    (
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "{hex}\r\n{hidden}\r\n0\r\n\r\n",
        "{hidden}",
    ),
    (
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "{hex}\r\n{hidden}\r\n0\r\n\r\n",
        "{hidden}",
    ),
    (
        "Content-Length: 3\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "0\r\n\r\n{hidden}",
        "",
    ),
    (
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\nContent-Length: 4\r\n",
        "0\r\n\r\n{hidden}",
        "",
    ),
    ("transfer-encoding: chunked\r\n", "1\r\nx\r\n0\r\n\r\n", "x"),
    ("TRANSFER-ENCODING: CHUNKED\r\n", "1\r\nx\r\n0\r\n\r\n", "x"),
    ("Transfer-Encoding: cHuNkEd\r\n", "1\r\nx\r\n0\r\n\r\n", "x"),
    ("Transfer-Encoding:chunked\r\n", "1\r\nx\r\n0\r\n\r\n", "x"),
    (
        "Transfer-Encoding:\tchunked\r\n",
        "1\r\nx\r\n0\r\n\r\n",
        "x",
    ),
    (
        "Transfer-Encoding:  \t chunked\t \r\n",
        "1\r\nx\r\n0\r\n\r\n",
        "x",
    ),
    ("Transfer-Encoding: chunked\n", "1\r\nx\r\n0\r\n\r\n", "x"),
    ("Content-Length: 1\n", "x", "x"),
    ("Content-Length: 3\r\n\nabc", "", "abc"),
    ("Content-Length: 3\r\nContent-Length: 3\r\n", "abc", "abc"),
    (
        "Content-Length: 3\r\ncontent-length: 3\r\nCONTENT-LENGTH: 3\r\n",
        "abc",
        "abc",
    ),
    ("Content-Length: 0003\r\n", "abc", "abc"),
    ("Content-Length: 3\r\nContent-Length: 03\r\n", "abc", "abc"),
    ("Content-Length: {len}\r\n", "{hidden}", "{hidden}"),
    (
        "Transfer-Encoding: chunked\r\nTrailer: X\r\n",
        "1\r\nx\r\n0\r\nX: y\r\n\r\n",
        "x",
    ),
    (
        "Transfer-Encoding: chunked\r\nTE: trailers\r\n",
        "1\r\nx\r\n0\r\nX: y\r\n\r\n",
        "x",
    ),
    (
        "Content-Length: 1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
        "x",
        "x",
    ),
    (
        "Content-Length: 1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "x",
        "x",
    ),
    (
        "Content-Length: 1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
        "x",
        "x",
    ),
    ("Content-Length: 1\r\nUpgrade: TLS/1.3\r\n", "x", "x"),
    ("Content-Length: 1\r\nExpect: 100-continue\r\n", "x", "x"),
    ("Content-Length: 1\r\nExpect: 200-maybe\r\n", "x", "x"),
    ("Expect: 100-continue\r\n", "", ""),
    ("", "", ""),
    ("Content-Length: 0\r\n", "", ""),
];

/// Chunks, and the body that is read. Extensions and trailers are dropped, whatever they name.
const CHUNKS: &[(&str, &str)] = &[
    ("{hex}\r\n{hidden}\r\n0\r\n\r\n", "{hidden}"),
    ("00000000000000005\r\nhello\r\n000\r\n\r\n", "hello"),
    ("5 \t\r\nhello\r\n0 \r\n\r\n", "hello"),
    ("5;a=b\r\nhello\r\n0;c\r\n\r\n", "hello"),
    ("5;a=\"1;2\"\r\nhello\r\n0\r\n\r\n", "hello"),
    ("5;\u{e9}\0\r\nhello\r\n0\r\n\r\n", "hello"),
    (
        "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
        "01234567890123456789",
    ),
    ("1\r\nx\r\n0\r\nX: y\r\n\r\n", "x"),
    ("1\r\nx\r\n0\r\nContent-Length: 999\r\n\r\n", "x"),
    ("1\r\nx\r\n0\r\nTransfer-Encoding: gzip\r\n\r\n", "x"),
    ("1\r\nx\r\n0\r\nHost: evil.test\r\n\r\n", "x"),
    ("1\r\nx\r\n0\r\nX-Whrelay-Event-Id: y\r\n\r\n", "x"),
];

/// Chunks that are none, before a hidden request.
const NO_CHUNKS: &[&str] = &[
    "5;a\nb\r\nhello\r\n0\r\n\r\n",
    "5;a\rb\r\nhello\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\rhello\r\n0\r\n\r\n",
    "5\r\rhello\r\n0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello\r0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "5\r\nhello world\r\n0\r\n\r\n",
    "6\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5 5\r\nhello\r\n0\r\n\r\n",
    "5g\r\nhello\r\n0\r\n\r\n",
    "5_0\r\nhello\r\n0\r\n\r\n",
    "\r\n5\r\nhello\r\n0\r\n\r\n",
    ";a\r\nhello\r\n0\r\n\r\n",
    "g\r\nhello\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "0\r\nX\r\n\r\n",
    "0\r\rX: y\r\n\r\n",
    "0\r\nX: y\rZ: a\r\n\r\n",
    "0\r\nX : y\r\n\r\n",
    "0\r\n X: y\r\n\r\n",
];

/// Header lines under which chunks cannot be told to be there, before a last chunk and a hidden request.
const NO_CODINGS: &[&str] = &[
    "Content-Length: 3\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    "Content-Length: x\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding: chunkedx\r\n",
    "Transfer-Encoding: chunk\r\n",
    "Transfer-Encoding: chunked;q=1\r\n",
    "Transfer-Encoding: chunked;\r\n",
    "Transfer-Encoding: \"chunked\"\r\n",
    "Transfer-Encoding: 'chunked'\r\n",
    "Transfer-Encoding: chunked,\r\n",
    "Transfer-Encoding: chunked chunked\r\n",
    "Transfer-Encoding: x chunked\r\n",
    "Transfer-Encoding:\r\n",
    "Transfer-Encoding: \u{e9}chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding\t: chunked\r\n",
    "Transfer-Encoding\u{b}: chunked\r\n",
    "Transfer-Encoding\0: chunked\r\n",
    "Transfer-Encoding: \u{b}chunked\r\n",
    "Transfer-Encoding: \u{c}chunked\r\n",
    "Transfer-Encoding: chunked\0\r\n",
    "Transfer-Encoding: chunked\u{7f}\r\n",
    " Transfer-Encoding: chunked\r\n",
    "\tTransfer-Encoding: chunked\r\n",
    "Transfer Encoding: chunked\r\n",
    "Transfer-Encoding\r\n: chunked\r\n",
    "Transfer-Encoding\r\n",
    ": chunked\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "Transfer-Encoding:\r\n\tchunked\r\n",
    "Transfer-Encoding:\n chunked\r\n",
    "X: y\r\n Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r",
    "X: y\rTransfer-Encoding: chunked\r\n",
];

/// Header lines with another coding before the chunks: whoever does not understand it must not pass its
/// bytes on as a body.
const OTHER_CODINGS: &[&str] = &[
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: identity, chunked\r\n",
    "Transfer-Encoding: deflate,chunked\r\n",
    "Transfer-Encoding: chunked, chunked\r\n",
    "Transfer-Encoding: xchunked, chunked\r\n",
    "Transfer-Encoding: , chunked\r\n",
    "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: \r\nTransfer-Encoding: chunked\r\n",
];

/// Header lines that tell no length, before three bytes and a hidden request.
const NO_LENGTHS: &[&str] = &[
    "Content-Length:\r\n 3\r\n",
    "Content-Length: 3\rTransfer-Encoding: chunked\r\n",
    "X: y\r\rContent-Length: 3\r\n",
    "\rContent-Length: 3\r\n",
    "Content-Length: 3\r\n\r",
    "Content-Length: 3\r\nContent-Length: 4\r\n",
    "Content-Length: 3, 3\r\n",
    "Content-Length: 3, 4\r\n",
    "Content-Length: 3,\r\n",
    "Content-Length: ,3\r\n",
    "Content-Length: +3\r\n",
    "Content-Length: -3\r\n",
    "Content-Length: 0x3\r\n",
    "Content-Length: 3h\r\n",
    "Content-Length: 3.0\r\n",
    "Content-Length: 3e0\r\n",
    "Content-Length: 3;\r\n",
    "Content-Length: 3 3\r\n",
    "Content-Length: \"3\"\r\n",
    "Content-Length: \u{663}\r\n",
    "Content-Length:\r\n",
    "Content-Length: 3\0\r\n",
    "Content-Length: 1_0\r\n",
    "Content-Length: 18446744073709551619\r\n",
    "Content-Length: 99999999999999999999999999\r\n",
    "Content-Length : 3\r\n",
    "Content-Length\t: 3\r\n",
    " Content-Length: 3\r\n",
];

/// Header lines, what follows, and how it is refused.
const REFUSED: &[(&str, &str, &[u16])] = &[
    (
        "Transfer-Encoding: gzip, chunked\r\nContent-Length: 3\r\n",
        "0\r\n\r\n{hidden}",
        UNSUPPORTED,
    ),
    ("Transfer-Encoding: identity\r\n", "{hidden}", BAD),
    (
        "Transfer-Encoding: identity\r\nContent-Length: 3\r\n",
        "{hidden}",
        BAD,
    ),
    (
        "Content-Length: 3\r\nTransfer-Encoding: identity\r\n",
        "{hidden}",
        BAD,
    ),
    ("Transfer-Encoding: gzip\r\n", "{hidden}", BAD),
    ("Content-Length: 3\r\n 3\r\n", "{hidden}", BAD),
    (
        "Content-Length: 0\r\nContent-Length: {len}\r\n",
        "{hidden}",
        BAD,
    ),
    (
        "Content-Length: {len}\r\nContent-Length: 0\r\n",
        "{hidden}",
        BAD,
    ),
    ("Content-Length: -0\r\n", "{hidden}", BAD),
    (
        "Content-Length: 18446744073709551615\r\n",
        "abc{hidden}",
        &[400, 413, 431, 0],
    ),
    (
        "Content-Length: 18446744073709551613\r\n",
        "abc{hidden}",
        &[400, 413, 431, 0],
    ),
    ("Content-Length: 1\r\nExpect: 100-continue\r\n", "", LATE),
    (
        "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n",
        "",
        LATE,
    ),
];

/// Whole requests, or what is none. `{path}` is an input URL's path.
const WHOLE: &[(&str, &[u16])] = &[
    ("POST {path}\r\n\r\n", BAD),
    ("GET {path}\r\n", BAD),
    ("GET {path}\n", BAD),
    ("POST {path} HTTP/0.9\r\nHost: x\r\n\r\n", BAD),
    ("POST {path} HTTP/1.2\r\nHost: x\r\n\r\n", BAD),
    ("POST {path} HTTP/1\r\nHost: x\r\n\r\n", BAD),
    ("POST {path} HTTP/1.10\r\nHost: x\r\n\r\n", BAD),
    ("POST {path} HTTP/2.0\r\nHost: x\r\n\r\n", BAD),
    ("POST {path} HTTP/2\r\nHost: x\r\n\r\n", BAD),
    ("POST {path} HTTP/9.9\r\nHost: x\r\n\r\n", BAD),
    ("POST {path} http/1.1\r\nHost: x\r\n\r\n", BAD),
    ("POST {path} HTTPS/1.1\r\nHost: x\r\n\r\n", BAD),
    ("POST {path} ICY/1.1\r\nHost: x\r\n\r\n", BAD),
    ("POST {path} HTTP/1.1 \r\nHost: x\r\n\r\n", BAD),
    ("POST {path} HTTP/1.1 x\r\nHost: x\r\n\r\n", BAD),
    ("POST  {path} HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("POST {path}  HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("POST\t{path} HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("POST {path}\tHTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    (" POST {path} HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("POST {path} HTTP/1.1\r\n\r\n", BAD),
    ("POST {path} HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", BAD),
    ("POST {path} HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", BAD),
    (
        "POST {path} HTTP/1.1\r\nHost: x\r\nA: 1\r\nhOST:\r\n\r\n",
        BAD,
    ),
    ("POST {path} HTTP/1.1\r\nHost: x:y\r\n\r\n", BAD),
    ("POST {path} HTTP/1.1\r\nHost: a@x\r\n\r\n", BAD),
    ("POST {path} HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", BAD),
    ("POST {path} HTTP/1.1\rHost: x\r\n\r\n", BAD),
    ("POST {path} HTTP/1.1\r\n Host: x\r\n\r\n", BAD),
    ("PRI * HTTP/2.0\r\n\r\nMS\r\n\r\n\0\0\0\u{4}\0\0\0\0\0", BAD),
    (
        "POST {path} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    (
        "POST {path} HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
        BAD,
    ),
    (
        "POST {path} HTTP/1.0\r\nContent-Length: 3\r\nTransfer-Encoding: identity\r\n\r\nabc",
        BAD,
    ),
    ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\r\n\r\n", BAD),
    ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", BAD),
    ("SSH-2.0-OpenSSH_9.9\r\n\r\n", BAD),
    ("{\"json\": 1}\r\n\r\n", BAD),
    ("\0\0\0\0\r\n\r\n", BAD),
    (
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nPOST {path} HTTP/1.1\r\n\r\n",
        BAD,
    ),
    ("POST * HTTP/1.1\r\nHost: x\r\n\r\n", UNKNOWN),
    ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", UNKNOWN),
    ("POST example.test:80 HTTP/1.1\r\nHost: x\r\n\r\n", UNKNOWN),
    (
        "POST http://example.test HTTP/1.1\r\nHost: x\r\n\r\n",
        UNKNOWN,
    ),
    (
        "POST http://example.test/ HTTP/1.1\r\nHost: x\r\n\r\n",
        UNKNOWN,
    ),
    (
        "POST http://example.test?{path} HTTP/1.1\r\nHost: x\r\n\r\n",
        UNKNOWN,
    ),
    ("POST http:{path} HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("POST http://{path} HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("POST http://x@{path} HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
];

/// Whole requests that are one request with an empty body.
const PLAIN: &[&str] = &[
    "POST http://x{path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST http://evil.test{path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST https://evil.test:1{path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST http://a:b@evil.test{path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST http://[::1]:9{path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST ftp://evil.test{path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "\r\nPOST {path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "\r\n\r\n\n\nPOST {path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST {path} HTTP/1.1\nHost: x\n\n",
    "POST {path} HTTP/1.0\r\n\r\n",
    "POST {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
];

/// Header lines, what follows, and the body that is read or the statuses of a refusal.
type Row = (String, String, Result<&'static str, &'static [u16]>);

/// The tables' rows in one shape.
fn framings() -> Vec<Row> {
    let chunked = "Transfer-Encoding: chunked\r\n";
    let row = |lines: &str, rest: &str, must| (lines.to_owned(), rest.to_owned(), must);
    let mut rows = Vec::new();
    rows.extend(
        READ.iter()
            .map(|(lines, rest, body)| row(lines, rest, Ok(*body))),
    );
    rows.extend(
        CHUNKS
            .iter()
            .map(|(rest, body)| row(chunked, rest, Ok(*body))),
    );
    let none = |rest: &&str| row(chunked, &format!("{rest}{{hidden}}"), Err(BAD));
    rows.extend(NO_CHUNKS.iter().map(none));
    let none = |lines: &&str| row(lines, "0\r\n\r\n{hidden}", Err(BAD));
    rows.extend(NO_CODINGS.iter().map(none));
    let other = |lines: &&str| row(lines, "1\r\nx\r\n0\r\n\r\n", Err(UNSUPPORTED));
    rows.extend(OTHER_CODINGS.iter().map(other));
    let none = |lines: &&str| row(lines, "abc{hidden}", Err(BAD));
    rows.extend(NO_LENGTHS.iter().map(none));
    rows.extend(
        REFUSED
            .iter()
            .map(|(lines, rest, how)| row(lines, rest, Err(*how))),
    );
    rows
}

pub(crate) fn cases(path: &str) -> Vec<Case> {
    let hidden = HIDDEN.replace("{path}", path);
    let fill = |text: &str, all: usize| {
        text.replace("{hidden}", &hidden)
            .replace("{len}", &hidden.len().to_string())
            .replace("{hex}", &format!("{:x}", hidden.len()))
            .replace("{all}", &all.to_string())
    };
    let framed = framings().into_iter().enumerate();
    let framed = framed.map(|(n, (lines, rest, must))| {
        let (rest, tail) = (fill(&rest, 0), format!("/framing/{n}"));
        let lines = fill(&lines, rest.len());
        let target = format!("{path}{tail}");
        let bytes = request("POST", &target, lines.as_bytes(), rest.as_bytes());
        match must {
            Err(statuses) => Case::refused(Kind::Smuggling, bytes, statuses),
            Ok(body) => {
                let arrival = Arrival::new("POST", &tail, fill(body, 0).as_bytes());
                Case::accepted(Kind::Smuggling, bytes, arrival)
            }
        }
    });
    let whole = |text: &str| text.replace("{path}", path).into_bytes();
    let none = WHOLE
        .iter()
        .map(|(text, statuses)| Case::refused(Kind::Smuggling, whole(text), statuses));
    let one = PLAIN.iter().map(|text| {
        let arrival = Arrival::new("POST", "", b"");
        Case::accepted(Kind::Smuggling, whole(text), arrival)
    });
    framed.chain(none).chain(one).chain(limits(path)).collect()
}

/// Chunk extensions and trailers that never end.
fn limits(path: &str) -> Vec<Case> {
    let (much, many) = ("a".repeat(17 * 1024), "T: y\r\n".repeat(101));
    const LARGE: &[u16] = &[431, CLOSED];
    [
        (format!("5;{much}\r\nhello\r\n0\r\n\r\n"), BAD),
        (format!("5\r\nhello\r\n0;{much}\r\n\r\n"), BAD),
        (format!("0\r\nT: {}\r\n\r\n", "a".repeat(65 * 1024)), LARGE),
        (format!("0\r\n{many}\r\n"), LARGE),
    ]
    .into_iter()
    .map(|(rest, answers)| {
        let lines = b"Transfer-Encoding: chunked\r\n";
        let bytes = request("POST", path, lines, rest.as_bytes());
        Case::refused(Kind::Smuggling, bytes, answers)
    })
    .collect()
}
