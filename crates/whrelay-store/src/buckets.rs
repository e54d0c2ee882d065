//! Buckets and the tokens that may use them. It must not know who asks.

use redb::ReadableTable;
use whrelay_core::bucket::{Bucket, BucketId, BucketKey, BucketName};
use whrelay_core::token::{Token, TokenDigest};

use crate::disk::RedbStore;
use crate::error::StoreError;
use crate::record::{self, Seal};
use crate::rows::{BucketRow, TokenRow};
use crate::tables::{BUCKETS, TOKENS};
use crate::tx::Tx;

impl RedbStore {
    /// The bucket of that name: as it is, or new with that key. Says whether it is new.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn ensure_bucket(
        &self,
        name: &BucketName,
        key: BucketKey,
    ) -> Result<(Bucket, bool), StoreError> {
        // A look costs no commit, and a disk that is full could not take one.
        let known = self.buckets()?;
        if let Some(bucket) = known.into_iter().find(|bucket| bucket.name == *name) {
            return Ok((bucket, false));
        }
        let name = name.clone();
        self.write(256, move |tx: &mut Tx<'_>| {
            let all = all_buckets(tx.seal, tx.buckets.open()?)?;
            if let Some(bucket) = all.into_iter().find(|bucket| bucket.name == name) {
                return Ok((bucket, false));
            }
            // One that is damaged keeps its number, and what is stored under it.
            let last = tx.buckets.open()?.last()?.map_or(0, |(id, _)| id.value());
            let id = BucketId(last + 1);
            let row = BucketRow {
                name: name.to_string(),
                key: key.expose().to_owned(),
            };
            let record = tx.seal.seal(&id.0.to_be_bytes(), &row)?;
            tx.buckets.open()?.insert(id.0, record.as_slice())?;
            Ok((Bucket { id, name, key }, true))
        })
        .await
    }

    /// All buckets.
    ///
    /// # Errors
    /// When the store cannot be read, or a bucket's record is damaged.
    pub fn buckets(&self) -> Result<Vec<Bucket>, StoreError> {
        self.read(|tx| all_buckets(self.seal, &tx.open_table(BUCKETS)?))
    }

    /// Lets this token in, and no other any more.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn set_token(&self, token: &Token) -> Result<(), StoreError> {
        let (id, row) = (
            token.id().to_owned(),
            TokenRow {
                digest: token.digest().0,
            },
        );
        self.write(128, move |tx: &mut Tx<'_>| {
            let record = tx.seal.seal(id.as_bytes(), &row)?;
            let tokens = tx.tokens.open()?;
            tokens.retain(|_, _| false)?;
            tokens.insert(id.as_str(), record.as_slice())?;
            Ok(())
        })
        .await
    }

    /// What is kept of the token with that public id.
    ///
    /// # Errors
    /// When the store cannot be read, or the record is damaged.
    pub fn token(&self, id: &str) -> Result<Option<TokenDigest>, StoreError> {
        self.read(|tx| {
            let Some(record) = tx.open_table(TOKENS)?.get(id)? else {
                return Ok(None);
            };
            let (row, _) = self
                .seal
                .open::<TokenRow>("token", id.as_bytes(), record.value())?;
            Ok(Some(TokenDigest(row.digest)))
        })
    }
}

fn all_buckets(
    seal: Seal,
    table: &impl ReadableTable<u32, &'static [u8]>,
) -> Result<Vec<Bucket>, StoreError> {
    let mut buckets = Vec::new();
    for entry in table.iter()? {
        let (id, record) = entry?;
        let id = BucketId(id.value());
        let opened = seal.open::<BucketRow>("bucket", &id.0.to_be_bytes(), record.value());
        let row = record::undamaged(opened)?.map(|(row, _)| row);
        buckets.extend(row.and_then(|row| row.into_bucket(id)));
    }
    Ok(buckets)
}
