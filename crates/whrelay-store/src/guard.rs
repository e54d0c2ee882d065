//! Sections in which a panic means that a store's file is damaged: redb may panic on a damaged page. It
//! must not print; [`judge`] says to the hook of the process what a panic means.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind};

use crate::error::{Fault, StoreError};

thread_local! {
    /// How many guarded sections this thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// What the panic means that is on its way to the innermost of them.
    static UNDER_WAY: Cell<Option<Panicked>> = const { Cell::new(None) };
}

/// What a panic means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panicked {
    /// A store's file is damaged. It is caught, and becomes an error: nothing has to be said of it here.
    Damage,
    /// The same, while an earlier panic unwinds: the process is about to be aborted, so that this is the last
    /// chance to say so.
    DamageAgain,
    /// There is a bug.
    Bug,
}

/// What a panic means, for the panic hook of a process.
pub fn judge(info: &PanicHookInfo<'_>) -> Panicked {
    if DEPTH.get() == 0 {
        return Panicked::Bug;
    }
    let ours = |file: &str| file.contains("whrelay-") && !file.contains("/redb-");
    let is_bug = info.location().is_some_and(|at| ours(at.file()));
    let panicked = match (is_bug, UNDER_WAY.get()) {
        (true, _) => Panicked::Bug,
        (false, None) => Panicked::Damage,
        (false, Some(_)) => Panicked::DamageAgain,
    };
    UNDER_WAY.set(Some(panicked));
    panicked
}

/// Runs what uses redb, and answers with the text of a panic. A panic that is a bug of ours goes on.
pub(crate) fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    struct Section;
    impl Drop for Section {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get() - 1);
        }
    }
    DEPTH.set(DEPTH.get() + 1);
    let section = Section;
    let ran = catch_unwind(AssertUnwindSafe(run));
    drop(section);
    ran.map_err(|payload| {
        if UNDER_WAY.take() == Some(Panicked::Bug) {
            resume_unwind(payload);
        }
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        // One line of it, for an error.
        let line = text.and_then(|text| text.lines().next());
        line.unwrap_or("a damaged page").to_owned()
    })
}

/// The same for what may fail: a panic is damage to the structure of the file.
pub(crate) fn unpanicked<T>(run: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch(run).unwrap_or_else(|detail| Err(Fault::structure(detail).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_in_one_line() {
        let caught = catch(|| -> () { panic!("first\nsecond") });
        assert_eq!(caught, Err("first".to_owned()));
        let error = unpanicked(|| -> Result<(), _> { panic!("nonsense") });
        let error = error.expect_err("a panic").to_string();
        assert!(error.contains("nonsense"), "{error}");
        assert_eq!(catch(|| 7), Ok(7));
    }
}
