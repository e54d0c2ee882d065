//! What attempts and probes show of one endpoint: whether it is away, and how many attempts it
//! may get. It must not know which deliveries wait.

use std::time::{Duration, Instant};

use whrelay_core::destination::EndpointState;
use whrelay_core::outcome::{Class, Outcome};
use whrelay_core::retry::exponential;

use crate::input::{ProbeResult, Probing};
use crate::limits;

/// What an observation says about deliveries that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// The endpoint went away.
    Away,
    /// Attempts have failed for a while.
    Failing,
    /// The endpoint works again: backed-off deliveries are called back.
    Back,
}

/// When attempts may start, as far as the endpoint is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opens {
    /// So many may be in flight.
    Now(usize),
    /// One may be in flight from then on.
    At(Instant),
    /// A probe or a running attempt has to end first.
    Later,
}

/// What is known of an endpoint without asking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) max_in_flight: usize,
    pub(crate) probing: Probing,
    /// Whether an attempt may be spent before a backoff ends: attempts are unlimited.
    pub(crate) spends_attempts: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// `window` attempts may be in flight: 1, 2, 4 … after a return.
    Online {
        window: usize,
    },
    Away(Away),
}

#[derive(Clone, Copy, Debug)]
struct Away {
    /// It took no connection, rather than closing them.
    is_unreachable: bool,
    /// A process before this one saw it away.
    is_doubtful: bool,
    probe: Option<Probe>,
    trial: Option<Trial>,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    at: Instant,
    pause: Duration,
    /// Whether the newest connection stayed open.
    is_open: bool,
}

/// A real attempt, where probes show nothing.
#[derive(Clone, Copy, Debug)]
struct Trial {
    at: Instant,
    pause: Duration,
}

/// The breaker of one destination.
#[derive(Clone, Debug)]
pub(crate) struct Breaker {
    rules: Rules,
    state: State,
    /// The newest attempt got a final answer, or there was none yet.
    is_healthy: bool,
    /// There was an attempt.
    is_tried: bool,
    /// An attempt timed out, and none has succeeded since: one slot.
    is_cautious: bool,
    /// An attempt timed out, and the window has not been full since.
    may_hang: bool,
    /// A probe brought it back, and no attempt was answered since.
    is_unproven: bool,
    /// Attempts in a row that had a connection and no answer.
    broken: u32,
    /// Attempts in a row without an answer.
    unanswered: u32,
    /// Attempts in a row without a final answer, and when the first of them ended.
    failed: u32,
    failing_since: Option<Instant>,
    /// That they fail for a while was reported.
    is_reported: bool,
    /// How often in a row a probe was accepted and the attempt after it had no answer.
    false_returns: u32,
}

impl Breaker {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            state: State::Online {
                window: rules.max_in_flight.max(1),
            },
            is_healthy: true,
            is_tried: false,
            is_cautious: false,
            may_hang: false,
            is_unproven: false,
            broken: 0,
            unanswered: 0,
            failed: 0,
            failing_since: None,
            is_reported: false,
            false_returns: 0,
        }
    }

    /// Begins where attempts failed for a while when a process before this one made them.
    pub(crate) fn failing(rules: Rules, now: Instant) -> Self {
        Self {
            is_healthy: false,
            is_tried: true,
            failed: limits::FAILED_RUN,
            failing_since: Some(now.checked_sub(limits::RECALL_AFTER).unwrap_or(now)),
            is_reported: true,
            ..Self::new(rules)
        }
    }

    /// Begins away: a process before this one saw it so.
    pub(crate) fn doubtful(rules: Rules, now: Instant) -> Self {
        let mut breaker = Self::new(rules);
        breaker.is_healthy = false;
        breaker.leave(true, now);
        if let State::Away(away) = &mut breaker.state {
            away.is_doubtful = true;
            if let Some(probe) = &mut away.probe {
                probe.at = now;
            }
            if let Some(trial) = &mut away.trial {
                trial.at = now;
            }
        }
        breaker
    }

    /// Follows a change of configuration.
    pub(crate) fn configure(&mut self, rules: Rules, now: Instant) {
        let before = std::mem::replace(&mut self.rules, rules);
        let (old, max) = (before.max_in_flight.max(1), rules.max_in_flight.max(1));
        match &mut self.state {
            State::Online { window } if *window >= old => *window = max,
            State::Online { window } => *window = (*window).min(max),
            State::Away(away) if before.probing != rules.probing => {
                let is_unreachable = away.is_unreachable;
                self.leave(is_unreachable, now);
            }
            State::Away(_) => {}
        }
    }

    /// Whether nothing is known of it that a new one would not know.
    pub(crate) fn is_new(&self) -> bool {
        let is_open = match self.state {
            State::Online { window } => window >= self.rules.max_in_flight,
            State::Away(_) => false,
        };
        is_open && self.is_healthy && self.failed == 0 && !self.is_cautious && !self.is_unproven
    }

    /// Whether the newest attempt got a final answer. A new endpoint counts as healthy for one
    /// attempt, so that many dead ones that are new do not take all slots.
    pub(crate) fn is_healthy(&self, in_flight: usize) -> bool {
        self.is_healthy && (self.is_tried || in_flight == 0)
    }

    /// Whether an attempt may take all of its time: retries must not hold up what is new.
    pub(crate) fn may_hang(&self) -> bool {
        self.may_hang
    }

    pub(crate) fn is_away(&self) -> bool {
        match self.state {
            State::Online { .. } => false,
            State::Away(_) => true,
        }
    }

    /// The state to be stored.
    pub(crate) fn endpoint(&self) -> EndpointState {
        match self.state {
            State::Away(_) => EndpointState::Offline,
            State::Online { .. } if self.is_reported => EndpointState::Failing,
            State::Online { .. } => EndpointState::Online,
        }
    }

    /// When attempts may start, with so many in flight.
    pub(crate) fn opens(&self, in_flight: usize, now: Instant) -> Opens {
        match self.state {
            State::Online { .. } if self.is_cautious => Opens::Now(1),
            State::Online { window } => Opens::Now(window),
            State::Away(away) => match away.trial {
                Some(_) if in_flight > 0 => Opens::Later,
                Some(_) if away.probe.is_some_and(|probe| !probe.is_open) => Opens::Later,
                Some(trial) if trial.at <= now => Opens::Now(1),
                Some(trial) => Opens::At(trial.at),
                None => Opens::Later,
            },
        }
    }

    /// When to probe it next.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Online { .. } => None,
            State::Away(away) => away.probe.map(|probe| probe.at),
        }
    }

    /// A probe was asked for. Without an answer it is repeated.
    pub(crate) fn on_probing(&mut self, now: Instant) {
        if let State::Away(Away {
            probe: Some(probe), ..
        }) = &mut self.state
        {
            probe.at = now + limits::PROBE_PATIENCE;
        }
    }

    /// Learns from a probe.
    pub(crate) fn on_probe(&mut self, result: ProbeResult, now: Instant) -> Option<Sign> {
        let longest = self.longest_pause();
        let State::Away(away) = &mut self.state else {
            return None;
        };
        let probe = away.probe.as_mut()?;
        probe.pause = probe.pause.saturating_mul(2).min(longest);
        probe.at = now + probe.pause;
        probe.is_open = result == ProbeResult::Open;
        match result {
            ProbeResult::Refused => {
                (away.trial, self.false_returns) = (None, 0);
            }
            ProbeResult::Closed => {}
            ProbeResult::Open => {
                let spends = self.rules.spends_attempts;
                let is_believed = match away.trial {
                    None => true,
                    Some(trial) => spends && trial.at <= now,
                };
                if is_believed {
                    self.state = State::Online { window: 1 };
                    self.is_unproven = true;
                    return Some(Sign::Back);
                }
                return None;
            }
        }
        std::mem::take(&mut away.is_doubtful).then_some(Sign::Away)
    }

    /// Learns from an attempt. `class` says what its outcome means for the delivery.
    pub(crate) fn on_outcome(
        &mut self,
        outcome: &Outcome,
        class: Class,
        now: Instant,
    ) -> Option<Sign> {
        let sign = self.follow(outcome, class, now);
        if sign == Some(Sign::Back) || self.failed == 0 {
            self.is_reported = false;
        }
        sign.or_else(|| self.report(now))
    }

    /// Reports once that attempts have failed for a while.
    fn report(&mut self, now: Instant) -> Option<Sign> {
        let is_long = self.failed >= limits::FAILED_RUN && self.has_lasted(now);
        let is_news = is_long && !self.is_reported && !self.is_away();
        self.is_reported |= is_news;
        is_news.then_some(Sign::Failing)
    }

    /// Whether the first of the failures in a row was long enough ago.
    fn has_lasted(&self, now: Instant) -> bool {
        let since = self.failing_since;
        since.is_some_and(|at| now.saturating_duration_since(at) >= limits::RECALL_AFTER)
    }

    fn follow(&mut self, outcome: &Outcome, class: Class, now: Instant) -> Option<Sign> {
        match outcome {
            Outcome::Unsendable => None,
            Outcome::Answered { .. } => self.on_answer(class, now),
            Outcome::Unreachable => {
                self.on_silence(now);
                self.miss(true, now)
            }
            Outcome::Broken => {
                self.on_silence(now);
                self.broken = self.broken.saturating_add(1);
                if self.is_away() || self.broken >= limits::BROKEN_RUN {
                    return self.miss(false, now);
                }
                None
            }
            Outcome::TimedOut => {
                self.on_silence(now);
                (self.is_cautious, self.may_hang) = (true, true);
                if let State::Online { window } = &mut self.state {
                    *window = 1;
                    return None;
                }
                self.miss(false, now)
            }
        }
    }

    fn on_answer(&mut self, class: Class, now: Instant) -> Option<Sign> {
        let is_final = match class {
            Class::Success | Class::Permanent => true,
            Class::Retryable => false,
        };
        let was_away = match self.state {
            // The answer of a server that has stopped listening since.
            State::Away(away) if away.is_unreachable && away.trial.is_none() => return None,
            State::Away(_) => true,
            State::Online { .. } => false,
        };
        let is_spell = self.has_lasted(now)
            && (self.unanswered >= limits::FAILED_RUN
                || (is_final && self.failed >= limits::FAILED_RUN));
        (self.broken, self.unanswered, self.false_returns) = (0, 0, 0);
        self.is_unproven = false;
        (self.is_healthy, self.is_tried) = (is_final, true);
        if is_final {
            (self.failed, self.failing_since, self.is_cautious) = (0, None, false);
        } else {
            self.fail(now);
        }
        if was_away || is_spell {
            self.state = State::Online { window: 1 };
            return Some(Sign::Back);
        }
        if let State::Online { window } = &mut self.state
            && is_final
        {
            // One more for each answer: 1, 2, 4 … as the answers of each window arrive.
            let most = self.rules.max_in_flight.max(1);
            *window = window.saturating_add(1).min(most);
            self.may_hang &= *window < most;
        }
        None
    }

    fn on_silence(&mut self, now: Instant) {
        self.fail(now);
        (self.is_healthy, self.is_tried) = (false, true);
        self.unanswered = self.unanswered.saturating_add(1);
    }

    fn fail(&mut self, now: Instant) {
        self.failed = self.failed.saturating_add(1);
        self.failing_since.get_or_insert(now);
    }

    /// An attempt at an endpoint that is or goes away.
    fn miss(&mut self, is_unreachable: bool, now: Instant) -> Option<Sign> {
        match &mut self.state {
            State::Online { .. } => {
                if self.is_unproven {
                    self.false_returns = self.false_returns.saturating_add(1);
                }
                self.leave(is_unreachable, now);
                Some(Sign::Away)
            }
            State::Away(away) => {
                if let Some(trial) = away.trial.as_mut().filter(|trial| trial.at <= now) {
                    trial.pause = trial.pause.saturating_mul(2).min(limits::TRIAL_LONGEST);
                    trial.at = now + trial.pause;
                }
                None
            }
        }
    }

    /// Goes away. Trials are for endpoints that may not be probed and those whose probes are wrong.
    fn leave(&mut self, is_unreachable: bool, now: Instant) {
        let probe = match self.rules.probing {
            Probing::Loopback | Probing::Private => Some(Probe {
                at: now + limits::PROBE_FIRST,
                pause: limits::PROBE_FIRST,
                is_open: false,
            }),
            Probing::Public => None,
        };
        let pause = exponential(
            limits::TRIAL_FIRST,
            limits::TRIAL_LONGEST,
            self.false_returns.saturating_sub(1),
        );
        let trial = (probe.is_none() || self.false_returns > 0).then_some(Trial {
            at: now + pause,
            pause,
        });
        (self.is_unproven, self.may_hang) = (false, false);
        self.state = State::Away(Away {
            is_unreachable,
            is_doubtful: false,
            probe,
            trial,
        });
    }

    fn longest_pause(&self) -> Duration {
        match self.rules.probing {
            Probing::Loopback => limits::PROBE_LOOPBACK,
            Probing::Private | Probing::Public => limits::PROBE_REMOTE,
        }
    }
}

#[cfg(test)]
mod tests {
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
    fn an_endpoint_whose_probes_are_wrong_gets_trials_at_growing_pauses() {
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
    fn after_false_returns_it_spends_no_limited_attempts_before_their_backoff_ends() {
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
    fn a_spell_of_failures_is_reported_once_and_survives_a_restart() {
        let unavailable = Outcome::Answered {
            status: 503,
            retry_after: None,
        };
        let now = Instant::now();
        let mut breaker = Breaker::new(rules(Probing::Public));
        for _ in 0..5 {
            assert_eq!(see(&mut breaker, &unavailable, now), None);
        }
        let later = now + limits::RECALL_AFTER;
        assert_eq!(see(&mut breaker, &unavailable, later), Some(Sign::Failing));
        assert_eq!(breaker.endpoint(), EndpointState::Failing);
        assert_eq!(see(&mut breaker, &unavailable, later), None);
        assert_eq!(see(&mut breaker, &OK, later), Some(Sign::Back));
        assert_eq!(breaker.endpoint(), EndpointState::Online);
        let mut restarted = Breaker::failing(rules(Probing::Public), now);
        assert_eq!(see(&mut restarted, &OK, now), Some(Sign::Back));
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
}
