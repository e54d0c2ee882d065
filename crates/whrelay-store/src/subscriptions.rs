//! What is stored of subscriptions. It must not know what a change of one means.

use std::ops::Range;

use redb::ReadableTable;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::history::Own;
use whrelay_core::id::EventId;
use whrelay_core::retention::Part;
use whrelay_core::subscription::{self, Ended, Held, Holder, LeaseEpoch, Subscription};
use whrelay_core::time::Timestamp;

use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::events::{last_place, record_of};
use crate::record::{self, Seal};
use crate::retention;
use crate::rows::{EndedRow, EventRow, HolderRow, SubscriptionRow};
use crate::tables::{EVENTS, HEADS, REMOVALS, SUBSCRIPTIONS, event_key};
use crate::tx::Tx;

/// What is stored of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subscribed {
    /// Nothing.
    Absent,
    /// Something damaged.
    Damaged,
    /// This.
    Known(Subscription),
}

impl Subscribed {
    /// The subscription, if it is undamaged.
    pub fn known(&self) -> Option<&Subscription> {
        match self {
            Self::Known(known) => Some(known),
            Self::Absent | Self::Damaged => None,
        }
    }
}

/// A subscription of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSubscription {
    /// The bucket.
    pub bucket: BucketId,
    /// Its name.
    pub name: String,
    /// What is stored of it.
    pub stored: Subscribed,
}

/// The numbers of a bucket's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The events up to here, or their bodies, may have been removed: none of them is sent any more.
    pub pruned: Seq,
    /// The last number given.
    pub last: Seq,
}

impl RedbStore {
    /// The number up to which a subscription has acknowledged; a new one begins before everything.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn acked(&self, bucket: BucketId, name: &str) -> Result<Seq, StoreError> {
        let stored = self.subscription(bucket, name)?;
        Ok(stored.known().map_or(Seq(0), |known| known.acked))
    }

    /// What is stored of a subscription.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn subscription(&self, bucket: BucketId, name: &str) -> Result<Subscribed, StoreError> {
        self.read(|tx| get(self.seal, &tx.open_table(SUBSCRIPTIONS)?, bucket, name))
    }

    /// The subscriptions of a bucket, or of all, by bucket and name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn subscriptions(
        &self,
        of: Option<BucketId>,
    ) -> Result<Vec<NamedSubscription>, StoreError> {
        self.read(|tx| {
            let (table, mut all) = (tx.open_table(SUBSCRIPTIONS)?, Vec::new());
            let rows = match of {
                Some(bucket) => table.range(of_bucket(bucket))?,
                None => table.iter()?,
            };
            for entry in rows {
                let (place, record) = entry?;
                let (bucket, name) = place.value();
                let bucket = BucketId(bucket);
                all.push(NamedSubscription {
                    bucket,
                    name: name.to_owned(),
                    stored: open(self.seal, bucket, name, record.value())?,
                });
            }
            Ok(all)
        })
    }

    /// Stores a subscription, or removes it, if `before` is what is stored of it. Answers whether `after` is stored.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn put_subscription(
        &self,
        bucket: BucketId,
        name: &str,
        before: &Subscribed,
        after: Option<&Subscription>,
    ) -> Result<bool, StoreError> {
        let after = after.cloned().map_or(Subscribed::Absent, Subscribed::Known);
        let (name, before) = (name.to_owned(), before.clone());
        self.write(512, move |tx: &mut Tx<'_>| {
            let stored = get(tx.seal, tx.subscriptions.open()?, bucket, &name)?;
            if stored == after {
                return Ok(true);
            }
            if stored != before {
                return Ok(false);
            }
            match &after {
                Subscribed::Known(known) => put(tx, bucket, &name, &known.into())?,
                Subscribed::Absent | Subscribed::Damaged => {
                    tx.subscriptions.open()?.remove((bucket.0, name.as_str()))?;
                }
            }
            Ok(true)
        })
        .await
    }

    /// The numbers of a bucket.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn numbers(&self, bucket: BucketId) -> Result<Numbers, StoreError> {
        self.read(|tx| {
            let removals = tx.open_table(REMOVALS)?;
            Ok(Numbers {
                pruned: retention::upto(self.seal, &removals, bucket, Part::Body)?,
                last: Seq(last_place(self.seal, tx, bucket)?),
            })
        })
    }

    /// The ids of the events with these numbers. `None` for an event that nobody can name any more: it was removed, or
    /// is damaged.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn ids_at(
        &self,
        bucket: BucketId,
        numbers: &[Seq],
    ) -> Result<Vec<Option<EventId>>, StoreError> {
        self.read(|tx| {
            let (events, heads) = (tx.open_table(EVENTS)?, tx.open_table(HEADS)?);
            let id = |seq: &Seq| -> Result<Option<EventId>, StoreError> {
                let Some(record) = record_of(&events, &heads, (bucket.0, seq.0))? else {
                    return Ok(None);
                };
                let key = event_key(bucket, *seq);
                let opened = self.seal.open::<EventRow>("event", &key, record.value());
                Ok(opened.ok().map(|(row, _)| row.id()))
            };
            numbers.iter().map(id).collect()
        })
    }

    /// The last number of a bucket.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn last_seq(&self, bucket: BucketId) -> Result<Seq, StoreError> {
        Ok(self.numbers(bucket)?.last)
    }
}

pub(crate) fn key(bucket: BucketId, name: &str) -> Vec<u8> {
    [&bucket.0.to_be_bytes(), name.as_bytes()].concat()
}

impl From<SubscriptionRow> for Subscription {
    fn from(row: SubscriptionRow) -> Self {
        let SubscriptionRow {
            acked,
            since,
            seen_at,
            holders,
            ended,
            again_through,
            lease,
        } = row;
        Self {
            since: Seq(since),
            acked: Seq(acked),
            seen_at: (seen_at != 0).then_some(Timestamp::from_micros(seen_at)),
            holders: holders.into_iter().map(Held::from).collect(),
            ended: ended.map(|EndedRow { at, through }| Ended {
                through: Seq(through),
                at: Timestamp::from_micros(at),
            }),
            again_through: again_through.map(Seq),
            lease: LeaseEpoch(lease),
        }
    }
}

impl From<&Subscription> for SubscriptionRow {
    fn from(known: &Subscription) -> Self {
        let Subscription {
            since,
            acked,
            seen_at,
            holders,
            ended,
            again_through,
            lease,
        } = known;
        Self {
            acked: acked.0,
            since: since.0,
            seen_at: seen_at.map_or(0, Timestamp::as_micros),
            holders: holders.iter().map(HolderRow::from).collect(),
            ended: ended.map(|Ended { through, at }| EndedRow {
                at: at.as_micros(),
                through: through.0,
            }),
            again_through: again_through.map(|through| through.0),
            lease: lease.0,
        }
    }
}

impl From<HolderRow> for Held {
    fn from(row: HolderRow) -> Self {
        let HolderRow {
            store,
            opens,
            instance,
            host,
            user,
            since,
            whole_after,
            acked,
        } = row;
        Self {
            by: Holder {
                store,
                opens,
                instance,
                host,
                user,
            },
            own: Own {
                since: Seq(since),
                whole_after: Seq(whole_after),
                acked: Seq(acked),
            },
        }
    }
}

impl From<&Held> for HolderRow {
    fn from(Held { by, own }: &Held) -> Self {
        let Holder {
            store,
            opens,
            instance,
            host,
            user,
        } = by.clone();
        let Own {
            since,
            whole_after,
            acked,
        } = *own;
        Self {
            store,
            opens,
            instance,
            host,
            user,
            since: since.0,
            whole_after: whole_after.0,
            acked: acked.0,
        }
    }
}

fn of_bucket(bucket: BucketId) -> Range<(u32, &'static str)> {
    (bucket.0, "")..(bucket.0 + 1, "")
}

/// Ids absorb what is sent again, so a subscription that is damaged costs only time.
fn open(seal: Seal, bucket: BucketId, name: &str, record: &[u8]) -> Result<Subscribed, StoreError> {
    let opened = seal.open::<SubscriptionRow>("subscription", &key(bucket, name), record);
    Ok(match record::undamaged(opened)? {
        Some((row, _)) => Subscribed::Known(row.into()),
        None => Subscribed::Damaged,
    })
}

fn get(
    seal: Seal,
    table: &impl ReadableTable<(u32, &'static str), &'static [u8]>,
    bucket: BucketId,
    name: &str,
) -> Result<Subscribed, StoreError> {
    match table.get((bucket.0, name))? {
        Some(record) => open(seal, bucket, name, record.value()),
        None => Ok(Subscribed::Absent),
    }
}

/// The number up to which what was received by then may be removed.
pub(crate) fn removable_through(
    seal: Seal,
    table: &impl ReadableTable<(u32, &'static str), &'static [u8]>,
    bucket: BucketId,
    by: Timestamp,
) -> Result<Seq, StoreError> {
    let mut all = Vec::new();
    for entry in table.range(of_bucket(bucket))? {
        let (place, record) = entry?;
        all.push(open(seal, bucket, place.value().1, record.value())?);
    }
    let all = all.iter().map(Subscribed::known);
    Ok(subscription::removable_through(all, by))
}

pub(crate) fn put(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    name: &str,
    row: &SubscriptionRow,
) -> Result<(), StoreError> {
    let record = tx.seal.seal(&key(bucket, name), row)?;
    let table = tx.subscriptions.open()?;
    table.insert((bucket.0, name), record.as_slice())?;
    Ok(())
}
