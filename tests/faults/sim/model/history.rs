//! What the model knows of subscriptions and of the place an agent has reached. It must not know who asks.

use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::id::EventId;
use whrelay_core::subscription::{Join, Stored, Subscription};
use whrelay_store::{Source, SourceMark};

use super::super::planted::Bug;
use super::super::vault::{Done, Vault};
use super::Model;

impl Model {
    pub(super) fn join(&mut self, bucket: BucketId, join: &Join) -> Done {
        let key = (bucket, join.name.clone());
        let known = self.subscriptions.get(&key);
        let others = self.subscriptions.iter();
        let others = others.filter(|((of, _), _)| *of == bucket);
        let others: Vec<Option<Subscription>> = others.map(|(_, one)| Some(one.clone())).collect();
        let stored = known.map_or(Stored::New(&others), Stored::Known);
        let (last, pruned) = (self.last_seq(bucket), self.bare_upto(bucket));
        let id_at = |seq| self.events.get(&(bucket, seq)).map(|event| event.id);
        let history = join.compare(last, pruned, id_at);
        let Some((mut joined, mut next)) = join.decide(stored, &history) else {
            return Done::Joined(None);
        };
        let claimed = join.claim.as_ref().map(|claim| claim.seq.min(last));
        let wrong = match self.planted {
            Some(Bug::ResumeFromTheEnd) => Some(last),
            Some(Bug::NumbersAloneAcknowledge) => claimed.map(|claimed| claimed.max(pruned)),
            _ => None,
        };
        if let Some(wrong) = wrong {
            joined.after = wrong;
            next.move_to(wrong);
        }
        if next.lease == join.lease {
            self.subscriptions.insert(key, next);
        }
        Done::Joined(Some(Box::new(joined)))
    }

    pub(super) fn advance(&mut self, bucket: BucketId, mark: SourceMark) {
        let SourceMark {
            forwarder,
            start,
            seq,
            events,
        } = mark;
        let known = self.sources.remove(&bucket);
        let known = known.filter(|known| known.forwarder == forwarder);
        let whole_after = match &known {
            Some(known) if start <= known.seq => known.whole_after.min(start),
            Some(_) | None => start,
        };
        let mut locator = known.map(|known| known.locator).unwrap_or_default();
        let note = |(seq, id): (Seq, EventId)| locator.note(seq, id);
        events.into_iter().for_each(note);
        locator.end_at(seq);
        let source = Source {
            forwarder,
            seq,
            locator,
            whole_after,
        };
        self.sources.insert(bucket, source);
    }
}
