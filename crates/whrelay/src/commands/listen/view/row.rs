//! One line of the log as a row of a width: what matters least goes first. It must not know which rows are shown.

use unicode_width::UnicodeWidthStr;
use whrelay_agent::lines::{AttemptLine, Line, ReceivedLine};
use whrelay_core::delivery::State;

use super::cut;
use crate::text::{Writer, millis, shown, size, until};

/// Characters of an id that tell it from others in sight.
const SHORT_ID: usize = 6;
/// A path is not cut below this.
const SHORTEST_PATH: usize = 12;

/// Parts with a smaller weight go first; these stay.
const STAYS: u8 = 9;

struct Part {
    text: String,
    weight: u8,
}

/// A line as a row, without the date where that is today's.
pub(super) fn text(line: &Line, writer: &Writer, today: &str, width: usize) -> Option<String> {
    let parts = if let Line::Attempt(attempt) = line {
        of_attempt(attempt, writer, today)
    } else if let Line::Received(received) = line {
        of_received(received, writer, today)
    } else {
        return writer.line(line);
    };
    Some(fitted(parts, width))
}

fn part(weight: u8, text: impl Into<String>) -> Part {
    Part {
        text: text.into(),
        weight,
    }
}

fn of_attempt(line: &AttemptLine, writer: &Writer, today: &str) -> Vec<Part> {
    let answer = match line.status {
        Some(status) => format!("[{status}]"),
        None if line.was_given_up() => "[-----]".to_owned(),
        None => "[ERROR]".to_owned(),
    };
    let mut parts = vec![
        part(STAYS, time(writer, &line.at, today)),
        part(STAYS, "<--"),
        part(STAYS, answer),
        part(3, shown(&line.method)),
        part(STAYS, place(&line.url)),
        part(2, millis(line.duration_ms)),
    ];
    if line.attempt > 1 && !line.was_given_up() {
        parts.push(part(4, format!("attempt {}", line.attempt)));
    }
    if line.replay {
        parts.push(part(5, "replay"));
    }
    if line.state != State::Sent {
        let reason = line.reason.map(|reason| format!(" ({reason})"));
        let next = line.next_attempt_at.as_deref();
        let next = next.map(|at| format!(", next in {}", until(&line.at, line.duration_ms, at)));
        let (reason, next) = (reason.unwrap_or_default(), next.unwrap_or_default());
        parts.push(part(7, format!("{}{reason}{next}", line.state)));
    }
    parts.extend(line.cause.as_deref().map(|cause| part(8, shown(cause))));
    parts.extend(line.error.as_deref().map(|error| part(8, shown(error))));
    parts.push(part(1, short(&line.event)));
    parts
}

fn of_received(line: &ReceivedLine, writer: &Writer, today: &str) -> Vec<Part> {
    let kind = line.kind.as_deref().map(|kind| part(6, shown(kind)));
    let path = match &line.path[..] {
        "" => "/".to_owned(),
        path => shown(path),
    };
    let mut parts = vec![
        part(STAYS, time(writer, &line.at, today)),
        part(STAYS, "-->"),
        part(3, shown(&line.method)),
        part(STAYS, path),
    ];
    parts.extend(kind);
    parts.push(part(2, size(line.bytes)));
    parts.push(part(1, short(&line.event)));
    parts
}

fn time(writer: &Writer, at: &str, today: &str) -> String {
    let local = writer.local(at);
    match local.strip_prefix(today) {
        Some(time) => time.trim_start().to_owned(),
        None => local,
    }
}

/// A URL without what goes without saying.
fn place(url: &str) -> String {
    let place = url.strip_prefix("http://").unwrap_or(url);
    let place = place.strip_prefix("localhost").unwrap_or(place);
    shown(place)
}

/// The end of an id: its beginning is a time.
fn short(id: &str) -> String {
    match id.char_indices().rev().nth(SHORT_ID - 1) {
        Some((at, _)) if at > 0 => format!("…{}", &id[at..]),
        Some(_) | None => id.to_owned(),
    }
}

fn fitted(mut parts: Vec<Part>, width: usize) -> String {
    let needed = |parts: &[Part]| -> usize {
        let texts = parts.iter().map(|part| part.text.width() + 1);
        texts.sum::<usize>().saturating_sub(1)
    };
    // A reason is cut before the last of what stays.
    while needed(&parts) > width {
        let least = parts
            .iter()
            .map(|part| part.weight)
            .filter(|weight| *weight < 8)
            .min();
        let Some(least) = least else { break };
        parts.retain(|part| part.weight != least);
    }
    let over = needed(&parts).saturating_sub(width);
    if over > 0
        && let Some(path) = parts.iter_mut().find(|part| part.text.contains('/'))
    {
        let long = path.text.width();
        let room = long.saturating_sub(over + 1).max(SHORTEST_PATH);
        if room < long {
            path.text = format!("{}…", cut(&path.text, room));
        }
    }
    let texts: Vec<_> = parts.into_iter().map(|part| part.text).collect();
    texts.join(" ")
}
