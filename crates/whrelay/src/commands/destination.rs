//! `whrelay destination`: the destinations of this machine's agents, shown, changed and removed.

use std::path::PathBuf;

use whrelay_agent::control::{Ask, Changes, Piece, Queued};
use whrelay_agent::lines::{DestinationLine, Line};
use whrelay_core::destination::{DestinationName, OptionKey};

use crate::agents::{self, Door, Round};
use crate::args::{
    DestinationArgs, DestinationCommand, DestinationPlace, SetArgs, WhichDestination,
};
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;

pub(crate) async fn run(args: DestinationArgs, output: &Output) -> Result<(), Failure> {
    match args.command {
        DestinationCommand::Ls { place } => list(&place, output).await,
        DestinationCommand::Show { which } => {
            let (_, line) = find(&which).await?;
            output.line(&Line::Destination(line), which.place.json)
        }
        DestinationCommand::Set(args) => set(&args, output).await,
        DestinationCommand::Pause { which } => pause(&which, true, output).await,
        DestinationCommand::Resume { which } => pause(&which, false, output).await,
        DestinationCommand::Rm {
            which,
            discard,
            move_to,
        } => {
            let queue = match (discard, move_to) {
                (_, Some(to)) => Queued::MoveTo(to.to_string()),
                (true, None) => Queued::Discard,
                (false, None) => Queued::None,
            };
            let name = which.destination.to_string();
            if matches!(&queue, Queued::MoveTo(to) if *to == name) {
                let why = format!("{name} cannot be moved to itself");
                return Err(
                    Failure::new(Code::Usage, why).hint("--move-to names another destination")
                );
            }
            ask(&which, Ask::RemoveDestination { name, queue }, output).await
        }
    }
}

async fn list(place: &DestinationPlace, output: &Output) -> Result<(), Failure> {
    let mut round = Round::default();
    let all = all(place, &mut round).await?;
    if all.is_empty() {
        output.tell("there are no destinations yet: whrelay listen --to localhost:3000");
    }
    for (_, line) in all {
        match place.json {
            true => output.line(&Line::Destination(line), true)?,
            false => output.data(&crate::text::destination(&line))?,
        }
    }
    round.end(output)
}

async fn set(args: &SetArgs, output: &Output) -> Result<(), Failure> {
    let options = args.options();
    let set = OptionKey::ALL.into_iter();
    let set = set.filter_map(|key| Some((key.to_string(), options.get(key)?)));
    let changes = Changes {
        to: args.to.as_ref().map(ToString::to_string),
        set: set.collect(),
        reset: args.reset.iter().map(ToString::to_string).collect(),
        paused: None,
    };
    if changes.to.is_none() && changes.set.is_empty() && changes.reset.is_empty() {
        let hint = "--to changes its URL, options such as --rate how deliveries are made";
        return Err(Failure::new(Code::Usage, "nothing to set").hint(hint));
    }
    let name = args.which.destination.to_string();
    ask(&args.which, Ask::SetDestination { name, changes }, output).await
}

async fn pause(which: &WhichDestination, paused: bool, output: &Output) -> Result<(), Failure> {
    let changes = Changes {
        paused: Some(paused),
        ..Changes::default()
    };
    let name = which.destination.to_string();
    ask(which, Ask::SetDestination { name, changes }, output).await
}

/// Asks the agent that has a destination, and shows what it answers.
async fn ask(which: &WhichDestination, ask: Ask, output: &Output) -> Result<(), Failure> {
    let (dir, _) = find(which).await?;
    let Some(door) = Door::open(&dir).await? else {
        return Err(unknown(&which.destination));
    };
    let mut pieces = door.ask(ask).await?;
    let mut answered = Ok(());
    while let Some(piece) = pieces.recv().await {
        let Piece::Line(line) = piece else { continue };
        if let Line::Failure { message, not_found } = *line {
            let code = if not_found {
                Code::NotFound
            } else {
                Code::Failed
            };
            answered = Err(Failure::new(code, message));
            continue;
        }
        // What is discarded is counted at the end.
        if which.place.json || !matches!(*line, Line::Discard(_)) {
            output.line(&line, which.place.json)?;
        }
    }
    door.close().await;
    answered
}

/// The directory of the agent that has a destination, and what it says of it.
async fn find(which: &WhichDestination) -> Result<(PathBuf, DestinationLine), Failure> {
    let mut round = Round::default();
    let all = all(&which.place, &mut round).await?;
    let named = all
        .into_iter()
        .filter(|(_, line)| line.name == which.destination.as_str());
    let mut named: Vec<_> = named.collect();
    match (named.pop(), named.is_empty()) {
        (Some(found), true) => Ok(found),
        (Some((_, line)), false) => {
            named.push((PathBuf::new(), line));
            let place = |line: &DestinationLine| {
                let (bucket, name) = (&line.bucket, &line.subscription);
                let forwarder = line.forwarder.trim_end_matches('/');
                format!("--bucket {bucket} --name {name} --forwarder {forwarder}")
            };
            let all: Vec<_> = named.iter().map(|(_, line)| place(line)).collect();
            let why = format!("several destinations are named {}", which.destination);
            Err(Failure::new(Code::Usage, why).hint(format!("choose one: {}", all.join("; or "))))
        }
        // The agent that cannot be asked may have it.
        (None, _) => Err(round.last().unwrap_or_else(|| unknown(&which.destination))),
    }
}

async fn all(
    place: &DestinationPlace,
    round: &mut Round,
) -> Result<Vec<(PathBuf, DestinationLine)>, Failure> {
    let mut all = Vec::new();
    for dir in Paths::resolve()?.all_agents() {
        let lines = round.note(agents::gather(&dir, Ask::Destinations).await);
        for line in lines.unwrap_or_default() {
            let Line::Destination(line) = line else {
                continue;
            };
            let is_there = place
                .bucket
                .as_ref()
                .is_none_or(|b| line.bucket == b.as_str());
            let named = place.subscription.as_ref();
            let is_named = named.is_none_or(|name| line.subscription == name.as_str());
            let url = |url: &str| url.trim_end_matches('/').to_owned();
            let from = place.forwarder.as_ref().map(|from| url(from.as_str()));
            let is_from = from.is_none_or(|from| url(&line.forwarder) == from);
            if is_there && is_named && is_from {
                all.push((dir.clone(), line));
            }
        }
    }
    Ok(all)
}

fn unknown(name: &DestinationName) -> Failure {
    Failure::new(Code::NotFound, format!("there is no destination `{name}`"))
        .hint("`whrelay destination ls` lists them")
}
