//! A disk that is cut off at every sync: what was answered is there, whatever of the rest is.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use redb::StorageBackend;
use whrelay_core::bucket::Seq;
use whrelay_core::retry::Verdict;
use whrelay_store::{Medium, RedbStore, Role, SourceMark};

use crate::setup::*;

/// Writes since the last sync, in order.
type Loose = Vec<(usize, Vec<u8>)>;

/// What is written, what of it is synced, and the image of every sync.
#[derive(Debug, Default)]
struct Disk {
    live: Vec<u8>,
    synced: Vec<u8>,
    loose: Loose,
    /// After each sync: what was synced, and the loose writes just before it.
    images: Vec<(Vec<u8>, Loose)>,
}

#[derive(Clone, Debug, Default)]
struct Recorded(Arc<Mutex<Disk>>);

impl Recorded {
    fn disk(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.0.lock().expect("no test panics while writing")
    }
}

impl StorageBackend for Recorded {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.disk();
        let from = offset as usize;
        out.copy_from_slice(&disk.live[from..from + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk();
        disk.live.resize(len as usize, 0);
        // A change of length is metadata that a journal keeps in order.
        disk.synced.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk();
        let before = disk.synced.clone();
        let loose = std::mem::take(&mut disk.loose);
        disk.images.push((before, loose));
        disk.synced = disk.live.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let from = offset as usize;
        disk.live[from..from + data.len()].copy_from_slice(data);
        disk.loose.push((from, data.to_vec()));
        Ok(())
    }
}

const SECTOR: usize = 512;

/// The disk as a power cut leaves it: of the loose writes, any subset of sectors.
fn cut(synced: &[u8], loose: &[(usize, Vec<u8>)], mut keeps: impl FnMut() -> bool) -> Vec<u8> {
    let mut image = synced.to_vec();
    for (offset, data) in loose {
        for (n, sector) in data.chunks(SECTOR).enumerate() {
            let from = offset + n * SECTOR;
            if keeps() && from + sector.len() <= image.len() {
                image[from..from + sector.len()].copy_from_slice(sector);
            }
        }
    }
    image
}

fn reopen(image: Vec<u8>) -> RedbStore {
    let open = move |builder: &redb::Builder| {
        let disk = Disk {
            live: image.clone(),
            synced: image.clone(),
            ..Disk::default()
        };
        builder.create_with_backend(Recorded(Arc::new(Mutex::new(disk))))
    };
    RedbStore::open_on(Medium::custom(open), &options(Role::Agent)).expect("opens after a cut")
}

/// After so many syncs, so many events and so many attempts had been answered.
type Answered = Vec<(usize, u64, u64)>;

/// Writes events and attempts. The first entry is the opening: before it there is no store yet,
/// and a file gets its name only after it.
async fn work(disk: &Recorded) -> Answered {
    let medium = disk.clone();
    let open = move |builder: &redb::Builder| builder.create_with_backend(medium.clone());
    let store = RedbStore::open_on(Medium::custom(open), &options(Role::Agent)).expect("opens");
    let mut answered = vec![(disk.disk().images.len(), 0, 0)];
    let bucket = bucket(&store).await;
    let there = store
        .ensure_destination(bucket.id, "http://localhost:1")
        .await
        .expect("stored");
    for n in 1..=12u64 {
        let mark = SourceMark {
            forwarder: "f".into(),
            start: Seq(0),
            seq: Seq(n),
            events: Vec::new(),
        };
        store
            .append(bucket.id, vec![to(n, there)], Some(mark))
            .await
            .expect("stored");
        answered.push((disk.disk().images.len(), n, n.saturating_sub(1) / 2));
        if n % 2 == 0 {
            let delivery = store
                .deliveries_of(bucket.id, Seq(n))
                .expect("read")
                .remove(0);
            store
                .record(attempt(&delivery, Verdict::Sent))
                .await
                .expect("stored");
            answered.push((disk.disk().images.len(), n, n / 2));
        }
    }
    answered
}

/// Everything answered before the cut is there, whole, and the indexes agree with the rows.
async fn audit(store: RedbStore, events: u64, attempts: u64) {
    let bucket = bucket(&store).await;
    let batch = store
        .read_after(&bucket, Seq(0), 1000, usize::MAX)
        .expect("read");
    assert!(batch.damaged.is_empty());
    let found = batch.events.len() as u64;
    assert!(found >= events, "{events} were answered, {found} are there");
    for (n, stored) in (1..).zip(&batch.events) {
        assert_eq!((stored.seq, &stored.event), (Seq(n), &event(n)));
    }
    let mark = store
        .source(bucket.id)
        .expect("read")
        .map_or(0, |mark| mark.seq.0);
    assert_eq!(mark, found, "the mark is moved together with its events");
    let log = store.attempts_after(0, 1000).expect("read");
    assert!(
        log.len() as u64 >= attempts,
        "{attempts} were recorded, {} are there",
        log.len()
    );
    let Some(there) = store.destinations().expect("read").first().map(|to| to.id) else {
        return;
    };
    let counts = store.counts(there).expect("read");
    assert_eq!(
        (counts.sent, counts.queued),
        (log.len() as u64, found - log.len() as u64)
    );
    assert_eq!(
        due(&store, there, NOW).len() as u64,
        counts.queued,
        "waiting exactly when in the index"
    );
}

#[tokio::test]
async fn frozen_at_every_sync_nothing_answered_is_lost() {
    let disk = Recorded::default();
    let answered = work(&disk).await;
    let images = std::mem::take(&mut disk.disk().images);
    assert!(images.len() > 30, "{} syncs", images.len());
    for (n, (synced, loose)) in images.iter().enumerate().skip(answered[0].0) {
        let before = answered.iter().rev().find(|(syncs, ..)| *syncs <= n);
        let (_, events, attempts) = before.copied().unwrap_or_default();
        for all in [false, true] {
            let image = cut(synced, loose, || all);
            audit(reopen(image), events, attempts).await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn torn_at_any_sector_nothing_answered_is_lost(at: prop::sample::Index, seed: u64) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let disk = Recorded::default();
            let answered = work(&disk).await;
            let images = std::mem::take(&mut disk.disk().images);
            let born = answered[0].0;
            let n = born + at.index(images.len() - born);
            let (synced, loose) = &images[n];
            let mut state = seed | 1;
            let image = cut(synced, loose, || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state & 1 == 0
            });
            let before = answered.iter().rev().find(|(syncs, ..)| *syncs <= n);
            let (_, events, attempts) = before.copied().unwrap_or_default();
            audit(reopen(image), events, attempts).await;
        });
    }
}

#[test]
fn the_model_of_a_cut_keeps_what_it_is_told() {
    let kept: HashMap<bool, Vec<u8>> = [true, false]
        .map(|all| (all, cut(&[0; 4], &[(1, vec![9, 9])], || all)))
        .into();
    assert_eq!(kept[&true], [0, 9, 9, 0]);
    assert_eq!(kept[&false], [0; 4]);
}
