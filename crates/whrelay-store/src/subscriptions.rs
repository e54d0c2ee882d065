//! Subscriptions as a forwarder keeps them: how far each has come, who has it, and how it ends. It must not know
//! tunnels.

use std::ops::Range;

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::history::Own;
use whrelay_core::retention::Part;
use whrelay_core::time::Timestamp;

use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::events::last_place;
use crate::record::{self, Seal};
use crate::retention;
use crate::rows::{EndedRow, HolderRow, SubscriptionRow};
use crate::tables::SUBSCRIPTIONS;
use crate::tx::Tx;

/// The agent that has a subscription, or had it last.
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

/// A subscription, as a forwarder knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Its name.
    pub name: String,
    /// Nothing up to here was ever meant for it.
    pub since: Seq,
    /// Everything behind that and up to here was acknowledged.
    pub acked: Seq,
    /// When its agent was last heard of, as far as that is known.
    pub seen_at: Option<Timestamp>,
    /// The agent that had it last, as far as that is known.
    pub holder: Option<Holder>,
    /// When it was ended, and the last number given by then.
    pub ended: Option<(Timestamp, Seq)>,
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

/// The last session of a subscription, as far as its row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastSession {
    /// Its lease.
    pub lease: LeaseEpoch,
    /// When its agent was last heard of.
    pub seen_at: Option<Timestamp>,
}

impl LastSession {
    fn of(row: &SubscriptionRow) -> Self {
        Self {
            lease: LeaseEpoch(row.lease),
            seen_at: row.seen(),
        }
    }
}

impl Subscription {
    /// Its last session.
    pub fn last_session(&self) -> LastSession {
        LastSession {
            lease: self.lease,
            seen_at: self.seen_at,
        }
    }

    /// Events that wait for it, in a bucket that has given numbers up to `last` and removed everything up to
    /// `pruned`; of one that was ended, events that are unclaimed.
    pub fn waiting(&self, last: Seq, pruned: Seq) -> u64 {
        let through = self.ended.map_or(last, |(_, through)| through);
        through.0.saturating_sub(self.acked.max(pruned).0)
    }

    /// What became of the event at a place.
    pub fn fate(&self, seq: Seq) -> Fate {
        if seq <= self.since {
            Fate::NotMeant
        } else if seq <= self.acked {
            Fate::Acknowledged
        } else if let Some((_, through)) = self.ended {
            match seq <= through {
                true => Fate::Unclaimed,
                false => Fate::NotMeant,
            }
        } else {
            Fate::Queued
        }
    }
}

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

impl RedbStore {
    /// The place up to which a subscription has acknowledged; a new one begins before everything.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn acked(&self, bucket: BucketId, name: &str) -> Result<Seq, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(SUBSCRIPTIONS)?;
            let row = get(self.seal, &table, bucket, name)?;
            Ok(row.map_or(Seq(0), |row| Seq(row.acked)))
        })
    }

    /// The subscriptions of a bucket, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn subscriptions(&self, bucket: BucketId) -> Result<Vec<Subscription>, StoreError> {
        self.read(|tx| {
            let all = rows(self.seal, &tx.open_table(SUBSCRIPTIONS)?, bucket)?;
            let named = all
                .into_iter()
                .map(|(name, row)| Some(into_subscription(name, row?)));
            Ok(named.flatten().collect())
        })
    }

    /// The subscriptions of all buckets.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn all_subscriptions(&self) -> Result<Vec<(BucketId, Subscription)>, StoreError> {
        self.read(|tx| {
            let mut all = Vec::new();
            for entry in tx.open_table(SUBSCRIPTIONS)?.iter()? {
                let (place, record) = entry?;
                let (bucket, name) = place.value();
                let bucket = BucketId(bucket);
                let row = open(self.seal, bucket, name, record.value())?;
                let known = row.map(|row| into_subscription(name.to_owned(), row));
                all.extend(known.map(|known| (bucket, known)));
            }
            Ok(all)
        })
    }

    /// Moves a subscription's cursor forward: the agent has everything up to `upto` on disk. An acknowledgement under an
    /// older lease than the newest is ignored. The cursor never moves back.
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
        let name = name.to_owned();
        self.write(64, move |tx: &mut Tx<'_>| {
            let mut row = match get(tx.seal, tx.subscriptions.open()?, bucket, &name)? {
                Some(row) => row,
                None => SubscriptionRow {
                    since: pruned_through(tx, bucket)?.0,
                    ..SubscriptionRow::default()
                },
            };
            if row.acked >= upto.0 || lease.0 < row.lease {
                return Ok(());
            }
            row.lease = lease.0;
            if let Some(holder) = row.holders.last_mut() {
                holder.whole_after = holder.whole_after.min(row.acked);
                holder.acked = upto.0;
            }
            row.move_to(upto.0);
            put(tx, bucket, &name, &row)
        })
        .await
    }

    /// Notes that a subscription's agent is there.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn note_seen(
        &self,
        bucket: BucketId,
        name: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let seen = self.with_subscription(bucket, name.to_owned(), move |tx, name, mut row| {
            row.seen_at = row.seen_at.max(now.as_micros());
            put(tx, bucket, name, &row)
        });
        seen.await.map(|_| ())
    }

    /// Ends a subscription if `last` is still its last session: it keeps no event from being removed any more. What it has
    /// not acknowledged is unclaimed. One without unclaimed events is forgotten unless it was the last, and so is one
    /// whose record is damaged.
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
        let name = name.to_owned();
        self.write(64, move |tx: &mut Tx<'_>| {
            let mut rows = rows(tx.seal, tx.subscriptions.open()?, bucket)?;
            let Some(at) = rows.iter().position(|(known, _)| *known == name) else {
                return Ok(Ending::Unknown);
            };
            let (_, row) = rows.swap_remove(at);
            let Some(mut row) = row else {
                remove(tx, bucket, &name)?;
                return Ok(Ending::Ended { unclaimed: 0 });
            };
            if last != Some(LastSession::of(&row)) {
                return Ok(Ending::InUse);
            }
            let pruned = pruned_through(tx, bucket)?.0;
            let unclaimed = |through: u64| through.saturating_sub(row.acked.max(pruned));
            if let Some(before) = row.ended {
                let unclaimed = unclaimed(before.through);
                if unclaimed == 0 {
                    remove(tx, bucket, &name)?;
                }
                return Ok(Ending::Ended { unclaimed });
            }
            let (at, through) = (now.as_micros(), tx.last(bucket.0)?);
            let unclaimed = unclaimed(through);
            row.ended = Some(EndedRow { at, through });
            put(tx, bucket, &name, &row)?;
            // Of those that had received everything, the last one says where the next one begins.
            let is_active = |(_, row): &(String, Option<SubscriptionRow>)| {
                row.as_ref().is_some_and(|row| row.ended.is_none())
            };
            if unclaimed == 0 && rows.iter().any(is_active) {
                remove(tx, bucket, &name)?;
            }
            for (name, row) in rows {
                let ended = row.and_then(|row| Some((row.acked, row.ended?.through)));
                if ended.is_some_and(|(acked, through)| through <= acked) {
                    remove(tx, bucket, &name)?;
                }
            }
            Ok(Ending::Ended { unclaimed })
        })
        .await
    }

    /// Has a subscription sent again everything behind a place that is still there, under a new lease: what an older
    /// session acknowledges no longer counts.
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
        let rewound = self.with_subscription(bucket, name.to_owned(), move |tx, name, mut row| {
            if lease.0 <= row.lease {
                return Ok(Rewound::Overtaken);
            }
            row.lease = lease.0;
            let behind = behind.max(pruned_through(tx, bucket)?).0;
            if behind < row.acked {
                // From now on nothing that is asked for again is removed.
                row.move_to(behind);
            }
            put(tx, bucket, name, &row)?;
            let events = tx.last(bucket.0)?.saturating_sub(behind);
            Ok(Rewound::Sent { events })
        });
        Ok(rewound.await?.unwrap_or(Rewound::Unknown))
    }

    /// Forgets ended subscriptions of which nothing is kept any more: until then they say which events nobody else
    /// waits for. Answers their names.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn forget_ended(&self, bucket: BucketId) -> Result<Vec<String>, StoreError> {
        let is_over = move |row: &SubscriptionRow, pruned: Seq| {
            row.ended.is_some_and(|ended| ended.through <= pruned.0)
        };
        let pruned = self.bare_upto(bucket)?;
        let none = self.read(|tx| {
            let all = rows(self.seal, &tx.open_table(SUBSCRIPTIONS)?, bucket)?;
            let mut known = all.iter().filter_map(|(_, row)| row.as_ref());
            Ok(!known.any(|row| is_over(row, pruned)))
        })?;
        if none {
            return Ok(Vec::new());
        }
        self.write(64, move |tx: &mut Tx<'_>| {
            let pruned = pruned_through(tx, bucket)?;
            let all = rows(tx.seal, tx.subscriptions.open()?, bucket)?;
            let over = all
                .into_iter()
                .filter(|(_, row)| row.as_ref().is_some_and(|row| is_over(row, pruned)));
            let names: Vec<_> = over.map(|(name, _)| name).collect();
            for name in &names {
                remove(tx, bucket, name)?;
            }
            Ok(names)
        })
        .await
    }

    /// The place of the bucket's newest event; 0 where there was none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn last_seq(&self, bucket: BucketId) -> Result<Seq, StoreError> {
        self.read(|tx| last_place(self.seal, tx, bucket).map(Seq))
    }

    /// Works in one transaction on a subscription, where there is one of that name.
    async fn with_subscription<T: Send + 'static>(
        &self,
        bucket: BucketId,
        name: String,
        work: impl FnOnce(&mut Tx<'_>, &str, SubscriptionRow) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<Option<T>, StoreError> {
        self.write(64, move |tx: &mut Tx<'_>| {
            let row = get(tx.seal, tx.subscriptions.open()?, bucket, &name)?;
            row.map(|row| work(tx, &name, row)).transpose()
        })
        .await
    }
}

pub(crate) fn key(bucket: BucketId, name: &str) -> Vec<u8> {
    [&bucket.0.to_be_bytes(), name.as_bytes()].concat()
}

fn into_subscription(name: String, row: SubscriptionRow) -> Subscription {
    let seen_at = row.seen();
    let SubscriptionRow {
        acked,
        since,
        seen_at: _,
        holders,
        ended,
        again_through: _,
        lease,
    } = row;
    Subscription {
        name,
        since: Seq(since),
        acked: Seq(acked),
        seen_at,
        holder: holders.into_iter().next_back().map(Holder::from),
        ended: ended.map(|ended| (Timestamp::from_micros(ended.at), Seq(ended.through))),
        lease: LeaseEpoch(lease),
    }
}

impl From<HolderRow> for Holder {
    fn from(row: HolderRow) -> Self {
        let HolderRow {
            store,
            opens,
            instance,
            host,
            user,
            since: _,
            whole_after: _,
            acked: _,
        } = row;
        Self {
            store,
            opens,
            instance,
            host,
            user,
        }
    }
}

impl HolderRow {
    /// Whether it acknowledged anything itself.
    pub(crate) fn has_acked(&self) -> bool {
        self.acked > self.since
    }

    /// Which events it had.
    pub(crate) fn own(&self) -> Own {
        Own {
            since: Seq(self.since),
            whole_after: Seq(self.whole_after),
            acked: Seq(self.acked),
        }
    }

    pub(crate) fn new(holder: Holder, own: Own) -> Self {
        let Holder {
            store,
            opens,
            instance,
            host,
            user,
        } = holder;
        Self {
            store,
            opens,
            instance,
            host,
            user,
            since: own.since.0,
            whole_after: own.whole_after.0,
            acked: own.acked.0,
        }
    }
}

/// The place up to which a forwarder sends nothing any more.
pub(crate) fn pruned_through(tx: &mut Tx<'_>, bucket: BucketId) -> Result<Seq, StoreError> {
    retention::upto(tx.seal, tx.removals.open()?, bucket, Part::Body)
}

fn of_bucket(bucket: BucketId) -> Range<(u32, &'static str)> {
    (bucket.0, "")..(bucket.0 + 1, "")
}

/// Ids absorb what is sent again, so a place that is damaged costs only time.
fn open(
    seal: Seal,
    bucket: BucketId,
    name: &str,
    record: &[u8],
) -> Result<Option<SubscriptionRow>, StoreError> {
    let opened = seal.open("subscription", &key(bucket, name), record);
    Ok(record::undamaged(opened)?.map(|(row, _)| row))
}

pub(crate) fn get(
    seal: Seal,
    table: &impl ReadableTable<(u32, &'static str), &'static [u8]>,
    bucket: BucketId,
    name: &str,
) -> Result<Option<SubscriptionRow>, StoreError> {
    match table.get((bucket.0, name))? {
        Some(record) => open(seal, bucket, name, record.value()),
        None => Ok(None),
    }
}

/// The rows of a bucket by name; nothing for one that is damaged.
pub(crate) fn rows(
    seal: Seal,
    table: &impl ReadableTable<(u32, &'static str), &'static [u8]>,
    bucket: BucketId,
) -> Result<Vec<(String, Option<SubscriptionRow>)>, StoreError> {
    let mut all = Vec::new();
    for entry in table.range(of_bucket(bucket))? {
        let (place, record) = entry?;
        let name = place.value().1;
        all.push((name.to_owned(), open(seal, bucket, name, record.value())?));
    }
    Ok(all)
}

/// The place up to which a forwarder may remove what was received by then: every subscription has acknowledged
/// it, or was ended by then. Where nobody has ever subscribed, everything is still to be delivered.
pub(crate) fn removable_through(
    seal: Seal,
    table: &impl ReadableTable<(u32, &'static str), &'static [u8]>,
    bucket: BucketId,
    by: Timestamp,
) -> Result<Seq, StoreError> {
    let (mut least, mut ended_through) = (u64::MAX, 0);
    let mut active = false;
    for (_, row) in rows(seal, table, bucket)? {
        let Some(row) = row else {
            return Ok(Seq(0));
        };
        match row.ended {
            Some(ended) => {
                ended_through = ended.through.max(ended_through);
                if ended.at > by.as_micros() && row.acked < ended.through {
                    least = least.min(row.acked);
                }
            }
            None => {
                active = true;
                least = least.min(row.acked);
            }
        }
    }
    Ok(Seq(match active {
        true => least,
        false => least.min(ended_through),
    }))
}

pub(crate) fn put(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    name: &str,
    row: &SubscriptionRow,
) -> Result<(), StoreError> {
    let record = tx.seal.seal(&key(bucket, name), row)?;
    tx.subscriptions
        .open()?
        .insert((bucket.0, name), record.as_slice())?;
    Ok(())
}

fn remove(tx: &mut Tx<'_>, bucket: BucketId, name: &str) -> Result<(), StoreError> {
    tx.subscriptions.open()?.remove((bucket.0, name))?;
    Ok(())
}
