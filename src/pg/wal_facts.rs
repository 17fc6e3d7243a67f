//! What one segment tells a planner, so that it need not be fetched to be asked: which records it holds, the times of
//! its commits, its restore points, and how it ends.
//!
//! Facts are a hint: a time or a name found here is confirmed by the server that replays the log.

use serde::{Deserialize, Serialize};

use super::{
    Lsn, OpenRecord, PageHeader, PgTime, Record, SegmentEnd, SegmentName, SegmentSize, SegmentWalk, SystemId,
    TimelineId, WalEvent, WalParameters, Walker,
};

/// Version of the rules by which facts are gathered; facts of an older one may know less.
/// - 1: first release.
pub const WAL_FACTS_VERSION: u32 = 1;

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
    /// Whether a list holds only the first [`FACTS_LIMIT`] of its entries.
    pub truncated: bool,
    /// How the segment ends.
    pub end: FactsEnd,
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

impl WalFacts {
    /// Gathers the facts of one segment by itself: a record begun before it is skipped, and in none of the facts.
    ///
    /// Never fails; a segment that cannot be walked says so in [`WalFacts::end`].
    pub fn of_segment(name: SegmentName, bytes: &[u8], size: SegmentSize, system_id: Option<SystemId>) -> Self {
        let mut walk = FactsWalk::new(name, size, system_id);
        walk.part(bytes);
        walk.finish()
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
    }

    fn add_event(&mut self, record: &Record<'_>, event: WalEvent) {
        let (at, end) = (record.start, record.end);
        let truncated = &mut self.truncated;
        match event {
            WalEvent::TransactionEnd { kind, time, .. } => {
                *(if kind.commits() { &mut self.commits } else { &mut self.aborts }) += 1;
                self.min_time = self.min_time.into_iter().chain(time).min();
                self.max_time = self.max_time.into_iter().chain(time).max();
            }
            WalEvent::RestorePoint { name, time } => {
                push(&mut self.restore_points, RestorePointFact { name, at, end, time }, truncated);
            }
            WalEvent::Parameters(found) => {
                self.parameters = Some(self.parameters.map_or(found, |before| before.max(found)));
                self.min_wal_level = Some(self.min_wal_level.map_or(found.wal_level, |low| low.min(found.wal_level)));
            }
            WalEvent::FullPageWrites { on } => self.full_page_writes_off |= !on,
            WalEvent::Checkpoint { timeline, previous_timeline, full_page_writes, .. } => {
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
}

impl FactsWalk {
    /// Begins a segment.
    pub fn new(name: SegmentName, size: SegmentSize, system_id: Option<SystemId>) -> Self {
        Self {
            walker: Walker::new(system_id, size),
            segment: SegmentWalk::new(name),
            first_page: None,
            facts: WalFacts { indexer: WAL_FACTS_VERSION, ..WalFacts::default() },
        }
    }

    /// Takes the next bytes: whole pages, but for the last part of a segment that is cut.
    pub fn part(&mut self, bytes: &[u8]) {
        self.first_page = self.first_page.or_else(|| PageHeader::read(bytes));
        let facts = &mut self.facts;
        self.segment.part(&mut self.walker, bytes, &mut |record| facts.add(record));
    }

    /// Returns the facts, after the last part.
    pub fn finish(mut self) -> WalFacts {
        let end = self.segment.end(&mut self.walker);
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

impl From<SegmentEnd> for FactsEnd {
    fn from(end: SegmentEnd) -> Self {
        match end {
            SegmentEnd::Clean => Self::Clean,
            SegmentEnd::Open(OpenRecord { start, resource_manager, .. }) => Self::Open { start, resource_manager },
            SegmentEnd::Inside => Self::Inside,
            SegmentEnd::Switched { at } => Self::Switched { at },
            SegmentEnd::Stopped { at, why } => Self::Stopped { at, why: why.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pg::wal_fixture::{Log, MAJORS, one_mib, segments};

    /// The facts of each segment of a fixture's first timeline, from one walk.
    fn walked(major: u16) -> Vec<WalFacts> {
        let mut walker = Walker::new(None, one_mib());
        segments(major, 1).iter().map(|(name, bytes)| WalFacts::of_walk(&mut walker, *name, bytes)).collect()
    }

    fn alone(major: u16, timeline: u32) -> Vec<WalFacts> {
        let facts = segments(major, timeline);
        facts.iter().map(|(name, bytes)| WalFacts::of_segment(*name, bytes, one_mib(), None)).collect()
    }

    #[test]
    fn a_segment_in_parts_tells_what_it_tells_whole() {
        for major in MAJORS {
            for (name, bytes) in segments(major, 1) {
                for len in [8192, 65_536, 1 << 20, 2 << 20] {
                    let mut walk = FactsWalk::new(name, one_mib(), None);
                    bytes.chunks(len).for_each(|part| walk.part(part));
                    assert_eq!(walk.finish(), WalFacts::of_segment(name, &bytes, one_mib(), None), "{name} by {len}");
                }
                let cut = &bytes[..bytes.len() / 2 + 100];
                let mut walk = FactsWalk::new(name, one_mib(), None);
                cut.chunks(8192).for_each(|part| walk.part(part));
                assert_eq!(walk.finish().end, WalFacts::of_segment(name, cut, one_mib(), None).end, "{name} cut");
            }
        }
    }

    #[test]
    fn the_first_segment_of_each_major_tells_what_was_done_in_it() {
        for major in MAJORS {
            let facts = &alone(major, 1)[0];
            assert_eq!((facts.begins, facts.indexer), (SegmentBegin::Record, WAL_FACTS_VERSION));
            assert_eq!(facts.restore_points[0].name, "before the drop", "{major}");
            assert!(facts.restore_points[0].at < facts.restore_points[0].end);
            let made = facts.restore_points[0].time.unwrap();
            assert!(facts.min_time.unwrap() < made && made < facts.max_time.unwrap(), "{major}");
            assert_eq!(facts.aborts, 3, "{major}: a rollback, one to a savepoint, one of a prepared transaction");
            assert!(facts.commits >= 5, "{major}");
            let tablespace = &facts.tablespaces[0];
            assert_eq!(tablespace.path, format!("/tmp/walfix/{major}/tablespace"));
            assert_eq!(facts.tablespaces_dropped, [tablespace.oid]);
            let databases: Vec<_> = facts.databases.iter().map(|fact| fact.copied_from.is_some()).collect();
            assert_eq!(databases, [true, false], "{major}");
            assert_eq!(facts.databases[0].oid, facts.databases[1].oid);
            assert!(matches!(facts.end, FactsEnd::Switched { .. }), "{major}: {:?}", facts.end);
        }
    }

    #[test]
    fn a_record_that_crosses_a_segment_end_is_in_the_facts_of_a_walk_alone() {
        for major in MAJORS {
            let (walked, alone) = (walked(major), alone(major, 1));
            let crossing = (1..walked.len()).filter(|i| matches!(alone[*i].begins, SegmentBegin::Continuation { .. }));
            let crossing: Vec<_> = crossing.collect();
            assert!(crossing.len() > 3, "{major}: {crossing:?}");
            for i in 1..walked.len() {
                let ends_here = crossing.contains(&i) && alone[i].end != FactsEnd::Inside;
                assert_eq!(walked[i].records, alone[i].records + u64::from(ends_here), "{major} segment {i}");
                assert_eq!(
                    matches!(alone[i - 1].end, FactsEnd::Open { .. } | FactsEnd::Inside),
                    walked[i].begins != SegmentBegin::Record
                );
            }
        }
    }

    #[test]
    fn a_changed_setting_a_void_record_and_a_promotion_are_found() {
        for major in MAJORS {
            let facts = alone(major, 1);
            let parameters = facts.iter().find_map(|facts| facts.parameters).unwrap();
            assert_eq!((parameters.max_connections, parameters.wal_level), (57, 1), "{major}");
            let void = facts.iter().position(|facts| facts.begins == SegmentBegin::Overwrite).unwrap();
            assert!(matches!(facts[void - 1].end, FactsEnd::Open { resource_manager: Some(21), .. }), "{major}");
            let child = alone(major, 2);
            let switch = child.iter().find_map(|facts| facts.timeline_switches.first()).unwrap();
            assert_eq!((switch.from.number(), switch.to.number()), (1, 2), "{major}");
        }
    }

    #[test]
    fn facts_are_stored_and_read_back() {
        for facts in alone(18, 1) {
            let text = serde_json::to_string(&facts).unwrap();
            assert_eq!(serde_json::from_str::<WalFacts>(&text).unwrap(), facts);
        }
    }

    /// Version 1, never edited.
    #[test]
    fn version_1_is_read_and_so_is_what_a_later_one_may_write() {
        let text = r#"{"indexer":1,"begins":{"kind":"continuation","remaining":64},"first_record":"0/700028",
            "last_complete_start":"0/7FFFA0","last_complete_end":"0/7FFFD8","records":3,"commits":1,"aborts":1,
            "min_time":"2026-11-21T04:05:14.125406Z","max_time":"2026-11-21T04:05:15.000000Z",
            "restore_points":[{"name":"a","at":"0/700028","end":"0/700090","time":"2026-11-21T04:05:14.500000Z"}],
            "parameters":{"max_connections":100,"max_worker_processes":8,"max_wal_senders":4,
            "max_prepared_transactions":5,"max_locks_per_transaction":64,"wal_level":1},"min_wal_level":1,
            "full_page_writes_off":false,"tablespaces":[{"oid":16401,"path":"/t","at":"0/700098"}],
            "tablespaces_dropped":[16401],"databases":[{"oid":5,"copied_from":1,"at":"0/700100"}],
            "timeline_switches":[{"from":1,"to":2,"at":"0/700200"}],"truncated":false,
            "end":{"kind":"open","start":"0/7FFFD8","resource_manager":null}}"#;
        let facts: WalFacts = serde_json::from_str(text).unwrap();
        assert_eq!(facts.begins, SegmentBegin::Continuation { remaining: 64 });
        assert_eq!(facts.max_time.unwrap(), "2026-11-21T04:05:15Z".parse().unwrap());
        assert_eq!(facts.end, FactsEnd::Open { start: Lsn::new(0x7F_FFD8), resource_manager: None });
        assert_eq!(serde_json::to_value(&facts).unwrap(), serde_json::from_str::<serde_json::Value>(text).unwrap());

        let later: WalFacts =
            serde_json::from_str(r#"{"indexer":9,"end":{"kind":"sideways","by":3},"new":[]}"#).unwrap();
        assert_eq!((later.indexer, later.end), (9, FactsEnd::Unknown));
    }

    #[test]
    fn bytes_that_are_no_segment_say_so() {
        let (name, bytes) = Log::new().segments().swap_remove(0);
        for (bytes, reason) in
            [(vec![0; 1 << 20], "empty"), (vec![7; 100], "segment size"), (bytes[..30].to_vec(), "end at 30")]
        {
            let facts = WalFacts::of_segment(name, &bytes, one_mib(), None);
            assert_eq!(facts.begins, SegmentBegin::Unknown);
            assert!(matches!(&facts.end, FactsEnd::Stopped { why, .. } if why.contains(reason)), "{:?}", facts.end);
        }
    }

    #[test]
    fn lists_end_at_their_limit_and_say_so() {
        let mut log = Log::new();
        let mut body = vec![255, 72];
        body.extend([0; 8]);
        body.extend([b'x'; 64]);
        (0..=FACTS_LIMIT).for_each(|_| log.record(0, 0x70, &body));
        let (name, bytes) = log.segments().swap_remove(0);
        let facts = WalFacts::of_segment(name, &bytes, one_mib(), None);
        assert_eq!((facts.restore_points.len(), facts.truncated), (FACTS_LIMIT, true));
        assert_eq!(facts.restore_points[0].name, "x".repeat(64));
    }
}
