//! Which event a provider's signature belongs to: the first one that was delivered with it. It must not know how
//! signatures are made.

use redb::ReadableTable;
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::time::Timestamp;

use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::record::{Seal, undamaged};
use crate::rows::SignatureClaimRow;
use crate::tables::SIGNATURES;
use crate::tx::Tx;

/// A claim of an event to a provider's signature: the first event that claims it keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignatureClaim {
    /// When the provider signed.
    pub signed_at: Timestamp,
    /// The digest of what it signed.
    pub digest: [u8; 16],
    /// The event.
    pub event: EventId,
    /// The time of the claim. A signature older than [`limits::SIGNATURES_KEPT`] cannot be claimed.
    pub now: Timestamp,
}

impl SignatureClaim {
    fn is_too_old(&self) -> bool {
        self.now.since(self.signed_at) > limits::SIGNATURES_KEPT
    }

    /// Whether the signature is the event's; `None` if no event has claimed it.
    fn judged(
        &self,
        seal: Seal,
        table: &impl ReadableTable<(i64, &'static [u8; 16]), &'static [u8]>,
    ) -> Result<Option<bool>, StoreError> {
        if self.is_too_old() {
            return Ok(Some(false));
        }
        let known = claimed(seal, table, self.signed_at, &self.digest)?;
        Ok(known.map(|known| known == self.event))
    }
}

impl RedbStore {
    /// Whether the signature is the event's; `None` if no event has claimed it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn has_signature(&self, claim: &SignatureClaim) -> Result<Option<bool>, StoreError> {
        self.read(|tx| claim.judged(self.seal, &tx.open_table(SIGNATURES)?))
    }

    /// Claims a signature for an event. Returns false if another event has it.
    ///
    /// # Errors
    /// When it is unknown whether it is on disk.
    pub async fn claim_signature(&self, claim: SignatureClaim) -> Result<bool, StoreError> {
        match self.has_signature(&claim)? {
            Some(is_own) => Ok(is_own),
            None => self.write(128, move |tx| self::claim(tx, &claim)).await,
        }
    }
}

/// Claims a signature for an event. Returns false if another event has it.
pub(crate) fn claim(tx: &mut Tx<'_>, claim: &SignatureClaim) -> Result<bool, StoreError> {
    let SignatureClaim {
        signed_at,
        digest,
        event,
        now,
    } = claim;
    let seal = tx.seal;
    let table = tx.signatures.open()?;
    if let Some(is_own) = claim.judged(seal, table)? {
        return Ok(is_own);
    }
    // Each call removes more than it adds, so the table never grows for long beyond what is kept.
    let kept = u64::try_from(limits::SIGNATURES_KEPT.as_micros()).unwrap_or(u64::MAX);
    let horizon = now.as_micros().saturating_sub_unsigned(kept);
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
    let record = seal.seal(&key(*signed_at, digest), &row)?;
    table.insert((signed_at.as_micros(), digest), record.as_slice())?;
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
