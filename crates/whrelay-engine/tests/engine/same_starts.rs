//! Random worlds without trouble: the engine and the reference make the same starts.

use std::time::Duration;

use proptest::prelude::*;
use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::DestinationId;
use whrelay_core::order::Order;
use whrelay_core::queue::{QueueKind, WaitReason};
use whrelay_core::retry::RetryPolicy;
use whrelay_engine::{Caps, Settings};

use crate::endpoints::Behaviour;
use crate::reference::{Reference, Start};
use crate::world::{MS, SECOND, World};

fn settings() -> impl Strategy<Value = Settings> {
    let rate = prop_oneof![
        3 => Just(None),
        1 => Just(Some("7/s")),
        1 => Just(Some("300/s")),
        1 => Just(Some("40/m"))
    ];
    let order = prop_oneof![2 => Just(Order::Arrival), 1 => Just(Order::Fifo)];
    (rate, order, 1..9usize, 20..300u64).prop_map(|(rate, order, max_in_flight, deadline)| {
        Settings {
            policy: RetryPolicy {
                deadline: Duration::from_secs(deadline),
                ..RetryPolicy::default()
            },
            order,
            max_in_flight,
            rate: rate.map(|rate| rate.parse().unwrap()),
            ..crate::world::settings()
        }
    })
}

/// Milliseconds until an arrival, its destination, how many arrive, whether they are replays, and
/// seconds until they are due.
type Arrival = (u64, u32, u32, bool, Option<u64>);

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let after = prop_oneof![1..50u64, 1..4000u64];
    let job = prop_oneof![5 => Just(None), 1 => (0..90u64).prop_map(Some)];
    let one = (after, 1..4u32, 1..20u32, prop::bool::weighted(0.2), job);
    prop::collection::vec(one, 1..20)
}

proptest! {
    #![proptest_config(crate::config(80))]

    #[test]
    fn the_reference_makes_the_same_starts_in_the_same_order(
        of in prop::collection::vec(settings(), 3),
        share in any::<u8>(),
        arrivals in arrivals(),
    ) {
        let mut world = World::new(Caps::default());
        for (id, settings) in (1..).zip(&of) {
            world.destination(id, settings.clone(), Behaviour::Flaky(share));
        }
        let mut lists = vec![Vec::new(); 3];
        for (after, id, count, is_replay, job) in arrivals {
            world.run(after * MS);
            // FIFO says nothing about the order of buckets, replays and jobs among each other.
            let is_fifo = of[id as usize - 1].order == Order::Fifo;
            for n in 0..count {
                let kind = match is_replay && !is_fifo {
                    true => QueueKind::Replay,
                    false => QueueKind::Normal,
                };
                let reason = match job {
                    Some(after) if !is_fifo => {
                        WaitReason::NotBefore(world.wall().after(Duration::from_secs(after)))
                    }
                    Some(_) | None => WaitReason::Turn,
                };
                let buckets = if is_fifo { 1 } else { 2 };
                let key = world.delivery(id, BucketId(10 * id + n % buckets), kind, reason);
                let row = world.truth[&(DestinationId(id), key)];
                lists[id as usize - 1].push((world.at, row));
            }
        }
        let until = world.at + 400 * SECOND;
        world.run(400 * SECOND);
        for (id, (settings, list)) in (1..).zip(of.into_iter().zip(lists)) {
            let mine = world.starts.iter().filter(|start| start.destination == DestinationId(id));
            let mine: Vec<Start> = mine.map(|s| (s.at, s.key, s.number)).collect();
            let reference = Reference::new(settings, share, list).run(until);
            let differs = mine.iter().zip(&reference).position(|(a, b)| a != b);
            let at = differs.unwrap_or(mine.len().min(reference.len()));
            prop_assert_eq!(mine.get(at), reference.get(at), "start {} of {}", at, id);
        }
    }
}
