//! Ring 4, damaged copies: a forwarder's store is copied while it is written, and the copies are spoilt further. Each
//! one serves, or is refused with a reason; `doctor` says which.

use std::time::Instant;

use whrelay_tests::copies::try_copies;
use whrelay_tests::process::Home;

use crate::report;

const COPIES: usize = 40;

/// Says whether everything held.
pub(crate) fn run(binary: &str) -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (began, homes) = (Instant::now(), [Home::new(binary), Home::new(binary)]);
    let found = runtime.block_on(try_copies(&homes[0], &homes[1], COPIES));
    let counted = format!(
        "{} damaged and refused with a reason, {} whole and serving",
        found.damaged, found.whole
    );
    let found = match found.damaged * 4 >= COPIES {
        true => Ok(counted),
        false => Err(format!("too few copies were damaged: {counted}")),
    };
    report::judge(
        "copies of a forwarder's store made while it was written, cut off or mixed with older ones",
        format!("{COPIES} copies"),
        began,
        found,
    )
}
