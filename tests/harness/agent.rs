//! An agent in this process, with its store in a directory of its own.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::stores;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;
use whrelay_agent::lines::{AttemptLine, Line};
use whrelay_agent::{Access, AgentError, Config, Label, Proxies, Requests};
use whrelay_core::backlog::Backlog;
use whrelay_core::destination::{self, OptionSet};
use whrelay_core::retention::Retention;
use whrelay_core::token::Token;
use whrelay_delivery::Trust;
use whrelay_store::{Options, Role, Store};

use crate::eventually;
use crate::relay::Relay;

/// What an agent is to do.
#[derive(Clone)]
pub struct Setup {
    /// Where its forwarder is.
    pub forwarder: Url,
    /// Its token.
    pub token: Token,
    /// Where it may be read again.
    pub token_file: Option<PathBuf>,
    /// Its bucket.
    pub bucket: String,
    /// Its place in the bucket.
    pub name: String,
    /// Where events go.
    pub targets: Vec<String>,
    /// Whether it takes its subscription from another agent.
    pub take_over: bool,
    /// Whether it wants what came before, should its subscription be new.
    pub wants_backlog: Option<bool>,
    /// How much is wanted of what came before.
    pub backlog: Backlog,
    /// How long its tunnel may be down.
    pub exit_on_disconnect: Option<Duration>,
    /// How requests are made.
    pub requests: Requests,
    /// How deliveries are made.
    pub options: OptionSet,
}

impl Setup {
    /// A target gets everything; `/path=target` is a route.
    fn setup(&self) -> destination::Setup {
        let (routes, to): (Vec<_>, Vec<_>) =
            self.targets.iter().partition(|text| text.starts_with('/'));
        destination::Setup {
            to: to.into_iter().map(|text| text.parse().unwrap()).collect(),
            routes: routes
                .into_iter()
                .map(|text| text.parse().unwrap())
                .collect(),
            typed: self.options.clone(),
            ..destination::Setup::default()
        }
    }

    /// At a forwarder, to a target, with the default options.
    pub fn new(relay: &Relay, target: impl Into<String>) -> Self {
        Self {
            forwarder: relay.url(),
            token: relay.token.clone(),
            token_file: None,
            bucket: "default".into(),
            name: "default".into(),
            targets: vec![target.into()],
            take_over: false,
            wants_backlog: None,
            backlog: Backlog::default(),
            exit_on_disconnect: None,
            requests: Requests::default(),
            options: OptionSet::default(),
        }
    }
}

/// An agent.
pub struct Agent {
    dir: Arc<TempDir>,
    /// Its store.
    pub store: Store,
    lines: Arc<Mutex<Vec<Line>>>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), AgentError>>,
}

impl Agent {
    /// Starts one and waits until it is ready.
    pub async fn start(setup: Setup) -> Self {
        let agent = Self::begin(setup, Arc::new(tempfile::tempdir().unwrap()));
        agent
            .wait("ready", |line| matches!(line, Line::Ready(_)).then_some(()))
            .await;
        agent
    }

    /// Starts one, and answers with what keeps it from running.
    pub async fn fails(setup: Setup) -> AgentError {
        let agent = Self::begin(setup, Arc::new(tempfile::tempdir().unwrap()));
        agent.task.await.unwrap().unwrap_err()
    }

    fn begin(setup: Setup, dir: Arc<TempDir>) -> Self {
        let options = Options {
            role: Role::Agent,
            cache: 8 << 20,
            name_seed: rand::random(),
            purpose: "test",
            bound: None,
        };
        let store = stores::open(dir.path(), &options);
        let destinations = setup.setup();
        let config = Config {
            forwarder: setup.forwarder,
            proxies: Proxies::none(),
            trust: Trust::default(),
            access: Access::new(setup.token, setup.token_file),
            bucket: setup.bucket.parse().unwrap(),
            subscription: setup.name.parse().unwrap(),
            label: Label::default(),
            take_over: setup.take_over,
            wants_backlog: setup.wants_backlog,
            setup: destinations,
            backlog: setup.backlog,
            exit_on_disconnect: setup.exit_on_disconnect,
            requests: setup.requests,
            retention: Retention::ALL,
            dir: dir.path().to_owned(),
            runtime_dirs: Vec::new(),
        };
        let (lines, stop) = (Arc::<Mutex<Vec<Line>>>::default(), CancellationToken::new());
        let told = Arc::clone(&lines);
        let tell = Arc::new(move |line| told.lock().unwrap().push(line));
        let task = tokio::spawn(whrelay_agent::run(
            config,
            store.clone(),
            tell,
            stop.clone(),
        ));
        Self {
            dir,
            store,
            lines,
            stop,
            task,
        }
    }

    /// Waits until it has warned of something.
    pub async fn warned(&self, of: &str) {
        let says = |line: &Line| matches!(line, Line::Warning { message } if message.contains(of));
        self.wait(of, |line| says(line).then_some(())).await;
    }

    /// Stops it and starts it again on the same data.
    pub async fn restart(self, setup: Setup) -> Self {
        let Self {
            dir,
            store,
            stop,
            task,
            ..
        } = self;
        stop.cancel();
        task.await.unwrap().unwrap();
        store.journal.close().await;
        let agent = Self::begin(setup, dir);
        agent
            .wait("ready", |line| matches!(line, Line::Ready(_)).then_some(()))
            .await;
        agent
    }

    /// Stops it.
    pub async fn stop(self) -> Result<(), AgentError> {
        self.stop.cancel();
        self.ended().await
    }

    /// Waits until it ends by itself.
    pub async fn ended(self) -> Result<(), AgentError> {
        self.task.await.unwrap()
    }

    /// Where its data is.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Everything it has told.
    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap().clone()
    }

    /// All attempts it has told.
    pub fn attempts(&self) -> Vec<AttemptLine> {
        let attempt = |line| {
            if let Line::Attempt(attempt) = line {
                Some(attempt)
            } else {
                None
            }
        };
        self.lines().into_iter().filter_map(attempt).collect()
    }

    /// Waits for a line.
    pub async fn wait<T>(&self, what: &str, find: impl Fn(&Line) -> Option<T>) -> T {
        eventually(what, || self.lines.lock().unwrap().iter().find_map(&find)).await
    }

    /// Waits for an attempt that left an event in this state.
    pub async fn wait_state(&self, event: &str, state: &str) -> AttemptLine {
        let what = format!("{event} {state}");
        let fits =
            |attempt: &AttemptLine| attempt.event == event && attempt.state.as_str() == state;
        eventually(&what, || self.attempts().into_iter().find(fits)).await
    }
}
