//! Any words are a command or wrong use, which says what is wrong.

#![no_main]

#[expect(
    dead_code,
    unused_imports,
    reason = "what is parsed is not carried out here"
)]
#[path = "../../../crates/whrelay/src/args.rs"]
mod args;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use args::{Cli, Command};
use clap::Parser;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let words = data.split(|byte| *byte == 0);
    let words = words.map(|word| OsString::from_vec(word.to_vec()));
    match Cli::try_parse_from([OsString::from("whrelay")].into_iter().chain(words)) {
        Ok(Cli {
            command: Command::Listen(listen),
            ..
        }) => {
            let options = listen.delivery.typed().options();
            assert!(options.max_in_flight > 0);
        }
        Ok(_) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
