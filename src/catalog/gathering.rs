//! Gathering indexes: which groups of folders want one object for all, and making it.
//!
//! A group is 64 folders, by their numbers. It is gathered anew each time that a quarter of it has indexes which the last
//! gathering does not know, and once it is finished; so a timeline's log is read in one object for each group, and at most
//! fifteen more.

use std::collections::BTreeMap;

use super::LaneCatalog;
use super::index::rank;
use crate::format::gathered::{GatheredFolder, folders_digest};
use crate::format::index::IndexedSegment;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::repo::{Lane, RepoError, StoredIndex, StoredIndexes};

/// Folders in a group.
const FOLDERS: u64 = 64;
/// A group is gathered anew when so many of its folders are not gathered.
const NEW: usize = 16;
/// The same of a timeline that was left, which hardly grows any more.
const NEW_WHERE_LEFT: usize = 4;

/// A group of folders that wants a gathered index.
#[derive(Clone, Debug)]
pub struct GatherJob {
    /// The timeline.
    pub timeline: TimelineId,
    /// First and last folder that the group has room for, as the key has them.
    pub range: String,
    /// The newest index of each folder.
    pub folders: Vec<StoredIndex>,
}

/// Returns the number of the group that a folder is in.
pub(super) fn group_of(folder: u64) -> u64 {
    folder / FOLDERS
}

/// Returns how a group is named: by its first and last folder.
pub(super) fn range_of(group: u64) -> String {
    format!("{:08X}-{:08X}", group * FOLDERS, group * FOLDERS + FOLDERS - 1)
}

/// Returns the newest of the index objects of a folder or group.
pub(super) fn newest<'a>(stored: impl Iterator<Item = &'a StoredIndex>, middle: &str) -> Option<&'a StoredIndex> {
    stored.filter(|one| one.middle == middle).max_by_key(|one| (one.stored_at, one.digest))
}

/// Decides which groups want to be gathered; `gathered` says how many folders the newest gathering of a group knows as
/// they are, by the group's name. Whether the timeline was `left` says how much it may still grow.
pub fn plan_gathering(
    timeline: TimelineId,
    left: bool,
    listed: &StoredIndexes,
    gathered: &BTreeMap<String, Vec<GatheredFolder>>,
) -> Vec<GatherJob> {
    let mut groups: BTreeMap<u64, BTreeMap<String, &StoredIndex>> = BTreeMap::new();
    for stored in &listed.folders {
        let Ok(folder) = u64::from_str_radix(&stored.middle, 16) else { continue };
        let known = groups.entry(group_of(folder)).or_default().entry(stored.middle.clone()).or_insert(stored);
        if (stored.stored_at, stored.digest) > (known.stored_at, known.digest) {
            *known = stored;
        }
    }
    let last = groups.keys().next_back().copied();
    let mut jobs = Vec::new();
    for (group, folders) in groups {
        let range = range_of(group);
        let known = gathered.get(&range).map_or(&[][..], Vec::as_slice);
        let is_known = |stored: &StoredIndex| {
            known.iter().any(|folder| folder.middle == stored.middle && folder.index == stored.digest)
        };
        let new = folders.values().filter(|stored| !is_known(stored)).count();
        let finished = Some(group) != last || folders.len() as u64 == FOLDERS;
        // One folder alone is read as quickly as it is.
        let enough = if left { NEW_WHERE_LEFT } else { NEW };
        if new >= enough || (finished && new > 0 && folders.len() > 1) {
            jobs.push(GatherJob { timeline, range, folders: folders.into_values().cloned().collect() });
        }
    }
    jobs
}

/// Returns the jobs of a lane.
///
/// # Errors
/// [`RepoError`] if a listing fails.
pub fn gathering_wanted(lane: &Lane, catalog: &LaneCatalog) -> Result<Vec<GatherJob>, RepoError> {
    let mut jobs = Vec::new();
    for timeline in &catalog.timelines {
        let (left, listed) = (catalog.is_left(timeline.timeline), lane.indexes(timeline.timeline)?);
        let mut gathered = BTreeMap::new();
        // Whatever could be wanted is wanted if nothing is gathered: the gathered ones of other groups are not read.
        for job in plan_gathering(timeline.timeline, left, &listed, &BTreeMap::new()) {
            let Some(stored) = newest(listed.gathered.iter(), &job.range) else { continue };
            let folders: Vec<GatheredFolder> = job.folders.iter().map(GatheredFolder::from).collect();
            // Its name says that it is of just these.
            if folders_digest(&folders) == stored.digest {
                gathered.insert(job.range, folders);
            } else if let Ok(Some(read)) = lane.read_gathered(stored) {
                gathered.insert(job.range, read.folders);
            }
        }
        jobs.extend(plan_gathering(timeline.timeline, left, &listed, &gathered));
    }
    Ok(jobs)
}

impl From<&StoredIndex> for GatheredFolder {
    fn from(stored: &StoredIndex) -> Self {
        Self { middle: stored.middle.clone(), index: stored.digest }
    }
}

/// Makes one gathered index and stores it; returns whether it is new.
///
/// # Errors
/// [`RepoError`] if the store fails; a folder whose index is damaged is left out.
pub fn perform_gathering(lane: &Lane, job: &GatherJob) -> Result<bool, RepoError> {
    let mut folders = Vec::new();
    let mut members: BTreeMap<SegmentName, IndexedSegment> = BTreeMap::new();
    for stored in &job.folders {
        let read = match lane.read_index(stored) {
            Ok(read) => read,
            Err(RepoError::Object { .. }) => continue,
            Err(error) => return Err(error),
        };
        let Some(read) = read else { continue };
        folders.push(GatheredFolder::from(stored));
        for one in read {
            let better = |known: &IndexedSegment| rank(known) >= rank(&one);
            if !members.get(&one.segment).is_some_and(better) {
                members.insert(one.segment, one);
            }
        }
    }
    if folders.is_empty() {
        return Ok(false);
    }
    let members: Vec<IndexedSegment> = members.into_values().collect();
    lane.create_gathered(job.timeline, &job.range, &folders, &members)
}

#[cfg(test)]
mod tests;
