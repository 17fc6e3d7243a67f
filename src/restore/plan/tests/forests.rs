//! Random forests of timelines, and random targets in them, against a model that knows nothing of the planner: what was
//! written, by which commit, and which names are archived. Timelines leave others anywhere, also before these began;
//! old primaries write on, histories and segments are lost, parts are given up, and commits are not in the order of time.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::pg::segment::SegmentNo;
use crate::pg::wal_fixture::{Log, one_mib};
use crate::pg::wal_name::WalFileName;
use crate::repo::lane_fixture::{archive, lane_of};
use crate::repo::{HOLE_VERSION, Hole};
use crate::restore::{Restorable, reach};

/// When the first transaction commits, in microseconds since 2000.
const FIRST_COMMIT: i64 = 846_000_000_000_000;
const SECOND: i64 = 1_000_000;

/// Numbers by chance that follow from a seed.
struct Chance(u64);

impl Chance {
    /// Source: Sebastiano Vigna, `splitmix64.c`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn one_in(&mut self, several: u64) -> bool {
        self.below(several) == 0
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        (!all.is_empty()).then(|| &all[self.below(all.len() as u64) as usize])
    }
}

#[derive(Clone, Debug)]
struct Commit {
    xid: u32,
    time: PgTime,
    start: Lsn,
    end: Lsn,
    /// End of the restore point that follows.
    named: Lsn,
}

/// A part of a branch: a timeline, from where to where it is read.
#[derive(Clone, Debug)]
struct Part {
    on: usize,
    begin: Lsn,
    end: Option<Lsn>,
}

/// A timeline, with everything that its server had replayed before it began.
#[derive(Clone)]
struct Line {
    log: Log,
    commits: Vec<Commit>,
    /// Where another timeline can leave it.
    marks: Vec<Lsn>,
    path: Vec<Part>,
    history: String,
    /// The parent and the position, but for the first.
    fork: Option<(usize, Lsn)>,
    grown: bool,
}

#[derive(Debug)]
struct Taken {
    id: String,
    on: usize,
    start: Lsn,
    stop: Lsn,
    at: PgTime,
}

/// What was written.
struct Story {
    lines: Vec<Line>,
    backups: Vec<Taken>,
    /// Microseconds since the first commit.
    now: i64,
    xid: u32,
}

fn timeline(on: usize) -> TimelineId {
    TimelineId::new(on as u32 + 1).unwrap()
}

fn fill(log: &mut Log, bytes: usize) {
    let body = [&[254], &(bytes as u32).to_le_bytes()[..], &vec![7; bytes]].concat();
    log.record(11, 0, &body);
}

impl Story {
    fn tell(chance: &mut Chance) -> Self {
        let mut log = Log::new();
        fill(&mut log, 8);
        let path = vec![Part { on: 0, begin: Lsn::INVALID, end: None }];
        let (commits, marks, history) = (Vec::new(), Vec::new(), String::new());
        let first = Line { log, commits, marks, path, history, fork: None, grown: false };
        let mut story = Self { lines: vec![first], backups: Vec::new(), now: 0, xid: 100 };
        story.grow(0, chance, true);
        for _ in 0..2 + chance.below(5) {
            let on = chance.below(story.lines.len() as u64) as usize;
            match chance.one_in(2) && story.lines.len() < 5 {
                true => story.leave(on, chance),
                false => story.grow(on, chance, false),
            }
        }
        for line in story.lines.iter_mut().filter(|line| line.grown) {
            if one_mib().offset_of(line.log.position()) != 0 {
                line.log.switch();
            }
        }
        story
    }

    /// The server of a timeline goes on.
    fn grow(&mut self, on: usize, chance: &mut Chance, backed_up: bool) {
        self.lines[on].grown = true;
        for step in 0..2 + chance.below(3) {
            if backed_up && step == 0 || chance.one_in(5) {
                self.back_up(on, chance);
            }
            self.commit(on, chance);
            let line = &mut self.lines[on];
            if chance.one_in(3) {
                line.log.switch();
                line.marks.push(line.log.position());
            } else if chance.one_in(6) {
                // A record that begins in one segment and ends in the next.
                let room = one_mib().bytes() - one_mib().offset_of(line.log.position());
                fill(&mut line.log, room as usize + 5000);
            }
        }
    }

    fn commit(&mut self, on: usize, chance: &mut Chance) {
        let line = &mut self.lines[on];
        fill(&mut line.log, 100 + chance.below(9000) as usize);
        (self.now, self.xid) = (self.now + SECOND, self.xid + 1);
        // A commit's time is taken before its place in the log.
        let late = if chance.one_in(3) { SECOND * 3 * chance.below(1000) as i64 / 1000 } else { 0 };
        let time = PgTime::from_micros(FIRST_COMMIT + self.now - late).unwrap();
        let start = line.log.position();
        line.log.commit(self.xid, time);
        let (start, end) = (line.log.records.last().map_or(start, |(start, _)| *start), line.log.position());
        line.log.record(0, 0x70, &restore_point(&format!("p{}", self.xid)));
        let named = line.log.position();
        line.marks.push(named);
        line.commits.push(Commit { xid: self.xid, time, start, end, named });
    }

    fn back_up(&mut self, on: usize, chance: &mut Chance) {
        self.now += SECOND;
        let at = PgTime::from_micros(FIRST_COMMIT + self.now).unwrap();
        fill(&mut self.lines[on].log, 50);
        let start = self.lines[on].log.position();
        for _ in 0..chance.below(3) {
            self.commit(on, chance);
            if chance.one_in(3) {
                self.lines[on].log.switch();
            }
        }
        let log = &mut self.lines[on].log;
        fill(log, 20);
        let id = format!("b{}", self.backups.len());
        self.backups.push(Taken { id, on, start, stop: log.position(), at });
    }

    /// A promotion, or the end of a recovery to any earlier moment.
    fn leave(&mut self, parent: usize, chance: &mut Chance) {
        let Some(at) = chance.of(&self.lines[parent].marks).copied() else { return };
        let on = self.lines.len();
        let mut line = self.lines[parent].clone();
        line.log.cut(at);
        line.commits.retain(|commit| commit.named <= at);
        line.marks.retain(|mark| *mark < at);
        line.path.retain(|part| part.begin < at);
        let last = line.path.last_mut().unwrap();
        last.end = Some(last.end.map_or(at, |end| end.min(at)));
        line.path.push(Part { on, begin: at, end: None });
        line.history.push_str(&format!("{}\t{at}\tby chance\n", parent + 1));
        (line.fork, line.grown) = (Some((parent, at)), false);
        self.lines.push(line);
        if chance.below(5) > 0 {
            let backed_up = chance.one_in(2);
            self.grow(on, chance, backed_up);
        }
    }
}

/// What of a story is archived.
struct Forest {
    story: Story,
    lane: Lane,
    catalog: LaneCatalog,
    archived: BTreeSet<SegmentName>,
    /// How far those lead that a promotion left.
    partials: BTreeMap<SegmentName, Lsn>,
    given_up: BTreeSet<SegmentName>,
    /// Timelines whose history is not archived.
    unknown: BTreeSet<usize>,
}

impl Forest {
    fn of(chance: &mut Chance) -> Self {
        let (size, story) = (one_mib(), Story::tell(chance));
        let name = |on: usize, number| SegmentName::from_number(timeline(on), number, size);
        let mut files: Vec<(SegmentName, Vec<u8>)> = Vec::new();
        let mut lost: Vec<SegmentName> = Vec::new();
        let mut partials = BTreeMap::new();
        let mut parts: Vec<(SegmentName, Vec<u8>)> = Vec::new();
        let unknown: BTreeSet<usize> = (1..story.lines.len()).filter(|_| chance.one_in(12)).collect();
        for (on, line) in story.lines.iter().enumerate().filter(|(_, line)| line.grown) {
            let begins = line.fork.map_or(SegmentNo(1), |(_, at)| size.segment_of(at));
            let own: Vec<(SegmentName, Vec<u8>)> = line
                .log
                .segments()
                .into_iter()
                .map(|(named, raw)| (named.number(size).unwrap(), raw))
                .filter(|(number, _)| *number >= begins)
                .map(|(number, raw)| (name(on, number), raw))
                .collect();
            let last = if chance.one_in(4) { chance.below(own.len() as u64 + 1) as usize } else { own.len() };
            let children = || {
                let left = story.lines.iter().enumerate().filter(|(child, _)| !unknown.contains(child));
                left.filter_map(|(_, child)| child.fork).filter(|(parent, _)| *parent == on).map(|(_, at)| at)
            };
            // Where it was left: the `.partial` that is kept of a segment that is not archived.
            let left = |named: &SegmentName| {
                let number = named.number(size).unwrap();
                children().filter(|at| size.segment_of(*at) == number && size.offset_of(*at) != 0).max()
            };
            for (place, file) in own.into_iter().enumerate() {
                if place < last && !chance.one_in(14) {
                    files.push(file);
                    continue;
                }
                lost.push(file.0);
                if let Some(left) = left(&file.0).filter(|_| chance.one_in(2)) {
                    partials.insert(file.0, left);
                    parts.push(file);
                }
            }
        }
        if files.is_empty() {
            files.extend(story.lines[0].log.segments().into_iter().take(1));
        }
        let lane = lane_of(&files);
        parts.iter().for_each(|(named, raw)| archive(&lane, &WalFileName::Partial(*named), raw));
        for (on, line) in story.lines.iter().enumerate().filter(|(on, _)| *on > 0 && !unknown.contains(on)) {
            archive(&lane, &WalFileName::History(timeline(on)), line.history.as_bytes());
        }
        for Taken { id, on, start, stop, at } in &story.backups {
            backup_on(&lane, timeline(*on), id, &start.to_string(), &stop.to_string(), at.to_utc());
        }
        let mut given_up = BTreeSet::new();
        if chance.one_in(6) {
            let candidates: Vec<SegmentName> = files.iter().map(|(named, _)| *named).chain(lost).collect();
            given_up.extend(chance.of(&candidates).copied());
        }
        for segment in &given_up {
            let (from, through, disputed) = (*segment, *segment, false);
            let (reason, host, decided_at) = ("by chance".to_owned(), "db1".to_owned(), DateTime::UNIX_EPOCH);
            let hole = Hole { version: HOLE_VERSION, from, through, reason, host, decided_at, disputed };
            lane.record_hole(&hole).unwrap();
        }
        // An answer is the same with indexes and without.
        if chance.one_in(2) {
            index(&lane);
        }
        let archived = files.into_iter().map(|(named, _)| named).collect();
        let catalog = LaneCatalog::load(&lane).unwrap();
        Self { story, lane, catalog, archived, partials, given_up, unknown }
    }

    /// The name under which a branch reads a segment.
    fn reads(&self, on: usize, number: SegmentNo) -> SegmentName {
        let begun = |part: &&Part| part.begin == Lsn::INVALID || one_mib().segment_of(part.begin) <= number;
        let part = self.story.lines[on].path.iter().rev().find(begun).unwrap();
        SegmentName::from_number(timeline(part.on), number, one_mib())
    }

    /// Whether every byte of a branch between two positions can be had under the names that it reads.
    fn holds(&self, on: usize, from: Lsn, until: Lsn) -> bool {
        (one_mib().segment_of(from).0..=one_mib().segment_ending_at(until).0).map(SegmentNo).all(|number| {
            let name = self.reads(on, number);
            let last = number == one_mib().segment_ending_at(until);
            let partial = self.partials.get(&name).is_some_and(|left| last && until <= *left);
            !self.given_up.contains(&name) && (self.archived.contains(&name) || partial)
        })
    }

    fn is_on(&self, on: usize, backup: &Taken) -> bool {
        let part = self.story.lines[on].path.iter().find(|part| part.on == backup.on);
        part.is_some_and(|part| backup.start >= part.begin && part.end.is_none_or(|end| backup.stop <= end))
    }

    /// The last commit that a recovery from a backup replays up to a position.
    fn last(&self, on: usize, backup: &Taken, until: Lsn) -> Option<u32> {
        let mut replayed =
            self.story.lines[on].commits.iter().filter(|commit| commit.start >= backup.start && commit.end <= until);
        replayed.next_back().map(|commit| commit.xid)
    }

    /// What a recovery from one backup along one branch comes to: its last commit; `None` if it does not get there.
    fn comes_to(&self, on: usize, backup: &Taken, target: &Target, exclusive: bool) -> Option<Option<u32>> {
        let commits = &self.story.lines[on].commits;
        let before = |at: Lsn| self.last(on, backup, Lsn::new(at.bytes() - u64::from(exclusive)));
        let (needed, last) = match target {
            Target::Xid(xid) => {
                let commit = commits.iter().find(|commit| commit.xid == *xid && commit.start >= backup.stop)?;
                (commit.end, before(commit.end))
            }
            Target::Lsn(lsn) if *lsn >= backup.stop => (*lsn, before(*lsn)),
            Target::Name(name) => {
                let mut named = commits.iter().filter(|commit| format!("p{}", commit.xid) == *name);
                let commit = named.find(|commit| commit.named > backup.stop)?;
                (commit.named, self.last(on, backup, commit.named))
            }
            Target::Time(moment) => {
                let moment = PgTime::from_utc(*moment)?;
                if moment < backup.at || (exclusive && moment == backup.at) {
                    return None;
                }
                // PostgreSQL stops before the first one that it meets.
                let past = |commit: &&Commit| commit.time > moment || (exclusive && commit.time == moment);
                let commit = commits.iter().filter(|commit| commit.start >= backup.start).find(past)?;
                if commit.start < backup.stop {
                    return None;
                }
                (commit.end, self.last(on, backup, commit.start))
            }
            _ => return None,
        };
        self.holds(on, backup.start, needed.max(backup.stop)).then_some(last)
    }

    /// Every backup that leads there, with the last commit.
    fn ways(&self, on: usize, target: &Target, exclusive: bool) -> BTreeMap<&str, Option<u32>> {
        if self.unknown.contains(&on) {
            return BTreeMap::new();
        }
        let own = self.story.backups.iter().filter(|backup| self.is_on(on, backup));
        own.filter_map(|backup| Some((backup.id.as_str(), self.comes_to(on, backup, target, exclusive)?))).collect()
    }

    fn plan(&self, on: Option<usize>, target: Target, exclusive: bool) -> Result<Plan, PlanError> {
        let (purpose, timeline) = (Purpose::Clone, on.map(timeline));
        plan(&self.lane, &self.catalog, &Request { target, purpose, exclusive, timeline, backup: None })
    }

    /// Asks for one moment of one branch, on it and anywhere; returns how many plans there were.
    fn ask(&self, on: usize, target: Target, exclusive: bool, story: &str) -> usize {
        let ways = self.ways(on, &target, exclusive);
        let asked = format!("{story}: {target:?}, exclusive {exclusive}, on {}", timeline(on));
        let mut plans = 0;
        match self.plan(Some(on), target.clone(), exclusive) {
            Ok(plan) => {
                let backup = &plan.manifest.envelope.backup;
                let last = ways.get(backup.as_str()).unwrap_or_else(|| panic!("{asked}: {backup} does not lead there"));
                assert_eq!(plan.last_commit.map(|last| last.xid), *last, "{asked}, from {backup}");
                assert_eq!(plan.timeline(), timeline(on), "{asked}");
                plans += 1;
            }
            Err(PlanError::Unreachable { refusals }) => assert!(ways.is_empty(), "{asked}: {refusals:?}; {ways:?}"),
            Err(other) => panic!("{asked}: {other:?}"),
        }
        // A position that lies within a record of another branch may be refused there: nothing ended at it.
        let ends = |on: usize| match &target {
            Target::Lsn(lsn) => self.story.lines[on].commits.iter().any(|commit| commit.end == *lsn),
            _ => true,
        };
        let able = |on: &usize| !self.ways(*on, &target, exclusive).is_empty();
        let others: Vec<usize> = (0..self.story.lines.len()).filter(able).collect();
        let sure: Vec<usize> = others.iter().copied().filter(|on| ends(*on)).collect();
        match self.plan(None, target.clone(), exclusive) {
            Ok(plan) => {
                let on = plan.timeline().number() as usize - 1;
                let last = plan.last_commit.map(|last| last.xid);
                assert!(others.contains(&on), "{asked}, or anywhere: {on}");
                // Whatever else fits comes to the same; a time may be passed by another commit after another backup.
                for other in sure.iter().filter(|_| !matches!(target, Target::Time(_))) {
                    let ways = self.ways(*other, &target, exclusive);
                    let same = ways.get(plan.manifest.envelope.backup.as_str()).is_none_or(|other| *other == last);
                    assert!(same, "{asked}, or anywhere: {last:?} on {on}, {ways:?} on {other}");
                }
                plans += 1;
            }
            Err(PlanError::Ambiguous { choices }) => {
                assert!(others.len() > 1 && choices.len() > 1, "{asked}, or anywhere: {choices:?}, {others:?}");
                let unique = matches!(target, Target::Xid(_) | Target::Name(_)) && !exclusive;
                assert!(!unique, "{asked}, or anywhere: one transaction is on one place only");
            }
            Err(PlanError::Unreachable { refusals }) => {
                assert!(sure.is_empty(), "{asked}, or anywhere: {refusals:?}; {sure:?}")
            }
            Err(other) => panic!("{asked}, or anywhere: {other:?}"),
        }
        plans
    }

    /// Holds what `timelines` says can be restored against every commit on every branch.
    fn look(&self, story: &str) {
        let reached = reach(&self.lane, &self.catalog).unwrap();
        for (on, line) in self.story.lines.iter().enumerate() {
            let own = reached.iter().find(|one| one.timeline == timeline(on));
            for commit in &line.commits {
                let holds = |part: &Restorable| part.from <= commit.start && commit.end <= part.to;
                let told = own.is_some_and(|own| own.restorable.iter().any(holds));
                let ways = self.ways(on, &Target::Xid(commit.xid), false);
                assert_eq!(told, !ways.is_empty(), "{story}: {commit:?} on {}: {ways:?}, {own:?}", timeline(on));
            }
        }
    }

    /// Asks for the newest moment of a branch.
    fn ask_latest(&self, on: usize, story: &str) -> usize {
        let story = format!("{story}: the newest moment on {}", timeline(on));
        let Ok(plan) = self.plan(Some(on), Target::Latest, false) else { return 0 };
        assert!(!self.unknown.contains(&on), "{story}");
        let backup = self.story.backups.iter().find(|backup| backup.id == plan.manifest.envelope.backup).unwrap();
        assert!(self.is_on(on, backup), "{story}: {backup:?}");
        let reach = plan.point.reach;
        assert!(self.holds(on, backup.start, reach.max(backup.stop)), "{story}: over what is not there");
        assert_eq!(plan.last_commit.map(|last| last.xid), self.last(on, backup, reach), "{story}");
        // Nothing is archived behind it that the branch reads, and no part of the branch begins there.
        let next = one_mib().segment_ending_at(reach).next();
        let later = (next.0..next.0 + 40).map(|number| self.reads(on, SegmentNo(number)));
        let later: Vec<SegmentName> = later.filter(|name| self.archived.contains(name)).collect();
        assert!(later.is_empty(), "{story}: it ends at {reach}, and {later:?} are there");
        let path = &self.story.lines[on].path;
        assert!(path.iter().all(|part| part.begin <= reach), "{story}: it ends at {reach} of {path:?}");
        1
    }
}

fn live(seed: u64) -> [usize; 2] {
    let mut chance = Chance(seed);
    let forest = Forest::of(&mut chance);
    let story = format!("WALVAULT_SEED={seed}");
    forest.look(&story);
    let (mut plans, mut asked) = (0, 0);
    for _ in 0..5 {
        let on = chance.below(forest.story.lines.len() as u64) as usize;
        let Some(commit) = chance.of(&forest.story.lines[on].commits).cloned() else { continue };
        let exclusive = chance.one_in(3);
        let target = match chance.below(4) {
            0 => Target::Xid(commit.xid),
            1 => Target::Lsn(commit.end),
            2 => Target::Time(commit.time.to_utc()),
            _ => Target::Name(format!("p{}", commit.xid)),
        };
        let exclusive = exclusive && !matches!(target, Target::Name(_));
        plans += forest.ask(on, target, exclusive, &story);
        asked += 2;
    }
    let on = chance.below(forest.story.lines.len() as u64) as usize;
    [plans + forest.ask_latest(on, &story), asked + 1]
}

#[test]
#[allow(clippy::print_stderr, reason = "the test run shows it when the test fails")]
fn every_plan_in_every_forest_leads_to_just_what_was_asked_for_and_no_way_is_missed() {
    let given = std::env::var("WALVAULT_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let soaking = std::env::var_os("WALVAULT_SOAK").is_some();
    // The same ones every time, and new ones in the long run.
    let seed = given.unwrap_or_else(|| if soaking { getrandom::u64().unwrap() >> 1 } else { 20_261_121 });
    let wanted = std::env::var("WALVAULT_FORESTS").ok().and_then(|count| count.parse::<u64>().ok());
    let forests = wanted.unwrap_or(if soaking { 100_000 } else { 24 });
    eprintln!("WALVAULT_SEED={seed}, {forests} forests");
    let threads = 2;
    let [plans, asked] = std::thread::scope(|scope| {
        let work = |thread: u64| {
            move || {
                (thread..forests)
                    .step_by(threads)
                    .map(|n| live(seed + n))
                    .fold([0, 0], |a, b| [a[0] + b[0], a[1] + b[1]])
            }
        };
        let workers: Vec<_> = (0..threads as u64).map(|thread| scope.spawn(work(thread))).collect();
        let done = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        done.fold([0, 0], |a, b| [a[0] + b[0], a[1] + b[1]])
    });
    eprintln!("{plans} plans of {asked} wishes");
    // Neither all nor nothing: both answers are looked at.
    assert!(forests < 10 || (plans * 4 > asked && plans < asked), "{plans} plans of {asked} wishes");
}
