//! Which events go to which destination: by the path after the bucket key.

use std::fmt;
use std::str::FromStr;

use crate::destination::{Spec, SpecError};

/// Why a text is no route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// It is not a path and a target.
    #[error(
        "`{0}` is no route: write a path and a target or the name of a destination, as in \
         /stripe=localhost:4000 or /stripe=api"
    )]
    Shape(String),
    /// Its path is none.
    #[error("`{0}` is no path: it begins with / and has neither ? nor #")]
    Path(String),
    /// Its destination is none.
    #[error(transparent)]
    Destination(#[from] SpecError),
}

/// The beginning of a path, in whole segments: `/a` takes `/a` and `/a/b`, and not `/ab`. Bytes are
/// compared as the sender wrote them. The root takes everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(String);

impl Prefix {
    /// Whether it takes a tail.
    pub fn takes(&self, tail: &str) -> bool {
        let rest = tail.strip_prefix(&self.0);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// A slash at its end changes nothing.
impl FromStr for Prefix {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        if !text.starts_with('/') || text.contains(['?', '#']) {
            return Err(RouteError::Path(text.to_owned()));
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

/// A destination for the events under a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which events.
    pub prefix: Prefix,
    /// Where they go.
    pub to: Spec,
}

/// `/path=TARGET`, `/path=NAME` or `/path=NAME=TARGET`.
impl FromStr for Route {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        let (path, to) = text
            .split_once('=')
            .ok_or_else(|| RouteError::Shape(text.to_owned()))?;
        Ok(Self {
            prefix: path.parse()?,
            to: to.parse()?,
        })
    }
}

/// Of several, each under its prefix, those that take a tail: the ones with the longest prefix that does.
pub fn taking<'a, T>(
    routes: &'a [T],
    prefix: impl Fn(&T) -> &Prefix,
    tail: &str,
) -> impl Iterator<Item = &'a T> {
    let takes = |route: &&T| prefix(route).takes(tail);
    let longest = routes
        .iter()
        .filter(takes)
        .map(|route| prefix(route).0.len())
        .max();
    let mut found: Vec<&T> = routes.iter().filter(takes).collect();
    found.retain(|route| Some(prefix(route).0.len()) == longest);
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn routes(texts: &[&str]) -> Vec<Route> {
        texts
            .iter()
            .map(|text| text.parse().expect("a route"))
            .collect()
    }

    fn taken(routes: &[Route], tail: &str) -> Vec<u16> {
        let found = taking(routes, |route| &route.prefix, tail);
        let ports = found.map(|route| route.to.target().expect("a target").port());
        ports.collect()
    }

    #[test]
    fn the_longest_path_takes_it_and_the_root_takes_the_rest() {
        let all = routes(&[
            "/=3000",
            "/stripe/=3001",
            "/stripe/live=3002",
            "/stripe=3003",
        ]);
        for (tail, ports) in [
            ("", &[3000][..]),
            ("/", &[3000]),
            ("/stripe", &[3001, 3003]),
            ("/stripe/", &[3001, 3003]),
            ("/stripe/x", &[3001, 3003]),
            ("/stripes", &[3000]),
            ("/stripe/live", &[3002]),
            ("/stripe/live/x", &[3002]),
            ("/stripe/lively", &[3001, 3003]),
            ("/%73tripe", &[3000]),
            ("//stripe", &[3000]),
        ] {
            assert_eq!(taken(&all, tail), ports, "{tail}");
        }
        assert!(taken(&all[1..], "/github").is_empty());
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for bad in [
            "",
            "3000",
            "stripe=3000",
            "/stripe",
            "/stripe=",
            "/a?b=3000",
            "=3000",
            "/a=ftp://x",
            "/a=a b",
        ] {
            assert!(bad.parse::<Route>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn with_a_root_nothing_is_lost(tail in "(/[a-c]{0,2}){0,4}", paths in prop::collection::vec("(/[a-c]{1,2}){1,3}", 0..4)) {
            let mut all: Vec<Route> = paths
                .iter()
                .map(|path| format!("{path}=1").parse().expect("a route"))
                .collect();
            all.push("/=2".parse().expect("a route"));
            let ports = taken(&all, &tail);
            prop_assert!(!ports.is_empty());
            let some = paths.iter().any(|p| tail == *p || tail.starts_with(&format!("{p}/")));
            prop_assert_eq!(ports == [2], !some);
        }
    }
}
