#![allow(clippy::unwrap_used)]

use super::*;
use crate::catalog::{IndexJob, SegmentIndex, perform_indexing};
use crate::format::Sha256;
use crate::pg::segment::{SegmentNo, SegmentSize};
use crate::pg::wal_facts::WalFacts;
use crate::repo::lane_fixture::lane_without;
use crate::store::Verb;

const SIZE: u32 = 1 << 20;

/// A lane in memory with an index of two segments for each of so many folders; the segments themselves are nowhere.
fn lane_with(folders: std::ops::Range<u64>) -> Lane {
    let lane = lane_without(&[]);
    folders.for_each(|folder| put(&lane, folder, b"first"));
    lane
}

fn put(lane: &Lane, folder: u64, bytes: &[u8]) {
    let size = SegmentSize::new(SIZE).unwrap();
    let member = |number| {
        let segment = SegmentName::from_number(TimelineId::FIRST, SegmentNo(number), size);
        let facts = WalFacts { indexer: 2, records: number, ..WalFacts::default() };
        IndexedSegment { segment, stored_bytes: 0, sha256: Sha256::of(bytes), joined_after: None, facts }
    };
    let first = folder * size.per_log();
    let middle = format!("{folder:08X}");
    lane.create_index(TimelineId::FIRST, &middle, &[member(first), member(first + 1)]).unwrap();
}

/// Gathers what is wanted until nothing is; returns how many objects that made.
fn gather(lane: &Lane) -> usize {
    let catalog = LaneCatalog::load(lane).unwrap();
    let jobs = gathering_wanted(lane, &catalog).unwrap();
    let made = jobs.iter().filter(|job| perform_gathering(lane, job).unwrap()).count();
    assert!(gathering_wanted(lane, &catalog).unwrap().is_empty(), "what was gathered is wanted again");
    made
}

fn requests(lane: &Lane, work: impl FnOnce()) -> u64 {
    let before = lane.repository().store().requests().of(Verb::Get);
    work();
    lane.repository().store().requests().of(Verb::Get) - before
}

fn names(folders: std::ops::Range<u64>) -> Vec<SegmentName> {
    let size = SegmentSize::new(SIZE).unwrap();
    folders
        .map(|folder| SegmentName::from_number(TimelineId::FIRST, SegmentNo(folder * size.per_log()), size))
        .collect()
}

fn records(index: &SegmentIndex<'_>, name: SegmentName) -> Option<u64> {
    index.get(&crate::repo::StoredName::sample(name)).map(|one| one.facts.records)
}

#[test]
fn a_finished_group_is_one_request_and_an_unfinished_one_few() {
    let lane = lane_with(0..150);
    assert_eq!(gather(&lane), 3);
    put(&lane, 150, b"later");
    assert_eq!(gather(&lane), 0, "one more folder is no reason");
    let index = SegmentIndex::new(&lane);
    assert_eq!(requests(&lane, || index.prepare(&names(0..151))), 4, "three groups and the last folder");
    for (folder, name) in names(0..151).into_iter().enumerate() {
        assert_eq!(records(&index, name), Some(folder as u64 * 4096), "{name}");
    }
    (151..167).for_each(|folder| put(&lane, folder, b"later"));
    assert_eq!(gather(&lane), 1);
}

#[test]
fn an_index_that_is_newer_than_what_was_gathered_counts() {
    let lane = lane_with(0..20);
    gather(&lane);
    put(&lane, 3, b"other bytes");
    let index = SegmentIndex::new(&lane);
    let [third] = names(3..4)[..] else { panic!("one") };
    let found = index.get(&crate::repo::StoredName::sample(third)).unwrap();
    assert_eq!(found.sha256, Sha256::of(b"other bytes"));
    let [fourth] = names(4..5)[..] else { panic!("one") };
    assert_eq!(requests(&lane, || assert!(records(&index, fourth).is_some())), 0, "its neighbours are at hand");
}

#[test]
fn a_gathered_index_that_is_damaged_costs_requests_and_nothing_else() {
    let lane = lane_with(0..20);
    gather(&lane);
    let listed = lane.indexes(TimelineId::FIRST).unwrap();
    let [stored] = listed.gathered.as_slice() else { panic!("{listed:?}") };
    let folders: Vec<GatheredFolder> = listed.folders.iter().map(GatheredFolder::from).collect();
    assert_eq!(stored.digest, folders_digest(&folders));
    let key = stored.key().clone();
    let store = lane.repository().store();
    let bytes = store.get(&key).unwrap().unwrap();
    store.delete(&key).unwrap();
    let index = SegmentIndex::new(&lane);
    assert_eq!(records(&index, names(7..8)[0]), Some(7 * 4096), "without it");
    for at in [0, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 4;
        store.create(&key, vec![damaged.into()]).unwrap();
        let index = SegmentIndex::new(&lane);
        assert_eq!(records(&index, names(7..8)[0]), Some(7 * 4096), "byte {at}");
        store.delete(&key).unwrap();
    }
    // Another group's, put in its place.
    let other = lane_with(64..84);
    gather(&other);
    let foreign = other.indexes(TimelineId::FIRST).unwrap().gathered.remove(0);
    let foreign = other.repository().store().get(foreign.key()).unwrap().unwrap();
    store.create(&key, vec![foreign]).unwrap();
    let index = SegmentIndex::new(&lane);
    assert_eq!(records(&index, names(7..8)[0]), Some(7 * 4096));
    assert_eq!(records(&index, names(65..66)[0]), None);
}

#[test]
fn what_only_a_gathered_index_says_is_no_proof_of_a_segment() {
    let lane = lane_with(0..20);
    gather(&lane);
    let catalog = LaneCatalog::load(&lane).unwrap();
    let gone = names(7..8)[0];
    assert!(SegmentIndex::new(&lane).get(&crate::repo::StoredName::sample(gone)).is_some());
    assert!(!catalog.holds(gone), "only a listing says that a segment is there");
}

#[test]
fn a_real_index_is_gathered_without_a_loss() {
    let lane = lane_without(&[]);
    let catalog = LaneCatalog::load(&lane).unwrap();
    let segments = catalog.timelines[0].segments.clone();
    let job = IndexJob {
        timeline: TimelineId::FIRST,
        middle: "00000000".to_owned(),
        segments: segments.clone(),
        again: false,
    };
    perform_indexing(&lane, &catalog, &job).unwrap();
    put(&lane, 1, b"a second folder");
    let folders = lane.indexes(TimelineId::FIRST).unwrap().folders;
    let job = GatherJob { timeline: TimelineId::FIRST, range: range_of(0), folders };
    let index = SegmentIndex::new(&lane);
    let one_by_one: Vec<_> = segments.iter().map(|name| index.get(&catalog.segment(*name).unwrap())).collect();
    assert!(perform_gathering(&lane, &job).unwrap());
    let index = SegmentIndex::new(&lane);
    let gathered: Vec<_> = segments.iter().map(|name| index.get(&catalog.segment(*name).unwrap())).collect();
    assert_eq!(gathered, one_by_one);
    assert!(gathered.iter().all(Option::is_some));
}

#[test]
fn a_timeline_that_was_left_is_gathered_with_less() {
    let listed = |folders: u64| {
        let lane = lane_with(0..folders);
        lane.indexes(TimelineId::FIRST).unwrap()
    };
    let jobs = |folders, left| plan_gathering(TimelineId::FIRST, left, &listed(folders), &BTreeMap::new()).len();
    assert_eq!((jobs(15, false), jobs(16, false)), (0, 1));
    assert_eq!((jobs(3, true), jobs(4, true)), (0, 1));
}
