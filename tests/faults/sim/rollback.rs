//! Directories that go back to an earlier copy, with the memory of their process or without, and what is owed
//! after that: whatever still lies on a disk. It must not know how either side notices.

use whrelay_core::bucket::Seq;
use whrelay_core::id::EventId;

use super::ledger::{Ledger, Track, Verdicts};
use super::node::AgentNode;
use super::seen::Point;
use super::vault::Vault;
use super::world::World;

impl<V: Vault> World<V> {
    /// Copies a directory, or puts the copy back that there is.
    pub(crate) fn back_up_or_put_back(&mut self) -> Verdicts {
        let all_up = self.agents.iter().all(|node| node.process.is_some());
        if !all_up || self.forwarder.process.is_none() {
            // A dead node's disk is nobody's to read.
            return Ok(());
        }
        let n = self.chance.index(self.agents.len() + 1);
        let keeps = self.chance.permille(300);
        if n == self.agents.len() {
            return self.turn_forwarder(keeps);
        }
        match self.agents[n].backup.take() {
            None => {
                let node = &mut self.agents[n];
                node.backup = Some((node.vault.copy(), node.instance));
            }
            Some((copy, instance)) => {
                // The same copy may be put back again and again.
                let again = keeps.then(|| (copy.copy(), instance));
                self.crash_agent(n)?;
                (self.agents[n].vault, self.agents[n].instance) = (copy, instance);
                self.agents[n].vault.reopen();
                self.agents[n].backup = again;
                self.agents[n].goes_on = self.chance.permille(300);
                self.agents[n].went_back = true;
                self.seen.note(Point::AgentPutBack);
                self.agent_went_back(n);
            }
        }
        Ok(())
    }

    fn turn_forwarder(&mut self, keeps: bool) -> Verdicts {
        let with_memory = self.chance.permille(300);
        let Some((copy, memory)) = self.forwarder.backup.take() else {
            let memory = self.forwarder.process.clone().filter(|_| with_memory);
            self.forwarder.backup = Some((self.forwarder.vault.copy(), memory));
            return Ok(());
        };
        if self.chance.permille(300) {
            // Agents that begin now know a later end of the backlog than the copy has.
            self.forwarder.backup = Some((copy, memory));
            return (0..self.agents.len()).try_for_each(|n| self.crash_agent(n));
        }
        let again = keeps.then(|| (copy.copy(), memory.clone()));
        self.crash_forwarder();
        self.forwarder.vault = copy;
        self.forwarder.vault.reopen();
        for (n, begun) in &mut self.ledger.begun {
            let bucket = self.forwarder.buckets[self.agents[*n].tenant].id;
            begun.went_back_to(self.forwarder.vault.last_seq(bucket));
        }
        self.forwarder.backup = again;
        self.seen.note(match memory {
            Some(_) => Point::ForwarderPutBackWithMemory,
            None => Point::ForwarderPutBack,
        });
        self.forwarder.process = memory;
        // Its numbers are given again.
        self.posts_left += self.chance.below(10) as u32;
        self.forwarder_went_back();
        Ok(())
    }

    /// What an agent no longer has, and acknowledged, it is owed as long as the forwarder has it.
    fn agent_went_back(&mut self, n: usize) {
        let node = &self.agents[n];
        let mine = self.ledger.accepted.iter();
        let mine = mine.filter(|(_, accepted)| accepted.bucket == node.tenant);
        // Some that nobody was answered are at the forwarder, and were acknowledged.
        let (vault, bucket) = (&self.forwarder.vault, &self.forwarder.buckets[node.tenant]);
        let places = (1..=vault.last_seq(bucket.id).0).map(Seq);
        let there = places.filter_map(|seq| vault.event_at(bucket, seq));
        let all = there.map(|event| event.id).chain(mine.map(|(id, _)| *id));
        let lost = all.filter(|id| node.vault.find(*id).is_none());
        let lost: Vec<_> = lost.map(|id| (n, id)).collect();
        self.ledger.forgotten.extend(lost);
        self.ledger.begin_anew(n);
    }

    /// What the forwarder no longer has, it owes to nobody; who has it delivers it.
    fn forwarder_went_back(&mut self) {
        // It forgot what an agent may have told it of its own going back.
        self.agents
            .iter_mut()
            .for_each(|node| node.went_back = true);
        let vault = &self.forwarder.vault;
        let accepted = self.ledger.accepted.iter();
        let lost = accepted.filter(|(id, _)| vault.find(**id).is_none());
        let lost: Vec<_> = lost.map(|(id, accepted)| (*id, accepted.bucket)).collect();
        for (id, tenant) in lost {
            self.ledger.dropped.insert(id);
            let nodes = self.agents.iter().enumerate();
            let without = nodes.filter(|(_, node)| node.tenant == tenant && !has(node, id));
            let without: Vec<_> = without.map(|(n, _)| (n, id)).collect();
            self.ledger.forgotten.extend(without);
        }
        let buckets = self.forwarder.buckets.iter().map(|bucket| bucket.id);
        let known: Vec<_> = buckets
            .flat_map(|bucket| {
                let names = self.agents.iter().map(|node| node.subscription.clone());
                names.map(move |name| (bucket, name))
            })
            .filter(|(bucket, name)| vault.knows(*bucket, name))
            .collect();
        self.subscribed = known.into_iter().collect();
    }
}

fn has<V: Vault>(node: &AgentNode<V>, id: EventId) -> bool {
    node.vault.find(id).is_some()
}

impl Ledger {
    /// An agent's attempts go on from the copy: what was known of those since is void.
    fn begin_anew(&mut self, n: usize) {
        let mine = |track: &&mut Track| track.place.is_some_and(|place| place.0 == n);
        for track in self.tracks.values_mut().filter(mine) {
            track.begin_anew();
        }
        self.first.retain(|(agent, ..), _| *agent != n);
    }
}
