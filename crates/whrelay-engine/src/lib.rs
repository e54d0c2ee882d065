//! The scheduler of all destinations of a node: it decides what starts, when, and what follows.
//!
//! The machine has no async, clock, randomness, environment, files or sockets. The shell passes
//! an [`Input`] to [`Engine::handle`], then does every [`Action`] of [`Engine::poll_action`], and
//! calls again at [`Engine::next_wake`]. The engine must not know how a delivery is made or stored.

#![forbid(unsafe_code)]

mod action;
mod breaker;
mod destination;
mod engine;
mod horizon;
mod in_flight;
mod input;
pub mod limits;
mod loaded;
mod loads;
mod settle;
mod slots;
mod starts;
mod turns;

pub use action::{Action, Append, Load};
pub use engine::Engine;
pub use input::{Ended, Input, Now, ProbeResult, Probing, Settings};
pub use slots::Caps;

/// Names one thing that the engine asked for, so that a late or repeated answer changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);
