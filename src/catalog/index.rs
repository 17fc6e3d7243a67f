//! What the index objects of a lane say of single segments, read folder by folder as it is asked for.
//!
//! A hint like any other: an index that is damaged, or of other segments than the ones that are listed, is passed over,
//! and one that is not there says nothing.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use tracing::warn;

use crate::error;
use crate::format::index::IndexedSegment;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::repo::{Lane, RepoError, StoredIndex, StoredName};

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

    /// Takes what the index says of a segment, if it is the one that is stored; a second time there is nothing left.
    pub fn take(&self, stored: &StoredName) -> Option<IndexedSegment> {
        let WalFileName::Segment(name) = stored.name else { return None };
        let folder = (name.timeline(), name.middle());
        if self.read.borrow_mut().insert(folder) {
            self.read_folder(name.timeline(), &name.middle());
        }
        self.members.borrow_mut().remove(&name).filter(|one| one.stored_bytes == stored.stored_bytes)
    }

    fn read_folder(&self, timeline: TimelineId, middle: &str) {
        let mut listed = self.listed.borrow_mut();
        let all =
            listed.entry(timeline).or_insert_with(|| self.lane.indexes(timeline).unwrap_or_else(|e| passed_over(&e)));
        for stored in all.iter().filter(|stored| stored.middle == middle) {
            let read = self.lane.read_index(stored).map(Option::unwrap_or_default);
            let mut members = self.members.borrow_mut();
            for one in read.unwrap_or_else(|e| passed_over(&e)) {
                let better = |known: &IndexedSegment| rank(known) >= rank(&one);
                if !members.get(&one.segment).is_some_and(better) {
                    members.insert(one.segment, one);
                }
            }
        }
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
