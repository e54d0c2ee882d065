//! Directories that go back to an earlier copy: what both sides agree on is not sent again, everything else is.

use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::event::Event;
use whrelay_core::history::{Claim, WentBack};
use whrelay_core::id::EventId;
use whrelay_core::subscription::{Join, LeaseEpoch};
use whrelay_store::{NewEvent, RedbStore, Role, SourceMark};

use crate::setup::*;

/// The event that another history has at a place.
fn other(n: u64) -> Event {
    Event {
        id: EventId::from_parts(NOW, u128::from(n) | 1 << 70),
        ..event(n)
    }
}

async fn append(store: &RedbStore, bucket: &Bucket, events: Vec<Event>) {
    let new = |event| NewEvent {
        event,
        deliveries: Vec::new(),
    };
    let new = events.into_iter().map(new).collect();
    store.append(bucket.id, new, None).await.expect("stored");
}

/// A forwarder whose directory was put back to place 5 and went on to place 30.
async fn put_back() -> (RedbStore, Bucket) {
    let store = memory(Role::Forwarder);
    let bucket = bucket(&store).await;
    append(&store, &bucket, (1..=5).map(event).collect()).await;
    append(&store, &bucket, (6..=30).map(other).collect()).await;
    (store, bucket)
}

fn as_agent(claim: Option<Claim>) -> Join {
    Join {
        holder: Some(holder("laptop")),
        is_empty: claim.is_none(),
        claim,
        ..join("laptop")
    }
}

fn desktop(claim: Option<Claim>) -> Join {
    Join {
        holder: Some(holder("desktop")),
        ..as_agent(claim)
    }
}

/// A forwarder whose subscription had one agent up to place 20, and then another one.
async fn taken_over() -> (RedbStore, Bucket) {
    let (store, bucket) = with_events(30).await;
    let ack = |upto| journal(&store).ack(bucket.id, "laptop", Seq(upto), LeaseEpoch::default());
    joined(&store, &bucket, as_agent(None)).await;
    ack(20).await.expect("stored");
    let taken = joined(&store, &bucket, desktop(None)).await;
    assert_eq!(taken.after, Seq(20), "it goes on where the other one was");
    ack(30).await.expect("stored");
    (store, bucket)
}

#[tokio::test]
async fn numbers_that_are_given_twice_acknowledge_nothing() {
    let (store, bucket) = put_back().await;
    journal(&store)
        .ack(bucket.id, "laptop", Seq(5), LeaseEpoch::default())
        .await
        .expect("stored");
    let joined = joined(&store, &bucket, as_agent(Some(claim(20)))).await;
    assert_eq!(joined.after, Seq(5), "25 events follow");
    let from = Seq(20);
    assert_eq!(joined.went_back, Some(WentBack::Forwarder { from }));
    let acked = store.acked(bucket.id, "laptop").expect("read");
    assert_eq!(acked, Seq(5), "retention keeps what is sent");
}

#[tokio::test]
async fn a_claim_beyond_what_was_ever_stored_acknowledges_nothing() {
    let (store, bucket) = put_back().await;
    let absurd = Claim {
        seq: Seq(1 << 60),
        ..claim(0)
    };
    let joined = joined(&store, &bucket, as_agent(Some(absurd))).await;
    assert_eq!(joined.after, Seq(0));
    assert_eq!(store.acked(bucket.id, "laptop").expect("read"), Seq(0));
}

#[tokio::test]
async fn an_agent_that_went_back_is_sent_what_it_lost() {
    let (store, bucket) = put_back().await;
    let first = joined(&store, &bucket, as_agent(None)).await;
    assert_eq!((first.after, first.went_back), (Seq(0), None));
    journal(&store)
        .ack(bucket.id, "laptop", Seq(30), LeaseEpoch::default())
        .await
        .expect("stored");
    let back = joined(&store, &bucket, as_agent(Some(claim(3)))).await;
    let from = Seq(30);
    assert_eq!(back.after, Seq(3));
    assert_eq!(back.went_back, Some(WentBack::Agent { from }));
}

/// Found by the simulation: such an agent claims nothing, and was sent nothing.
#[tokio::test]
async fn an_agent_that_went_back_to_before_its_first_event_is_sent_everything() {
    let (store, bucket) = put_back().await;
    joined(&store, &bucket, as_agent(None)).await;
    journal(&store)
        .ack(bucket.id, "laptop", Seq(30), LeaseEpoch::default())
        .await
        .expect("stored");
    let back = joined(&store, &bucket, as_agent(None)).await;
    assert_eq!(back.after, Seq(0));
    let from = Seq(30);
    assert_eq!(back.went_back, Some(WentBack::Agent { from }));
}

/// Found by the simulation: another agent had the subscription meanwhile, and its place counted.
#[tokio::test]
async fn an_agent_that_went_back_is_sent_what_it_lost_though_another_had_its_subscription() {
    let (store, bucket) = taken_over().await;
    // It comes twice and receives nothing in between: what the other one has is not its own to lose.
    for _ in 0..2 {
        let whole = joined(&store, &bucket, as_agent(Some(claim(20)))).await;
        assert_eq!((whole.after, whole.went_back), (Seq(30), None));
    }
    let lost = joined(&store, &bucket, as_agent(Some(claim(4)))).await;
    assert_eq!(lost.after, Seq(4));
}

/// Found by the simulation: another agent, which did not have them either, moved the subscription behind events
/// that were still to be sent again.
#[tokio::test]
async fn what_an_agent_lost_is_sent_to_whichever_agent_comes() {
    let (store, bucket) = taken_over().await;
    let ack = |upto| journal(&store).ack(bucket.id, "laptop", Seq(upto), LeaseEpoch::default());
    joined(&store, &bucket, as_agent(Some(claim(4)))).await;
    ack(12).await.expect("stored");
    let other = joined(&store, &bucket, desktop(Some(claim(30)))).await;
    assert_eq!(other.after, Seq(12));
    ack(30).await.expect("stored");
    let other = joined(&store, &bucket, desktop(Some(claim(30)))).await;
    assert_eq!(other.after, Seq(30), "all of them were sent");
}

/// Found by the simulation: both agents of a subscription went back, one after the other, and the copy of the second
/// one was of a time before it had been sent what only the first one had.
#[tokio::test]
async fn an_agent_that_lost_what_it_was_sent_after_another_went_back_is_sent_that_again() {
    let (store, bucket) = taken_over().await;
    let ack = |upto| journal(&store).ack(bucket.id, "laptop", Seq(upto), LeaseEpoch::default());
    // As its source says before the events up to 20 come to it, too.
    let copy = Claim {
        whole_after: Seq(20),
        ..claim(30)
    };
    joined(&store, &bucket, as_agent(Some(claim(4)))).await;
    let again = joined(&store, &bucket, desktop(Some(copy.clone()))).await;
    assert_eq!((again.after, again.went_back), (Seq(4), None));
    ack(16).await.expect("stored");
    let back = joined(&store, &bucket, desktop(Some(copy.clone()))).await;
    assert_eq!(back.went_back, Some(WentBack::Agent { from: Seq(16) }));
    assert!(back.after <= Seq(4), "{:?}", back.after);
    ack(30).await.expect("stored");
    let whole = Claim {
        whole_after: back.after,
        ..copy
    };
    let whole = joined(&store, &bucket, desktop(Some(whole))).await;
    assert_eq!((whole.after, whole.went_back), (Seq(30), None));
}

/// Found by the simulation: an agent that discards its backlog took new events for old ones.
#[tokio::test]
async fn an_agent_hears_that_the_end_of_its_backlog_has_another_event_now() {
    let (store, bucket) = put_back().await;
    let ends = |seq, id| Join {
        backlog_end: Some((Seq(seq), id)),
        ..as_agent(Some(claim(3)))
    };
    let first = joined(&store, &bucket, ends(5, event(5).id)).await;
    assert_eq!((first.last, first.newest), (Seq(30), Some(other(30).id)));
    assert!(!first.backlog_end_lost);
    for (seq, id) in [(20, event(20).id), (31, event(31).id)] {
        let lost = joined(&store, &bucket, ends(seq, id)).await;
        assert!(lost.backlog_end_lost && lost.went_back.is_none());
    }
}

#[tokio::test]
async fn an_agent_keeps_events_by_number_until_numbers_are_given_again() {
    let store = memory(Role::Agent);
    let bucket = bucket(&store).await;
    let mark = |events: &[Event], last| SourceMark {
        forwarder: "cloud".into(),
        start: Seq(0),
        seq: Seq(last),
        events: (1..).map(Seq).zip(events.iter().map(|e| e.id)).collect(),
    };
    let first: Vec<_> = (1..=9).map(event).collect();
    let new = |events: &[Event]| -> Vec<NewEvent> {
        let one = |event: &Event| NewEvent {
            event: event.clone(),
            deliveries: Vec::new(),
        };
        events.iter().map(one).collect()
    };
    let marked = Some(mark(&first, 9));
    store
        .append(bucket.id, new(&first), marked)
        .await
        .expect("stored");
    let source = store.source(bucket.id).expect("read").expect("there");
    assert_eq!(source.locator, claim(9).locator);
    let again = [other(1)];
    let marked = Some(mark(&again, 1));
    store
        .append(bucket.id, new(&again), marked)
        .await
        .expect("stored");
    let source = store.source(bucket.id).expect("read").expect("there");
    assert_eq!(source.locator.entries(), [(Seq(1), other(1).id)]);
}

#[tokio::test]
async fn every_opening_of_a_store_is_told_from_every_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut seen = Vec::new();
    for seed in 1..=3 {
        let options = whrelay_store::Options {
            name_seed: seed,
            ..options(Role::Agent)
        };
        let store = RedbStore::open(dir.path(), &options).expect("opens");
        seen.push(store.epoch().clone());
        store.close().await;
    }
    let opens: Vec<_> = seen.iter().map(|epoch| epoch.opens).collect();
    assert_eq!(opens[1] - opens[0], 1);
    assert_eq!(opens[2] - opens[1], 1);
    assert!(seen.iter().all(|epoch| epoch.store == seen[0].store));
    assert_ne!(seen[0].instance, seen[1].instance);
}
