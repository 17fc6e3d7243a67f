//! Tombstones: what is about to be removed, said before anything is.
//!
//! Numbered, each created once. An object may be removed only if a tombstone that is old enough names it. Beside that a
//! tombstone remembers which parts of the log were removed before, so that nobody takes them for holes, and which backups
//! stayed, so that a listing which lacks one is found out.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::lane::Lane;
use super::{RepoError, versioned};
use crate::format::document;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::store::{Created, Key};

/// Version of a tombstone's document. Readers know every version, writers write the last.
/// - 1: first release.
pub const TOMBSTONE_VERSION: u32 = 1;

/// Consecutive segments of one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentRange {
    /// The first.
    pub from: SegmentName,
    /// The last.
    pub through: SegmentName,
}

impl SegmentRange {
    /// Returns whether a segment lies in it.
    pub fn holds(&self, segment: SegmentName) -> bool {
        segment.timeline() == self.from.timeline() && self.from <= segment && segment <= self.through
    }

    /// Returns whether both have a segment in common.
    pub fn meets(&self, other: &Self) -> bool {
        self.from.timeline() == other.from.timeline() && self.from <= other.through && other.from <= self.through
    }

    /// Returns the fewest ranges that hold these segments and no others.
    pub fn of(segments: impl IntoIterator<Item = SegmentName>, size: SegmentSize) -> Vec<SegmentRange> {
        Self::merged(segments.into_iter().map(|segment| SegmentRange { from: segment, through: segment }), size)
    }

    /// Returns the fewest ranges that hold what these hold, and nothing else.
    pub fn merged(ranges: impl IntoIterator<Item = SegmentRange>, size: SegmentSize) -> Vec<SegmentRange> {
        let mut sorted: Vec<SegmentRange> = ranges.into_iter().collect();
        sorted.sort();
        let mut merged: Vec<SegmentRange> = Vec::new();
        for range in sorted {
            let follows = |last: &SegmentRange| {
                let next = last.through.number(size).ok().map(|number| number.next());
                last.holds(range.from)
                    || (range.from.timeline() == last.through.timeline() && range.from.number(size).ok() == next)
            };
            match merged.last_mut().filter(|last| follows(last)) {
                Some(last) => last.through = last.through.max(range.through),
                None => merged.push(range),
            }
        }
        merged
    }
}

impl std::fmt::Display for SegmentRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.from == self.through {
            true => self.from.fmt(f),
            false => write!(f, "{} to {}", self.from, self.through),
        }
    }
}

/// Consecutive packs of one backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRange {
    /// The backup that stored them.
    pub backup: String,
    /// The first.
    pub from: u32,
    /// The last.
    pub through: u32,
}

/// What is about to be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// [`TOMBSTONE_VERSION`].
    pub version: u32,
    /// Where it was decided, for people.
    pub host: String,
    /// When, by that host's clock.
    pub decided_at: DateTime<Utc>,
    /// Backups that go by the policy.
    pub backups: Vec<String>,
    /// Backups that an operator wants to be gone, whatever the policy says.
    #[serde(default)]
    pub forgotten: Vec<String>,
    /// Packs that go.
    pub packs: Vec<PackRange>,
    /// Segments that go, with all that is named after them.
    pub wal: Vec<SegmentRange>,
    /// Segments that went before.
    pub expired: Vec<SegmentRange>,
    /// Backups that stay.
    pub kept: Vec<String>,
}

impl Tombstone {
    /// Returns whether a backup is to go.
    pub fn condemns(&self, backup: &str) -> bool {
        self.backups.iter().chain(&self.forgotten).any(|condemned| condemned == backup)
    }

    /// Returns whether a pack is to go.
    pub fn condemns_pack(&self, backup: &str, number: u32) -> bool {
        self.packs.iter().any(|range| range.backup == backup && (range.from..=range.through).contains(&number))
    }

    /// Returns whether a segment is to go.
    pub fn condemns_segment(&self, segment: SegmentName) -> bool {
        self.wal.iter().any(|range| range.holds(segment))
    }
}

/// A tombstone that a listing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTombstone {
    /// Its number, from 1.
    pub number: u32,
    /// What it says.
    pub tombstone: Tombstone,
    /// When it was stored, by the store's clock.
    pub stored_at: DateTime<Utc>,
}

impl Lane {
    /// Returns the tombstones, oldest first.
    ///
    /// # Errors
    /// [`RepoError::Object`] if one is damaged, or a newer walvault wrote it: it is not known what is to go.
    pub fn tombstones(&self) -> Result<Vec<StoredTombstone>, RepoError> {
        let store = &self.repository.store;
        let mut stones = Vec::new();
        for meta in store.list(Some(&self.repository.layout.tombstones(self.id())?))? {
            let Ok(number) = meta.key.name().parse() else { continue };
            // Whoever removed it has written a later one, which says all that it said.
            let Some(stored) = store.get(&meta.key)? else { continue };
            let tombstone = read(&meta.key, &stored)?;
            stones.push(StoredTombstone { number, tombstone, stored_at: meta.last_modified });
        }
        stones.sort_by_key(|stone| stone.number);
        Ok(stones)
    }

    /// Writes tombstone `number`; [`Created::Existing`] if another one came first, which stands.
    pub fn create_tombstone(&self, number: u32, tombstone: &Tombstone) -> Result<Created, RepoError> {
        let key = self.repository.layout.tombstone(self.id(), number)?;
        Ok(self.repository.store.create(&key, vec![Bytes::from(document::encode(tombstone))])?)
    }

    /// Returns the parts of the log that were removed, or are about to be.
    ///
    /// # Errors
    /// As [`Lane::tombstones`].
    pub fn expired(&self) -> Result<Vec<SegmentRange>, RepoError> {
        let stones = self.tombstones()?;
        let ranges = stones.iter().flat_map(|stone| stone.tombstone.wal.iter().chain(&stone.tombstone.expired));
        Ok(SegmentRange::merged(ranges.copied(), self.segment_size()))
    }
}

fn read(key: &Key, stored: &[u8]) -> Result<Tombstone, RepoError> {
    let tombstone: Tombstone =
        document::decode(stored, "tombstone").map_err(|source| RepoError::object(key, source))?;
    versioned(key, tombstone.version, TOMBSTONE_VERSION)?;
    Ok(tombstone)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ranges_meet_where_segments_follow_each_other_and_nowhere_else() {
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<SegmentName>>();
        let segments = names(&[
            "00000001000000000000000A",
            "000000010000000000000008",
            "000000010000000000000009",
            "00000001000000000000000C",
            "00000002000000000000000D",
            "0000000100000000000000FF",
            "000000010000000100000000",
        ]);
        let ranges = SegmentRange::of(segments.clone(), SegmentSize::DEFAULT);
        let text: Vec<String> = ranges.iter().map(SegmentRange::to_string).collect();
        assert_eq!(
            text,
            [
                "000000010000000000000008 to 00000001000000000000000A",
                "00000001000000000000000C",
                "0000000100000000000000FF to 000000010000000100000000",
                "00000002000000000000000D",
            ]
        );
        assert!(segments.iter().all(|segment| ranges.iter().any(|range| range.holds(*segment))));
        assert!(!ranges.iter().any(|range| range.holds("00000001000000000000000B".parse().unwrap())));
        assert_eq!(SegmentRange::merged(ranges.iter().chain(&ranges).copied(), SegmentSize::DEFAULT), ranges);
    }
}
