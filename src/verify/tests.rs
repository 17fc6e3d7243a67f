//! Verification of the real log in `fixtures/wal`, with what a store may lose or turn.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::pg::wal_fixture::segments;
use crate::repo::lane_fixture::{MAJOR, lane_of, lane_without};
use crate::repo::{SegmentRange, TOMBSTONE_VERSION, Tombstone};

fn chain(lane: &Lane, timeline: u32) -> (LaneCatalog, Vec<SegmentName>) {
    let catalog = LaneCatalog::load(lane).unwrap();
    let names = catalog.timelines.iter().find(|one| one.timeline.number() == timeline).unwrap().segments.clone();
    (catalog, names)
}

#[test]
fn a_whole_log_is_walked_to_its_end() {
    let lane = lane_without(&[]);
    for timeline in [1, 2] {
        let (catalog, names) = chain(&lane, timeline);
        assert_eq!(walk(&lane, &catalog, &names).unwrap(), None, "timeline {timeline}");
    }
}

#[test]
fn a_segment_that_is_damaged_gone_or_of_another_log_ends_the_walk() {
    let mut all = segments(MAJOR, 1);
    let name = all[0].0;
    // A record that does not belong there, in a segment that is stored as it was handed over.
    all[0].1[100_000..100_064].fill(7);
    let lane = lane_of(&all);
    let (catalog, names) = chain(&lane, 1);
    let Some(Problem::LogBroken { segment, .. }) = walk(&lane, &catalog, &names).unwrap() else {
        panic!("not noticed")
    };
    assert_eq!(segment, name);

    let lane = lane_without(&[]);
    let (catalog, names) = chain(&lane, 1);
    let store = lane.repository().store();
    let key = format!("main/{}/wal/00000001/00000000/{name}.zst", lane.id()).parse().unwrap();
    let stored = store.get(&key).unwrap().unwrap();
    store.delete(&key).unwrap();
    let gone = Some(Problem::SegmentDamaged { segment: name, problem: "it was listed and is gone".to_owned() });
    assert_eq!(walk(&lane, &catalog, &names).unwrap(), gone);
    // Unless it was wanted to go.
    let range = SegmentRange { from: name, through: name };
    let (backups, forgotten, packs, wal) = (vec![], vec![], vec![], vec![range]);
    let (expired, kept, host, decided_at) = (vec![], vec![], "db1".to_owned(), chrono::DateTime::UNIX_EPOCH);
    let version = TOMBSTONE_VERSION;
    let stone = Tombstone { version, host, decided_at, backups, forgotten, packs, wal, expired, kept };
    lane.create_tombstone(1, &stone).unwrap();
    assert_eq!(walk(&lane, &catalog, &names).unwrap(), None);
    let mut turned = stored.to_vec();
    turned[stored.len() / 2] ^= 1;
    store.create(&key, vec![turned.into()]).unwrap();
    let found = walk(&lane, &catalog, &names).unwrap();
    assert!(matches!(found, Some(Problem::SegmentDamaged { segment, .. }) if segment == name), "{found:?}");
}
