//! Making index objects: which folders of segments want one, and what goes into it.
//!
//! Facts come from the segments' trailers; a segment without, or with those of an older indexer, is read and walked, and
//! so is one that ends a record which the segment before it begins. What an index of the folder says already is taken over.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{DateTime, Utc};

use super::{LaneCatalog, SegmentIndex, TimelineCatalog};
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
/// So many segments that no index has are worth one more of a folder that is still being filled: a backup an hour makes
/// a few of them for every 4 GiB of log, and a search asks for as many hints at most.
const WORTH_ONE_MORE: usize = 16;
/// The same of a timeline that was left, which hardly grows any more.
const WORTH_THE_LAST: usize = 2;

/// A folder of segments that wants an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexJob {
    /// The timeline.
    pub timeline: TimelineId,
    /// Digits 9 to 16 of the segments' names.
    pub middle: String,
    /// The segments, in order.
    pub segments: Vec<SegmentName>,
    /// Whether there is an index of some of them.
    pub again: bool,
}

/// Decides which folders want an index: those to which segments came since theirs was made; of the one that a timeline is
/// still filling, if many came. `made` says when the newest index of a folder was stored.
pub fn plan_indexing(catalog: &LaneCatalog, made: &HashMap<(TimelineId, String), DateTime<Utc>>) -> Vec<IndexJob> {
    let full = catalog.segment_size().per_log() as usize;
    let mut jobs = Vec::new();
    for timeline in &catalog.timelines {
        let mut folders: BTreeMap<String, Vec<SegmentName>> = BTreeMap::new();
        timeline.segments.iter().for_each(|name| folders.entry(name.middle()).or_default().push(*name));
        let newest = folders.keys().next_back().cloned();
        for (middle, segments) in folders {
            let made = made.get(&(timeline.timeline, middle.clone()));
            let is_new = |name: &&SegmentName| {
                let stored = catalog.segment(**name);
                stored.is_some_and(|stored| made.is_none_or(|made| stored.stored_at >= *made))
            };
            let finished = newest.as_ref() != Some(&middle) || segments.len() == full;
            let enough = match finished {
                true => 1,
                false if catalog.is_left(timeline.timeline) => WORTH_THE_LAST,
                false => WORTH_ONE_MORE,
            };
            if segments.iter().filter(is_new).count() >= enough {
                jobs.push(IndexJob { timeline: timeline.timeline, middle, segments, again: made.is_some() });
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
    let known = match job.again {
        true => known(lane, catalog, &job.segments),
        false => Vec::new(),
    };
    let names: Vec<SegmentName> = job.segments.iter().filter(|name| !holds(&known, **name)).copied().collect();
    let mut members = members(lane, catalog, &names)?;
    members.extend(known);
    members.sort_by_key(|one| one.segment);
    join(lane, catalog, &mut members)?;
    lane.create_index(job.timeline, &job.middle, &members)
}

/// Returns what indexes say already, in the order of names, as this version would say it.
fn known(lane: &Lane, catalog: &LaneCatalog, names: &[SegmentName]) -> Vec<IndexedSegment> {
    let index = SegmentIndex::new(lane);
    let known = names.iter().filter_map(|name| index.get(&catalog.segment(*name)?));
    known.filter(|one| one.facts.indexer == WAL_FACTS_VERSION).collect()
}

fn holds(members: &[IndexedSegment], name: SegmentName) -> bool {
    members.binary_search_by_key(&name, |one| one.segment).is_ok()
}

fn members(lane: &Lane, catalog: &LaneCatalog, names: &[SegmentName]) -> Result<Vec<IndexedSegment>, RepoError> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<(), RepoError> {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Some(stored) = catalog.segment(*name) else { continue };
            let member = member(lane, catalog, *name, &stored)?;
            found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(member);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..REQUESTS.min(names.len())).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        done.collect::<Result<(), RepoError>>()
    })?;
    Ok(found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
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
        ends.insert(name, member(lane, catalog, name, &stored)?.facts.end);
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
        if one.joined_after == Some(last) {
            continue;
        }
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
fn before(catalog: &LaneCatalog, name: SegmentName) -> Option<(SegmentName, StoredName)> {
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
