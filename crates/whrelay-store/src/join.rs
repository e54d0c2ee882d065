//! An agent joins a subscription: where it starts, decided and written in one transaction, so that nothing it
//! asks for again is removed in between. It must not know tunnels.

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::history::{Claim, Comparison, Known, Locator, Standing, Start, WentBack};
use whrelay_core::limits;
use whrelay_core::retention::Part;
use whrelay_core::time::Timestamp;

use crate::disk::Store;
use crate::error::StoreError;
use crate::events::{last_place, record_of};
use crate::record::Seal;
use crate::retention;
use crate::rows::{EventRow, HolderRow, SubscriptionRow};
use crate::subscriptions::{self, Holder};
use crate::tables::{EVENTS, HEADS, REMOVALS, SUBSCRIPTIONS, event_key};
use crate::tx::Tx;

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
    /// Now.
    pub now: Timestamp,
}

/// What it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Events follow after this place.
    pub after: Seq,
    /// The last place given.
    pub last: Seq,
    /// Which directory went back to an earlier copy, if one did.
    pub went_back: Option<WentBack>,
    /// Who had the subscription before, and when that agent was last heard of.
    pub before: Option<(Holder, Option<Timestamp>)>,
    /// The place up to which this agent had acknowledged before.
    pub own_before: Option<Seq>,
    /// Events that are kept and not sent, since the subscription is new and begins now.
    pub skipped: u64,
    /// Whether it had been ended.
    pub was_ended: bool,
}

impl Store {
    /// Has an agent join a subscription, if it still speaks for it when that is written. Answers nothing where the
    /// bucket has as many subscriptions as it may have. A full disk keeps nobody from draining it: then nothing
    /// is written.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn join(
        &self,
        bucket: BucketId,
        join: Join,
        speaks: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<Option<Joined>, StoreError> {
        let asked = join.clone();
        let joined = self
            .write(512, move |tx: &mut Tx<'_>| {
                let (last, pruned) = (
                    Seq(tx.last(bucket.0)?),
                    subscriptions::pruned_through(tx, bucket)?,
                );
                let history = History {
                    seal: tx.seal,
                    bucket,
                    last,
                    pruned,
                };
                let rows = subscriptions::rows(tx.seal, tx.subscriptions.open()?, bucket)?;
                let common = history.common(&asked, tx.events.open()?, tx.heads.open()?)?;
                let Some((joined, row)) = history.plan(&asked, &rows, common) else {
                    return Ok(None);
                };
                if speaks() {
                    subscriptions::put(tx, bucket, &asked.name, &row)?;
                }
                Ok(Some(joined))
            })
            .await;
        match joined {
            Err(error) if error.is_retryable() => self.read(|tx| {
                let removals = tx.open_table(REMOVALS)?;
                let history = History {
                    seal: self.seal,
                    bucket,
                    last: Seq(last_place(self.seal, tx, bucket)?),
                    pruned: retention::upto(self.seal, &removals, bucket, Part::Body)?,
                };
                let rows = tx.open_table(SUBSCRIPTIONS)?;
                let rows = subscriptions::rows(self.seal, &rows, bucket)?;
                let (events, heads) = (tx.open_table(EVENTS)?, tx.open_table(HEADS)?);
                let common = history.common(&join, &events, &heads)?;
                Ok(history.plan(&join, &rows, common).map(|(joined, _)| joined))
            }),
            joined => joined,
        }
    }
}

/// A bucket's history here.
struct History {
    seal: Seal,
    bucket: BucketId,
    /// The last number given.
    last: Seq,
    /// Up to here nothing can be sent any more.
    pruned: Seq,
}

impl History {
    /// What it has in common with what an agent claims to have.
    fn common<T: ReadableTable<(u32, u64), &'static [u8]>>(
        &self,
        join: &Join,
        events: &T,
        heads: &T,
    ) -> Result<Comparison, StoreError> {
        let Some(claim) = &join.claim else {
            return Ok(Comparison::default());
        };
        claim.locator.compare(|seq| {
            if seq > self.last {
                return Ok(Known::Never);
            }
            let Some(record) = record_of(events, heads, (self.bucket.0, seq.0))? else {
                return Ok(Known::Gone);
            };
            let key = event_key(self.bucket, seq);
            let opened = self.seal.open::<EventRow>("event", &key, record.value());
            Ok(opened.map_or(Known::Gone, |(row, _)| Known::Event(row.id())))
        })
    }

    /// Where a new subscription begins that does not say where: beside others now, alone with everything that is
    /// meant for nobody yet.
    fn unasked_start(&self, rows: &[(String, Option<SubscriptionRow>)]) -> Seq {
        let mut ended = Seq(0);
        for (_, row) in rows {
            match row.as_ref().map(|row| row.ended) {
                Some(Some(end)) => ended = ended.max(Seq(end.through)),
                Some(None) | None => return self.last,
            }
        }
        ended
    }

    /// Where the agent starts, and the row that says so.
    fn plan(
        &self,
        join: &Join,
        rows: &[(String, Option<SubscriptionRow>)],
        common: Comparison,
    ) -> Option<(Joined, SubscriptionRow)> {
        let row = rows.iter().find(|(name, _)| *name == join.name);
        let row = row.and_then(|(_, row)| row.as_ref());
        if row.is_none() && rows.len() >= limits::MAX_SUBSCRIPTIONS {
            return None;
        }
        let mut holders = row.map_or_else(Vec::new, |row| row.holders.clone());
        let before = holders.last().cloned();
        let is_this = |holder: &HolderRow| {
            // Versions that do not say who they are came alone.
            join.holder
                .as_ref()
                .is_none_or(|this| this.store == holder.store)
        };
        let own = match before {
            None => row.map(|row| Seq(row.acked)),
            Some(_) => holders
                .iter()
                .rfind(|one| is_this(one))
                .map(|one| Seq(one.acked)),
        };
        // An agent that had acknowledged something and has nothing has lost it.
        let is_known = before
            .as_ref()
            .is_some_and(|one| join.holder.is_some() && is_this(one));
        let lost = row.filter(|_| join.is_empty && is_known).map(|row| Claim {
            seq: Seq(row.since),
            locator: Locator::default(),
        });
        let claim = join.claim.as_ref().or(lost.as_ref());
        let first_start = match join.wants_backlog {
            Some(true) => Seq(0),
            Some(false) => self.last,
            None => self.unasked_start(rows),
        };
        let standing = Standing {
            acked: row.map(|row| Seq(row.acked)),
            by_this_agent: before.as_ref().is_none_or(is_this),
            own,
            first_start,
            pruned_through: self.pruned,
        };
        let Start { after, went_back } = standing.start(claim, common);
        let rewind = row.and_then(|row| row.rewind);
        let after = rewind.map_or(after, |rewind| after.min(Seq(rewind)).max(self.pruned));
        let is_new = row.is_none() && join.claim.is_none();
        let joined = Joined {
            after,
            last: self.last,
            went_back,
            before: before.map(|holder| (holder.into(), row.and_then(SubscriptionRow::seen))),
            own_before: own,
            skipped: match is_new {
                true => after.0.saturating_sub(self.pruned.0),
                false => 0,
            },
            was_ended: row.is_some_and(|row| row.ended.is_some()),
        };
        let since = row.map_or(after.0, |row| row.since.min(after.0));
        if let Some(holder) = join.holder.clone() {
            holders.retain(|one| one.store != holder.store);
            holders.push(HolderRow::new(holder, after));
            holders.drain(..holders.len().saturating_sub(limits::HOLDERS));
        }
        let row = SubscriptionRow {
            acked: after.0,
            since,
            seen_at: join.now.as_micros(),
            holders,
            ended: None,
            rewind: rewind.map(|_| after.0),
        };
        Some((joined, row))
    }
}
