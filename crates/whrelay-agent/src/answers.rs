//! Answers to what the commands ask of an agent's store, whether the agent runs or not. It must not
//! know through which door a question came.

mod again;
mod destinations;
mod groups;
mod kinds;
mod matches;
mod next;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::delivery::{Delivery, DestinationId, State};
use whrelay_core::destination::{Destination, Kind, OptionSet};
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::order::Order;
use whrelay_core::time::Timestamp;
use whrelay_store::{Begin, Incident, LoggedAttempt, StateCounts, Store, StoreError, disk_used};

use self::matches::{Judge, Matches};
use self::next::Next;
use crate::control::{Ask, Filter, Piece};
use crate::error::AgentError;
use crate::lines::{
    AttemptLine, ContentLine, EventLine, HeadLine, IncidentStatus, Line, LinkState, Placed,
    RemovedStatus, StatusLine, TargetStatus,
};
use crate::runtime::{Runtime, refusal};
use crate::{Requests, Tell, refetch};

/// Rows read at a time where many may have to be looked at.
const CHUNK: usize = 256;

/// The destinations of a store, those of one-off replays and removed ones with them.
type Destinations = HashMap<DestinationId, Destination>;

/// An agent's store, and its deliveries where it runs.
#[derive(Clone)]
pub struct Local {
    runtime: Arc<Runtime>,
    dir: PathBuf,
    runs: bool,
}

/// An agent that does not run: its store, opened by a command.
pub struct Offline {
    local: Local,
    stop: CancellationToken,
}

impl Offline {
    /// Takes over the store of an agent that does not run, for replays that are made with these requests and
    /// options. `None` where it never ran.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn new(
        store: Store,
        dir: &Path,
        requests: (Requests, OptionSet),
        tell: Tell,
    ) -> Result<Option<Self>, StoreError> {
        let Some(bucket) = store.catalog.buckets().await?.into_iter().next() else {
            return Ok(None);
        };
        let stop = CancellationToken::new();
        let runtime = Runtime::new(
            bucket,
            store,
            requests,
            tell,
            refetch::later(),
            stop.clone(),
        );
        let local = Local {
            runtime: Arc::new(runtime),
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
        self.local.runtime.finish().await;
        self.local.runtime.store.journal.close().await;
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

/// What has happened to a store, for people.
async fn incidents(store: &Store) -> Result<Vec<IncidentStatus>, StoreError> {
    let line = |Incident { at, kind, text }: Incident| IncidentStatus {
        at: at.to_string(),
        kind,
        message: text,
    };
    Ok(store
        .catalog
        .incidents()
        .await?
        .into_iter()
        .map(line)
        .collect())
}

impl Local {
    pub(crate) fn running(runtime: Arc<Runtime>, dir: &Path) -> Self {
        Self {
            runtime,
            dir: dir.to_owned(),
            runs: true,
        }
    }

    /// Answers a question, piece by piece.
    pub async fn answer(&self, ask: Ask, out: mpsc::Sender<Piece>) {
        let out = Out(out);
        // What was done before a command, that command shows.
        let appended = *self.store().journal.appended().borrow();
        self.store().view.wait_applied(appended).await;
        let answered = match ask {
            Ask::Attempts {
                filter,
                last,
                follow,
                after,
            } => self.attempts(&filter, last, after, follow, &out).await,
            Ask::Events { filter, last } => self.events(&filter, last, &out).await,
            Ask::Show { event } => self.show(&event, &out).await,
            Ask::Groups { filter } => self.groups(&filter, &out).await,
            Ask::Replay { which, how } => self.replay(&which, &how, &out).await,
            Ask::Discard { which, dry_run } => self.discard(&which, dry_run, &out).await,
            Ask::Status => self.status(&out).await,
            Ask::Retry { event } => self.retry(&event, &out).await,
            Ask::Pause { paused } => self.pause_all(paused, &out).await,
            Ask::Destinations => self.list_destinations(&out).await,
            Ask::SetDestination { name, changes } => {
                self.set_destination(&name, &changes, &out).await
            }
            Ask::RemoveDestination { name, queue } => {
                self.remove_destination(&name, &queue, &out).await
            }
        };
        if let Err(Stop::Failed(line)) = answered {
            // Where nobody listens any more, nobody needs to know.
            let _ = out.line(*line).await;
        }
    }

    fn store(&self) -> &Store {
        &self.runtime.store
    }

    fn bucket(&self) -> &Bucket {
        &self.runtime.bucket
    }

    async fn destinations(&self) -> Result<Destinations, StoreError> {
        let all = self.store().catalog.destinations().await?.into_iter();
        Ok(all
            .map(|destination| (destination.id, destination))
            .collect())
    }

    async fn attempts(
        &self,
        filter: &Filter,
        last: usize,
        after: Option<u64>,
        follow: bool,
        out: &Out,
    ) -> Result<(), Stop> {
        if !filter.wants_bucket(self.bucket().name.as_str()) {
            if follow {
                tokio::select! {
                    () = out.0.closed() => {}
                    () = self.runtime.stop().cancelled() => {}
                }
            }
            return Ok(());
        }
        let mut place = self.store().view.last_attempt().await?;
        let known = self.destinations().await?;
        if let Some(after) = after {
            // After a salvage the last place may be lower.
            place = place.min(after);
        } else {
            let newest = self.newest_attempts(filter, last, &known).await?;
            for logged in newest.iter().rev().filter(|logged| logged.place <= place) {
                out.line(Line::Attempt(self.attempt_line(logged, &known)))
                    .await?;
            }
        }
        out.line(Line::Reached { place }).await?;
        let mut refuses = self.runtime.refuses();
        let why = refuses.borrow_and_update().clone();
        if why.is_some() {
            out.line(refusal(why.as_deref())).await?;
        }
        if follow {
            self.follow(filter, place, known, refuses, out).await
        } else {
            Ok(())
        }
    }

    /// Tells the attempts that come after a place, for ever, and whether new events are refused. It
    /// reads the log from where it was, so a slow reader misses nothing.
    async fn follow(
        &self,
        filter: &Filter,
        mut place: u64,
        mut known: Destinations,
        mut refuses: watch::Receiver<Option<String>>,
        out: &Out,
    ) -> Result<(), Stop> {
        let mut applied = self.store().view.applied();
        loop {
            applied.mark_unchanged();
            let new = self.store().view.attempts_after(place, CHUNK).await?;
            let mut told = false;
            for logged in &new {
                place = logged.place;
                if !known.contains_key(&logged.attempt.destination) {
                    known = self.destinations().await?;
                }
                let attempt = &logged.attempt;
                if filter.wants_attempt(attempt, known.get(&attempt.destination))
                    && self.wants_kind(filter, attempt.key.seq).await?
                {
                    out.line(Line::Attempt(self.attempt_line(logged, &known)))
                        .await?;
                    told = true;
                }
            }
            if told {
                out.line(Line::Reached { place }).await?;
            }
            if new.is_empty() {
                tokio::select! {
                    changed = applied.changed() => changed.map_err(|_| Stop::Gone)?,
                    changed = refuses.changed() => {
                        changed.map_err(|_| Stop::Gone)?;
                        let why = refuses.borrow_and_update().clone();
                        out.line(refusal(why.as_deref())).await?;
                    }
                    () = out.0.closed() => return Err(Stop::Gone),
                    () = self.runtime.stop().cancelled() => return Ok(()),
                }
            }
        }
    }

    fn attempt_line(&self, logged: &LoggedAttempt, known: &Destinations) -> AttemptLine {
        let attempt = &logged.attempt;
        let destination = known.get(&attempt.destination);
        let title = destination.map_or_else(|| attempt.target.clone(), Destination::title);
        let mut line = AttemptLine::new(attempt, self.bucket().name.as_str(), &title);
        if line.target.is_empty() {
            let target = destination.map(|destination| destination.target.to_string());
            line.target = target.unwrap_or_else(|| attempt.url.clone());
        }
        line
    }

    async fn events(&self, filter: &Filter, last: usize, out: &Out) -> Result<(), Stop> {
        let known = self.destinations().await?;
        let judge = match filter.target {
            Some(_) => Judge::Delivery,
            None => Judge::Event,
        };
        let mut matches = Matches::new(self, filter, Begin::Newest, judge);
        let mut lines = Vec::new();
        while lines.len() < last {
            let Some(some) = matches.some(&known).await? else {
                break;
            };
            lines.extend(some.into_iter().map(|matched| (matched.seq, matched.line)));
            if out.0.is_closed() {
                return Err(Stop::Gone);
            }
            // Many events take long to read: the tunnel and the deliveries get their turn.
            tokio::task::yield_now().await;
        }
        lines.truncate(last);
        for (seq, mut line) in lines.into_iter().rev() {
            self.describe(&mut line, seq).await?;
            out.line(Line::Event(line)).await?;
        }
        Ok(())
    }

    /// The deliveries of an event as they are shown, each with its target.
    async fn shown_deliveries(
        &self,
        seq: Seq,
        known: &Destinations,
    ) -> Result<Vec<Placed>, StoreError> {
        let deliveries = self
            .store()
            .view
            .deliveries_of(self.bucket().id, seq)
            .await?;
        let now = self.runtime.clock.now();
        let mut heads: HashMap<DestinationId, Timestamp> = HashMap::new();
        for delivery in deliveries.iter().filter(|d| !d.state.is_finished()) {
            if let Some(destination) = known.get(&delivery.destination)
                && !heads.contains_key(&destination.id)
                && next::order(&self.runtime, destination) == Order::Fifo
            {
                let next = next::next(&self.runtime, destination).await?;
                heads.extend(next.head_at.map(|at| (destination.id, at)));
            }
        }
        let shown = |mut delivery: Delivery| {
            let to = known.get(&delivery.destination);
            let back_since = to.and_then(|to| to.back_since);
            let waiting = delivery.waiting();
            let mut next_attempt_at = waiting.map(|waiting| waiting.due_at(back_since, now));
            // What waits for an endpoint that is offline has failed so far, tried or not.
            if !delivery.state.is_finished() && self.runtime.is_offline(delivery.destination) {
                delivery.state = State::Stalled;
                // It is probed for several times a second, and tried at once when it is back.
                next_attempt_at = next_attempt_at.max(Some(now));
            }
            let head_at = heads.get(&delivery.destination);
            if let Some(head_at) = head_at.filter(|_| !delivery.replay) {
                next_attempt_at = next_attempt_at.map(|at| at.max(*head_at));
            }
            Placed {
                destination: to.map(Destination::title).unwrap_or_default(),
                target: to.map(|to| to.target.to_string()).unwrap_or_default(),
                next_attempt_at,
                delivery,
            }
        };
        Ok(deliveries.into_iter().map(shown).collect())
    }

    async fn find(&self, text: &str) -> Result<(Seq, Event), Stop> {
        let id: EventId = text.parse().map_err(|e| Stop::not_found(format!("{e}")))?;
        let unknown = || Stop::not_found(format!("there is no event {id}"));
        let (_, seq) = self
            .store()
            .journal
            .find_event(id)
            .await?
            .ok_or_else(unknown)?;
        let event = self
            .store()
            .journal
            .event_at(self.bucket(), seq)
            .await?
            .ok_or_else(unknown)?;
        Ok((seq, event))
    }

    async fn show(&self, text: &str, out: &Out) -> Result<(), Stop> {
        let (seq, event) = self.find(text).await?;
        let known = self.destinations().await?;
        let mut line = EventLine::new(&event, &self.shown_deliveries(seq, &known).await?);
        self.describe(&mut line, seq).await?;
        out.line(Line::Event(line)).await?;
        for logged in self.attempts_at(seq).await?.iter().rev() {
            let line = self.attempt_line(logged, &known);
            let line = line.with_answer(&logged.attempt);
            out.line(Line::Attempt(line)).await?;
        }
        out.line(Line::Content(ContentLine::new(&event))).await?;
        out.bytes(event.request.body).await
    }

    async fn status(&self, out: &Out) -> Result<(), Stop> {
        let store = self.store();
        let removals = store.view.removals(self.bucket().id).await?;
        let mut line = StatusLine {
            bucket: self.bucket().name.to_string(),
            name: store
                .catalog
                .note("subscription")
                .await?
                .unwrap_or_default(),
            forwarder: store.catalog.note("forwarder").await?.unwrap_or_default(),
            forwarder_store: store
                .journal
                .source(self.bucket().id)
                .await?
                .map(|source| source.forwarder),
            url: store.catalog.note("input").await?,
            pid: self.runs.then(std::process::id),
            link: self.link_state(),
            link_error: self.runtime.down().filter(|_| self.runs),
            targets: Vec::new(),
            queued: 0,
            stalled: 0,
            sent: 0,
            dead: 0,
            quarantined: store.view.quarantined().await?.len() as u64,
            oldest_waiting_at: store
                .view
                .oldest_waiting(self.bucket().id)
                .await?
                .map(|at| at.to_string()),
            next_attempt_at: None,
            disk_bytes: disk_used(&self.dir)?,
            stored_bytes: store.view.size(),
            paused: self.runtime.is_paused(),
            max_disk: store.journal.bound().map(|bound| bound.bytes),
            incidents: incidents(store).await?,
            refuses: self.runtime.refuses().borrow().clone(),
            removed: RemovedStatus {
                events: removals.events,
                bodies: removals.bodies,
                sent: removals.sent,
                dead: removals.dead,
            },
        };
        let mut next: Vec<Timestamp> = Vec::new();
        for destination in store.catalog.destinations().await? {
            let id = destination.id;
            let counts = store.view.counts(id).await?;
            let offline = self.runtime.is_offline(id);
            let soonest = offline.then(|| self.runtime.clock.now());
            let ahead = next::next(&self.runtime, &destination).await?;
            let due = ahead.at.filter(|_| self.runtime.serves(id) || !self.runs);
            next.extend(due.map(|at| soonest.map_or(at, |now| at.max(now))));
            line.queued += if offline { 0 } else { counts.queued };
            line.stalled += counts.stalled + if offline { counts.queued } else { 0 };
            line.sent += counts.sent;
            line.dead += counts.dead;
            line.targets
                .extend(self.target_status(&destination, &counts, &ahead).await?);
        }
        line.next_attempt_at = next.into_iter().min().map(|at| at.to_string());
        out.line(Line::Status(line)).await
    }

    /// How a destination stands; nothing of one that events do not go to, unless something is queued for it.
    async fn target_status(
        &self,
        destination: &Destination,
        counts: &StateCounts,
        next: &Next,
    ) -> Result<Option<TargetStatus>, StoreError> {
        let (id, waiting) = (destination.id, counts.queued + counts.stalled);
        let is_shown = match destination.kind {
            Kind::Lasting { .. } => true,
            Kind::OneOff | Kind::Removed { .. } => waiting > 0,
        };
        if !is_shown {
            return Ok(None);
        }
        Ok(Some(TargetStatus {
            destination: destination.title(),
            target: destination.target.to_string(),
            one_off: destination.kind == Kind::OneOff,
            served: self.runtime.serves(id),
            paused_at: destination.paused_at.map(|at| at.to_string()),
            endpoint: self.runtime.endpoint(id),
            waiting,
            head: self.head_line(next).await?,
        }))
    }

    async fn head_line(&self, next: &Next) -> Result<Option<HeadLine>, StoreError> {
        let Some(head) = next.head else {
            return Ok(None);
        };
        let delivery = self.store().journal.delivery(head.key).await?;
        Ok(delivery.map(|delivery| HeadLine {
            event: delivery.event.to_string(),
            state: delivery.state,
            attempts: delivery.attempts,
            next_attempt_at: next.head_at.map(|at| at.to_string()),
        }))
    }

    fn link_state(&self) -> LinkState {
        match (self.runs, self.runtime.down()) {
            (false, _) => LinkState::Stopped,
            (true, None) => LinkState::Connected,
            (true, Some(_)) => LinkState::Disconnected,
        }
    }
}
