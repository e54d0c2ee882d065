//! What a project's file may set, and which of these files this user has accepted. A cloned repository brings such a
//! file along: until it is accepted it sets nothing that could hurt its reader.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use whrelay_core::destination::Spec;
use whrelay_core::route::Route;
use whrelay_core::target::Target;

use super::file::Entry;
use super::source::{self, Source};

/// Where the files that were accepted are noted, in the user's data directory.
const DIR: &str = "trusted";
/// Keys that cannot hurt, whatever they say.
const HARMLESS: [&str; 8] = [
    "bucket",
    "color",
    "handoff_after",
    "max_in_flight",
    "order",
    "output",
    "rate",
    "retry_on",
];
/// Keys that cannot hurt unless they give events up, or hammer an endpoint.
const WITHIN_BOUNDS: [&str; 4] = ["deadline", "max_attempts", "schedule", "timeout"];
/// A shorter deadline would give up events that are queued at a forwarder.
const LEAST_DEADLINE: Duration = Duration::from_secs(600);
const LEAST_ATTEMPTS: u32 = 2;
const LEAST_PAUSE: Duration = Duration::from_secs(1);
const LEAST_TIMEOUT: Duration = Duration::from_secs(1);
/// Pauses and targets of a file at most.
const MOST_VALUES: usize = 64;

/// How far a value is trusted, by where it is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// A project's file.
    Project,
    /// A project's file that the user has accepted as it is.
    TrustedProject,
    /// What the user has typed, set in the environment or written into their own file.
    User,
}

/// Whether any value of an entry's key can be tried on its flag: none of these flags opens a file for it.
pub(crate) fn is_plain(entry: &Entry) -> bool {
    let key = &entry.key[..];
    matches!(key, "to" | "route") || HARMLESS.contains(&key) || WITHIN_BOUNDS.contains(&key)
}

/// Whether an entry cannot hurt: events stay on this machine, no file is written, and no token is sent.
pub(crate) fn is_harmless(entry: &Entry) -> bool {
    let is_local = |target: &Target| target.is_loopback() && target.socket().is_none();
    let every =
        |is_harmless: &dyn Fn(&str) -> bool| entry.values.iter().all(|value| is_harmless(value));
    let at_least = |value: &str, least: Duration| {
        let given = humantime::parse_duration(value.trim()).ok();
        given.is_some_and(|given| given.is_zero() || given >= least)
    };
    if entry.values.len() > MOST_VALUES {
        return false;
    }
    match &entry.key[..] {
        "deadline" => every(&|value| at_least(value, LEAST_DEADLINE)),
        "timeout" => every(&|value| at_least(value, LEAST_TIMEOUT)),
        "max_attempts" => every(&|value| {
            let given = value.parse::<u32>().ok();
            given.is_some_and(|given| given == 0 || given >= LEAST_ATTEMPTS)
        }),
        "schedule" => every(&|value| {
            matches!(value, "seconds" | "medium" | "long")
                || value.split(',').count() <= MOST_VALUES
                    && value.split(',').all(|pause| at_least(pause, LEAST_PAUSE))
        }),
        "to" => {
            let mut all = entry.values.iter().map(|text| text.parse::<Spec>());
            all.all(|to| to.is_ok_and(|to| to.target().is_none_or(is_local)))
        }
        "route" => {
            let routes = || entry.values.iter().flat_map(|text| text.split(' '));
            let few = routes().count() <= MOST_VALUES;
            few && routes().all(|text| {
                let route = text.parse::<Route>();
                route.is_ok_and(|route| route.to.target().is_none_or(is_local))
            })
        }
        key => HARMLESS.contains(&key),
    }
}

/// The files that were accepted.
pub(crate) struct Trusted {
    dir: PathBuf,
}

impl Trusted {
    /// Those of a data directory.
    pub(crate) fn of(data: &Path) -> Self {
        Self {
            dir: data.join(DIR),
        }
    }

    /// Whether this very file was accepted with these very bytes.
    pub(crate) fn has(&self, path: &Path, text: &str) -> bool {
        let Ok((note, path)) = self.note(path) else {
            return false;
        };
        // In a directory that somebody else made, a note may be somebody else's.
        let noted = source::read(&note).ok().flatten();
        matches!(noted, Some(Source::Text(noted)) if noted == content(&path, text))
    }

    /// Accepts a file with these bytes.
    pub(crate) fn accept(&self, path: &Path, text: &str) -> io::Result<()> {
        let (note, path) = self.note(path)?;
        whrelay_store::create_private_dir(&self.dir)?;
        whrelay_store::write_private(&note, content(&path, text).as_bytes())
    }

    /// Accepts a file no more. Says whether it was accepted.
    pub(crate) fn forget(&self, path: &Path) -> io::Result<bool> {
        let (note, _) = self.note(path)?;
        match fs::remove_file(note) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where a file is noted, and its path without links.
    fn note(&self, path: &Path) -> io::Result<(PathBuf, PathBuf)> {
        // A link to an accepted file is not that file: what it names would be other files here.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = dir.unwrap_or(Path::new(".")).canonicalize()?;
        let path = dir.join(path.file_name().unwrap_or_default());
        let name = hex(path.as_os_str().as_encoded_bytes());
        Ok((self.dir.join(name), path))
    }
}

fn content(path: &Path, text: &str) -> String {
    format!("{} {}\n", hex(text.as_bytes()), path.display())
}

fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, values: &[&str]) -> Entry {
        Entry {
            profile: None,
            destination: None,
            key: key.to_owned(),
            values: values.iter().map(|value| (*value).to_owned()).collect(),
            line: 1,
        }
    }

    #[test]
    fn a_project_sends_events_nowhere_but_to_ports_of_this_machine() {
        for (key, values, harmless) in [
            (
                "to",
                &["3000", "localhost:4000/base", "http://[::1]:1"][..],
                true,
            ),
            ("to", &["127.0.0.2:80", "api", "api=3000"], true),
            ("to", &["api=http://evil.test"], false),
            ("to", &["3000", "http://evil.test"], false),
            ("to", &["http://localhost.evil.test"], false),
            ("to", &["http://127.0.0.1.evil.test"], false),
            ("to", &["http://10.0.0.1"], false),
            ("to", &["unix:/run/docker.sock"], false),
            ("to", &["not a target"], false),
            ("route", &["/a=3000 /b=localhost:4000"], true),
            ("route", &["/a=3000 /b=http://evil.test"], false),
            ("route", &["/a=unix:/run/docker.sock"], false),
            ("deadline", &["0s"], true),
            ("deadline", &["1h"], true),
            ("deadline", &["1ns"], false),
            ("max_attempts", &["3"], true),
            ("max_attempts", &["1"], false),
            ("schedule", &["30s,5m"], true),
            ("schedule", &["30s,1ns"], false),
            ("schedule", &["long"], true),
            ("timeout", &["0s"], true),
            ("timeout", &["1ms"], false),
        ] {
            assert_eq!(
                is_harmless(&entry(key, values)),
                harmless,
                "{key} {values:?}"
            );
        }
    }

    #[test]
    fn whatever_is_not_listed_can_hurt() {
        for key in [
            "name",
            "forwarder",
            "token",
            "token_file",
            "bind",
            "ready_file",
            "ca_file",
            "header",
            "insecure",
            "host_header",
            "retain",
            "max_disk",
            "backlog",
            "since",
            "public_url",
            "forwarder_data_dir",
            "secret",
            "quiet",
            "a_key_of_the_future",
        ] {
            assert!(!is_harmless(&entry(key, &["1"])), "{key}");
        }
    }

    #[test]
    fn a_file_is_accepted_as_it_is_and_where_it_is() {
        let dir = std::env::temp_dir().join(format!("whrelay-{:016x}", rand::random::<u64>()));
        let (one, other) = (dir.join("one.toml"), dir.join("other.toml"));
        fs::create_dir(&dir).expect("a directory");
        for path in [&one, &other] {
            fs::write(path, "bind = 1").expect("written");
        }
        let trusted = Trusted::of(&dir);
        assert!(!trusted.has(&one, "bind = 1"));
        trusted.accept(&one, "bind = 1").expect("accepted");
        assert!(trusted.has(&one, "bind = 1"));
        assert!(!trusted.has(&one, "bind = 2") && !trusted.has(&other, "bind = 1"));
        assert!(trusted.forget(&one).expect("forgotten"));
        assert!(!trusted.has(&one, "bind = 1") && !trusted.forget(&one).expect("nothing to do"));
        fs::remove_dir_all(dir).expect("removed");
    }
}
