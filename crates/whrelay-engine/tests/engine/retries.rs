//! Retries that hang hold nothing new up.

use whrelay_core::delivery::DestinationId;
use whrelay_engine::Caps;

use crate::endpoints::Behaviour;
use crate::world::{SECOND, World, settings};

/// One event that hangs at each retry held up all that came meanwhile.
#[test]
fn an_event_that_hangs_at_each_retry_holds_up_nothing_new() {
    let mut world = World::new(Caps::default());
    let (timeout, id) = (30 * SECOND, 1);
    world.destination(id, settings(), Behaviour::HangsAtFirst(timeout));
    world.event(id);
    world.run(40 * SECOND);
    for _ in 0..200 {
        let key = world.event(id);
        world.run(SECOND);
        assert!(
            world.ended.contains_key(&(DestinationId(id), key)),
            "{key:?} waits"
        );
    }
    assert!(world.timed_out > 3, "it was tried again and again");
}

/// Of many that hang, some are due again at any time: a new one does not wait behind all of them.
#[test]
fn a_new_event_passes_a_queue_of_retries_that_hang() {
    let mut world = World::new(Caps::default());
    let id = 1;
    world.destination(id, settings(), Behaviour::Hangs(30 * SECOND));
    for _ in 0..100 {
        world.event(id);
    }
    world.run(4000 * SECOND);
    let before = world.starts.len();
    let key = world.event(id);
    world.run(2 * SECOND);
    let mut since = world.starts[before..].iter();
    assert!(since.any(|start| start.key == key), "it waits for a retry");
}
