#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::format::index;
use crate::pg::lsn::Lsn;
use crate::pg::wal_facts::{FactsEnd, SegmentBegin, WalFacts};
use crate::pg::wal_fixture::{MAJORS, one_mib, segments};

/// Every segment of a fixture, as an index has it.
fn members(major: u16) -> Vec<IndexedSegment> {
    let all = segments(major, 1);
    let mut members: Vec<IndexedSegment> = all
        .iter()
        .map(|(segment, raw)| IndexedSegment {
            segment: *segment,
            stored_bytes: raw.len() as u64 / 3,
            sha256: Sha256::of(raw),
            joined_after: None,
            facts: WalFacts::of_segment(*segment, raw, one_mib(), None),
        })
        .collect();
    members[1].joined_after = Some(members[0].segment);
    members[3].joined_after = Some(members[0].segment.with_timeline(TimelineId::new(7).unwrap()));
    members
}

fn folders(members: &[IndexedSegment]) -> Vec<GatheredFolder> {
    vec![GatheredFolder { middle: members[0].segment.middle(), index: index::members_digest(members) }]
}

fn stored(members: &[IndexedSegment]) -> Vec<u8> {
    encode("7-1/x", TimelineId::FIRST, one_mib(), &folders(members), members).unwrap()
}

#[test]
fn every_fact_of_every_major_comes_back() {
    for major in MAJORS {
        let members = members(major);
        let read = decode(&stored(&members), "7-1/x").unwrap();
        assert_eq!(read.names().collect::<Vec<_>>(), members.iter().map(|one| one.segment).collect::<Vec<_>>());
        for one in &members {
            assert_eq!(read.get(one.segment).as_ref(), Some(one));
        }
        let absent = members[0].segment.with_timeline(TimelineId::new(9).unwrap());
        assert_eq!(read.get(absent), None);
    }
}

#[test]
fn a_flipped_bit_is_never_read() {
    let stored = stored(&members(18));
    assert!(decode(&stored, "7-1/y").is_err());
    for at in (0..stored.len()).step_by(53) {
        let mut flipped = stored.clone();
        flipped[at] ^= 1;
        assert!(decode(&flipped, "7-1/x").is_err(), "byte {at}");
    }
}

#[test]
fn another_index_of_a_folder_gives_another_name() {
    let members = members(15);
    let folders = folders(&members);
    let other = vec![GatheredFolder { index: index::members_digest(&members[1..]), ..folders[0].clone() }];
    assert_ne!(folders_digest(&folders), folders_digest(&other));
}

fn any_facts() -> impl Strategy<Value = WalFacts> {
    let at = || prop::option::of((0u64..1 << 60).prop_map(Lsn::new));
    let time = || {
        prop::option::of(
            (-63_000_000_000_000_000i64..252_000_000_000_000_000).prop_map(|t| PgTime::from_micros(t).unwrap()),
        )
    };
    let end = prop_oneof![
        Just(FactsEnd::Clean),
        Just(FactsEnd::Inside),
        Just(FactsEnd::Unknown),
        (0u64..1 << 60).prop_map(|at| FactsEnd::Switched { at: Lsn::new(at) }),
        (0u64..1 << 60, ".{0,20}").prop_map(|(at, why)| FactsEnd::Stopped { at: Lsn::new(at), why }),
        (0u64..1 << 60, any::<Option<u8>>(), any::<Option<u8>>())
            .prop_map(|(at, resource_manager, info)| FactsEnd::Open { start: Lsn::new(at), resource_manager, info }),
    ];
    let begins = prop_oneof![
        Just(SegmentBegin::Unknown),
        Just(SegmentBegin::Record),
        Just(SegmentBegin::Overwrite),
        any::<u32>().prop_map(|remaining| SegmentBegin::Continuation { remaining }),
    ];
    let counts = (any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>());
    let xids = (any::<Option<u32>>(), any::<Option<u32>>());
    (counts, (at(), at(), at()), (time(), time()), xids, begins, end, any::<(bool, Option<i32>)>()).prop_map(
        |(counts, at, time, xids, begins, end, (truncated, min_wal_level))| WalFacts {
            indexer: counts.0,
            records: counts.1,
            commits: counts.2,
            aborts: counts.3,
            first_record: at.0,
            last_complete_start: at.1,
            last_complete_end: at.2,
            min_time: time.0,
            max_time: time.1,
            min_xid: xids.0,
            max_xid: xids.1,
            begins,
            end,
            truncated,
            min_wal_level,
            ..WalFacts::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_facts_there_are_come_back(facts in prop::collection::vec(any_facts(), 1..5), stored_bytes: u64) {
        let all: Vec<IndexedSegment> = facts.into_iter().enumerate().map(|(number, facts)| IndexedSegment {
            segment: SegmentName::from_number(TimelineId::FIRST, SegmentNo(3 + number as u64), one_mib()),
            stored_bytes,
            sha256: Sha256::of(b"x"),
            joined_after: None,
            facts,
        }).collect();
        let read = decode(&stored(&all), "7-1/x").unwrap();
        for one in &all {
            let found = read.get(one.segment);
            prop_assert_eq!(found.as_ref(), Some(one));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let framed = [&b"WVG\x01\x01\x80\x80\x40"[..], &bytes].concat();
        for contents in [bytes, framed] {
            if let Ok(read) = parse(&contents) {
                read.names().for_each(|name| drop(read.get(name)));
            }
        }
    }
}
