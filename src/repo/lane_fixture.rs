//! Lanes for tests: the real log of `fixtures/wal`, archived in memory.
//!
//! In it timeline 2 forks off inside segment 11 of timeline 1, which goes on alone to the end of that segment.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use object_store::memory::InMemory;

use super::{LANE_VERSION, Lane, LaneFacts, LaneId, Repository};
use crate::format::wal;
use crate::pg::segment::SegmentName;
use crate::pg::wal_facts::FactsWalk;
use crate::pg::wal_fixture::{one_mib, segments};
use crate::pg::wal_name::WalFileName;
use crate::pg::wal_page::FirstPage;
use crate::store::fault::FaultStore;
use crate::store::{RetryPolicy, Store};

/// The major whose log it is.
pub(crate) const MAJOR: u16 = 15;

/// Facts of the server that wrote a segment of 1 MiB.
pub(crate) fn facts_of(segment: &[u8]) -> LaneFacts {
    LaneFacts {
        version: LANE_VERSION,
        system_id: FirstPage::parse(segment).unwrap().system_id,
        epoch: 1,
        major: MAJOR,
        catalog_version: 202209061,
        segment_size: 1 << 20,
        block_size: 8192,
        wal_block_size: 8192,
        parent: None,
    }
}

/// A lane in memory that holds these segments.
pub(crate) fn lane_of(all: &[(SegmentName, Vec<u8>)]) -> Lane {
    lane_in(Arc::default(), all)
}

/// A lane in memory that holds nothing.
pub(crate) fn empty_lane() -> Lane {
    let store = Store::over(Arc::new(InMemory::new()), "memory", RetryPolicy::brisk(1)).unwrap();
    Repository::init(store, "main").unwrap().0.lane_for(&LaneFacts::sample()).unwrap()
}

fn lane_in(memory: Arc<InMemory>, all: &[(SegmentName, Vec<u8>)]) -> Lane {
    let store = Store::over(memory, "memory", RetryPolicy::default()).unwrap();
    let (repository, _) = Repository::init(store, "main").unwrap();
    let lane = repository.lane_for(&facts_of(&all[0].1)).unwrap();
    all.iter().for_each(|(name, raw)| archive(&lane, &WalFileName::Segment(*name), raw));
    lane
}

pub(crate) fn archive(lane: &Lane, name: &WalFileName, raw: &[u8]) {
    let walk = match name {
        WalFileName::Segment(segment) => Some(FactsWalk::new(*segment, one_mib(), Some(lane.facts().system_id))),
        _ => None,
    };
    let encoded = wal::encode(&lane.wal_identity(name), &raw, raw.len() as u64, 1, 1, walk).unwrap();
    lane.create_wal(name, &encoded).unwrap();
}

/// Stores any bytes under a key of the lane.
pub(crate) fn put(lane: &Lane, below: &str, bytes: &'static [u8]) {
    let folder = lane.repository.layout.lane_folder(lane.id()).unwrap();
    let created = lane.repository.store.create(&folder.join(below).unwrap(), vec![bytes.into()]).unwrap();
    assert_eq!(created, crate::store::Created::New, "{below}");
}

/// A lane that holds the fixture's log, but for the files named.
pub(crate) fn lane_without(left_out: &[&str]) -> Lane {
    lane_without_in(Arc::default(), left_out)
}

/// A lane in memory, to be copied for each failure of its store.
pub(crate) struct Original {
    memory: Arc<InMemory>,
    id: LaneId,
}

impl Original {
    /// Archives what [`lane_without`] does.
    pub fn without(left_out: &[&str]) -> Self {
        let memory = Arc::<InMemory>::default();
        let id = lane_without_in(Arc::clone(&memory), left_out).id();
        Self { memory, id }
    }

    /// Returns a copy, and the same one over a store that can be made to fail, at its first try.
    pub fn copy(&self) -> (Lane, Lane, FaultStore) {
        let memory = Arc::new(self.memory.fork());
        let faulty = FaultStore::new(Arc::<InMemory>::clone(&memory));
        let open = |store| Repository::open(store, "main").unwrap().lane(self.id).unwrap().unwrap();
        let sound = open(Store::over(memory, "sound", RetryPolicy::brisk(1)).unwrap());
        let failing = open(Store::over(Arc::new(faulty.clone()), "faulty", RetryPolicy::brisk(1)).unwrap());
        (sound, failing, faulty)
    }
}

fn lane_without_in(memory: Arc<InMemory>, left_out: &[&str]) -> Lane {
    let all = [1, 2].into_iter().flat_map(|timeline| segments(MAJOR, timeline));
    let all: Vec<_> = all.filter(|(name, _)| !left_out.contains(&name.to_string().as_str())).collect();
    let lane = lane_in(memory, &all);
    let history = format!("{}/fixtures/wal/{MAJOR}/00000002.history", env!("CARGO_MANIFEST_DIR"));
    archive(&lane, &"00000002.history".parse().unwrap(), &std::fs::read(history).unwrap());
    lane
}
