//! The interactive view on a terminal: keys in, rows out, and what keys ask for asked of the agent by its own
//! door. It must not decide what is shown.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::style::{Attribute, Color, Print, ResetColor, SetAttribute, SetForegroundColor};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
};
use crossterm::{execute, queue};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use whrelay_agent::control::{Ask, Client, Filter, Piece};
use whrelay_agent::lines::{Line, ReadyLine, StatusLine};
use whrelay_core::delivery::State;

use super::view::{Key, Tone, View, Wish};
use crate::commands::events;
use crate::failure::Failure;
use crate::shutdown::ONE_WISH;
use crate::text::Writer;

/// How long a key is waited for before what has happened is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long it may take until a signal has stopped this process.
const STOPS_WITHIN: Duration = Duration::from_millis(500);
/// How often the counts in the head are asked for.
const COUNTS_EVERY: Duration = Duration::from_secs(1);
/// Attempts of before that are shown at the start.
const HISTORY: usize = 50;
const COPIED: &str = "Copied (if your terminal allows it)";

/// Whether this process has a terminal that can show the view. CI machines have some that nobody looks at.
pub(super) fn is_there() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let dumb = set("TERM").is_none_or(|term| term == "dumb");
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    terminal && is_in_front() && !dumb && set("CI").is_none()
}

/// Whether a shell has this process in the foreground: another that took the terminal would be stopped.
#[cfg(unix)]
fn is_in_front() -> bool {
    let front = rustix::termios::tcgetpgrp(io::stdin());
    front.is_ok_and(|front| front == rustix::process::getpgrp())
}

#[cfg(not(unix))]
fn is_in_front() -> bool {
    true
}

/// What came of a wish.
enum Came {
    Status(Box<StatusLine>),
    /// An event's details.
    Text(String, Vec<String>),
    /// An attempt of before; `None` behind the last one.
    Before(Option<Box<Line>>),
    /// A command to copy, too.
    Command(String),
    Note(String),
}

/// How the view and the agent beside it end.
#[derive(Clone, Default)]
pub(super) struct End {
    /// The agent is to end.
    pub(super) stop: CancellationToken,
    /// Whoever asked for that does not want to wait until it has.
    pub(super) insisted: CancellationToken,
    /// It has ended, or is not waited for. Someone may still hold the other end of the lines.
    pub(super) done: CancellationToken,
}

/// The view while it is shown.
pub(super) struct Screen {
    view: View,
    color: bool,
    /// The agent's directory, where its door is.
    dir: PathBuf,
    end: End,
    runtime: Handle,
    came: mpsc::UnboundedSender<Came>,
    coming: mpsc::UnboundedReceiver<Came>,
    counted_at: Option<Instant>,
    /// Attempts of before that have come so far; nothing once they are shown.
    before: Option<Vec<Line>>,
    /// When it was first asked to stop.
    asked_at: Option<Instant>,
}

impl Screen {
    pub(super) fn new(color: bool, dir: PathBuf, end: End) -> Self {
        let (came, coming) = mpsc::unbounded_channel();
        Self {
            view: View::new(Writer::new(false)),
            color,
            dir,
            end,
            runtime: Handle::current(),
            came,
            coming,
            counted_at: None,
            before: Some(Vec::new()),
            asked_at: None,
        }
    }

    /// Shows lines until there are no more.
    pub(super) fn run(
        mut self,
        mut lines: mpsc::Receiver<Line>,
        mut ready: impl FnMut(&Line) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut terminal = Some(Taken::take()?);
        let mut changed = true;
        loop {
            loop {
                match lines.try_recv() {
                    Ok(line) => {
                        ready(&line)?;
                        self.view.take(&line);
                        if let Line::Ready(ready) = &line {
                            self.begin(ready);
                        }
                        changed = true;
                    }
                    Err(mpsc::error::TryRecvError::Empty) if self.end.done.is_cancelled() => {
                        return Ok(());
                    }
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => {
                        return Ok(());
                    }
                }
            }
            while let Ok(came) = self.coming.try_recv() {
                self.take(came)?;
                changed = true;
            }
            self.count();
            if let Some(event) = self.view.take_stale() {
                self.details(event);
            }
            if terminal.is_none() {
                // Continued in the background: the terminal belongs to another process.
                if !is_in_front() {
                    std::thread::sleep(TICK);
                    continue;
                }
                terminal = Some(Taken::take()?);
                changed = true;
            }
            if std::mem::take(&mut changed) {
                self.draw()?;
            }
            if event::poll(TICK)? {
                changed = true;
                if let Event::Key(key) = event::read()?
                    && let Some(key) = meaning(key)
                    && let Some(wish) = self.view.press(key)
                {
                    if wish == Wish::Suspend {
                        // The terminal is given back before this process stops.
                        drop(terminal.take());
                        self.runtime.block_on(suspend());
                    }
                    self.carry_out(wish)?;
                }
            }
        }
    }

    fn take(&mut self, came: Came) -> io::Result<()> {
        match came {
            Came::Status(status) => self.view.take(&Line::Status(*status)),
            Came::Text(event, lines) => self.view.cover(Some(event), lines),
            Came::Before(Some(line)) => self.before.get_or_insert_default().push(*line),
            Came::Before(None) => self.view.history(self.before.take().unwrap_or_default()),
            Came::Note(text) => self.view.note(&text),
            Came::Command(command) => {
                copy(&command)?;
                self.view
                    .cover(None, command.lines().map(str::to_owned).collect());
                self.view.note(COPIED);
            }
        }
        Ok(())
    }

    /// The agent is ready: what waits from before is said, and what came of it is shown.
    fn begin(&mut self, ready: &ReadyLine) {
        if let Some(queued) = super::still_queued(ready) {
            self.view.note(&format!("still queued: {queued}"));
        }
        let ask = Ask::Attempts {
            filter: Filter::default(),
            last: HISTORY,
            after: None,
            follow: false,
        };
        let (client, came) = (Client::find(&self.dir), self.came.clone());
        self.runtime.spawn(async move {
            if let Some(client) = client
                && let Ok(mut pieces) = client.ask(&ask).await
            {
                while let Some(Piece::Line(line)) = pieces.recv().await {
                    // The view may have gone.
                    let _ = came.send(Came::Before(Some(line)));
                }
            }
            let _ = came.send(Came::Before(None));
        });
    }

    fn details(&self, event: String) {
        let of = event.clone();
        self.show(event, move |shown| Ok(Came::Text(of.clone(), shown.text())));
    }

    /// Asks for the counts again, when it is time.
    fn count(&mut self) {
        let due = self
            .counted_at
            .is_none_or(|at| at.elapsed() >= COUNTS_EVERY);
        if due && !self.end.stop.is_cancelled() {
            self.counted_at = Some(Instant::now());
            self.ask(Ask::Status, status);
        }
    }

    fn carry_out(&mut self, wish: Wish) -> io::Result<()> {
        match wish {
            Wish::Suspend => {}
            Wish::Copy(url) => {
                copy(&url)?;
                self.view.note(COPIED);
            }
            Wish::Quit if self.asked_at.is_some_and(|at| at.elapsed() > ONE_WISH) => {
                self.end.insisted.cancel();
            }
            Wish::Quit => {
                self.asked_at.get_or_insert_with(Instant::now);
                self.view
                    .note("Stopping: finishing running requests. Ctrl-C again quits now. Queued events are kept.");
                self.end.stop.cancel();
            }
            Wish::Pause(paused) => self.ask(Ask::Pause { paused }, status),
            Wish::Replay(event) => self.ask(Ask::Retry { event }, replayed),
            Wish::Details(event) => self.details(event),
            Wish::Curl(event) => self.show(event, |shown| Ok(Came::Command(shown.curl()?))),
        }
        Ok(())
    }

    /// Asks the agent, and keeps of its answer what `wanted` takes.
    fn ask(&self, ask: Ask, wanted: fn(Line) -> Option<Came>) {
        let (client, came) = (Client::find(&self.dir), self.came.clone());
        self.runtime.spawn(async move {
            let Some(client) = client else { return };
            let Ok(mut pieces) = client.ask(&ask).await else {
                return;
            };
            while let Some(piece) = pieces.recv().await {
                let Piece::Line(line) = piece else { continue };
                if let Some(what) = wanted(*line) {
                    // The view may have gone.
                    let _ = came.send(what);
                }
            }
        });
    }

    fn show(
        &self,
        event: String,
        made: impl Fn(&events::Shown) -> Result<Came, Failure> + Send + 'static,
    ) {
        let (client, came) = (Client::find(&self.dir), self.came.clone());
        self.runtime.spawn(async move {
            let Some(client) = client else { return };
            let ask = Ask::Show {
                event: event.clone(),
            };
            let Ok(pieces) = client.ask(&ask).await else {
                return;
            };
            let what = match events::gather(pieces).await {
                Ok(Some(shown)) => made(&shown),
                Ok(None) => Ok(Came::Note(format!("{event} is gone"))),
                Err(failure) => Err(failure),
            };
            let what = what.unwrap_or_else(|failure| Came::Note(failure.message().to_owned()));
            let _ = came.send(what);
        });
    }

    fn draw(&mut self) -> io::Result<()> {
        let (width, height) = size()?;
        let rows = self.view.rows(width.into(), height.into());
        let mut out = io::stdout().lock();
        queue!(out, BeginSynchronizedUpdate)?;
        for ((tone, text), y) in rows.iter().zip(0..) {
            queue!(out, MoveTo(0, y), Clear(ClearType::UntilNewLine))?;
            match (tone, color(*tone).filter(|_| self.color)) {
                (Tone::Chosen, _) => queue!(out, SetAttribute(Attribute::Reverse))?,
                (Tone::Dim, _) if self.color => queue!(out, SetAttribute(Attribute::Dim))?,
                (_, Some(color)) => queue!(out, SetForegroundColor(color))?,
                (_, None) => {}
            }
            queue!(out, Print(text), SetAttribute(Attribute::Reset), ResetColor)?;
        }
        queue!(out, EndSynchronizedUpdate)?;
        out.flush()
    }
}

fn status(line: Line) -> Option<Came> {
    let Line::Status(status) = line else {
        return None;
    };
    Some(Came::Status(Box::new(status)))
}

fn replayed(line: Line) -> Option<Came> {
    if let Line::Replay(line) = &line {
        let event = &line.event;
        return Some(Came::Note(match line.state {
            State::Sent => format!("delivered again: {event}"),
            State::Dead => format!("tried again and refused: {event}"),
            State::Stalled => format!("tried again and failed, more attempts follow: {event}"),
            State::Queued => format!("queued again, not tried yet: {event}"),
        }));
    }
    let Line::Failure { message, .. } = line else {
        return None;
    };
    Some(Came::Note(message))
}

fn color(tone: Tone) -> Option<Color> {
    match tone {
        Tone::Good => Some(Color::Green),
        Tone::Warn => Some(Color::Yellow),
        Tone::Bad => Some(Color::Red),
        Tone::Plain | Tone::Dim | Tone::Chosen => None,
    }
}

/// What a key means, if anything.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "there are keys without number"
)]
fn meaning(key: KeyEvent) -> Option<Key> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c' | 'd') => Some(Key::Quit),
            KeyCode::Char('z') => Some(Key::Suspend),
            _ => None,
        };
    }
    match key.code {
        KeyCode::Char('j') | KeyCode::Down => Some(Key::Down),
        KeyCode::Char('k') | KeyCode::Up => Some(Key::Up),
        KeyCode::Char('g') | KeyCode::Home => Some(Key::First),
        KeyCode::Char('G') | KeyCode::End => Some(Key::Last),
        KeyCode::PageDown | KeyCode::Char(' ') => Some(Key::PageDown),
        KeyCode::PageUp => Some(Key::PageUp),
        KeyCode::Char('r') => Some(Key::Replay),
        KeyCode::Char('d') | KeyCode::Enter => Some(Key::Details),
        KeyCode::Char('o') => Some(Key::Curl),
        KeyCode::Char('p') => Some(Key::Pause),
        KeyCode::Char('y') => Some(Key::CopyUrl),
        KeyCode::Char('?' | 'h') => Some(Key::Help),
        KeyCode::Char('q') => Some(Key::Leave),
        KeyCode::Esc => Some(Key::Back),
        _ => None,
    }
}

/// Stops this process, and returns once it has been continued. Where it cannot be stopped, it goes on.
#[cfg(unix)]
async fn suspend() {
    use rustix::process::{Signal, getpid, kill_process};
    use tokio::signal::unix::{SignalKind, signal};
    let continued = signal(SignalKind::from_raw(Signal::CONT.as_raw()));
    if let Ok(mut continued) = continued
        && kill_process(getpid(), Signal::TSTP).is_ok()
    {
        // Another thread may take the signal, so that this one runs on for a moment.
        let _ = tokio::time::timeout(STOPS_WITHIN, continued.recv()).await;
    }
}

#[cfg(not(unix))]
async fn suspend() {}

/// Puts a text on the clipboard by the terminal itself (OSC 52), which works over SSH, too.
fn copy(text: &str) -> io::Result<()> {
    let text = base64::engine::general_purpose::STANDARD.encode(text);
    let mut out = io::stdout().lock();
    write!(out, "\x1b]52;c;{text}\x07")?;
    out.flush()
}

/// The terminal, given back as it was whatever happens.
struct Taken;

impl Taken {
    fn take() -> io::Result<Self> {
        enable_raw_mode()?;
        let taken = Self;
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        Ok(taken)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Where the terminal has gone there is nothing to give back.
        let _ = execute!(io::stdout(), Show, LeaveAlternateScreen);
        let _ = disable_raw_mode();
    }
}
