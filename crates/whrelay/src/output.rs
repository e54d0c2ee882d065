//! Where output goes: data to stdout, talk to stderr. The only file that prints.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use whrelay_agent::lines::Line;

use crate::args::{Global, When};
use crate::failure::Failure;
use crate::text::{Writer, shown, shown_json};

/// How to print.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    data: Writer,
    talk: Writer,
    quiet: bool,
}

/// Whether a stream gets colour: `--color` decides, then `NO_COLOR`, then what the stream is.
pub(crate) fn wants_color(global: &Global, stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match global.color {
        When::Always => true,
        When::Never => false,
        When::Auto => {
            let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
            !set("NO_COLOR") && !dumb && stream.is_terminal()
        }
    }
}

/// What is kept back of stderr, while it is; the beginning is worth most.
static HELD: Mutex<Option<Vec<u8>>> = Mutex::new(None);
/// Bytes that are kept back at most.
const MOST_HELD: usize = 64 * 1024;

fn held() -> MutexGuard<'static, Option<Vec<u8>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives, stderr is kept back; then it goes out.
pub(crate) struct Held;

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(bytes) = held().take() {
            // Whether anyone reads it changes nothing.
            let _ = io::stderr().lock().write_all(&bytes);
        }
    }
}

/// Stderr, unless it is kept back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talk;

impl Write for Talk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *held() {
            None => return io::stderr().lock().write(bytes),
            Some(kept) if kept.len() < MOST_HELD => kept.extend_from_slice(bytes),
            Some(_) => {}
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        Self {
            data: Writer::new(wants_color(global, &io::stdout())),
            talk: Writer::new(wants_color(global, &io::stderr())),
            quiet: global.quiet,
        }
    }

    /// Without colour, before the flags are known.
    pub(crate) fn plain() -> Self {
        Self {
            data: Writer::new(false),
            talk: Writer::new(false),
            quiet: false,
        }
    }

    /// One JSON line on stdout.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let json = serde_json::to_string(value).map_err(io::Error::from)?;
        self.data(&shown_json(&json))
    }

    /// One line of data on stdout.
    pub(crate) fn data(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        Ok(writeln!(stdout, "{text}").and_then(|()| stdout.flush())?)
    }

    /// Bytes on stdout, as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        Ok(stdout.write_all(bytes).and_then(|()| stdout.flush())?)
    }

    /// A line on stdout: for scripts or for people.
    pub(crate) fn line(&self, line: &Line, json: bool) -> Result<(), Failure> {
        if json {
            return self.json(line);
        }
        match (line, self.data.line(line)) {
            (Line::Warning { .. } | Line::Link { .. } | Line::Endpoint { .. }, _) => {
                self.tell_line(line);
                Ok(())
            }
            (_, Some(text)) => self.data(&text),
            (_, None) => Ok(()),
        }
    }

    /// A line for people on stderr.
    pub(crate) fn tell_line(&self, line: &Line) {
        if let Some(text) = self.talk.line(line) {
            self.tell(&text);
        }
    }

    /// Whether only what was asked for is said.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Whether data is coloured.
    pub(crate) fn colors(&self) -> bool {
        self.data.colors()
    }

    /// Keeps what goes to stderr back, for as long as a view has the terminal.
    pub(crate) fn hold_talk(&self) -> Held {
        *held() = Some(Vec::new());
        Held
    }

    /// Talk on stderr, unless it is to be quiet. Whether anyone reads it changes nothing.
    pub(crate) fn tell(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(Talk, "{text}");
        }
    }

    /// A warning on stderr, also where it is to be quiet.
    pub(crate) fn warn(&self, text: &str) {
        // Whether anyone reads it changes nothing.
        let _ = writeln!(Talk, "warning: {}", shown(text));
    }

    /// An error on stderr, one line, with a hint where there is one.
    pub(crate) fn error(&self, message: &str, hint: Option<&str>) {
        let mut stderr = io::stderr().lock();
        let _ = writeln!(stderr, "error: {}", shown(message));
        if let Some(hint) = hint {
            let _ = writeln!(stderr, "hint: {}", shown(hint));
        }
    }
}
