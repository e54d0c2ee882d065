//! Tests of the breaker.

use super::*;

const OK: Outcome = Outcome::Answered {
    status: 200,
    retry_after: None,
};

fn rules(probing: Probing) -> Rules {
    Rules {
        max_in_flight: 5,
        probing,
        spends_attempts: true,
    }
}

fn window(breaker: &Breaker, now: Instant) -> usize {
    match breaker.opens(0, now) {
        Opens::Now(window) => window,
        Opens::At(_) | Opens::Later => 0,
    }
}

fn see(breaker: &mut Breaker, outcome: &Outcome, now: Instant) -> Option<Sign> {
    let class = whrelay_core::outcome::classify(outcome, Default::default());
    breaker.on_outcome(outcome, class, now)
}

#[test]
fn one_refusal_closes_it_and_a_return_opens_it_slowly() {
    let now = Instant::now();
    let mut breaker = Breaker::new(rules(Probing::Loopback));
    assert_eq!(window(&breaker, now), 5);
    assert_eq!(
        see(&mut breaker, &Outcome::Unreachable, now),
        Some(Sign::Away)
    );
    assert_eq!(see(&mut breaker, &Outcome::Unreachable, now), None);
    assert_eq!(window(&breaker, now), 0);
    assert_eq!(breaker.on_probe(ProbeResult::Open, now), Some(Sign::Back));
    let mut windows = vec![window(&breaker, now)];
    for _ in 0..4 {
        see(&mut breaker, &OK, now);
        windows.push(window(&breaker, now));
    }
    assert_eq!(windows, [1, 2, 3, 4, 5]);
    assert!(breaker.is_new());
}

#[test]
fn probes_are_as_frequent_after_a_day_as_after_a_second() {
    for (probing, longest) in [(Probing::Loopback, 200), (Probing::Private, 750)] {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(rules(probing));
        see(&mut breaker, &Outcome::Unreachable, now);
        for _ in 0..50 {
            let at = breaker.probe_at().expect("it is away");
            assert!((100..=longest).contains(&(at - now).as_millis()));
            now = at;
            assert_eq!(breaker.on_probe(ProbeResult::Refused, now), None);
        }
    }
}

#[test]
fn a_public_endpoint_is_never_probed_and_gets_one_trial_after_each_pause() {
    let mut now = Instant::now();
    let mut breaker = Breaker::new(rules(Probing::Public));
    see(&mut breaker, &Outcome::Unreachable, now);
    let mut pauses = Vec::new();
    for _ in 0..7 {
        assert_eq!(breaker.probe_at(), None);
        let Opens::At(at) = breaker.opens(0, now) else {
            panic!("a trial is due");
        };
        pauses.push((at - now).as_secs());
        now = at;
        assert_eq!(breaker.opens(0, now), Opens::Now(1));
        assert_eq!(breaker.opens(1, now), Opens::Later, "one at a time");
        assert_eq!(see(&mut breaker, &Outcome::Unreachable, now), None);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    assert_eq!(see(&mut breaker, &OK, now), Some(Sign::Back));
}

#[test]
fn a_port_that_accepts_and_closes_is_away_after_three_attempts() {
    let now = Instant::now();
    let mut breaker = Breaker::new(rules(Probing::Loopback));
    assert_eq!(see(&mut breaker, &Outcome::Broken, now), None);
    assert_eq!(see(&mut breaker, &Outcome::Broken, now), None);
    assert_eq!(see(&mut breaker, &Outcome::Broken, now), Some(Sign::Away));
    assert_eq!(breaker.on_probe(ProbeResult::Closed, now), None);
    assert_eq!(breaker.opens(0, now), Opens::Later, "no attempt is spent");
    assert_eq!(breaker.on_probe(ProbeResult::Open, now), Some(Sign::Back));
}

#[test]
fn an_endpoint_whose_probes_deceive_gets_trials_at_growing_pauses() {
    let mut now = Instant::now();
    let mut breaker = Breaker::new(rules(Probing::Loopback));
    for _ in 0..3 {
        see(&mut breaker, &Outcome::Broken, now);
    }
    let mut pauses = Vec::new();
    assert_eq!(breaker.on_probe(ProbeResult::Open, now), Some(Sign::Back));
    for _ in 0..7 {
        assert_eq!(see(&mut breaker, &Outcome::Broken, now), Some(Sign::Away));
        let began = now;
        while breaker.on_probe(ProbeResult::Open, now).is_none() {
            now = breaker.probe_at().expect("it is away");
        }
        pauses.push((now - began).as_secs());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    see(&mut breaker, &Outcome::Broken, now);
    breaker.on_probe(ProbeResult::Refused, now);
    let sign = breaker.on_probe(ProbeResult::Open, now);
    assert_eq!(
        sign,
        Some(Sign::Back),
        "a refusal shows that it was restarted"
    );
}

#[test]
fn deceived_it_spends_no_limited_attempts_before_their_backoff_ends() {
    let mut now = Instant::now();
    let mut breaker = Breaker::new(Rules {
        spends_attempts: false,
        ..rules(Probing::Loopback)
    });
    for _ in 0..3 {
        see(&mut breaker, &Outcome::Broken, now);
    }
    breaker.on_probe(ProbeResult::Open, now);
    see(&mut breaker, &Outcome::Broken, now);
    for _ in 0..100 {
        now = breaker.probe_at().expect("it is away");
        assert_eq!(breaker.on_probe(ProbeResult::Open, now), None);
    }
    assert_eq!(
        breaker.opens(0, now),
        Opens::Now(1),
        "a due delivery is tried"
    );
}

#[test]
fn after_a_time_out_there_is_one_slot_until_an_attempt_succeeds() {
    let now = Instant::now();
    let mut breaker = Breaker::new(rules(Probing::Public));
    see(&mut breaker, &Outcome::TimedOut, now);
    assert_eq!(window(&breaker, now), 1);
    let unavailable = Outcome::Answered {
        status: 503,
        retry_after: None,
    };
    see(&mut breaker, &unavailable, now);
    assert_eq!(window(&breaker, now), 1);
    see(&mut breaker, &OK, now);
    assert_eq!(window(&breaker, now), 2);
}

#[test]
fn a_success_calls_back_after_a_spell_of_failures_and_not_after_a_short_one() {
    let unavailable = Outcome::Answered {
        status: 503,
        retry_after: None,
    };
    for (millis, sign) in [(1900, None), (2000, Some(Sign::Back))] {
        let now = Instant::now();
        let mut breaker = Breaker::new(rules(Probing::Public));
        for _ in 0..3 {
            assert_eq!(see(&mut breaker, &unavailable, now), None);
        }
        let later = now + Duration::from_millis(millis);
        assert_eq!(see(&mut breaker, &OK, later), sign);
    }
}

#[test]
fn an_endpoint_that_was_away_before_a_restart_is_asked_at_once() {
    let now = Instant::now();
    let mut breaker = Breaker::doubtful(rules(Probing::Private), now);
    assert_eq!(breaker.probe_at(), Some(now));
    let mut back = breaker.clone();
    assert_eq!(back.on_probe(ProbeResult::Open, now), Some(Sign::Back));
    let lost = breaker.on_probe(ProbeResult::Refused, now);
    assert_eq!(lost, Some(Sign::Away), "said once");
    assert_eq!(breaker.on_probe(ProbeResult::Refused, now), None);
    let public = Breaker::doubtful(rules(Probing::Public), now);
    assert_eq!(window(&public, now), 1);
}

#[test]
fn the_answer_of_a_server_that_stopped_listening_does_not_bring_it_back() {
    let now = Instant::now();
    let mut breaker = Breaker::new(rules(Probing::Loopback));
    see(&mut breaker, &Outcome::Unreachable, now);
    assert_eq!(see(&mut breaker, &OK, now), None);
    assert!(breaker.is_away());
}
