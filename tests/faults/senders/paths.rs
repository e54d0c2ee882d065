//! Request targets that try to get out of the base path, or into another bucket (S6, S7, S18). It must
//! not decode them: what is let through arrives as the bytes that were sent.

use super::case::{Arrival, BAD, Case, Kind, UNKNOWN, request};

/// Dots as senders write them.
const DOTS: &[&str] = &[".", "%2e", "%2E"];
/// What servers that decode once take for a slash.
const SLASHES: &[&str] = &["/", "%2f", "%2F", "\\", "%5c", "%5C"];

/// Dot segments in other surroundings.
const CLIMBS: &[&str] = &[
    "/..?x=1",
    "/..?",
    "/.?/a",
    "/../..",
    "/../../../../../../../../etc/passwd",
    "/a/../..",
    "/a/b/../../..",
    "/a//..//..//x",
    "//..",
    "///../",
    "/..//x",
    "/..;",
    "/..;x",
    "/..;x=y/z",
    "/..;/..;/x",
    "/.;/x",
    "/a/..;x=1;y=2/../b",
    "/%2e%2e;x/y",
    "/..%3b/x",
    "/..%3B..%3B/x",
    "/%2e%3bx/y",
    "/..\\..\\windows",
    "/..%5c..%5cwindows",
    "/..%2f..%2fetc",
    "/%2e%2e%2f%2e%2e%2f",
    "/%2E%2E%5C%2E%2E%5C",
    "/a\\..\\..\\b",
    "/a%2f%2e%2e%5c..",
    "/.%2e/.%2E/%2e./",
    "/./././.",
    "/a/./",
    "/./a",
    "/.",
    "/.//",
    "/x%2f.",
    "/x%5c.",
    "/x\\.",
    "/\u{e9}/../x",
    "/%e9/../x",
    "/%00/../x",
    "/%zz/../x",
    "/%/../x",
    "/%2/..",
    "/~/..",
];

/// Tails that only look like it, and everything else a path may be.
const KEPT: &[&str] = &[
    "",
    "/",
    "//",
    "///",
    "//x",
    "/x/",
    "/x//y",
    "//evil.test/x",
    "/http://evil.test/",
    "/@evil.test/",
    "/:80/x",
    "/...",
    "/....",
    "/.../x",
    "/..a",
    "/a..",
    "/a..b",
    "/.a",
    "/a.",
    "/.well-known/x",
    "/..%00",
    "/..%00/x",
    "/%00..",
    "/%2e%2e%00/x",
    "/..%20",
    "/%20../x",
    "/..%09/x",
    "/..%0d%0a/x",
    "/..%ff",
    "/%252e%252e/x",
    "/%252e%252e%252fx",
    "/%25252e%25252e/x",
    "/..%252fx",
    "/..%255cx",
    "/%c0%ae%c0%ae/x",
    "/%c0%2e%c0%2e/x",
    "/%e0%80%ae%e0%80%ae/x",
    "/%f0%80%80%ae/x",
    "/%c0%af../x",
    "/..%c0%af",
    "/..%c1%9c",
    "/..%e2%88%95x",
    "/%uff0e%uff0e/x",
    "/%u002e%u002e/x",
    "/%ef%bc%8e%ef%bc%8e/x",
    "/\u{ff0e}\u{ff0e}/x",
    "/\u{2025}/x",
    "/\u{2024}\u{2024}/x",
    "/..\u{2215}x",
    "/..\u{200b}/x",
    "/\u{202e}../x",
    "/\u{e9}",
    "/\u{1f980}/x",
    "/%e9",
    "/%C3%A9",
    "/%c3%a9",
    "/%ff%fe",
    "/%80",
    "/%00",
    "/a%00b",
    "/%0d%0aX:%20y",
    "/%0a",
    "/%0dx",
    "/%20",
    "/%20HTTP/1.1%0d%0aHost:%20evil.test%0d%0a%0d%0a",
    "/%",
    "/%%",
    "/%2",
    "/%2/",
    "/%g0",
    "/%0g",
    "/%zz",
    "/%-1",
    "/%2x%2x",
    "/a%2fb",
    "/a%2Fb",
    "/%2f",
    "/%2f%2f",
    "/%5c",
    "/%5C%5C",
    "/\\",
    "/\\\\evil.test\\share",
    "/a\\b",
    "/C:\\x",
    "/C:/x",
    "/;",
    "/;a=b",
    "/a;b;c",
    "/;..",
    "/a:b",
    "/a=b&c=d",
    "/a+b",
    "/a,b",
    "/$a",
    "/!a",
    "/*",
    "/(a)",
    "/[a]",
    "/{a}",
    "/|a",
    "/^a",
    "/~a",
    "/'a'",
    "/\"a\"",
    "/<a>",
    "/`a`",
    "/<\"`>/<\"`>",
    "/%3C<%22\"%~3C",
    "/\u{e9}<\u{e9}",
    "/hidden.php/.git/config",
    "/in/default-0000/x",
    "/v1/tunnel",
    "/healthz",
];

const QUERIES: &[&str] = &[
    "?",
    "??",
    "???",
    "?a",
    "?a=b",
    "?a=b&a=c",
    "?a=b&&c",
    "?=",
    "?&",
    "?;",
    "?a?b",
    "?a?b?c=d?",
    "?/",
    "?/../..",
    "?..",
    "?../../x",
    "?%2e%2e%2f",
    "?\\..\\",
    "?http://evil.test/",
    "?%",
    "?%zz",
    "?%00",
    "?%0d%0aX:%20y",
    "?%ff",
    "?\u{e9}=\u{1f980}",
    "?`",
    "?\"a\"",
    "?q=<a>",
    "?{\"a\":[\"<b>\"]}",
    "?{a}",
    "?|^",
    "?[]=1&[]=2",
    "?@evil.test",
];

/// A fragment is no part of a request's target: it ends there.
const FRAGMENTS: &[(&str, &str)] = &[
    ("#", ""),
    ("#x", ""),
    ("/#", "/"),
    ("/a#b", "/a"),
    ("/a#/../..", "/a"),
    ("/a?b#c", "/a?b"),
    ("/a#b?c", "/a"),
    ("?a#b#c", "?a"),
    ("/<#>", "/<"),
];

/// Bytes that no target may hold.
const NEVER: &[&[u8]] = &[
    b"\0", b"\x01", b"\x07", b"\x08", b"\t", b"\x0b", b"\x0c", b"\r", b"\n", b"\x1b", b"\x7f", b" ",
];

/// Bytes that are not UTF-8, whole and cut short, and characters that stand for such bytes inside.
const NO_TEXT: &[&[u8]] = &[
    b"\x80",
    b"\xff",
    b"\xc0\xae",
    b"\xc0\xae\xc0\xae/",
    b"\xe9",
    b"\xe9<\xe9",
    b"%\xe9~",
    b"\xed\xa0\x80",
    b"\xf0\x9f\xa6",
    b"\xf5\x80\x80\x80",
    "\u{10ff80}".as_bytes(),
    "\u{10ffff}\u{e9}".as_bytes(),
];

pub(crate) fn cases(path: &str) -> Vec<Case> {
    let climbing = climbs()
        .into_iter()
        .map(|tail| refused(path, tail.as_bytes()));
    let same = KEPT.iter().map(|tail| kept(path, tail));
    let on = ["", "/", "/x"];
    let queries = on
        .iter()
        .flat_map(|tail| QUERIES.iter().map(move |q| format!("{tail}{q}")));
    let queries = queries.map(|tail| kept(path, &tail));
    let fragments = FRAGMENTS.iter().map(|(sent, read)| {
        let target = format!("{path}{sent}");
        let bytes = request("POST", &target, b"Content-Length: 1\r\n", b"x");
        Case::accepted(Kind::Paths, bytes, Arrival::new("POST", read, b"x"))
    });
    let never = NEVER.iter().flat_map(|byte| {
        [b"/a".as_slice(), b"/", b"/a?b", b""].map(|before| [before, *byte, b"c"].concat())
    });
    let never = never.map(|tail| refused(path, &tail));
    let no_text = NO_TEXT.iter().flat_map(|bytes| {
        let tails = [b"/a".as_slice(), b"/", b"/a?b", b"?"];
        tails.map(|before| kept(path, [before, *bytes, b"c"].concat()))
    });
    let no_key = NO_TEXT.iter().map(|bytes| {
        let target = [path.as_bytes(), *bytes, b"c"].concat();
        let bytes = request("POST", &target, b"Content-Length: 1\r\n", b"x");
        Case::refused(Kind::Paths, bytes, UNKNOWN)
    });
    let keys = keys(path).into_iter().map(|target| {
        let bytes = request("POST", &target, b"Content-Length: 1\r\n", b"x");
        Case::refused(Kind::Paths, bytes, UNKNOWN)
    });
    let roots = ["in", "?x", "#x", "x/y", "..", "@x"].map(|target| {
        let bytes = request("POST", target, b"", b"");
        Case::refused(Kind::Paths, bytes, &[400, 404])
    });
    let cases = climbing.chain(same).chain(queries).chain(never).chain(keys);
    cases
        .chain(no_text)
        .chain(no_key)
        .chain(fragments)
        .chain(roots)
        .chain(long(path))
        .collect()
}

/// Every spelling of one and two dots, between every two kinds of slash.
fn climbs() -> Vec<String> {
    let mut tails: Vec<String> = CLIMBS.iter().map(|tail| (*tail).to_owned()).collect();
    let twice = DOTS
        .iter()
        .flat_map(|a| DOTS.iter().map(move |b| format!("{a}{b}")));
    let segments: Vec<String> = DOTS
        .iter()
        .map(|dot| (*dot).to_owned())
        .chain(twice)
        .collect();
    for segment in &segments {
        for slash in SLASHES {
            tails.push(format!("/{segment}{slash}x"));
            tails.push(format!("/a{slash}{segment}"));
            tails.push(format!("/a/b{slash}{segment}{slash}{segment}{slash}c"));
        }
    }
    tails
}

fn refused(path: &str, tail: &[u8]) -> Case {
    let target = [path.as_bytes(), tail].concat();
    let first = [b"POST ", target.as_slice(), b" HTTP/1.1\r\nHost: x\r\n"].concat();
    let bytes = [first.as_slice(), b"Content-Length: 1\r\n\r\nx"].concat();
    Case::refused(Kind::Paths, bytes, BAD)
}

fn kept(path: &str, tail: impl AsRef<[u8]>) -> Case {
    let target = [path.as_bytes(), tail.as_ref()].concat();
    let bytes = request("POST", &target, b"Content-Length: 1\r\n", b"x");
    Case::accepted(Kind::Paths, bytes, Arrival::new("POST", tail, b"x"))
}

/// What is almost the path of an input URL.
fn keys(path: &str) -> Vec<String> {
    let key = path.trim_start_matches("/in/");
    let (name, secret) = key.split_once('-').unwrap();
    let first = &key[..1];
    let swapped = |text: &str| -> String {
        let swap = |c: char| match c.is_ascii_lowercase() {
            true => c.to_ascii_uppercase(),
            false => c.to_ascii_lowercase(),
        };
        text.chars().map(swap).collect()
    };
    let encoded = |c: &str| format!("%{:02x}", c.as_bytes()[0]);
    let mut targets: Vec<String> = [
        "/", "/in", "/in/", "/in//", "/in/x", "/in/.", "/in?x", "/v1", "/index", "//", "/in/%00",
    ]
    .map(str::to_owned)
    .into();
    targets.extend([
        format!("{path}<c"),
        format!("{path}\""),
        format!("/in/{name}"),
        format!("/in/{name}-"),
        format!("/in/-{secret}"),
        format!("/in/{secret}"),
        format!("/in/{}-{secret}", name.to_uppercase()),
        format!("/in/{name}-{}", swapped(secret)),
        format!("/in/{name}_{secret}"),
        format!("/in/{name}%2d{secret}"),
        format!("/in/{}{}", encoded(first), &key[1..]),
        format!("/in/{key}%00"),
        format!("/in/{key}%20"),
        format!("/in/{key}x"),
        format!("/in/x{key}"),
        format!("/in/{key}{key}"),
        format!("/in/{key};x"),
        format!("/in/{key};/x"),
        format!("/in/{key}%2fx"),
        format!("/in/{key}%5cx"),
        format!("/in/{key}\\x"),
        format!("/in/{key}%3fx"),
        format!("/in/{key}%23x"),
        format!("/in/{key}."),
        format!("/in/{key}-"),
        format!("/in/ {key}").replace(' ', "%20"),
        format!("/in//{key}"),
        format!("//in/{key}"),
        format!("/./in/{key}"),
        format!("/x/../in/{key}"),
        format!("/%2e/in/{key}"),
        format!("/IN/{key}"),
        format!("/In/{key}"),
        format!("/%69n/{key}"),
        format!("/in%2f{key}"),
        format!("/in\\{key}"),
        format!("/in;x/{key}"),
        format!("/in/../in/{key}"),
        format!("/in/./{key}"),
        format!("/in/?{key}"),
        format!("/in?/{key}"),
        format!("/?/in/{key}"),
        format!("/x/in/{key}"),
        format!("/v1/in/{key}"),
    ]);
    targets.extend((0..secret.len()).map(|at| {
        let other = if &secret[at..=at] == "0" { "1" } else { "0" };
        format!("/in/{name}-{}{other}{}", &secret[..at], &secret[at + 1..])
    }));
    targets.extend((0..secret.len()).map(|at| format!("/in/{name}-{}", &secret[..at])));
    targets
}

/// Long ones, up to and over what a request head may be.
fn long(path: &str) -> Vec<Case> {
    let fit = [1_000, 8_000, 16_000, 60_000]
        .into_iter()
        .flat_map(|length| {
            let filled = |unit: &str| unit.repeat(length / unit.len());
            let tails =
                ["a", "/", "/a", "%2f", "%25", ";"].map(|unit| format!("/{}", filled(unit)));
            tails.into_iter().chain([format!("?{}", filled("a=b&"))])
        });
    let fit = fit.map(|tail| kept(path, &tail));
    let over = [65_600, 70_000, 200_000].map(|length| {
        let target = format!("{path}/{}", "a".repeat(length));
        Case::refused(
            Kind::Paths,
            request("POST", &target, b"", b""),
            &[414, 431, 0],
        )
    });
    let deep = [10, 1_000, 10_000]
        .map(|depth| refused(path, format!("{}/..", "/a".repeat(depth)).as_bytes()));
    fit.chain(over).chain(deep).collect()
}
