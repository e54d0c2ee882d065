//! The auditor: it compares the indexes of the store with what they lead to, a page at a time, and has them made whole
//! where damage has taken something.

use std::sync::Arc;

use tokio::time::sleep;
use whrelay_core::limits;
use whrelay_store::{Audit, Audited, StoreError, persist};

use crate::lines::Line;
use crate::runtime::Runtime;

/// Audits the store from the start on, and then from time to time, until the agent stops.
pub(crate) async fn run(runtime: Arc<Runtime>) -> Result<(), StoreError> {
    let stop = runtime.stop().clone();
    let audits = async {
        loop {
            if is_damaged(&runtime).await? {
                mend(&runtime).await?;
            }
            sleep(limits::AUDIT_EVERY).await;
        }
    };
    tokio::select! {
        ended = audits => ended,
        () = stop.cancelled() => Ok(()),
    }
}

/// One pass over the store, so slowly that nobody waits for it.
async fn is_damaged(runtime: &Runtime) -> Result<bool, StoreError> {
    let mut from = Audit::default();
    loop {
        match runtime.store.view.audit(from, limits::AUDIT_ROWS).await {
            Ok(Audited::Whole) => return Ok(false),
            Ok(Audited::Damaged) => return Ok(true),
            Ok(Audited::SoFar(next)) => from = next,
            Err(error) if error.is_retryable() => {}
            Err(error) => return Err(error),
        }
        sleep(limits::AUDIT_PAUSE).await;
    }
}

async fn mend(runtime: &Runtime) -> Result<(), StoreError> {
    match persist(|| runtime.store.view.rebuild()).await? {
        // Rows that led nowhere are removed, which changes nothing for anyone.
        0 => tracing::warn!("an index was damaged, and is whole again"),
        restored => (runtime.tell)(Line::warning(format!(
            "{restored} deliveries had lost their place in a damaged index and are due again"
        ))),
    }
    Ok(())
}
