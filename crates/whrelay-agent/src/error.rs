//! Why an agent cannot run. It must not know exit codes.

use std::error::Error;

use whrelay_core::destination::SetupError;
use whrelay_store::StoreError;

/// Why an agent cannot run, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody answers at the forwarder's address, or not as a forwarder does.
    #[error("cannot reach the forwarder at {forwarder}: {why}")]
    Unreachable {
        /// Its address.
        forwarder: String,
        /// What happened.
        why: String,
    },
    /// The forwarder does not accept the token.
    #[error("the forwarder does not accept the token: {0}")]
    Unauthorised(String),
    /// The forwarder refuses, and asking again will not help.
    #[error("the forwarder refuses: {0}")]
    Refused(String),
    /// Another agent has taken the subscription.
    #[error("{0}")]
    Replaced(String),
    /// Another agent has the subscription.
    #[error("{0}")]
    InUse(String),
    /// The local store failed.
    #[error("the local store failed: {0}")]
    Store(#[from] StoreError),
    /// Destinations cannot be set up as they are given.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// TLS cannot be set up on this machine.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The control endpoint cannot be opened.
    #[error("the control endpoint cannot be opened: {0}")]
    Control(std::io::Error),
}

impl AgentError {
    /// Whether dialling again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Unauthorised(_) => true,
            Self::Store(error) => error.is_retryable(),
            Self::Refused(_)
            | Self::Replaced(_)
            | Self::InUse(_)
            | Self::Setup(_)
            | Self::Tls(_)
            | Self::Control(_) => false,
        }
    }
}

/// An error and its causes, in one line; what is wrong with TLS in words.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    if let Some(explained) = whrelay_delivery::explained(error) {
        return explained;
    }
    let (mut texts, mut cause) = (Vec::new(), Some(error));
    while let Some(this) = cause {
        texts.push(this.to_string());
        cause = this.source();
    }
    let says_more = |(n, text): &(usize, &String)| {
        // hyper-util says first which of its parts failed.
        !text.starts_with("client error (") || *n + 1 == texts.len()
    };
    let texts = texts.iter().enumerate().filter(says_more);
    texts
        .map(|(_, text)| text.as_str())
        .collect::<Vec<_>>()
        .join(": ")
}
