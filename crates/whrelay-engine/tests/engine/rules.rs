//! Each rule of the scheduler by itself.

use std::time::Duration;

use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::{DeadReason, DestinationId};
use whrelay_core::destination::EndpointState;
use whrelay_core::order::Order;
use whrelay_core::queue::{QueueKind, WaitReason};
use whrelay_core::retry::{RetryPolicy, Schedule, Verdict};
use whrelay_engine::{Caps, Input, Probing, Settings};

use crate::endpoints::Behaviour;
use crate::world::{HOUR, MS, SECOND, World, settings};

fn world(settings: Settings, endpoint: Behaviour) -> World {
    let mut world = World::new(Caps::default());
    world.destination(1, settings, endpoint);
    world.run(MS);
    world
}

#[test]
fn events_are_delivered_in_order_of_arrival() {
    let mut world = world(settings(), Behaviour::Answers(200, 10 * MS));
    for _ in 0..50 {
        world.event(1);
    }
    world.run(SECOND);
    let expected: Vec<_> = (1..=50).map(|seq| (seq, 1)).collect();
    assert_eq!(world.started(1), expected);
    assert_eq!(world.ended.len(), 50);
}

#[test]
fn a_delivery_that_waits_for_its_backoff_holds_up_nobody() {
    let mut world = world(settings(), Behaviour::Answers(503, MS));
    for _ in 0..40 {
        world.event(1);
    }
    world.run(500 * MS);
    assert_eq!(world.started(1).len(), 40);
    world
        .endpoints
        .insert(DestinationId(1), Behaviour::Answers(200, MS));
    world.event(1);
    world.run(100 * MS);
    assert_eq!(world.started(1).last(), Some(&(41, 1)));
}

#[test]
fn first_delivery_starts_within_300_ms_of_a_return_after_an_hour() {
    for closed in [Behaviour::Refuses, Behaviour::Closes] {
        let mut world = world(settings(), closed);
        for _ in 0..5 {
            world.event(1);
        }
        world.run(HOUR);
        let attempts = world.started(1).len();
        assert!(attempts <= 5, "the wait takes no attempts: {attempts}");
        let returned = world.at;
        world
            .endpoints
            .insert(DestinationId(1), Behaviour::Answers(200, MS));
        world.run(SECOND);
        let first = &world.starts[attempts];
        assert!(
            first.at - returned <= 300 * MS,
            "{} us",
            first.at - returned
        );
        assert_eq!(world.ended.len(), 5, "{closed:?}");
    }
}

#[test]
fn a_private_endpoint_that_returns_gets_its_first_delivery_within_a_second() {
    let private = Settings {
        probing: Probing::Private,
        ..settings()
    };
    let mut world = world(private, Behaviour::Refuses);
    world.event(1);
    world.run(HOUR);
    let (returned, attempts) = (world.at, world.starts.len());
    world
        .endpoints
        .insert(DestinationId(1), Behaviour::Answers(200, MS));
    world.run(2 * SECOND);
    assert!(world.starts[attempts].at - returned <= SECOND);
}

#[test]
fn after_a_restart_an_endpoint_that_was_away_is_probed_before_anything_is_tried() {
    let mut world = world(settings(), Behaviour::Refuses);
    for _ in 0..20 {
        world.event(1);
    }
    world.run(HOUR);
    let attempts = world.starts.len();
    world.crash();
    world.run(HOUR);
    assert_eq!(world.starts.len(), attempts);
    world.crash();
    world
        .endpoints
        .insert(DestinationId(1), Behaviour::Answers(200, MS));
    world.run(300 * MS);
    assert_eq!(world.ended.len(), 20, "the return calls all back");
}

#[test]
fn a_success_calls_back_what_failed_before_a_restart() {
    let mut world = world(settings(), Behaviour::Answers(503, MS));
    for _ in 0..5 {
        world.event(1);
    }
    world.run(HOUR);
    world
        .endpoints
        .insert(DestinationId(1), Behaviour::Answers(200, MS));
    world.crash();
    world.run(MS);
    world.event(1);
    world.run(100 * MS);
    assert_eq!(world.ended.len(), 6);
}

#[test]
fn an_exchange_that_is_never_reported_counts_as_timed_out() {
    let mut world = world(settings(), Behaviour::Answers(200, SECOND));
    world.event(1);
    world.run(10 * MS);
    world.chaos.lost = 255;
    world.run(2 * SECOND);
    world.chaos.lost = 0;
    world.run(80 * SECOND);
    assert_eq!((world.starts.len(), world.ended.len()), (1, 0));
    world.run(60 * SECOND);
    assert_eq!((world.starts.len(), world.ended.len()), (2, 1));
}

#[test]
fn a_return_starts_the_oldest_first_and_slowly() {
    let mut world = world(settings(), Behaviour::Refuses);
    for _ in 0..3 {
        world.event(1);
    }
    world.run(SECOND);
    for _ in 0..37 {
        world.event(1);
        world.run(10 * MS);
    }
    let before = world.starts.len();
    world
        .endpoints
        .insert(DestinationId(1), Behaviour::Answers(200, 100 * MS));
    world.run(10 * SECOND);
    let order: Vec<_> = world
        .started(1)
        .iter()
        .skip(before)
        .map(|(seq, _)| *seq)
        .collect();
    assert_eq!(order, (1..=40).collect::<Vec<_>>());
    let at: Vec<_> = world.starts[before..]
        .iter()
        .map(|start| start.at)
        .collect();
    let together = |at: u64| world.starts[before..].iter().filter(|s| s.at == at).count();
    assert_eq!(
        (together(at[0]), together(at[1]), together(at[3])),
        (1, 2, 4)
    );
}

#[test]
fn an_answer_calls_backed_off_deliveries_back_and_not_those_with_a_set_time() {
    let mut world = world(settings(), Behaviour::Answers(503, MS));
    world.event(1);
    let later = world.wall().after(Duration::from_secs(7200));
    let job = world.delivery(
        1,
        BucketId(1),
        QueueKind::Normal,
        WaitReason::NotBefore(later),
    );
    world.run(HOUR);
    let attempts = world.starts.len();
    world
        .endpoints
        .insert(DestinationId(1), Behaviour::Answers(200, MS));
    let event = world.event(1);
    world.run(SECOND);
    let started: Vec<_> = world.starts[attempts..].iter().map(|s| s.key).collect();
    assert_eq!(started.len(), 2, "the new one, then the one called back");
    assert_eq!(started[0], event);
    world.run(HOUR + 1);
    let last = world.starts.last().unwrap();
    assert_eq!(last.key, job);
    assert!(last.at >= 7200 * SECOND);
}

#[test]
fn a_worker_of_three_seconds_gets_no_storm() {
    let endpoint = Behaviour::Single {
        each: 3 * SECOND,
        timeout: 30 * SECOND,
    };
    let mut world = world(settings(), endpoint);
    for _ in 0..14 {
        world.event(1);
    }
    world.run(600 * SECOND);
    assert_eq!(world.ended.len(), 14);
    assert!(world.timed_out <= 4, "{} time-outs", world.timed_out);
    assert!(world.starts.len() <= 18, "{} requests", world.starts.len());
}

#[test]
fn a_worker_with_a_short_timeout_gets_one_request_at_a_time() {
    let endpoint = Behaviour::Single {
        each: 3 * SECOND,
        timeout: 10 * SECOND,
    };
    let mut world = world(settings(), endpoint);
    for _ in 0..14 {
        world.event(1);
    }
    world.run(1200 * SECOND);
    assert_eq!(world.ended.len(), 14);
    assert!(world.starts.len() <= 40, "{} requests", world.starts.len());
}

#[test]
fn a_public_endpoint_is_not_probed_and_gets_one_attempt_at_each_backoff() {
    let public = Settings {
        probing: Probing::Public,
        ..settings()
    };
    let mut world = world(public, Behaviour::Refuses);
    for _ in 0..100 {
        world.event(1);
    }
    world.run(600 * SECOND);
    assert_eq!(world.probes, 0);
    let trials = world.starts.len() - 16;
    assert!(
        (15..=30).contains(&trials),
        "{trials} trials in ten minutes"
    );
    world
        .endpoints
        .insert(DestinationId(1), Behaviour::Answers(200, MS));
    world.run(60 * SECOND);
    assert_eq!(world.ended.len(), 100);
}

#[test]
fn deadlines_pass_while_the_endpoint_is_away_or_the_destination_paused() {
    let policy = RetryPolicy {
        deadline: Duration::from_secs(60),
        ..RetryPolicy::default()
    };
    let short = Settings {
        policy,
        ..settings()
    };
    let mut world = world(short.clone(), Behaviour::Refuses);
    world.destination(2, short, Behaviour::Answers(200, MS));
    world.change(2, |settings| settings.paused = true);
    for _ in 0..100 {
        world.event(1);
        world.event(2);
        world.run(100 * MS);
    }
    world.run(75 * SECOND);
    assert_eq!(world.ended.len(), 200);
    let dead = Verdict::Dead(DeadReason::Deadline);
    assert!(world.ended.values().all(|verdict| *verdict == dead));
    assert!(
        world
            .starts
            .iter()
            .all(|start| start.destination == DestinationId(1))
    );
}

#[test]
fn a_rate_spaces_starts_and_gives_expired_deliveries_up_all_the_same() {
    let policy = RetryPolicy {
        deadline: Duration::from_secs(25),
        ..RetryPolicy::default()
    };
    let slow = Settings {
        policy,
        rate: Some("6/m".parse().unwrap()),
        ..settings()
    };
    let mut world = world(slow, Behaviour::Answers(200, MS));
    for _ in 0..100 {
        world.event(1);
    }
    world.run(60 * SECOND);
    assert_eq!(world.ended.len(), 100);
    let at: Vec<_> = world.starts.iter().map(|start| start.at / SECOND).collect();
    assert_eq!(at, [0, 10, 20]);
}

#[test]
fn fifo_waits_for_its_first_per_bucket_and_replays_pass() {
    let fifo = Settings {
        order: Order::Fifo,
        ..settings()
    };
    let mut world = world(fifo, Behaviour::Answers(503, MS));
    for _ in 0..3 {
        world.event(1);
    }
    let other = world.delivery(1, BucketId(9), QueueKind::Normal, WaitReason::Turn);
    world.run(10 * MS);
    let first: Vec<_> = world
        .starts
        .iter()
        .map(|s| (s.key.bucket.0, s.key.seq.0))
        .collect();
    assert_eq!(first, [(1, 1), (9, 1)], "{other:?} is of another bucket");
    world.delivery(1, BucketId(1), QueueKind::Replay, WaitReason::Turn);
    world.run(260 * MS);
    assert_eq!(
        world.starts.last().unwrap().key.seq.0,
        4,
        "a replay does not wait"
    );
    world
        .endpoints
        .insert(DestinationId(1), Behaviour::Answers(200, MS));
    world.run(60 * SECOND);
    assert_eq!(world.ended.len(), 5);
}

#[test]
fn a_job_does_not_hold_a_fifo_bucket_up_before_its_time() {
    let fifo = Settings {
        order: Order::Fifo,
        ..settings()
    };
    let mut world = world(fifo, Behaviour::Answers(200, MS));
    let later = world.wall().after(Duration::from_secs(3600));
    world.delivery(
        1,
        BucketId(1),
        QueueKind::Normal,
        WaitReason::NotBefore(later),
    );
    for _ in 0..50 {
        world.event(1);
    }
    world.run(SECOND);
    assert_eq!(world.ended.len(), 50);
    world.run(HOUR);
    assert_eq!(world.started(1).last(), Some(&(1, 1)));
}

#[test]
fn nothing_starts_in_a_pause_and_everything_after_it() {
    let mut world = world(settings(), Behaviour::Answers(200, MS));
    world.input(Input::Pause(true));
    world.paused = true;
    for _ in 0..5 {
        world.event(1);
    }
    world.run(HOUR);
    assert!(world.starts.is_empty());
    world.input(Input::Pause(false));
    world.paused = false;
    world.run(MS);
    assert_eq!(world.starts.len(), 5);
    world.change(1, |settings| settings.paused = true);
    world.event(1);
    world.run(HOUR);
    assert_eq!(world.starts.len(), 5);
    world.change(1, |settings| settings.paused = false);
    world.run(MS);
    assert_eq!(world.starts.len(), 6);
}

#[test]
fn a_stop_starts_nothing_and_records_what_is_in_flight() {
    let mut world = world(settings(), Behaviour::Answers(200, SECOND));
    for _ in 0..20 {
        world.event(1);
    }
    world.run(MS);
    world.input(Input::Stop);
    assert!(!world.engine.is_idle());
    world.run(2 * SECOND);
    assert_eq!((world.starts.len(), world.ended.len()), (16, 16));
    assert!(world.engine.is_idle());
}

#[test]
fn a_removed_destination_records_what_is_in_flight_and_starts_nothing() {
    let mut world = world(settings(), Behaviour::Answers(503, SECOND));
    for _ in 0..20 {
        world.event(1);
    }
    world.run(MS);
    let id = DestinationId(1);
    world.input(Input::Destination { id, settings: None });
    world.run(60 * SECOND);
    assert_eq!(world.starts.len(), 16);
    assert_eq!(
        world.truth.values().filter(|row| row.attempts == 1).count(),
        16
    );
    assert_eq!(world.engine.loaded_rows(), 0);
    let settings = Some(settings());
    world.endpoints.insert(id, Behaviour::Answers(200, MS));
    world.input(Input::Destination { id, settings });
    world.run(60 * SECOND);
    assert_eq!(world.ended.len(), 20);
}

#[test]
fn a_job_a_year_ahead_survives_restarts_and_jumps_and_never_starts_early() {
    let mut world = world(settings(), Behaviour::Answers(200, MS));
    let year = Duration::from_secs(365 * 86_400);
    let at = world.wall().after(year);
    world.delivery(1, BucketId(1), QueueKind::Normal, WaitReason::NotBefore(at));
    for _ in 0..10 {
        world.run(100 * SECOND);
        world.crash();
    }
    assert!(world.starts.is_empty());
    // The wall clock is set ahead by two years, and right again within two minutes. A process
    // that goes on trusts it then, so this one starts again; see `TwoClocks`.
    world.jump(2 * 365 * 86_400_000_000);
    world.run(100 * SECOND);
    assert!(world.starts.is_empty(), "the clock may be wrong");
    world.jump(-2 * 365 * 86_400_000_000);
    world.crash();
    world.run(1000 * SECOND);
    assert!(world.starts.is_empty());
    world.jump(365 * 86_400_000_000);
    world.run(119 * SECOND);
    assert!(world.starts.is_empty(), "the clock may be wrong");
    world.event(1);
    world.run(MS);
    assert_eq!(
        world.starts.len(),
        1,
        "new events do not wait for the clock"
    );
    world.run(2 * SECOND);
    assert_eq!(world.starts.len(), 2, "it has been stable for two minutes");
}

#[test]
fn slow_and_dead_destinations_leave_half_of_the_slots() {
    let caps = Caps {
        attempts: 20,
        ..Caps::default()
    };
    let mut world = World::new(caps);
    for id in 1..=50 {
        world.destination(id, settings(), Behaviour::Hangs(30 * SECOND));
    }
    world.destination(99, settings(), Behaviour::Answers(200, 10 * MS));
    for id in 1..=50 {
        for _ in 0..20 {
            world.event(id);
        }
    }
    world.event(99);
    world.run(300 * SECOND);
    for _ in 0..100 {
        let began = world.at;
        world.event(99);
        world.run(200 * MS);
        let start = world
            .starts
            .iter()
            .rev()
            .find(|s| s.destination == DestinationId(99));
        let waited = start.expect("it starts").at.checked_sub(began);
        assert!(waited.is_some_and(|waited| waited <= 20 * MS), "{waited:?}");
    }
}

#[test]
fn a_parked_destination_that_cannot_start_holds_up_no_other() {
    let caps = Caps {
        attempts: 2,
        ..Caps::default()
    };
    let one = Settings {
        max_in_flight: 1,
        ..settings()
    };
    let mut world = World::new(caps);
    for id in 1..=3 {
        world.destination(id, one.clone(), Behaviour::Answers(503, MS));
        world.event(id);
        world.run(20 * SECOND);
    }
    for id in 1..=3 {
        world
            .endpoints
            .insert(DestinationId(id), Behaviour::Hangs(10 * SECOND));
        world.event(id);
        world.run(MS);
    }
    let of = |world: &World, id| {
        world
            .started(id)
            .iter()
            .filter(|(seq, _)| *seq == 2)
            .count()
    };
    assert_eq!((of(&world, 1), of(&world, 2), of(&world, 3)), (1, 0, 0));
    world.change(2, |settings| settings.paused = true);
    world.run(10 * SECOND);
    assert_eq!((of(&world, 2), of(&world, 3)), (0, 1));
}

#[test]
fn a_listed_schedule_ends_with_its_last_pause() {
    let policy = RetryPolicy {
        schedule: Schedule::Listed(vec![Duration::from_secs(1); 3]),
        ..RetryPolicy::default()
    };
    let listed = Settings {
        policy,
        ..settings()
    };
    let mut world = world(listed, Behaviour::Breaks);
    world.event(1);
    world.run(HOUR);
    assert_eq!(world.starts.len(), 4);
    let dead = Verdict::Dead(DeadReason::Attempts);
    assert!(world.ended.values().all(|verdict| *verdict == dead));
}

#[test]
fn a_withdrawn_delivery_does_not_start() {
    let mut world = world(settings(), Behaviour::Answers(503, MS));
    let key = world.event(1);
    world.run(MS * 10);
    world.withdraw(DestinationId(1), key);
    world.run(HOUR);
    assert_eq!((world.starts.len(), world.not_asked), (1, 0));
}

#[test]
fn nothing_that_is_known_of_an_endpoint_counts_for_the_one_that_replaces_it() {
    let mut world = world(settings(), Behaviour::Hangs(10 * SECOND));
    world.event(1);
    world.run(SECOND);
    let attempts = world.starts.len();
    for _ in 0..4 {
        world.event(1);
    }
    world
        .endpoints
        .insert(DestinationId(1), Behaviour::Answers(200, MS));
    world.change(1, |settings| settings.endpoint_id = 1);
    // The attempt that times out at the former endpoint takes no slot of the other one.
    world.run(20 * SECOND);
    let started = &world.starts[attempts..attempts + 4];
    assert!(started.iter().all(|start| start.at == started[0].at));
    assert_eq!(world.ended.len(), 5, "{:?}", world.ended);

    world.endpoints.insert(DestinationId(1), Behaviour::Refuses);
    world.event(1);
    world.run(HOUR);
    let attempts = world.starts.len();
    let moved_at = world.at;
    world
        .endpoints
        .insert(DestinationId(1), Behaviour::Answers(200, MS));
    let now = world.now().moment.now;
    world.change(1, |settings| {
        settings.endpoint_id = 2;
        settings.endpoint = EndpointState::Online;
        settings.back_since = Some(now);
    });
    world.run(10 * MS);
    assert!(
        world.starts[attempts].at - moved_at <= MS,
        "no probe comes first"
    );
    assert_eq!(world.ended.len(), 6);
}
