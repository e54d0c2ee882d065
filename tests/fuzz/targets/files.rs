//! Any text is a configuration file or a mistake, on one of its lines.

#![no_main]

#[path = "../../../crates/whrelay/src/config/file.rs"]
mod file;

use file::{Entry, Mistake, read};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let lines = 1 + text.matches('\n').count();
    match read(text) {
        Ok(entries) => {
            for Entry {
                profile: _,
                destination: _,
                key,
                values: _,
                line,
            } in entries
            {
                assert!((1..=lines).contains(&line) && !key.contains('-'));
            }
        }
        Err(Mistake { line, message }) => {
            assert!((1..=lines).contains(&line) && !message.is_empty());
        }
    }
});
