//! An agent joins a subscription: where it starts, decided and written in one transaction, so that nothing it
//! asks for again is removed in between. It must not know tunnels.

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::history::{Claim, Comparison, Known, Locator, Own, Standing, Start, WentBack};
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::retention::Part;
use whrelay_core::time::Timestamp;

use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::events::{last_place, record_of};
use crate::record::Seal;
use crate::retention;
use crate::rows::{EventRow, HolderRow, SubscriptionRow};
use crate::subscriptions::{self, Holder, LeaseEpoch};
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
    /// Events follow after this place.
    pub after: Seq,
    /// The last place given.
    pub last: Seq,
    /// The event there, if it can still be named.
    pub newest: Option<EventId>,
    /// Whether another event than the agent named, or none, has the number of the end of its backlog.
    pub backlog_end_lost: bool,
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

impl RedbStore {
    /// Has an agent join a subscription. Nothing is written if a newer lease was taken by then. Answers nothing where
    /// the bucket has as many subscriptions as it may have. A full disk keeps nobody from draining it: then nothing
    /// is written, either.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn join(&self, bucket: BucketId, join: Join) -> Result<Option<Joined>, StoreError> {
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
                let known = history.known(&asked, tx.subscriptions.open()?)?;
                let compared = history.compare(&asked, tx.events.open()?, tx.heads.open()?)?;
                let Some((joined, row)) = history.plan(&asked, &known, &compared) else {
                    return Ok(None);
                };
                if row.lease == asked.lease.0 {
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
                let known = history.known(&join, &tx.open_table(SUBSCRIPTIONS)?)?;
                let (events, heads) = (tx.open_table(EVENTS)?, tx.open_table(HEADS)?);
                let compared = history.compare(&join, &events, &heads)?;
                let planned = history.plan(&join, &known, &compared);
                Ok(planned.map(|(joined, _)| joined))
            }),
            joined => joined,
        }
    }
}

/// What is known of a subscription that an agent joins.
enum Subscribed {
    Own(Box<SubscriptionRow>),
    /// Nothing; of others by name, where it is whole.
    Others(Vec<(String, Option<SubscriptionRow>)>),
}

/// How a bucket's history here compares with what an agent knows of it.
struct Compared {
    newest: Option<EventId>,
    common: Comparison,
    backlog_end_lost: bool,
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
    /// Compares it with what an agent knows of it.
    fn compare<T: ReadableTable<(u32, u64), &'static [u8]>>(
        &self,
        join: &Join,
        events: &T,
        heads: &T,
    ) -> Result<Compared, StoreError> {
        let known = |seq: Seq| -> Result<Known, StoreError> {
            if seq > self.last {
                return Ok(Known::Never);
            }
            let Some(record) = record_of(events, heads, (self.bucket.0, seq.0))? else {
                return Ok(Known::Gone);
            };
            let key = event_key(self.bucket, seq);
            let opened = self.seal.open::<EventRow>("event", &key, record.value());
            Ok(opened.map_or(Known::Gone, |(row, _)| Known::Event(row.id())))
        };
        let newest = match known(self.last)? {
            Known::Event(id) => Some(id),
            Known::Gone | Known::Never => None,
        };
        let claim = join.claim.as_ref();
        let common = claim.map(|claim| claim.locator.compare(known));
        let backlog_end_lost = match join.backlog_end {
            Some((seq, id)) => known(seq)?.differs_from(id),
            None => false,
        };
        Ok(Compared {
            newest,
            common: common.transpose()?.unwrap_or_default(),
            backlog_end_lost,
        })
    }

    /// The row of a subscription, or where it has none, those of the others.
    fn known(
        &self,
        join: &Join,
        table: &impl ReadableTable<(u32, &'static str), &'static [u8]>,
    ) -> Result<Subscribed, StoreError> {
        Ok(
            match subscriptions::get(self.seal, table, self.bucket, &join.name)? {
                Some(row) => Subscribed::Own(Box::new(row)),
                None => Subscribed::Others(subscriptions::rows(self.seal, table, self.bucket)?),
            },
        )
    }

    /// Where a new subscription begins. One that does not say where begins now beside others, and alone with
    /// everything that is meant for nobody yet.
    fn first_start(&self, join: &Join, rows: &[(String, Option<SubscriptionRow>)]) -> Seq {
        if rows.iter().any(|(name, _)| *name == join.name) {
            // Its own was damaged: ids absorb what it is sent again.
            return Seq(0);
        }
        match join.wants_backlog {
            Some(true) => return Seq(0),
            Some(false) => return self.last,
            None => {}
        }
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
        known: &Subscribed,
        compared: &Compared,
    ) -> Option<(Joined, SubscriptionRow)> {
        let (row, others) = match known {
            Subscribed::Own(row) => (Some(row.as_ref()), &[][..]),
            Subscribed::Others(others) => (None, others.as_slice()),
        };
        if others.len() >= limits::MAX_SUBSCRIPTIONS {
            return None;
        }
        let before = row.and_then(|row| row.holders.last()).cloned();
        let this = row.and_then(|row| this_agent(join, row));
        let own = match before {
            None => row.map(|row| Own {
                since: Seq(row.since),
                whole_after: Seq(row.since),
                acked: Seq(row.acked),
            }),
            Some(_) => this.map(HolderRow::own),
        };
        // An agent that had acknowledged something and has nothing has lost it.
        let can_lose = join.is_empty && join.holder.is_some();
        let lost = this.filter(|this| can_lose && this.has_acked());
        let lost = lost.map(|this| Claim {
            seq: Seq(this.since),
            locator: Locator::default(),
            whole_after: Seq(0),
        });
        let claim = join.claim.as_ref().or(lost.as_ref());
        let standing = Standing {
            acked: row.map(|row| Seq(row.acked)),
            own,
            first_start: self.first_start(join, others),
            pruned_through: self.pruned,
        };
        let Start { after, went_back } = standing.start(claim, compared.common);
        let again = row.filter(|row| row.again_through.is_some());
        let after = again.map_or(after, |row| after.min(Seq(row.acked)).max(self.pruned));
        let is_new = row.is_none() && join.claim.is_none();
        let joined = Joined {
            after,
            last: self.last,
            newest: compared.newest,
            backlog_end_lost: compared.backlog_end_lost,
            went_back,
            before: before.map(|holder| (holder.into(), row.and_then(SubscriptionRow::seen))),
            own_before: own.map(|own| own.acked),
            skipped: match is_new {
                true => after.0.saturating_sub(self.pruned.0),
                false => 0,
            },
            was_ended: row.is_some_and(|row| row.ended.is_some()),
        };
        let mut next = row.cloned().unwrap_or_else(|| SubscriptionRow {
            since: after.0,
            ..SubscriptionRow::default()
        });
        next.move_to(after.0);
        next.ended = None;
        next.seen_at = join.now.as_micros();
        next.lease = next.lease.max(join.lease.0);
        if let Some(holder) = join.holder.clone() {
            let held = self.held(join, this, compared, after);
            next.holders.retain(|one| one.store != holder.store);
            next.holders.push(HolderRow::new(holder, held));
            let over = next.holders.len().saturating_sub(limits::HOLDERS);
            next.holders.drain(..over);
        }
        Some((joined, next))
    }

    /// Which events an agent says that it has. What others acknowledged is not its own.
    fn held(&self, join: &Join, this: Option<&HolderRow>, compared: &Compared, after: Seq) -> Own {
        let Some(claim) = &join.claim else {
            let began = this.filter(|this| this.has_acked());
            return Own {
                since: began.map_or(after, |this| Seq(this.since).min(after)),
                whole_after: after,
                acked: after,
            };
        };
        Own {
            // Where it is unknown here, nobody knows any more where it began.
            since: this.map_or(self.pruned, |this| Seq(this.since).min(after)),
            whole_after: match after > claim.seq {
                true => after,
                false => claim.whole_after,
            },
            acked: compared.common.of(claim).min(after),
        }
    }
}

/// What is known of the agent that joins.
fn this_agent<'a>(join: &Join, row: &'a SubscriptionRow) -> Option<&'a HolderRow> {
    let is_this = |holder: &&HolderRow| {
        // Versions that do not say who they are came alone.
        join.holder
            .as_ref()
            .is_none_or(|this| this.store == holder.store)
    };
    row.holders.iter().rfind(is_this)
}
