//! What the tests stand on: real forwarders, agents, binaries and receivers on free ports. No test
//! sleeps for a condition: it asks until the condition holds, or fails by name.

#![expect(
    clippy::missing_panics_doc,
    reason = "a harness panics where a test has to fail"
)]
#![expect(
    clippy::unwrap_used,
    reason = "a harness panics where a test has to fail"
)]

pub mod agent;
pub mod copies;
pub mod destinations;
pub mod model;
pub mod port;
pub mod process;
pub mod proxy;
pub mod receiver;
pub mod relay;
pub mod sender;
pub mod stores;
pub mod tls;

use std::time::{Duration, Instant};

/// Longest wait for a condition: far beyond what any of them takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until there is an answer.
pub async fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        wait(what, began).await;
    }
}

/// The same of what has to be read.
///
/// # Panics
/// When it takes too long.
pub async fn eventually_read<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        wait(what, began).await;
    }
}

async fn wait(what: &str, began: Instant) {
    assert!(began.elapsed() < PATIENCE, "it did not happen: {what}");
    tokio::time::sleep(Duration::from_millis(5)).await;
}
