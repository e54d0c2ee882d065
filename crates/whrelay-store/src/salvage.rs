//! Saves what is whole in the file of a damaged store, into a new store in its place. It must not trust
//! redb's own structure, nor anything that the store's seal or a rule does not vouch for; and it never
//! alters the damaged file.
//!
//! Leaves that were replaced are found too, so that of each thing the furthest state counts: numbers of
//! attempts, places and receipts only ever go forward.

mod found;
mod removed;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use redb::{Builder, Database, ReadableTable};
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey, DestinationId};
use whrelay_core::id::DeliveryId;
use whrelay_core::queue::Offset;
use whrelay_core::time::Timestamp;

use crate::attempts;
use crate::deliveries::{self, NewDelivery};
use crate::disk::{FILE, Role};
use crate::error::{OpenError, StoreError};
use crate::events::record_of;
use crate::files;
use crate::lock::DirLock;
use crate::meta;
use crate::pages::Pages;
use crate::private::private_file;
use crate::record::Seal;
use crate::retention;
use crate::rows::{DestinationRow, EventRow, RemovalsRow, SourceRow, SubscriptionRow};
use crate::sizes::Sizes;
use crate::sources;
use crate::subscriptions;
use crate::tables::{ATTEMPT_LOG, create_all, delivery_key, delivery_tuple, event_key};
use crate::tx::Tx;
use crate::writer;
use found::{Found, read_leaf};

/// Bytes of records that are written in one transaction.
const BATCH: usize = 16 << 20;
/// Deliveries looked at in one step.
const CHUNK: usize = 1000;
/// Memory for the new file, in bytes.
const CACHE: usize = 64 << 20;

/// What was saved.
#[derive(Clone, Debug)]
pub struct Salvaged {
    /// Whose store it is.
    pub role: Role,
    /// Events that are whole.
    pub events: u64,
    /// Deliveries that are whole.
    pub deliveries: u64,
    /// Attempts that are whole.
    pub attempts: u64,
    /// Events whose deliveries were lost, so that they are delivered again.
    pub begun_again: u64,
    /// Places of events that are lost. An agent's forwarder sends again what it still has.
    pub lost: Vec<(BucketId, Seq)>,
    /// Where the damaged file is kept.
    pub kept: PathBuf,
}

/// Why nothing was saved. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// The directory is in use, or cannot be read or written.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Nothing in the file is this store's.
    #[error("nothing that is whole was found in {path}; it was left as it is", path = .path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
    },
    /// What was saved cannot be written.
    #[error("what was saved cannot be written: {0}")]
    Write(#[from] StoreError),
}

/// Saves what is whole in a directory's store, and puts a new store with it in its place; the damaged
/// file is kept beside it. Events whose deliveries are lost are delivered again until `deadline_at`,
/// under ids made of `ids`.
///
/// # Errors
/// When nothing could be saved; then nothing was changed.
pub fn salvage(
    dir: &Path,
    now: Timestamp,
    deadline_at: Timestamp,
    ids: impl FnMut() -> u128,
) -> Result<Salvaged, SalvageError> {
    let _lock = DirLock::take(dir, "doctor --salvage")?;
    let path = dir.join(FILE);
    let io = |error| OpenError::Io {
        path: path.clone(),
        error,
    };
    let draft = path.with_extension("new");
    let saved = save(
        dir,
        &path,
        &draft,
        Again {
            now,
            deadline_at,
            ids,
        },
    );
    match saved {
        Ok(mut saved) => {
            saved.kept = swap(dir, &draft, &path).map_err(io)?;
            Ok(saved)
        }
        Err(error) => {
            // It may be what fills the disk.
            let _ = fs::remove_file(&draft);
            Err(error)
        }
    }
}

/// Writes everything that is whole into a draft. The new store has another name: what agents know of
/// places in the old one may go beyond what was saved.
fn save(
    dir: &Path,
    path: &Path,
    draft: &Path,
    mut again: Again<impl FnMut() -> u128>,
) -> Result<Salvaged, SalvageError> {
    let name = files::kept_name(dir)?;
    let new_name = files::name_from((again.ids)());
    let io = |error| OpenError::Io {
        path: draft.to_owned(),
        error,
    };
    let mut salvage = Salvage {
        new: create(draft).map_err(io)?,
        seal: Seal::of(&name),
        new_seal: Seal::of(&new_name),
        kept: Kept::default(),
        batch: Vec::new(),
        weight: 0,
        sizes: Sizes::default(),
        again,
    };
    salvage.gather(path)?;
    if !salvage.kept.any {
        return Err(SalvageError::Nothing {
            path: path.to_owned(),
        });
    }
    Ok(salvage.settle(&new_name)?)
}

fn create(draft: &Path) -> io::Result<Database> {
    files::remove_draft(draft)?;
    drop(private_file().open(draft)?);
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder.create(draft).map_err(io::Error::other)
}

/// Puts the new file in the place of the damaged one, which keeps a name of its own. At no moment is
/// there none: an empty store would be begun in its place.
fn swap(dir: &Path, draft: &Path, path: &Path) -> io::Result<PathBuf> {
    File::open(draft)?.sync_all()?;
    let mut n = 1;
    let kept = loop {
        let kept = path.with_extension(format!("damaged-{n}"));
        match fs::hard_link(path, &kept) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => n += 1,
            linked => break linked.map(|()| kept)?,
        }
    };
    fs::rename(draft, path)?;
    File::open(dir)?.sync_all()?;
    Ok(kept)
}

/// What is kept in memory until the end: there is little of it.
#[derive(Default)]
struct Kept {
    /// Whether anything was found, and whether any of it only an agent has.
    any: bool,
    agent: bool,
    last: HashMap<u32, u64>,
    sources: HashMap<BucketId, SourceRow>,
    subscriptions: HashMap<(BucketId, String), SubscriptionRow>,
    destinations: BTreeMap<u32, DestinationRow>,
    removed: BTreeSet<(u32, u64)>,
    removals: BTreeMap<u32, RemovalsRow>,
    events: u64,
    attempts: u64,
}

impl Kept {
    /// Whether retention has emptied a place.
    fn is_removed(&self, bucket: u32, seq: u64) -> bool {
        let upto = self.removals.get(&bucket).map_or(0, |row| row.upto);
        seq <= upto || self.removed.contains(&(bucket, seq))
    }
}

/// How lost deliveries begin again.
struct Again<I> {
    now: Timestamp,
    deadline_at: Timestamp,
    ids: I,
}

struct Salvage<I> {
    new: Database,
    /// What the damaged store's records are sealed with, and those of the new one.
    seal: Seal,
    new_seal: Seal,
    kept: Kept,
    batch: Vec<Found>,
    weight: usize,
    /// Bytes that what was written takes, as the store counts them.
    sizes: Sizes,
    again: Again<I>,
}

impl<I: FnMut() -> u128> Salvage<I> {
    fn gather(&mut self, path: &Path) -> Result<(), SalvageError> {
        let io = |error| OpenError::Io {
            path: path.to_owned(),
            error,
        };
        let tx = writer::begin(&self.new)?;
        create_all(&tx).map_err(StoreError::from)?;
        tx.commit().map_err(StoreError::from)?;
        let mut pages = Pages::open(path).map_err(io)?;
        while let Some(pairs) = pages.turn().map_err(io)? {
            let found = read_leaf(&mut pages, pairs, self.seal).map_err(io)?;
            for found in found {
                self.take(found);
            }
            if self.weight >= BATCH {
                self.write()?;
            }
        }
        Ok(self.write()?)
    }

    fn take(&mut self, found: Found) {
        let kept = &mut self.kept;
        kept.any = true;
        kept.agent |= found.is_an_agents();
        match found {
            Found::Last(of, last) => reach(&mut kept.last, of, last),
            Found::Source(bucket, row) => {
                let known = kept.sources.get(&bucket);
                if known.is_none_or(|known| known.seq < row.seq) {
                    kept.sources.insert(bucket, row);
                }
            }
            Found::Subscription(bucket, name, row) => {
                let key = (bucket, name.to_string());
                let known = kept.subscriptions.get(&key);
                // A place moves back, too: the latest join says more than the furthest place.
                let rank =
                    |row: &SubscriptionRow| (row.seen_at, row.again_through.is_some(), row.acked);
                if known.is_none_or(|known| rank(known) < rank(&row)) {
                    kept.subscriptions.insert(key, row);
                }
            }
            Found::Removed(bucket, seq) => {
                kept.removed.insert((bucket.0, seq.0));
                reach(&mut kept.last, bucket.0, seq.0);
            }
            Found::Removals(bucket, row) => {
                // A place that was emptied was given, whatever else is known of it.
                reach(&mut kept.last, bucket.0, row.upto.max(row.bare_upto));
                let known = kept.removals.entry(bucket.0).or_default();
                *known = known.max(&row);
            }
            Found::Event(.., ref record)
            | Found::Delivery(.., ref record)
            | Found::Attempt(.., ref record)
            | Found::Bucket(.., ref record)
            | Found::Destination(.., ref record) => {
                self.weight += record.len();
                self.batch.push(found);
            }
        }
    }

    /// Writes what has been gathered.
    fn write(&mut self) -> Result<(), StoreError> {
        let transaction = writer::begin(&self.new)?;
        let mut tx = Tx::new(&transaction, self.new_seal, Offset::default());
        for found in self.batch.drain(..) {
            put(&mut tx, &mut self.kept, found)?;
        }
        let changed = tx.finish(&self.sizes)?;
        self.sizes.set(&changed.sizes);
        self.weight = 0;
        Ok(transaction.commit()?)
    }

    /// Makes a store of what has been written: its index, its counts, its last places.
    fn settle(&mut self, name: &str) -> Result<Salvaged, StoreError> {
        let role = match self.kept.agent {
            true => Role::Agent,
            false => Role::Forwarder,
        };
        let transaction = writer::begin(&self.new)?;
        let mut tx = Tx::new(&transaction, self.new_seal, Offset::default());
        meta::write(tx.meta.open()?, role, name)?;
        let mut saved = Salvaged {
            role,
            events: self.kept.events,
            deliveries: 0,
            attempts: self.kept.attempts,
            begun_again: 0,
            lost: Vec::new(),
            kept: PathBuf::new(),
        };
        removed::leave_out(&mut tx, &mut self.kept)?;
        (saved.events, saved.attempts) = (self.kept.events, self.kept.attempts);
        saved.deliveries = settle_deliveries(&mut tx)?;
        let missing = missing_events(&mut tx, &self.kept)?;
        for (bucket, seq, _) in &missing {
            let place = (bucket.0, seq.0);
            tx.quarantine
                .open()?
                .insert(place, self.again.now.as_micros())?;
        }
        let lost = missing.into_iter().filter(|(.., ended)| !ended);
        saved.lost = lost.map(|(bucket, seq, _)| (bucket, seq)).collect();
        if role == Role::Agent {
            saved.begun_again = self.begin_again(&mut tx)?;
        }
        for (bucket, row) in &mut self.kept.sources {
            // The forwarder sends everything again, and what is here already is known by its id.
            if saved.lost.iter().any(|(of, _)| of == bucket) {
                row.seq = 0;
                row.locator.clear();
            }
            sources::put_row(&mut tx, *bucket, row)?;
        }
        for ((bucket, name), row) in &self.kept.subscriptions {
            let last = self.kept.last.get(&bucket.0).copied().unwrap_or(0);
            let row = SubscriptionRow {
                acked: row.acked.min(last),
                ..row.clone()
            };
            subscriptions::put(&mut tx, *bucket, name, &row)?;
        }
        for (of, last) in &self.kept.last {
            tx.reach(*of, *last);
        }
        tx.finish(&self.sizes)?;
        transaction.commit()?;
        Ok(saved)
    }

    /// Begins deliveries of the events that have none. Answers how many wait for them.
    fn begin_again(&mut self, tx: &mut Tx<'_>) -> Result<u64, StoreError> {
        // What has no body had ended before that was removed: it is passed over, and waits for nothing.
        let _ = self.begin_those(tx, true)?;
        self.begin_those(tx, false)
    }

    fn begin_those(&mut self, tx: &mut Tx<'_>, bare: bool) -> Result<u64, StoreError> {
        let (mut begun, mut from) = (0, (0, 0));
        loop {
            let mut chunk = Vec::new();
            let table = if bare { &mut tx.heads } else { &mut tx.events };
            for entry in table.open()?.range(from..)?.take(CHUNK) {
                let (place, record) = entry?;
                let (bucket, seq) = place.value();
                let (bucket, seq) = (BucketId(bucket), Seq(seq));
                let row: (EventRow, _) =
                    self.new_seal
                        .open("event", &event_key(bucket, seq), record.value())?;
                chunk.push((bucket, seq, row.0.id()));
            }
            let Some((bucket, seq, ..)) = chunk.last() else {
                return Ok(begun);
            };
            from = (bucket.0, seq.0 + 1);
            for (bucket, seq, event) in chunk {
                let all = (bucket.0, seq.0, 0)..=(bucket.0, seq.0, u32::MAX);
                if tx.deliveries.open()?.range(all)?.next().is_some() {
                    continue;
                }
                begun += 1;
                let there = self.kept.destinations.iter();
                let there = there.filter(|(_, row)| row.bucket == bucket.0 && row.is_lasting());
                for (ordinal, (destination, _)) in (0..).zip(there) {
                    let new = NewDelivery {
                        id: DeliveryId::from_parts(self.again.now, (self.again.ids)()),
                        destination: DestinationId(*destination),
                        created_at: self.again.now,
                        due_at: self.again.now,
                        deadline_at: self.again.deadline_at,
                        replay: false,
                        passed_over: bare,
                        one_off: false,
                    };
                    deliveries::begin(tx, bucket, seq, ordinal, (event, 0), &new)?;
                }
            }
        }
    }
}

fn reach(last: &mut HashMap<u32, u64>, of: u32, number: u64) {
    let known = last.entry(of).or_default();
    *known = number.max(*known);
}

fn put(tx: &mut Tx<'_>, kept: &mut Kept, found: Found) -> Result<(), StoreError> {
    match found {
        Found::Event(bucket, seq, id, has_body, record) => {
            let place = (bucket.0, seq.0);
            let record = record.seal(tx.seal, &event_key(bucket, seq));
            let (events, heads) = (tx.events.open()?, tx.heads.open()?);
            let known = record_of(&*events, &*heads, place)?.map(|known| known.value().len());
            kept.events += u64::from(known.is_none());
            // The page without the body may be of a commit that never was.
            if known.is_none() || has_body {
                heads.remove(place)?;
                let table = if has_body { events } else { heads };
                table.insert(place, record.as_slice())?;
                tx.shrink(bucket, known.map_or(0, retention::event_cost));
                tx.grow(bucket, retention::event_cost(record.len()));
            }
            tx.event_ids.open()?.insert(&id.to_bytes(), place)?;
            reach(&mut kept.last, bucket.0, seq.0);
        }
        Found::Delivery(delivery, record) => {
            let further = |d: &Delivery| (d.state.is_finished(), d.attempts);
            let known = deliveries::get(tx.seal, tx.deliveries.open()?, delivery.key)?;
            if known.is_none_or(|known| further(&known) < further(&delivery)) {
                let record = record.seal(tx.seal, &delivery_key(delivery.key));
                let key = delivery_tuple(delivery.key);
                tx.deliveries.open()?.insert(key, record.as_slice())?;
            }
            reach(&mut kept.last, delivery.key.bucket.0, delivery.key.seq.0);
        }
        Found::Attempt(place, bucket, row, record) => {
            tx.attempt_states.open()?.insert(row, ())?;
            let record = record.seal(tx.seal, &place.to_be_bytes());
            let new = tx
                .attempts
                .open()?
                .insert(place, record.as_slice())?
                .is_none();
            kept.attempts += u64::from(new);
            if new {
                tx.grow(bucket, attempts::cost(&record));
            }
            reach(&mut kept.last, ATTEMPT_LOG, place);
        }
        Found::Bucket(id, _, record) => {
            let record = record.seal(tx.seal, &id.to_be_bytes());
            tx.buckets.open()?.insert(id, record.as_slice())?;
        }
        Found::Destination(id, row, record) => {
            kept.destinations.insert(id, row);
            let record = record.seal(tx.seal, &id.to_be_bytes());
            tx.destinations.open()?.insert(id, record.as_slice())?;
        }
        Found::Source(..)
        | Found::Subscription(..)
        | Found::Last(..)
        | Found::Removed(..)
        | Found::Removals(..) => {}
    }
    Ok(())
}

/// Gives every delivery its row in the index and counts it. One that waits for an event that is lost is
/// lost with it; of one that is finished the event is still known, so that it is not taken in again.
fn settle_deliveries(tx: &mut Tx<'_>) -> Result<u64, StoreError> {
    let (mut settled, mut from) = (0, (0, 0, 0));
    loop {
        let mut chunk = Vec::new();
        for entry in tx.deliveries.open()?.range(from..)?.take(CHUNK) {
            chunk.push(entry?.0.value());
        }
        let Some((bucket, seq, ordinal)) = chunk.last().copied() else {
            return Ok(settled);
        };
        from = (bucket, seq, ordinal + 1);
        for (bucket, seq, ordinal) in chunk {
            let key = DeliveryKey {
                bucket: BucketId(bucket),
                seq: Seq(seq),
                ordinal,
            };
            let Some(delivery) = deliveries::get(tx.seal, tx.deliveries.open()?, key)? else {
                continue;
            };
            let there = record_of(tx.events.open()?, tx.heads.open()?, (bucket, seq))?.is_some();
            if !there && !delivery.state.is_finished() {
                tx.deliveries.open()?.remove((bucket, seq, ordinal))?;
                continue;
            }
            if !there {
                let id = delivery.event.to_bytes();
                tx.event_ids.open()?.insert(&id, (bucket, seq))?;
            }
            deliveries::update(tx, None, &delivery)?;
            settled += 1;
        }
    }
}

/// Places that were given and have no event any more, and whether the end of a delivery is known of it, so that
/// nothing is missed but what it said.
fn missing_events(tx: &mut Tx<'_>, kept: &Kept) -> Result<Vec<(BucketId, Seq, bool)>, StoreError> {
    let mut missing = Vec::new();
    let buckets = kept.last.iter().filter(|(of, _)| **of != ATTEMPT_LOG);
    let mut buckets: Vec<_> = buckets.collect();
    buckets.sort();
    for (bucket, last) in buckets {
        for seq in (1..=*last).filter(|seq| !kept.is_removed(*bucket, *seq)) {
            let whole = record_of(tx.events.open()?, tx.heads.open()?, (*bucket, seq))?.is_some();
            let all = (*bucket, seq, 0)..=(*bucket, seq, u32::MAX);
            if !whole {
                let ended = tx.deliveries.open()?.range(all)?.next().is_some();
                missing.push((BucketId(*bucket), Seq(seq), ended));
            }
        }
    }
    Ok(missing)
}
