//! `whrelay listen`: an agent, and where no forwarder is configured, an embedded one beside it. It
//! must not deliver anything itself.

mod drain;
mod screen;
mod setup;
mod view;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Url};
use whrelay_agent::lines::{Line, ReadyLine};
use whrelay_agent::{Access, Config, Label, Proxies, Requests, Tell};
use whrelay_core::backlog::Backlog;
use whrelay_core::bucket::BucketName;
use whrelay_core::destination::Setup;
use whrelay_core::retention::Retention;
use whrelay_core::time::Timestamp;
use whrelay_core::token::Token;
use whrelay_delivery::Trust;

use self::drain::Drain;
use self::screen::Screen;
pub(crate) use self::setup::{requests, setup};
use crate::agents;
use crate::args::{ForwarderChoice, ListenArgs, ListenOutput, PublicBy};
use crate::config;
use crate::directories;
use crate::embedded::Embedded;
use crate::exposure;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::{Paths, runtime_dirs, warn_if_fleeting};
use crate::private;
use crate::public::Public;
use crate::shutdown;
use crate::text::{ago, shown};

/// Lines that may wait for a slow terminal or pipe; more are counted and skipped.
const WAITING_LINES: usize = 16 * 1024;
/// An end that takes no longer needs no word.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long the end waits for the last lines to be printed.
const LAST_LINES: Duration = Duration::from_secs(2);

pub(crate) async fn run(
    args: ListenArgs,
    config: &config::Config,
    output: &Output,
) -> Result<(), Failure> {
    let paths = Paths::resolve()?;
    let tokens: Vec<_> = args.forwarder.token_file.iter().cloned().collect();
    exposure::warn(paths.data(), &tokens, config, output);
    let setup = setup(&args, config)?;
    let trust = args.requests.tunnel_trust();
    let agents = agents_of(&paths, (&args.forwarder, &trust), &args.bucket).await?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => {
            let forwarder = args.forwarder.url.as_ref().map(|_| agents.as_path());
            paths.default_name(forwarder, &args.bucket)?
        }
    };
    let dir = agents.join(args.bucket.as_str()).join(name.as_str());
    let backlog = Backlog {
        newest: args.backlog.and_then(|newest| newest.0),
        since: args.since.map(Timestamp::from_micros),
    };
    let asks = args.backlog.is_some() || backlog.since.is_some();
    let job = Job {
        setup,
        choice: args.forwarder.clone(),
        bucket: args.bucket.clone(),
        name,
        take_over: args.take_over,
        backlog,
        wants_backlog: asks.then_some(backlog.newest != Some(0)),
        trust,
        requests: requests(&args.requests),
        retention: args.retention.retention(false),
        exit_on_disconnect: args.exit_on_disconnect,
        public: args.public.clone(),
    };
    let stop = shutdown::on_signal();
    warn_if_fleeting(paths.data(), output);
    let ready_file = args.ready_file.as_deref();
    ready_file.map_or(Ok(()), remove_ready)?;
    let ended = show(&args, output, &stop, dir.clone(), |tell| {
        job.run(paths, dir.clone(), tell, stop.clone())
    })
    .await;
    ended.and(ready_file.map_or(Ok(()), remove_ready))
}

/// The directory of the agents of a forwarder, or of embedded ones.
pub(crate) async fn agents_of(
    paths: &Paths,
    (choice, trust): (&ForwarderChoice, &Trust),
    bucket: &BucketName,
) -> Result<PathBuf, Failure> {
    let Some(forwarder) = &choice.url else {
        return Ok(paths.embedded_agents());
    };
    let token = given_token(choice)?;
    let ask = async {
        let (proxies, Some(token)) = (proxies(), token) else {
            return Ok(None);
        };
        let asked = whrelay_agent::ensure_bucket(forwarder, &proxies, trust, &token, bucket);
        Ok(asked.await?.store)
    };
    directories::of_forwarder(paths, forwarder, ask).await
}

/// Removes a ready file: scripts take its existence to mean that `listen` runs.
fn remove_ready(path: &Path) -> Result<(), Failure> {
    let failed = |why: String| {
        Failure::new(
            Code::Usage,
            format!("--ready-file {}: {why}", path.display()),
        )
        .hint("name a file of its own, in a directory that can be written")
    };
    match private::is_there(path).map_err(failed)? {
        true => std::fs::remove_file(path).map_err(|e| failed(e.to_string())),
        false => Ok(()),
    }
}

/// What an agent is asked to do, and where: at a forwarder, or an embedded one.
pub(crate) struct Job {
    pub(crate) setup: Setup,
    pub(crate) choice: ForwarderChoice,
    pub(crate) bucket: BucketName,
    pub(crate) name: BucketName,
    pub(crate) take_over: bool,
    pub(crate) backlog: Backlog,
    /// Whether it is wanted, should the subscription be new; nothing to let the forwarder decide.
    pub(crate) wants_backlog: Option<bool>,
    /// Whom the tunnel trusts.
    pub(crate) trust: Trust,
    pub(crate) requests: Requests,
    pub(crate) retention: Retention,
    pub(crate) exit_on_disconnect: Option<Duration>,
    /// What gives an embedded forwarder a public URL.
    pub(crate) public: Option<PublicBy>,
}

impl Job {
    /// Does it until `stop`, with a store in `dir`.
    pub(crate) async fn run(
        self,
        paths: Paths,
        dir: PathBuf,
        tell: Tell,
        stop: CancellationToken,
    ) -> Result<(), Failure> {
        let token = given_token(&self.choice)?;
        let Some(forwarder) = self.choice.url.clone() else {
            let store = agents::open_to_listen(&dir, self.retention).await?;
            let there = paths.embedded(&self.bucket);
            let mut embedded = Embedded::start(&there, self.choice.bind, self.retention).await?;
            if let Some(port) = embedded.away_from {
                let now = embedded.url.port().unwrap_or_default();
                let why = format!(
                    "port {port} is busy; the input URL uses {now} for this run: update your sender"
                );
                tell(Line::warning(why));
            }
            if !embedded.address.ip().is_loopback() {
                let at = embedded.address;
                let why =
                    format!("--bind: other machines reach this forwarder on {at}, by plain http");
                tell(Line::warning(why));
            }
            let mut public = match &self.public {
                Some(by) => Some(Public::open(by, embedded.address.port()).await?),
                None => None,
            };
            let tell = told_as_public(tell, public.as_ref());
            let access = Access::new(embedded.token.clone(), None);
            let config = self.config(embedded.url.clone(), access, dir);
            let ended = tokio::select! {
                ended = whrelay_agent::run(config, store, Arc::clone(&tell), stop) => ended.map_err(Failure::from),
                failure = embedded.failed() => Err(failure),
                () = warn_of_end(public.as_mut(), &tell) => Ok(()),
            };
            embedded.stop().await;
            return ended;
        };
        let token = token.ok_or_else(|| {
            Failure::new(
                Code::Unauthorised,
                format!("{forwarder} needs an access token"),
            )
            .hint("give it with --token-file or WHRELAY_TOKEN")
        })?;
        if self.public.is_some() {
            let why =
                format!("--public is for an embedded forwarder: events come from {forwarder}");
            tell(Line::warning(why));
        }
        if self.choice.bind.is_some() {
            let why = format!("--bind is for an embedded forwarder: events come from {forwarder}");
            tell(Line::warning(why));
        }
        let store = agents::open_to_listen(&dir, self.retention).await?;
        let file = self.choice.token_file.clone();
        let file = file.filter(|_| !self.choice.token_is_typed);
        let config = self.config(forwarder, Access::new(token, file), dir);
        Ok(whrelay_agent::run(config, store, tell, stop).await?)
    }

    fn config(self, forwarder: Url, access: Access, dir: PathBuf) -> Config {
        let Self {
            setup,
            choice: _,
            bucket,
            name,
            take_over,
            backlog,
            wants_backlog,
            trust,
            requests,
            retention,
            exit_on_disconnect,
            public: _,
        } = self;
        Config {
            forwarder,
            proxies: proxies(),
            trust,
            access,
            bucket,
            subscription: name,
            label: label(),
            take_over,
            wants_backlog,
            setup,
            backlog,
            exit_on_disconnect,
            requests,
            retention,
            dir,
            runtime_dirs: runtime_dirs(),
        }
    }
}

/// Tells what happens with the public input URL in place of that of this machine.
fn told_as_public(tell: Tell, public: Option<&Public>) -> Tell {
    let Some(public) = public else { return tell };
    let (url, by) = (public.url.clone(), public.by());
    Arc::new(move |line| {
        let Line::Ready(ready) = line else {
            return tell(line);
        };
        let (mut url, local) = (url.clone(), ready.url.clone());
        if let Ok(input) = local.parse::<Url>() {
            url.set_path(input.path());
        }
        let url = url.to_string();
        tell(Line::Ready(ReadyLine { url, ..ready }));
        tell(Line::warning(format!(
            "the URL is public through {by}, on this machine it is {local}"
        )));
    })
}

/// Says that a public URL has ended, and then waits for ever: what is stored is delivered all the same.
async fn warn_of_end(public: Option<&mut Public>, tell: &Tell) {
    if let Some(public) = public {
        tell(Line::warning(public.ended().await));
    }
    std::future::pending().await
}

/// What people know this machine and its user by.
fn label() -> Label {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    #[cfg(unix)]
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    #[cfg(not(unix))]
    let host = set("COMPUTERNAME").unwrap_or_default();
    let user = ["USER", "LOGNAME", "USERNAME"].into_iter().find_map(set);
    #[cfg(unix)]
    let user = user.or_else(|| Some(format!("uid {}", rustix::process::getuid().as_raw())));
    Label {
        host,
        user: user.unwrap_or_default(),
    }
}

/// The token for the chosen forwarder: one typed on the command line, else that of the token file, else that of the
/// environment. Fails where it must not be sent there.
pub(crate) fn given_token(args: &ForwarderChoice) -> Result<Option<Token>, Failure> {
    let typed = args.token_is_typed;
    let wrong = |source: String, why: String| {
        Failure::new(Code::Unauthorised, format!("{source}: {why}"))
            .hint("a forwarder's data directory has its token in the file admin-token")
    };
    let (source, text) = match (&args.token, &args.token_file) {
        (_, Some(path)) if !typed => {
            let source = format!("--token-file {}", path.display());
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|e| wrong(source.clone(), e.to_string()))?;
            (source, text)
        }
        (Some(text), _) if typed => ("--token".to_owned(), text.clone()),
        (Some(text), _) => (
            "the token of WHRELAY_TOKEN or of a configuration file".to_owned(),
            text.clone(),
        ),
        (None, _) => return Ok(None),
    };
    if let Some(forwarder) = &args.url {
        may_get_token(args, forwarder, &source)?;
    }
    let token = Token::parse(&text);
    token.map(Some).map_err(|e| wrong(source, e.to_string()))
}

/// Fails where a token was not given for this forwarder, or everyone on the way there could read it.
fn may_get_token(args: &ForwarderChoice, forwarder: &Url, source: &str) -> Result<(), Failure> {
    if args.is_less_trusted {
        let why = format!(
            "{source} is not sent to {forwarder}: a project's file names that forwarder, and the token is not from \
             there"
        );
        return Err(Failure::new(Code::Unauthorised, why)
            .hint("name the forwarder with --forwarder, or set token_file in the same file"));
    }
    let is_local = forwarder.host().is_some_and(is_loopback);
    if forwarder.scheme() == "http" && !is_local && !args.allow_plain_http {
        let why =
            format!("{source} would cross the network readable for everyone: {forwarder} is http");
        return Err(Failure::new(Code::Usage, why)
            .hint("use its https address, or --allow-plain-http in a network that you trust"));
    }
    Ok(())
}

fn is_loopback(host: Host<&str>) -> bool {
    match host {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
    }
}

/// The proxies that the environment names, as other programs read it: lower case comes first.
pub(crate) fn proxies() -> Proxies {
    let text = |name: &str| {
        let lower = std::env::var(name.to_lowercase());
        lower.or_else(|_| std::env::var(name)).unwrap_or_default()
    };
    let [https, http, all, no] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"].map(text);
    Proxies::new(&https, &http, &all, &no)
}

/// Runs an agent beside a thread that shows its lines: neither the tunnel nor a signal ever waits for a
/// terminal that is stopped or a pipe that is full.
async fn show<F>(
    args: &ListenArgs,
    output: &Output,
    stop: &CancellationToken,
    dir: PathBuf,
    agent: impl FnOnce(Tell) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let (lines, coming) = mpsc::channel(WAITING_LINES);
    let skipped = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&skipped);
    let tell: Tell = Arc::new(move |line| {
        if lines.try_send(line).is_err() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let printer = Printer {
        output: output.clone(),
        style: style(args),
        ready_file: args.ready_file.clone(),
        embeds: args.forwarder.url.is_none(),
        skipped,
    };
    let end = screen::End {
        stop: stop.clone(),
        ..screen::End::default()
    };
    let screen = (printer.style == ListenOutput::Interactive && screen::is_there())
        .then(|| screen::Screen::new(output.colors(), dir, end.clone()));
    let is_screen = screen.is_some();
    let mut printing = tokio::task::spawn_blocking(move || match screen {
        Some(screen) => printer.run_screen(screen, coming),
        None => printer.run(coming),
    });
    let mut running = tokio::spawn(agent(tell));
    let _patience =
        AbortOnDropHandle::new(tokio::spawn(ask_for_patience(stop.clone(), output.clone())));
    let bug = |e: tokio::task::JoinError| Failure::new(Code::Bug, e.to_string());
    let mut insisted = std::pin::pin!(insisted(&end));
    tokio::select! {
        ran = &mut running => {
            let ran = ran.map_err(bug)?;
            end.done.cancel();
            // What is left to print may have no reader.
            let printed = tokio::time::timeout(LAST_LINES, printing).await;
            ran.and(printed.map_or(Ok(()), |printed| printed.map_err(bug)?))
        }
        printed = &mut printing => {
            stop.cancel();
            let ran = tokio::select! {
                ran = running => ran.map_err(bug)?,
                () = &mut insisted => Err(shutdown::at_once()),
            };
            printed.map_err(bug)?.and(ran)
        }
        () = &mut insisted => {
            end.done.cancel();
            if is_screen {
                // The terminal is given back as it was.
                let _ = tokio::time::timeout(LAST_LINES, printing).await;
            }
            Err(shutdown::at_once())
        }
    }
}

/// Says why it has not ended yet, where that takes a while.
async fn ask_for_patience(stop: CancellationToken, output: Output) {
    stop.cancelled().await;
    tokio::time::sleep(AT_ONCE).await;
    output.tell("attempts under way have 10 s to end; Ctrl-C again ends them");
}

/// Waits until someone insists, by a signal or a key.
async fn insisted(end: &screen::End) {
    tokio::select! {
        () = shutdown::insisted() => {}
        () = end.insisted.cancelled() => {}
    }
}

/// Shows lines.
struct Printer {
    output: Output,
    style: ListenOutput,
    ready_file: Option<PathBuf>,
    /// Whether the forwarder is an embedded one.
    embeds: bool,
    skipped: Arc<AtomicU64>,
}

impl Printer {
    fn run(self, mut coming: mpsc::Receiver<Line>) -> Result<(), Failure> {
        let mut drain = Drain::default();
        while let Some(line) = coming.blocking_recv() {
            drain.above(|| self.show(&line))?;
            if self.style != ListenOutput::Json && !self.output.is_quiet() {
                drain.follow(&line);
            }
            let skipped = self.skipped.swap(0, Ordering::Relaxed);
            if skipped > 0 {
                let text = format!("{skipped} lines were skipped here; `whrelay logs` has them");
                drain.above(|| self.show(&Line::warning(text)))?;
            }
        }
        Ok(())
    }

    /// Shows lines in the interactive view.
    fn run_screen(self, screen: Screen, coming: mpsc::Receiver<Line>) -> Result<(), Failure> {
        let held = self.output.hold_talk();
        let ended = screen.run(coming, |line| self.note_ready(line));
        drop(held);
        ended?;
        self.output
            .tell("stopped; `whrelay status` says what waits for the next `listen`");
        Ok(())
    }

    /// Writes the ready line to its file, where one is wanted.
    fn note_ready(&self, line: &Line) -> Result<(), Failure> {
        if let (Line::Ready(_), Some(path)) = (line, &self.ready_file) {
            let json = serde_json::to_string(line).map_err(std::io::Error::from)?;
            // The line has the input URL in it, and whoever has that can send.
            private::write(path, (json + "\n").as_bytes()).map_err(|e| {
                Failure::new(
                    Code::Failed,
                    format!("--ready-file {}: {e}", path.display()),
                )
                .hint("name a file in a directory that is there and can be written")
            })?;
        }
        Ok(())
    }

    fn show(&self, line: &Line) -> Result<(), Failure> {
        self.note_ready(line)?;
        let output = &self.output;
        match (line, self.style) {
            (Line::Ready(ready), ListenOutput::Interactive) => {
                header(ready, self.embeds, output);
                Ok(())
            }
            (Line::Ready(ready), ListenOutput::Compact) => {
                let url = shown(&ready.url);
                output.tell(&format!("ready: {url} -> {}", ready.targets.join(", ")));
                if let Some(how) = not_public(&ready.url, self.embeds) {
                    output.tell(how);
                }
                if let Some(queued) = still_queued(ready) {
                    output.tell(&format!("still queued: {queued}"));
                }
                Ok(())
            }
            (line, style) => output.line(line, style == ListenOutput::Json),
        }
    }
}

fn style(args: &ListenArgs) -> ListenOutput {
    let terminal = std::io::stdout().is_terminal();
    let default = if terminal {
        ListenOutput::Interactive
    } else {
        ListenOutput::Compact
    };
    if args.json {
        ListenOutput::Json
    } else {
        args.output.unwrap_or(default)
    }
}

fn header(ready: &ReadyLine, embeds: bool, output: &Output) {
    output.tell(&format!("\n  Send webhooks to  {}", shown(&ready.url)));
    for target in &ready.targets {
        output.tell(&format!("  They go to        {target}"));
    }
    if let Some(queued) = still_queued(ready) {
        output.tell(&format!("  Still queued      {queued}"));
    }
    if let Some(how) = not_public(&ready.url, embeds) {
        output.tell(&format!("  {how}"));
    }
    output.tell("  Ctrl-C stops; queued events are kept.\n");
}

/// What a sender elsewhere needs, if only this machine reaches the input URL.
fn not_public(url: &str, embeds: bool) -> Option<&'static str> {
    is_local_only(url).then_some(match embeds {
        true => {
            "Only this machine reaches that URL: with cloudflared or ngrok installed, --public makes it public."
        }
        false => {
            "Only this machine reaches that URL: give the forwarder its address on the internet with --public-url."
        }
    })
}

fn is_local_only(url: &str) -> bool {
    let url = url.parse::<Url>().ok();
    url.is_some_and(|url| url.host().is_some_and(is_loopback))
}

/// How much waits from before, and since when.
fn still_queued(ready: &ReadyLine) -> Option<String> {
    let oldest = ready.oldest.as_deref();
    let oldest = oldest.map(|at| format!(", the oldest {}", ago(at)));
    let queued = format!("{} from before{}", ready.queued, oldest.unwrap_or_default());
    (ready.queued > 0).then_some(queued)
}
