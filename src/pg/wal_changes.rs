//! Which blocks of relations the records of one segment change, so that a backup need not read the others.
//!
//! Two things are told of a relation, as by PostgreSQL's own summaries of the log since 17: blocks that a record refers to,
//! and the block from which on nothing is as it was, because the file was made, cut off or removed. Only main forks are of
//! interest: no log tells of everything that happens to maps of free space and visibility. What is remembered is bounded; of
//! a relation, or a database, that is over the bound it says *everything*.
//!
//! A record that crosses the segment's end is in neither segment's changes: each keeps its part, and `wal_chain` joins them.
//!
//! Source: `SummarizeWAL`, `SummarizeDbaseRecord`, `SummarizeSmgrRecord` and `SummarizeXactRecord` in
//! `src/backend/postmaster/walsummarizer.c`; `XLR_SPECIAL_REL_UPDATE` in `src/include/access/xlogrecord.h`, which marks
//! records that change files in other ways than by their block references, and `extractPageInfo` in
//! `src/bin/pg_rewind/parsexlog.c`, which trusts no such record that it does not know; `src/include/catalog/storage_xlog.h`;
//! `src/include/commands/dbcommands_xlog.h`.

use std::collections::HashMap;

use super::wal_page::u32_at;
use super::wal_record::visit_blocks;
use super::wal_transaction::{locator, removed_files};
use super::{
    Lsn, PageHeader, Record, RecordHeader, RecordPart, RelationFork, RelationLocator, SegmentEnd, SegmentName,
    SegmentSize, SegmentWalk, SystemId, WalMagic, Walker,
};

/// Blocks remembered of one segment, at most.
pub const MOST_BLOCKS: usize = 1 << 17;
/// Relations remembered of one segment, at most.
pub const MOST_RELATIONS: usize = 1 << 14;
/// Entries at hand before those that are there twice are looked for.
const MOST_ENTRIES: usize = 2 * MOST_BLOCKS;
/// Relations that are looked for one by one before they are looked up.
const RECENT: usize = 8;

/// The changes that the records of one segment make, but for those that cross its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentChanges {
    /// The format of the log.
    pub magic: WalMagic,
    /// What is changed, in the order of relations.
    pub relations: Vec<RelationChanges>,
    /// Start of the record before the first one that begins in the segment, as that one says.
    pub previous: Option<Lsn>,
    /// The end, or the middle, of a record that began before the segment.
    pub lead: Option<RecordPart>,
    /// Whether the segment begins by declaring the record void that the one before leaves open.
    pub overwrites: bool,
    /// Start of the last record that begins and ends in the segment.
    pub last: Option<Lsn>,
    /// How it ends.
    pub end: ChangesEnd,
    /// Whether a record was met that is not known to change nothing else.
    pub unknown: bool,
    /// Whether `wal_level` was `minimal`: then changes need not be in the log.
    pub minimal: bool,
    /// Whether `full_page_writes` was off.
    pub full_page_writes_off: bool,
}

/// What is changed of one relation's main fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationChanges {
    /// The relation; 0 in place of its number stands for all of the database in that tablespace.
    pub relation: RelationLocator,
    /// The first block of those that need not be what they were, whatever their number.
    pub limit: Option<u32>,
    /// Blocks below, and maybe above: rising, and apart.
    pub runs: Vec<Run>,
}

/// Blocks that follow on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: u32,
    /// How many; not 0.
    pub len: u32,
}

/// How a segment ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangesEnd {
    /// With the end of a record, or with padding.
    Whole,
    /// Inside a record that begins in it.
    Open {
        /// Where.
        start: Lsn,
        /// Bytes in the record.
        total_len: u32,
        /// As far as it is in the segment.
        part: RecordPart,
    },
    /// Inside a record that began before it.
    Inside,
    /// The log ends, or could not be read further.
    Stopped {
        /// Everything before is in the changes.
        at: Lsn,
    },
}

/// What a record does to main forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// A block is changed.
    Block(RelationLocator, u32),
    /// Everything from that block on is new, or gone.
    From(RelationLocator, u32),
    /// From here on changes need not be logged.
    Minimal,
    /// From here on images of pages need not be logged.
    FullPageWritesOff,
}

/// A record of which the beginning is at hand, or all.
pub(super) struct Beginning<'a> {
    pub magic: WalMagic,
    pub resource_manager: u8,
    pub info: u8,
    pub total_len: usize,
    pub bytes: &'a [u8],
}

impl<'a> From<&Record<'a>> for Beginning<'a> {
    fn from(record: &Record<'a>) -> Self {
        let Record { magic, resource_manager, info, data, .. } = *record;
        Self { magic, resource_manager, info, total_len: data.len(), bytes: data }
    }
}

/// Majors whose records are known one by one.
const KNOWN: std::ops::RangeInclusive<u16> = 13..=18;
/// `XLR_SPECIAL_REL_UPDATE`.
const SPECIAL: u8 = 0x01;

/// Hands over what a record does; `None` if it may do more than is known.
pub(super) fn effects(record: &Beginning<'_>, found: &mut impl FnMut(Effect)) -> Option<()> {
    let major = record.magic.major().filter(|major| KNOWN.contains(major))?;
    let heads = visit_blocks(record.bytes, record.total_len, record.magic, |block| {
        if block.fork == RelationFork::Main {
            found(Effect::Block(block.relation, block.block));
        }
    });
    let main = heads.ok()?.main;
    let kind = record.info & 0xF0;
    match (record.resource_manager, kind) {
        (0, 0x00 | 0x10) => of_flag(*main.get(16)?, found),
        (0, 0x80) => of_flag(*main.first()?, found),
        (0, 0x60) => of_level(u32_at(main.get(..24)?, 20), found),
        (1, _) if record.info & SPECIAL != 0 => {
            removed_files(record.info, main)?.into_iter().for_each(|file| found(Effect::From(file, 0)));
        }
        (2, 0x10) => {
            let main = main.get(..16)?;
            if u32_at(main, 12) == 0 {
                found(Effect::From(locator(main), 0));
            }
        }
        (2, 0x20) => {
            const HEAP: u32 = 0x01;
            let main = main.get(..20)?;
            if u32_at(main, 16) & HEAP != 0 {
                found(Effect::From(locator(&main[4..]), u32_at(main, 0)));
            }
        }
        (4, kind) => of_database(major, kind, main, found)?,
        _ if record.info & SPECIAL != 0 => return None,
        _ => {}
    }
    Some(())
}

fn of_level(wal_level: u32, found: &mut impl FnMut(Effect)) {
    if wal_level == 0 {
        found(Effect::Minimal);
    }
}

fn of_flag(full_page_writes: u8, found: &mut impl FnMut(Effect)) {
    if full_page_writes == 0 {
        found(Effect::FullPageWritesOff);
    }
}

/// A directory of a database that was made or removed, with all that is in it.
fn of_database(major: u16, kind: u8, main: &[u8], found: &mut impl FnMut(Effect)) -> Option<()> {
    // 15 put a second way to create a database before the drop.
    let drop = if major < 15 { 0x10 } else { 0x20 };
    let database = u32_at(main.get(..4)?, 0);
    let mut all = |tablespace| found(Effect::From(RelationLocator { tablespace, database, relation: 0 }, 0));
    if kind == drop {
        let places = u32_at(main.get(..8)?, 4) as usize;
        let places = main[8..].get(..places.checked_mul(4)?)?;
        places.chunks_exact(4).for_each(|place| all(u32_at(place, 0)));
        return Some(());
    }
    let created = kind == 0x00 || (major >= 15 && kind == 0x10);
    all(u32_at(main.get(..8).filter(|_| created)?, 4));
    Some(())
}

/// Gathers the changes of a segment while it is walked.
#[derive(Debug, Default)]
pub struct ChangesWalk {
    places: HashMap<RelationLocator, usize>,
    relations: Vec<(RelationLocator, Gathered)>,
    /// Places of the relations that were changed last, the last one first: the log goes to and fro between a table and its
    /// indexes.
    recent: [usize; RECENT],
    /// Blocks in all of `relations`.
    entries: usize,
    previous: Option<Lsn>,
    last: Option<Lsn>,
    unknown: bool,
    minimal: bool,
    full_page_writes_off: bool,
}

#[derive(Debug, Default)]
struct Gathered {
    limit: Option<u32>,
    blocks: Vec<u32>,
}

impl ChangesWalk {
    /// Takes in a record that begins and ends in the segment.
    pub fn add(&mut self, record: &Record<'_>) {
        if self.last.is_none() {
            self.previous = RecordHeader::read(record.data).map(|header| header.previous);
        }
        self.last = Some(record.start);
        let known = effects(&record.into(), &mut |effect| self.take(effect));
        self.unknown |= known.is_none();
    }

    fn take(&mut self, effect: Effect) {
        match effect {
            Effect::Block(relation, block) => {
                let blocks = &mut self.of(relation).blocks;
                if blocks.last() != Some(&block) {
                    blocks.push(block);
                    self.entries += 1;
                    if self.entries > MOST_ENTRIES {
                        self.shrink();
                    }
                }
            }
            Effect::From(relation, block) => {
                let limit = &mut self.of(relation).limit;
                *limit = Some(limit.map_or(block, |limit| limit.min(block)));
            }
            Effect::Minimal => self.minimal = true,
            Effect::FullPageWritesOff => self.full_page_writes_off = true,
        }
    }

    fn of(&mut self, relation: RelationLocator) -> &mut Gathered {
        let is_it = |place: &usize| self.relations.get(*place).is_some_and(|(known, _)| *known == relation);
        match self.recent.iter().position(is_it) {
            Some(0) => {}
            Some(at) => self.recent[..=at].rotate_right(1),
            None => {
                let place = self.look_up(relation);
                self.recent.rotate_right(1);
                self.recent[0] = place;
            }
        }
        &mut self.relations[self.recent[0]].1
    }

    /// Returns the place of a relation, which has one from now on.
    fn look_up(&mut self, relation: RelationLocator) -> usize {
        if self.relations.len() >= MOST_RELATIONS && !self.places.contains_key(&relation) {
            self.forget_relations();
        }
        let next = self.relations.len();
        let place = *self.places.entry(relation).or_insert(next);
        if place == next {
            self.relations.push((relation, Gathered::default()));
        }
        place
    }

    /// Keeps of every relation only its database.
    fn forget_relations(&mut self) {
        (self.entries, self.recent) = (0, [0; RECENT]);
        self.places.clear();
        let forgotten = std::mem::take(&mut self.relations);
        for relation in forgotten.into_iter().map(|(relation, _)| RelationLocator { relation: 0, ..relation }) {
            let next = self.relations.len();
            if *self.places.entry(relation).or_insert(next) == next {
                self.relations.push((relation, Gathered { limit: Some(0), blocks: Vec::new() }));
            }
        }
    }

    /// Keeps each block once and, if there are still too many, of the relations with the most only the first.
    fn shrink(&mut self) {
        for (_, gathered) in &mut self.relations {
            gathered.tidy();
        }
        let mut order: Vec<usize> = (0..self.relations.len()).collect();
        order.sort_by_key(|place| self.relations[*place].1.blocks.len());
        self.entries = self.relations.iter().map(|(_, gathered)| gathered.blocks.len()).sum();
        while self.entries > MOST_BLOCKS
            && let Some(most) = order.pop()
        {
            let gathered = &mut self.relations[most].1;
            self.entries -= gathered.blocks.len();
            gathered.limit = gathered.limit.into_iter().chain(gathered.blocks.first().copied()).min();
            gathered.blocks = Vec::new();
        }
    }

    /// Returns the changes, once `walker` has been through the segment, and nothing else.
    pub fn finish(mut self, walker: &Walker, first_page: Option<PageHeader>, end: &SegmentEnd) -> SegmentChanges {
        self.shrink();
        let mut relations: Vec<RelationChanges> = self.relations.into_iter().map(RelationChanges::of).collect();
        relations.sort_by_key(|one| one.relation);
        let mut changes = SegmentChanges {
            magic: walker.magic().unwrap_or(WalMagic::new(0)),
            relations,
            previous: self.previous,
            lead: walker.skipped().cloned(),
            overwrites: first_page.is_some_and(|page| page.overwrites()),
            last: self.last,
            end: ChangesEnd::Whole,
            unknown: self.unknown,
            minimal: self.minimal,
            full_page_writes_off: self.full_page_writes_off,
        };
        changes.end = match end {
            SegmentEnd::Clean | SegmentEnd::Switched { .. } => ChangesEnd::Whole,
            SegmentEnd::Inside => ChangesEnd::Inside,
            SegmentEnd::Stopped { at, .. } => ChangesEnd::Stopped { at: *at },
            SegmentEnd::Open(open) => {
                let part = walker.open_part();
                // The only record that begins here says what was before it, if it comes to that.
                if changes.last.is_none() {
                    changes.previous = RecordHeader::read(&part.beginning).map(|header| header.previous);
                }
                ChangesEnd::Open { start: open.start, total_len: open.total_len, part }
            }
        };
        changes
    }
}

impl Gathered {
    fn tidy(&mut self) {
        self.blocks.sort_unstable();
        self.blocks.dedup();
        if let Some(limit) = self.limit {
            self.blocks.truncate(self.blocks.partition_point(|block| *block < limit));
        }
    }
}

impl RelationChanges {
    fn of((relation, gathered): (RelationLocator, Gathered)) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for block in gathered.blocks {
            match runs.last_mut() {
                Some(run) if run.first.checked_add(run.len) == Some(block) => run.len += 1,
                _ => runs.push(Run { first: block, len: 1 }),
            }
        }
        Self { relation, limit: gathered.limit, runs }
    }
}

impl SegmentChanges {
    /// Walks one segment by itself.
    pub fn of_segment(name: SegmentName, bytes: &[u8], size: SegmentSize, system_id: Option<SystemId>) -> Self {
        let mut walk = SegmentChangesWalk::new(name, size, system_id);
        walk.part(bytes);
        walk.finish()
    }
}

/// Gathers [`SegmentChanges::of_segment`] from a segment that comes in parts.
#[derive(Debug)]
pub struct SegmentChangesWalk {
    walker: Walker,
    segment: SegmentWalk,
    first_page: Option<PageHeader>,
    changes: ChangesWalk,
}

impl SegmentChangesWalk {
    /// Begins a segment.
    pub fn new(name: SegmentName, size: SegmentSize, system_id: Option<SystemId>) -> Self {
        let (walker, segment) = (Walker::new(system_id, size), SegmentWalk::new(name));
        Self { walker, segment, first_page: None, changes: ChangesWalk::default() }
    }

    /// Takes the next bytes: whole pages, but for the last part of a segment that is cut.
    pub fn part(&mut self, bytes: &[u8]) {
        self.first_page = self.first_page.or_else(|| PageHeader::read(bytes));
        let changes = &mut self.changes;
        self.segment.part(&mut self.walker, bytes, &mut |record| changes.add(record));
    }

    /// Returns the changes, after the last part.
    pub fn finish(mut self) -> SegmentChanges {
        let end = self.segment.end(&mut self.walker);
        self.changes.finish(&self.walker, self.first_page, &end)
    }
}

#[cfg(test)]
pub(super) mod tests;
