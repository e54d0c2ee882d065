//! What can go wrong with a store, and whether waiting helps. It must not know who shows it.

use std::path::{Path, PathBuf};

/// Why a store could not be opened. Nothing on disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{path} is already in use by pid {pid} ({purpose})", path = .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process that has it.
        pid: u32,
        /// What that process does with it.
        purpose: String,
    },
    /// The directory or file cannot be created, read or written.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is not a store of whrelay's.
    #[error("{path} is not a whrelay store; it was left as it is", path = .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file is a store that cannot be read.
    #[error("{path} is damaged ({detail}); it was left as it is", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The file was written by a later version.
    #[error("{path} has format {found}; this whrelay reads up to format {supported}", path = .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format this version reads.
        supported: u32,
    },
    /// The file was written by an earlier version, whose format nothing reads any more.
    #[error("{path} has format {found}, from before the first release; this whrelay reads format {supported}", path = .path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The oldest format this version reads.
        supported: u32,
    },
    /// An agent's store where a forwarder's was expected, or the other way round.
    #[error("{path} is the store of the {found}, not of the {wanted}", path = .path.display())]
    Role {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it had to be.
        wanted: &'static str,
    },
}

impl OpenError {
    /// Whether trying again later may succeed without anyone doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::InUse { .. } => true,
            Self::Io { error, .. } => error.kind() == std::io::ErrorKind::StorageFull,
            Self::Foreign { .. }
            | Self::Damaged { .. }
            | Self::Newer { .. }
            | Self::Older { .. }
            | Self::Role { .. } => false,
        }
    }
}

/// Why an operation did not succeed. A failed write is unknown, not undone: it may be on disk.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full. The store reopens itself when there is space again.
    #[error("the disk is full")]
    Full,
    /// What may be kept is kept, and nothing of it has ended that could be removed.
    #[error("the store has reached its bound (--max-disk)")]
    Bound,
    /// The bucket has filled its share of a store that others use too.
    #[error("this bucket has filled its share of the store (--max-disk)")]
    Share,
    /// The store is being reopened.
    #[error("the store is being reopened")]
    Reopening,
    /// The store cannot go on, so that the process must stop.
    #[error("{0}")]
    Broken(Fault),
    /// One record does not have the bytes that were written.
    #[error("{0} is damaged on disk")]
    Damaged(String),
}

/// Why a store cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An fsync or another system call failed: what is on disk is unknown, and must be read anew.
    #[error("the disk failed: {0}")]
    Failed(String),
    /// The file's pages do not fit together, as in a copy that was made while they changed.
    #[error("the structure of {} is damaged: {detail}", .file.display())]
    Structure {
        /// The file; empty where that is not known yet.
        file: PathBuf,
        /// What was found.
        detail: String,
    },
}

impl Fault {
    /// Of a file that is not known yet.
    pub(crate) fn structure(detail: impl Into<String>) -> Self {
        Self::Structure {
            file: PathBuf::new(),
            detail: detail.into(),
        }
    }
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl From<&str> for Fault {
    fn from(why: &str) -> Self {
        Self::Failed(why.to_owned())
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        Self::Broken(fault)
    }
}

impl StoreError {
    /// The same, of this file.
    pub(crate) fn of(self, path: &Path) -> Self {
        if let Self::Broken(Fault::Structure { file, detail }) = &self
            && file.as_os_str().is_empty()
        {
            let (file, detail) = (path.to_owned(), detail.clone());
            return Fault::Structure { file, detail }.into();
        }
        self
    }

    /// Whether it is the structure of the file that is damaged.
    pub(crate) fn is_structure(&self) -> bool {
        matches!(self, Self::Broken(Fault::Structure { .. }))
    }

    /// Whether the same operation may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Full | Self::Bound | Self::Share | Self::Reopening => true,
            Self::Broken(_) | Self::Damaged(_) => false,
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the system's and redb's kinds can grow"
    )]
    fn new(error: redb::Error) -> Self {
        use std::io::ErrorKind;
        match error {
            redb::Error::Io(io) => match io.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                    Self::Full
                }
                // A file that ends too early, or has other bytes than redb wrote.
                ErrorKind::UnexpectedEof | ErrorKind::InvalidData => {
                    Fault::structure(io.to_string()).into()
                }
                _ => Self::Broken(io.to_string().into()),
            },
            redb::Error::PreviousIo | redb::Error::DatabaseClosed => Self::Reopening,
            error @ (redb::Error::Corrupted(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableDoesNotExist(_)) => Fault::structure(error.to_string()).into(),
            other => Self::Broken(other.to_string().into()),
        }
    }
}

impl From<redb::StorageError> for StoreError {
    fn from(error: redb::StorageError) -> Self {
        Self::new(error.into())
    }
}

impl From<redb::TableError> for StoreError {
    fn from(error: redb::TableError) -> Self {
        Self::new(error.into())
    }
}

impl From<redb::TransactionError> for StoreError {
    fn from(error: redb::TransactionError) -> Self {
        Self::new(error.into())
    }
}

impl From<redb::CommitError> for StoreError {
    fn from(error: redb::CommitError) -> Self {
        Self::new(error.into())
    }
}
