//! One record's bytes: `version:u8 | checksum:u64 | length of head:u32 | head | body`, little-endian.
//!
//! redb does not verify checksums on ordinary reads, so each record carries its own: XXH3 over
//! everything behind it, seeded with the store's own name, the record's key and its version, so that a
//! record that turns up under another key, or in another store, is damaged too. It must not know what a
//! record means.

use serde::Serialize;
use serde::de::DeserializeOwned;
use twox_hash::XxHash3_64;

use crate::error::StoreError;

const VERSION: u8 = 1;
const CHECKSUM: std::ops::Range<usize> = 1..9;
const HEAD_LEN: std::ops::Range<usize> = 9..13;

/// A record that lacks only the key it will rest under.
pub(crate) struct Unsealed(Vec<u8>);

impl Unsealed {
    /// Encodes a head and its body.
    pub(crate) fn new<T: Serialize>(head: &T, body: &[u8]) -> Result<Self, StoreError> {
        let mut bytes = Vec::with_capacity(HEAD_LEN.end + 256 + body.len());
        bytes.push(VERSION);
        bytes.resize(HEAD_LEN.end, 0);
        let unencodable = |e: postcard::Error| StoreError::Broken(e.to_string().into());
        let mut bytes = postcard::to_extend(head, bytes).map_err(unencodable)?;
        let head_len = u32::try_from(bytes.len() - HEAD_LEN.end).unwrap_or(u32::MAX);
        bytes[HEAD_LEN].copy_from_slice(&head_len.to_le_bytes());
        bytes.extend_from_slice(body);
        Ok(Self(bytes))
    }

    /// The record of an encoded head.
    pub(crate) fn of_head(head: &[u8]) -> Self {
        let mut bytes = vec![0; HEAD_LEN.end];
        bytes[0] = VERSION;
        let head_len = u32::try_from(head.len()).unwrap_or(u32::MAX);
        bytes[HEAD_LEN].copy_from_slice(&head_len.to_le_bytes());
        bytes.extend_from_slice(head);
        Self(bytes)
    }

    /// The same as a record that is sealed, for another seal.
    pub(crate) fn of(record: &[u8]) -> Self {
        Self(record.to_vec())
    }

    /// How many bytes the record has.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The record, for this store and this key only.
    pub(crate) fn seal(mut self, seal: Seal, key: &[u8]) -> Vec<u8> {
        let checksum = seal.checksum(key, &self.0);
        self.0[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        self.0
    }
}

/// What stands as a body behind a head.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    postcard::to_extend(value, Vec::new()).map_err(|e| StoreError::Broken(e.to_string().into()))
}

/// The same, read; nothing where no such thing is there.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    postcard::from_bytes(body).ok()
}

/// What a store's records are sealed with. It is made of the store's own name, which nobody who only
/// sends knows: no body can have the bytes of a record that would pass for one of the store's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal(u64);

impl Seal {
    /// Of the store that has this name.
    pub(crate) fn of(store: &str) -> Self {
        Self(XxHash3_64::oneshot(store.as_bytes()))
    }

    /// Encodes a record without a body.
    pub(crate) fn seal<T: Serialize>(self, key: &[u8], head: &T) -> Result<Vec<u8>, StoreError> {
        Ok(Unsealed::new(head, &[])?.seal(self, key))
    }

    /// Verifies a record and answers its head and body.
    pub(crate) fn open<'a, T: DeserializeOwned>(
        self,
        what: &str,
        key: &[u8],
        record: &'a [u8],
    ) -> Result<(T, &'a [u8]), StoreError> {
        let opened = self.parts(key, record).and_then(|(head, body)| {
            let head = postcard::from_bytes(head).ok()?;
            Some((head, body))
        });
        opened.ok_or_else(|| StoreError::Damaged(format!("{what} {}", hex(key))))
    }

    /// Head and body of a record that is whole, and is this store's under this key.
    pub(crate) fn parts<'a>(self, key: &[u8], record: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let stored = u64::from_le_bytes(record.get(CHECKSUM)?.try_into().ok()?);
        let head_len = u32::from_le_bytes(record.get(HEAD_LEN)?.try_into().ok()?) as usize;
        if record[0] != VERSION || stored != self.checksum(key, record) {
            return None;
        }
        record[HEAD_LEN.end..].split_at_checked(head_len)
    }

    /// What stands beside a number that has no record, so that one that rots is noticed.
    pub(crate) fn check(self, of: u32, number: u64) -> u64 {
        let seed = self.0 ^ u64::from(of);
        XxHash3_64::oneshot_with_seed(seed, &number.to_le_bytes())
    }

    fn checksum(self, key: &[u8], record: &[u8]) -> u64 {
        let seed = XxHash3_64::oneshot_with_seed(self.0 ^ u64::from(record[0]), key);
        XxHash3_64::oneshot_with_seed(seed, &record[CHECKSUM.end..])
    }
}

/// A record, or nothing where it is damaged: that is logged, and the rest flows.
pub(crate) fn undamaged<T>(opened: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match opened {
        Err(StoreError::Damaged(what)) => {
            tracing::error!(%what, "passed over: damaged on disk");
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn hex(key: &[u8]) -> String {
    key.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_single_bit_flip_is_noticed_and_so_is_another_key_or_store() {
        let body = vec![7u8; 40];
        let head = ("head".to_owned(), 5u32);
        let (ours, another) = (Seal::of("ours"), Seal::of("another"));
        let good = Unsealed::new(&head, &body)
            .expect("encodable")
            .seal(ours, b"key");
        let opens = |seal: Seal, key: &[u8], record: &[u8]| {
            let opened = seal.open::<(String, u32)>("record", key, record);
            opened.is_ok_and(|(read, _)| read == head)
        };
        assert!(opens(ours, b"key", &good));
        assert!(!opens(ours, b"kez", &good) && !opens(another, b"key", &good));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!opens(ours, b"key", &bad), "bit {bit}");
        }
        for cut in 0..good.len() {
            assert!(!opens(ours, b"key", &good[..cut]), "cut at {cut}");
        }
    }
}
