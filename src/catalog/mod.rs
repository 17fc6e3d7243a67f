//! What a lane holds, as one value: backups, timelines, segments.
//!
//! Loaded once from listings and small objects; afterwards nothing here touches the store. Questions about branches and
//! gaps are answered by [`branch`].

mod branch;
mod changing;
mod gathering;
mod index;
mod indexing;
mod intervals;
mod segments;

pub use branch::{Branch, Chain, ChainEnd, HoleProof};
pub use changing::{ChangesJob, perform_changes, plan_changes};
pub use gathering::{GatherJob, gathering_wanted, perform_gathering, plan_gathering};
pub use index::SegmentIndex;
pub use indexing::{IndexJob, indexes_made, perform_indexing, plan_indexing};
pub use intervals::{BackupSpan, Interval};
pub use segments::Place;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use segments::{Listed, Segments};

use crate::clock;
use crate::error;
use crate::format::manifest::Manifest;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::{Fork, History, TimelineId};
use crate::pg::wal_name::WalFileName;
use crate::repo::{Claim, Hole, Lane, LaneFacts, LaneId, Owner, RepoError, SegmentRange, StoredName, WaitsFor};

/// One lane.
#[derive(Clone, Debug)]
pub struct LaneCatalog {
    /// Its name.
    pub lane: LaneId,
    /// Facts of its server.
    pub facts: LaneFacts,
    /// Backups that can be read, oldest first.
    pub backups: Vec<Manifest>,
    /// Backups that were committed and cannot be read now.
    pub unreadable: Vec<UnreadableBackup>,
    /// Timelines that anything is archived of, in order.
    pub timelines: Vec<TimelineCatalog>,
    /// Parts of the log that were given up.
    pub holes: Vec<Hole>,
    /// Parts of the log that expired: they are no holes.
    pub expired: Vec<SegmentRange>,
    segments: Segments,
}

/// A backup whose manifest cannot be read.
#[derive(Clone, Debug)]
pub struct UnreadableBackup {
    /// Its name.
    pub id: String,
    /// Why.
    pub problem: String,
}

/// One timeline.
#[derive(Clone, Debug)]
pub struct TimelineCatalog {
    /// Its number.
    pub timeline: TimelineId,
    /// Where it came from; `None` if its history is not archived.
    pub history: Option<History>,
    /// Its archived segments in order.
    pub segments: Vec<SegmentName>,
    /// Who writes it.
    pub owner: Option<Owner>,
    /// Who must fall silent, or be passed over by an operator, before it counts for the newest one.
    pub waits_for: Option<WaitsFor>,
}

/// Consecutive archived segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: SegmentName,
    /// The last.
    pub last: SegmentName,
    /// How many.
    pub count: u64,
}

impl TimelineCatalog {
    /// Returns the branch that ends on this timeline; `None` if its ancestors are not known.
    pub fn branch(&self) -> Option<Branch> {
        match &self.history {
            Some(history) => Some(Branch::new(history.clone())),
            None if self.timeline == TimelineId::FIRST => Some(Branch::new(History::root(self.timeline))),
            None => None,
        }
    }

    /// Returns the runs of consecutive segments; between two of them is a hole.
    pub fn runs(&self, size: SegmentSize) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for segment in &self.segments {
            let number = |name: &SegmentName| name.number(size).ok();
            match runs.last_mut() {
                Some(run) if number(&run.last).map(|last| last.next()) == number(segment) => {
                    run.last = *segment;
                    run.count += 1;
                }
                _ => runs.push(Run { first: *segment, last: *segment, count: 1 }),
            }
        }
        runs
    }
}

impl LaneCatalog {
    /// Loads what a lane holds.
    ///
    /// # Errors
    /// [`RepoError`] if a listing fails or a timeline's history cannot be believed; a damaged manifest is a value.
    pub fn load(lane: &Lane) -> Result<Self, RepoError> {
        let (mut backups, mut unreadable) = (Vec::new(), Vec::new());
        for stored in lane.backups()? {
            match lane.manifest(&stored) {
                Ok(manifest) => backups.push(manifest),
                // Whoever declared it void was interrupted.
                Err(RepoError::Object { .. }) if lane.is_void(&stored.id)? => {}
                Err(problem @ RepoError::Object { .. }) => {
                    unreadable.push(UnreadableBackup { id: stored.id, problem: error::chain(&problem).to_string() });
                }
                Err(problem) => return Err(problem),
            }
        }
        backups.sort_by(|a, b| {
            a.envelope.stop_lsn.cmp(&b.envelope.stop_lsn).then(a.envelope.backup.cmp(&b.envelope.backup))
        });
        let loaded = load_timelines(lane, &lane.wal_timelines()?)?;
        let (mut timelines, listed): (Vec<_>, Vec<_>) = loaded.into_iter().unzip();
        let mut segments = Segments::new(lane.segment_size(), &timelines, listed);
        let now = clock::now();
        for at in 0..timelines.len() {
            let waits_for = timelines[at].owner.as_ref().and_then(|owner| owner.waits_for.clone());
            let Some(waits) = waits_for else { continue };
            let awaited = timelines.iter().find(|timeline| timeline.timeline == waits.timeline);
            let newest = awaited.and_then(|timeline| segments.get(*timeline.segments.last()?));
            if !lane.has_waited(&waits, newest.map(|newest| newest.stored_at), now)? {
                timelines[at].waits_for = Some(waits);
            }
        }
        load_partials(lane, &timelines, &mut segments)?;
        let mut holes = lane.holes()?;
        // Only who was given a timeline can have what another one stored in its place.
        let adopted =
            |timeline: &TimelineCatalog| timeline.owner.as_ref().is_some_and(|own| own.claim == Claim::Adoption);
        if timelines.iter().any(adopted) {
            holes.extend(lane.disputed()?);
            holes.sort_by_key(|hole| hole.from);
        }
        let expired = match lane.expired() {
            // Then what expired looks like a hole, which promises less than there is.
            Err(problem @ RepoError::Object { .. }) => {
                tracing::warn!(error = %error::chain(&problem), "it is not known what expired");
                Vec::new()
            }
            other => other?,
        };
        let facts = lane.facts().clone();
        Ok(Self { lane: lane.id(), facts, backups, unreadable, timelines, holes, expired, segments })
    }

    /// A lane without backups.
    #[cfg(test)]
    pub(crate) fn of(lane: LaneId, facts: LaneFacts, timelines: Vec<TimelineCatalog>) -> Self {
        let size = SegmentSize::new(facts.segment_size).expect("a size");
        let sample = Listed { stored_bytes: 0, stored_at: chrono::DateTime::UNIX_EPOCH };
        let listed = timelines.iter().map(|timeline| vec![sample; timeline.segments.len()]).collect();
        let segments = Segments::new(size, &timelines, listed);
        let (backups, unreadable, holes, expired) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { lane, facts, backups, unreadable, timelines, holes, expired, segments }
    }

    /// Bytes in a segment.
    pub fn segment_size(&self) -> SegmentSize {
        SegmentSize::new(self.facts.segment_size).unwrap_or(SegmentSize::DEFAULT)
    }

    /// Returns an archived segment, or the `.partial` that stands for it where a timeline was left.
    pub fn segment(&self, name: SegmentName) -> Option<StoredName> {
        self.segments.get(name)
    }

    /// Whether a segment is archived, or a `.partial` stands for it where a timeline was left.
    pub fn holds(&self, name: SegmentName) -> bool {
        self.segments.holds(name)
    }

    /// Whether a segment is there only as the `.partial` that a promotion left behind.
    pub fn is_partial(&self, name: SegmentName) -> bool {
        self.segments.partial(name).is_some()
    }

    /// Returns where among the segments of its timeline a segment is that is archived whole.
    pub fn place(&self, name: SegmentName) -> Option<Place> {
        self.segments.place(name)
    }

    /// Returns a segment that is archived whole, and all that follow it without a gap.
    fn run_from(&self, name: SegmentName) -> &[SegmentName] {
        let run = self.segments.run_from(name);
        run.map_or(&[], |(place, count)| &self.timelines[place.timeline].segments[place.at..place.at + count])
    }

    /// Returns how many holes are between the segments of a timeline; what expired is none.
    pub fn gaps(&self, timeline: &TimelineCatalog) -> usize {
        let runs = timeline.runs(self.segment_size());
        let expired = |missing: SegmentName| self.expired.iter().any(|range| range.holds(missing));
        let after = |run: &Run| run.last.number(self.segment_size()).ok().map(|last| last.next());
        let gap = |run: &&Run| {
            let missing = after(run).map(|next| SegmentName::from_number(timeline.timeline, next, self.segment_size()));
            missing.is_some_and(|missing| !expired(missing))
        };
        runs.iter().take(runs.len().saturating_sub(1)).filter(gap).count()
    }

    /// Returns the backup of that name.
    pub fn backup(&self, id: &str) -> Option<&Manifest> {
        self.backups.iter().find(|manifest| manifest.envelope.backup == id)
    }

    /// Returns whom a branch waits for: it passes a timeline that does not count yet.
    pub fn waits_for(&self, branch: &Branch) -> Option<&WaitsFor> {
        let passed =
            |timeline: &TimelineCatalog| branch.stretches().iter().any(|stretch| stretch.timeline == timeline.timeline);
        self.timelines.iter().filter(|timeline| passed(timeline)).find_map(|timeline| timeline.waits_for.as_ref())
    }

    /// Whether another timeline forked off a timeline, so that it hardly grows any more.
    pub fn is_left(&self, timeline: TimelineId) -> bool {
        let mut parents = self.timelines.iter().filter_map(|child| child.history.as_ref()?.forks().last());
        parents.any(|fork| fork.parent == timeline)
    }

    /// Where a timeline was left in this segment: what lies past that was given up.
    pub fn left_at(&self, segment: SegmentName) -> Lsn {
        let size = self.segment_size();
        let forks = self.timelines.iter().filter_map(|child| child.history.as_ref()?.forks().last());
        let here =
            |fork: &&Fork| fork.parent == segment.timeline() && segment.number(size) == Ok(size.segment_of(fork.at));
        forks.filter(here).map(|fork| fork.at).max().unwrap_or(Lsn::INVALID)
    }

    /// Returns every branch that recovery can follow: one for each timeline whose ancestors are known.
    pub fn branches(&self) -> Vec<Branch> {
        self.timelines.iter().filter_map(TimelineCatalog::branch).collect()
    }
}

/// Where a timeline was left in the middle of a segment that nobody archived whole, what a promotion kept of it is the
/// end of that timeline: rows that were committed before the fork.
fn load_partials(lane: &Lane, timelines: &[TimelineCatalog], segments: &mut Segments) -> Result<(), RepoError> {
    let size = lane.segment_size();
    for fork in timelines.iter().filter_map(|timeline| timeline.history.as_ref()?.forks().last()) {
        let left = SegmentName::from_number(fork.parent, size.segment_of(fork.at), size);
        if size.offset_of(fork.at) == 0 || segments.holds(left) {
            continue;
        }
        // Of several the one that leads furthest; all hold the same log up to where they end.
        let mut best: Option<(Option<Lsn>, StoredName)> = None;
        for partial in lane.partials(left)? {
            let end = match lane.wal_facts(&partial) {
                Ok(facts) => facts.and_then(|facts| facts.last_complete_end),
                // A damaged one leads nowhere, and must not be in a restore's way.
                Err(RepoError::Object { .. }) => continue,
                Err(error) => return Err(error),
            };
            if best.as_ref().is_none_or(|(known, _)| end > *known) {
                best = Some((end, partial));
            }
        }
        if let Some((_, partial)) = best {
            segments.stand_in(left, partial);
        }
    }
    Ok(())
}

/// A timeline, and what is stored of each of its segments.
type Loaded = (TimelineCatalog, Vec<Listed>);

/// Loads timelines, several at a time: a long archive is listed a thousand names a request.
fn load_timelines(lane: &Lane, timelines: &[TimelineId]) -> Result<Vec<Loaded>, RepoError> {
    const AT_ONCE: usize = 8;
    let (next, found) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some(timeline) = timelines.get(next.fetch_add(1, Ordering::Relaxed)) {
            let loaded = load_timeline(lane, *timeline);
            found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(*timeline, loaded);
        }
    };
    match timelines.len() {
        0 | 1 => work(),
        several => std::thread::scope(|scope| (0..AT_ONCE.min(several)).for_each(|_| drop(scope.spawn(work)))),
    }
    found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).into_values().collect()
}

fn load_timeline(lane: &Lane, timeline: TimelineId) -> Result<Loaded, RepoError> {
    let mut stored: Vec<(SegmentName, Listed)> = Vec::new();
    for one in lane.list_wal(timeline)? {
        if let WalFileName::Segment(name) = one.name {
            stored.push((name, Listed { stored_bytes: one.stored_bytes, stored_at: one.stored_at }));
        }
    }
    stored.sort_by_key(|(name, _)| *name);
    let (names, stored) = stored.into_iter().unzip();
    let history = lane.history(timeline)?;
    let owner = lane.owners(timeline)?.current.map(|record| record.owner);
    Ok((TimelineCatalog { timeline, history, segments: names, owner, waits_for: None }, stored))
}
