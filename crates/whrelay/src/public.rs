//! A public URL for an embedded forwarder, by a program for that which is installed. It must not know what is sent there.

use std::collections::VecDeque;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use crate::args::PublicBy;
use crate::failure::{Code, Failure};
use crate::text::shown;

/// How long a program may take until it says its URL.
const SAID_WITHIN: Duration = Duration::from_secs(30);
/// Lines of a program that are shown where it says none.
const LAST_LINES: usize = 3;
/// What helps where no program is there.
const INSTALL: &str =
    "install cloudflared or ngrok, or name a host for ssh -R: --public ssh:nokey@localhost.run";

/// A program that makes a URL public while it runs.
pub(crate) struct Public {
    /// Where it is public, without a path.
    pub(crate) url: Url,
    program: &'static str,
    child: Child,
    /// What it says is read, or it would wait for that.
    _reading: [AbortOnDropHandle<()>; 2],
}

impl Public {
    /// Starts a program for a port of this machine.
    pub(crate) async fn open(by: &PublicBy, port: u16) -> Result<Self, Failure> {
        let (program, args) = match by {
            PublicBy::Any if is_installed("cloudflared") => cloudflared(port),
            PublicBy::Any if is_installed("ngrok") => ngrok(port),
            PublicBy::Any => {
                let why = "--public: neither cloudflared nor ngrok is installed";
                return Err(Failure::new(Code::Usage, why).hint(INSTALL));
            }
            PublicBy::Cloudflared => cloudflared(port),
            PublicBy::Ngrok => ngrok(port),
            PublicBy::Ssh(host) => ssh(host, port),
        };
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = child.map_err(|e| {
            Failure::new(Code::Usage, format!("--public: {program}: {e}")).hint(INSTALL)
        })?;
        let (lines, mut said) = mpsc::unbounded_channel();
        let reading = [
            child.stdout.take().map(|out| read(out, lines.clone())),
            child.stderr.take().map(|err| read(err, lines)),
        ];
        let [Some(out), Some(err)] = reading else {
            return Err(Failure::new(Code::Bug, "a program without output"));
        };
        let url = first_url(program, &mut said).await?;
        Ok(Self {
            url,
            program,
            child,
            _reading: [out, err],
        })
    }

    /// The program and its process, for people.
    pub(crate) fn by(&self) -> String {
        let pid = self.child.id().map(|pid| format!(" (pid {pid})"));
        format!("{}{}", self.program, pid.unwrap_or_default())
    }

    /// Waits until it ends, which it should not.
    pub(crate) async fn ended(&mut self) -> String {
        let how = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        format!(
            "{} has ended ({how}): {} reaches this machine no longer; start `listen` again",
            self.program, self.url
        )
    }
}

fn cloudflared(port: u16) -> (&'static str, Vec<String>) {
    let url = format!("http://127.0.0.1:{port}");
    let args = ["tunnel", "--no-autoupdate", "--url", &url];
    ("cloudflared", args.map(str::to_owned).to_vec())
}

fn ngrok(port: u16) -> (&'static str, Vec<String>) {
    let args = ["http", &port.to_string(), "--log", "stdout"];
    ("ngrok", args.map(str::to_owned).to_vec())
}

fn ssh(host: &str, port: u16) -> (&'static str, Vec<String>) {
    let forward = format!("80:127.0.0.1:{port}");
    let args = [
        "-T",
        "-o",
        "BatchMode=yes",
        "-o",
        "ExitOnForwardFailure=yes",
        "-o",
        "ServerAliveInterval=15",
        "-R",
        &forward,
        "--",
        host,
    ];
    ("ssh", args.map(str::to_owned).to_vec())
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn read(
    from: impl AsyncRead + Unpin + Send + 'static,
    to: mpsc::UnboundedSender<String>,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let (mut from, mut line) = (BufReader::new(from), Vec::new());
        while let Ok(1..) = from.read_until(b'\n', &mut line).await {
            // Once the URL is known, nobody wants to know more.
            let _ = to.send(String::from_utf8_lossy(&line).into_owned());
            line.clear();
        }
    }))
}

async fn first_url(
    program: &'static str,
    said: &mut mpsc::UnboundedReceiver<String>,
) -> Result<Url, Failure> {
    let (until, mut last) = (Instant::now() + SAID_WITHIN, VecDeque::new());
    while let Ok(Some(line)) = timeout_at(until, said.recv()).await {
        if let Some(url) = url_in(program, &line) {
            return Ok(url);
        }
        last.push_back(shown(line.trim()));
        last.drain(..last.len().saturating_sub(LAST_LINES));
    }
    let said = match last.is_empty() {
        true => "it said nothing".to_owned(),
        false => Vec::from(last).join(" | "),
    };
    Err(Failure::new(
        Code::Unreachable,
        format!("--public: {program} gave no URL: {said}"),
    )
    .hint("run it by itself to see why"))
}

/// The public URL in a line of a program, if it is there.
fn url_in(program: &str, line: &str) -> Option<Url> {
    let lower = line.to_ascii_lowercase();
    let is_it = |url: &Url| match program {
        "cloudflared" => url
            .host_str()
            .is_some_and(|host| host.ends_with(".trycloudflare.com")),
        "ngrok" => lower.contains("url=https://"),
        _ => lower.contains("tunneled") || lower.contains("forwarding"),
    };
    let starts = line.match_indices("https://").map(|(at, _)| &line[at..]);
    let urls = starts.filter_map(|rest| {
        let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '"' | '|' | ',' | '\''));
        Url::parse(&rest[..end.unwrap_or(rest.len())]).ok()
    });
    let mut roots = urls.filter(|url| url.path() == "/" && url.query().is_none());
    roots.find(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_programs_url_is_found_and_no_other() {
        for (program, line, wanted) in [
            (
                "cloudflared",
                "2026-11-27T10:00:00Z INF |  https://calm-tea.trycloudflare.com  |",
                Some("https://calm-tea.trycloudflare.com/"),
            ),
            (
                "cloudflared",
                "INF see https://developers.cloudflare.com/",
                None,
            ),
            ("cloudflared", "INF https://evil.example.com", None),
            (
                "ngrok",
                "t=2026 lvl=info msg=\"started tunnel\" addr=http://localhost:4141 url=https://a1.ngrok-free.app",
                Some("https://a1.ngrok-free.app/"),
            ),
            ("ngrok", "lvl=info msg=\"see https://ngrok.com\"", None),
            (
                "ssh",
                "a.lhr.life tunneled with tls termination, https://a.lhr.life",
                Some("https://a.lhr.life/"),
            ),
            (
                "ssh",
                "Forwarding HTTP traffic from https://x.serveo.net",
                Some("https://x.serveo.net/"),
            ),
            ("ssh", "welcome: https://admin.localhost.run/", None),
        ] {
            let found = url_in(program, line).map(|url| url.to_string());
            assert_eq!(found.as_deref(), wanted, "{line}");
        }
    }
}
