//! The agents of this user, running or not, and how to ask them. It must not show answers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use whrelay_agent::control::{Ask, Client, Filter, Piece, Unanswered};
use whrelay_agent::lines::Line;
use whrelay_agent::{Offline, Requests};
use whrelay_core::delivery::State;
use whrelay_core::destination::OptionSet;
use whrelay_core::retention::{Bound, Retention};
use whrelay_store::{OpenError, Options, Role, Store};

use crate::args::FilterArgs;
use crate::failure::{Code, Failure};
use crate::output::Output;

/// What `listen` tells others it does with the store: it will not be done soon.
pub(crate) const LISTEN: &str = "listen";
/// What other commands do with the store: they are done in a moment.
const COMMAND: &str = "a command";
/// How long to wait for a process that is done in a moment, or only just starting.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked at again meanwhile.
pub(crate) const PAUSE: Duration = Duration::from_millis(25);
/// Memory an agent's store may use as its cache, in bytes.
const CACHE: usize = 8 * 1024 * 1024;
const ANSWER_PIECES: usize = 64;

/// How an agent's store is opened.
pub(crate) fn options(purpose: &'static str, bound: Option<Bound>) -> Options {
    Options {
        role: Role::Agent,
        cache: CACHE,
        name_seed: rand::random(),
        purpose,
        bound,
    }
}

/// Opens an agent's store for `listen`: one that a command has for a moment is waited for.
pub(crate) async fn open_to_listen(dir: &Path, retention: Retention) -> Result<Store, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        match Store::open(dir, &options(LISTEN, retention.max_disk)) {
            Err(OpenError::InUse { purpose, .. })
                if purpose != LISTEN && Instant::now() < until =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            opened => return Ok(opened?),
        }
    }
}

/// An agent, and the door to it.
pub(crate) enum Door {
    /// It runs.
    Running(Client),
    /// It does not: this process has its store.
    Idle(Box<Offline>),
}

impl Door {
    /// The door of an agent's directory; none where nothing was ever stored.
    pub(crate) async fn open(dir: &Path) -> Result<Option<Self>, Failure> {
        Self::open_to_deliver(dir, &Default::default()).await
    }

    /// The same where something is delivered: with these requests and options if the agent does not run.
    pub(crate) async fn open_to_deliver(
        dir: &Path,
        how: &(Requests, OptionSet),
    ) -> Result<Option<Self>, Failure> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut silent = None;
            if let Some(client) = Client::find(dir) {
                match client.ask(&Ask::Status).await {
                    Ok(_) => return Ok(Some(Self::Running(client))),
                    Err(why @ Unanswered::Silent(_)) => silent = Some(why),
                    Err(Unanswered::Gone | Unanswered::Refused { .. }) => {}
                }
            }
            match (Store::open(dir, &options(COMMAND, None)), silent) {
                (Err(OpenError::InUse { .. }), Some(why)) => return Err(why.into()),
                (Err(OpenError::InUse { .. }), None) if Instant::now() < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                (Err(error), _) => return Err(error.into()),
                (Ok(store), _) => {
                    let offline = Offline::new(store, dir, how.clone(), Arc::new(|_| {})).await?;
                    return Ok(offline.map(|offline| Self::Idle(Box::new(offline))));
                }
            }
        }
    }

    /// Asks, and answers with the pieces as they come.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<mpsc::Receiver<Piece>, Failure> {
        match self {
            Self::Idle(offline) => {
                let (pieces, coming) = mpsc::channel(ANSWER_PIECES);
                let local = offline.local().clone();
                tokio::spawn(async move { local.answer(ask, pieces).await });
                Ok(coming)
            }
            Self::Running(client) => Ok(client.ask(&ask).await?),
        }
    }

    /// Lets go of it.
    pub(crate) async fn close(self) {
        match self {
            Self::Running(_) => {}
            Self::Idle(offline) => offline.close().await,
        }
    }
}

/// What an agent answers, in lines; none where nothing was ever stored.
pub(crate) async fn gather(dir: &Path, ask: Ask) -> Result<Vec<Line>, Failure> {
    let Some(door) = Door::open(dir).await? else {
        return Ok(Vec::new());
    };
    let (mut pieces, mut lines) = (door.ask(ask).await?, Vec::new());
    while let Some(piece) = pieces.recv().await {
        let Piece::Line(line) = piece else { continue };
        if let Line::Failure { message, .. } = *line {
            return Err(Failure::new(Code::Failed, message));
        }
        lines.push(*line);
    }
    door.close().await;
    Ok(lines)
}

/// A round over agents. One that cannot be asked keeps nobody from the others, and is told of at the end.
#[derive(Default)]
pub(crate) struct Round {
    failed: Vec<Failure>,
}

impl Round {
    /// What came of asking an agent, unless that failed.
    pub(crate) fn note<T>(&mut self, asked: Result<T, Failure>) -> Option<T> {
        asked.map_err(|failure| self.failed.push(failure)).ok()
    }

    /// What failed last.
    pub(crate) fn last(&mut self) -> Option<Failure> {
        self.failed.pop()
    }

    /// Fails with what failed last, behind all that did before.
    pub(crate) fn end(mut self, output: &Output) -> Result<(), Failure> {
        let last = self.last();
        self.tell(output);
        last.map_or(Ok(()), Err)
    }

    /// Says what failed, where what was asked for was done all the same.
    pub(crate) fn tell(self, output: &Output) {
        for failure in self.failed {
            failure.report(output);
        }
    }
}

/// No agent knows what was asked for.
pub(crate) fn unknown_event(id: &str) -> Failure {
    Failure::new(Code::NotFound, format!("there is no event {id}"))
        .hint("`whrelay events` lists those that are known here")
}

/// Nothing was what a filter is about.
pub(crate) fn no_match(what: &str) -> Failure {
    Failure::new(Code::NotFound, format!("no {what} matches"))
        .hint("`whrelay events` without a filter lists what there is")
}

/// The filter of a command's flags, unless nothing can ever match it.
pub(crate) fn filter(args: &FilterArgs, event: Option<&str>) -> Result<Filter, Failure> {
    let never = |why: &str, hint: &str| Err(Failure::new(Code::Usage, why).hint(hint));
    if args
        .until
        .is_some_and(|until| args.since.is_some_and(|since| since > until))
    {
        return never(
            "--since is later than --until",
            "durations count back from now",
        );
    }
    if args.reason.is_some() && args.status.is_some_and(|status| status != State::Dead) {
        return never("--reason is why something is dead", "leave --status away");
    }
    Ok(Filter {
        since: args.since,
        until: args.until,
        status: args.status,
        reason: args.reason,
        target: args.target.as_ref().map(ToString::to_string),
        event: event.map(str::to_owned),
        bucket: args.bucket.as_ref().map(ToString::to_string),
        kind: args.kind.clone(),
    })
}
