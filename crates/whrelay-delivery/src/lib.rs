//! Deliveries: does what the engine asks, with the store and over HTTP. Beside it what both ends share, the clock and the
//! sweeps of retention.
//!
//! It must not decide what starts or what follows: the engine does. It must not know where events come from, nor who
//! watches: it tells a callback what happened.

mod clock;
mod destination;
mod dial;
mod driver;
mod headers;
mod http;
mod notice;
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
pub use driver::Deliveries;
pub use headers::{Field, FieldError, Fields, HostField, travelling};
pub use http::Client;
pub use notice::{Notice, Notify};
pub use repair::{Fetch, Fetched};
pub use retention::{Removed, Step, Sweep, Sweeper, Why, keep};
pub use signatures::{Resign, Signatures, TRIGGERED, Unverified};
pub use tls::{NoCertificate, Trust, client_config, explained};
