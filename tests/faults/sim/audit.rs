//! What an agent's disk has to agree on with itself, after each commit. It must not know what was promised.

use std::collections::{BTreeMap, HashMap};

use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{Delivery, DestinationId, State};
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::order::Order;
use whrelay_core::queue::{DueBy, QueueQuery, Wanted};
use whrelay_core::time::Timestamp;
use whrelay_store::{Begin, Search};

use super::ledger::{Ledger, Verdicts, hold};
use super::node::AgentNode;
use super::vault::Vault;

/// More than any queue here has.
const MANY: usize = 100_000;

impl Ledger {
    /// I3 and I20 on an agent's disk: each delivery is in one state, counted once, and waits exactly
    /// when it is in the index; each event has one delivery per target beside its replays.
    pub(crate) fn audit<V: Vault>(node: &AgentNode<V>) -> Verdicts {
        let (vault, bucket) = (&node.vault, &node.bucket);
        let mut states: BTreeMap<State, Vec<EventId>> = BTreeMap::new();
        for (target, _) in &node.targets {
            let mut counted = [0u64; 4];
            let mut waiting = 0;
            for seq in 1..=vault.last_seq(bucket.id).0 {
                let mine = vault.deliveries_of(bucket.id, Seq(seq));
                let mine = mine.iter().filter(|d| d.destination == *target);
                let mut first = 0;
                for delivery in mine {
                    counted[delivery.state as usize] += 1;
                    waiting += u64::from(delivery.wait.is_some());
                    first += u32::from(!delivery.replay);
                    let waits = delivery.wait.is_some();
                    hold(waits != delivery.state.is_finished(), "I3", || {
                        format!("{} is {} and waits: {waits}", delivery.id, delivery.state)
                    })?;
                }
                let event = vault.event_at(bucket, Seq(seq));
                let takes = |event: Event| node.taking(&event.request.tail).contains(target);
                let wanted = u32::from(event.is_some_and(takes));
                hold(first == wanted, "I3", || {
                    format!("event {seq} has {first} deliveries to a target of its {wanted}")
                })?;
            }
            let counts = vault.counts(*target);
            let kept = [counts.queued, counts.stalled, counts.dead, counts.sent];
            hold(kept == counted, "I20", || {
                format!("counts say {kept:?}, the rows {counted:?}")
            })?;
            let queued = vault.queue(*target, &everything(Order::Arrival)).waiting;
            hold(queued.len() as u64 == waiting, "I3", || {
                format!("{waiting} wait, {} are queued", queued.len())
            })?;
        }
        for seq in 1..=vault.last_seq(bucket.id).0 {
            let deliveries = vault.deliveries_of(bucket.id, Seq(seq));
            if let (Some(state), Some(first)) = (least(&deliveries), deliveries.first()) {
                states.entry(state).or_default().push(first.event);
            }
        }
        for state in State::ALL {
            let search = Search {
                bucket: bucket.id,
                states: vec![state],
                since: None,
                until: None,
            };
            let found = vault.search(&search, Begin::Oldest, None, usize::MAX);
            let found: Vec<_> = found.into_iter().map(|(id, _)| id).collect();
            let mut kept = states.remove(&state).unwrap_or_default();
            kept.sort();
            hold(found == kept, "I20", || {
                format!(
                    "{} events are {state}, {} are found",
                    kept.len(),
                    found.len()
                )
            })?;
        }
        Ok(())
    }
}

/// A question that a whole queue answers.
pub(crate) fn everything(order: Order) -> QueueQuery {
    QueueQuery {
        order,
        due: DueBy {
            now: Timestamp::LAST,
            not_before: Timestamp::LAST,
            back_since: None,
        },
        expired_by: Timestamp::EPOCH,
        wanted: Wanted::All,
        max: MANY,
    }
}

/// The contract's word for an event: the least finished state of its deliveries, where a later one to the
/// same target stands for those before that have ended, and one-offs only where there is nothing else.
fn least(deliveries: &[Delivery]) -> Option<State> {
    let lasting = deliveries.iter().any(|d| !d.one_off);
    let mut newest: HashMap<DestinationId, &Delivery> = HashMap::new();
    let stands = deliveries.iter().filter(|d| !(lasting && d.one_off));
    newest.extend(stands.map(|d| (d.destination, d)));
    let stands = newest.into_values();
    let waiting = deliveries.iter().map(|d| d.state);
    let waiting = waiting.filter(|state| !state.is_finished()).min();
    waiting.or_else(|| stands.map(|d| d.state).min())
}
