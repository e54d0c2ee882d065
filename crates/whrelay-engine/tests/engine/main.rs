//! Drives the engine against a model of the journal, the view and the endpoints.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test panics where it has to fail"
)]

mod view;
mod world;

mod added;
mod chaos;
mod cost;
mod endpoints;
mod late_reads;
mod planted;
mod reference;
mod retries;
mod rules;
mod same_starts;
mod total;

/// So many cases, unless `PROPTEST_CASES` says otherwise.
fn config(cases: u32) -> proptest::test_runner::Config {
    let default = proptest::test_runner::Config::default();
    proptest::test_runner::Config {
        // The environment may ask for another number than proptest's own.
        cases: if default.cases == 256 {
            cases
        } else {
            default.cases
        },
        failure_persistence: None,
        ..default
    }
}
