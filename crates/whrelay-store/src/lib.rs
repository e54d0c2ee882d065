//! Everything of whrelay that survives a crash. `Ok` from a write means: on disk.
//!
//! One thread writes. It takes what waits, applies it in one transaction, commits with an fsync,
//! and only then answers. Nothing outside this crate knows redb, and no type that rests on disk
//! travels or is shown.

mod adapter;
mod attempts;
mod briefs;
mod buckets;
mod catalog;
mod changes;
mod check;
mod deliveries;
mod destinations;
mod disk;
mod error;
mod events;
mod examine;
mod files;
mod guard;
mod incidents;
mod integrity;
mod journal;
mod lock;
mod meta;
mod migrations;
mod pages;
mod persist;
mod private;
mod queue;
mod record;
mod reserve;
mod retention;
mod rows;
mod salvage;
mod sessions;
mod shared;
mod signatures;
mod sizes;
mod sources;
mod states;
mod store;
mod subscriptions;
mod tables;
mod tombstones;
mod tx;
mod view;
mod writer;

pub use attempts::LoggedAttempt;
pub use briefs::{Deliveries, LastAttempt};
pub use catalog::Catalog;
pub use changes::{Added, Changed, Changes, Feed};
pub use check::{Audit, Audited, Census};
pub use deliveries::{Again, NewDelivery, StateCounts};
pub use destinations::{Moved, NewDestination};
pub use disk::{Medium, Options, RedbStore, Role, disk_used};
pub use error::{Fault, OpenError, StoreError};
pub use events::{Batch, NewEvent, Receipt, StoredEvent};
pub use examine::{Examined, examine};
pub use guard::{Panicked, judge};
pub use incidents::Incident;
pub use journal::Journal;
pub use meta::Epoch;
pub use persist::persist;
pub use private::{Draft, create_private_dir, draw_private, write_private};
pub use queue::{QueueRead, QueueRow};
pub use retention::{Removals, Swept};
pub use salvage::{SalvageError, Salvaged, salvage};
pub use sessions::{Ending, Rewound};
pub use signatures::SignatureClaim;
pub use sources::{Source, SourceMark};
pub use states::{Begin, Found, Search};
pub use store::Store;
pub use subscriptions::{NamedSubscription, Numbers, Subscribed};
pub use view::QueueView;
pub use writer::Effort;
