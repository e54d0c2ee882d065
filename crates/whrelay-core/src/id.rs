//! Identifiers: a prefix, then 26 characters of Crockford base32 over 48 bits of milliseconds and
//! 80 random bits, so that they sort by time. It must not know where the randomness comes from.

use std::fmt;
use std::str::FromStr;

use ulid::Ulid;

use crate::time::Timestamp;

/// Why a text is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id of the form {prefix}… with 26 characters of Crockford base32")]
pub struct IdError {
    text: String,
    prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Ulid);

        impl $name {
            /// What every text form starts with.
            pub const PREFIX: &'static str = $prefix;

            /// Mints one; of `random` the low 80 bits count.
            pub const fn from_parts(at: Timestamp, random: u128) -> Self {
                Self(Ulid::from_parts(at.as_millis() & ((1 << 48) - 1), random))
            }

            /// When it was minted, to the millisecond.
            pub const fn minted_at(self) -> Timestamp {
                Timestamp::from_micros(self.0.timestamp_ms().cast_signed() * 1000)
            }

            /// From its 16 bytes, big-endian.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Ulid::from_bytes(bytes))
            }

            /// Its 16 bytes, big-endian: they sort as the text does.
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0.to_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                text.strip_prefix($prefix)
                    .and_then(|rest| Ulid::from_string(rest).ok())
                    .map(Self)
                    .ok_or_else(|| IdError { text: text.to_owned(), prefix: $prefix })
            }
        }
    };
}

id!(
    /// Names one received webhook.
    EventId,
    "evt_"
);
id!(
    /// Names one event on its way to one destination.
    DeliveryId,
    "dlv_"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_and_bytes_round_trip(ms in 0i64..(1 << 48), random: u128) {
            let id = EventId::from_parts(Timestamp::from_micros(ms * 1000), random);
            prop_assert_eq!(id.to_string().len(), 30);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(EventId::from_bytes(id.to_bytes()), id);
            prop_assert_eq!(id.minted_at(), Timestamp::from_micros(ms * 1000));
        }

        #[test]
        fn they_sort_by_time(a in 0i64..(1 << 48), b in 0i64..(1 << 48), x: u128, y: u128) {
            prop_assume!(a < b);
            let older = EventId::from_parts(Timestamp::from_micros(a * 1000), x);
            let newer = EventId::from_parts(Timestamp::from_micros(b * 1000), y);
            prop_assert!(older < newer && older.to_string() < newer.to_string());
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<DeliveryId>();
        }
    }

    #[test]
    fn another_prefix_is_refused() {
        let delivery = DeliveryId::from_parts(Timestamp::EPOCH, 7).to_string();
        assert!(delivery.parse::<EventId>().is_err());
    }
}
