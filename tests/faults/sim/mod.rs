//! Ring 1: the pure parts of both ends in a seeded world, over a model of the store or over the real
//! one. `docs/simulation.md` says how a new transition, state or policy joins.

mod agent;
mod campaign;
mod forwarder;
mod lane;
mod ledger;
mod model;
mod node;
mod planted;
mod seen;
mod trouble;
mod vault;
mod world;

pub(crate) use campaign::{one, planted, run};
