//! A backup over the replication protocol, of a server whose files cannot be seen.
//!
//! The same order as with files at hand, and the same commit: lane, stream, `pg_control` last in it, the server's own
//! manifest compared with everything that came, the WAL verified in the archive, and only then our manifest. A stream
//! that ends anywhere before its end is no backup.
//!
//! Since 17 the server sends what changed since an older backup, whose manifest it is given: those blocks are stored as they
//! come, and once all came they are put over the older backup's, file by file in the order of paths.

mod base;
mod beside;
mod copy;
mod incremental_file;
mod items;
mod merge;
mod older_blocks;
mod overlay;
mod perform;
mod receive;
mod server_manifest;
mod spaces;
mod tar;
mod worker;

pub use beside::{WalBeside, WalBesideError};
pub use incremental_file::HeadingError;
pub use perform::perform_remote;
pub use server_manifest::ServerManifestError;
pub use tar::TarError;

use crate::error::ErrorKind;
use crate::instance::replication::ReplicationError;
use crate::pg::system_id::SystemId;

/// Why what a server streams is no backup.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The server did not answer, or refused.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// An archive is not as servers write them.
    #[error("the server's archive of {archive} cannot be taken")]
    Tar {
        /// Which.
        archive: String,
        /// What it holds.
        source: TarError,
    },
    /// The server's manifest does not vouch for what came.
    #[error(transparent)]
    Manifest(#[from] ServerManifestError),
    /// The WAL that streams beside it is not in the archive.
    #[error(transparent)]
    Beside(#[from] WalBesideError),
    /// A file came twice.
    #[error("the server sent {path} twice")]
    Twice {
        /// Which.
        path: String,
    },
    /// Changes of a file that cannot be taken.
    #[error("the server sent changes of {path} that cannot be taken")]
    Changes {
        /// Which file.
        path: String,
        /// Why.
        source: HeadingError,
    },
    /// Changes of a file that the older backup does not have.
    #[error("the server sent changes of {path}, of which the backup to build on has nothing that counts")]
    NoBase {
        /// Which file.
        path: String,
    },
    /// A block that changed and did not come.
    #[error("the server left out block {block} of {path}, which its own log says was written")]
    Unsent {
        /// Which file.
        path: String,
        /// Counted from the file's first.
        block: u32,
    },
    /// A file behind the one that must be last.
    #[error("the server sent {path} behind global/pg_control, which must come last")]
    Behind {
        /// Which.
        path: String,
    },
    /// A small file that is large.
    #[error("the server sent {path} with more bytes than it can have")]
    Large {
        /// Which.
        path: String,
    },
    /// Something that must be there is not.
    #[error("the server did not send {name}")]
    Missing {
        /// What.
        name: &'static str,
    },
    /// What the server tells of its log does not suffice, and all seemed well before it began.
    #[error("the server began to send changes, and where relations were cut off cannot be known: {problem}")]
    Limits {
        /// Why.
        problem: String,
    },
    /// A setting that makes no sense.
    #[error("the server's {name} is {value:?}")]
    Setting {
        /// Which.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// A server that the archive has never heard of.
    #[error(
        "the archive holds nothing of system {system_id}, and the server cannot be asked by SQL for what a first look \
         needs: {problem}"
    )]
    NothingArchived {
        /// The server's.
        system_id: SystemId,
        /// Why it cannot be asked.
        problem: String,
    },
}

impl RemoteError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Replication(source) => source.kind(),
            Self::Beside(source) => source.kind,
            Self::Tar { .. }
            | Self::Manifest(_)
            | Self::Twice { .. }
            | Self::Changes { .. }
            | Self::NoBase { .. }
            | Self::Unsent { .. }
            | Self::Behind { .. }
            | Self::Large { .. }
            | Self::Missing { .. } => ErrorKind::Corrupt,
            Self::Setting { .. } => ErrorKind::Invalid,
            Self::Limits { .. } => ErrorKind::Unavailable,
            Self::NothingArchived { .. } => ErrorKind::NotFound,
        }
    }

    /// The one next thing to do, where there is one.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Replication(source) => source.hint(),
            Self::Beside(source) => source.hint,
            Self::Manifest(ServerManifestError::File { .. }) => {
                Some("something between the server and this host changes bytes; use sslmode=require, and try again")
            }
            Self::NothingArchived { .. } => {
                Some("look at archive_command and at pg_stat_archiver on the server, or let this user connect by SQL")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
