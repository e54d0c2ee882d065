//! `whrelay listen`: an agent, and where no forwarder is configured, an embedded one beside it. It
//! must not deliver anything itself.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;
use whrelay_agent::lines::{Line, ReadyLine};
use whrelay_agent::{Config, Proxies, Tell};
use whrelay_core::target::Target;
use whrelay_core::token::Token;

use crate::agents;
use crate::args::{ListenArgs, ListenOutput};
use crate::embedded::Embedded;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;
use crate::shutdown;
use crate::text::shown;

/// Lines that may wait for a slow terminal or pipe; more are counted and skipped.
const WAITING_LINES: usize = 16 * 1024;
/// How long the end waits for the last lines to be printed.
const LAST_LINES: Duration = Duration::from_secs(2);

pub(crate) async fn run(args: ListenArgs, output: &Output) -> Result<(), Failure> {
    let targets = targets(&args)?;
    let paths = Paths::resolve()?;
    let token = given_token(&args, output)?;
    let stop = shutdown::on_signal();
    let Some(forwarder) = args.forwarder.clone() else {
        let dir = paths.agent(None, &args.bucket, &args.name);
        let store = agents::open_to_listen(&dir).await?;
        let mut embedded = Embedded::start(&paths.embedded(&args.bucket), args.bind).await?;
        let (url, token) = (embedded.url.clone(), embedded.token.clone());
        let config = config(&args, targets, url, token, &dir);
        let ended = tokio::select! {
            ended = agent(&args, config, store, output, &stop) => ended,
            failure = embedded.failed() => Err(failure),
        };
        embedded.stop().await;
        return ended;
    };
    let token = token.ok_or_else(|| {
        Failure::new(
            Code::Unauthorised,
            format!("{forwarder} needs an access token"),
        )
        .hint("give it with --token-file or WHRELAY_TOKEN")
    })?;
    let dir = paths.agent(Some(&forwarder), &args.bucket, &args.name);
    let store = agents::open_to_listen(&dir).await?;
    let config = config(&args, targets, forwarder, token, &dir);
    agent(&args, config, store, output, &stop).await
}

fn targets(args: &ListenArgs) -> Result<Vec<Target>, Failure> {
    let mut targets: Vec<Target> = Vec::new();
    for target in args.targets.iter().chain(&args.to) {
        if !targets.contains(target) {
            targets.push(target.clone());
        }
    }
    if targets.is_empty() {
        return Err(
            Failure::new(Code::Usage, "no target: where should events go?")
                .hint("whrelay listen --to localhost:3000"),
        );
    }
    Ok(targets)
}

/// A token typed on the command line, else that of the token file, else that of the environment.
fn given_token(args: &ListenArgs, output: &Output) -> Result<Option<Token>, Failure> {
    let typed = std::env::args_os().any(|arg| {
        let arg = arg.to_string_lossy();
        arg == "--token" || arg.starts_with("--token=")
    });
    if typed {
        let text = "a token on the command line can be seen by every user of this machine";
        output.tell(&format!("warning: {text}"));
    }
    let text = match (&args.token, &args.token_file) {
        (_, Some(path)) if !typed => std::fs::read_to_string(path).map_err(|e| {
            Failure::new(Code::Unauthorised, format!("{}: {e}", path.display()))
                .hint("a forwarder's data directory has its admin-token file")
        })?,
        (Some(text), _) => text.clone(),
        (None, _) => return Ok(None),
    };
    let token = Token::parse(&text);
    token
        .map(Some)
        .map_err(|e| Failure::new(Code::Unauthorised, e.to_string()))
}

fn config(
    args: &ListenArgs,
    targets: Vec<Target>,
    forwarder: Url,
    token: Token,
    dir: &Path,
) -> Config {
    Config {
        forwarder,
        proxies: proxies(),
        trust: args.ca_file.clone().map(|ca| ca.0).unwrap_or_default(),
        token,
        bucket: args.bucket.clone(),
        subscription: args.name.clone(),
        targets,
        manner: args.manner(),
        dir: dir.to_owned(),
    }
}

/// The proxies that the environment names, as other programs read it: lower case comes first.
fn proxies() -> Proxies {
    let text = |name: &str| {
        let lower = std::env::var(name.to_lowercase());
        lower.or_else(|_| std::env::var(name)).unwrap_or_default()
    };
    let [https, http, all, no] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"].map(text);
    Proxies::new(&https, &http, &all, &no)
}

/// Runs the agent beside a thread that shows its lines: neither the tunnel nor a signal ever waits
/// for a terminal that is stopped or a pipe that is full.
async fn agent(
    args: &ListenArgs,
    config: Config,
    store: whrelay_store::Store,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let (lines, coming) = mpsc::channel(WAITING_LINES);
    let skipped = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&skipped);
    let tell: Tell = Arc::new(move |line| {
        if lines.try_send(line).is_err() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let printer = Printer {
        output: output.clone(),
        style: style(args),
        ready_file: args.ready_file.clone(),
        skipped,
    };
    let mut printing = tokio::task::spawn_blocking(move || printer.run(coming));
    let running = whrelay_agent::run(config, store, tell, stop.clone());
    let mut running = tokio::spawn(running);
    let bug = |e: tokio::task::JoinError| Failure::new(Code::Bug, e.to_string());
    tokio::select! {
        ran = &mut running => {
            let ran = ran.map_err(bug)?.map_err(Failure::from);
            // What is left to print may have no reader.
            let printed = tokio::time::timeout(LAST_LINES, printing).await;
            ran.and(printed.map_or(Ok(()), |printed| printed.map_err(bug)?))
        }
        printed = &mut printing => {
            stop.cancel();
            let ran = running.await.map_err(bug)?.map_err(Failure::from);
            printed.map_err(bug)?.and(ran)
        }
    }
}

/// Shows lines.
struct Printer {
    output: Output,
    style: ListenOutput,
    ready_file: Option<PathBuf>,
    skipped: Arc<AtomicU64>,
}

impl Printer {
    fn run(self, mut coming: mpsc::Receiver<Line>) -> Result<(), Failure> {
        while let Some(line) = coming.blocking_recv() {
            self.show(&line)?;
            let skipped = self.skipped.swap(0, Ordering::Relaxed);
            if skipped > 0 {
                let text = format!("{skipped} lines were skipped here; `whrelay logs` has them");
                self.show(&Line::warning(text))?;
            }
        }
        Ok(())
    }

    fn show(&self, line: &Line) -> Result<(), Failure> {
        if let (Line::Ready(_), Some(path)) = (line, &self.ready_file) {
            let json = serde_json::to_string(line).map_err(std::io::Error::from)?;
            write_private(path, &(json + "\n"))
                .map_err(|e| Failure::new(Code::Failed, format!("{}: {e}", path.display())))?;
        }
        let output = &self.output;
        match (line, self.style) {
            (Line::Ready(ready), ListenOutput::Interactive) => {
                header(ready, output);
                Ok(())
            }
            (Line::Ready(ready), ListenOutput::Compact) => {
                let url = shown(&ready.url);
                output.tell(&format!("ready: {url} -> {}", ready.targets.join(", ")));
                Ok(())
            }
            (line, style) => output.line(line, style == ListenOutput::Json),
        }
    }
}

/// The line has the input URL in it, and whoever has that can send.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())
}

fn style(args: &ListenArgs) -> ListenOutput {
    let terminal = std::io::stdout().is_terminal();
    let default = if terminal {
        ListenOutput::Interactive
    } else {
        ListenOutput::Compact
    };
    if args.json {
        ListenOutput::Json
    } else {
        args.output.unwrap_or(default)
    }
}

fn header(ready: &ReadyLine, output: &Output) {
    output.tell(&format!("\n  Send webhooks to  {}", shown(&ready.url)));
    for target in &ready.targets {
        output.tell(&format!("  They go to        {target}"));
    }
    if ready.queued > 0 {
        output.tell(&format!("  Still queued      {} from before", ready.queued));
    }
    output.tell("  Ctrl-C stops; what is queued stays.\n");
}
