//! `whrelay logs`: attempts, newest last, and those that come. It must not open a store that a
//! running agent has.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use whrelay_agent::Manner;
use whrelay_agent::control::{Ask, Client, Filter, Piece};
use whrelay_agent::lines::{AttemptLine, Line};

use crate::agents::{self, Door};
use crate::args::LogsArgs;
use crate::commands::replay::default_manner;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;
use crate::shutdown;

/// How often a follower looks for agents that have started.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(crate) async fn run(args: LogsArgs, output: &Output) -> Result<(), Failure> {
    let paths = Paths::resolve()?;
    let filter = agents::filter(&args.list.filter, args.list.event.as_deref());
    if args.follow {
        return follow(&args, &paths, filter, output).await;
    }
    let mut attempts = Vec::new();
    for dir in paths.all_agents() {
        attempts.extend(stored(&dir, &filter, args.list.lines, &default_manner()).await?);
    }
    if attempts.is_empty() && filter != Filter::default() {
        output.tell("no attempt matches");
    }
    attempts.sort_by(|a, b| a.at.cmp(&b.at));
    for attempt in attempts.split_off(attempts.len().saturating_sub(args.list.lines)) {
        output.line(&Line::Attempt(attempt), args.list.json)?;
    }
    Ok(())
}

/// The newest attempts of one agent.
async fn stored(
    dir: &std::path::Path,
    filter: &Filter,
    last: usize,
    manner: &Manner,
) -> Result<Vec<AttemptLine>, Failure> {
    let Some(door) = Door::open(dir, manner).await? else {
        return Ok(Vec::new());
    };
    let ask = Ask::Attempts {
        filter: filter.clone(),
        last,
        follow: false,
    };
    let mut pieces = door.ask(ask).await?;
    let mut attempts = Vec::new();
    while let Some(piece) = pieces.recv().await {
        if let Some(attempt) = attempt(piece)? {
            attempts.push(attempt);
        }
    }
    door.close().await;
    Ok(attempts)
}

fn attempt(piece: Piece) -> Result<Option<AttemptLine>, Failure> {
    let Piece::Line(line) = piece else {
        return Ok(None);
    };
    if let Line::Failure { message, .. } = *line {
        return Err(Failure::new(Code::Failed, message));
    }
    Ok(if let Line::Attempt(attempt) = *line {
        Some(attempt)
    } else {
        None
    })
}

/// What a follower knows of an agent.
#[derive(Default)]
struct Followed {
    /// Whether its attempts are coming.
    live: bool,
    /// Where to go on when it starts again, in microseconds since 1970.
    since: Option<i64>,
}

async fn follow(
    args: &LogsArgs,
    paths: &Paths,
    filter: Filter,
    output: &Output,
) -> Result<(), Failure> {
    let stop = shutdown::on_signal();
    let began = jiff::Timestamp::now().as_microsecond();
    let (sender, mut coming) = mpsc::channel::<(PathBuf, Option<AttemptLine>)>(64);
    let mut agents: HashMap<PathBuf, Followed> = HashMap::new();
    let mut shown: HashSet<(String, u32, String)> = HashSet::new();
    let mut first = true;
    loop {
        for dir in paths.all_agents() {
            let followed = agents.entry(dir.clone()).or_default();
            if followed.live {
                continue;
            }
            let running = Client::find(&dir);
            if first && running.is_none() {
                for attempt in stored(&dir, &filter, args.list.lines, &default_manner()).await? {
                    shown.insert(identity(&attempt));
                    output.line(&Line::Attempt(attempt), args.list.json)?;
                }
            }
            let Some(client) = running else { continue };
            let (mut filter, mut last) = (filter.clone(), args.list.lines);
            if !first {
                let since = followed.since.unwrap_or(began);
                (filter.since, last) = (filter.since.max(Some(since)), usize::MAX);
            }
            let ask = Ask::Attempts {
                filter,
                last,
                follow: true,
            };
            if let Some(pieces) = client.ask(&ask).await {
                followed.live = true;
                tokio::spawn(pass_on(dir, pieces, sender.clone()));
            }
        }
        first = false;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
            Some((dir, attempt)) = coming.recv() => {
                let followed = agents.entry(dir).or_default();
                let Some(attempt) = attempt else {
                    followed.live = false;
                    continue;
                };
                followed.since = attempt.at.parse::<jiff::Timestamp>().ok().map(|at| at.as_microsecond());
                if shown.insert(identity(&attempt)) {
                    output.line(&Line::Attempt(attempt), args.list.json)?;
                }
            }
        }
    }
}

/// What tells an attempt from all others, also from one that a crash repeated.
fn identity(attempt: &AttemptLine) -> (String, u32, String) {
    (
        attempt.delivery.clone(),
        attempt.attempt,
        attempt.at.clone(),
    )
}

/// Passes an agent's attempts on, and at the end that it has gone.
async fn pass_on(
    dir: PathBuf,
    mut pieces: mpsc::Receiver<Piece>,
    out: mpsc::Sender<(PathBuf, Option<AttemptLine>)>,
) {
    while let Some(piece) = pieces.recv().await {
        if let Ok(Some(attempt)) = attempt(piece)
            && out.send((dir.clone(), Some(attempt))).await.is_err()
        {
            return;
        }
    }
    // Where the follower has gone, nobody needs to know.
    let _ = out.send((dir, None)).await;
}
