//! Retention: what a sweep asks the stores to remove, and the rule it is judged by, written a second time. It
//! must not know how a store removes.

use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::delivery::{Delivery, State};
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::retention::Part;
use whrelay_core::time::Timestamp;
use whrelay_store::{Begin, Search};

use super::ledger::{Verdicts, hold};
use super::node::{AgentNode, Purpose};
use super::seen::Point;
use super::vault::{Vault, Write};
use super::world::World;

/// Events that a sweep looks at.
const STEP: usize = 8;

impl<V: Vault> World<V> {
    /// One of the processes sweeps its store.
    pub(crate) fn sweep(&mut self) {
        let n = self.chance.index(self.agents.len() + 1);
        if n < self.agents.len() {
            self.sweep_agent(n);
        } else {
            self.sweep_forwarder();
        }
    }

    fn sweep_agent(&mut self, n: usize) {
        let now = self.now_at(n);
        let by = match self.chance.permille(300) {
            true => Timestamp::LAST,
            false => now.certain.before(self.retain),
        };
        let part = match self.chance.permille(300) {
            true => Part::Body,
            false => Part::Whole,
        };
        // What has not ended is the store's to refuse.
        let states = match self.chance.permille(300) {
            true => State::ALL.to_vec(),
            false => vec![State::Sent, State::Dead],
        };
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return;
        };
        let search = Search {
            bucket: node.bucket.id,
            states,
            since: None,
            until: None,
        };
        let found = node.vault.search(&search, Begin::Oldest, None, STEP);
        let bucket = node.bucket.id;
        let write = Write::Remove {
            bucket,
            found,
            by,
            part,
        };
        process.desk.asked.push_back((write, Purpose::Retention));
    }

    /// The forwarder sweeps a bucket whose agents are all known to it: who comes later has no claim on what is
    /// gone by then.
    fn sweep_forwarder(&mut self) {
        let tenant = self.chance.index(self.forwarder.buckets.len());
        let bucket = self.forwarder.buckets[tenant].id;
        let known = self.agents.iter().filter(|node| node.tenant == tenant);
        let mut known = known.map(|node| {
            let place = (bucket, node.subscription.clone());
            node.process.is_some() && self.subscribed.contains(&place)
        });
        if !known.all(|known| known) {
            return;
        }
        let part = match self.chance.permille(500) {
            true => Part::Body,
            false => Part::Whole,
        };
        let retain = match self.chance.permille(300) {
            true => std::time::Duration::ZERO,
            false => self.retain,
        };
        let Some(process) = &mut self.forwarder.process else {
            return;
        };
        let now = process.clock.read(&self.forwarder.machine, self.time);
        let write = Write::RemoveReceipted {
            bucket,
            by: now.certain.before(retain),
            part,
            max: STEP,
        };
        process.desk.asked.push_back((write, Purpose::Retention));
    }

    /// Notes what an agent's store may remove: what has ended by then.
    pub(crate) fn may_remove(&mut self, n: usize, write: &Write) {
        let Write::Remove {
            bucket, found, by, ..
        } = write
        else {
            return;
        };
        let vault = &self.agents[n].vault;
        for (id, seq) in found {
            if has_ended(&vault.deliveries_of(*bucket, *seq), *by) {
                self.ledger.gone.insert((n, *id));
            }
        }
    }

    /// Whether a store removed no more than it may, and what it left is as it was.
    pub(crate) fn removed(&mut self, n: usize, write: &Write) -> Verdicts {
        let Write::Remove { found, part, .. } = write else {
            return Ok(());
        };
        let node = &self.agents[n];
        for (id, seq) in found {
            let event = node.vault.event_at(&node.bucket, *seq);
            let gone = event.is_none() && node.vault.find(*id).is_none();
            let bare = event.is_some_and(|event| event.removed_body.is_some());
            match (gone, part) {
                (true, Part::Whole) => self.seen.note(Point::EventRemoved),
                (true, Part::Body) | (false, Part::Whole) => {}
                (false, Part::Body) if bare => self.seen.note(Point::BodyRemoved),
                (false, Part::Body) => {}
            }
            let allowed = self.ledger.gone.contains(&(n, *id));
            hold(allowed || !(gone || bare), "C2", || {
                format!("retention has removed {id}, which had not ended by then")
            })?;
        }
        Ok(())
    }

    /// The events of a bucket that the forwarder may remove, or their bodies: every subscription has them on a
    /// disk.
    pub(crate) fn may_drop(&mut self, write: &Write) -> Vec<Event> {
        let Write::RemoveReceipted { bucket, .. } = write else {
            return Vec::new();
        };
        let buckets = &self.forwarder.buckets;
        let Some(tenant) = buckets.iter().position(|b| b.id == *bucket) else {
            return Vec::new();
        };
        let vault = &self.forwarder.vault;
        let places = (1..=vault.last_seq(*bucket).0).map(Seq);
        let all = places.filter_map(|seq| vault.event_at(&buckets[tenant], seq));
        let all: Vec<_> = all.collect();
        for event in &all {
            if self.is_everywhere(tenant, event.id) {
                self.ledger.dropped.insert(event.id);
            }
        }
        all
    }

    /// Whether the forwarder removed only what is everywhere. `before` are the events that it had.
    pub(crate) fn dropped(&mut self, before: &[Event]) -> Verdicts {
        let vault = &self.forwarder.vault;
        for event in before {
            let id = event.id;
            let tenant = |b: &&Bucket| b.name == event.bucket;
            let bucket = self.forwarder.buckets.iter().find(tenant);
            let left = vault.find(id).zip(bucket);
            let left = left.and_then(|((_, seq), bucket)| vault.event_at(bucket, seq));
            match &left {
                None => self.seen.note(Point::ReceiptedRemoved),
                Some(left) if left != event => self.seen.note(Point::ReceiptedBodyRemoved),
                Some(_) => continue,
            }
            hold(self.ledger.dropped.contains(&id), "C2", || {
                format!("the forwarder has removed {id}, or its body, which not all have receipted")
            })?;
        }
        Ok(())
    }

    fn is_everywhere(&self, tenant: usize, id: EventId) -> bool {
        let mine = |(_, node): &(usize, &AgentNode<V>)| node.tenant == tenant;
        let nodes = || self.agents.iter().enumerate().filter(mine);
        let has = |(n, node): (usize, &AgentNode<V>)| {
            let was =
                self.ledger.gone.contains(&(n, id)) || self.ledger.forgotten.contains(&(n, id));
            was || node.vault.find(id).is_some()
        };
        nodes().all(|(_, wanted)| {
            let mut group = nodes().filter(|(_, node)| node.subscription == wanted.subscription);
            group.any(has)
        })
    }
}

/// The contract's rule: every delivery is sent or dead, and has been since then.
fn has_ended(deliveries: &[Delivery], by: Timestamp) -> bool {
    let over = |delivery: &Delivery| {
        matches!(delivery.state, State::Sent | State::Dead)
            && delivery.ended_at.is_some_and(|at| at <= by)
    };
    !deliveries.is_empty() && deliveries.iter().all(over)
}

/// Where a write is that removes, if one is among them: it is judged by itself.
pub(crate) fn alone<'a>(writes: impl Iterator<Item = &'a Write>, group: usize) -> usize {
    let mut writes = writes.take(group);
    let removes =
        |write: &Write| matches!(write, Write::Remove { .. } | Write::RemoveReceipted { .. });
    match writes.position(removes) {
        Some(0) => 1,
        Some(before) => before,
        None => group,
    }
}
