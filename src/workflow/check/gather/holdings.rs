//! What a lane holds, as far as a restore depends on it: listings and small objects only.

use std::collections::{BTreeMap, BTreeSet};

use super::unknown_repo;
use crate::archive::Promotion;
use crate::catalog::{Branch, ChainEnd, HoleProof, LaneCatalog};
use crate::format::manifest::Envelope;
use crate::format::tables::PackSource;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::repo::{Lane, RepoError};
use crate::workflow::check::facts::{Holdings, Known, Reach};

/// Segments before the newest one that are asked for their last transaction.
const SEGMENTS_ASKED: usize = 4;

/// Returns what a lane holds; `current` is the server's timeline.
pub(super) fn of(lane: &Lane, current: Option<TimelineId>) -> Known<Holdings> {
    let catalog = LaneCatalog::load(lane).map_err(unknown_repo)?;
    let branches = catalog.branches();
    let newest = catalog.backups.iter().max_by_key(|manifest| manifest.envelope.stopped_at);
    let branch = current.and_then(|current| branches.iter().find(|branch| branch.timeline() == current));
    let branch = branch.or(branches.last());
    let newest_segment = branch.and_then(|branch| {
        let timeline = catalog.timelines.iter().find(|timeline| timeline.timeline == branch.timeline())?;
        let name = *timeline.segments.last()?;
        Some((name, catalog.segment(name)?.stored_at))
    });
    let history = catalog.timelines.iter().rev().find_map(|timeline| timeline.history.as_ref());
    let promotion = history.map(|history| Promotion::look(lane, history)).transpose().map_err(unknown_repo)?.flatten();
    Ok(Holdings {
        promotion,
        newest_backup: newest.map(|manifest| (manifest.envelope.backup.clone(), manifest.envelope.stopped_at)),
        backups: catalog.backups.len(),
        unreadable: catalog
            .unreadable
            .iter()
            .map(|backup| format!("backup {}: {}", backup.id, backup.problem))
            .collect(),
        missing_packs: missing_packs(lane, &catalog).map_err(unknown_repo)?,
        holes: holes(&catalog, &branches),
        newest_segment,
        reach: branch.map(|branch| reach(lane, &catalog, branch)).transpose().map_err(unknown_repo)?.flatten(),
    })
}

fn missing_packs(lane: &Lane, catalog: &LaneCatalog) -> Result<Vec<String>, RepoError> {
    if catalog.backups.is_empty() {
        return Ok(Vec::new());
    }
    let packs = lane.list_packs()?.into_iter().map(|pack| ((pack.backup, pack.number), pack.stored_bytes));
    let packs: BTreeMap<_, _> = packs.collect();
    let mut missing = Vec::new();
    for manifest in &catalog.backups {
        let envelope = &manifest.envelope;
        for pack in lane.tables(manifest)?.packs.iter() {
            let PackSource::Lane { backup, number } = &pack.source;
            let name = format!("{}/packs/{backup}/{number:06}", lane.id());
            match packs.get(&(backup.to_string(), *number)) {
                None => missing.push(format!("{name} is missing, and backup {} names it", envelope.backup)),
                Some(bytes) if *bytes != pack.stored_bytes => {
                    let wanted = pack.stored_bytes;
                    missing.push(format!("{name} has {bytes} bytes, and backup {} names {wanted}", envelope.backup));
                }
                Some(_) => {}
            }
        }
    }
    Ok(missing)
}

fn holds(branch: &Branch, envelope: &Envelope) -> bool {
    branch.holds(envelope.timeline, envelope.start_lsn, envelope.stop_lsn)
}

/// Names what is missing after the oldest backup of each branch, once.
fn holes(catalog: &LaneCatalog, branches: &[Branch]) -> Vec<String> {
    let size = catalog.segment_size();
    let mut holes = BTreeSet::new();
    for timeline in catalog.timelines.iter().filter(|timeline| timeline.timeline != TimelineId::FIRST) {
        if timeline.history.is_none() {
            holes.insert(format!(
                "{}.history is missing, and segments of its timeline are there",
                timeline.timeline.hex()
            ));
        }
    }
    for branch in branches {
        let own = catalog.backups.iter().map(|manifest| &manifest.envelope).filter(|envelope| holds(branch, envelope));
        let Some(oldest) = own.clone().min_by_key(|envelope| envelope.start_lsn) else { continue };
        let mut chain = branch.chain(catalog, size.segment_of(oldest.start_lsn));
        // The log after a backup that was kept alone has expired; it goes on with the next one.
        while let ChainEnd::Hole { proof: HoleProof::Expired(expired), .. } = &chain.end {
            let behind = expired.through.number(size).map(|number| number.end(size));
            let later = own.clone().filter(|one| behind.as_ref().is_ok_and(|behind| one.start_lsn >= *behind));
            let Some(next) = later.min_by_key(|one| one.start_lsn) else { break };
            chain = branch.chain(catalog, size.segment_of(next.start_lsn));
        }
        if matches!(chain.end, ChainEnd::Hole { proof: HoleProof::Expired(_), .. }) {
            continue;
        }
        if let ChainEnd::Hole { proof: HoleProof::GivenUp(hole), .. } = &chain.end {
            // A backup behind it is all that can be had.
            let behind = hole.through.number(size).map(|number| number.end(size));
            let leads_on = |envelope: &Envelope| behind.as_ref().is_ok_and(|behind| envelope.start_lsn >= *behind);
            if !own.clone().any(leads_on) {
                holes.insert(format!("{hole}; no backup begins after it yet"));
            }
            continue;
        }
        if let ChainEnd::Hole { missing, proof } = chain.end {
            holes.insert(format!("{missing} is missing, and {proof}"));
            continue;
        }
        for envelope in own {
            let last = branch.segment(size.segment_ending_at(envelope.stop_lsn), size);
            if !catalog.holds(last) {
                holes.insert(format!("{last} is missing, and backup {} needs it", envelope.backup));
            }
        }
    }
    holes.into_iter().collect()
}

fn reach(lane: &Lane, catalog: &LaneCatalog, branch: &Branch) -> Result<Option<Reach>, RepoError> {
    let size = catalog.segment_size();
    let own = catalog.backups.iter().map(|manifest| &manifest.envelope).filter(|envelope| holds(branch, envelope));
    let Some(newest) = own.max_by_key(|envelope| envelope.stop_lsn) else { return Ok(None) };
    let chain = branch.chain(catalog, size.segment_of(newest.start_lsn)).segments;
    let Some(last) = chain.last().and_then(|last| catalog.segment(*last)) else { return Ok(None) };
    let asked: Vec<&SegmentName> = chain.iter().rev().take(SEGMENTS_ASKED).collect();
    let (mut end, mut time) = (None, None);
    for name in asked {
        let Some(stored) = catalog.segment(*name) else { break };
        let facts = lane.wal_facts(&stored)?;
        end = end.or(facts.as_ref().and_then(|facts| facts.last_complete_end));
        time = facts.and_then(|facts| facts.max_time);
        if time.is_some() {
            break;
        }
    }
    let end = end.unwrap_or(newest.stop_lsn);
    if end < newest.stop_lsn {
        return Ok(None);
    }
    Ok(Some(Reach { end, time: time.map_or(last.stored_at, |time| time.to_utc()).max(newest.stopped_at) }))
}
