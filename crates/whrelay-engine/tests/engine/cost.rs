//! What destinations cost that have nothing to do.

use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{DeliveryKey, DestinationId};
use whrelay_core::order::Order;
use whrelay_core::queue::{QueueKind, WaitReason};
use whrelay_engine::{Caps, Engine, Settings};

use crate::endpoints::Behaviour;
use crate::world::{MS, SECOND, World, settings};

/// Reads, rows read and actions for a hundred events, among so many idle destinations.
fn cost_of_an_event(destinations: u32, order: Order) -> (usize, usize, usize) {
    let mut world = World::new(Caps::default());
    for id in 1..=destinations {
        let settings = Settings {
            order,
            ..settings()
        };
        world.destination(id, settings, Behaviour::Answers(200, MS));
    }
    world.run(10 * SECOND);
    let before = (world.loads, world.view.rows_read, world.actions);
    for n in 0..100 {
        world.event(1 + n * 7 % destinations.min(1000));
        world.run(100 * MS);
    }
    assert_eq!(world.ended.len(), 100);
    let (loads, rows, actions) = (world.loads, world.view.rows_read, world.actions);
    (
        loads - before.0,
        rows - before.1,
        actions - before.2 - world.polls,
    )
}

#[test]
fn an_event_costs_the_same_among_10_and_among_100_000_destinations() {
    let few = cost_of_an_event(10, Order::Arrival);
    assert_eq!((few.0, few.1), (0, 0), "it starts without a read");
    assert_eq!(cost_of_an_event(100_000, Order::Arrival), few);
    let few = cost_of_an_event(10, Order::Fifo);
    assert_eq!((few.0, few.1), (100, 100), "one read of one row");
    assert_eq!(cost_of_an_event(100_000, Order::Fifo), few);
}

#[test]
fn an_idle_destination_is_its_settings_and_nothing_else() {
    let mut world = World::new(Caps::default());
    for id in 1..=1000 {
        world.destination(id, settings(), Behaviour::Answers(200, MS));
        world.event(id);
    }
    world.run(SECOND);
    assert_eq!(world.ended.len(), 1000);
    world.run(SECOND);
    assert_eq!(
        world.engine.live_destinations(),
        0,
        "what is known of them is forgotten"
    );
    let bytes = Engine::BYTES_OF_AN_IDLE_DESTINATION;
    assert!(
        bytes <= 256 && bytes <= size_of::<Settings>() + 32,
        "{bytes} bytes"
    );
}

#[test]
fn a_long_queue_starts_at_once_and_few_of_it_are_loaded() {
    let mut world = World::new(Caps::default());
    let id = 1;
    world.destination(id, settings(), Behaviour::Answers(200, SECOND));
    world.run(MS);
    for _ in 0..5000 {
        world.delivery(id, BucketId(1), QueueKind::Normal, WaitReason::Turn);
    }
    world.run(MS);
    assert_eq!(world.starts.len(), 16);
    assert!(world.engine.loaded_rows() <= 32);
    let loads = world.loads;
    world.run(100 * SECOND);
    let per_load = (world.starts.len() - 16) / (world.loads - loads);
    assert!(per_load >= 14, "a read brings {per_load} deliveries");
}

#[test]
fn loaded_rows_stay_within_their_cap_and_nobody_starves() {
    for order in [Order::Arrival, Order::Fifo] {
        rows_stay_within_their_cap(order);
    }
}

fn rows_stay_within_their_cap(order: Order) {
    let caps = Caps {
        loaded: 100,
        ..Caps::default()
    };
    let mut world = World::new(caps);
    let settings = Settings {
        order,
        ..settings()
    };
    for id in 1..=50 {
        world.destination(id, settings.clone(), Behaviour::Answers(200, 10 * MS));
    }
    world.run(MS);
    for _ in 0..100 {
        for id in 1..=50 {
            world.event(id);
        }
    }
    for _ in 0..2000 {
        world.run(MS);
        assert!(world.engine.loaded_rows() <= 100);
    }
    assert_eq!(world.ended.len(), 5000);
}

#[test]
fn destinations_take_turns_where_slots_are_few() {
    let caps = Caps {
        attempts: 8,
        ..Caps::default()
    };
    let mut world = World::new(caps);
    for id in 1..=20 {
        world.destination(id, settings(), Behaviour::Answers(200, 10 * MS));
    }
    world.run(MS);
    for _ in 0..200 {
        world.event(1);
    }
    world.run(20 * MS);
    for id in 2..=20 {
        world.event(id);
    }
    let began = world.starts.len();
    world.run(SECOND);
    for id in 2..=20 {
        let of = |start: &crate::world::Started| start.destination == DestinationId(id);
        let passed = world.starts[began..].iter().position(of).unwrap();
        assert!(passed <= 4 + 19 * 2, "{id} starts after {passed} others");
    }
    let key = DeliveryKey {
        bucket: BucketId(1),
        seq: Seq(200),
        ordinal: 0,
    };
    assert!(world.ended.contains_key(&(DestinationId(1), key)));
}

#[test]
fn events_behind_a_first_one_that_waits_are_not_read_each_time() {
    let fifo = Settings {
        order: Order::Fifo,
        ..settings()
    };
    let mut world = World::new(Caps::default());
    world.destination(1, fifo, Behaviour::Answers(503, MS));
    world.event(1);
    world.run(600 * SECOND);
    let loads = world.loads;
    for _ in 0..2000 {
        world.event(1);
        world.run(MS);
    }
    assert!(world.loads - loads < 20, "{} reads", world.loads - loads);
    world
        .endpoints
        .insert(DestinationId(1), Behaviour::Answers(200, MS));
    world.run(60 * SECOND);
    assert_eq!(world.ended.len(), 2001);
}
