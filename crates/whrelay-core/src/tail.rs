//! Path tails that could climb out of a target's base path. It must not rewrite them: a tail is
//! either passed on as raw bytes or refused.

/// Whether a tail holds a dot segment (`.` or `..`), plainly or percent-encoded, with `/`, `\`,
/// `%2f` or `%5c` between segments (RFC 3986 section 5.2.4, as servers that decode once read it).
pub fn climbs(tail: &str) -> bool {
    let decoded = decode_once(tail.as_bytes());
    decoded
        .split(|b| matches!(b, b'/' | b'\\'))
        .map(|segment| segment.split(|b| *b == b';').next().unwrap_or_default())
        .any(|segment| matches!(segment, b"." | b".."))
}

fn decode_once(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((first, after)) = rest.split_first() {
        let pair = (*first == b'%')
            .then(|| after.get(..2).and_then(hex_pair))
            .flatten();
        out.push(pair.unwrap_or(*first));
        rest = if pair.is_some() { &after[2..] } else { after };
    }
    out
}

fn hex_pair(pair: &[u8]) -> Option<u8> {
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    Some(digit(pair[0])? * 16 + digit(pair[1])?)
}

#[cfg(test)]
mod tests {
    use super::climbs;
    use proptest::prelude::*;

    #[test]
    fn dot_segments_in_every_dress_climb() {
        for tail in [
            "/..",
            "/../",
            "/a/../b",
            "/.",
            "/a/./b",
            "/%2e%2e",
            "/%2E./x",
            "/.%2e/",
            "/a%2f..%2fb",
            "/a\\..\\b",
            "/a%5c..%5Cb",
            "/..;/admin",
            "/a/..;x=y/b",
            "/..%2f",
        ] {
            assert!(climbs(tail), "{tail}");
        }
    }

    #[test]
    fn other_tails_pass() {
        for tail in [
            "",
            "/",
            "//",
            "/a%20b/c",
            "/...",
            "/a..b",
            "/.well-known/x",
            "/a;b=../c",
            "/%252e%252e",
            "/%",
            "/%2",
            "/%zz",
            "/é",
            "/a%2fb",
        ] {
            assert!(!climbs(tail), "{tail}");
        }
    }

    proptest! {
        #[test]
        fn a_climb_hidden_in_any_surroundings_is_found(before in "(/[a-z%]{0,4}){0,3}", after in "(/[a-z%]{0,4}){0,3}") {
            let tail = format!("{before}/%2e%2e{after}");
            prop_assert!(climbs(&tail));
        }
    }
}
