//! The one write thread. It groups what waits into one commit, and answers after the commit, never
//! inside the transaction. A failed commit means "unknown": on a full disk it reopens in place, on
//! anything else it stops for good, because after a failed fsync nobody knows what is on disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use redb::{Database, Durability, WriteTransaction};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use whrelay_core::bucket::BucketId;
use whrelay_core::limits;
use whrelay_core::queue::Offset;
use whrelay_core::retention::Bound;

use crate::disk::{Medium, Options, read_sizes};
use crate::error::{Fault, OpenError, StoreError};
use crate::guard::{self, unpanicked};
use crate::record::Seal;
use crate::shared::Shared;
use crate::sizes::Coming;
use crate::tx::{Finished, Tx};

/// What the writer is asked.
pub(crate) enum Message {
    /// Apply this in the next commit.
    Run(Box<dyn Operation>),
    /// A read found that this handle has failed: replace it, if nobody has yet.
    Heal(Weak<Database>),
    /// Give free space back, if that is worth it, and say whether it was done.
    GiveBack(Effort, oneshot::Sender<bool>),
    /// Commit what came before, let go of the medium, and say so.
    Close(oneshot::Sender<()>),
}

/// What the writer does in one round.
#[derive(Default)]
struct Round {
    group: Vec<Box<dyn Operation>>,
    failed: Option<Weak<Database>>,
    give_back: Option<(Effort, oneshot::Sender<bool>)>,
    close: Option<oneshot::Sender<()>>,
}

/// What a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Something new comes into this bucket, about so many bytes.
    TakeIn(BucketId, usize),
    /// What is there moves on: it is recorded, receipted, begun again.
    Drain,
}

/// One write: applied in a transaction, answered after its commit.
pub(crate) trait Operation: Send {
    /// What it is for.
    fn purpose(&self) -> Purpose;
    /// About how many bytes it writes.
    fn weight(&self) -> usize;
    /// Changes the tables; an error here fails the whole group.
    fn apply(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError>;
    /// Answers whoever waits.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Pending<T, F> {
    purpose: Purpose,
    weight: usize,
    run: Option<F>,
    value: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
    _permit: OwnedSemaphorePermit,
}

impl<T, F> Operation for Pending<T, F>
where
    T: Send,
    F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send,
{
    fn purpose(&self) -> Purpose {
        self.purpose
    }

    fn weight(&self) -> usize {
        self.weight
    }

    fn apply(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        // Whoever asked has given up and been told so: what is not begun is left undone.
        if self.reply.is_closed() {
            return Ok(());
        }
        let Some(run) = self.run.take() else {
            return Ok(());
        };
        self.value = Some(match run(tx) {
            // One bad record is that operation's trouble, not its group's: operations read before
            // they write.
            Err(error @ StoreError::Damaged(_)) => Err(error),
            other => Ok(other?),
        });
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let Self { value, reply, .. } = *self;
        let answer = committed.and_then(|()| value.unwrap_or(Err(StoreError::Reopening)));
        // Whoever asked may have given up meanwhile.
        let _ = reply.send(answer);
    }
}

/// Wraps a change to the tables, and says where its answer will come.
pub(crate) fn operation<T, F>(
    purpose: Purpose,
    weight: usize,
    permit: OwnedSemaphorePermit,
    run: F,
) -> (Box<dyn Operation>, oneshot::Receiver<Result<T, StoreError>>)
where
    T: Send + 'static,
    F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let run = Some(run);
    (
        Box::new(Pending {
            purpose,
            weight,
            run,
            value: None,
            reply,
            _permit: permit,
        }),
        answer,
    )
}

/// Begins a transaction whose commit is an fsync, and after which a crash costs no repair.
pub(crate) fn begin(database: &Database) -> Result<WriteTransaction, StoreError> {
    let mut tx = database.begin_write()?;
    tx.set_quick_repair(true);
    tx.set_durability(Durability::Immediate)
        .map_err(|error| StoreError::Broken(error.to_string().into()))?;
    Ok(tx)
}

/// How much time giving space back may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// A moment, and only where that is worth it.
    Moment,
    /// As much as it does.
    Whatever,
}

/// The writer's own state.
pub(crate) struct Writer {
    medium: Medium,
    cache: usize,
    bound: Option<Bound>,
    /// Bytes that the last compaction has left in the file.
    left: u64,
    seal: Seal,
    shared: Arc<Shared>,
    /// Until then a full disk is not asked again.
    full_until: Option<Instant>,
    spare: Spare,
    /// Free space in the file that is enough to take something in where the disk has none.
    enough_inside: u64,
}

/// How much of what a file holds was moved to its front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    /// All of it.
    Whole,
    /// Some, until that failed.
    Part,
    /// Nothing: someone read it, or it is not open.
    Nothing,
}

/// What a store falls back on when its disk is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spare {
    /// The reserve.
    Reserve,
    /// Free space in the store's own file, where the disk has none for a reserve. That is asked for again at
    /// this time.
    Inside { until: Instant },
    /// Nothing: the reserve is given up, and nothing new is taken in. It is asked for again at that time.
    Nothing { until: Instant },
}

impl Writer {
    /// Starts the thread; it ends when the store is closed, dropped or broken.
    pub(crate) fn start(
        medium: Medium,
        options: &Options,
        seal: Seal,
        shared: Arc<Shared>,
        waiting: mpsc::Receiver<Message>,
    ) {
        let writer = Self {
            medium,
            cache: options.cache,
            bound: options.bound,
            left: 0,
            seal,
            shared,
            full_until: None,
            spare: Spare::Reserve,
            enough_inside: limits::RESERVE,
        };
        // A thread that cannot be started drops the queue, and every write then says so.
        let started = thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run_guarded(waiting));
        if let Err(error) = started {
            tracing::error!(%error, "the store's writer could not be started");
        }
    }

    /// A writer that panics must stop the process, or every write would wait for nobody.
    fn run_guarded(self, waiting: mpsc::Receiver<Message>) {
        let shared = Arc::clone(&self.shared);
        let ran = catch_unwind(AssertUnwindSafe(|| guard::catch(|| self.run(waiting))));
        let fault = match ran {
            Ok(Ok(())) => return,
            Ok(Err(detail)) => Fault::structure(detail),
            Err(_) => "the writer has panicked".into(),
        };
        shared.stop(fault.into());
        let _ = guard::catch(|| shared.replace(None));
    }

    fn run(mut self, mut waiting: mpsc::Receiver<Message>) {
        self.take_reserve();
        let closed = loop {
            let next = match self.shared.database() {
                Some(_) => waiting.blocking_recv(),
                None => self.wait_for_medium(&mut waiting),
            };
            let Some(first) = next else { break None };
            let Round {
                group,
                failed,
                give_back,
                close,
            } = collect(first, &mut waiting);
            let done = self
                .heal(failed)
                .and_then(|()| self.commit_group(group))
                .and_then(|()| self.give_back(give_back));
            if let Err(error) = done {
                self.shared.stop(error);
                break close;
            }
            if close.is_some() {
                break close;
            }
        };
        self.shared.replace(None);
        drop(self.medium);
        drop(waiting);
        if let Some(done) = closed {
            let _ = done.send(());
        }
    }

    /// Tries to reopen until that succeeds or someone asks for something.
    fn wait_for_medium(&mut self, waiting: &mut mpsc::Receiver<Message>) -> Option<Message> {
        loop {
            match waiting.try_recv() {
                Ok(message) => return Some(message),
                Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Err(mpsc::error::TryRecvError::Empty) => {}
            }
            thread::sleep(limits::REOPEN_EVERY);
            self.full_until = None;
            if let Err(error) = self.reopen() {
                self.shared.stop(error);
                return None;
            }
            if self.shared.database().is_some() {
                return waiting.blocking_recv();
            }
        }
    }

    /// Replaces a handle that has failed, unless that is done. redb refuses every read of such a
    /// handle, and where nothing is written no commit would find out.
    fn heal(&mut self, failed: Option<Weak<Database>>) -> Result<(), StoreError> {
        let current = self.shared.database().map(|d| Arc::downgrade(&d));
        match (failed, current) {
            (Some(failed), Some(current)) if failed.ptr_eq(&current) => self.reopen(),
            (Some(_) | None, _) => Ok(()),
        }
    }

    /// Takes the reserve, or finds that free space in the file will do, or that there is none.
    fn take_reserve(&mut self) {
        let Some(reserve) = &self.medium.reserve else {
            return;
        };
        let taken = reserve.take();
        let now = Instant::now();
        let was = self.spare;
        self.spare = match taken {
            Ok(()) => Spare::Reserve,
            Err(_) if self.inside() >= self.enough_inside => Spare::Inside {
                until: now + limits::RESERVE_EVERY,
            },
            Err(error) => {
                if !matches!(was, Spare::Nothing { .. }) {
                    tracing::warn!(%error, "the disk is full: nothing new is taken in");
                }
                Spare::Nothing {
                    until: now + limits::REOPEN_EVERY,
                }
            }
        };
        match (was, self.spare) {
            (Spare::Inside { .. } | Spare::Nothing { .. }, Spare::Reserve) => {
                tracing::info!("the disk has space again");
            }
            (Spare::Reserve | Spare::Nothing { .. }, Spare::Inside { .. }) => {
                tracing::info!("the disk is full, and the store's file has space");
            }
            (_, Spare::Reserve | Spare::Inside { .. } | Spare::Nothing { .. }) => {}
        }
    }

    /// About how many bytes of the file's own are free. Pages are half full or more, as a rule; where they
    /// are not, a write finds out.
    fn inside(&self) -> u64 {
        let taken = self.medium.taken().unwrap_or(0);
        taken.saturating_sub(2 * self.shared.sizes.total())
    }

    /// Answers writes that take something in where the disk is full or the bound is reached, and keeps the others.
    fn refuse_new(&mut self, group: &mut Vec<Box<dyn Operation>>) {
        let asks = match self.spare {
            Spare::Reserve => false,
            Spare::Inside { until } => {
                Instant::now() >= until || self.inside() < limits::RESERVE / 2
            }
            Spare::Nothing { until } => Instant::now() >= until,
        };
        if asks {
            self.take_reserve();
        }
        if self.bound.is_none() && !matches!(self.spare, Spare::Nothing { .. }) {
            return;
        }
        let mut coming = Coming::default();
        for operation in std::mem::take(group) {
            match self.refusal(operation.purpose(), &mut coming) {
                Some(why) => operation.answer(Err(why)),
                None => group.push(operation),
            }
        }
    }

    /// Why a write is not carried out, where it is not, beside those of its group that are.
    fn refusal(&self, purpose: Purpose, coming: &mut Coming) -> Option<StoreError> {
        let Purpose::TakeIn(bucket, bytes) = purpose else {
            return None;
        };
        if matches!(self.spare, Spare::Nothing { .. }) {
            return Some(StoreError::Full);
        }
        let refused = self.shared.sizes.refusal(self.bound, bucket, coming, bytes);
        if refused.is_none() {
            coming.add(bucket, bytes);
        }
        refused
    }

    /// Compacts the file if it is to be, or if at least half of it is free and what it holds is moved in a
    /// moment. redb wants it for itself: whoever reads finishes first.
    fn give_back(
        &mut self,
        asked: Option<(Effort, oneshot::Sender<bool>)>,
    ) -> Result<(), StoreError> {
        let Some((effort, asked)) = asked else {
            return Ok(());
        };
        let size = self.shared.sizes.total();
        let taken = self.medium.taken().unwrap_or(0);
        let much = taken > 2 * size + limits::SPARE_SPACE;
        // What a try has left is not worth another until it has grown.
        let quick = much && size <= limits::MOVED_AT_ONCE && taken > 2 * self.left;
        let worth = effort == Effort::Whatever || quick;
        let moved = if worth {
            self.compact()?
        } else {
            Moved::Nothing
        };
        if moved != Moved::Nothing {
            self.left = self.medium.taken().unwrap_or(0);
        }
        // Whoever asked may have gone.
        let _ = asked.send(moved == Moved::Whole);
        Ok(())
    }

    fn compact(&mut self) -> Result<Moved, StoreError> {
        let Some(database) = self.shared.database() else {
            return Ok(Moved::Nothing);
        };
        self.shared.moving.store(true, Ordering::Relaxed);
        self.shared.replace(None);
        let compacted = self.compact_alone(database);
        self.shared.moving.store(false, Ordering::Relaxed);
        compacted
    }

    fn compact_alone(&mut self, database: Arc<Database>) -> Result<Moved, StoreError> {
        let mut database = match alone(database) {
            Ok(database) => database,
            Err(still_read) => {
                self.shared.replace(Some(still_read));
                return Ok(Moved::Nothing);
            }
        };
        let began = Instant::now();
        let moved = guard::catch(|| {
            let moved = database.compact().map_err(|error| error.to_string())?;
            // So that a crash from here on costs no repair.
            let empty = begin(&database).map_err(|error| error.to_string())?;
            empty.commit().map_err(|error| error.to_string())?;
            Ok::<_, String>(moved)
        });
        let moved = moved.unwrap_or_else(Err);
        match moved {
            Ok(_) => {
                tracing::info!(took = ?began.elapsed(), "free space was given back");
                self.shared.replace(Some(Arc::new(database)));
                Ok(Moved::Whole)
            }
            Err(why) => {
                tracing::warn!(why, "free space could not be given back");
                drop(database);
                self.full_until = None;
                self.reopen()?;
                Ok(Moved::Part)
            }
        }
    }

    /// Gives the reserve up, the first time the disk is full. Says whether that made space.
    fn give_up_reserve(&mut self) -> bool {
        let Some(reserve) = &self.medium.reserve else {
            return false;
        };
        reserve.give_up();
        let until = Instant::now() + limits::REOPEN_EVERY;
        match std::mem::replace(&mut self.spare, Spare::Nothing { until }) {
            Spare::Reserve => true,
            Spare::Inside { .. } => {
                // It was in pieces too small.
                self.enough_inside = self.enough_inside.saturating_mul(2);
                true
            }
            Spare::Nothing { .. } => false,
        }
    }

    /// Commits a group and answers it. An error means that the store has stopped for good.
    fn commit_group(&mut self, mut group: Vec<Box<dyn Operation>>) -> Result<(), StoreError> {
        self.refuse_new(&mut group);
        if group.is_empty() {
            return Ok(());
        }
        let mut purposes = group.iter().map(|op| op.purpose());
        let takes_in = purposes.any(|purpose| matches!(purpose, Purpose::TakeIn(..)));
        let committed = self.try_commit(&mut group);
        for operation in group {
            operation.answer(committed.clone());
        }
        match committed {
            Ok(()) => {
                self.full_until = None;
                if takes_in {
                    self.enough_inside = limits::RESERVE;
                }
                Ok(())
            }
            Err(
                error @ (StoreError::Full
                | StoreError::Bound
                | StoreError::Share
                | StoreError::Reopening),
            ) => {
                if matches!(error, StoreError::Full) && self.give_up_reserve() {
                    self.full_until = None;
                    let reopened = self.reopen();
                    self.full_until = None;
                    return reopened;
                }
                self.reopen()
            }
            Err(error @ (StoreError::Broken(_) | StoreError::Damaged(_))) => Err(error),
        }
    }

    fn try_commit(&mut self, group: &mut [Box<dyn Operation>]) -> Result<(), StoreError> {
        if self.full_until.is_some_and(|until| Instant::now() < until) {
            return Err(StoreError::Full);
        }
        let database = self.shared.database().ok_or(StoreError::Reopening)?;
        let transaction = begin(&database)?;
        let at = Offset(self.shared.commits.borrow().0 + 1);
        let mut tx = Tx::new(&transaction, self.seal, at);
        for operation in group {
            operation.apply(&mut tx)?;
        }
        let Finished { sizes, changed } = tx.finish(&self.shared.sizes)?;
        transaction.commit()?;
        self.shared.sizes.set(&sizes);
        // Whoever knows of the commit can be told what it has changed.
        self.shared.changes.add(&changed);
        self.shared.commits.send_replace(at);
        Ok(())
    }

    /// After an I/O error redb refuses everything on this handle: only a new one heals. Anything
    /// but a full or busy medium stops the store.
    fn reopen(&mut self) -> Result<(), StoreError> {
        if self.full_until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        self.shared.replace(None);
        self.full_until = Some(Instant::now() + limits::REOPEN_EVERY);
        match self.medium.open(self.cache) {
            Ok(database) => {
                // Nobody knows whether what failed is on disk.
                match unpanicked(|| read_sizes(self.seal, &database)) {
                    Ok(sizes) => self.shared.sizes.replace(sizes),
                    Err(error) => tracing::warn!(%error, "its size is what it was"),
                }
                self.shared.replace(Some(Arc::new(database)));
            }
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "the store cannot be reopened yet");
            }
            Err(OpenError::Damaged { path, detail }) => {
                return Err(Fault::Structure { file: path, detail }.into());
            }
            Err(error) => return Err(StoreError::Broken(error.to_string().into())),
        }
        Ok(())
    }
}

/// The database, once nobody reads it any more; or as it was, where someone does for too long.
fn alone(mut database: Arc<Database>) -> Result<Database, Arc<Database>> {
    let until = Instant::now() + limits::READERS_LEAVE;
    loop {
        match Arc::try_unwrap(database) {
            Err(still_read) if Instant::now() < until => database = still_read,
            settled => return settled,
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Takes what waits, up to the size of a group. Natural batching: nothing is waited for.
fn collect(first: Message, waiting: &mut mpsc::Receiver<Message>) -> Round {
    let (mut round, mut weight) = (Round::default(), 0);
    let mut next = Some(first);
    while let Some(message) = next {
        match message {
            Message::Close(done) => {
                round.close = Some(done);
                return round;
            }
            Message::Heal(failed) => round.failed = Some(failed),
            Message::GiveBack(effort, asked) => {
                round.give_back = Some((effort, asked));
                return round;
            }
            Message::Run(operation) => {
                weight += operation.weight();
                round.group.push(operation);
            }
        }
        let room = round.group.len() < limits::MAX_GROUP && weight < limits::MAX_GROUP_BYTES;
        next = if room { waiting.try_recv().ok() } else { None };
    }
    round
}
