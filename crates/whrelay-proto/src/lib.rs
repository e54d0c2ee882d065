//! The tunnel protocol `whrelay.v1`: frames, their bytes, and one state machine for each side.
//!
//! Nothing here touches a socket, a clock or a disk, and no wire type is ever stored: the shells
//! feed frames and instants in, and carry out what comes back. `docs/protocol.md` is the same in
//! prose.

pub mod agent_session;
pub mod codec;
pub mod error;
pub mod forwarder_session;
pub mod frame;
pub mod lease;
pub mod liveness;

pub use agent_session::{AgentAction, AgentSession};
pub use error::ProtocolError;
pub use forwarder_session::{ForwarderAction, ForwarderSession, Room};

/// The websocket subprotocol both sides name.
pub const SUBPROTOCOL: &str = "whrelay.v1";
/// The path of the tunnel endpoint.
pub const TUNNEL_PATH: &str = "/v1/tunnel";
/// Oldest protocol version spoken.
pub const OLDEST_VERSION: u16 = 1;
/// Newest protocol version spoken.
pub const NEWEST_VERSION: u16 = 1;

#[cfg(test)]
mod pair_tests;
