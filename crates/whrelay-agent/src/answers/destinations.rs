//! Destinations: shown, changed and removed by name.

use std::sync::Arc;

use whrelay_core::delivery::DestinationId;
use whrelay_core::destination::{self, Destination, DestinationName, Kind, OptionKey, OptionSet};
use whrelay_core::target::Target;
use whrelay_core::time::Timestamp;
use whrelay_store::{Moved, StoreError};

use super::{Local, Out, Stop, next};
use crate::configured::{moves, point_to, queued_for, waiting};
use crate::control::{Changes, Filter, Queued, Which};
use crate::lines::{DestinationLine, DestinationRemovedLine, Line, OptionsLine};

/// Nobody knows a destination of this name.
pub(super) fn unknown(name: &DestinationName) -> Stop {
    Stop::not_found(format!("there is no destination `{name}`"))
}

impl Local {
    pub(super) async fn list_destinations(&self, out: &Out) -> Result<(), Stop> {
        for destination in self.store().catalog.destinations().await? {
            if let Some(name) = destination.name() {
                let line = self.destination_line(name, &destination).await?;
                out.line(Line::Destination(line)).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn set_destination(
        &self,
        name: &str,
        changes: &Changes,
        out: &Out,
    ) -> Result<(), Stop> {
        let destination = self.named(name).await?;
        let change = Change::read(changes, self.runtime.clock.now()).map_err(Stop::failed)?;
        let queued = waiting(self.store(), &destination).await?;
        let is_moved = change
            .target
            .as_ref()
            .is_some_and(|to| *to != destination.target);
        let _changing = self.runtime.changing.lock().await;
        let changed = self.change(destination.id, change).await?;
        if is_moved && queued > 0 {
            let (from, to) = (&destination.target, &changed.target);
            let why = moves(name, queued, from, to);
            out.line(Line::warning(why)).await?;
        }
        if let Some(name) = changed.name() {
            let line = self.destination_line(name, &changed).await?;
            out.line(Line::Destination(line)).await?;
        }
        Ok(())
    }

    /// Pauses every destination that is delivered to, or resumes them.
    pub(super) async fn pause_all(&self, paused: bool, out: &Out) -> Result<(), Stop> {
        let now = self.runtime.clock.now();
        for id in self.runtime.served() {
            let change = Change {
                now,
                paused_at: Some(paused.then_some(now)),
                ..Change::default()
            };
            self.change(id, change).await?;
        }
        self.status(out).await
    }

    pub(super) async fn remove_destination(
        &self,
        name: &str,
        queue: &Queued,
        out: &Out,
    ) -> Result<(), Stop> {
        let destination = self.named(name).await?;
        let to = match queue {
            Queued::MoveTo(to) => Some(self.named(to).await?),
            Queued::None | Queued::Discard => None,
        };
        let _changing = self.runtime.changing.lock().await;
        if self.runtime.serves(destination.id) {
            let why = format!("a `listen` delivers to {name}: stop it, or start it without {name}");
            return Err(Stop::failed(why));
        }
        if to.as_ref().is_some_and(|to| to.id == destination.id) {
            return Err(Stop::failed(format!("{name} cannot be moved to itself")));
        }
        let queued = waiting(self.store(), &destination).await?;
        let moved_to = to.as_ref().map(Destination::title);
        let Moved { moved, discarded } = match (queue, to) {
            (_, Some(to)) => {
                let now = self.runtime.clock.now();
                let moving = self
                    .store()
                    .journal
                    .move_deliveries(destination.id, to.id, now);
                moving.await?
            }
            (Queued::Discard, None) if queued > 0 => {
                let filter = Filter {
                    target: Some(name.to_owned()),
                    ..Filter::default()
                };
                self.discard(&Which::Filter(filter), false, out).await?;
                let discarded = queued - waiting(self.store(), &destination).await?;
                Moved {
                    moved: 0,
                    discarded,
                }
            }
            (_, None) if queued > 0 => return Err(has_queue(name, queued)),
            (_, None) => Moved::default(),
        };
        let left = waiting(self.store(), &destination).await?;
        if left > 0 {
            return Err(has_queue(name, left));
        }
        let change = |stored: &mut Destination| {
            if let Kind::Lasting { name, .. } = &stored.kind {
                stored.kind = Kind::Removed { name: name.clone() };
            }
        };
        self.store()
            .catalog
            .change_destination(destination.id, change)
            .await?;
        let removed = DestinationRemovedLine {
            name: name.to_owned(),
            bucket: self.bucket().name.to_string(),
            moved_to,
            moved,
            discarded,
        };
        out.line(Line::DestinationRemoved(removed)).await
    }

    async fn change(&self, id: DestinationId, change: Change) -> Result<Destination, Stop> {
        let changed = self
            .store()
            .catalog
            .change_destination(id, |stored| change.apply(stored));
        let damaged = || StoreError::Damaged(format!("destination {}", id.0));
        let changed = changed.await?.ok_or_else(damaged)?;
        Arc::clone(&self.runtime).refresh(&changed).await?;
        Ok(changed)
    }

    async fn named(&self, text: &str) -> Result<Destination, Stop> {
        let name: DestinationName = text.parse().map_err(|e| Stop::failed(format!("{e}")))?;
        let all = self.store().catalog.destinations().await?.into_iter();
        let mut found = all.filter(|known| known.name() == Some(&name));
        found.next().ok_or_else(|| unknown(&name))
    }

    async fn destination_line(
        &self,
        name: &DestinationName,
        destination: &Destination,
    ) -> Result<DestinationLine, StoreError> {
        let id = destination.id;
        let counts = self.store().view.counts(id).await?;
        let next = next::next(&self.runtime, destination).await?;
        let routes = self.runtime.routes().into_iter();
        let paths = routes
            .filter(|(_, to)| *to == id)
            .map(|(prefix, _)| prefix.to_string());
        let set = OptionKey::ALL
            .into_iter()
            .filter(|key| destination.options.get(*key).is_some());
        Ok(DestinationLine {
            name: name.to_string(),
            bucket: self.bucket().name.to_string(),
            subscription: self
                .store()
                .catalog
                .note("subscription")
                .await?
                .unwrap_or_default(),
            forwarder: self
                .store()
                .catalog
                .note("forwarder")
                .await?
                .unwrap_or_default(),
            target: destination.target.to_string(),
            named: matches!(destination.kind, Kind::Lasting { is_named: true, .. }),
            served: self.runtime.serves(id),
            paths: paths.collect(),
            paused_at: destination.paused_at.map(|at| at.to_string()),
            endpoint: self.runtime.endpoint(id),
            offline_since: destination.offline_since.map(|at| at.to_string()),
            queued: counts.queued,
            stalled: counts.stalled,
            sent: counts.sent,
            dead: counts.dead,
            next_attempt_at: next.at.map(|at| at.to_string()),
            options: OptionsLine::new(&destination.options.options()),
            set: set.map(|key| key.to_string()).collect(),
        })
    }
}

fn has_queue(name: &str, queued: u64) -> Stop {
    let queued = queued_for(queued, name);
    Stop::failed(format!(
        "{queued}: --move-to NAME lets another destination have the queue, --discard drops it"
    ))
}

/// What is to change of a destination, as it was read.
#[derive(Default)]
struct Change {
    /// When it was asked for.
    now: Timestamp,
    target: Option<Target>,
    set: OptionSet,
    reset: Vec<OptionKey>,
    paused_at: Option<Option<Timestamp>>,
}

impl Change {
    fn read(changes: &Changes, now: Timestamp) -> Result<Self, String> {
        let Changes {
            to,
            set,
            reset,
            paused,
        } = changes;
        let mut read = Self {
            now,
            paused_at: paused.map(|paused| paused.then_some(now)),
            ..Self::default()
        };
        if let Some(to) = to {
            read.target = Some(destination::url(to).map_err(|error| error.to_string())?);
        }
        for (key, text) in set {
            let key = key.parse().map_err(|error| format!("{error}"))?;
            read.set
                .set(key, text)
                .map_err(|error| format!("{key}: {error}"))?;
        }
        for key in reset {
            read.reset
                .push(key.parse().map_err(|error| format!("{error}"))?);
        }
        Ok(read)
    }

    fn apply(&self, stored: &mut Destination) {
        let Self {
            now,
            target,
            set,
            reset,
            paused_at,
        } = self;
        reset.iter().for_each(|key| stored.options.reset(*key));
        stored.options = set.over(&stored.options);
        if let Some(target) = target {
            point_to(stored, target, *now);
        }
        if let Some(paused_at) = paused_at {
            // One that is paused already stays so since then.
            stored.paused_at = paused_at.map(|now| stored.paused_at.unwrap_or(now));
        }
    }
}
