//! What the model knows of subscriptions and of the place an agent has reached: written from the promise that
//! whatever one side has and the other has not is sent. It must not know who asks.

use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::history::{Claim, Known, Locator, Standing};
use whrelay_core::id::EventId;
use whrelay_core::time::Timestamp;
use whrelay_store::{Holder, Join, Joined, Source, SourceMark};

use super::super::planted::Bug;
use super::super::vault::{Done, Vault};
use super::Model;

/// A subscription.
#[derive(Clone, Debug, Default)]
pub(super) struct Subscribed {
    pub(super) acked: Seq,
    /// Each agent that had it, and how far it acknowledged; the last one last.
    holders: Vec<(Holder, Seq)>,
    seen_at: Option<Timestamp>,
}

impl Subscribed {
    pub(super) fn ack(&mut self, upto: Seq) {
        if upto > self.acked {
            self.acked = upto;
            self.holders
                .iter_mut()
                .next_back()
                .into_iter()
                .for_each(|last| last.1 = upto);
        }
    }
}

/// Whether an agent that joins is this holder. One that says nothing of itself may be anyone.
fn is_of(agent: Option<&Holder>, holder: &Holder) -> bool {
    agent.is_none_or(|agent| agent.store == holder.store)
}

impl Subscribed {
    /// How far the agent that joins has acknowledged.
    fn own(&self, join: &Join) -> Option<Seq> {
        if self.holders.is_empty() {
            return Some(self.acked);
        }
        let mut holders = self.holders.iter();
        let own = holders.rfind(|(one, _)| is_of(join.holder.as_ref(), one));
        own.map(|(_, acked)| *acked)
    }
}

impl Model {
    /// What the history has at a place.
    fn known(&self, bucket: BucketId, seq: Seq) -> Known {
        match self.events.get(&(bucket, seq)) {
            _ if seq > self.last_seq(bucket) => Known::Never,
            Some(event) => Known::Event(event.id),
            None => Known::Gone,
        }
    }

    pub(super) fn join(&mut self, bucket: BucketId, join: Join) -> Done {
        let key = (bucket, join.name.clone());
        let known = self.subscriptions.get(&key).cloned();
        let (last, pruned) = (self.last_seq(bucket), self.bare_upto(bucket));
        let mut holders = known
            .as_ref()
            .map_or_else(Vec::new, |known| known.holders.clone());
        let before = holders.last().map(|(holder, _)| holder.clone());
        let mine = |holder: &Holder| is_of(join.holder.as_ref(), holder);
        let own = known.as_ref().and_then(|known| known.own(&join));
        let is_last = before
            .as_ref()
            .is_some_and(|one| join.holder.is_some() && mine(one));
        let nothing = Claim {
            // Sessions here begin with everything.
            seq: Seq(0),
            locator: Locator::default(),
        };
        let lost = (join.is_empty && is_last).then_some(nothing);
        let claim = join.claim.as_ref().or(lost.as_ref());
        let alone = !self.subscriptions.keys().any(|(of, _)| *of == bucket);
        let standing = Standing {
            acked: known.as_ref().map(|known| known.acked),
            by_this_agent: before.as_ref().is_none_or(mine),
            own,
            first_start: match join.wants_backlog.unwrap_or(alone) {
                true => Seq(0),
                false => last,
            },
            pruned_through: pruned,
        };
        let never = |error: std::convert::Infallible| match error {};
        let common = join.claim.as_ref().map(|claim| {
            let at = |seq| Ok(self.known(bucket, seq));
            claim.locator.compare(at).unwrap_or_else(never)
        });
        let mut start = standing.start(claim, common.unwrap_or_default());
        let claimed = join.claim.as_ref().map(|claim| claim.seq.min(last));
        match (self.planted, claimed) {
            (Some(Bug::ResumeFromTheEnd), _) => start.after = last,
            (Some(Bug::NumbersAloneAcknowledge), Some(claimed)) => {
                start.after = claimed.max(pruned);
            }
            _ => {}
        }
        let joined = Joined {
            after: start.after,
            last,
            went_back: start.went_back,
            before: before.zip(Some(known.as_ref().and_then(|known| known.seen_at))),
            own_before: own,
            skipped: match known.is_none() && join.claim.is_none() {
                true => start.after.0 - pruned.0,
                false => 0,
            },
            was_ended: false,
        };
        if let Some(me) = join.holder {
            holders.retain(|(one, _)| one.store != me.store);
            holders.push((me, start.after));
        }
        let subscribed = Subscribed {
            acked: start.after,
            holders,
            seen_at: Some(join.now),
        };
        self.subscriptions.insert(key, subscribed);
        Done::Joined(Some(Box::new(joined)))
    }

    pub(super) fn advance(&mut self, bucket: BucketId, mark: SourceMark) {
        let SourceMark {
            forwarder,
            seq,
            events,
        } = mark;
        let known = self.sources.remove(&bucket);
        let known = known.filter(|known| known.forwarder == forwarder);
        let mut locator = known.map(|known| known.locator).unwrap_or_default();
        let note = |(seq, id): (Seq, EventId)| locator.note(seq, id);
        events.into_iter().for_each(note);
        locator.end_at(seq);
        let source = Source {
            forwarder,
            seq,
            locator,
        };
        self.sources.insert(bucket, source);
    }
}
