//! `whrelay logs`: attempts, newest last, and those that come. It must not open a store that a
//! running agent has.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use whrelay_agent::control::{Ask, Client, Filter, Piece};
use whrelay_agent::lines::{AttemptLine, Line};

use crate::agents::{self, Round};
use crate::args::LogsArgs;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;
use crate::shutdown;

/// How often a follower looks for agents that have started.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(crate) async fn run(args: LogsArgs, output: &Output) -> Result<(), Failure> {
    let paths = Paths::resolve()?;
    let filter = agents::filter(&args.list.filter, args.list.event.as_deref())?;
    if args.follow {
        let now = jiff::Timestamp::now().as_microsecond();
        if filter.until.is_some_and(|until| until <= now) {
            return Err(
                Failure::new(Code::Usage, "--until is over, so nothing would follow")
                    .hint("leave --follow or --until away"),
            );
        }
        return follow(&args, &paths, filter, output).await;
    }
    let mut round = Round::default();
    let stored = stored(&paths, &args, &filter, &mut round).await;
    for warning in &stored.warnings {
        output.line(warning, args.list.json)?;
    }
    if stored.attempts.is_empty() && args.list.lines > 0 {
        round.end(output)?;
        if filter != Filter::default() {
            return Err(agents::no_match("attempt"));
        }
        output.tell("nothing has been tried yet");
        return Ok(());
    }
    for attempt in stored.attempts {
        output.line(&Line::Attempt(attempt), args.list.json)?;
    }
    round.end(output)
}

/// What all agents have stored.
#[derive(Default)]
struct Stored {
    /// The newest attempts of all of them, newest last.
    attempts: Vec<AttemptLine>,
    warnings: Vec<Line>,
    /// Up to where the log of each was told.
    reached: HashMap<PathBuf, u64>,
}

async fn stored(paths: &Paths, args: &LogsArgs, filter: &Filter, round: &mut Round) -> Stored {
    let (mut stored, last) = (Stored::default(), args.list.lines);
    for dir in paths.all_agents() {
        let lines = round.note(agents::gather(&dir, newest(filter, last)).await);
        for line in lines.unwrap_or_default() {
            if let Line::Attempt(attempt) = line {
                stored.attempts.push(attempt);
            } else if let Line::Reached { place } = line {
                stored.reached.insert(dir.clone(), place);
            } else if let Line::Warning { .. } = line {
                stored.warnings.push(line);
            }
        }
    }
    stored.attempts.sort_by(|a, b| a.at.cmp(&b.at));
    let newest = stored.attempts.len().saturating_sub(last);
    stored.attempts.drain(..newest);
    stored
}

/// Shows attempts, and that new events are refused, or no longer.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "an agent is asked for nothing else"
)]
fn show(line: &Line, json: bool, output: &Output) -> Result<(), Failure> {
    match line {
        Line::Attempt(_) | Line::Warning { .. } => output.line(line, json),
        _ => Ok(()),
    }
}

/// What is asked of an agent about its newest attempts.
fn newest(filter: &Filter, last: usize) -> Ask {
    Ask::Attempts {
        filter: filter.clone(),
        last,
        follow: false,
        after: None,
    }
}

/// What a follower knows of an agent.
#[derive(Default)]
struct Followed {
    /// Whether its attempts are coming.
    live: bool,
    /// Up to where its log was told: there it goes on when the agent starts again.
    reached: Option<u64>,
    /// Attempts told beyond that place.
    beyond: HashSet<(String, u32, String)>,
}

/// Where what comes goes, with the directory of the agent it is from.
type Sender = mpsc::Sender<(PathBuf, Came)>;

/// What comes of asking an agent.
enum Came {
    Line(Box<Line>),
    /// There is no more, since it has gone.
    End,
}

impl Followed {
    /// Takes a line in, and says whether it is new.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "an agent is asked for nothing else"
    )]
    fn note(&mut self, line: &Line) -> bool {
        match line {
            Line::Reached { place } => {
                // Where it goes on after a restart, it may tell again what it had told beyond.
                if Some(*place) > self.reached {
                    self.reached = Some(*place);
                    self.beyond.clear();
                }
                false
            }
            Line::Attempt(attempt) => self.beyond.insert(identity(attempt)),
            _ => true,
        }
    }
}

/// What tells an attempt from all others.
fn identity(attempt: &AttemptLine) -> (String, u32, String) {
    let (delivery, at) = (attempt.delivery.clone(), attempt.at.clone());
    (delivery, attempt.attempt, at)
}

async fn follow(
    args: &LogsArgs,
    paths: &Paths,
    filter: Filter,
    output: &Output,
) -> Result<(), Failure> {
    let follower = Follower {
        args,
        filter,
        began: jiff::Timestamp::now().as_microsecond(),
        output,
    };
    let stop = shutdown::on_signal();
    let (sender, mut coming) = mpsc::channel::<(PathBuf, Came)>(64);
    let mut round = Round::default();
    let stored = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        stored = stored(paths, args, &follower.filter, &mut round) => stored,
    };
    round.tell(output);
    for attempt in stored.attempts {
        output.line(&Line::Attempt(attempt), args.list.json)?;
    }
    let known = |(dir, reached)| {
        let reached = Some(reached);
        (
            dir,
            Followed {
                reached,
                ..Followed::default()
            },
        )
    };
    let mut agents: HashMap<_, _> = stored.reached.into_iter().map(known).collect();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = looks.tick() => {
                for dir in paths.all_agents() {
                    let followed = agents.entry(dir.clone()).or_default();
                    follower.look(dir, followed, &sender);
                }
            }
            Some((dir, came)) = coming.recv() => {
                let followed = agents.entry(dir.clone()).or_default();
                match came {
                    Came::Line(line) => follower.tell(followed, &line)?,
                    Came::End => followed.live = false,
                }
            }
        }
    }
}

struct Follower<'a> {
    args: &'a LogsArgs,
    filter: Filter,
    /// When it began, in microseconds since 1970.
    began: i64,
    output: &'a Output,
}

impl Follower<'_> {
    /// Asks an agent that runs, unless its attempts are coming.
    fn look(&self, dir: PathBuf, followed: &mut Followed, sender: &Sender) {
        if followed.live {
            return;
        }
        let Some(client) = Client::find(&dir) else {
            return;
        };
        let mut filter = self.filter.clone();
        if followed.reached.is_none() {
            filter.since = filter.since.max(Some(self.began));
        }
        let ask = Ask::Attempts {
            filter,
            last: usize::MAX,
            follow: true,
            after: followed.reached,
        };
        followed.live = true;
        tokio::spawn(pass_on(dir, client, ask, sender.clone()));
    }

    fn tell(&self, followed: &mut Followed, line: &Line) -> Result<(), Failure> {
        match followed.note(line) {
            true => show(line, self.args.list.json, self.output),
            false => Ok(()),
        }
    }
}

/// Passes on what an agent says, and at the end that it has gone.
async fn pass_on(dir: PathBuf, client: Client, ask: Ask, out: Sender) {
    if let Ok(mut pieces) = client.ask(&ask).await {
        while let Some(piece) = pieces.recv().await {
            if let Piece::Line(line) = piece
                && out.send((dir.clone(), Came::Line(line))).await.is_err()
            {
                return;
            }
        }
    }
    // Where the follower has gone, nobody needs to know.
    let _ = out.send((dir, Came::End)).await;
}

#[cfg(test)]
mod tests {
    use whrelay_core::delivery::State;

    use super::*;

    fn attempt(number: u32) -> Line {
        Line::Attempt(AttemptLine {
            destination: "default".into(),
            event: "evt_1".into(),
            delivery: "dlv_1".into(),
            bucket: "default".into(),
            target: "http://localhost:3000".into(),
            method: "POST".into(),
            url: "http://localhost:3000/".into(),
            attempt: number,
            status: Some(200),
            error: None,
            duration_ms: 1.0,
            state: State::Sent,
            reason: None,
            next_attempt_at: None,
            phase: "fast".into(),
            handoff: false,
            answer: None,
            answer_base64: None,
            answer_headers: Vec::new(),
            cause: None,
            signature: None,
            replay: false,
            at: "2026-11-22T10:15:03Z".into(),
        })
    }

    #[test]
    fn what_was_told_beyond_a_place_is_not_told_again_after_a_restart() {
        let mut followed = Followed::default();
        let reached = |place| Line::Reached { place };
        let told = [reached(5), attempt(1), attempt(2)].map(|line| followed.note(&line));
        assert_eq!(told, [false, true, true]);
        // The agent died before it said how far that was, and goes on behind the fifth.
        let told = [reached(5), attempt(1), attempt(2), attempt(3), reached(8)];
        let told = told.map(|line| followed.note(&line));
        assert_eq!(told, [false, false, false, true, false]);
        assert!(followed.beyond.is_empty() && followed.reached == Some(8));
    }
}
