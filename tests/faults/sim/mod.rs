//! Ring 1: the pure parts of both ends in a seeded world, over a model of the store or over the real
//! one. `docs/simulation.md` says how a new transition, state or policy joins.

mod agent;
mod attempts;
mod audit;
mod campaign;
mod catching_up;
mod configured;
mod forwarder;
mod hearing;
mod ledger;
pub(crate) mod model;
mod node;
mod order;
pub(crate) mod planted;
mod retention;
mod rollback;
mod seen;
mod shell;
mod trouble;
pub(crate) mod vault;
mod verdicts;
mod world;
mod writing;

pub(crate) use audit::everything;
pub(crate) use campaign::{Campaign, one, planted};
