//! The forwarder's side of a tunnel. It must not read the store: it says what may be read, and
//! what an ack allows the store to forget.

use std::collections::VecDeque;

use whrelay_core::limits;

use crate::error::ProtocolError;
use crate::frame::{Events, Frame, Hello, Welcome, WireEvent};
use crate::{NEWEST_VERSION, OLDEST_VERSION};

/// What the shell has to do after a frame.
#[derive(Clone, Debug, PartialEq)]
pub enum ForwarderAction {
    /// Look up the subscription, take its lease, and [`ForwarderSession::start`] or refuse.
    Subscribe(Box<Hello>),
    /// Record that the agent has everything up to here.
    Acked(u64),
}

/// What may be read from the store and sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Events after this place.
    pub after: u64,
    /// At most this many.
    pub events: usize,
    /// Up to this many bytes; the first event may be larger.
    pub bytes: usize,
}

#[derive(Debug)]
enum State {
    AwaitHello,
    AwaitStart {
        window_events: usize,
        window_bytes: u64,
    },
    Live(Flight),
}

#[derive(Debug)]
struct Flight {
    window_events: usize,
    window_bytes: u64,
    acked: u64,
    sent: u64,
    /// Batches sent and not acknowledged: where each ends, its events and its bytes.
    batches: VecDeque<(u64, usize, u64)>,
    events: usize,
    bytes: u64,
}

/// The state of one agent's session at the forwarder.
#[derive(Debug)]
pub struct ForwarderSession {
    state: State,
}

impl Default for ForwarderSession {
    fn default() -> Self {
        Self {
            state: State::AwaitHello,
        }
    }
}

impl ForwarderSession {
    /// Takes a frame of the agent's.
    pub fn on_frame(&mut self, frame: Frame) -> Result<ForwarderAction, ProtocolError> {
        match (frame, &mut self.state) {
            (Frame::Hello(hello), State::AwaitHello) => {
                if hello.oldest > NEWEST_VERSION || hello.newest < OLDEST_VERSION {
                    let (oldest, newest) = (hello.oldest, hello.newest);
                    return Err(ProtocolError::Version { oldest, newest });
                }
                self.state = State::AwaitStart {
                    window_events: (hello.window_events as usize).max(1),
                    window_bytes: hello.window_bytes,
                };
                Ok(ForwarderAction::Subscribe(Box::new(hello)))
            }
            (Frame::Ack(ack), State::Live(flight)) => {
                flight.ack(ack.upto).map(ForwarderAction::Acked)
            }
            (
                other @ (Frame::Hello(_)
                | Frame::Ack(_)
                | Frame::Welcome(_)
                | Frame::Refused(_)
                | Frame::Events(_)),
                _,
            ) => Err(ProtocolError::Unexpected(other.name())),
        }
    }

    /// The subscription is found: events follow after `welcome.start`.
    pub fn start(&mut self, welcome: Welcome) -> Frame {
        if let State::AwaitStart {
            window_events,
            window_bytes,
        } = self.state
        {
            self.state = State::Live(Flight {
                window_events,
                window_bytes,
                acked: welcome.start,
                sent: welcome.start,
                batches: VecDeque::new(),
                events: 0,
                bytes: 0,
            });
        }
        Frame::Welcome(welcome)
    }

    /// What may be sent now: nothing before the welcome or without credit. The last event that there is
    /// credit for may be larger than what is left of it.
    pub fn room(&self) -> Option<Room> {
        let State::Live(flight) = &self.state else {
            return None;
        };
        let events = flight.window_events.saturating_sub(flight.events);
        let bytes = flight.window_bytes.saturating_sub(flight.bytes);
        if events == 0 || (bytes == 0 && flight.events > 0) {
            return None;
        }
        Some(Room {
            after: flight.sent,
            events: events.min(limits::MAX_FRAME_EVENTS),
            bytes: usize::try_from(bytes)
                .unwrap_or(usize::MAX)
                .min(limits::MAX_FRAME_BYTES),
        })
    }

    /// The frame for what was read: everything from [`Room::after`] to `upto`.
    pub fn send(&mut self, upto: u64, events: Vec<WireEvent>) -> Option<Frame> {
        let State::Live(flight) = &mut self.state else {
            return None;
        };
        let bytes = events.iter().map(WireEvent::size).sum();
        let after = std::mem::replace(&mut flight.sent, upto);
        flight.batches.push_back((upto, events.len(), bytes));
        flight.events += events.len();
        flight.bytes += bytes;
        Some(Frame::Events(Events {
            after,
            upto,
            events,
        }))
    }
}

impl Flight {
    fn ack(&mut self, upto: u64) -> Result<u64, ProtocolError> {
        if upto <= self.acked || upto > self.sent {
            return Err(ProtocolError::Ack {
                got: upto,
                acked: self.acked,
                sent: self.sent,
            });
        }
        self.acked = upto;
        while let Some((end, events, bytes)) = self.batches.front().copied() {
            if end > upto {
                break;
            }
            self.batches.pop_front();
            self.events -= events;
            self.bytes -= bytes;
        }
        Ok(upto)
    }
}
