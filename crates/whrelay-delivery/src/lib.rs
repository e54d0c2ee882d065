//! The engine: what is due is tried, and the verdict recorded. Beside it what both ends share, the two clocks
//! and the sweeps of retention.
//!
//! It must not know where events come from, nor who watches: it reads the store, speaks HTTP, and
//! tells a callback what happened.

mod clock;
mod destination;
mod dial;
mod engine;
mod headers;
mod http;
mod raw;
mod repair;
mod retention;
mod signatures;
mod strays;
mod tls;
mod wire;

pub use clock::Clock;
pub use destination::Settings;
pub use dial::{DialError, Dialer};
pub use engine::{Engine, Notice, Notify};
pub use headers::{Field, FieldError, Fields, HostField, travelling};
pub use http::Client;
pub use repair::{Fetch, Fetched};
pub use retention::{Removed, Step, Sweep, Sweeper, Why, keep};
pub use signatures::{Resign, Signatures, TRIGGERED, Unverified};
pub use tls::{NoCertificate, Trust, client_config, explained};
