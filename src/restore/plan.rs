//! Deciding: catalogue and target to one path through the timelines, one backup and one point in the log, or a refusal
//! that says what is in the way.
//!
//! *Latest* becomes a position too, so that PostgreSQL itself refuses to open before it is reached. The position is the
//! *start* of the last complete record: PostgreSQL compares record starts, and a segment's or a record's end is never
//! reached.

use chrono::{DateTime, Utc};

use super::refusal::{Refusal, RefusalReason};
use super::survey::{EndedTransaction, FoundRecord, Survey, SurveyError};
use super::target::{Purpose, Target};
use crate::catalog::{Branch, ChainEnd, LaneCatalog};
use crate::format::Sha256;
use crate::format::manifest::{Limits, Manifest};
use crate::format::recovery_plan::{PlannedStretch, RECOVERY_PLAN_VERSION, RecoveryPlan};
use crate::pg::backup_label::{BackupFrom, BackupLabel};
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::{Stretch, TimelineId};
use crate::pg::wal_event::WalParameters;
use crate::repo::{Lane, LaneId, WaitsFor};

pub use error::PlanError;

/// What an operator asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The moment. A standby has none.
    pub target: Target,
    /// What the copy is for.
    pub purpose: Purpose,
    /// Whether the transaction, moment or position that was named stays out.
    pub exclusive: bool,
    /// The timeline to end on, where more than one fits.
    pub timeline: Option<TimelineId>,
    /// The backup to begin with, if not the one that leaves the least to replay.
    pub backup: Option<String>,
}

/// What will be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The lane that is read.
    pub lane: LaneId,
    /// The backup that is restored.
    pub manifest: Manifest,
    /// What the copy is for.
    pub purpose: Purpose,
    /// What was asked for.
    pub target: Target,
    /// Whether what was named stays out.
    pub exclusive: bool,
    /// The timelines that recovery passes, oldest first.
    pub path: Vec<Stretch>,
    /// Where recovery ends; a standby's is only where the archive ends today.
    pub point: Point,
    /// The table whose removal is left out, if that was the target.
    pub removed: Option<RemovedTable>,
    /// The last commit that is replayed, if the log from the backup on holds one.
    pub last_commit: Option<EndedTransaction>,
    /// The time that the server will give for the last transaction replayed (`pg_last_xact_replay_timestamp()`).
    pub last_seen: Option<PgTime>,
    /// The segments that recovery reads.
    pub wal: Vec<SegmentName>,
    /// The contents of the `.partial` that stands for the last of them, if that is all there is of it.
    pub partial: Option<Sha256>,
    /// Bytes of the objects that hold them.
    pub wal_stored_bytes: u64,
    /// The settings that the recovering server must be able to meet, the highest of the whole range.
    pub limits: Limits,
    /// Tablespaces that the log creates, by the place it names.
    pub tablespaces_created: Vec<(u32, String)>,
}

/// A point in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Start of the last record that is replayed; for a time, of the first one that is not.
    pub record: Lsn,
    /// Every record that ends at or before this is replayed, and none that begins at or after it.
    pub reach: Lsn,
    /// No record that begins at or after this is read.
    pub needed_before: Lsn,
    /// The moment of the record, if it has one.
    pub time: Option<PgTime>,
}

/// A table, and the commit that dropped or emptied it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedTable {
    /// Schema and name.
    pub name: String,
    /// Its database.
    pub database: String,
    /// Whether it was emptied by `TRUNCATE` and not dropped.
    pub emptied: bool,
    /// The transaction.
    pub xid: u32,
    /// When it committed, by the server's clock.
    pub time: Option<PgTime>,
    /// Start of the record of the commit.
    pub at: Lsn,
}

/// One of several answers, for an operator to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The timeline to name.
    pub timeline: TimelineId,
    /// Where the timeline began, if not at the beginning.
    pub forked_at: Option<Lsn>,
    /// The end of what is archived of it.
    pub newest: Option<Lsn>,
    /// The latest commit that a hint knows of.
    pub newest_time: Option<DateTime<Utc>>,
    /// Who must fall silent before it counts for the newest one.
    pub waits_for: Option<WaitsFor>,
}

/// Decides. Reads segments where a moment must be found in them, and changes nothing.
///
/// # Errors
/// [`PlanError::Unreachable`] with what is in the way on each branch, [`PlanError::Ambiguous`] with the choices,
/// [`PlanError::Waiting`] if the only way may be a stranger's.
pub fn plan(lane: &Lane, catalog: &LaneCatalog, request: &Request) -> Result<Plan, PlanError> {
    let planner = Planner { lane, survey: Survey::new(lane, catalog), catalog, request };
    let (mut candidates, mut refusals) = (Vec::new(), Vec::new());
    let branches = catalog.branches();
    // A standby goes to the newest timeline that counts, whatever lies on others: `recovery_target_timeline = 'latest'`.
    let newest = branches.iter().rev().find(|branch| catalog.waits_for(branch).is_none());
    let newest = newest.map(Branch::timeline).filter(|_| request.purpose == Purpose::Standby);
    let wanted = request.timeline.or(newest);
    for branch in branches {
        if wanted.is_some_and(|timeline| timeline != branch.timeline()) {
            continue;
        }
        match planner.candidate(&branch)? {
            Ok(candidate) => candidates.push(candidate),
            Err(reason) => refusals.push(Refusal { timeline: branch.timeline(), reason }),
        }
    }
    let mut distinct = planner.distinct(candidates)?;
    match (distinct.pop(), distinct.is_empty()) {
        (Some(only), true) if planner.knows_more_than(&only, &refusals) => Err(PlanError::Unreachable { refusals }),
        (Some(only), true) => match planner.waits(&only) {
            Some((timeline, waits)) => Err(PlanError::Waiting { timeline, waits }),
            None => planner.plan(only),
        },
        (None, _) => Err(PlanError::Unreachable { refusals }),
        (Some(last), false) => {
            distinct.push(last);
            let choices = distinct.iter().map(|candidate| planner.choice(&candidate.branch));
            Err(PlanError::Ambiguous { choices: choices.collect::<Result<_, _>>()? })
        }
    }
}

/// Returns the branches and the newest moment of each.
pub fn choices(lane: &Lane, catalog: &LaneCatalog) -> Result<Vec<Choice>, PlanError> {
    let request =
        Request { target: Target::Latest, purpose: Purpose::Primary, exclusive: false, timeline: None, backup: None };
    let planner = Planner { lane, survey: Survey::new(lane, catalog), catalog, request: &request };
    Ok(catalog.branches().iter().map(|branch| planner.choice(branch)).collect::<Result<_, _>>()?)
}

struct Planner<'a> {
    lane: &'a Lane,
    survey: Survey<'a>,
    catalog: &'a LaneCatalog,
    request: &'a Request,
}

/// A way to the target.
struct Candidate {
    branch: Branch,
    backup: String,
    chain: Vec<SegmentName>,
    point: Point,
    removed: Option<RemovedTable>,
}

/// The log that follows a backup.
struct Log {
    segments: Vec<SegmentName>,
    /// Where the timeline was left, if the last segment is a `.partial`: what lies past that was given up.
    left_at: Option<Lsn>,
    /// What ends it, if that is not simply its newest record.
    ends: Option<RefusalReason>,
    last: Option<FoundRecord>,
}

impl Log {
    /// Whether a record is a part of the timeline: nothing is asked of what lies past the fork in a `.partial`.
    fn counts(&self, record: &FoundRecord) -> bool {
        self.left_at.is_none_or(|left_at| record.end <= left_at)
    }

    /// Whether it reaches the end of the backup that it follows.
    fn holds(&self, manifest: &Manifest) -> bool {
        self.last.is_some_and(|last| last.end >= manifest.envelope.stop_lsn)
    }
}

type Answer<T> = Result<Result<T, RefusalReason>, SurveyError>;

impl Planner<'_> {
    fn candidate(&self, branch: &Branch) -> Answer<Candidate> {
        if let Target::BeforeDrop(name) = &self.request.target
            && self.request.purpose != Purpose::Standby
        {
            return self.before_drop(branch, name);
        }
        if let Target::BeforeLoss(lost) = &self.request.target
            && self.request.purpose != Purpose::Standby
        {
            return self.before_loss(branch, lost);
        }
        let backups = self.backups(branch);
        let Some(newest) = backups.first() else {
            return Ok(Err(match &self.request.backup {
                Some(backup) => RefusalReason::OtherBackup { backup: backup.clone() },
                None => RefusalReason::NoBackup,
            }));
        };
        let mut refusal = RefusalReason::BeforeBackup { earliest: newest.envelope.stop_lsn };
        for manifest in &backups {
            if self.precedes(manifest) {
                refusal = RefusalReason::BeforeBackup { earliest: manifest.envelope.stop_lsn };
                continue;
            }
            let log = self.log(branch, manifest)?;
            match self.point(branch, manifest, &log)? {
                Ok(point) => {
                    if let Some(repeats) = self.repeats(branch, &backups)? {
                        return Ok(Err(repeats));
                    }
                    let (branch, backup) = (branch.clone(), manifest.envelope.backup.clone());
                    return Ok(Ok(Candidate { branch, backup, chain: log.segments, point, removed: None }));
                }
                // An older backup may end before the target.
                Err(reason @ RefusalReason::BeforeBackup { .. }) => refusal = reason,
                Err(reason @ RefusalReason::NameRepeats { .. }) => return Ok(Err(reason)),
                // What is found by looking through the log may lie in the part that only an older backup replays.
                Err(reason) if self.is_looked_for() => refusal = reason,
                // A backup whose own log is incomplete leads nowhere, and an older one to moments before the hole.
                Err(reason) if self.is_a_moment() && !log.holds(manifest) => refusal = reason,
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Ok(Err(refusal))
    }

    /// Whether nothing but the log says where the target is.
    fn is_looked_for(&self) -> bool {
        matches!(self.request.target, Target::Name(_) | Target::Xid(_))
    }

    fn is_a_moment(&self) -> bool {
        matches!(self.request.target, Target::Time(_))
    }

    /// Refuses a name that was given more than once, though the newest backup's log shows it only once.
    fn repeats(&self, branch: &Branch, backups: &[&Manifest]) -> Result<Option<RefusalReason>, SurveyError> {
        let (Target::Name(name), Some(oldest)) = (&self.request.target, backups.last()) else { return Ok(None) };
        let points = self.points(&self.log(branch, oldest)?, name)?;
        let at = points.iter().map(|point| point.end).collect();
        Ok((points.len() > 1).then(|| RefusalReason::NameRepeats { name: name.clone(), at }))
    }

    /// Backups on the branch, the newest first.
    fn backups(&self, branch: &Branch) -> Vec<&Manifest> {
        let wanted = |manifest: &&Manifest| {
            let envelope = &manifest.envelope;
            let named = self.request.backup.as_ref().is_none_or(|id| *id == envelope.backup);
            named && branch.holds(envelope.timeline, envelope.start_lsn, envelope.stop_lsn)
        };
        self.catalog.backups.iter().rev().filter(wanted).collect()
    }

    fn log(&self, branch: &Branch, manifest: &Manifest) -> Result<Log, SurveyError> {
        let first = self.catalog.segment_size().segment_of(manifest.envelope.start_lsn);
        let chain = branch.chain(self.catalog, first);
        let (readable, broken) = self.survey.readable(&chain.segments)?;
        let segments = chain.segments[..readable].to_vec();
        let left = segments.last().filter(|last| self.survey.is_partial(**last));
        let left_at = left.map(|left| self.catalog.left_at(*left));
        let last = match left_at {
            Some(left_at) => self.survey.last_record_until(&segments, left_at)?,
            None => self.survey.last_record(&segments)?,
        };
        let reach = last.map_or(manifest.envelope.start_lsn, |last| last.end);
        let ends = match (broken, chain.end) {
            (Some(at), _) => {
                let size = self.catalog.segment_size();
                // What begins where they end is damaged itself; otherwise they stop within the last one that was read.
                let begins = |name: &&SegmentName| name.number(size).is_ok_and(|number| number.start(size) == at);
                let damaged = chain.segments.get(readable).filter(begins).or(segments.last());
                damaged.map(|segment| RefusalReason::Broken { segment: *segment, at })
            }
            (None, end) => match self.survey.hole(&chain.segments, readable, end) {
                ChainEnd::Hole { missing, proof } => {
                    let time = self.survey.latest_time(&segments)?;
                    Some(RefusalReason::Hole { missing, proof: proof.to_string(), reach, time })
                }
                ChainEnd::Newest => None,
            },
        };
        Ok(Log { segments, left_at, ends, last })
    }

    fn point(&self, branch: &Branch, manifest: &Manifest, log: &Log) -> Answer<Point> {
        let stop = manifest.envelope.stop_lsn;
        let Some(last) = log.last.filter(|_| log.holds(manifest)) else {
            let end = log.last.map_or(manifest.envelope.start_lsn, |last| last.end);
            return Ok(Err(log.ends.clone().unwrap_or(RefusalReason::AfterEnd { end, time: None })));
        };
        if self.request.purpose == Purpose::Standby {
            return Ok(Ok(ending(last)));
        }
        match &self.request.target {
            Target::BackupEnd => {
                let needed_before = self.looked_for(manifest);
                let point = Point { record: manifest.envelope.start_lsn, reach: stop, needed_before, time: None };
                Ok(Ok(point))
            }
            Target::Latest => Ok(match self.log_goes_on(branch, log, last) {
                Some(reason) => Err(reason),
                None => Ok(ending(last)),
            }),
            Target::Lsn(lsn) => self.position(log, last, *lsn),
            Target::Time(moment) => self.moment(manifest, log, *moment),
            Target::Xid(xid) => self.transaction(manifest, log, *xid),
            Target::Name(name) => self.name(manifest, log, name),
            Target::BeforeDrop(_) | Target::BeforeLoss(_) => unreachable!("a drop is looked for in before_drop"),
        }
    }

    /// Returns how far PostgreSQL reads to end at the end of a backup: it stops before the first record behind it. A
    /// primary's backup has its own switch of the segment there. A standby's ends wherever the standby was, so its first
    /// record may lie in the next segment.
    ///
    /// Source: `recoveryStopsBefore` in `src/backend/access/transam/xlogrecovery.c`.
    fn looked_for(&self, manifest: &Manifest) -> Lsn {
        let (size, stop) = (self.catalog.segment_size(), manifest.envelope.stop_lsn);
        match BackupLabel::parse(manifest.root.backup_label.as_bytes()) {
            Ok(label) if label.from == BackupFrom::Standby => size.segment_ending_at(stop).next().end(size),
            _ => stop,
        }
    }

    /// Whether the target lies before the end of a backup, whatever the log after it holds.
    fn precedes(&self, manifest: &Manifest) -> bool {
        let envelope = &manifest.envelope;
        match self.request.target {
            Target::Lsn(lsn) => lsn < envelope.stop_lsn,
            // What was committed before the backup began is in the backup, and not in its log to be compared with.
            Target::Time(moment) if self.request.exclusive => moment <= envelope.started_at,
            Target::Time(moment) => moment < envelope.started_at,
            _ => false,
        }
    }

    /// What says that the newest record archived was not the newest one written.
    fn log_goes_on(&self, branch: &Branch, log: &Log, last: FoundRecord) -> Option<RefusalReason> {
        if let Some(reason) = &log.ends {
            return Some(reason.clone());
        }
        let size = self.catalog.segment_size();
        let children = self.catalog.timelines.iter().filter_map(|child| {
            let fork = child.history.as_ref()?.fork_of(branch.timeline())?;
            (fork > last.end).then_some((child.timeline, fork))
        });
        let (child, fork) = children.min_by_key(|(_, fork)| *fork)?;
        let missing = branch.segment(size.segment_of(last.end), size);
        // The child's first segment begins with a copy of what the parent wrote before the fork.
        let copied = missing.with_timeline(child);
        if self.catalog.holds(copied) {
            return None;
        }
        let proof = format!("timeline {child} forked off at {fork}");
        Some(RefusalReason::Hole { missing, proof, reach: last.end, time: last.time })
    }

    fn position(&self, log: &Log, last: FoundRecord, lsn: Lsn) -> Answer<Point> {
        let size = self.catalog.segment_size();
        let wanted = size.segment_ending_at(lsn);
        let held = log.segments.iter().rposition(|name| name.number(size) == Ok(wanted));
        let partial = log.segments.last().is_some_and(|last| self.survey.is_partial(*last));
        let Some(index) = held.filter(|_| lsn <= last.end || (log.ends.is_none() && !partial)) else {
            let after = RefusalReason::AfterEnd { end: last.end, time: last.time };
            return Ok(Err(log.ends.clone().unwrap_or(after)));
        };
        let until = if self.request.exclusive { Lsn::new(lsn.bytes().saturating_sub(1)) } else { lsn };
        let found = self.survey.last_record_until(&log.segments[..=index], until)?;
        Ok(found.map(ending).ok_or(RefusalReason::AfterEnd { end: last.end, time: last.time }))
    }

    fn moment(&self, manifest: &Manifest, log: &Log, moment: DateTime<Utc>) -> Answer<Point> {
        let stop = manifest.envelope.stop_lsn;
        let Some(moment) = PgTime::from_utc(moment) else {
            return Ok(Err(RefusalReason::NothingAfter { time: None }));
        };
        // From the backup's start: PostgreSQL looks at every record that it replays.
        let past = |time| time > moment || (self.request.exclusive && time == moment);
        match self.survey.first_past(&log.segments, past)?.filter(|found| log.counts(found)) {
            Some(found) if found.start < stop => Ok(Err(RefusalReason::BeforeBackup { earliest: stop })),
            Some(found) => Ok(Ok(self.before(log, found)?)),
            None => {
                let time = self.survey.latest_time(&log.segments)?;
                Ok(Err(log.ends.clone().unwrap_or(RefusalReason::NothingAfter { time })))
            }
        }
    }

    fn transaction(&self, manifest: &Manifest, log: &Log, xid: u32) -> Answer<Point> {
        let stop = manifest.envelope.stop_lsn;
        match self.survey.end_of_transaction(&log.segments, xid)?.filter(|found| log.counts(found)) {
            Some(found) if found.start < stop => Ok(Err(RefusalReason::BeforeBackup { earliest: stop })),
            Some(found) if self.request.exclusive => Ok(Ok(self.before(log, found)?)),
            Some(found) => Ok(Ok(ending(found))),
            None => Ok(Err(log.ends.clone().unwrap_or(RefusalReason::NoSuchXid { xid }))),
        }
    }

    /// The point that leaves a record out, and everything after it.
    fn before(&self, log: &Log, found: FoundRecord) -> Result<Point, SurveyError> {
        // Between two records there may be a page's header: the end of the last one is where recovery will say it stands.
        let size = self.catalog.segment_size();
        let held = log.segments.iter().rposition(|name| name.number(size) == Ok(size.segment_of(found.start)));
        let before = self.survey.last_record_until(&log.segments[..=held.unwrap_or(0)], found.start)?;
        let reach = before.map_or(found.start, |before| before.end);
        Ok(Point { record: found.start, reach, needed_before: found.end, time: found.time })
    }

    /// The restore points of a name.
    fn points(&self, log: &Log, name: &str) -> Result<Vec<FoundRecord>, SurveyError> {
        let mut points = self.survey.restore_points(&log.segments, name)?;
        points.retain(|point| log.counts(point));
        Ok(points)
    }

    fn name(&self, manifest: &Manifest, log: &Log, name: &str) -> Answer<Point> {
        let stop = manifest.envelope.stop_lsn;
        let points = self.points(log, name)?;
        let (after, before): (Vec<_>, Vec<_>) = points.into_iter().partition(|point| point.end > stop);
        Ok(match (after.as_slice(), before.as_slice()) {
            ([only], []) => Ok(ending(*only)),
            ([], []) => Err(log.ends.clone().unwrap_or(RefusalReason::NoSuchName { name: name.to_owned() })),
            ([], _) => Err(RefusalReason::BeforeBackup { earliest: stop }),
            // PostgreSQL stops at the first one that it replays.
            (after, before) => {
                let at = before.iter().chain(after).map(|point| point.end).collect();
                Err(RefusalReason::NameRepeats { name: name.to_owned(), at })
            }
        })
    }

    /// Returns the last commit that is replayed on the way to a point, and the time that the server will give for the last
    /// transaction it replayed.
    ///
    /// Source: `recoveryStopsAfter` in `src/backend/access/transam/xlogrecovery.c`: a target by position ends recovery
    /// before the time of the record there is noted.
    fn last_transactions(
        &self,
        chain: &[SegmentName],
        start: Lsn,
        point: Point,
    ) -> Result<(Option<EndedTransaction>, Option<PgTime>), SurveyError> {
        let is_replayed = |ended: &EndedTransaction| ended.record >= start && ended.end <= point.reach;
        // Ids below 3 are no transaction's own: such a record changes no row.
        let commit = self
            .survey
            .last_transaction(chain, |ended| is_replayed(ended) && ended.kind.commits() && ended.xid >= 3)?;
        let by_position = matches!(self.request.target, Target::Latest | Target::Lsn(_));
        let is_noted = |ended: &EndedTransaction| !(by_position && ended.record >= point.record);
        let noted = self.survey.last_transaction(chain, |ended| is_replayed(ended) && is_noted(ended))?;
        Ok((commit, noted.and_then(|noted| noted.time)))
    }

    fn plan(&self, candidate: Candidate) -> Result<Plan, PlanError> {
        let Candidate { branch, backup, mut chain, point, removed } = candidate;
        let manifest = self.catalog.backup(&backup).expect("it came from this catalogue").clone();
        let size = self.catalog.segment_size();
        chain.retain(|name| name.number(size).is_ok_and(|number| number.start(size) < point.needed_before));
        let demands = self.survey.demands(&chain, manifest.envelope.start_lsn, point.needed_before)?;
        let recorded = demands.parameters.into_iter().map(limits_of);
        let limits = recorded.fold(manifest.root.limits, Limits::max);
        let partial = chain.last().map(|last| self.survey.partial(*last)).transpose()?.flatten();
        let (last_commit, last_seen) = self.last_transactions(&chain, manifest.envelope.start_lsn, point)?;
        Ok(Plan {
            removed,
            last_commit,
            last_seen,
            lane: self.catalog.lane,
            purpose: self.request.purpose,
            target: self.request.target.clone(),
            exclusive: self.request.exclusive,
            path: branch.stretches().to_vec(),
            point,
            wal_stored_bytes: chain
                .iter()
                .filter_map(|name| self.catalog.segment(*name))
                .map(|one| one.stored_bytes)
                .sum(),
            wal: chain,
            partial,
            limits,
            tablespaces_created: demands.tablespaces,
            manifest,
        })
    }
}

/// The point that includes a record and nothing after it.
fn ending(record: FoundRecord) -> Point {
    Point { record: record.start, reach: record.end, needed_before: record.end, time: record.time }
}

fn limits_of(found: WalParameters) -> Limits {
    let positive = |value: i32| u32::try_from(value).unwrap_or(0);
    Limits {
        max_connections: positive(found.max_connections),
        max_worker_processes: positive(found.max_worker_processes),
        max_wal_senders: positive(found.max_wal_senders),
        max_prepared_transactions: positive(found.max_prepared_transactions),
        max_locks_per_transaction: positive(found.max_locks_per_transaction),
    }
}

impl Plan {
    /// The timeline that recovery ends on.
    pub fn timeline(&self) -> TimelineId {
        self.path.last().expect("a branch has at least one part").timeline
    }

    /// What `wal fetch` must know of it; `target` is the line of configuration that sets the target.
    pub fn for_fetch(&self, target: String) -> RecoveryPlan {
        let stretch = |part: &Stretch| PlannedStretch { timeline: part.timeline, begin: part.begin, end: part.end };
        RecoveryPlan {
            primary: None,
            version: RECOVERY_PLAN_VERSION,
            system_id: self.manifest.root.system_id,
            lane: self.lane.to_string(),
            backup: self.manifest.envelope.backup.clone(),
            segment_size: self.manifest.envelope.segment_size,
            path: self.path.iter().map(stretch).collect(),
            needed_before: self.point.needed_before,
            partial: self.partial,
            target,
        }
    }
}

mod before_drop;
mod before_loss;
mod branches;
mod error;
#[cfg(test)]
mod matrix;
#[cfg(test)]
mod tests;
