//! `whrelay status`: how the agents stand. It must not change anything.

use whrelay_agent::control::{Ask, Piece};
use whrelay_agent::lines::Line;

use crate::agents::Door;
use crate::args::StatusArgs;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;

pub(crate) async fn run(args: StatusArgs, output: &Output) -> Result<(), Failure> {
    let dirs = Paths::resolve()?.all_agents();
    if dirs.is_empty() {
        output.tell("no agent has run here yet: whrelay listen --to localhost:3000");
    }
    for dir in dirs {
        let Some(door) = Door::open(&dir).await? else {
            continue;
        };
        let mut pieces = door.ask(Ask::Status).await?;
        while let Some(piece) = pieces.recv().await {
            let Piece::Line(line) = piece else { continue };
            if let Line::Failure { message, .. } = *line {
                return Err(Failure::new(Code::Failed, message));
            }
            output.line(&line, args.json)?;
        }
        door.close().await;
    }
    Ok(())
}
