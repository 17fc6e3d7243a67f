//! Is what the backups need still there, and still what was stored?
//!
//! [`plan`] decides from manifests and listings what is wanted and what of it is missing; [`read`] reads the rest and
//! compares it with its digests, and walks the log from each backup on. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::catalog::{ChainEnd, HoleProof, LaneCatalog};
use crate::error::{self, ErrorKind};
use crate::format::tables::{PackRef, PackSource};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::pg::wal_walk::{SegmentEnd, Walker};
use crate::repo::{Lane, RepoError};

/// Something that a backup needs and that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// The manifest of a backup cannot be read.
    Manifest {
        /// The backup.
        backup: String,
        /// Why.
        problem: String,
    },
    /// A pack is not there.
    PackMissing {
        /// The first backup that needs it.
        backup: String,
        /// Its name.
        pack: String,
    },
    /// A pack is not what was stored.
    PackDamaged {
        /// The first backup that needs it.
        backup: String,
        /// Its name.
        pack: String,
        /// Why.
        problem: String,
    },
    /// The timeline of a backup is not known to lead anywhere.
    NoHistory {
        /// The backup.
        backup: String,
        /// Its timeline.
        timeline: TimelineId,
    },
    /// Log that a backup needs to become consistent is missing: it cannot be restored.
    BackupLog {
        /// The backup.
        backup: String,
    },
    /// A segment after a backup is missing: nothing past it can be restored on this branch.
    Hole {
        /// The segment.
        missing: SegmentName,
        /// What proves that it existed.
        proof: String,
    },
    /// A segment is not what was stored.
    SegmentDamaged {
        /// The segment.
        segment: SegmentName,
        /// Why.
        problem: String,
    },
    /// The records of the log end, though it goes on.
    LogBroken {
        /// The segment in which they end.
        segment: SegmentName,
        /// Where.
        at: Lsn,
        /// Why.
        problem: String,
    },
}

/// What is to be verified.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// Backups that can be read.
    pub backups: usize,
    /// Packs that are there, by their names, with the first backup that needs each.
    pub packs: Vec<(String, PackRef)>,
    /// Consecutive segments that are there, from a backup on, once for each branch.
    pub chains: Vec<Vec<SegmentName>>,
    /// What is known to be wrong already.
    pub problems: BTreeSet<Problem>,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Bytes of packs.
    pub pack_bytes: u64,
    /// Segments, each counted once.
    pub segments: usize,
}

impl Verification {
    /// Segments that backups need or that follow them, each counted once.
    pub fn segments(&self) -> usize {
        self.chains.iter().flatten().collect::<BTreeSet<_>>().len()
    }
}

/// Decides what is wanted, and finds what of it is missing, from manifests and listings.
///
/// # Errors
/// [`RepoError`] if a listing fails, or a manifest can no longer be read.
pub fn plan(lane: &Lane, catalog: &LaneCatalog) -> Result<Verification, RepoError> {
    let mut verification = Verification { backups: catalog.backups.len(), ..Verification::default() };
    for unreadable in &catalog.unreadable {
        let (backup, problem) = (unreadable.id.clone(), unreadable.problem.clone());
        verification.problems.insert(Problem::Manifest { backup, problem });
    }
    let stored = lane.list_packs()?.into_iter().map(|pack| ((pack.backup, pack.number), pack.stored_bytes));
    let stored: BTreeMap<(String, u32), u64> = stored.collect();
    let mut known = BTreeSet::new();
    for manifest in &catalog.backups {
        let backup = &manifest.envelope.backup;
        let tables = match lane.tables(manifest) {
            Ok(tables) => tables,
            Err(error @ RepoError::Object { .. }) => {
                let problem = error::chain(&error).to_string();
                verification.problems.insert(Problem::Manifest { backup: backup.clone(), problem });
                continue;
            }
            Err(error) => return Err(error),
        };
        for pack in tables.packs.iter() {
            let PackSource::Lane { backup: owner, number } = &pack.source;
            if known.insert((Arc::clone(owner), *number)) {
                verification.pack(backup, pack, stored.get(&(owner.to_string(), *number)).copied());
            }
        }
    }
    // What expired while it was looked at is missed by nobody.
    let missing = |problem: &Problem| match problem {
        Problem::PackMissing { backup, .. } => Some(backup.clone()),
        _ => None,
    };
    if verification.problems.iter().any(|problem| missing(problem).is_some()) {
        let listed: BTreeSet<String> = lane.backups()?.into_iter().map(|backup| backup.id).collect();
        verification.problems.retain(|problem| missing(problem).is_none_or(|backup| listed.contains(&backup)));
    }
    verification.log(catalog);
    Ok(verification)
}

fn pack_name(pack: &PackRef) -> String {
    let PackSource::Lane { backup, number } = &pack.source;
    format!("{backup}/{number}")
}

impl Verification {
    fn pack(&mut self, backup: &str, pack: &PackRef, stored: Option<u64>) {
        let (backup, name) = (backup.to_owned(), pack_name(pack));
        match stored {
            None => drop(self.problems.insert(Problem::PackMissing { backup, pack: name })),
            Some(bytes) if bytes != pack.stored_bytes => {
                let problem = format!("it has {bytes} bytes, {} were stored", pack.stored_bytes);
                self.problems.insert(Problem::PackDamaged { backup, pack: name, problem });
            }
            Some(_) => self.packs.push((backup, pack.clone())),
        }
    }

    fn log(&mut self, catalog: &LaneCatalog) {
        let (spans, branches) = (catalog.spans(), catalog.branches());
        for span in &spans {
            let own = branches.iter().find(|branch| branch.timeline() == span.timeline);
            if own.is_none_or(|branch| !branch.holds(span.timeline, span.start, span.stop)) {
                let (backup, timeline) = (span.id.clone(), span.timeline);
                self.problems.insert(Problem::NoHistory { backup, timeline });
            }
        }
        for branch in &branches {
            let (intervals, incomplete) = branch.intervals(catalog, &spans);
            let lacking = incomplete.into_iter().map(|span| Problem::BackupLog { backup: span.id });
            self.problems.extend(lacking);
            for interval in intervals {
                // What expired was wanted to go.
                if let ChainEnd::Hole { missing, proof } = interval.end
                    && !matches!(proof, HoleProof::Expired(_))
                {
                    self.problems.insert(Problem::Hole { missing, proof: proof.to_string() });
                }
                self.chains.push(interval.segments);
            }
        }
    }
}

/// Reads everything that is there, and compares it with its digests; walks the log of each branch.
///
/// # Errors
/// [`RepoError`] if the repository fails; what is damaged or gone is a problem, and no error.
pub fn read(lane: &Lane, catalog: &LaneCatalog, verification: &mut Verification) -> Result<Read, RepoError> {
    let mut done = Read { segments: verification.segments(), pack_bytes: 0 };
    for (backup, pack) in &verification.packs {
        let (backup, name) = (backup.clone(), pack_name(pack));
        match lane.verify_pack(pack) {
            Ok(()) => done.pack_bytes += pack.stored_bytes,
            Err(RepoError::Missing { .. }) if is_gone(lane, &backup)? => {}
            Err(RepoError::Missing { .. }) => {
                verification.problems.insert(Problem::PackMissing { backup, pack: name });
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let problem = error::chain(&error).to_string();
                verification.problems.insert(Problem::PackDamaged { backup, pack: name, problem });
            }
            Err(error) => return Err(error),
        }
    }
    for chain in &verification.chains {
        verification.problems.extend(walk(lane, catalog, chain)?);
    }
    Ok(done)
}

/// Whether a backup expired since it was listed. Its manifest goes before anything that it needs.
fn is_gone(lane: &Lane, backup: &str) -> Result<bool, RepoError> {
    Ok(!lane.backups()?.iter().any(|listed| listed.id == backup))
}

fn is_expired(lane: &Lane, segment: SegmentName) -> Result<bool, RepoError> {
    Ok(lane.expired()?.iter().any(|range| range.holds(segment)))
}

/// Walks consecutive segments; the first thing that is wrong ends the walk, for nothing behind it can be reached.
fn walk(lane: &Lane, catalog: &LaneCatalog, chain: &[SegmentName]) -> Result<Option<Problem>, RepoError> {
    let mut walker = Walker::new(Some(catalog.facts.system_id), catalog.segment_size());
    for segment in chain {
        let segment = *segment;
        let damaged = |problem: String| Ok(Some(Problem::SegmentDamaged { segment, problem }));
        let raw = match lane.read_wal(&WalFileName::Segment(segment)) {
            Ok(Some(stored)) => stored.raw,
            // Then nobody wants what it led to either.
            Ok(None) if is_expired(lane, segment)? => return Ok(None),
            Ok(None) => return damaged("it was listed and is gone".to_owned()),
            Err(error) if error.kind() == ErrorKind::Corrupt => return damaged(error::chain(&error).to_string()),
            Err(error) => return Err(error),
        };
        if let SegmentEnd::Stopped { at, why } = walker.segment(segment, &raw, &mut |_| {}) {
            return Ok(Some(Problem::LogBroken { segment, at, problem: why.to_string() }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
