//! Facts come back as they went in, in the trailer of a segment as in a row, and from the JSON of before.

use proptest::prelude::*;

use super::*;
use crate::pg::wal_facts::{CheckpointFact, RestorePointFact};
use crate::pg::wal_fixture::{MAJORS, one_mib, segments};

fn all() -> Vec<WalFacts> {
    let of_major = |major| segments(major, 1).into_iter();
    let facts = MAJORS.into_iter().flat_map(of_major);
    facts.map(|(name, raw)| WalFacts::of_segment(name, &raw, one_mib(), None)).collect()
}

#[test]
fn every_fact_of_every_major_comes_back_from_the_short_form_and_from_json() {
    for mut facts in all() {
        facts.changes = None;
        let (short, json) = (encode(&facts), serde_json::to_vec(&telling(&facts)).expect("plain values"));
        assert_eq!(short[0], HINT_VERSION);
        assert!(short.len() < json.len(), "{} bytes for {}", short.len(), json.len());
        assert_eq!(decode(&short).as_ref(), Some(&facts));
        assert_eq!(decode(&json).as_ref(), Some(&facts));
        assert_eq!(decode(&serde_json::to_vec(&facts).expect("plain values")), Some(facts), "with all its members");
    }
}

#[test]
fn a_segment_that_was_switched_early_says_so_in_fifty_bytes() {
    let json = r#"{"begins":{"kind":"record"},"commits":1,"end":{"at":"0/2C001FB8","kind":"switched"},
        "first_record":"0/2C000028","indexer":2,"last_complete_end":"0/2D000000","last_complete_start":"0/2C001FA0",
        "max_time":"2026-11-22T00:23:37.741186Z","max_xid":48748,"min_time":"2026-11-22T00:23:37.741186Z",
        "min_xid":48748,"records":3}"#;
    let facts = decode(json.as_bytes()).expect("a hint as it was stored before");
    assert_eq!((facts.records, facts.min_xid), (3, Some(48748)));
    assert_eq!(facts.end, FactsEnd::Switched { at: "0/2C001FB8".parse().expect("a position") });
    let short = encode(&facts);
    assert!(short.len() <= 50, "{} bytes", short.len());
    assert_eq!(decode(&short), Some(facts));
}

#[test]
fn what_is_no_hint_is_none() {
    let facts = all().remove(0);
    let short = encode(&facts);
    for len in 0..short.len() {
        assert_eq!(decode(&short[..len]), None, "{len} bytes");
    }
    assert_eq!(decode(&[&short[..], &[0]].concat()), None, "something behind it");
    let newer = [&[HINT_VERSION + 1], &short[1..]].concat();
    for other in [&b""[..], b"{", b"null", &newer] {
        assert_eq!(decode(other), None, "{other:?}");
    }
}

#[test]
fn facts_without_a_place_in_the_short_form_stay_json() {
    // Farther from the first commit than a number reaches.
    let end = |start: &str| FactsEnd::Switched { at: start.parse().expect("a position") };
    let odd = WalFacts {
        first_record: Some("0/28".parse().expect("a position")),
        last_complete_end: Some("FFFFFFFF/FFFFFFFF".parse().expect("a position")),
        last_complete_start: Some("7FFFFFFF/FFFFFFFF".parse().expect("a position")),
        end: end("80000000/28"),
        ..WalFacts::default()
    };
    assert_eq!(decode(&encode(&odd)), Some(odd));
}

fn any_facts() -> impl Strategy<Value = WalFacts> {
    let place = || prop::option::of(any::<u64>().prop_map(Lsn::new));
    // The years that a time can be in.
    let time = || prop::option::of((-60_000_000_000_000_000i64..250_000_000_000_000_000).prop_map(PgTime::from_micros));
    let begins = prop_oneof![
        Just(SegmentBegin::Unknown),
        Just(SegmentBegin::Record),
        Just(SegmentBegin::Overwrite),
        any::<u32>().prop_map(|remaining| SegmentBegin::Continuation { remaining }),
    ];
    let end = prop_oneof![
        Just(FactsEnd::Clean),
        Just(FactsEnd::Inside),
        Just(FactsEnd::Unknown),
        any::<u64>().prop_map(|at| FactsEnd::Switched { at: Lsn::new(at) }),
        (any::<u64>(), ".{0,20}").prop_map(|(at, why)| FactsEnd::Stopped { at: Lsn::new(at), why }),
        (any::<u64>(), any::<Option<u8>>(), any::<Option<u8>>()).prop_map(|(start, resource_manager, info)| {
            FactsEnd::Open { start: Lsn::new(start), resource_manager, info }
        }),
    ];
    let points = prop::collection::vec((".{0,9}", any::<u64>()), 0..3).prop_map(|points| {
        let point = |(name, at)| RestorePointFact { name, at: Lsn::new(at), end: Lsn::new(at), time: None };
        points.into_iter().map(point).collect::<Vec<_>>()
    });
    let checkpoints = prop::collection::vec(any::<u64>().prop_map(Lsn::new), 0..3);
    let counts = any::<(u32, u64, u64, u64, bool)>();
    let xids = any::<(Option<u32>, Option<u32>)>();
    ((begins, end), (place(), place(), place()), (time(), time()), xids, counts, (points, checkpoints)).prop_map(
        |((begins, end), places, times, (min_xid, max_xid), counts, (restore_points, checkpoints))| WalFacts {
            indexer: counts.0,
            records: counts.1,
            commits: counts.2,
            aborts: counts.3,
            truncated: counts.4,
            begins,
            end,
            first_record: places.0,
            last_complete_start: places.1,
            last_complete_end: places.2,
            min_time: times.0.flatten(),
            max_time: times.1.flatten(),
            min_xid,
            max_xid,
            restore_points,
            checkpoints: checkpoints.into_iter().map(|at| CheckpointFact { at, redo: at }).collect(),
            ..WalFacts::default()
        },
    )
}

proptest! {
    #[test]
    fn whatever_is_encoded_is_decoded(facts in any_facts()) {
        prop_assert_eq!(decode(&encode(&facts)), Some(facts));
    }

    #[test]
    fn any_bytes_are_read_or_are_none(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(first) = bytes.first_mut() {
            *first = HINT_VERSION;
        }
        let _ = decode(&bytes);
    }
}
