//! Answers to reads that were asked for before something changed which decides what starts first.

use std::time::{Duration, Instant};

use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{DeliveryKey, DestinationId};
use whrelay_core::destination::EndpointState;
use whrelay_core::order::Order;
use whrelay_core::outcome::Outcome;
use whrelay_core::queue::{Offset, QueueKind, QueuePage, WaitReason, Waiting};
use whrelay_core::retry::{Jitter, Phase};
use whrelay_core::time::{Moment, Timestamp};
use whrelay_engine::{Action, Caps, Ended, Engine, Input, Load, Now, Settings, Token};

use crate::world::{BEGAN, settings};

pub(crate) const ID: DestinationId = DestinationId(1);

pub(crate) fn now() -> Now {
    let began = Timestamp::from_micros(BEGAN);
    Now {
        moment: Moment {
            now: began,
            certain: began,
        },
        instant: Instant::now(),
        jumped_at: None,
    }
}

pub(crate) fn row(seq: u64, reason: WaitReason, now: &Now) -> Waiting {
    Waiting {
        key: DeliveryKey {
            bucket: BucketId(1),
            seq: Seq(seq),
            ordinal: 0,
        },
        kind: QueueKind::Normal,
        created_at: now.moment.now.before(Duration::from_secs(100 - seq)),
        deadline_at: Timestamp::LAST,
        reason,
        attempts: 0,
        first_failed_at: None,
        phase: Phase::Fast,
        bytes: 1,
    }
}

/// What the engine asks for now: its last read of the queue, and what it starts.
pub(crate) fn asked(engine: &mut Engine, now: Now) -> (Option<Load>, Vec<(Token, u64)>) {
    let (mut load, mut starts) = (None, Vec::new());
    while let Some(action) = engine.poll_action(now) {
        match action {
            Action::Load(asked) => load = Some(asked),
            Action::Start {
                token, delivery, ..
            } => starts.push((token, delivery.key.seq.0)),
            Action::LoadDestinations { .. }
            | Action::Append(_)
            | Action::Probe { .. }
            | Action::Endpoint { .. } => {}
        }
    }
    (load, starts)
}

pub(crate) fn answer(engine: &mut Engine, load: &Load, waiting: Vec<Waiting>, now: Now) {
    answer_upto(engine, load, waiting, 0, now);
}

/// Answers from a view that has applied the journal up to a position.
pub(crate) fn answer_upto(
    engine: &mut Engine,
    load: &Load,
    waiting: Vec<Waiting>,
    upto: u64,
    now: Now,
) {
    let page = QueuePage {
        waiting,
        ..QueuePage::default()
    };
    let token = load.token;
    let input = Input::Loaded {
        destination: ID,
        token,
        page,
        applied: Offset(upto),
    };
    engine.handle(input, now);
}

pub(crate) fn begin(settings: Settings, now: Now) -> Engine {
    let mut engine = Engine::new(Caps::default(), now);
    let settings = Some(settings);
    engine.handle(Input::Destination { id: ID, settings }, now);
    due(&mut engine, now);
    engine
}

pub(crate) fn due(engine: &mut Engine, now: Now) {
    let at = Timestamp::EPOCH;
    let destination = ID;
    engine.handle(Input::Due { destination, at }, now);
}

fn not_asked(engine: &mut Engine, token: Token, now: Now) {
    let (ended, jitter) = (Ended::NotAsked, Jitter(0));
    let input = Input::Finished {
        token,
        ended,
        jitter,
    };
    engine.handle(input, now);
}

pub(crate) fn later(now: Now, by: Duration) -> Now {
    let moment = Moment {
        now: now.moment.now.after(by),
        certain: now.moment.certain.after(by),
    };
    Now {
        moment,
        instant: now.instant + by,
        ..now
    }
}

/// It could not be read, and is tried a minute later.
fn postponed(seq: u64, now: &Now) -> Waiting {
    let backoff = WaitReason::Backoff {
        since: now.moment.now,
        delay: Duration::from_secs(60),
    };
    row(seq, backoff, now)
}

#[test]
fn in_a_fifo_order_nothing_passes_a_delivery_that_could_not_be_read() {
    let now = now();
    let fifo = Settings {
        order: Order::Fifo,
        ..settings()
    };
    let mut engine = begin(fifo, now);
    let load = asked(&mut engine, now).0.expect("a read");
    let rows = [3, 7].map(|seq| row(seq, WaitReason::Turn, &now));
    answer(&mut engine, &load, rows.to_vec(), now);
    let (_, starts) = asked(&mut engine, now);
    let (token, first) = *starts.first().expect("a start");
    assert_eq!(first, 3);
    not_asked(&mut engine, token, now);
    assert_eq!(asked(&mut engine, now).1, [], "the one behind it waits");
    let now = later(now, Duration::from_secs(1));
    let load = asked(&mut engine, now).0.expect("another read");
    let rows = vec![postponed(3, &now), row(7, WaitReason::Turn, &now)];
    answer(&mut engine, &load, rows, now);
    assert_eq!(asked(&mut engine, now).1, []);
}

#[test]
fn a_page_of_before_a_delivery_was_postponed_does_not_start_it() {
    let now = now();
    let mut engine = begin(settings(), now);
    let load = asked(&mut engine, now).0.expect("a read");
    answer(
        &mut engine,
        &load,
        vec![row(1, WaitReason::Turn, &now)],
        now,
    );
    let token = asked(&mut engine, now).1.first().expect("a start").0;
    due(&mut engine, now);
    let old = asked(&mut engine, now).0.expect("a read");
    not_asked(&mut engine, token, now);
    answer(&mut engine, &old, vec![row(1, WaitReason::Turn, &now)], now);
    assert_eq!(asked(&mut engine, now).1, []);
    let now = later(now, Duration::from_secs(1));
    let new = asked(&mut engine, now).0.expect("another read");
    answer(&mut engine, &new, vec![postponed(1, &now)], now);
    assert_eq!(asked(&mut engine, now).1, []);
}

#[test]
fn a_page_of_the_old_order_starts_nothing_in_a_fifo_order() {
    let now = now();
    let mut engine = begin(settings(), now);
    let old = asked(&mut engine, now).0.expect("a read");
    let fifo = Settings {
        order: Order::Fifo,
        ..settings()
    };
    let settings = Some(fifo);
    engine.handle(Input::Destination { id: ID, settings }, now);
    // The first of the order waits for its backoff, so the old page does not have it.
    answer(&mut engine, &old, vec![row(7, WaitReason::Turn, &now)], now);
    let (new, starts) = asked(&mut engine, now);
    assert_eq!(starts, []);
    let new = new.expect("another read");
    assert_eq!(new.query.order, Order::Fifo);
    let backoff = WaitReason::Backoff {
        since: now.moment.now,
        delay: Duration::from_secs(60),
    };
    let rows = vec![row(3, backoff, &now), row(7, WaitReason::Turn, &now)];
    answer(&mut engine, &new, rows, now);
    assert_eq!(asked(&mut engine, now).1, []);
}

#[test]
fn a_page_of_before_a_return_does_not_start_younger_deliveries_first() {
    let now = now();
    let failing = Settings {
        endpoint: EndpointState::Failing,
        max_in_flight: 1,
        ..settings()
    };
    let mut engine = begin(failing, now);
    let first = asked(&mut engine, now).0.expect("a read");
    answer(
        &mut engine,
        &first,
        vec![row(1, WaitReason::Turn, &now)],
        now,
    );
    let (_, starts) = asked(&mut engine, now);
    let token = starts.first().expect("a start").0;
    due(&mut engine, now);
    let old = asked(&mut engine, now).0.expect("a read");
    let now = later(now, Duration::from_millis(1));
    let status = 200;
    let outcome = Outcome::Answered {
        status,
        retry_after: None,
    };
    let (ended, jitter) = (Ended::Tried(outcome), Jitter(0));
    engine.handle(
        Input::Finished {
            token,
            ended,
            jitter,
        },
        now,
    );
    let at = whrelay_core::queue::Offset(1);
    engine.handle(Input::Appended { token, at }, now);
    answer(&mut engine, &old, vec![row(5, WaitReason::Turn, &now)], now);
    let (new, starts) = asked(&mut engine, now);
    assert_eq!(starts, [], "the page lacks what the return calls back");
    let new = new.expect("another read");
    assert_eq!(new.query.due.back_since, Some(now.moment.now));
    let recalled = WaitReason::Backoff {
        since: Timestamp::from_micros(BEGAN),
        delay: Duration::from_secs(60),
    };
    let rows = vec![row(2, recalled, &now), row(5, WaitReason::Turn, &now)];
    answer(&mut engine, &new, rows, now);
    let (_, starts) = asked(&mut engine, now);
    let first = starts.first().map(|(_, seq)| *seq);
    assert_eq!(first, Some(2), "the oldest starts first");
}
