//! What agents and people do with a subscription: it is read, `core::subscription` decides, and it is stored if nothing
//! has changed meanwhile; else all of that is done again.

use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::subscription::{
    Ended, Join, Joined, LastSession, LeaseEpoch, Stored, Subscription,
};
use whrelay_core::time::Timestamp;

use crate::error::StoreError;
use crate::journal::Journal;
use crate::subscriptions::{NamedSubscription, Subscribed};

/// What became of a subscription that was to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// No subscription has that name.
    Unknown,
    /// It has had another session since it was looked at.
    InUse,
    /// It has ended.
    Ended {
        /// Events that it had not received, and that are still there.
        unclaimed: u64,
    },
}

/// What became of a subscription that was to be sent events again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewound {
    /// No subscription has that name.
    Unknown,
    /// A lease as new as this one was taken: ask with a newer one.
    Overtaken,
    /// They are sent again.
    Sent {
        /// How many, at most.
        events: u64,
    },
}

impl dyn Journal + '_ {
    /// An agent joins a subscription. `None` if the bucket has as many as it may have. Nothing is stored if a newer
    /// lease was taken. A full disk keeps nobody from draining it: then nothing is stored, either.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn join(&self, bucket: BucketId, join: &Join) -> Result<Option<Joined>, StoreError> {
        loop {
            let before = self.subscription(bucket, &join.name).await?;
            let others = match before {
                Subscribed::Absent => self.others(bucket).await?,
                Subscribed::Damaged | Subscribed::Known(_) => Vec::new(),
            };
            let stored = match &before {
                Subscribed::Absent => Stored::New(&others),
                Subscribed::Damaged => Stored::Damaged,
                Subscribed::Known(known) => Stored::Known(known),
            };
            if let Some(joined) = self.try_join(bucket, join, &before, stored).await? {
                return Ok(joined);
            }
        }
    }

    /// `None` if the subscription was changed since it was read.
    async fn try_join(
        &self,
        bucket: BucketId,
        join: &Join,
        before: &Subscribed,
        stored: Stored<'_>,
    ) -> Result<Option<Option<Joined>>, StoreError> {
        let mut before = before.clone();
        loop {
            let numbers = self.numbers(bucket).await?;
            let asked = join.asks(numbers.last);
            let ids = self.ids_at(bucket, &asked).await?;
            let id_at = |seq| {
                let at = asked.iter().position(|asked| *asked == seq);
                at.and_then(|at| ids[at])
            };
            let history = join.compare(numbers.last, numbers.pruned, id_at);
            let Some((joined, after)) = join.decide(stored, &history) else {
                return Ok(Some(None));
            };
            if after.lease != join.lease {
                return Ok(Some(Some(joined)));
            }
            let put = self.put_subscription(bucket, &join.name, &before, Some(&after));
            match put.await {
                Ok(false) => return Ok(None),
                Err(error) if error.is_retryable() => return Ok(Some(Some(joined))),
                put => put?,
            };
            // From now on nothing is removed that it is to be sent; something may have been before.
            if self.numbers(bucket).await?.pruned <= joined.after {
                return Ok(Some(Some(joined)));
            }
            before = Subscribed::Known(after);
        }
    }

    /// The subscriptions of a bucket, where they are undamaged.
    async fn others(&self, bucket: BucketId) -> Result<Vec<Option<Subscription>>, StoreError> {
        let all = self.subscriptions(Some(bucket)).await?.into_iter();
        Ok(all.map(|one| one.stored.known().cloned()).collect())
    }

    /// The agent that holds `lease` has everything up to `upto` on disk.
    ///
    /// # Errors
    /// When it is not on disk; a later ack makes up for it.
    pub async fn ack(
        &self,
        bucket: BucketId,
        name: &str,
        upto: Seq,
        lease: LeaseEpoch,
    ) -> Result<(), StoreError> {
        loop {
            let before = self.subscription(bucket, name).await?;
            let mut after = match &before {
                Subscribed::Known(known) => known.clone(),
                Subscribed::Absent | Subscribed::Damaged => {
                    Subscription::new(self.numbers(bucket).await?.pruned)
                }
            };
            after.ack(upto, lease);
            if before.known() == Some(&after)
                || self
                    .put_subscription(bucket, name, &before, Some(&after))
                    .await?
            {
                return Ok(());
            }
        }
    }

    /// A subscription's agent is there.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn note_seen(
        &self,
        bucket: BucketId,
        name: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        loop {
            let before = self.subscription(bucket, name).await?;
            let Some(mut after) = before.known().cloned() else {
                return Ok(());
            };
            after.see(now);
            if self
                .put_subscription(bucket, name, &before, Some(&after))
                .await?
            {
                return Ok(());
            }
        }
    }

    /// Ends a subscription if `last` is still its last session: it keeps no event from being removed any more. What it
    /// has not acknowledged is unclaimed. One without unclaimed events is forgotten unless it was the last, and so is one
    /// that is damaged.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn end_subscription(
        &self,
        bucket: BucketId,
        name: &str,
        last: Option<LastSession>,
        now: Timestamp,
    ) -> Result<Ending, StoreError> {
        loop {
            let before = self.subscription(bucket, name).await?;
            let numbers = self.numbers(bucket).await?;
            let mut unclaimed = 0;
            let after = match &before {
                Subscribed::Absent => return Ok(Ending::Unknown),
                Subscribed::Damaged => None,
                Subscribed::Known(known) if last != Some(known.last_session()) => {
                    return Ok(Ending::InUse);
                }
                Subscribed::Known(known) => {
                    let mut after = known.clone();
                    let (at, through) = (now, numbers.last);
                    after.ended = known.ended.or(Some(Ended { through, at }));
                    let through = after.waits_through(numbers.last);
                    unclaimed = self.count(bucket, after.acked, through).await?;
                    // Of one that is ended again, nobody needs to know any more.
                    (known.ended.is_none() || unclaimed > 0).then_some(after)
                }
            };
            let put = self.put_subscription(bucket, name, &before, after.as_ref());
            if put.await? {
                self.forget_done(bucket).await?;
                return Ok(Ending::Ended { unclaimed });
            }
        }
    }

    /// Forgets ended subscriptions without unclaimed events. If no other is left, the one that ended last stays: it says
    /// where the next one begins.
    async fn forget_done(&self, bucket: BucketId) -> Result<(), StoreError> {
        let all = self.subscriptions(Some(bucket)).await?;
        let pruned = self.numbers(bucket).await?.pruned;
        let known = |one: &NamedSubscription| one.stored.known().cloned();
        let is_active = all.iter().filter_map(known).any(|one| one.ended.is_none());
        let ends = all
            .iter()
            .filter_map(|one| Some((known(one)?.ended?, &one.name)));
        let last = ends.max().filter(|_| !is_active);
        for one in &all {
            let is_done = |known: &Subscription| {
                known.is_done() || known.ended.is_some_and(|ended| ended.through <= pruned)
            };
            let is_last = last.is_some_and(|(_, name)| *name == one.name);
            if one.stored.known().is_some_and(is_done) && !is_last {
                self.put_subscription(bucket, &one.name, &one.stored, None)
                    .await?;
            }
        }
        Ok(())
    }

    /// Has a subscription sent again everything behind a number that is still there, under a new lease.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn rewind_subscription(
        &self,
        bucket: BucketId,
        name: &str,
        behind: Seq,
        lease: LeaseEpoch,
    ) -> Result<Rewound, StoreError> {
        loop {
            let before = self.subscription(bucket, name).await?;
            let Some(mut after) = before.known().cloned() else {
                return Ok(Rewound::Unknown);
            };
            let numbers = self.numbers(bucket).await?;
            let behind = behind.max(numbers.pruned);
            if !after.rewind(behind, lease) {
                return Ok(Rewound::Overtaken);
            }
            if self
                .put_subscription(bucket, name, &before, Some(&after))
                .await?
            {
                let events = self.count(bucket, behind, numbers.last).await?;
                return Ok(Rewound::Sent { events });
            }
        }
    }

    /// Forgets ended subscriptions of which nothing is kept any more: until then they say which events nobody else
    /// waits for. Answers their names.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn forget_ended(&self, bucket: BucketId) -> Result<Vec<String>, StoreError> {
        let pruned = self.numbers(bucket).await?.pruned;
        let mut names = Vec::new();
        for one in self.subscriptions(Some(bucket)).await? {
            let ended = one.stored.known().and_then(|known| known.ended);
            if ended.is_some_and(|ended| ended.through <= pruned)
                && self
                    .put_subscription(bucket, &one.name, &one.stored, None)
                    .await?
            {
                names.push(one.name);
            }
        }
        Ok(names)
    }
}
