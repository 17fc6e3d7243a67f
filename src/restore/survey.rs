//! Looking for a moment in the archived log.
//!
//! The hints in the segments' trailers say where to look; what is found is always read from the records themselves. A
//! record that crosses from one segment into the next is in neither hint, so wherever a segment leaves one open that may
//! matter, both are walked together.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::catalog::{LaneCatalog, SegmentIndex};
use crate::error::ErrorKind;
use crate::format::Sha256;
use crate::format::index::IndexedSegment;
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::segment::SegmentName;
use crate::pg::wal_event::{TransactionEnd, WalEvent, WalParameters};
use crate::pg::wal_facts::{FACTUAL, FactsEnd, WalFacts};
use crate::pg::wal_name::WalFileName;
use crate::pg::wal_record::{Record, RelationLocator};
use crate::pg::wal_transaction::{DroppedRelation, EndRecord, created_file};
use crate::pg::wal_walk::{SegmentEnd, Walker};
use crate::repo::{Lane, RepoError};

/// Resource managers whose records can hold a moment: the log's own and transactions.
const MOMENTS: [u8; 2] = [0, 1];
/// Resource managers whose records can ask something of the host: the log's own and tablespaces.
const DEMANDS: [u8; 2] = [0, 5];
/// The resource manager of transactions, and that of files.
const TRANSACTIONS: u8 = 1;
const FILES: u8 = 2;
/// Hints read at once.
const REQUESTS: usize = 8;
/// The first version of the facts that knows transactions by id, and what commits remove.
const KNOWS_TRANSACTIONS: u32 = 2;

/// Why the log could not be looked through.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// A segment went away since it was listed.
    #[error("segment {name} was listed and is gone")]
    Gone {
        /// The segment.
        name: SegmentName,
    },
    /// The names of relations in a backup could not be read.
    #[error("read the names of relations in backup {backup}")]
    Names {
        /// The backup.
        backup: String,
        /// Why.
        source: RepoError,
    },
    /// An index speaks of other bytes than the ones that are archived.
    #[error(
        "the index of {name} was made of another segment; remove the folder index of the lane, it can be made again"
    )]
    OtherIndex {
        /// The segment.
        name: SegmentName,
    },
    /// A segment could not be read.
    #[error("read the archived {name}")]
    Repository {
        /// The segment.
        name: SegmentName,
        /// Why.
        source: RepoError,
    },
}

impl SurveyError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SurveyError::Gone { .. } | SurveyError::OtherIndex { .. } => ErrorKind::Corrupt,
            SurveyError::Names { source, .. } | SurveyError::Repository { source, .. } => source.kind(),
        }
    }
}

/// A record in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FoundRecord {
    pub start: Lsn,
    /// The position after it.
    pub end: Lsn,
    pub time: Option<PgTime>,
}

/// A transaction that ended in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedTransaction {
    /// Its id.
    pub xid: u32,
    /// How it ended.
    pub kind: TransactionEnd,
    /// Start of the record with which it ended.
    pub record: Lsn,
    /// The position after that record.
    pub end: Lsn,
    /// When, by the server's clock.
    pub time: Option<PgTime>,
}

/// What a log asks of the host that replays it.
#[derive(Debug, Default)]
pub(super) struct Demands {
    /// Settings that were recorded.
    pub parameters: Vec<WalParameters>,
    /// Tablespaces that are created, by the place that the record names.
    pub tablespaces: Vec<(u32, String)>,
}

/// What an index says of a segment.
struct Indexed {
    segment: SegmentName,
    sha256: Sha256,
    joined_after: Option<SegmentName>,
    facts: Rc<WalFacts>,
}

/// The archived log of one lane, read as far as questions need.
pub(super) struct Survey<'a> {
    lane: &'a Lane,
    catalog: &'a LaneCatalog,
    index: SegmentIndex<'a>,
    /// Facts that no index has.
    facts: RefCell<HashMap<SegmentName, Rc<WalFacts>>>,
    /// What an index said of the segments asked for last.
    indexed: RefCell<VecDeque<Rc<Indexed>>>,
    last_read: RefCell<Option<(SegmentName, Vec<u8>)>>,
}

impl<'a> Survey<'a> {
    pub fn new(lane: &'a Lane, catalog: &'a LaneCatalog) -> Self {
        Self {
            lane,
            catalog,
            index: SegmentIndex::new(lane),
            facts: RefCell::default(),
            indexed: RefCell::default(),
            last_read: RefCell::default(),
        }
    }

    /// Reads the hints of a chain, several at a time.
    pub fn prepare(&self, chain: &[SegmentName]) -> Result<(), SurveyError> {
        self.index.prepare(chain);
        let mut wanted = Vec::new();
        for name in chain {
            if !self.facts.borrow().contains_key(name)
                && let Some(stored) = self.catalog.segment(*name)
                && self.index.brief(stored).is_none()
            {
                wanted.push((*name, stored));
            }
        }
        let (lane, next, found) = (self.lane, AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || {
            while let Some((name, stored)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                // What cannot be read here is asked for again, one by one, and then it counts.
                if let Ok(Some(facts)) = lane.wal_facts(stored)
                    && facts.indexer > 0
                {
                    found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((*name, facts));
                }
            }
        };
        if wanted.len() > 1 {
            std::thread::scope(|scope| {
                (0..REQUESTS.min(wanted.len())).for_each(|_| drop(scope.spawn(work)));
            });
        }
        let found = found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.facts.borrow_mut().extend(found.into_iter().map(|(name, facts)| (name, Rc::new(facts))));
        Ok(())
    }

    /// Returns what an index says of a segment, if one does.
    fn indexed(&self, name: SegmentName) -> Option<Rc<Indexed>> {
        /// Questions go along a chain, to a segment and the one before it.
        const REMEMBERED: usize = 4;
        let known = self.indexed.borrow().iter().find(|one| one.segment == name).map(Rc::clone);
        if known.is_some() {
            return known;
        }
        let IndexedSegment { segment, sha256, joined_after, facts, .. } =
            self.index.get(self.catalog.segment(name)?)?;
        let one = Rc::new(Indexed { segment, sha256, joined_after, facts: Rc::new(facts) });
        let mut indexed = self.indexed.borrow_mut();
        indexed.truncate(REMEMBERED - 1);
        indexed.push_front(Rc::clone(&one));
        Some(one)
    }

    /// Returns what a segment's hint says, or what its own records say if it has none.
    pub fn facts(&self, name: SegmentName) -> Result<Rc<WalFacts>, SurveyError> {
        if let Some(facts) = self.facts.borrow().get(&name) {
            return Ok(Rc::clone(facts));
        }
        let failed = |source| SurveyError::Repository { name, source };
        let stored = self.catalog.segment(name).ok_or(SurveyError::Gone { name })?;
        if let Some(one) = self.indexed(name) {
            return Ok(Rc::clone(&one.facts));
        }
        let facts = match self.lane.wal_facts(stored).map_err(failed)? {
            Some(facts) if facts.indexer > 0 => facts,
            _ => {
                let system_id = Some(self.catalog.facts.system_id);
                self.with_bytes(name, |raw| WalFacts::of_segment(name, raw, self.catalog.segment_size(), system_id))?
            }
        };
        let facts = Rc::new(facts);
        self.facts.borrow_mut().insert(name, Rc::clone(&facts));
        Ok(facts)
    }

    /// Whether a segment is there only as the `.partial` that a promotion left behind.
    pub fn is_partial(&self, name: SegmentName) -> bool {
        self.catalog.segment(name).is_some_and(|stored| matches!(stored.name, WalFileName::Partial(_)))
    }

    /// Returns the digest of the `.partial` that stands for a segment, if one does.
    pub fn partial(&self, name: SegmentName) -> Result<Option<Sha256>, SurveyError> {
        if !self.is_partial(name) {
            return Ok(None);
        }
        self.with_bytes(name, |raw| Some(Sha256::of(raw)))
    }

    /// Returns how many segments of a chain hold a log that goes on, and where it ends if that is before the last one: in
    /// a segment whose records end, or before one whose stored bytes are damaged.
    pub fn readable(&self, chain: &[SegmentName]) -> Result<(usize, Option<Lsn>), SurveyError> {
        self.prepare(chain)?;
        for (index, name) in chain.iter().enumerate() {
            if self.is_partial(*name) {
                // It ends where its timeline was left.
                return Ok((index + 1, None));
            }
            if self.catalog.segment(*name).and_then(|stored| self.index.brief(stored)) == Some(true) {
                continue;
            }
            match self.facts(*name) {
                Ok(facts) => {
                    if let FactsEnd::Stopped { at, .. } = facts.end {
                        return Ok((index + 1, Some(at)));
                    }
                }
                Err(SurveyError::Repository { source: RepoError::Object { .. }, .. }) => {
                    let size = self.catalog.segment_size();
                    return Ok((index, Some(name.number(size).map_or(Lsn::INVALID, |number| number.start(size)))));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((chain.len(), None))
    }

    /// Returns the last complete record of a chain.
    pub fn last_record(&self, chain: &[SegmentName]) -> Result<Option<FoundRecord>, SurveyError> {
        for index in (0..chain.len()).rev() {
            let mut last = None;
            self.walk(chain, index, &mut |record, time| {
                last = Some(FoundRecord { start: record.start, end: record.end, time });
            })?;
            if last.is_some() {
                return Ok(last);
            }
        }
        Ok(None)
    }

    /// Returns the last record that ended at or before a position.
    pub fn last_record_until(&self, chain: &[SegmentName], until: Lsn) -> Result<Option<FoundRecord>, SurveyError> {
        for index in (0..chain.len()).rev() {
            let mut last = None;
            self.walk(chain, index, &mut |record, time| {
                if record.end <= until {
                    last = Some(FoundRecord { start: record.start, end: record.end, time });
                }
            })?;
            if last.is_some() {
                return Ok(last);
            }
        }
        Ok(None)
    }

    /// Returns the first commit or abort of a chain whose time is `past` what is asked for.
    pub fn first_past(
        &self,
        chain: &[SegmentName],
        past: impl Fn(PgTime) -> bool,
    ) -> Result<Option<FoundRecord>, SurveyError> {
        let hinted = |facts: &WalFacts| facts.max_time.is_some_and(&past);
        let is_it =
            |event: &WalEvent| matches!(event, WalEvent::TransactionEnd { time: Some(time), .. } if past(*time));
        Ok(self.find(chain, hinted, is_it, true)?.first().copied())
    }

    /// Returns the commit or abort of a transaction.
    pub fn end_of_transaction(&self, chain: &[SegmentName], wanted: u32) -> Result<Option<FoundRecord>, SurveyError> {
        let hinted = |facts: &WalFacts| match (facts.min_xid, facts.max_xid) {
            (Some(least), Some(most)) => (least..=most).contains(&wanted),
            _ => facts.commits + facts.aborts > 0,
        };
        let is_it = |event: &WalEvent| matches!(event, WalEvent::TransactionEnd { xid, .. } if *xid == wanted);
        Ok(self.find(chain, hinted, is_it, true)?.first().copied())
    }

    /// Returns the last transaction of a chain that ended and is `wanted`.
    pub fn last_transaction(
        &self,
        chain: &[SegmentName],
        wanted: impl Fn(&EndedTransaction) -> bool,
    ) -> Result<Option<EndedTransaction>, SurveyError> {
        for index in (0..chain.len()).rev() {
            let facts = self.facts(chain[index])?;
            if facts.commits + facts.aborts == 0 && !self.enters_with_a_moment(chain, index)? {
                continue;
            }
            let mut last = None;
            self.walk(chain, index, &mut |record, time| {
                if let Some(WalEvent::TransactionEnd { kind, xid, .. }) = WalEvent::read(record) {
                    let ended = EndedTransaction { xid, kind, record: record.start, end: record.end, time };
                    last = Some(ended).filter(&wanted).or(last);
                }
            })?;
            if last.is_some() {
                return Ok(last);
            }
        }
        Ok(None)
    }

    /// Returns the latest time of a commit or abort in the last segment of a chain that has one, as its hint knows it.
    pub fn latest_time(&self, chain: &[SegmentName]) -> Result<Option<PgTime>, SurveyError> {
        for name in chain.iter().rev() {
            if let Some(time) = self.facts(*name)?.max_time {
                return Ok(Some(time));
            }
        }
        Ok(None)
    }

    /// Returns the restore points of a name.
    pub fn restore_points(&self, chain: &[SegmentName], name: &str) -> Result<Vec<FoundRecord>, SurveyError> {
        let has = |facts: &WalFacts| facts.restore_points.iter().any(|point| point.name == name);
        let is_it = |event: &WalEvent| matches!(event, WalEvent::RestorePoint { name: found, .. } if found == name);
        self.find(chain, has, is_it, false)
    }

    fn find(
        &self,
        chain: &[SegmentName],
        hinted: impl Fn(&WalFacts) -> bool,
        is_it: impl Fn(&WalEvent) -> bool,
        only_first: bool,
    ) -> Result<Vec<FoundRecord>, SurveyError> {
        let mut found = Vec::new();
        for index in 0..chain.len() {
            let facts = self.facts(chain[index])?;
            // A list that was cut short denies nothing.
            if !facts.truncated && !hinted(&facts) && !self.enters_with_a_moment(chain, index)? {
                continue;
            }
            self.walk(chain, index, &mut |record, time| {
                if WalEvent::read(record).as_ref().is_some_and(&is_it) {
                    found.push(FoundRecord { start: record.start, end: record.end, time });
                }
            })?;
            if only_first && !found.is_empty() {
                break;
            }
        }
        Ok(found)
    }

    /// Returns the commits of a chain that remove files or drop relations, and are `wanted`.
    pub fn removals(
        &self,
        chain: &[SegmentName],
        wanted: impl Fn(&[DroppedRelation], &[RelationLocator]) -> bool,
    ) -> Result<Vec<(FoundRecord, EndRecord)>, SurveyError> {
        let mut found = Vec::new();
        for index in 0..chain.len() {
            let facts = self.facts(chain[index])?;
            let hinted = facts.removals.iter().any(|removal| wanted(&removal.relations, &removal.files));
            let unknown = facts.removals_truncated || facts.indexer < KNOWS_TRANSACTIONS;
            if !hinted && !unknown && !self.enters_with(&[TRANSACTIONS], chain, index)? {
                continue;
            }
            self.walk(chain, index, &mut |record, time| {
                let ended = EndRecord::read(record).filter(|ended| ended.kind.commits());
                if let Some(ended) = ended.filter(|ended| wanted(&ended.relations, &ended.files)) {
                    found.push((FoundRecord { start: record.start, end: record.end, time }, ended));
                }
            })?;
        }
        Ok(found)
    }

    /// Returns the files of rows that a transaction created, in the order of the log.
    pub fn created_by(&self, chain: &[SegmentName], ended: &EndRecord) -> Result<Vec<RelationLocator>, SurveyError> {
        let mut created = Vec::new();
        for index in 0..chain.len() {
            let facts = self.facts(chain[index])?;
            let unknown = facts.removals_truncated || facts.indexer < KNOWS_TRANSACTIONS;
            if unknown || self.enters_with(&[FILES], chain, index)? {
                self.walk(chain, index, &mut |record, _| {
                    created.extend(created_file(record).filter(|_| ended.is(record.xid)));
                })?;
            } else {
                created.extend(facts.files_created.iter().filter(|made| ended.is(made.xid)).map(|made| made.file));
            }
        }
        Ok(created)
    }

    /// Returns what a chain asks of the host that replays it from `start` on: settings, and places for tablespaces.
    pub fn demands(&self, chain: &[SegmentName], start: Lsn, before: Lsn) -> Result<Demands, SurveyError> {
        let mut demands = Demands::default();
        for index in 0..chain.len() {
            let facts = self.facts(chain[index])?;
            demands.parameters.extend(facts.parameters);
            let created = facts.tablespaces.iter().filter(|made| made.at >= start && made.at < before);
            if !facts.truncated {
                demands.tablespaces.extend(created.map(|made| (made.oid, made.path.clone())));
            }
            if !facts.truncated && !self.enters_with(&DEMANDS, chain, index)? {
                continue;
            }
            let size = self.catalog.segment_size();
            let begin = chain[index].number(size).map_or(Lsn::INVALID, |number| number.start(size));
            self.walk(chain, index, &mut |record, _| {
                // Those that begin in the segment are in its facts, unless there were too many.
                if (record.start >= begin && !facts.truncated) || record.start >= before {
                    return;
                }
                match WalEvent::read(record) {
                    Some(WalEvent::Parameters(found)) => demands.parameters.push(found),
                    Some(WalEvent::TablespaceCreated { oid, path }) if record.start >= start => {
                        demands.tablespaces.push((oid, path));
                    }
                    _ => {}
                }
            })?;
        }
        Ok(demands)
    }

    /// Whether a record that no single segment shows, and that may be a moment, ends in `chain[index]`.
    fn enters_with_a_moment(&self, chain: &[SegmentName], index: usize) -> Result<bool, SurveyError> {
        self.enters_with(&MOMENTS, chain, index)
    }

    /// Whether a record that no single segment shows, of one of these resource managers, ends in `chain[index]`.
    pub fn enters_with(&self, managers: &[u8], chain: &[SegmentName], index: usize) -> Result<bool, SurveyError> {
        let Some(before) = index.checked_sub(1) else { return Ok(false) };
        let end = &self.facts(chain[before])?.end;
        let other = |end: &FactsEnd| match end {
            FactsEnd::Open { resource_manager: Some(manager), .. } => !managers.contains(manager),
            _ => false,
        };
        if !end.may_leave_open_what_matters() || other(end) {
            return Ok(false);
        }
        // The index walked this segment from the one before it: the record is among its facts.
        let indexed = self.indexed(chain[index]).filter(|_| !self.facts.borrow().contains_key(&chain[index]));
        Ok(indexed.and_then(|one| one.joined_after) != Some(chain[before]))
    }

    /// Returns what `chain[index]` holds, with a record that ends in it and that the segment before it begins.
    pub fn whole_facts(&self, chain: &[SegmentName], index: usize) -> Result<Rc<WalFacts>, SurveyError> {
        if !self.enters_with(&FACTUAL, chain, index)? {
            return self.facts(chain[index]);
        }
        let mut walker = self.led_to(chain, index)?;
        let name = chain[index];
        Ok(Rc::new(self.with_bytes(name, |raw| WalFacts::of_walk(&mut walker, name, raw))?))
    }

    /// Returns the end of a transaction whose record ends in `chain[index]` and begins at `at`.
    pub fn end_record(&self, chain: &[SegmentName], index: usize, at: Lsn) -> Result<Option<EndRecord>, SurveyError> {
        let mut found = None;
        self.walk(chain, index, &mut |record, _| {
            if record.start == at {
                found = EndRecord::read(record);
            }
        })?;
        Ok(found)
    }

    /// Visits the records that end in `chain[index]`.
    pub fn visit(
        &self,
        chain: &[SegmentName],
        index: usize,
        visit: &mut dyn FnMut(&Record<'_>),
    ) -> Result<(), SurveyError> {
        self.walk(chain, index, &mut |record, _| visit(record)).map(drop)
    }

    /// Walks `chain[index]`, and before it what a record that ends in it may have begun in; visits the records that end
    /// in it, with the time of those that have one.
    fn walk(
        &self,
        chain: &[SegmentName],
        index: usize,
        visit: &mut dyn FnMut(&Record<'_>, Option<PgTime>),
    ) -> Result<SegmentEnd, SurveyError> {
        let mut walker = self.led_to(chain, index)?;
        self.with_bytes(chain[index], |raw| {
            walker.segment(chain[index], raw, &mut |record| visit(record, time_of(record)))
        })
    }

    /// Returns a walker that has passed what a record that ends in `chain[index]` may have begun in.
    fn led_to(&self, chain: &[SegmentName], index: usize) -> Result<Walker, SurveyError> {
        let mut lead = index;
        while lead > 0 {
            lead -= 1;
            if !matches!(self.facts(chain[lead])?.end, FactsEnd::Inside | FactsEnd::Unknown) {
                break;
            }
        }
        let mut walker = Walker::new(Some(self.catalog.facts.system_id), self.catalog.segment_size());
        for name in &chain[lead..index] {
            self.with_bytes(*name, |raw| walker.segment(*name, raw, &mut |_| {}))?;
        }
        Ok(walker)
    }

    fn with_bytes<T>(&self, name: SegmentName, read: impl FnOnce(&[u8]) -> T) -> Result<T, SurveyError> {
        let mut last_read = self.last_read.borrow_mut();
        if last_read.as_ref().is_none_or(|(known, _)| *known != name) {
            let listed = self.catalog.segment(name).ok_or(SurveyError::Gone { name })?;
            let stored = self.lane.read_listed(listed);
            let stored = stored.map_err(|source| SurveyError::Repository { name, source })?;
            let stored = stored.ok_or(SurveyError::Gone { name })?;
            if self.indexed(name).is_some_and(|one| one.sha256 != stored.digest) {
                return Err(SurveyError::OtherIndex { name });
            }
            *last_read = Some((name, stored.raw));
        }
        Ok(read(last_read.as_ref().map_or(&[][..], |(_, raw)| raw)))
    }
}

fn time_of(record: &Record<'_>) -> Option<PgTime> {
    match WalEvent::read(record)? {
        WalEvent::TransactionEnd { time, .. } | WalEvent::RestorePoint { time, .. } => time,
        _ => None,
    }
}
