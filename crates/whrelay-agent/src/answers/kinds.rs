//! What is told of an event beyond its own row: its kind, which may be in its body, and what its signature has to do
//! with a refusal. It must not be asked for events that are not shown.

use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{DeadReason, current};
use whrelay_core::event::Request;
use whrelay_store::StoreError;

use super::Local;
use crate::control::Filter;
use crate::lines::{EventLine, SignatureLine};

impl Local {
    /// The request at a place. Nothing where it is damaged.
    async fn request_at(&self, seq: Seq) -> Result<Option<Request>, StoreError> {
        match self.store().journal.event_at(self.bucket(), seq).await {
            Ok(event) => Ok(event.map(|event| event.request)),
            Err(StoreError::Damaged(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the event at a place is of the kind that a filter wants.
    pub(super) async fn wants_kind(&self, filter: &Filter, seq: Seq) -> Result<bool, StoreError> {
        let Some(wanted) = &filter.kind else {
            return Ok(true);
        };
        let request = self.request_at(seq).await?;
        let kind = request.as_ref().and_then(whrelay_providers::kind);
        Ok(kind.as_ref() == Some(wanted))
    }

    /// Adds to a line what its event's body and its last attempts say.
    pub(super) async fn describe(&self, line: &mut EventLine, seq: Seq) -> Result<(), StoreError> {
        if let Some(request) = self.request_at(seq).await? {
            line.kind = whrelay_providers::kind(&request);
            line.provider_id = whrelay_providers::delivery_id(&request);
        }
        if line.reason != Some(DeadReason::Rejected) {
            return Ok(());
        }
        let all = self
            .store()
            .view
            .deliveries_of(self.bucket().id, seq)
            .await?;
        for delivery in current(&all).filter(|d| d.reason == Some(DeadReason::Rejected)) {
            let last = self.store().view.attempts_of(delivery.key, 1).await?;
            let attempt = last.first().map(|logged| &logged.attempt);
            let Some((attempt, cause)) = attempt.and_then(|a| Some((a, a.cause()?))) else {
                continue;
            };
            line.cause = Some(cause.as_str().to_owned());
            line.signature = attempt.signature.as_ref().map(SignatureLine::new);
        }
        Ok(())
    }
}
