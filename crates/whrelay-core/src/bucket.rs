//! Names and keys of buckets. It must not know which buckets exist.

use std::fmt;
use std::str::FromStr;

use crate::limits;

/// Why a text cannot name a bucket or a subscription.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` cannot be a name: use 1 to {max} of a-z, 0-9, `-` and `_`, and begin with a letter or digit",
    max = limits::MAX_BUCKET_NAME
)]
pub struct NameError(String);

/// The name of a bucket (or of a subscription to one): safe in paths, URLs and terminals.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketName(String);

impl BucketName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BucketName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let fits = text.len() <= limits::MAX_BUCKET_NAME
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|c| plain(c) || c == b'-' || c == b'_');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The secret part of an input URL: the bucket's name and 130 random bits. Whoever has it can
/// send.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BucketKey(String);

impl BucketKey {
    /// Mints the key of a bucket from random bytes.
    pub fn mint(name: &BucketName, random: [u8; 26]) -> Self {
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let tail: String = random
            .iter()
            .map(|b| char::from(ALPHABET[usize::from(b & 31)]))
            .collect();
        Self(format!("{name}-{tail}"))
    }

    /// A key as it was stored or typed; whether it opens anything is for a look-up to say.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The key as text, for the input URL.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for BucketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BucketKey(…)")
    }
}

/// The number a store gives a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketId(pub u32);

/// A bucket as its store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its number in this store.
    pub id: BucketId,
    /// Its name.
    pub name: BucketName,
    /// The secret part of its input URL.
    pub key: BucketKey,
}

/// The place of an event in its bucket: 1, 2, 3 … in order of arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_paths_and_urls() {
        for good in ["default", "a", "0-x_y", &"a".repeat(64)] {
            assert!(good.parse::<BucketName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "_a",
            "A",
            "a/b",
            "..",
            "a b",
            "é",
            "a\u{1b}",
            &"a".repeat(65),
        ] {
            assert!(bad.parse::<BucketName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_starts_with_its_name_and_is_not_shown_by_debug() {
        let name: BucketName = "shop".parse().expect("a good name");
        let key = BucketKey::mint(&name, [31; 26]);
        assert_eq!(key.expose(), format!("shop-{}", "z".repeat(26)));
        assert!(!format!("{key:?}").contains("zz"));
    }
}
