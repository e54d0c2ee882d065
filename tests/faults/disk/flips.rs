//! Bits that rot: a closed store's file with one bit flipped, again and again. Every event must come
//! back as it was, or be named as damaged, or the file be refused: never other bytes, never silence.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::time::Instant;

use bytes::Bytes;
use strum::IntoEnumIterator;
use whrelay_core::bucket::{Bucket, BucketKey, Seq};
use whrelay_core::event::{Event, Header, Request};
use whrelay_core::id::{DeliveryId, EventId};
use whrelay_core::order::Order;
use whrelay_core::queue::{DueBy, QueueQuery, Wanted};
use whrelay_core::time::Timestamp;
use whrelay_store::{Audit, Audited, NewDelivery, NewEvent, RedbStore, StoreError};
use whrelay_tests::destinations::destination;

use super::lying::LyingDisk;
use super::real::{open, options};
use crate::chance::Chance;
use crate::report::{self, Row};

const EVENTS: u64 = 200;
/// What the store's name is made of.
const NAME: u128 = 1;
const TARGET: &str = "http://localhost:1";
/// Flips of one process.
const BATCH: u64 = 500;
const NOW: Timestamp = Timestamp::from_micros(1_795_000_000_000_000);

/// What came of a flip, from harmless to fatal.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    strum::EnumIter,
    strum::EnumString,
    strum::Display,
)]
enum Found {
    Harmless,
    /// One record is named as damaged, the others are whole.
    Named,
    /// Reads fail and say so.
    Failed,
    /// The file is not opened at all.
    Refused,
    /// The process is ended by the database under the store.
    Aborted,
    /// An event is missing, and nothing says so.
    Silent,
    /// Other bytes than were written.
    Wrong,
}

/// Flips so many bits, one at a time, in processes of their own, since the database may abort. Says
/// whether no wrong byte came out and nothing went missing in silence.
pub(crate) fn flip_bits(tries: u64) -> bool {
    let began = Instant::now();
    let mut found = Vec::new();
    while (found.len() as u64) < tries {
        let from = found.len() as u64;
        found.extend(child(from, (tries - from).min(BATCH)));
    }
    let specimen = Specimen::new();
    let (mut salvaged, mut lost, mut unsaved) = (0, 0, 0);
    for (flip, found) in (0..).zip(&found) {
        if matches!(found, Found::Failed | Found::Refused | Found::Aborted) {
            salvaged += 1;
            match specimen.salvage(flip) {
                Ok(missing) => lost += missing,
                Err(why) => {
                    println!("flip {flip}: salvage: {why}");
                    unsaved += 1;
                }
            }
        }
    }
    let times = |wanted| found.iter().filter(|found| **found == wanted).count();
    let told = Found::iter().map(|wanted| format!("{} {wanted}", times(wanted)));
    let told: Vec<_> = told.collect();
    report::tell(&Row {
        ring: 2,
        fault: "one bit flipped in a closed store's file (D6)".to_owned(),
        tried: format!("{tries} bits"),
        failures: (times(Found::Wrong) + times(Found::Silent)) as u64 + unsaved,
        counted: format!(
            "{}; of {salvaged} files salvaged, of {EVENTS} events each, {lost} events lost and named",
            told.join(", ")
        ),
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// The findings of a batch; where the process ended, the last of them says so.
fn child(from: u64, count: u64) -> Vec<Found> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["flip", &from.to_string(), &count.to_string()]);
    let output = command.stderr(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut found: Vec<Found> = Vec::new();
    for line in text.lines() {
        let (what, place) = line.split_once(' ').unwrap();
        found.push(what.parse().unwrap());
        if matches!(found.last(), Some(Found::Silent | Found::Wrong)) {
            println!("flip {}: {what}, {place}", from + found.len() as u64 - 1);
        }
    }
    if !output.status.success() {
        found.push(Found::Aborted);
    }
    found
}

/// Flips some bits in this process, and tells of each.
pub(crate) fn flip_some(from: u64, count: u64) -> bool {
    let Specimen {
        events,
        bucket,
        image,
    } = Specimen::new();
    for flip in from..from + count {
        let (flipped, place) = flipped(&image, flip);
        let found = look(LyingDisk::with(flipped), &bucket, &events);
        println!("{found} {place}");
    }
    true
}

/// An image with one bit flipped, and which.
fn flipped(image: &[u8], flip: u64) -> (Vec<u8>, String) {
    let mut chance = Chance::new(flip);
    let (byte, bit) = (chance.index(image.len()), chance.below(8));
    let mut flipped = image.to_vec();
    flipped[byte] ^= 1 << bit;
    (flipped, format!("byte {byte} bit {bit}"))
}

/// A closed store, and what is in it.
struct Specimen {
    events: Vec<Event>,
    bucket: Bucket,
    image: Vec<u8>,
}

impl Specimen {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.build().expect("a runtime");
        let mut chance = Chance::new(0);
        let events: Vec<_> = (1..=EVENTS).map(|n| event(n, &mut chance)).collect();
        let disk = LyingDisk::default();
        let bucket = runtime.block_on(fill(&disk, &events));
        let image = disk.bytes();
        Self {
            events,
            bucket,
            image,
        }
    }

    /// Salvages the file with one bit flipped. Answers how many events are lost: each is named, and the
    /// others are as they were.
    fn salvage(&self, flip: u64) -> Result<u64, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let (flipped, _) = flipped(&self.image, flip);
        std::fs::write(dir.path().join("store.redb"), flipped).expect("written");
        std::fs::write(dir.path().join("name"), format!("{NAME:032x}")).expect("written");
        let ids = || u128::from(flip);
        let saved = whrelay_store::salvage(dir.path(), NOW, NOW, ids).map_err(|e| e.to_string())?;
        let store = RedbStore::open(dir.path(), &options(NAME)).map_err(|e| e.to_string())?;
        let batch = store.read_after(&self.bucket, Seq(0), usize::MAX, usize::MAX);
        let batch = batch.map_err(|e| e.to_string())?;
        let right = |seq: Seq, event: &Event| self.events.get(seq.0 as usize - 1) == Some(event);
        if let Some(wrong) = batch.events.iter().find(|s| !right(s.seq, &s.event)) {
            return Err(format!("event {} changed", wrong.seq.0));
        }
        let lost = saved.lost.len() as u64;
        match EVENTS - batch.events.len() as u64 {
            missing if missing == lost => Ok(lost),
            missing => Err(format!("{missing} events are missing, {lost} named")),
        }
    }
}

fn event(n: u64, chance: &mut Chance) -> Event {
    let length = chance.index(2000);
    let body: Vec<u8> = (0..length).map(|_| chance.bits() as u8).collect();
    Event {
        id: EventId::from_parts(NOW, u128::from(n)),
        bucket: "shop".parse().expect("a name"),
        received_at: NOW,
        request: Request {
            method: "POST".to_owned(),
            tail: format!("/{n}"),
            query: None,
            headers: vec![Header {
                name: "x-n".to_owned(),
                value: Bytes::from(n.to_string()),
            }],
            body: body.into(),
        },
        removed_body: None,
    }
}

async fn fill(disk: &LyingDisk, events: &[Event]) -> Bucket {
    let store = open(disk, NAME).expect("a new store");
    let name = "shop".parse().expect("a name");
    let key = BucketKey::from_text("shop");
    let (bucket, _) = store.ensure_bucket(&name, key).await.expect("a bucket");
    let target = destination(&store, bucket.id, TARGET);
    let destination = target.await.expect("a destination");
    let new = events.iter().map(|event| NewEvent {
        event: event.clone(),
        deliveries: vec![NewDelivery {
            id: DeliveryId::from_parts(NOW, u128::from_be_bytes(event.id.to_bytes())),
            destination,
            created_at: NOW,
            due_at: NOW,
            deadline_at: NOW,
            replay: false,
            passed_over: false,
            one_off: false,
        }],
    });
    let stored = store.append(bucket.id, new.collect(), None).await;
    assert_eq!(stored.expect("stored").len(), events.len());
    store.close().await;
    bucket
}

/// Opens the file and reads everything in it in each of the ways there are.
fn look(disk: LyingDisk, bucket: &Bucket, events: &[Event]) -> Found {
    let Ok(store) = open(&disk, NAME) else {
        return Found::Refused;
    };
    let found = [
        in_order(&store, bucket, events),
        by_place(&store, bucket, events),
        by_due(&store, bucket, events),
    ];
    found.into_iter().max().unwrap_or(Found::Harmless)
}

fn in_order(store: &RedbStore, bucket: &Bucket, events: &[Event]) -> Found {
    let Ok(batch) = store.read_after(bucket, Seq(0), usize::MAX, usize::MAX) else {
        return Found::Failed;
    };
    let right = |seq: Seq, event: &Event| events.get(seq.0 as usize - 1) == Some(event);
    if batch.events.iter().any(|s| !right(s.seq, &s.event)) {
        return Found::Wrong;
    }
    let told = batch
        .events
        .iter()
        .map(|s| s.seq)
        .chain(batch.damaged.iter().copied());
    let told: HashSet<_> = told.collect();
    match (told.len() == events.len(), batch.damaged.is_empty()) {
        (true, true) => Found::Harmless,
        (true, false) => Found::Named,
        (false, _) => Found::Silent,
    }
}

fn by_place(store: &RedbStore, bucket: &Bucket, events: &[Event]) -> Found {
    let one = |(seq, event): (u64, &Event)| match store.event_at(bucket, Seq(seq)) {
        Ok(Some(found)) if found == *event => Found::Harmless,
        Ok(Some(_)) => Found::Wrong,
        Ok(None) => Found::Silent,
        Err(_) => Found::Named,
    };
    (1..).zip(events).map(one).max().unwrap_or(Found::Harmless)
}

/// What an agent's auditor finds.
fn is_whole(store: &RedbStore) -> Result<bool, StoreError> {
    let mut from = Audit::default();
    loop {
        match store.audit(from, 1000)? {
            Audited::SoFar(next) => from = next,
            Audited::Whole => return Ok(true),
            Audited::Damaged => return Ok(false),
        }
    }
}

/// What an agent would deliver, after what it does at its start.
fn by_due(store: &RedbStore, bucket: &Bucket, events: &[Event]) -> Found {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.build().expect("a runtime");
    let started = runtime.block_on(async {
        let known = destination(store, bucket.id, TARGET).await?;
        if !is_whole(store)? {
            store.restore_indexes().await?;
        }
        let (mut ready, mut lost) = (Vec::new(), 0);
        for destination in store.destinations()? {
            // Every backoff is over.
            let due = DueBy {
                now: NOW,
                not_before: NOW,
                back_since: Some(NOW),
            };
            let query = QueueQuery {
                order: Order::Arrival,
                due,
                expired_by: Timestamp::EPOCH,
                wanted: Wanted::All,
                max: usize::MAX,
            };
            let found = store.queue(destination.id, &query)?.page.waiting;
            if destination.id != known {
                lost += found.len();
            }
            ready.extend(found.into_iter().map(|waiting| waiting.key));
        }
        Ok::<_, StoreError>((ready, lost))
    });
    let Ok((ready, lost)) = started else {
        return Found::Failed;
    };
    let one = |key: &whrelay_core::delivery::DeliveryKey| match (
        store.delivery(*key),
        store.event_at(bucket, key.seq),
    ) {
        (Ok(Some(delivery)), Ok(Some(event))) => {
            let right = events.get(key.seq.0 as usize - 1) == Some(&event);
            if right && delivery.event == event.id {
                Found::Harmless
            } else {
                Found::Wrong
            }
        }
        // Half of it is gone: it is set aside and named.
        (Err(_), _) | (_, Err(_)) | (Ok(None), Ok(Some(_))) | (Ok(Some(_)), Ok(None)) => {
            Found::Named
        }
        // A row that leads nowhere is removed.
        (Ok(None), Ok(None)) => Found::Harmless,
    };
    let worst = ready.iter().map(one).max().unwrap_or(Found::Harmless);
    // A destination whose row is damaged is named with the deliveries that are queued for it.
    let worst = if lost > 0 {
        worst.max(Found::Named)
    } else {
        worst
    };
    let reached: HashSet<_> = ready.iter().map(|key| key.seq.0).collect();
    if (1..=EVENTS).all(|seq| reached.contains(&seq)) {
        worst
    } else {
        worst.max(Found::Silent)
    }
}
