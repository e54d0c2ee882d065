//! A curl command that makes an event's request, byte for byte. It must not run it.

use std::fmt::Write as _;

use whrelay_agent::lines::{ContentLine, EventLine};
use whrelay_core::octets;
use whrelay_core::target::Target;
use whrelay_delivery::travelling;

use crate::failure::{Code, Failure};
use crate::text::shown;

/// Longest body that stands in the command as text: shells take no longer argument than 128 KiB.
const LONGEST_TEXT: usize = 32 * 1024;
/// Fields that curl would add by itself.
const ADDED: [&str; 4] = ["user-agent", "accept", "content-type", "expect"];
/// The command for an event at its first target.
pub(super) fn command(
    event: &EventLine,
    content: &ContentLine,
    body: &[u8],
) -> Result<String, Failure> {
    let failed = |why: &str| Failure::new(Code::Failed, why);
    let target = event.deliveries.first().map(|first| first.target.parse());
    let target: Target = match target {
        Some(Ok(target)) => target,
        Some(Err(_)) | None => return Err(failed("the event has no target")),
    };
    let (tail, query) = match event.path.split_once('?') {
        Some((tail, query)) => (tail, Some(query)),
        None => (event.path.as_str(), None),
    };
    let url = target.request_url(tail, query);
    let url = url.map_err(|e| failed(&e.to_string()))?;
    let method = match (event.method.as_str(), body.is_empty()) {
        // It would wait for a body, which no answer to HEAD has.
        ("HEAD", true) => "--head".to_owned(),
        (method, _) => format!("-X {}", quoted(method.as_bytes())),
    };
    let (origin, path) = split(&url);
    let mut command = "curl --globoff --path-as-is ".to_owned();
    if path.bytes().all(is_kept) {
        command += &format!("{method} {}", quoted(url.as_bytes()));
    } else {
        command += &format!("{method} {}", quoted(origin.as_bytes()));
        put(&mut command, "--request-target", &octets::of_text(path));
    }
    if let Some(socket) = target.socket() {
        put(&mut command, "--unix-socket", socket.as_bytes());
    }
    let is = |name: &str, other: &&str| name.eq_ignore_ascii_case(other);
    let fields: Vec<_> = content.fields().collect();
    let fields: Vec<_> = travelling(&fields).collect();
    for (name, value) in &fields {
        // curl sends an empty value only where a semicolon stands in the colon's place.
        let field = match value.is_empty() {
            true => format!("{name};").into_bytes(),
            false => [name.as_bytes(), b": ", *value].concat(),
        };
        put(&mut command, "-H", &field);
    }
    let given = |other: &&&str| fields.iter().any(|(name, _)| is(name, other));
    for name in ADDED.iter().filter(|other| !given(other)) {
        put(&mut command, "-H", format!("{name}:").as_bytes());
    }
    // RFC 9110 section 8.6: a method that expects content says so when there is none.
    if body.is_empty() && !["POST", "PUT", "PATCH"].contains(&event.method.as_str()) {
        return Ok(command);
    }
    let text = std::str::from_utf8(body).ok();
    match text.filter(|text| text.len() <= LONGEST_TEXT && can_be_shown(text)) {
        Some(text) => {
            put(&mut command, "--data-raw", text.as_bytes());
            Ok(command)
        }
        None => {
            put(&mut command, "--data-binary", b"@-");
            let lines = wrapped(&super::base64(body));
            Ok(format!("base64 -d <<'BODY' | {command}\n{lines}BODY"))
        }
    }
}

/// A URL's origin, and its path and query.
fn split(url: &str) -> (&str, &str) {
    let authority = url.find("://").map_or(0, |at| at + "://".len());
    let path = url[authority..].find(['/', '?']);
    url.split_at(path.map_or(url.len(), |at| authority + at))
}

/// Whether curl sends this byte of a URL as it is.
fn is_kept(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte)
}

fn put(command: &mut String, flag: &str, value: &[u8]) {
    // Writing to a String cannot fail.
    let _ = write!(command, " \\\n  {flag} {}", quoted(value));
}

/// Whether a terminal shows it as it is, and takes it as it is when it is pasted.
fn can_be_shown(text: &str) -> bool {
    text.split('\n').all(|line| shown(line) == line)
}

/// Bytes as one word of a POSIX shell.
fn quoted(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if can_be_shown(text) => format!("'{}'", text.replace('\'', r"'\''")),
        Ok(_) | Err(_) => {
            let octal: String = bytes.iter().map(|b| format!("\\{b:03o}")).collect();
            format!("\"$(printf '{octal}')\"")
        }
    }
}

fn wrapped(text: &str) -> String {
    let mut lines = String::with_capacity(text.len() + text.len() / 76 + 1);
    for line in text.as_bytes().chunks(76) {
        lines.push_str(&String::from_utf8_lossy(line));
        lines.push('\n');
    }
    lines
}
