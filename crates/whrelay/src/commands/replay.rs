//! `whrelay replay`: events again. It must not change what was recorded before.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use whrelay_agent::control::{Ask, Piece, ReplayHow, Until, Which};
use whrelay_agent::lines::Line;
use whrelay_core::delivery::State;
use whrelay_core::destination::{OptionSet, Spec};

use crate::agents::{self, Door, Round};
use crate::args::ReplayArgs;
use crate::commands::listen;
use crate::commands::which::{self, Reach};
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::text::{deliveries, events};

/// What came of the replays of all agents.
#[derive(Default)]
struct Tally {
    /// Events that would be delivered again.
    listed: HashSet<String>,
    begun: u64,
    /// Deliveries that were waited for and did not arrive.
    missed: u64,
}

pub(crate) async fn run(args: ReplayArgs, output: &Output) -> Result<(), Failure> {
    if let Some(Spec::Named(name, target)) = &args.to {
        let why =
            format!("a replay goes to a URL or to a destination: {target} or {name}, not both");
        return Err(Failure::new(Code::Usage, why).hint(format!("--to {name}, or --to {target}")));
    }
    let (mut tally, mut round) = (Tally::default(), Round::default());
    let is_one_off = matches!(args.to, Some(Spec::Unnamed(_)));
    let reach = match is_one_off {
        true => Reach::One,
        false => Reach::Able,
    };
    let mut chosen = which::choose(&args.which, "replay", reach, &mut round).await?;
    if args.wait && !is_one_off && !args.which.dry_run {
        for (dir, which) in std::mem::take(&mut chosen) {
            match round.note(nobody_delivers(&dir, &which).await) {
                Some(true) => {
                    let why = "no agent runs that would deliver it";
                    return Err(Failure::new(Code::Failed, why).hint(
                        "start `whrelay listen`, name a target with --to, or leave --wait away",
                    ));
                }
                Some(false) => drop(chosen.insert(dir, which)),
                None => {}
            }
        }
    }
    let doors = open_all(chosen, &args, &mut round).await?;
    if args.wait && !args.which.dry_run && !doors.is_empty() {
        output.tell("waiting until all are sent or dead; Ctrl-C leaves them queued");
    }
    for (door, which) in doors {
        round.note(replay(&door, which, &args, &mut tally, output).await);
        door.close().await;
    }
    let Tally {
        listed,
        begun,
        missed,
    } = tally;
    let listed = listed.len() as u64;
    if listed + begun == 0 {
        return round.end(output).and(Err(agents::no_match("event")));
    }
    if args.which.dry_run {
        output.tell(&format!("{} would be delivered again", events(listed)));
    } else if args.which.ids.is_empty() {
        output.tell(&format!("{} begun again", deliveries(begun)));
    }
    if missed > 0 {
        let hint = match args.wait {
            true => "`whrelay logs` tells why",
            false => "what is not dead is tried again by the next `whrelay listen`",
        };
        let message = format!("{missed} of {begun} were not delivered");
        return Err(Failure::new(Code::Failed, message).hint(hint));
    }
    which::end(&args.which, round, output)
}

/// The agents that replay, running or not. Fails before any of them replays where flags would be ignored.
async fn open_all(
    chosen: BTreeMap<PathBuf, Which>,
    args: &ReplayArgs,
    round: &mut Round,
) -> Result<Vec<(Door, Which)>, Failure> {
    let options = OptionSet {
        timeout: Some(args.timeout),
        ..OptionSet::default()
    };
    let how = (listen::requests(&args.requests), options);
    let mut doors = Vec::new();
    for (dir, which) in chosen {
        let door = Door::open_to_deliver(&dir, &how).await;
        doors.extend(round.note(door).flatten().map(|door| (door, which)));
    }
    let is_running = |(door, _): &(Door, Which)| matches!(door, Door::Running(_));
    let flags = args.typed.join(", ");
    let (why, hint) = if args.typed.is_empty() || doors.is_empty() {
        return Ok(doors);
    } else if doors.iter().any(is_running) {
        (
            format!(
                "the `listen` that runs makes its requests as it was started: {flags} would be ignored"
            ),
            "start `listen` with these flags, or stop it for this replay",
        )
    } else if !matches!(args.to, Some(Spec::Unnamed(_))) {
        (
            format!("no `listen` runs, and the next one would ignore {flags}"),
            "name a target with --to, or start `listen` with these flags",
        )
    } else {
        return Ok(doors);
    };
    for (door, _) in doors {
        door.close().await;
    }
    Err(Failure::new(Code::Usage, why).hint(hint))
}

/// Whether an agent does not run and has something of what is asked for.
async fn nobody_delivers(dir: &Path, which: &Which) -> Result<bool, Failure> {
    let Some(door) = Door::open(dir).await? else {
        return Ok(false);
    };
    let mut found = false;
    if matches!(door, Door::Idle(_)) {
        let which = which.clone();
        let how = ReplayHow {
            times: 1,
            dry_run: true,
            ..ReplayHow::default()
        };
        let mut pieces = door.ask(Ask::Replay { which, how }).await?;
        while let Some(piece) = pieces.recv().await {
            found |= matches!(piece, Piece::Line(line) if matches!(*line, Line::Event(_)));
        }
    }
    door.close().await;
    Ok(found)
}

async fn replay(
    door: &Door,
    which: Which,
    args: &ReplayArgs,
    tally: &mut Tally,
    output: &Output,
) -> Result<(), Failure> {
    let idle = matches!(door, Door::Idle(_));
    let until = match (args.wait, &args.to) {
        (true, _) => Until::Ended,
        // Nobody else tries a target of its own: this process does, and stays for it.
        (false, Some(Spec::Unnamed(_))) if idle => Until::Tried,
        (false, _) => Until::Begun,
    };
    let wait = until != Until::Begun;
    let json = args.which.json;
    let named = matches!(which, Which::Ids(_));
    let how = ReplayHow {
        to: args.to.as_ref().map(ToString::to_string),
        rate: args.rate.map(|rate| rate.to_string()),
        shuffle: args.shuffle,
        times: args.times,
        until,
        dry_run: args.which.dry_run,
    };
    let bar = progress(wait && !json);
    let mut states: HashMap<String, State> = HashMap::new();
    let mut pieces = door.ask(Ask::Replay { which, how }).await?;
    while let Some(piece) = pieces.recv().await {
        let Piece::Line(line) = piece else { continue };
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "lines of other kinds say nothing about it"
        )]
        match &*line {
            Line::Failure { message, not_found } => {
                let code = if *not_found {
                    Code::NotFound
                } else {
                    Code::Failed
                };
                return Err(Failure::new(code, message.clone()));
            }
            Line::Event(event) if !tally.listed.insert(event.event.clone()) => continue,
            Line::Event(_) => {}
            Line::Replay(replay) => {
                let before = states.insert(replay.delivery.clone(), replay.state);
                match before {
                    Some(_) => bar.inc(1),
                    None => bar.inc_length(1),
                }
                // A begun one is told again when it has ended.
                let again = wait && before.is_none();
                if again || !(named || json) {
                    continue;
                }
            }
            // Of many, the log tells each attempt.
            Line::Attempt(_) if !(named || json) => continue,
            _ => {}
        }
        bar.suspend(|| output.line(&line, json))?;
    }
    bar.finish_and_clear();
    tally.begun += states.len() as u64;
    if wait {
        let sent = states.values().filter(|state| **state == State::Sent);
        tally.missed += (states.len() - sent.count()) as u64;
    }
    Ok(())
}

/// A bar on stderr, where that is a terminal.
pub(crate) fn progress(wanted: bool) -> ProgressBar {
    if !wanted || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let template = "{bar:30} {pos}/{len} delivered or given up  {per_sec}  {eta} left";
    let style = ProgressStyle::with_template(template);
    style.map_or(bar.clone(), |style| bar.with_style(style))
}
