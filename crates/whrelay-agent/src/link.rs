//! The tunnel, kept up: the shell around `AgentSession`. It must not wait for a delivery, and must
//! not decide what an ack says.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;
use whrelay_core::backlog::Backlog;
use whrelay_core::bucket::Seq;
use whrelay_core::delivery::DestinationId;
use whrelay_core::limits;
use whrelay_core::retry::{Jitter, reconnect_pause};
use whrelay_core::route::Prefix;
use whrelay_core::time::Timestamp;
use whrelay_proto::frame::{
    Epoch, Hello, Known, Refused, RefusedCode, Resume, Welcome, Who, WireEvent,
};
use whrelay_proto::liveness::{Liveness, Pulse};
use whrelay_proto::{AgentAction, AgentSession, codec};
use whrelay_store::{StoreError, persist};

use crate::Config;
use crate::backlog::{self, Catching};
use crate::error::AgentError;
use crate::intake::Intake;
use crate::lines::{Line, ReadyLine};
use crate::noticed::{self, Said};
use crate::provision::provision;
use crate::runtime::Runtime;
use crate::socket::{self, Socket};

/// Clocks that differ by more than this are worth a warning.
const SKEW: Duration = Duration::from_secs(30);
/// Tunnels that are cut by something on the way that ends idle connections had been idle for at least so long.
const CUT_EARLY: Duration = Duration::from_secs(2);
/// By how much the times of two such cuts differ at most.
const CUT_ALIKE: Duration = Duration::from_secs(1);
/// So many such cuts in a row are no crashes.
const CUTS_IN_A_ROW: u32 = 3;

/// What keeps the tunnel up.
pub(crate) struct Link {
    config: Config,
    /// Where senders send; unknown until the forwarder has been asked for the bucket.
    input_url: Mutex<Option<String>>,
    runtime: Arc<Runtime>,
    catching: Arc<Catching>,
    said: Said,
    /// Whether the subscription is still to be taken from another agent: a reconnect takes nothing.
    take_over: AtomicBool,
    /// How many tunnels in a row were cut after the same time without traffic, and that time.
    cuts: Mutex<(u32, Duration)>,
}

/// A session that has been welcomed.
pub(crate) struct Live {
    socket: Socket,
    session: AgentSession,
    pub(crate) welcome: Welcome,
}

type Appending = Pin<Box<dyn Future<Output = Result<u64, StoreError>> + Send>>;

impl Link {
    pub(crate) fn new(config: &Config, input_url: Option<String>, runtime: Arc<Runtime>) -> Self {
        Self {
            config: config.clone(),
            input_url: Mutex::new(input_url),
            runtime,
            catching: Arc::default(),
            said: Said::default(),
            take_over: AtomicBool::new(config.take_over),
            cuts: Mutex::default(),
        }
    }

    /// Sees, before the first session, that the bucket is there and where its senders send.
    async fn provision(&self) -> Result<(), AgentError> {
        if self.input().is_some() {
            return Ok(());
        }
        let url = provision(&self.config).await?;
        persist(|| self.runtime.store.catalog.set_note("input", &url)).await?;
        let mut known = self
            .input_url
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *known = Some(url);
        Ok(())
    }

    fn input(&self) -> Option<String> {
        let known = self
            .input_url
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    /// Opens a session; with a new token, where the forwarder does not accept the one before and there is one.
    pub(crate) async fn connect(&self) -> Result<Live, AgentError> {
        let connected = self.connect_once().await;
        let is_refused = matches!(connected, Err(AgentError::Unauthorised(_)));
        match is_refused && self.config.access.read_again() {
            true => self.connect_once().await,
            false => connected,
        }
    }

    /// Opens a session: socket, hello, welcome.
    async fn connect_once(&self) -> Result<Live, AgentError> {
        self.provision().await?;
        let Config {
            forwarder,
            proxies,
            trust,
            access,
            subscription,
            ..
        } = &self.config;
        let bucket = &self.runtime.bucket;
        let resume = self.resume().await?;
        let reached = resume.as_ref().map(|r| (r.forwarder.clone(), r.seq));
        let backlog_end = self.catching.cut().end();
        let hello = Hello {
            who: Some(self.who()),
            take_over: self.take_over.load(Ordering::Relaxed),
            backlog: self.config.wants_backlog,
            backlog_end: backlog_end.map(Known::new),
            ..Hello::new(bucket.name.as_str(), subscription.as_str(), resume)
        };
        let mut socket = socket::open(forwarder, proxies, trust, &access.token()).await?;
        let (mut session, hello) = AgentSession::begin(hello);
        self.send(&mut socket, Message::Binary(codec::encode(hello)))
            .await?;
        let welcomed = timeout(limits::WELCOME_TIMEOUT, async {
            loop {
                let message = socket.stream.next().await;
                match self.on_message(&mut socket, &mut session, message).await? {
                    Some(AgentAction::Welcomed(welcome)) => return Ok(*welcome),
                    Some(AgentAction::Refused(refused)) => {
                        socket.close(CloseCode::Normal).await;
                        return Err(self.refused(refused));
                    }
                    Some(AgentAction::Store { .. }) | None => {}
                }
            }
        });
        let welcome = welcomed
            .await
            .unwrap_or_else(|_| Err(self.lost("no welcome in time")))?;
        self.take_over.store(false, Ordering::Relaxed);
        let reached = reached.filter(|(name, _)| *name == welcome.forwarder);
        let reached = reached.map_or(0, |(_, seq)| seq);
        let are_lost = self.catching.resume(reached, &welcome);
        let (store, now) = (&self.runtime.store, self.runtime.clock.now());
        for text in noticed::take(store, &self.said, (&welcome, are_lost), now).await? {
            (self.runtime.tell)(Line::warning(text));
        }
        Ok(Live {
            socket,
            session,
            welcome,
        })
    }

    fn who(&self) -> Who {
        let (epoch, label) = (self.runtime.store.journal.epoch(), &self.config.label);
        Who {
            store: epoch.store.clone(),
            epoch: Epoch {
                opens: epoch.opens,
                instance: epoch.instance,
            },
            follows: epoch.follows,
            host: label.host.clone(),
            user: label.user.clone(),
        }
    }

    /// How far this agent's store has come.
    async fn resume(&self) -> Result<Option<Resume>, StoreError> {
        let store = &self.runtime.store;
        let Some(source) = store.journal.source(self.runtime.bucket.id).await? else {
            return Ok(None);
        };
        let epoch = noticed::known_epoch(store, &source.forwarder).await?;
        let entries = source.locator.entries().iter().copied();
        Ok(Some(Resume {
            locator: entries.map(Known::new).collect(),
            whole_after: source.whole_after.0,
            epoch,
            ..Resume::at(&source.forwarder, source.seq.0)
        }))
    }

    /// Passes over what came before the first session and is not wanted.
    pub(crate) async fn begin(
        &mut self,
        first: &Welcome,
        wanted: Backlog,
    ) -> Result<(), StoreError> {
        let (runtime, catching) = (&self.runtime, Catching::new(wanted, first));
        let now = runtime.clock.now();
        let passed_over = catching
            .pass_over_here(&runtime.store, &runtime.bucket, now)
            .await?;
        if passed_over > 0 {
            (runtime.tell)(backlog::told(passed_over, "event", "that waited here"));
        }
        self.catching = Arc::new(catching);
        Ok(())
    }

    /// Keeps the tunnel up until `stop`, or until dialling again cannot help. It is ready once it is up.
    pub(crate) async fn run(
        &self,
        first: Option<Live>,
        stop: &CancellationToken,
    ) -> Result<(), AgentError> {
        // Without a first session nothing of what came before was passed over: all of it is still to come.
        let late = first.is_none();
        let (mut live, mut failures, mut ready) = (first, 0, false);
        let mut down_since: Option<Instant> = None;
        loop {
            let ended = match live.take() {
                Some(session) => {
                    down_since = None;
                    if !std::mem::replace(&mut ready, true) {
                        let there = match late {
                            true => session.welcome.waiting,
                            false => self.catching.cut().expected(),
                        };
                        (self.runtime.tell)(Line::Ready(
                            self.ready(&session.welcome, there).await?,
                        ));
                    }
                    self.serve(session, &mut failures, stop).await
                }
                None => match self.connect_until(stop).await {
                    Ok(session) => {
                        live = Some(session);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            let Err(error) = ended else { return Ok(()) };
            let down = down_since.get_or_insert_with(Instant::now).elapsed();
            let left = self
                .config
                .exit_on_disconnect
                .map(|longest| longest.saturating_sub(down));
            if !error.is_retryable() || left == Some(Duration::ZERO) {
                return Err(error);
            }
            tracing::debug!(%error, failures, "the tunnel is down");
            self.runtime.set_down(&error);
            let pause = reconnect_pause(failures, Jitter(rand::random()));
            if !self
                .pause(left.map_or(pause, |left| pause.min(left)), stop)
                .await
            {
                return Ok(());
            }
            failures = failures.saturating_add(1);
        }
    }

    async fn ready(&self, welcome: &Welcome, coming: u64) -> Result<ReadyLine, StoreError> {
        let runtime = &self.runtime;
        let here = runtime.store.view.oldest_waiting(runtime.bucket.id).await?;
        let there = welcome.oldest.map(Timestamp::from_micros);
        let oldest = here.into_iter().chain(there).min();
        let shown = |(prefix, id): (Prefix, DestinationId)| {
            let target = runtime.settings_of(id)?.client.target().to_string();
            Some(match prefix == Prefix::default() {
                true => target,
                false => format!("{prefix}={target}"),
            })
        };
        let targets = runtime.routes().into_iter().filter_map(shown).collect();
        Ok(ReadyLine {
            url: self.input().unwrap_or_default(),
            bucket: runtime.bucket.name.to_string(),
            forwarder: self
                .config
                .forwarder
                .as_str()
                .trim_end_matches('/')
                .to_owned(),
            targets,
            queued: runtime.waiting().await.saturating_add(coming),
            oldest: oldest.map(|at| at.to_string()),
            pid: std::process::id(),
        })
    }

    /// Waits before the next dial, and cuts the wait short when the machine wakes from sleep. Says
    /// whether to go on.
    async fn pause(&self, pause: Duration, stop: &CancellationToken) -> bool {
        let (until, jumps) = (Instant::now() + pause, self.runtime.clock.jumps());
        while Instant::now() < until && self.runtime.clock.jumps() == jumps {
            let step = until
                .saturating_duration_since(Instant::now())
                .min(limits::REARM);
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(step) => {}
            }
        }
        !stop.is_cancelled()
    }

    /// Opens a session, unless it has to stop before: then the error is never seen.
    async fn connect_until(&self, stop: &CancellationToken) -> Result<Live, AgentError> {
        tokio::select! {
            connected = self.connect() => connected,
            () = stop.cancelled() => Err(self.lost("stopped")),
        }
    }

    /// One session, until it ends: `Ok` only on `stop`. It counts as a success, and the backoff
    /// begins anew after it, once something was receipted or it has lived for a while.
    async fn serve(
        &self,
        live: Live,
        failures: &mut u32,
        stop: &CancellationToken,
    ) -> Result<(), AgentError> {
        self.greet(&live.welcome);
        let (mut appending, over) = (None, CancellationToken::new());
        let mut cut_after = None;
        let ends = (&mut appending, &mut cut_after);
        let ended = self.talk(live, failures, stop, ends, &over).await;
        let ended = ended.map_err(|error| self.explained(error, cut_after));
        // What is being stored is told of as well, since nobody sends it again. Its ack goes with the next
        // hello.
        over.cancel();
        let Some(appending) = appending else {
            return ended;
        };
        let stored = tokio::select! {
            stored = appending => stored,
            // A disk that hangs holds nobody up who wants to stop.
            () = async { stop.cancelled().await; tokio::time::sleep(limits::DRAIN).await } => return ended,
        };
        match stored {
            Err(error) if !error.is_retryable() => Err(error.into()),
            Ok(_) | Err(_) => ended,
        }
    }

    /// Takes what comes, until the session ends. What is being stored then is left in `appending`, and goes
    /// on until `over`. If the connection was cut, `cut_after` is how long it had been without traffic.
    async fn talk(
        &self,
        live: Live,
        failures: &mut u32,
        stop: &CancellationToken,
        (appending, cut_after): (&mut Option<Appending>, &mut Option<Duration>),
        over: &CancellationToken,
    ) -> Result<(), AgentError> {
        let Live {
            mut socket,
            mut session,
            welcome,
        } = live;
        let mut waiting: VecDeque<(Vec<WireEvent>, u64)> = VecDeque::new();
        let mut liveness = Liveness::new(Instant::now());
        let (jumps, began) = (self.runtime.clock.jumps(), Instant::now());
        loop {
            if began.elapsed() >= limits::PING_EVERY {
                *failures = 0;
            }
            if appending.is_none() && !waiting.is_empty() {
                *appending = Some(self.append(&welcome, &mut waiting, over));
            }
            if self.runtime.clock.jumps() != jumps {
                return Err(self.lost("the clock jumped: the machine may have slept"));
            }
            liveness.heard(socket.heard.at());
            let wait = match liveness.pulse(Instant::now()) {
                Pulse::Dead => return Err(self.lost("the forwarder was silent for too long")),
                Pulse::Ping => {
                    self.send(&mut socket, Message::Ping(Bytes::new())).await?;
                    Duration::ZERO
                }
                Pulse::Wait(until) => until.saturating_duration_since(Instant::now()),
            };
            tokio::select! {
                () = stop.cancelled() => {
                    // A courtesy: the forwarder would find out by itself.
                    socket.close(CloseCode::Normal).await;
                    return Ok(());
                }
                message = socket.stream.next() => {
                    if socket::is_cut(message.as_ref()) {
                        *cut_after = Some(socket.heard.at().elapsed());
                    }
                    match self.on_message(&mut socket, &mut session, message).await? {
                        Some(AgentAction::Store { events, upto }) => waiting.push_back((events, upto)),
                        Some(AgentAction::Refused(refused)) => {
                            socket.close(CloseCode::Normal).await;
                            return Err(self.refused(refused));
                        }
                        Some(AgentAction::Welcomed(_)) | None => {}
                    }
                }
                appended = finished(appending) => {
                    if let Some(ack) = session.persisted(appended?) {
                        *failures = 0;
                        self.send(&mut socket, Message::Binary(codec::encode(ack))).await?;
                    }
                }
                () = tokio::time::sleep(wait.min(limits::REARM)) => {}
            }
        }
    }

    fn greet(&self, welcome: &Welcome) {
        self.runtime.set_up();
        let (here, there) = (
            self.runtime.clock.now(),
            Timestamp::from_micros(welcome.clock),
        );
        let skew = here.since(there).max(there.since(here));
        if skew > SKEW {
            let message = format!(
                "this clock and the forwarder's differ by {} s",
                skew.as_secs()
            );
            (self.runtime.tell)(Line::warning(message));
        }
    }

    /// Puts what waits on disk.
    fn append(
        &self,
        welcome: &Welcome,
        waiting: &mut VecDeque<(Vec<WireEvent>, u64)>,
        over: &CancellationToken,
    ) -> Appending {
        let (runtime, catching) = (Arc::clone(&self.runtime), Arc::clone(&self.catching));
        let begun = (welcome.forwarder.as_str(), Seq(welcome.start));
        let mut intake = Intake::new(runtime, catching, begun);
        for (events, upto) in waiting.drain(..) {
            intake.add(events, upto);
        }
        Box::pin(intake.store(over.clone()))
    }

    async fn on_message(
        &self,
        socket: &mut Socket,
        session: &mut AgentSession,
        message: Option<Result<Message, Error>>,
    ) -> Result<Option<AgentAction>, AgentError> {
        match message {
            Some(Ok(Message::Binary(bytes))) => {
                let action = codec::decode(bytes).and_then(|frame| session.on_frame(frame));
                match action {
                    Ok(action) => Ok(Some(action)),
                    Err(error) => {
                        socket.close(CloseCode::Protocol).await;
                        Err(match error.is_retryable() {
                            true => self.lost(&error.to_string()),
                            false => AgentError::Refused(error.to_string()),
                        })
                    }
                }
            }
            // Its answer goes out before more is read: the answers to a forwarder that pings and reads
            // nothing would pile up in memory.
            Some(Ok(Message::Ping(_))) => {
                self.written(socket.stream.flush()).await?;
                Ok(None)
            }
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => Ok(None),
            Some(Ok(Message::Text(_))) => {
                socket.close(CloseCode::Protocol).await;
                Err(self.lost("it sent a text frame, which this protocol does not have"))
            }
            Some(Ok(Message::Close(_))) => {
                socket.close(CloseCode::Normal).await;
                Err(self.lost("the forwarder closed the tunnel"))
            }
            None => Err(self.lost("the forwarder closed the tunnel")),
            Some(Err(error)) => {
                if let Some(code) = socket::code_for(&error) {
                    socket.close(code).await;
                }
                Err(self.lost(&error.to_string()))
            }
        }
    }

    async fn send(&self, socket: &mut Socket, message: Message) -> Result<(), AgentError> {
        self.written(socket.stream.send(message)).await
    }

    async fn written(
        &self,
        writing: impl Future<Output = tokio_tungstenite::tungstenite::Result<()>>,
    ) -> Result<(), AgentError> {
        match timeout(limits::TUNNEL_WRITE_TIMEOUT, writing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.lost(&error.to_string())),
            Err(_) => Err(self.lost("it stopped reading")),
        }
    }

    /// The end of a tunnel, and what it may mean if several in a row were cut after the same time without traffic.
    fn explained(&self, mut error: AgentError, cut_after: Option<Duration>) -> AgentError {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(idle) = cut_after.filter(|idle| *idle >= CUT_EARLY) else {
            *cuts = (0, Duration::ZERO);
            return error;
        };
        let is_alike = idle.abs_diff(cuts.1) < CUT_ALIKE;
        *cuts = (if is_alike { cuts.0 + 1 } else { 1 }, idle);
        if let AgentError::Unreachable { why, .. } = &mut error
            && cuts.0 >= CUTS_IN_A_ROW
        {
            let seconds = idle.as_secs_f64();
            why.push_str(&format!(
                ", again after {seconds:.0} s without traffic: a proxy on the way has to keep idle connections for 25 s \
                 or more"
            ));
        }
        error
    }

    fn lost(&self, why: &str) -> AgentError {
        AgentError::Unreachable {
            forwarder: self.config.forwarder.to_string(),
            why: why.to_owned(),
        }
    }

    fn refused(&self, refused: Refused) -> AgentError {
        let Refused { code, text } = refused;
        match code {
            RefusedCode::Replaced => AgentError::Replaced(printable(&text)),
            RefusedCode::InUse => AgentError::InUse(printable(&text)),
            RefusedCode::UnknownBucket
            | RefusedCode::Version
            | RefusedCode::TooManySubscriptions => AgentError::Refused(text),
            RefusedCode::Stopping
            | RefusedCode::Unavailable
            | RefusedCode::Protocol
            | RefusedCode::Unknown => self.lost(&text),
        }
    }
}

/// A forwarder's words, safe to show.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

async fn finished(appending: &mut Option<Appending>) -> Result<u64, StoreError> {
    let Some(future) = appending else {
        return std::future::pending().await;
    };
    let appended = future.await;
    *appending = None;
    appended
}
