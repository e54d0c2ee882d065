//! A signature is one event's, also after a restart.

use std::time::Duration;

use whrelay_core::limits;
use whrelay_core::time::Timestamp;
use whrelay_store::{RedbStore, Role, SignatureClaim};

use crate::setup::*;

fn event(number: u128) -> whrelay_core::id::EventId {
    whrelay_core::id::EventId::from_parts(NOW, number)
}

fn claim_of(
    (signed_at, digest): (Timestamp, [u8; 16]),
    event: whrelay_core::id::EventId,
    now: Timestamp,
) -> SignatureClaim {
    SignatureClaim {
        signed_at,
        digest,
        event,
        now,
    }
}

#[tokio::test]
async fn the_first_event_has_a_signature_for_good() {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, second) = (event(1), event(2));
    let signature = (NOW, [7; 16]);
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("open");
    let claim = |store: &RedbStore, event| {
        let store = store.clone();
        async move {
            store
                .claim_signature(claim_of(signature, event, NOW))
                .await
                .expect("written")
        }
    };
    assert!(claim(&store, first).await && claim(&store, first).await);
    assert!(!claim(&store, second).await);
    store.close().await;
    let store = RedbStore::open(dir.path(), &options(Role::Agent)).expect("open");
    assert!(!claim(&store, second).await && claim(&store, first).await);
    // Another time or digest is another signature.
    for other in [(NOW, [8; 16]), (NOW.after(Duration::from_secs(1)), [7; 16])] {
        let claimed = store.claim_signature(claim_of(other, second, NOW)).await;
        assert!(claimed.expect("written"));
    }
}

/// Whoever has an old request again must not find that the first event is forgotten.
#[tokio::test]
async fn what_is_too_old_to_be_remembered_is_nobodys() {
    let store = memory(Role::Agent);
    let claim = |signed_at: Timestamp, digest, event, now| {
        let store = store.clone();
        async move {
            store
                .claim_signature(claim_of((signed_at, [digest; 16]), event, now))
                .await
                .expect("written")
        }
    };
    assert!(claim(NOW, 1, event(1), NOW).await);
    let last = NOW.after(limits::SIGNATURES_KEPT);
    assert!(claim(NOW, 1, event(1), last).await);
    let later = last.after(Duration::from_secs(1));
    assert!(!claim(NOW, 1, event(1), later).await);
    // Newer ones take the place of those that are too old.
    for n in 2..5 {
        assert!(claim(later, n, event(9), later).await);
    }
    assert!(!claim(NOW, 1, event(2), later).await);
}
