//! What the log says changed since an earlier backup: of archived segments by what their objects say, of those that are not
//! archived yet by a walk over `pg_wal`.
//!
//! Every segment of the stretch has to be there, and to go on with the one before; then the log has told of every change to
//! main forks, as it would tell a server that recovers. Nothing is waited for: a segment that is in neither place now will
//! never be archived. The last segment is the server's own wherever it is there, archived or not: what is archived has to lead
//! to what this server wrote, and not to what a copy of it did.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::changed::ChangedBlocks;
use crate::error;
use crate::format::changes::FolderMember;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_chain::ChangesChain;
use crate::pg::wal_changes::{ChangesEnd, SegmentChanges, SegmentChangesWalk};
use crate::pg::wal_name::WalFileName;
use crate::repo::{Hole, Lane, RepoError, StoredName};

/// Segments that are looked through, at most.
const MOST_SEGMENTS: usize = 1 << 16;
/// Objects read at once, and how many are held until they are joined.
const REQUESTS: usize = 8;
const WINDOW: usize = 64;
/// Segments of one folder from which on it pays to look for what was gathered of all of it.
const GATHERED: usize = 8;
/// Log that is always walked, if its objects do not say what it changes, and the share of the data up to which it is: more
/// costs what reading the data does.
const ALWAYS_WALKED: u64 = 64 << 20;
const WALKED_SHARE: u64 = 4;
/// The largest segment that is fetched to be walked: what is stored of it is held.
const LARGEST_FETCHED: u64 = 64 << 20;
/// Bytes of a file in `pg_wal` read at a time.
const PART: usize = 1 << 20;

/// The stretch of the log between two backups.
#[derive(Clone, Copy, Debug)]
pub(super) struct Between {
    pub timeline: TimelineId,
    /// Where the earlier backup began.
    pub start: Lsn,
    /// Where this one begins.
    pub end: Lsn,
    /// Bytes of data that would be read otherwise.
    pub data_bytes: u64,
}

/// What the log tells.
#[derive(Debug)]
pub(super) struct Told {
    pub changed: ChangedBlocks,
    /// Segments that tell it.
    pub segments: usize,
}

/// Looks through the log; the inner error is why it does not tell everything.
///
/// # Errors
/// [`RepoError`] if the repository fails.
pub(super) fn changed(lane: &Lane, pg_wal: &Path, between: Between) -> Result<Result<Told, String>, RepoError> {
    match (Search { lane, pg_wal, between, walked: 0 }).run() {
        Ok(told) => Ok(Ok(told)),
        Err(Failure::Reason(reason)) => Ok(Err(reason)),
        // What is damaged is no reason to have no backup.
        Err(Failure::Repo(problem @ (RepoError::Object { .. } | RepoError::Missing { .. }))) => {
            Ok(Err(error::chain(&problem).to_string()))
        }
        Err(Failure::Repo(problem)) => Err(problem),
    }
}

enum Failure {
    Reason(String),
    Repo(RepoError),
}

impl From<RepoError> for Failure {
    fn from(problem: RepoError) -> Self {
        Self::Repo(problem)
    }
}

struct Search<'a> {
    lane: &'a Lane,
    pg_wal: &'a Path,
    between: Between,
    /// Bytes of log walked so far.
    walked: u64,
}

/// The archived segments of one folder, and what was gathered of them.
struct Folder {
    listed: BTreeMap<SegmentName, StoredName>,
    gathered: HashMap<SegmentName, FolderMember>,
}

impl Search<'_> {
    fn run(mut self) -> Result<Told, Failure> {
        let Between { timeline, start, end, .. } = self.between;
        let mut chain = ChangesChain::new(timeline, start, end, self.lane.segment_size());
        let names = chain.segments();
        let mut own = names.last().and_then(|last| Some((*last, self.own_last(*last)?)));
        if names.len() > MOST_SEGMENTS {
            return Err(Failure::Reason(format!("{} segments of the log lie between", names.len())));
        }
        let given_up: Vec<Hole> = self.lane.holes()?.into_iter().chain(self.lane.disputed()?).collect();
        if let Some(name) = names.iter().find(|name| given_up.iter().any(|hole| hole.holds(**name))) {
            return Err(Failure::Reason(format!("the archive's segment {name} is not to be relied on")));
        }
        let mut changed = ChangedBlocks::default();
        for folder in names.chunk_by(|one, next| one.middle() == next.middle()) {
            let mut known = self.folder(folder)?;
            for window in folder.chunks(WINDOW) {
                let mut told = self.archived(&mut known, window)?;
                for name in window {
                    let of_the_server = own.take_if(|(last, _)| last == name).map(|(_, changes)| changes);
                    let changes = match of_the_server.or_else(|| told.remove(name)) {
                        Some(changes) => changes,
                        None => self.walk(*name, known.listed.contains_key(name))?,
                    };
                    chain
                        .add(*name, &changes, &mut |relation| changed.add_relation(relation))
                        .map_err(|problem| Failure::Reason(problem.to_string()))?;
                }
            }
        }
        chain.finish().map_err(|problem| Failure::Reason(problem.to_string()))?;
        Ok(Told { changed, segments: names.len() })
    }

    fn folder(&self, names: &[SegmentName]) -> Result<Folder, RepoError> {
        let (timeline, middle) = (names[0].timeline(), names[0].middle());
        let listed = self.lane.list_wal_folder(timeline, &middle)?.into_iter();
        let listed = listed.filter_map(|stored| match stored.name {
            WalFileName::Segment(name) => Some((name, stored)),
            _ => None,
        });
        let mut folder = Folder { listed: listed.collect(), gathered: HashMap::new() };
        if names.len() >= GATHERED {
            for stored in self.lane.changes_of(timeline, &middle)? {
                // A damaged one is as good as none.
                match self.lane.read_changes(&stored) {
                    Ok(Some(members)) => {
                        folder.gathered = members.into_iter().map(|one| (one.segment, one)).collect();
                        break;
                    }
                    Ok(None) | Err(RepoError::Object { .. }) => {}
                    Err(problem) => return Err(problem),
                }
            }
        }
        Ok(folder)
    }

    /// Returns what the archive says of segments, without reading them.
    fn archived(
        &self,
        folder: &mut Folder,
        names: &[SegmentName],
    ) -> Result<HashMap<SegmentName, SegmentChanges>, RepoError> {
        let mut told = HashMap::new();
        let mut wanted: Vec<(SegmentName, &StoredName)> = Vec::new();
        for name in names {
            let Some(stored) = folder.listed.get(name) else { continue };
            match folder.gathered.remove(name).filter(|one| one.stored_bytes == stored.stored_bytes) {
                Some(one) => drop(told.insert(*name, one.changes)),
                None => wanted.push((*name, stored)),
            }
        }
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || {
            while let Some((name, stored)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                let read = self.lane.wal_changes(stored).map(|read| (*name, read));
                found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(read);
            }
        };
        match wanted.len() {
            0 | 1 => work(),
            several => std::thread::scope(|scope| (0..REQUESTS.min(several)).for_each(|_| drop(scope.spawn(work)))),
        }
        for read in found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            let (name, read) = read?;
            told.extend(read.map(|(changes, _)| (name, changes)));
        }
        Ok(told)
    }

    /// Walks a segment: the server's file if it is not archived, else what is archived.
    fn walk(&mut self, name: SegmentName, archived: bool) -> Result<SegmentChanges, Failure> {
        let bytes = self.lane.segment_size().bytes();
        self.walked += bytes;
        if self.walked > walked_at_most(self.between.data_bytes) {
            return Err(Failure::Reason(
                "too much of the log is not archived yet, or was archived without saying what it changes".to_owned(),
            ));
        }
        let (size, system_id) = (self.lane.segment_size(), self.lane.facts().system_id);
        if !archived && let Some(changes) = self.own(name).filter(|changes| self.reaches(changes)) {
            return Ok(changes);
        }
        // Archived since it was listed, or else it never will be.
        let missing = || Failure::Reason(format!("segment {name} is not in the archive"));
        if bytes > LARGEST_FETCHED {
            return Err(missing());
        }
        let stored = self.lane.open_wal(&WalFileName::Segment(name))?.ok_or_else(missing)?;
        let mut walk = SegmentChangesWalk::new(name, size, Some(system_id));
        let Ok(()) = stored.contents_to(&mut |part| {
            walk.part(part);
            Ok::<(), Infallible>(())
        })?;
        Ok(walk.finish())
    }

    /// Walks the server's own last file; `None` if it is not there, or larger than anything that is walked.
    fn own_last(&self, name: SegmentName) -> Option<SegmentChanges> {
        let few = self.lane.segment_size().bytes() <= walked_at_most(self.between.data_bytes);
        few.then(|| self.own(name)).flatten()
    }

    /// Whether a file that ends before its segment does reaches far enough: it may have been recycled.
    fn reaches(&self, changes: &SegmentChanges) -> bool {
        !matches!(changes.end, ChangesEnd::Stopped { at } if at < self.between.end)
    }

    /// Walks the server's own file; `None` if it is not there, or cut.
    fn own(&self, name: SegmentName) -> Option<SegmentChanges> {
        let size = self.lane.segment_size();
        let mut file = File::open(self.pg_wal.join(name.to_string())).ok()?;
        let mut walk = SegmentChangesWalk::new(name, size, Some(self.lane.facts().system_id));
        let mut part = vec![0; PART.min(size.bytes() as usize)];
        for _ in 0..size.bytes() / part.len() as u64 {
            file.read_exact(&mut part).ok()?;
            walk.part(&part);
        }
        Some(walk.finish())
    }
}

fn walked_at_most(data_bytes: u64) -> u64 {
    (data_bytes / WALKED_SHARE).max(ALWAYS_WALKED)
}

#[cfg(test)]
mod tests;
