//! `whrelay discard`: what waits is given up. It must not touch what has ended.

use std::path::Path;

use whrelay_agent::control::{Ask, Piece, Which};
use whrelay_agent::lines::Line;

use crate::agents::{self, Door, Round};
use crate::args::DiscardArgs;
use crate::commands::which::{self, Reach};
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::text::{deliveries, events};

pub(crate) async fn run(args: DiscardArgs, output: &Output) -> Result<(), Failure> {
    let (mut listed, mut given_up, mut round) = (0, 0, Round::default());
    let dry_run = args.which.dry_run;
    let chosen = which::choose(&args.which, "discard", Reach::All, &mut round).await?;
    for (dir, which) in chosen {
        let did = discard(&dir, which, &args, output).await;
        let (some_listed, some_given_up) = round.note(did).unwrap_or_default();
        listed += some_listed;
        given_up += some_given_up;
    }
    match (dry_run, listed + given_up) {
        (_, 0) if args.which.ids.is_empty() => {
            return round.end(output).and(Err(agents::no_match("event")));
        }
        (true, _) => output.tell(&format!("{} would be discarded", events(listed))),
        (false, 0) => output.tell("nothing of it waits: nothing was discarded"),
        (false, _) => output.tell(&format!(
            "{} discarded; `whrelay replay` brings an event back",
            deliveries(given_up)
        )),
    }
    // Who could not be asked may still deliver it.
    round.end(output)
}

/// Answers how many events of an agent were listed, and how many deliveries given up.
async fn discard(
    dir: &Path,
    which: Which,
    args: &DiscardArgs,
    output: &Output,
) -> Result<(u64, u64), Failure> {
    let (mut listed, mut given_up) = (0, 0);
    let (dry_run, json) = (args.which.dry_run, args.which.json);
    let Some(door) = Door::open(dir).await? else {
        return Ok((0, 0));
    };
    let mut pieces = door.ask(Ask::Discard { which, dry_run }).await?;
    while let Some(piece) = pieces.recv().await {
        let Piece::Line(line) = piece else { continue };
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "lines of other kinds say nothing about it"
        )]
        match &*line {
            Line::Failure { message, .. } => {
                return Err(Failure::new(Code::Failed, message.clone()));
            }
            Line::Event(_) => listed += 1,
            Line::Discard(_) => given_up += 1,
            _ => {}
        }
        if json || dry_run || !args.which.ids.is_empty() {
            output.line(&line, json)?;
        }
    }
    door.close().await;
    Ok((listed, given_up))
}
