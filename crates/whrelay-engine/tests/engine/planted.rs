//! Bugs planted between the engine and the world: the checks have to find each of them.

use whrelay_engine::Caps;

use crate::endpoints::Behaviour;
use crate::world::{Bug, Chaos, MS, SECOND, World, settings};

fn run(bug: Option<Bug>) {
    let chaos = Chaos {
        lag: 4,
        ..Chaos::default()
    };
    let mut world = World::with_chaos(Caps::default(), chaos);
    world.planted = bug;
    world.destination(1, settings(), Behaviour::Random(128));
    for _ in 0..30 {
        world.event(1);
        world.run(100 * MS);
    }
    world.run(100 * SECOND);
    world.chaos.lag = 0;
    world.catch_up();
    world.run(1000 * SECOND);
    assert!(world.truth.is_empty(), "something is left");
}

#[test]
fn without_a_bug_nothing_is_found() {
    run(None);
}

#[test]
#[should_panic(expected = "the number of an attempt")]
fn a_view_that_lags_behind_what_it_says_is_found() {
    run(Some(Bug::AppliedEarly));
}

#[test]
#[should_panic(expected = "starts at")]
fn a_clock_that_is_ahead_is_found() {
    run(Some(Bug::ClockAhead));
}

#[test]
#[should_panic(expected = "the number of an attempt")]
fn a_repeated_number_is_found() {
    run(Some(Bug::NumberRepeated));
}

#[test]
#[should_panic(expected = "something is left")]
fn a_record_that_was_not_written_is_found() {
    run(Some(Bug::RecordLost));
}

#[test]
#[should_panic(expected = "runs twice")]
fn an_exchange_that_goes_on_after_its_end_is_found() {
    run(Some(Bug::AnswerInvented));
}
