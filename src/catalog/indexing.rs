//! Making index objects: which folders of segments want one, and what goes into it.
//!
//! Facts come from the segments' trailers; a segment without, or with those of an older indexer, is read and walked, and
//! so is one that ends a record which the segment before it begins.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{DateTime, Utc};

use super::{LaneCatalog, TimelineCatalog};
use crate::format::Sha256;
use crate::format::index::IndexedSegment;
use crate::pg::segment::{SegmentName, SegmentNo};
use crate::pg::timeline::TimelineId;
use crate::pg::wal_facts::{FactsEnd, WAL_FACTS_VERSION, WalFacts};
use crate::pg::wal_name::WalFileName;
use crate::pg::wal_walk::Walker;
use crate::repo::{Lane, RepoError, StoredName};

/// Trailers read at once.
const REQUESTS: usize = 8;

/// A folder of segments that wants an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexJob {
    /// The timeline.
    pub timeline: TimelineId,
    /// Digits 9 to 16 of the segments' names.
    pub middle: String,
    /// The segments, in order.
    pub segments: Vec<SegmentName>,
}

/// Decides which folders want an index: those to which segments came since theirs was made, but for the one that each
/// timeline is still filling. `made` says when the newest index of a folder was stored.
pub fn plan_indexing(catalog: &LaneCatalog, made: &HashMap<(TimelineId, String), DateTime<Utc>>) -> Vec<IndexJob> {
    let full = catalog.segment_size().per_log() as usize;
    let mut jobs = Vec::new();
    for timeline in &catalog.timelines {
        let mut folders: BTreeMap<String, Vec<SegmentName>> = BTreeMap::new();
        timeline.segments.iter().for_each(|name| folders.entry(name.middle()).or_default().push(*name));
        let newest = folders.keys().next_back().cloned();
        for (middle, segments) in folders {
            let stored_at =
                segments.iter().filter_map(|name| catalog.segment(*name)).map(|stored| stored.stored_at).max();
            let made = made.get(&(timeline.timeline, middle.clone()));
            let is_new = made.is_none_or(|made| stored_at.is_some_and(|stored| stored >= *made));
            if is_new && (newest.as_ref() != Some(&middle) || segments.len() == full) {
                jobs.push(IndexJob { timeline: timeline.timeline, middle, segments });
            }
        }
    }
    jobs
}

/// Returns when the newest index of each folder was stored.
///
/// # Errors
/// [`RepoError`] if a listing fails.
pub fn indexes_made(
    lane: &Lane,
    catalog: &LaneCatalog,
) -> Result<HashMap<(TimelineId, String), DateTime<Utc>>, RepoError> {
    let mut made = HashMap::new();
    for timeline in &catalog.timelines {
        for stored in lane.indexes(timeline.timeline)?.folders {
            let newest = made.entry((timeline.timeline, stored.middle)).or_insert(stored.stored_at);
            *newest = stored.stored_at.max(*newest);
        }
    }
    Ok(made)
}

/// Makes one index and stores it; returns whether it is new.
///
/// # Errors
/// [`RepoError`] if a segment cannot be read: then there is no index of its folder.
pub fn perform_indexing(lane: &Lane, catalog: &LaneCatalog, job: &IndexJob) -> Result<bool, RepoError> {
    let mut members = members(lane, catalog, &job.segments)?;
    join(lane, catalog, &mut members)?;
    lane.create_index(job.timeline, &job.middle, &members)
}

fn members(lane: &Lane, catalog: &LaneCatalog, names: &[SegmentName]) -> Result<Vec<IndexedSegment>, RepoError> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<(), RepoError> {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Some(stored) = catalog.segment(*name) else { continue };
            let member = member(lane, catalog, *name, stored)?;
            found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(member);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..REQUESTS.min(names.len())).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        done.collect::<Result<(), RepoError>>()
    })?;
    let mut members = found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    members.sort_by_key(|one: &IndexedSegment| one.segment);
    Ok(members)
}

fn member(
    lane: &Lane,
    catalog: &LaneCatalog,
    segment: SegmentName,
    stored: &StoredName,
) -> Result<IndexedSegment, RepoError> {
    let (sha256, facts) = match lane.wal_hint(stored)? {
        (sha256, Some(facts)) if facts.indexer >= WAL_FACTS_VERSION => (sha256, facts),
        _ => {
            let (sha256, raw) = bytes(lane, segment)?;
            (sha256, WalFacts::of_segment(segment, &raw, catalog.segment_size(), Some(catalog.facts.system_id)))
        }
    };
    Ok(IndexedSegment { segment, stored_bytes: stored.stored_bytes, sha256, joined_after: None, facts })
}

/// Gathers the facts anew of those segments that end a record of interest which began before them.
fn join(lane: &Lane, catalog: &LaneCatalog, members: &mut [IndexedSegment]) -> Result<(), RepoError> {
    let size = catalog.segment_size();
    // The folder's first segment follows the last one of the folder before.
    let first = members.first().and_then(|one| before(catalog, one.segment));
    let mut ends: HashMap<SegmentName, FactsEnd> =
        members.iter().map(|one| (one.segment, one.facts.end.clone())).collect();
    if let Some((name, stored)) = first {
        ends.insert(name, member(lane, catalog, name, stored)?.facts.end);
    }
    for one in members {
        let mut lead = Vec::new();
        let mut at = one.segment;
        // Back to the segment in which the record begins.
        while let Some((name, _)) = before(catalog, at) {
            match ends.get(&name) {
                Some(end) if end.may_leave_open_what_matters() => lead.push(name),
                _ => break,
            }
            if matches!(ends.get(&name), Some(FactsEnd::Open { .. })) {
                break;
            }
            at = name;
        }
        let Some(last) = lead.first().copied() else { continue };
        if !matches!(lead.last().and_then(|name| ends.get(name)), Some(FactsEnd::Open { .. })) {
            continue;
        }
        let mut walker = Walker::new(Some(catalog.facts.system_id), size);
        for name in lead.iter().rev() {
            walker.segment(*name, &bytes(lane, *name)?.1, &mut |_| {});
        }
        one.facts = WalFacts::of_walk(&mut walker, one.segment, &bytes(lane, one.segment)?.1);
        one.joined_after = Some(last);
    }
    Ok(())
}

/// The segment before, on the timeline that the branch was on there, if it is archived.
fn before(catalog: &LaneCatalog, name: SegmentName) -> Option<(SegmentName, &StoredName)> {
    let size = catalog.segment_size();
    let number = SegmentNo(name.number(size).ok()?.0.checked_sub(1)?);
    let timeline = catalog.timelines.iter().find(|archived| archived.timeline == name.timeline());
    let branch = timeline.and_then(TimelineCatalog::branch);
    let name = branch
        .map_or_else(|| SegmentName::from_number(name.timeline(), number, size), |branch| branch.segment(number, size));
    catalog.segment(name).map(|stored| (name, stored))
}

fn bytes(lane: &Lane, name: SegmentName) -> Result<(Sha256, Vec<u8>), RepoError> {
    let stored = lane.read_wal(&WalFileName::Segment(name))?;
    let stored = stored.ok_or_else(|| RepoError::Missing { key: name.to_string() })?;
    Ok((stored.digest, stored.raw))
}

#[cfg(test)]
mod tests;
