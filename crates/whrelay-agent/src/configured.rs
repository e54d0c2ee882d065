//! Destinations as this run's arguments and files have them: stored, started, and what changed is said.

use std::sync::Arc;

use whrelay_core::bucket::BucketId;
use whrelay_core::destination::{
    Destination, EndpointState, Kind, OptionKey, OptionSet, Planned, Setup,
};
use whrelay_core::target::Target;
use whrelay_core::time::Timestamp;
use whrelay_store::{NewDestination, Store, StoreError, persist};

use crate::error::AgentError;
use crate::lines::Line;
use crate::runtime::Runtime;
use crate::unconfigured;

/// Fails where destinations cannot be set up as a person asks for, before anything is changed.
pub(crate) async fn check(store: &Store, setup: &Setup) -> Result<(), AgentError> {
    setup.plan(&store.catalog.destinations().await?)?;
    Ok(())
}

/// Stores the destinations of a run and starts them, and goes on with one-off replays.
pub(crate) async fn configure(runtime: &Arc<Runtime>, setup: &Setup) -> Result<(), AgentError> {
    let _changing = runtime.changing.lock().await;
    let store = &runtime.store;
    persist(|| store.catalog.forget_destinations()).await?;
    for planned in setup.plan(&store.catalog.destinations().await?)? {
        let destination = take_up(runtime, &planned).await?;
        if let Some(since) = destination.paused_at {
            let (name, target) = (&planned.name, &planned.target);
            (runtime.tell)(Line::warning(format!(
                "{name} ({target}) has been paused since {since}; `whrelay destination resume {name}` resumes it"
            )));
        }
        say_kept(runtime, &planned);
        say_replaced(runtime, &planned);
        runtime.serve(&destination, planned.prefixes).await?;
    }
    for destination in store.catalog.destinations().await? {
        if destination.kind == Kind::OneOff && waiting(store, &destination).await? > 0 {
            runtime.serve(&destination, Vec::new()).await?;
        }
    }
    Ok(unconfigured::warn(runtime).await?)
}

/// Says which options count that this run does not give.
fn say_kept(runtime: &Runtime, planned: &Planned) {
    let kept = planned.kept.iter().filter_map(|key| {
        let value = planned.options.get(*key)?;
        Some(format!("{key} {value}"))
    });
    let kept: Vec<_> = kept.collect();
    if !kept.is_empty() {
        let (name, kept) = (&planned.name, kept.join(", "));
        (runtime.tell)(Line::warning(format!(
            "stored options of {name}: {kept}; `--reset OPTION` restores a default"
        )));
    }
}

/// Says which stored options this run replaces.
fn say_replaced(runtime: &Runtime, planned: &Planned) {
    let Some(before) = &planned.before else {
        return;
    };
    let replaced = OptionKey::ALL.into_iter().filter_map(|key| {
        let (old, new) = (before.options.get(key)?, planned.options.get(key)?);
        (old != new).then(|| format!("{key} {new} (was {old})"))
    });
    let replaced: Vec<_> = replaced.collect();
    if !replaced.is_empty() {
        let (name, replaced) = (&planned.name, replaced.join(", "));
        (runtime.tell)(Line::warning(format!(
            "options of {name} that this start replaces: {replaced}"
        )));
    }
}

/// Stores a destination as it is from now on.
async fn take_up(runtime: &Runtime, planned: &Planned) -> Result<Destination, AgentError> {
    let Planned {
        before,
        name,
        is_named,
        target,
        options,
        kept: _,
        prefixes: _,
    } = planned;
    let store = &runtime.store;
    let kind = Kind::Lasting {
        name: name.clone(),
        is_named: *is_named,
    };
    let Some(before) = before else {
        return Ok(add(store, runtime.bucket.id, kind, (target, options)).await?);
    };
    if before.target != *target {
        let queued = waiting(store, before).await?;
        if queued > 0 {
            let from = &before.target;
            let why = moves(name, queued, from, target);
            (runtime.tell)(Line::warning(why));
        }
    }
    if before.name().is_some_and(|before| before != name) {
        let title = before.title();
        (runtime.tell)(Line::warning(format!(
            "renamed destination {title} to {name}"
        )));
    }
    let now = runtime.clock.now();
    let change = || {
        store.catalog.change_destination(before.id, |stored| {
            // Removal ends a pause.
            stored.paused_at = stored.paused_at.filter(|_| stored.name().is_some());
            stored.kind = kind.clone();
            stored.options = options.clone();
            point_to(stored, target, now);
        })
    };
    let changed = persist(change).await?;
    changed.ok_or_else(|| StoreError::Damaged(format!("destination {}", before.id.0)).into())
}

/// Gives a destination another URL.
pub(crate) fn point_to(destination: &mut Destination, target: &Target, now: Timestamp) {
    if destination.target != *target {
        destination.target = target.clone();
        forget_endpoint(destination, now);
    }
}

/// Nothing is known of the endpoint: failures of before keep no delivery waiting.
fn forget_endpoint(destination: &mut Destination, now: Timestamp) {
    destination.endpoint = EndpointState::Online;
    destination.offline_since = None;
    destination.back_since = destination.back_since.max(Some(now));
}

/// The destination of one-off replays to a URL.
pub(crate) async fn one_off(
    runtime: &Arc<Runtime>,
    target: &Target,
    options: &OptionSet,
) -> Result<Destination, AgentError> {
    let _changing = runtime.changing.lock().await;
    let store = &runtime.store;
    let known = store.catalog.destinations().await?.into_iter();
    let known = known.filter(|known| known.kind == Kind::OneOff);
    let known = known
        .filter(|known| known.target == *target)
        .max_by_key(|known| known.id);
    let destination = match known {
        // A person wants it to be tried, whatever was known of it.
        Some(known) if !runtime.serves(known.id) && known.offline_since.is_some() => {
            let now = runtime.clock.now();
            let forget = move |stored: &mut Destination| forget_endpoint(stored, now);
            let changed = persist(|| store.catalog.change_destination(known.id, forget)).await?;
            changed.unwrap_or(known)
        }
        Some(known) => known,
        None => add(store, runtime.bucket.id, Kind::OneOff, (target, options)).await?,
    };
    runtime.serve(&destination, Vec::new()).await?;
    Ok(destination)
}

async fn add(
    store: &Store,
    bucket: BucketId,
    kind: Kind,
    (target, options): (&Target, &OptionSet),
) -> Result<Destination, StoreError> {
    let new = NewDestination {
        bucket,
        kind,
        target: target.clone(),
        options: options.clone(),
    };
    persist(|| store.catalog.add_destination(new.clone())).await
}

/// Deliveries that are queued for a destination.
pub(crate) async fn waiting(store: &Store, destination: &Destination) -> Result<u64, StoreError> {
    let counts = store.view.counts(destination.id).await?;
    Ok(counts.queued + counts.stalled)
}

/// That the queue of a destination goes to its new URL.
pub(crate) fn moves(
    name: impl std::fmt::Display,
    queued: u64,
    from: &Target,
    to: &Target,
) -> String {
    match queued {
        1 => format!("{name}: 1 queued delivery goes to {to} now (before: {from})"),
        _ => format!("{name}: {queued} queued deliveries go to {to} now (before: {from})"),
    }
}

/// That so many deliveries are queued for a destination.
pub(crate) fn queued_for(count: u64, whom: impl std::fmt::Display) -> String {
    match count {
        1 => format!("1 delivery is queued for {whom}"),
        _ => format!("{count} deliveries are queued for {whom}"),
    }
}
