//! How walvault's bytes look: objects, frames, packs, manifests and the small documents beside them.
//!
//! Pure: no key, no store, no clock. `docs/format.md` describes every shape exactly enough for a second reader.

pub mod changes;
pub mod configuration;
pub mod crc;
pub mod digest;
pub mod document;
pub mod frame;
pub mod gathered;
mod hint;
pub mod index;
pub mod leaf;
pub mod leaf_order;
pub mod leaf_writer;
pub mod left_out;
pub mod manifest;
pub mod object;
pub mod pack;
pub mod recovery_plan;
pub mod relations;
pub mod restore_mark;
mod room;
pub mod sample;
pub mod tables;
pub mod varint;
pub mod wal;

pub use digest::Sha256;

use crate::error::ErrorKind;

/// Why stored bytes cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes end too early.
    #[error("the {part} is cut off")]
    Truncated {
        /// What is missing.
        part: &'static str,
    },
    /// The bytes are no walvault object.
    #[error("these are not the bytes of a walvault object")]
    NotOurs,
    /// A digest or a length does not fit.
    #[error("the {part} is damaged")]
    Damaged {
        /// What does not fit.
        part: &'static str,
    },
    /// The body's frames are damaged.
    #[error("the compressed body is damaged: {problem}")]
    Body {
        /// What zstd says.
        problem: String,
    },
    /// The object was made for another name.
    #[error("the object was made for {found}, not for {expected}")]
    Misplaced {
        /// Identity in the front frame.
        found: String,
        /// Identity of the key it was read from.
        expected: String,
    },
    /// Written by a newer walvault.
    #[error("format version {found} is newer than this walvault knows ({known}); upgrade walvault")]
    Version {
        /// Version in the bytes.
        found: u16,
        /// Newest version known.
        known: u16,
    },
    /// Needs a feature that this reader lacks.
    #[error("the object uses features {bits:#x} that this walvault does not know; upgrade walvault")]
    UnknownFeatures {
        /// Must-understand bits.
        bits: u32,
    },
    /// A kind of object that this reader does not know.
    #[error("objects of kind {number} are not known to this walvault; upgrade walvault")]
    UnknownKind {
        /// Kind in the front frame.
        number: u16,
    },
    /// More bytes than the caller can use.
    #[error("the object claims {bytes} bytes of contents where at most {limit} make sense")]
    TooLarge {
        /// Bytes claimed.
        bytes: u64,
        /// Bytes that make sense.
        limit: u64,
    },
    /// An identity that does not fit the front frame.
    #[error("{identity:?} cannot be the identity of an object")]
    Identity {
        /// The identity.
        identity: String,
    },
    /// A document that does not parse, or holds what makes no sense.
    #[error("the {document} makes no sense: {problem}")]
    Nonsense {
        /// Which document.
        document: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// This machine has not the memory for it.
    #[error("not enough memory for the object")]
    Memory,
}

impl FormatError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            FormatError::Version { .. } | FormatError::UnknownFeatures { .. } | FormatError::UnknownKind { .. } => {
                ErrorKind::Invalid
            }
            FormatError::Identity { .. } | FormatError::Memory => ErrorKind::Internal,
            FormatError::Truncated { .. }
            | FormatError::NotOurs
            | FormatError::Damaged { .. }
            | FormatError::Body { .. }
            | FormatError::Misplaced { .. }
            | FormatError::TooLarge { .. }
            | FormatError::Nonsense { .. } => ErrorKind::Corrupt,
        }
    }
}
