//! When a store is swept of what has ended. It must not know how that is removed, nor what it was.

use tokio_util::sync::CancellationToken;
use whrelay_core::limits;
use whrelay_core::retention::Retention;
use whrelay_core::time::Timestamp;
use whrelay_store::{Effort, Store, StoreError};

use crate::Clock;

/// What is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// What ended by then: its time is over.
    Over(Timestamp),
    /// The oldest that has ended: its space is needed.
    Oldest,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Whole events.
    pub events: u64,
    /// Bodies of events that were kept otherwise.
    pub bodies: u64,
}

/// Who removes.
pub trait Sweeper {
    /// Removes a little, so that between two steps others get their turn. Answers what, and whether there may
    /// be more.
    fn step(
        &mut self,
        sweep: Sweep,
    ) -> impl Future<Output = Result<(Removed, bool), StoreError>> + Send;

    /// Tells what all steps of a sweep have removed, if anything.
    fn tell(&self, sweep: Sweep, removed: Removed);
}

/// Sweeps a store until `stop`: every minute what is over, and whenever its bound is near what is oldest.
///
/// # Errors
/// When the store has stopped for good.
pub async fn keep(
    retention: Retention,
    store: &Store,
    clock: &Clock,
    stop: &CancellationToken,
    mut sweeper: impl Sweeper,
) -> Result<(), StoreError> {
    while !stop.is_cancelled() {
        let swept = async {
            if let Some(by) = retention.over(clock.moment().certain) {
                sweep(&mut sweeper, Sweep::Over(by), |_| true).await?;
            }
            let needed = |did| retention.needs_room(store.size(), did);
            sweep(&mut sweeper, Sweep::Oldest, needed).await?;
            store.give_back(Effort::Moment).await
        };
        match swept.await.map(|_| ()) {
            Ok(()) => {}
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "what has ended is removed later");
            }
            Err(error @ StoreError::Damaged(_)) => {
                tracing::error!(%error, "what has ended is not removed");
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(limits::RETENTION_EVERY) => {}
            () = lack_of_room(retention, store) => {}
        }
    }
    Ok(())
}

async fn sweep(
    sweeper: &mut impl Sweeper,
    sweep: Sweep,
    needed: impl Fn(bool) -> bool,
) -> Result<(), StoreError> {
    let (mut all, mut more) = (Removed::default(), true);
    let mut swept = Ok(());
    while more && needed(all != Removed::default()) && swept.is_ok() {
        match sweeper.step(sweep).await {
            Ok((removed, goes_on)) => {
                all.events += removed.events;
                all.bodies += removed.bodies;
                more = goes_on;
            }
            Err(error) => swept = Err(error),
        }
    }
    if all != Removed::default() {
        sweeper.tell(sweep, all);
    }
    swept
}

/// Waits until room is needed. Where it still is, there was nothing that could go, and asking again at once would
/// be in vain.
async fn lack_of_room(retention: Retention, store: &Store) {
    let mut commits = store.commits();
    if retention.needs_room(store.size(), false) {
        tokio::time::sleep(limits::REARM).await;
    }
    while !retention.needs_room(store.size(), false) {
        if commits.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
