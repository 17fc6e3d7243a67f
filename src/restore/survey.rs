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

use super::glance::Glance;
use crate::catalog::{ChainEnd, HoleProof, LaneCatalog, SegmentIndex};
use crate::error::ErrorKind;
use crate::format::Sha256;
use crate::format::index::IndexedSegment;
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::segment::{SegmentName, SegmentNo};
use crate::pg::wal_event::{TransactionEnd, WalEvent};
use crate::pg::wal_facts::{FACTUAL, FactsEnd, WalFacts};
use crate::pg::wal_record::Record;
use crate::pg::wal_transaction::EndRecord;
use crate::pg::wal_walk::{SegmentEnd, Walker};
use crate::repo::{Lane, RepoError, StoredName};

/// Segments whose contents are kept: questions go to one and the one before it, and come back. Not more bytes than so many,
/// unless one segment has more.
const SEGMENTS_KEPT: usize = 2;
const BYTES_KEPT: usize = 64 << 20;
/// Hints read at once.
const REQUESTS: usize = 8;
/// Hints that are held at once, and facts that are kept of them: of a year without indexes they would be hundreds of
/// megabytes.
const HINTS_AT_ONCE: usize = 4096;
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
    keeps_facts: bool,
    /// Facts that no index has.
    facts: RefCell<HashMap<SegmentName, Rc<WalFacts>>>,
    /// What an index said of the segments asked for last.
    indexed: RefCell<VecDeque<Rc<Indexed>>>,
    /// By the place of the timeline, and of the segment on it.
    glances: RefCell<Vec<Vec<Glance>>>,
    /// Ends of chains that were looked for, and their last records.
    ends: RefCell<Vec<(Vec<SegmentName>, FoundRecord)>>,
    /// The contents of segments, the last one that was asked for first.
    read: RefCell<VecDeque<(SegmentName, Vec<u8>)>>,
}

impl<'a> Survey<'a> {
    pub fn new(lane: &'a Lane, catalog: &'a LaneCatalog) -> Self {
        Self {
            lane,
            catalog,
            index: SegmentIndex::new(lane),
            keeps_facts: false,
            facts: RefCell::default(),
            indexed: RefCell::default(),
            glances: RefCell::default(),
            ends: RefCell::default(),
            read: RefCell::default(),
        }
    }

    /// A survey that is asked for the facts of every segment, and told when to [`Survey::forget`] them.
    pub fn keeping_facts(lane: &'a Lane, catalog: &'a LaneCatalog) -> Self {
        Self { keeps_facts: true, ..Self::new(lane, catalog) }
    }

    /// Reads the hints of a chain, several at a time, and takes a glance at each.
    pub fn prepare(&self, chain: &[SegmentName]) -> Result<(), SurveyError> {
        let blank = self.blank(chain);
        self.index.prepare(&blank);
        for some in blank.chunks(HINTS_AT_ONCE) {
            let mut wanted = Vec::new();
            for name in some.iter().copied().filter(|name| !self.facts.borrow().contains_key(name)) {
                let Some(stored) = self.catalog.segment(name) else { continue };
                match self.index.known(&stored) {
                    Some(one) => self.take_glance(name, &one.facts, one.joined_after),
                    None => wanted.push((name, stored)),
                }
            }
            for (name, facts) in self.read_hints(&wanted) {
                self.take_glance(name, &facts, None);
                let mut kept = self.facts.borrow_mut();
                if self.keeps_facts || kept.len() < HINTS_AT_ONCE {
                    kept.insert(name, Rc::new(facts));
                }
            }
        }
        Ok(())
    }

    /// Reads several hints at a time; what cannot be read is left out.
    fn read_hints(&self, wanted: &[(SegmentName, StoredName)]) -> Vec<(SegmentName, WalFacts)> {
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
        found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Forgets the facts that no index has, but not what a glance at them showed.
    pub fn forget(&self) {
        self.facts.borrow_mut().clear();
    }

    fn take_glance(&self, name: SegmentName, facts: &WalFacts, joined_after: Option<SegmentName>) {
        let Some(place) = self.catalog.place(name) else { return };
        let joined = joined_after.is_some_and(|before| self.follows(before, name));
        let glance = Glance::of(facts, facts.indexer < KNOWS_TRANSACTIONS, joined);
        let mut glances = self.glances.borrow_mut();
        glances.resize_with(self.catalog.timelines.len(), Vec::new);
        let own = &mut glances[place.timeline];
        own.resize(self.catalog.timelines[place.timeline].segments.len(), Glance::default());
        own[place.at] = glance;
    }

    /// Whether one segment follows another on the same timeline.
    fn follows(&self, before: SegmentName, name: SegmentName) -> bool {
        let number = |name: SegmentName| name.number(self.catalog.segment_size()).ok();
        before.timeline() == name.timeline() && number(before).map(SegmentNo::next) == number(name)
    }

    /// Returns what was seen of a segment.
    fn glance(&self, name: SegmentName) -> Glance {
        let glances = self.glances.borrow();
        let seen = self.catalog.place(name).and_then(|place| glances.get(place.timeline)?.get(place.at).copied());
        seen.unwrap_or_default()
    }

    /// Shows `see` each place of a chain with what was seen of its segment.
    fn glance_along(&self, chain: &[SegmentName], mut see: impl FnMut(usize, Glance)) {
        let glances = self.glances.borrow();
        let mut at = 0;
        while at < chain.len() {
            // The names of a chain are, for long stretches, those of a timeline: found once, they go side by side.
            let place = self.catalog.place(chain[at]);
            let names = place.map_or(&[][..], |place| &self.catalog.timelines[place.timeline].segments[place.at..]);
            let same = chain[at..].iter().zip(names).take_while(|(one, other)| one == other).count().max(1);
            let seen = place.and_then(|place| glances.get(place.timeline)?.get(place.at..)).unwrap_or(&[]);
            for within in 0..same {
                see(at + within, seen.get(within).copied().unwrap_or_default());
            }
            at += same;
        }
    }

    fn blank(&self, chain: &[SegmentName]) -> Vec<SegmentName> {
        let mut blank = Vec::new();
        self.glance_along(chain, |at, glance| blank.extend(glance.is_blank().then(|| chain[at])));
        blank
    }

    /// Returns the places of a chain that are worth a look: where what is looked for, in records of these resource
    /// managers, may end, as far as a glance tells.
    pub fn worth(&self, chain: &[SegmentName], managers: &[u8], may: impl Fn(Glance) -> bool) -> Vec<usize> {
        let (mut worth, mut open) = (Vec::new(), false);
        self.glance_along(chain, |at, glance| {
            let enters = open && !(glance.is_joined() && self.follows(chain[at - 1], chain[at]));
            if glance.is_blank() || enters || may(glance) {
                worth.push(at);
            }
            open = glance.may_leave_open(managers);
        });
        worth
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
            self.index.get(&self.catalog.segment(name)?)?;
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
        let facts = match self.lane.wal_facts(&stored).map_err(failed)? {
            Some(facts) if facts.indexer > 0 => facts,
            _ => {
                let system_id = Some(self.catalog.facts.system_id);
                self.with_bytes(name, |raw| WalFacts::of_segment(name, raw, self.catalog.segment_size(), system_id))?
            }
        };
        let facts = Rc::new(facts);
        self.take_glance(name, &facts, None);
        self.facts.borrow_mut().insert(name, Rc::clone(&facts));
        Ok(facts)
    }

    /// Whether a segment is there only as the `.partial` that a promotion left behind.
    pub fn is_partial(&self, name: SegmentName) -> bool {
        self.catalog.is_partial(name)
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
        let mut doubtful = Vec::new();
        self.glance_along(chain, |at, glance| doubtful.extend((!glance.is_whole()).then_some(at)));
        for index in doubtful {
            let name = chain[index];
            if self.is_partial(name) {
                // It ends where its timeline was left.
                return Ok((index + 1, None));
            }
            match self.facts(name) {
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

    /// Returns what ends a chain of which only so much is read, though nothing in it is damaged: what is archived behind a
    /// `.partial` does not continue it.
    pub fn hole(&self, chain: &[SegmentName], readable: usize, end: ChainEnd) -> ChainEnd {
        match (chain[..readable].last(), chain.get(readable)) {
            (Some(missing), Some(later)) => ChainEnd::Hole { missing: *missing, proof: HoleProof::Later(*later) },
            _ => end,
        }
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

    /// Returns the place of the segment in which a record that ends in `chain[index]` may have begun; `None` if that may
    /// have been before the chain.
    fn lead(&self, chain: &[SegmentName], index: usize) -> Result<Option<usize>, SurveyError> {
        for lead in (0..index).rev() {
            if !matches!(self.facts(chain[lead])?.end, FactsEnd::Inside | FactsEnd::Unknown) {
                return Ok(Some(lead));
            }
        }
        Ok(None)
    }

    /// Returns a walker that has passed what a record that ends in `chain[index]` may have begun in.
    fn led_to(&self, chain: &[SegmentName], index: usize) -> Result<Walker, SurveyError> {
        let lead = self.lead(chain, index)?.unwrap_or(0);
        let mut walker = Walker::new(Some(self.catalog.facts.system_id), self.catalog.segment_size());
        for name in &chain[lead..index] {
            self.with_bytes(*name, |raw| walker.segment(*name, raw, &mut |_| {}))?;
        }
        Ok(walker)
    }

    fn with_bytes<T>(&self, name: SegmentName, read: impl FnOnce(&[u8]) -> T) -> Result<T, SurveyError> {
        let mut kept = self.read.borrow_mut();
        let place = match kept.iter().position(|(known, _)| *known == name) {
            Some(place) => place,
            None => {
                let listed = self.catalog.segment(name).ok_or(SurveyError::Gone { name })?;
                let stored = self.lane.read_listed(&listed);
                let stored = stored.map_err(|source| SurveyError::Repository { name, source })?;
                let stored = stored.ok_or(SurveyError::Gone { name })?;
                if self.indexed(name).is_some_and(|one| one.sha256 != stored.digest) {
                    return Err(SurveyError::OtherIndex { name });
                }
                let most = (BYTES_KEPT / stored.raw.len().max(1)).clamp(1, SEGMENTS_KEPT);
                kept.truncate(most - 1);
                kept.push_front((name, stored.raw));
                0
            }
        };
        Ok(read(&kept[place].1))
    }
}

fn time_of(record: &Record<'_>) -> Option<PgTime> {
    match WalEvent::read(record)? {
        WalEvent::TransactionEnd { time, .. } | WalEvent::RestorePoint { time, .. } => time,
        _ => None,
    }
}

mod search;
#[cfg(test)]
mod tests;
