//! Ring 1: the pure parts of both ends in a seeded world, over a model of the store or over the real
//! one. `docs/simulation.md` says how a new transition, state or policy joins.

mod agent;
mod audit;
mod campaign;
mod catching_up;
mod forwarder;
mod lane;
mod ledger;
pub(crate) mod model;
mod node;
pub(crate) mod planted;
mod retention;
mod rollback;
mod seen;
mod trouble;
pub(crate) mod vault;
mod world;

pub(crate) use campaign::{Campaign, one, planted};
