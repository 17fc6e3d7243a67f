//! Doing what was decided, in an order in which every moment is a sound one.
//!
//! Tombstone, then wait, then look again, then remove: manifests first, then log, and packs last. Whoever dies in between
//! leaves something that nothing names, and the next run finishes. What was committed, pinned or begun since the tombstone
//! is seen by the second look; what could be committed after it is fenced off.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::RetentionError;
use super::decide::folders_of;
use super::decide::{LanePlan, decide};
use super::holdings::{LaneHoldings, survey, survey_at};
use super::policy::Policy;
use crate::clock;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::repo::{
    Fenced, Lane, LaneId, Lease, Object, ObjectName, PackRange, Purpose, Removed, SegmentRange, TOMBSTONE_VERSION,
    Tombstone,
};
use crate::store::Created;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// What is kept; none but [`Policy::grace`] if only `forget` goes.
    pub policy: Policy,
    /// A backup that goes whatever the policy says, and its lane.
    pub forget: Option<(LaneId, String)>,
    /// This host, for people.
    pub host: String,
}

/// What became of one lane.
#[derive(Clone, Debug)]
pub struct LaneOutcome {
    /// What was decided.
    pub plan: LanePlan,
    /// What it was decided of.
    pub holdings: LaneHoldings,
    /// Objects that are named by a tombstone and wait for its time, and their bytes.
    pub waiting: (u64, u64),
    /// When the first of them may go, by the store's clock.
    pub due: Option<DateTime<Utc>>,
    /// What was removed.
    pub removed: Removed,
    /// Why nothing was removed now, if so.
    pub deferred: Option<Deferred>,
}

/// Somebody is at work who may need whatever there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deferred {
    /// What is done: `backup` or `restore`.
    pub what: &'static str,
    /// Where.
    pub host: String,
    /// Until when at least, by the store's clock.
    pub until: DateTime<Utc>,
}

impl Deferred {
    fn of(holdings: &LaneHoldings) -> Option<Self> {
        if let Some(lease) = holdings.lease.as_ref().filter(|_| holdings.at_work) {
            let host = lease.record.as_ref().map_or("an unknown host", |record| record.host.as_str());
            return Some(Self { what: "backup", host: host.to_owned(), until: lease.until() });
        }
        let reading = holdings.reads_all()?;
        Some(Self { what: "restore", host: reading.host().to_owned(), until: reading.until() })
    }
}

/// Decides, and does nothing.
///
/// # Errors
/// [`RetentionError`] if what the lanes hold cannot be found out, or cannot be believed.
pub fn plan(lanes: &[Lane], request: &Request) -> Result<Vec<(LaneHoldings, LanePlan)>, RetentionError> {
    let (holdings, now) = survey(lanes)?;
    Ok(decided(holdings, request, now)?.into_iter().collect())
}

/// As [`plan`], of one lane and by a clock that is at hand: nothing is written to find out the store's.
pub(super) fn plan_at(
    lane: &Lane,
    request: &Request,
    now: DateTime<Utc>,
) -> Result<Option<(LaneHoldings, LanePlan)>, RetentionError> {
    Ok(decided(vec![survey_at(lane, now)?], request, now)?.into_iter().next())
}

fn decided(
    holdings: Vec<LaneHoldings>,
    request: &Request,
    now: DateTime<Utc>,
) -> Result<Vec<(LaneHoldings, LanePlan)>, RetentionError> {
    if holdings.iter().all(|lane| lane.backups.is_empty() && lane.unreadable.is_empty()) {
        return Err(RetentionError::NoBackup);
    }
    holdings.iter().try_for_each(|lane| expect_all_there(lane, request))?;
    let forgotten: BTreeSet<String> = holdings
        .iter()
        .flat_map(|lane| lane.tombstones.iter().flat_map(|stone| stone.tombstone.forgotten.clone()))
        .chain(request.forget.iter().map(|(_, backup)| backup.clone()))
        .collect();
    let plans = decide(&holdings, &request.policy, &forgotten, now);
    Ok(holdings.into_iter().zip(plans).collect())
}

/// A listing that lacks a backup which was there, and which nobody condemned, is not to be believed.
fn expect_all_there(lane: &LaneHoldings, request: &Request) -> Result<(), RetentionError> {
    let Some(last) = lane.tombstones.last() else { return Ok(()) };
    let there = |id: &String| lane.backups.iter().any(|backup| backup.id == *id) || lane.unreadable.contains_key(id);
    let condemned = |id: &String| lane.tombstones.iter().any(|stone| stone.tombstone.condemns(id));
    let forgotten = |id: &String| request.forget.as_ref().is_some_and(|(_, forgotten)| forgotten == id);
    let lost = last.tombstone.kept.iter().find(|id| !there(id) && !condemned(id) && !forgotten(id));
    match lost {
        Some(backup) => Err(RetentionError::Vanished { backup: backup.clone() }),
        None => Ok(()),
    }
}

/// Condemns what is to go, and removes what was condemned long enough ago.
///
/// # Errors
/// As [`plan`]; also if another one is at work, or the store fails: the next run finishes.
pub fn perform(lanes: &[Lane], request: &Request) -> Result<Vec<LaneOutcome>, RetentionError> {
    let leases = lanes.iter().map(|lane| Lease::take(lane, Purpose::Expire)).collect::<Result<Vec<_>, _>>()?;
    let (holdings, now) = survey(lanes)?;
    let decided_first = decided(holdings, request, now)?;
    // A backup at work would find that what it shares is condemned, and give up.
    for (lane, (holdings, plan)) in lanes.iter().zip(&decided_first).filter(|(_, (holdings, _))| !holdings.at_work) {
        condemn(lane, holdings, plan, request)?;
    }
    // Everything anew: leases, manifests and pins that came before the tombstones are seen now.
    let (holdings, now) = survey(lanes)?;
    let decided_again = decided(holdings, request, now)?;
    let mut outcomes = Vec::new();
    for ((lane, lease), (holdings, plan)) in lanes.iter().zip(&leases).zip(decided_again) {
        outcomes.push(remove(lane, lease, holdings, plan, request, now)?);
    }
    Ok(outcomes)
}

/// Says what goes, if a tombstone does not say it already.
fn condemn(lane: &Lane, holdings: &LaneHoldings, plan: &LanePlan, request: &Request) -> Result<(), RetentionError> {
    let stones = &holdings.tombstones;
    let going = || holdings.objects.iter().zip(&plan.verdicts).filter(|(_, verdict)| verdict.goes());
    let known = Condemned::of(holdings);
    let fresh: Vec<&Object> =
        going().map(|(object, _)| object).filter(|object| known.since(object).is_none()).collect();
    let mut backups: Vec<String> = Vec::new();
    let mut packs: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut segments: BTreeSet<SegmentName> = BTreeSet::new();
    for object in fresh {
        match &object.name {
            ObjectName::Manifest { backup, .. } if !backups.contains(backup) => backups.push(backup.clone()),
            ObjectName::Pack { backup, number } => packs.entry(backup.to_string()).or_default().push(*number),
            _ => segments.extend(object.segment()),
        }
    }
    let own = request.forget.iter().filter(|(id, _)| *id == lane.id()).map(|(_, backup)| backup.clone());
    let forgotten: Vec<String> =
        own.filter(|id| !stones.iter().any(|stone| stone.tombstone.forgotten.contains(id))).collect();
    if backups.is_empty() && forgotten.is_empty() && packs.is_empty() && segments.is_empty() {
        return Ok(());
    }
    let before = stones.iter().flat_map(|stone| stone.tombstone.expired.iter().chain(&stone.tombstone.wal));
    let kept = holdings.backups.iter().map(|backup| &backup.id).chain(holdings.unreadable.keys());
    let stays = |id: &&String| {
        !backups.contains(id) && !forgotten.contains(id) && !stones.iter().any(|stone| stone.tombstone.condemns(id))
    };
    let tombstone = Tombstone {
        version: TOMBSTONE_VERSION,
        host: request.host.clone(),
        decided_at: clock::now(),
        kept: kept.filter(stays).cloned().collect(),
        packs: packs.into_iter().flat_map(|(backup, numbers)| pack_ranges(&backup, numbers)).collect(),
        wal: SegmentRange::of(segments, holdings.size),
        expired: SegmentRange::merged(before.copied(), holdings.size),
        backups,
        forgotten,
    };
    let number = stones.last().map_or(1, |last| last.number.saturating_add(1));
    match lane.create_tombstone(number, &tombstone)? {
        Created::New => Ok(()),
        // Ours, of a reply that was lost, says the same as what is read next; another's is obeyed like any other.
        Created::Existing => Ok(()),
    }
}

fn pack_ranges(backup: &str, mut numbers: Vec<u32>) -> Vec<PackRange> {
    numbers.sort_unstable();
    let mut ranges: Vec<PackRange> = Vec::new();
    for number in numbers {
        match ranges.last_mut().filter(|last| last.through.checked_add(1) == Some(number)) {
            Some(last) => last.through = number,
            None => ranges.push(PackRange { backup: backup.to_owned(), from: number, through: number }),
        }
    }
    ranges
}

/// Returns what tells of an object of value whether a tombstone names it.
pub(super) fn condemned(holdings: &LaneHoldings) -> impl Fn(&Object) -> bool + '_ {
    let known = Condemned::of(holdings);
    move |object| known.since(object).is_some_and(|since| since > DateTime::UNIX_EPOCH)
}

/// When objects were condemned.
struct Condemned<'a> {
    holdings: &'a LaneHoldings,
    /// Of each folder of segments, the latest; `None` if one is not.
    folders: BTreeMap<(TimelineId, String), Option<DateTime<Utc>>>,
}

impl<'a> Condemned<'a> {
    fn of(holdings: &'a LaneHoldings) -> Self {
        let mut condemned = Self { holdings, folders: BTreeMap::new() };
        let mut folders: BTreeMap<(TimelineId, String), Option<DateTime<Utc>>> = BTreeMap::new();
        for object in &holdings.objects {
            if let ObjectName::Wal(WalFileName::Segment(segment)) = &object.name {
                let since = condemned.since(object);
                let folder = folders.entry((segment.timeline(), segment.middle())).or_insert(since);
                *folder = folder.zip(since).map(|(a, b)| a.max(b));
            }
        }
        condemned.folders = folders;
        condemned
    }

    /// Returns since when an object is condemned, by the store's clock; what needs no tombstone is since ever.
    fn since(&self, object: &Object) -> Option<DateTime<Utc>> {
        let stones = self.holdings.tombstones.iter();
        let first = |says: &dyn Fn(&Tombstone) -> bool| {
            stones.clone().find(|stone| says(&stone.tombstone)).map(|stone| stone.stored_at)
        };
        match &object.name {
            ObjectName::Manifest { backup, .. } => first(&|stone| stone.condemns(backup)),
            ObjectName::Pack { backup, number } => first(&|stone| stone.condemns_pack(backup, *number)),
            // A hint, and of nothing that is there.
            ObjectName::Index { timeline, middle } => {
                let mut of = self.folders.range(folders_of(*timeline, middle)).map(|(_, since)| *since);
                of.try_fold(DateTime::UNIX_EPOCH, |last, since| Some(last.max(since?)))
            }
            name if is_paperwork(name) => Some(DateTime::UNIX_EPOCH),
            _ => object.segment().and_then(|segment| first(&|stone| stone.condemns_segment(segment))),
        }
    }
}

fn remove(
    lane: &Lane,
    lease: &Lease,
    holdings: LaneHoldings,
    plan: LanePlan,
    request: &Request,
    now: DateTime<Utc>,
) -> Result<LaneOutcome, RetentionError> {
    let grace = chrono::Duration::from_std(request.policy.grace).unwrap_or(chrono::Duration::MAX);
    let mut outcome = LaneOutcome {
        waiting: (0, 0),
        due: None,
        removed: Removed::default(),
        deferred: Deferred::of(&holdings),
        plan,
        holdings,
    };
    let LaneOutcome { plan, holdings, .. } = &outcome;
    let known = Condemned::of(holdings);
    let mut due: Vec<&Object> = Vec::new();
    let (mut waiting, mut first_due) = ((0, 0), None);
    for (object, _) in holdings.objects.iter().zip(&plan.verdicts).filter(|(_, verdict)| verdict.goes()) {
        let Some(since) = known.since(object) else { continue };
        let at = since.checked_add_signed(grace).unwrap_or(DateTime::<Utc>::MAX_UTC);
        if at <= now && outcome.deferred.is_none() {
            due.push(object);
        } else if since > DateTime::UNIX_EPOCH {
            waiting = (waiting.0 + 1, waiting.1 + object.bytes);
            first_due = Some(first_due.map_or(at, |first: DateTime<Utc>| first.min(at)));
        }
    }
    let removed = match outcome.deferred {
        Some(_) => Removed::default(),
        None => {
            if !due.is_empty() {
                fence(lane, holdings)?;
            }
            remove_in_order(lane, lease, holdings, &due, now - grace)?
        }
    };
    (outcome.waiting, outcome.due, outcome.removed) = (waiting, first_due, removed);
    Ok(outcome)
}

/// Makes sure that nothing which is about to go can be named by a manifest that comes late: every backup that has stored
/// something, or has said its name, is committed or never will be.
fn fence(lane: &Lane, holdings: &LaneHoldings) -> Result<(), RetentionError> {
    let mut late: BTreeSet<&str> = BTreeSet::new();
    let mut known: BTreeSet<&str> = holdings.backups.iter().map(|backup| backup.id.as_str()).collect();
    known.extend(holdings.unreadable.keys().map(String::as_str));
    known.extend(
        holdings
            .tombstones
            .iter()
            .flat_map(|stone| stone.tombstone.backups.iter().chain(&stone.tombstone.forgotten).map(String::as_str)),
    );
    for object in &holdings.objects {
        match &object.name {
            ObjectName::Pack { backup, .. } => drop(late.insert(backup)),
            ObjectName::Void { backup } => drop(known.insert(backup)),
            _ => {}
        }
    }
    // It may have stored nothing yet, and name only what is another's.
    late.extend(holdings.lease.as_ref().and_then(|lease| lease.record.as_ref()?.backup.as_deref()));
    for id in late.difference(&known) {
        if lane.fence(id)? == Fenced::Committed {
            return Err(RetentionError::Moved { backup: (*id).to_owned() });
        }
    }
    Ok(())
}

fn remove_in_order(
    lane: &Lane,
    lease: &Lease,
    holdings: &LaneHoldings,
    due: &[&Object],
    old: DateTime<Utc>,
) -> Result<Removed, RetentionError> {
    let mut removed = Removed::default();
    // What names something goes before it.
    let turns: [fn(&ObjectName) -> bool; 3] = [
        |name| matches!(name, ObjectName::Manifest { .. }),
        |name| !matches!(name, ObjectName::Manifest { .. } | ObjectName::Pack { .. }) && !is_paperwork(name),
        |name| matches!(name, ObjectName::Pack { .. }),
    ];
    for turn in turns {
        let objects: Vec<&Object> = due.iter().copied().filter(|object| turn(&object.name)).collect();
        take(lane, lease, &objects, &mut removed)?;
        // A manifest that stays names what would go next.
        if !removed.refused.is_empty() {
            return Ok(removed);
        }
    }
    // The last one says all that those before it said, but for what is done.
    let last = holdings.tombstones.last().map(|last| last.number);
    let done: BTreeSet<u32> = holdings
        .tombstones
        .iter()
        .filter(|stone| Some(stone.number) != last && stone.stored_at <= old)
        .map(|stone| stone.number)
        .collect();
    let finished = |object: &&Object| matches!(&object.name, ObjectName::Tombstone { number } if done.contains(number));
    let finished = holdings.objects.iter().filter(finished);
    let objects: Vec<&Object> = due.iter().copied().filter(|one| is_paperwork(&one.name)).chain(finished).collect();
    // Nobody asked for it, and nobody is told.
    take(lane, lease, &objects, &mut Removed::default())?;
    Ok(removed)
}

/// Records of leases, pins and readers and signs of life, which later ones have replaced.
fn is_paperwork(name: &ObjectName) -> bool {
    matches!(
        name,
        ObjectName::Lease { .. } | ObjectName::Pin { .. } | ObjectName::Reading { .. } | ObjectName::Sign { .. }
    )
}

fn take(lane: &Lane, lease: &Lease, objects: &[&Object], removed: &mut Removed) -> Result<(), RetentionError> {
    let more = lane.remove(objects, || lease.hold().map_err(RetentionError::from))?;
    removed.objects += more.objects;
    removed.bytes += more.bytes;
    removed.refused.extend(more.refused);
    removed.refusal = more.refusal.or(removed.refusal.take());
    Ok(())
}

#[cfg(test)]
mod tests;
