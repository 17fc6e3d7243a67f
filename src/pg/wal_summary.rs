//! Summaries of the log, which a server since 17 makes of it if `summarize_wal` is on: which blocks changed in a stretch.
//!
//! Source: `src/backend/postmaster/walsummarizer.c`, `src/backend/backup/walsummaryfuncs.c`.

use super::lsn::Lsn;
use super::timeline::TimelineId;

/// One summary that the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The timeline whose log it is of.
    pub timeline: TimelineId,
    /// First position that it covers.
    pub start: Lsn,
    /// Position after the last.
    pub end: Lsn,
}

/// One row of a summary's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedBlock {
    /// OID of the tablespace.
    pub tablespace: u32,
    /// OID of the database; 0 for what all share.
    pub database: u32,
    /// Number in the names of the relation's files; 0 stands for all relations of the database.
    pub relation: u32,
    /// Number of the fork; 0 is the main one.
    pub fork: u16,
    /// The block; or, if `limit`, the first one that may not be what it was.
    pub block: u32,
    /// Whether the relation was made, removed or cut off at that block.
    pub limit: bool,
}
