//! The real log in `fixtures/wal`: timeline 2 forks off inside segment 11 of timeline 1, which goes on alone.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::repo::lane_fixture::lane_without;

fn told(left_out: &[&str]) -> Vec<Chronicle> {
    let lane = lane_without(left_out);
    let catalog = LaneCatalog::load(&lane).unwrap();
    chronicle(&lane, &catalog).unwrap()
}

#[test]
fn a_restore_point_is_told_once_with_its_place() {
    let told = told(&[]);
    assert_eq!(told.iter().map(|one| one.timeline.number()).collect::<Vec<_>>(), [1, 2]);
    let points: Vec<_> =
        told[0].events.iter().filter(|event| matches!(event.what, Happening::RestorePoint { .. })).collect();
    let named =
        points.iter().find(|event| event.what == Happening::RestorePoint { name: "before the drop".to_owned() });
    assert_eq!(named.unwrap().at, "0/7375C0".parse().unwrap());
    assert!(named.unwrap().time.is_some() && named.unwrap().exact);
    // The child's first segment begins with a copy of the parent's log.
    let fork: Lsn = "0/1110560".parse().unwrap();
    assert!(told[1].events.iter().all(|event| event.at >= fork), "{:?}", told[1].events);
    assert!(told[1].clock.iter().all(|(at, _)| *at > fork));
}

#[test]
fn the_clock_runs_with_the_log_and_never_back() {
    for one in told(&[]) {
        assert!(one.clock.len() > 2);
        assert!(one.clock.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{:?}", one.clock);
    }
}

#[test]
fn what_is_missing_between_segments_is_told_with_the_times_around_it() {
    let told = told(&["000000010000000000000009", "00000001000000000000000A"]);
    let [gap] = told[0].gaps.as_slice() else { panic!("{:?}", told[0].gaps) };
    assert_eq!((gap.first.to_string().as_str(), gap.segments), ("000000010000000000000009", 2));
    assert!(gap.after.unwrap() <= gap.before.unwrap());
    assert!(told[1].gaps.is_empty());
}

#[test]
fn commits_that_no_backup_has_names_for_are_only_counted() {
    let told = told(&[]);
    assert!(told[0].unnamed > 0);
    assert!(!told[0].events.iter().any(|event| matches!(event.what, Happening::Relation { .. })));
}
