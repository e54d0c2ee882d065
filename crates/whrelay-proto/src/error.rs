//! What a peer can do wrong. It must not know how the shell reports it.

/// A breach of the protocol: the session ends.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Bytes that are no frame.
    #[error("not a frame: {0}")]
    Malformed(String),
    /// A frame that has no place now.
    #[error("unexpected {0} frame")]
    Unexpected(&'static str),
    /// No protocol version in common.
    #[error("the peer speaks protocol versions {oldest} to {newest}, this side 1")]
    Version {
        /// The peer's oldest.
        oldest: u16,
        /// The peer's newest.
        newest: u16,
    },
    /// Events that do not continue where the last ones ended.
    #[error("a gap: events after {got} came where {expected} was due")]
    Gap {
        /// Where the next batch had to begin.
        expected: u64,
        /// Where it began.
        got: u64,
    },
    /// Events out of order.
    #[error("events out of order at {0}")]
    Order(u64),
    /// More events than the agent gave credit for.
    #[error("more events than the window allows")]
    OverWindow,
    /// An ack for what was never sent, or was acknowledged before.
    #[error("an ack for {got}, where {acked} to {sent} would be possible")]
    Ack {
        /// The place acknowledged.
        got: u64,
        /// The last valid ack.
        acked: u64,
        /// The last place sent.
        sent: u64,
    },
}

impl ProtocolError {
    /// Whether a new session may do better: a gap or a garbled frame can come from a passing
    /// fault, a version cannot.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Version { .. } => false,
            Self::Malformed(_)
            | Self::Unexpected(_)
            | Self::Gap { .. }
            | Self::Order(_)
            | Self::OverWindow
            | Self::Ack { .. } => true,
        }
    }
}
