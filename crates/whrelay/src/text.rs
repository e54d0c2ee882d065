//! Lines as people read them. It must not decide what is shown where.

mod destination;
mod signature;

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use whrelay_agent::lines::{
    AttemptLine, EndpointState, EventLine, GroupLine, Line, ReceivedLine, RemovedStatus,
    StatusLine, TargetStatus,
};
use whrelay_core::delivery::State;
use whrelay_core::octets;

pub(crate) use self::destination::short as destination;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const WARN: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();

/// Text of a stranger's, made safe for a terminal: control characters, those that reorder what is shown, and bytes of a
/// path that are not UTF-8 appear as escapes.
pub(crate) fn shown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || reorders(c) {
            // Writing to a String cannot fail.
            let _ = write!(safe, "{}", c.escape_unicode());
        } else if let Some(byte) = octets::of_char(c) {
            let _ = write!(safe, "\\x{byte:02x}");
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A stranger's bytes, made safe for a terminal: lines stay lines, and what is no text appears as escapes.
pub(crate) fn shown_bytes(bytes: &[u8]) -> String {
    let mut safe = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for piece in chunk.valid().split_inclusive(['\n', '\t']) {
            let text = piece.trim_end_matches(['\n', '\t']);
            safe += &shown(text);
            safe += &piece[text.len()..];
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(safe, "\\x{byte:02x}");
        }
    }
    safe
}

fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}')
}

/// JSON as a terminal may see it: what JSON leaves as it is and a terminal would obey is escaped.
pub(crate) fn shown_json(json: &str) -> String {
    if !json.chars().any(|c| c.is_control() || reorders(c)) {
        return json.to_owned();
    }
    let escaped = |c: char| {
        if c.is_control() || reorders(c) {
            format!("\\u{:04x}", u32::from(c))
        } else {
            c.into()
        }
    };
    json.chars().map(escaped).collect()
}

/// How lines are written.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    color: bool,
    zone: TimeZone,
}

impl Writer {
    pub(crate) fn new(color: bool) -> Self {
        Self {
            color,
            zone: TimeZone::system(),
        }
    }

    /// Without colour, with times of this zone.
    #[cfg(test)]
    pub(crate) fn in_zone(zone: TimeZone) -> Self {
        let color = false;
        Self { color, zone }
    }

    pub(crate) fn colors(&self) -> bool {
        self.color
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.color {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }

    /// This day, as it begins a time.
    pub(crate) fn today(&self) -> String {
        let now = Timestamp::now().to_zoned(self.zone.clone());
        now.strftime("%Y-%m-%d").to_string()
    }

    /// A time in the zone of whoever reads it.
    pub(crate) fn local(&self, at: &str) -> String {
        in_zone(at, &self.zone)
    }

    /// A line for people, where the line is one for them.
    pub(crate) fn line(&self, line: &Line) -> Option<String> {
        match line {
            Line::Received(line) => Some(self.received(line)),
            Line::Attempt(line) => Some(self.attempt(line)),
            Line::Event(line) => Some(self.event(line)),
            Line::Status(line) => Some(self.status(line)),
            Line::Link { state, error } => {
                let why = error
                    .as_ref()
                    .map(|e| format!(": {}", shown(e)))
                    .unwrap_or_default();
                let style = if error.is_some() { WARN } else { DIM };
                Some(self.paint(style, &format!("tunnel {state}{why}")))
            }
            Line::Endpoint {
                target,
                state,
                waiting,
                ..
            } => {
                let style = if *state == EndpointState::Online {
                    GOOD
                } else {
                    WARN
                };
                let text = format!("{target} is {state}, {waiting} waiting");
                Some(self.paint(style, &text))
            }
            Line::Retention {
                events,
                bodies,
                reason,
                ..
            } => Some(self.paint(
                DIM,
                &format!(
                    "removed by --{reason}: {events} events and {bodies} bodies that had ended"
                ),
            )),
            Line::Warning { message } => Some(format!(
                "{} {}",
                self.paint(WARN, "warning:"),
                shown(message)
            )),
            Line::Replay(line) => Some(format!(
                "{}  {}  {}  {}",
                line.event,
                line.delivery,
                line.target,
                self.state(line.state)
            )),
            Line::Destination(line) => Some(destination::full(line, self)),
            Line::DestinationRemoved(line) => Some(destination::removed(line)),
            Line::Group(line) => Some(self.group(line)),
            Line::Discard(line) => Some(format!(
                "{}  {}  {}  {} (discarded)",
                line.event,
                line.delivery,
                line.target,
                self.state(State::Dead)
            )),
            Line::Ready(_) | Line::Content(_) | Line::Reached { .. } | Line::Failure { .. } => None,
        }
    }

    fn received(&self, line: &ReceivedLine) -> String {
        let kind = line
            .kind
            .as_ref()
            .map(|kind| format!("{}  ", shown(kind)))
            .unwrap_or_default();
        format!(
            "{}  {} {} /in/…{}  {kind}{}  {}",
            self.local(&line.at),
            self.paint(DIM, "-->"),
            shown(&line.method),
            shown(&line.path),
            line.event,
            size(line.bytes)
        )
    }

    fn attempt(&self, line: &AttemptLine) -> String {
        let style = if line.state == State::Sent { GOOD } else { BAD };
        let answer = match line.status {
            Some(status) => format!("[{status}]"),
            None if line.was_given_up() => "[-----]".to_owned(),
            None => "[ERROR]".to_owned(),
        };
        let took = match line.was_given_up() {
            true => String::new(),
            false => format!("  {}", millis(line.duration_ms)),
        };
        let mut text = format!(
            "{}  {} {} {} {}{took}  {}",
            self.local(&line.at),
            self.paint(DIM, "<--"),
            self.paint(style, &answer),
            shown(&line.method),
            shown(&line.url),
            line.event
        );
        if !line.was_given_up() && (line.attempt > 1 || line.state != State::Sent) {
            let _ = write!(text, "  attempt {}", line.attempt);
        }
        if line.replay {
            text.push_str("  replay");
        }
        if line.state != State::Sent {
            let between = if line.was_given_up() { "  " } else { ", " };
            let _ = write!(text, "{between}{}", line.state);
        }
        if let Some(reason) = &line.reason {
            let _ = write!(text, " ({reason})");
        }
        if let Some(next) = &line.next_attempt_at {
            let _ = write!(
                text,
                ", next in {}",
                until(&line.at, line.duration_ms, next)
            );
        }
        if line.handoff {
            text.push_str(", handoff: retries are rare from now on");
        }
        if let Some(error) = &line.error {
            let _ = write!(text, "  {}", shown(error));
        }
        if let Some(why) = signature::of_attempt(line) {
            let _ = write!(text, "  {why}");
        } else if line.state == State::Dead {
            let _ = write!(text, "  (again: whrelay replay {})", line.event);
        }
        for (name, value) in &line.answer_headers {
            let _ = write!(text, "\n    {}: {}", shown(name), shown(value));
        }
        for answer in line.answer.iter().flat_map(|answer| answer.lines()) {
            let _ = write!(text, "\n    {}", shown(answer));
        }
        text
    }

    fn event(&self, line: &EventLine) -> String {
        let reason = line.reason.as_ref().map(|reason| match &line.signature {
            Some(signature) if line.cause.is_some() => {
                format!(" ({reason}: {})", signature::expired(signature))
            }
            Some(_) | None => format!(" ({reason})"),
        });
        let reason = reason.unwrap_or_default();
        let kind = line.kind.as_ref().map(|kind| format!("  {}", shown(kind)));
        let kind = kind.unwrap_or_default();
        let gone = if line.body_removed { " (removed)" } else { "" };
        format!(
            "{}  {}  {} /in/…{}{kind}  {}{gone}  {}{reason}  {} {}",
            self.local(&line.received_at),
            line.event,
            shown(&line.method),
            shown(&line.path),
            size(line.bytes),
            self.state(line.state),
            line.attempts,
            if line.attempts == 1 {
                "attempt"
            } else {
                "attempts"
            }
        )
    }

    fn group(&self, line: &GroupLine) -> String {
        let came_to = match (line.status, &line.error) {
            (Some(status), _) => status.to_string(),
            (None, Some(error)) => shown(error),
            (None, None) => "no attempt".to_owned(),
        };
        let reason = line.reason.as_ref().map(|r| match &line.cause {
            Some(cause) => {
                format!(" ({r}: {cause}; --provider NAME=SECRET signs late events anew)")
            }
            None => format!(" ({r})"),
        });
        format!(
            "{:>6} × {came_to} at {}  {}{}  {}",
            line.count,
            shown(&line.url),
            self.state(line.state),
            reason.unwrap_or_default(),
            line.newest
        )
    }

    fn state(&self, state: State) -> String {
        let style = match state {
            State::Sent => GOOD,
            State::Dead => BAD,
            State::Stalled => WARN,
            State::Queued => DIM,
        };
        self.paint(style, state.as_str())
    }

    fn target_status(&self, target: &TargetStatus) -> String {
        let mut text = format!("\n  {}", destination::of_status(target, self));
        if let Some(head) = &target.head {
            let next = head.next_attempt_at.as_deref().map(|at| self.local(at));
            let _ = write!(
                text,
                "\n  in order   all wait for {}: {}, attempt {}, next {}",
                head.event,
                self.state(head.state),
                head.attempts,
                next.unwrap_or_default()
            );
        }
        text
    }

    fn status(&self, line: &StatusLine) -> String {
        let pid = line
            .pid
            .map(|pid| format!(" (pid {pid})"))
            .unwrap_or_default();
        let mut text = format!(
            "bucket {} as {}: {}{pid}",
            line.bucket, line.name, line.link
        );
        if let Some(url) = &line.url {
            let _ = write!(text, "\n  input URL  {}", shown(url));
        }
        let _ = write!(text, "\n  forwarder  {}", shown(&line.forwarder));
        if let Some(why) = &line.link_error {
            let _ = write!(text, "\n  tunnel     {}", shown(why));
        }
        for target in &line.targets {
            text += &self.target_status(target);
        }
        let StatusLine {
            queued,
            stalled,
            sent,
            dead,
            quarantined,
            ..
        } = line;
        let _ = write!(
            text,
            "\n  deliveries {queued} queued, {stalled} stalled, {sent} sent, {dead} dead"
        );
        if line.paused {
            let _ = write!(text, "\n  paused     nothing new starts");
        }
        if *quarantined > 0 {
            let _ = write!(text, "\n  damaged    {quarantined} events set aside");
        }
        if let Some(oldest) = &line.oldest_waiting_at {
            let _ = write!(text, "\n  oldest     {}", self.local(oldest));
        }
        if let Some(next) = &line.next_attempt_at {
            let _ = write!(text, "\n  next       {}", self.local(next));
        }
        let bound = line.max_disk.map(|most| format!(" of {}", size(most)));
        let (disk, held) = (size(line.disk_bytes), size(line.stored_bytes));
        let bound = bound.unwrap_or_default();
        let _ = write!(text, "\n  disk       {disk} for {held}{bound}");
        let RemovedStatus { events, bodies, .. } = &line.removed;
        if events + bodies > 0 {
            let (events, bodies) = (self::events(*events), self::events(*bodies));
            let _ = write!(text, "\n  removed    {events}, and the bodies of {bodies}");
        }
        for incident in &line.incidents {
            let (at, what) = (self.local(&incident.at), shown(&incident.message));
            let _ = write!(text, "\n  {}    {at} {what}", self.paint(WARN, "warning"));
        }
        if let Some(why) = &line.refuses {
            let why = self.paint(WARN, &shown(why));
            let _ = write!(text, "\n  takes in   nothing new: {why}");
        }
        text
    }
}

/// A time of the contract, in the user's zone and to the second.
pub(crate) fn local(at: &str) -> String {
    in_zone(at, &TimeZone::system())
}

fn in_zone(at: &str, zone: &TimeZone) -> String {
    match at.parse::<Timestamp>() {
        Ok(at) => at
            .to_zoned(zone.clone())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => shown(at),
    }
}

/// How long ago a time of the contract was, in the largest unit that fits.
pub(crate) fn ago(at: &str) -> String {
    let Ok(at) = at.parse::<Timestamp>() else {
        return shown(at);
    };
    let seconds = Timestamp::now().duration_since(at).as_secs().max(0);
    let (count, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("from {count} {unit} ago")
}

/// A number of events, in words.
pub(crate) fn events(count: u64) -> String {
    match count {
        1 => "1 event".to_owned(),
        _ => format!("{count} events"),
    }
}

/// A number of deliveries, in words.
pub(crate) fn deliveries(count: u64) -> String {
    match count {
        1 => "1 delivery".to_owned(),
        _ => format!("{count} deliveries"),
    }
}

/// Bytes, in the unit that fits.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1000.0, 0);
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

pub(crate) fn millis(ms: f64) -> String {
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

/// From the end of an attempt until the next one, to the second.
pub(crate) fn until(at: &str, duration_ms: f64, next: &str) -> String {
    let (Ok(at), Ok(next)) = (at.parse::<Timestamp>(), next.parse::<Timestamp>()) else {
        return "a while".to_owned();
    };
    let seconds = (next.duration_since(at).as_secs_f64() - duration_ms / 1000.0)
        .max(0.0)
        .round();
    let whole = std::time::Duration::from_secs(seconds as u64);
    spaced(&humantime::format_duration(whole).to_string())
}

/// `1m 30s` as `1 m 30 s`.
fn spaced(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 4);
    let mut digit = false;
    for c in text.chars() {
        if digit && c.is_alphabetic() {
            out.push(' ');
        }
        digit = c.is_ascii_digit();
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Writer {
        Writer::in_zone(TimeZone::UTC)
    }

    fn attempt() -> AttemptLine {
        AttemptLine {
            destination: "default".into(),
            event: "evt_1".into(),
            delivery: "dlv_1".into(),
            bucket: "default".into(),
            target: "http://localhost:3000".into(),
            method: "POST".into(),
            url: "http://localhost:3000/github".into(),
            attempt: 2,
            status: Some(503),
            error: None,
            duration_ms: 3.12,
            state: State::Stalled,
            reason: None,
            next_attempt_at: Some("2026-11-22T10:15:08.003Z".into()),
            phase: "fast".into(),
            handoff: false,
            answer: None,
            answer_base64: None,
            answer_headers: Vec::new(),
            cause: None,
            signature: None,
            replay: false,
            at: "2026-11-22T10:15:04Z".into(),
        }
    }

    #[test]
    fn two_lines_in_the_habit_of_the_field() {
        let received = ReceivedLine {
            event: "evt_1".into(),
            bucket: "default".into(),
            method: "POST".into(),
            path: "/github".into(),
            bytes: 8123,
            kind: Some("push".into()),
            at: "2026-11-22T10:15:03.5Z".into(),
        };
        let text = |line: &Line| plain().line(line).expect("a line for people");
        assert_eq!(
            text(&Line::Received(received)),
            "2026-11-22 10:15:03  --> POST /in/…/github  push  evt_1  8.1 kB"
        );
        assert_eq!(
            text(&Line::Attempt(attempt())),
            "2026-11-22 10:15:04  <-- [503] POST http://localhost:3000/github  3.1 ms  evt_1  \
             attempt 2, stalled, next in 4 s"
        );
        let refused = AttemptLine {
            status: None,
            error: Some("127.0.0.1:3000: connection refused".into()),
            ..attempt()
        };
        assert!(
            text(&Line::Attempt(refused))
                .ends_with("next in 4 s  127.0.0.1:3000: connection refused")
        );
        let handed_over = AttemptLine {
            handoff: true,
            answer: Some("busy\n\u{1b}[2J".into()),
            ..attempt()
        };
        assert!(text(&Line::Attempt(handed_over)).ends_with(
            "next in 4 s, handoff: retries are rare from now on\n    busy\n    \\u{1b}[2J"
        ));
        let sent = AttemptLine {
            status: Some(200),
            attempt: 1,
            state: State::Sent,
            next_attempt_at: None,
            ..attempt()
        };
        assert!(text(&Line::Attempt(sent)).ends_with("3.1 ms  evt_1"));
    }

    #[test]
    fn no_control_sequence_of_a_stranger_reaches_the_terminal() {
        let bytes = b"a\tb\n\n\x1b[2J\r\xc2\x9b\xff\xe2\x80\xae\n";
        assert_eq!(
            shown_bytes(bytes),
            "a\tb\n\n\\u{1b}[2J\\u{d}\\u{9b}\\xff\\u{202e}\n"
        );
        let evil = "\u{1b}[2J\r\n\u{9b}31m\u{202e}x\u{7}\0";
        let line = AttemptLine {
            url: evil.into(),
            error: Some(evil.into()),
            ..attempt()
        };
        let text = plain().line(&Line::Attempt(line.clone())).expect("a line");
        assert!(
            !text.chars().any(|c| c.is_control() || reorders(c)),
            "{text:?}"
        );
        let json = serde_json::to_string(&Line::Attempt(line.clone())).expect("json");
        let json = shown_json(&json);
        assert!(
            !json.chars().any(|c| c.is_control() || reorders(c)),
            "{json:?}"
        );
        assert_eq!(
            serde_json::from_str::<Line>(&json).expect("json"),
            Line::Attempt(line)
        );
    }

    #[test]
    fn sizes() {
        assert_eq!(
            [999, 1000, 8123, 999_999, 26_214_400].map(size),
            ["999 B", "1.0 kB", "8.1 kB", "1.0 MB", "26.2 MB"]
        );
    }
}
