//! How providers sign webhooks, and what they call them: headers, signed text, tolerance, kind and id of an event.
//! Pure: it knows no clock, and keeps no secret longer than its caller.

mod content;
mod json;
mod key;
mod kind;
mod provider;
mod scheme;
mod signature;

pub use self::key::{Key, KeyError};
pub use self::kind::{delivery_id, kind};
pub use self::provider::{Provider, UnknownProvider};
pub use self::signature::{Keyring, Seen, Signed, Verdict, Verified, seen, sign};
