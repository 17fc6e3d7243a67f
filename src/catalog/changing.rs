//! Gathering what the segments of finished folders change, so that a backup a day later asks for a few objects and not for
//! the end of each segment.
//!
//! Only log behind the start of the newest backup of its timeline is of interest: the next one builds on that.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::LaneCatalog;
use crate::format::changes::FolderMember;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::pg::wal_changes::SegmentChanges;
use crate::pg::wal_name::WalFileName;
use crate::repo::{Lane, RepoError};

/// Objects read at once.
const REQUESTS: usize = 8;

/// A finished folder whose changes are to be gathered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangesJob {
    /// The timeline.
    pub timeline: TimelineId,
    /// Digits 9 to 16 of the segments' names.
    pub middle: String,
    /// The segments, all that the folder has room for.
    pub segments: Vec<SegmentName>,
}

/// Decides which folders are worth it: those that are full and end behind the start of their timeline's newest backup.
pub fn plan_changes(catalog: &LaneCatalog) -> Vec<ChangesJob> {
    let size = catalog.segment_size();
    let mut newest: HashMap<TimelineId, Lsn> = HashMap::new();
    for envelope in catalog.backups.iter().map(|backup| &backup.envelope) {
        let start = newest.entry(envelope.timeline).or_insert(envelope.start_lsn);
        *start = envelope.start_lsn.max(*start);
    }
    let mut jobs = Vec::new();
    for timeline in &catalog.timelines {
        let Some(start) = newest.get(&timeline.timeline) else { continue };
        for folder in worthwhile(&timeline.segments, *start, size) {
            let (timeline, middle) = (timeline.timeline, folder[0].middle());
            jobs.push(ChangesJob { timeline, middle, segments: folder.to_vec() });
        }
    }
    jobs
}

/// The segments of one folder after the other, if all of them are there, and the last one does not lie before `start`.
fn worthwhile(segments: &[SegmentName], start: Lsn, size: SegmentSize) -> impl Iterator<Item = &[SegmentName]> {
    let needed = move |name: &SegmentName| name.number(size).is_ok_and(|number| number >= size.segment_of(start));
    let folders = segments.chunk_by(|one, next| one.middle() == next.middle());
    folders.filter(move |folder| folder.len() as u64 == size.per_log() && folder.last().is_some_and(needed))
}

/// Gathers what a folder's segments change, and stores it; returns whether it is new. A segment that does not say what it
/// changes is read and walked.
///
/// # Errors
/// [`RepoError`] if a segment cannot be read: then nothing is stored.
pub fn perform_changes(lane: &Lane, catalog: &LaneCatalog, job: &ChangesJob) -> Result<bool, RepoError> {
    if !lane.changes_of(job.timeline, &job.middle)?.is_empty() {
        return Ok(false);
    }
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<(), RepoError> {
        while let Some(name) = job.segments.get(next.fetch_add(1, Ordering::Relaxed)) {
            let member = member(lane, catalog, *name)?;
            found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(member);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..REQUESTS.min(job.segments.len())).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        done.collect::<Result<(), RepoError>>()
    })?;
    let mut members = found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    members.sort_by_key(|one: &FolderMember| one.segment);
    lane.create_changes(job.timeline, &job.middle, &members)
}

fn member(lane: &Lane, catalog: &LaneCatalog, segment: SegmentName) -> Result<FolderMember, RepoError> {
    let missing = || RepoError::Missing { key: segment.to_string() };
    let stored = catalog.segment(segment).ok_or_else(missing)?;
    let told = match lane.wal_changes(&stored) {
        // What is damaged is made anew, from bytes that are verified.
        Err(RepoError::Object { .. }) => None,
        told => told?,
    };
    let (changes, sha256) = match told {
        Some(told) => told,
        None => {
            let read = lane.read_wal(&WalFileName::Segment(segment))?.ok_or_else(missing)?;
            let (size, system_id) = (catalog.segment_size(), Some(catalog.facts.system_id));
            (SegmentChanges::of_segment(segment, &read.raw, size, system_id), read.digest)
        }
    };
    Ok(FolderMember { segment, stored_bytes: stored.stored_bytes, sha256, changes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::segment::SegmentNo;

    fn names(numbers: impl Iterator<Item = u64>) -> Vec<SegmentName> {
        let size = sixteen();
        numbers.map(|number| SegmentName::from_number(TimelineId::FIRST, SegmentNo(number), size)).collect()
    }

    fn sixteen() -> SegmentSize {
        SegmentSize::new(16 << 20).expect("a size")
    }

    #[test]
    fn full_folders_that_end_behind_the_newest_backups_start_are_gathered() {
        let size = sixteen();
        let all = names(0..600);
        let found = |segments: &[SegmentName], start: u64| {
            let start = SegmentNo(start).start(size) + 40;
            worthwhile(segments, start, size).map(|folder| folder[0].middle()).collect::<Vec<_>>()
        };
        assert_eq!(found(&all, 0), ["00000000", "00000001"]);
        assert_eq!(found(&all, 255), ["00000000", "00000001"]);
        assert_eq!(found(&all, 256), ["00000001"]);
        assert_eq!(found(&all, 511), ["00000001"]);
        // The one that is being filled, and one with a gap, are not.
        assert_eq!(found(&all, 512), [""; 0]);
        assert_eq!(found(&names((0..600).filter(|number| *number != 300)), 0), ["00000000"]);
    }
}
