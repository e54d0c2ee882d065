//! What the store promises, on memory.

use std::time::Duration;

use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{Attempt, DeadReason, State};
use whrelay_core::queue::QueuePage;
use whrelay_core::retry::{Pause, Phase, Verdict};
use whrelay_core::subscription::LeaseEpoch;
use whrelay_core::token::Token;
use whrelay_store::{Again, Role, SourceMark, StateCounts};

use crate::setup::*;

#[tokio::test]
async fn events_come_back_in_order_and_to_the_byte() {
    let store = memory(Role::Forwarder);
    let bucket = bucket(&store).await;
    let receipts = store
        .append(bucket.id, (1..=9).map(plain).collect(), None)
        .await
        .expect("stored");
    assert_eq!(
        receipts.iter().map(|r| r.seq.0).collect::<Vec<_>>(),
        (1..=9).collect::<Vec<_>>()
    );
    let batch = store
        .read_after(&bucket, Seq(3), 4, usize::MAX)
        .expect("read");
    assert_eq!(batch.upto, Seq(7));
    let events: Vec<_> = batch.events.iter().map(|s| s.event.clone()).collect();
    assert_eq!(events, (4..=7).map(event).collect::<Vec<_>>());
    let by_bytes = |max| {
        store
            .read_after(&bucket, Seq(0), 100, max)
            .expect("read")
            .events
            .len()
    };
    assert_eq!(
        (by_bytes(0), by_bytes(500), by_bytes(1000)),
        (1, 1, 2),
        "heads count too"
    );
}

#[tokio::test]
async fn an_event_is_stored_once_however_often_it_comes() {
    let store = memory(Role::Agent);
    let bucket = bucket(&store).await;
    let there = store
        .ensure_destination(bucket.id, "http://localhost:1")
        .await
        .expect("stored");
    let mark = |seq| {
        Some(SourceMark {
            forwarder: "f".into(),
            start: Seq(0),
            seq: Seq(seq),
            events: Vec::new(),
        })
    };
    for round in 0..3 {
        let events = (1..=5).map(|n| to(n, there)).collect();
        let receipts = store
            .append(bucket.id, events, mark(5 + round))
            .await
            .expect("stored");
        assert!(receipts.iter().all(|r| r.duplicate == (round > 0)));
    }
    assert_eq!(store.counts(there).expect("read").queued, 5);
    let source = store.source(bucket.id).expect("read").expect("there");
    assert_eq!((source.forwarder.as_str(), source.seq), ("f", Seq(7)));
    assert_eq!(store.last_seq(bucket.id).expect("read"), Seq(5));
}

#[tokio::test]
async fn a_subscription_only_moves_forward() {
    let store = memory(Role::Forwarder);
    let bucket = bucket(&store).await;
    assert_eq!(store.acked(bucket.id, "a").expect("read"), Seq(0));
    for upto in [5, 3, 5] {
        journal(&store)
            .ack(bucket.id, "a", Seq(upto), LeaseEpoch::default())
            .await
            .expect("stored");
    }
    let newer = journal(&store)
        .ack(bucket.id, "a", Seq(6), LeaseEpoch(2))
        .await;
    newer.expect("stored");
    let replaced = journal(&store)
        .ack(bucket.id, "a", Seq(9), LeaseEpoch(1))
        .await;
    replaced.expect("nothing to store");
    assert_eq!(store.acked(bucket.id, "a").expect("read"), Seq(6));
    assert_eq!(store.acked(bucket.id, "b").expect("read"), Seq(0));
}

#[tokio::test]
async fn a_delivery_is_due_until_it_is_finished() {
    let store = memory(Role::Agent);
    let bucket = bucket(&store).await;
    let there = store
        .ensure_destination(bucket.id, "http://localhost:1")
        .await
        .expect("stored");
    store
        .append(bucket.id, vec![to(1, there), to(2, there)], None)
        .await
        .expect("stored");
    let waiting = due_at(&store, there, NOW).waiting;
    let keys: Vec<_> = waiting.iter().map(|waiting| waiting.key).collect();
    assert_eq!(due(&store, there, NOW), [1, 2], "in order of arrival");

    let first = store.delivery(keys[0]).expect("read").expect("there");
    let later = NOW.after(Duration::from_secs(60));
    let retry = Verdict::RetryAt {
        at: later,
        phase: Phase::Durable { since: 1 },
        pause: Pause::Backoff,
    };
    store.record(attempt(&first, retry)).await.expect("stored");
    let soon = NOW.after(Duration::from_secs(1));
    assert_eq!(due(&store, there, soon), [2]);
    let stalled = store.delivery(keys[0]).expect("read").expect("there");
    assert_eq!((stalled.state, stalled.attempts), (State::Stalled, 1));
    assert_eq!(stalled.phase, Phase::Durable { since: 1 });
    assert_eq!(
        stalled.first_failed_at,
        Some(NOW.after(Duration::from_millis(3)))
    );

    store
        .record(attempt(&stalled, Verdict::Sent))
        .await
        .expect("stored");
    let second = store.delivery(keys[1]).expect("read").expect("there");
    let dead = Verdict::Dead(DeadReason::Deadline);
    store.record(attempt(&second, dead)).await.expect("stored");
    assert_eq!(due_at(&store, there, later), QueuePage::default());
    let sent = store.delivery(keys[0]).expect("read").expect("there");
    assert_eq!(
        (sent.state, sent.attempts, sent.wait),
        (State::Sent, 2, None)
    );
    let counts = StateCounts {
        sent: 1,
        dead: 1,
        ..StateCounts::default()
    };
    assert_eq!(store.counts(there).expect("read"), counts);
}

/// Its answer may have been lost.
#[tokio::test]
async fn an_attempt_that_is_recorded_again_counts_once() {
    let store = memory(Role::Agent);
    let bucket = bucket(&store).await;
    let there = store
        .ensure_destination(bucket.id, "http://localhost:1")
        .await
        .expect("stored");
    let new = vec![to(1, there), to(2, there)];
    store.append(bucket.id, new, None).await.expect("stored");
    let delivery = |seq| {
        let mut all = store.deliveries_of(bucket.id, Seq(seq)).expect("read");
        all.remove(0)
    };
    let record = async |attempt: &Attempt| {
        for _ in 0..2 {
            store.record(attempt.clone()).await.expect("stored");
        }
        store.attempts_after(0, 99).expect("read").len()
    };
    let retry = Verdict::RetryAt {
        at: NOW.after(Duration::from_secs(60)),
        phase: Phase::Fast,
        pause: Pause::Backoff,
    };
    let first = attempt(&delivery(1), retry);
    assert_eq!(record(&first).await, 1);
    let sent = attempt(&delivery(1), Verdict::Sent);
    assert_eq!(record(&sent).await, 2);
    let given_up = Attempt {
        number: 0,
        ..attempt(&delivery(2), Verdict::Dead(DeadReason::Deadline))
    };
    assert_eq!(record(&given_up).await, 3);
    assert_eq!(delivery(1).state, State::Sent);
    assert_eq!(delivery(2).state, State::Dead);
}

#[tokio::test]
async fn an_attempt_on_what_is_finished_is_logged_and_changes_nothing() {
    let store = memory(Role::Agent);
    let bucket = bucket(&store).await;
    let there = store
        .ensure_destination(bucket.id, "http://localhost:1")
        .await
        .expect("stored");
    store
        .append(bucket.id, vec![to(1, there)], None)
        .await
        .expect("stored");
    let first = store
        .deliveries_of(bucket.id, Seq(1))
        .expect("read")
        .remove(0);
    let verdicts = [Verdict::Sent, Verdict::Dead(DeadReason::Rejected)];
    let later = Attempt {
        number: 2,
        ..attempt(&first, verdicts[1])
    };
    for attempt in [attempt(&first, verdicts[0]), later.clone()] {
        store.record(attempt).await.expect("stored");
    }
    assert_eq!(
        store
            .delivery(first.key)
            .expect("read")
            .expect("there")
            .state,
        State::Sent
    );
    let log = store.attempts_after(0, 9).expect("read");
    assert_eq!(log.iter().map(|l| l.place).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(
        log.iter().map(|l| l.attempt.verdict).collect::<Vec<_>>(),
        verdicts
    );
    assert_eq!(log[1].attempt, later);
    let newest = store.attempts_of(first.key, 1).expect("read");
    assert_eq!(newest[0].place, 2);
}

#[tokio::test]
async fn a_replay_is_a_new_delivery_and_the_old_one_stays() {
    let store = memory(Role::Agent);
    let bucket = bucket(&store).await;
    let there = store
        .ensure_destination(bucket.id, "http://localhost:1")
        .await
        .expect("stored");
    store
        .append(bucket.id, vec![to(1, there)], None)
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
    let mut new = new_delivery(9, there);
    new.replay = true;
    let again = Again {
        bucket: bucket.id,
        seq: Seq(1),
        event: first.event,
        new,
    };
    let again = store.deliver_again(vec![again]).await.expect("stored");
    let again = again.first().expect("begun");
    assert_eq!(
        (again.key.ordinal, again.attempts, again.replay),
        (1, 0, true)
    );
    let states: Vec<_> = store
        .deliveries_of(bucket.id, Seq(1))
        .expect("read")
        .iter()
        .map(|d| d.state)
        .collect();
    assert_eq!(states, [State::Sent, State::Queued]);
}

#[tokio::test]
async fn buckets_tokens_and_notes_are_kept() {
    let store = memory(Role::Forwarder);
    let (first, again) = (bucket(&store).await, bucket(&store).await);
    assert_eq!(first, again, "a bucket keeps its key");
    let token = Token::mint(&[9; 53]);
    store.set_token(&token).await.expect("stored");
    let digest = store.token(token.id()).expect("read").expect("there");
    assert!(token.matches(&digest));
    assert!(store.token("nobody").expect("read").is_none());
    let new = Token::mint(&[8; 53]);
    store.set_token(&new).await.expect("stored");
    assert!(store.token(new.id()).expect("read").is_some());
    assert!(
        store.token(token.id()).expect("read").is_none(),
        "it is the only one"
    );
    store.set_note("port", "4141").await.expect("stored");
    assert_eq!(store.note("port").expect("read").as_deref(), Some("4141"));
}
