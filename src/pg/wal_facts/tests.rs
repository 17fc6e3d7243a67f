//! Facts of the real segments in `fixtures/wal`, and of logs written record by record.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::pg::wal_fixture::{Log, MAJORS, one_mib, segments};

/// The facts of each segment of a fixture's first timeline, from one walk.
fn walked(major: u16) -> Vec<WalFacts> {
    let mut walker = Walker::new(None, one_mib());
    segments(major, 1).iter().map(|(name, bytes)| WalFacts::of_walk(&mut walker, *name, bytes)).collect()
}

fn alone(major: u16, timeline: u32) -> Vec<WalFacts> {
    let facts = segments(major, timeline);
    facts.iter().map(|(name, bytes)| WalFacts::of_segment(*name, bytes, one_mib(), None)).collect()
}

#[test]
fn a_segment_in_parts_tells_what_it_tells_whole() {
    for major in MAJORS {
        for (name, bytes) in segments(major, 1) {
            for len in [8192, 65_536, 1 << 20, 2 << 20] {
                let mut walk = FactsWalk::new(name, one_mib(), None);
                bytes.chunks(len).for_each(|part| walk.part(part));
                let mut found = walk.finish();
                let changes = found.changes.take().unwrap();
                assert_eq!(found, WalFacts::of_segment(name, &bytes, one_mib(), None), "{name} by {len}");
                assert_eq!(*changes, SegmentChanges::of_segment(name, &bytes, one_mib(), None), "{name} by {len}");
            }
            let cut = &bytes[..bytes.len() / 2 + 100];
            let mut walk = FactsWalk::new(name, one_mib(), None);
            cut.chunks(8192).for_each(|part| walk.part(part));
            assert_eq!(walk.finish().end, WalFacts::of_segment(name, cut, one_mib(), None).end, "{name} cut");
        }
    }
}

#[test]
fn the_first_segment_of_each_major_tells_what_was_done_in_it() {
    for major in MAJORS {
        let facts = &alone(major, 1)[0];
        assert_eq!((facts.begins, facts.indexer), (SegmentBegin::Record, WAL_FACTS_VERSION));
        assert_eq!(facts.restore_points[0].name, "before the drop", "{major}");
        assert!(facts.restore_points[0].at < facts.restore_points[0].end);
        let made = facts.restore_points[0].time.unwrap();
        assert!(facts.min_time.unwrap() < made && made < facts.max_time.unwrap(), "{major}");
        assert_eq!(facts.aborts, 3, "{major}: a rollback, one to a savepoint, one of a prepared transaction");
        assert!(facts.commits >= 5, "{major}");
        let tablespace = &facts.tablespaces[0];
        assert_eq!(tablespace.path, format!("/tmp/walfix/{major}/tablespace"));
        assert_eq!(facts.tablespaces_dropped, [tablespace.oid]);
        let databases: Vec<_> = facts.databases.iter().map(|fact| fact.copied_from.is_some()).collect();
        assert_eq!(databases, [true, false], "{major}");
        assert_eq!(facts.databases[0].oid, facts.databases[1].oid);
        assert!(matches!(facts.end, FactsEnd::Switched { .. }), "{major}: {:?}", facts.end);
    }
}

#[test]
fn a_record_that_crosses_a_segment_end_is_in_the_facts_of_a_walk_alone() {
    for major in MAJORS {
        let (walked, alone) = (walked(major), alone(major, 1));
        let crossing = (1..walked.len()).filter(|i| matches!(alone[*i].begins, SegmentBegin::Continuation { .. }));
        let crossing: Vec<_> = crossing.collect();
        assert!(crossing.len() > 3, "{major}: {crossing:?}");
        for i in 1..walked.len() {
            let ends_here = crossing.contains(&i) && alone[i].end != FactsEnd::Inside;
            assert_eq!(walked[i].records, alone[i].records + u64::from(ends_here), "{major} segment {i}");
            assert_eq!(
                matches!(alone[i - 1].end, FactsEnd::Open { .. } | FactsEnd::Inside),
                walked[i].begins != SegmentBegin::Record
            );
        }
    }
}

#[test]
fn a_changed_setting_a_void_record_and_a_promotion_are_found() {
    for major in MAJORS {
        let facts = alone(major, 1);
        let parameters = facts.iter().find_map(|facts| facts.parameters).unwrap();
        assert_eq!((parameters.max_connections, parameters.wal_level), (57, 1), "{major}");
        let void = facts.iter().position(|facts| facts.begins == SegmentBegin::Overwrite).unwrap();
        assert!(matches!(facts[void - 1].end, FactsEnd::Open { resource_manager: Some(21), .. }), "{major}");
        let child = alone(major, 2);
        let switch = child.iter().find_map(|facts| facts.timeline_switches.first()).unwrap();
        assert_eq!((switch.from.number(), switch.to.number()), (1, 2), "{major}");
    }
}

/// `t` is dropped and made again in one prepared transaction; `copied` is a database, whose files go without such a list.
#[test]
fn a_drop_is_told_by_the_relation_and_the_files_that_go_with_it() {
    for major in MAJORS {
        let facts = &alone(major, 1)[0];
        let [removal] = facts.removals.as_slice() else { panic!("{major}: {:?}", facts.removals) };
        let (table, index) =
            (facts.files_created[0].file, facts.files_created.iter().find(|made| made.file == removal.files[1]));
        assert!(removal.files.contains(&table) && index.is_some(), "{major}: {removal:?} {:?}", facts.files_created);
        let dropped = DroppedRelation { database: table.database, relation: table.relation };
        assert!(removal.relations.contains(&dropped), "{major}: {removal:?}");
        let again: Vec<_> = facts.files_created.iter().filter(|made| made.xid == removal.xid).collect();
        assert!(
            again.len() >= 2 && again.iter().all(|made| made.at < removal.at && !removal.files.contains(&made.file))
        );
        assert!((facts.min_xid.unwrap()..=facts.max_xid.unwrap()).contains(&removal.xid), "{major}");
        assert!(!facts.checkpoints.is_empty() && !facts.removals_truncated, "{major}");
    }
}

#[test]
fn facts_are_stored_and_read_back() {
    for facts in alone(18, 1) {
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<WalFacts>(&text).unwrap(), facts);
    }
}

/// Version 1, never edited.
#[test]
fn version_1_is_read_and_so_is_what_a_later_one_may_write() {
    let text = r#"{"indexer":1,"begins":{"kind":"continuation","remaining":64},"first_record":"0/700028",
        "last_complete_start":"0/7FFFA0","last_complete_end":"0/7FFFD8","records":3,"commits":1,"aborts":1,
        "min_time":"2026-11-21T04:05:14.125406Z","max_time":"2026-11-21T04:05:15.000000Z",
        "restore_points":[{"name":"a","at":"0/700028","end":"0/700090","time":"2026-11-21T04:05:14.500000Z"}],
        "parameters":{"max_connections":100,"max_worker_processes":8,"max_wal_senders":4,
        "max_prepared_transactions":5,"max_locks_per_transaction":64,"wal_level":1},"min_wal_level":1,
        "full_page_writes_off":false,"tablespaces":[{"oid":16401,"path":"/t","at":"0/700098"}],
        "tablespaces_dropped":[16401],"databases":[{"oid":5,"copied_from":1,"at":"0/700100"}],
        "timeline_switches":[{"from":1,"to":2,"at":"0/700200"}],"truncated":false,
        "end":{"kind":"open","start":"0/7FFFD8","resource_manager":null}}"#;
    let facts: WalFacts = serde_json::from_str(text).unwrap();
    assert_eq!(facts.begins, SegmentBegin::Continuation { remaining: 64 });
    assert_eq!(facts.max_time.unwrap(), "2026-11-21T04:05:15Z".parse().unwrap());
    assert_eq!(facts.end, FactsEnd::Open { start: Lsn::new(0x7F_FFD8), resource_manager: None, info: None });
    assert_eq!(serde_json::to_value(&facts).unwrap(), serde_json::from_str::<serde_json::Value>(text).unwrap());

    let later: WalFacts = serde_json::from_str(r#"{"indexer":9,"end":{"kind":"sideways","by":3},"new":[]}"#).unwrap();
    assert_eq!((later.indexer, later.end), (9, FactsEnd::Unknown));
}

#[test]
fn bytes_that_are_no_segment_say_so() {
    let (name, bytes) = Log::new().segments().swap_remove(0);
    for (bytes, reason) in
        [(vec![0; 1 << 20], "empty"), (vec![7; 100], "segment size"), (bytes[..30].to_vec(), "end at 30")]
    {
        let facts = WalFacts::of_segment(name, &bytes, one_mib(), None);
        assert_eq!(facts.begins, SegmentBegin::Unknown);
        assert!(matches!(&facts.end, FactsEnd::Stopped { why, .. } if why.contains(reason)), "{:?}", facts.end);
    }
}

#[test]
fn lists_end_at_their_limit_and_say_so() {
    let mut log = Log::new();
    let mut body = vec![255, 72];
    body.extend([0; 8]);
    body.extend([b'x'; 64]);
    (0..=FACTS_LIMIT).for_each(|_| log.record(0, 0x70, &body));
    let (name, bytes) = log.segments().swap_remove(0);
    let facts = WalFacts::of_segment(name, &bytes, one_mib(), None);
    assert_eq!((facts.restore_points.len(), facts.truncated), (FACTS_LIMIT, true));
    assert_eq!(facts.restore_points[0].name, "x".repeat(64));
}
