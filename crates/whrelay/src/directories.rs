//! Which directory the agents of a forwarder have: one for each forwarder, however its URL is spelled.

use std::fs;
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
    ask: impl Future<Output = Result<Option<String>, Failure>>,
) -> Result<PathBuf, Failure> {
    let url = forwarder.as_str().trim_end_matches('/').to_owned();
    let dirs = paths.forwarders_of_agents();
    let noted = |dir: &PathBuf| Known::read(dir).map(|known| (dir.clone(), known));
    let all: Vec<_> = dirs.iter().filter_map(noted).collect();
    if let Some((dir, _)) = all.iter().find(|(_, known)| known.urls.contains(&url)) {
        return Ok(dir.clone());
    }
    // Versions before have left no notes.
    let mut unnoted = Vec::new();
    for dir in dirs.into_iter().filter(|dir| Known::read(dir).is_none()) {
        unnoted.extend(left(paths, &dir).await?.map(|known| (dir, known)));
    }
    if let Some((dir, known)) = unnoted.iter().find(|(_, known)| known.urls.contains(&url)) {
        known.write(dir)?;
        return Ok(dir.clone());
    }
    let store = ask.await?;
    let is_it = |known: &Known| store.is_some() && known.store == store;
    let mut known = all.into_iter().chain(unnoted);
    if let Some((dir, mut known)) = known.find(|(_, known)| is_it(known)) {
        known.urls.push(url);
        known.write(&dir)?;
        return Ok(dir);
    }
    let dir = unclaimed(paths, &url);
    // Without a token, and from an older forwarder, there is no name: nothing is noted.
    if let Some(store) = store {
        let made = whrelay_store::create_private_dir(&dir);
        made.map_err(|error| Failure::new(Code::Failed, format!("{}: {error}", dir.display())))?;
        let known = Known {
            store: Some(store),
            urls: vec![url],
        };
        known.write(&dir)?;
    }
    Ok(dir)
}

/// The first directory of this URL's name without agents.
fn unclaimed(paths: &Paths, url: &str) -> PathBuf {
    let taken = paths.all_agents();
    let is_free = |dir: &PathBuf| {
        Known::read(dir).is_none() && !taken.iter().any(|agent| agent.starts_with(dir))
    };
    let mut dirs = (1..).map(|n| paths.agents_of(url, n));
    dirs.find(is_free)
        .unwrap_or_else(|| paths.agents_of(url, 1))
}

/// Which forwarder the agents of a directory without a note have. `None` where none was ever reached.
async fn left(paths: &Paths, dir: &Path) -> Result<Option<Known>, Failure> {
    let mut known = Known::default();
    if dir == paths.embedded_agents() {
        return Ok(None);
    }
    for agent in paths
        .all_agents()
        .into_iter()
        .filter(|agent| agent.starts_with(dir))
    {
        for line in agents::gather(&agent, Ask::Status).await? {
            if let Line::Status(status) = line
                && !status.forwarder.is_empty()
            {
                let url = status.forwarder.trim_end_matches('/').to_owned();
                known
                    .urls
                    .extend(Some(url).filter(|url| !known.urls.contains(url)));
                known.store = known.store.or(status.forwarder_store);
            }
        }
    }
    Ok(Some(known).filter(|known| !known.urls.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn dir(paths: &Paths, url: &str, store: Option<&str>) -> PathBuf {
        let url = url.parse().expect("a URL");
        let store = store.map(str::to_owned);
        of_forwarder(paths, &url, std::future::ready(Ok(store)))
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

    /// Versions before left directories without notes.
    #[tokio::test]
    async fn a_directory_without_a_note_is_found_by_its_url_and_by_its_store() {
        let home = tempfile::tempdir().expect("a directory");
        let paths = Paths::under(home.path());
        let there = paths.agents_of("http://localhost:1", 1);
        let agent = there.join("shop").join("al");
        let store = whrelay_store::Store::open(&agent, &agents::options("test", None));
        let store = store.expect("a store");
        let bucket = "shop".parse().expect("a name");
        let key = whrelay_core::bucket::BucketKey::from_text("shop");
        let (bucket, _) = store
            .catalog
            .ensure_bucket(&bucket, key)
            .await
            .expect("stored");
        let note = store.catalog.set_note("forwarder", "http://localhost:1/");
        note.await.expect("stored");
        let mark = whrelay_store::SourceMark {
            forwarder: "a".to_owned(),
            start: whrelay_core::bucket::Seq(0),
            seq: whrelay_core::bucket::Seq(1),
            events: Vec::new(),
        };
        let marked = store.journal.receive(bucket.id, Vec::new(), Some(mark));
        marked.await.expect("stored");
        store.journal.close().await;
        assert_ne!(dir(&paths, "http://other:1", Some("b")).await, there);
        assert_eq!(dir(&paths, "http://127.0.0.1:1", Some("a")).await, there);
        assert_eq!(dir(&paths, "http://localhost:1", None).await, there);
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
