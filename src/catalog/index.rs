//! What the index objects of a lane say of single segments, read as it is asked for.
//!
//! A hint like any other: an index that is damaged, or of other segments than the ones that are listed, is passed over,
//! and one that is not there says nothing. Gathered indexes come first; a folder whose newest index is another one than
//! they were gathered of is read by itself. They stay as they are in memory, and a segment's facts are taken out of them
//! when they are asked for: a year's facts, each by itself, would take hundreds of megabytes.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::warn;

use super::gathering::{group_of, newest, range_of};
use crate::error;
use crate::format::gathered::{Gathered, GatheredFolder};
use crate::format::index::IndexedSegment;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::repo::{Lane, RepoError, StoredIndex, StoredIndexes, StoredName};

/// Indexes read at once.
const REQUESTS: usize = 8;

/// The index objects of one lane.
pub struct SegmentIndex<'a> {
    lane: &'a Lane,
    size: SegmentSize,
    listed: RefCell<HashMap<TimelineId, StoredIndexes>>,
    /// Folders that were looked for, by timeline and number.
    read: RefCell<HashSet<(TimelineId, u64)>>,
    /// Gathered indexes, by timeline and group; `None` for one that cannot be used.
    gathered: RefCell<HashMap<(TimelineId, u64), Option<Gathered>>>,
    /// Folders whose index is another one than was gathered.
    stale: RefCell<HashSet<(TimelineId, u64)>>,
    members: RefCell<HashMap<SegmentName, IndexedSegment>>,
}

impl<'a> SegmentIndex<'a> {
    /// Makes an index of which nothing is read yet.
    pub fn new(lane: &'a Lane) -> Self {
        Self {
            lane,
            size: lane.segment_size(),
            listed: RefCell::default(),
            read: RefCell::default(),
            gathered: RefCell::default(),
            stale: RefCell::default(),
            members: RefCell::default(),
        }
    }

    /// Reads the indexes of these segments' folders, several at a time.
    pub fn prepare(&self, names: &[SegmentName]) {
        let mut folders: Vec<(TimelineId, u64)> = Vec::new();
        for name in names {
            let folder = self.folder(*name);
            if folders.last() != Some(&folder) && self.read.borrow_mut().insert(folder) {
                folders.push(folder);
            }
        }
        self.read_gathered(&folders);
        self.read_folders(&folders);
    }

    /// A folder by the number that its name spells.
    fn folder(&self, name: SegmentName) -> (TimelineId, u64) {
        let number = name.number(self.size).map_or(0, |number| number.0);
        (name.timeline(), number / self.size.per_log())
    }

    /// Reads the gathered indexes of the groups that folders are in.
    fn read_gathered(&self, folders: &[(TimelineId, u64)]) {
        let mut wanted: Vec<((TimelineId, u64), StoredIndex)> = Vec::new();
        for (timeline, folder) in folders {
            let group = group_of(*folder);
            if self.gathered.borrow().contains_key(&(*timeline, group)) {
                continue;
            }
            self.gathered.borrow_mut().insert((*timeline, group), None);
            let found = self.with_listed(*timeline, |listed| newest(listed.gathered.iter(), &range_of(group)).cloned());
            wanted.extend(found.map(|stored| ((*timeline, group), stored)));
        }
        let read = self.at_once(&wanted, |(_, stored)| self.lane.read_gathered(stored));
        for (place, one) in read {
            let ((timeline, group), _) = wanted[place];
            let stale = self.with_listed(timeline, |listed| {
                let is_newest = |folder: &&GatheredFolder| {
                    newest(own(&listed.folders, &folder.middle), &folder.middle)
                        .is_some_and(|found| found.digest != folder.index)
                };
                let number = |folder: &GatheredFolder| u64::from_str_radix(&folder.middle, 16).ok();
                one.folders.iter().filter(is_newest).filter_map(number).collect::<Vec<_>>()
            });
            self.stale.borrow_mut().extend(stale.into_iter().map(|folder| (timeline, folder)));
            self.gathered.borrow_mut().insert((timeline, group), Some(one));
        }
    }

    /// Reads the indexes of folders that no gathered one speaks for.
    fn read_folders(&self, folders: &[(TimelineId, u64)]) {
        let spoken_for = |(timeline, folder): &(TimelineId, u64)| {
            let gathered = self.gathered.borrow();
            let group = gathered.get(&(*timeline, group_of(*folder))).and_then(Option::as_ref);
            let middle = format!("{folder:08X}");
            let held = group.is_some_and(|one| one.folders.iter().any(|folder| folder.middle == middle));
            held && !self.stale.borrow().contains(&(*timeline, *folder))
        };
        let alone = folders.iter().filter(|folder| !spoken_for(folder));
        let wanted: Vec<StoredIndex> = alone.flat_map(|(timeline, folder)| self.of(*timeline, *folder)).collect();
        let mut members = self.members.borrow_mut();
        for (_, read) in self.at_once(&wanted, |stored| self.lane.read_index(stored)) {
            for one in read {
                // The oldest index comes first.
                let better = |known: &IndexedSegment| rank(known) > rank(&one);
                if !members.get(&one.segment).is_some_and(better) {
                    members.insert(one.segment, one);
                }
            }
        }
    }

    /// Does one request for each of several things, some at a time; what fails is passed over, the rest keeps its order.
    fn at_once<T: Sync, R: Send>(
        &self,
        wanted: &[T],
        read: impl Fn(&T) -> Result<Option<R>, RepoError> + Sync,
    ) -> Vec<(usize, R)> {
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || {
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some(one) = wanted.get(place) else { break };
                match read(one) {
                    Ok(Some(one)) => found.lock().unwrap_or_else(|p| p.into_inner()).push((place, one)),
                    Ok(None) => {}
                    Err(problem) => passed_over(&problem),
                }
            }
        };
        match wanted.len() {
            0 | 1 => work(),
            several => std::thread::scope(|scope| (0..REQUESTS.min(several)).for_each(|_| drop(scope.spawn(work)))),
        }
        let mut found = found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        found.sort_by_key(|(place, _)| *place);
        found
    }

    fn with_listed<T>(&self, timeline: TimelineId, ask: impl FnOnce(&StoredIndexes) -> T) -> T {
        let mut listed = self.listed.borrow_mut();
        let list = || {
            self.lane.indexes(timeline).unwrap_or_else(|problem| {
                passed_over(&problem);
                StoredIndexes::default()
            })
        };
        ask(listed.entry(timeline).or_insert_with(list))
    }

    /// The index objects of one folder, oldest first.
    fn of(&self, timeline: TimelineId, folder: u64) -> Vec<StoredIndex> {
        let middle = format!("{folder:08X}");
        self.with_listed(timeline, |listed| {
            let mut own: Vec<StoredIndex> = own(&listed.folders, &middle).cloned().collect();
            own.sort_by_key(|stored| (stored.stored_at, stored.digest));
            own
        })
    }

    fn in_gathered<T>(&self, name: SegmentName, ask: impl FnOnce(&Gathered) -> Option<T>) -> Option<T> {
        let (timeline, folder) = self.folder(name);
        if self.stale.borrow().contains(&(timeline, folder)) {
            return None;
        }
        ask(self.gathered.borrow().get(&(timeline, group_of(folder)))?.as_ref()?)
    }

    /// Returns what the index says of a segment, if it is the one that is stored.
    pub fn get(&self, stored: &StoredName) -> Option<IndexedSegment> {
        let WalFileName::Segment(name) = stored.name else { return None };
        self.prepare(&[name]);
        self.known(stored)
    }

    /// As [`SegmentIndex::get`], of what was read already.
    pub fn known(&self, stored: &StoredName) -> Option<IndexedSegment> {
        let WalFileName::Segment(name) = stored.name else { return None };
        let is_stored = |one: &IndexedSegment| one.stored_bytes == stored.stored_bytes && one.facts.indexer > 0;
        let found = self.in_gathered(name, |gathered| gathered.get(name)).filter(is_stored);
        found.or_else(|| self.members.borrow().get(&name).filter(|one| is_stored(one)).cloned())
    }
}

/// The index objects of one folder among all, which are listed in the order of their folders.
fn own<'a>(folders: &'a [StoredIndex], middle: &'a str) -> impl Iterator<Item = &'a StoredIndex> {
    let first = folders.partition_point(|stored| stored.middle.as_str() < middle);
    folders[first..].iter().take_while(move |stored| stored.middle == middle)
}

/// A newer indexer knows more, and so does a walk that came from the segment before.
pub(super) fn rank(one: &IndexedSegment) -> (u32, bool) {
    (one.facts.indexer, one.joined_after.is_some())
}

fn passed_over(problem: &RepoError) {
    warn!(error = %error::chain(problem), "index passed over");
}
