//! What a hostile receiver can do to a request, as a table. It must not know how that is done, nor
//! what becomes of the event: it says what the product has to have seen.

use std::time::Duration;

use self::Seen::{Broken, TimedOut};
use self::Step::{Ahead, Betray, Drip, Forever, Hang, Lead, Next, Pause, Reset, Say, Times};

/// Attempts over the whole exchange, so that the modes that never end do.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(3);
/// The one pause of the schedule under attack.
pub(crate) const PAUSE: Duration = Duration::from_millis(300);
/// More than the kernel takes for a receiver that does not read.
const LARGE: usize = 8 << 20;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Longer than the timeout.
const TOO_LATE: Duration = Duration::from_millis(3600);
/// Lets what was said arrive before what comes next.
const MOMENT: Duration = Duration::from_millis(50);

/// What the product has to have seen of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// An answer with this status, whatever came of its body.
    Status(u16),
    /// A connection without an answer.
    Broken,
    /// Nothing within its time.
    TimedOut,
}

impl Seen {
    pub(crate) fn status(self) -> Option<u16> {
        match self {
            Self::Status(status) => Some(status),
            Self::Broken | Self::TimedOut => None,
        }
    }
}

/// How much of a request is read before it is answered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reads {
    Whole,
    /// As fast as a body of [`LARGE`] bytes takes longer than its time.
    Slowly,
    Nothing,
}

/// One thing that is done on the connection; after the last one it is closed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Say(&'static [u8]),
    Times(usize, &'static [u8]),
    /// Until the other side closes.
    Forever(&'static [u8]),
    /// Byte by byte, each after a pause.
    Drip(Duration, &'static [u8]),
    /// A status line, and no body.
    Status(u16),
    /// A `Location` that leads to the canary.
    Lead,
    /// A `Retry-After` with the date so many seconds ahead.
    Ahead(u8),
    Pause(Duration),
    /// Neither reads nor says anything: the other side has to close.
    Hang,
    Reset,
    /// Waits for the next request, and closes without an answer to it.
    Betray,
    /// Goes on with the next request.
    Next,
}

/// The wait that an answer asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asks {
    pub(crate) least: Duration,
    pub(crate) most: Duration,
}

/// What is done with an event's first requests, before it is answered as it should be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    /// The fault's id.
    pub(crate) fault: &'static str,
    /// The path it is asked for under, behind its slash.
    pub(crate) name: &'static str,
    pub(crate) seen: Seen,
    pub(crate) steps: &'static [Step],
    pub(crate) reads: Reads,
    /// Bytes of the event's body.
    pub(crate) body: usize,
    /// Events.
    pub(crate) events: usize,
    pub(crate) asks: Option<Asks>,
    /// Bytes with which the answer that is kept has to begin.
    pub(crate) kept: &'static [u8],
}

impl Mode {
    const fn with(
        fault: &'static str,
        name: &'static str,
        seen: Seen,
        steps: &'static [Step],
    ) -> Self {
        Self {
            fault,
            name,
            seen,
            steps,
            reads: Reads::Whole,
            body: 16,
            events: 1,
            asks: None,
            kept: b"",
        }
    }

    const fn large(self, reads: Reads) -> Self {
        Self {
            reads,
            body: LARGE,
            ..self
        }
    }

    const fn unread(self) -> Self {
        Self {
            reads: Reads::Nothing,
            ..self
        }
    }

    const fn keeps(self, kept: &'static [u8]) -> Self {
        Self { kept, ..self }
    }

    const fn asks(self, least: u64, most: u64) -> Self {
        let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
        Self {
            asks: Some(Asks { least, most }),
            ..self
        }
    }

    const fn asks_for_a_day(self) -> Self {
        Self {
            asks: Some(Asks {
                least: DAY,
                most: DAY,
            }),
            ..self
        }
    }

    const fn repeated(self, events: usize) -> Self {
        Self { events, ..self }
    }

    /// Whether it puts an event off for longer than an attack lasts.
    pub(crate) fn puts_off(&self) -> bool {
        self.asks.is_some_and(|asks| asks.least >= DAY)
    }
}

/// A header field of so many bytes.
const fn field<const LENGTH: usize>() -> [u8; LENGTH] {
    let mut field = [b'a'; LENGTH];
    (field[0], field[1]) = (b'X', b':');
    (field[LENGTH - 2], field[LENGTH - 1]) = (b'\r', b'\n');
    field
}

/// An answer with this status was seen.
const fn answered(status: u16) -> Seen {
    Seen::Status(status)
}

/// Every status from 200 to 599, and some that there are not.
pub(crate) fn matrix() -> Vec<Mode> {
    let statuses = (200..600).chain([600, 799, 999]);
    let row = |status: u16| {
        // As long as the attack.
        let name: &'static str = format!("status/{status}").leak();
        let steps: &'static [Step] = vec![Step::Status(status), Step::Next].leak();
        let fault = if status == 410 { "R13" } else { "R14" };
        Mode::with(fault, name, answered(status), steps)
    };
    statuses.map(row).collect()
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n";
const LONG_FIELD: &[u8] = &field::<900>();
const LONGER_FIELD: &[u8] = &field::<2250>();
const NINE_HUNDRED: &[u8] = &[b'a'; 900];
const ZEROS: &[u8] = &[0; 16 << 10];
const MEGABYTE: &[u8] = &[b'k'; 1 << 20];
const KEPT: &[u8] = &[b'k'; 4096];
/// gzip: a head, one zero, and then 8 times 258 zeros in every 13 bytes.
const BOMB: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x62";
const BOMB_TURN: &[u8] = b"\x18\x05\xa3\x60\x14\x8c\x82\x51\x30\x0a\x46\xc1\x28";
/// Clears a screen, rings, reorders and rewrites a line, in 7 and in 8 bits.
const ESCAPES: &[u8] = b"\x1b[2J\x1b]0;owned\x07\r\x08\x7f\0\xc2\x9b31m\xe2\x80\xaeevil\n";

const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Every mode but the matrix of statuses.
pub(crate) static MODES: &[Mode] = &[
    // Connections and time.
    Mode::with("R2", "never-answers", TimedOut, &[Hang]),
    Mode::with("R2", "closes-unread", Broken, &[]).unread(),
    Mode::with("R2", "reads-and-closes", Broken, &[]),
    Mode::with("R2", "reads-and-resets", Broken, &[Reset]),
    Mode::with("R3", "drips-a-head", TimedOut, &[Say(HEAD), Drip(MOMENT, LONG_FIELD)]),
    Mode::with("R3", "drips-an-answer-in-time", answered(200), &[Drip(Duration::from_millis(5), OK), Next]),
    Mode::with("R3", "head-without-end", TimedOut, &[Say(HEAD), Hang]),
    Mode::with("R3", "endless-headers", answered(200), &[Say(HEAD), Forever(b"X-More: and more\r\n")]),
    Mode::with("R3", "endless-header", answered(200), &[Say(HEAD), Say(b"X-Long: "), Forever(b"a")]),
    Mode::with("R3", "head-of-180-kb", answered(200), &[Say(HEAD), Times(80, LONGER_FIELD), Say(b"Content-Length: 0\r\n\r\n")]),
    Mode::with("R3", "head-of-54-kb", answered(200), &[Say(HEAD), Times(60, LONG_FIELD), Say(b"Content-Length: 0\r\n\r\n")]),
    Mode::with("R15", "ten-thousand-headers", answered(200), &[Say(HEAD), Times(10_000, b"A: b\r\n"), Say(b"\r\n")]),
    // Bodies without end.
    Mode::with("R4", "endless-body", answered(200), &[Say(b"HTTP/1.1 200 OK\r\n\r\n"), Forever(ZEROS)]),
    Mode::with("R4", "ten-gigabytes", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n"), Forever(ZEROS)]),
    Mode::with("R4", "ten-gigabytes-promised", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\nok"), Hang]),
    Mode::with("R4", "endless-chunks", answered(200), &[Say(CHUNKED), Forever(b"10\r\n0123456789abcdef\r\n")]),
    Mode::with("R4", "endless-chunks-of-a-byte", answered(200), &[Say(CHUNKED), Forever(b"1\r\nx\r\n")]),
    Mode::with("R4", "endless-chunk-extension", answered(200), &[Say(CHUNKED), Say(b"1;"), Forever(b"a")]),
    Mode::with("R4", "endless-trailers", answered(200), &[Say(CHUNKED), Say(b"0\r\n"), Forever(b"X-More: and more\r\n")]),
    Mode::with("R4", "endless-body-of-a-failure", answered(500), &[Say(b"HTTP/1.1 500 Oh\r\n\r\n"), Forever(ZEROS)]),
    Mode::with("R4", "drips-a-body", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), Drip(MOMENT, NINE_HUNDRED)]),
    Mode::with("R4", "a-megabyte", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n"), Say(MEGABYTE), Next]).keeps(KEPT),
    Mode::with("R5", "gzip-bomb", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"), Say(BOMB), Forever(BOMB_TURN)]).keeps(BOMB),
    Mode::with("R5", "gzip-bomb-of-a-failure", answered(503), &[Say(b"HTTP/1.1 503 Oh\r\nContent-Encoding: gzip\r\n\r\n"), Say(BOMB), Forever(BOMB_TURN)]).keeps(BOMB),
    // Redirects.
    Mode::with("R6", "leads-away-301", answered(301), &[Say(b"HTTP/1.1 301 Go\r\nContent-Length: 0\r\n"), Lead, Next]),
    Mode::with("R6", "leads-away-302", answered(302), &[Say(b"HTTP/1.1 302 Go\r\nContent-Length: 0\r\n"), Lead, Next]),
    Mode::with("R6", "leads-away-303", answered(303), &[Say(b"HTTP/1.1 303 Go\r\nContent-Length: 0\r\n"), Lead, Next]),
    Mode::with("R6", "leads-away-307", answered(307), &[Say(b"HTTP/1.1 307 Go\r\nContent-Length: 0\r\n"), Lead, Next]),
    Mode::with("R6", "leads-away-308", answered(308), &[Say(b"HTTP/1.1 308 Go\r\nContent-Length: 0\r\n"), Lead, Next]),
    Mode::with("R6", "leads-away-201", answered(201), &[Say(b"HTTP/1.1 201 Go\r\nContent-Length: 0\r\n"), Lead, Next]),
    Mode::with("R6", "leads-in-a-circle", answered(302), &[Say(b"HTTP/1.1 302 Go\r\nContent-Length: 0\r\nLocation: /leads-in-a-circle\r\n\r\n"), Next]),
    // Answers before the answer.
    Mode::with("R7", "continue-1000-times", answered(200), &[Times(1000, CONTINUE), Say(OK), Next]),
    Mode::with("R7", "continue-for-ever", TimedOut, &[Forever(CONTINUE)]),
    Mode::with("R7", "processing-1000-times", answered(200), &[Times(1000, b"HTTP/1.1 102 Processing\r\n\r\n"), Say(OK), Next]),
    Mode::with("R7", "hints-1000-times", answered(200), &[Times(1000, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), Say(OK), Next]),
    Mode::with("R7", "hints-for-ever", TimedOut, &[Forever(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")]),
    Mode::with("R15", "switches-protocols", answered(101), &[Say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x05hello"), Hang]),
    Mode::with("R15", "offers-an-upgrade", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n"), Next]),
    // Cut off.
    Mode::with("R8", "reset-within-the-head", Broken, &[Say(b"HTTP/1.1 200 O"), Pause(MOMENT), Reset]),
    Mode::with("R8", "closed-within-the-head", Broken, &[Say(b"HTTP/1.1 200 OK\r\nX: ")]),
    Mode::with("R8", "failure-reset-within-the-body", answered(500), &[Say(b"HTTP/1.1 500 Oh\r\nContent-Length: 100\r\n\r\nhalf"), Pause(MOMENT), Reset]),
    Mode::with("R8", "failure-shorter-than-it-says", answered(503), &[Say(b"HTTP/1.1 503 Oh\r\nContent-Length: 100\r\n\r\nhalf")]),
    Mode::with("R9", "reset-within-the-body", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), Pause(MOMENT), Reset]),
    Mode::with("R9", "reset-behind-the-head", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"), Pause(MOMENT), Reset]),
    Mode::with("R9", "shorter-than-it-says", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")]),
    Mode::with("R9", "longer-than-it-says", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"), Say(NINE_HUNDRED)]),
    Mode::with("R9", "chunk-size-of-letters", answered(200), &[Say(CHUNKED), Say(b"zz\r\nok\r\n0\r\n\r\n")]),
    Mode::with("R9", "chunk-size-of-20-digits", answered(200), &[Say(CHUNKED), Say(b"fffffffffffffffffff\r\nok\r\n0\r\n\r\n")]),
    Mode::with("R9", "negative-chunk-size", answered(200), &[Say(CHUNKED), Say(b"-1\r\nok\r\n0\r\n\r\n")]),
    Mode::with("R9", "chunks-cut-off", answered(200), &[Say(CHUNKED), Say(b"ff\r\nok")]),
    Mode::with("R10", "late-success", TimedOut, &[Pause(TOO_LATE), Say(OK)]),
    Mode::with("R10", "late-refusal", TimedOut, &[Pause(TOO_LATE), Say(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")]),
    // Kept connections.
    Mode::with("R11", "closes-after-each-answer", answered(200), &[Say(OK)]).repeated(5),
    Mode::with("R11", "resets-after-each-answer", answered(200), &[Say(OK), Pause(MOMENT), Reset]).repeated(5),
    Mode::with("R11", "closes-at-the-next-request", answered(200), &[Say(OK), Betray]).repeated(10),
    Mode::with("R11", "says-close-and-stays", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"), Hang]),
    Mode::with("R11", "answers-twice", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"), Next]).repeated(5),
    Mode::with("R11", "no-content-with-a-body", answered(204), &[Say(b"HTTP/1.1 204 No\r\nContent-Length: 45\r\n\r\nHTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"), Next]).repeated(5),
    // Asks for a wait.
    Mode::with("R12", "wait-2-seconds", answered(429), &[Say(b"HTTP/1.1 429 Wait\r\nContent-Length: 0\r\nRetry-After: 2\r\n\r\n"), Next]).asks(2000, 2000),
    Mode::with("R12", "unavailable-for-2-seconds", answered(503), &[Say(b"HTTP/1.1 503 Wait\r\nContent-Length: 0\r\nRetry-After: 2\r\n\r\n"), Next]).asks(2000, 2000),
    Mode::with("R12", "fails-for-2-seconds", answered(500), &[Say(b"HTTP/1.1 500 Wait\r\nContent-Length: 0\r\nRetry-After: 2\r\n\r\n"), Next]).asks(2000, 2000),
    Mode::with("R12", "wait-0-seconds", answered(429), &[Say(b"HTTP/1.1 429 Wait\r\nContent-Length: 0\r\nRetry-After: 0\r\n\r\n"), Next]),
    Mode::with("R12", "wait-since-1994", answered(503), &[Say(b"HTTP/1.1 503 Wait\r\nContent-Length: 0\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"), Next]),
    Mode::with("R12", "wait-until-a-date", answered(503), &[Say(b"HTTP/1.1 503 Wait\r\nContent-Length: 0\r\n"), Ahead(4), Next]).asks(2500, 4000),
    Mode::with("R12", "wait-for-ever", answered(429), &[Say(b"HTTP/1.1 429 Wait\r\nContent-Length: 0\r\nRetry-After: 99999999999999999999999\r\n\r\n"), Next]).asks_for_a_day(),
    Mode::with("R12", "wait-until-9999", answered(503), &[Say(b"HTTP/1.1 503 Wait\r\nContent-Length: 0\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n\r\n"), Next]).asks_for_a_day(),
    Mode::with("R12", "wait-a-negative-time", answered(503), &[Say(b"HTTP/1.1 503 Wait\r\nContent-Length: 0\r\nRetry-After: -5\r\n\r\n"), Next]),
    Mode::with("R12", "wait-a-fraction", answered(429), &[Say(b"HTTP/1.1 429 Wait\r\nContent-Length: 0\r\nRetry-After: 1.5\r\n\r\n"), Next]),
    Mode::with("R12", "wait-a-word", answered(429), &[Say(b"HTTP/1.1 429 Wait\r\nContent-Length: 0\r\nRetry-After: soon\r\n\r\n"), Next]),
    Mode::with("R12", "wait-without-a-value", answered(503), &[Say(b"HTTP/1.1 503 Wait\r\nContent-Length: 0\r\nRetry-After: \r\n\r\n"), Next]),
    Mode::with("R12", "wait-of-8-bits", answered(503), &[Say(b"HTTP/1.1 503 Wait\r\nContent-Length: 0\r\nRetry-After: \xff\xfe\r\n\r\n"), Next]),
    // What is no HTTP, or hardly.
    Mode::with("R13", "gone-with-a-body", answered(410), &[Say(b"HTTP/1.1 410 Gone\r\nContent-Length: 2\r\n\r\nno"), Next]),
    Mode::with("R15", "http-0.9", Broken, &[Say(b"<html>hello</html>")]),
    Mode::with("R15", "garbage", Broken, &[Say(b"\x00\xff\xfe\x80 garbage \x1b[2J\r\n\r\n")]),
    Mode::with("R15", "ssh", Broken, &[Say(b"SSH-2.0-OpenSSH_9.6\r\n")]),
    Mode::with("R15", "icy", Broken, &[Say(b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n")]),
    Mode::with("R15", "http-1.0", answered(200), &[Say(b"HTTP/1.0 200 OK\r\n\r\nok")]),
    Mode::with("R15", "http-2.0-in-words", Broken, &[Say(b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n")]),
    Mode::with("R15", "http-2-preface", Broken, &[Say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")]),
    Mode::with("R15", "http-2-settings", Broken, &[Say(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")]),
    Mode::with("R15", "tls-alert", Broken, &[Say(b"\x15\x03\x01\x00\x02\x02\x28")]),
    Mode::with("R15", "lines-of-line-feeds", answered(200), &[Say(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"), Next]),
    Mode::with("R15", "empty-lines-first", answered(200), &[Say(b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Next]),
    Mode::with("R15", "status-000", Broken, &[Say(b"HTTP/1.1 000 No\r\nContent-Length: 0\r\n\r\n")]),
    Mode::with("R15", "status-of-letters", Broken, &[Say(b"HTTP/1.1 abc No\r\nContent-Length: 0\r\n\r\n")]),
    Mode::with("R15", "status-of-2-digits", Broken, &[Say(b"HTTP/1.1 20 No\r\nContent-Length: 0\r\n\r\n")]),
    Mode::with("R15", "status-of-4-digits", Broken, &[Say(b"HTTP/1.1 2000 No\r\nContent-Length: 0\r\n\r\n")]),
    Mode::with("R15", "negative-status", Broken, &[Say(b"HTTP/1.1 -20 No\r\nContent-Length: 0\r\n\r\n")]),
    Mode::with("R15", "header-with-nul", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n")]),
    Mode::with("R15", "header-with-cr", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n")]),
    Mode::with("R15", "header-with-escape", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nX: \x1b[2J\r\n\r\n")]),
    Mode::with("R15", "header-of-8-bits", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nX: \x9b31m\xff\r\nContent-Length: 0\r\n\r\n"), Next]),
    Mode::with("R15", "header-folded", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n")]),
    Mode::with("R15", "header-without-colon", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n")]),
    Mode::with("R15", "header-with-space-in-name", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n")]),
    Mode::with("R15", "two-lengths", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok")]),
    Mode::with("R15", "one-length-twice", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok"), Next]),
    Mode::with("R15", "length-and-chunks", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")]),
    Mode::with("R15", "negative-length", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n")]),
    Mode::with("R15", "length-of-letters", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n")]),
    Mode::with("R15", "length-of-23-digits", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n")]),
    Mode::with("R15", "unknown-encoding", answered(200), &[Say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: rot13\r\n\r\nbx")]),
    // For the terminal of whoever watches.
    Mode::with("R15", "escapes-in-the-reason", answered(500), &[Say(b"HTTP/1.1 500 \x1b[2J\x07\r\nContent-Length: 0\r\n\r\n")]),
    Mode::with("R15", "8-bit-escapes-in-the-reason", answered(500), &[Say(b"HTTP/1.1 500 \x9b2J\xc2\x9b31m\xe2\x80\xae\r\nContent-Length: 0\r\n\r\n"), Next]),
    Mode::with("R15", "escapes-in-the-body", answered(500), &[Say(b"HTTP/1.1 500 Oh\r\n\r\n"), Say(ESCAPES)]).keeps(ESCAPES),
    Mode::with("R15", "escapes-in-a-success", answered(200), &[Say(b"HTTP/1.1 200 OK\r\n\r\n"), Say(ESCAPES)]).keeps(ESCAPES),
    // What is done with the request.
    Mode::with("R2", "reads-slowly", TimedOut, &[Say(OK), Next]).large(Reads::Slowly),
    Mode::with("R2", "stops-reading", TimedOut, &[Hang]).large(Reads::Nothing),
    Mode::with("R15", "answers-unread", answered(200), &[Say(OK), Pause(MOMENT)]).unread(),
    Mode::with("R15", "answers-a-large-body-unread", answered(200), &[Say(OK), Hang]).large(Reads::Nothing).repeated(6),
    Mode::with("R15", "refuses-a-large-body-unread", answered(413), &[Say(b"HTTP/1.1 413 Big\r\nContent-Length: 0\r\n\r\n"), Pause(MOMENT)]).large(Reads::Nothing),
];
