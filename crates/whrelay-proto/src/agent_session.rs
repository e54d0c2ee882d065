//! The agent's side of a tunnel. It must not write the store: it says what to store, and forms an
//! ack only for what it is told is on disk.

use whrelay_core::limits;

use crate::error::ProtocolError;
use crate::frame::{Ack, EventHead, Events, Frame, Hello, Refused, Welcome, WireEvent};
use crate::{NEWEST_VERSION, OLDEST_VERSION};

/// What the shell has to do after a frame.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentAction {
    /// The subscription is live.
    Welcomed(Box<Welcome>),
    /// There will be no session.
    Refused(Refused),
    /// Put these on disk, with the place they reach, then call [`AgentSession::persisted`].
    Store {
        /// The events.
        events: Vec<WireEvent>,
        /// The place they reach.
        upto: u64,
    },
}

#[derive(Debug)]
enum State {
    AwaitWelcome,
    Live {
        received: u64,
        persisted: u64,
        /// Events and bytes received and not yet on disk, by the place each batch reaches.
        pending: Vec<(u64, usize, u64)>,
    },
    Ended,
}

/// The state of the agent's session.
#[derive(Debug)]
pub struct AgentSession {
    state: State,
}

impl AgentSession {
    /// Begins a session; the frame goes out first.
    pub fn begin(hello: Hello) -> (Self, Frame) {
        (
            Self {
                state: State::AwaitWelcome,
            },
            Frame::Hello(hello),
        )
    }

    /// Takes a frame of the forwarder's.
    pub fn on_frame(&mut self, frame: Frame) -> Result<AgentAction, ProtocolError> {
        match (frame, &mut self.state) {
            (Frame::Welcome(welcome), State::AwaitWelcome) => {
                if !(OLDEST_VERSION..=NEWEST_VERSION).contains(&welcome.version) {
                    let (oldest, newest) = (welcome.version, welcome.version);
                    return Err(ProtocolError::Version { oldest, newest });
                }
                let (received, persisted) = (welcome.start, welcome.start);
                self.state = State::Live {
                    received,
                    persisted,
                    pending: Vec::new(),
                };
                Ok(AgentAction::Welcomed(Box::new(welcome)))
            }
            (Frame::Refused(refused), State::AwaitWelcome | State::Live { .. }) => {
                self.state = State::Ended;
                Ok(AgentAction::Refused(refused))
            }
            (
                Frame::Events(batch),
                State::Live {
                    received, pending, ..
                },
            ) => {
                check_order(*received, &batch)?;
                let bytes = batch.events.iter().map(WireEvent::size).sum();
                pending.push((batch.upto, batch.events.len(), bytes));
                check_window(pending)?;
                *received = batch.upto;
                Ok(AgentAction::Store {
                    events: batch.events,
                    upto: batch.upto,
                })
            }
            (
                other @ (Frame::Hello(_)
                | Frame::Welcome(_)
                | Frame::Refused(_)
                | Frame::Events(_)
                | Frame::Ack(_)),
                _,
            ) => Err(ProtocolError::Unexpected(other.name())),
        }
    }

    /// Everything up to `upto` is on disk: the ack for it, if it says anything new.
    pub fn persisted(&mut self, upto: u64) -> Option<Frame> {
        let State::Live {
            received,
            persisted,
            pending,
        } = &mut self.state
        else {
            return None;
        };
        if upto <= *persisted || upto > *received {
            return None;
        }
        *persisted = upto;
        pending.retain(|(end, ..)| *end > upto);
        Some(Frame::Ack(Ack { upto }))
    }
}

fn check_order(received: u64, batch: &Events) -> Result<(), ProtocolError> {
    if batch.after != received {
        return Err(ProtocolError::Gap {
            expected: received,
            got: batch.after,
        });
    }
    let mut last = batch.after;
    for event in &batch.events {
        if event.seq <= last || event.seq > batch.upto {
            return Err(ProtocolError::Order(event.seq));
        }
        check_head(&event.head)?;
        last = event.seq;
    }
    if batch.upto <= batch.after {
        Err(ProtocolError::Order(batch.upto))
    } else {
        Ok(())
    }
}

/// What no forwarder of ours would have let in.
fn check_head(head: &EventHead) -> Result<(), ProtocolError> {
    let rooted = head.tail.is_empty() || head.tail.starts_with('/');
    let large = head.headers.len() > limits::MAX_HEADERS || head.size() > limits::MAX_HEAD;
    if !rooted || large {
        return Err(ProtocolError::Malformed(
            "an event that no input would accept".into(),
        ));
    }
    Ok(())
}

/// What is sent may overshoot the window in bytes by its last event, never in events.
fn check_window(pending: &[(u64, usize, u64)]) -> Result<(), ProtocolError> {
    let events: usize = pending.iter().map(|(_, events, _)| events).sum();
    let bytes: u64 = pending.iter().map(|(.., bytes)| bytes).sum();
    let most = limits::WINDOW_BYTES + (limits::MAX_HEAD + limits::LARGEST_MAX_BODY) as u64;
    if events > limits::WINDOW_EVENTS as usize || bytes > most {
        return Err(ProtocolError::OverWindow);
    }
    Ok(())
}
