//! `whrelay events`: what was received, and one event in full. It must not change anything.

mod curl;
mod export;

use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use tokio::sync::mpsc;
use whrelay_agent::control::{Ask, Filter, Piece};
use whrelay_agent::lines::{AttemptLine, ContentLine, EventLine, GroupLine, Line};
use whrelay_store::Draft;

use crate::agents::{self, Door, Round};
use crate::args::{EventListArgs, EventsArgs, EventsCommand, ExportArgs, ExportFormat, ShowArgs};
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;
use crate::private;
use crate::text::{Writer, events as events_of, shown, shown_bytes, shown_json};

pub(crate) async fn run(args: EventsArgs, output: &Output) -> Result<(), Failure> {
    match args.command {
        Some(EventsCommand::Show(show)) => run_show(show, output).await,
        Some(EventsCommand::Export(export)) => run_export(export, output).await,
        Some(EventsCommand::List(list)) => run_list(list, output).await,
        None => run_list(args.list, output).await,
    }
}

async fn run_list(args: EventListArgs, output: &Output) -> Result<(), Failure> {
    let EventListArgs { list, group } = args;
    let filter = agents::filter(&list.filter, list.event.as_deref())?;
    if group {
        return run_groups(filter, list.json, output).await;
    }
    let mut round = Round::default();
    let events = newest(&filter, list.lines, &mut round).await?;
    if events.is_empty() && list.lines > 0 {
        return round.end(output).and_then(|()| nothing(&filter, output));
    }
    for (_, event) in events {
        output.line(&Line::Event(event), list.json)?;
    }
    round.end(output)
}

/// There is nothing to list: a filter that matches nothing was not found.
fn nothing(filter: &Filter, output: &Output) -> Result<(), Failure> {
    if *filter != Filter::default() {
        return Err(agents::no_match("event"));
    }
    output.tell("no agent on this machine has received an event yet");
    Ok(())
}

/// The newest events that a filter lets through, the newest last, and the agents that know each.
async fn newest(
    filter: &Filter,
    last: usize,
    round: &mut Round,
) -> Result<Vec<(Vec<PathBuf>, EventLine)>, Failure> {
    let mut events: BTreeMap<String, (Vec<PathBuf>, EventLine)> = BTreeMap::new();
    for dir in Paths::resolve()?.all_agents() {
        let filter = filter.clone();
        let ask = Ask::Events { filter, last };
        let lines = round.note(agents::gather(&dir, ask).await);
        for line in lines.unwrap_or_default() {
            let Line::Event(event) = line else { continue };
            let (mut dirs, mut known) = (vec![dir.clone()], event.clone());
            if let Some((others, other)) = events.remove(&event.event) {
                dirs = [others, dirs].concat();
                known = other.beside(event);
            }
            events.insert(known.event.clone(), (dirs, known));
        }
    }
    let mut events: Vec<_> = events.into_values().collect();
    events.sort_by(|(_, a), (_, b)| a.received_at.cmp(&b.received_at));
    Ok(events.split_off(events.len().saturating_sub(last)))
}

async fn run_groups(filter: Filter, json: bool, output: &Output) -> Result<(), Failure> {
    let mut groups: HashMap<GroupLine, (u64, String)> = HashMap::new();
    let mut round = Round::default();
    for dir in Paths::resolve()?.all_agents() {
        let filter = filter.clone();
        let lines = round.note(agents::gather(&dir, Ask::Groups { filter }).await);
        for line in lines.unwrap_or_default() {
            if let Line::Group(mut group) = line {
                let count = std::mem::take(&mut group.count);
                let newest = std::mem::take(&mut group.newest);
                let known = groups.entry(group).or_default();
                known.0 += count;
                known.1 = newest.max(std::mem::take(&mut known.1));
            }
        }
    }
    if groups.is_empty() {
        return round.end(output).and_then(|()| nothing(&filter, output));
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by(|(a, (n, _)), (b, (m, _))| (m, &a.url).cmp(&(n, &b.url)));
    for (group, (count, newest)) in groups {
        let group = GroupLine {
            count,
            newest,
            ..group
        };
        output.line(&Line::Group(group), json)?;
    }
    round.end(output)
}

/// Bytes in base64 (RFC 4648 section 4).
fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Begins the file of an export.
fn begin(path: &Path) -> Result<Draft, Failure> {
    let failed = |why: String| {
        Failure::new(Code::Failed, format!("--output {}: {why}", path.display()))
            .hint("name a file in a directory that can be written; without --output the export goes to stdout")
    };
    private::is_there(path).map_err(failed)?;
    private::create(path).map_err(|e| failed(e.to_string()))
}

async fn run_export(args: ExportArgs, output: &Output) -> Result<(), Failure> {
    let filter = agents::filter(&args.filter, args.event.as_deref())?;
    let mut round = Round::default();
    let events = newest(&filter, args.lines.unwrap_or(usize::MAX), &mut round).await?;
    if events.is_empty() {
        return round.end(output).and(Err(agents::no_match("event")));
    }
    let mut file = match &args.output {
        Some(path) => Some(begin(path)?),
        None => None,
    };
    let is_terminal = std::io::stdout().is_terminal();
    let mut put = |text: &str| match &mut file {
        Some(file) => file.write_all(text.as_bytes()).map_err(Failure::from),
        None if is_terminal => {
            let lines = text.split('\n').map(shown_json);
            output.bytes(lines.collect::<Vec<_>>().join("\n").as_bytes())
        }
        None => output.bytes(text.as_bytes()),
    };
    let (begin, end) = export::har_frame();
    if args.format == ExportFormat::Har {
        put(&begin)?;
    }
    let (mut exported, mut entries) = (0, 0);
    let mut doors = HashMap::new();
    for (dirs, event) in events {
        let Some(mut whole) = whole(&mut doors, &dirs, &event.event).await? else {
            continue;
        };
        if let Some(target) = &filter.target {
            whole.attempts.retain(|attempt| attempt.target == *target);
        }
        exported += 1;
        match args.format {
            ExportFormat::Json => {
                put(&(export::json_line(&whole).map_err(std::io::Error::from)? + "\n"))?;
            }
            ExportFormat::Har => {
                for entry in export::har_entries(&whole) {
                    put(if entries > 0 { "," } else { "" })?;
                    put(&entry.to_string())?;
                    entries += 1;
                }
            }
        }
    }
    if args.format == ExportFormat::Har {
        put(&format!("{end}\n"))?;
    }
    if let (Some(path), Some(file)) = (&args.output, file) {
        file.keep()?;
        output.tell(&format!("{} in {}", events_of(exported), path.display()));
    }
    round.end(output)
}

/// All that agents know of an event. The doors of those that run are left open.
async fn whole(
    doors: &mut HashMap<PathBuf, Door>,
    dirs: &[PathBuf],
    id: &str,
) -> Result<Option<export::Whole>, Failure> {
    let mut all = Shown::default();
    for dir in dirs {
        let door = match doors.remove(dir) {
            Some(door) => Some(door),
            None => Door::open(dir).await?,
        };
        let Some(door) = door else { continue };
        if let Some(shown) = ask(&door, id).await? {
            all = all.beside(shown);
        }
        match door {
            running @ Door::Running(_) => drop(doors.insert(dir.clone(), running)),
            idle @ Door::Idle(_) => idle.close().await,
        }
    }
    let Shown {
        event: Some(event),
        attempts,
        content: Some(content),
        body,
    } = all
    else {
        return Ok(None);
    };
    Ok(Some(export::Whole {
        event,
        content,
        body,
        attempts,
    }))
}

/// One event, as an agent tells it.
#[derive(Default)]
pub(crate) struct Shown {
    event: Option<EventLine>,
    attempts: Vec<AttemptLine>,
    content: Option<ContentLine>,
    body: Vec<u8>,
}

async fn run_show(args: ShowArgs, output: &Output) -> Result<(), Failure> {
    let (mut all, mut round) = (Shown::default(), Round::default());
    for dir in Paths::resolve()?.all_agents() {
        let found = round.note(ask_at(&dir, &args.id).await);
        if let Some(found) = found.flatten() {
            all = all.beside(found);
        }
    }
    match all.event {
        Some(_) => {
            round.tell(output);
            print(&all, &args, output)
        }
        None => round.end(output).and(Err(agents::unknown_event(&args.id))),
    }
}

async fn ask_at(dir: &Path, id: &str) -> Result<Option<Shown>, Failure> {
    let Some(door) = Door::open(dir).await? else {
        return Ok(None);
    };
    let found = ask(&door, id).await?;
    door.close().await;
    Ok(found)
}

impl Shown {
    /// The same event, as another agent tells it.
    fn beside(self, other: Self) -> Self {
        let (Some(event), Some(known)) = (self.event, other.event.clone()) else {
            return other;
        };
        let mut attempts = [self.attempts, other.attempts].concat();
        attempts.sort_by(|a, b| a.at.cmp(&b.at));
        // One of them may have removed the body.
        let (content, body) = match event.body_removed {
            true => (other.content, other.body),
            false => (self.content, self.body),
        };
        Self {
            event: Some(event.beside(known)),
            attempts,
            content,
            body,
        }
    }

    /// All of it, for people: what it was, what became of it, its header fields and its body.
    pub(crate) fn text(&self) -> Vec<String> {
        let writer = Writer::new(false);
        let event = self.event.clone().map(Line::Event);
        let attempts = self.attempts.iter().cloned().map(Line::Attempt);
        let lines = event.into_iter().chain(attempts);
        let lines = lines.filter_map(|line| writer.line(&line));
        let mut text: Vec<String> = lines
            .flat_map(|line| line.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        text.push(String::new());
        for (name, value) in self.content.iter().flat_map(|content| &content.headers) {
            text.push(format!("{name}: {value}"));
        }
        text.push(String::new());
        let body = String::from_utf8_lossy(&self.body);
        text.extend(body.lines().map(str::to_owned));
        text
    }

    /// A command that makes the same request.
    pub(crate) fn curl(&self) -> Result<String, Failure> {
        let (Some(event), Some(content)) = (&self.event, &self.content) else {
            return Err(Failure::new(Code::Failed, "nothing is known of it"));
        };
        if event.body_removed {
            return Err(removed_body(&event.event));
        }
        curl::command(event, content, &self.body)
    }
}

async fn ask(door: &Door, id: &str) -> Result<Option<Shown>, Failure> {
    let event = id.to_owned();
    gather(door.ask(Ask::Show { event }).await?).await
}

/// An answer to [`Ask::Show`]; nothing where the agent does not know the event.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "lines of other kinds say nothing about it"
)]
pub(crate) async fn gather(mut pieces: mpsc::Receiver<Piece>) -> Result<Option<Shown>, Failure> {
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
                Line::Attempt(attempt) => found.attempts.push(attempt),
                _ => {}
            },
        }
    }
    Ok(Some(found))
}

fn removed_body(id: &str) -> Failure {
    let why = format!("retention has removed the body of {id}");
    Failure::new(Code::Failed, why).hint("--max-disk removes bodies first")
}

fn print(found: &Shown, args: &ShowArgs, output: &Output) -> Result<(), Failure> {
    if args.curl {
        return output.data(&found.curl()?);
    }
    if args.body && found.event.as_ref().is_some_and(|event| event.body_removed) {
        return Err(removed_body(&args.id));
    }
    if args.body && std::io::stdout().is_terminal() {
        output.tell("shown with escapes; a pipe or a file gets the exact bytes");
        return output.bytes(shown_bytes(&found.body).as_bytes());
    }
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
            output.line(&Line::Attempt(attempt.clone()), args.json)?;
        }
        if found.attempts.is_empty() {
            output.tell("no attempt yet: its endpoint is offline, or its turn has not come");
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
