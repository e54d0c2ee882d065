//! Waiting for events at a receiver, as every ring with real sockets does.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use whrelay_tests::receiver::Receiver;

/// Waits until all of these events have arrived, and says how long that took.
pub(crate) async fn all_arrive(
    receiver: &Receiver,
    sent: &HashSet<String>,
    within: Duration,
) -> Result<Duration, String> {
    let began = Instant::now();
    loop {
        let missing = missing(receiver, sent);
        if missing.is_empty() {
            return Ok(began.elapsed());
        }
        if began.elapsed() > within {
            return Err(format!(
                "{} of {} did not arrive",
                missing.len(),
                sent.len()
            ));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Those that have not arrived.
pub(crate) fn missing(receiver: &Receiver, sent: &HashSet<String>) -> Vec<String> {
    let arrived: HashSet<_> = receiver.events().into_iter().collect();
    sent.difference(&arrived).cloned().collect()
}
