//! Every kind of target on every branch of every kind of fork, with each part of the fork missing: a plan either ends with
//! exactly the commit that was asked for, or there is none.
//!
//! What is asked for is known from the writing of the log, and what can be had from the names that were archived; neither
//! asks the planner.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::tests::{backup_at, restore_point};
use super::*;
use crate::pg::segment::SegmentNo;
use crate::pg::wal_fixture::{Log, one_mib};
use crate::pg::wal_name::WalFileName;
use crate::repo::lane_fixture::{archive, lane_of};

/// When the first transaction commits, in microseconds since 2000.
const FIRST_COMMIT: i64 = 846_000_000_000_000;

/// Where timeline 2 leaves timeline 1. With two forks, timeline 3 leaves timeline 2 in the same segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fork {
    Inside,
    Boundary,
    /// The last record before it crosses from one segment into the next.
    Crossing,
    TwoInOne,
}

/// What is archived of the fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Both sides of it.
    Overrun,
    /// The child's; the parent's segment was never finished.
    Child,
    /// The parent's, which went on; the child has archived its history, and not its first segment.
    OverrunAlone,
    /// Of the fork's segment nothing.
    Neither,
    /// Of the fork's segment the parent's `.partial`.
    Partial,
}

#[derive(Clone, Debug)]
struct Commit {
    xid: u32,
    time: PgTime,
    end: Lsn,
    /// End of the restore point of the same number that follows.
    named: Lsn,
}

/// One branch as it was written.
#[derive(Clone)]
struct Written {
    log: Log,
    commits: Vec<Commit>,
}

impl Written {
    /// Commits some transactions, each behind so many bytes of something else.
    fn grow(&mut self, xids: std::ops::Range<u32>, bytes: usize) {
        for xid in xids {
            self.fill(bytes);
            let micros = FIRST_COMMIT + self.commits.len() as i64 * 1_000_000;
            let time = PgTime::from_micros(micros).unwrap();
            self.log.commit(xid, time);
            let end = self.log.position();
            self.log.record(0, 0x70, &restore_point(&format!("p{xid}")));
            self.commits.push(Commit { xid, time, end, named: self.log.position() });
        }
    }

    fn fill(&mut self, bytes: usize) {
        let body = [&[254], &(bytes as u32).to_le_bytes()[..], &vec![7; bytes]].concat();
        self.log.record(11, 0, &body);
    }
}

struct World {
    lane: Lane,
    catalog: LaneCatalog,
    /// By timeline, from 1.
    branches: Vec<Written>,
    /// Forks by timeline, from 2: the parent and the position.
    forks: Vec<(u32, Lsn)>,
    archived: BTreeSet<SegmentName>,
    /// Of timeline 1's segment at the fork.
    partial: bool,
}

fn timeline(number: usize) -> TimelineId {
    TimelineId::new(number as u32).unwrap()
}

impl World {
    fn of(fork: Fork, held: Held) -> Self {
        Self::without(fork, held, None)
    }

    /// As [`World::of`], but for one history that was never archived.
    fn without(fork: Fork, held: Held, history: Option<usize>) -> Self {
        let size = one_mib();
        let mut first = Written { log: Log::new(), commits: Vec::new() };
        first.fill(8);
        let begin = first.log.position();
        first.grow(100..103, 250_000);
        match fork {
            Fork::Inside | Fork::TwoInOne => first.grow(103..105, 200_000),
            Fork::Boundary => first.log.switch(),
            Fork::Crossing => {
                let room = size.bytes() - size.offset_of(first.log.position());
                first.fill(room as usize + 20_000);
                let (start, _) = *first.log.records.last().unwrap();
                assert_ne!(size.segment_of(start), size.segment_of(first.log.position()));
            }
        }
        let at = first.log.position();
        assert_eq!(size.offset_of(at) == 0, fork == Fork::Boundary);
        let mut forks = vec![(1, at)];
        let mut second = first.clone();
        second.grow(200..202, 150_000);
        let mut branches = Vec::new();
        if fork == Fork::TwoInOne {
            let again = second.log.position();
            assert_eq!(size.segment_of(at), size.segment_of(again), "in one segment");
            forks.push((2, again));
            let mut third = second.clone();
            third.grow(300..306, 250_000);
            third.log.switch();
            branches.push(third);
        }
        second.grow(202..206, 250_000);
        first.grow(105..110, 250_000);
        // What is archived is finished.
        second.log.switch();
        first.log.switch();
        branches.splice(0..0, [first, second]);

        let left = size.segment_of(at);
        let name = |on: usize, number| SegmentName::from_number(timeline(on), number, size);
        let mut files = Vec::new();
        for (place, written) in branches.iter().enumerate() {
            let begins = place.checked_sub(1).map(|place| size.segment_of(forks[place].1));
            for (segment, raw) in written.log.segments() {
                let number = segment.number(size).unwrap();
                if begins.is_none_or(|begins| number >= begins) {
                    files.push((name(place + 1, number), raw));
                }
            }
        }
        let parents = |named: &SegmentName| named.timeline() == timeline(1) && named.number(size).unwrap() >= left;
        let partial_of = files.iter().find(|(named, _)| parents(named)).cloned();
        files.retain(|(named, _)| match held {
            Held::Overrun => true,
            Held::Child => !parents(named),
            Held::OverrunAlone => *named != name(2, left),
            Held::Neither | Held::Partial => !parents(named) && *named != name(2, left),
        });
        let lane = lane_of(&files);
        let partial = held == Held::Partial && fork != Fork::Boundary;
        if let Some((named, raw)) = partial_of.filter(|_| partial) {
            archive(&lane, &WalFileName::Partial(named), &raw);
        }
        let mut text = String::new();
        for (place, (parent, at)) in forks.iter().enumerate() {
            text.push_str(&format!("{parent}\t{at}\tbefore something\n"));
            if history != Some(place + 2) {
                archive(&lane, &WalFileName::History(timeline(place + 2)), text.as_bytes());
            }
        }
        let taken = PgTime::from_micros(FIRST_COMMIT - 1_000_000).unwrap().to_utc();
        backup_at(&lane, "first", &begin.to_string(), &(begin + 8).to_string(), taken);
        let archived = files.into_iter().map(|(named, _)| named).collect();
        let catalog = LaneCatalog::load(&lane).unwrap();
        Self { lane, catalog, branches, forks, archived, partial }
    }

    /// Whether every byte of a branch before a position is archived under the name that the branch reads.
    fn holds(&self, on: usize, until: Lsn) -> bool {
        let size = one_mib();
        let path: Vec<(u32, Lsn)> = self.forks[..on - 1].to_vec();
        let reads = |number: SegmentNo| {
            let entered = path.iter().rposition(|(_, at)| size.segment_of(*at) <= number);
            SegmentName::from_number(timeline(entered.map_or(1, |place| place + 2)), number, size)
        };
        let left = self.forks[0].1;
        (1..=size.segment_ending_at(until).0).map(SegmentNo).all(|number| {
            let partial = self.partial && on == 1 && number == size.segment_of(left) && until <= left;
            self.archived.contains(&reads(number)) || partial
        })
    }

    fn plan(&self, on: usize, target: Target, exclusive: bool) -> Result<Plan, PlanError> {
        let purpose = Purpose::Clone;
        let request = Request { target, purpose, exclusive, timeline: Some(timeline(on)), backup: None };
        plan(&self.lane, &self.catalog, &request)
    }

    /// Asks for one commit in every way, and answers how many plans there were.
    fn ask(&self, on: usize, place: usize, what: &str) -> usize {
        let commits = &self.branches[on - 1].commits;
        let Commit { xid, time, end, named } = commits[place].clone();
        let before = place.checked_sub(1).map(|place| commits[place].xid);
        let next = commits.get(place + 1).map(|next| next.end);
        let moment = Target::Time(time.to_utc());
        let mut plans = 0;
        // The target, whether it is left out, the last commit then, and what must be archived to know it.
        for (target, exclusive, last, needs) in [
            (Target::Xid(xid), false, Some(xid), Some(end)),
            (Target::Xid(xid), true, before, Some(end)),
            (Target::Lsn(end), false, Some(xid), Some(end)),
            (Target::Lsn(end), true, before, Some(end)),
            (moment.clone(), false, Some(xid), next),
            (moment, true, before, Some(end)),
            (Target::Name(format!("p{xid}")), false, Some(xid), Some(named)),
        ] {
            let asked = format!("{what}: {target:?}, exclusive {exclusive}, on timeline {on}");
            match self.plan(on, target, exclusive) {
                Ok(plan) => {
                    assert_eq!(plan.last_commit.map(|last| last.xid), last, "{asked}");
                    assert!(needs.is_some_and(|needs| self.holds(on, needs)), "{asked}: a plan over what is not there");
                    assert_eq!(plan.timeline(), timeline(on), "{asked}");
                    plans += 1;
                }
                Err(PlanError::Unreachable { refusals }) => {
                    let could = needs.is_some_and(|needs| self.holds(on, needs));
                    assert!(!could, "{asked}: refused, {refusals:?}");
                }
                Err(other) => panic!("{asked}: {other:?}"),
            }
        }
        plans
    }

    /// The newest moment of a branch: its last commit, or nothing.
    fn ask_latest(&self, on: usize, what: &str) {
        let commits = &self.branches[on - 1].commits;
        let whole = commits.last().is_some_and(|last| self.holds(on, last.end));
        match self.plan(on, Target::Latest, false) {
            Ok(plan) if whole => {
                assert_eq!(plan.last_commit.map(|last| last.xid), commits.last().map(|one| one.xid), "{what}")
            }
            // The parent ends where the child begins, and no earlier than its last whole record there.
            Ok(plan) => {
                assert_eq!(on, 1, "{what}: the newest moment of timeline {on} without its log: {:?}", plan.point);
                let held = commits.iter().rfind(|commit| self.holds(1, commit.end)).map(|one| one.xid);
                assert_eq!(plan.last_commit.map(|last| last.xid), held, "{what}");
                let (_, at) = self.forks[0];
                let copied = SegmentName::from_number(timeline(2), one_mib().segment_of(at), one_mib());
                let lost = commits.iter().any(|commit| commit.end <= at && !self.holds(1, commit.end));
                assert!(!lost || self.archived.contains(&copied), "{what}: rows before the fork are left out");
            }
            Err(PlanError::Unreachable { .. }) => {
                assert!(!whole, "{what}: the newest moment of timeline {on} is refused")
            }
            Err(other) => panic!("{what}: {other:?}"),
        }
    }
}

fn every_target_is_reached_or_refused(fork: Fork) {
    for held in [Held::Overrun, Held::Child, Held::OverrunAlone, Held::Neither, Held::Partial] {
        let world = World::of(fork, held);
        let what = format!("fork {fork:?}, archived {held:?}");
        let mut plans = 0;
        for on in 1..=world.branches.len() {
            let commits = &world.branches[on - 1].commits;
            let (_, at) = world.forks[on.saturating_sub(2)];
            let past = commits.partition_point(|commit| commit.end <= at);
            // The last before the fork and the first past it; where all is there, the last of all, else the first.
            let third = if held == Held::Overrun { commits.len() - 1 } else { 0 };
            for place in BTreeSet::from([past - 1, past, third]) {
                plans += world.ask(on, place, &what);
            }
            world.ask_latest(on, &what);
        }
        assert!(plans > 0 && (held != Held::Overrun || plans >= 7 * 2 * world.branches.len()), "{what}: {plans} plans");
    }
}

#[test]
fn every_target_is_reached_or_refused_with_a_fork_inside_a_segment() {
    every_target_is_reached_or_refused(Fork::Inside);
}

#[test]
fn every_target_is_reached_or_refused_with_a_fork_on_a_boundary() {
    every_target_is_reached_or_refused(Fork::Boundary);
}

#[test]
fn every_target_is_reached_or_refused_with_a_record_that_crosses_before_the_fork() {
    every_target_is_reached_or_refused(Fork::Crossing);
}

#[test]
fn every_target_is_reached_or_refused_with_two_forks_in_one_segment() {
    every_target_is_reached_or_refused(Fork::TwoInOne);
}

#[test]
fn a_history_that_is_missing_hides_its_own_timeline_and_no_later_one() {
    let world = World::without(Fork::TwoInOne, Held::Overrun, Some(2));
    for on in [1, 3] {
        let last = world.branches[on - 1].commits.len() - 1;
        assert_eq!(world.ask(on, last, "without the history of timeline 2"), 6);
        world.ask_latest(on, "without the history of timeline 2");
    }
    for target in [Target::Latest, Target::Lsn(world.branches[1].commits[5].end)] {
        let refused = world.plan(2, target, false);
        assert!(matches!(refused, Err(PlanError::Unreachable { .. })), "{refused:?}");
    }
}
