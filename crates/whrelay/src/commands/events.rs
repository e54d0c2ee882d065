//! `whrelay events`: what was received, and one event in full. It must not change anything.

use whrelay_agent::control::{Ask, Piece};
use whrelay_agent::lines::{ContentLine, EventLine, Line};

use crate::agents::{self, Door};
use crate::args::{EventsArgs, EventsCommand, ListArgs, ShowArgs};
use crate::commands::replay::default_manner;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;
use crate::text::shown;

pub(crate) async fn run(args: EventsArgs, output: &Output) -> Result<(), Failure> {
    match args.command {
        Some(EventsCommand::Show(show)) => run_show(show, output).await,
        Some(EventsCommand::List(list)) => run_list(list, output).await,
        None => run_list(args.list, output).await,
    }
}

async fn run_list(args: ListArgs, output: &Output) -> Result<(), Failure> {
    let filter = agents::filter(&args.filter, args.event.as_deref());
    let mut events: Vec<EventLine> = Vec::new();
    for dir in Paths::resolve()?.all_agents() {
        let Some(door) = Door::open(&dir, &default_manner()).await? else {
            continue;
        };
        let ask = Ask::Events {
            filter: filter.clone(),
            last: args.lines,
        };
        let mut pieces = door.ask(ask).await?;
        while let Some(piece) = pieces.recv().await {
            let Piece::Line(line) = piece else { continue };
            if let Line::Failure { message, .. } = *line {
                return Err(Failure::new(Code::Failed, message));
            }
            if let Line::Event(event) = *line {
                events.push(event);
            }
        }
        door.close().await;
    }
    events.sort_by(|a, b| a.received_at.cmp(&b.received_at));
    for event in events.split_off(events.len().saturating_sub(args.lines)) {
        output.line(&Line::Event(event), args.json)?;
    }
    Ok(())
}

/// One event, as an agent tells it.
#[derive(Default)]
struct Shown {
    event: Option<EventLine>,
    attempts: Vec<Line>,
    content: Option<ContentLine>,
    body: Vec<u8>,
}

async fn run_show(args: ShowArgs, output: &Output) -> Result<(), Failure> {
    for dir in Paths::resolve()?.all_agents() {
        let Some(door) = Door::open(&dir, &default_manner()).await? else {
            continue;
        };
        let found = ask(&door, &args.id).await?;
        door.close().await;
        if let Some(found) = found {
            return print(&found, &args, output);
        }
    }
    Err(agents::unknown_event(&args.id))
}

async fn ask(door: &Door, id: &str) -> Result<Option<Shown>, Failure> {
    let mut pieces = door
        .ask(Ask::Show {
            event: id.to_owned(),
        })
        .await?;
    let mut found = Shown::default();
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Bytes(bytes) => found.body = bytes.into(),
            Piece::Line(line) => match *line {
                Line::Event(event) => found.event = Some(event),
                Line::Content(content) => found.content = Some(content),
                Line::Failure {
                    not_found: true, ..
                } => return Ok(None),
                Line::Failure { message, .. } => return Err(Failure::new(Code::Failed, message)),
                other @ (Line::Attempt(_)
                | Line::Ready(_)
                | Line::Received(_)
                | Line::Link { .. }
                | Line::Endpoint { .. }
                | Line::Warning { .. }
                | Line::Replay(_)
                | Line::Status(_)) => found.attempts.push(other),
            },
        }
    }
    Ok(Some(found))
}

fn print(found: &Shown, args: &ShowArgs, output: &Output) -> Result<(), Failure> {
    if args.body {
        return output.bytes(&found.body);
    }
    let whole = !args.headers && !args.attempts;
    if whole && let Some(event) = &found.event {
        output.line(&Line::Event(event.clone()), args.json)?;
    }
    if args.json && args.headers {
        return found
            .content
            .as_ref()
            .map_or(Ok(()), |content| output.json(content));
    }
    if whole || args.attempts {
        for attempt in &found.attempts {
            output.line(attempt, args.json)?;
        }
    }
    if let (false, true, Some(content)) = (args.json, whole || args.headers, &found.content) {
        for (name, value) in &content.headers {
            output.data(&format!("{}: {}", shown(name), shown(value)))?;
        }
    }
    if whole && !args.json {
        output.data("")?;
        let text = String::from_utf8_lossy(&found.body);
        for line in text.lines() {
            output.data(&shown(line))?;
        }
    }
    Ok(())
}
