//! Notices that an endpoint is offline, says when to probe it, and lets work back in slowly. It
//! must not connect, and must not know what waits.

use std::time::{Duration, Instant};

use crate::limits;
use crate::outcome::Outcome;

/// What an endpoint's return or loss looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It stopped taking connections.
    Offline,
    /// It takes connections again.
    Online,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `window` attempts may be in flight: 1, 2, 4 … after a return.
    Online {
        window: usize,
    },
    Offline {
        probe_at: Instant,
        pause: Duration,
    },
    /// It was offline when it was last asked, by a process before this one.
    Doubtful {
        probe_at: Instant,
    },
}

/// How often an endpoint that is offline is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// One on this machine, where a probe costs nothing: as often for ever.
    Loopback,
    /// One elsewhere.
    Remote,
}

impl Probing {
    fn longest(self) -> Duration {
        match self {
            Self::Loopback => limits::PROBE_LOOPBACK,
            Self::Remote => limits::PROBE_REMOTE,
        }
    }
}

/// The breaker of one destination.
#[derive(Clone, Debug)]
pub struct Breaker {
    state: State,
    max_in_flight: usize,
    probing: Probing,
}

impl Breaker {
    /// Begins online, with the whole window.
    pub fn new(max_in_flight: usize, probing: Probing) -> Self {
        Self {
            state: State::Online {
                window: max_in_flight.max(1),
            },
            max_in_flight: max_in_flight.max(1),
            probing,
        }
    }

    /// Begins with a probe, since the endpoint was offline when it was last asked.
    pub fn doubtful(max_in_flight: usize, probing: Probing, now: Instant) -> Self {
        Self {
            state: State::Doubtful { probe_at: now },
            ..Self::new(max_in_flight, probing)
        }
    }

    /// Takes up another number of slots.
    pub fn change(&mut self, max_in_flight: usize) {
        self.max_in_flight = max_in_flight.max(1);
        if let State::Online { window } = &mut self.state {
            // More slots are opened one success after the other, as after a return.
            *window = self.max_in_flight.min(*window);
        }
    }

    /// How many attempts may be in flight now.
    pub fn window(&self) -> usize {
        match self.state {
            State::Online { window } => window,
            State::Offline { .. } | State::Doubtful { .. } => 0,
        }
    }

    /// Whether the endpoint is offline, as far as is known.
    pub fn is_offline(&self) -> bool {
        matches!(self.state, State::Offline { .. } | State::Doubtful { .. })
    }

    /// When to probe the endpoint, if it is offline.
    pub fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Online { .. } => None,
            State::Offline { probe_at, .. } | State::Doubtful { probe_at } => Some(probe_at),
        }
    }

    /// Learns from an attempt.
    pub fn on_outcome(&mut self, outcome: &Outcome, now: Instant) -> Option<Change> {
        match (outcome, self.state) {
            (Outcome::Unreachable, State::Online { .. }) => {
                self.wait(limits::PROBE_FIRST, now);
                Some(Change::Offline)
            }
            (Outcome::Answered { .. }, State::Online { window }) => {
                let window = window.saturating_mul(2).min(self.max_in_flight);
                self.state = State::Online { window };
                None
            }
            (
                Outcome::Broken
                | Outcome::TimedOut
                | Outcome::Unsendable
                | Outcome::Answered { .. }
                | Outcome::Unreachable,
                _,
            ) => None,
        }
    }

    /// Learns from a probe.
    pub fn on_probe(&mut self, accepted: bool, now: Instant) -> Option<Change> {
        match (self.state, accepted) {
            (State::Online { .. }, _) => None,
            (State::Offline { .. } | State::Doubtful { .. }, true) => {
                self.state = State::Online { window: 1 };
                Some(Change::Online)
            }
            (State::Offline { pause, .. }, false) => {
                let pause = pause.saturating_mul(2).min(self.probing.longest());
                self.wait(pause, now);
                None
            }
            (State::Doubtful { .. }, false) => {
                self.wait(limits::PROBE_FIRST, now);
                Some(Change::Offline)
            }
        }
    }

    fn wait(&mut self, pause: Duration, now: Instant) {
        self.state = State::Offline {
            probe_at: now + pause,
            pause,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Outcome = Outcome::Answered {
        status: 200,
        retry_after: None,
    };

    #[test]
    fn one_refusal_closes_it_and_one_accepted_probe_opens_it_slowly() {
        let now = Instant::now();
        let mut breaker = Breaker::new(5, Probing::Loopback);
        assert_eq!(breaker.window(), 5);
        assert_eq!(
            breaker.on_outcome(&Outcome::Unreachable, now),
            Some(Change::Offline)
        );
        assert_eq!(
            breaker.on_outcome(&Outcome::Unreachable, now),
            None,
            "said once"
        );
        assert_eq!(
            (breaker.window(), breaker.probe_at()),
            (0, Some(now + limits::PROBE_FIRST))
        );
        assert_eq!(breaker.on_probe(true, now), Some(Change::Online));
        let mut windows = vec![breaker.window()];
        for _ in 0..4 {
            breaker.on_outcome(&OK, now);
            windows.push(breaker.window());
        }
        assert_eq!(windows, [1, 2, 4, 5, 5]);
    }

    #[test]
    fn one_that_was_offline_is_asked_at_once_and_its_loss_is_told_once() {
        let now = Instant::now();
        let mut breaker = Breaker::doubtful(5, Probing::Loopback, now);
        assert_eq!((breaker.window(), breaker.probe_at()), (0, Some(now)));
        let mut back = breaker.clone();
        assert_eq!(back.on_probe(true, now), Some(Change::Online));
        assert_eq!(back.window(), 1, "it is let in slowly");
        assert_eq!(breaker.on_probe(false, now), Some(Change::Offline));
        assert_eq!(breaker.probe_at(), Some(now + limits::PROBE_FIRST));
        assert_eq!(breaker.on_probe(false, now), None);
    }

    #[test]
    fn probes_come_as_often_however_long_it_was_away() {
        for (probing, longest) in [(Probing::Loopback, 250), (Probing::Remote, 750)] {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(1, probing);
            breaker.on_outcome(&Outcome::Unreachable, now);
            for _ in 0..50 {
                let probe_at = breaker.probe_at().expect("offline");
                let pause = probe_at - now;
                assert!((100..=longest).contains(&pause.as_millis()), "{pause:?}");
                now = probe_at;
                assert_eq!(breaker.on_probe(false, now), None);
            }
        }
    }

    #[test]
    fn an_endpoint_that_answers_badly_is_not_offline() {
        let mut breaker = Breaker::new(3, Probing::Remote);
        for outcome in [Outcome::Broken, Outcome::TimedOut, Outcome::Unsendable] {
            assert_eq!(breaker.on_outcome(&outcome, Instant::now()), None);
        }
        assert!(!breaker.is_offline());
    }
}
