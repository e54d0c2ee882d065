//! The whole line in one process, on free ports: forwarder, tunnel, agent, receiver.

#![expect(clippy::unwrap_used, reason = "a test panics where it has to fail")]

mod closes;
mod crowd;
mod damage;
mod delivery;
mod destinations;
mod durable;
mod endpoints;
mod groups;
mod harness;
mod http2;
mod input;
mod payloads;
mod peers;
mod routes;
mod signatures;
