//! A disk that fills up and heals, one whose fsync fails, and one whose bits rot.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use redb::StorageBackend;
use redb::backends::{FileBackend, InMemoryBackend};
use whrelay_core::bucket::{Bucket, Seq};
use whrelay_store::{Fault, Medium, Options, RedbStore, Role, StoreError};

use crate::setup::*;

const FINE: u8 = 0;
const FULL: u8 = 1;
const FSYNC_FAILS: u8 = 2;
const FSYNC_HANGS: u8 = 3;
const READ_FAILS: u8 = 4;
const READS_NONSENSE: u8 = 5;
const FULL_AT_ITS_SECOND_SYNC: u8 = 6;
const FULL_AT_ITS_NEXT_SYNC: u8 = 7;

#[derive(Debug, Clone)]
struct Failing {
    file: Arc<FileBackend>,
    mode: Arc<AtomicU8>,
    /// Bytes that have been written once: on a full disk those can still be overwritten.
    allocated: Arc<AtomicU64>,
}

impl Failing {
    fn check(&self, mode: u8, kind: io::ErrorKind) -> io::Result<()> {
        if self.mode.load(Ordering::SeqCst) == mode {
            Err(kind.into())
        } else {
            Ok(())
        }
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check(READ_FAILS, io::ErrorKind::Other)?;
        self.file.read(offset, out)?;
        if self.check(READS_NONSENSE, io::ErrorKind::Other).is_err() {
            out.fill(0x5a);
        }
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.check(FSYNC_FAILS, io::ErrorKind::Other)?;
        match self.mode.load(Ordering::SeqCst) {
            FULL_AT_ITS_SECOND_SYNC => self.mode.store(FULL_AT_ITS_NEXT_SYNC, Ordering::SeqCst),
            FULL_AT_ITS_NEXT_SYNC => {
                self.mode.store(FINE, Ordering::SeqCst);
                return Err(io::ErrorKind::StorageFull.into());
            }
            _ => {}
        }
        while self.mode.load(Ordering::SeqCst) == FSYNC_HANGS {
            std::thread::yield_now();
        }
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        if end > self.allocated.load(Ordering::SeqCst) {
            self.check(FULL, io::ErrorKind::StorageFull)?;
            self.allocated.store(end, Ordering::SeqCst);
        }
        self.file.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

fn failing(dir: &std::path::Path) -> (RedbStore, Arc<AtomicU8>) {
    let mode = Arc::new(AtomicU8::new(FINE));
    (opened(dir, &mode, 1), mode)
}

/// The store on a disk of that mode.
fn opened(dir: &std::path::Path, mode: &Arc<AtomicU8>, name_seed: u128) -> RedbStore {
    let (path, switch) = (dir.join("disk"), Arc::clone(mode));
    let allocated = Arc::new(AtomicU64::new(0));
    let open = move |builder: &redb::Builder| {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        let backend = Failing {
            file: Arc::new(FileBackend::new(file)?),
            mode: Arc::clone(&switch),
            allocated: Arc::clone(&allocated),
        };
        builder.create_with_backend(backend)
    };
    let options = Options {
        name_seed,
        ..options(Role::Forwarder)
    };
    RedbStore::open_on(Medium::custom(open), &options).expect("opens")
}

/// Its opening could not be written: its number stayed where it was, as that of a copy would, and redb refused every
/// read of the handle.
#[tokio::test]
async fn a_store_on_a_full_disk_opens_and_is_no_copy_of_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, mode) = failing(dir.path());
    let bucket = bucket(&store).await;
    let stored = store.append(bucket.id, vec![plain(1)], None);
    stored.await.expect("stored");
    let before = store.epoch().clone();
    store.close().await;
    // The first one is of opening the file.
    mode.store(FULL_AT_ITS_SECOND_SYNC, Ordering::SeqCst);
    let store = opened(dir.path(), &mode, 2);
    assert_eq!(*store.epoch(), before);
    assert_eq!(store.last_seq(bucket.id).expect("read"), Seq(1));
    store.close().await;
    let next = opened(dir.path(), &mode, 3);
    assert_eq!(next.epoch().opens, before.opens + 1);
    assert_eq!(next.epoch().follows, Some(before.instance));
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_heals_in_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, mode) = failing(dir.path());
    let bucket = bucket(&store).await;
    store
        .append(bucket.id, vec![plain(1)], None)
        .await
        .expect("stored");
    mode.store(FULL, Ordering::SeqCst);
    let mut n = 2;
    let full = loop {
        if let Err(error) = store.append(bucket.id, vec![plain(n)], None).await {
            break error;
        }
        n += 1;
    };
    assert!(full.is_retryable(), "{full}");
    let read = || store.read_after(&bucket, Seq(0), 99, usize::MAX);
    let batch = eventually(read).await;
    assert!(
        batch.events.iter().any(|s| s.event == event(1)),
        "what was stored is still served"
    );
    mode.store(FINE, Ordering::SeqCst);
    let healed = async {
        while store.append(bucket.id, vec![plain(n)], None).await.is_err() {
            n += 1;
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), healed)
        .await
        .expect("heals without a restart");
}

async fn eventually<T>(mut probe: impl FnMut() -> Result<T, StoreError>) -> T {
    let found = async {
        loop {
            match probe() {
                Ok(value) => return value,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found)
        .await
        .expect("it came about")
}

#[tokio::test]
async fn a_write_that_was_given_up_before_it_began_is_left_undone() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, mode) = failing(dir.path());
    let bucket = bucket(&store).await;
    mode.store(FSYNC_HANGS, Ordering::SeqCst);
    let first = store.append(bucket.id, vec![plain(1)], None);
    let mut first = std::pin::pin!(first);
    let moment = Duration::from_millis(50);
    assert!(
        tokio::time::timeout(moment, first.as_mut()).await.is_err(),
        "the fsync hangs"
    );
    let given_up = store.append(bucket.id, vec![plain(2)], None);
    assert!(
        tokio::time::timeout(moment, given_up).await.is_err(),
        "it waits behind the first"
    );
    mode.store(FINE, Ordering::SeqCst);
    first.await.expect("stored");
    store
        .append(bucket.id, vec![plain(3)], None)
        .await
        .expect("stored");
    let stored = store
        .read_after(&bucket, Seq(0), 99, usize::MAX)
        .expect("read")
        .events;
    let stored: Vec<_> = stored.into_iter().map(|s| s.event).collect();
    assert_eq!(stored, [1, 3].map(event));
}

/// So that some page has to come from the disk when they are read.
async fn append_more_than_is_cached(store: &RedbStore, bucket: &Bucket) {
    let many = (1..=40).map(|n| {
        let mut new = plain(n);
        new.event.request.body = vec![7; 200_000].into();
        new
    });
    let stored = store.append(bucket.id, many.collect(), None);
    stored.await.expect("stored");
}

#[tokio::test]
async fn a_handle_that_a_read_has_spoilt_is_replaced_though_nothing_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, mode) = failing(dir.path());
    let bucket = bucket(&store).await;
    append_more_than_is_cached(&store, &bucket).await;
    let read = || store.read_after(&bucket, Seq(0), usize::MAX, usize::MAX);
    mode.store(READ_FAILS, Ordering::SeqCst);
    assert!(matches!(read(), Err(StoreError::Broken(_))));
    mode.store(FINE, Ordering::SeqCst);
    let refused = read().expect_err("redb refuses a handle that has failed");
    assert!(refused.is_retryable(), "{refused}");
    assert_eq!(eventually(read).await.events.len(), 40);
}

#[tokio::test]
async fn a_failed_fsync_stops_the_store_for_good() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, mode) = failing(dir.path());
    let bucket = bucket(&store).await;
    mode.store(FSYNC_FAILS, Ordering::SeqCst);
    let unknown = store
        .append(bucket.id, vec![plain(1)], None)
        .await
        .expect_err("no receipt");
    assert!(matches!(unknown, StoreError::Broken(_)), "{unknown}");
    mode.store(FINE, Ordering::SeqCst);
    assert!(matches!(store.broken().await, StoreError::Broken(_)));
    let after = store
        .append(bucket.id, vec![plain(2)], None)
        .await
        .expect_err("stopped");
    assert!(!after.is_retryable(), "{after}");
}

/// It served on, and answered 503 to every post for ever.
#[tokio::test]
async fn a_page_that_makes_no_sense_stops_the_store_for_good() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, mode) = failing(dir.path());
    let bucket = bucket(&store).await;
    append_more_than_is_cached(&store, &bucket).await;
    mode.store(READS_NONSENSE, Ordering::SeqCst);
    let read = store.read_after(&bucket, Seq(0), usize::MAX, usize::MAX);
    let error = read.expect_err("nonsense");
    assert!(
        matches!(&error, StoreError::Broken(Fault::Structure { file, .. }) if !file.as_os_str().is_empty()),
        "{error:?}"
    );
    assert_eq!(store.broken().await.to_string(), error.to_string());
}

#[tokio::test]
async fn a_rotten_event_is_passed_over_and_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = Options {
        cache: 1 << 20,
        ..options(Role::Forwarder)
    };
    let store = RedbStore::open(dir.path(), &settings).expect("opens");
    let bucket = bucket(&store).await;
    store
        .append(bucket.id, (1..=5).map(plain).collect(), None)
        .await
        .expect("stored");
    store.close().await;
    let path = dir.path().join("store.redb");
    let mut file = std::fs::read(&path).expect("the file");
    let tail: &[u8] = b"/3";
    let at = file
        .windows(2)
        .position(|w| w == tail)
        .expect("the third event's tail");
    file[at + 1] ^= 1;
    std::fs::write(&path, file).expect("written");
    let store = RedbStore::open(dir.path(), &settings).expect("redb does not notice");
    let batch = store
        .read_after(&bucket, Seq(0), 99, usize::MAX)
        .expect("read");
    assert_eq!(batch.damaged, [Seq(3)]);
    assert_eq!(batch.upto, Seq(5));
    let events: Vec<_> = batch.events.into_iter().map(|s| s.event).collect();
    assert_eq!(events, [1, 2, 4, 5].map(event));
    let damaged = store.event_at(&bucket, Seq(3)).expect_err("damaged");
    assert!(matches!(damaged, StoreError::Damaged(_)), "{damaged}");
}

#[tokio::test]
async fn nothing_is_quarantined_that_is_whole() {
    let open = |b: &redb::Builder| b.create_with_backend(InMemoryBackend::new());
    let store = RedbStore::open_on(Medium::custom(open), &options(Role::Agent)).expect("opens");
    let bucket = bucket(&store).await;
    let there = store
        .ensure_destination(bucket.id, "http://localhost:1")
        .await
        .expect("stored");
    store
        .append(bucket.id, vec![to(1, there), to(2, there)], None)
        .await
        .expect("stored");
    let first = store
        .deliveries_of(bucket.id, Seq(1))
        .expect("read")
        .remove(0);
    store
        .quarantine(&bucket, first.key, NOW)
        .await
        .expect("stored");
    assert_eq!(due(&store, there, NOW), [1, 2]);
    assert_eq!(store.quarantined().expect("read"), []);
}
