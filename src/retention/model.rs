//! A small model of clusters that live: they write log, take backups, promote, lose segments, are upgraded; and an oracle
//! that knows what can be restored by walking parents, without a word of the code that it judges.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};

use super::holdings::{HeldBackup, LaneHoldings};
use crate::catalog::Branch;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::pg::timeline::{History, TimelineId};
use crate::pg::wal_name::WalFileName;
use crate::repo::{
    Needs, Object, ObjectName, PIN_VERSION, Pin, READING_VERSION, ReadingRecord, SegmentRange, StoredPin, StoredReading,
};

/// Numbers by chance that follow from a seed.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Source: Sebastiano Vigna, `splitmix64.c`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    pub fn one_in(&mut self, several: u64) -> bool {
        self.below(several) == 0
    }
}

const SEGMENT: u64 = 16 << 20;

#[derive(Clone, Debug)]
pub struct Timeline {
    pub parent: Option<(usize, u64)>,
    /// Where its log ends.
    pub end: u64,
    /// Archived segments, and when each was.
    pub segments: BTreeMap<u64, DateTime<Utc>>,
    /// `.partial`s.
    pub partials: BTreeMap<u64, DateTime<Utc>>,
}

#[derive(Clone, Debug)]
pub struct Backup {
    pub id: String,
    pub timeline: usize,
    pub start: u64,
    pub stop: u64,
    pub stopped_at: DateTime<Utc>,
    pub packs: BTreeSet<(String, u32)>,
}

/// A restore that reads a backup, and the log after it up to a segment of a branch.
#[derive(Clone, Debug)]
pub struct Reading {
    pub backup: String,
    pub packs: BTreeSet<(String, u32)>,
    /// Timelines and segments.
    pub log: BTreeSet<(usize, u64)>,
}

/// One lane.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub timelines: Vec<Timeline>,
    pub backups: Vec<Backup>,
    pub packs: BTreeMap<(String, u32), DateTime<Utc>>,
    pub pins: BTreeSet<String>,
    pub readings: Vec<Reading>,
    pub tip: usize,
    pub system: u64,
    /// When its server last did something.
    pub last_sign: DateTime<Utc>,
}

impl World {
    pub fn new(system: u64, now: DateTime<Utc>) -> Self {
        let root = Timeline { parent: None, end: SEGMENT, segments: BTreeMap::new(), partials: BTreeMap::new() };
        Self { timelines: vec![root], system, last_sign: now, ..Self::default() }
    }

    fn begin(&self, timeline: usize) -> u64 {
        self.timelines[timeline].parent.map_or(0, |(_, at)| at)
    }

    /// Does one thing that servers do.
    pub fn step(&mut self, chance: &mut Chance, now: DateTime<Utc>) {
        self.last_sign = now;
        match chance.below(22) {
            0..=9 => self.write(chance, now),
            10..=15 => self.back_up(chance, now),
            16 => self.promote(chance, now),
            17 => self.lose(chance),
            18 => self.leave_behind(chance, now),
            19 => self.read(chance),
            20 => self.readings.clear(),
            _ => self.pin(chance),
        }
    }

    /// Finishes and archives some segments of the timeline that is written.
    fn write(&mut self, chance: &mut Chance, now: DateTime<Utc>) {
        for _ in 0..=chance.below(4) {
            let timeline = &mut self.timelines[self.tip];
            let number = timeline.end / SEGMENT;
            timeline.end = (number + 1) * SEGMENT + chance.below(SEGMENT);
            // One that is never archived.
            if !chance.one_in(60) {
                timeline.segments.insert(number, now);
            }
        }
    }

    fn back_up(&mut self, chance: &mut Chance, now: DateTime<Utc>) {
        let start = self.timelines[self.tip].end;
        for _ in 0..chance.below(2) {
            self.write(chance, now);
        }
        let stop = self.timelines[self.tip].end.max(start + 1);
        let through = (stop - 1) / SEGMENT;
        for number in start / SEGMENT..=through {
            if !chance.one_in(60) {
                self.timelines[self.tip].segments.insert(number, now);
            }
        }
        self.timelines[self.tip].end = (through + 1) * SEGMENT;
        let id = format!("b{}-{}", self.backups.len(), chance.below(1 << 40));
        let mut packs: BTreeSet<(String, u32)> = BTreeSet::new();
        if !self.backups.is_empty() && chance.one_in(2) {
            let parent = &self.backups[chance.below(self.backups.len() as u64) as usize];
            packs.extend(parent.packs.iter().filter(|_| !chance.one_in(3)).cloned());
        }
        packs.extend((1..=1 + chance.below(3) as u32).map(|number| (id.clone(), number)));
        for pack in packs.iter().filter(|pack| pack.0 == id) {
            self.packs.insert(pack.clone(), now);
        }
        // What an attempt that died left.
        if chance.one_in(8) {
            self.packs.insert((format!("dead-{id}"), 1), now);
        }
        self.backups.push(Backup { id, timeline: self.tip, start, stop, stopped_at: now, packs });
    }

    /// A new timeline: where its parent is now, or at an earlier moment of any, as a restore does.
    fn promote(&mut self, chance: &mut Chance, now: DateTime<Utc>) {
        if self.timelines.len() > 6 {
            return;
        }
        let parent = match chance.one_in(2) {
            true => self.tip,
            false => chance.below(self.timelines.len() as u64) as usize,
        };
        let (begin, end) = (self.begin(parent).max(SEGMENT), self.timelines[parent].end.max(SEGMENT + 1));
        let at = match chance.below(3) {
            0 => end,
            1 => (begin + chance.below(end.saturating_sub(begin).max(1))).next_multiple_of(SEGMENT).clamp(begin, end),
            _ => begin + chance.below(end.saturating_sub(begin).max(1)),
        };
        if at < end && chance.one_in(2) && parent == self.tip {
            self.timelines[parent].partials.insert(at / SEGMENT, now);
        }
        self.timelines.push(Timeline {
            parent: Some((parent, at)),
            end: at.max(1),
            segments: BTreeMap::new(),
            partials: BTreeMap::new(),
        });
        self.tip = self.timelines.len() - 1;
    }

    /// Somebody else removes a segment or a pack.
    fn lose(&mut self, chance: &mut Chance) {
        if chance.one_in(3) {
            let timeline = chance.below(self.timelines.len() as u64) as usize;
            let numbers: Vec<u64> = self.timelines[timeline].segments.keys().copied().collect();
            if !numbers.is_empty() {
                self.timelines[timeline].segments.remove(&numbers[chance.below(numbers.len() as u64) as usize]);
            }
        } else if chance.one_in(3) && !self.packs.is_empty() {
            let packs: Vec<(String, u32)> = self.packs.keys().cloned().collect();
            self.packs.remove(&packs[chance.below(packs.len() as u64) as usize]);
        }
    }

    /// A segment of a timeline that was left is archived late.
    fn leave_behind(&mut self, chance: &mut Chance, now: DateTime<Utc>) {
        let timeline = chance.below(self.timelines.len() as u64) as usize;
        let number = self.timelines[timeline].end / SEGMENT;
        self.timelines[timeline].segments.insert(number, now);
        self.timelines[timeline].end = (number + 1) * SEGMENT;
    }

    /// A restore begins, of any moment that there is.
    fn read(&mut self, chance: &mut Chance) {
        let whole: Vec<&Backup> = self.backups.iter().filter(|backup| self.restorable(backup)).collect();
        if whole.is_empty() {
            return;
        }
        let backup = whole[chance.below(whole.len() as u64) as usize];
        let reached: Vec<(usize, u64)> = self.reach(&[backup]).into_iter().collect();
        let (tip, last) = reached[chance.below(reached.len() as u64) as usize];
        let log = (backup.start / SEGMENT..=last).map(|number| (self.owner(tip, number), number)).collect();
        let reading = Reading { backup: backup.id.clone(), packs: backup.packs.clone(), log };
        self.readings.push(reading);
    }

    /// Whether all that a restore reads is there.
    pub fn is_readable(&self, reading: &Reading) -> bool {
        self.backups.iter().any(|backup| backup.id == reading.backup)
            && reading.packs.iter().all(|pack| self.packs.contains_key(pack))
            && reading.log.iter().all(|(timeline, number)| self.archived(*timeline, *number))
    }

    fn stored(&self, reading: &Reading) -> StoredReading {
        let id = |timeline: usize| TimelineId::new(timeline as u32 + 1).unwrap();
        let name = |(timeline, number): &(usize, u64)| {
            SegmentName::from_number(id(*timeline), SegmentNo(*number), SegmentSize::DEFAULT)
        };
        let wal = SegmentRange::of(reading.log.iter().map(name), SegmentSize::DEFAULT);
        let record = ReadingRecord {
            version: READING_VERSION,
            holder: "x".to_owned(),
            host: "db2".to_owned(),
            process: None,
            needs: Some(Needs { backup: reading.backup.clone(), wal }),
            seconds: 600,
            released: false,
        };
        StoredReading { holder: "x".to_owned(), number: 1, record: Some(record), stored_at: self.last_sign }
    }

    fn pin(&mut self, chance: &mut Chance) {
        if self.backups.is_empty() {
            return;
        }
        let id = self.backups[chance.below(self.backups.len() as u64) as usize].id.clone();
        if !self.pins.remove(&id) {
            self.pins.insert(id);
        }
    }

    /// The timeline under which a branch has a segment.
    fn owner(&self, tip: usize, number: u64) -> usize {
        let mut at = tip;
        while let Some((parent, fork)) = self.timelines[at].parent {
            if number >= fork / SEGMENT {
                break;
            }
            at = parent;
        }
        at
    }

    /// Whether a branch passes a timeline between two positions.
    fn passes(&self, tip: usize, timeline: usize, start: u64, stop: u64) -> bool {
        let (mut at, mut end) = (tip, u64::MAX);
        loop {
            if at == timeline {
                return start >= self.begin(at) && stop <= end;
            }
            let Some((parent, fork)) = self.timelines[at].parent else { return false };
            (at, end) = (parent, end.min(fork));
        }
    }

    fn archived(&self, timeline: usize, number: u64) -> bool {
        let timeline = &self.timelines[timeline];
        timeline.segments.contains_key(&number) || timeline.partials.contains_key(&number)
    }

    fn whole(&self, backup: &Backup) -> bool {
        backup.packs.iter().all(|pack| self.packs.contains_key(pack))
    }

    /// Every segment, by branch and number, to whose end one of these backups can be restored; and the earliest one of
    /// each backup, its own end.
    pub fn reach(&self, backups: &[&Backup]) -> BTreeSet<(usize, u64)> {
        let mut reached = BTreeSet::new();
        for backup in backups.iter().filter(|backup| self.whole(backup)) {
            for tip in 0..self.timelines.len() {
                if !self.passes(tip, backup.timeline, backup.start, backup.stop) {
                    continue;
                }
                let (mut number, last) = (backup.start / SEGMENT, (backup.stop - 1) / SEGMENT);
                while self.archived(self.owner(tip, number), number) {
                    if number >= last {
                        reached.insert((tip, number));
                    }
                    number += 1;
                }
            }
        }
        reached
    }

    /// Whether a backup can be restored to its end.
    pub fn restorable(&self, backup: &Backup) -> bool {
        !self.reach(&[backup]).is_empty()
    }

    /// When anything was last archived.
    pub fn archived_last(&self) -> Option<DateTime<Utc>> {
        self.timelines.iter().flat_map(|timeline| timeline.segments.values()).max().copied()
    }

    /// When the segment of a branch was archived.
    pub fn archived_at(&self, (tip, number): (usize, u64)) -> Option<DateTime<Utc>> {
        let timeline = &self.timelines[self.owner(tip, number)];
        timeline.segments.get(&number).or(timeline.partials.get(&number)).copied()
    }

    /// What expiry would see.
    pub fn holdings(&self) -> LaneHoldings {
        let size = SegmentSize::DEFAULT;
        let id = |timeline: usize| TimelineId::new(timeline as u32 + 1).unwrap();
        let mut objects: Vec<Object> = Vec::new();
        let mut add = |name: ObjectName, stored_at| {
            let key = format!("k/{}", objects.len());
            objects.push(Object::sample(&key, name, 10, stored_at));
        };
        let mut branches = Vec::new();
        for (place, timeline) in self.timelines.iter().enumerate() {
            let name = |number: &u64| SegmentName::from_number(id(place), SegmentNo(*number), size);
            for (number, at) in &timeline.segments {
                add(ObjectName::Wal(WalFileName::Segment(name(number))), *at);
            }
            for (number, at) in &timeline.partials {
                add(ObjectName::Partial(name(number)), *at);
            }
            let mut lines = Vec::new();
            let mut at = place;
            while let Some((parent, fork)) = self.timelines[at].parent {
                lines.push(format!("{}\t{}\tx\n", parent + 1, Lsn::new(fork)));
                at = parent;
            }
            lines.reverse();
            branches.push(match lines.is_empty() {
                true => Branch::new(History::root(id(place))),
                false => {
                    add(ObjectName::Wal(WalFileName::History(id(place))), self.last_sign);
                    Branch::new(History::parse(id(place), &lines.concat()).unwrap())
                }
            });
        }
        for ((owner, number), at) in &self.packs {
            add(ObjectName::Pack { backup: owner.as_str().into(), number: *number }, *at);
        }
        for backup in &self.backups {
            add(ObjectName::Manifest { backup: backup.id.clone(), generation: 1 }, backup.stopped_at);
        }
        let held = |backup: &Backup| HeldBackup {
            id: backup.id.clone(),
            timeline: id(backup.timeline),
            start: Lsn::new(backup.start),
            stop: Lsn::new(backup.stop),
            from_standby: false,
            stopped_at: backup.stopped_at,
            parent: None,
            packs: backup.packs.iter().map(|(owner, number)| ((Arc::from(owner.as_str()), *number), 10)).collect(),
        };
        let pin = Pin {
            version: PIN_VERSION,
            pinned: true,
            reason: None,
            until: None,
            host: "db1".to_owned(),
            decided_at: self.last_sign,
        };
        LaneHoldings {
            lane: format!("{}-1", self.system).parse().unwrap(),
            size,
            branches,
            backups: self.backups.iter().map(held).collect(),
            unreadable: BTreeMap::new(),
            objects,
            pins: self.pins.iter().map(|id| (id.clone(), StoredPin { number: 1, pin: Some(pin.clone()) })).collect(),
            tombstones: Vec::new(),
            lease: None,
            at_work: false,
            readings: self.readings.iter().map(|reading| self.stored(reading)).collect(),
        }
    }

    /// Removes an object.
    pub fn remove(&mut self, name: &ObjectName) {
        let number = |segment: &SegmentName| segment.number(SegmentSize::DEFAULT).unwrap().0;
        let place = |segment: &SegmentName| segment.timeline().number() as usize - 1;
        match name {
            ObjectName::Wal(WalFileName::Segment(segment)) => {
                self.timelines[place(segment)].segments.remove(&number(segment));
            }
            ObjectName::Partial(segment) => {
                self.timelines[place(segment)].partials.remove(&number(segment));
            }
            ObjectName::Pack { backup, number } => {
                self.packs.remove(&(backup.to_string(), *number));
            }
            ObjectName::Manifest { backup, .. } => self.backups.retain(|one| one.id != *backup),
            other => panic!("{other:?} must never go"),
        }
    }
}

/// Returns a moment.
pub fn moment(hours: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000, 0).unwrap() + Duration::hours(hours)
}
