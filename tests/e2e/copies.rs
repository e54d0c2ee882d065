//! Copies of a store that were made while it changed.

use whrelay_tests::copies::try_copies;

use crate::home;

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_running_store_serves_or_says_that_it_is_damaged() {
    let found = try_copies(&home(), &home(), 12).await;
    assert!(found.damaged >= 3, "{found:?}");
}
