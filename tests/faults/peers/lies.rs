//! What a forwarder of ours never says, each with what an agent has to make of it. It must not know
//! how agents are run.

use whrelay_core::limits::{LARGEST_MAX_BODY, MAX_FRAME, MAX_HEAD, MAX_HEADERS, WINDOW_EVENTS};
use whrelay_proto::codec;
use whrelay_proto::frame::{
    Ack, EventHead, Events, Frame, Refused, RefusedCode, Welcome, WireEvent, WireHeader,
};

use super::frames::hello;
use super::mutants::event;
use super::rogue::{Answer, bucket_answer, http};
use super::socket::{BINARY, CLOSE, PING, PONG, TEXT, header, masked, plain};

/// What would make a terminal obey.
pub(crate) const ESCAPES: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\nfake\u{9b}31m\u{202e}\u{0}";

/// What the agent does about a lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Hangs up, and dials again.
    HangsUp,
    /// Takes it, and says that it has everything up to there on disk.
    Acks(u64),
}

/// A frame of a forwarder's, as a websocket message.
pub(crate) fn told(frame: Frame) -> Vec<u8> {
    plain(BINARY, &codec::encode(frame))
}

/// A welcome that goes on after a place.
pub(crate) fn welcome(start: u64) -> Welcome {
    Welcome {
        version: 1,
        forwarder: "rogue".into(),
        start,
        waiting: 0,
        ..Welcome::default()
    }
}

/// Events after a place, up to another.
pub(crate) fn events(after: u64, upto: u64, events: Vec<WireEvent>) -> Vec<u8> {
    told(Frame::Events(Events {
        after,
        upto,
        events,
    }))
}

/// Answers to an agent's first dial, or to its wish for a bucket, each with its exit code.
#[expect(clippy::too_many_lines, reason = "a table of cases")]
pub(crate) fn first() -> Vec<(&'static str, Answer, Answer, i32)> {
    let page = "<html><script>alert(1)</script>Please log in</html>";
    let problem = |status: &str| {
        let body = serde_json::json!({"detail": format!("no, {ESCAPES}")}).to_string();
        Answer::Bytes(http(
            status,
            "Content-Type: application/problem+json\r\n",
            &body,
        ))
    };
    let html = |status: &str| {
        Answer::Bytes(http(
            status,
            "Location: /login\r\nContent-Type: text/html\r\n",
            page,
        ))
    };
    let refused = |code| {
        let text = format!("no, {ESCAPES}");
        Answer::Tunnel(told(Frame::Refused(Refused { code, text })))
    };
    let version = |version| {
        Answer::Tunnel(told(Frame::Welcome(Welcome {
            version,
            ..welcome(0)
        })))
    };
    let endless = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"name\":\"";
    let (yes, no) = (bucket_answer, || Answer::Bytes(Vec::new()));
    vec![
        ("a portal for the bucket", html("200 OK"), no(), 5),
        ("a redirect for the bucket", html("302 Found"), no(), 5),
        ("401 for the bucket", problem("401 Unauthorized"), no(), 4),
        ("403 for the bucket", problem("403 Forbidden"), no(), 4),
        ("400 for the bucket", problem("400 Bad Request"), no(), 1),
        (
            "500 for the bucket",
            problem("500 Internal Server Error"),
            no(),
            5,
        ),
        (
            "503 for the bucket",
            problem("503 Service Unavailable"),
            no(),
            5,
        ),
        ("nothing for the bucket", no(), no(), 5),
        ("silence for the bucket", Answer::Silence, no(), 5),
        (
            "an endless bucket",
            Answer::Endless(endless.into()),
            no(),
            5,
        ),
        (
            "an endless error",
            Answer::Endless(endless.replace("200 OK", "500 No").into()),
            no(),
            5,
        ),
        ("a portal for the tunnel", yes(), html("200 OK"), 5),
        ("401 for the tunnel", yes(), problem("401 Unauthorized"), 4),
        ("403 for the tunnel", yes(), problem("403 Forbidden"), 4),
        (
            "503 for the tunnel",
            yes(),
            problem("503 Service Unavailable"),
            5,
        ),
        (
            "an endless tunnel",
            yes(),
            Answer::Endless(b"HTTP/1.1 101 Yes\r\nX-Long: ".to_vec()),
            5,
        ),
        ("no welcome", yes(), Answer::Tunnel(Vec::new()), 5),
        ("version 0", yes(), version(0), 1),
        ("version 99", yes(), version(99), 1),
        (
            "refused: unknown bucket",
            yes(),
            refused(RefusedCode::UnknownBucket),
            1,
        ),
        ("refused: version", yes(), refused(RefusedCode::Version), 1),
        (
            "refused: replaced",
            yes(),
            refused(RefusedCode::Replaced),
            6,
        ),
        (
            "refused: stopping",
            yes(),
            refused(RefusedCode::Stopping),
            5,
        ),
        (
            "refused: unavailable",
            yes(),
            refused(RefusedCode::Unavailable),
            5,
        ),
        (
            "refused: protocol",
            yes(),
            refused(RefusedCode::Protocol),
            5,
        ),
    ]
}

/// A lie to an agent that dials again.
pub(crate) type Lie = (String, Answer, Then);

/// As large as a frame may be, or larger: they take long to make.
const LARGE: [fn(u64) -> Lie; 2] = [
    |_| {
        let piece = vec![0; 1 << 20];
        let pieces = plain(0x00, &piece).repeat(MAX_FRAME / piece.len() + 1);
        let hail = told(Frame::Welcome(welcome(1)));
        let bytes = [hail, plain(0x02, b"x"), pieces].concat();
        (
            "fragments without end".into(),
            Answer::Tunnel(bytes),
            Then::HangsUp,
        )
    },
    |place| {
        let mut event = event(place + 1);
        event.body = vec![7; LARGEST_MAX_BODY + 1].into();
        let hail = told(Frame::Welcome(welcome(place)));
        let bytes = [hail, events(place, place + 1, vec![event])].concat();
        (
            "one byte over the largest body".into(),
            Answer::Tunnel(bytes),
            Then::Acks(place + 1),
        )
    },
];

/// How many lies there are.
pub(crate) fn count() -> usize {
    later(1).len() + LARGE.len()
}

/// One of them, for an agent that has the events up to a place.
pub(crate) fn nth(n: usize, place: u64) -> Lie {
    let mut small = later(place);
    match n.checked_sub(small.len()) {
        Some(n) => LARGE[n](place),
        None => small.swap_remove(n),
    }
}

fn later(place: u64) -> Vec<Lie> {
    let mut all: Vec<_> = shakes()
        .into_iter()
        .map(|(name, answer)| (name.to_owned(), answer, Then::HangsUp))
        .collect();
    let wrong = wrong(place).into_iter().chain(broken());
    all.extend(wrong.map(|(name, bytes)| (name.to_owned(), Answer::Tunnel(bytes), Then::HangsUp)));
    let odd = odd(place)
        .into_iter()
        .map(|(name, bytes, upto)| (name.to_owned(), Answer::Tunnel(bytes), Then::Acks(upto)));
    all.extend(odd);
    all
}

/// What is no tunnel. `ACCEPT` stands for the right key.
fn shakes() -> Vec<(&'static str, Answer)> {
    let switching = |lines: &str| {
        let head =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
        Answer::Bytes(format!("{head}{lines}\r\n").into_bytes())
    };
    let ours = "Sec-WebSocket-Protocol: whrelay.v1\r\n";
    let key = "Sec-WebSocket-Accept: ACCEPT\r\n";
    let status = |status: &str| {
        Answer::Bytes(http(
            status,
            "Location: http://127.0.0.1:1/\r\nContent-Type: text/html\r\n",
            "<html>",
        ))
    };
    vec![
        ("a portal", status("200 OK")),
        ("301", status("301 Moved Permanently")),
        ("302", status("302 Found")),
        ("307", status("307 Temporary Redirect")),
        ("401", status("401 Unauthorized")),
        ("403", status("403 Forbidden")),
        ("404", status("404 Not Found")),
        ("500", status("500 Internal Server Error")),
        ("503", status("503 Service Unavailable")),
        ("a hundred", status("100 Continue")),
        ("no subprotocol", switching(key)),
        (
            "another subprotocol",
            switching(&format!("{key}Sec-WebSocket-Protocol: mqtt\r\n")),
        ),
        (
            "a wrong key",
            switching(&format!("Sec-WebSocket-Accept: eA==\r\n{ours}")),
        ),
        ("no key", switching(ours)),
        (
            "no HTTP",
            Answer::Bytes(b"\0\x01\x02 SSH-2.0\r\n\r\n".to_vec()),
        ),
        ("nothing", Answer::Bytes(Vec::new())),
        ("no welcome", Answer::Tunnel(Vec::new())),
        ("silence", Answer::Silence),
    ]
}

/// Good frames in a wrong order, or with fields that cannot be.
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn wrong(place: u64) -> Vec<(&'static str, Vec<u8>)> {
    let hail = |start| told(Frame::Welcome(welcome(start)));
    let one = |after: u64| events(after, after + 1, vec![event(after + 1)]);
    let after = |more: Vec<u8>| [hail(place), more].concat();
    let with = |change: fn(&mut EventHead)| {
        let mut event = event(place + 1);
        change(&mut event.head);
        after(events(place, place + 1, vec![event]))
    };
    let many = || {
        (1..=u64::from(WINDOW_EVENTS) + 1)
            .map(|n| event(place + n))
            .collect()
    };
    let refused = |code| {
        told(Frame::Refused(Refused {
            code,
            text: ESCAPES.into(),
        }))
    };
    vec![
        ("welcome twice", after(hail(place))),
        ("events before welcome", one(place)),
        ("an ack", told(Frame::Ack(Ack { upto: 1 }))),
        (
            "an ack after welcome",
            after(told(Frame::Ack(Ack { upto: 1 }))),
        ),
        (
            "a hello",
            told(Frame::Hello(hello("default", "default", None))),
        ),
        (
            "a hello after welcome",
            after(told(Frame::Hello(hello("default", "default", None)))),
        ),
        ("a gap", after(one(place + 1))),
        ("events again", after([one(place), one(place)].concat())),
        (
            "events going back",
            after([one(place), one(place - 1)].concat()),
        ),
        (
            "events out of order",
            after(events(
                place,
                place + 2,
                vec![event(place + 2), event(place + 1)],
            )),
        ),
        (
            "a place twice",
            after(events(
                place,
                place + 2,
                vec![event(place + 1), event(place + 1)],
            )),
        ),
        (
            "a place already had",
            after(events(place, place + 1, vec![event(place)])),
        ),
        (
            "an event past the end",
            after(events(place, place + 1, vec![event(place + 2)])),
        ),
        (
            "an end before its beginning",
            after(events(place, place - 1, Vec::new())),
        ),
        ("nothing at all", after(events(place, place, Vec::new()))),
        (
            "events after the last place",
            [hail(u64::MAX), events(u64::MAX, 0, vec![event(0)])].concat(),
        ),
        (
            "more than the window",
            after(events(place, place + 10_000, many())),
        ),
        (
            "a tail without a root",
            with(|head| head.tail = "x/../y".into()),
        ),
        (
            "a tail that is an authority",
            with(|head| head.tail = "@127.0.0.1:1/".into()),
        ),
        (
            "too many header fields",
            with(|head| head.headers = vec![WireHeader("x".into(), Vec::new()); MAX_HEADERS + 1]),
        ),
        (
            "a head larger than any input takes",
            with(|head| head.query = Some("q".repeat(MAX_HEAD))),
        ),
        ("refused: stopping", refused(RefusedCode::Stopping)),
        (
            "refused: unavailable",
            after(refused(RefusedCode::Unavailable)),
        ),
        ("refused: protocol", after(refused(RefusedCode::Protocol))),
        (
            "refused for a later version's reason",
            refused(RefusedCode::Unknown),
        ),
    ]
}

/// Websocket and MessagePack broken.
fn broken() -> Vec<(&'static str, Vec<u8>)> {
    let after = |more: Vec<u8>| [told(Frame::Welcome(welcome(1))), more].concat();
    let packed = |kind: u8, head: &[u8]| {
        let length = u32::try_from(head.len()).unwrap().to_be_bytes();
        plain(BINARY, &[&[kind][..], &length, head].concat())
    };
    let good = codec::encode(Frame::Welcome(welcome(1)));
    vec![
        ("masked", masked(BINARY, &good)),
        ("reserved bits", plain(BINARY | 0x40, &good)),
        ("a bad opcode", after(plain(0x83, b"x"))),
        ("a ping in fragments", after(plain(0x09, b"x"))),
        ("a ping too large", after(plain(PING, &[0; 126]))),
        (
            "one byte too large",
            after(header(BINARY, MAX_FRAME as u64 + 1, 0)),
        ),
        ("2^63 bytes announced", header(BINARY, 1 << 63, 0)),
        ("text", after(plain(TEXT, ESCAPES.as_bytes()))),
        ("text that is none", after(plain(TEXT, &[0xff, 0xfe]))),
        ("a close", after(plain(CLOSE, &[3, 0xe8]))),
        (
            "a close with a bad code",
            after(plain(CLOSE, &[0xff, 0xff])),
        ),
        (
            "a close that speaks to terminals",
            after(plain(CLOSE, &[&[3, 0xe8][..], ESCAPES.as_bytes()].concat())),
        ),
        ("an empty message", plain(BINARY, b"")),
        ("half a welcome", plain(BINARY, &good[..good.len() / 2])),
        ("a type that is not there", after(packed(77, &[0x80]))),
        ("a welcome that nests", packed(2, &[0x91].repeat(1 << 20))),
        (
            "2^32 - 1 events",
            after(packed(
                4,
                &[
                    &[0x83, 0xa6][..],
                    b"events",
                    &[0xdd, 0xff, 0xff, 0xff, 0xff],
                ]
                .concat(),
            )),
        ),
        (
            "a welcome of 2^32 - 1 fields",
            packed(2, &[0xdf, 0xff, 0xff, 0xff, 0xff]),
        ),
        ("garbage", after(plain(BINARY, &[0xa5; 5000]))),
    ]
}

/// What is odd, and has to be taken.
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn odd(place: u64) -> Vec<(&'static str, Vec<u8>, u64)> {
    let next = place + 1;
    let one = || events(place, next, vec![event(next)]);
    let hailed = |welcome: Welcome| [told(Frame::Welcome(welcome)), one()].concat();
    let with = |change: fn(&mut WireEvent)| {
        let mut event = event(next);
        change(&mut event);
        [
            told(Frame::Welcome(welcome(place))),
            events(place, next, vec![event]),
        ]
        .concat()
    };
    let after = |more: Vec<u8>| [told(Frame::Welcome(welcome(place))), more].concat();
    let poison = || {
        told(Frame::Welcome(Welcome {
            forwarder: "poison".into(),
            ..welcome(0)
        }))
    };
    vec![
        (
            "the first clock",
            hailed(Welcome {
                clock: i64::MIN,
                ..welcome(place)
            }),
            next,
        ),
        (
            "the last clock",
            hailed(Welcome {
                clock: i64::MAX,
                ..welcome(place)
            }),
            next,
        ),
        (
            "all that can wait",
            hailed(Welcome {
                waiting: u64::MAX,
                ..welcome(place)
            }),
            next,
        ),
        (
            "a store without a name",
            hailed(Welcome {
                forwarder: String::new(),
                ..welcome(place)
            }),
            next,
        ),
        (
            "a store with a bad name",
            hailed(Welcome {
                forwarder: ESCAPES.repeat(1000),
                ..welcome(place)
            }),
            next,
        ),
        (
            "received first of all",
            with(|event| event.head.received_at = i64::MIN),
            next,
        ),
        (
            "received last of all",
            with(|event| event.head.received_at = i64::MAX),
            next,
        ),
        (
            "the id of nothing",
            with(|event| event.head.id = [0; 16]),
            next,
        ),
        (
            "the id of everything",
            with(|event| event.head.id = [0xff; 16]),
            next,
        ),
        (
            "a method to terminals",
            with(|event| event.head.method = ESCAPES.into()),
            next,
        ),
        (
            "a tail to terminals",
            with(|event| event.head.tail = format!("/{ESCAPES}")),
            next,
        ),
        (
            "a query to terminals",
            with(|event| event.head.query = Some(ESCAPES.into())),
            next,
        ),
        (
            "a body to terminals",
            with(|event| event.body = ESCAPES.repeat(50).into()),
            next,
        ),
        (
            "only missing events",
            after(events(place, place + 5, Vec::new())),
            place + 5,
        ),
        (
            "pings and pongs",
            after(
                [
                    plain(PING, b"x").repeat(1000),
                    plain(PONG, b"y").repeat(1000),
                    one(),
                ]
                .concat(),
            ),
            next,
        ),
        (
            "the last place",
            [poison(), events(0, u64::MAX, vec![event(u64::MAX)])].concat(),
            u64::MAX,
        ),
        (
            "past the last place",
            [poison(), events(0, u64::MAX, Vec::new())].concat(),
            u64::MAX,
        ),
    ]
}
