//! Inputs in any order, with any content, at any time: nothing panics, and every poll ends.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{DeadReason, DeliveryKey, DestinationId};
use whrelay_core::destination::EndpointState;
use whrelay_core::order::Order;
use whrelay_core::outcome::{Outcome, RetryAfter};
use whrelay_core::queue::{DueCursor, DuePage, Offset, QueueKind, QueuePage, WaitReason, Waiting};
use whrelay_core::retry::{Jitter, Phase};
use whrelay_core::time::{Moment, Timestamp};
use whrelay_engine::{Caps, Ended, Engine, Input, Now, ProbeResult, Probing, Settings, Token};

fn times() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        Just(Timestamp::LAST),
        Just(Timestamp::EPOCH),
        Just(Timestamp::from_micros(i64::MIN)),
        any::<i64>().prop_map(Timestamp::from_micros),
        (0..1000i64).prop_map(|s| Timestamp::from_micros(s * 1_000_000)),
    ]
}

fn ids() -> impl Strategy<Value = DestinationId> {
    (0..4u32).prop_map(DestinationId)
}

fn keys() -> impl Strategy<Value = DeliveryKey> {
    (prop_oneof![0..3u32, Just(u32::MAX)], 0..20u64).prop_map(|(bucket, seq)| DeliveryKey {
        bucket: BucketId(bucket),
        seq: Seq(seq),
        ordinal: 0,
    })
}

fn tokens() -> impl Strategy<Value = Token> {
    (0..60u64).prop_map(Token)
}

fn rows() -> impl Strategy<Value = Waiting> {
    let reason = prop_oneof![
        Just(WaitReason::Turn),
        times().prop_map(WaitReason::NotBefore),
        (times(), any::<u64>()).prop_map(|(since, delay)| WaitReason::Backoff {
            since,
            delay: Duration::from_micros(delay),
        }),
    ];
    let kind = prop_oneof![Just(QueueKind::Normal), Just(QueueKind::Replay)];
    let first = prop::option::of(times());
    (
        keys(),
        kind,
        times(),
        times(),
        reason,
        any::<u32>(),
        first,
        any::<u64>(),
    )
        .prop_map(
            |(key, kind, created_at, deadline_at, reason, attempts, first_failed_at, bytes)| {
                Waiting {
                    key,
                    kind,
                    created_at,
                    deadline_at,
                    reason,
                    attempts,
                    first_failed_at,
                    phase: Phase::Fast,
                    bytes,
                }
            },
        )
}

fn settings() -> impl Strategy<Value = Settings> {
    let probing = prop_oneof![Just(Probing::Loopback), Just(Probing::Public)];
    let order = prop_oneof![Just(Order::Arrival), Just(Order::Fifo)];
    let max = prop_oneof![0..5usize, Just(usize::MAX)];
    (
        probing,
        order,
        max,
        any::<bool>(),
        any::<bool>(),
        prop::option::of(times()),
    )
        .prop_map(
            |(probing, order, max_in_flight, paused, is_away, back_since)| Settings {
                probing,
                order,
                max_in_flight,
                paused,
                endpoint: match is_away {
                    true => EndpointState::Offline,
                    false => EndpointState::Failing,
                },
                back_since,
                ..crate::world::settings()
            },
        )
}

fn outcomes() -> impl Strategy<Value = Ended> {
    prop_oneof![
        Just(Ended::Tried(Outcome::Unreachable)),
        Just(Ended::Tried(Outcome::Broken)),
        Just(Ended::Tried(Outcome::TimedOut)),
        Just(Ended::Tried(Outcome::Unsendable)),
        (100..600u16, prop::option::of(times())).prop_map(|(status, at)| {
            let retry_after = at.map(RetryAfter::At);
            Ended::Tried(Outcome::Answered {
                status,
                retry_after,
            })
        }),
        Just(Ended::GivenUp(DeadReason::Damaged)),
        Just(Ended::NotAsked),
    ]
}

fn inputs() -> impl Strategy<Value = Input> {
    let cursor = (times(), ids()).prop_map(|(at, destination)| DueCursor { at, destination });
    let listed = prop::collection::vec((ids(), times()), 0..4);
    let results = prop_oneof![
        Just(ProbeResult::Refused),
        Just(ProbeResult::Closed),
        Just(ProbeResult::Open)
    ];
    let time = || prop::option::of(times());
    prop_oneof![
        3 => (ids(), prop::option::weighted(0.8, settings()))
            .prop_map(|(id, settings)| Input::Destination { id, settings }),
        2 => (tokens(), listed, prop::option::of(cursor), 0..99u64).prop_map(
            |(token, rows, next, applied)| Input::DueDestinations {
                token,
                page: DuePage { rows, next },
                applied: Offset(applied),
            }
        ),
        1 => tokens().prop_map(|token| Input::DestinationsFailed { token }),
        5 => (ids(), times()).prop_map(|(destination, at)| Input::Due { destination, at }),
        5 => (ids(), rows(), 0..99u64).prop_map(|(destination, delivery, at)| Input::Added {
            destination,
            delivery,
            at: Offset(at),
        }),
        9 => (ids(), tokens(), prop::collection::vec(rows(), 0..6), time(), any::<bool>(), time(), 0..99u64)
            .prop_map(|(destination, token, waiting, next_at, has_more, next_deadline_at, applied)| {
                let page = QueuePage { waiting, next_at, has_more, next_deadline_at };
                Input::Loaded { destination, token, page, applied: Offset(applied) }
            }),
        1 => (ids(), tokens())
            .prop_map(|(destination, token)| Input::LoadFailed { destination, token }),
        8 => (tokens(), outcomes(), any::<u32>())
            .prop_map(|(token, ended, j)| Input::Finished { token, ended, jitter: Jitter(j) }),
        8 => (tokens(), 0..99u64)
            .prop_map(|(token, at)| Input::Appended { token, at: Offset(at) }),
        1 => tokens().prop_map(|token| Input::AppendFailed { token }),
        4 => (0..99u64).prop_map(|upto| Input::Applied { upto: Offset(upto) }),
        1 => (ids(), keys(), 0..99u64).prop_map(|(destination, key, at)| Input::Withdrawn {
            destination,
            key,
            at: Offset(at),
        }),
        3 => (ids(), results)
            .prop_map(|(destination, result)| Input::Probed { destination, result }),
        1 => any::<bool>().prop_map(Input::Pause),
        1 => Just(Input::Stop),
    ]
}

proptest! {
    #![proptest_config(crate::config(200))]

    #[test]
    fn no_input_panics_and_every_poll_ends(
        inputs in prop::collection::vec((inputs(), times(), times(), 0..99_000u64), 1..120),
    ) {
        let base = Instant::now();
        let mut elapsed = Duration::ZERO;
        let at = |now, certain, elapsed| Now {
            moment: Moment { now, certain },
            instant: base + elapsed,
            jumped_at: Some(base),
        };
        let began = at(Timestamp::EPOCH, Timestamp::EPOCH, elapsed);
        let mut engine = Engine::new(Caps::default(), began);
        for (input, now, certain, millis) in inputs {
            elapsed += Duration::from_millis(millis);
            let now = at(now, certain, elapsed);
            engine.handle(input, now);
            let mut polled = 0;
            while engine.poll_action(now).is_some() {
                polled += 1;
                prop_assert!(polled < 1000, "a poll that does not end");
            }
            prop_assert!(engine.next_wake(now) > now.instant);
        }
    }
}
