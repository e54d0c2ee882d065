//! A bar below the lines while much that waits is delivered at last. It must not know who delivers.

use std::time::Duration;

use indicatif::ProgressBar;
use whrelay_agent::lines::{EndpointState, Line};

use crate::commands::replay::progress;

/// Below so many a bar would be gone before it was seen.
const MANY: u64 = 50;
const TICK: Duration = Duration::from_millis(200);

/// The bar, while there is one.
#[derive(Default)]
pub(super) struct Drain {
    bar: Option<ProgressBar>,
    /// The target it is about; none for all.
    target: Option<String>,
    left: u64,
}

impl Drain {
    /// Follows what happens. Nothing is drawn where stderr is no terminal.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "lines of other kinds say nothing about it"
    )]
    pub(super) fn follow(&mut self, line: &Line) {
        match line {
            Line::Ready(ready) => self.begin(None, ready.queued),
            Line::Endpoint {
                target,
                state: EndpointState::Online,
                waiting,
                ..
            } => self.begin(Some(target.clone()), *waiting),
            Line::Endpoint { .. } => self.end(),
            Line::Attempt(attempt) => {
                let about = self.target.as_ref().is_none_or(|t| *t == attempt.target);
                if about && attempt.state.is_finished() && !attempt.replay {
                    self.one_less();
                }
            }
            _ => {}
        }
    }

    /// Prints something above the bar.
    pub(super) fn above<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn begin(&mut self, target: Option<String>, waiting: u64) {
        self.end();
        if waiting >= MANY {
            let bar = progress(true);
            bar.set_length(waiting);
            bar.enable_steady_tick(TICK);
            (self.bar, self.target, self.left) = (Some(bar), target, waiting);
        }
    }

    fn one_less(&mut self) {
        self.left = self.left.saturating_sub(1);
        match &self.bar {
            Some(_) if self.left == 0 => self.end(),
            Some(bar) => bar.inc(1),
            None => {}
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(state: EndpointState, waiting: u64) -> Line {
        Line::Endpoint {
            destination: "default".into(),
            target: "http://localhost:3000".into(),
            state,
            waiting,
        }
    }

    #[test]
    fn there_is_a_bar_while_much_is_left_and_the_endpoint_stays() {
        let mut drain = Drain::default();
        drain.follow(&endpoint(EndpointState::Online, MANY - 1));
        assert!(drain.bar.is_none(), "little is gone at once");
        drain.follow(&endpoint(EndpointState::Online, MANY));
        for _ in 1..MANY {
            drain.one_less();
        }
        assert!(drain.bar.is_some());
        drain.one_less();
        assert!(drain.bar.is_none(), "all of it is delivered");
        drain.follow(&endpoint(EndpointState::Online, MANY));
        drain.follow(&endpoint(EndpointState::Offline, MANY));
        assert!(drain.bar.is_none(), "it has gone again");
    }
}
