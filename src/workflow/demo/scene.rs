//! What the story tells while it happens, as values: the words are `view`'s.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::pg::lsn::Lsn;

/// One chapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A server that archives into a new repository.
    Server,
    /// The first business, and a base backup.
    Backup,
    /// More business while WAL is archived.
    Traffic,
    /// `DROP TABLE`.
    Accident,
    /// What the repository holds, and what can be had back.
    Catalogue,
    /// Recovery to just before the accident.
    Rescue,
    /// A standby out of the repository.
    Standby,
}

impl Step {
    /// Place in the story, from 1.
    pub const fn number(self) -> u8 {
        self as u8 + 1
    }
}

/// What the payments were, to the last digit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Rows in `payments`.
    pub payments: u64,
    /// Sum of their amounts, as the server prints it.
    pub total: String,
    /// MD5 of all rows in order, as the server computes it.
    pub digest: String,
}

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub enum Scene<'a> {
    /// Where all of it takes place.
    Opening {
        /// The server's version, as it prints it.
        version: &'a str,
        /// Folder of PostgreSQL's programs.
        programs: &'a Path,
        /// The scratch directory.
        directory: &'a Path,
        /// User that everything runs as, where that is another than the caller.
        user: Option<&'a str>,
    },
    /// A chapter begins.
    Step(Step),
    /// A command, as it is typed at a shell; it runs now.
    Command(&'a str),
    /// A statement, as it is typed at `psql`; it runs now.
    Statement(&'a str),
    /// What command or statement said.
    Output(&'a str),
    /// Lines written to `postgresql.conf`.
    Configured(&'a [String]),
    /// Business was done.
    Paid {
        /// Payments that were added.
        payments: u64,
        /// Payments in all.
        of: u64,
    },
    /// A restore point was made here.
    RestorePoint {
        /// Its name.
        name: &'a str,
        /// Its position.
        at: Lsn,
    },
    /// What was there right before the accident, and where the log stood.
    Before {
        /// The rows.
        evidence: &'a Evidence,
        /// Position in the log.
        at: Lsn,
    },
    /// Something was compared, and is as it should be.
    Proven(Proof<'a>),
}

/// Something that was compared, and is as it should be.
#[derive(Clone, Copy, Debug)]
pub enum Proof<'a> {
    /// The server takes connections.
    Up {
        /// Bytes in a WAL segment.
        segment_bytes: u64,
        /// Since the chapter began.
        elapsed: Duration,
    },
    /// The archiver has not failed once.
    Archiving {
        /// Segments archived.
        segments: u64,
    },
    /// All that was written is in the archive, without a hole.
    Archived {
        /// Segments archived.
        segments: u64,
    },
    /// The rows are those of before the accident.
    Rows(&'a Evidence),
    /// Each balance is what its payments make it.
    Books {
        /// Accounts looked at.
        accounts: u64,
    },
    /// The standby streams from the new primary.
    Streaming,
    /// A payment on the primary arrived on the standby.
    Followed {
        /// Its number.
        payment: u64,
        /// After its commit.
        after: Duration,
    },
    /// The standby has the primary's rows.
    SameRows(&'a Evidence),
}

/// The end of a story in which every proof held.
#[derive(Clone, Debug)]
pub struct Summary {
    /// From beginning to end.
    pub elapsed: Duration,
    /// The server's version, as it prints it.
    pub version: String,
    /// The base backup.
    pub backup: Cost,
    /// The archived segments when the damaged server had stopped.
    pub segments: u64,
    /// Their bytes, and those stored for them.
    pub wal: (u64, u64),
    /// Restore, recovery and promotion.
    pub rescue: Duration,
    /// What came back.
    pub rescued: Evidence,
    /// Restore of the standby, until it streamed.
    pub standby: Duration,
    /// From commit on the primary until the row was read on the standby.
    pub followed: Duration,
    /// The moment right before the accident, by the server's clock.
    pub accident: DateTime<Utc>,
}

/// What a backup took.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Bytes of the data directory.
    pub bytes: u64,
    /// Bytes in the repository.
    pub stored_bytes: u64,
    /// Time.
    pub elapsed: Duration,
}
