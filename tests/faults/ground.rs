//! A file system of its own, on a file, whose power can be cut: what was not synced is gone, as after
//! a real cut. Needs root, e2fsprogs and xfsprogs.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Sparse: only what is written takes space. XFS wants at least 300 MiB.
const SIZE: &str = "1G";

/// A kind of file system.
#[derive(Clone, Copy, Debug, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum Kind {
    Ext4,
    Xfs,
}

/// A mounted file system.
pub(crate) struct Ground {
    dir: TempDir,
    pub(crate) kind: Kind,
}

impl Ground {
    pub(crate) fn new(kind: Kind) -> Self {
        Self::of_size(kind, SIZE)
    }

    pub(crate) fn of_size(kind: Kind, size: &str) -> Self {
        let ground = Self {
            dir: tempfile::tempdir().unwrap(),
            kind,
        };
        std::fs::create_dir(ground.path()).unwrap();
        run("truncate", &["-s", size, &ground.image()]);
        match kind {
            Kind::Ext4 => run("mkfs.ext4", &["-q", &ground.image()]),
            Kind::Xfs => run("mkfs.xfs", &["-q", &ground.image()]),
        }
        ground.mount();
        ground
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    fn image(&self) -> String {
        text(&self.dir.path().join("image"))
    }

    fn mount(&self) {
        run("mount", &["-o", "loop", &self.image(), &text(&self.path())]);
    }

    /// Puts everything so far on the disk.
    pub(crate) fn sync(&self) {
        run("sync", &["-f", &text(&self.path())]);
    }

    /// Cuts the power: from here on nothing reaches the disk, the journal included.
    pub(crate) fn cut(&self) {
        let path = text(&self.path());
        run("xfs_io", &["-F", "-x", "-c", "shutdown", &path]);
    }

    /// Power again: unmounts what is left and mounts it, which replays the journal.
    pub(crate) fn restore(&self) {
        run("umount", &[&text(&self.path())]);
        self.mount();
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // It may be unmounted already.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {args:?}: {status}");
}
