//! What the index objects of a lane say of single segments, read folder by folder as it is asked for.
//!
//! A hint like any other: an index that is damaged, or of other segments than the ones that are listed, is passed over,
//! and one that is not there says nothing.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::warn;

use crate::error;
use crate::format::index::IndexedSegment;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::repo::{Lane, RepoError, StoredIndex, StoredName};

/// Indexes read at once.
const REQUESTS: usize = 8;

/// The index objects of one lane.
pub struct SegmentIndex<'a> {
    lane: &'a Lane,
    listed: RefCell<HashMap<TimelineId, Vec<StoredIndex>>>,
    read: RefCell<HashSet<(TimelineId, String)>>,
    members: RefCell<HashMap<SegmentName, IndexedSegment>>,
}

impl<'a> SegmentIndex<'a> {
    /// Makes an index of which nothing is read yet.
    pub fn new(lane: &'a Lane) -> Self {
        Self { lane, listed: RefCell::default(), read: RefCell::default(), members: RefCell::default() }
    }

    /// Reads the indexes of these segments' folders, several at a time.
    pub fn prepare(&self, names: &[SegmentName]) {
        let mut folders: Vec<(TimelineId, String)> = Vec::new();
        for name in names {
            let folder = (name.timeline(), name.middle());
            if folders.last() != Some(&folder) && self.read.borrow_mut().insert(folder.clone()) {
                folders.push(folder);
            }
        }
        let wanted: Vec<StoredIndex> =
            folders.iter().flat_map(|(timeline, middle)| self.of(*timeline, middle)).collect();
        let (lane, next, found) = (self.lane, AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || {
            while let Some(stored) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                let read = lane.read_index(stored).map(Option::unwrap_or_default);
                let members = read.unwrap_or_else(|problem| passed_over(&problem));
                found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend(members);
            }
        };
        match wanted.len() {
            0 | 1 => work(),
            several => std::thread::scope(|scope| (0..REQUESTS.min(several)).for_each(|_| drop(scope.spawn(work)))),
        }
        let mut members = self.members.borrow_mut();
        for one in found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            let better = |known: &IndexedSegment| rank(known) >= rank(&one);
            if !members.get(&one.segment).is_some_and(better) {
                members.insert(one.segment, one);
            }
        }
    }

    /// The index objects of one folder.
    fn of(&self, timeline: TimelineId, middle: &str) -> Vec<StoredIndex> {
        let mut listed = self.listed.borrow_mut();
        let list = || self.lane.indexes(timeline).unwrap_or_else(|problem| passed_over(&problem));
        listed.entry(timeline).or_insert_with(list).iter().filter(|stored| stored.middle == middle).cloned().collect()
    }

    /// Takes what the index says of a segment, if it is the one that is stored; a second time there is nothing left.
    pub fn take(&self, stored: &StoredName) -> Option<IndexedSegment> {
        let WalFileName::Segment(name) = stored.name else { return None };
        self.prepare(&[name]);
        self.members.borrow_mut().remove(&name).filter(|one| one.stored_bytes == stored.stored_bytes)
    }
}

/// A newer indexer knows more, and so does a walk that came from the segment before.
fn rank(one: &IndexedSegment) -> (u32, bool) {
    (one.facts.indexer, one.joined_after.is_some())
}

fn passed_over<T: Default>(problem: &RepoError) -> T {
    warn!(error = %error::chain(problem), "index passed over");
    T::default()
}
