//! The real store behind the world's `Vault`, beside the model: whatever the disk did, the store must
//! be where the model is before or after the write that was cut off, and nowhere between.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use whrelay_core::bucket::{Bucket, BucketId, BucketKey, BucketName, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey, DestinationId, State};
use whrelay_core::destination::{Destination, EndpointState};
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::order::Order;
use whrelay_core::queue::{DueCursor, DuePage, Offset, QueuePage, QueueQuery};
use whrelay_core::time::Timestamp;
use whrelay_store::{
    Batch, Begin, Catalog, Changed, Changes, Found, Journal, Medium, OpenError, Options, RedbStore,
    Role, Search, Source, StateCounts, StoreError, Subscribed,
};
use whrelay_tests::destinations::destination;

use super::lying::{Fault, LyingDisk};
use crate::chance::Chance;
use crate::sim::everything;
use crate::sim::model::Model;
use crate::sim::planted::Bug;
use crate::sim::vault::{Done, PowerCut, Vault, Write};

/// Operations of the disk within which an armed fault falls: a commit takes about a dozen.
const WITHIN: u64 = 24;
/// Images tried for each power cut; the world goes on from the last.
const IMAGES: u32 = 4;
/// How long a store may take to heal once its disk has.
const HEALS_WITHIN: Duration = Duration::from_secs(10);

/// How many crash images have been opened, and how many faults were met.
pub(crate) static IMAGES_OPENED: AtomicU64 = AtomicU64::new(0);
pub(crate) static POWER_CUTS: AtomicU64 = AtomicU64::new(0);
pub(crate) static IO_ERRORS: AtomicU64 = AtomicU64::new(0);
pub(crate) static FULL_DISKS: AtomicU64 = AtomicU64::new(0);
pub(crate) static CRASHED_RECOVERIES: AtomicU64 = AtomicU64::new(0);

/// A store on a disk that lies, and the model of what it has to hold.
pub(crate) struct Real {
    name: u128,
    disk: LyingDisk,
    store: Option<RedbStore>,
    /// What the open store changes in queues.
    changes: Option<Changes>,
    /// Whether a write was tried again since changes were asked for: then it may have told of them twice.
    is_healed: bool,
    model: Model,
    /// What may be on the disk: nobody was told.
    unknown: Option<Write>,
    chance: Chance,
    runtime: Runtime,
}

fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Opens, or begins, a store on a disk.
pub(crate) fn open(disk: &LyingDisk, name: u128) -> Result<RedbStore, OpenError> {
    let disk = disk.clone();
    let medium = move |builder: &redb::Builder| builder.create_with_backend(disk.clone());
    RedbStore::open_on(Medium::custom(medium), &options(name))
}

pub(crate) fn options(name_seed: u128) -> Options {
    Options {
        role: Role::Agent,
        cache: 1 << 20,
        name_seed,
        purpose: "attack",
        bound: None,
    }
}

impl Real {
    fn store(&self) -> &RedbStore {
        self.store.as_ref().expect("open while anyone looks at it")
    }

    /// Reads, as the engine does: a store that is being reopened is asked again.
    fn look<T>(&self, read: impl Fn(&RedbStore) -> Result<T, StoreError>) -> T {
        again_until_healed(|| read(self.store())).expect("a store that can be read")
    }

    /// Carries one write out by the store's own function.
    fn write(&self, write: Write) -> Result<Done, StoreError> {
        let store = self.store();
        let journal: &dyn Journal = store;
        self.runtime.block_on(async {
            Ok(match write {
                Write::Append {
                    bucket,
                    events,
                    mark,
                } => Done::Appended(store.append(bucket, events, mark).await?),
                Write::Ack {
                    bucket,
                    subscription,
                    upto,
                    lease,
                } => {
                    journal.ack(bucket, &subscription, upto, lease).await?;
                    Done::Acked
                }
                Write::Join { bucket, join } => {
                    let joined = journal.join(bucket, &join).await?;
                    Done::Joined(joined.map(Box::new))
                }
                Write::Record(attempt) => {
                    store.record(*attempt).await?;
                    Done::Recorded
                }
                Write::Endpoint {
                    destination,
                    endpoint,
                    back_since,
                } => {
                    let change = endpoint_of(endpoint, back_since);
                    let catalog: &dyn Catalog = store;
                    catalog.change_destination(destination, change).await?;
                    Done::Noted
                }
                Write::Postpone { key, now, delay } => {
                    store.postpone(key, now, delay).await?;
                    Done::Noted
                }
                Write::RetryNow(keys) => Done::Hurried(store.retry_now(keys).await?),
                Write::Again(again) => {
                    let begun = store.deliver_again(vec![again]).await?.pop();
                    Done::Again(begun.map(Box::new))
                }
                Write::Remove {
                    bucket,
                    found,
                    by,
                    part,
                } => {
                    let swept = store
                        .remove_finished(bucket, found, by, part, usize::MAX)
                        .await?;
                    Done::Removed(swept.removed.len() as u64)
                }
                Write::RemoveReceipted {
                    bucket,
                    by,
                    part,
                    max,
                } => {
                    let most = (max, usize::MAX);
                    Done::Removed(store.remove_receipted(bucket, by, part, most).await?)
                }
                Write::GiveUp(attempt) => {
                    Done::GaveUp(!store.give_up(vec![*attempt]).await?.is_empty())
                }
            })
        })
    }

    /// As the agent and the forwarder do: what finds no space is tried again until there is some.
    fn persist(&self, write: &Write) -> Result<Done, StoreError> {
        again_until_healed(|| self.write(write.clone()))
    }

    fn arm(&mut self) -> Option<Fault> {
        let fault = match self.chance.below(1000) {
            0..35 => Fault::PowerCut,
            35..45 => Fault::Eio,
            45..46 => Fault::Full,
            _ => return None,
        };
        self.disk.arm(self.chance.below(WITHIN), fault);
        Some(fault)
    }

    /// Opens an image, with the power going again while it recovers in some of the cases.
    fn recover(&mut self, image: LyingDisk) -> (LyingDisk, RedbStore) {
        let mut image = image;
        bump(&IMAGES_OPENED);
        while self.chance.permille(200) {
            image.arm(self.chance.below(WITHIN), Fault::PowerCut);
            let opened = open(&image, self.name);
            let again = image.after_power_cut(&mut self.chance);
            if opened.is_err() {
                bump(&CRASHED_RECOVERIES);
            }
            drop(opened);
            image = again;
            bump(&IMAGES_OPENED);
        }
        let store = open(&image, self.name).expect("a crash image opens");
        (image, store)
    }

    /// Everything a store holds, for comparing.
    fn dump(vault: &impl Vault, model: &Model) -> String {
        let mut text = String::new();
        for bucket in model.buckets() {
            let batch = vault.read_after(bucket, Seq(0), usize::MAX, usize::MAX);
            let subscription =
                |name| (vault.acked(bucket.id, name), vault.seen_at(bucket.id, name));
            let acked = ["default", "other"].map(subscription);
            let source = vault.source(bucket.id);
            let bare = vault.bare_upto(bucket.id);
            text += &format!("{batch:?} {bare:?} {acked:?} {source:?}\n");
            for state in State::ALL {
                let search = Search {
                    bucket: bucket.id,
                    states: vec![state],
                    since: None,
                    until: None,
                };
                let found = vault.search(&search, Begin::Oldest, None, usize::MAX);
                text += &format!("{state} {found:?}\n");
            }
            for seq in (1..=batch.upto.0).map(Seq) {
                let event = vault.event_at(bucket, seq);
                let deliveries = vault.deliveries_of(bucket.id, seq);
                text += &format!("{event:?} {deliveries:?}\n");
            }
        }
        for target in model.targets() {
            let queues = [Order::Arrival, Order::Fifo].map(everything);
            let queues = queues.map(|query| vault.queue(target, &query));
            let (counts, endpoint) = (vault.counts(target), vault.endpoint(target));
            text += &format!("{counts:?} {endpoint:?} {queues:?}\n");
        }
        text
    }

    /// The store holds what the model holds, or what it would hold after the unknown write.
    fn reconcile(&mut self) {
        let found = Self::dump(self, &self.model);
        if found == Self::dump(&self.model, &self.model) {
            return;
        }
        let mut after = self.model.clone();
        let write = self
            .unknown
            .clone()
            .expect("nothing was being written, and the disk has changed");
        let done = after.commit(vec![write]);
        assert!(done.is_ok(), "a model's commits succeed");
        assert_eq!(
            found,
            Self::dump(&after, &after),
            "the disk holds neither what was before the write nor what was after it"
        );
        self.model = after;
    }
}

impl Real {
    /// Listens to a store that was opened. What was changed before that, nobody is told.
    fn listen(&mut self) {
        self.changes = Some(self.store().changes());
        self.model.changed();
    }

    /// Until the store has opened its file again, nobody knows whether the write that failed is in it. Until it has seen
    /// that its disk is no longer full, an agent's join writes nothing.
    fn wait_for_space(&self) {
        let nobody = || {
            let absent = &Subscribed::Absent;
            self.store().put_subscription(BucketId(0), "", absent, None)
        };
        let seen = again_until_healed(|| self.runtime.block_on(nobody()));
        assert!(seen.is_ok(), "a disk with space");
    }

    /// A full disk may have failed a write that was on it already; tried again, it counts once. An agent joins a full
    /// store and nothing is written.
    fn is_written_once(&mut self, write: &Write, before: Model) {
        let found = Self::dump(self, &self.model);
        let joins = matches!(write, Write::Join { .. });
        if joins && found == Self::dump(&before, &before) {
            self.model = before;
        } else {
            let expected = Self::dump(&self.model, &self.model);
            assert_eq!(found, expected, "the disk holds the write once");
        }
    }
}

impl Vault for Real {
    fn birth(name: u128) -> Self {
        let disk = LyingDisk::default();
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.build().expect("a runtime");
        let store = open(&disk, name).expect("a new store");
        Self {
            name,
            changes: Some(store.changes()),
            is_healed: false,
            store: Some(store),
            disk,
            model: Model::birth(name),
            unknown: None,
            chance: Chance::new(name as u64 ^ (name >> 64) as u64),
            runtime,
        }
    }

    fn plant(&mut self, bug: Option<Bug>) {
        if bug == Some(Bug::SyncForgotten) {
            self.disk.forget_syncs();
        }
    }

    /// After the process has died, or the power: several images of the same cut are tried.
    fn reopen(&mut self) {
        let was_killed = self.unknown.is_none() && self.chance.permille(500);
        let before = if was_killed {
            self.disk.after_kill()
        } else {
            self.disk.clone()
        };
        (self.store, self.changes) = (None, None);
        if was_killed {
            (self.disk, self.store) = some(self.recover(before));
            self.reconcile();
            self.listen();
            return;
        }
        for _ in 0..IMAGES {
            let image = before.after_power_cut(&mut self.chance);
            (self.disk, self.store) = some(self.recover(image));
            let model = self.model.clone();
            self.reconcile();
            // The next image is of the same cut: it is judged by the same model.
            self.model = model;
        }
        self.reconcile();
        self.unknown = None;
        self.listen();
    }

    /// A copy of a running directory: whatever the system has of it.
    fn copy(&self) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread();
        Self {
            name: self.name,
            disk: self.disk.after_kill(),
            store: None,
            changes: None,
            is_healed: false,
            model: self.model.clone(),
            unknown: self.unknown.clone(),
            chance: Chance::new(self.name as u64),
            runtime: { runtime }.build().expect("a runtime"),
        }
    }

    fn name(&self) -> String {
        self.store().id().to_owned()
    }

    fn opens(&self) -> u64 {
        self.store().epoch().opens
    }

    fn ensure_bucket(&mut self, name: &BucketName) -> Bucket {
        self.model.ensure_bucket(name);
        let key = BucketKey::from_text(name.as_str());
        let made = self.store().ensure_bucket(name, key);
        self.runtime.block_on(made).expect("a bucket").0
    }

    fn ensure_destination(&mut self, bucket: BucketId, target: &str) -> DestinationId {
        self.model.ensure_destination(bucket, target);
        let store = self.store().clone();
        let made = destination(&store, bucket, target);
        self.runtime.block_on(made).expect("a destination")
    }

    fn commit(&mut self, writes: Vec<Write>) -> Result<Vec<Done>, PowerCut> {
        let mut all = Vec::with_capacity(writes.len());
        for write in writes {
            let armed = self.arm();
            let result = self.persist(&write);
            let armed = armed.filter(|_| !self.disk.disarm());
            match armed {
                Some(Fault::PowerCut) => bump(&POWER_CUTS),
                Some(Fault::Eio) => bump(&IO_ERRORS),
                Some(Fault::Full) => bump(&FULL_DISKS),
                None => {}
            }
            let done = match (result, armed) {
                (Ok(done), _) => done,
                (Err(error), Some(fault)) => {
                    assert_ne!(fault, Fault::Full, "a full disk heals: {error}");
                    self.unknown = Some(write);
                    return Err(PowerCut);
                }
                (Err(error), None) => panic!("no fault was armed: {error}"),
            };
            let healed = armed == Some(Fault::Full);
            let before = healed.then(|| self.model.clone());
            let expected = self.model.commit(vec![write.clone()]);
            let expected = expected.ok().and_then(|mut done| done.pop());
            // A write that was tried again may have been on disk already, and then says so.
            assert!(
                healed || Some(&done) == expected.as_ref(),
                "{done:?} where the model says {expected:?}"
            );
            if let Some(before) = before {
                self.is_healed = true;
                self.wait_for_space();
                self.is_written_once(&write, before);
            }
            all.push(done);
        }
        Ok(all)
    }

    fn read_after(&self, bucket: &Bucket, after: Seq, events: usize, bytes: usize) -> Batch {
        self.look(|store| store.read_after(bucket, after, events, bytes))
    }

    fn last_seq(&self, bucket: BucketId) -> Seq {
        self.look(|store| store.last_seq(bucket))
    }

    fn bare_upto(&self, bucket: BucketId) -> Seq {
        self.look(|store| store.numbers(bucket)).pruned
    }

    fn acked(&self, bucket: BucketId, subscription: &str) -> Seq {
        self.look(|store| store.acked(bucket, subscription))
    }

    fn knows(&self, bucket: BucketId, subscription: &str) -> bool {
        let stored = self.look(|store| store.subscription(bucket, subscription));
        stored.known().is_some()
    }

    fn seen_at(&self, bucket: BucketId, subscription: &str) -> Option<Timestamp> {
        let stored = self.look(|store| store.subscription(bucket, subscription));
        stored.known().and_then(|known| known.seen_at)
    }

    fn source(&self, bucket: BucketId) -> Option<Source> {
        self.look(|store| store.source(bucket))
    }

    fn find(&self, event: EventId) -> Option<(BucketId, Seq)> {
        self.look(|store| store.find_event(event))
    }

    fn event_at(&self, bucket: &Bucket, seq: Seq) -> Option<Event> {
        self.look(|store| store.event_at(bucket, seq))
    }

    fn queue(&self, destination: DestinationId, query: &QueueQuery) -> QueuePage {
        let read = self.look(|store| store.queue(destination, query));
        assert_eq!(read.strays, [], "rows that lead nowhere");
        read.page
    }

    fn due_destinations(
        &self,
        until: Timestamp,
        after: Option<DueCursor>,
        max: usize,
        now: Timestamp,
    ) -> DuePage {
        self.look(|store| store.due_destinations(until, after, max, now))
    }

    /// What the store tells, which has to be what the model says.
    fn changed(&mut self) -> Changed {
        let expected = self.model.changed();
        let changes = self
            .changes
            .as_mut()
            .expect("open while anyone looks at it");
        let next = pin!(changes.next());
        let mut context = Context::from_waker(Waker::noop());
        let mut told = match next.poll(&mut context) {
            Poll::Ready(told) => told,
            Poll::Pending => Changed::default(),
        };
        // The model counts no commits.
        told.at = Offset::default();
        for added in &mut told.added {
            added.at = Offset::default();
        }
        let is_healed = std::mem::take(&mut self.is_healed);
        assert!(
            is_healed || told == expected,
            "{told:?} changed where the model says {expected:?}"
        );
        told
    }

    fn endpoint(&self, destination: DestinationId) -> (EndpointState, Option<Timestamp>) {
        let all = self.look(RedbStore::destinations);
        let found = all.into_iter().find(|known| known.id == destination);
        let found = found.map(|known| (known.endpoint, known.back_since));
        found.unwrap_or((EndpointState::Online, None))
    }

    fn search(
        &self,
        search: &Search,
        begin: Begin,
        after: Option<EventId>,
        max: usize,
    ) -> Vec<Found> {
        self.look(|store| store.search(search, begin, after, max))
    }

    fn delivery(&self, key: DeliveryKey) -> Option<Delivery> {
        self.look(|store| store.delivery(key))
    }

    fn deliveries_of(&self, bucket: BucketId, seq: Seq) -> Vec<Delivery> {
        self.look(|store| store.deliveries_of(bucket, seq))
    }

    fn counts(&self, destination: DestinationId) -> StateCounts {
        self.look(|store| store.counts(destination))
    }
}

fn again_until_healed<T>(ask: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let began = Instant::now();
    loop {
        match ask() {
            Err(error) if error.is_retryable() && began.elapsed() < HEALS_WITHIN => {
                std::thread::yield_now();
            }
            settled => return settled,
        }
    }
}

fn some((disk, store): (LyingDisk, RedbStore)) -> (LyingDisk, Option<RedbStore>) {
    (disk, Some(store))
}

/// Stores the state of an endpoint. A row says that one is offline by saying since when.
fn endpoint_of(
    endpoint: EndpointState,
    back_since: Option<Timestamp>,
) -> impl Fn(&mut Destination) + Send {
    move |known| {
        (known.endpoint, known.back_since) = (endpoint, back_since);
        let is_offline = endpoint == EndpointState::Offline;
        known.offline_since = is_offline.then_some(Timestamp::EPOCH);
    }
}
