//! What lists and the engine ask of an agent's store, with few and with a million events in it.

use std::path::Path;
use std::time::{Duration, Instant};

use whrelay_core::bucket::{Bucket, BucketKey, Seq};
use whrelay_core::delivery::{Asked, Attempt, DeadReason, DestinationId, State};
use whrelay_core::event::{Event, Request};
use whrelay_core::id::{DeliveryId, EventId};
use whrelay_core::limits;
use whrelay_core::order::Order;
use whrelay_core::queue::{DueBy, QueueQuery, Wanted};
use whrelay_core::retention::Part;
use whrelay_core::retry::Verdict;
use whrelay_core::time::Timestamp;
use whrelay_store::{Begin, Effort, NewDelivery, NewEvent, Options, RedbStore, Role, Search};
use whrelay_tests::destinations::destination;

const NOW: Timestamp = Timestamp::from_micros(1_795_000_000_000_000);
/// Events appended in one write.
pub(crate) const BATCH: u64 = 500;
/// One of so many is given up.
const DEAD_OF: u64 = 10_000;

pub(crate) async fn run() {
    let count = std::env::args().nth(2).and_then(|n| n.parse().ok());
    for events in [10_000, count.unwrap_or(1_000_000)] {
        measure(events).await;
    }
}

/// A new store that keeps so much of its file in memory.
pub(crate) fn store(dir: &Path, role: Role, cache: usize) -> RedbStore {
    let options = Options {
        role,
        cache,
        name_seed: 7,
        purpose: "benchmark",
        bound: None,
    };
    RedbStore::open(dir, &options).unwrap()
}

/// A bucket of an agent, and where its events go.
pub(crate) async fn with_destination(store: &RedbStore) -> (Bucket, DestinationId) {
    let name = "shop".parse().unwrap();
    let key = BucketKey::from_text("shop");
    let (bucket, _) = store.ensure_bucket(&name, key).await.unwrap();
    let there = destination(store, bucket.id, "http://localhost:1");
    (bucket, there.await.unwrap())
}

async fn measure(events: u64) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let store = store(dir.path(), Role::Agent, 8 << 20);
    let (bucket, there) = with_destination(&store).await;

    fill(&store, &bucket, there, events).await;
    for (name, order) in [("due, 16", Order::Arrival), ("in order, 16", Order::Fifo)] {
        let query = QueueQuery {
            order,
            due: DueBy {
                now: NOW,
                not_before: NOW,
                back_since: None,
            },
            expired_by: NOW,
            wanted: Wanted::All,
            max: 16,
        };
        time(name, || {
            let read = store.queue(there, &query).unwrap();
            read.page.waiting.len()
        });
    }
    time("oldest waiting", || {
        store.oldest_waiting(bucket.id).unwrap().iter().count()
    });
    time("due destinations", || {
        let page = store.due_destinations(NOW, None, 1000, NOW).unwrap();
        page.rows.len()
    });
    print_space(dir.path());

    end_all(&store, &bucket, events).await;
    let by = |states: &[State]| {
        let search = Search {
            bucket: bucket.id,
            states: states.to_vec(),
            since: None,
            until: None,
        };
        let found = store.search(&search, Begin::Newest, None, 50).unwrap();
        for (_, seq) in &found {
            store.event_at(&bucket, *seq).unwrap().unwrap();
            store.deliveries_of(bucket.id, *seq).unwrap();
        }
        found.len()
    };
    time("the newest 50 events", || by(&State::ALL));
    time("the newest 50 that are dead", || by(&[State::Dead]));
    let ever = (
        Timestamp::from_micros(i64::MIN),
        Timestamp::from_micros(i64::MAX),
    );
    let logged = |states: &[State]| {
        store
            .attempts_by_start(states, ever, None, 50)
            .unwrap()
            .len()
    };
    time("the newest 50 attempts", || logged(&State::ALL));
    time("the newest 50 that gave up", || logged(&[State::Dead]));
    print_space(dir.path());
    for part in [Part::Body, Part::Whole] {
        remove_all(&store, &bucket, dir.path(), part).await;
    }
    store.close().await;
}

/// Removes everything as retention does, or only bodies, and gives the space back.
async fn remove_all(store: &RedbStore, bucket: &Bucket, dir: &Path, part: Part) {
    let search = Search {
        bucket: bucket.id,
        states: State::ALL.to_vec(),
        since: None,
        until: None,
    };
    let (began, mut removed, mut upto) = (Instant::now(), 0, None);
    loop {
        let found = store.search(&search, Begin::Oldest, upto, 500).unwrap();
        if found.is_empty() {
            break;
        }
        let by = Timestamp::LAST;
        let gone = store.remove_finished(bucket.id, found, by, part, limits::RETENTION_STEP_BYTES);
        let gone = gone.await.unwrap();
        (removed, upto) = (removed + gone.removed.len(), gone.upto);
    }
    let rate = removed as f64 / began.elapsed().as_secs_f64();
    let what = match part {
        Part::Body => "bodies",
        Part::Whole => "events",
    };
    let before = disk(dir);
    let began = Instant::now();
    let given = store.give_back(Effort::Moment).await.unwrap();
    println!(
        "  removed {rate:.0} {what}/s; disk {before:.0} MB for {:.0} stored, {:.0} MB given back ({given}) in {:.1?}",
        store.size() as f64 / 1e6,
        before - disk(dir),
        began.elapsed()
    );
}

async fn fill(store: &RedbStore, bucket: &Bucket, there: DestinationId, events: u64) {
    let began = Instant::now();
    let mut last = Duration::ZERO;
    for first in (1..=events).step_by(BATCH as usize) {
        let started = Instant::now();
        let some = (first..first + BATCH).map(|n| event(n, there)).collect();
        store.append(bucket.id, some, None).await.unwrap();
        last = started.elapsed();
    }
    let filled = began.elapsed().as_secs_f64();
    println!(
        "{events} events of 1 KiB waiting: {:.0}/s, the last {BATCH} in {last:.1?}",
        events as f64 / filled
    );
}

/// All but one in 10,000 are sent; those are given up.
async fn end_all(store: &RedbStore, bucket: &Bucket, events: u64) {
    let began = Instant::now();
    let mut next = 1;
    while next <= events {
        let some = (next..(next + 256).min(events + 1)).map(|seq| {
            let (store, bucket) = (store.clone(), bucket.clone());
            tokio::spawn(async move { end(&store, &bucket, seq).await })
        });
        for ended in some.collect::<Vec<_>>() {
            ended.await.unwrap();
        }
        next += 256;
    }
    let ended = events as f64 / began.elapsed().as_secs_f64();
    println!("  recorded {ended:.0} attempts/s");
}

fn print_space(dir: &Path) {
    let (memory, disk) = (memory(), disk(dir));
    println!("  memory {memory:.1} MB, disk {disk:.0} MB");
}

fn time(what: &str, ask: impl Fn() -> usize) {
    let began = Instant::now();
    let found = ask();
    println!("  {what}: {:.1?} ({found})", began.elapsed());
}

pub(crate) fn event(n: u64, destination: DestinationId) -> NewEvent {
    let received_at = NOW.before(Duration::from_millis(10_000_000 - n));
    let request = Request {
        method: "POST".into(),
        tail: "/orders".into(),
        query: None,
        headers: Vec::new(),
        body: vec![n as u8; 1024].into(),
    };
    let event = Event {
        id: EventId::from_parts(received_at, rand::random()),
        bucket: "shop".parse().unwrap(),
        received_at,
        request,
        removed_body: None,
    };
    let delivery = NewDelivery {
        id: DeliveryId::from_parts(received_at, rand::random()),
        destination,
        created_at: received_at,
        due_at: received_at,
        deadline_at: NOW.after(Duration::from_secs(86_400)),
        replay: false,
        passed_over: false,
        one_off: false,
    };
    NewEvent {
        event,
        deliveries: vec![delivery],
    }
}

async fn end(store: &RedbStore, bucket: &Bucket, seq: u64) {
    let delivery = store.deliveries_of(bucket.id, Seq(seq)).unwrap().remove(0);
    let asked = Asked {
        url: "http://localhost:1/orders".to_owned(),
        method: "POST".to_owned(),
        ..Asked::default()
    };
    let reason = DeadReason::Rejected;
    let mut attempt = Attempt::given_up(&delivery, asked, delivery.created_at, reason, "");
    attempt.number = 1;
    if !seq.is_multiple_of(DEAD_OF) {
        (attempt.verdict, attempt.status, attempt.error) = (Verdict::Sent, Some(200), None);
    }
    store.record(attempt).await.unwrap();
}

/// This process's own, in megabytes.
fn memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) / 1000.0
}

fn disk(dir: &std::path::Path) -> f64 {
    whrelay_store::disk_used(dir).unwrap() as f64 / 1e6
}
