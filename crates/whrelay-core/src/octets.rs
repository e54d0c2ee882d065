//! The target of a request as text. A target is bytes, which are nearly always UTF-8. Each byte that is not is kept as a
//! private-use character, which stands for that byte when the target is sent. It must not know what a target means.

use std::borrow::Cow;

/// What stands for a byte is this and its value: `U+10FF80` to `U+10FFFF`, at the end of a private plane.
const BASE: u32 = 0x10_FF00;

/// Text that stands for these bytes and for no others.
pub fn to_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match of_char(character) {
                // It would be read back as a single byte.
                Some(_) => text.extend(character.encode_utf8(&mut [0; 4]).bytes().map(stand_in)),
                None => text.push(character),
            }
        }
        text.extend(chunk.invalid().iter().copied().map(stand_in));
    }
    text
}

/// The bytes that a text stands for.
pub fn of_text(text: &str) -> Cow<'_, [u8]> {
    if !text.contains(|c| of_char(c).is_some()) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match of_char(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(bytes)
}

/// The byte that a character stands for, where it is no character of the sender's.
pub fn of_char(character: char) -> Option<u8> {
    let value = u32::from(character).checked_sub(BASE)?;
    u8::try_from(value).ok().filter(|byte| !byte.is_ascii())
}

fn stand_in(byte: u8) -> char {
    // All of the range are characters.
    char::from_u32(BASE + u32::from(byte)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_stays_as_it_is() {
        for text in ["", "/a?b=\u{e9}", "/\u{10ff7f}\u{1f600}\0"] {
            assert_eq!(to_text(text.as_bytes()), text);
            assert_eq!(of_text(text), Cow::Borrowed(text.as_bytes()));
        }
    }

    #[test]
    fn a_byte_that_is_no_text_becomes_a_character_of_the_last_plane() {
        assert_eq!(to_text(b"/caf\xe9?\xff"), "/caf\u{10ffe9}?\u{10ffff}");
    }

    #[test]
    fn such_a_character_of_the_senders_is_kept_byte_by_byte() {
        let sent = "/\u{10ffe9}";
        let text = to_text(sent.as_bytes());
        assert_eq!(text, "/\u{10fff4}\u{10ff8f}\u{10ffbf}\u{10ffa9}");
        assert_eq!(&*of_text(&text), sent.as_bytes());
    }

    proptest! {
        #[test]
        fn all_bytes_come_back(bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            "[\u{10ff00}-\u{10ffff}a]{0,9}".prop_map(String::into_bytes),
        ]) {
            let text = to_text(&bytes);
            prop_assert_eq!(&*of_text(&text), &bytes[..]);
        }
    }
}
