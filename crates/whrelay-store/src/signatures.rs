//! Which event a provider's signature belongs to: the first one that was delivered with it. It must not know how
//! signatures are made.

use redb::ReadableTable;
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::time::Timestamp;

use crate::disk::Store;
use crate::error::StoreError;
use crate::record::{Seal, undamaged};
use crate::rows::SignatureClaimRow;
use crate::tables::SIGNATURES;
use crate::tx::Tx;

impl Store {
    /// Whether a signature, made at that time over what has this digest, is this event's: it is from the first call on.
    /// Signatures older than [`limits::SIGNATURES_KEPT`] are nobody's any more.
    ///
    /// # Errors
    /// When the store cannot be read, or it is unknown whether it is on disk.
    pub async fn claim_signature(
        &self,
        (signed_at, digest): (Timestamp, [u8; 16]),
        event: EventId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        if now.since(signed_at) > limits::SIGNATURES_KEPT {
            return Ok(false);
        }
        let known =
            self.read(|tx| claimed(self.seal, &tx.open_table(SIGNATURES)?, signed_at, &digest))?;
        if let Some(known) = known {
            return Ok(known == event);
        }
        let horizon = now.as_micros().saturating_sub_unsigned(
            u64::try_from(limits::SIGNATURES_KEPT.as_micros()).unwrap_or(u64::MAX),
        );
        self.write(128, move |tx| {
            claim(tx, (signed_at, digest), event, horizon)
        })
        .await
    }
}

fn claim(
    tx: &mut Tx<'_>,
    (signed_at, digest): (Timestamp, [u8; 16]),
    event: EventId,
    horizon: i64,
) -> Result<bool, StoreError> {
    let seal = tx.seal;
    let table = tx.signatures.open()?;
    if let Some(known) = claimed(seal, table, signed_at, &digest)? {
        return Ok(known == event);
    }
    // Each call removes more than it adds, so the table never grows for long beyond what is kept.
    let old = table.range(..(horizon, &[0; 16]))?.take(2);
    let old: Vec<_> = old
        .map(|row| row.map(|(key, _)| (key.value().0, *key.value().1)))
        .collect::<Result<_, _>>()?;
    for (at, digest) in old {
        table.remove((at, &digest))?;
    }
    let row = SignatureClaimRow {
        event: event.to_bytes(),
    };
    let record = seal.seal(&key(signed_at, &digest), &row)?;
    table.insert((signed_at.as_micros(), &digest), record.as_slice())?;
    Ok(true)
}

/// The event that has a signature. A damaged record is nobody's: the signature is not made anew for anyone.
fn claimed(
    seal: Seal,
    table: &impl ReadableTable<(i64, &'static [u8; 16]), &'static [u8]>,
    signed_at: Timestamp,
    digest: &[u8; 16],
) -> Result<Option<EventId>, StoreError> {
    let Some(record) = table.get((signed_at.as_micros(), digest))? else {
        return Ok(None);
    };
    let opened =
        seal.open::<SignatureClaimRow>("signature", &key(signed_at, digest), record.value());
    let nobody = EventId::from_bytes([0; 16]);
    let row = undamaged(opened)?;
    Ok(Some(
        row.map_or(nobody, |(row, _)| EventId::from_bytes(row.event)),
    ))
}

fn key(signed_at: Timestamp, digest: &[u8; 16]) -> [u8; 24] {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&signed_at.as_micros().to_be_bytes());
    key[8..].copy_from_slice(digest);
    key
}
