//! Random worlds with trouble of every kind: answers are lost, late and doubled, writes fail, the
//! view lags, the process dies between any two actions, the wall clock jumps. [`World`] checks
//! every start; here everything has to end.

use std::time::Duration;

use proptest::prelude::*;
use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::DestinationId;
use whrelay_core::order::Order;
use whrelay_core::queue::{QueueKind, WaitReason};
use whrelay_core::retry::{RetryPolicy, Schedule};
use whrelay_engine::{Caps, Input, Probing, Settings};

use crate::endpoints::Behaviour;
use crate::world::{Chaos, MS, SECOND, World};

#[derive(Clone, Debug)]
enum Op {
    Event(u32),
    Events(u32, u32),
    Replay(u32),
    Job(u32, u64),
    Run(u64),
    Endpoint(u32, Behaviour),
    Pause(u32),
    PauseAll,
    Jump(i64),
    Crash,
    Withdraw(usize),
    DieAfter(usize),
}

fn ops() -> impl Strategy<Value = Op> {
    let id = 1..4u32;
    prop_oneof![
        6 => id.clone().prop_map(Op::Event),
        2 => (id.clone(), 2..30u32).prop_map(|(id, n)| Op::Events(id, n)),
        1 => id.clone().prop_map(Op::Replay),
        1 => (id.clone(), 0..600u64).prop_map(|(id, after)| Op::Job(id, after)),
        6 => (1..5000u64).prop_map(|ms| Op::Run(ms * MS)),
        2 => (5..100u64).prop_map(|s| Op::Run(s * SECOND)),
        3 => (id.clone(), endpoints()).prop_map(|(id, endpoint)| Op::Endpoint(id, endpoint)),
        1 => id.prop_map(Op::Pause),
        1 => Just(Op::PauseAll),
        1 => (-3600..3600i64).prop_map(|s| Op::Jump(s * 1_000_000)),
        1 => Just(Op::Crash),
        2 => any::<usize>().prop_map(Op::Withdraw),
        2 => (0..40usize).prop_map(Op::DieAfter),
    ]
}

fn endpoints() -> impl Strategy<Value = Behaviour> {
    prop_oneof![
        3 => any::<u8>().prop_map(Behaviour::Random),
        1 => Just(Behaviour::Refuses),
        1 => Just(Behaviour::Closes),
        1 => Just(Behaviour::Breaks),
        1 => Just(Behaviour::Hangs(30 * SECOND)),
        1 => Just(Behaviour::Answers(200, 20 * MS)),
        1 => Just(Behaviour::Answers(503, MS)),
        1 => Just(Behaviour::Single { each: 3 * SECOND, timeout: 30 * SECOND }),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    let schedule = prop_oneof![
        3 => Just(Schedule::Medium),
        1 => Just(Schedule::Seconds),
        1 => Just(Schedule::Listed(vec![Duration::from_secs(2); 3])),
    ];
    let probing = prop_oneof![
        Just(Probing::Loopback),
        Just(Probing::Private),
        Just(Probing::Public)
    ];
    let rate = prop_oneof![
        3 => Just(None),
        1 => Just(Some("20/s")),
        1 => Just(Some("20/m"))
    ];
    let order = prop_oneof![Just(Order::Arrival), Just(Order::Fifo)];
    (
        schedule,
        probing,
        rate,
        order,
        1..6usize,
        30..600u64,
        0..4u32,
    )
        .prop_map(
            |(schedule, probing, rate, order, max_in_flight, deadline, max_attempts)| Settings {
                policy: RetryPolicy {
                    schedule,
                    deadline: Duration::from_secs(deadline),
                    max_attempts: if max_attempts == 1 {
                        0
                    } else {
                        max_attempts * 3
                    },
                    ..RetryPolicy::default()
                },
                order,
                max_in_flight,
                rate: rate.map(|rate| rate.parse().unwrap()),
                probing,
                ..crate::world::settings()
            },
        )
}

fn caps() -> impl Strategy<Value = Caps> {
    (1..8usize, 1..9000u64, 3..40usize, 2..40usize).prop_map(
        |(attempts, bytes, loaded, remembered)| Caps {
            attempts,
            bytes,
            loaded,
            remembered,
        },
    )
}

fn trouble() -> impl Strategy<Value = Chaos> {
    let share = || prop_oneof![2 => Just(0u8), 1 => 0..60u8];
    (
        any::<u64>(),
        share(),
        share(),
        share(),
        share(),
        prop_oneof![Just(0usize), 0..6usize],
    )
        .prop_map(|(seed, lost, late, doubled, failed, lag)| Chaos {
            seed,
            lost,
            late,
            doubled,
            failed,
            lag,
        })
}

fn apply(world: &mut World, op: Op) {
    match op {
        Op::Event(id) => {
            world.event(id);
        }
        Op::Events(id, count) => {
            for n in 0..count {
                let bucket = BucketId(10 * id + n % 2);
                world.delivery(id, bucket, QueueKind::Normal, WaitReason::Turn);
            }
        }
        Op::Replay(id) => {
            world.delivery(id, BucketId(id), QueueKind::Replay, WaitReason::Turn);
        }
        Op::Job(id, after) => {
            let at = world.wall().after(Duration::from_secs(after));
            world.delivery(
                id,
                BucketId(id),
                QueueKind::Normal,
                WaitReason::NotBefore(at),
            );
        }
        Op::Run(micros) => world.run(micros),
        Op::Endpoint(id, endpoint) => {
            world.endpoints.insert(DestinationId(id), endpoint);
        }
        Op::Pause(id) => world.change(id, |settings| settings.paused = !settings.paused),
        Op::PauseAll => {
            world.paused = !world.paused;
            world.input(Input::Pause(world.paused));
        }
        Op::Jump(by) => world.jump(by),
        Op::Crash => world.crash(),
        Op::Withdraw(n) => {
            let count = world.truth.len().max(1);
            let key = world.truth.keys().nth(n % count).copied();
            if let Some((destination, key)) = key {
                world.withdraw(destination, key);
            }
        }
        Op::DieAfter(actions) => world.dies_after = Some(world.actions + actions),
    }
}

/// The trouble ends, the endpoints answer, and everything has to end.
fn end(world: &mut World) {
    world.chaos = Chaos::default();
    world.dies_after = None;
    for id in 1..4 {
        world
            .endpoints
            .insert(DestinationId(id), Behaviour::Answers(200, MS));
        world.change(id, |settings| settings.paused = false);
    }
    world.paused = false;
    world.input(Input::Pause(false));
    world.set_clock_right();
    world.catch_up();
    for _ in 0..130 {
        if world.truth.is_empty() {
            break;
        }
        world.run(100 * SECOND);
    }
    assert!(world.truth.is_empty(), "left: {:?}", world.truth);
    world.run(200 * SECOND);
    assert_eq!(world.engine.loaded_rows(), 0, "nothing is left in memory");
    assert!(world.engine.is_idle());
}

proptest! {
    #![proptest_config(crate::config(200))]

    #[test]
    fn every_start_is_allowed_and_everything_ends(
        caps in caps(),
        chaos in trouble(),
        of in prop::collection::vec(settings(), 3),
        ops in prop::collection::vec(ops(), 1..60),
    ) {
        let mut world = World::with_chaos(caps, chaos);
        for (id, settings) in (1..).zip(of) {
            world.destination(id, settings, Behaviour::Answers(200, 5 * MS));
        }
        for op in ops {
            apply(&mut world, op);
        }
        end(&mut world);
    }
}
