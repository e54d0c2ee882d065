//! The events that a command does something to: named, or found by a filter. It must not do it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use whrelay_agent::control::{Ask, Filter, Piece, Which};
use whrelay_agent::lines::Line;

use crate::agents::{self, Door};
use crate::args::WhichArgs;
use crate::failure::{Code, Failure};
use crate::paths::Paths;

/// What to ask of which agent. Named events are all found before anything is done to any.
pub(crate) async fn choose(
    args: &WhichArgs,
    verb: &str,
    reach: Reach,
) -> Result<BTreeMap<PathBuf, Which>, Failure> {
    let filter = agents::filter(&args.filter, None)?;
    let filtered = filter != Filter::default();
    let usage = |message: String| {
        let hint = format!("whrelay {verb} evt_…, a filter such as --since 2h, or --all");
        Err(Failure::new(Code::Usage, message).hint(hint))
    };
    match (args.ids.is_empty(), filtered || args.all) {
        (true, false) => usage(format!("which events? nothing says what to {verb}")),
        (false, true) => usage("events are named, or found by a filter: not both".into()),
        (false, false) => homes(&args.ids, reach).await,
        (true, true) => {
            let all = Paths::resolve()?.all_agents().into_iter();
            Ok(all
                .map(|dir| (dir, Which::Filter(filter.clone())))
                .collect())
        }
    }
}

/// Which of the agents that know an event are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All, each for its own targets.
    All,
    /// One, where what is asked for does not depend on whose it is.
    One,
}

/// Which agent has which of the events.
async fn homes(ids: &[String], reach: Reach) -> Result<BTreeMap<PathBuf, Which>, Failure> {
    let mut left: Vec<String> = Vec::new();
    for id in ids {
        if !left.contains(id) {
            left.push(id.clone());
        }
    }
    let wanted = left.clone();
    let mut homes = BTreeMap::new();
    for dir in Paths::resolve()?.all_agents() {
        let asked = match reach {
            Reach::All => &wanted,
            Reach::One => &left,
        };
        let here = known(&dir, asked).await?;
        left.retain(|id| !here.contains(id));
        if !here.is_empty() {
            homes.insert(dir, Which::Ids(here));
        }
    }
    match left.first() {
        Some(id) => Err(agents::unknown_event(id)),
        None => Ok(homes),
    }
}

/// Those of the events that an agent knows.
async fn known(dir: &Path, ids: &[String]) -> Result<Vec<String>, Failure> {
    let mut known = Vec::new();
    let Some(door) = Door::open(dir).await? else {
        return Ok(known);
    };
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
            known.push(id.clone());
        }
    }
    door.close().await;
    Ok(known)
}
