//! `events --group` against a computation that looks at one event after the other.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use tokio::sync::mpsc;
use whrelay_agent::Offline;
use whrelay_agent::control::{Ask, Filter, Piece};
use whrelay_agent::lines::{GroupLine, Line};
use whrelay_core::bucket::{Bucket, BucketKey, Seq};
use whrelay_core::delivery::{Asked, Attempt, DeadReason, Delivery, DestinationId, State, current};
use whrelay_core::event::{Event, Request};
use whrelay_core::id::{DeliveryId, EventId};
use whrelay_core::retention::Part;
use whrelay_core::retry::{Pause, Phase, Verdict};
use whrelay_core::time::Timestamp;
use whrelay_store::{
    Again, Begin, Medium, NewDelivery, NewEvent, Options, RedbStore, Role, Search,
};
use whrelay_tests::destinations::destination;

const START: Timestamp = Timestamp::from_micros(1_795_000_000_000_000);
const TARGETS: [&str; 3] = [
    "http://localhost:1",
    "http://localhost:2",
    "http://localhost:3",
];

/// A disk in memory that counts the bytes that are read.
#[derive(Debug, Default)]
struct Counting {
    disk: InMemoryBackend,
    read: Arc<AtomicU64>,
}

impl StorageBackend for Counting {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read.fetch_add(out.len() as u64, Ordering::Relaxed);
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write(offset, data)
    }
}

struct World {
    store: RedbStore,
    bucket: Bucket,
    targets: Vec<DestinationId>,
    chance: SmallRng,
    body: usize,
}

impl World {
    /// Answers with the count of the bytes that its store reads.
    async fn new(seed: u64, body: usize) -> (Self, Arc<AtomicU64>) {
        let read = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&read);
        let open = move |builder: &redb::Builder| {
            let (disk, read) = (InMemoryBackend::new(), Arc::clone(&counted));
            builder.create_with_backend(Counting { disk, read })
        };
        let options = Options {
            role: Role::Agent,
            cache: 256 << 10,
            name_seed: 7,
            purpose: "test",
            bound: None,
        };
        let store = RedbStore::open_on(Medium::custom(open), &options).unwrap();
        let name = "shop".parse().unwrap();
        let key = BucketKey::from_text("shop");
        let (bucket, _) = store.ensure_bucket(&name, key).await.unwrap();
        let mut targets = Vec::new();
        for target in TARGETS {
            targets.push(destination(&store, bucket.id, target).await.unwrap());
        }
        let world = Self {
            store,
            bucket,
            targets,
            chance: SmallRng::seed_from_u64(seed),
            body,
        };
        (world, read)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.chance.next_u64() % bound
    }

    fn delivery(&mut self, destination: DestinationId, at: Timestamp) -> NewDelivery {
        NewDelivery {
            id: DeliveryId::from_parts(at, u128::from(self.chance.next_u64())),
            destination,
            created_at: at,
            due_at: at,
            deadline_at: Timestamp::LAST,
            replay: false,
            passed_over: self.below(20) == 0,
            one_off: false,
        }
    }

    /// Receives an event, with a delivery to some of the targets. Ids are not in the order of places.
    async fn receive(&mut self) {
        let at = START.after(Duration::from_micros(self.below(40_000)));
        let event = Event {
            id: EventId::from_parts(at, u128::from(self.chance.next_u64())),
            bucket: self.bucket.name.clone(),
            received_at: at,
            request: Request {
                method: "POST".into(),
                tail: "/orders".into(),
                query: None,
                headers: Vec::new(),
                body: vec![7; self.body].into(),
            },
            removed_body: None,
        };
        let mut deliveries = Vec::new();
        for to in self.targets.clone() {
            if self.below(3) > 0 {
                deliveries.push(self.delivery(to, at));
            }
        }
        let new = NewEvent { event, deliveries };
        self.store
            .append(self.bucket.id, vec![new], None)
            .await
            .unwrap();
    }

    /// An attempt at one of an event's deliveries, as it may turn out.
    async fn attempt(&mut self, seq: u64) {
        let all = self.store.deliveries_of(self.bucket.id, Seq(seq)).unwrap();
        if all.is_empty() {
            return;
        }
        let delivery = &all[self.below(all.len() as u64) as usize];
        let url = format!("{}/orders?n={seq}", TARGETS[self.below(3) as usize]);
        let asked = Asked {
            target: url.clone(),
            url,
            method: "POST".to_owned(),
        };
        let reason = DeadReason::ALL[self.below(4) as usize];
        let mut attempt = Attempt::given_up(delivery, asked, START, reason, "refused");
        attempt.number += 1;
        match self.below(4) {
            0 => {
                (attempt.verdict, attempt.status, attempt.error) = (Verdict::Sent, Some(200), None)
            }
            1 => {
                attempt.status = Some([500, 503][self.below(2) as usize]);
                attempt.error = None;
                attempt.verdict = Verdict::RetryAt {
                    at: START.after(Duration::from_secs(9)),
                    phase: Phase::Fast,
                    pause: Pause::Backoff,
                };
            }
            2 => attempt.error = Some("timed out".to_owned()),
            _ => {}
        }
        self.store.record(attempt).await.unwrap();
    }

    /// Another delivery of an event, to the same target or another one.
    async fn replay(&mut self, seq: u64) {
        let all = self.store.deliveries_of(self.bucket.id, Seq(seq)).unwrap();
        let Some(first) = all.first() else { return };
        let to = self.below(3) as usize;
        let to = self.targets[to];
        let mut new = self.delivery(to, START);
        new.replay = true;
        new.one_off = seq.is_multiple_of(3);
        let again = Again {
            bucket: self.bucket.id,
            seq: Seq(seq),
            event: first.event,
            new,
        };
        self.store.deliver_again(vec![again]).await.unwrap();
    }

    fn found(&self) -> Vec<(EventId, Seq)> {
        let search = Search {
            bucket: self.bucket.id,
            states: State::ALL.to_vec(),
            since: None,
            until: None,
        };
        let found = self.store.search(&search, Begin::Oldest, None, usize::MAX);
        found.unwrap()
    }

    /// Retention removes some of what has ended, or only the bodies.
    async fn remove(&mut self, part: Part) {
        let mut some = self.found();
        some.truncate(20);
        let by = Timestamp::LAST;
        let removed = self
            .store
            .remove_finished(self.bucket.id, some, by, part, usize::MAX);
        removed.await.unwrap();
    }

    /// The groups, one event and one delivery after the other.
    fn naive(&self, filter: &Filter) -> HashMap<GroupLine, (u64, EventId)> {
        let all = self.store.destinations().unwrap().into_iter();
        let targets: HashMap<_, _> = all.map(|to| (to.id, to.target.to_string())).collect();
        let mut groups = HashMap::new();
        for (id, seq) in self.found() {
            let (event, _) = self.store.head_at(&self.bucket, seq).unwrap().unwrap();
            let at = event.received_at.as_micros();
            let in_time = filter.since.is_none_or(|since| at >= since)
                && filter.until.is_none_or(|until| at <= until);
            let wanted = filter
                .event
                .as_ref()
                .is_none_or(|id| *id == event.id.to_string());
            if !in_time || !wanted {
                continue;
            }
            let all = self.store.deliveries_of(self.bucket.id, seq).unwrap();
            for delivery in current(&all) {
                let target = &targets[&delivery.destination];
                if !fits(filter, delivery, target) {
                    continue;
                }
                let last = self.store.attempts_of(delivery.key, 1).unwrap().pop();
                let last = last.map(|logged| logged.attempt);
                let url = last.as_ref().map_or(target, |last| &last.url);
                let group = GroupLine {
                    count: 0,
                    state: delivery.state,
                    reason: delivery.reason,
                    status: last.as_ref().and_then(|last| last.status),
                    url: url.split('?').next().unwrap().to_owned(),
                    error: last.as_ref().and_then(|last| last.error.clone()),
                    cause: last
                        .as_ref()
                        .and_then(|last| last.cause())
                        .map(|cause| cause.as_str().to_owned()),
                    newest: String::new(),
                };
                let (count, newest) = groups.entry(group).or_insert((0, id));
                (*count, *newest) = (*count + 1, id);
            }
        }
        groups
    }
}

fn fits(filter: &Filter, delivery: &Delivery, target: &str) -> bool {
    filter.status.is_none_or(|status| status == delivery.state)
        && filter
            .reason
            .is_none_or(|reason| Some(reason) == delivery.reason)
        && filter
            .target
            .as_deref()
            .is_none_or(|wanted| wanted == target)
}

async fn groups(offline: &Offline, filter: &Filter) -> Vec<GroupLine> {
    let (out, mut pieces) = mpsc::channel(1024);
    let filter = filter.clone();
    offline.local().answer(Ask::Groups { filter }, out).await;
    let mut all = Vec::new();
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Line(line) => {
                let Line::Group(group) = *line else {
                    panic!("{line:?}");
                };
                all.push(group);
            }
            Piece::Bytes(bytes) => panic!("{} bytes", bytes.len()),
        }
    }
    all
}

fn filters(one: EventId) -> Vec<Filter> {
    let none = Filter::default;
    let micros = |ms: i64| Some(START.as_micros() + ms);
    let mut all = vec![none()];
    all.extend(State::ALL.map(|state| Filter {
        status: Some(state),
        ..none()
    }));
    all.extend(DeadReason::ALL.map(|reason| Filter {
        reason: Some(reason),
        ..none()
    }));
    all.extend(TARGETS.map(|target| Filter {
        target: Some(target.to_owned()),
        ..none()
    }));
    all.push(Filter {
        since: micros(10_500),
        until: micros(30_250),
        ..none()
    });
    all.push(Filter {
        since: micros(12_000),
        status: Some(State::Dead),
        ..none()
    });
    all.push(Filter {
        event: Some(one.to_string()),
        ..none()
    });
    all.push(Filter {
        event: Some(one.to_string()),
        since: micros(20_000),
        ..none()
    });
    all.push(Filter {
        bucket: Some("other".to_owned()),
        ..none()
    });
    all
}

#[tokio::test]
async fn groups_are_those_of_a_naive_computation() {
    for seed in 0..6 {
        let (mut world, _) = World::new(seed, 50).await;
        // In the last ones little is dead, so that it is looked up.
        let attempts = if seed < 3 { 900 } else { 60 };
        for _ in 0..300 {
            world.receive().await;
        }
        for _ in 0..attempts {
            let seq = 1 + world.below(300);
            world.attempt(seq).await;
        }
        for _ in 0..100 {
            let seq = 1 + world.below(300);
            world.replay(seq).await;
            world.attempt(seq).await;
        }
        world.remove(Part::Body).await;
        world.remove(Part::Whole).await;
        let one = world.found()[5].0;
        let (store, manner) = (world.store.clone(), Default::default());
        let offline = Offline::new(store.into(), Path::new("."), manner, Arc::new(|_| {}));
        let offline = offline.await.unwrap().unwrap();
        for mut filter in filters(one) {
            let lines = groups(&offline, &filter).await;
            let sorted = lines.is_sorted_by(|a, b| (b.count, &a.url) <= (a.count, &b.url));
            assert!(sorted, "{lines:?}");
            if filter.bucket.take().is_some() {
                assert_eq!(lines, []);
                continue;
            }
            let mut found = HashMap::new();
            for line in lines {
                let what = (line.count, line.newest.parse().unwrap());
                let (count, newest) = (0, String::new());
                found.insert(
                    GroupLine {
                        count,
                        newest,
                        ..line
                    },
                    what,
                );
            }
            assert_eq!(found, world.naive(&filter), "{seed} {filter:?}");
        }
    }
}

/// They took 7 s for a million events: each was read, with its body.
#[tokio::test]
async fn groups_of_very_many_events_read_no_events() {
    let (mut world, read) = World::new(1, 20_000).await;
    for seq in 1..=500 {
        world.receive().await;
        world.attempt(seq).await;
    }
    let offline = Offline::new(
        world.store.clone().into(),
        Path::new("."),
        Default::default(),
        Arc::new(|_| {}),
    );
    let offline = offline.await.unwrap().unwrap();
    let stored = world.store.size();
    for filter in filters(world.found()[5].0) {
        let before = read.load(Ordering::Relaxed);
        groups(&offline, &filter).await;
        let took = read.load(Ordering::Relaxed) - before;
        assert!(
            took < stored / 10,
            "{took} of {stored} bytes are read for {filter:?}"
        );
    }
}
