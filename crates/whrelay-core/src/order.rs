//! In which order deliveries to one destination are made.

use std::str::FromStr;

/// In which order deliveries are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// They start in order of arrival, and one that is tried again delays no other.
    #[default]
    Arrival,
    /// One after the other: no delivery starts before all older ones of its bucket have ended.
    /// Replays have no position in this order.
    Fifo,
}

impl Order {
    /// The word for it in flags and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Arrival => "arrival",
            Self::Fifo => "fifo",
        }
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "arrival" => Ok(Self::Arrival),
            "fifo" => Ok(Self::Fifo),
            other => Err(format!("unknown order `{other}`: use arrival or fifo")),
        }
    }
}
