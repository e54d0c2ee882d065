//! Copies of a store that were made while it changed: they serve, or say that they are damaged. None is silent.

use std::cell::Cell;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::eventually;
use crate::process::{Cloud, Home, Process};
use crate::sender::{client, path_of};

const PAGE: usize = 4096;
/// Parts in which a file is copied; events are stored between them.
const PARTS: u64 = 16;

/// A forwarder that is written to while it is copied.
struct Busy {
    cloud: Cloud,
    input: String,
    client: reqwest::Client,
    stored: Cell<usize>,
}

impl Busy {
    async fn start(home: &Home) -> Self {
        let cloud = Cloud::start(home).await;
        let token = std::fs::read_to_string(&cloud.token_file).unwrap();
        let bucket = format!("{}/v1/buckets/shop", cloud.url);
        let made = client().put(bucket).bearer_auth(token.trim()).send().await;
        let made: Value = made.unwrap().json().await.unwrap();
        Self {
            cloud,
            input: made["url"].as_str().unwrap().to_owned(),
            client: client(),
            stored: Cell::default(),
        }
    }

    async fn store(&self, events: usize) {
        for _ in 0..events {
            let n = self.stored.replace(self.stored.get() + 1);
            let body = vec![b'x'; 100 + 997 * n % 20_000];
            let sent = self.client.post(&self.input).body(body).send().await;
            assert_eq!(sent.unwrap().status(), 200);
        }
    }

    fn dir(&self) -> &Path {
        Path::new(&self.cloud.token_file).parent().unwrap()
    }

    /// Copies the directory as `cp -r` does, and stores so many events meanwhile, after each part of its file.
    async fn copy(&self, to: &Path, meanwhile: usize) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(self.dir()).unwrap() {
            let from = entry.unwrap().path();
            let mut file = std::fs::File::open(&from).unwrap();
            let mut copy = std::fs::File::create(to.join(from.file_name().unwrap())).unwrap();
            let part = file.metadata().unwrap().len() / PARTS;
            let mut buffer = vec![0; part.max(PAGE as u64) as usize];
            loop {
                let read = file.read(&mut buffer).unwrap();
                if read == 0 {
                    break;
                }
                copy.write_all(&buffer[..read]).unwrap();
                if from.ends_with("store.redb") {
                    self.store(meanwhile).await;
                }
            }
        }
    }
}

/// What a copy's file is made of, beside how it was copied.
fn alter(dir: &Path, before: Option<&Path>, how: usize) {
    let path = dir.join("store.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    match (how % 4, before) {
        // Cut off, as when the copy did not end.
        (1, _) => bytes.truncate(bytes.len() * 2 / 3 / PAGE * PAGE),
        // Some pages of an earlier copy, as a tool leaves them that skips what it takes for unchanged.
        (2, Some(before)) => {
            let other = std::fs::read(before.join("store.redb")).unwrap();
            let pages = bytes.chunks_mut(PAGE).zip(other.chunks(PAGE));
            for (page, other) in pages.skip(1).step_by(5) {
                page[..other.len()].copy_from_slice(other);
            }
        }
        // The first pages of an earlier copy.
        (3, Some(before)) => {
            let other = std::fs::read(before.join("store.redb")).unwrap();
            let len = (bytes.len() / 2).min(other.len());
            bytes[..len].copy_from_slice(&other[..len]);
        }
        (_, _) => return,
    }
    std::fs::write(path, bytes).unwrap();
}

/// What became of a copy that was started.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Refused,
    Stopped,
    Serves,
    /// It says that it takes nothing in.
    Names,
}

async fn started(home: &Home, dir: &Path, input: &str) -> (Fate, String) {
    let dir_text = dir.to_str().unwrap();
    let args = ["forwarder", "--json", "--bind", "127.0.0.1:0", "--data-dir"];
    let mut process = home.start(&[&args[..], &[dir_text]].concat());
    let settled = || {
        let ready = process.all("ready").pop();
        (ready.is_some() || process.has_ended()).then_some(ready)
    };
    let ready = eventually("it is ready or has ended", settled).await;
    let Some(ready) = ready else {
        return (Fate::Refused, refusal(&mut process, dir_text).await);
    };
    let url = ready["url"].as_str().unwrap();
    for _ in 0..3 {
        let sent = client()
            .post(format!("{url}{}", path_of(input)))
            .body("x")
            .send()
            .await;
        let Ok(answer) = sent else {
            return (Fate::Stopped, refusal(&mut process, dir_text).await);
        };
        if answer.status() == 200 {
            continue;
        }
        let ready = client().get(format!("{url}/readyz")).send().await;
        let said = match ready {
            Ok(ready) => ready.text().await.unwrap_or_default(),
            Err(_) => return (Fate::Stopped, refusal(&mut process, dir_text).await),
        };
        if said.contains("damaged") {
            return (Fate::Names, process.stderr());
        }
        // It answered before it stopped.
        return (Fate::Stopped, refusal(&mut process, dir_text).await);
    }
    let ended = process.terminate().await;
    assert_eq!(ended, Some(0), "{}", process.stderr());
    (Fate::Serves, process.stderr())
}

/// It has ended, and says why and what helps.
async fn refusal(process: &mut Process, dir: &str) -> String {
    let ended = process.ended().await;
    let said = process.stderr();
    assert_eq!(ended.code(), Some(1), "{said}");
    assert!(said.contains("error: "), "{said}");
    // A file may be too damaged even to be closed: then nobody knows any more which one it was.
    let hints = [dir, "<data-directory>"].map(|dir| format!("hint: `whrelay doctor {dir}`"));
    assert!(hints.iter().any(|hint| said.contains(hint)), "{said}");
    said
}

/// How many copies `doctor` finds whole, and how many damaged.
#[derive(Debug, Default)]
pub struct Found {
    /// Whole ones.
    pub whole: usize,
    /// Damaged ones.
    pub damaged: usize,
}

/// Copies the store of a forwarder in `there` while events are stored, so many times, spoils some of the copies
/// further, and tries each in `here`.
pub async fn try_copies(there: &Home, here: &Home, copies: usize) -> Found {
    let busy = Busy::start(there).await;
    busy.store(300).await;
    let mut before: Option<PathBuf> = None;
    let mut found = Found::default();
    for n in 0..copies {
        let raw = here.path().join(format!("raw-{n}"));
        // Every eighth copy has luck: nothing is written meanwhile.
        let is_lucky = n % 8 == 0;
        busy.copy(&raw, if is_lucky { 0 } else { 2 }).await;
        let dir = here.path().join(format!("copy-{n}"));
        std::fs::create_dir(&dir).unwrap();
        for entry in std::fs::read_dir(&raw).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
        alter(&dir, before.as_deref(), n);
        let is_whole = try_copy(here, &dir, &busy.input, n).await;
        assert!(is_whole || !is_lucky, "{n}: a whole copy is called damaged");
        match is_whole {
            true => found.whole += 1,
            false => found.damaged += 1,
        }
        std::fs::remove_dir_all(dir).unwrap();
        if let Some(older) = before.replace(raw) {
            std::fs::remove_dir_all(older).unwrap();
        }
    }
    found
}

/// Looks at a copy, and starts it. Says whether it is whole.
async fn try_copy(home: &Home, dir: &Path, input: &str, n: usize) -> bool {
    let file = std::fs::read(dir.join("store.redb")).unwrap();
    let doctor = home.run(&["doctor", dir.to_str().unwrap()]);
    let said = [doctor.stdout, doctor.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(!said.contains("panicked"), "{n}: {said}");
    let is_whole = match doctor.status.code() {
        Some(0) => true,
        Some(1) => false,
        other => panic!("{n}: {other:?} {said}"),
    };
    assert!(is_whole || said.contains("damaged"), "{n}: {said}");
    let after = std::fs::read(dir.join("store.redb")).unwrap();
    assert!(file == after, "{n}: doctor has changed the file");

    let (fate, log) = started(home, dir, input).await;
    assert!(!log.contains("panicked"), "{n}: {log}");
    if is_whole {
        assert_eq!(fate, Fate::Serves, "{n}: {said}{log}");
    }
    is_whole
}
