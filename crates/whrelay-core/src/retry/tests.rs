//! Properties of the retry brain, and whole schedules in milliseconds.

use super::*;
use crate::outcome::RetryAfter;
use proptest::prelude::*;

const FAILED: Outcome = Outcome::Answered {
    status: 500,
    retry_after: None,
};

fn moment(at: Timestamp) -> Moment {
    Moment {
        now: at,
        certain: at,
    }
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let pauses = prop::collection::vec(0u64..100_000, 0..12);
    prop_oneof![
        Just(Schedule::Seconds),
        Just(Schedule::Medium),
        Just(Schedule::Long),
        pauses.prop_map(|p| Schedule::Listed(p.into_iter().map(Duration::from_secs).collect())),
    ]
}

fn policies() -> impl Strategy<Value = RetryPolicy> {
    (
        schedules(),
        0u64..5_000_000,
        0u64..5000,
        0u32..50,
        any::<bool>(),
    )
        .prop_map(
            |(schedule, deadline, handoff, max_attempts, transient)| RetryPolicy {
                schedule,
                deadline: Duration::from_secs(deadline),
                handoff_after: Duration::from_secs(handoff),
                max_attempts,
                retry_on: if transient {
                    RetryOn::Transient
                } else {
                    RetryOn::NonSuccess
                },
            },
        )
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    let asked = prop_oneof![
        Just(None),
        any::<u64>().prop_map(|s| Some(RetryAfter::Delay(Duration::from_secs(s)))),
        any::<i64>().prop_map(|t| Some(RetryAfter::At(Timestamp::from_micros(t)))),
    ];
    prop_oneof![
        (100u16..1000, asked).prop_map(|(status, retry_after)| Outcome::Answered {
            status,
            retry_after
        }),
        Just(Outcome::Unreachable),
        Just(Outcome::Broken),
        Just(Outcome::TimedOut),
        Just(Outcome::Unsendable),
    ]
}

prop_compose! {
    fn histories()(
        attempts in 1u32..,
        first in prop::option::of(any::<i64>()),
        deadline: i64,
        since in prop::option::of(any::<u32>()),
    ) -> DeliveryHistory {
        DeliveryHistory {
            attempts,
            first_failed_at: first.map(Timestamp::from_micros),
            phase: since.map_or(Phase::Fast, |since| Phase::Durable { since }),
            deadline_at: Timestamp::from_micros(deadline),
        }
    }
}

proptest! {
    #[test]
    fn total_and_never_early_nor_late(
        policy in policies(), history in histories(), outcome in outcomes(), now: i64, jitter: u32,
    ) {
        let now = moment(Timestamp::from_micros(now));
        match decide(&policy, history, &outcome, now, Jitter(jitter)) {
            Verdict::Sent => prop_assert_eq!(classify(&outcome, policy.retry_on), Class::Success),
            Verdict::Dead(DeadReason::Rejected) => {
                prop_assert_eq!(classify(&outcome, policy.retry_on), Class::Permanent);
            }
            Verdict::Dead(_) => {
                prop_assert_eq!(classify(&outcome, policy.retry_on), Class::Retryable);
            }
            Verdict::RetryAt { at, .. } => {
                prop_assert!(at >= now.now && at <= history.deadline_at);
                let asked = now.now.after(asked_wait(&outcome, now.now));
                prop_assert!(at >= asked.min(history.deadline_at), "Retry-After undercut");
            }
        }
    }

    #[test]
    fn handoff_is_never_taken_back(
        policy in policies(), history in histories(), now: i64, jitter: u32,
    ) {
        let verdict = decide(&policy, history, &FAILED, moment(Timestamp::from_micros(now)), Jitter(jitter));
        if let (Phase::Durable { .. }, Verdict::RetryAt { phase, .. }) = (history.phase, verdict) {
            prop_assert_eq!(phase, history.phase);
        }
    }

    #[test]
    fn jitter_only_lengthens_and_at_most_by_30_percent(secs in 0u64..10_000_000, bits: u32) {
        let delay = Duration::from_secs(secs);
        let stretched = Jitter(bits).stretch(delay);
        prop_assert!(stretched >= delay && stretched <= delay.mul_f64(1.3) + Duration::from_micros(1));
        prop_assert!(Jitter(bits).part_of(delay) <= delay);
    }

    #[test]
    fn every_schedule_ends_by_itself(policy in policies(), jitter: u32) {
        let pauses = run(&policy, Jitter(jitter));
        prop_assert!(pauses.len() < 200_000);
    }
}

/// The pauses of a delivery that fails at once every time, until it is dead.
fn run(policy: &RetryPolicy, jitter: Jitter) -> Vec<Duration> {
    let created = Timestamp::from_micros(1_000_000);
    let (mut now, mut phase, mut pauses) = (created, Phase::Fast, Vec::new());
    for attempts in 1.. {
        let history = DeliveryHistory {
            attempts,
            first_failed_at: Some(created),
            phase,
            deadline_at: policy.deadline_of(created),
        };
        match decide(policy, history, &FAILED, moment(now), jitter) {
            Verdict::RetryAt {
                at, phase: next, ..
            } => {
                pauses.push(at.since(now));
                (now, phase) = (at, next);
            }
            Verdict::Dead(_) => break,
            Verdict::Sent => unreachable!("500 is no success"),
        }
    }
    pauses
}

#[test]
fn the_default_schedule_to_the_second() {
    let pauses: Vec<u64> = run(&RetryPolicy::default(), Jitter(0))
        .iter()
        .map(Duration::as_secs)
        .collect();
    assert_eq!(
        pauses[..6],
        [1, 2, 4, 8, 16, 30],
        "fast: doubling up to 30 s"
    );
    let handoff = pauses.iter().position(|p| *p == 60).expect("a handoff") - 1;
    assert!(pauses[5..=handoff].iter().all(|p| *p == 30));
    assert_eq!(
        pauses[..handoff].iter().sum::<u64>() / 60,
        15,
        "handed over after 15 min"
    );
    assert_eq!(
        pauses[handoff..handoff + 9],
        [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    );
    assert_eq!(
        pauses.iter().sum::<u64>(),
        16 * 3600,
        "tried until the deadline"
    );
}

#[test]
fn caps_of_the_durable_phase() {
    for (schedule, cap) in [
        (Schedule::Seconds, 60),
        (Schedule::Medium, 3600),
        (Schedule::Long, 6 * 3600),
    ] {
        let policy = RetryPolicy {
            schedule,
            ..RetryPolicy::default()
        };
        assert_eq!(
            run(&policy, Jitter(0)).iter().max().map(Duration::as_secs),
            Some(cap)
        );
    }
}

#[test]
fn a_list_is_followed_to_the_letter_and_then_used_up() {
    let list = [30, 60, 300].map(Duration::from_secs);
    let policy = RetryPolicy {
        schedule: Schedule::Listed(list.to_vec()),
        ..RetryPolicy::default()
    };
    assert_eq!(run(&policy, Jitter(0)), list);
}

#[test]
fn a_clock_that_jumped_expires_nothing() {
    let created = Timestamp::from_micros(0);
    let history = DeliveryHistory {
        attempts: 1,
        first_failed_at: None,
        phase: Phase::Fast,
        deadline_at: created.after(Duration::from_secs(60)),
    };
    let month = Moment {
        now: created.after(Duration::from_secs(30 * 86_400)),
        certain: created,
    };
    let verdict = decide(&RetryPolicy::default(), history, &FAILED, month, Jitter(0));
    let at = month.now.after(Duration::from_secs(1));
    assert_eq!(
        verdict,
        Verdict::RetryAt {
            at,
            phase: Phase::Fast,
            pause: Pause::Backoff
        }
    );
}

#[test]
fn reconnect_grows_from_half_a_second_to_thirty() {
    let ceiling = |failures| reconnect_pause(failures, Jitter(u32::MAX)).as_millis() + 1;
    assert_eq!(
        [0, 1, 2, 5, 6, 60].map(ceiling),
        [500, 1000, 2000, 16_000, 30_000, 30_000]
    );
    assert_eq!(reconnect_pause(9, Jitter(0)), Duration::ZERO);
}

#[test]
fn a_list_of_pauses_has_an_end() {
    let list = |count: usize| vec!["1s"; count].join(",").parse::<Schedule>();
    assert!(list(limits::MAX_PAUSES).is_ok());
    let error = list(limits::MAX_PAUSES + 1).expect_err("too many");
    assert_eq!(error, "a schedule has at most 100 pauses");
}
