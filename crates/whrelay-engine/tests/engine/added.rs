//! Deliveries that are added while the engine runs: they start without a read, and never before one that is older.

use std::time::Duration;

use whrelay_core::outcome::Outcome;
use whrelay_core::queue::{DuePage, Offset, WaitReason};
use whrelay_core::retry::Jitter;
use whrelay_engine::{Action, Caps, Ended, Engine, Input, Now, Settings, Token};

use crate::late_reads::{ID, answer, answer_upto, asked, due, later, now, row};
use crate::world::settings;

/// An engine with one destination, of which nothing is due.
fn begin(settings: Settings, now: Now) -> Engine {
    let mut engine = Engine::new(Caps::default(), now);
    let settings = Some(settings);
    engine.handle(Input::Destination { id: ID, settings }, now);
    let Some(Action::LoadDestinations { token, .. }) = engine.poll_action(now) else {
        panic!("the engine asks for no destinations");
    };
    let input = Input::DueDestinations {
        token,
        page: DuePage::default(),
        applied: Offset::default(),
    };
    engine.handle(input, now);
    engine
}

fn add(engine: &mut Engine, seq: u64, at: u64, now: Now) {
    let input = Input::Added {
        destination: ID,
        delivery: row(seq, WaitReason::Turn, &now),
        at: Offset(at),
    };
    engine.handle(input, now);
}

fn deliver(engine: &mut Engine, token: Token, at: u64, now: Now) {
    let outcome = Outcome::Answered {
        status: 200,
        retry_after: None,
    };
    let input = Input::Finished {
        token,
        ended: Ended::Tried(outcome),
        jitter: Jitter(0),
    };
    engine.handle(input, now);
    let at = Offset(at);
    engine.handle(Input::Applied { upto: at }, now);
    engine.handle(Input::Appended { token, at }, now);
}

#[test]
fn it_starts_without_a_read_and_not_again_when_it_is_heard_of_late() {
    let now = now();
    let mut engine = begin(settings(), now);
    add(&mut engine, 1, 7, now);
    let (load, starts) = asked(&mut engine, now);
    assert_eq!(load, None);
    let [(token, 1)] = starts[..] else {
        panic!("{starts:?} start");
    };
    add(&mut engine, 1, 7, now);
    let (load, starts) = asked(&mut engine, now);
    assert_eq!(starts, [], "it runs");
    answer_upto(&mut engine, &load.expect("a read"), Vec::new(), 7, now);
    deliver(&mut engine, token, 8, now);
    add(&mut engine, 1, 7, now);
    let (load, starts) = asked(&mut engine, now);
    assert_eq!(starts, [], "it has ended");
    answer_upto(&mut engine, &load.expect("a read"), Vec::new(), 8, now);
    add(&mut engine, 2, 9, later(now, Duration::from_millis(1)));
    assert_eq!(asked(&mut engine, now).1.len(), 1);
}

#[test]
fn before_everything_that_is_due_is_known_it_waits_for_a_read() {
    let now = now();
    let mut engine = Engine::new(Caps::default(), now);
    let settings = Some(settings());
    engine.handle(Input::Destination { id: ID, settings }, now);
    add(&mut engine, 5, 7, now);
    let (load, starts) = asked(&mut engine, now);
    assert_eq!(starts, []);
    let rows = [2, 5].map(|seq| row(seq, WaitReason::Turn, &now));
    answer(&mut engine, &load.expect("a read"), rows.to_vec(), now);
    let starts = asked(&mut engine, now).1;
    assert_eq!(
        starts.iter().map(|(_, seq)| *seq).collect::<Vec<_>>(),
        [2, 5]
    );
}

#[test]
fn one_that_was_added_does_not_pass_an_older_one_that_a_page_had_no_room_for() {
    let now = now();
    let settings = Settings {
        max_in_flight: 1,
        ..settings()
    };
    let mut engine = begin(settings, now);
    add(&mut engine, 1, 7, now);
    let token = asked(&mut engine, now).1.first().expect("a start").0;
    add(&mut engine, 9, 8, now);
    // The engine never heard of the older ones.
    due(&mut engine, now);
    let load = asked(&mut engine, now).0.expect("a read");
    let rows = [5, 6, 9].map(|seq| row(seq, WaitReason::Turn, &now));
    answer(&mut engine, &load, rows.to_vec(), now);
    deliver(&mut engine, token, 9, now);
    let (load, starts) = asked(&mut engine, now);
    let [(token, 5)] = starts[..] else {
        panic!("{starts:?} start");
    };
    deliver(&mut engine, token, 10, now);
    assert_eq!(asked(&mut engine, now).1, [], "the oldest is not loaded");
    let rows = [6, 9].map(|seq| row(seq, WaitReason::Turn, &now));
    answer(&mut engine, &load.expect("a read"), rows.to_vec(), now);
    let starts = asked(&mut engine, now).1;
    assert_eq!(starts.first().map(|(_, seq)| *seq), Some(6));
}

/// The view is behind, and its page shows nothing of a delivery that there was no room for.
#[test]
fn one_that_was_added_does_not_pass_an_older_one_that_the_view_does_not_show_yet() {
    let now = now();
    let settings = Settings {
        max_in_flight: 1,
        ..settings()
    };
    let mut engine = begin(settings, now);
    for seq in 1..=3 {
        add(&mut engine, seq, seq, now);
    }
    let (load, starts) = asked(&mut engine, now);
    answer(&mut engine, &load.expect("a read"), Vec::new(), now);
    add(&mut engine, 9, 9, now);
    deliver(&mut engine, starts[0].0, 10, now);
    let (load, starts) = asked(&mut engine, now);
    let [(token, 2)] = starts[..] else {
        panic!("{starts:?} start");
    };
    answer(&mut engine, &load.expect("a read"), Vec::new(), now);
    deliver(&mut engine, token, 11, now);
    assert_eq!(
        asked(&mut engine, now),
        (None, Vec::new()),
        "the third one is older"
    );
    let input = Input::Due {
        destination: ID,
        at: now.moment.now,
    };
    engine.handle(input, now);
    let load = asked(&mut engine, now).0.expect("a read");
    let rows = [3, 9].map(|seq| row(seq, WaitReason::Turn, &now));
    answer_upto(&mut engine, &load, rows.to_vec(), 9, now);
    let starts = asked(&mut engine, now).1;
    assert_eq!(starts.iter().map(|start| start.1).collect::<Vec<_>>(), [3]);
}
