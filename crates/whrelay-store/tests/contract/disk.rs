//! Opening: twice, elsewhere, on a file that is not a store, or no longer one.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use whrelay_store::{OpenError, RedbStore, Role};

use crate::setup::*;

#[tokio::test]
async fn a_store_outlives_its_process_and_is_private() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("deep/er");
    let store = RedbStore::open(&path, &options(Role::Forwarder)).expect("created");
    let (id, bucket) = (store.id().to_owned(), bucket(&store).await);
    store
        .append(bucket.id, vec![plain(1)], None)
        .await
        .expect("stored");
    let mode = |p: &std::path::Path| fs::metadata(p).expect("there").permissions().mode() & 0o777;
    assert_eq!(
        (mode(&path), mode(&path.join("store.redb"))),
        (0o700, 0o600)
    );
    store.close().await;
    let store = RedbStore::open(&path, &options(Role::Forwarder)).expect("opened");
    assert_eq!(store.id(), id);
    let (_, seq) = store.find_event(event(1).id).expect("read").expect("there");
    assert_eq!(store.event_at(&bucket, seq).expect("read"), Some(event(1)));
}

#[tokio::test]
async fn a_second_opener_learns_who_was_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let _first = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opened");
    let second = RedbStore::open(dir.path(), &options(Role::Agent))
        .err()
        .expect("refused");
    assert!(
        matches!(&second, OpenError::InUse { pid, purpose, .. }
        if *pid == std::process::id() && purpose == "test"),
        "{second}"
    );
    assert!(second.is_retryable());
}

#[tokio::test]
async fn another_role_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    RedbStore::open(dir.path(), &options(Role::Agent))
        .expect("opened")
        .close()
        .await;
    let refused = RedbStore::open(dir.path(), &options(Role::Forwarder))
        .err()
        .expect("refused");
    assert!(matches!(refused, OpenError::Role { .. }), "{refused}");
}

#[tokio::test]
async fn files_that_are_no_store_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("store.redb");
    for content in [&b""[..], b"redb", b"#!/bin/sh\necho hello\n", &[0; 100_000]] {
        fs::write(&file, content).expect("written");
        let refused = RedbStore::open(dir.path(), &options(Role::Agent))
            .err()
            .expect("refused");
        assert!(matches!(refused, OpenError::Foreign { .. }), "{refused}");
        assert_eq!(fs::read(&file).expect("still there"), content);
    }
}

#[tokio::test]
async fn a_redb_file_of_someone_else_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("store.redb");
    drop(redb::Database::create(&file).expect("created"));
    let refused = RedbStore::open(dir.path(), &options(Role::Agent))
        .err()
        .expect("refused");
    assert!(matches!(refused, OpenError::Foreign { .. }), "{refused}");
}

/// It was called no store, and moving it away was advised.
#[tokio::test]
async fn a_store_that_nothing_in_it_names_any_more_is_damaged() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("opened");
    store.close().await;
    let file = dir.path().join("store.redb");
    fs::remove_file(&file).expect("removed");
    drop(redb::Database::create(&file).expect("created"));
    let without_tables = fs::read(&file).expect("there");
    for content in [&without_tables[..], b"redb"] {
        fs::write(&file, content).expect("written");
        let refused = RedbStore::open(dir.path(), &options(Role::Agent))
            .err()
            .expect("refused");
        assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
    }
}

#[tokio::test]
async fn a_newer_format_and_an_older_one_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    RedbStore::open(dir.path(), &options(Role::Agent))
        .expect("opened")
        .close()
        .await;
    for (format, newer) in [(&b"12"[..], true), (&b"5"[..], false)] {
        let database = redb::Database::open(dir.path().join("store.redb")).expect("opened");
        let tx = database.begin_write().expect("begun");
        let meta = redb::TableDefinition::<&str, &[u8]>::new("meta_v1");
        tx.open_table(meta)
            .expect("there")
            .insert("format", format)
            .expect("put");
        tx.commit().expect("committed");
        drop(database);
        let refused = RedbStore::open(dir.path(), &options(Role::Agent))
            .err()
            .expect("refused");
        let right = match newer {
            true => matches!(refused, OpenError::Newer { found: 12, .. }),
            false => matches!(refused, OpenError::Older { found: 5, .. }),
        };
        assert!(right, "{refused}");
    }
}

#[tokio::test]
async fn truncated_anywhere_it_says_damaged_or_serves_only_what_was_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &options(Role::Forwarder)).expect("opened");
    let bucket = bucket(&store).await;
    store
        .append(bucket.id, (1..=60).map(plain).collect(), None)
        .await
        .expect("stored");
    store.close().await;
    let file = dir.path().join("store.redb");
    let whole = fs::read(&file).expect("the file");
    let mut refused = 0;
    for length in (0..whole.len()).step_by(4096) {
        fs::write(&file, &whole[..length]).expect("written");
        match RedbStore::open(dir.path(), &options(Role::Forwarder)) {
            Ok(store) => store.close().await,
            Err(error) => {
                assert!(error.to_string().contains("store.redb"), "{error}");
                assert_eq!(
                    fs::read(&file).expect("still there").len(),
                    length,
                    "left as it was"
                );
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

#[cfg(unix)]
#[test]
fn a_place_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    fs::write(&file, "in the way").expect("written");
    let refused = RedbStore::open(&file, &options(Role::Agent))
        .err()
        .expect("refused");
    assert!(
        matches!(&refused, OpenError::Io { path, .. } if *path == file),
        "{refused}"
    );
}
