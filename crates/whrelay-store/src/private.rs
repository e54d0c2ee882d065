//! Files and directories that only their owner reads. It must not know what is in them.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Options for a file that only its owner may read. A link in its place is not followed.
pub(crate) fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;

        let no_link = rustix::fs::OFlags::NOFOLLOW.bits();
        options
            .mode(0o600)
            .custom_flags(i32::from_ne_bytes(no_link.to_ne_bytes()));
    }
    options
}

/// Creates a directory of ours, with those above it.
///
/// # Errors
/// When it cannot be created.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// Puts a file of ours there unless there is one, in one step: of two that draw at once, both find the same.
///
/// # Errors
/// When it is not on disk.
pub fn draw_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        create_private_dir(dir)?;
    }
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    write_private(&draft, bytes)?;
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Puts a file of ours there in one step: whoever looks finds the one before or this one, whole, also after a
/// power cut. A link that is there is replaced, not followed.
///
/// # Errors
/// When it is not on disk; then the one before is still there.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut draft = Draft::create(path)?;
    draft.write_all(bytes)?;
    draft.keep()
}

/// A file of ours that is written piece by piece, and is there when all of it is. Dropped before, it leaves what was
/// there before.
#[derive(Debug)]
pub struct Draft {
    file: File,
    draft: PathBuf,
    path: PathBuf,
    is_kept: bool,
}

impl Draft {
    /// Begins one in a directory of ours.
    ///
    /// # Errors
    /// When there cannot be such a file.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut draft = path.as_os_str().to_owned();
        draft.push(".new");
        let draft = PathBuf::from(draft);
        // One that was left behind may be readable by others.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        Self::begin(path, draft)
    }

    /// Begins one in a directory of the user's. The random number keeps its draft from replacing another file.
    ///
    /// # Errors
    /// When there cannot be such a file.
    pub fn create_among(path: &Path, random: u64) -> io::Result<Self> {
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{random:016x}"));
        Self::begin(path, path.with_file_name(name))
    }

    fn begin(path: &Path, draft: PathBuf) -> io::Result<Self> {
        Ok(Self {
            file: private_file().create_new(true).open(&draft)?,
            draft,
            path: path.to_owned(),
            is_kept: false,
        })
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// When it is not on disk.
    pub fn keep(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.draft, &self.path)?;
        self.is_kept = true;
        #[cfg(unix)]
        if let Some(dir) = self.path.parent() {
            let dir = match dir.as_os_str().is_empty() {
                true => Path::new("."),
                false => dir,
            };
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_kept {
            // A draft that stays harms nobody: only its owner can read it.
            let _ = fs::remove_file(&self.draft);
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_link_is_replaced_and_not_followed_and_others_read_nothing() {
        let dir = std::env::temp_dir().join(format!("whrelay-private-{}", std::process::id()));
        create_private_dir(&dir).expect("a directory");
        let (victim, link) = (dir.join("victim"), dir.join("link"));
        fs::write(&victim, "mine").expect("written");
        symlink(&victim, &link).expect("a link");
        private_file().open(&link).expect_err("a link");
        // The draft's own name may have been taken by a link, too.
        symlink(&victim, dir.join("link.new")).expect("a link");
        write_private(&link, b"new").expect("written");
        assert_eq!(fs::read(&victim).expect("there"), b"mine");
        let about = link.symlink_metadata().expect("there");
        assert!(about.is_file() && about.permissions().mode() & 0o777 == 0o600);
        let mut left = Draft::create(&link).expect("begun");
        left.write_all(b"half").expect("written");
        drop(left);
        assert_eq!(fs::read(&link).expect("there"), b"new");
        assert!(!dir.join("link.new").exists());
        fs::remove_dir_all(dir).expect("removed");
    }
}
