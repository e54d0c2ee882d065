//! What a person does to events: delivering them again, and giving them up. It must not change what was
//! recorded before.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::time::{Instant, timeout};
use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{Asked, Attempt, DeadReason, Delivery, DeliveryKey, DestinationId};
use whrelay_core::destination::{Destination, Kind, Spec};
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::pace::Rate;
use whrelay_core::target::Target;
use whrelay_core::time::Timestamp;
use whrelay_store::{Again, Begin, NewDelivery, StoreError};

use super::destinations::unknown;
use super::matches::{Judge, Matched, Matches};
use super::{CHUNK, Destinations, Local, Out, Stop};
use crate::control::{Filter, ReplayHow, Until, Which};
use crate::lines::{DiscardLine, EventLine, Line, Placed, ReplayLine};
use crate::{configured, runtime};

/// How often what is waited for is looked up, beside what the log tells of it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a person waits for a store that is being reopened.
const OPENS_WITHIN: Duration = Duration::from_secs(5);

/// Why an event that a filter wants is not delivered again.
const BODILESS: &str = "retention has removed their bodies";
const NOWHERE: &str = "their destinations are not configured: `--to` sends them to another one";

/// An event to deliver again.
struct Turn {
    seq: Seq,
    event: EventId,
    destination: DestinationId,
}

/// Where replays go that name a URL or a destination.
enum To {
    Lasting(DestinationId),
    OneOff(Target),
}

impl To {
    /// The destination; of a one-off there is none yet.
    fn id(&self) -> DestinationId {
        match self {
            Self::Lasting(id) => *id,
            Self::OneOff(_) => DestinationId(0),
        }
    }
}

impl Local {
    pub(super) async fn replay(
        &self,
        which: &Which,
        how: &ReplayHow,
        out: &Out,
    ) -> Result<(), Stop> {
        let rate = match how.rate.as_deref().map(str::parse::<Rate>) {
            Some(Err(error)) => return Err(Stop::failed(error.to_string())),
            Some(Ok(rate)) => Some(rate),
            None => None,
        };
        let to = match &how.to {
            Some(to) => Some(self.aim(to).await?),
            None => None,
        };
        let mut turns = self.choose(which, how, to.as_ref(), out).await?;
        if how.dry_run {
            return Ok(());
        }
        let to = match to {
            Some(To::OneOff(target)) => {
                let options = &self.runtime.replay_options;
                let one_off = configured::one_off(&self.runtime, &target, options).await?;
                turns
                    .iter_mut()
                    .for_each(|turn| turn.destination = one_off.id);
                Some(one_off.id)
            }
            Some(To::Lasting(_)) | None => None,
        };
        if how.shuffle {
            turns.shuffle(&mut rand::rng());
        }
        let pause = rate.map_or(Duration::ZERO, Rate::interval);
        let whole = pause.saturating_mul(u32::try_from(turns.len()).unwrap_or(u32::MAX));
        if whole > limits::MAX_RETRY_AFTER {
            let hours = whole.as_secs() / 3600;
            let why = format!("at that rate the last would begin after {hours} h: at most 24 h");
            return Err(Stop::failed(why));
        }
        let (mut reached, known) = (
            self.store().view.last_attempt().await?,
            self.destinations().await?,
        );
        let mut begun = HashSet::new();
        let began = self.runtime.clock.now();
        let mut created_at = began;
        let mut turns = turns.into_iter().zip(0..).peekable();
        while turns.peek().is_some() {
            let again = turns.by_ref().take(CHUNK).map(|(turn, n)| {
                let due_at = began.after(pause.saturating_mul(n));
                // One after the other, since of two that are due at once the older event is first.
                let next = created_at.after(Duration::from_micros(1));
                created_at = next.max(self.runtime.clock.now());
                self.again(&turn, &known, created_at, due_at)
            });
            let again: Vec<_> = again.collect();
            let begin = |again| self.store().journal.replay(again);
            for delivery in once_open(again, begin).await? {
                out.line(replay_line(&delivery, &known)).await?;
                begun.insert(delivery.key);
            }
        }
        if !self.runs && to.is_none() && !begun.is_empty() {
            let hint = "no agent runs: the next `whrelay listen` delivers it";
            return out.line(Line::warning(hint)).await;
        }
        if how.until != Until::Begun {
            self.wait_for(begun, how.until, &mut reached, &known, out)
                .await?;
        }
        Ok(())
    }

    /// Where a replay goes that names a URL or a destination.
    async fn aim(&self, text: &str) -> Result<To, Stop> {
        let spec = text
            .parse::<Spec>()
            .map_err(|error| Stop::failed(error.to_string()))?;
        let mut all = self.store().catalog.destinations().await?.into_iter();
        match spec {
            Spec::Known(name) => {
                let found = all.find(|known| known.name() == Some(&name));
                let id = found.ok_or_else(|| unknown(&name))?.id;
                if self.runs && !self.runtime.serves(id) {
                    let why = format!("the `listen` that runs does not deliver to {name}");
                    return Err(Stop::failed(why));
                }
                Ok(To::Lasting(id))
            }
            Spec::Unnamed(target) => {
                let there = |known: &Destination| {
                    known.name().is_some()
                        && known.target == target
                        && self.runtime.serves(known.id)
                };
                let found = all.find(there).map(|known| To::Lasting(known.id));
                Ok(found.unwrap_or(To::OneOff(target)))
            }
            Spec::Named(..) => Err(Stop::failed(
                "a replay goes to a URL, or to the name of a destination".into(),
            )),
        }
    }

    /// The replays that are asked for, oldest event first: each event, to each place, as often as asked.
    /// For a dry run their events are told instead.
    async fn choose(
        &self,
        which: &Which,
        how: &ReplayHow,
        to: Option<&To>,
        out: &Out,
    ) -> Result<Vec<Turn>, Stop> {
        let known = self.destinations().await?;
        let mut turns: Vec<Turn> = Vec::new();
        let mut add = |seq, event: &Event, all: Vec<DestinationId>| {
            for _ in 0..how.times {
                turns.extend(all.iter().map(|destination| Turn {
                    seq,
                    event: event.id,
                    destination: *destination,
                }));
            }
        };
        match which {
            Which::Ids(ids) => {
                self.find_all(ids).await?;
                for id in ids {
                    let (seq, event) = self.find(id).await?;
                    if event.removed_body.is_some() {
                        let why = format!("retention has removed the body of {id} (--max-disk)");
                        return Err(Stop::failed(why));
                    }
                    if how.dry_run {
                        let line =
                            EventLine::new(&event, &self.shown_deliveries(seq, &known).await?);
                        out.line(Line::Event(line)).await?;
                    }
                    let all = match to {
                        Some(to) => vec![to.id()],
                        None => self.destinations_of(seq, &event, &known).await?,
                    };
                    if all.is_empty() {
                        return Err(Stop::failed(format!("no destination for {id}: use --to")));
                    }
                    add(seq, &event, all);
                }
            }
            Which::Filter(filter) => {
                let mut matches = Matches::new(self, filter, Begin::Oldest, Judge::Delivery);
                let (mut bodiless, mut nowhere) = (0, 0);
                while let Some(some) = matches.some(&known).await? {
                    for matched in some {
                        if matched.event.removed_body.is_some() {
                            bodiless += 1;
                            continue;
                        }
                        let all = match to {
                            Some(to) => vec![to.id()],
                            None => self.destinations_again(&matched, filter, &known),
                        };
                        if all.is_empty() {
                            nowhere += 1;
                        } else if how.dry_run {
                            out.line(Line::Event(matched.line)).await?;
                        } else {
                            add(matched.seq, &matched.event, all);
                        }
                    }
                    tokio::task::yield_now().await;
                }
                for (count, why) in [(bodiless, BODILESS), (nowhere, NOWHERE)] {
                    if count > 0 {
                        let why = format!("{count} events are skipped: {why}");
                        out.line(Line::warning(why)).await?;
                    }
                }
            }
        }
        Ok(turns)
    }

    /// Sees that all are there, before anything is done to any.
    async fn find_all(&self, ids: &[String]) -> Result<(), Stop> {
        for id in ids {
            self.find(id).await?;
        }
        Ok(())
    }

    /// Where an event goes again: to the destinations that it goes to now, or where no `listen` runs, to those
    /// that it went to before.
    async fn destinations_of(
        &self,
        seq: Seq,
        event: &Event,
        known: &Destinations,
    ) -> Result<Vec<DestinationId>, StoreError> {
        if self.runs {
            return Ok(runtime::taking(&self.runtime.routes(), &event.request.tail));
        }
        let before = self
            .store()
            .view
            .deliveries_of(self.bucket().id, seq)
            .await?;
        Ok(self.deliverable(before.iter(), known))
    }

    /// Where an event goes again that was found by a filter: to the destinations of the deliveries that the
    /// filter is about.
    fn destinations_again(
        &self,
        matched: &Matched,
        filter: &Filter,
        known: &Destinations,
    ) -> Vec<DestinationId> {
        self.deliverable(matched.current(filter, known).iter(), known)
    }

    /// The destinations of deliveries, each once, as far as something can be delivered to them again.
    fn deliverable<'a>(
        &self,
        deliveries: impl Iterator<Item = &'a Delivery>,
        known: &Destinations,
    ) -> Vec<DestinationId> {
        let all: BTreeSet<_> = deliveries.map(|delivery| delivery.destination).collect();
        let can = |id: &DestinationId| {
            let is_lasting = known.get(id).is_some_and(|known| known.name().is_some());
            is_lasting && (!self.runs || self.runtime.serves(*id))
        };
        all.into_iter().filter(can).collect()
    }

    fn again(
        &self,
        turn: &Turn,
        known: &Destinations,
        created_at: Timestamp,
        due_at: Timestamp,
    ) -> Again {
        let destination = known.get(&turn.destination);
        let options = destination.map(|destination| destination.options.options());
        let policy = options.unwrap_or_default().policy;
        let due_at = due_at.max(created_at);
        let new = runtime::new_delivery(
            turn.destination,
            created_at,
            policy
                .deadline_of(created_at)
                .after(due_at.since(created_at)),
        );
        Again {
            bucket: self.bucket().id,
            seq: turn.seq,
            event: turn.event,
            new: NewDelivery {
                due_at,
                replay: true,
                one_off: destination.is_some_and(|to| to.kind == Kind::OneOff),
                ..new
            },
        }
    }

    /// Tries what is queued of an event now. Where nothing is, it is delivered again.
    pub(super) async fn retry(&self, text: &str, out: &Out) -> Result<(), Stop> {
        let (seq, _) = self.find(text).await?;
        let known = self.destinations().await?;
        let waits = |delivery: &Delivery| {
            !delivery.state.is_finished() && self.runtime.serves(delivery.destination)
        };
        let all = self
            .store()
            .view
            .deliveries_of(self.bucket().id, seq)
            .await?
            .into_iter();
        let queued: Vec<_> = all.filter(waits).collect();
        if queued.is_empty() {
            let how = ReplayHow {
                times: 1,
                until: Until::Tried,
                ..ReplayHow::default()
            };
            return self
                .replay(&Which::Ids(vec![text.to_owned()]), &how, out)
                .await;
        }
        let keys: Vec<_> = queued.iter().map(|delivery| delivery.key).collect();
        let hurried = once_open(keys, |keys| self.store().journal.retry_now(keys)).await?;
        for delivery in queued
            .iter()
            .filter(|delivery| hurried.contains(&delivery.key))
        {
            out.line(replay_line(delivery, &known)).await?;
        }
        Ok(())
    }

    /// Tells the attempts of some deliveries until all have come so far, and where each stands then.
    async fn wait_for(
        &self,
        mut waiting: HashSet<DeliveryKey>,
        until: Until,
        reached: &mut u64,
        known: &Destinations,
        out: &Out,
    ) -> Result<(), Stop> {
        let mut applied = self.store().view.applied();
        let mut look_at = Instant::now();
        while !waiting.is_empty() {
            applied.mark_unchanged();
            let new = self.store().view.attempts_after(*reached, CHUNK).await?;
            let mut ended: Vec<DeliveryKey> = Vec::new();
            for logged in &new {
                *reached = logged.place;
                if waiting.contains(&logged.attempt.key) {
                    out.line(Line::Attempt(self.attempt_line(logged, known)))
                        .await?;
                    ended.push(logged.attempt.key);
                }
            }
            // What is set aside because it is damaged has no attempt to tell of it.
            if Instant::now() >= look_at {
                ended.extend(&waiting);
                look_at = Instant::now() + LOOK_EVERY;
            }
            for key in ended {
                let all = self.store().view.deliveries_of(key.bucket, key.seq);
                let delivery = all.await?.into_iter().find(|one| one.key == key);
                if delivery.as_ref().is_some_and(|d| !self.has_come(d, until)) {
                    continue;
                }
                if waiting.remove(&key)
                    && let Some(delivery) = delivery
                {
                    out.line(replay_line(&delivery, known)).await?;
                }
            }
            if new.is_empty() && !waiting.is_empty() {
                tokio::select! {
                    // A look at the store, at latest then.
                    changed = timeout(LOOK_EVERY, applied.changed()) => {
                        changed.unwrap_or(Ok(())).map_err(|_| Stop::Gone)?;
                    }
                    () = out.0.closed() => return Err(Stop::Gone),
                    () = self.runtime.stop().cancelled() => return Ok(()),
                }
            }
        }
        Ok(())
    }

    fn has_come(&self, delivery: &Delivery, until: Until) -> bool {
        let ended = delivery.state.is_finished();
        match until {
            Until::Begun => true,
            Until::Tried => {
                ended || delivery.attempts > 0 || self.runtime.is_offline(delivery.destination)
            }
            Until::Ended => ended,
        }
    }

    /// Gives up what waits of some events.
    pub(super) async fn discard(
        &self,
        which: &Which,
        dry_run: bool,
        out: &Out,
    ) -> Result<(), Stop> {
        let known = self.destinations().await?;
        match which {
            Which::Ids(ids) => {
                self.find_all(ids).await?;
                for id in ids {
                    let (seq, event) = self.find(id).await?;
                    let deliveries = self.shown_deliveries(seq, &known).await?;
                    if dry_run {
                        let line = EventLine::new(&event, &deliveries);
                        out.line(Line::Event(line)).await?;
                        continue;
                    }
                    let given_up = self.given_up(&event, deliveries);
                    self.give_up(given_up, &known, out).await?;
                }
            }
            Which::Filter(filter) => {
                let mut matches = Matches::new(self, filter, Begin::Oldest, Judge::Delivery);
                while let Some(some) = matches.some(&known).await? {
                    let mut given_up = Vec::new();
                    for mut matched in some {
                        matched.deliveries.retain(|Placed { delivery, .. }| {
                            let to = known.get(&delivery.destination);
                            !delivery.state.is_finished() && filter.wants_delivery(delivery, to)
                        });
                        if dry_run && !matched.deliveries.is_empty() {
                            out.line(Line::Event(matched.line)).await?;
                            continue;
                        }
                        given_up.extend(self.given_up(&matched.event, matched.deliveries));
                    }
                    self.give_up(given_up, &known, out).await?;
                }
            }
        }
        Ok(())
    }

    /// What the log will say of an event's deliveries that wait.
    fn given_up(&self, event: &Event, deliveries: Vec<Placed>) -> Vec<Attempt> {
        let now = self.runtime.clock.now();
        let waits = |placed: &Placed| !placed.delivery.state.is_finished();
        let attempt = |placed: Placed| {
            let Placed {
                delivery, target, ..
            } = placed;
            let url = target.parse::<Target>().ok().and_then(|target| {
                let request = &event.request;
                target.url_for(&request.tail, request.query.as_deref()).ok()
            });
            let asked = Asked {
                url: url.unwrap_or_else(|| target.clone()),
                target,
                method: event.request.method.clone(),
            };
            let why = "discarded by you";
            Attempt::given_up(&delivery, asked, now, DeadReason::Discarded, why)
        };
        deliveries.into_iter().filter(waits).map(attempt).collect()
    }

    async fn give_up(
        &self,
        attempts: Vec<Attempt>,
        known: &Destinations,
        out: &Out,
    ) -> Result<(), Stop> {
        let told: HashMap<_, _> = attempts
            .iter()
            .map(|attempt| {
                let line = DiscardLine {
                    event: attempt.event.to_string(),
                    delivery: attempt.delivery.to_string(),
                    destination: title(known, attempt.destination),
                    target: attempt.target.clone(),
                };
                (attempt.key, line)
            })
            .collect();
        for key in once_open(attempts, |attempts| self.store().journal.give_up(attempts)).await? {
            if let Some(line) = told.get(&key) {
                out.line(Line::Discard(line.clone())).await?;
            }
        }
        Ok(())
    }
}

/// Writes again, a moment later, to a store that is being reopened.
async fn once_open<A: Clone, T, F>(all: A, write: impl Fn(A) -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let until = Instant::now() + OPENS_WITHIN;
    loop {
        match write(all.clone()).await {
            // The first to find the disk full makes room for those after it.
            Err(StoreError::Full | StoreError::Reopening) if Instant::now() < until => {
                tokio::time::sleep(limits::REOPEN_EVERY).await;
            }
            settled => return settled,
        }
    }
}

fn replay_line(delivery: &Delivery, known: &Destinations) -> Line {
    let to = known.get(&delivery.destination);
    Line::Replay(ReplayLine {
        event: delivery.event.to_string(),
        delivery: delivery.id.to_string(),
        destination: title(known, delivery.destination),
        target: to.map(|to| to.target.to_string()).unwrap_or_default(),
        state: delivery.state,
    })
}

fn title(known: &Destinations, id: DestinationId) -> String {
    known.get(&id).map(Destination::title).unwrap_or_default()
}
