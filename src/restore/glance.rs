//! A few bytes of each segment's facts, with which most segments are ruled out of a search without a look at the rest: a
//! log of years is half a million segments a year, and many backups and branches lead through the same ones.
//!
//! A glance finds nothing. What it does not rule out is asked of the facts, and what they promise is read from the records.

use crate::pg::pg_time::PgTime;
use crate::pg::wal_facts::{FactsEnd, WalFacts};

/// What is seen of one segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Glance {
    max_time: Option<PgTime>,
    min_xid: u32,
    max_xid: u32,
    marks: u16,
    /// The resource manager of the record that it leaves open, where [`MANAGED`].
    manager: u8,
}

/// Anything was seen at all.
const SEEN: u16 = 1;
/// Its ids of transactions are known.
const NUMBERED: u16 = 1 << 1;
/// A transaction ends in it.
const ENDS: u16 = 1 << 2;
/// A list of its facts was cut short.
const CUT: u16 = 1 << 3;
/// What is removed and made in it is not known, or not all of it.
const REMOVALS_UNKNOWN: u16 = 1 << 4;
const POINTS: u16 = 1 << 5;
const REMOVES: u16 = 1 << 6;
const MAKES_FILES: u16 = 1 << 7;
/// It holds settings or tablespaces that whoever replays it has to have.
const ASKS: u16 = 1 << 8;
/// A database or tablespace goes in it.
const LOSES: u16 = 1 << 9;
/// Its records stop before its end.
const STOPPED: u16 = 1 << 10;
/// It may leave a record open that matters.
const OPEN: u16 = 1 << 11;
const MANAGED: u16 = 1 << 12;
/// It was walked from the segment before it on its timeline.
const JOINED: u16 = 1 << 13;

impl Glance {
    /// Notes what is asked for most; `removals_unknown` if its indexer knew none, `joined` if the walk came from the
    /// segment before it on the same timeline.
    pub fn of(facts: &WalFacts, removals_unknown: bool, joined: bool) -> Self {
        let manager = match facts.end {
            FactsEnd::Open { resource_manager, .. } => resource_manager,
            _ => None,
        };
        let marks = [
            (SEEN, true),
            (NUMBERED, facts.min_xid.is_some() && facts.max_xid.is_some()),
            (ENDS, facts.commits > 0 || facts.aborts > 0),
            (CUT, facts.truncated),
            (REMOVALS_UNKNOWN, facts.removals_truncated || removals_unknown),
            (POINTS, !facts.restore_points.is_empty()),
            (REMOVES, !facts.removals.is_empty()),
            (MAKES_FILES, !facts.files_created.is_empty()),
            (ASKS, facts.parameters.is_some() || !facts.tablespaces.is_empty()),
            (LOSES, !facts.databases.is_empty() || !facts.tablespaces_dropped.is_empty()),
            (STOPPED, matches!(facts.end, FactsEnd::Stopped { .. })),
            (OPEN, facts.end.may_leave_open_what_matters()),
            (MANAGED, manager.is_some()),
            (JOINED, joined),
        ];
        Self {
            max_time: facts.max_time,
            min_xid: facts.min_xid.unwrap_or(0),
            max_xid: facts.max_xid.unwrap_or(0),
            marks: marks.iter().filter(|(_, set)| *set).fold(0, |marks, (mark, _)| marks | mark),
            manager: manager.unwrap_or(0),
        }
    }

    fn has(self, marks: u16) -> bool {
        self.marks & marks != 0
    }

    /// Whether nothing is known, so that it rules out nothing.
    pub fn is_blank(self) -> bool {
        !self.has(SEEN)
    }

    /// Whether its records go on to its end.
    pub fn is_whole(self) -> bool {
        self.has(SEEN) && !self.has(STOPPED)
    }

    /// The latest time of a commit or abort; `None` also if nothing is known.
    pub fn max_time(self) -> Option<PgTime> {
        self.max_time
    }

    /// Whether a commit or abort may be in it whose time is `past` what is asked for.
    pub fn may_be_past(self, past: impl Fn(PgTime) -> bool) -> bool {
        self.has(CUT) || self.max_time.is_some_and(past)
    }

    /// Whether a transaction may end in it.
    pub fn may_end(self) -> bool {
        self.has(ENDS)
    }

    /// Whether the transaction of that id may end in it.
    pub fn may_end_transaction(self, xid: u32) -> bool {
        self.has(CUT) || if self.has(NUMBERED) { (self.min_xid..=self.max_xid).contains(&xid) } else { self.has(ENDS) }
    }

    /// Whether a restore point may be in it.
    pub fn may_hold_points(self) -> bool {
        self.has(CUT | POINTS)
    }

    /// Whether it may remove files or drop relations.
    pub fn may_remove(self) -> bool {
        self.has(REMOVALS_UNKNOWN | REMOVES)
    }

    /// Whether it may make files of rows.
    pub fn may_make_files(self) -> bool {
        self.has(REMOVALS_UNKNOWN | MAKES_FILES)
    }

    /// Whether it may ask something of the host that replays it.
    pub fn may_ask(self) -> bool {
        self.has(CUT | ASKS)
    }

    /// Whether a database or tablespace may go in it.
    pub fn may_lose(self) -> bool {
        self.has(CUT | LOSES)
    }

    /// Whether it may leave a record of one of these resource managers open.
    pub fn may_leave_open(self, managers: &[u8]) -> bool {
        self.is_blank() || (self.has(OPEN) && (!self.has(MANAGED) || managers.contains(&self.manager)))
    }

    /// Whether what the segment before it on its timeline leaves open is among its own facts.
    pub fn is_joined(self) -> bool {
        self.has(JOINED)
    }
}
