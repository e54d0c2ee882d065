//! Subscriptions begin, are ended, and are rewound; buckets share a store.

use std::time::Duration;

use whrelay_core::bucket::{Bucket, BucketKey, Seq};
use whrelay_core::limits;
use whrelay_core::retention::{Bound, Part};
use whrelay_core::subscription::{Fate, Join, LeaseEpoch, Subscription};
use whrelay_core::time::Timestamp;
use whrelay_store::{Ending, Incident, Options, RedbStore, Rewound, Role, StoreError, Subscribed};

use crate::setup::*;

const HOUR: Duration = Duration::from_secs(3600);

async fn ack(store: &RedbStore, bucket: &Bucket, name: &str, upto: u64) {
    let acked = journal(store)
        .ack(bucket.id, name, Seq(upto), LeaseEpoch::default())
        .await;
    acked.expect("stored");
}

fn known(store: &RedbStore, bucket: &Bucket, name: &str) -> Option<Subscription> {
    let stored = store.subscription(bucket.id, name).expect("read");
    stored.known().cloned()
}

async fn end(store: &RedbStore, bucket: &Bucket, name: &str) -> Ending {
    let last = known(store, bucket, name).map(|known| known.last_session());
    let ended = journal(store).end_subscription(bucket.id, name, last, NOW);
    ended.await.expect("stored")
}

async fn prune(store: &RedbStore, bucket: &Bucket, by: Timestamp) -> u64 {
    let removed = store.remove_receipted(bucket.id, by, Part::Whole, (100, usize::MAX));
    removed.await.expect("stored")
}

#[tokio::test]
async fn the_first_subscription_begins_at_the_beginning_and_others_now_unless_they_ask() {
    let (store, bucket) = with_events(9).await;
    let first = joined(&store, &bucket, join("a")).await;
    assert_eq!((first.after, first.is_new), (Seq(0), true));
    let second = joined(&store, &bucket, join("b")).await;
    assert_eq!((second.after, second.is_new), (Seq(9), true));
    let asks = Join {
        wants_backlog: Some(true),
        ..join("c")
    };
    assert_eq!(joined(&store, &bucket, asks).await.after, Seq(0));
    let again = joined(&store, &bucket, join("b")).await;
    assert_eq!((again.after, again.is_new), (Seq(9), false));
}

#[tokio::test]
async fn what_an_ended_subscription_had_not_received_is_unclaimed_kept_and_then_removed() {
    let (store, bucket) = with_events(9).await;
    joined(&store, &bucket, join("gone")).await;
    ack(&store, &bucket, "gone", 2).await;
    assert_eq!(prune(&store, &bucket, Timestamp::LAST).await, 2);
    assert_eq!(
        end(&store, &bucket, "gone").await,
        Ending::Ended { unclaimed: 7 }
    );
    let gone = known(&store, &bucket, "gone").expect("kept");
    assert_eq!(gone.fate(Seq(3)), Fate::Unclaimed);
    // Nobody subscribes: what comes after the end is kept for who does.
    let later = vec![plain(10)];
    store.append(bucket.id, later, None).await.expect("stored");
    assert_eq!(prune(&store, &bucket, NOW.before(HOUR)).await, 0);
    assert_eq!(prune(&store, &bucket, NOW.after(HOUR)).await, 7);
    let forgotten = journal(&store).forget_ended(bucket.id).await;
    assert_eq!(forgotten.expect("stored"), ["gone"]);
    let next = joined(&store, &bucket, join("next")).await;
    assert_eq!(next.after, Seq(9), "the tenth event is still to come");
}

#[tokio::test]
async fn an_ended_subscription_pins_nothing_and_its_agent_goes_on_if_it_returns() {
    let (store, bucket) = with_events(9).await;
    joined(&store, &bucket, join("gone")).await;
    let all = Join {
        wants_backlog: Some(true),
        ..join("here")
    };
    joined(&store, &bucket, all).await;
    ack(&store, &bucket, "here", 9).await;
    assert_eq!(prune(&store, &bucket, Timestamp::LAST).await, 0, "pinned");
    assert_eq!(
        end(&store, &bucket, "gone").await,
        Ending::Ended { unclaimed: 9 }
    );
    let back = joined(&store, &bucket, join("gone")).await;
    assert!(back.was_ended && back.after == Seq(0));
    assert_eq!(
        end(&store, &bucket, "gone").await,
        Ending::Ended { unclaimed: 9 }
    );
    assert_eq!(prune(&store, &bucket, Timestamp::LAST).await, 9);
    assert_eq!(end(&store, &bucket, "nobody").await, Ending::Unknown);
}

/// A subscription is ended at the very moment its agent returns.
#[tokio::test]
async fn a_subscription_ends_only_if_it_still_may_when_that_is_written() {
    let (store, bucket) = with_events(2).await;
    joined(&store, &bucket, join("back")).await;
    let looked = known(&store, &bucket, "back").map(|known| known.last_session());
    let end = || async {
        let ended = journal(&store).end_subscription(bucket.id, "back", looked, NOW);
        ended.await.expect("stored")
    };
    let back = Join {
        lease: LeaseEpoch(1),
        ..join("back")
    };
    joined(&store, &bucket, back).await;
    assert_eq!(end().await, Ending::InUse, "an agent came back");
    let seen = journal(&store)
        .note_seen(bucket.id, "back", NOW.after(HOUR))
        .await;
    seen.expect("stored");
    assert_eq!(end().await, Ending::InUse, "it was seen since");
    assert_eq!(prune(&store, &bucket, Timestamp::LAST).await, 0);
}

/// Its row was forgotten before its events were removed: they stayed for ever, and the next agent got them.
#[tokio::test]
async fn an_ended_subscription_is_forgotten_only_once_its_events_are_gone() {
    let (store, bucket) = with_events(9).await;
    joined(&store, &bucket, join("gone")).await;
    ack(&store, &bucket, "gone", 2).await;
    end(&store, &bucket, "gone").await;
    let forgotten = journal(&store)
        .forget_ended(bucket.id)
        .await
        .expect("stored");
    assert!(forgotten.is_empty(), "{forgotten:?}");
    assert_eq!(prune(&store, &bucket, Timestamp::LAST).await, 9);
    let forgotten = journal(&store)
        .forget_ended(bucket.id)
        .await
        .expect("stored");
    assert_eq!(forgotten, ["gone"]);
}

/// The only subscription had received everything and was ended; the next agent was sent all of that again.
#[tokio::test]
async fn what_an_ended_subscription_had_received_is_not_sent_to_the_next_one() {
    let (store, bucket) = with_events(9).await;
    joined(&store, &bucket, join("done")).await;
    ack(&store, &bucket, "done", 9).await;
    assert_eq!(
        end(&store, &bucket, "done").await,
        Ending::Ended { unclaimed: 0 }
    );
    store
        .append(bucket.id, vec![plain(10)], None)
        .await
        .expect("stored");
    assert_eq!(joined(&store, &bucket, join("next")).await.after, Seq(9));
    // It is forgotten once another one says where the next one begins, or when it is asked for again.
    store
        .append(bucket.id, vec![plain(11)], None)
        .await
        .expect("stored");
    ack(&store, &bucket, "next", 11).await;
    assert_eq!(
        end(&store, &bucket, "next").await,
        Ending::Ended { unclaimed: 0 }
    );
    assert!(known(&store, &bucket, "done").is_none());
    assert_eq!(joined(&store, &bucket, join("third")).await.after, Seq(11));
    assert_eq!(
        end(&store, &bucket, "next").await,
        Ending::Ended { unclaimed: 0 }
    );
    assert!(known(&store, &bucket, "next").is_none());
}

#[tokio::test]
async fn a_subscription_that_had_received_everything_is_forgotten_beside_an_active_one() {
    let (store, bucket) = with_events(9).await;
    for name in ["stays", "done"] {
        joined(&store, &bucket, join(name)).await;
    }
    ack(&store, &bucket, "done", 9).await;
    assert_eq!(
        end(&store, &bucket, "done").await,
        Ending::Ended { unclaimed: 0 }
    );
    assert!(known(&store, &bucket, "done").is_none());
}

#[tokio::test]
async fn a_rewound_subscription_is_sent_everything_behind_a_place_until_it_says_so() {
    let (store, bucket) = with_events(9).await;
    joined(&store, &bucket, join("a")).await;
    ack(&store, &bucket, "a", 9).await;
    let rewind =
        |lease| journal(&store).rewind_subscription(bucket.id, "a", Seq(4), LeaseEpoch(lease));
    let rewound = rewind(0).await.expect("stored");
    assert_eq!(rewound, Rewound::Overtaken, "the session is as new");
    let rewound = rewind(1).await.expect("stored");
    assert_eq!(rewound, Rewound::Sent { events: 5 });
    ack(&store, &bucket, "a", 9).await;
    let a = known(&store, &bucket, "a").expect("there");
    assert_eq!(
        a.acked,
        Seq(4),
        "what the session before it says no longer counts"
    );
    let lease = LeaseEpoch(2);
    let ack = |upto| journal(&store).ack(bucket.id, "a", Seq(upto), lease);
    let claims = || Join {
        claim: Some(claim(9)),
        lease,
        ..join("a")
    };
    assert_eq!(joined(&store, &bucket, claims()).await.after, Seq(4));
    // Its link broke before anything came: it claims what it did before.
    assert_eq!(joined(&store, &bucket, claims()).await.after, Seq(4));
    assert_eq!(prune(&store, &bucket, Timestamp::LAST).await, 4);
    ack(6).await.expect("stored");
    assert_eq!(joined(&store, &bucket, claims()).await.after, Seq(6));
    ack(9).await.expect("stored");
    assert_eq!(joined(&store, &bucket, claims()).await.after, Seq(9));
}

#[tokio::test]
async fn a_subscription_is_stored_only_over_what_was_read_of_it() {
    let (store, bucket) = with_events(9).await;
    let read = || store.subscription(bucket.id, "a").expect("read");
    let put = async |before: &Subscribed, after: Option<&Subscription>| {
        let put = store.put_subscription(bucket.id, "a", before, after);
        put.await.expect("stored")
    };
    let acked = |seq| {
        let mut subscription = Subscription::new(Seq(0));
        subscription.ack(Seq(seq), LeaseEpoch(1));
        subscription
    };
    let absent = read();
    assert_eq!(absent, Subscribed::Absent);
    assert!(put(&absent, Some(&acked(3))).await);
    assert!(!put(&absent, Some(&acked(4))).await, "it is there by now");
    let three = read();
    assert_eq!(three, Subscribed::Known(acked(3)));
    assert!(put(&three, Some(&acked(4))).await);
    // The answer was lost, so the caller repeats the write.
    assert!(put(&three, Some(&acked(4))).await);
    assert!(!put(&three, None).await && read() == Subscribed::Known(acked(4)));
    assert!(put(&read(), None).await && read() == Subscribed::Absent);
}

/// An agent comes while events are removed: it starts behind those that are gone, and none is removed that it was
/// promised.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_that_an_agent_is_promised_as_it_joins() {
    for round in 0..40 {
        let (store, bucket) = with_events(40).await;
        joined(&store, &bucket, join("first")).await;
        ack(&store, &bucket, "first", 40).await;
        let all = Join {
            wants_backlog: Some(true),
            ..join("second")
        };
        let step = || store.remove_receipted(bucket.id, NOW, Part::Whole, (1, usize::MAX));
        let removing = async {
            while step().await.expect("stored") > 0 {
                tokio::task::yield_now().await;
            }
        };
        let joining = async {
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            joined(&store, &bucket, all).await.after
        };
        let (after, ()) = tokio::join!(joining, removing);
        let kept = store
            .read_after(&bucket, Seq(0), 99, usize::MAX)
            .expect("read");
        let kept: Vec<u64> = kept.events.iter().map(|one| one.seq.0).collect();
        assert_eq!(kept, (after.0 + 1..=40).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_bucket_has_so_many_subscriptions_and_no_more() {
    let (store, bucket) = with_events(1).await;
    for n in 0..limits::MAX_SUBSCRIPTIONS {
        joined(&store, &bucket, join(&format!("s{n}"))).await;
    }
    let more = journal(&store).join(bucket.id, &join("more")).await;
    assert_eq!(more.expect("stored"), None);
    joined(&store, &bucket, join("s7")).await;
}

#[tokio::test]
async fn a_bucket_that_nobody_reads_leaves_room_for_one_that_is_read() {
    let options = Options {
        bound: Some(Bound {
            bytes: 100_000,
            shared: true,
        }),
        ..options(Role::Forwarder)
    };
    let store = in_memory(&options);
    let unread = bucket(&store).await;
    let large = |n| {
        let mut new = plain(n);
        new.event.request.body = vec![7; 60_000].into();
        vec![new]
    };
    // Each has room, both do not: they come in one group.
    let [one, other] = [1, 2].map(|n| store.append(unread.id, large(n), None));
    let (one, other) = tokio::join!(one, other);
    assert_ne!(one.is_ok(), other.is_ok(), "{one:?} {other:?}");
    let mut n = 2;
    let refused = loop {
        n += 1;
        if let Err(error) = store.append(unread.id, vec![plain(n)], None).await {
            break error;
        }
    };
    assert!(matches!(refused, StoreError::Share), "{refused}");
    let name = "read".parse().expect("a name");
    let key = BucketKey::mint(&name, [4; 26]);
    let (read, _) = store.ensure_bucket(&name, key).await.expect("stored");
    for more in 0..200 {
        let stored = store.append(read.id, vec![plain(1000 + more)], None).await;
        stored.expect("there is room");
        ack(&store, &read, "laptop", more + 1).await;
        prune(&store, &read, Timestamp::LAST).await;
    }
    assert_eq!(
        store.size(),
        store.bucket_size(unread.id) + store.bucket_size(read.id)
    );
}

#[tokio::test]
async fn an_incident_that_repeats_is_kept_once_and_the_oldest_make_room() {
    let (store, _) = with_events(1).await;
    let add = |n: usize, at| {
        store.add_incident(Incident {
            at,
            kind: "two_copies".into(),
            text: format!("{n}"),
        })
    };
    for n in [1, 2, 1] {
        add(n, NOW.after(HOUR * n as u32)).await.expect("stored");
    }
    let texts = || -> Vec<String> {
        let kept = store.incidents().expect("read");
        kept.into_iter().map(|incident| incident.text).collect()
    };
    assert_eq!(texts(), ["2", "1"]);
    for n in 10..10 + limits::INCIDENTS {
        add(n, NOW).await.expect("stored");
    }
    assert_eq!(texts().len(), limits::INCIDENTS);
    assert_eq!(texts()[0], "10");
}
