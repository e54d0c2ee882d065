//! Ring 2: the same world on the real store, on a disk that loses what was not synced, tears it,
//! fails and fills up.

mod flips;
mod lying;
mod real;

use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use flips::{flip_bits, flip_some};
pub(crate) use real::Real;
use real::{CRASHED_RECOVERIES, FULL_DISKS, IMAGES_OPENED, IO_ERRORS, POWER_CUTS};

/// What the disks of a campaign did.
pub(crate) fn counted() -> String {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    format!(
        ", {} crash images opened, {} power cuts within a write, {} recoveries cut off, {} I/O errors, \
         {} times full",
        of(&IMAGES_OPENED),
        of(&POWER_CUTS),
        of(&CRASHED_RECOVERIES),
        of(&IO_ERRORS),
        of(&FULL_DISKS),
    )
}
