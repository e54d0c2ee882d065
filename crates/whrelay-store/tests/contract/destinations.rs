//! Destinations are kept with all that a person has set of them, and own the deliveries to them.

use std::time::Duration;

use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::delivery::{DeadReason, DestinationId, State, event_state};
use whrelay_core::destination::{Destination, EndpointState, Kind, OptionKey, OptionSet};
use whrelay_core::retry::{Pause, Phase, Schedule, Verdict};
use whrelay_core::time::Timestamp;
use whrelay_store::{
    Again, Catalog, Moved, NewDelivery, NewDestination, RedbStore, Role, StateCounts,
};

use crate::setup::*;

fn full() -> OptionSet {
    let mut options = OptionSet::default();
    for (key, text) in OptionKey::ALL.into_iter().zip([
        "1s,5m", "1h", "20m", "7", "non-2xx", "3s", "9", "10/m", "fifo",
    ]) {
        options.set(key, text).expect("an option");
    }
    options
}

async fn add(store: &RedbStore, kind: Kind, port: u16, options: OptionSet) -> Destination {
    let bucket = bucket(store).await.id;
    let target = port.to_string().parse().expect("a target");
    let new = NewDestination {
        bucket,
        kind,
        target,
        options,
    };
    store.add_destination(new).await.expect("stored")
}

fn lasting(name: &str) -> Kind {
    Kind::Lasting {
        name: name.parse().expect("a name"),
        is_named: true,
    }
}

#[tokio::test]
async fn everything_that_is_set_survives_and_only_what_is_changed_changes() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || RedbStore::open(dir.path(), &options(Role::Agent)).expect("opens");
    let store = open();
    let schedules =
        [Schedule::Seconds, Schedule::Medium, Schedule::Long].map(|schedule| OptionSet {
            schedule: Some(schedule),
            ..OptionSet::default()
        });
    let mut all = vec![
        add(&store, lasting("api"), 3000, full()).await,
        add(&store, Kind::OneOff, 3001, OptionSet::default()).await,
        add(
            &store,
            Kind::Removed {
                name: "old".parse().expect("a name"),
            },
            3002,
            full(),
        )
        .await,
    ];
    for (n, schedule) in schedules.into_iter().enumerate() {
        let port = 4000 + n as u16;
        all.push(add(&store, lasting(&format!("s{n}")), port, schedule).await);
    }
    assert_eq!(store.destinations().expect("read"), all);
    let catalog: &dyn Catalog = &store;
    let changed = catalog.change_destination(all[0].id, |api| {
        api.target = "https://api.test/base".parse().expect("a target");
        api.paused_at = Some(NOW);
        api.endpoint = EndpointState::Offline;
        api.back_since = Some(NOW);
        api.offline_since = Some(NOW.after(Duration::from_secs(1)));
    });
    let changed = changed.await.expect("stored").expect("it is there");
    assert_eq!(changed.options, full());
    all[0] = changed;
    let nobody = catalog.change_destination(DestinationId(99), |_| unreachable!("nobody"));
    assert_eq!(nobody.await.expect("stored"), None);
    store.close().await;
    assert_eq!(open().destinations().expect("read"), all);
}

/// A queue of 1500 deliveries and a replay that is scheduled for `later`; the event of one goes to both.
async fn queued(later: Timestamp) -> (RedbStore, Bucket, DestinationId, DestinationId) {
    let store = memory(Role::Agent);
    let bucket = bucket(&store).await;
    let old = add(&store, lasting("old"), 3000, OptionSet::default())
        .await
        .id;
    let new = add(&store, lasting("new"), 3001, OptionSet::default())
        .await
        .id;
    let mut both = to(1, old);
    both.deliveries.push(new_delivery(8, new));
    let mut events = vec![both];
    // More than one transaction moves.
    events.extend((2..=1500).map(|n| to(n, old)));
    store.append(bucket.id, events, None).await.expect("stored");
    let first = store
        .deliveries_of(bucket.id, Seq(2))
        .expect("read")
        .remove(0);
    let backs_off = Verdict::RetryAt {
        at: later,
        phase: Phase::Fast,
        pause: Pause::Asked,
    };
    store
        .record(attempt(&first, backs_off))
        .await
        .expect("stored");
    let replay = Again {
        bucket: bucket.id,
        seq: Seq(3),
        event: event(3).id,
        new: NewDelivery {
            due_at: later,
            replay: true,
            ..new_delivery(4000, old)
        },
    };
    store.deliver_again(vec![replay]).await.expect("stored");
    (store, bucket, old, new)
}

#[tokio::test]
async fn a_queue_moves_to_another_destination_and_no_event_is_doubled() {
    let later = NOW.after(Duration::from_secs(3600));
    let (store, bucket, old, new) = queued(later).await;
    let moved = store.move_deliveries(old, new, NOW).await.expect("stored");
    assert_eq!(
        moved,
        Moved {
            moved: 1500,
            discarded: 1
        }
    );
    let counts = |id| store.counts(id).expect("read");
    let expected = StateCounts {
        queued: 1500,
        stalled: 1,
        ..StateCounts::default()
    };
    assert_eq!(counts(new), expected);
    let expected = StateCounts {
        dead: 1,
        ..StateCounts::default()
    };
    assert_eq!(counts(old), expected);
    let of_first = store.deliveries_of(bucket.id, Seq(1)).expect("read");
    assert_eq!(of_first[0].reason, Some(DeadReason::Discarded));
    assert_eq!(of_first[0].ended_at, Some(NOW));
    let due = due_at(&store, new, NOW);
    assert_eq!(
        (due.waiting.len(), due.next_at),
        (1500, Some(later)),
        "a schedule is kept"
    );
    assert!(indexes_are_whole(&store));
    let again = store.move_deliveries(old, new, NOW).await.expect("stored");
    assert_eq!(again, Moved::default());
}

#[tokio::test]
async fn a_queued_delivery_is_due_at_once_where_a_person_wants_it() {
    let store = memory(Role::Agent);
    let bucket = bucket(&store).await;
    let there = add(&store, lasting("api"), 3000, OptionSet::default())
        .await
        .id;
    store
        .append(bucket.id, vec![to(1, there), to(2, there)], None)
        .await
        .expect("stored");
    let all = [1, 2].map(|seq| {
        store
            .deliveries_of(bucket.id, Seq(seq))
            .expect("read")
            .remove(0)
    });
    let backs_off = Verdict::RetryAt {
        at: NOW.after(Duration::from_secs(3600)),
        phase: Phase::Fast,
        pause: Pause::Asked,
    };
    store
        .record(attempt(&all[0], backs_off))
        .await
        .expect("stored");
    store
        .record(attempt(&all[1], Verdict::Sent))
        .await
        .expect("stored");
    let hurried = store.retry_now(vec![all[0].key, all[1].key]).await;
    assert_eq!(hurried.expect("stored"), [all[0].key]);
    assert_eq!(due(&store, there, NOW), [all[0].key.seq.0]);
    let state = store
        .delivery(all[0].key)
        .expect("read")
        .expect("there")
        .state;
    assert_eq!(state, State::Stalled, "it has failed so far");
}

#[tokio::test]
async fn one_offs_say_nothing_of_an_event_and_are_forgotten_with_their_deliveries() {
    let store = memory(Role::Agent);
    let bucket = bucket(&store).await;
    let api = add(&store, lasting("api"), 3000, OptionSet::default()).await;
    let typo = add(&store, Kind::OneOff, 3001, OptionSet::default()).await;
    add(&store, Kind::OneOff, 3002, OptionSet::default()).await;
    store
        .append(bucket.id, vec![to(1, api.id)], None)
        .await
        .expect("stored");
    let first = store
        .deliveries_of(bucket.id, Seq(1))
        .expect("read")
        .remove(0);
    store
        .record(attempt(&first, Verdict::Sent))
        .await
        .expect("stored");
    let again = Again {
        bucket: bucket.id,
        seq: Seq(1),
        event: event(1).id,
        new: NewDelivery {
            replay: true,
            one_off: true,
            ..new_delivery(2, typo.id)
        },
    };
    let begun = store
        .deliver_again(vec![again])
        .await
        .expect("stored")
        .remove(0);
    let state = || event_state(&store.deliveries_of(bucket.id, Seq(1)).expect("read"));
    assert_eq!(state(), Some(State::Queued), "it waits");
    let rejected = Verdict::Dead(DeadReason::Rejected);
    store
        .record(attempt(&begun, rejected))
        .await
        .expect("stored");
    assert_eq!(state(), Some(State::Sent));
    store.forget_destinations().await.expect("stored");
    assert_eq!(store.destinations().expect("read"), [api, typo]);
}
