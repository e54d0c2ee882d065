//! Whether what is kept in a store is whole, and saving what is. It must not know what else is checked.

use std::path::Path;

use whrelay_core::retry::RetryPolicy;
use whrelay_delivery::Clock;
use whrelay_store::{
    Census, Effort, Examined, OpenError, Role, SalvageError, Salvaged, Store, StoreError,
    disk_used, examine,
};

use super::Check;
use crate::agents;
use crate::args::DoctorArgs;
use crate::embedded::store_options;
use crate::failure::Failure;
use crate::text::{deliveries as deliveries_of, events as events_of, size};

const PURPOSE: &str = "doctor";
/// Lost events that are named one by one.
const NAMED: usize = 20;
const SALVAGE: &str = "`whrelay doctor --salvage` saves what is whole";

/// Whether a store is whole, and what has happened to its directory.
pub(super) async fn check(dir: &Path, role: Option<Role>, args: &DoctorArgs) -> Vec<Check> {
    let mut history = Vec::new();
    let whole = check_records(dir, role, args, &mut history).await;
    [vec![whole], history].concat()
}

async fn check_records(
    dir: &Path,
    role: Option<Role>,
    args: &DoctorArgs,
    history: &mut Vec<Check>,
) -> Check {
    let what = dir.display().to_string();
    let check = |ok, result: String, hint| Check::new("store", &what, ok, result, hint);
    let damage = match examined(dir, role).await {
        Err(error @ OpenError::InUse { .. }) => {
            return check(
                !args.salvage && !args.compact,
                error.to_string(),
                Some("stop it to have its store read"),
            );
        }
        Err(error @ (OpenError::Damaged { .. } | OpenError::Foreign { .. })) => error.to_string(),
        Err(error) => return check(false, error.to_string(), None),
        Ok(found) => {
            history.extend(
                found.incidents.iter().map(|incident| {
                    super::happened(&what, &incident.at.to_string(), &incident.text)
                }),
            );
            match judged(found) {
                Ok(whole) if args.compact => {
                    return match compact(dir, role).await {
                        Ok(given) => {
                            let text = format!("{whole}; {} given back to the disk", size(given));
                            check(true, text, None)
                        }
                        Err(error) => check(false, format!("{whole}; {}", error.message()), None),
                    };
                }
                Ok(whole) => return check(true, whole, None),
                Err(damage) => damage,
            }
        }
    };
    if !args.salvage {
        return check(false, damage, Some(SALVAGE));
    }
    match salvage(dir) {
        Ok(saved) => check(true, format!("{damage}; {}", saved_text(&saved)), None),
        Err(error) => check(false, format!("{damage}; {error}"), None),
    }
}

/// What a store holds, where all of it is whole, or else what is wrong with it.
fn judged(found: Examined) -> Result<String, String> {
    let Examined {
        structure, census, ..
    } = found;
    let text = match &census {
        Ok(census) => told(census),
        Err(error) => error.to_string(),
    };
    match structure {
        Err(why) => Err(format!("its structure is damaged ({why}); {text}")),
        Ok(()) if census.is_ok_and(|census| census.is_whole()) => Ok(text),
        Ok(()) => Err(text),
    }
}

/// Reads the store without changing its file. A directory that was typed may be of either kind.
async fn examined(dir: &Path, role: Option<Role>) -> Result<Examined, OpenError> {
    let (agent, forwarder) = (agents::options(PURPOSE, None), store_options(PURPOSE, None));
    match role {
        Some(Role::Agent) => examine(dir, &agent).await,
        Some(Role::Forwarder) => examine(dir, &forwarder).await,
        None => match examine(dir, &agent).await {
            Err(OpenError::Role { .. }) => examine(dir, &forwarder).await,
            examined => examined,
        },
    }
}

/// Gives the space that is free in the file back, and says how many bytes.
async fn compact(dir: &Path, role: Option<Role>) -> Result<u64, Failure> {
    let store = open(dir, role)?;
    let given = async {
        let before = disk_used(dir)?;
        store.journal.give_back(Effort::Whatever).await?;
        Ok(before.saturating_sub(disk_used(dir)?))
    };
    let given: Result<u64, StoreError> = given.await;
    store.journal.close().await;
    Ok(given?)
}

/// A directory that was typed may be of either kind.
fn open(dir: &Path, role: Option<Role>) -> Result<Store, OpenError> {
    let agent = || Store::open(dir, &agents::options(PURPOSE, None));
    let forwarder = || Store::open(dir, &store_options(PURPOSE, None));
    match role {
        Some(Role::Agent) => agent(),
        Some(Role::Forwarder) => forwarder(),
        None => match agent() {
            Err(OpenError::Role { .. }) => forwarder(),
            opened => opened,
        },
    }
}

fn salvage(dir: &Path) -> Result<Salvaged, SalvageError> {
    let now = Clock::default().now();
    let deadline_at = RetryPolicy::default().deadline_of(now);
    whrelay_store::salvage(dir, now, deadline_at, rand::random)
}

fn told(census: &Census) -> String {
    let Census {
        events,
        damaged_events,
        lost_events,
        others,
        damaged_others,
        refusing_buckets,
    } = census;
    let mut text = format!(
        "{}, {others} deliveries and attempts whole",
        events_of(*events)
    );
    if !census.is_whole() {
        text += &format!(
            ", {} and {damaged_others} deliveries or attempts damaged",
            events_of(*damaged_events)
        );
    }
    if *refusing_buckets > 0 {
        text +=
            &format!(", {refusing_buckets} buckets take no events: their last numbers are damaged");
    }
    if *lost_events > 0 {
        text += &format!(", {} lost before", events_of(*lost_events));
    }
    text
}

fn saved_text(saved: &Salvaged) -> String {
    let Salvaged {
        role,
        events,
        deliveries,
        attempts,
        begun_again,
        lost,
        kept,
    } = saved;
    let mut text = format!(
        "saved {}, {}, {attempts} attempts",
        events_of(*events),
        deliveries_of(*deliveries)
    );
    if *begun_again > 0 {
        text += &format!(", {} begun again", events_of(*begun_again));
    }
    if !lost.is_empty() {
        let places = lost
            .iter()
            .map(|(bucket, seq)| format!("{}/{}", bucket.0, seq.0));
        let places: Vec<_> = places.take(NAMED).collect();
        let more = lost.len().saturating_sub(NAMED);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        text += &format!(", lost the events at {}{more}", places.join(" "));
        if *role == Role::Agent {
            text += " (the forwarder sends again what it has)";
        }
    }
    text + &format!("; the damaged file is {}", kept.display())
}
