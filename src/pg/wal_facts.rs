//! What one segment tells a planner, so that it need not be fetched to be asked: which records it holds, the times of
//! its commits, its restore points, and how it ends.
//!
//! Facts are a hint: a time or a name found here is confirmed by the server that replays the log.

use serde::{Deserialize, Serialize};

use super::{
    ChangesWalk, DroppedRelation, EndRecord, Lsn, OpenRecord, PageHeader, PgTime, Record, RelationLocator,
    SegmentChanges, SegmentEnd, SegmentName, SegmentSize, SegmentWalk, SystemId, TimelineId, WalEvent, WalParameters,
    Walker, created_file,
};

/// Version of the rules by which facts are gathered; facts of an older one may know less.
/// - 1: first release.
/// - 2: ids of transactions, checkpoints, files created and removed, relations dropped, kind of an open record.
pub const WAL_FACTS_VERSION: u32 = 2;

/// Entries kept in each list of a segment's facts; [`WalFacts::truncated`] says when there were more.
pub const FACTS_LIMIT: usize = 1000;

/// What the walk over one segment found. Unknown fields are ignored and absent ones take their defaults, so facts of
/// every version can be read by every other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WalFacts {
    /// The [`WAL_FACTS_VERSION`] that gathered them; 0 if unknown.
    pub indexer: u32,
    /// What the segment begins with.
    pub begins: SegmentBegin,
    /// Start of the first record that ends in the segment.
    pub first_record: Option<Lsn>,
    /// Start of the last record that ends in the segment.
    pub last_complete_start: Option<Lsn>,
    /// The position after that record.
    pub last_complete_end: Option<Lsn>,
    /// Records that end in the segment.
    pub records: u64,
    /// Commits among them, of prepared transactions too.
    pub commits: u64,
    /// Aborts among them, of prepared transactions too.
    pub aborts: u64,
    /// The earliest time of a commit or abort. Times do not rise with the log.
    pub min_time: Option<PgTime>,
    /// The latest time of a commit or abort.
    pub max_time: Option<PgTime>,
    /// The lowest id of a transaction that ends in the segment, compared as numbers. Ids wrap around.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_xid: Option<u32>,
    /// The highest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_xid: Option<u32>,
    /// Restore points, in the order of the log.
    pub restore_points: Vec<RestorePointFact>,
    /// The largest of each setting that a standby must match, if any was recorded.
    pub parameters: Option<WalParameters>,
    /// The smallest `wal_level` recorded, if any was.
    pub min_wal_level: Option<i32>,
    /// Whether `full_page_writes` was off anywhere.
    pub full_page_writes_off: bool,
    /// Tablespaces created, in the order of the log.
    pub tablespaces: Vec<TablespaceFact>,
    /// OIDs of tablespaces dropped, in the order of the log.
    pub tablespaces_dropped: Vec<u32>,
    /// Databases whose files were copied without being logged, or dropped; in the order of the log.
    pub databases: Vec<DatabaseFact>,
    /// Records with which a new timeline begins, in the order of the log.
    pub timeline_switches: Vec<TimelineSwitchFact>,
    /// Ends of checkpoints, in the order of the log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<CheckpointFact>,
    /// Commits that remove files or drop relations, in the order of the log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removals: Vec<RemovalFact>,
    /// Files of rows that were created, in the order of the log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files_created: Vec<FileFact>,
    /// Whether `removals` or `files_created` leave something out, for more than [`FACTS_LIMIT`] entries in all.
    #[serde(skip_serializing_if = "is_false")]
    pub removals_truncated: bool,
    /// Whether another list holds only the first [`FACTS_LIMIT`] of its entries.
    pub truncated: bool,
    /// How the segment ends.
    pub end: FactsEnd,
    /// What its records change. Not among the stored facts but beside them; [`FactsWalk`] alone gathers it.
    #[serde(skip)]
    pub changes: Option<Box<SegmentChanges>>,
}

/// What a segment begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SegmentBegin {
    /// A record.
    Record,
    /// The rest of a record that the segment before leaves open.
    Continuation {
        /// Bytes of that record still to come, page headers not counted.
        remaining: u32,
    },
    /// A record that declares the one left open by the segment before void.
    Overwrite,
    /// Nothing that could be read.
    #[default]
    #[serde(other)]
    Unknown,
}

/// How a segment ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FactsEnd {
    /// With the end of a record.
    Clean,
    /// Inside a record that goes on in the next segment.
    Open {
        /// Where that record begins.
        start: Lsn,
        /// Its resource manager's number; absent if its header is cut before it.
        resource_manager: Option<u8>,
        /// Its kind in that manager's numbering, flags included; absent if its header is cut before it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        info: Option<u8>,
    },
    /// Inside a record that began before this segment.
    Inside,
    /// With a switch record and padding.
    Switched {
        /// The position after the switch record.
        at: Lsn,
    },
    /// The log ends inside, or the segment could not be walked any further.
    Stopped {
        /// The position after the last valid record, or the start of the unfinished one.
        at: Lsn,
        /// The reason, for people.
        why: String,
    },
    /// Nothing is known.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A restore point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePointFact {
    /// Its name; names may repeat.
    pub name: String,
    /// Start of its record.
    pub at: Lsn,
    /// The position after its record.
    pub end: Lsn,
    /// When it was made; absent if the server's clock was outside the years 0 to 9999.
    #[serde(default)]
    pub time: Option<PgTime>,
}

/// A tablespace that was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceFact {
    /// Its OID.
    pub oid: u32,
    /// Its directory; empty if it lies inside the data directory.
    pub path: String,
    /// Start of the record.
    pub at: Lsn,
}

/// A database that came or went other than block by block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFact {
    /// Its OID.
    pub oid: u32,
    /// The database it was copied from; absent if it was dropped.
    #[serde(default)]
    pub copied_from: Option<u32>,
    /// Start of the record.
    pub at: Lsn,
}

/// A record with which a new timeline begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSwitchFact {
    /// The timeline before.
    pub from: TimelineId,
    /// The timeline from here on.
    pub to: TimelineId,
    /// Start of the record.
    pub at: Lsn,
}

/// The end of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFact {
    /// Start of the record.
    pub at: Lsn,
    /// Where recovery would begin to replay.
    pub redo: Lsn,
}

/// A commit that removes files or drops relations: a drop, a truncation, or a rewrite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovalFact {
    /// Start of the record.
    pub at: Lsn,
    /// The position after it.
    pub end: Lsn,
    /// The transaction.
    pub xid: u32,
    /// When, as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<PgTime>,
    /// Relations dropped, by database and OID; since 15. A rewrite drops the relation that it worked with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relations: Vec<DroppedRelation>,
    /// Files removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<RelationLocator>,
}

/// A file of rows that was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFact {
    /// The file.
    pub file: RelationLocator,
    /// The transaction or subtransaction that created it.
    pub xid: u32,
    /// Start of the record.
    pub at: Lsn,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl WalFacts {
    /// Gathers the facts of one segment by itself: a record begun before it is skipped, and in none of the facts.
    ///
    /// Never fails; a segment that cannot be walked says so in [`WalFacts::end`].
    pub fn of_segment(name: SegmentName, bytes: &[u8], size: SegmentSize, system_id: Option<SystemId>) -> Self {
        let mut walk = FactsWalk::new(name, size, system_id);
        walk.part(bytes);
        Self { changes: None, ..walk.finish() }
    }

    /// Gathers the facts of the segment that `walker` comes to next, a record begun before it included.
    pub fn of_walk(walker: &mut Walker, name: SegmentName, bytes: &[u8]) -> Self {
        let mut facts = Self { indexer: WAL_FACTS_VERSION, ..Self::default() };
        let end = walker.segment(name, bytes, &mut |record| facts.add(record));
        facts.ended(PageHeader::read(bytes), end)
    }

    fn ended(mut self, first_page: Option<PageHeader>, end: SegmentEnd) -> Self {
        // A page that the walk refused says nothing about how the segment begins.
        if self.first_record.is_some() || !matches!(end, SegmentEnd::Stopped { .. }) {
            self.begins = first_page.map_or(SegmentBegin::Unknown, SegmentBegin::from);
        }
        self.end = end.into();
        self
    }

    fn add(&mut self, record: &Record<'_>) {
        self.records += 1;
        self.first_record.get_or_insert(record.start);
        self.last_complete_start = Some(record.start);
        self.last_complete_end = Some(record.end);
        if let Some(event) = WalEvent::read(record) {
            self.add_event(record, event);
        }
        if let Some(file) = created_file(record) {
            let has_room = self.has_room_for(1);
            if has_room {
                self.files_created.push(FileFact { file, xid: record.xid, at: record.start });
            }
            self.removals_truncated |= !has_room;
        }
    }

    /// Adds what goes with a transaction that ends.
    fn add_end(&mut self, record: &Record<'_>, xid: u32) {
        self.min_xid = self.min_xid.into_iter().chain([xid]).min();
        self.max_xid = self.max_xid.into_iter().chain([xid]).max();
        // Without flags nothing goes with it, and most commits have none.
        if record.info & 0x80 == 0 {
            return;
        }
        let Some(ended) = EndRecord::read(record) else { return };
        let EndRecord { kind, xid, time, relations, files, .. } = ended;
        if !kind.commits() || (relations.is_empty() && files.is_empty()) {
            return;
        }
        if self.has_room_for(1 + relations.len() + files.len()) {
            let (at, end) = (record.start, record.end);
            self.removals.push(RemovalFact { at, end, xid, time, relations, files });
        } else {
            self.removals_truncated = true;
        }
    }

    fn has_room_for(&self, entries: usize) -> bool {
        let of = |removal: &RemovalFact| 1 + removal.relations.len() + removal.files.len();
        let taken = self.files_created.len() + self.removals.iter().map(of).sum::<usize>();
        taken + entries <= FACTS_LIMIT
    }

    fn add_event(&mut self, record: &Record<'_>, event: WalEvent) {
        let (at, end) = (record.start, record.end);
        let truncated = &mut self.truncated;
        match event {
            WalEvent::TransactionEnd { kind, time, xid } => {
                *(if kind.commits() { &mut self.commits } else { &mut self.aborts }) += 1;
                self.min_time = self.min_time.into_iter().chain(time).min();
                self.max_time = self.max_time.into_iter().chain(time).max();
                self.add_end(record, xid);
            }
            WalEvent::RestorePoint { name, time } => {
                push(&mut self.restore_points, RestorePointFact { name, at, end, time }, truncated);
            }
            WalEvent::Parameters(found) => {
                self.parameters = Some(self.parameters.map_or(found, |before| before.max(found)));
                self.min_wal_level = Some(self.min_wal_level.map_or(found.wal_level, |low| low.min(found.wal_level)));
            }
            WalEvent::FullPageWrites { on } => self.full_page_writes_off |= !on,
            WalEvent::Checkpoint { timeline, previous_timeline, full_page_writes, redo, .. } => {
                push(&mut self.checkpoints, CheckpointFact { at, redo }, truncated);
                self.full_page_writes_off |= !full_page_writes;
                if timeline != previous_timeline {
                    let switch = TimelineSwitchFact { from: previous_timeline, to: timeline, at };
                    push(&mut self.timeline_switches, switch, truncated);
                }
            }
            WalEvent::EndOfRecovery { timeline, previous_timeline, .. } => {
                let switch = TimelineSwitchFact { from: previous_timeline, to: timeline, at };
                push(&mut self.timeline_switches, switch, truncated);
            }
            WalEvent::TablespaceCreated { oid, path } => {
                push(&mut self.tablespaces, TablespaceFact { oid, path, at }, truncated);
            }
            WalEvent::TablespaceDropped { oid } => push(&mut self.tablespaces_dropped, oid, truncated),
            WalEvent::DatabaseCreated { oid, copied_from: Some(from), .. } => {
                push(&mut self.databases, DatabaseFact { oid, copied_from: Some(from), at }, truncated);
            }
            WalEvent::DatabaseDropped { oid } => {
                push(&mut self.databases, DatabaseFact { oid, copied_from: None, at }, truncated);
            }
            WalEvent::DatabaseCreated { copied_from: None, .. }
            | WalEvent::Switch
            | WalEvent::CheckpointRedo
            | WalEvent::OverwriteContrecord { .. } => (),
        }
    }
}

/// Gathers [`WalFacts::of_segment`] from a segment that comes in parts.
#[derive(Debug)]
pub struct FactsWalk {
    walker: Walker,
    segment: SegmentWalk,
    first_page: Option<PageHeader>,
    facts: WalFacts,
    changes: ChangesWalk,
}

impl FactsWalk {
    /// Begins a segment.
    pub fn new(name: SegmentName, size: SegmentSize, system_id: Option<SystemId>) -> Self {
        Self {
            walker: Walker::new(system_id, size),
            segment: SegmentWalk::new(name),
            first_page: None,
            facts: WalFacts { indexer: WAL_FACTS_VERSION, ..WalFacts::default() },
            changes: ChangesWalk::default(),
        }
    }

    /// Takes the next bytes: whole pages, but for the last part of a segment that is cut.
    pub fn part(&mut self, bytes: &[u8]) {
        self.first_page = self.first_page.or_else(|| PageHeader::read(bytes));
        let (facts, changes) = (&mut self.facts, &mut self.changes);
        self.segment.part(&mut self.walker, bytes, &mut |record| {
            facts.add(record);
            changes.add(record);
        });
    }

    /// Returns the facts, after the last part.
    pub fn finish(mut self) -> WalFacts {
        let end = self.segment.end(&mut self.walker);
        self.facts.changes = Some(Box::new(self.changes.finish(&self.walker, self.first_page, &end)));
        self.facts.ended(self.first_page, end)
    }
}

fn push<T>(list: &mut Vec<T>, entry: T, truncated: &mut bool) {
    if list.len() < FACTS_LIMIT {
        list.push(entry);
    } else {
        *truncated = true;
    }
}

impl From<PageHeader> for SegmentBegin {
    fn from(header: PageHeader) -> Self {
        if header.overwrites() {
            Self::Overwrite
        } else if header.continues() {
            Self::Continuation { remaining: header.remaining }
        } else {
            Self::Record
        }
    }
}

impl FactsEnd {
    /// Whether the segment ends inside a record whose facts matter, as far as is known: not inside an image of a page, nor
    /// inside a change of rows.
    pub fn may_leave_open_what_matters(&self) -> bool {
        match self {
            Self::Open { resource_manager: Some(manager), info, .. } => {
                FACTUAL.contains(manager)
                    && !(*manager == 0 && info.is_some_and(|info| IMAGES.contains(&(info & 0xF0))))
            }
            Self::Open { resource_manager: None, .. } | Self::Inside | Self::Unknown => true,
            Self::Clean | Self::Switched { .. } | Self::Stopped { .. } => false,
        }
    }
}

/// Resource managers whose records are among the facts: the log's own, transactions, files, databases, tablespaces.
pub const FACTUAL: [u8; 5] = [0, 1, 2, 4, 5];
/// Kinds of the log's own records that hold nothing but an image of a page, the same in every major.
///
/// Source: `XLOG_FPI_FOR_HINT` and `XLOG_FPI` in `src/include/catalog/pg_control.h`.
const IMAGES: [u8; 2] = [0xA0, 0xB0];

impl From<SegmentEnd> for FactsEnd {
    fn from(end: SegmentEnd) -> Self {
        match end {
            SegmentEnd::Clean => Self::Clean,
            SegmentEnd::Open(OpenRecord { start, resource_manager, info, .. }) => {
                Self::Open { start, resource_manager, info }
            }
            SegmentEnd::Inside => Self::Inside,
            SegmentEnd::Switched { at } => Self::Switched { at },
            SegmentEnd::Stopped { at, why } => Self::Stopped { at, why: why.to_string() },
        }
    }
}

#[cfg(test)]
mod tests;
