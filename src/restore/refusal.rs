//! Why a branch does not lead to a target: what is in the way, and what can be reached instead.

use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;

/// Why a branch does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The branch, by the timeline it ends on.
    pub timeline: TimelineId,
    /// Why.
    pub reason: RefusalReason,
}

/// What is in the way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusalReason {
    /// No backup lies on the branch.
    #[error("no backup lies on this branch")]
    NoBackup,
    /// The backup that was named does not lie on the branch.
    #[error("backup {backup} does not lie on this branch")]
    OtherBackup {
        /// The backup.
        backup: String,
    },
    /// Every backup ends after the target.
    #[error(
        "every backup on this branch ends after the target; the earliest reachable position is {earliest}: what is older was never backed up, or has expired"
    )]
    BeforeBackup {
        /// End of the oldest backup.
        earliest: Lsn,
    },
    /// The log ends before the target.
    #[error("the archived log ends at {end}{}, before the target", at_time(.time))]
    AfterEnd {
        /// End of the last complete record.
        end: Lsn,
        /// The latest commit, as far as is known.
        time: Option<PgTime>,
    },
    /// No commit follows the moment, so PostgreSQL could not tell that it was reached.
    #[error("no transaction ended after that moment{}; use --to-latest for everything that is archived", last_time(.time))]
    NothingAfter {
        /// The latest commit, as far as is known.
        time: Option<PgTime>,
    },
    /// A segment is missing before the target.
    #[error("segment {missing} is missing and must exist, since {proof}; the last position before the hole is {reach}{}", at_time(.time))]
    Hole {
        /// The segment.
        missing: SegmentName,
        /// What proves that it existed.
        proof: String,
        /// End of the last complete record before it.
        reach: Lsn,
        /// The latest commit before it, as far as is known.
        time: Option<PgTime>,
    },
    /// The records cannot be read up to the target.
    #[error("the archived records end at {at}, in {segment}, in the middle of the log, before the target")]
    Broken {
        /// The segment that is damaged, or whose records stop.
        segment: SegmentName,
        /// Where.
        at: Lsn,
    },
    /// The transaction did not end.
    #[error("transaction {xid} neither commits nor aborts in the archived log on this branch")]
    NoSuchXid {
        /// The transaction.
        xid: u32,
    },
    /// There is no restore point of that name.
    #[error("no restore point {name:?} lies after the end of a backup on this branch")]
    NoSuchName {
        /// The name.
        name: String,
    },
    /// No backup on the branch knows a relation of that name.
    #[error("no backup on this branch knows a relation {name}; names are those of the moment a backup began")]
    UnknownRelation {
        /// The name.
        name: String,
    },
    /// The name stands for more than one relation.
    #[error("more than one relation has that name, write one in full: {}", .names.join(", "))]
    SeveralRelations {
        /// Their full names.
        names: Vec<String>,
    },
    /// The relation is still there.
    #[error("{name} is neither dropped nor truncated in the archived log on this branch")]
    NotDropped {
        /// Its schema and name.
        name: String,
    },
    /// No backup on the branch knows a database or tablespace of that name.
    #[error("no backup on this branch knows a {what}; names are those of the moment a backup began")]
    UnknownLost {
        /// What it is.
        what: String,
    },
    /// It is still there.
    #[error("{what} is not dropped in the archived log on this branch")]
    NotLost {
        /// What it is.
        what: String,
    },
    /// The relation was emptied more than once.
    #[error("the table was truncated more than once, by the commits at {}; name one with --to-lsn", positions(.at))]
    EmptiedRepeatedly {
        /// Starts of the commits: with one as `--to-lsn`, everything before it is replayed.
        at: Vec<Lsn>,
    },
    /// Before 15 the log does not tell a drop from a rewrite.
    #[error(
        "the commit at {at} dropped, truncated or rewrote the table, which the log does not tell apart before PostgreSQL 15; use --to-lsn {at} for the moment before it"
    )]
    UnclearRemoval {
        /// Start of the commit.
        at: Lsn,
    },
    /// There is more than one.
    #[error("restore point {name:?} was made more than once, at {}; name one with --to-lsn", positions(.at))]
    NameRepeats {
        /// The name.
        name: String,
        /// Ends of their records.
        at: Vec<Lsn>,
    },
}

fn at_time(time: &Option<PgTime>) -> String {
    time.map_or_else(String::new, |time| format!(" ({time})"))
}

fn last_time(time: &Option<PgTime>) -> String {
    time.map_or_else(String::new, |time| format!(" (the last one ended at {time})"))
}

fn positions(at: &[Lsn]) -> String {
    at.iter().map(Lsn::to_string).collect::<Vec<_>>().join(" and ")
}
