//! Bytes that a sender wrote raw in a request's target and that a `Uri` does not take: they are written in another way
//! for hyper, and as they were on the wire. It must not know what a target means.

use std::borrow::Cow;

use http::Uri;
use whrelay_core::octets;

/// Characters among them.
const RAW: &[char] = &['"', '<', '>', '`'];
/// Begins what stands for one of them, or for a percent sign with which this would begin: two hexadecimal digits follow.
const MARK: &str = "%~";

/// A target as hyper takes it.
pub(crate) fn marked(target: &str) -> Cow<'_, str> {
    let is_other = |character| octets::of_char(character).is_some();
    if !target.contains(RAW) && !target.contains(MARK) && !target.contains(is_other) {
        return Cow::Borrowed(target);
    }
    let mut marked = String::with_capacity(2 * target.len());
    let mut rest = target.chars().peekable();
    while let Some(character) = rest.next() {
        let would_begin = character == '%' && rest.peek() == Some(&'~');
        let is_marked = RAW.contains(&character) || would_begin;
        let byte = octets::of_char(character);
        match byte.or_else(|| u8::try_from(character).ok().filter(|_| is_marked)) {
            Some(byte) => marked += &format!("{MARK}{byte:02X}"),
            None => marked.push(character),
        }
    }
    Cow::Owned(marked)
}

/// Whether something in a target stands for something else.
pub(crate) fn is_marked(target: &Uri) -> bool {
    let target = target.path_and_query();
    target.is_some_and(|target| target.as_str().contains(MARK))
}

/// The first line of a request as it was meant, where something in it is marked; and the length of what it stands for.
pub(crate) fn first_line(request: &[u8]) -> Option<(Vec<u8>, usize)> {
    let end = request.iter().position(|byte| *byte == b'\n')? + 1;
    let line = std::str::from_utf8(&request[..end]).ok()?;
    let (first, rest) = line.split_once(MARK)?;
    let mut meant = first.as_bytes().to_vec();
    for piece in rest.split(MARK) {
        let code = u8::from_str_radix(piece.get(..2)?, 16).ok()?;
        meant.push(code);
        meant.extend_from_slice(&piece.as_bytes()[2..]);
    }
    Some((meant, end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What goes over the wire for a target.
    fn sent(target: &str) -> Vec<u8> {
        let marked = marked(target);
        let uri = Uri::try_from(marked.as_ref()).expect("hyper takes it");
        let head = format!("POST {uri} HTTP/1.1\r\nX: %~3C\r\n\r\n");
        let Some((line, length)) = first_line(head.as_bytes()) else {
            return head.into_bytes();
        };
        [&line, &head.as_bytes()[length..]].concat()
    }

    #[test]
    fn what_was_written_raw_goes_out_raw() {
        for target in [
            "/a\"b<c>d`e",
            "/?q=\"<>`",
            "/%3C%~3C%%~<",
            "/%~",
            "/plain?x=%22",
            "/\u{e9}<\u{e9}",
        ] {
            let head = format!("POST {target} HTTP/1.1\r\nX: %~3C\r\n\r\n");
            assert_eq!(sent(target), head.as_bytes());
        }
    }

    #[test]
    fn bytes_that_are_no_text_go_out_as_they_came() {
        let target = b"/caf\xe9<\xc3\xa9?q=\xff%~";
        let head = [b"POST ", &target[..], b" HTTP/1.1\r\nX: %~3C\r\n\r\n"].concat();
        assert_eq!(sent(&octets::to_text(target)), head);
    }

    #[test]
    fn a_request_without_marks_is_left_as_it_is() {
        for request in ["POST /a HTTP/1.1\r\nX: %~3C\r\n", "POST /%~3C", ""] {
            assert_eq!(first_line(request.as_bytes()), None);
        }
    }

    proptest! {
        #[test]
        fn every_target_goes_out_as_it_is(tail in "[a-z%~\"<>`/?=3C]{0,30}") {
            let target = format!("/{tail}");
            let head = format!("POST {target} HTTP/1.1\r\nX: %~3C\r\n\r\n");
            prop_assert_eq!(sent(&target), head.as_bytes());
        }
    }
}
