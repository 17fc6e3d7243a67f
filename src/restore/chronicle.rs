//! What happened in the archived log, and when: restore points, tables and databases that went, holes, and the time of
//! positions.
//!
//! Told timeline by timeline from the hints. Names of tables are those of the newest backup that began before: a table that
//! was made after it, and every temporary one, has none, and is only counted.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use tracing::warn;

use super::removal::{Fate, Followed};
use super::survey::{Survey, SurveyError};
use crate::catalog::{Branch, LaneCatalog, TimelineCatalog};
use crate::error;
use crate::format::manifest::Manifest;
use crate::format::relations::Relation;
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::segment::{SegmentName, SegmentNo};
use crate::pg::timeline::TimelineId;
use crate::pg::wal_event::TransactionEnd;
use crate::pg::wal_facts::{RemovalFact, WalFacts};
use crate::pg::wal_record::RelationLocator;
use crate::pg::wal_transaction::{DroppedRelation, EndRecord};
use crate::repo::{Lane, RepoError};

/// The first major whose commits say which relations they drop.
const NAMES_RELATIONS: u16 = 15;
/// Commits that are read again because the hint does not say enough; of more it is not known what they did.
const READ_AGAIN: u32 = 100;
/// Files made by transactions that have not ended yet are forgotten from here on.
const FILES_REMEMBERED: usize = 100_000;

/// What is known of one timeline's own part of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chronicle {
    /// The timeline.
    pub timeline: TimelineId,
    /// Positions, and the latest time of a transaction that ended before each; in the order of the log.
    pub clock: Vec<(Lsn, PgTime)>,
    /// Segments that are missing between others.
    pub gaps: Vec<Gap>,
    /// What happened, in the order of the log.
    pub events: Vec<Event>,
    /// Segments of which nothing could be read.
    pub unread: u64,
    /// Removals of tables that no backup has the names of.
    pub unnamed: u64,
    /// Whether a segment held more than its hint can list.
    pub incomplete: bool,
}

impl Chronicle {
    /// Returns when a position was written, as nearly as the log tells: between two known times in proportion.
    pub fn time_of(&self, at: Lsn) -> Option<PgTime> {
        let next = self.clock.partition_point(|(position, _)| *position <= at);
        let before = next.checked_sub(1).and_then(|place| self.clock.get(place));
        match (before, self.clock.get(next)) {
            (Some((from, earlier)), Some((to, later))) => {
                let part = (at - *from) as f64 / (*to - *from).max(1) as f64;
                let micros = (later.micros() - earlier.micros()) as f64 * part;
                PgTime::from_micros(earlier.micros() + micros as i64)
            }
            (before, after) => before.or(after).map(|(_, time)| *time),
        }
    }
}

/// Consecutive segments that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first.
    pub first: SegmentName,
    /// How many.
    pub segments: u64,
    /// The latest time before it.
    pub after: Option<PgTime>,
    /// The earliest time past it.
    pub before: Option<PgTime>,
}

/// Something that an operator may want to come back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Start of its record: of a removal, of the commit.
    pub at: Lsn,
    /// The position after that record.
    pub end: Option<Lsn>,
    /// When, by the server's clock.
    pub time: Option<PgTime>,
    /// Whether the record itself says when; else the time is that of its place in the log, nearly.
    pub exact: bool,
    /// The transaction, if it is known.
    pub xid: Option<u32>,
    /// What it was.
    pub what: Happening,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// `pg_create_restore_point` was called.
    RestorePoint {
        /// The point's name.
        name: String,
    },
    /// A table, or another relation with rows, went, or its rows did.
    Relation {
        /// Schema and name.
        name: String,
        /// Its database.
        database: String,
        /// What became of it.
        removal: Removal,
    },
    /// A database was dropped.
    DatabaseDropped {
        /// Its number.
        oid: u32,
        /// Its name, if a backup has it.
        name: Option<String>,
    },
    /// A tablespace was created.
    TablespaceCreated {
        /// Its number.
        oid: u32,
        /// Its directory.
        path: String,
    },
    /// A tablespace was dropped.
    TablespaceDropped {
        /// Its number.
        oid: u32,
        /// Its directory, if a backup has it.
        path: Option<String>,
    },
}

/// What became of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// `DROP`.
    Dropped,
    /// `TRUNCATE`.
    Truncated,
    /// Its rows were written to a new file: `VACUUM FULL`, `CLUSTER`, some kinds of `ALTER TABLE`.
    Rewritten,
    /// One of these; the log does not say which.
    Unclear,
}

/// Tells what happened on every timeline of a lane.
///
/// # Errors
/// [`SurveyError`] if a hint or the names in a backup cannot be asked for; what is damaged is passed over and counted.
pub fn chronicle(lane: &Lane, catalog: &LaneCatalog) -> Result<Vec<Chronicle>, SurveyError> {
    let survey = Survey::keeping_facts(lane, catalog);
    let tell = |timeline| {
        let told = Teller::new(lane, catalog, &survey, timeline).tell();
        survey.forget();
        told
    };
    catalog.timelines.iter().map(tell).collect()
}

struct Teller<'a> {
    catalog: &'a LaneCatalog,
    survey: &'a Survey<'a>,
    timeline: &'a TimelineCatalog,
    branch: Option<Branch>,
    names: Names<'a>,
    /// Files of rows by the transaction that made them.
    created: HashMap<u32, Vec<RelationLocator>>,
    read_again: u32,
    latest: Option<PgTime>,
    told: Chronicle,
}

impl<'a> Teller<'a> {
    fn new(lane: &'a Lane, catalog: &'a LaneCatalog, survey: &'a Survey<'a>, timeline: &'a TimelineCatalog) -> Self {
        let branch = timeline.branch();
        let on_branch = |manifest: &&Manifest| {
            let envelope = &manifest.envelope;
            match &branch {
                Some(branch) => branch.holds(envelope.timeline, envelope.start_lsn, envelope.stop_lsn),
                None => envelope.timeline == timeline.timeline,
            }
        };
        let mut backups: Vec<&Manifest> = catalog.backups.iter().filter(on_branch).collect();
        backups.sort_by_key(|manifest| manifest.envelope.start_lsn);
        let told = Chronicle {
            timeline: timeline.timeline,
            clock: Vec::new(),
            gaps: Vec::new(),
            events: Vec::new(),
            unread: 0,
            unnamed: 0,
            incomplete: false,
        };
        let names =
            Names { lane, backups, loaded: None, known: Vec::new(), by_oid: HashMap::new(), by_file: HashMap::new() };
        Self { catalog, survey, timeline, branch, names, created: HashMap::new(), read_again: 0, latest: None, told }
    }

    fn tell(mut self) -> Result<Chronicle, SurveyError> {
        let size = self.catalog.segment_size();
        let number = |name: &SegmentName| name.number(size).ok();
        let names = self.own_segments();
        let mut last: Option<SegmentNo> = None;
        for run in names.chunk_by(|a, b| number(a).map(SegmentNo::next) == number(b)) {
            let Some(first) = number(&run[0]) else { continue };
            let gap = last.map(|last| Gap {
                first: SegmentName::from_number(self.timeline.timeline, last.next(), size),
                segments: first.0 - last.0 - 1,
                after: self.latest,
                before: None,
            });
            let open_gap = gap.map(|gap| self.told.gaps.push(gap)).is_some();
            self.run(first, run)?;
            if open_gap && let Some(gap) = self.told.gaps.last_mut() {
                let begins = first.start(size);
                gap.before = self.told.clock.iter().find(|(at, _)| *at > begins).map(|(_, time)| *time);
            }
            last = run.last().and_then(number);
        }
        let Chronicle { events, clock, .. } = &mut self.told;
        events.sort_by_key(|event| event.at);
        // Clocks are set back now and then: what is drawn on an axis runs one way.
        clock.extend(events.iter().filter_map(|event| Some((event.at, event.time?))));
        clock.sort_unstable();
        clock.dedup_by_key(|(at, _)| *at);
        let mut latest = None;
        clock.iter_mut().for_each(|(_, time)| {
            latest = latest.max(Some(*time));
            *time = latest.unwrap_or(*time);
        });
        let about: Vec<Option<PgTime>> = self.told.events.iter().map(|event| self.told.time_of(event.at)).collect();
        for (event, about) in self.told.events.iter_mut().zip(about).filter(|(event, _)| !event.exact) {
            event.time = about;
        }
        Ok(self.told)
    }

    /// The timeline's segments, and the `.partial` that stands for its last one.
    fn own_segments(&self) -> Vec<SegmentName> {
        let size = self.catalog.segment_size();
        let forks = self.catalog.timelines.iter().filter_map(|child| child.history.as_ref()?.forks().last());
        let left = forks.filter(|fork| fork.parent == self.timeline.timeline);
        let left = left.map(|fork| SegmentName::from_number(fork.parent, size.segment_of(fork.at), size));
        let mut names: BTreeSet<SegmentName> = self.timeline.segments.iter().copied().collect();
        names.extend(left.filter(|name| self.catalog.holds(*name)));
        names.into_iter().collect()
    }

    /// Tells of consecutive segments.
    fn run(&mut self, first: SegmentNo, run: &[SegmentName]) -> Result<(), SurveyError> {
        let size = self.catalog.segment_size();
        let before = first.0.checked_sub(1).zip(self.branch.as_ref());
        let before = before.map(|(number, branch)| branch.segment(SegmentNo(number), size));
        let lead = before.filter(|name| self.catalog.holds(*name) && *name != run[0]);
        let chain: Vec<SegmentName> = lead.into_iter().chain(run.iter().copied()).collect();
        self.survey.prepare(&chain)?;
        let begin =
            self.branch.as_ref().and_then(|branch| branch.stretches().last()).map_or(Lsn::INVALID, |own| own.begin);
        for index in usize::from(lead.is_some())..chain.len() {
            // A damaged segment before it is no reason to know nothing of this one.
            let whole = self.survey.whole_facts(&chain, index).or_else(|_| self.survey.facts(chain[index]));
            match whole {
                Ok(facts) => self.segment(&chain, index, &facts, begin)?,
                Err(SurveyError::Repository { source: RepoError::Object { .. }, .. }) => self.told.unread += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn segment(
        &mut self,
        chain: &[SegmentName],
        index: usize,
        facts: &Rc<WalFacts>,
        begin: Lsn,
    ) -> Result<(), SurveyError> {
        // The first segment begins with a copy of what the parent wrote before the fork.
        let own = |at: Lsn| at >= begin;
        self.told.incomplete |= facts.truncated || facts.removals_truncated;
        for point in facts.restore_points.iter().filter(|point| own(point.at)) {
            let what = Happening::RestorePoint { name: point.name.clone() };
            let (at, time) = (point.at, point.time);
            self.told.events.push(Event { at, end: Some(point.end), time, exact: true, xid: None, what });
        }
        for dropped in facts.databases.iter().filter(|fact| fact.copied_from.is_none() && own(fact.at)) {
            let oid = dropped.oid;
            let what = Happening::DatabaseDropped { oid, name: self.names.database(oid, dropped.at) };
            // 13 writes a record for each tablespace that it had files in.
            if self.told.events.last().is_none_or(|last| last.what != what) {
                self.push_about(dropped.at, what);
            }
        }
        for made in facts.tablespaces.iter().filter(|fact| own(fact.at)) {
            self.push_about(made.at, Happening::TablespaceCreated { oid: made.oid, path: made.path.clone() });
        }
        for oid in &facts.tablespaces_dropped {
            let at = facts.first_record.unwrap_or(Lsn::INVALID).max(begin);
            let path = self.names.tablespace(*oid);
            self.push_about(at, Happening::TablespaceDropped { oid: *oid, path });
        }
        for made in &facts.files_created {
            self.created.entry(made.xid).or_default().push(made.file);
        }
        for removal in facts.removals.iter().filter(|removal| own(removal.at)) {
            self.removal(chain, index, removal)?;
        }
        if self.created.len() > FILES_REMEMBERED {
            self.created.clear();
        }
        self.latest = self.latest.max(facts.max_time);
        self.told.clock.extend(facts.last_complete_end.filter(|end| *end > begin).zip(self.latest));
        Ok(())
    }

    /// Adds what has no time of its own; it is found when the whole log is known.
    fn push_about(&mut self, at: Lsn, what: Happening) {
        self.told.events.push(Event { at, end: None, time: None, exact: false, xid: None, what });
    }

    fn removal(&mut self, chain: &[SegmentName], index: usize, removal: &RemovalFact) -> Result<(), SurveyError> {
        self.names.load_for(removal.at)?;
        let concerned = self.names.concerned(removal);
        if concerned.is_empty() {
            self.told.unnamed += u64::from(!removal.relations.is_empty() || !removal.files.is_empty());
            return Ok(());
        }
        let RemovalFact { at, end, xid, time, .. } = *removal;
        let mut ended = EndRecord {
            kind: TransactionEnd::Commit,
            xid,
            time,
            subtransactions: Vec::new(),
            files: removal.files.clone(),
            relations: removal.relations.clone(),
        };
        let mut created = self.created.remove(&xid).unwrap_or_default();
        let dropped = |place: &usize| removal.relations.contains(&self.names.known[*place].followed.relation);
        let mut clear = true;
        // Who made the files may have been a subtransaction, which only the record itself names.
        if created.is_empty() && !concerned.iter().all(dropped) {
            self.read_again += 1;
            clear = self.read_again <= READ_AGAIN;
            if clear && let Some(read) = self.survey.end_record(chain, index, at)? {
                created = self.survey.created_by(&chain[..=index], &read)?;
                ended = read;
            }
        }
        for place in concerned {
            let Some((name, database, removal)) = self.names.follow(place, &ended, &created, clear) else { continue };
            let what = Happening::Relation { name, database, removal };
            self.told.events.push(Event { at, end: Some(end), time, exact: true, xid: Some(xid), what });
        }
        Ok(())
    }
}

/// A relation of a backup, as it is followed through the log.
struct Known {
    name: String,
    database: String,
    followed: Followed,
}

/// Names as the newest backup before a position has them.
struct Names<'a> {
    lane: &'a Lane,
    /// Backups on the branch, by where they begin.
    backups: Vec<&'a Manifest>,
    loaded: Option<usize>,
    known: Vec<Known>,
    by_oid: HashMap<DroppedRelation, usize>,
    by_file: HashMap<RelationLocator, usize>,
}

impl Names<'_> {
    fn before(&self, at: Lsn) -> Option<usize> {
        self.backups.iter().rposition(|manifest| manifest.envelope.start_lsn <= at)
    }

    fn database(&self, oid: u32, at: Lsn) -> Option<String> {
        let manifest = self.backups.get(self.before(at)?)?;
        manifest.root.databases.iter().find(|database| database.oid == oid).map(|database| database.name.clone())
    }

    fn tablespace(&self, oid: u32) -> Option<String> {
        let mut all = self.backups.iter().rev().flat_map(|manifest| &manifest.root.tablespaces);
        all.find(|tablespace| tablespace.oid == oid).map(|tablespace| tablespace.path.clone())
    }

    /// Reads the names of the newest backup that began before a position, unless they are at hand.
    fn load_for(&mut self, at: Lsn) -> Result<(), SurveyError> {
        let wanted = self.before(at);
        if wanted == self.loaded {
            return Ok(());
        }
        self.loaded = wanted;
        self.known.clear();
        self.by_oid.clear();
        self.by_file.clear();
        let Some(manifest) = wanted.and_then(|place| self.backups.get(place).copied()) else { return Ok(()) };
        match self.read(manifest) {
            Ok(()) => Ok(()),
            Err(problem @ RepoError::Object { .. }) => {
                warn!(backup = manifest.envelope.backup, error = %error::chain(&problem), "names of relations passed over");
                Ok(())
            }
            Err(source) => Err(SurveyError::Names { backup: manifest.envelope.backup.clone(), source }),
        }
    }

    fn read(&mut self, manifest: &Manifest) -> Result<(), RepoError> {
        let tables = self.lane.tables(manifest)?;
        let mut leaves = self.lane.relations(&tables);
        while let Some(relations) = leaves.next_leaf()? {
            for relation in relations.iter().filter(|relation| holds_rows(relation)) {
                let database = manifest.root.databases.iter().find(|database| database.oid == relation.database);
                let database = database.map_or_else(|| relation.database.to_string(), |found| found.name.clone());
                let followed = Followed::of(relation);
                let place = self.known.len();
                self.by_oid.insert(followed.relation, place);
                self.by_file.extend(followed.file.map(|file| (file, place)));
                self.known.push(Known { name: relation.full_name(), database, followed });
            }
        }
        Ok(())
    }

    /// The relations that a commit may concern.
    fn concerned(&self, removal: &RemovalFact) -> BTreeSet<usize> {
        let dropped = removal.relations.iter().filter_map(|relation| self.by_oid.get(relation));
        dropped.chain(removal.files.iter().filter_map(|file| self.by_file.get(file))).copied().collect()
    }

    /// Decides what a commit did to a relation, and remembers its next file.
    fn follow(
        &mut self,
        place: usize,
        ended: &EndRecord,
        created: &[RelationLocator],
        clear: bool,
    ) -> Option<(String, String, Removal)> {
        let major = self.loaded.and_then(|loaded| Some(self.backups.get(loaded)?.envelope.major)).unwrap_or(0);
        let known = &mut self.known[place];
        let named = ended.relations.contains(&known.followed.relation);
        let fate = match known.followed.fate(ended, created, major >= NAMES_RELATIONS) {
            Fate::Untouched => Fate::Untouched,
            _ if !clear && !named => Fate::Unclear,
            fate => fate,
        };
        let (removal, file) = match fate {
            Fate::Dropped => (Removal::Dropped, None),
            Fate::Emptied(file) => (Removal::Truncated, file),
            Fate::Moved(file) => (Removal::Rewritten, file),
            Fate::Unclear => (Removal::Unclear, None),
            Fate::Untouched => return None,
        };
        if let Some(old) = std::mem::replace(&mut known.followed.file, file) {
            self.by_file.remove(&old);
        }
        self.by_file.extend(file.map(|file| (file, place)));
        Some((known.name.clone(), known.database.clone(), removal))
    }
}

/// Whether a relation is one that people speak of: not an index, a sequence or what belongs to another one, and not the
/// catalogue's own.
fn holds_rows(relation: &Relation) -> bool {
    let own = [&b"pg_catalog"[..], b"pg_toast", b"information_schema"];
    matches!(relation.kind, b'r' | b'p' | b'm') && !own.contains(&relation.schema.as_slice())
}

#[cfg(test)]
mod tests;
