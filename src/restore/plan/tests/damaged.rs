//! Damage in the middle of the log: what lies before it, what lies behind it, and what `timelines` says of both.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::pg::segment::SegmentNo;
use crate::pg::wal_name::WalFileName;
use crate::repo::lane_fixture::archive;
use crate::restore::{ReachEnd, reach};

/// A log of six segments of many records; damage is done to the third.
const DAMAGED: usize = 2;

fn log() -> Log {
    let mut log = Log::new();
    while one_mib().segment_of(log.position()) <= SegmentNo(6) {
        log.record(11, 0, &[&[255, 250], &[9; 250][..]].concat());
    }
    log
}

/// A backup that begins with one record of a segment and ends with the next one of another.
fn backup_in(lane: &Lane, log: &Log, id: &str, first: u64, last: u64) {
    let starts = log.records.iter().map(|(start, _)| *start);
    let within =
        |number: u64| starts.clone().filter(move |start| one_mib().segment_of(*start) == SegmentNo(number)).nth(50);
    let (start, stop) = (within(first).unwrap(), within(last).unwrap() + 600);
    let stop = starts.clone().find(|start| *start >= stop).unwrap();
    backup(lane, id, &start.to_string(), &stop.to_string());
}

/// The segments, the third one with a record that does not verify, or with an object that does not.
fn lane_with_damage(log: &Log, in_object: bool) -> (Lane, SegmentName) {
    let mut segments = log.segments();
    segments.truncate(6);
    let name = segments[DAMAGED].0;
    if !in_object {
        segments[DAMAGED].1[700_000] ^= 1;
    }
    let lane = lane_of(&segments);
    if in_object {
        let catalog = LaneCatalog::load(&lane).unwrap();
        let key = lane.stored_key(&catalog.segment(name).unwrap()).unwrap();
        let store = lane.repository().store();
        let mut bytes = store.get(&key).unwrap().unwrap().to_vec();
        let end = bytes.len() - 40;
        bytes[end] ^= 1;
        store.delete(&key).unwrap();
        store.create(&key, vec![bytes.into()]).unwrap();
    }
    (lane, name)
}

#[test]
fn a_backup_behind_the_damage_leads_on_and_one_across_it_leads_nowhere() {
    let log = log();
    for in_object in [false, true] {
        let (lane, name) = lane_with_damage(&log, in_object);
        backup_in(&lane, &log, "before", 1, 2);
        backup_in(&lane, &log, "across", 2, 4);
        backup_in(&lane, &log, "behind", 4, 5);
        backup_in(&lane, &log, "later", 5, 5);
        let catalog = LaneCatalog::load(&lane).unwrap();
        let [own] = reach(&lane, &catalog).unwrap().try_into().unwrap();
        let told: Vec<(&str, usize)> = own.restorable.iter().map(|one| (one.backup.as_str(), one.backups)).collect();
        assert_eq!(told, [("before", 1), ("behind", 2)], "in the object {in_object}");
        assert_eq!(own.incomplete, ["across"]);
        let [first, second] = &own.restorable[..] else { panic!("two") };
        assert_eq!((&first.end, &second.end), (&ReachEnd::Broken, &ReachEnd::Newest));
        let damaged = name.number(one_mib()).unwrap();
        let begins = if in_object { damaged.start(one_mib()) } else { damaged.start(one_mib()) + 700_000 };
        assert!(first.to <= begins && first.to + 1000 > begins, "{} before {begins}", first.to);
        // What it says is what a plan finds.
        for (at, reachable) in [
            (first.from, true),
            (first.to, true),
            (first.to + 8, false),
            (Lsn::new(second.from.bytes() - 8), false),
            (second.from, true),
            (second.to, true),
        ] {
            let planned = ask(&lane, Target::Lsn(at), None);
            assert_eq!(planned.is_ok(), reachable, "{at}: {planned:?}");
        }
        let latest = ask(&lane, Target::Latest, None).unwrap();
        assert_eq!((latest.manifest.envelope.backup.as_str(), latest.point.reach), ("later", second.to));
    }
}

#[test]
fn what_is_archived_behind_a_partial_does_not_continue_it() {
    // Timeline 1 was left in its last segment, of which only the `.partial` is there; a later one is there as well.
    let last: SegmentName = "000000010000000000000011".parse().unwrap();
    let (_, raw) = segments(MAJOR, 1).into_iter().find(|(name, _)| *name == last).unwrap();
    let later = SegmentName::from_number(TimelineId::FIRST, last.number(one_mib()).unwrap().next(), one_mib());
    for behind in [false, true] {
        let lane = lane_without(&[&last.to_string()]);
        archive(&lane, &WalFileName::Partial(last), &raw);
        if behind {
            archive(&lane, &WalFileName::Segment(later), &raw);
        }
        backup(&lane, "first", "0/700028", "0/7000D8");
        let catalog = LaneCatalog::load(&lane).unwrap();
        let own = reach(&lane, &catalog).unwrap().into_iter().find(|one| one.timeline == TimelineId::FIRST).unwrap();
        let [only] = &own.restorable[..] else { panic!("{own:?}") };
        assert!(only.to <= lsn(FORK), "{} is past the fork", only.to);
        match ask(&lane, Target::Latest, Some(1)) {
            Ok(plan) if !behind => {
                assert_eq!(plan.point.reach, only.to);
                assert_eq!(only.end, ReachEnd::Newest);
            }
            Err(PlanError::Unreachable { refusals }) if behind => {
                assert!(
                    matches!(refusals[0].reason, RefusalReason::Hole { missing, .. } if missing == last),
                    "{refusals:?}"
                );
                assert!(matches!(only.end, ReachEnd::Hole { missing, .. } if missing == last), "{only:?}");
            }
            other => panic!("with a later one {behind}: {other:?}"),
        }
        // Moments before the fork are not in question.
        assert!(ask(&lane, Target::Lsn(only.to), Some(1)).is_ok());
    }
}
