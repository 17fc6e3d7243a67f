//! Why there is no answer to `wal fetch`.

use std::path::PathBuf;

use crate::error::ErrorKind;
use crate::pg::wal_name::WalFileName;
use crate::pg::wal_page::PageError;
use crate::repo::RepoError;

/// Why there is no answer. None of these is an absence.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It must exist and does not.
    #[error("{name} is not in the archive, but {reason}")]
    Hole {
        /// The file.
        name: WalFileName,
        /// What says that it must exist.
        reason: String,
    },
    /// Another timeline comes first and has not come, or it is not known whether this one counts.
    #[error("{name} is not served to this recovery: {reason}")]
    LeftBranch {
        /// The file.
        name: WalFileName,
        /// Which timeline must come first, and how to recover this one instead.
        reason: String,
    },
    /// What is stored is not what its name says.
    #[error("the archived {name} is not what its name says")]
    FirstPage {
        /// The file.
        name: WalFileName,
        /// What is wrong.
        source: PageError,
    },
    /// What is stored has not a segment's size.
    #[error("the archived {name} has {found} bytes instead of {expected}")]
    Size {
        /// The file.
        name: WalFileName,
        /// Bytes stored.
        found: u64,
        /// A segment's bytes.
        expected: u64,
    },
    /// The repository failed, or holds damaged bytes.
    #[error("fetch {name}")]
    Repository {
        /// The file.
        name: WalFileName,
        /// Why.
        source: RepoError,
    },
    /// The file could not be written.
    #[error("write {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl FetchError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            FetchError::Hole { .. } | FetchError::LeftBranch { .. } => ErrorKind::Unavailable,
            FetchError::FirstPage { .. } | FetchError::Size { .. } => ErrorKind::Corrupt,
            FetchError::Repository { source, .. } => source.kind(),
            FetchError::Write { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => ErrorKind::Full,
            FetchError::Write { .. } => ErrorKind::Unavailable,
        }
    }
}
