//! What may go, and its going: retention by policy, and what an operator pins or forgets.
//!
//! [`plan`] decides about every object and does nothing; [`perform`] condemns by a tombstone what goes, and removes what
//! was condemned long enough ago. Whatever cannot be read, is not known or may be at work stays.

mod decide;
mod holdings;
#[cfg(test)]
mod model;
mod overview;
mod perform;
mod policy;
mod word;

pub use decide::{Because, Blocked, LanePlan, Verdict};
pub use holdings::{HeldBackup, LaneHoldings};
pub use overview::{Amount, LastExpiry, Overview, PinnedBackup};
pub use perform::{Deferred, LaneOutcome, Request, perform, plan};
pub use policy::{Calendar, Go, Judged, Keep, Policy};
pub use word::{Shares, forget, pin, shares};

use crate::error::ErrorKind;
use crate::repo::{LeaseError, RepoError};

/// Why nothing was decided, or what was decided was not done.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// There is no lane.
    #[error("nothing was archived or backed up yet")]
    NothingThere,
    /// No backup is listed, in any lane.
    #[error("no backup is listed: nothing is removed")]
    NoBackup,
    /// A backup that was there is not listed, and nobody removed it by walvault.
    #[error("backup {backup} was there and is not listed: nothing is removed")]
    Vanished {
        /// The backup.
        backup: String,
    },
    /// A backup came or went while it was looked at.
    #[error("backup {backup} came or went meanwhile")]
    Moved {
        /// The backup.
        backup: String,
    },
    /// There is no such backup.
    #[error("there is no backup {backup}")]
    NoSuchBackup {
        /// The backup.
        backup: String,
    },
    /// It was condemned, and may be going right now.
    #[error("backup {backup} was condemned, and expire is at work")]
    AtWork {
        /// The backup.
        backup: String,
    },
    /// An operator keeps it.
    #[error("backup {backup} is {words}")]
    Pinned {
        /// The backup.
        backup: String,
        /// The pin, in words.
        words: String,
    },
    /// No other backup of its lane can be restored.
    #[error("no backup of the lane but {backup} can be restored")]
    LastOne {
        /// The backup.
        backup: String,
    },
    /// Another one is at work, or the lease was lost.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepoError),
}

impl RetentionError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RetentionError::NothingThere | RetentionError::NoBackup | RetentionError::NoSuchBackup { .. } => {
                ErrorKind::NotFound
            }
            RetentionError::Pinned { .. } | RetentionError::LastOne { .. } => ErrorKind::Conflict,
            RetentionError::Vanished { .. } => ErrorKind::Corrupt,
            RetentionError::Moved { .. } | RetentionError::AtWork { .. } => ErrorKind::Busy,
            RetentionError::Lease(source) => source.kind(),
            RetentionError::Repository(source) => source.kind(),
        }
    }
}

#[cfg(test)]
mod tests;
