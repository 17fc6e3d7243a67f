//! The mark that a restore carries while it is at work: what it restores, to what, and which places are its own.
//!
//! It is the first file in the new data directory and the last one to go. A restore that was cut off is known by it, and
//! goes on only as the same restore; whatever carries no mark, or another one, is not touched.

use serde::{Deserialize, Serialize};

use super::FormatError;
use super::document;
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;

/// The mark's file, in the data directory and in every place outside it that the restore fills.
pub const RESTORE_MARK: &str = "walvault.restore";

/// Version of the document.
/// - 1: first release.
pub const RESTORE_MARK_VERSION: u32 = 1;

/// What a restore is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreMark {
    /// [`RESTORE_MARK_VERSION`].
    pub version: u32,
    /// Drawn by the restore that began: its places carry the same one.
    pub id: String,
    /// The cluster that is restored.
    pub system_id: SystemId,
    /// The lane that is read.
    pub lane: String,
    /// The backup.
    pub backup: String,
    /// What was asked for, in words.
    pub target: String,
    /// What the copy is for, in a word.
    pub purpose: String,
    /// The timeline on which recovery was to end when the restore began.
    pub timeline: TimelineId,
    /// Places outside the data directory.
    pub places: Vec<MarkedPlace>,
    /// Names of the databases that are left out, in the order of their numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// A place outside the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkedPlace {
    /// The link in the data directory that leads there.
    pub link: String,
    /// The directory; bytes that are not UTF-8 are replaced.
    pub place: String,
}

impl RestoreMark {
    /// Returns the document's bytes.
    pub fn encode(&self) -> Vec<u8> {
        document::encode(self)
    }

    /// Reads a mark.
    ///
    /// # Errors
    /// [`FormatError::Damaged`], [`FormatError::Nonsense`], or [`FormatError::Version`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mark: Self = document::decode(bytes, "mark of a restore")?;
        if mark.version > RESTORE_MARK_VERSION {
            let found = u16::try_from(mark.version).unwrap_or(u16::MAX);
            return Err(FormatError::Version { found, known: RESTORE_MARK_VERSION as u16 });
        }
        Ok(mark)
    }
}
