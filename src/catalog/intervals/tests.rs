//! Intervals against a model that knows nothing of chains: for every position on its own, is there a backup from which
//! every segment up to it is archived?

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::catalog::{Chain, HoleProof, TimelineCatalog};
use crate::pg::segment::SegmentSize;
use crate::pg::timeline::History;
use crate::repo::{HOLE_VERSION, Hole, LaneFacts, SegmentRange};

const SEGMENT: u64 = 1 << 20;
const SEGMENTS: u64 = 24;

fn timeline(number: usize) -> TimelineId {
    TimelineId::new(number as u32).expect("not zero")
}

/// A forest: for each timeline after the first its parent, its fork (in sixteenths of a segment), and what is archived.
#[derive(Clone, Debug)]
struct Forest {
    forks: Vec<(usize, u64)>,
    archived: Vec<BTreeSet<u64>>,
    backups: Vec<(usize, u64, u64)>,
}

impl Forest {
    /// Parent and fork, from the oldest ancestor to the timeline; forks never fall on the way down.
    fn path(&self, number: usize) -> Vec<(usize, u64)> {
        let mut path = Vec::new();
        let mut at = number;
        while at > 1 {
            let (parent, fork) = self.forks[at - 2];
            path.push((parent, fork));
            at = parent;
        }
        path.reverse();
        let mut least = 0;
        for (_, fork) in &mut path {
            least = (*fork).max(least + 1);
            *fork = least;
        }
        path
    }

    fn history(&self, number: usize) -> History {
        let line = |(parent, fork): (usize, u64)| format!("{parent}\t{}\tpromoted\n", Lsn::new(fork * SEGMENT / 16));
        let text: String = self.path(number).into_iter().map(line).collect();
        match number {
            1 => History::root(timeline(1)),
            _ => History::parse(timeline(number), &text).expect("forks rise"),
        }
    }

    fn catalog(&self) -> LaneCatalog {
        let size = SegmentSize::new(SEGMENT as u32).expect("1 MiB");
        let mut timelines = Vec::new();
        for (place, archived) in self.archived.iter().enumerate() {
            let name = |number: &u64| SegmentName::from_number(timeline(place + 1), SegmentNo(*number), size);
            let names: Vec<SegmentName> = archived.iter().map(name).collect();
            let history = Some(self.history(place + 1)).filter(|_| place > 0);
            timelines.push(TimelineCatalog {
                timeline: timeline(place + 1),
                history,
                segments: names,
                owner: None,
                waits_for: None,
            });
        }
        let facts = LaneFacts { segment_size: SEGMENT as u32, ..LaneFacts::sample() };
        let lane = "7-1".parse().expect("a lane");
        LaneCatalog::of(lane, facts, timelines)
    }

    fn spans(&self) -> Vec<BackupSpan> {
        let span = |(place, (on, start, stop)): (usize, &(usize, u64, u64))| BackupSpan {
            id: place.to_string(),
            timeline: timeline(*on),
            start: Lsn::new(*start * SEGMENT / 16),
            stop: Lsn::new(*stop * SEGMENT / 16),
            stopped_at: DateTime::UNIX_EPOCH,
        };
        self.backups.iter().enumerate().map(span).collect()
    }

    /// The timeline whose copy of a segment a branch reads: the last one that has begun in it or before.
    fn reads(&self, number: usize, segment: u64) -> usize {
        let path = self.path(number);
        let mut children = path
            .iter()
            .enumerate()
            .map(|(place, (_, fork))| (path.get(place + 1).map_or(number, |(parent, _)| *parent), *fork));
        children
            .rfind(|(_, fork)| fork / 16 <= segment)
            .map_or(path.first().map_or(number, |(root, _)| *root), |(child, _)| child)
    }

    /// Whether the end of a segment can be reached along a branch.
    fn reaches(&self, number: usize, segment: u64) -> bool {
        self.backups.iter().any(|(on, start, stop)| {
            let path = self.path(number);
            let begin = path
                .iter()
                .enumerate()
                .find(|(place, _)| path.get(place + 1).map_or(number, |(parent, _)| *parent) == *on);
            let begin = begin.map(|(_, (_, fork))| *fork);
            let end = path.iter().find(|(parent, _)| parent == on).map(|(_, fork)| *fork);
            let is_root = path.first().map_or(number, |(root, _)| *root) == *on;
            let on_branch =
                (is_root || begin.is_some_and(|begin| *start >= begin)) && end.is_none_or(|end| *stop <= end);
            let held = |wanted: u64| self.archived[self.reads(number, wanted) - 1].contains(&wanted);
            on_branch && (stop - 1) / 16 <= segment && (start / 16..=segment).all(held)
        })
    }
}

fn forest() -> impl Strategy<Value = Forest> {
    (1usize..5).prop_flat_map(|timelines| {
        let forks: Vec<_> = (2..=timelines).map(|number| (1..number, 1..SEGMENTS * 14)).collect();
        let one = prop::collection::btree_set(0..SEGMENTS, 16..=SEGMENTS as usize);
        let archived = prop::collection::vec(one, timelines);
        let backup = (1..=timelines, 0..SEGMENTS * 14, 1u64..40).prop_map(|(on, start, len)| (on, start, start + len));
        (forks, archived, prop::collection::vec(backup, 0..6)).prop_map(|(forks, archived, backups)| Forest {
            forks,
            archived,
            backups,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn intervals_hold_exactly_what_every_position_by_itself_can_reach(forest in forest()) {
        let catalog = forest.catalog();
        let size = catalog.segment_size();
        for branch in catalog.branches() {
            let number = branch.timeline().number() as usize;
            let (intervals, incomplete) = branch.intervals(&catalog, &forest.spans());
            let covered = |segment: u64| intervals.iter().any(|interval| {
                let last = interval.segments.last().expect("never empty").number(size).expect("of this size");
                size.segment_ending_at(interval.backup.stop).0 <= segment && segment <= last.0
            });
            for segment in 0..SEGMENTS {
                prop_assert_eq!(covered(segment), forest.reaches(number, segment), "timeline {} segment {}", number, segment);
            }
            let on_branch = forest.spans().iter().filter(|span| branch.holds(span.timeline, span.start, span.stop)).count();
            let led: usize = intervals.iter().map(|interval| interval.backups).sum();
            prop_assert_eq!(led + incomplete.len(), on_branch);
        }
    }
}

/// A chain segment by segment, as long as nothing is in its way.
fn plain(branch: &Branch, catalog: &LaneCatalog, first: u64) -> Chain {
    let size = catalog.segment_size();
    let name = |number: u64| branch.segment(SegmentNo(number), size);
    let archived = |name: &SegmentName| catalog.timelines.iter().any(|timeline| timeline.segments.contains(name));
    let given_up = |name: SegmentName| catalog.holes.iter().find(|hole| hole.holds(name));
    let mut number = first;
    let mut segments = Vec::new();
    while archived(&name(number)) && given_up(name(number)).is_none() {
        segments.push(name(number));
        number += 1;
    }
    let missing = name(number);
    let later = (number + 1..SEGMENTS + 2).map(name).find(|name| archived(name)).map(HoleProof::Later);
    let start = Lsn::new(number * SEGMENT);
    let fork = branch.stretches().iter().find(|stretch| stretch.begin > start);
    let proof = given_up(missing).map(|hole| HoleProof::GivenUp(hole.clone()));
    let expired = catalog.expired.iter().find(|range| range.holds(missing));
    let proof = proof.or(expired.map(|range| HoleProof::Expired(*range))).or(later);
    let proof = proof.or(fork.map(|stretch| HoleProof::Fork(stretch.timeline, stretch.begin)));
    let end = proof.map_or(ChainEnd::Newest, |proof| ChainEnd::Hole { missing, proof });
    Chain { segments, end }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_chain_is_what_it_is_segment_by_segment(
        forest in forest(),
        holes in prop::collection::vec((1usize..5, 0..SEGMENTS, 0u64..4), 0..3),
        gone in prop::option::of((1usize..5, 0..SEGMENTS, 0u64..4)),
        first in 0..SEGMENTS,
    ) {
        let mut catalog = forest.catalog();
        let size = catalog.segment_size();
        let name = |on: usize, number: u64| SegmentName::from_number(timeline(on), SegmentNo(number), size);
        for (on, from, more) in holes {
            catalog.holes.push(Hole {
                version: HOLE_VERSION,
                from: name(on, from),
                through: name(on, from + more),
                reason: String::new(),
                host: String::new(),
                decided_at: DateTime::UNIX_EPOCH,
                disputed: false,
            });
        }
        catalog.expired.extend(gone.map(|(on, from, more)| SegmentRange { from: name(on, from), through: name(on, from + more) }));
        for branch in catalog.branches() {
            prop_assert_eq!(branch.chain(&catalog, SegmentNo(first)), plain(&branch, &catalog, first));
        }
    }
}
