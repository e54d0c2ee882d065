//! Where things are on this machine. It must not open them.

use std::fs;
use std::path::{Path, PathBuf};

use directories::ProjectDirs;
use whrelay_core::bucket::BucketName;
use whrelay_store::Role;

use crate::failure::{Code, Failure};
use crate::output::Output;

const STORE_FILE: &str = "store.redb";
/// Keeps the name drawn for a data directory.
const NAME_FILE: &str = "name";
/// What every agent was called before names were drawn.
const OLD_NAME: &str = "default";

/// The places of this user's whrelay.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    data: PathBuf,
}

impl Paths {
    /// From `WHRELAY_DATA_DIR`, or the platform's conventions.
    pub(crate) fn resolve() -> Result<Self, Failure> {
        let chosen = std::env::var_os("WHRELAY_DATA_DIR").filter(|dir| !dir.is_empty());
        let data = match chosen {
            Some(dir) => PathBuf::from(dir),
            None => {
                let dirs = ProjectDirs::from("", "", "whrelay").ok_or_else(|| {
                    Failure::new(Code::Failed, "this user has no home directory")
                        .hint("say where data may go with WHRELAY_DATA_DIR")
                })?;
                dirs.data_dir().to_owned()
            }
        };
        let paths = Self { data };
        // What may not be looked at is not empty.
        for dir in [paths.data.clone(), paths.agents()] {
            let denied = fs::read_dir(&dir).err();
            let denied = denied.filter(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
            if let Some(error) = denied {
                let why = format!("{}: {error}", dir.display());
                return Err(Failure::new(Code::Failed, why)
                    .hint("run this as the user whose directory it is, or set WHRELAY_DATA_DIR"));
            }
        }
        Ok(paths)
    }

    /// Where everything is.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Under a directory of its own, for the demo.
    pub(crate) fn under(dir: &Path) -> Self {
        Self {
            data: dir.to_owned(),
        }
    }

    /// The name of this data directory's agents where none is given, of a forwarder whose agents are in `forwarder`. It
    /// is drawn once, so that two machines do not take each other's subscription; an agent that has a store under the
    /// old default keeps it, and so does one of an embedded forwarder, which only this machine reaches.
    pub(crate) fn default_name(
        &self,
        forwarder: Option<&Path>,
        bucket: &BucketName,
    ) -> Result<BucketName, Failure> {
        let bug = |e| Failure::new(Code::Bug, format!("{e}"));
        let old: BucketName = OLD_NAME.parse().map_err(bug)?;
        let is_old = |agents: &Path| {
            let store = agents
                .join(bucket.as_str())
                .join(old.as_str())
                .join(STORE_FILE);
            store.exists()
        };
        if forwarder.is_none_or(is_old) {
            return Ok(old);
        }
        let path = self.data.join(NAME_FILE);
        let failed = |e: std::io::Error| {
            Failure::new(Code::Failed, format!("{}: {e}", path.display()))
                .hint("choose a name with --name, or another data directory with WHRELAY_DATA_DIR")
        };
        let read = |text: String| text.trim().parse::<BucketName>();
        match fs::read_to_string(&path) {
            Ok(text) => return read(text).map_err(|e| failed(std::io::Error::other(e))),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            Err(_) => {}
        }
        whrelay_store::draw_private(&path, draw_name().as_bytes()).map_err(failed)?;
        let drawn = fs::read_to_string(&path).map_err(failed)?;
        read(drawn).map_err(|e| failed(std::io::Error::other(e)))
    }

    /// The directory of the agents of embedded forwarders.
    pub(crate) fn embedded_agents(&self) -> PathBuf {
        self.agents().join("embedded")
    }

    /// The `n`th directory that is named after a forwarder's URL.
    pub(crate) fn agents_of(&self, url: &str, n: u32) -> PathBuf {
        let name = file_name(url);
        self.agents().join(match n {
            1 => name,
            n => format!("{name}-{n}"),
        })
    }

    /// The directories of the agents of each forwarder.
    pub(crate) fn forwarders_of_agents(&self) -> Vec<PathBuf> {
        subdirs(&self.agents())
    }

    /// The data of the embedded forwarder of a bucket.
    pub(crate) fn embedded(&self, bucket: &BucketName) -> PathBuf {
        self.data.join("embedded").join(bucket.as_str())
    }

    /// The data of `whrelay forwarder`.
    pub(crate) fn forwarder(&self) -> PathBuf {
        self.data.join("forwarder")
    }

    /// The directories of all agents that ever ran, sorted.
    pub(crate) fn all_agents(&self) -> Vec<PathBuf> {
        let below = |dirs: Vec<PathBuf>| dirs.iter().flat_map(|dir| subdirs(dir)).collect();
        let names: Vec<PathBuf> = below(below(subdirs(&self.agents())));
        names
            .into_iter()
            .filter(|dir| dir.join(STORE_FILE).exists())
            .collect()
    }

    /// The directories of all stores, and whose they are.
    pub(crate) fn all_stores(&self) -> Vec<(PathBuf, Role)> {
        let agents = self.all_agents().into_iter().map(|dir| (dir, Role::Agent));
        let embedded = subdirs(&self.data.join("embedded")).into_iter();
        let forwarders = embedded
            .chain([self.forwarder()])
            .filter(|dir| dir.join(STORE_FILE).exists())
            .map(|dir| (dir, Role::Forwarder));
        agents.chain(forwarders).collect()
    }

    fn agents(&self) -> PathBuf {
        self.data.join("agents")
    }
}

/// Directories for what is needed only while a process runs, such as sockets, the best first.
pub(crate) fn runtime_dirs() -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let runtime = runtime.map(PathBuf::from);
    runtime.into_iter().chain([std::env::temp_dir()]).collect()
}

/// Why what is kept in a directory does not outlast the machine or container it is on, where that is so.
fn is_fleeting(dir: &Path) -> Option<&'static str> {
    #[cfg(target_os = "linux")]
    {
        const OVERLAY: i64 = 0x794c_7630;
        const TMPFS: i64 = 0x0102_1994;
        const RAMFS: i64 = 0x8584_58f6;
        let there = dir.ancestors().find(|dir| dir.exists())?;
        match rustix::fs::statfs(there).ok()?.f_type {
            OVERLAY => {
                Some("on a container's own file system and is lost with it: mount a volume there")
            }
            TMPFS | RAMFS => Some("in memory and is lost at a reboot: choose another directory"),
            _ => None,
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = dir;
        None
    }
}

/// Warns of a data directory that does not last.
pub(crate) fn warn_if_fleeting(dir: &Path, output: &Output) {
    if let Some(why) = is_fleeting(dir) {
        output.tell(&format!(
            "warning: the data directory {} is {why}",
            dir.display()
        ));
    }
}

/// A name that no other machine draws.
fn draw_name() -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let letter = || char::from(ALPHABET[usize::from(rand::random::<u8>() & 31)]);
    (0..12).map(|_| letter()).collect()
}

/// A directory that is gone when its owner is.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new one, for a command.
    pub(crate) fn new(command: &str) -> Result<Self, Failure> {
        let name = format!("whrelay-{command}-{:016x}", rand::random::<u64>());
        let dir = std::env::temp_dir().join(name);
        let made = whrelay_store::create_private_dir(&dir);
        made.map_err(|e| Failure::new(Code::Failed, format!("{}: {e}", dir.display())))?;
        Ok(Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left-overs in a temporary directory harm nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    // What cannot be listed holds no agent of this user's.
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut dirs: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    dirs.sort();
    dirs
}

/// A URL as a directory's name, which others may have, too.
fn file_name(url: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
            c
        } else {
            '_'
        }
    };
    url.replace("://", "_").chars().map(plain).collect()
}
