//! Any value of Retry-After is understood or ignored, and none asks for more than is allowed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use whrelay_core::limits;
use whrelay_core::outcome::RetryAfter;
use whrelay_core::time::Timestamp;

fuzz_target!(|input: (i64, &[u8])| {
    let (now, value) = input;
    if let Some(asked) = RetryAfter::parse(value) {
        assert!(asked.wait(Timestamp::from_micros(now)) <= limits::MAX_RETRY_AFTER);
    }
});
