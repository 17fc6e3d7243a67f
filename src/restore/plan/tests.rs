//! Plans over the real log in `fixtures/wal`: timeline 2 forks off inside segment 11 of timeline 1, which goes on alone.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::catalog::{IndexJob, perform_indexing};
use crate::format::Sha256;
use crate::format::index::IndexedSegment;
use crate::format::manifest::{Envelope, MANIFEST_VERSION, Root};
use crate::format::recovery_plan::Planned;
use crate::format::tables::Tables;
use crate::pg::wal_facts::WalFacts;
use crate::pg::wal_fixture::{Log, one_mib, segments};
use crate::pg::wal_walk::Walker;
use crate::repo::lane_fixture::{MAJOR, lane_of, lane_without};
use crate::repo::{Claim, HOLE_VERSION, Hole, OWNER_VERSION, Owner, WaitsFor};
use crate::store::Verb;

mod damaged;
mod forests;

const FORK: &str = "0/1110560";

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

fn backup(lane: &Lane, id: &str, start: &str, stop: &str) {
    backup_at(lane, id, start, stop, "2026-11-21T00:00:00Z".parse().unwrap());
}

pub(super) fn backup_at(lane: &Lane, id: &str, start: &str, stop: &str, at: DateTime<Utc>) {
    backup_on(lane, TimelineId::FIRST, id, start, stop, at);
}

pub(super) fn backup_on(lane: &Lane, timeline: TimelineId, id: &str, start: &str, stop: &str, at: DateTime<Utc>) {
    let limits = Limits {
        max_connections: 50,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 10,
        max_locks_per_transaction: 64,
    };
    let envelope = Envelope {
        version: MANIFEST_VERSION,
        backup: id.to_owned(),
        lane: lane.id().to_string(),
        generation: 1,
        parent: None,
        major: MAJOR,
        timeline,
        start_lsn: lsn(start),
        stop_lsn: lsn(stop),
        started_at: at,
        stopped_at: at,
        segment_size: 1 << 20,
        bytes: 0,
        stored_bytes: 0,
        named_bytes: None,
        files: 0,
        packs: 0,
        annotations: Default::default(),
        wal: Vec::new(),
    };
    let root = Root {
        version: MANIFEST_VERSION,
        system_id: lane.id().system_id(),
        backup_label: String::new(),
        tablespaces: Vec::new(),
        databases: Vec::new(),
        limits,
        server_version: "15".to_owned(),
        block_size: 8192,
        relation_segment_blocks: 131_072,
        wal_block_size: 8192,
        data_checksums: true,
        pg_control: Vec::new(),
        configuration: None,
        links: Vec::new(),
        damaged_pages: Vec::new(),
        damaged_total: 0,
    };
    lane.commit(&Manifest { envelope, root }, &Tables::default()).unwrap();
}

fn ask(lane: &Lane, target: Target, timeline: Option<u32>) -> Result<Plan, PlanError> {
    let catalog = LaneCatalog::load(lane).unwrap();
    let timeline = timeline.map(|number| TimelineId::new(number).unwrap());
    plan(lane, &catalog, &Request { target, purpose: Purpose::Primary, exclusive: false, timeline, backup: None })
}

/// The lane of most tests: everything archived, one backup at the start.
fn whole() -> Lane {
    let lane = lane_without(&[]);
    backup(&lane, "first", "0/700028", "0/7000D8");
    lane
}

fn only_refusal(result: Result<Plan, PlanError>) -> RefusalReason {
    match result {
        Err(PlanError::Unreachable { refusals }) => {
            assert_eq!(refusals.len(), 1, "{refusals:?}");
            refusals.into_iter().next().unwrap().reason
        }
        other => panic!("{other:?} is no refusal"),
    }
}

#[test]
fn latest_names_the_start_of_the_last_complete_record() {
    let lane = whole();
    for timeline in [1, 2] {
        let plan = ask(&lane, Target::Latest, Some(timeline)).unwrap();
        let last = segments(MAJOR, timeline);
        let mut walker = Walker::new(None, one_mib());
        let mut reached = None;
        for (name, raw) in &last {
            walker.segment(*name, raw, &mut |found| reached = Some((found.start, found.end)));
        }
        let (start, end) = reached.unwrap();
        assert_eq!((plan.point.record, plan.point.reach), (start, end), "timeline {timeline}");
        assert_ne!(start, end);
        assert_eq!(plan.timeline().number(), timeline);
    }
}

fn owned(lane: &Lane, waits_for: Option<WaitsFor>, number: u32) {
    let text = |text: &str| text.to_owned();
    let (writer, host, since) = (text("b"), text("db2"), text("x"));
    let owner = Owner { version: OWNER_VERSION, writer, host, since, claim: Claim::First, waits_for };
    lane.record_owner(TimelineId::new(2).unwrap(), number, &owner).unwrap();
}

#[test]
fn a_branch_that_does_not_count_is_never_taken_for_the_newest_moment() {
    // Timeline 1 ends at the fork: whoever counts timeline 2 has no choice to make.
    let lane = lane_without(&["000000010000000000000011"]);
    backup(&lane, "first", "0/700028", "0/7000D8");
    let standby = || {
        let catalog = LaneCatalog::load(&lane).unwrap();
        let (target, purpose) = (Target::Latest, Purpose::Standby);
        plan(&lane, &catalog, &Request { target, purpose, exclusive: false, timeline: None, backup: None }).unwrap()
    };
    assert_eq!(ask(&lane, Target::Latest, None).unwrap().timeline().number(), 2);
    assert_eq!(standby().timeline().number(), 2);
    let waits = WaitsFor { timeline: TimelineId::FIRST, host: "db1".to_owned(), grace_seconds: 900 };
    owned(&lane, Some(waits), 1);
    for target in [Target::Latest, Target::Lsn(lsn("0/1200100"))] {
        // Timeline 1 does not lead so far, and that is no reason to take the other one.
        let Err(PlanError::Waiting { timeline, .. }) = ask(&lane, target, None) else { panic!("a guess was made") };
        assert_eq!(timeline.number(), 2);
    }
    assert!(ask(&lane, Target::Lsn(lsn("0/880000")), None).is_ok(), "both share what lies before the fork");
    assert_eq!(standby().timeline().number(), 1);
    assert_eq!(ask(&lane, Target::Latest, Some(2)).unwrap().timeline().number(), 2, "who names it gets it");
    // A timeline 1 that leads on stays to be chosen.
    let all = lane_without(&[]);
    backup(&all, "first", "0/700028", "0/7000D8");
    owned(&all, lane.owners(TimelineId::new(2).unwrap()).unwrap().current.unwrap().owner.waits_for, 1);
    let Err(PlanError::Ambiguous { choices }) = ask(&all, Target::Latest, None) else { panic!("a guess was made") };
    assert_eq!(choices.iter().map(|choice| choice.waits_for.is_some()).collect::<Vec<_>>(), [false, true]);
    owned(&lane, None, 2);
    assert_eq!(ask(&lane, Target::Latest, None).unwrap().timeline().number(), 2);
    assert_eq!(standby().timeline().number(), 2);
}

#[test]
fn nothing_is_replayed_across_what_was_given_up() {
    let lane = whole();
    let segment = |text: &str| text.parse::<SegmentName>().unwrap();
    let hole = Hole {
        version: HOLE_VERSION,
        from: segment("000000010000000000000009"),
        through: segment("00000001000000000000000A"),
        reason: "disk".to_owned(),
        host: "db1".to_owned(),
        decided_at: DateTime::UNIX_EPOCH,
        disputed: false,
    };
    lane.record_hole(&hole).unwrap();
    for target in [Target::Latest, Target::Lsn(lsn("0/C00100"))] {
        let RefusalReason::Hole { missing, proof, reach, .. } = only_refusal(ask(&lane, target, Some(1))) else {
            panic!("the hole is passed over")
        };
        assert_eq!((missing, proof.ends_with("given up: disk")), (hole.from, true), "{proof}");
        let before = ask(&lane, Target::Lsn(reach), Some(1));
        assert!(before.is_ok(), "{reach} lies before it: {before:?}");
    }
    // Only a backup that begins behind it leads on.
    backup(&lane, "second", "0/B00028", "0/B000D8");
    let plan = ask(&lane, Target::Latest, Some(1)).unwrap();
    assert_eq!(plan.manifest.envelope.backup, "second");
}

#[test]
fn two_branches_that_go_on_are_never_guessed_between() {
    let lane = whole();
    let Err(PlanError::Ambiguous { choices }) = ask(&lane, Target::Latest, None) else { panic!("a guess was made") };
    let timelines: Vec<u32> = choices.iter().map(|choice| choice.timeline.number()).collect();
    assert_eq!(timelines, [1, 2]);
    assert_eq!(choices[1].forked_at, Some(lsn(FORK)));
}

#[test]
fn a_standby_goes_to_the_newest_timeline_as_postgresql_does() {
    let catalog = LaneCatalog::load(&whole()).unwrap();
    let (target, purpose) = (Target::Latest, Purpose::Standby);
    let request = Request { target, purpose, exclusive: false, timeline: None, backup: None };
    let plan = plan(&whole(), &catalog, &request).unwrap();
    assert_eq!(plan.timeline().number(), 2);
}

#[test]
fn a_point_before_the_fork_is_one_point_whichever_branch_leads_there() {
    let plan = ask(&whole(), Target::Lsn(lsn("0/1110538")), None).unwrap();
    assert_eq!(plan.timeline(), TimelineId::FIRST);
    assert_eq!(plan.point.reach, lsn("0/1110538"));
}

#[test]
fn a_position_includes_what_ended_there_and_nothing_after() {
    let lane = whole();
    // The record at 0/1110538 is a commit of 34 bytes and ends at 0/1110560.
    for (asked, record, reach) in [
        ("0/1110560", "0/1110538", "0/1110560"),
        ("0/111055F", "0/11104F8", "0/1110538"),
        ("0/1110561", "0/1110538", "0/1110560"),
    ] {
        let plan = ask(&lane, Target::Lsn(lsn(asked)), Some(1)).unwrap();
        assert_eq!((plan.point.record, plan.point.reach), (lsn(record), lsn(reach)), "--to-lsn {asked}");
    }
}

#[test]
fn the_fetch_plan_takes_the_fork_segment_from_the_child() {
    let plan = ask(&whole(), Target::Latest, Some(2)).unwrap().for_fetch(String::new());
    let asked = |name: &str| plan.segment(name.parse().unwrap());
    assert_eq!(asked("000000010000000000000010"), Planned::Needed);
    assert_eq!(asked("000000010000000000000011"), Planned::OffBranch);
    assert_eq!(asked("000000020000000000000011"), Planned::Needed);
    assert_eq!(asked("000000020000000000000014"), Planned::PastTarget);
}

#[test]
fn a_hole_before_the_target_is_named_with_what_proves_it() {
    let lane = lane_without(&["00000001000000000000000A"]);
    backup(&lane, "first", "0/700028", "0/7000D8");
    for target in [Target::Latest, Target::Lsn(lsn("0/1110560")), Target::Time(end_times(1).last().unwrap().1.to_utc())]
    {
        let RefusalReason::Hole { missing, proof, .. } = only_refusal(ask(&lane, target.clone(), Some(1))) else {
            panic!("{target:?} was not refused for the hole");
        };
        assert_eq!(missing.to_string(), "00000001000000000000000A");
        assert_eq!(proof, "00000001000000000000000B is there");
    }
}

#[test]
fn a_hole_in_an_ancestor_is_in_the_way_of_its_child_until_a_backup_lies_behind_it() {
    let lane = lane_without(&["00000001000000000000000A"]);
    backup(&lane, "first", "0/700028", "0/7000D8");
    let RefusalReason::Hole { missing, .. } = only_refusal(ask(&lane, Target::Latest, Some(2))) else {
        panic!("the hole is passed over")
    };
    assert_eq!(missing.to_string(), "00000001000000000000000A");
    backup(&lane, "second", "0/B00028", "0/B000D8");
    let plan = ask(&lane, Target::Latest, Some(2)).unwrap();
    assert_eq!((plan.manifest.envelope.backup.as_str(), plan.timeline().number()), ("second", 2));
}

#[test]
fn a_childs_history_without_its_first_segment_is_a_hole_at_the_fork() {
    let lane = lane_without(&[
        "000000020000000000000011",
        "000000020000000000000012",
        "000000020000000000000013",
        "000000010000000000000011",
        "000000010000000000000012",
        "000000010000000000000013",
    ]);
    backup(&lane, "first", "0/700028", "0/7000D8");
    for timeline in [None, Some(1), Some(2)] {
        let refused = ask(&lane, Target::Latest, timeline);
        let Err(PlanError::Unreachable { refusals }) = &refused else { panic!("{refused:?}") };
        for refusal in refusals {
            assert!(matches!(refusal.reason, RefusalReason::Hole { .. }), "{refusal:?}");
        }
    }
    // What is archived can still be asked for by position.
    assert!(ask(&lane, Target::Lsn(lsn("0/1000000")), Some(1)).is_ok());
}

#[test]
fn the_parents_end_is_not_a_choice_where_the_child_goes_on_from_it() {
    let lane = lane_without(&["000000010000000000000011", "000000010000000000000012", "000000010000000000000013"]);
    backup(&lane, "first", "0/700028", "0/7000D8");
    assert_eq!(ask(&lane, Target::Latest, None).unwrap().timeline().number(), 2);
}

#[test]
fn a_restore_point_is_found_by_its_name() {
    let plan = ask(&whole(), Target::Name("before the drop".to_owned()), None).unwrap();
    assert_eq!(plan.point.record, lsn("0/7375C0"));
    let refused = only_refusal(ask(&whole(), Target::Name("nobody made this".to_owned()), Some(1)));
    assert!(matches!(refused, RefusalReason::NoSuchName { .. }), "{refused:?}");
}

/// A restore point's record, as a body for [`Log::record`].
pub(super) fn restore_point(name: &str) -> Vec<u8> {
    let mut body = vec![255, 72];
    body.extend(846_000_000_000_000_i64.to_le_bytes());
    body.extend(name.bytes().chain(std::iter::repeat(0)).take(64));
    body
}

/// Fills a log up to `left` bytes before the end of its first segment.
fn filled_to(left: u64) -> Log {
    let mut log = Log::new();
    log.record(11, 0, &[255, 4, 1, 2, 3, 4]);
    let room = (1 << 20) - one_mib().offset_of(log.position()) - left;
    // What the pages' headers take of the room, and the record's own.
    let pages = room / Log::PAGE as u64;
    let mut body = vec![254];
    let len = room - pages * 24 - 24 - 5;
    body.extend((len as u32).to_le_bytes());
    body.resize(5 + len as usize, 7);
    log.record(11, 0, &body);
    log
}

#[test]
fn a_moment_in_a_record_that_crosses_into_the_next_segment_is_found() {
    for left in [16, 40, 64, 80] {
        let mut log = filled_to(left);
        log.record(0, 0x70, &restore_point("across"));
        let (start, _) = *log.records.last().unwrap();
        log.record(11, 0, &[255, 4, 1, 2, 3, 4]);
        let size = one_mib();
        assert_ne!(size.segment_of(start), size.segment_of(log.position()), "the record does not cross");
        let lane = lane_of(&log.segments());
        let catalog = LaneCatalog::load(&lane).unwrap();
        let hinted = catalog.timelines[0].segments.iter().any(|name| {
            let stored = catalog.segment(*name).unwrap();
            !lane.wal_facts(&stored).unwrap().unwrap().restore_points.is_empty()
        });
        assert!(!hinted, "one segment alone shows the point, so this tests nothing");
        backup(&lane, "first", "0/100028", "0/100030");
        let plan = ask(&lane, Target::Name("across".to_owned()), None).unwrap();
        assert_eq!(plan.point.record, start, "{left} bytes before the boundary");
        assert_eq!(plan.wal.len(), 2);
    }
}

#[test]
fn what_the_log_asks_of_the_host_is_found_in_a_record_that_crosses_into_the_next_segment() {
    let tablespace = |path: &str| {
        let main: Vec<u8> = [&16500u32.to_le_bytes()[..], path.as_bytes(), b"\0"].concat();
        [&[255, main.len() as u8], &main[..]].concat()
    };
    let words: Vec<u8> = [777i32, 8, 10, 0, 64, 1].iter().flat_map(|word| word.to_le_bytes()).collect();
    let parameters = [&[255, 28], &words[..], &[0; 4]].concat();
    for left in [16, 24, 40, 48] {
        for (manager, info, body) in [(5, 0x00, tablespace("/srv/late")), (0, 0x60, parameters.clone())] {
            let mut log = filled_to(left);
            log.record(manager, info, &body);
            let (start, _) = *log.records.last().unwrap();
            log.record(11, 0, &[255, 4, 1, 2, 3, 4]);
            assert_ne!(one_mib().segment_of(start), one_mib().segment_of(log.position()), "it does not cross");
            let lane = lane_of(&log.segments());
            backup(&lane, "first", "0/100028", "0/100030");
            let plan = ask(&lane, Target::Lsn(log.position()), None).unwrap();
            if manager == 5 {
                assert_eq!(plan.tablespaces_created, [(16500, "/srv/late".to_owned())], "{left} bytes before");
            } else {
                assert_eq!(plan.limits.max_connections, 777, "{left} bytes before");
            }
            let before = ask(&lane, Target::Lsn(start), None).unwrap();
            assert!(before.tablespaces_created.is_empty(), "{left} bytes before, and left out");
        }
    }
}

#[test]
fn a_tablespace_that_was_created_before_the_backup_began_is_not_replayed() {
    let mut log = Log::new();
    let main: Vec<u8> = [&16500u32.to_le_bytes()[..], b"/srv/early\0"].concat();
    log.record(5, 0x00, &[&[255, main.len() as u8], &main[..]].concat());
    let start = log.position();
    log.record(11, 0, &[255, 4, 1, 2, 3, 4]);
    let stop = log.position();
    let lane = lane_of(&log.segments());
    backup(&lane, "first", &start.to_string(), &stop.to_string());
    assert!(ask(&lane, Target::Lsn(log.position()), None).unwrap().tablespaces_created.is_empty());
}

#[test]
fn a_moment_ends_before_the_first_transaction_past_it() {
    let lane = whole();
    let times = end_times(1);
    for pair in times.windows(2).filter(|pair| pair[0].1 < pair[1].1) {
        let plan = ask(&lane, Target::Time(pair[0].1.to_utc()), Some(1)).unwrap();
        let expected = times.iter().find(|(_, time)| *time > pair[0].1).unwrap();
        assert_eq!(plan.point.record, expected.0, "to {}", pair[0].1);
        assert!(plan.point.reach <= expected.0 && expected.0 - plan.point.reach < 64, "{:?}", plan.point);
    }
    let last = times.iter().map(|(_, time)| *time).max().unwrap();
    let refused = only_refusal(ask(&lane, Target::Time(last.to_utc()), Some(1)));
    assert_eq!(refused, RefusalReason::NothingAfter { time: Some(last) });
}

/// Start and time of every commit and abort of a timeline's segments, in the order of the log.
fn end_times(timeline: u32) -> Vec<(Lsn, PgTime)> {
    use crate::pg::wal_event::WalEvent;
    let mut times = Vec::new();
    let mut walker = Walker::new(None, one_mib());
    for (name, raw) in &segments(MAJOR, timeline) {
        walker.segment(*name, raw, &mut |record| {
            if let Some(WalEvent::TransactionEnd { time: Some(time), .. }) = WalEvent::read(record) {
                times.push((record.start, time));
            }
        });
    }
    assert!(times.len() > 10);
    times
}

#[test]
fn a_transaction_is_the_last_one_or_left_out() {
    let lane = whole();
    let catalog = LaneCatalog::load(&lane).unwrap();
    let to = |xid, exclusive| {
        let target = Target::Xid(xid);
        let request = Request { target, purpose: Purpose::Primary, exclusive, timeline: None, backup: None };
        plan(&lane, &catalog, &request)
    };
    // Transaction 746 commits at 0/1110538, on the common part of both timelines.
    let included = to(746, false).unwrap().point;
    assert_eq!((included.record, included.reach), (lsn("0/1110538"), lsn("0/1110560")));
    let left_out = to(746, true).unwrap().point;
    assert_eq!((left_out.record, left_out.reach), (lsn("0/1110538"), lsn("0/1110538")));
    // 747 commits on both, in different places.
    assert!(matches!(to(747, false), Err(PlanError::Ambiguous { .. })));
    let refused = to(4_000_000, false).unwrap_err();
    assert!(refused.to_string().contains("transaction 4000000 neither commits nor aborts"), "{refused}");
}

#[test]
fn a_target_before_the_end_of_every_backup_is_refused() {
    let lane = whole();
    let refused = only_refusal(ask(&lane, Target::Lsn(lsn("0/7000D0")), Some(1)));
    assert_eq!(refused, RefusalReason::BeforeBackup { earliest: lsn("0/7000D8") });
    let first = end_times(1)[0].1.to_utc() - chrono::TimeDelta::seconds(1);
    let late = lane_without(&[]);
    backup(&late, "late", "0/B00028", "0/D00028");
    let refused = only_refusal(ask(&late, Target::Time(first), Some(1)));
    assert!(matches!(refused, RefusalReason::BeforeBackup { .. }), "{refused:?}");
}

#[test]
fn an_older_backup_serves_where_the_newer_one_ends_too_late() {
    let lane = whole();
    backup(&lane, "late", "0/B00028", "0/D00028");
    let backup_for = |text| ask(&lane, Target::Lsn(lsn(text)), Some(1)).unwrap().manifest.envelope.backup;
    assert_eq!(backup_for("0/C00028"), "first");
    assert_eq!(backup_for("0/E00028"), "late");
}

#[test]
fn a_moment_before_the_newer_backup_began_is_not_looked_for_in_its_log() {
    let lane = whole();
    let times = end_times(1);
    let before = times.iter().rposition(|(start, _)| *start < lsn("0/B00028")).unwrap();
    // It ended before any transaction did.
    backup_at(&lane, "late", "0/B00028", "0/B00030", times[before].1.to_utc());
    // Between the last two commits before the backup: its log holds neither.
    let plan = ask(&lane, Target::Time(times[before - 1].1.to_utc()), Some(1)).unwrap();
    assert_eq!((plan.manifest.envelope.backup.as_str(), plan.point.record), ("first", times[before].0));
    let plan = ask(&lane, Target::Time(times[before].1.to_utc()), Some(1)).unwrap();
    assert_eq!((plan.manifest.envelope.backup.as_str(), plan.point.record), ("late", times[before + 1].0));
}

#[test]
fn a_restore_point_before_the_newer_backup_is_reached_from_an_older_one() {
    let lane = whole();
    backup(&lane, "late", "0/B00028", "0/D00028");
    let plan = ask(&lane, Target::Name("before the drop".to_owned()), Some(1)).unwrap();
    assert_eq!((plan.manifest.envelope.backup.as_str(), plan.point.record), ("first", lsn("0/7375C0")));
}

#[test]
fn a_name_that_was_given_before_and_after_a_backup_is_refused() {
    let mut log = Log::new();
    log.record(0, 0x70, &restore_point("again"));
    for len in [0xf_0000_u32, 0x1_8000] {
        log.record(11, 0, &[&[254], &len.to_le_bytes()[..], &vec![7; len as usize]].concat());
    }
    let start = log.position();
    assert_ne!(one_mib().segment_of(start), one_mib().segment_of(log.records[0].0));
    log.record(11, 0, &[255, 4, 1, 2, 3, 4]);
    let stop = log.position();
    log.record(0, 0x70, &restore_point("again"));
    let lane = lane_of(&log.segments());
    backup(&lane, "first", "0/100028", "0/100028");
    backup(&lane, "late", &start.to_string(), &stop.to_string());
    let refused = only_refusal(ask(&lane, Target::Name("again".to_owned()), None));
    let RefusalReason::NameRepeats { at, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!((at.len(), at.last()), (2, Some(&log.position())));
}

#[test]
fn a_position_past_the_end_of_the_log_is_refused_with_the_end() {
    let refused = only_refusal(ask(&whole(), Target::Lsn(lsn("0/1500000")), Some(1)));
    assert!(matches!(refused, RefusalReason::AfterEnd { .. }), "{refused:?}");
}

#[test]
fn limits_rise_with_what_the_log_records() {
    let plan = ask(&whole(), Target::Latest, Some(1)).unwrap();
    assert_eq!(plan.limits.max_connections, 57, "the fixture's server was restarted with 57 connections");
    let early = ask(&whole(), Target::Name("before the drop".to_owned()), Some(1)).unwrap();
    assert_eq!(early.limits.max_connections, 50, "nothing before that point records another value");
}

#[test]
fn records_that_stop_in_the_middle_of_the_archive_are_not_its_end() {
    let mut log = filled_to(40);
    for _ in 0..40 {
        log.record(11, 0, &[vec![254, 0, 0x80, 0, 0], vec![9; 0x8000]].concat());
    }
    let mut segments = log.segments();
    assert!(segments.len() > 2);
    segments[1].1[500_000] ^= 1;
    let lane = lane_of(&segments);
    backup(&lane, "first", "0/100028", "0/100030");
    let refused = only_refusal(ask(&lane, Target::Latest, None));
    let RefusalReason::Broken { segment, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(segment, segments[1].0);
}

/// Every index that could be made of a lane, as if all its folders were finished.
fn index(lane: &Lane) {
    let catalog = LaneCatalog::load(lane).unwrap();
    for timeline in &catalog.timelines {
        let (timeline, segments) = (timeline.timeline, timeline.segments.clone());
        perform_indexing(lane, &catalog, &IndexJob { timeline, middle: "00000000".to_owned(), segments, again: false })
            .unwrap();
    }
}

#[test]
fn with_an_index_every_answer_is_the_same_and_no_hint_is_read() {
    let (bare, indexed) = (whole(), whole());
    index(&indexed);
    let mut targets = vec![Target::Latest, Target::BackupEnd, Target::Name("before the drop".to_owned())];
    targets.extend(end_times(1).iter().step_by(4).map(|(_, time)| Target::Time(time.to_utc())));
    targets.extend([731, 736, 745].map(Target::Xid));
    for timeline in [1, 2] {
        for target in &targets {
            let [bare, with_index] = [&bare, &indexed].map(|lane| match ask(lane, target.clone(), Some(timeline)) {
                Ok(plan) => Ok((plan.point, plan.last_commit, plan.last_seen, plan.limits, plan.wal)),
                Err(PlanError::Unreachable { refusals }) => Err(refusals),
                Err(other) => panic!("{other:?}"),
            });
            assert_eq!(with_index, bare, "{target:?} on {timeline}");
        }
    }
    let ranges = |lane: &Lane| {
        let before = lane.repository().store().requests().of(Verb::GetRange);
        ask(lane, Target::Name("before the drop".to_owned()), Some(1)).unwrap();
        lane.repository().store().requests().of(Verb::GetRange) - before
    };
    assert!(ranges(&indexed) < ranges(&bare));
}

#[test]
fn an_index_of_other_bytes_is_found_out() {
    let lane = whole();
    let catalog = LaneCatalog::load(&lane).unwrap();
    let segments = catalog.timelines[0].segments.clone();
    let mut members: Vec<IndexedSegment> = segments
        .iter()
        .map(|name| IndexedSegment {
            segment: *name,
            stored_bytes: catalog.segment(*name).unwrap().stored_bytes,
            sha256: Sha256::of(b"other bytes"),
            joined_after: None,
            facts: WalFacts { indexer: 2, ..WalFacts::default() },
        })
        .collect();
    members[0].facts.max_xid = None;
    lane.create_index(TimelineId::FIRST, "00000000", &members).unwrap();
    let refused = ask(&lane, Target::Latest, Some(1));
    assert!(matches!(refused, Err(PlanError::Survey(SurveyError::OtherIndex { .. }))), "{refused:?}");
}
