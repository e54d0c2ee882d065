//! Frames that no agent of ours sends, each with how the forwarder has to end the tunnel. It must
//! not know what a tunnel carries besides.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use whrelay_core::limits::{self, MAX_AGENT_FRAME};
use whrelay_proto::frame::{Ack, Events, Frame, Hello, Refused, RefusedCode, Resume, Welcome};
use whrelay_proto::{AgentSession, codec};

use super::SLACK;
use super::socket::{BINARY, CLOSE, Gate, PING, PONG, Socket, TEXT, header, masked, said};

/// The bucket that hostile agents may have.
pub(crate) const PREY: &str = "prey";
/// How soon a breach has to end the tunnel.
const ENDS_WITHIN: Duration = limits::HELLO_TIMEOUT.saturating_add(SLACK);
const TOGETHER: usize = 16;

/// How a tunnel has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// With this reason.
    Refused(RefusedCode),
    /// Closed, with a reason or without.
    Cut,
    /// It does not: the agent is welcome.
    Welcome,
}

/// What is sent, and whether after a good hello.
struct Case {
    name: String,
    live: bool,
    bytes: Vec<u8>,
    ends: Ends,
}

/// A good hello of an agent that wants the whole backlog.
pub(crate) fn hello(bucket: &str, subscription: &str, resume: Option<Resume>) -> Hello {
    let hello = Hello {
        backlog: Some(true),
        ..Hello::new(bucket, subscription, resume)
    };
    match AgentSession::begin(hello).1 {
        Frame::Hello(hello) => hello,
        other @ (Frame::Welcome(_) | Frame::Refused(_) | Frame::Events(_) | Frame::Ack(_)) => {
            panic!("a session begins with {}", other.name())
        }
    }
}

/// Tries them all. Answers with how many there were, and what went wrong.
pub(crate) async fn attack(gate: &Gate) -> (u64, Vec<String>) {
    let cases = [hellos(), misplaced(), breaches(), packed()]
        .into_iter()
        .flatten();
    let tries = cases.enumerate().map(|(n, case)| run(gate, n, case));
    let found: Vec<_> = stream::iter(tries)
        .buffer_unordered(TOGETHER)
        .collect()
        .await;
    (found.len() as u64, found.into_iter().flatten().collect())
}

async fn run(gate: &Gate, n: usize, case: Case) -> Option<String> {
    let Case {
        name,
        live,
        bytes,
        ends,
    } = case;
    let ended = play(gate, n, live, &bytes, ends).await;
    let when = if live { "after hello" } else { "before hello" };
    ended
        .err()
        .map(|why| format!("frames, {name}, {when}: {why}"))
}

async fn play(gate: &Gate, n: usize, live: bool, bytes: &[u8], ends: Ends) -> Result<(), String> {
    let mut socket = gate.enter().await?;
    if live {
        let hello = hello(PREY, &format!("case-{n}"), None);
        socket.send(&said(Frame::Hello(hello))).await;
        if !socket
            .until(ENDS_WITHIN, |heard| heard.welcome.is_some())
            .await
        {
            return Err(format!("not even welcomed, but {:?}", socket.heard.refused));
        }
    }
    socket.send(bytes).await;
    match ends {
        Ends::Welcome => welcome(&mut socket).await,
        Ends::Cut => cut(&mut socket).await,
        Ends::Refused(code) => {
            cut(&mut socket).await?;
            let said = socket.heard.refused.map(|refused| refused.code);
            (said == Some(code))
                .then_some(())
                .ok_or(format!("ended with {said:?}, not {code:?}"))
        }
    }
}

async fn cut(socket: &mut Socket) -> Result<(), String> {
    let cut = socket.until_cut(ENDS_WITHIN).await;
    cut.then_some(())
        .ok_or_else(|| format!("still open, after {:?}", socket.heard))
}

async fn welcome(socket: &mut Socket) -> Result<(), String> {
    let welcome = socket
        .until(ENDS_WITHIN, |heard| heard.welcome.is_some())
        .await;
    welcome
        .then_some(())
        .ok_or_else(|| format!("not welcome, but {:?}", socket.heard.refused))
}

/// Hellos with absurd fields.
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn hellos() -> Vec<Case> {
    let (unknown, version) = (
        Ends::Refused(RefusedCode::UnknownBucket),
        Ends::Refused(RefusedCode::Version),
    );
    let good = || hello(PREY, "absurd", None);
    let bucket = |name: &str| Hello {
        bucket: name.to_owned(),
        ..good()
    };
    let subscription = |name: &str| Hello {
        subscription: name.to_owned(),
        ..good()
    };
    let versions = |oldest, newest| Hello {
        oldest,
        newest,
        ..good()
    };
    let huge = "a".repeat(40_000);
    let mut table = vec![
        ("versions 0 to 0", versions(0, 0), version),
        ("versions 99 to 100", versions(99, 100), version),
        ("versions 100 to 0", versions(100, 0), version),
        ("versions 1 to 0", versions(1, 0), version),
        ("versions 0 to 65535", versions(0, u16::MAX), Ends::Welcome),
        (
            "no window",
            Hello {
                window_events: 0,
                window_bytes: 0,
                ..good()
            },
            Ends::Welcome,
        ),
        (
            "the largest window",
            Hello {
                window_events: u32::MAX,
                window_bytes: u64::MAX,
                ..good()
            },
            Ends::Welcome,
        ),
        (
            "software with a huge name",
            Hello {
                agent: huge.clone(),
                ..good()
            },
            Ends::Welcome,
        ),
        (
            "software with escapes",
            Hello {
                agent: "\u{1b}[31m\nfake\u{202e}".into(),
                ..good()
            },
            Ends::Welcome,
        ),
    ];
    for name in [
        "",
        "../x",
        "a/b",
        "PREY",
        "nowhere",
        "\0",
        "a\0b",
        "\u{1f600}",
        "\u{1b}[31m\r\nfake",
        "prey ",
        &huge,
    ] {
        table.push(("a bucket's name", bucket(name), unknown));
    }
    for name in [
        "",
        "../x",
        "a/b",
        "ME",
        "\0",
        "a\0b",
        "\u{1f600}",
        "\u{1b}[31m\r\nfake",
        "me ",
        &huge,
    ] {
        table.push(("a subscription's name", subscription(name), unknown));
    }
    let case = |(name, hello, ends): (&str, Hello, Ends)| {
        let short: String = format!("{:?} {:?}", hello.bucket, hello.subscription)
            .chars()
            .take(60)
            .collect();
        // Each has a place of its own, or they would replace each other.
        Case {
            name: format!("{name} {short}"),
            live: false,
            bytes: said(Frame::Hello(hello)),
            ends,
        }
    };
    let own = |(n, (name, mut hello, ends)): (usize, (&'static str, Hello, Ends))| {
        if hello.subscription == "absurd" {
            hello.subscription = format!("absurd-{n}");
        }
        case((name, hello, ends))
    };
    table.into_iter().enumerate().map(own).collect()
}

/// Good frames where they have no place.
fn misplaced() -> Vec<Case> {
    let breach = Ends::Refused(RefusedCode::Protocol);
    let case = |(name, live, frame): (&str, bool, Frame)| Case {
        name: name.to_owned(),
        live,
        bytes: said(frame),
        ends: breach,
    };
    let welcome = || {
        Frame::Welcome(Welcome {
            version: 1,
            forwarder: "x".into(),
            start: 0,
            waiting: 0,
            ..Welcome::default()
        })
    };
    let refused = || {
        Frame::Refused(Refused {
            code: RefusedCode::Replaced,
            text: "x".into(),
        })
    };
    let events = || {
        Frame::Events(Events {
            after: 0,
            upto: 1,
            events: Vec::new(),
        })
    };
    let table = [false, true].into_iter().flat_map(|live| {
        [
            ("welcome", live, welcome()),
            ("refused", live, refused()),
            ("events", live, events()),
            ("an ack of 0", live, Frame::Ack(Ack { upto: 0 })),
            ("an ack of 1", live, Frame::Ack(Ack { upto: 1 })),
            (
                "an ack of the last place",
                live,
                Frame::Ack(Ack { upto: u64::MAX }),
            ),
        ]
    });
    let twice = (
        "hello twice",
        true,
        Frame::Hello(hello(PREY, "twice", None)),
    );
    table.chain([twice]).map(case).collect()
}

/// Breaches of websocket itself, before a hello and after one.
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn breaches() -> Vec<Case> {
    let ack = codec::encode(Frame::Ack(Ack { upto: 1 }));
    let many = |bytes: Vec<u8>, times: usize| bytes.repeat(times);
    let over = MAX_AGENT_FRAME as u64 + 1;
    let mut table: Vec<(String, Vec<u8>)> = vec![
        ("unmasked".into(), super::socket::plain(BINARY, &ack)),
        ("one byte too large".into(), header(BINARY, over, 0x80)),
        (
            "one byte too large, and all of it".into(),
            masked(BINARY, &vec![0; over as usize]),
        ),
        ("2^31 bytes announced".into(), header(BINARY, 1 << 31, 0x80)),
        ("2^63 bytes announced".into(), header(BINARY, 1 << 63, 0x80)),
        (
            "2^64 - 1 bytes announced".into(),
            header(BINARY, u64::MAX, 0x80),
        ),
        (
            "fragments without end".into(),
            [masked(0x02, b"a"), many(masked(0x00, &[b'a'; 100]), 1000)].concat(),
        ),
        (
            "a fragment that continues nothing".into(),
            masked(0x80, b"a"),
        ),
        (
            "a message within a message".into(),
            [masked(0x02, b"a"), masked(BINARY, &ack)].concat(),
        ),
        ("a ping in fragments".into(), masked(0x09, b"a")),
        ("a close in fragments".into(), masked(0x08, b"")),
        ("a ping too large".into(), masked(PING, &[0; 126])),
        ("a pong too large".into(), masked(PONG, &[0; 200])),
        ("text".into(), masked(TEXT, b"hello")),
        (
            "text that is none".into(),
            masked(TEXT, &[0xff, 0xfe, 0xc0]),
        ),
        (
            "text in fragments".into(),
            [masked(0x01, b"a"), masked(0x80, b"b")].concat(),
        ),
        ("a close of one byte".into(), masked(CLOSE, &[3])),
        (
            "a close with text that is none".into(),
            masked(CLOSE, &[3, 0xe8, 0xff, 0xfe]),
        ),
        (
            "a close, and a frame after it".into(),
            [masked(CLOSE, &[3, 0xe8]), masked(BINARY, &ack)].concat(),
        ),
        ("an empty message".into(), masked(BINARY, b"")),
    ];
    for bit in [0x40, 0x20, 0x10, 0x70] {
        table.push((
            format!("reserved bits {bit:#x}"),
            masked(BINARY | bit, &ack),
        ));
    }
    for opcode in (3..8).chain(11..16) {
        table.push((format!("opcode {opcode}"), masked(0x80 | opcode, &ack)));
    }
    for code in [0u16, 999, 1004, 1005, 1006, 1015, 2999, 5000, u16::MAX] {
        table.push((
            format!("a close with code {code}"),
            masked(CLOSE, &code.to_be_bytes()),
        ));
    }
    let both = |(name, bytes): (String, Vec<u8>)| {
        [false, true].map(|live| Case {
            name: name.clone(),
            live,
            bytes: bytes.clone(),
            ends: Ends::Cut,
        })
    };
    let silent = Case {
        name: "nothing".into(),
        live: false,
        bytes: Vec::new(),
        ends: Ends::Cut,
    };
    let half = Case {
        name: "half a header".into(),
        live: false,
        bytes: vec![BINARY, 0xfe],
        ends: Ends::Cut,
    };
    let rest = Case {
        name: "half a frame".into(),
        live: false,
        bytes: header(BINARY, 500, 0x80),
        ends: Ends::Cut,
    };
    table
        .into_iter()
        .flat_map(both)
        .chain([silent, half, rest])
        .collect()
}

/// Heads that are no MessagePack of ours, for every type.
fn packed() -> Vec<Case> {
    let nested = |depth: usize| [&[0x91].repeat(depth)[..], &[0xc0]].concat();
    let unknown = [
        &[0x82, 0xa1, b'x'][..],
        &nested(50_000),
        &[0xa4],
        b"upto",
        &[1],
    ]
    .concat();
    let heads: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("nil", vec![0xc0]),
        ("a type that is reserved", vec![0xc1]),
        ("2^32 - 1 fields", vec![0xdf, 0xff, 0xff, 0xff, 0xff]),
        ("2^32 - 1 elements", vec![0xdd, 0xff, 0xff, 0xff, 0xff]),
        ("text of 2^32 - 1 bytes", vec![0xdb, 0xff, 0xff, 0xff, 0xff]),
        ("2^32 - 1 bytes", vec![0xc6, 0xff, 0xff, 0xff, 0xff]),
        (
            "an extension of 2^32 - 1 bytes",
            vec![0xc9, 0xff, 0xff, 0xff, 0xff, 1],
        ),
        (
            "a field twice",
            [&[0x82, 0xa4][..], b"upto", &[1, 0xa4], b"upto", &[1]].concat(),
        ),
        (
            "a negative place",
            [&[0x81, 0xa4][..], b"upto", &[0xff]].concat(),
        ),
        (
            "a place that is text",
            [&[0x81, 0xa4][..], b"upto", &[0xa1, b'1']].concat(),
        ),
        ("nesting", nested(60_000)),
        ("an unknown field that nests", unknown),
    ];
    let breach = Ends::Refused(RefusedCode::Protocol);
    let mut cases = Vec::new();
    for kind in [0, 1, 2, 3, 4, 5, 6, 255] {
        for (name, head) in &heads {
            let length = u32::try_from(head.len()).unwrap().to_be_bytes();
            let bytes = [&[kind][..], &length, head].concat();
            let name = format!("type {kind}, {name}");
            cases.push(Case {
                name,
                live: false,
                bytes: masked(BINARY, &bytes),
                ends: breach,
            });
        }
    }
    let good = codec::encode(Frame::Hello(hello(PREY, "short", None)));
    for end in 0..good.len() {
        let name = format!("a hello cut after {end} bytes");
        cases.push(Case {
            name,
            live: false,
            bytes: masked(BINARY, &good[..end]),
            ends: breach,
        });
    }
    cases
}
