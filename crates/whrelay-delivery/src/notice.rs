//! What a person may be shown of deliveries.

use std::sync::Arc;

use whrelay_core::delivery::{Attempt, DeliveryKey};

use crate::destination::Settings;

/// Something that has happened, and is on disk where it has to survive.
#[derive(Clone, Debug)]
pub enum Notice {
    /// An attempt was made and recorded.
    Attempt(Box<Attempt>),
    /// The endpoint takes no connection, or takes them again.
    Endpoint {
        /// Whether it takes none.
        is_offline: bool,
        /// Deliveries that are queued for it.
        queued: u64,
    },
    /// An event is damaged on disk, and nobody else has it.
    Quarantined(DeliveryKey),
    /// An event was damaged on disk, and was fetched once more.
    Fetched(DeliveryKey),
}

/// Called with each notice about a destination; it must not block.
pub type Notify = Arc<dyn Fn(&Settings, Notice) + Send + Sync>;
