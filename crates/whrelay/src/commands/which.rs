//! The events that a command does something to: named, or found by a filter. It must not do it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use whrelay_agent::control::{Ask, Filter, Piece, Which};
use whrelay_agent::lines::Line;

use crate::agents::{self, Door, Round};
use crate::args::WhichArgs;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;

/// What to ask of which agent. Named events are all found before anything is done to any.
pub(crate) async fn choose(
    args: &WhichArgs,
    verb: &str,
    reach: Reach,
    round: &mut Round,
) -> Result<BTreeMap<PathBuf, Which>, Failure> {
    let filter = agents::filter(&args.filter, None)?;
    let filtered = filter != Filter::default();
    let usage = |message: String| {
        let hint = format!("whrelay {verb} evt_…, a filter such as --since 2h, or --all");
        Err(Failure::new(Code::Usage, message).hint(hint))
    };
    match (args.ids.is_empty(), filtered || args.all) {
        (true, false) => usage(format!(
            "choose events to {verb}: an id, a filter, or --all"
        )),
        (false, true) => usage("events are named, or found by a filter: not both".into()),
        (false, false) => homes(&args.ids, reach, round).await,
        (true, true) => {
            let all = Paths::resolve()?.all_agents().into_iter();
            Ok(all
                .map(|dir| (dir, Which::Filter(filter.clone())))
                .collect())
        }
    }
}

/// Where what was named was found, it was done, and one is enough. What a filter finds may be more.
pub(crate) fn end(args: &WhichArgs, round: Round, output: &Output) -> Result<(), Failure> {
    if args.ids.is_empty() {
        return round.end(output);
    }
    round.tell(output);
    Ok(())
}

/// Which of the agents that know an event are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All, each for its own targets.
    All,
    /// Those that run and still have all of it; where there is none, all.
    Able,
    /// One, where what is asked for does not depend on whose it is.
    One,
}

/// An event that an agent knows.
struct Known {
    dir: PathBuf,
    id: String,
    /// Whether the agent runs and has the event's body.
    able: bool,
}

/// Which agent has which of the events.
async fn homes(
    ids: &[String],
    reach: Reach,
    round: &mut Round,
) -> Result<BTreeMap<PathBuf, Which>, Failure> {
    let mut known = Vec::new();
    for dir in Paths::resolve()?.all_agents() {
        known.extend(round.note(known_at(&dir, ids).await).into_iter().flatten());
    }
    let mut homes: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    let mut asked: Vec<&String> = Vec::new();
    for id in ids {
        if asked.contains(&id) {
            continue;
        }
        asked.push(id);
        let mut here: Vec<_> = known.iter().filter(|known| known.id == *id).collect();
        if here.is_empty() {
            // Who could not be asked may know it.
            return Err(round.last().unwrap_or_else(|| agents::unknown_event(id)));
        }
        match reach {
            Reach::All => {}
            Reach::Able if here.iter().any(|known| known.able) => here.retain(|known| known.able),
            Reach::Able => {}
            Reach::One => here.truncate(1),
        }
        for known in here {
            homes.entry(known.dir.clone()).or_default().push(id.clone());
        }
    }
    let homes = homes.into_iter();
    Ok(homes.map(|(dir, ids)| (dir, Which::Ids(ids))).collect())
}

/// Those of the events that an agent knows.
async fn known_at(dir: &Path, ids: &[String]) -> Result<Vec<Known>, Failure> {
    let mut known = Vec::new();
    let Some(door) = Door::open(dir).await? else {
        return Ok(known);
    };
    let runs = matches!(door, Door::Running(_));
    for id in ids {
        let filter = Filter {
            event: Some(id.clone()),
            ..Filter::default()
        };
        let mut pieces = door.ask(Ask::Events { filter, last: 1 }).await?;
        while let Some(piece) = pieces.recv().await {
            let Piece::Line(line) = piece else { continue };
            if let Line::Failure { message, .. } = *line {
                return Err(Failure::new(Code::Failed, message));
            }
            if let Line::Event(event) = *line {
                known.push(Known {
                    dir: dir.to_owned(),
                    id: id.clone(),
                    able: runs && !event.body_removed,
                });
            }
        }
    }
    door.close().await;
    Ok(known)
}
