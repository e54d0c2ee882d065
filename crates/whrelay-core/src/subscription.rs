//! A subscription: how far its agents have come in a bucket, where the next one starts, and what it keeps from being
//! removed.

use crate::bucket::Seq;
use crate::history::{Claim, Comparison, Known, Locator, Own, Standing, Start, WentBack};
use crate::id::EventId;
use crate::limits;
use crate::time::Timestamp;

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The name of its store.
    pub store: String,
    /// How often that store was opened.
    pub opens: u64,
    /// Which opening it is.
    pub instance: u64,
    /// Its machine.
    pub host: String,
    /// Its user there.
    pub user: String,
}

/// An agent that had a subscription, and what it said that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The agent.
    pub by: Holder,
    /// What it has.
    pub own: Own,
}

/// One taking of a subscription by a session. A later one has a larger number, over restarts, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseEpoch(pub u64);

impl LeaseEpoch {
    /// What comes before the first one of a store that was opened so often.
    pub fn before_first(opens: u64) -> Self {
        Self(opens << 32)
    }

    /// The next one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The end of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ended {
    /// The last number given by then: what it had not acknowledged up to there is unclaimed.
    pub through: Seq,
    /// When.
    pub at: Timestamp,
}

/// A subscription, as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// Nothing up to here was ever meant for it.
    pub since: Seq,
    /// Everything behind that and up to here was acknowledged.
    pub acked: Seq,
    /// When its agent was last heard of, as far as that is known.
    pub seen_at: Option<Timestamp>,
    /// The agents that had it, as far as they are known, the last one last.
    pub holders: Vec<Held>,
    /// Its end, if it was ended.
    pub ended: Option<Ended>,
    /// Everything that is not acknowledged up to here is sent again, to whichever agent comes: it was acknowledged
    /// before, and the agent that had it may have lost it.
    pub again_through: Option<Seq>,
    /// The newest lease that was taken.
    pub lease: LeaseEpoch,
}

/// What became of an event for a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was never meant for it.
    NotMeant,
    /// Its agent has it on disk.
    Acknowledged,
    /// It waits for its agent.
    Queued,
    /// The subscription was ended before its agent had it.
    Unclaimed,
}

/// The last session of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastSession {
    /// Its lease.
    pub lease: LeaseEpoch,
    /// When its agent was last heard of.
    pub seen_at: Option<Timestamp>,
}

impl Subscription {
    /// A new one, for which nothing up to `since` is meant.
    pub fn new(since: Seq) -> Self {
        Self {
            since,
            ..Self::default()
        }
    }

    /// Its last session.
    pub fn last_session(&self) -> LastSession {
        LastSession {
            lease: self.lease,
            seen_at: self.seen_at,
        }
    }

    /// The agent that had it last, as far as that is known.
    pub fn holder(&self) -> Option<&Holder> {
        self.holders.last().map(|held| &held.by)
    }

    /// The number up to which events wait for it, in a bucket that has given numbers up to `last`; of one that was ended,
    /// events up to there are unclaimed.
    pub fn waits_through(&self, last: Seq) -> Seq {
        self.ended.map_or(last, |ended| ended.through)
    }

    /// What became of the event with a number.
    pub fn fate(&self, seq: Seq) -> Fate {
        if seq <= self.since {
            Fate::NotMeant
        } else if seq <= self.acked {
            Fate::Acknowledged
        } else if let Some(ended) = self.ended {
            match seq <= ended.through {
                true => Fate::Unclaimed,
                false => Fate::NotMeant,
            }
        } else {
            Fate::Queued
        }
    }

    /// Everything up to a number is acknowledged, and nothing behind it.
    pub fn move_to(&mut self, seq: Seq) {
        if seq < self.acked {
            self.again_through = self.again_through.max(Some(self.acked));
            self.since = self.since.min(seq);
        }
        self.again_through = self.again_through.filter(|through| *through > seq);
        self.acked = seq;
    }

    /// The agent that holds this lease has everything up to `upto` on disk. An acknowledgement under an older lease than
    /// the newest is ignored, and the cursor never moves back.
    pub fn ack(&mut self, upto: Seq, lease: LeaseEpoch) {
        if self.acked >= upto || lease < self.lease {
            return;
        }
        self.lease = lease;
        if let Some(Held { own, .. }) = self.holders.last_mut() {
            own.whole_after = own.whole_after.min(self.acked);
            own.acked = upto;
        }
        self.move_to(upto);
    }

    /// Its agent is there.
    pub fn see(&mut self, now: Timestamp) {
        self.seen_at = self.seen_at.max(Some(now));
    }

    /// Everything behind a number is sent again, under a lease that is newer than all others: what an older session
    /// acknowledges no longer counts. Answers whether the lease is newer; if not, nothing changes.
    pub fn rewind(&mut self, behind: Seq, lease: LeaseEpoch) -> bool {
        let is_newer = lease > self.lease;
        if is_newer {
            self.lease = lease;
            if behind < self.acked {
                self.move_to(behind);
            }
        }
        is_newer
    }

    /// Whether it was ended, and its agent had received everything by then.
    pub fn is_done(&self) -> bool {
        self.ended.is_some_and(|ended| ended.through <= self.acked)
    }
}

/// The number up to which what was received by then may be removed: every subscription has acknowledged it, or was ended
/// by then. Where nobody has ever subscribed, everything is still to be delivered, and where what is stored of a
/// subscription is damaged, nobody knows.
pub fn removable_through<'a>(
    all: impl IntoIterator<Item = Option<&'a Subscription>>,
    by: Timestamp,
) -> Seq {
    let (mut least, mut ended_through) = (Seq(u64::MAX), Seq(0));
    let mut is_active = false;
    for one in all {
        let Some(one) = one else {
            return Seq(0);
        };
        match one.ended {
            Some(ended) => {
                ended_through = ended.through.max(ended_through);
                if ended.at > by && !one.is_done() {
                    least = least.min(one.acked);
                }
            }
            None => {
                is_active = true;
                least = least.min(one.acked);
            }
        }
    }
    match is_active {
        true => least,
        false => least.min(ended_through),
    }
}

/// What an agent says as it comes.
#[derive(Clone, Debug)]
pub struct Join {
    /// The subscription.
    pub name: String,
    /// Who it is; nothing where its version does not say.
    pub holder: Option<Holder>,
    /// What it has of this store's history; nothing where it has something of another store's.
    pub claim: Option<Claim>,
    /// Whether it has nothing at all.
    pub is_empty: bool,
    /// Whether it wants what came before, should it be new here; nothing to let the forwarder decide.
    pub wants_backlog: Option<bool>,
    /// The newest event that was here when the agent began, as far as it knows.
    pub backlog_end: Option<(Seq, EventId)>,
    /// Its lease.
    pub lease: LeaseEpoch,
    /// Now.
    pub now: Timestamp,
}

/// What it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Events follow after this number.
    pub after: Seq,
    /// The last number given.
    pub last: Seq,
    /// The event there, if it can still be named.
    pub newest: Option<EventId>,
    /// Whether another event than the agent named, or none, has the number of the end of its backlog.
    pub backlog_end_lost: bool,
    /// Which directory went back to an earlier copy, if one did.
    pub went_back: Option<WentBack>,
    /// Who had the subscription before, and when that agent was last heard of.
    pub before: Option<(Holder, Option<Timestamp>)>,
    /// The number up to which this agent had acknowledged before.
    pub own_before: Option<Seq>,
    /// Whether the subscription is new: events up to `after` are not sent to it.
    pub is_new: bool,
    /// Whether it had been ended.
    pub was_ended: bool,
}

/// What is stored of the subscription that an agent joins.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// This.
    Known(&'a Subscription),
    /// Nothing. These are the others of its bucket, where they are undamaged.
    New(&'a [Option<Subscription>]),
    /// Something damaged.
    Damaged,
}

/// The history of the bucket that an agent joins.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// The last number given.
    pub last: Seq,
    /// Up to here nothing can be sent any more.
    pub pruned: Seq,
    /// What is at the last number.
    pub newest: Known,
    /// How it compares with what the agent claims.
    pub common: Comparison,
    /// What is at the end of the agent's backlog.
    pub backlog_end: Option<Known>,
}

impl Join {
    /// The numbers of whose events [`Join::compare`] asks.
    pub fn asks(&self, last: Seq) -> Vec<Seq> {
        let claim = self.claim.iter();
        let claimed = claim.flat_map(|claim| claim.locator.entries().iter().map(|entry| entry.0));
        let end = self.backlog_end.iter().map(|end| end.0);
        claimed.chain(end).chain([last]).collect()
    }

    /// Compares the history of a bucket, which has given numbers up to `last` and can send nothing up to `pruned`, with
    /// what the agent says. `id_at` says which event has a number; `None` if nobody can name it any more.
    pub fn compare(
        &self,
        last: Seq,
        pruned: Seq,
        id_at: impl Fn(Seq) -> Option<EventId>,
    ) -> History {
        let known = |seq: Seq| match id_at(seq) {
            _ if seq > last => Known::Never,
            Some(id) => Known::Event(id),
            None => Known::Gone,
        };
        let claim = self.claim.as_ref();
        let at = |seq| Ok::<_, std::convert::Infallible>(known(seq));
        let common = claim.map(|claim| claim.locator.compare(at));
        History {
            last,
            pruned,
            newest: known(last),
            common: common.map(|Ok(common)| common).unwrap_or_default(),
            backlog_end: self.backlog_end.map(|(seq, _)| known(seq)),
        }
    }

    /// Where the agent starts, and the subscription from then on. `None` if its bucket has as many as it may have. What
    /// follows is to be stored unless a newer lease than the agent's was taken: then it only says where it would start.
    pub fn decide(&self, stored: Stored<'_>, history: &History) -> Option<(Joined, Subscription)> {
        let known = match stored {
            Stored::New(others) if others.len() >= limits::MAX_SUBSCRIPTIONS => return None,
            Stored::Known(known) => Some(known),
            Stored::New(_) | Stored::Damaged => None,
        };
        let this = known.and_then(|known| self.this_agent(known));
        let own = known.and_then(|known| match known.holders.is_empty() {
            true => Some(Own {
                since: known.since,
                whole_after: known.since,
                acked: known.acked,
            }),
            false => this.map(|held| held.own),
        });
        let lost = self.has_lost(this);
        let standing = Standing {
            acked: known.map(|known| known.acked),
            own,
            first_start: self.first_start(stored, history.last),
            pruned_through: history.pruned,
        };
        let claim = self.claim.as_ref().or(lost.as_ref());
        let Start { after, went_back } = standing.start(claim, history.common);
        let again = known.filter(|known| known.again_through.is_some());
        let after = again.map_or(after, |known| after.min(known.acked).max(history.pruned));
        let newest = match history.newest {
            Known::Event(id) => Some(id),
            Known::Gone | Known::Never => None,
        };
        let backlog_end = self.backlog_end.zip(history.backlog_end);
        let joined = Joined {
            after,
            last: history.last,
            newest,
            backlog_end_lost: backlog_end.is_some_and(|((_, id), there)| there.differs_from(id)),
            went_back,
            before: known.and_then(|known| Some((known.holder()?.clone(), known.seen_at))),
            own_before: own.map(|own| own.acked),
            is_new: known.is_none() && self.claim.is_none(),
            was_ended: known.is_some_and(|known| known.ended.is_some()),
        };
        let own = self.has(this, history, after);
        let known = known.cloned();
        let mut next = known.unwrap_or_else(|| Subscription::new(after));
        next.move_to(after);
        (next.ended, next.seen_at) = (None, Some(self.now));
        next.lease = next.lease.max(self.lease);
        if let Some(by) = self.holder.clone() {
            next.holders.retain(|held| held.by.store != by.store);
            next.holders.push(Held { by, own });
            let over = next.holders.len().saturating_sub(limits::HOLDERS);
            next.holders.drain(..over);
        }
        Some((joined, next))
    }

    /// What is known of the agent that joins. One that says nothing of itself is of a version that came alone.
    fn this_agent<'a>(&self, known: &'a Subscription) -> Option<&'a Held> {
        let is_this = |held: &&Held| {
            let this = self.holder.as_ref();
            this.is_none_or(|this| this.store == held.by.store)
        };
        known.holders.iter().rfind(is_this)
    }

    /// What an agent claims that had acknowledged something and has nothing: it has lost it.
    fn has_lost(&self, this: Option<&Held>) -> Option<Claim> {
        let this = this.filter(|this| this.own.has_acked())?;
        (self.is_empty && self.holder.is_some()).then(|| Claim {
            seq: this.own.since,
            locator: Locator::default(),
            whole_after: Seq(0),
        })
    }

    /// Where a new subscription begins. One that does not say where begins now beside others, and alone with everything
    /// that is meant for nobody yet.
    fn first_start(&self, stored: Stored<'_>, last: Seq) -> Seq {
        let others = match stored {
            Stored::New(others) => others,
            Stored::Known(_) => &[],
            // Ids absorb what it is sent again.
            Stored::Damaged => return Seq(0),
        };
        match self.wants_backlog {
            Some(true) => Seq(0),
            Some(false) => last,
            None => {
                let ends = others.iter().map(|one| Some(one.as_ref()?.ended?.through));
                let ends: Option<Vec<Seq>> = ends.collect();
                ends.map_or(last, |ends| ends.into_iter().max().unwrap_or(Seq(0)))
            }
        }
    }

    /// Which events the agent says that it has. What others acknowledged is not its own.
    fn has(&self, this: Option<&Held>, history: &History, after: Seq) -> Own {
        let Some(claim) = &self.claim else {
            let began = this.filter(|this| this.own.has_acked());
            return Own {
                since: began.map_or(after, |this| this.own.since.min(after)),
                whole_after: after,
                acked: after,
            };
        };
        Own {
            // Where it is unknown here, nobody knows any more where it began.
            since: this.map_or(history.pruned, |this| this.own.since.min(after)),
            whole_after: match after > claim.seq {
                true => after,
                false => claim.whole_after,
            },
            acked: history.common.of(claim).min(after),
        }
    }
}

impl Own {
    /// Whether it acknowledged anything itself.
    fn has_acked(&self) -> bool {
        self.acked > self.since
    }
}
