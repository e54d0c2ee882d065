//! Drives the engine against a model of the journal, the view and the endpoints.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test panics where it has to fail"
)]

mod view;
mod world;

mod chaos;
mod cost;
mod endpoints;
mod reference;
mod rules;
