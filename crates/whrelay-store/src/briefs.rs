//! Deliveries and their last attempts in bulk, for those who count very many: read in the order in which
//! they lie on disk, each decoded once, without events. It must not know what is counted.

use redb::{AccessGuard, ReadableTable};
use serde::Deserialize;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{Attempt, Cause, Delivery, DeliveryKey};

use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::record::{Seal, undamaged};
use crate::rows::{AttemptMore, DeliveryRow};
use crate::tables::{ATTEMPTS, DELIVERIES, QUARANTINE, delivery_key};

/// Rows that are read on the way to the next one that is wanted, before that is looked up instead.
const NEAR: u64 = 16;

/// Some of a bucket's deliveries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deliveries {
    /// In order of their keys; all of an event's, or none.
    pub all: Vec<Delivery>,
    /// The place after which others may follow; none where these were the last.
    pub upto: Option<Seq>,
}

/// What a group of deliveries is made of, beside the delivery itself: what its last attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastAttempt<'a> {
    /// The URL it went to.
    pub url: &'a str,
    /// The answer's status.
    pub status: Option<u16>,
    /// What went wrong where there was no answer.
    pub error: Option<&'a str>,
    /// What its signature has to do with it, should the delivery have been given up.
    pub signature_cause: Option<Cause>,
}

impl<'a> LastAttempt<'a> {
    /// What an attempt came to.
    pub fn of(attempt: &'a Attempt) -> Self {
        Self {
            url: &attempt.url,
            status: attempt.status,
            error: attempt.error.as_deref(),
            signature_cause: {
                let signature = attempt.signature.as_ref();
                signature.and_then(|signature| signature.cause(attempt.status))
            },
        }
    }
}

/// The beginning of an `AttemptRow`, as far as a [`LastAttempt`] needs it, not copied.
#[derive(Deserialize)]
struct AttemptStart<'a> {
    _key: (u32, u64, u32),
    _delivery: [u8; 16],
    _event: [u8; 16],
    _destination: u32,
    url: &'a str,
    _method: &'a str,
    _number: u32,
    _at: i64,
    _duration_us: u64,
    status: Option<u16>,
    error: Option<&'a str>,
}

impl RedbStore {
    /// Deliveries of a bucket behind a place, of at least `max` rows where there are as many. Events of which
    /// one is damaged, or that are set aside, are passed over.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn deliveries_after(
        &self,
        bucket: BucketId,
        after: Seq,
        max: usize,
    ) -> Result<Deliveries, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(DELIVERIES)?;
            let aside = tx.open_table(QUARANTINE)?;
            let first = (bucket.0, after.0.saturating_add(1), 0);
            let rows = table.range(first..=(bucket.0, u64::MAX, u32::MAX))?;
            let mut gathered = Gathered::new(self.seal, max);
            let mut upto = None;
            for (read, entry) in rows.enumerate() {
                let (key, record) = entry?;
                let (_, seq, ordinal) = key.value();
                if read >= max && Some(Seq(seq)) != gathered.at {
                    upto = gathered.at;
                    break;
                }
                gathered.add(bucket, Seq(seq), ordinal, record.value())?;
            }
            gathered.into_deliveries(&aside, bucket, upto)
        })
    }

    /// The deliveries of these events, which are in order of their places. Those of which one is damaged, or
    /// that are set aside, are passed over.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn deliveries_of_all(
        &self,
        bucket: BucketId,
        places: &[Seq],
    ) -> Result<Deliveries, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(DELIVERIES)?;
            let aside = tx.open_table(QUARANTINE)?;
            let end = (bucket.0, u64::MAX, u32::MAX);
            let mut gathered = Gathered::new(self.seal, places.len());
            let mut rows = table.range((bucket.0, 0, 0)..(bucket.0, 0, 0))?.peekable();
            let mut reached = None;
            for seq in places {
                if reached.is_none_or(|reached| seq.0 > reached + NEAR) {
                    rows = table.range((bucket.0, seq.0, 0)..=end)?.peekable();
                }
                while let Some(entry) = rows.next_if(|entry| is_upto(entry, seq.0)) {
                    let (key, record) = entry?;
                    let (_, at, ordinal) = key.value();
                    if at == seq.0 {
                        gathered.add(bucket, *seq, ordinal, record.value())?;
                    }
                }
                reached = Some(seq.0);
            }
            gathered.into_deliveries(&aside, bucket, None)
        })
    }

    /// Calls `each` with the last attempt of each delivery, by its index in `all`, in any order; with nothing
    /// where there is none, or it is damaged. `all` are the places of these attempts in the log.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn last_attempts(
        &self,
        all: &[Option<u64>],
        mut each: impl FnMut(usize, Option<LastAttempt<'_>>),
    ) -> Result<(), StoreError> {
        let mut places = Vec::with_capacity(all.len());
        for (index, place) in all.iter().enumerate() {
            match place {
                Some(place) => places.push((*place, index)),
                None => each(index, None),
            }
        }
        places.sort_unstable();
        self.read(|tx| {
            let table = tx.open_table(ATTEMPTS)?;
            let mut rows = table.range(0..0)?.peekable();
            let mut reached = None;
            for (place, index) in places {
                if reached.is_none_or(|reached| place > reached + NEAR) {
                    rows = table.range(place..)?.peekable();
                }
                let mut found = None;
                while let Some(entry) = rows.next_if(|entry| is_place_upto(entry, place)) {
                    let (at, record) = entry?;
                    found = (at.value() == place).then_some(record);
                }
                let record = found.as_ref().map(AccessGuard::value);
                each(
                    index,
                    record.and_then(|record| start_of(self.seal, place, record)),
                );
                reached = Some(place);
            }
            Ok(())
        })
    }
}

type Row<'a> = Result<
    (
        AccessGuard<'a, (u32, u64, u32)>,
        AccessGuard<'a, &'static [u8]>,
    ),
    redb::StorageError,
>;

/// Whether a row is of a place or of one before it. One that cannot be read is, so that its error is met.
fn is_upto(entry: &Row<'_>, seq: u64) -> bool {
    entry.as_ref().map_or(true, |(key, _)| key.value().1 <= seq)
}

type LogRow<'a> =
    Result<(AccessGuard<'a, u64>, AccessGuard<'a, &'static [u8]>), redb::StorageError>;

fn is_place_upto(entry: &LogRow<'_>, place: u64) -> bool {
    entry.as_ref().map_or(true, |(at, _)| at.value() <= place)
}

fn start_of(seal: Seal, place: u64, record: &[u8]) -> Option<LastAttempt<'_>> {
    let start = seal
        .parts(&place.to_be_bytes(), record)
        .and_then(|(head, more)| {
            let start: AttemptStart<'_> = postcard::from_bytes(head).ok()?;
            Some(LastAttempt {
                url: start.url,
                status: start.status,
                error: start.error,
                signature_cause: signature_cause(start.status, more),
            })
        });
    if start.is_none() {
        tracing::error!(place, "an attempt is damaged on disk and is skipped");
    }
    start
}

/// Only few answers can be about a signature: what stands behind the others is not read.
fn signature_cause(status: Option<u16>, more: &[u8]) -> Option<Cause> {
    if !matches!(status, None | Some(400..=403)) {
        return None;
    }
    let more = AttemptMore::read(more)?;
    more.into_signature()?.cause(status)
}

/// Deliveries as they are read, one event after the other.
struct Gathered {
    seal: Seal,
    all: Vec<Delivery>,
    /// The event that is being read, and where its deliveries begin.
    at: Option<Seq>,
    first: usize,
    is_damaged: bool,
}

impl Gathered {
    fn new(seal: Seal, about: usize) -> Self {
        Self {
            seal,
            all: Vec::with_capacity(about),
            at: None,
            first: 0,
            is_damaged: false,
        }
    }

    fn add(
        &mut self,
        bucket: BucketId,
        seq: Seq,
        ordinal: u32,
        record: &[u8],
    ) -> Result<(), StoreError> {
        if self.at != Some(seq) {
            self.end_event();
            self.at = Some(seq);
        }
        let key = DeliveryKey {
            bucket,
            seq,
            ordinal,
        };
        let bytes = delivery_key(key);
        let opened = self.seal.open::<DeliveryRow>("delivery", &bytes, record);
        match undamaged(opened)? {
            Some((row, _)) => self.all.push(row.into_delivery(key)),
            None => self.is_damaged = true,
        }
        Ok(())
    }

    /// An event of which a delivery is damaged is nothing that can be counted.
    fn end_event(&mut self) {
        if self.is_damaged {
            self.all.truncate(self.first);
        }
        (self.first, self.is_damaged) = (self.all.len(), false);
    }

    fn into_deliveries(
        mut self,
        aside: &impl ReadableTable<(u32, u64), i64>,
        bucket: BucketId,
        upto: Option<Seq>,
    ) -> Result<Deliveries, StoreError> {
        self.end_event();
        let mut places = Vec::new();
        if let (Some(first), Some(last)) = (self.all.first(), self.all.last()) {
            let range = (bucket.0, first.key.seq.0)..=(bucket.0, last.key.seq.0);
            for entry in aside.range(range)? {
                places.push(entry?.0.value().1);
            }
        }
        if !places.is_empty() {
            let is_aside = |seq: Seq| places.binary_search(&seq.0).is_ok();
            self.all.retain(|delivery| !is_aside(delivery.key.seq));
        }
        Ok(Deliveries {
            all: self.all,
            upto,
        })
    }
}
