//! What a destination tries next, as its queue says.

use whrelay_core::destination::Destination;
use whrelay_core::order::Order;
use whrelay_core::queue::{DueBy, QueueKind, QueueQuery, Waiting, Wanted};
use whrelay_core::time::Timestamp;
use whrelay_store::StoreError;

use crate::runtime::Runtime;

/// The beginning of a queue.
pub(super) struct Next {
    /// The delivery for which later ones wait, where deliveries are made in order.
    pub(super) head: Option<Waiting>,
    /// When its next attempt is due.
    pub(super) head_at: Option<Timestamp>,
    /// When the next attempt of all is due.
    pub(super) at: Option<Timestamp>,
}

/// In which order deliveries start. Only a destination that is delivered to has an order of its own.
pub(super) fn order(runtime: &Runtime, destination: &Destination) -> Order {
    let settings = runtime.settings_of(destination.id);
    settings.map_or(Order::Arrival, |settings| settings.options.order)
}

/// Reads the beginning of a destination's queue.
pub(super) async fn next(runtime: &Runtime, destination: &Destination) -> Result<Next, StoreError> {
    let order = order(runtime, destination);
    let (now, back_since) = (runtime.clock.now(), destination.back_since);
    let query = QueueQuery {
        order,
        due: DueBy {
            now,
            not_before: now,
            back_since,
        },
        expired_by: Timestamp::EPOCH,
        wanted: Wanted::All,
        // Half of the rows are those that start in order.
        max: match order {
            Order::Arrival => 1,
            Order::Fifo => 2,
        },
    };
    let page = runtime.store.view.queue(destination.id, &query).await?;
    let due_at = |waiting: &Waiting| waiting.due_at(back_since, now);
    let is_head = |waiting: &Waiting| match order {
        Order::Arrival => false,
        Order::Fifo => waiting.kind == QueueKind::Normal,
    };
    let head = page
        .waiting
        .iter()
        .copied()
        .find(|waiting| is_head(waiting));
    let due = page.waiting.iter().map(due_at);
    Ok(Next {
        head,
        head_at: head.as_ref().map(due_at),
        at: due.chain(page.next_at).min(),
    })
}
