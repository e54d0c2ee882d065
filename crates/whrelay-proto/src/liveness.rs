//! Whether the peer is still there. It must not know what a ping looks like on the wire.

use std::time::Instant;

use whrelay_core::limits;

/// What to do about the peer's silence now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// Nothing before this.
    Wait(Instant),
    /// Ping it.
    Ping,
    /// It is gone.
    Dead,
}

/// When a peer was last heard, and when it was last pinged.
#[derive(Clone, Debug)]
pub struct Liveness {
    heard_at: Instant,
    pinged_at: Instant,
}

impl Liveness {
    /// Begins with a peer just heard.
    pub fn new(now: Instant) -> Self {
        Self {
            heard_at: now,
            pinged_at: now,
        }
    }

    /// Bytes came from the peer.
    pub fn heard(&mut self, now: Instant) {
        self.heard_at = self.heard_at.max(now);
    }

    /// What is due; `Ping` counts as carried out.
    pub fn pulse(&mut self, now: Instant) -> Pulse {
        let dead_at = self.heard_at + limits::SILENCE;
        let ping_at = self.pinged_at + limits::PING_EVERY;
        if now >= dead_at {
            Pulse::Dead
        } else if now >= ping_at {
            self.pinged_at = now;
            Pulse::Ping
        } else {
            Pulse::Wait(dead_at.min(ping_at))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn pings_every_ten_seconds_and_gives_up_after_25_of_silence() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut liveness = Liveness::new(start);
        assert_eq!(liveness.pulse(at(0)), Pulse::Wait(at(10)));
        assert_eq!(liveness.pulse(at(10)), Pulse::Ping);
        assert_eq!(liveness.pulse(at(20)), Pulse::Ping);
        assert_eq!(liveness.pulse(at(24)), Pulse::Wait(at(25)));
        liveness.heard(at(24));
        assert_eq!(liveness.pulse(at(25)), Pulse::Wait(at(30)));
        assert_eq!(liveness.pulse(at(49)), Pulse::Dead);
    }
}
