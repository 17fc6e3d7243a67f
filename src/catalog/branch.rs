//! Branches of the timeline forest, and how far the archive leads along each.

use super::LaneCatalog;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::pg::timeline::{History, Stretch, TimelineId};
use crate::repo::{Hole, SegmentRange};

/// The path through the timelines that ends on one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    history: History,
    stretches: Vec<Stretch>,
}

/// Consecutive segments along a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The segments, each on the timeline that the branch is on there.
    pub segments: Vec<SegmentName>,
    /// Why there are no more.
    pub end: ChainEnd,
}

/// Why a chain ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainEnd {
    /// Nothing later is archived on the branch.
    Newest,
    /// A segment is missing that must exist: a later one is archived, or the branch is known to go on.
    Hole {
        /// The first one that is missing.
        missing: SegmentName,
        /// What proves that it must exist.
        proof: HoleProof,
    },
}

/// What proves that a segment must exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoleProof {
    /// A later segment of the branch is archived.
    Later(SegmentName),
    /// The branch forks off later.
    Fork(TimelineId, Lsn),
    /// An operator gave it up, with others.
    GivenUp(Hole),
    /// It was removed, with others: what was kept of the log ends here, as it should.
    Expired(SegmentRange),
}

impl std::fmt::Display for HoleProof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HoleProof::Later(later) => write!(f, "{later} is there"),
            HoleProof::Fork(child, at) => write!(f, "timeline {child} forked off at {at}"),
            HoleProof::GivenUp(hole) => hole.fmt(f),
            HoleProof::Expired(range) => write!(f, "{range} has expired and was removed"),
        }
    }
}

impl Branch {
    /// Makes the branch that a history describes.
    pub fn new(history: History) -> Self {
        let stretches = history.stretches();
        Self { history, stretches }
    }

    /// The timeline on which it ends.
    pub fn timeline(&self) -> TimelineId {
        self.history.timeline()
    }

    /// Its parts, oldest first.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// Returns the timeline on which the byte at `lsn` was written.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.history.timeline_at(lsn)
    }

    /// Returns the name under which a segment of this branch is archived: the segment in which a timeline begins is the
    /// child's, which holds a copy of the parent's part.
    pub fn segment(&self, number: SegmentNo, size: SegmentSize) -> SegmentName {
        SegmentName::from_number(self.part(number, size).0, number, size)
    }

    /// Returns the timeline under whose name a segment is archived, and the last segment that is.
    fn part(&self, number: SegmentNo, size: SegmentSize) -> (TimelineId, Option<SegmentNo>) {
        let entered = |stretch: &Stretch| stretch.begin == Lsn::INVALID || size.segment_of(stretch.begin) <= number;
        let place = self.stretches.iter().rposition(entered).unwrap_or(0);
        let next = self.stretches.get(place + 1).map(|next| size.segment_of(next.begin));
        (self.stretches[place].timeline, next.and_then(SegmentNo::previous))
    }

    /// Returns whether a backup taken on `timeline` between the two positions lies on this branch.
    pub fn holds(&self, timeline: TimelineId, start: Lsn, stop: Lsn) -> bool {
        let stretch = self.stretches.iter().find(|stretch| stretch.timeline == timeline);
        stretch.is_some_and(|stretch| start >= stretch.begin && stretch.end.is_none_or(|end| stop <= end))
    }

    /// Returns the archived segments along the branch from `first` on.
    pub fn chain(&self, catalog: &LaneCatalog, first: SegmentNo) -> Chain {
        let size = catalog.segment_size();
        let mut segments = Vec::new();
        let mut number = first;
        let given_up = |name| catalog.holes.iter().find(|hole| hole.holds(name));
        let last = SegmentNo(u64::MAX / size.bytes());
        while number <= last {
            let (timeline, until) = self.part(number, size);
            let name = SegmentName::from_number(timeline, number, size);
            // What is archived under a name that was given up may be another server's.
            if given_up(name).is_some() {
                break;
            }
            let mut held = catalog.run_from(name);
            if held.is_empty() && catalog.is_partial(name) {
                held = std::slice::from_ref(&name);
            }
            let given_up = catalog.holes.iter().filter(|hole| hole.from > name).map(|hole| hole.from).min();
            let before = given_up.map_or(held.len(), |from| held.partition_point(|name| *name < from));
            let own = until.map_or(u64::MAX, |until| until.0 - number.0 + 1);
            let taken = &held[..before.min(usize::try_from(own).unwrap_or(usize::MAX))];
            if taken.is_empty() {
                break;
            }
            segments.extend_from_slice(taken);
            number = SegmentNo(number.0 + taken.len() as u64);
        }
        let missing = self.segment(number, size);
        let given_up = given_up(missing).map(|hole| HoleProof::GivenUp(hole.clone()));
        let expired = catalog.expired.iter().find(|range| range.holds(missing)).map(|range| HoleProof::Expired(*range));
        let end = match given_up.or(expired).or_else(|| self.must_exist(catalog, number)) {
            Some(proof) => ChainEnd::Hole { missing, proof },
            None => ChainEnd::Newest,
        };
        Chain { segments, end }
    }

    /// Returns what proves that the branch goes on at or past a segment that is not archived.
    fn must_exist(&self, catalog: &LaneCatalog, number: SegmentNo) -> Option<HoleProof> {
        let size = catalog.segment_size();
        let position = number.start(size);
        let later = self.stretches.iter().filter_map(|stretch| {
            let archived = catalog.timelines.iter().find(|archived| archived.timeline == stretch.timeline)?;
            let least = SegmentName::from_number(stretch.timeline, number.next(), size);
            let from = archived.segments.partition_point(|name| *name < least);
            let is_later = |name: &&SegmentName| {
                name.number(size).is_ok_and(|found| found > number && self.segment(found, size) == **name)
            };
            archived.segments[from..].iter().find(is_later)
        });
        if let Some(later) = later.min_by_key(|name| name.number(size).ok()) {
            return Some(HoleProof::Later(*later));
        }
        let mut forks = self.stretches.iter().filter(|stretch| stretch.begin > position);
        // The fork's own segment is missing: what the parent wrote before the fork was there once.
        forks.next().map(|stretch| HoleProof::Fork(stretch.timeline, stretch.begin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch() -> Branch {
        let timeline = TimelineId::new(3).expect("not zero");
        let text = "1\t0/3000500\tpromoted\n2\t0/5000000\tpromoted\n";
        Branch::new(History::parse(timeline, text).expect("a history"))
    }

    #[test]
    fn the_fork_segment_is_the_childs() {
        let name = |number| branch().segment(SegmentNo(number), SegmentSize::DEFAULT).to_string();
        assert_eq!(name(2), "000000010000000000000002");
        assert_eq!(name(3), "000000020000000000000003");
        assert_eq!(name(4), "000000020000000000000004");
        assert_eq!(name(5), "000000030000000000000005");
    }

    #[test]
    fn a_backup_that_runs_past_the_fork_is_not_on_the_branch() {
        let holds = |number, start, stop| {
            branch().holds(TimelineId::new(number).expect("not zero"), Lsn::new(start), Lsn::new(stop))
        };
        assert!(holds(1, 0x100_0028, 0x300_0500));
        assert!(!holds(1, 0x100_0028, 0x300_0508));
        assert!(holds(2, 0x300_0500, 0x400_0000));
        assert!(!holds(2, 0x200_0028, 0x400_0000));
        assert!(!holds(4, 0x600_0000, 0x700_0000));
    }
}
