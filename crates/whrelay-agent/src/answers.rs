//! Answers to what the commands ask of an agent's store, whether the agent runs or not. It must not
//! know through which door a question came.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey, DestinationId, State};
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::target::Target;
use whrelay_core::time::Timestamp;
use whrelay_store::{LoggedAttempt, Store, StoreError, StoredEvent};

use crate::control::{Ask, Filter, Piece};
use crate::error::AgentError;
use crate::lanes::Lanes;
use crate::lines::{
    AttemptLine, ContentLine, EventLine, Line, ReplayLine, StatusLine, TargetStatus,
};
use crate::{Manner, Tell};

/// Rows read at a time where many may have to be looked at.
const CHUNK: usize = 256;

/// An agent's store, and its engines where it runs.
#[derive(Clone)]
pub struct Local {
    lanes: Arc<Lanes>,
    dir: PathBuf,
    runs: bool,
}

/// An agent that does not run: its store, opened by a command.
pub struct Offline {
    local: Local,
    stop: CancellationToken,
}

impl Offline {
    /// Takes over the store of an agent that does not run. `None` where it never ran.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn new(
        store: Store,
        dir: &Path,
        manner: Manner,
        tell: Tell,
    ) -> Result<Option<Self>, StoreError> {
        let Some(bucket) = store.buckets()?.into_iter().next() else {
            return Ok(None);
        };
        let stop = CancellationToken::new();
        let lanes = Lanes::new(bucket, store, manner, tell, stop.clone());
        let local = Local {
            lanes: Arc::new(lanes),
            dir: dir.to_owned(),
            runs: false,
        };
        Ok(Some(Self { local, stop }))
    }

    /// The store's answers. A replay to a target of its own is delivered by this process.
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// Stops what was begun and lets go of the store.
    pub async fn close(self) {
        self.stop.cancel();
        self.local.lanes.finish().await;
        self.local.lanes.store.clone().close().await;
    }
}

/// Why an answer ends early.
enum Stop {
    Failed(Box<Line>),
    /// Nobody listens any more.
    Gone,
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<AgentError> for Stop {
    fn from(error: AgentError) -> Self {
        Self::failed(error.to_string())
    }
}

impl Stop {
    fn failed(message: String) -> Self {
        Self::Failed(Box::new(Line::Failure {
            not_found: false,
            message,
        }))
    }

    fn not_found(message: String) -> Self {
        Self::Failed(Box::new(Line::Failure {
            not_found: true,
            message,
        }))
    }
}

struct Out(mpsc::Sender<Piece>);

impl Out {
    async fn line(&self, line: Line) -> Result<(), Stop> {
        self.0
            .send(Piece::Line(Box::new(line)))
            .await
            .map_err(|_| Stop::Gone)
    }

    async fn bytes(&self, bytes: Bytes) -> Result<(), Stop> {
        self.0
            .send(Piece::Bytes(bytes))
            .await
            .map_err(|_| Stop::Gone)
    }
}

impl Local {
    pub(crate) fn running(lanes: Arc<Lanes>, dir: &Path) -> Self {
        Self {
            lanes,
            dir: dir.to_owned(),
            runs: true,
        }
    }

    /// Answers a question, piece by piece.
    pub async fn answer(&self, ask: Ask, out: mpsc::Sender<Piece>) {
        let out = Out(out);
        let answered = match ask {
            Ask::Attempts {
                filter,
                last,
                follow,
            } => self.attempts(&filter, last, follow, &out).await,
            Ask::Events { filter, last } => self.events(&filter, last, &out).await,
            Ask::Show { event } => self.show(&event, &out).await,
            Ask::Replay { events, to, wait } => {
                self.replay(&events, to.as_deref(), wait, &out).await
            }
            Ask::Status => self.status(&out).await,
        };
        if let Err(Stop::Failed(line)) = answered {
            // Where nobody listens any more, nobody needs to know.
            let _ = out.line(*line).await;
        }
    }

    fn store(&self) -> &Store {
        &self.lanes.store
    }

    fn bucket(&self) -> &Bucket {
        &self.lanes.bucket
    }

    fn targets(&self) -> Result<HashMap<DestinationId, String>, StoreError> {
        Ok(self.store().destinations()?.into_iter().collect())
    }

    async fn attempts(
        &self,
        filter: &Filter,
        last: usize,
        follow: bool,
        out: &Out,
    ) -> Result<(), Stop> {
        if !filter.wants_bucket(self.bucket().name.as_str()) {
            return Ok(());
        }
        let reached = self.store().last_attempt()?;
        let targets = self.targets()?;
        for logged in self.newest(filter, last, reached)?.iter().rev() {
            out.line(self.attempt_line(logged, &targets)).await?;
        }
        if follow {
            self.follow(filter, reached, targets, out).await
        } else {
            Ok(())
        }
    }

    /// Tells the attempts that come after a place, for ever. It reads the log from where it was, so
    /// a slow reader misses nothing.
    async fn follow(
        &self,
        filter: &Filter,
        mut reached: u64,
        mut targets: HashMap<DestinationId, String>,
        out: &Out,
    ) -> Result<(), Stop> {
        let mut commits = self.store().commits();
        loop {
            commits.mark_unchanged();
            let new = self.store().attempts_after(reached, CHUNK)?;
            for logged in &new {
                reached = logged.place;
                if !targets.contains_key(&logged.attempt.destination) {
                    targets = self.targets()?;
                }
                if filter.wants_attempt(&logged.attempt) {
                    out.line(self.attempt_line(logged, &targets)).await?;
                }
            }
            if new.is_empty() {
                tokio::select! {
                    changed = commits.changed() => changed.map_err(|_| Stop::Gone)?,
                    () = out.0.closed() => return Err(Stop::Gone),
                    () = self.lanes.stopped() => return Ok(()),
                }
            }
        }
    }

    /// The newest attempts that a filter wants, newest first.
    fn newest(
        &self,
        filter: &Filter,
        last: usize,
        reached: u64,
    ) -> Result<Vec<LoggedAttempt>, StoreError> {
        let (mut found, mut before) = (Vec::new(), reached.saturating_add(1));
        while found.len() < last {
            let chunk = self.store().attempts_before(before, CHUNK)?;
            let Some(oldest) = chunk.last() else { break };
            before = oldest.place;
            let done = filter.is_past(oldest.attempt.at);
            found.extend(
                chunk
                    .into_iter()
                    .filter(|logged| filter.wants_attempt(&logged.attempt)),
            );
            if done {
                break;
            }
        }
        found.truncate(last);
        Ok(found)
    }

    fn attempt_line(
        &self,
        logged: &LoggedAttempt,
        targets: &HashMap<DestinationId, String>,
    ) -> Line {
        let attempt = &logged.attempt;
        let target = targets.get(&attempt.destination).unwrap_or(&attempt.url);
        Line::Attempt(AttemptLine::new(
            attempt,
            self.bucket().name.as_str(),
            target,
        ))
    }

    async fn events(&self, filter: &Filter, last: usize, out: &Out) -> Result<(), Stop> {
        if !filter.wants_bucket(self.bucket().name.as_str()) {
            return Ok(());
        }
        let targets = self.targets()?;
        let (mut found, mut before) = (Vec::new(), Seq(u64::MAX));
        while found.len() < last {
            let chunk =
                self.store()
                    .events_before(self.bucket(), before, CHUNK, limits::MAX_BODY)?;
            let Some(oldest) = chunk.last() else { break };
            before = oldest.seq;
            let done = filter.is_past(oldest.event.received_at);
            for StoredEvent { seq, event } in chunk {
                let line = self.event_line(seq, &event, &targets)?;
                if filter.wants_event(&event, &line.state) {
                    found.push(line);
                }
            }
            if done || out.0.is_closed() {
                break;
            }
            // Many events take long to read: the tunnel and the deliveries get their turn.
            tokio::task::yield_now().await;
        }
        found.truncate(last);
        for line in found.into_iter().rev() {
            out.line(Line::Event(line)).await?;
        }
        Ok(())
    }

    fn event_line(
        &self,
        seq: Seq,
        event: &Event,
        targets: &HashMap<DestinationId, String>,
    ) -> Result<EventLine, StoreError> {
        let deliveries = self.store().deliveries_of(self.bucket().id, seq)?;
        let now = self.lanes.clock.now();
        let shown = |mut delivery: Delivery| {
            // What waits for an endpoint that is offline has failed so far, tried or not.
            if !delivery.state.is_finished() && self.lanes.is_offline(delivery.destination) {
                delivery.state = State::Stalled;
                // It is probed for several times a second, and tried at once when it is back.
                delivery.next_attempt_at = delivery.next_attempt_at.max(Some(now));
            }
            let target = targets
                .get(&delivery.destination)
                .cloned()
                .unwrap_or_default();
            (delivery, target)
        };
        let deliveries: Vec<_> = deliveries.into_iter().map(shown).collect();
        Ok(EventLine::new(event, &deliveries))
    }

    fn find(&self, text: &str) -> Result<(Seq, Event), Stop> {
        let id: EventId = text.parse().map_err(|e| Stop::not_found(format!("{e}")))?;
        let unknown = || Stop::not_found(format!("there is no event {id}"));
        let (_, seq) = self.store().find_event(id)?.ok_or_else(unknown)?;
        let event = self
            .store()
            .event_at(self.bucket(), seq)?
            .ok_or_else(unknown)?;
        Ok((seq, event))
    }

    async fn show(&self, text: &str, out: &Out) -> Result<(), Stop> {
        let (seq, event) = self.find(text)?;
        let line = self.event_line(seq, &event, &self.targets()?)?;
        out.line(Line::Event(line)).await?;
        let filter = Filter {
            event: Some(text.to_owned()),
            ..Filter::default()
        };
        self.attempts(&filter, usize::MAX, false, out).await?;
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let headers = event.request.headers.iter();
        let headers = headers
            .map(|header| (header.name.clone(), text(&header.value)))
            .collect();
        let body = event.request.body;
        out.line(Line::Content(ContentLine {
            headers,
            body_bytes: body.len() as u64,
        }))
        .await?;
        out.bytes(body).await
    }

    async fn replay(
        &self,
        events: &[String],
        to: Option<&str>,
        wait: bool,
        out: &Out,
    ) -> Result<(), Stop> {
        let found: Vec<_> = events
            .iter()
            .map(|e| self.find(e))
            .collect::<Result<_, _>>()?;
        let chosen = match to {
            Some(text) => {
                let target: Target = text.parse().map_err(|e| Stop::failed(format!("{e}")))?;
                Some(vec![self.lanes.serve(&target, false).await?])
            }
            None => None,
        };
        let mut reached = self.store().last_attempt()?;
        let mut begun = Vec::new();
        for (seq, event) in found {
            let destinations = match &chosen {
                Some(chosen) => chosen.clone(),
                None => self.destinations_of(seq)?,
            };
            for destination in destinations {
                let new = self.lanes.new_delivery(destination, true);
                let bucket = self.bucket().id;
                let begin = self.store().deliver_again(bucket, seq, event.id, new);
                let delivery = begin.await?;
                out.line(self.replay_line(&delivery)?).await?;
                begun.push(delivery.key);
            }
        }
        if !self.runs && chosen.is_none() {
            let hint = "no agent runs: the next `whrelay listen` delivers it";
            return out.line(Line::warning(hint)).await;
        }
        if wait {
            self.wait_for(begun, &mut reached, out).await?;
        }
        Ok(())
    }

    /// Where a replay goes when nobody says: to the agent's targets, or where it does not run, to
    /// where the event went before.
    fn destinations_of(&self, seq: Seq) -> Result<Vec<DestinationId>, StoreError> {
        let configured: Vec<_> = self
            .lanes
            .served()
            .into_iter()
            .filter(|s| s.configured)
            .map(|s| s.id)
            .collect();
        if self.runs {
            return Ok(configured);
        }
        let before = self.store().deliveries_of(self.bucket().id, seq)?;
        let mut before: Vec<_> = before.into_iter().map(|d| d.destination).collect();
        before.sort_unstable();
        before.dedup();
        Ok(before)
    }

    fn replay_line(&self, delivery: &Delivery) -> Result<Line, StoreError> {
        let target = self
            .targets()?
            .remove(&delivery.destination)
            .unwrap_or_default();
        Ok(Line::Replay(ReplayLine {
            event: delivery.event.to_string(),
            delivery: delivery.id.to_string(),
            target,
            state: delivery.state.to_string(),
        }))
    }

    /// Tells the attempts of some deliveries until all are finished, then how each ended.
    async fn wait_for(
        &self,
        mut waiting: Vec<DeliveryKey>,
        reached: &mut u64,
        out: &Out,
    ) -> Result<(), Stop> {
        let mut commits = self.store().commits();
        let targets = self.targets()?;
        while !waiting.is_empty() {
            commits.mark_unchanged();
            let new = self.store().attempts_after(*reached, CHUNK)?;
            for logged in &new {
                *reached = logged.place;
                if waiting.contains(&logged.attempt.key) {
                    out.line(self.attempt_line(logged, &targets)).await?;
                }
            }
            if !new.is_empty() {
                continue;
            }
            let mut left = Vec::new();
            for key in waiting {
                match self.store().delivery(key)? {
                    Some(delivery) if delivery.state.is_finished() => {
                        out.line(self.replay_line(&delivery)?).await?;
                    }
                    Some(_) => left.push(key),
                    None => {}
                }
            }
            waiting = left;
            if !waiting.is_empty() {
                tokio::select! {
                    changed = commits.changed() => changed.map_err(|_| Stop::Gone)?,
                    () = out.0.closed() => return Err(Stop::Gone),
                    () = self.lanes.stopped() => return Ok(()),
                }
            }
        }
        Ok(())
    }

    async fn status(&self, out: &Out) -> Result<(), Stop> {
        let store = self.store();
        let mut line = StatusLine {
            bucket: self.bucket().name.to_string(),
            name: store.note("subscription")?.unwrap_or_default(),
            forwarder: store.note("forwarder")?.unwrap_or_default(),
            pid: self.runs.then(std::process::id),
            link: self.link_state().to_owned(),
            targets: Vec::new(),
            queued: 0,
            stalled: 0,
            sent: 0,
            dead: 0,
            quarantined: store.quarantined()?.len() as u64,
            oldest_waiting_at: None,
            next_attempt_at: None,
            disk_bytes: store.disk_used(&self.dir)?,
        };
        let (mut oldest, mut next): (Vec<Timestamp>, Vec<Timestamp>) = (Vec::new(), Vec::new());
        let served = self.lanes.served();
        for (id, target) in store.destinations()? {
            let (counts, waiting) = (store.counts(id)?, store.waiting(id)?);
            oldest.extend(waiting.oldest_at);
            let offline = self.lanes.is_offline(id);
            let soonest = offline.then(|| self.lanes.clock.now());
            next.extend(
                waiting
                    .next_attempt_at
                    .map(|at| soonest.map_or(at, |now| at.max(now))),
            );
            line.queued += if offline { 0 } else { counts.queued };
            line.stalled += counts.stalled + if offline { counts.queued } else { 0 };
            line.sent += counts.sent;
            line.dead += counts.dead;
            let endpoint = match (served.iter().any(|s| s.id == id), offline) {
                (false, _) => "unknown",
                (true, true) => "offline",
                (true, false) => "online",
            };
            let waiting = counts.queued + counts.stalled;
            line.targets.push(TargetStatus {
                target,
                endpoint: endpoint.into(),
                waiting,
            });
        }
        line.oldest_waiting_at = oldest.into_iter().min().map(|at| at.to_string());
        line.next_attempt_at = next.into_iter().min().map(|at| at.to_string());
        out.line(Line::Status(line)).await
    }

    fn link_state(&self) -> &'static str {
        match (self.runs, self.lanes.connected.load(Ordering::Relaxed)) {
            (false, _) => "stopped",
            (true, true) => "connected",
            (true, false) => "disconnected",
        }
    }
}
