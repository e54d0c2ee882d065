//! One write transaction: tables opened when first used, and counters written once at its end. It
//! must not know which operation uses it.

use std::collections::HashMap;

use redb::{Key, ReadableTable, Table, TableDefinition, Value, WriteTransaction};
use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::{DestinationId, State};
use whrelay_core::queue::Offset;

use crate::changes::Changed;
use crate::error::StoreError;
use crate::queue::{self, DueKey, Leads, QueueKey, Summary, Targets};
use crate::record::Seal;
use crate::sizes::Sizes;
use crate::tables::*;

/// A table that is opened when first used.
pub(crate) struct Lazy<'txn, K: Key + 'static, V: Value + 'static> {
    tx: &'txn WriteTransaction,
    definition: TableDefinition<'static, K, V>,
    table: Option<Table<'txn, K, V>>,
}

impl<'txn, K: Key + 'static, V: Value + 'static> Lazy<'txn, K, V> {
    fn new(tx: &'txn WriteTransaction, definition: TableDefinition<'static, K, V>) -> Self {
        Self {
            tx,
            definition,
            table: None,
        }
    }

    /// The table.
    pub(crate) fn open(&mut self) -> Result<&mut Table<'txn, K, V>, StoreError> {
        if self.table.is_none() {
            self.table = Some(self.tx.open_table(self.definition)?);
        }
        self.table.as_mut().ok_or(StoreError::Reopening)
    }
}

/// What a transaction has changed.
pub(crate) struct Finished {
    pub(crate) sizes: Vec<(BucketId, u64)>,
    pub(crate) changed: Changed,
}

/// Where a delivery is counted.
type Place = (DestinationId, State);

/// A write transaction under way.
pub(crate) struct Tx<'txn> {
    /// What records are sealed with.
    pub(crate) seal: Seal,
    pub(crate) meta: Lazy<'txn, &'static str, &'static [u8]>,
    pub(crate) buckets: Lazy<'txn, u32, &'static [u8]>,
    pub(crate) events: Lazy<'txn, (u32, u64), &'static [u8]>,
    pub(crate) heads: Lazy<'txn, (u32, u64), &'static [u8]>,
    pub(crate) event_ids: Lazy<'txn, &'static [u8; 16], (u32, u64)>,
    pub(crate) subscriptions: Lazy<'txn, (u32, &'static str), &'static [u8]>,
    pub(crate) sources: Lazy<'txn, u32, &'static [u8]>,
    pub(crate) destinations: Lazy<'txn, u32, &'static [u8]>,
    pub(crate) deliveries: Lazy<'txn, (u32, u64, u32), &'static [u8]>,
    pub(crate) queue: Lazy<'txn, QueueKey, i64>,
    pub(crate) due_destinations: Lazy<'txn, DueKey, ()>,
    pub(crate) event_states: Lazy<'txn, (u32, u8, &'static [u8; 16]), u64>,
    pub(crate) attempts: Lazy<'txn, u64, &'static [u8]>,
    pub(crate) attempt_states: Lazy<'txn, (u8, i64, u64), ()>,
    pub(crate) tokens: Lazy<'txn, &'static str, &'static [u8]>,
    pub(crate) quarantine: Lazy<'txn, (u32, u64), i64>,
    pub(crate) removals: Lazy<'txn, u32, &'static [u8]>,
    pub(crate) removed: Lazy<'txn, (u32, u64), &'static [u8]>,
    pub(crate) signatures: Lazy<'txn, (i64, &'static [u8; 16]), &'static [u8]>,
    sequences: Lazy<'txn, u32, (u64, u64)>,
    counts: Lazy<'txn, (u32, u8), u64>,
    /// Numbers given in this transaction, not yet written.
    given: HashMap<u32, u64>,
    /// Changes to the counts, not yet written.
    moved: HashMap<(u32, u8), i64>,
    /// Bytes that a bucket has more, not yet written.
    grown: HashMap<BucketId, i64>,
    /// Destinations whose queues change in this transaction, as they were before.
    pub(crate) touched: HashMap<DestinationId, Summary>,
    /// What the commit will tell.
    pub(crate) changed: Changed,
    /// The position of its commit.
    pub(crate) at: Offset,
}

impl<'txn> Tx<'txn> {
    pub(crate) fn new(tx: &'txn WriteTransaction, seal: Seal, at: Offset) -> Self {
        Self {
            seal,
            meta: Lazy::new(tx, META),
            buckets: Lazy::new(tx, BUCKETS),
            events: Lazy::new(tx, EVENTS),
            heads: Lazy::new(tx, HEADS),
            event_ids: Lazy::new(tx, EVENT_IDS),
            subscriptions: Lazy::new(tx, SUBSCRIPTIONS),
            sources: Lazy::new(tx, SOURCES),
            destinations: Lazy::new(tx, DESTINATIONS),
            deliveries: Lazy::new(tx, DELIVERIES),
            queue: Lazy::new(tx, QUEUE),
            due_destinations: Lazy::new(tx, DUE_DESTINATIONS),
            event_states: Lazy::new(tx, EVENT_STATES),
            attempts: Lazy::new(tx, ATTEMPTS),
            attempt_states: Lazy::new(tx, ATTEMPT_STATES),
            tokens: Lazy::new(tx, TOKENS),
            quarantine: Lazy::new(tx, QUARANTINE),
            removals: Lazy::new(tx, REMOVALS),
            removed: Lazy::new(tx, REMOVED),
            signatures: Lazy::new(tx, SIGNATURES),
            sequences: Lazy::new(tx, SEQUENCES),
            counts: Lazy::new(tx, COUNTS),
            given: HashMap::new(),
            moved: HashMap::new(),
            grown: HashMap::new(),
            touched: HashMap::new(),
            changed: Changed {
                at,
                ..Changed::default()
            },
            at,
        }
    }

    /// The next number of a sequence. A number is never given twice, whatever is removed later.
    pub(crate) fn next(&mut self, sequence: u32) -> Result<u64, StoreError> {
        let next = self.last(sequence)? + 1;
        self.given.insert(sequence, next);
        Ok(next)
    }

    /// The last number of a sequence that was given.
    pub(crate) fn last(&mut self, sequence: u32) -> Result<u64, StoreError> {
        match self.given.get(&sequence) {
            Some(last) => Ok(*last),
            None => self::sequence(self.seal, self.sequences.open()?, sequence),
        }
    }

    /// Numbers up to this one were given before.
    pub(crate) fn reach(&mut self, sequence: u32, last: u64) {
        self.given.insert(sequence, last);
    }

    /// A delivery went from one destination and state to another; from or to nowhere where it is new, or
    /// goes.
    pub(crate) fn count(&mut self, from: Option<Place>, to: Option<Place>) {
        for (place, change) in [(from, -1), (to, 1)] {
            if let Some((destination, state)) = place {
                let key = (destination.0, state_key(state));
                *self.moved.entry(key).or_default() += change;
            }
        }
    }

    /// A row of a bucket was added that takes so many bytes.
    pub(crate) fn grow(&mut self, bucket: BucketId, bytes: usize) {
        *self.grown.entry(bucket).or_default() += bytes as i64;
    }

    /// A row of a bucket was removed that took so many bytes.
    pub(crate) fn shrink(&mut self, bucket: BucketId, bytes: usize) {
        *self.grown.entry(bucket).or_default() -= bytes as i64;
    }

    /// What a row of a queue leads to.
    pub(crate) fn leads(&mut self, row: QueueKey) -> Result<Leads, StoreError> {
        let targets = Targets {
            seal: self.seal,
            deliveries: &*self.deliveries.open()?,
            events: &*self.events.open()?,
            heads: &*self.heads.open()?,
            quarantine: &*self.quarantine.open()?,
        };
        targets.of(row)
    }

    /// Writes what was counted. `sizes` is what there was before; answers what has changed.
    pub(crate) fn finish(mut self, sizes: &Sizes) -> Result<Finished, StoreError> {
        queue::settle(&mut self)?;
        let grown: Vec<_> = self.grown.drain().filter(|(_, by)| *by != 0).collect();
        let after = |(bucket, by): &(BucketId, i64)| {
            let size = sizes.of(*bucket).saturating_add_signed(*by);
            (*bucket, size)
        };
        let changed: Vec<_> = grown.iter().map(after).collect();
        if !changed.is_empty() {
            let by: i64 = grown.iter().map(|(_, by)| by).sum();
            self.given
                .insert(SIZE, sizes.total().saturating_add_signed(by));
        }
        for (bucket, size) in &changed {
            self.given.insert(bucket_size(*bucket), *size);
        }
        for (sequence, last) in self.given.drain() {
            let check = self.seal.check(sequence, last);
            self.sequences.open()?.insert(sequence, (last, check))?;
        }
        for (key, change) in self.moved.drain().filter(|(_, change)| *change != 0) {
            let table = self.counts.open()?;
            let before = table.get(key)?.map_or(0, |v| v.value());
            table.insert(key, before.saturating_add_signed(change))?;
        }
        Ok(Finished {
            sizes: changed,
            changed: self.changed,
        })
    }
}

/// The last number given of a sequence.
pub(crate) fn sequence(
    seal: Seal,
    table: &impl ReadableTable<u32, (u64, u64)>,
    sequence: u32,
) -> Result<u64, StoreError> {
    match table.get(sequence)?.map(|value| value.value()) {
        None => Ok(0),
        Some((last, check)) if check == seal.check(sequence, last) => Ok(last),
        Some(_) => Err(StoreError::Damaged(format!("sequence {sequence}"))),
    }
}

/// A state as a key of the counts.
pub(crate) fn state_key(state: State) -> u8 {
    match state {
        State::Queued => 0,
        State::Stalled => 1,
        State::Sent => 2,
        State::Dead => 3,
    }
}
