//! The members of a JSON object, and where they stand in the text.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of an object; of several with one name the last, as JSON parsers take it. Nothing where the text is no
/// object.
pub(crate) fn members(text: &[u8]) -> Option<BTreeMap<String, &RawValue>> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = BTreeMap<String, &'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = BTreeMap::new();
            while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                members.insert(name, value);
            }
            Ok(members)
        }
    }
    // A byte order mark is not JSON (RFC 8259 section 8.1), so it is not removed here.
    let mut parser = serde_json::Deserializer::from_slice(text);
    let members = parser.deserialize_map(Members).ok()?;
    parser.end().ok()?;
    Some(members)
}

/// Where a member's value stands in the text it was read from.
pub(crate) fn range_in(text: &[u8], value: &RawValue) -> Option<Range<usize>> {
    let start = (value.get().as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    let range = start..start.checked_add(value.get().len())?;
    (text.get(range.clone())? == value.get().as_bytes()).then_some(range)
}

/// The text of a member that is a string.
pub(crate) fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// The first element of an array.
pub(crate) fn first(text: &[u8]) -> Option<&RawValue> {
    struct First;
    impl<'de> Visitor<'de> for First {
        type Value = Option<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut seq: A,
        ) -> Result<Self::Value, A::Error> {
            let first = seq.next_element::<&RawValue>()?;
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }
    let mut parser = serde_json::Deserializer::from_slice(text);
    parser.deserialize_seq(First).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn members_and_their_places() {
        let text = br#" {"a": 1, "b": {"a": 2}, "a" : 33 } "#;
        let found = members(text).expect("an object");
        assert_eq!(found["a"].get(), "33");
        let range = range_in(text, found["a"]).expect("within");
        assert_eq!(&text[range], b"33");
        for none in ["", "[]", "{} x", "{\"a\":}", "1", "\u{feff}{}"] {
            assert!(members(none.as_bytes()).is_none(), "{none}");
        }
        assert_eq!(
            first(b"[{\"a\":1}, 2]").map(RawValue::get),
            Some("{\"a\":1}")
        );
        assert!(first(b"[]").is_none() && first(b"{}").is_none());
    }

    proptest! {
        #[test]
        fn no_text_panics(text: Vec<u8>) {
            let _ = (members(&text), first(&text));
        }
    }
}
