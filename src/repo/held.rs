//! Which of some segments a lane holds, by listings of their folders: one request for hundreds of segments, however
//! long the archive is.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::RepoError;
use super::lane::Lane;
use crate::format::Sha256;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;

impl Lane {
    /// Returns those of `segments` that are archived.
    pub fn held_of(&self, segments: &[SegmentName]) -> Result<BTreeSet<SegmentName>, RepoError> {
        let mut folders: BTreeMap<_, Vec<SegmentName>> = BTreeMap::new();
        for segment in segments {
            folders.entry((segment.timeline(), segment.middle())).or_default().push(*segment);
        }
        let mut held = BTreeSet::new();
        for ((timeline, middle), wanted) in folders {
            let folder = self.repository.layout.wal_timeline(self.id(), timeline)?.join(&middle)?;
            let wanted: BTreeSet<SegmentName> = wanted.into_iter().collect();
            for meta in self.repository.store.list(Some(&folder))? {
                match self.repository.layout.wal_name(&meta.key) {
                    Some(WalFileName::Segment(found)) if wanted.contains(&found) => drop(held.insert(found)),
                    _ => {}
                }
            }
        }
        Ok(held)
    }

    /// Returns when a timeline's history was stored, by the store's clock, if it is archived: soon after the promotion.
    pub fn history_stored_at(&self, timeline: TimelineId) -> Result<Option<DateTime<Utc>>, RepoError> {
        let name = WalFileName::History(timeline);
        let key = self.repository.layout.wal(self.id(), &name, &Sha256::from_bytes([0; 32]))?;
        Ok(self.repository.store.head(&key)?.map(|meta| meta.last_modified))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::lane_fixture::lane_without;

    #[test]
    fn what_is_held_is_told_from_what_is_not_over_several_folders() {
        let lane = lane_without(&["00000001000000000000000A"]);
        let names = ["000000010000000000000007", "00000001000000000000000A", "000000020000000000000012"];
        let names: Vec<SegmentName> = names.iter().map(|name| name.parse().expect("a name")).collect();
        let elsewhere = ["000000010000000100000007", "000000090000000000000007"];
        let elsewhere: Vec<SegmentName> = elsewhere.iter().map(|name| name.parse().expect("a name")).collect();
        let held = lane.held_of(&[&names[..], &elsewhere].concat()).expect("a store that works");
        assert_eq!(held.into_iter().collect::<Vec<_>>(), [names[0], names[2]]);
    }
}
