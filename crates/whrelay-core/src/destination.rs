//! Destinations: how a person names one, what is stored of it, and the options of its deliveries.

mod options;
mod setup;

use std::fmt;
use std::str::FromStr;

pub use self::options::{DeliveryOptions, IN_FLIGHT, OptionKey, OptionSet, UnknownOption};
pub use self::setup::{Declared, Planned, Setup, SetupError};
use crate::bucket::BucketId;
use crate::delivery::DestinationId;
use crate::limits;
use crate::target::{Target, TargetError, is_localhost};
use crate::time::Timestamp;

/// Why a text cannot name a destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` cannot name a destination: use 1 to {max} of a-z, 0-9, `-` and `_`, begin with a letter, and not `localhost`",
    max = limits::MAX_BUCKET_NAME
)]
pub struct NameError(String);

/// The name of a destination. It owns the queue: the URL is a property of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationName(String);

impl DestinationName {
    /// What the first unnamed destination of a bucket is called.
    pub fn first() -> Self {
        Self("default".to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name made of a URL, as in `localhost-4000`, that is not taken.
    pub fn made_of(target: &Target, is_taken: impl Fn(&Self) -> bool) -> Self {
        let place = match target.socket() {
            Some(socket) => socket.rsplit('/').next().unwrap_or_default().to_owned(),
            None => target.authority(),
        };
        let plain = |c: char| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '_') => c,
            _ => '-',
        };
        let text: String = place.chars().map(plain).take(40).collect();
        let text = text.trim_matches('-');
        let base = match text.starts_with(|c: char| c.is_ascii_lowercase()) && text != "localhost" {
            true => text.to_owned(),
            false => format!("host-{text}"),
        };
        let numbered = (2u64..).map(|n| format!("{base}-{n}"));
        let mut names = std::iter::once(base.clone()).chain(numbered).map(Self);
        names.find(|name| !is_taken(name)).unwrap_or(Self(base))
    }
}

impl FromStr for DestinationName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let letter = |c: u8| c.is_ascii_lowercase();
        let plain = |c: u8| letter(c) || c.is_ascii_digit() || c == b'-' || c == b'_';
        let fits = text.len() <= limits::MAX_BUCKET_NAME
            && text.bytes().next().is_some_and(letter)
            && text.bytes().all(plain)
            && text != "localhost";
        match fits {
            true => Ok(Self(text.to_owned())),
            false => Err(NameError(text.to_owned())),
        }
    }
}

impl fmt::Display for DestinationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text says no destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Its name cannot be one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Its URL cannot be one.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Where a URL is wanted there is a name, or another `=`.
    #[error("`{0}` is no URL: write localhost:3000, or http://{0} for a host without a dot")]
    Word(String),
}

/// Reads the URL of a destination: a word by itself is a name, and never a host by mistake.
///
/// # Errors
/// Why it is none.
pub fn url(text: &str) -> Result<Target, SpecError> {
    match text.parse()? {
        Spec::Unnamed(target) => Ok(target),
        Spec::Known(_) | Spec::Named(..) => Err(SpecError::Word(text.to_owned())),
    }
}

/// A destination as a person gives it: `localhost:3000`, `api`, or `api=localhost:3000`. A word by itself is a
/// name; digits, a dot, `:` and `/` make a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Spec {
    /// A URL without a name.
    Unnamed(Target),
    /// The name of a destination whose URL is known from elsewhere.
    Known(DestinationName),
    /// A name and its URL.
    Named(DestinationName, Target),
}

impl Spec {
    /// The name, where one is given.
    pub fn name(&self) -> Option<&DestinationName> {
        match self {
            Self::Unnamed(_) => None,
            Self::Known(name) | Self::Named(name, _) => Some(name),
        }
    }

    /// The URL, where one is given.
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::Known(_) => None,
            Self::Unnamed(target) | Self::Named(_, target) => Some(target),
        }
    }
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        // A URL may have a `=` in its query.
        if let Some((name, target)) = text.split_once('=')
            && !name.contains(['/', ':', '?'])
        {
            return Ok(Self::Named(name.parse()?, url(target)?));
        }
        let is_word = !text.is_empty()
            && !text.contains(['/', ':', '?', '.', '#', '%'])
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && !is_localhost(text);
        match is_word {
            true => Ok(Self::Known(text.parse()?)),
            false => Ok(Self::Unnamed(text.parse()?)),
        }
    }
}

/// As it may be given again.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unnamed(target) => write!(f, "{target}"),
            Self::Known(name) => write!(f, "{name}"),
            Self::Named(name, target) => write!(f, "{name}={target}"),
        }
    }
}

/// What a stored destination is to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One that events go to.
    Lasting {
        /// What it is called.
        name: DestinationName,
        /// Whether a person chose the name.
        is_named: bool,
    },
    /// The URL of one replay: nothing else ever goes there.
    OneOff,
    /// A person has removed it; what had ended there is still kept.
    Removed {
        /// What it was called.
        name: DestinationName,
    },
}

/// What attempts and probes have shown of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointState {
    /// It works, or has not been tried.
    #[default]
    Online,
    /// It takes connections, and attempts have failed for a while.
    Failing,
    /// It takes no connection, or closes each of them.
    Offline,
}

/// What is stored of a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Its number in the store, which is never given again while anything refers to it.
    pub id: DestinationId,
    /// The bucket whose events go there.
    pub bucket: BucketId,
    /// What it is to people.
    pub kind: Kind,
    /// Its URL.
    pub target: Target,
    /// The options that a person has set; the others have their defaults.
    pub options: OptionSet,
    /// Since when nothing is delivered there, where a person has paused it.
    pub paused_at: Option<Timestamp>,
    /// What attempts and probes have shown of its endpoint.
    pub endpoint: EndpointState,
    /// Since when its endpoint takes no connection, as far as is known.
    pub offline_since: Option<Timestamp>,
    /// When its endpoint was last seen to return: backoffs that began before are over.
    pub back_since: Option<Timestamp>,
}

impl Destination {
    /// Its name, where it is one that events go to.
    pub fn name(&self) -> Option<&DestinationName> {
        match &self.kind {
            Kind::Lasting { name, .. } => Some(name),
            Kind::OneOff | Kind::Removed { .. } => None,
        }
    }

    /// What people call it: its name, or its URL where it has none.
    pub fn title(&self) -> String {
        match &self.kind {
            Kind::Lasting { name, .. } | Kind::Removed { name } => name.to_string(),
            Kind::OneOff => self.target.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(text: &str) -> Spec {
        text.parse().expect("a destination")
    }

    fn name(text: &str) -> DestinationName {
        text.parse().expect("a name")
    }

    #[test]
    fn a_word_is_a_name_and_digits_a_dot_a_colon_and_a_slash_make_a_url() {
        let target = |text: &str| text.parse::<Target>().expect("a target");
        assert_eq!(spec("api"), Spec::Known(name("api")));
        assert_eq!(spec("localhost-4000"), Spec::Known(name("localhost-4000")));
        assert_eq!(
            spec("api=3000"),
            Spec::Named(name("api"), target("localhost:3000"))
        );
        assert_eq!(
            spec("a-b_2=http://h/?x=1"),
            Spec::Named(name("a-b_2"), target("http://h/?x=1"))
        );
        for url in [
            "3000",
            ":3000",
            "localhost",
            "example.com",
            "http://api",
            "http://h/?a=b",
            "localhost?a=b",
            "api/x",
            "unix:/run/a.sock",
        ] {
            assert_eq!(spec(url), Spec::Unnamed(target(url)), "{url}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for bad in [
            "",
            "=3000",
            "api=",
            "API=3000",
            "a b=3000",
            "9x=3000",
            "localhost=3000",
            "a.b=3000",
            "api=ftp://x",
            "API",
            "-x",
            "é",
            "3000x",
            "api=api",
            "a=b=3000",
            &format!("{}=3000", "a".repeat(65)),
        ] {
            assert!(bad.parse::<Spec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_made_of_the_url_and_is_not_taken() {
        for (target, made) in [
            ("3000", "localhost-3000"),
            ("localhost", "host-localhost"),
            ("https://Hooks.Example.com/x", "hooks-example-com"),
            ("http://127.0.0.1:81", "host-127-0-0-1-81"),
            ("http://[::1]:9", "host-1--9"),
            ("unix:/run/app.sock", "app-sock"),
        ] {
            let target: Target = target.parse().expect("a target");
            let name = DestinationName::made_of(&target, |_| false);
            assert_eq!(name.as_str(), made);
            assert_eq!(name.as_str().parse(), Ok(name));
        }
        let target: Target = "3000".parse().expect("a target");
        let taken = DestinationName::made_of(&target, |name| name.as_str() != "localhost-3000-3");
        assert_eq!(taken.as_str(), "localhost-3000-3");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_shown_is_the_same(text in ".{0,20}") {
            if let Ok(spec) = text.parse::<Spec>() {
                prop_assert_eq!(spec.to_string().parse::<Spec>(), Ok(spec));
            }
        }

        #[test]
        fn a_made_name_is_a_name(host in "[a-zA-Z0-9.-]{1,50}", port in 1u16..) {
            if let Ok(target) = format!("http://{host}:{port}").parse::<Target>() {
                let made = DestinationName::made_of(&target, |_| false);
                prop_assert_eq!(made.as_str().parse::<DestinationName>(), Ok(made));
            }
        }
    }
}
