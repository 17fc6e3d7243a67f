//! What can be asked of a store, and how it can end when nothing went wrong.

use std::fmt;

use chrono::{DateTime, Utc};

use super::Key;

/// What can be asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Reach the store, or make its root.
    Open,
    /// Make an object that must not exist.
    Create,
    /// Read a whole object.
    Get,
    /// Read a part of an object.
    GetRange,
    /// Look an object's size up.
    Head,
    /// Name everything below a folder.
    List,
    /// Name what is directly in a folder.
    ListChildren,
    /// Remove an object.
    Delete,
}

impl Verb {
    /// Every verb, in order of declaration.
    pub const ALL: [Verb; 8] = {
        use Verb::*;
        [Open, Create, Get, GetRange, Head, List, ListChildren, Delete]
    };

    /// Returns the verb as messages say it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Create => "create",
            Self::Get => "read",
            Self::GetRange => "read part of",
            Self::Head => "look up",
            Self::List => "list",
            Self::ListChildren => "list directly",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a create ended; either way an object of that name is durable now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Created {
    /// The object holds our bytes.
    New,
    /// There was one already: somebody else's, or our own from an attempt whose reply was lost. Compare contents.
    Existing,
}

/// How a delete ended; either way no object of that name is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deleted {
    /// The object was there; or it was not and the backend, as S3 does, answers a delete the same either way.
    Gone,
    /// There was none: never, or no more since an attempt whose reply was lost.
    WasAbsent,
}

/// What a store knows of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Its name.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
    /// When it was created, by the store's clock, UTC.
    pub last_modified: DateTime<Utc>,
}

/// What is directly in a folder, each sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Children {
    /// Folders in it. A volume also names empty ones; a bucket has none.
    pub folders: Vec<Key>,
    /// Objects in it.
    pub objects: Vec<Meta>,
}

/// Attempts made per verb since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts(pub(super) [u64; Verb::ALL.len()]);

impl RequestCounts {
    /// Returns the attempts made of one verb.
    pub const fn of(&self, verb: Verb) -> u64 {
        self.0[verb as usize]
    }

    /// Returns both together.
    pub fn plus(self, other: Self) -> Self {
        Self(std::array::from_fn(|verb| self.0[verb] + other.0[verb]))
    }

    /// Returns the attempts made of all verbs.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}
