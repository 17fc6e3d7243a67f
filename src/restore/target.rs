//! What an operator asks for.

use chrono::{DateTime, Utc};

use super::relation_name::RelationName;
use crate::pg::lsn::Lsn;

/// The moment to come back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The newest moment that the archive holds.
    Latest,
    /// Everything that was committed at or before a moment.
    Time(DateTime<Utc>),
    /// Everything whose record ended at or before a position.
    Lsn(Lsn),
    /// Everything up to the end of a transaction.
    Xid(u32),
    /// A restore point.
    Name(String),
    /// Before the transaction that dropped or emptied a table committed.
    BeforeDrop(RelationName),
    /// Before a database or a tablespace was dropped.
    BeforeLoss(Lost),
    /// The end of the backup itself.
    BackupEnd,
}

/// What was dropped as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// A database, by its name.
    Database(String),
    /// A tablespace, by its number or its directory.
    Tablespace(String),
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Lost::Database(name) => write!(f, "database {name}"),
            Lost::Tablespace(text) => write!(f, "tablespace {text}"),
        }
    }
}

/// What the copy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It takes the place of the server that was backed up, and goes on archiving where it left off.
    Primary,
    /// It follows its primary.
    Standby,
    /// It stands beside the server that was backed up and must reach nothing outside.
    Clone,
}
