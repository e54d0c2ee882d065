//! A store that shares no code with the real one: in memory, written from what the contracts promise, with every liberty
//! that they allow. Numbers have gaps, answers are lost, and what was not answered may have happened or not.

mod configured;
mod read;
mod written;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use whrelay_core::bucket::{Bucket, BucketId, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey, DestinationId};
use whrelay_core::destination::Destination;
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::queue::Offset;
use whrelay_core::retention::Bound;
use whrelay_core::subscription::{Subscription, removable_through};
use whrelay_core::time::Timestamp;
use whrelay_core::token::TokenDigest;
use whrelay_store::{
    Changed, Epoch, Feed, Incident, LoggedAttempt, Options, Removals, Source, Store, StoreError,
    Subscribed,
};

/// The liberties that a store takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Liberties {
    /// How many of a thousand writes have no answer, whether they were made or not.
    pub unanswered: u64,
    /// Whether every third number is skipped.
    pub has_gaps: bool,
    /// How late the view shows a write, at most.
    pub lag: Duration,
    /// Where chance begins.
    pub seed: u64,
}

impl Liberties {
    /// All of them.
    pub const ALL: Self = Self {
        unanswered: 50,
        has_gaps: true,
        lag: Duration::from_secs(5),
        seed: 7,
    };
}

/// What a store knows.
#[derive(Clone, Debug, Default)]
struct State {
    buckets: Vec<Bucket>,
    last: BTreeMap<BucketId, u64>,
    events: BTreeMap<(BucketId, Seq), Event>,
    places: BTreeMap<EventId, (BucketId, Seq)>,
    deliveries: BTreeMap<DeliveryKey, Delivery>,
    attempts: BTreeMap<u64, LoggedAttempt>,
    last_attempt: u64,
    destinations: BTreeMap<DestinationId, Destination>,
    subscriptions: BTreeMap<(BucketId, String), Subscription>,
    sources: BTreeMap<BucketId, Source>,
    signatures: BTreeMap<(Timestamp, [u8; 16]), EventId>,
    removals: BTreeMap<BucketId, Removals>,
    /// Up to where whole events, and bodies, were removed at a forwarder.
    removed: BTreeMap<BucketId, (Seq, Seq)>,
    tokens: BTreeMap<String, TokenDigest>,
    notes: BTreeMap<String, String>,
    incidents: Vec<Incident>,
    chance: u64,
    position: u64,
    changed: Changed,
}

/// The store.
#[derive(Clone)]
pub struct Model {
    state: Arc<Mutex<State>>,
    feed: Arc<Feed>,
    appended: watch::Sender<Offset>,
    /// What the view shows: the store of a while ago.
    shown: Arc<Mutex<State>>,
    applied: watch::Sender<Offset>,
    /// Whether it will follow.
    is_behind: Arc<AtomicBool>,
    epoch: Epoch,
    bound: Option<Bound>,
    liberties: Liberties,
}

impl Model {
    /// An empty one.
    pub fn new(options: &Options, liberties: Liberties) -> Self {
        let state = State {
            chance: liberties.seed | 1,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            feed: Arc::default(),
            appended: watch::Sender::new(Offset(0)),
            shown: Arc::default(),
            applied: watch::Sender::new(Offset(0)),
            is_behind: Arc::default(),
            epoch: Epoch {
                store: format!("{:032x}", options.name_seed),
                opens: 1,
                instance: liberties.seed,
                follows: None,
            },
            bound: options.bound,
            liberties,
        }
    }

    /// The same for those who know nothing but the contracts.
    pub fn store(&self) -> Store {
        Store {
            journal: Arc::new(self.clone()),
            view: Arc::new(self.clone()),
            catalog: Arc::new(self.clone()),
        }
    }

    /// The next process that opens it.
    #[must_use]
    pub fn reopened(&self, options: &Options) -> Self {
        let mut epoch = self.epoch.clone();
        epoch.follows = Some(epoch.instance);
        epoch.opens += 1;
        epoch.instance = epoch.instance.wrapping_add(1);
        self.apply();
        Self {
            feed: Arc::default(),
            epoch,
            bound: options.bound,
            ..self.clone()
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes, and answers.
    fn write<T>(&self, write: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        state.position += 1;
        let (answer, position) = (write(&mut state), state.position);
        let mut changed = std::mem::take(&mut state.changed);
        changed.at = Offset(position);
        drop(state);
        self.feed.add(&changed);
        self.appended.send_replace(Offset(position));
        self.apply_later();
        answer
    }

    /// Has the view follow after a while, with everything that is written until then.
    fn apply_later(&self) {
        if self.is_behind.swap(true, Ordering::Relaxed) {
            return;
        }
        let longest = self.liberties.lag;
        let lag = match self.state().below(100) {
            0 => longest,
            1..10 => longest / 20,
            _ => longest / 500,
        };
        let model = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(lag).await;
            model.is_behind.store(false, Ordering::Relaxed);
            model.apply();
        });
    }

    fn apply(&self) {
        let state = self.state().clone();
        let position = Offset(state.position);
        *self.shown() = state;
        self.applied.send_replace(position);
    }

    fn shown(&self) -> MutexGuard<'_, State> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes or not, and answers or not: who is not answered asks again.
    fn try_write<T>(&self, write: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        let mut state = self.state();
        let is_lost = state.below(1000) < self.liberties.unanswered;
        let is_made = !is_lost || state.below(2) == 0;
        drop(state);
        let answer = is_made.then(|| self.write(write));
        answer.filter(|_| !is_lost).ok_or(StoreError::Reopening)
    }
}

impl State {
    fn below(&mut self, end: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % end
    }

    fn last_seq(&self, bucket: BucketId) -> Seq {
        Seq(self.last.get(&bucket).copied().unwrap_or(0))
    }

    fn bare_upto(&self, bucket: BucketId) -> Seq {
        let removed = self.removed.get(&bucket).copied().unwrap_or_default();
        removed.0.max(removed.1)
    }

    fn subscribed(&self, bucket: BucketId, name: &str) -> Subscribed {
        let known = self.subscriptions.get(&(bucket, name.to_owned()));
        known.cloned().map_or(Subscribed::Absent, Subscribed::Known)
    }

    fn removable_through(&self, bucket: BucketId, by: Timestamp) -> Seq {
        let all = self
            .subscriptions
            .iter()
            .filter(|((of, _), _)| *of == bucket);
        removable_through(all.map(|(_, known)| Some(known)), by)
    }

    fn deliveries_of(&self, bucket: BucketId, seq: Seq) -> Vec<Delivery> {
        let key = |ordinal| DeliveryKey {
            bucket,
            seq,
            ordinal,
        };
        let all = self.deliveries.range(key(0)..=key(u32::MAX));
        all.map(|(_, delivery)| delivery.clone()).collect()
    }
}

/// Bytes of an event, as they count against the bound.
fn cost(event: &Event) -> u64 {
    event.request.body.len() as u64 + 400
}
