//! Writes that have to be on disk, however long that takes. It must not know what is written.

use whrelay_core::limits;

use crate::error::StoreError;

/// Repeats a write until it is on disk: a full disk delays, and loses nothing.
///
/// # Errors
/// When the store has stopped for good, or what is read for it is damaged.
pub async fn persist<T, F>(mut write: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match write().await {
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "a write is repeated");
                tokio::time::sleep(limits::REOPEN_EVERY).await;
            }
            settled => return settled,
        }
    }
}
