//! The states of endpoints, stored and shown in the order in which the engine found them.

use std::collections::BTreeMap;
use std::sync::Arc;

use whrelay_core::delivery::DestinationId;
use whrelay_core::destination::{Destination, EndpointState};
use whrelay_core::time::Timestamp;
use whrelay_store::{StoreError, persist};

use super::deliveries::Tools;
use crate::destination::Settings;
use crate::notice::Notice;

/// The state of an endpoint, and when it was last seen to return.
type Seen = (EndpointState, Option<Timestamp>);

#[derive(Default)]
struct Endpoint {
    /// The newest state, where it is not being written.
    next: Option<Seen>,
    is_writing: bool,
    is_offline: bool,
}

/// What is stored of each endpoint, and what is to be.
#[derive(Default)]
pub(super) struct Endpoints(BTreeMap<DestinationId, Endpoint>);

impl Endpoints {
    /// A destination is new to this process.
    pub(super) fn begin(&mut self, settings: &Settings) {
        let is_offline = settings.endpoint == EndpointState::Offline;
        let endpoint = Endpoint {
            is_offline,
            ..Endpoint::default()
        };
        self.0.insert(settings.id, endpoint);
    }

    /// A destination has another URL, with which its row was stored.
    pub(super) async fn replaced(&mut self, tools: &Tools, settings: &Settings) {
        let endpoint = self.0.entry(settings.id).or_default();
        endpoint.next = None;
        if std::mem::take(&mut endpoint.is_offline) {
            show(tools, settings, false).await;
        }
    }

    /// The engine has found another state.
    pub(super) fn set(&mut self, id: DestinationId, seen: Seen) {
        self.0.entry(id).or_default().next = Some(seen);
    }

    /// A write has ended.
    pub(super) fn stored(&mut self, id: DestinationId) {
        self.0.entry(id).or_default().is_writing = false;
    }

    /// The write of a state that is to be stored, unless one is under way.
    pub(super) fn next(
        &mut self,
        tools: &Arc<Tools>,
        settings: Arc<Settings>,
    ) -> Option<impl Future<Output = Result<(), StoreError>> + Send + 'static> {
        let endpoint = self.0.entry(settings.id).or_default();
        if endpoint.is_writing {
            return None;
        }
        let (state, back_since) = endpoint.next.take()?;
        endpoint.is_writing = true;
        let is_offline = state == EndpointState::Offline;
        let was_offline = std::mem::replace(&mut endpoint.is_offline, is_offline);
        let tools = Arc::clone(tools);
        Some(async move {
            store(&tools, &settings, (state, back_since)).await?;
            if is_offline || was_offline {
                show(&tools, &settings, is_offline).await;
            }
            Ok(())
        })
    }
}

/// Stores a state with the destination, unless it has another URL by now.
async fn store(tools: &Tools, settings: &Settings, seen: Seen) -> Result<(), StoreError> {
    let (state, back_since) = seen;
    let now = tools.clock.now();
    let change = || {
        let target = settings.client.target().clone();
        tools
            .store
            .catalog
            .change_destination(settings.id, move |stored: &mut Destination| {
                if stored.target != target {
                    return;
                }
                stored.endpoint = state;
                stored.back_since = stored.back_since.max(back_since);
                stored.offline_since = match state {
                    EndpointState::Offline => stored.offline_since.or(Some(now)),
                    EndpointState::Online | EndpointState::Failing => None,
                };
            })
    };
    match persist(change).await {
        // The row is damaged: there is nothing to store it with.
        Ok(_) | Err(StoreError::Damaged(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn show(tools: &Tools, settings: &Settings, is_offline: bool) {
    let counts = tools
        .store
        .view
        .counts(settings.id)
        .await
        .unwrap_or_default();
    let queued = counts.queued + counts.stalled;
    (tools.notify)(settings, Notice::Endpoint { is_offline, queued });
}
