//! Files whose pages are of several moments, opened without being looked at, as a large one is: whatever a store
//! answers then, it either stores, or stops for good, or names the bucket that takes nothing in.

use std::path::Path;

use redb::Builder;
use whrelay_core::bucket::{Bucket, Seq};
use whrelay_store::{Medium, RedbStore, Role, StoreError, examine};

use crate::setup::*;

const PAGE: usize = 4096;

/// The file at several moments, as whoever copies it may find it.
async fn moments(dir: &Path) -> Vec<Vec<u8>> {
    let store = RedbStore::open(dir, &options(Role::Forwarder)).expect("opens");
    let bucket = bucket(&store).await;
    let mut moments = Vec::new();
    for n in 0..200 {
        let some = (4 * n..4 * n + 4).map(plain).collect();
        store.append(bucket.id, some, None).await.expect("stored");
        if n % 40 > 33 {
            moments.push(std::fs::read(dir.join("store.redb")).expect("a file"));
        }
    }
    store.close().await;
    moments
}

/// Pages of an earlier moment up to one of them, or every so many, over a later one.
fn mixed(early: &[u8], late: &[u8], how: usize) -> Vec<u8> {
    let mut bytes = late.to_vec();
    let pages = bytes.chunks_mut(PAGE).zip(early.chunks(PAGE)).enumerate();
    for (n, (page, other)) in pages {
        let is_early = match how % 3 {
            0 => n < 1 + how,
            1 => n % (2 + how) == 1,
            _ => n > 2 + how,
        };
        if is_early {
            page[..other.len()].copy_from_slice(other);
        }
    }
    bytes
}

/// What becomes of what is asked of a store: it is stored, or it is said for good that it cannot be.
async fn use_it(store: &RedbStore, bucket: &Bucket) -> Result<(), StoreError> {
    store.read_after(bucket, Seq(0), usize::MAX, usize::MAX)?;
    for n in 0..20 {
        store
            .append(bucket.id, vec![plain(10_000 + n)], None)
            .await?;
    }
    store.census().map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_pages_that_do_not_fit_together_stores_or_stops() {
    let dir = tempfile::tempdir().expect("a directory");
    let moments = moments(dir.path()).await;
    let path = dir.path().join("store.redb");
    let (mut stored, mut stopped, mut refused, mut named) = (0, 0, 0, 0);
    for how in 0..moments.len() - 1 {
        for later in [how + 1, moments.len() - 1] {
            std::fs::write(&path, mixed(&moments[how], &moments[later], how)).expect("written");
            let examined = examine(dir.path(), &options(Role::Forwarder)).await;
            let is_whole = examined.is_ok_and(|found| {
                found.structure.is_ok() && found.census.is_ok_and(|census| census.is_whole())
            });
            let file = path.clone();
            let medium = Medium::custom(move |builder: &Builder| builder.open(&file));
            let Ok(store) = RedbStore::open_on(medium, &options(Role::Forwarder)) else {
                assert!(!is_whole, "{how}: it was called whole");
                refused += 1;
                continue;
            };
            let used = match store.buckets() {
                Ok(buckets) if buckets.len() == 1 => use_it(&store, &buckets[0]).await,
                Ok(_) => Err(StoreError::Damaged("the bucket".into())),
                Err(error) => Err(error),
            };
            assert!(
                used.is_ok() || !is_whole,
                "{how}: it was called whole: {used:?}"
            );
            match used {
                Ok(()) => stored += 1,
                Err(StoreError::Broken(_)) => {
                    store.broken().await;
                    stopped += 1;
                }
                Err(StoreError::Damaged(_)) => named += 1,
                Err(
                    error @ (StoreError::Full
                    | StoreError::Bound
                    | StoreError::Share
                    | StoreError::Reopening),
                ) => {
                    panic!("{how}: it would be tried for ever: {error}");
                }
            }
            store.close().await;
        }
    }
    let all = (stored, stopped, refused, named);
    assert!(refused + stopped > 0, "none was damaged enough: {all:?}");
}
