//! Opening a store, for the first time or again, and reading it. It must not know what the tables
//! hold.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};

use redb::{Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use whrelay_core::bucket::BucketId;
use whrelay_core::limits;
use whrelay_core::queue::Offset;
use whrelay_core::retention::Bound;

use crate::changes::Feed;
use crate::error::{OpenError, StoreError};
use crate::files::{check_magic, keep_name, remove_draft, taken};
use crate::guard::{self, unpanicked};
use crate::integrity::{Looks, Overlay};
use crate::lock::DirLock;
use crate::meta::{self, Epoch};
use crate::private::private_file;
use crate::record::Seal;
use crate::reserve::Reserve;
use crate::shared::Shared;
use crate::sizes::Sizes;
use crate::tables::{META, SEQUENCES};
use crate::tx::Tx;
use crate::writer::{self, Effort, Message, Purpose, Writer};

pub(crate) const FILE: &str = "store.redb";

/// Whose store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Buckets, their events, and subscriptions to them.
    Forwarder,
    /// Events, their deliveries, and attempts.
    Agent,
}

impl Role {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Forwarder => "forwarder",
            Self::Agent => "agent",
        }
    }
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose store it has to be.
    pub role: Role,
    /// Memory redb may use as its cache, in bytes.
    pub cache: usize,
    /// Randomness: what tells this opening of a store from every other, and a new store's own name, is made
    /// of it.
    pub name_seed: u128,
    /// What other processes are told that this one does with the store.
    pub purpose: &'static str,
    /// How much events, deliveries and attempts may take before nothing new is taken in.
    pub bound: Option<Bound>,
}

type Opener = dyn Fn(&Builder) -> Result<Database, DatabaseError> + Send;

/// Where a store rests. It can be opened again and again.
pub struct Medium {
    pub(crate) path: PathBuf,
    open: Box<Opener>,
    /// Whether an empty medium may become a new store.
    pub(crate) may_create: bool,
    /// How closely it is looked at when it is opened.
    pub(crate) looks: Looks,
    /// Space to live on while the disk is full.
    pub(crate) reserve: Option<Reserve>,
    _lock: Option<DirLock>,
}

impl Medium {
    /// Anything redb can open: memory, or a disk that lies.
    pub fn custom(
        open: impl Fn(&Builder) -> Result<Database, DatabaseError> + Send + 'static,
    ) -> Self {
        Self {
            path: PathBuf::from("memory"),
            open: Box::new(open),
            may_create: true,
            looks: Looks::Not,
            reserve: None,
            _lock: None,
        }
    }

    /// The file of a directory that is only read: what redb writes stays in memory.
    pub(crate) fn read_only(dir: &Path, purpose: &str) -> Result<Self, OpenError> {
        let lock = DirLock::take(dir, purpose)?;
        let path = dir.join(FILE);
        check_magic(&path)?;
        let file = path.clone();
        let open = move |builder: &Builder| {
            let overlay = Overlay::open(&file).map_err(redb::StorageError::Io)?;
            builder.create_with_backend(overlay)
        };
        Ok(Self {
            path,
            open: Box::new(open),
            may_create: false,
            looks: Looks::Not,
            reserve: None,
            _lock: Some(lock),
        })
    }

    /// The file of a directory, created in one step where it is missing.
    fn dir(dir: &Path, options: &Options) -> Result<Self, OpenError> {
        let lock = DirLock::take(dir, options.purpose)?;
        let path = dir.join(FILE);
        if !path.try_exists().map_err(|error| OpenError::Io {
            path: path.clone(),
            error,
        })? {
            create_file(dir, &path, options)?;
        }
        check_magic(&path)?;
        let file = path.clone();
        let looks = Looks::at(&path);
        let open = Box::new(move |builder: &Builder| builder.open(&file));
        Ok(Self {
            path,
            open,
            may_create: false,
            looks,
            reserve: Some(Reserve::new(dir)),
            _lock: Some(lock),
        })
    }

    /// Bytes that the file takes on its disk, where there is one.
    pub(crate) fn taken(&self) -> Option<u64> {
        self.reserve.as_ref()?;
        taken(&self.path).ok()
    }

    /// Opens the database. redb may panic on a file that something else has altered, which must
    /// not take the process down before it can say which file it was.
    pub(crate) fn open(&self, cache: usize) -> Result<Database, OpenError> {
        let mut builder = Builder::new();
        builder.set_cache_size(cache);
        let opened = guard::catch(|| (self.open)(&builder));
        let damaged = |detail: String| OpenError::Damaged {
            path: self.path.clone(),
            detail,
        };
        match opened {
            Ok(Ok(database)) => Ok(database),
            Ok(Err(error)) => Err(self.open_error(error)),
            Err(why) => Err(damaged(why)),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "redb's kinds can grow")]
    fn open_error(&self, error: DatabaseError) -> OpenError {
        let path = self.path.clone();
        match error {
            DatabaseError::Storage(redb::StorageError::Io(error)) => {
                let kind = error.kind();
                if matches!(
                    kind,
                    std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
                ) {
                    return OpenError::Damaged {
                        path,
                        detail: error.to_string(),
                    };
                }
                OpenError::Io { path, error }
            }
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse {
                path,
                pid: 0,
                purpose: "unknown".into(),
            },
            other => OpenError::Damaged {
                path,
                detail: other.to_string(),
            },
        }
    }
}

/// A new store appears under its name only once it is complete, so that an empty or partial file
/// there is never taken for a new one.
fn create_file(dir: &Path, path: &Path, options: &Options) -> Result<(), OpenError> {
    let io = |error| OpenError::Io {
        path: path.to_owned(),
        error,
    };
    let draft = path.with_extension("new");
    remove_draft(&draft).map_err(io)?;
    drop(private_file().open(&draft).map_err(io)?);
    let (file, lock) = (draft.clone(), None);
    let open = Box::new(move |builder: &Builder| builder.create(&file));
    let medium = Medium {
        path: draft.clone(),
        open,
        may_create: true,
        looks: Looks::Not,
        reserve: None,
        _lock: lock,
    };
    drop(meta::prepare(&medium, options)?);
    File::open(&draft).and_then(|f| f.sync_all()).map_err(io)?;
    fs::rename(&draft, path).map_err(io)?;
    File::open(dir).and_then(|f| f.sync_all()).map_err(io)
}

/// How much there is, as it was counted.
pub(crate) fn read_sizes(seal: Seal, database: &Database) -> Result<Sizes, StoreError> {
    Sizes::read(seal, &begin_read(database)?.open_table(SEQUENCES)?)
}

fn begin_read(database: &Database) -> Result<ReadTransaction, StoreError> {
    Ok(database.begin_read()?)
}

/// An open store. Clones are handles to the same one.
#[derive(Clone)]
pub struct RedbStore {
    pub(crate) shared: Arc<Shared>,
    writes: mpsc::Sender<Message>,
    /// One permit for each byte that waits to be written.
    bytes: Arc<Semaphore>,
    /// What records are sealed with.
    pub(crate) seal: Seal,
    epoch: Arc<Epoch>,
    bound: Option<Bound>,
}

impl RedbStore {
    /// Opens the store of a directory, and creates both where they are missing.
    ///
    /// # Errors
    /// In use, not writable, another file, damaged, of a newer format: nothing is changed then.
    pub fn open(dir: &Path, options: &Options) -> Result<Self, OpenError> {
        let store = Self::open_on(Medium::dir(dir, options)?, options)?;
        keep_name(dir, store.id())?;
        Ok(store)
    }

    /// Opens the store on a medium.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn open_on(medium: Medium, options: &Options) -> Result<Self, OpenError> {
        let (database, epoch) = meta::prepare(&medium, options)?;
        let seal = Seal::of(&epoch.store);
        // Where it is damaged the file bounds it.
        let sizes = unpanicked(|| read_sizes(seal, &database));
        let sizes = sizes.unwrap_or_else(|_| Sizes::unknown(medium.taken().unwrap_or(0)));
        let shared = Arc::new(Shared {
            database: RwLock::new(Some(Arc::new(database))),
            sizes,
            moving: AtomicBool::new(false),
            changes: Feed::default(),
            commits: watch::Sender::new(Offset(0)),
            broken: watch::Sender::new(None),
            path: medium.path.clone(),
        });
        let (writes, waiting) = mpsc::channel(limits::MAX_WAITING_WRITES);
        Writer::start(medium, options, seal, Arc::clone(&shared), waiting);
        let bytes = Arc::new(Semaphore::new(limits::MAX_WAITING_BYTES));
        Ok(Self {
            shared,
            writes,
            bytes,
            seal,
            epoch: epoch.into(),
            bound: options.bound,
        })
    }

    /// The store's own name: another store never has it.
    pub fn id(&self) -> &str {
        &self.epoch.store
    }

    /// Which opening of which store this is.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// How much events, deliveries and attempts may take before nothing new is taken in.
    pub fn bound(&self) -> Option<Bound> {
        self.bound
    }

    /// The position that reads show, at least.
    pub fn applied(&self) -> Offset {
        *self.shared.commits.borrow()
    }

    /// Counts commits: a change is a hint to look again, and carries no data.
    pub fn commits(&self) -> watch::Receiver<Offset> {
        self.shared.commits.subscribe()
    }

    /// Waits until the store has stopped for good, and says why: then the process must stop too.
    pub async fn broken(&self) -> StoreError {
        let mut broken = self.shared.broken.subscribe();
        match broken.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or(StoreError::Reopening),
            Err(_) => StoreError::Broken("the writer has stopped".into()),
        }
    }

    /// Finishes what was asked for before and lets go of the medium.
    pub async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.writes.send(Message::Close(done)).await.is_ok() {
            // A writer that is gone already has let go too.
            let _ = closed.await;
        }
    }

    /// Applies `run` in the next group commit and answers once that is on disk. `weight` is about
    /// how many bytes it writes.
    pub(crate) async fn write<T, F>(&self, weight: usize, run: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.ask(Purpose::Drain, weight, run).await
    }

    /// The same for a write that takes something new into a bucket, which a full disk refuses first.
    pub(crate) async fn take_in<T, F>(
        &self,
        bucket: BucketId,
        weight: usize,
        run: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.ask(Purpose::TakeIn(bucket, weight), weight, run).await
    }

    async fn ask<T, F>(&self, purpose: Purpose, weight: usize, run: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let gone = || StoreError::Broken("the writer has stopped".into());
        let share = u32::try_from(weight.min(limits::MAX_WAITING_BYTES)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.bytes).acquire_many_owned(share).await;
        let permit = permit.map_err(|_| gone())?;
        let (operation, answer) = writer::operation(purpose, weight, permit, run);
        self.writes
            .send(Message::Run(operation))
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Reads one consistent state. Where the file is being made smaller, that is waited for.
    pub(crate) fn read<T>(
        &self,
        run: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.read_from(self.shared.readable(), run)
    }

    /// The same for those that come again soon, of whom there may be very many: they never wait.
    pub(crate) fn read_now<T>(
        &self,
        run: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.read_from(self.shared.database(), run)
    }

    fn read_from<T>(
        &self,
        database: Option<Arc<Database>>,
        run: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let database = database.ok_or(StoreError::Reopening)?;
        let handle = Arc::downgrade(&database);
        // The last who reads closes the file, which may panic as a read may.
        let found = unpanicked(move || run(&begin_read(&database)?));
        match found {
            Err(StoreError::Reopening) => {
                // Where so much waits that there is no room for this, a write finds out instead.
                let _ = self.writes.try_send(Message::Heal(handle));
                Err(StoreError::Reopening)
            }
            Err(error) if error.is_structure() => Err(self.shared.stop(error)),
            found => found,
        }
    }

    /// A note of the process that uses the store, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.read(|tx| {
            let value = tx.open_table(META)?.get(format!("note.{name}").as_str())?;
            Ok(value.map(|v| String::from_utf8_lossy(v.value()).into_owned()))
        })
    }

    /// Keeps a note.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn set_note(&self, name: &str, value: &str) -> Result<(), StoreError> {
        if self.note(name)?.as_deref() == Some(value) {
            return Ok(());
        }
        let (name, value) = (format!("note.{name}"), value.to_owned());
        let put = move |tx: &mut Tx<'_>| {
            tx.meta.open()?.insert(name.as_str(), value.as_bytes())?;
            Ok(())
        };
        self.write(256, put).await
    }

    /// Gives free space in the file back to the file system. Meanwhile nothing is written, and a read waits.
    /// Answers whether it did.
    ///
    /// # Errors
    /// When the store has stopped.
    pub async fn give_back(&self, effort: Effort) -> Result<bool, StoreError> {
        let (done, given) = oneshot::channel();
        let stopped = || StoreError::Broken("the writer has stopped".into());
        let asked = self.writes.send(Message::GiveBack(effort, done)).await;
        asked.map_err(|_| stopped())?;
        given.await.map_err(|_| stopped())
    }
}

/// Bytes that the store of a directory takes on its disk: none where there is no store.
///
/// # Errors
/// When that cannot be found out.
pub fn disk_used(dir: &Path) -> Result<u64, StoreError> {
    match taken(&dir.join(FILE)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        taken => taken.map_err(|e| StoreError::Broken(e.to_string().into())),
    }
}
