//! States as the words of the contract, in JSON lines. It must not know who is in them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Whether an agent's tunnel is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It is.
    Connected,
    /// It is being dialled.
    Disconnected,
    /// The agent does not run.
    Stopped,
}

/// Whether a target takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    /// It does, as far as is known.
    Online,
    /// It does not, and is probed.
    Offline,
    /// No agent delivers to it.
    Unknown,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::Stopped => "stopped",
        })
    }
}

impl fmt::Display for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Unknown => "unknown",
        })
    }
}

pub(crate) fn serialize<T: fmt::Display, S: Serializer>(
    word: &T,
    out: S,
) -> Result<S::Ok, S::Error> {
    out.collect_str(word)
}

pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: FromStr,
    T::Err: fmt::Display,
    D: Deserializer<'de>,
{
    let word = String::deserialize(from)?;
    word.parse().map_err(serde::de::Error::custom)
}

/// A word that may be missing.
pub(crate) mod maybe {
    use super::*;

    pub(crate) fn serialize<T: fmt::Display, S: Serializer>(
        word: &Option<T>,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        word.as_ref().map(T::to_string).serialize(out)
    }

    pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr,
        T::Err: fmt::Display,
        D: Deserializer<'de>,
    {
        let word = Option::<String>::deserialize(from)?;
        let word = word.map(|word| word.parse()).transpose();
        word.map_err(serde::de::Error::custom)
    }
}
