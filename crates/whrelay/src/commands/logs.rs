//! `whrelay logs`: attempts, newest last, and those that come. It must not open a store that a
//! running agent has.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use whrelay_agent::control::{Ask, Client, Filter, Piece, Unanswered};
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
    let (mut attempts, mut round) = (Vec::new(), Round::default());
    for dir in paths.all_agents() {
        let lines = round.note(agents::gather(&dir, newest(&filter, args.list.lines)).await);
        for line in lines.unwrap_or_default() {
            if let Line::Attempt(attempt) = line {
                attempts.push(attempt);
            } else {
                show(&line, args.list.json, output)?;
            }
        }
    }
    if attempts.is_empty() {
        round.end(output)?;
        if filter != Filter::default() {
            return Err(agents::no_match("attempt"));
        }
        output.tell("nothing has been tried yet");
        return Ok(());
    }
    attempts.sort_by(|a, b| a.at.cmp(&b.at));
    for attempt in attempts.split_off(attempts.len().saturating_sub(args.list.lines)) {
        output.line(&Line::Attempt(attempt), args.list.json)?;
    }
    round.end(output)
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
    /// Whether those of before are still to be shown.
    wants_history: bool,
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
    /// There was nobody.
    Nobody,
    /// Its store is in use, by one that is only just starting maybe.
    Busy,
    /// What is stored cannot be told.
    Failed(Failure),
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
    let mut agents: HashMap<PathBuf, Followed> = HashMap::new();
    let (mut looks, mut first) = (tokio::time::interval(LOOK_EVERY), true);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = looks.tick() => {
                for dir in paths.all_agents() {
                    let followed = agents.entry(dir.clone()).or_insert_with(|| Followed {
                        wants_history: first,
                        ..Followed::default()
                    });
                    follower.look(dir, followed, &sender);
                }
                first = false;
            }
            Some((dir, came)) = coming.recv() => {
                let followed = agents.entry(dir.clone()).or_default();
                follower.take(&dir, followed, came, &sender)?;
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
            return self.look_up(&dir, followed, sender);
        };
        let (mut filter, mut last) = (self.filter.clone(), self.args.list.lines);
        if !followed.wants_history && followed.reached.is_none() {
            (filter.since, last) = (filter.since.max(Some(self.began)), usize::MAX);
        }
        let ask = Ask::Attempts {
            filter,
            last,
            follow: true,
            after: followed.reached,
        };
        followed.live = true;
        tokio::spawn(pass_on(dir, client, ask, sender.clone()));
    }

    /// Reads what an agent that does not run has on disk, once.
    fn look_up(&self, dir: &Path, followed: &mut Followed, sender: &Sender) {
        if std::mem::take(&mut followed.wants_history) {
            followed.live = true;
            let (dir, filter) = (dir.to_owned(), self.filter.clone());
            tokio::spawn(pass_on_stored(
                dir,
                filter,
                self.args.list.lines,
                sender.clone(),
            ));
        }
    }

    fn take(
        &self,
        dir: &Path,
        followed: &mut Followed,
        came: Came,
        sender: &Sender,
    ) -> Result<(), Failure> {
        match came {
            Came::Line(line) => {
                followed.wants_history = false;
                return self.tell(followed, &line);
            }
            Came::End => (followed.live, followed.wants_history) = (false, false),
            Came::Busy => (followed.live, followed.wants_history) = (false, true),
            Came::Nobody => {
                followed.live = false;
                self.look_up(dir, followed, sender);
            }
            Came::Failed(failure) => {
                // The others are followed all the same.
                (followed.live, followed.wants_history) = (false, false);
                failure.report(self.output);
            }
        }
        Ok(())
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
    let end = match client.ask(&ask).await {
        Ok(mut pieces) => {
            while let Some(piece) = pieces.recv().await {
                if let Piece::Line(line) = piece
                    && out.send((dir.clone(), Came::Line(line))).await.is_err()
                {
                    return;
                }
            }
            Came::End
        }
        Err(Unanswered::Silent(_)) => Came::End,
        Err(Unanswered::Gone | Unanswered::Refused { .. }) => Came::Nobody,
    };
    // Where the follower has gone, nobody needs to know.
    let _ = out.send((dir, end)).await;
}

/// Passes on what is stored.
async fn pass_on_stored(dir: PathBuf, filter: Filter, last: usize, out: Sender) {
    let end = match agents::gather(&dir, newest(&filter, last)).await {
        Ok(lines) => {
            for line in lines {
                if out
                    .send((dir.clone(), Came::Line(Box::new(line))))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Came::End
        }
        Err(failure) if failure.is_in_use() => Came::Busy,
        Err(failure) => Came::Failed(failure),
    };
    let _ = out.send((dir, end)).await;
}

#[cfg(test)]
mod tests {
    use whrelay_core::delivery::State;

    use super::*;

    fn attempt(number: u32) -> Line {
        Line::Attempt(AttemptLine {
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
