//! Media, events and deliveries for the tests of the store.

use std::time::Duration;

use bytes::Bytes;
use whrelay_core::bucket::{Bucket, BucketId, BucketKey, Seq};
use whrelay_core::delivery::{Attempt, Delivery, DestinationId, Signature, SignatureState};
use whrelay_core::destination::{Destination, DestinationName, Kind, OptionSet};
use whrelay_core::event::{Event, Header, Request};
use whrelay_core::history::{Claim, Locator};
use whrelay_core::id::{DeliveryId, EventId};
use whrelay_core::order::Order;
use whrelay_core::queue::{DueBy, QueuePage, QueueQuery, Wanted};
use whrelay_core::retry::Verdict;
use whrelay_core::subscription::{Holder, Join, Joined, LeaseEpoch};
use whrelay_core::target::Target;
use whrelay_core::time::Timestamp;
use whrelay_store::{
    Audit, Audited, Catalog, Journal, Medium, NewDelivery, NewDestination, NewEvent, Options,
    RedbStore, Role, StoreError,
};

pub(crate) const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

pub(crate) fn options(role: Role) -> Options {
    Options {
        role,
        cache: 4 << 20,
        name_seed: 7,
        purpose: "test",
        bound: None,
    }
}

pub(crate) fn memory(role: Role) -> RedbStore {
    in_memory(&options(role))
}

pub(crate) fn in_memory(options: &Options) -> RedbStore {
    let open = |builder: &redb::Builder| {
        builder.create_with_backend(redb::backends::InMemoryBackend::new())
    };
    RedbStore::open_on(Medium::custom(open), options).expect("a store in memory")
}

pub(crate) async fn bucket(store: &RedbStore) -> Bucket {
    bucket_named(store, "shop").await
}

pub(crate) async fn bucket_named(store: &RedbStore, name: &str) -> Bucket {
    let name = name.parse().expect("a name");
    let key = BucketKey::mint(&name, [3; 26]);
    store.ensure_bucket(&name, key).await.expect("a bucket").0
}

pub(crate) fn event(n: u64) -> Event {
    let headers = vec![
        Header {
            name: "x-repeat".into(),
            value: Bytes::from_static(b"one"),
        },
        Header {
            name: "x-repeat".into(),
            value: Bytes::from_static(b"\xff\x00two"),
        },
    ];
    Event {
        id: EventId::from_parts(NOW, u128::from(n)),
        bucket: "shop".parse().expect("a name"),
        received_at: NOW,
        request: Request {
            method: "POST".into(),
            tail: format!("/{n}"),
            query: Some("x=1&x=%2F".into()),
            headers,
            body: (0..=255u8)
                .cycle()
                .take(300 + n as usize)
                .collect::<Vec<_>>()
                .into(),
        },
        removed_body: None,
    }
}

pub(crate) fn plain(n: u64) -> NewEvent {
    NewEvent {
        event: event(n),
        deliveries: Vec::new(),
    }
}

pub(crate) fn to(n: u64, destination: DestinationId) -> NewEvent {
    NewEvent {
        event: event(n),
        deliveries: vec![new_delivery(n, destination)],
    }
}

pub(crate) fn new_delivery(n: u64, destination: DestinationId) -> NewDelivery {
    NewDelivery {
        id: DeliveryId::from_parts(NOW, u128::from(n)),
        destination,
        created_at: NOW,
        due_at: NOW,
        deadline_at: Timestamp::from_micros(i64::MAX),
        replay: false,
        passed_over: false,
        one_off: false,
    }
}

pub(crate) fn attempt(delivery: &Delivery, verdict: Verdict) -> Attempt {
    Attempt {
        key: delivery.key,
        delivery: delivery.id,
        event: delivery.event,
        destination: delivery.destination,
        target: "http://localhost:1".into(),
        url: "http://localhost:1/".into(),
        method: "POST".into(),
        number: delivery.attempts + 1,
        at: NOW,
        duration: std::time::Duration::from_millis(3),
        status: Some(503),
        error: None,
        answer_headers: vec![Header {
            name: "x-answer".into(),
            value: Bytes::from_static(b"\xff"),
        }],
        answer: b"no".to_vec(),
        signature: Some(Signature {
            provider: "stripe".into(),
            state: SignatureState::Renewed,
            age: Some(Duration::from_secs(1)),
            expired: false,
        }),
        replay: delivery.replay,
        phase: delivery.phase,
        verdict,
    }
}

/// An agent that comes with nothing and says no more than its name.
pub(crate) fn join(name: &str) -> Join {
    Join {
        lease: LeaseEpoch::default(),
        backlog_end: None,
        name: name.into(),
        holder: None,
        claim: None,
        is_empty: false,
        wants_backlog: None,
        now: NOW,
    }
}

/// The agent on a store.
pub(crate) fn holder(store: &str) -> Holder {
    Holder {
        store: store.into(),
        opens: 1,
        instance: 1,
        host: "host".into(),
        user: "user".into(),
    }
}

/// What an agent has that stored the events of this setup up to a place.
pub(crate) fn claim(last: u64) -> Claim {
    let mut locator = Locator::default();
    (1..=last).for_each(|seq| locator.note(Seq(seq), event(seq).id));
    Claim {
        seq: Seq(last),
        locator,
        whole_after: Seq(0),
    }
}

/// A forwarder with so many events.
pub(crate) async fn with_events(count: u64) -> (RedbStore, Bucket) {
    let store = memory(Role::Forwarder);
    let bucket = bucket(&store).await;
    let events = (1..=count).map(plain).collect();
    store.append(bucket.id, events, None).await.expect("stored");
    (store, bucket)
}

/// What agents and people do with subscriptions goes through the contract.
pub(crate) fn journal(store: &RedbStore) -> &dyn Journal {
    store
}

pub(crate) async fn joined(store: &RedbStore, bucket: &Bucket, join: Join) -> Joined {
    let joined = journal(store).join(bucket.id, &join).await;
    joined.expect("stored").expect("room")
}

/// Destinations by their URLs.
pub(crate) trait Destinations {
    /// The lasting destination of a bucket with this URL, added where there is none.
    async fn ensure_destination(
        &self,
        bucket: BucketId,
        target: &str,
    ) -> Result<DestinationId, StoreError>;
}

impl Destinations for RedbStore {
    async fn ensure_destination(
        &self,
        bucket: BucketId,
        target: &str,
    ) -> Result<DestinationId, StoreError> {
        let target: Target = target.parse().expect("a target");
        let all = self.destinations()?;
        if let Some(known) = all.iter().find(|known| known.target == target) {
            return Ok(known.id);
        }
        let is_taken = |name: &DestinationName| all.iter().any(|known| known.name() == Some(name));
        let name = DestinationName::made_of(&target, is_taken);
        let new = NewDestination {
            bucket,
            kind: Kind::Lasting {
                name,
                is_named: false,
            },
            target,
            options: OptionSet::default(),
        };
        Ok(self.add_destination(new).await?.id)
    }
}

/// Whether a whole audit finds nothing, a few rows at a time.
pub(crate) fn indexes_are_whole(store: &RedbStore) -> bool {
    let mut from = Audit::default();
    loop {
        match store.audit(from, 3).expect("read") {
            Audited::SoFar(next) => from = next,
            Audited::Whole => return true,
            Audited::Damaged => return false,
        }
    }
}

/// What is asked of a queue at a time, in order of arrival.
pub(crate) fn query(store: &RedbStore, destination: DestinationId, now: Timestamp) -> QueueQuery {
    let all = store.destinations().expect("read");
    let found = all.iter().find(|known| known.id == destination);
    QueueQuery {
        order: Order::Arrival,
        due: DueBy {
            now,
            not_before: now,
            back_since: found.and_then(|found| found.back_since),
        },
        expired_by: Timestamp::EPOCH,
        wanted: Wanted::All,
        max: 10_000,
    }
}

/// What is due at a destination, in order of arrival.
pub(crate) fn due_at(store: &RedbStore, destination: DestinationId, now: Timestamp) -> QueuePage {
    let read = store
        .queue(destination, &query(store, destination, now))
        .expect("read");
    assert_eq!(read.strays, [], "every row leads somewhere");
    read.page
}

/// The places of the events whose deliveries are due.
pub(crate) fn due(store: &RedbStore, destination: DestinationId, now: Timestamp) -> Vec<u64> {
    seqs(&due_at(store, destination, now))
}

/// The places of the events of a page.
pub(crate) fn seqs(page: &QueuePage) -> Vec<u64> {
    page.waiting
        .iter()
        .map(|waiting| waiting.key.seq.0)
        .collect()
}

/// The endpoint of a destination returned at a time.
pub(crate) async fn returned(store: &RedbStore, destination: DestinationId, at: Timestamp) {
    let change = move |known: &mut Destination| known.back_since = Some(at);
    let catalog: &dyn Catalog = store;
    let changed = catalog.change_destination(destination, change).await;
    assert!(changed.expect("stored").is_some());
}
