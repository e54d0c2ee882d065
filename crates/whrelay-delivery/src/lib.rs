//! The engine both sides share: what is due is tried, and the verdict recorded.
//!
//! It must not know where events come from, nor who watches: it reads the store, speaks HTTP, and
//! tells a callback what happened.

mod clock;
mod dial;
mod engine;
mod headers;
mod http;
mod retention;
mod strays;
mod tls;
mod wire;

pub use clock::Clock;
pub use dial::{DialError, Dialer};
pub use engine::{Destination, Engine, Notice, Notify};
pub use headers::{Field, FieldError, Fields, HostField};
pub use http::{Client, Reply};
pub use retention::{Removed, Sweep, Sweeper, keep};
pub use tls::{NoCertificate, Trust, client_config};
