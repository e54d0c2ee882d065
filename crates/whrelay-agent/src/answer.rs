//! What a target answered, as it is shown: decompressed and in its charset. It must not change what is kept.

use std::io::Read;

use whrelay_core::delivery::Attempt;
use whrelay_core::event::Header;

/// Bytes that are shown of a body that was compressed.
const MAX_SHOWN: u64 = 64 * 1024;

/// An answer's body as text.
pub(crate) struct Shown {
    pub(crate) text: String,
    /// Whether its bytes are the text's.
    pub(crate) is_exact: bool,
}

/// What is kept of an attempt's answer. It may be cut anywhere, so that as much is shown as makes sense.
pub(crate) fn shown(attempt: &Attempt) -> Shown {
    let value = |name: &str| {
        let mut fields = attempt.answer_headers.iter();
        let field = fields.find(|field: &&Header| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(&field.value)
            .ok()
            .map(str::to_ascii_lowercase)
    };
    let encoding = value("content-encoding").unwrap_or_default();
    let bytes = match decoded(&attempt.answer, encoding.trim()) {
        Some(bytes) if !bytes.is_empty() => bytes,
        Some(_) | None => attempt.answer.clone(),
    };
    let charset = value("content-type").and_then(|kind| {
        let (_, charset) = kind.split_once("charset=")?;
        let label = charset
            .split(';')
            .next()?
            .trim()
            .trim_matches('"')
            .to_owned();
        encoding_rs::Encoding::for_label(label.as_bytes())
    });
    let charset = charset.unwrap_or(encoding_rs::UTF_8);
    let (text, _) = charset.decode_without_bom_handling(&bytes);
    Shown {
        is_exact: text.as_bytes() == attempt.answer,
        text: text.into_owned(),
    }
}

/// The bytes behind a content coding (RFC 9110 section 8.4.1), as far as they are there.
fn decoded(bytes: &[u8], coding: &str) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let read: &mut dyn Read = match coding {
        "gzip" | "x-gzip" => &mut flate2::read::MultiGzDecoder::new(bytes),
        "deflate" => &mut flate2::read::ZlibDecoder::new(bytes),
        "br" => &mut brotli_decompressor::Decompressor::new(bytes, 4096),
        _ => return None,
    };
    // What was cut off is missing, and no error.
    let (Ok(_) | Err(_)) = read.take(MAX_SHOWN).read_to_end(&mut all);
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    use whrelay_core::bucket::{BucketId, Seq};
    use whrelay_core::delivery::{DeliveryKey, DestinationId};
    use whrelay_core::id::{DeliveryId, EventId};
    use whrelay_core::retry::{Phase, Verdict};
    use whrelay_core::time::Timestamp;

    fn answered(fields: &[(&str, &str)], answer: &[u8]) -> Shown {
        let key = DeliveryKey {
            bucket: BucketId(1),
            seq: Seq(1),
            ordinal: 0,
        };
        let field = |(name, value): &(&str, &str)| Header {
            name: (*name).to_owned(),
            value: value.as_bytes().to_vec().into(),
        };
        shown(&Attempt {
            key,
            delivery: DeliveryId::from_parts(Timestamp::EPOCH, 1),
            event: EventId::from_parts(Timestamp::EPOCH, 1),
            destination: DestinationId(1),
            target: String::new(),
            url: String::new(),
            method: String::new(),
            number: 1,
            at: Timestamp::EPOCH,
            duration: Duration::ZERO,
            status: Some(500),
            error: None,
            answer_headers: fields.iter().map(field).collect(),
            answer: answer.to_vec(),
            signature: None,
            replay: false,
            phase: Phase::Fast,
            verdict: Verdict::Sent,
        })
    }

    #[test]
    fn compressed_and_foreign_texts_are_shown_as_text() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(b"no such order").expect("written");
        let gzip = gzip.finish().expect("whole");
        for (fields, bytes, text, exact) in [
            (&[][..], &b"plain"[..], "plain", true),
            (
                &[("content-encoding", "gzip")],
                &gzip,
                "no such order",
                false,
            ),
            (&[("content-encoding", "gzip")], b"plain", "plain", true),
            (
                &[("content-encoding", "br")],
                b"\x0b\x02\x80hello\x03",
                "hello",
                false,
            ),
            (
                &[("content-type", "text/plain; charset=ISO-8859-1")],
                b"caf\xe9",
                "café",
                false,
            ),
            (
                &[("content-type", "text/plain; charset=nonsense")],
                b"x",
                "x",
                true,
            ),
        ] {
            let shown = answered(fields, bytes);
            assert_eq!((&*shown.text, shown.is_exact), (text, exact), "{fields:?}");
        }
        // An answer is kept only in part.
        let cut = answered(&[("content-encoding", "gzip")], &gzip[..gzip.len() - 9]);
        assert!("no such order".starts_with(&cut.text) || cut.text.contains('\u{fffd}'));
    }
}
