//! The interactive view: what stands on the screen, and what a key asks for. It must not draw, nor know a
//! terminal.

mod row;

use std::collections::{HashSet, VecDeque};

use unicode_width::UnicodeWidthChar;
use whrelay_agent::lines::{EndpointState, Line, LinkState, ReadyLine, StatusLine};
use whrelay_core::delivery::State;

use crate::text::{Writer, deliveries, shown, size};

/// Lines that can be gone back to; `whrelay logs` has them all.
const KEPT: usize = 5000;
/// Targets shown by name.
const TARGETS: usize = 4;
const KEYS: &str = "j/k select  r again  d details  o curl  p pause  ? keys  q quit";
const PANE_KEYS: &str = "j/k scroll  q back";
/// What `?` shows; `whrelay listen --help` has the same.
pub(super) const HELP: [&str; 11] = [
    "j k ↓ ↑      choose an event",
    "space, page  one page on or back",
    "g G          the oldest, the newest",
    "r            try the chosen event now; deliver it again where it has ended",
    "d, enter     its headers, body and attempts",
    "o            the curl command that sends it, copied",
    "y            copy the input URL",
    "p            pause deliveries, or go on",
    "q            back, or quit; asks where deliveries wait",
    "Esc          back to the newest; never quits",
    "Ctrl-Z       suspend: nothing is received until `fg` or `bg`; Ctrl-C quits",
];

/// Stands above the log while nothing is delivered.
const PAUSED: &str = "PAUSED: nothing is delivered until you press p or resume a destination";

/// A key, as far as the view knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Replay,
    Details,
    Curl,
    Pause,
    CopyUrl,
    Help,
    /// Back, and never out.
    Back,
    /// Back, or out.
    Leave,
    /// Out, from anywhere.
    Quit,
    /// Into the background.
    Suspend,
}

/// What a key asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Replay(String),
    Details(String),
    Curl(String),
    Pause(bool),
    Copy(String),
    Quit,
    Suspend,
}

/// How a row looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Dim,
    Good,
    Warn,
    Bad,
    Chosen,
}

/// One row of the screen, as wide as it may be.
pub(super) type Row = (Tone, String);

struct Entry {
    event: Option<String>,
    tone: Tone,
    line: Line,
}

/// Text that covers the log until it is left.
struct Pane {
    /// The event that it is about.
    event: Option<String>,
    lines: Vec<String>,
    /// The same, cut into rows of a width.
    rows: Vec<String>,
    width: usize,
    top: usize,
}

impl Pane {
    fn fit(&mut self, width: usize) {
        if self.width != width {
            let rows = self.lines.iter().flat_map(|line| wrapped(line, width));
            (self.rows, self.width) = (rows.collect(), width);
            self.top = self.top.min(self.rows.len().saturating_sub(1));
        }
    }
}

/// What stands on the screen.
pub(super) struct View {
    writer: Writer,
    ready: Option<ReadyLine>,
    status: Option<StatusLine>,
    entries: VecDeque<Entry>,
    /// Entries that are no longer kept, so that numbers stay what they are.
    gone: usize,
    /// The number of the chosen entry; where none is chosen the newest are shown.
    chosen: Option<usize>,
    pane: Option<Pane>,
    /// The event whose details are shown and have changed.
    stale: Option<String>,
    /// Whether `q` was pressed while deliveries wait.
    asked: bool,
    note: String,
    page: usize,
}

impl View {
    pub(super) fn new(writer: Writer) -> Self {
        Self {
            writer,
            ready: None,
            status: None,
            entries: VecDeque::new(),
            gone: 0,
            chosen: None,
            pane: None,
            stale: None,
            asked: false,
            note: String::new(),
            page: 1,
        }
    }

    /// Something has happened.
    pub(super) fn take(&mut self, line: &Line) {
        if let Line::Ready(ready) = line {
            self.ready = Some(ready.clone());
            return;
        }
        if let Line::Status(status) = line {
            self.status = Some(status.clone());
            return;
        }
        if self.writer.line(line).is_none() {
            return;
        }
        let (event, tone) = about(line);
        let shown = self.pane.as_ref().and_then(|pane| pane.event.as_ref());
        if event.is_some() && shown == event.as_ref() {
            self.stale.clone_from(&event);
        }
        let line = line.clone();
        self.entries.push_back(Entry { event, tone, line });
        if self.entries.len() > KEPT {
            self.entries.pop_front();
            self.gone += 1;
            self.chosen = self.chosen.map(|chosen| chosen.max(self.gone));
        }
    }

    /// Attempts of before, oldest first. Those that have come since are there already.
    pub(super) fn history(&mut self, lines: Vec<Line>) {
        let known: HashSet<_> = self
            .entries
            .iter()
            .filter_map(|e| attempt_of(&e.line))
            .collect();
        let before =
            |line: &Line| attempt_of(line).is_some_and(|attempt| !known.contains(&attempt));
        let before: Vec<_> = lines.into_iter().filter(before).collect();
        for line in before.into_iter().rev() {
            let (event, tone) = about(&line);
            self.entries.push_front(Entry { event, tone, line });
            self.chosen = self.chosen.map(|chosen| chosen + 1);
        }
    }

    /// The event whose details are shown and have changed, once.
    pub(super) fn take_stale(&mut self) -> Option<String> {
        self.stale.take()
    }

    /// Says something at the bottom, until the next key.
    pub(super) fn note(&mut self, text: &str) {
        self.note = shown(text);
    }

    /// Covers the log with a text about an event. The same event's new text stays where it was scrolled to.
    pub(super) fn cover(&mut self, event: Option<String>, lines: Vec<String>) {
        let lines = lines.iter().map(|line| shown(line)).collect();
        let before = self
            .pane
            .take()
            .filter(|pane| event.is_some() && pane.event == event);
        self.pane = Some(Pane {
            event,
            lines,
            rows: Vec::new(),
            width: 0,
            top: before.map_or(0, |pane| pane.top),
        });
    }

    /// A key was pressed.
    pub(super) fn press(&mut self, key: Key) -> Option<Wish> {
        self.note.clear();
        let asked = std::mem::take(&mut self.asked);
        match key {
            Key::Quit => return Some(Wish::Quit),
            Key::Suspend => return Some(Wish::Suspend),
            Key::Leave | Key::Back if self.pane.is_some() => self.pane = None,
            Key::Back => self.chosen = None,
            Key::Leave => return self.leave(asked),
            Key::Help => self.cover(None, HELP.map(str::to_owned).to_vec()),
            Key::CopyUrl => {
                return self
                    .ready
                    .as_ref()
                    .map(|ready| Wish::Copy(ready.url.clone()));
            }
            Key::Up => self.go(-1),
            Key::Down => self.go(1),
            Key::PageUp => self.go(-(self.page as isize)),
            Key::PageDown => self.go(self.page as isize),
            Key::First => self.go(isize::MIN),
            Key::Last => self.go(isize::MAX),
            Key::Pause => {
                let paused = self.status.as_ref().is_some_and(|status| status.paused);
                return Some(Wish::Pause(!paused));
            }
            Key::Replay => return self.of_chosen(Wish::Replay),
            Key::Details => return self.of_chosen(Wish::Details),
            Key::Curl => return self.of_chosen(Wish::Curl),
        }
        None
    }

    /// Out; where deliveries wait, only when asked twice.
    fn leave(&mut self, asked: bool) -> Option<Wish> {
        let waiting = self
            .status
            .as_ref()
            .map_or(0, |status| status.queued + status.stalled);
        if waiting == 0 || asked {
            return Some(Wish::Quit);
        }
        self.asked = true;
        let waiting = deliveries(waiting);
        self.note = format!("{waiting} not finished, kept for the next start: q again quits");
        None
    }

    fn of_chosen(&mut self, wish: impl Fn(String) -> Wish) -> Option<Wish> {
        let newest = || self.entries.iter().rev().find_map(|e| e.event.clone());
        let event = match self.chosen {
            Some(chosen) => self.entries[chosen - self.gone].event.clone(),
            None => newest(),
        };
        if event.is_none() {
            self.note = "there is no event yet".to_owned();
        }
        event.map(wish)
    }

    /// Moves by so many entries that are about an event, or by so many lines of what covers them.
    fn go(&mut self, by: isize) {
        if let Some(pane) = &mut self.pane {
            let last = pane.rows.len().saturating_sub(1);
            pane.top = pane.top.saturating_add_signed(by).min(last);
            return;
        }
        let of_events = self.entries.iter().zip(self.gone..);
        let of_events: Vec<usize> = of_events
            .filter(|(entry, _)| entry.event.is_some())
            .map(|(_, n)| n)
            .collect();
        let Some(last) = of_events.len().checked_sub(1) else {
            return;
        };
        let at = match self.chosen {
            Some(chosen) => of_events.partition_point(|n| *n < chosen),
            None if by < 0 => last + 1,
            None => last,
        };
        let to = at.saturating_add_signed(by).min(last);
        // At the end the newest are followed again.
        self.chosen = (to < last || by < 0).then(|| of_events[to]);
    }

    /// The screen, row by row.
    pub(super) fn rows(&mut self, width: usize, height: usize) -> Vec<Row> {
        let mut head = self.head(width.max(1));
        if height < head.len() + 4 {
            head.clear();
        }
        let room = height.saturating_sub(head.len() + 1);
        self.page = room.max(1);
        if let Some(pane) = &mut self.pane {
            pane.fit(width.max(1));
        }
        let (body, keys) = match &self.pane {
            Some(pane) => (covered(pane, room), PANE_KEYS),
            None => (self.log(room, width), KEYS),
        };
        let bottom = match self.note.is_empty() {
            true => (Tone::Dim, keys.to_owned()),
            false => (Tone::Warn, self.note.clone()),
        };
        let blank = || (Tone::Plain, String::new());
        let filler = std::iter::repeat_with(blank).take(room - body.len());
        let rows = head.into_iter().chain(body).chain(filler).chain([bottom]);
        rows.take(height)
            .map(|(tone, text)| (tone, cut(&text, width)))
            .collect()
    }

    fn log(&self, room: usize, width: usize) -> Vec<Row> {
        let (all, today) = (self.entries.len(), self.writer.today());
        let last = match self.chosen {
            // What is chosen stays in sight, with some of what came after it.
            Some(chosen) => (chosen - self.gone + 1 + room / 3).max(room).min(all),
            None => all,
        };
        let first = last.saturating_sub(room);
        let row = |(entry, n): (&Entry, usize)| {
            let text = row::text(&entry.line, &self.writer, &today, width);
            let tone = match self.chosen == Some(n) {
                true => Tone::Chosen,
                false => entry.tone,
            };
            (tone, squeezed(&text.unwrap_or_default(), width))
        };
        let entries = self.entries.range(first..last);
        entries.zip(self.gone + first..).map(row).collect()
    }

    fn head(&self, width: usize) -> Vec<Row> {
        let Some(ready) = &self.ready else {
            return vec![(Tone::Dim, "connecting …".to_owned())];
        };
        let url = shown(&ready.url);
        let beside = format!("Send webhooks to  {url}");
        let above = || {
            let rows = std::iter::once("Send webhooks to".to_owned());
            rows.chain(wrapped(&url, width)).collect()
        };
        // It is there to be copied, so all of it is.
        let rows = if beside.len() <= width {
            vec![beside]
        } else {
            above()
        };
        let mut head: Vec<Row> = rows.into_iter().map(|row| (Tone::Plain, row)).collect();
        let status = self.status.as_ref();
        for target in ready.targets.iter().take(TARGETS) {
            let known = status.and_then(|status| {
                let mut targets = status.targets.iter();
                targets.find(|known| target.ends_with(&known.target))
            });
            let (tone, how) = match known {
                Some(known) if known.endpoint == EndpointState::Offline => {
                    (Tone::Warn, format!("  offline, {} waiting", known.waiting))
                }
                Some(_) | None => (Tone::Plain, String::new()),
            };
            head.push((tone, format!("They go to        {}{how}", shown(target))));
        }
        if let Some(more) = ready.targets.len().checked_sub(TARGETS + 1) {
            let text = format!("                  and {} more", more + 1);
            head.push((Tone::Plain, text));
        }
        head.extend(status.map(counts));
        match status.is_some_and(|status| status.paused) {
            true => head.push((Tone::Bad, PAUSED.to_owned())),
            false => head.push((Tone::Plain, String::new())),
        }
        head
    }
}

/// The line of the head that counts.
fn counts(status: &StatusLine) -> Row {
    let StatusLine {
        queued,
        stalled,
        sent,
        dead,
        ..
    } = status;
    let mut text = format!("{queued} queued, {stalled} stalled, {sent} sent, {dead} dead");
    text += &format!("  {}", size(status.stored_bytes));
    let mut tone = Tone::Dim;
    if status.link != LinkState::Connected {
        let why = status.link_error.as_deref().unwrap_or_default();
        (tone, text) = (Tone::Warn, format!("{text}  tunnel down  {}", shown(why)));
    }
    if let Some(why) = &status.refuses {
        (tone, text) = (
            Tone::Bad,
            format!("{text}  accepts no new events: {}", shown(why)),
        );
    }
    (tone, text)
}

/// Which attempt a line is about.
fn attempt_of(line: &Line) -> Option<(String, u32)> {
    let Line::Attempt(attempt) = line else {
        return None;
    };
    Some((attempt.delivery.clone(), attempt.attempt))
}

/// What a line is about, and how it looks.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "lines of other kinds say nothing about it"
)]
fn about(line: &Line) -> (Option<String>, Tone) {
    match line {
        Line::Received(received) => (Some(received.event.clone()), Tone::Plain),
        Line::Attempt(attempt) => {
            let tone = match attempt.state {
                State::Sent => Tone::Good,
                State::Dead => Tone::Bad,
                State::Queued | State::Stalled => Tone::Warn,
            };
            (Some(attempt.event.clone()), tone)
        }
        Line::Warning { .. } => (None, Tone::Warn),
        Line::Endpoint {
            state: EndpointState::Offline,
            ..
        } => (None, Tone::Warn),
        Line::Link { error: Some(_), .. } => (None, Tone::Warn),
        _ => (None, Tone::Dim),
    }
}

/// The part of a text that is in sight.
fn covered(pane: &Pane, room: usize) -> Vec<Row> {
    let rows = pane.rows.iter().skip(pane.top).take(room);
    rows.map(|text| (Tone::Plain, text.clone())).collect()
}

/// A line that is too long goes on in the next row.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    let (mut rows, mut used) = (vec![String::new()], 0);
    for c in line.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide > width {
            rows.push(String::new());
            used = 0;
        }
        used += wide;
        if let Some(row) = rows.last_mut() {
            row.push(c);
        }
    }
    rows
}

fn cut(text: &str, width: usize) -> String {
    wrapped(text, width.max(1)).swap_remove(0)
}

/// A text without its middle, where it is too long: a line of the log ends with what became of it.
fn squeezed(text: &str, width: usize) -> String {
    let (behind, ahead) = (width * 2 / 5, width.saturating_sub(width * 2 / 5 + 1));
    if behind == 0 || wrapped(text, width).len() == 1 {
        return text.to_owned();
    }
    let mut room = behind;
    let fits = |c: &char| {
        let left = room.checked_sub(c.width().unwrap_or(0));
        room = left.unwrap_or(0);
        left.is_some()
    };
    let behind: Vec<char> = text.chars().rev().take_while(fits).collect();
    cut(text, ahead) + "…" + &behind.into_iter().rev().collect::<String>()
}

#[cfg(test)]
mod tests;
