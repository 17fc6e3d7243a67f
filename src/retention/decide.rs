//! What becomes of every object: kept or removed, each with its reason. Pure.
//!
//! What a kept backup needs is found from what its manifests name, and not from where it lies: packs may be another
//! backup's, and log another timeline's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::RangeInclusive;

use chrono::{DateTime, Utc};

use super::holdings::{HeldBackup, LaneHoldings};
use super::policy::{Go, Judged, Policy, judge, words_of};
use crate::catalog::Branch;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNo};
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::repo::{LaneId, ObjectName, Purpose, StoredReading};

/// What becomes of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Keep(Because),
    /// It goes.
    Go(Because),
}

impl Verdict {
    /// Whether it goes.
    pub fn goes(&self) -> bool {
        matches!(self, Verdict::Go(_))
    }

    /// Why.
    pub fn because(&self) -> &Because {
        match self {
            Verdict::Keep(because) | Verdict::Go(because) => because,
        }
    }
}

/// Why an object stays or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// Its backup is judged so.
    Backup(Judged),
    /// A backup that is kept needs it.
    NeededBy(String),
    /// A backup that goes needed it, and none that is kept does.
    Unneeded(String),
    /// A backup that was not committed left it, and none is at work any more that could.
    Uncommitted,
    /// No manifest names it yet: it may belong to a backup at work.
    Young,
    /// A backup that is kept is restored along it.
    Log,
    /// A restore or a recovery reads it now.
    Read(String),
    /// No backup that is kept needs it, and it is older than the log that is kept.
    OldLog,
    /// No backup that is kept leads to it; it is younger than the log that is kept.
    Unreached,
    /// Histories tell the branches apart for ever.
    History,
    /// It is not known where its timeline comes from.
    NoHistory,
    /// The segments that it tells of are there.
    Index,
    /// The segments that it told of go, or are gone.
    OldIndex,
    /// A later record took its place.
    Superseded,
    /// It says who did what: small, and kept.
    Paperwork,
    /// An operator decides about it.
    Contested,
    /// This walvault does not know what it is.
    Unknown,
    /// The lane cannot be judged.
    Blocked,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Because::Backup(judged) => match judged.goes {
                Some(go) => return go.fmt(f),
                None => {
                    let keeps: Vec<String> = judged.keeps.iter().map(ToString::to_string).collect();
                    return f.write_str(&keeps.join("; "));
                }
            },
            Because::NeededBy(backup) => return write!(f, "backup {backup} needs it"),
            Because::Unneeded(backup) => return write!(f, "backup {backup} goes, and no other needs it"),
            Because::Uncommitted => "left by a backup that was not committed",
            Because::Young => "no manifest names it yet",
            Because::Read(words) => return f.write_str(words),
            Because::Log => "log that a backup is restored along",
            Because::OldLog => "log that no backup needs",
            Because::Unreached => "no backup leads to it yet",
            Because::History => "histories are kept for ever",
            Because::NoHistory => "the history of its timeline is not archived",
            Because::Index => "an index of segments that are kept",
            Because::OldIndex => "an index of segments that are not kept",
            Because::Superseded => "a later record took its place",
            Because::Paperwork => "says who did what",
            Because::Contested => "an operator decides about it",
            Because::Unknown => "unknown",
            Because::Blocked => "nothing of this lane is judged",
        };
        f.write_str(text)
    }
}

/// Why nothing of a lane may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// No backup is listed.
    NoBackup,
    /// A backup cannot be read, and so it is not known what it needs.
    Unreadable {
        /// The backup.
        backup: String,
        /// Why.
        problem: String,
    },
}

/// What becomes of one lane.
#[derive(Clone, Debug)]
pub struct LanePlan {
    /// The lane.
    pub lane: LaneId,
    /// Why nothing goes, if so.
    pub blocked: Option<Blocked>,
    /// The lane that took over, if one did.
    pub successor: Option<LaneId>,
    /// Its backups.
    pub backups: BTreeMap<String, Judged>,
    /// One for each object, in their order.
    pub verdicts: Vec<Verdict>,
}

/// Decides about every object of every lane. `forgotten` go whatever the policy says, unless they are pinned.
pub fn decide(
    lanes: &[LaneHoldings],
    policy: &Policy,
    forgotten: &BTreeSet<String>,
    now: DateTime<Utc>,
) -> Vec<LanePlan> {
    let judged = judge(lanes, policy, forgotten, now);
    let plan = |(lane, (backups, successor)): (&LaneHoldings, (BTreeMap<String, Judged>, Option<LaneId>))| {
        let blocked = blocked(lane, forgotten);
        let verdicts = match &blocked {
            Some(_) => vec![Verdict::Keep(Because::Blocked); lane.objects.len()],
            None => Decision::new(lane, policy, forgotten, &backups, successor, now).verdicts(),
        };
        LanePlan { lane: lane.lane, blocked, successor, backups, verdicts }
    };
    lanes.iter().zip(judged).map(plan).collect()
}

fn blocked(lane: &LaneHoldings, forgotten: &BTreeSet<String>) -> Option<Blocked> {
    if let Some((backup, problem)) = lane.unreadable.iter().find(|(backup, _)| !forgotten.contains(*backup)) {
        return Some(Blocked::Unreadable { backup: backup.clone(), problem: problem.clone() });
    }
    // All its backups went, and that was written down before they did.
    let emptied = lane.tombstones.last().is_some_and(|stone| {
        let gone = |kept: &String| lane.tombstones.iter().any(|stone| stone.tombstone.condemns(kept));
        stone.tombstone.kept.iter().all(gone)
    });
    (lane.backups.is_empty() && lane.unreadable.is_empty() && !emptied).then_some(Blocked::NoBackup)
}

/// Segments of each timeline that are needed, by their numbers, both ends included.
type Needed = BTreeMap<TimelineId, Vec<(u64, u64)>>;

struct Decision<'a> {
    lane: &'a LaneHoldings,
    policy: &'a Policy,
    forgotten: &'a BTreeSet<String>,
    judged: &'a BTreeMap<String, Judged>,
    now: DateTime<Utc>,
    needed: Needed,
    /// Log that was stored later stays.
    horizon: DateTime<Utc>,
    /// Packs that manifests name: one of a backup that is kept, if any is.
    named: HashMap<(&'a str, u32), (&'a str, bool)>,
}

impl<'a> Decision<'a> {
    fn new(
        lane: &'a LaneHoldings,
        policy: &'a Policy,
        forgotten: &'a BTreeSet<String>,
        judged: &'a BTreeMap<String, Judged>,
        successor: Option<LaneId>,
        now: DateTime<Utc>,
    ) -> Self {
        let kept = |backup: &&HeldBackup| judged[&backup.id].is_kept();
        let continuous = |backup: &&HeldBackup| judged[&backup.id].continuous;
        let mut needed = Needed::new();
        for branch in &lane.branches {
            let on = |backup: &&HeldBackup| branch.holds(backup.timeline, backup.start, backup.stop);
            let own = || lane.backups.iter().filter(kept).filter(on);
            let from = own().filter(continuous).map(|backup| backup.own_segments(lane.size).0).min();
            if let Some(from) = from {
                need(&mut needed, lane, branch, from, None);
            }
            for backup in own() {
                let (first, last) = backup.own_segments(lane.size);
                need(&mut needed, lane, branch, first, Some(last));
            }
        }
        let horizon = if successor.is_some() { now } else { horizon(lane, judged) };
        let mut named: HashMap<(&str, u32), (&str, bool)> = HashMap::new();
        for backup in &lane.backups {
            let stays = judged[&backup.id].is_kept();
            for (owner, number) in backup.packs.keys() {
                let known = named.entry((&**owner, *number)).or_insert((&backup.id, stays));
                if stays && !known.1 {
                    *known = (&backup.id, true);
                }
            }
        }
        Self { lane, policy, forgotten, judged, now, needed, horizon, named }
    }

    fn verdicts(&self) -> Vec<Verdict> {
        let mut last_lease: BTreeMap<Purpose, u32> = BTreeMap::new();
        let mut last_pin: BTreeMap<&str, u32> = BTreeMap::new();
        let mut last_reading: BTreeMap<&str, u32> = BTreeMap::new();
        let mut last_sign: BTreeMap<(TimelineId, &str), u32> = BTreeMap::new();
        let mut folders: BTreeMap<(TimelineId, String), bool> = BTreeMap::new();
        for object in &self.lane.objects {
            match &object.name {
                ObjectName::Lease { purpose, number } => {
                    let last = last_lease.entry(*purpose).or_default();
                    *last = (*last).max(*number);
                }
                ObjectName::Pin { backup, number } => {
                    let last = last_pin.entry(backup).or_default();
                    *last = (*last).max(*number);
                }
                ObjectName::Reading { holder, number } => {
                    let last = last_reading.entry(holder).or_default();
                    *last = (*last).max(*number);
                }
                ObjectName::Wal(WalFileName::Segment(segment)) => {
                    let stays = !self.log(*segment, object.stored_at).goes();
                    *folders.entry((segment.timeline(), segment.middle())).or_default() |= stays;
                }
                ObjectName::Sign { timeline, writer, number } => {
                    let last = last_sign.entry((*timeline, writer)).or_default();
                    *last = (*last).max(*number);
                }
                _ => {}
            }
        }
        let superseded = |last: Option<&u32>, number: u32| match last.is_some_and(|last| number < *last) {
            true if self.policy.is_set() => Verdict::Go(Because::Superseded),
            _ => Verdict::Keep(Because::Paperwork),
        };
        let verdict = |object: &crate::repo::Object| match &object.name {
            ObjectName::Manifest { backup, .. } => self.manifest(backup),
            ObjectName::Pack { backup, number } => self.pack(backup, *number, object.stored_at),
            ObjectName::Wal(WalFileName::History(_)) => Verdict::Keep(Because::History),
            ObjectName::Wal(WalFileName::Other(_)) | ObjectName::Unknown => Verdict::Keep(Because::Unknown),
            ObjectName::Wal(_) | ObjectName::Partial(_) => match object.segment() {
                Some(segment) => self.log(segment, object.stored_at),
                None => Verdict::Keep(Because::Unknown),
            },
            ObjectName::Index { timeline, middle } => {
                let mut stay = folders.range(folders_of(*timeline, middle)).map(|(_, stays)| *stays).peekable();
                let known = stay.peek().is_some();
                match if known { stay.any(|stays| stays) } else { !self.policy.is_set() } {
                    true => Verdict::Keep(Because::Index),
                    false => Verdict::Go(Because::OldIndex),
                }
            }
            ObjectName::Lease { purpose, number } => superseded(last_lease.get(purpose), *number),
            ObjectName::Pin { backup, number } => superseded(last_pin.get(backup.as_str()), *number),
            ObjectName::Sign { timeline, writer, number } => {
                superseded(last_sign.get(&(*timeline, writer.as_str())), *number)
            }
            ObjectName::Reading { holder, number } => {
                self.reading(holder, *number, last_reading.get(holder.as_str()), object.stored_at)
            }
            ObjectName::Contested { .. } => Verdict::Keep(Because::Contested),
            ObjectName::Lane
            | ObjectName::Owner
            | ObjectName::Resolution
            | ObjectName::Hole
            | ObjectName::Void { .. }
            | ObjectName::Tombstone { .. } => Verdict::Keep(Because::Paperwork),
        };
        self.lane.objects.iter().map(verdict).collect()
    }

    fn manifest(&self, backup: &str) -> Verdict {
        let forgotten =
            || Judged { keeps: Vec::new(), goes: Some(Go::Forgotten), restorable: false, continuous: false };
        match self.judged.get(backup) {
            Some(judged) if judged.is_kept() => Verdict::Keep(Because::Backup(judged.clone())),
            Some(judged) => Verdict::Go(Because::Backup(judged.clone())),
            None if self.lane.unreadable.contains_key(backup) => Verdict::Go(Because::Backup(forgotten())),
            // Declared void.
            None => Verdict::Keep(Because::Paperwork),
        }
    }

    fn pack(&self, backup: &str, number: u32, stored_at: DateTime<Utc>) -> Verdict {
        match self.named.get(&(backup, number)) {
            Some((user, true)) => return Verdict::Keep(Because::NeededBy((*user).to_owned())),
            Some((user, false)) => return Verdict::Go(Because::Unneeded((*user).to_owned())),
            None => {}
        }
        // What it needed is not known; what nobody else needs was its own.
        if self.lane.unreadable.contains_key(backup) && self.forgotten.contains(backup) {
            return Verdict::Go(Because::Unneeded(backup.to_owned()));
        }
        let grace = chrono::Duration::from_std(self.policy.grace).unwrap_or(chrono::Duration::MAX);
        let young = self.lane.at_work || self.now - stored_at < grace;
        match young || !self.policy.is_set() {
            true => Verdict::Keep(Because::Young),
            false => Verdict::Go(Because::Uncommitted),
        }
    }

    /// The last record of a reader stays while it reads, and a young one in any case: it may have come since readers were
    /// looked for.
    fn reading(&self, holder: &str, number: u32, last: Option<&u32>, stored_at: DateTime<Utc>) -> Verdict {
        let is_last = last.is_none_or(|last| *last <= number);
        let reads = self.lane.readings.iter().any(|reading| reading.holder == holder);
        let young = self.now - stored_at < chrono::Duration::days(1);
        match is_last && (reads || young) || !self.policy.is_set() {
            true => Verdict::Keep(Because::Paperwork),
            false => Verdict::Go(Because::Superseded),
        }
    }

    fn log(&self, segment: SegmentName, stored_at: DateTime<Utc>) -> Verdict {
        let timeline = segment.timeline();
        let Ok(number) = segment.number(self.lane.size) else { return Verdict::Keep(Because::Unknown) };
        if !self.lane.branches.iter().any(|branch| branch.timeline() == timeline) {
            return Verdict::Keep(Because::NoHistory);
        }
        let ranges = self.needed.get(&timeline).map_or(&[][..], Vec::as_slice);
        if ranges.iter().any(|(from, through)| (*from..=*through).contains(&number.0)) {
            return Verdict::Keep(Because::Log);
        }
        let reads = |reading: &&StoredReading| {
            reading.needs().is_some_and(|needs| needs.wal.iter().any(|range| range.holds(segment)))
        };
        if let Some(reading) = self.lane.readings.iter().find(reads) {
            return Verdict::Keep(Because::Read(words_of(reading)));
        }
        match self.policy.is_set() && stored_at < self.horizon {
            true => Verdict::Go(Because::OldLog),
            false => Verdict::Keep(Because::Unreached),
        }
    }
}

/// Adds the segments of a branch from one to another, or to its end, under the names that they have on it.
fn need(needed: &mut Needed, lane: &LaneHoldings, branch: &Branch, from: SegmentNo, through: Option<SegmentNo>) {
    let begin = |begin: Lsn| if begin == Lsn::INVALID { 0 } else { lane.size.segment_of(begin).0 };
    let stretches = branch.stretches();
    for (place, stretch) in stretches.iter().enumerate() {
        let first = begin(stretch.begin).max(from.0);
        // The segment in which a timeline begins is the child's.
        let next = stretches.get(place + 1..).unwrap_or_default().iter().map(|next| begin(next.begin)).min();
        let last = match next {
            Some(0) => continue,
            Some(next) => next - 1,
            None => u64::MAX,
        };
        let last = through.map_or(last, |through| last.min(through.0));
        if first <= last {
            let ranges = needed.entry(stretch.timeline).or_default();
            if !ranges.contains(&(first, last)) {
                ranges.push((first, last));
            }
        }
    }
}

/// Returns when the oldest segment of the log that is kept whole was stored: what no backup needs and is younger may be
/// the beginning of a branch that gets its first backup yet.
fn horizon(lane: &LaneHoldings, judged: &BTreeMap<String, Judged>) -> DateTime<Utc> {
    let continuous = lane.backups.iter().filter(|backup| judged[&backup.id].continuous);
    let firsts: BTreeSet<SegmentName> = continuous
        .flat_map(|backup| {
            let first = backup.own_segments(lane.size).0;
            let own = SegmentName::from_number(backup.timeline, first, lane.size);
            let on = lane.branches.iter().filter(|branch| branch.holds(backup.timeline, backup.start, backup.stop));
            on.map(move |branch| branch.segment(first, lane.size)).chain([own])
        })
        .collect();
    let stored = lane.objects.iter().filter(|object| object.segment().is_some_and(|own| firsts.contains(&own)));
    stored.map(|object| object.stored_at).min().unwrap_or(DateTime::UNIX_EPOCH)
}

/// Returns the folders that an index is of: one, or those from the first to the last that a gathered one names.
pub(super) fn folders_of(timeline: TimelineId, middle: &str) -> RangeInclusive<(TimelineId, String)> {
    let (first, last) = middle.split_once('-').unwrap_or((middle, middle));
    (timeline, first.to_owned())..=(timeline, last.to_owned())
}
