//! What the lanes of a cluster hold, as expiry sees it: every object, and what the backups among them need.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::RetentionError;
use crate::catalog::Branch;
use crate::error;
use crate::format::tables::PackSource;
use crate::pg::backup_label::{BackupFrom, BackupLabel};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::pg::timeline::{History, TimelineId};
use crate::pg::wal_name::WalFileName;
use crate::repo::{
    Lane, LaneId, Object, ObjectName, Purpose, RepoError, StoredBackup, StoredLease, StoredPin, StoredReading,
    StoredTombstone,
};

/// A backup whose manifest can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBackup {
    /// Its name.
    pub id: String,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Where recovery begins to read.
    pub start: Lsn,
    /// Where it is consistent.
    pub stop: Lsn,
    /// Whether a standby gave it: recovery then looks for the record behind its end, which may lie in the next segment.
    pub from_standby: bool,
    /// When, by the server's clock.
    pub stopped_at: DateTime<Utc>,
    /// The backup whose packs it shares, for people.
    pub parent: Option<String>,
    /// Every pack that any of its manifests names, its own and others', with its bytes.
    pub packs: BTreeMap<(Arc<str>, u32), u64>,
}

/// One lane.
#[derive(Clone, Debug)]
pub struct LaneHoldings {
    /// Its name.
    pub lane: LaneId,
    /// Bytes in a segment.
    pub size: SegmentSize,
    /// Every branch whose ancestors are known.
    pub branches: Vec<Branch>,
    /// Backups that can be read, by where they end.
    pub backups: Vec<HeldBackup>,
    /// Backups that cannot be read, and why.
    pub unreadable: BTreeMap<String, String>,
    /// Everything.
    pub objects: Vec<Object>,
    /// Pins, also those that no longer hold.
    pub pins: BTreeMap<String, StoredPin>,
    /// Tombstones, oldest first.
    pub tombstones: Vec<StoredTombstone>,
    /// The last lease of a backup, whether or not it is live.
    pub lease: Option<StoredLease>,
    /// Whether it is.
    pub at_work: bool,
    /// Restores and recoveries that read it now.
    pub readings: Vec<StoredReading>,
}

/// Looks at lanes; returns what they hold, and the time by the store's clock.
///
/// # Errors
/// [`RetentionError::Repository`] if a listing or a small object cannot be read: then nothing may be decided.
pub fn survey(lanes: &[Lane]) -> Result<(Vec<LaneHoldings>, DateTime<Utc>), RetentionError> {
    let Some(first) = lanes.first() else { return Err(RetentionError::NothingThere) };
    let mut holdings = Vec::new();
    for lane in lanes {
        let (lease, readings) = at_work(lane)?;
        holdings.push(survey_lane(lane, lease, readings, first.store_time()?)?);
    }
    Ok((holdings, first.store_time()?))
}

/// As [`survey`], of one lane, by a clock that is at hand.
///
/// # Errors
/// As [`survey`].
pub fn survey_at(lane: &Lane, now: DateTime<Utc>) -> Result<LaneHoldings, RetentionError> {
    let (lease, readings) = at_work(lane)?;
    survey_lane(lane, lease, readings, now)
}

/// Who is or was at work. Before anything else: what was committed under a lease that is over by now is in the listing that
/// follows, and whoever begins to read later looks whether an expiry is at work.
fn at_work(lane: &Lane) -> Result<(Option<StoredLease>, Vec<StoredReading>), RepoError> {
    Ok((lane.last_lease(Purpose::Backup)?, lane.readings()?))
}

fn survey_lane(
    lane: &Lane,
    lease: Option<StoredLease>,
    mut readings: Vec<StoredReading>,
    now: DateTime<Utc>,
) -> Result<LaneHoldings, RetentionError> {
    let at_work = lease.as_ref().is_some_and(|lease| lease.is_live(now));
    readings.retain(|reading| reading.is_live(now));
    let objects = lane.objects()?;
    let tombstones = lane.tombstones()?;
    let pins = lane.pins()?;
    let (mut backups, mut unreadable): (BTreeMap<String, HeldBackup>, _) = (BTreeMap::new(), BTreeMap::new());
    let voids: BTreeSet<&str> = objects.iter().filter_map(Object::void).collect();
    for object in &objects {
        let ObjectName::Manifest { backup, generation } = &object.name else { continue };
        if voids.contains(backup.as_str()) {
            continue;
        }
        match lane.manifest_whole(&StoredBackup { id: backup.clone(), generation: *generation }) {
            Ok((manifest, tables)) => {
                let envelope = manifest.envelope;
                let held = backups.entry(backup.clone()).or_insert_with(|| HeldBackup {
                    id: backup.clone(),
                    timeline: envelope.timeline,
                    start: envelope.start_lsn,
                    stop: envelope.stop_lsn,
                    from_standby: is_a_standbys(&manifest.root.backup_label),
                    stopped_at: envelope.stopped_at,
                    parent: envelope.parent,
                    packs: BTreeMap::new(),
                });
                held.packs.extend(tables.packs.iter().map(|pack| {
                    let PackSource::Lane { backup, number } = &pack.source;
                    ((Arc::clone(backup), *number), pack.stored_bytes)
                }));
            }
            // Removed since it was listed: whoever did that decides anew.
            Err(RepoError::Missing { .. }) => return Err(RetentionError::Moved { backup: backup.clone() }),
            Err(RepoError::Object { .. }) if *generation == 1 && lane.is_void(backup)? => {}
            Err(problem @ RepoError::Object { .. }) => {
                unreadable.insert(backup.clone(), error::chain(&problem).to_string());
            }
            Err(problem) => return Err(problem.into()),
        }
    }
    backups.retain(|id, _| !unreadable.contains_key(id));
    let branches = branches(lane, &objects)?;
    let (id, size) = (lane.id(), lane.segment_size());
    // Names tell only a second, and chance decides among those of one.
    let mut backups: Vec<HeldBackup> = backups.into_values().collect();
    backups.sort_by(|a, b| (a.stop, &a.id).cmp(&(b.stop, &b.id)));
    Ok(LaneHoldings {
        lane: id,
        size,
        branches,
        backups,
        unreadable,
        objects,
        pins,
        tombstones,
        lease,
        at_work,
        readings,
    })
}

fn branches(lane: &Lane, objects: &[Object]) -> Result<Vec<Branch>, RepoError> {
    let timelines: BTreeSet<TimelineId> = objects.iter().filter_map(Object::timeline).collect();
    let mut branches = Vec::new();
    for timeline in timelines {
        match lane.history(timeline)? {
            Some(history) => branches.push(Branch::new(history)),
            None if timeline == TimelineId::FIRST => branches.push(Branch::new(History::root(timeline))),
            None => {}
        }
    }
    Ok(branches)
}

impl Object {
    /// The segment that it is, belongs to, or is named after.
    pub(super) fn segment(&self) -> Option<SegmentName> {
        match &self.name {
            ObjectName::Wal(WalFileName::Segment(segment)) | ObjectName::Partial(segment) => Some(*segment),
            ObjectName::Wal(WalFileName::BackupHistory { start, .. }) => Some(*start),
            _ => None,
        }
    }

    fn timeline(&self) -> Option<TimelineId> {
        match &self.name {
            ObjectName::Wal(name) => name.timeline(),
            ObjectName::Partial(segment) => Some(segment.timeline()),
            _ => None,
        }
    }

    fn void(&self) -> Option<&str> {
        match &self.name {
            ObjectName::Void { backup } => Some(backup),
            _ => None,
        }
    }
}

impl LaneHoldings {
    /// Returns the archived segments; where a timeline was left, a `.partial` stands for one.
    pub fn segments(&self) -> HashSet<SegmentName> {
        let archived = |object: &Object| match &object.name {
            ObjectName::Wal(WalFileName::Segment(segment)) | ObjectName::Partial(segment) => Some(*segment),
            _ => None,
        };
        self.objects.iter().filter_map(archived).collect()
    }

    /// Returns the packs that are there, with their bytes.
    pub fn packs(&self) -> BTreeMap<(&str, u32), u64> {
        let mut packs = BTreeMap::new();
        for object in &self.objects {
            if let ObjectName::Pack { backup, number } = &object.name {
                packs.insert((&**backup, *number), object.bytes);
            }
        }
        packs
    }

    /// Returns the backups that can be restored to their end, as far as listings tell: every pack is there, and every
    /// segment from start to stop along a branch that the backup lies on.
    pub fn restorable(&self) -> Vec<&HeldBackup> {
        let (segments, packs) = (self.segments(), self.packs());
        let whole = |backup: &&HeldBackup| {
            backup.packs.iter().all(|((owner, number), bytes)| packs.get(&(&**owner, *number)) == Some(bytes))
        };
        let logged = |backup: &&HeldBackup| {
            let (first, last) = backup.own_segments(self.size);
            self.branches.iter().filter(|branch| branch.holds(backup.timeline, backup.start, backup.stop)).any(
                |branch| {
                    (first.0..=last.0).all(|number| segments.contains(&branch.segment(SegmentNo(number), self.size)))
                },
            )
        };
        self.backups.iter().filter(whole).filter(logged).collect()
    }

    /// Returns those who read a backup now.
    pub fn readers_of<'a>(&'a self, backup: &'a str) -> impl Iterator<Item = &'a StoredReading> {
        self.readings.iter().filter(move |reading| reading.needs().is_some_and(|needs| needs.backup == backup))
    }

    /// Returns one who reads and has not said what: it may be anything.
    pub fn reads_all(&self) -> Option<&StoredReading> {
        self.readings.iter().find(|reading| reading.needs().is_none())
    }

    /// Returns when anything was last stored that a server sent, log, a backup or a sign of life; by the store's clock.
    pub fn last_sign(&self) -> Option<DateTime<Utc>> {
        let sent = |object: &&Object| {
            matches!(
                object.name,
                ObjectName::Wal(_) | ObjectName::Manifest { .. } | ObjectName::Pack { .. } | ObjectName::Sign { .. }
            )
        };
        self.objects.iter().filter(sent).map(|object| object.stored_at).max()
    }

    /// Returns the branches whose last timeline was written to since a moment.
    pub fn branches_alive_since(&self, moment: DateTime<Utc>) -> Vec<&Branch> {
        let mut newest: BTreeMap<TimelineId, DateTime<Utc>> = BTreeMap::new();
        for object in &self.objects {
            if let Some(timeline) = object.timeline() {
                let known = newest.entry(timeline).or_insert(object.stored_at);
                *known = object.stored_at.max(*known);
            }
        }
        let alive = |branch: &&Branch| newest.get(&branch.timeline()).is_some_and(|newest| *newest >= moment);
        self.branches.iter().filter(alive).collect()
    }
}

fn is_a_standbys(label: &str) -> bool {
    BackupLabel::parse(label.as_bytes()).is_ok_and(|label| label.from == BackupFrom::Standby)
}

impl HeldBackup {
    /// The first and the last segment that it cannot do without.
    pub fn own_segments(&self, size: SegmentSize) -> (SegmentNo, SegmentNo) {
        let last = size.segment_ending_at(self.stop);
        (size.segment_of(self.start), if self.from_standby { last.next() } else { last })
    }
}
