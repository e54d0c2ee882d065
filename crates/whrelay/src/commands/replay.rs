//! `whrelay replay`: events again. It must not change what was recorded before.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use whrelay_agent::Manner;
use whrelay_agent::control::{Ask, Piece};
use whrelay_agent::lines::Line;
use whrelay_core::limits;
use whrelay_core::retry::RetryPolicy;
use whrelay_delivery::{Fields, Trust};

use crate::agents::{self, Door};
use crate::args::ReplayArgs;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;

/// The manner of an agent that delivers nothing: for commands that only read.
pub(crate) fn default_manner() -> Manner {
    Manner {
        policy: RetryPolicy::default(),
        timeout: std::time::Duration::from_secs(30),
        max_in_flight: limits::MAX_IN_FLIGHT,
        rate: None,
        fields: Fields::default(),
        trust: Trust::default(),
    }
}

pub(crate) async fn run(args: ReplayArgs, output: &Output) -> Result<(), Failure> {
    let mut wanted: Vec<String> = Vec::new();
    for id in &args.ids {
        if !wanted.contains(id) {
            wanted.push(id.clone());
        }
    }
    let homes = homes(&wanted).await?;
    let bar = progress(&args, wanted.len() as u64);
    let (mut delivered, mut begun) = (0, 0);
    for (dir, events) in homes {
        let Some(door) = Door::open(&dir, &default_manner()).await? else {
            continue;
        };
        let idle = matches!(door, Door::Idle(_));
        // Nobody else would deliver to a target of its own: this process does, and stays for it.
        let wait = args.wait || (idle && args.to.is_some());
        let to = args.to.as_ref().map(ToString::to_string);
        let mut pieces = door.ask(Ask::Replay { events, to, wait }).await?;
        let mut states: HashMap<String, String> = HashMap::new();
        while let Some(piece) = pieces.recv().await {
            let Piece::Line(line) = piece else { continue };
            if let Line::Failure { message, .. } = *line {
                return Err(Failure::new(Code::Failed, message));
            }
            if let Line::Replay(replay) = &*line {
                let before = states.insert(replay.delivery.clone(), replay.state.clone());
                bar.inc(u64::from(before.is_some()));
                if wait && before.is_none() {
                    continue;
                }
            }
            bar.suspend(|| output.line(&line, args.json))?;
        }
        door.close().await;
        begun += states.len();
        delivered += states.values().filter(|state| *state == "sent").count();
    }
    bar.finish_and_clear();
    if args.wait && delivered < begun {
        let missed = begun - delivered;
        return Err(Failure::new(
            Code::Failed,
            format!("{missed} of {begun} were not delivered"),
        )
        .hint("`whrelay logs` tells why"));
    }
    Ok(())
}

/// Which agent has which of the events: all are found before any is delivered again.
async fn homes(wanted: &[String]) -> Result<HashMap<PathBuf, Vec<String>>, Failure> {
    let mut homes: HashMap<PathBuf, Vec<String>> = HashMap::new();
    let mut left = wanted.to_vec();
    for dir in Paths::resolve()?.all_agents() {
        let Some(door) = Door::open(&dir, &default_manner()).await? else {
            continue;
        };
        let mut elsewhere = Vec::new();
        for id in left {
            if has(&door, &id).await? {
                homes.entry(dir.clone()).or_default().push(id);
            } else {
                elsewhere.push(id);
            }
        }
        door.close().await;
        left = elsewhere;
    }
    match left.first() {
        Some(id) => Err(agents::unknown_event(id)),
        None => Ok(homes),
    }
}

async fn has(door: &Door, id: &str) -> Result<bool, Failure> {
    let mut pieces = door
        .ask(Ask::Show {
            event: id.to_owned(),
        })
        .await?;
    let first = pieces.recv().await;
    Ok(matches!(first, Some(Piece::Line(line)) if matches!(*line, Line::Event(_))))
}

fn progress(args: &ReplayArgs, count: u64) -> ProgressBar {
    if !args.wait || args.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(count), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} delivered or given up");
    style.map_or(bar.clone(), |style| bar.with_style(style))
}
