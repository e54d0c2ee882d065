//! `whrelay status`: how the agents stand. It must not change anything.

use whrelay_agent::control::Ask;

use crate::agents::{self, Round};
use crate::args::StatusArgs;
use crate::failure::Failure;
use crate::output::Output;
use crate::paths::Paths;

pub(crate) async fn run(args: StatusArgs, output: &Output) -> Result<(), Failure> {
    let dirs = Paths::resolve()?.all_agents();
    if dirs.is_empty() {
        output.tell("no agent has run here yet: whrelay listen --to localhost:3000");
    }
    let mut round = Round::default();
    for dir in dirs {
        let lines = round.note(agents::gather(&dir, Ask::Status).await);
        for line in lines.unwrap_or_default() {
            output.line(&line, args.json)?;
        }
    }
    round.end(output)
}
