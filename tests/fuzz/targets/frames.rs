//! Any bytes are a frame or an error, and a frame means the same once it is encoded again.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use whrelay_proto::codec;

fuzz_target!(|data: &[u8]| {
    if let Ok(frame) = codec::decode(Bytes::copy_from_slice(data)) {
        let again = codec::decode(codec::encode(frame.clone()));
        assert_eq!(again.ok(), Some(frame));
    }
});
