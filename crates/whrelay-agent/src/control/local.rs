//! The local socket of the control API: only processes of its user can connect.

#[cfg(unix)]
pub(super) use self::unix::{Listener, Stream, through};
#[cfg(windows)]
pub(super) use self::windows::{Listener, Stream, through};

/// A Unix socket in a directory that only its owner may enter. Loopback TCP would be open to every user of the machine,
/// who could also answer at a port that is free for a moment.
#[cfg(unix)]
mod unix {
    use std::fs::{self, DirBuilder, Permissions};
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::io;
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
    use std::path::{Path, PathBuf};

    use reqwest::ClientBuilder;
    use tokio::net::UnixListener;

    pub(in super::super) type Stream = tokio::net::UnixStream;

    /// Connections of this user.
    #[derive(Debug)]
    pub(in super::super) struct Listener {
        listener: UnixListener,
        path: PathBuf,
        user: u32,
    }

    impl Listener {
        /// Binds the socket of a data directory, which the caller has locked. A socket's path is short (104 bytes on
        /// some systems), and not every file system has sockets: they are in a directory for them.
        pub(in super::super) fn bind(data: &Path, below: &[PathBuf]) -> io::Result<Self> {
            let user = rustix::process::geteuid().as_raw();
            let name = format!("{:016x}.sock", hash(data)?);
            let bases = below.iter().map(PathBuf::as_path).chain([data]);
            let mut failed = io::Error::from(io::ErrorKind::NotFound);
            for base in bases {
                let dir = private_dir(base, user);
                match dir.and_then(|dir| listen(&dir.join(&name))) {
                    Ok((listener, path)) => {
                        return Ok(Self {
                            listener,
                            path,
                            user,
                        });
                    }
                    Err(error) => failed = error,
                }
            }
            Err(failed)
        }

        pub(in super::super) fn path(&self) -> &Path {
            &self.path
        }

        /// The next connection of a process of this user's, or of the administrator's.
        pub(in super::super) async fn accept(&self) -> io::Result<Stream> {
            loop {
                let (stream, _) = self.listener.accept().await?;
                let peer = stream.peer_cred()?.uid();
                if peer == self.user || peer == 0 {
                    return Ok(stream);
                }
                tracing::warn!(uid = peer, "another user tried to control this agent");
            }
        }
    }

    impl Drop for Listener {
        fn drop(&mut self) {
            // What is left behind is replaced at the next start.
            let _ = fs::remove_file(&self.path);
            // One that was made since somebody else had its name, and only if nothing else is in it.
            let usual = format!("whrelay-{}", self.user);
            if let Some(dir) = self.path.parent()
                && !dir.ends_with(usual)
            {
                let _ = fs::remove_dir(dir);
            }
        }
    }

    fn listen(path: &Path) -> io::Result<(UnixListener, PathBuf)> {
        // Whoever holds the lock of the data directory is the only one that has this name.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok((listener, path.to_owned()))
    }

    fn hash(data: &Path) -> io::Result<u64> {
        let mut hasher = DefaultHasher::new();
        data.canonicalize()?.hash(&mut hasher);
        Ok(hasher.finish())
    }

    /// A directory of this user's below another. Where somebody else has its name, it gets another one.
    fn private_dir(base: &Path, user: u32) -> io::Result<PathBuf> {
        let create = |dir: &Path| DirBuilder::new().mode(0o700).create(dir);
        let dir = base.join(format!("whrelay-{user}"));
        match create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        if is_private(&dir, user) {
            return Ok(dir);
        }
        let dir = base.join(format!("whrelay-{user}-{:08x}", rand::random::<u32>()));
        create(&dir)?;
        Ok(dir)
    }

    /// Whether only this user may enter a directory.
    fn is_private(dir: &Path, user: u32) -> bool {
        let about = dir.symlink_metadata();
        about.is_ok_and(|about| about.is_dir() && about.uid() == user && about.mode() & 0o077 == 0)
    }

    /// A client of the socket of a data directory, if nobody but its owner can have put it there.
    pub(in super::super) fn through(
        client: ClientBuilder,
        data: &Path,
        socket: &Path,
    ) -> Option<ClientBuilder> {
        let owner = data.metadata().ok()?.uid();
        let is_ours = is_private(socket.parent()?, owner);
        is_ours.then(|| client.unix_socket(socket))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn scratch() -> PathBuf {
            let dir = std::env::temp_dir().join(format!("whr-{:08x}", rand::random::<u32>()));
            DirBuilder::new().mode(0o700).create(&dir).expect("made");
            dir
        }

        #[tokio::test]
        async fn a_socket_is_where_only_its_owner_gets() {
            let (base, data) = (scratch(), scratch());
            let listener = Listener::bind(&data, std::slice::from_ref(&base)).expect("bound");
            let path = listener.path().to_owned();
            assert!(path.starts_with(&base));
            let mode = |path: &Path| path.symlink_metadata().expect("there").mode() & 0o777;
            assert_eq!(
                (mode(&path), mode(path.parent().expect("one"))),
                (0o600, 0o700)
            );
            let client = reqwest::Client::builder;
            assert!(through(client(), &data, &path).is_some());
            // Somebody else's directory has other rights or another owner.
            fs::set_permissions(path.parent().expect("one"), Permissions::from_mode(0o755))
                .expect("set");
            assert!(through(client(), &data, &path).is_none());
            let next = Listener::bind(&data, std::slice::from_ref(&base)).expect("bound");
            assert_ne!(next.path().parent(), path.parent());
            drop((listener, next));
            assert!(!path.exists());
            for dir in [base, data] {
                fs::remove_dir_all(dir).expect("removed");
            }
        }

        #[tokio::test]
        async fn without_a_directory_for_sockets_it_is_in_the_data_directory() {
            let data = scratch();
            let long = data.join("x".repeat(120));
            fs::create_dir(&long).expect("made");
            // Others may look into some data directories.
            fs::set_permissions(&data, Permissions::from_mode(0o755)).expect("set");
            for base in [data.join("missing"), long] {
                let listener = Listener::bind(&data, &[base]).expect("bound");
                assert!(
                    listener.path().starts_with(&data) && listener.path().as_os_str().len() < 104
                );
                let client = reqwest::Client::builder();
                assert!(through(client, &data, listener.path()).is_some());
            }
            fs::remove_dir_all(data).expect("removed");
        }
    }
}

/// A named pipe of a random name, which the data directory tells.
#[cfg(windows)]
mod windows {
    use std::io;
    use std::path::{Path, PathBuf};

    use interprocess::os::windows::named_pipe::tokio::{DuplexPipeStream, PipeListener};
    use interprocess::os::windows::named_pipe::{PipeListenerOptions, pipe_mode};
    use interprocess::os::windows::security_descriptor::SecurityDescriptor;
    use reqwest::ClientBuilder;
    use widestring::{U16CStr, u16cstr};

    pub(in super::super) type Stream = DuplexPipeStream<pipe_mode::Bytes>;

    /// All rights for the pipe's owner, and nothing for anyone else: inherited entries do not count.
    const ONLY_ITS_OWNER: &U16CStr = u16cstr!("D:P(A;;GA;;;OW)");

    /// Connections of this user.
    #[derive(Debug)]
    pub(in super::super) struct Listener {
        listener: PipeListener<pipe_mode::Bytes, pipe_mode::Bytes>,
        path: PathBuf,
    }

    impl Listener {
        /// Creates the pipe as the first of its name: whoever had the name before would get what is meant for us.
        /// Other machines are rejected.
        pub(in super::super) fn bind(_data: &Path, _below: &[PathBuf]) -> io::Result<Self> {
            let path = PathBuf::from(format!(r"\\.\pipe\whrelay-{:032x}", rand::random::<u128>()));
            let listener = PipeListenerOptions::new()
                .path(path.as_path())
                .accept_remote(false)
                .security_descriptor(Some(SecurityDescriptor::deserialize(ONLY_ITS_OWNER)?))
                .create_tokio_duplex()?;
            Ok(Self { listener, path })
        }

        pub(in super::super) fn path(&self) -> &Path {
            &self.path
        }

        pub(in super::super) async fn accept(&self) -> io::Result<Stream> {
            self.listener.accept().await
        }
    }

    pub(in super::super) fn through(
        client: ClientBuilder,
        _data: &Path,
        socket: &Path,
    ) -> Option<ClientBuilder> {
        Some(client.windows_named_pipe(socket.as_os_str()))
    }
}
