//! Which directory the agents of a forwarder have: one for each forwarder, however its URL is spelled.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use url::Url;
use whrelay_agent::control::Ask;
use whrelay_agent::lines::Line;

use crate::agents;
use crate::failure::{Code, Failure};
use crate::paths::Paths;

/// In the directory of a forwarder's agents: which forwarder that is.
const FILE: &str = "forwarder.json";

/// A forwarder that agents of this machine have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// The name of its store, where it has said that.
    store: Option<String>,
    /// The URLs by which it was reached.
    urls: Vec<String>,
}

impl Known {
    /// What is noted in a directory; nothing where that makes no sense.
    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }

    fn write(&self, dir: &Path) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            let why = format!("{}: {error}", dir.join(FILE).display());
            Failure::new(Code::Failed, why).hint("choose another place with WHRELAY_DATA_DIR")
        };
        let text = serde_json::to_vec(self).map_err(|error| failed(&error))?;
        whrelay_store::write_private(&dir.join(FILE), &text).map_err(|error| failed(&error))
    }
}

/// The directory of a forwarder's agents. A URL that was never used is asked for the name of the forwarder's store, by
/// which it is known under other URLs.
pub(crate) async fn of_forwarder(
    paths: &Paths,
    forwarder: &Url,
    ask: impl Future<Output = Option<String>>,
) -> Result<PathBuf, Failure> {
    let url = forwarder.as_str().trim_end_matches('/').to_owned();
    let all: Vec<_> = paths
        .forwarders_of_agents()
        .into_iter()
        .filter_map(|dir| Known::read(&dir).map(|known| (dir, known)))
        .collect();
    if let Some((dir, _)) = all.iter().find(|(_, known)| known.urls.contains(&url)) {
        return Ok(dir.clone());
    }
    let store = ask.await;
    let is_it = |known: &Known| store.is_some() && known.store == store;
    if let Some((dir, known)) = all.into_iter().find(|(_, known)| is_it(known)) {
        let mut known = known;
        known.urls.push(url);
        known.write(&dir)?;
        return Ok(dir);
    }
    let Some(store) = store else {
        // Nobody answers: the connection says why, and nothing is noted.
        return unclaimed(paths, &url).await;
    };
    let dir = claim(paths, &url).await?;
    let known = Known {
        store: Some(store),
        urls: vec![url],
    };
    known.write(&dir)?;
    Ok(dir)
}

/// A directory that no other forwarder's agents have, made where it is missing.
async fn claim(paths: &Paths, url: &str) -> Result<PathBuf, Failure> {
    let dir = unclaimed(paths, url).await?;
    let made = whrelay_store::create_private_dir(&dir);
    made.map_err(|error| Failure::new(Code::Failed, format!("{}: {error}", dir.display())))?;
    Ok(dir)
}

/// The first directory of this URL's name that no other forwarder's agents have.
async fn unclaimed(paths: &Paths, url: &str) -> Result<PathBuf, Failure> {
    let mut n = 1;
    loop {
        let dir = paths.agents_of(url, n);
        let is_free = match fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            Err(_) => false,
            Ok(_) => Known::read(&dir).is_none() && is_of(paths, &dir, url).await?,
        };
        if is_free {
            return Ok(dir);
        }
        n += 1;
    }
}

/// Whether the agents of a directory without a note, as versions before have left it, are of this forwarder.
async fn is_of(paths: &Paths, dir: &Path, url: &str) -> Result<bool, Failure> {
    for agent in paths
        .all_agents()
        .into_iter()
        .filter(|agent| agent.starts_with(dir))
    {
        for line in agents::gather(&agent, Ask::Status).await? {
            if let Line::Status(status) = line
                && !status.forwarder.is_empty()
            {
                return Ok(status.forwarder.trim_end_matches('/') == url);
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn dir(paths: &Paths, url: &str, store: Option<&str>) -> PathBuf {
        let url = url.parse().expect("a URL");
        let store = store.map(str::to_owned);
        of_forwarder(paths, &url, std::future::ready(store))
            .await
            .expect("a directory")
    }

    #[tokio::test]
    async fn one_forwarder_has_one_directory_and_two_never_share_one() {
        let home = tempfile::tempdir().expect("a directory");
        let paths = Paths::under(home.path());
        let first = dir(&paths, "http://h:1", Some("a")).await;
        assert_eq!(
            dir(&paths, "http://h:1/", None).await,
            first,
            "it is known by its URL"
        );
        let below = dir(&paths, "http://h/1", Some("b")).await;
        assert_ne!(below, first);
        assert_eq!(
            dir(&paths, "http://127.0.0.1:1", Some("a")).await,
            first,
            "by its store"
        );
        assert_eq!(dir(&paths, "http://127.0.0.1:1", None).await, first);
        assert_eq!(dir(&paths, "http://h/1", Some("b")).await, below);
        let urls = [
            "https://h:1",
            "http://h_1",
            "http://h:1/x",
            "http://[::1]:1",
        ];
        let mut all = vec![first, below];
        for (n, url) in urls.into_iter().enumerate() {
            all.push(dir(&paths, url, Some(&n.to_string())).await);
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 6);
    }

    #[tokio::test]
    async fn nothing_is_noted_of_a_forwarder_that_does_not_answer() {
        let home = tempfile::tempdir().expect("a directory");
        let paths = Paths::under(home.path());
        let there = dir(&paths, "http://h:1", None).await;
        assert!(!there.exists());
        assert_eq!(dir(&paths, "http://h:1", Some("a")).await, there);
    }
}
