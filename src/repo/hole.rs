//! Holes: parts of the log that an operator gave up, so that archiving goes on behind them.
//!
//! A hole is never filled in by later objects: what is archived under its names may be another server's. Nothing is
//! replayed across it; only a backup that begins behind it leads on.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::lane::Lane;
use super::{RepoError, versioned};
use crate::format::document;
use crate::pg::segment::SegmentName;
use crate::store::Created;

/// Version of a hole's document. Readers know every version, writers write the last.
/// - 1: first release.
pub const HOLE_VERSION: u32 = 1;

/// Consecutive segments of one timeline that are not archived, by an operator's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hole {
    /// [`HOLE_VERSION`].
    pub version: u32,
    /// The first segment.
    pub from: SegmentName,
    /// The last segment, of the same timeline.
    pub through: SegmentName,
    /// Why, in the operator's words.
    pub reason: String,
    /// On which host it was decided.
    pub host: String,
    /// When, by that host's clock.
    pub decided_at: DateTime<Utc>,
    /// Whether nobody decided it: see [`Lane::disputed`].
    #[serde(skip)]
    pub disputed: bool,
}

impl Hole {
    /// Returns whether a segment lies in it.
    pub fn holds(&self, segment: SegmentName) -> bool {
        segment.timeline() == self.from.timeline() && self.from <= segment && segment <= self.through
    }
}

impl std::fmt::Display for Hole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.disputed {
            true => write!(f, "the archived {} is not to be believed: {}", self.from, self.reason),
            false => write!(f, "{} to {} were given up: {}", self.from, self.through, self.reason),
        }
    }
}

impl Lane {
    /// Returns the holes that were recorded, in order of their first segments.
    ///
    /// # Errors
    /// [`RepoError::Object`] if one is damaged: it is not known what lies in it.
    pub fn holes(&self) -> Result<Vec<Hole>, RepoError> {
        let store = &self.repository.store;
        let listed = store.list(Some(&self.repository.layout.holes(self.id())?))?;
        let mut holes = Vec::new();
        for meta in listed {
            let stored = store.get(&meta.key)?.ok_or_else(|| RepoError::Missing { key: meta.key.to_string() })?;
            let hole: Hole =
                document::decode(&stored, "hole").map_err(|source| RepoError::object(&meta.key, source))?;
            versioned(&meta.key, hole.version, HOLE_VERSION)?;
            holes.push(hole);
        }
        Ok(holes)
    }

    /// Records a hole; [`Created::Existing`] if the same segments were given up before, whose reason stands.
    pub fn record_hole(&self, hole: &Hole) -> Result<Created, RepoError> {
        let key = self.repository.layout.hole(self.id(), hole.from, hole.through)?;
        Ok(self.repository.store.create(&key, vec![Bytes::from(document::encode(hole))])?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::clock;
    use crate::repo::lane_fixture::lane_without;

    fn hole(reason: &str) -> Hole {
        Hole {
            version: HOLE_VERSION,
            from: "000000010000000000000008".parse().unwrap(),
            through: "000000010000000000000009".parse().unwrap(),
            reason: reason.to_owned(),
            host: "db1".to_owned(),
            decided_at: clock::now(),
            disputed: false,
        }
    }

    #[test]
    fn a_hole_is_recorded_once_and_holds_its_segments() {
        let lane = lane_without(&[]);
        assert_eq!(lane.holes().unwrap(), []);
        assert_eq!(lane.record_hole(&hole("disk")).unwrap(), Created::New);
        assert_eq!(lane.record_hole(&hole("other")).unwrap(), Created::Existing);
        let holes = lane.holes().unwrap();
        assert_eq!((holes.len(), holes[0].reason.as_str()), (1, "disk"));
        for (name, inside) in [
            ("000000010000000000000007", false),
            ("000000010000000000000008", true),
            ("000000010000000000000009", true),
            ("00000001000000000000000A", false),
            ("000000020000000000000008", false),
        ] {
            assert_eq!(holes[0].holds(name.parse().unwrap()), inside, "{name}");
        }
    }

    #[test]
    fn a_damaged_hole_is_no_hole_that_could_be_passed_over() {
        let lane = lane_without(&[]);
        lane.record_hole(&hole("disk")).unwrap();
        let key = lane.repository.layout.hole(lane.id(), hole("").from, hole("").through).unwrap();
        lane.repository.store.delete(&key).unwrap();
        lane.repository.store.create(&key, vec![Bytes::from_static(b"{}")]).unwrap();
        assert!(matches!(lane.holes(), Err(RepoError::Object { .. })));
    }
}
