//! `whrelay listen`: an agent, and where no forwarder is configured, an embedded one beside it. It
//! must not deliver anything itself.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;
use whrelay_agent::lines::{Line, ReadyLine};
use whrelay_agent::{Config, Tell};
use whrelay_core::target::Target;
use whrelay_core::token::Token;

use crate::agents;
use crate::args::{ListenArgs, ListenOutput};
use crate::embedded::Embedded;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;
use crate::shutdown;

/// Lines that may wait for a slow terminal or pipe; more are counted and skipped.
const WAITING_LINES: usize = 16 * 1024;

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

fn given_token(args: &ListenArgs, output: &Output) -> Result<Option<Token>, Failure> {
    let text = match (&args.token, &args.token_file) {
        (Some(text), _) => {
            if std::env::args_os().any(|arg| arg.to_string_lossy().starts_with("--token")) {
                output.tell("warning: a token on the command line can be seen by every user of this machine");
            }
            text.clone()
        }
        (None, Some(path)) => std::fs::read_to_string(path)
            .map_err(|e| Failure::new(Code::Unauthorised, format!("{}: {e}", path.display())))?,
        (None, None) => return Ok(None),
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
        token,
        bucket: args.bucket.clone(),
        subscription: args.name.clone(),
        targets,
        manner: args.delivery.manner(),
        dir: dir.to_owned(),
    }
}

/// Runs the agent beside what shows its lines. The agent never waits for the terminal.
async fn agent(
    args: &ListenArgs,
    config: Config,
    store: whrelay_store::Store,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let (lines, mut coming) = mpsc::channel(WAITING_LINES);
    let skipped = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&skipped);
    let tell: Tell = Arc::new(move |line| {
        if lines.try_send(line).is_err() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let print = |line: Line| {
        show(&line, style(args), args, output)?;
        let skipped = skipped.swap(0, Ordering::Relaxed);
        if skipped > 0 {
            let text = format!("{skipped} lines were skipped here; `whrelay logs` has them");
            output.line(&Line::warning(text), style(args) == ListenOutput::Json)?;
        }
        Ok(())
    };
    let mut printed = Ok(());
    let mut running = std::pin::pin!(whrelay_agent::run(config, store, tell, stop.clone()));
    let ran = loop {
        tokio::select! {
            ran = running.as_mut() => break ran,
            Some(line) = coming.recv() => {
                printed = printed.and_then(|()| print(line));
                if printed.is_err() {
                    stop.cancel();
                }
            }
        }
    };
    while let Ok(line) = coming.try_recv() {
        printed = printed.and_then(|()| print(line));
    }
    ran.map_err(Failure::from).and(printed)
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

fn show(
    line: &Line,
    style: ListenOutput,
    args: &ListenArgs,
    output: &Output,
) -> Result<(), Failure> {
    if let (Line::Ready(_), Some(path)) = (line, &args.ready_file) {
        let json = serde_json::to_string(line).map_err(std::io::Error::from)?;
        std::fs::write(path, json + "\n")
            .map_err(|e| Failure::new(Code::Failed, format!("{}: {e}", path.display())))?;
    }
    match (line, style) {
        (Line::Ready(ready), ListenOutput::Interactive) => {
            header(ready, output);
            Ok(())
        }
        (Line::Ready(ready), ListenOutput::Compact) => {
            output.tell(&format!(
                "ready: {} -> {}",
                ready.url,
                ready.targets.join(", ")
            ));
            Ok(())
        }
        (line, style) => output.line(line, style == ListenOutput::Json),
    }
}

fn header(ready: &ReadyLine, output: &Output) {
    output.tell(&format!("\n  Send webhooks to  {}", ready.url));
    for target in &ready.targets {
        output.tell(&format!("  They go to        {target}"));
    }
    if ready.queued > 0 {
        output.tell(&format!("  Still queued      {} from before", ready.queued));
    }
    output.tell("  Ctrl-C stops; what is queued stays.\n");
}
