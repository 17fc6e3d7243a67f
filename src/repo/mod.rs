//! The repository: typed verbs over a store.
//!
//! Keys come from [`layout`] and nowhere else. Every object is created once and never changed; what names something is
//! written after it. A name that is not there is an `Ok` value; everything else that goes wrong is a [`RepoError`].

mod asides;
mod backups;
mod blocks;
mod changes;
mod contested;
mod disputed;
mod held;
mod hole;
mod index;
mod keeper;
mod known;
mod lane;
#[cfg(test)]
pub(crate) mod lane_fixture;
mod lane_id;
mod layout;
mod lease;
mod leaves;
mod object;
mod owner;
mod packs;
mod pin;
mod probe;
mod process;
mod read_back;
mod reading;
mod repository;
mod sign;
mod tombstone;
mod wal;

pub use asides::Asides;
pub use backups::{PackReader, StoredBackup, StoredPack};
pub use blocks::{Block, Stretch};
pub use changes::StoredChanges;
pub use contested::{Adopted, Contested, Decision, RESOLUTION_VERSION, Resolution};
pub use hole::{HOLE_VERSION, Hole};
pub use index::{StoredIndex, StoredIndexes};
pub use known::{FRESH, Known};
pub use lane::{LANE_VERSION, Lane, LaneFacts};
pub use lane_id::{LaneId, LaneIdError};
pub use lease::{HeldBy, LEASE_VERSION, Lease, LeaseError, LeaseRecord, Purpose, StoredLease};
pub use leaves::{Leaves, RelationLeaves};
pub use object::{Fenced, Object, ObjectName, Removed, VOID_VERSION};
pub use owner::{Claim, OWNER_VERSION, Owner, OwnerRecord, Owners, WaitsFor};
pub use packs::{FrameReading, KEPT_BYTES, Packs, TABLES_BYTES, WholePack};
pub use pin::{PIN_VERSION, Pin, StoredPin};
pub use probe::Probe;
pub use process::Process;
pub use reading::{LONGEST_READING, Needs, READING_VERSION, Reading, ReadingRecord, StoredReading};
pub use repository::{Initialised, Repository, RepositoryDocument};
pub use sign::{SIGN_VERSION, Signed};
pub use tombstone::{PackRange, SegmentRange, StoredTombstone, TOMBSTONE_VERSION, Tombstone};
pub use wal::{OpenedFile, StoredName, WalCreated};

use crate::error::ErrorKind;
use crate::format::FormatError;
use crate::store::{KeyError, StoreError};

/// Why the repository could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// There is no repository for this cluster.
    #[error("{store} holds no repository for cluster {cluster}")]
    NotInitialised {
        /// The cluster's name.
        cluster: String,
        /// Where it was looked for.
        store: String,
    },
    /// The repository was made by a newer walvault.
    #[error("the repository wants a reader of version {wanted}, this walvault is {known}; upgrade walvault")]
    TooNew {
        /// Minimum reader version.
        wanted: u32,
        /// What this one is.
        known: u32,
    },
    /// The repository is written in a way that this walvault does not know.
    #[error("the repository is made with {name} = {found:?}, this walvault knows {known:?}; upgrade walvault")]
    OtherMode {
        /// Member of `repository.json`.
        name: &'static str,
        /// Its value.
        found: String,
        /// The only value known.
        known: String,
    },
    /// A lane does not fit the server that wants to use it.
    #[error("lane {lane} was made for {found}, this server has {expected}")]
    OtherLane {
        /// The lane.
        lane: LaneId,
        /// Facts in the lane's document.
        found: Box<LaneFacts>,
        /// Facts of the server.
        expected: Box<LaneFacts>,
    },
    /// An object's bytes cannot be believed.
    #[error("read {key}")]
    Object {
        /// The object.
        key: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// Something that must be there is not.
    #[error("{key} is missing from the repository")]
    Missing {
        /// The object.
        key: String,
    },
    /// An object that is created once holds other bytes than the ones just made.
    #[error("{key} exists already and holds something else")]
    Taken {
        /// The object.
        key: String,
    },
    /// A name that cannot be part of a key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The operating system gave no random number.
    #[error("draw a random name")]
    Random(#[source] getrandom::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RepoError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RepoError::NotInitialised { .. }
            | RepoError::TooNew { .. }
            | RepoError::OtherMode { .. }
            | RepoError::Key(_) => ErrorKind::Invalid,
            RepoError::OtherLane { .. } | RepoError::Taken { .. } => ErrorKind::Conflict,
            RepoError::Object { source, .. } => source.kind(),
            RepoError::Missing { .. } => ErrorKind::Corrupt,
            RepoError::Random(_) => ErrorKind::Internal,
            RepoError::Store(source) => source.kind(),
        }
    }

    fn object(key: &crate::store::Key, source: FormatError) -> Self {
        RepoError::Object { key: key.to_string(), source }
    }
}

/// Checks a document's version: what a newer walvault wrote is refused by name.
fn versioned(key: &crate::store::Key, found: u32, known: u32) -> Result<(), RepoError> {
    if found <= known {
        return Ok(());
    }
    let short = |version| u16::try_from(version).unwrap_or(u16::MAX);
    Err(RepoError::object(key, FormatError::Version { found: short(found), known: short(known) }))
}
