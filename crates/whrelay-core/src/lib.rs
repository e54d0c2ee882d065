//! The words and decisions of whrelay.
//!
//! Nothing here does I/O, reads a clock, draws a random number, or is async: time and chance are
//! arguments, so every rule can be tried over any history in microseconds.

pub mod backlog;
pub mod bucket;
pub mod delivery;
pub mod destination;
pub mod duration;
pub mod event;
pub mod history;
pub mod id;
pub mod limits;
pub mod octets;
pub mod order;
pub mod outcome;
pub mod pace;
pub mod queue;
pub mod retention;
pub mod retry;
pub mod route;
pub mod secret;
pub mod subscription;
pub mod tail;
pub mod target;
pub mod time;
pub mod token;
