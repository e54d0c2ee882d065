//! What the model knows of subscriptions and of the place an agent has reached: written from the promise that
//! whatever one side has and the other has not is sent. It must not know who asks.

use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::history::{Claim, Comparison, Known, Locator, Own, Standing};
use whrelay_core::id::EventId;
use whrelay_core::time::Timestamp;
use whrelay_store::{Holder, Join, Joined, LeaseEpoch, Source, SourceMark};

use super::super::planted::Bug;
use super::super::vault::{Done, Vault};
use super::Model;

/// A subscription.
#[derive(Clone, Debug, Default)]
pub(super) struct Subscribed {
    pub(super) acked: Seq,
    /// Each agent that had it; the last one last.
    holders: Vec<Held>,
    pub(super) seen_at: Option<Timestamp>,
    /// Up to here everything that is not acknowledged is sent again.
    again_through: Option<Seq>,
    /// The newest lease that was taken.
    lease: LeaseEpoch,
}

/// What an agent had of a subscription.
#[derive(Clone, Debug)]
struct Held {
    by: Holder,
    own: Own,
}

impl Held {
    fn has_acked(&self) -> bool {
        self.own.acked > self.own.since
    }
}

impl Subscribed {
    fn move_to(&mut self, place: Seq) {
        if place < self.acked {
            self.again_through = self.again_through.max(Some(self.acked));
        }
        self.again_through = self.again_through.filter(|through| *through > place);
        self.acked = place;
    }

    pub(super) fn ack(&mut self, upto: Seq, lease: LeaseEpoch) {
        if upto > self.acked && lease >= self.lease {
            self.lease = lease;
            if let Some(Held { own, .. }) = self.holders.last_mut() {
                (own.whole_after, own.acked) = (own.whole_after.min(self.acked), upto);
            }
            self.move_to(upto);
        }
    }
}

/// Whether an agent that joins is this holder. One that says nothing of itself may be anyone.
fn is_of(agent: Option<&Holder>, holder: &Holder) -> bool {
    agent.is_none_or(|agent| agent.store == holder.store)
}

impl Subscribed {
    /// What the agent that joins had of it.
    fn own(&self, join: &Join) -> Option<&Held> {
        let mut holders = self.holders.iter();
        holders.rfind(|held| is_of(join.holder.as_ref(), &held.by))
    }
}

/// What an agent has that joins and is sent what is behind a place. Up to another one nothing is left of it here.
fn owned(join: &Join, began: Option<Held>, common: Comparison, (pruned, after): (Seq, Seq)) -> Own {
    let since = began.map(|began| began.own.since.min(after));
    let Some(claim) = &join.claim else {
        return Own {
            since: since.unwrap_or(after),
            whole_after: after,
            acked: after,
        };
    };
    Own {
        since: since.unwrap_or(pruned),
        whole_after: if claim.seq < after {
            after
        } else {
            claim.whole_after
        },
        acked: common.of(claim).min(after),
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

    /// What is known of a subscription that an agent joins.
    fn standing(&self, bucket: BucketId, join: &Join, known: Option<&Subscribed>) -> Standing {
        let before = known.and_then(|known| known.holders.last());
        let alone = !self.subscriptions.keys().any(|(of, _)| *of == bucket);
        Standing {
            acked: known.map(|known| known.acked),
            own: match before {
                None => known.map(|known| Own {
                    since: Seq(0),
                    whole_after: Seq(0),
                    acked: known.acked,
                }),
                Some(_) => known.and_then(|known| known.own(join)).map(|held| held.own),
            },
            first_start: match join.wants_backlog.unwrap_or(alone) {
                true => Seq(0),
                false => self.last_seq(bucket),
            },
            pruned_through: self.bare_upto(bucket),
        }
    }

    pub(super) fn join(&mut self, bucket: BucketId, join: Join) -> Done {
        let key = (bucket, join.name.clone());
        let known = self.subscriptions.get(&key).cloned();
        let (last, pruned) = (self.last_seq(bucket), self.bare_upto(bucket));
        let this = known.as_ref().and_then(|known| known.own(&join)).cloned();
        let can_lose = join.is_empty && join.holder.is_some();
        let lost = this.as_ref().filter(|this| can_lose && this.has_acked());
        let lost = lost.map(|this| Claim {
            seq: this.own.since,
            locator: Locator::default(),
            whole_after: Seq(0),
        });
        let claim = join.claim.as_ref().or(lost.as_ref());
        let standing = self.standing(bucket, &join, known.as_ref());
        let never = |error: std::convert::Infallible| match error {};
        let common = join.claim.as_ref().map(|claim| {
            let at = |seq| Ok(self.known(bucket, seq));
            claim.locator.compare(at).unwrap_or_else(never)
        });
        let common = common.unwrap_or_default();
        let mut start = standing.start(claim, common);
        let claimed = join.claim.as_ref().map(|claim| claim.seq.min(last));
        match (self.planted, claimed) {
            (Some(Bug::ResumeFromTheEnd), _) => start.after = last,
            (Some(Bug::NumbersAloneAcknowledge), Some(claimed)) => {
                start.after = claimed.max(pruned);
            }
            _ => {}
        }
        let (is_new, mut known) = (known.is_none(), known.unwrap_or_default());
        if known.again_through.is_some() {
            start.after = start.after.min(known.acked).max(pruned);
        }
        let before = known.holders.last().map(|held| held.by.clone());
        let joined = Joined {
            after: start.after,
            last,
            newest: self.events.get(&(bucket, last)).map(|event| event.id),
            backlog_end_lost: join
                .backlog_end
                .is_some_and(|(seq, id)| self.known(bucket, seq).differs_from(id)),
            went_back: start.went_back,
            before: before.map(|before| (before, known.seen_at)),
            own_before: standing.own.map(|own| own.acked),
            skipped: match is_new && join.claim.is_none() {
                true => start.after.0 - pruned.0,
                false => 0,
            },
            was_ended: false,
        };
        let began = this.filter(|this| this.has_acked() || join.claim.is_some());
        let own = owned(&join, began, common, (pruned, start.after));
        if let Some(me) = join.holder {
            known.holders.retain(|held| held.by.store != me.store);
            known.holders.push(Held { by: me, own });
        }
        known.move_to(start.after);
        known.seen_at = Some(join.now);
        if join.lease >= known.lease {
            known.lease = join.lease;
            self.subscriptions.insert(key, known);
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
