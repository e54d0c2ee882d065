//! What a person does to events: delivering them again, and giving them up. It must not change what was
//! recorded before.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::time::{Instant, timeout};
use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{
    Attempt, DeadReason, Delivery, DeliveryKey, DestinationId, State, current,
};
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::pace::Rate;
use whrelay_core::target::Target;
use whrelay_core::time::Timestamp;
use whrelay_store::{Again, Begin, NewDelivery, StoreError};

use super::matches::{Judge, Matched, Matches};
use super::{CHUNK, Local, Out, Stop, Targets};
use crate::control::{Filter, ReplayHow, Until, Which};
use crate::lanes;
use crate::lines::{DiscardLine, EventLine, Line, ReplayLine};

/// How often what is waited for is looked up, beside what the log tells of it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a person waits for a store that is being reopened.
const OPENS_WITHIN: Duration = Duration::from_secs(5);

/// Why an event that a filter wants is not delivered again.
const BODILESS: &str = "retention has removed their bodies";
const NOWHERE: &str = "their targets are none now, and those that are had them; --target names one of before, \
    --to another";

/// An event to deliver again.
struct Turn {
    seq: Seq,
    event: EventId,
    aim: Aim,
}

/// Where an event goes again, and in place of which of its deliveries to other destinations.
#[derive(Clone)]
struct Aim {
    destination: DestinationId,
    in_place_of: Vec<u32>,
    /// Whether it is none of the agent's targets, and has to be served first.
    by_name: bool,
}

impl Aim {
    fn of(destination: DestinationId) -> Self {
        Self {
            destination,
            in_place_of: Vec::new(),
            by_name: false,
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
        let to = match how.to.as_deref().map(str::parse::<Target>) {
            Some(Err(error)) => return Err(Stop::failed(error.to_string())),
            Some(Ok(target)) if !how.dry_run => Some(self.lanes.serve_for_replays(&target).await?),
            Some(Ok(_)) | None => None,
        };
        let mut turns = self.choose(which, how, to, out).await?;
        if how.dry_run {
            return Ok(());
        }
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
        let (mut reached, targets) = (self.store().last_attempt()?, self.targets()?);
        let mut begun = HashSet::new();
        let began = self.lanes.clock.now();
        let mut created_at = began;
        let mut turns = turns.into_iter().zip(0..).peekable();
        while turns.peek().is_some() {
            let again = turns.by_ref().take(CHUNK).map(|(turn, n)| {
                let due_at = began.after(pause.saturating_mul(n));
                // One after the other, since of two that are due at once the older event is first.
                let next = created_at.after(Duration::from_micros(1));
                created_at = next.max(self.lanes.clock.now());
                self.again(turn, created_at, due_at)
            });
            let again: Vec<_> = again.collect();
            let begin = |again| self.store().deliver_again(again);
            for delivery in once_open(again, begin).await? {
                out.line(replay_line(&delivery, &targets)).await?;
                begun.insert(delivery.key);
            }
        }
        if !self.runs && to.is_none() && !begun.is_empty() {
            let hint = "no agent runs: the next `whrelay listen` delivers it";
            return out.line(Line::warning(hint)).await;
        }
        if how.until != Until::Begun {
            self.wait_for(begun, how.until, &mut reached, &targets, out)
                .await?;
        }
        Ok(())
    }

    /// The replays that are asked for, oldest event first: each event, to each place, as often as asked.
    /// For a dry run their events are told instead.
    async fn choose(
        &self,
        which: &Which,
        how: &ReplayHow,
        to: Option<DestinationId>,
        out: &Out,
    ) -> Result<Vec<Turn>, Stop> {
        let targets = self.targets()?;
        let mut turns: Vec<Turn> = Vec::new();
        let mut add = |seq, event: &Event, aims: Vec<Aim>| {
            for _ in 0..how.times {
                turns.extend(aims.iter().map(|aim| Turn {
                    seq,
                    event: event.id,
                    aim: aim.clone(),
                }));
            }
        };
        match which {
            Which::Ids(ids) => {
                self.find_all(ids)?;
                for id in ids {
                    let (seq, event) = self.find(id)?;
                    if event.removed_body.is_some() {
                        let why = format!("retention has removed the body of {id} (--max-disk)");
                        return Err(Stop::failed(why));
                    }
                    if how.dry_run {
                        let line = EventLine::new(&event, &self.shown_deliveries(seq, &targets)?);
                        out.line(Line::Event(line)).await?;
                    }
                    let aims = match to {
                        Some(to) => vec![Aim::of(to)],
                        None => self.aims_of_named(seq, &event)?,
                    };
                    add(seq, &event, aims);
                }
            }
            Which::Filter(filter) => {
                let mut matches = Matches::new(self, filter, Begin::Oldest, Judge::Delivery);
                let (mut bodiless, mut nowhere) = (0, 0);
                while let Some(some) = matches.some(&targets)? {
                    for matched in some {
                        if matched.event.removed_body.is_some() {
                            bodiless += 1;
                            continue;
                        }
                        let aims = match to {
                            Some(to) => vec![Aim::of(to)],
                            None => self.aims_of(&matched, filter)?,
                        };
                        if aims.is_empty() && how.to.is_none() {
                            nowhere += 1;
                        } else if how.dry_run {
                            out.line(Line::Event(matched.line)).await?;
                        } else {
                            self.serve_named(&aims, &targets).await?;
                            add(matched.seq, &matched.event, aims);
                        }
                    }
                    tokio::task::yield_now().await;
                }
                for (count, why) in [(bodiless, BODILESS), (nowhere, NOWHERE)] {
                    if count > 0 {
                        let why = format!("{count} events are passed over: {why}");
                        out.line(Line::warning(why)).await?;
                    }
                }
            }
        }
        Ok(turns)
    }

    /// Sees that all are there, before anything is done to any.
    fn find_all(&self, ids: &[String]) -> Result<(), Stop> {
        ids.iter().try_for_each(|id| self.find(id).map(|_| ()))
    }

    /// Where a replay goes when nobody says: to the agent's targets that take it, or where it does not
    /// run, to where the event went before.
    fn destinations_of(&self, seq: Seq, event: &Event) -> Result<Vec<DestinationId>, StoreError> {
        if self.runs {
            return Ok(lanes::taking(&self.lanes.routes(), &event.request.tail));
        }
        let before = self.store().deliveries_of(self.bucket().id, seq)?;
        let mut before: Vec<_> = before.into_iter().map(|d| d.destination).collect();
        before.sort_unstable();
        before.dedup();
        Ok(before)
    }

    /// Where a named event goes again. What is dead at a target that is none now is replaced by what goes where
    /// the event has not been.
    fn aims_of_named(&self, seq: Seq, event: &Event) -> Result<Vec<Aim>, StoreError> {
        let all = self.destinations_of(seq, event)?;
        let deliveries = self.store().deliveries_of(self.bucket().id, seq)?;
        let lost = current(&deliveries).filter(|delivery| {
            delivery.state == State::Dead && !all.contains(&delivery.destination)
        });
        let lost: Vec<_> = lost.map(|delivery| delivery.key.ordinal).collect();
        let aim = |destination| Aim {
            destination,
            in_place_of: match went_to(&deliveries, destination) {
                true => Vec::new(),
                false => lost.clone(),
            },
            by_name: false,
        };
        Ok(all.into_iter().map(aim).collect())
    }

    /// Where an event goes again that was found by a filter: to where its deliveries are that the filter is
    /// about. In place of those whose targets are none now, it goes to the targets where it has not been; but what
    /// a person sent somewhere by name, or names in the filter, goes there again.
    fn aims_of(&self, matched: &Matched, filter: &Filter) -> Result<Vec<Aim>, StoreError> {
        let all = self.destinations_of(matched.seq, &matched.event)?;
        let (here, gone): (Vec<_>, Vec<_>) = matched
            .current(filter)
            .into_iter()
            .partition(|delivery| all.contains(&delivery.destination));
        let deliveries: Vec<_> = matched.deliveries.iter().map(|(d, _)| d.clone()).collect();
        let own = |destination| {
            let first = |d: &Delivery| d.destination == destination && !d.replay;
            deliveries.iter().any(first)
        };
        let (named, lost): (Vec<_>, Vec<_>) = gone.into_iter().partition(|delivery| {
            let by_name = delivery.in_place_of.is_empty() && !own(delivery.destination);
            by_name || filter.target.is_some()
        });
        let here = here
            .into_iter()
            .map(|delivery| (delivery.destination, false));
        let named = named
            .into_iter()
            .map(|delivery| (delivery.destination, true));
        let mut meant: Vec<_> = here.chain(named).collect();
        meant.sort_unstable();
        meant.dedup();
        let aim = |(destination, by_name)| Aim {
            by_name,
            ..Aim::of(destination)
        };
        let mut aims: Vec<_> = meant.into_iter().map(aim).collect();
        if !lost.is_empty() {
            let new = all.into_iter().filter(|to| !went_to(&deliveries, *to));
            let in_place_of: Vec<_> = lost.iter().map(|delivery| delivery.key.ordinal).collect();
            aims.extend(new.map(|destination| Aim {
                in_place_of: in_place_of.clone(),
                ..Aim::of(destination)
            }));
        }
        Ok(aims)
    }

    /// Sees that what goes to none of the agent's targets is delivered.
    async fn serve_named(&self, aims: &[Aim], targets: &Targets) -> Result<(), Stop> {
        for aim in aims.iter().filter(|aim| aim.by_name) {
            let target = targets.get(&aim.destination).map_or("", String::as_str);
            let target: Target = target
                .parse()
                .map_err(|error| Stop::failed(format!("{target}: {error}")))?;
            self.lanes.serve_for_replays(&target).await?;
        }
        Ok(())
    }

    fn again(&self, turn: Turn, created_at: Timestamp, due_at: Timestamp) -> Again {
        let Turn { seq, event, aim } = turn;
        let new = self.lanes.new_delivery(aim.destination, created_at);
        let new = NewDelivery {
            due_at: due_at.max(new.created_at),
            deadline_at: new.deadline_at.after(due_at.since(new.created_at)),
            replay: true,
            in_place_of: aim.in_place_of,
            ..new
        };
        Again {
            bucket: self.bucket().id,
            seq,
            event,
            new,
        }
    }

    /// Tells the attempts of some deliveries until all have come so far, and where each stands then.
    async fn wait_for(
        &self,
        mut waiting: HashSet<DeliveryKey>,
        until: Until,
        reached: &mut u64,
        targets: &Targets,
        out: &Out,
    ) -> Result<(), Stop> {
        let mut commits = self.store().commits();
        let mut look_at = Instant::now();
        while !waiting.is_empty() {
            commits.mark_unchanged();
            let new = self.store().attempts_after(*reached, CHUNK)?;
            let mut ended: Vec<DeliveryKey> = Vec::new();
            for logged in &new {
                *reached = logged.place;
                if waiting.contains(&logged.attempt.key) {
                    out.line(Line::Attempt(self.attempt_line(logged, targets)))
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
                let delivery = self.store().delivery(key)?;
                if delivery.as_ref().is_some_and(|d| !self.has_come(d, until)) {
                    continue;
                }
                if waiting.remove(&key)
                    && let Some(delivery) = delivery
                {
                    out.line(replay_line(&delivery, targets)).await?;
                }
            }
            if new.is_empty() && !waiting.is_empty() {
                tokio::select! {
                    // A look at the store, at latest then.
                    changed = timeout(LOOK_EVERY, commits.changed()) => {
                        changed.unwrap_or(Ok(())).map_err(|_| Stop::Gone)?;
                    }
                    () = out.0.closed() => return Err(Stop::Gone),
                    () = self.lanes.stop().cancelled() => return Ok(()),
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
                ended || delivery.attempts > 0 || self.lanes.is_offline(delivery.destination)
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
        let targets = self.targets()?;
        match which {
            Which::Ids(ids) => {
                self.find_all(ids)?;
                for id in ids {
                    let (seq, event) = self.find(id)?;
                    let deliveries = self.shown_deliveries(seq, &targets)?;
                    if dry_run {
                        let line = EventLine::new(&event, &deliveries);
                        out.line(Line::Event(line)).await?;
                        continue;
                    }
                    let given_up = self.given_up(&event, deliveries);
                    self.give_up(given_up, &targets, out).await?;
                }
            }
            Which::Filter(filter) => {
                let mut matches = Matches::new(self, filter, Begin::Oldest, Judge::Delivery);
                while let Some(some) = matches.some(&targets)? {
                    let mut given_up = Vec::new();
                    for mut matched in some {
                        matched.deliveries.retain(|(delivery, target)| {
                            !delivery.state.is_finished() && filter.wants_delivery(delivery, target)
                        });
                        if dry_run && !matched.deliveries.is_empty() {
                            out.line(Line::Event(matched.line)).await?;
                            continue;
                        }
                        given_up.extend(self.given_up(&matched.event, matched.deliveries));
                    }
                    self.give_up(given_up, &targets, out).await?;
                }
            }
        }
        Ok(())
    }

    /// What the log will say of an event's deliveries that wait.
    fn given_up(&self, event: &Event, deliveries: Vec<(Delivery, String)>) -> Vec<Attempt> {
        let now = self.lanes.clock.now();
        let waits = |(delivery, _): &(Delivery, String)| !delivery.state.is_finished();
        let attempt = |(delivery, target): (Delivery, String)| {
            let url = target.parse::<Target>().ok().and_then(|target| {
                let request = &event.request;
                target.url_for(&request.tail, request.query.as_deref()).ok()
            });
            let request = (url.unwrap_or(target), event.request.method.clone());
            let why = "discarded by you";
            Attempt::given_up(&delivery, request, now, DeadReason::Discarded, why)
        };
        deliveries.into_iter().filter(waits).map(attempt).collect()
    }

    async fn give_up(
        &self,
        attempts: Vec<Attempt>,
        targets: &Targets,
        out: &Out,
    ) -> Result<(), Stop> {
        let told: HashMap<_, _> = attempts
            .iter()
            .map(|attempt| {
                let line = DiscardLine {
                    event: attempt.event.to_string(),
                    delivery: attempt.delivery.to_string(),
                    target: super::name(targets, attempt).to_owned(),
                };
                (attempt.key, line)
            })
            .collect();
        for key in once_open(attempts, |attempts| self.store().give_up(attempts)).await? {
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

fn replay_line(delivery: &Delivery, targets: &Targets) -> Line {
    Line::Replay(ReplayLine {
        event: delivery.event.to_string(),
        delivery: delivery.id.to_string(),
        target: targets
            .get(&delivery.destination)
            .cloned()
            .unwrap_or_default(),
        state: delivery.state,
    })
}

/// Whether an event was ever on its way to a destination.
fn went_to(deliveries: &[Delivery], destination: DestinationId) -> bool {
    deliveries.iter().any(|d| d.destination == destination)
}
