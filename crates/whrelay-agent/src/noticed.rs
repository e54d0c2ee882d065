//! What a welcome says beside where to start: a directory that went back, a copy, another agent. It is said once,
//! and kept. It must not decide anything.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use whrelay_core::time::Timestamp;
use whrelay_proto::frame::{Epoch, Noticed, Other, Welcome};
use whrelay_store::{Incident, Store, StoreError, persist};

/// The note of the forwarder's opening that an agent knows.
const EPOCH: &str = "forwarder-epoch";

/// What has been said already.
#[derive(Debug, Default)]
pub(crate) struct Said(Mutex<HashSet<String>>);

impl Said {
    fn is_new(&self, text: &str) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.insert(text.to_owned())
    }
}

/// The opening of a forwarder's store that this agent met last.
pub(crate) async fn known_epoch(
    store: &Store,
    forwarder: &str,
) -> Result<Option<Epoch>, StoreError> {
    let note = store.catalog.note(EPOCH).await?.unwrap_or_default();
    let mut words = note.split(' ');
    let is_it = words.next() == Some(forwarder);
    let mut number = || words.next()?.parse().ok();
    Ok(match (number(), number()) {
        (Some(opens), Some(instance)) if is_it => Some(Epoch { opens, instance }),
        _ => None,
    })
}

/// Keeps and answers what there is to say about a session that begins.
pub(crate) async fn take(
    store: &Store,
    said: &Said,
    (welcome, are_lost): (&Welcome, bool),
    now: Timestamp,
) -> Result<Vec<String>, StoreError> {
    let mut new = Vec::new();
    let known = known_epoch(store, &welcome.forwarder).await?;
    for (kind, text) in texts(welcome, known, are_lost) {
        if !said.is_new(&text) {
            continue;
        }
        if let Some(kind) = kind {
            let incident = || Incident {
                at: now,
                kind: kind.to_owned(),
                text: text.clone(),
            };
            persist(|| store.catalog.add_incident(incident())).await?;
        }
        new.push(text);
    }
    if let Some(Epoch { opens, instance }) = welcome.epoch {
        let note = format!("{} {opens} {instance}", welcome.forwarder);
        persist(|| store.catalog.set_note(EPOCH, &note)).await?;
    }
    Ok(new)
}

/// What there is to say, each with its kind where it is kept.
fn texts(
    welcome: &Welcome,
    known: Option<Epoch>,
    are_lost: bool,
) -> Vec<(Option<&'static str>, String)> {
    let Noticed {
        forwarder_went_back,
        agent_went_back,
        copy_of,
        taken_from,
        skipped,
        backlog_end_lost: _,
    } = &welcome.noticed;
    let mut texts = Vec::new();
    let start = welcome.start;
    let is_earlier = known
        .zip(welcome.epoch)
        .is_some_and(|(known, now)| now.is_earlier_than(known));
    if let Some(from) = forwarder_went_back {
        let text = format!(
            "the forwarder's data directory went back to an earlier copy: events up to number {from} that \
             only this agent has are kept here; the forwarder sends every event after number {start}"
        );
        texts.push((Some("forwarder_went_back"), text));
    } else if are_lost {
        let text = "the forwarder's data directory went back to an earlier copy: it lost events that waited there \
                    for this agent, and this agent does not have them either"
            .to_owned();
        texts.push((Some("forwarder_went_back"), text));
    } else if is_earlier {
        let text =
            "the forwarder runs on an earlier copy of its data directory, or two forwarders run \
                    on copies of one; that copy has every event that this agent has"
                .to_owned();
        texts.push((Some("forwarder_went_back"), text));
    }
    if let Some(from) = agent_went_back {
        let text = format!(
            "this agent's data directory went back to an earlier copy: it had confirmed events up to \
             number {from}; the forwarder sends again what it still has after number {start}, so that events \
             may be delivered twice; attempt numbers continue from the copy"
        );
        texts.push((Some("agent_went_back"), text));
    }
    if let Some(other) = copy_of {
        let text = format!(
            "two agents run on copies of this data directory: the other one is {}; give one of them a \
             directory of its own",
            person(other)
        );
        texts.push((Some("two_copies"), text));
    }
    if let Some(other) = taken_from {
        let (kind, state) = match other.live {
            true => (Some("taken_over"), "which was connected"),
            false => (None, "which is not connected"),
        };
        let text = format!(
            "this agent took over the subscription of another one, {}, {state}",
            person(other)
        );
        texts.push((kind, text));
    }
    if *skipped > 0 {
        let text = format!(
            "this subscription is new: {} not delivered; \
             `--name NEW --backlog all` delivers those that the forwarder still has",
            match skipped {
                1 => "1 older event is".to_owned(),
                many => format!("{many} older events are"),
            }
        );
        texts.push((None, text));
    }
    texts
}

/// Another agent, safe to show.
fn person(other: &Other) -> String {
    let Other {
        host,
        user,
        seen_at,
        live: _,
    } = other;
    let seen = seen_at.map(|at| format!(", seen {}", Timestamp::from_micros(at)));
    format!(
        "{}@{}{}",
        user.escape_debug(),
        host.escape_debug(),
        seen.unwrap_or_default()
    )
}
