//! Chains of real segments and of logs written record by record, against one walk over all of them.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::pg::wal_fixture::{Log, MAJORS, one_mib, segments};
use crate::pg::{RecordHeader, RelationLocator, Walker};

type Blocks = BTreeMap<RelationLocator, (Option<u32>, BTreeSet<u32>)>;

fn take(found: &mut Blocks, one: &RelationChanges) {
    let (limit, blocks) = found.entry(one.relation).or_default();
    *limit = limit.iter().chain(&one.limit).min().copied();
    blocks.extend(one.runs.iter().flat_map(|run| run.first..run.first + run.len));
}

/// What all of a log changes, by one walk.
fn walked(all: &[(SegmentName, Vec<u8>)]) -> Blocks {
    let (mut walker, mut found) = (Walker::new(None, one_mib()), Blocks::new());
    for (name, bytes) in all {
        let mut trusted = true;
        walker.segment(*name, bytes, &mut |record| {
            let known = effects(&record.into(), &mut |effect| match effect {
                Effect::Block(relation, block) => drop(found.entry(relation).or_default().1.insert(block)),
                Effect::From(relation, block) => {
                    let limit = &mut found.entry(relation).or_default().0;
                    *limit = Some(limit.map_or(block, |limit| limit.min(block)));
                }
                Effect::Minimal | Effect::FullPageWritesOff => trusted = false,
            });
            trusted &= known.is_some();
        });
        assert!(trusted, "{name}");
    }
    without_what_is_new(found)
}

/// Which blocks lie behind a limit depends on how they were met.
fn without_what_is_new(mut found: Blocks) -> Blocks {
    for (limit, blocks) in found.values_mut() {
        blocks.retain(|block| limit.is_none_or(|limit| *block < limit));
    }
    found
}

fn chained(all: &[(SegmentName, SegmentChanges)], start: Lsn, end: Lsn) -> Result<Blocks, ChainBreak> {
    let mut chain = ChangesChain::new(TimelineId::FIRST, start, end, one_mib());
    let mut found = Blocks::new();
    for (name, changes) in all {
        chain.add(*name, changes, &mut |one| take(&mut found, one))?;
    }
    chain.finish()?;
    Ok(without_what_is_new(found))
}

fn alone(all: &[(SegmentName, Vec<u8>)]) -> Vec<(SegmentName, SegmentChanges)> {
    all.iter().map(|(name, raw)| (*name, SegmentChanges::of_segment(*name, raw, one_mib(), None))).collect()
}

/// From the first byte of the first segment to where the last one's log ends.
fn ends(all: &[(SegmentName, SegmentChanges)]) -> (Lsn, Lsn) {
    let start = all[0].0.number(one_mib()).unwrap().start(one_mib());
    let (last, changes) = all.last().unwrap();
    match changes.end {
        ChangesEnd::Stopped { at } => (start, at),
        _ => (start, last.number(one_mib()).unwrap().end(one_mib())),
    }
}

#[test]
fn segments_by_themselves_tell_together_what_one_walk_over_all_of_them_does() {
    for major in MAJORS {
        // Records cross, one is longer than two segments, a crash loses one, and the parent goes on past the fork.
        let real = segments(major, 1);
        let told = alone(&real);
        let (start, end) = ends(&told);
        assert!(told.iter().any(|(_, one)| one.end == ChangesEnd::Inside && !one.overwrites), "{major}");
        assert!(told.iter().any(|(_, one)| one.overwrites), "{major}");
        let found = chained(&told, start, end).unwrap();
        assert_eq!(found, walked(&real), "{major}");
        assert!(found.values().any(|(limit, blocks)| limit.is_none() && !blocks.is_empty()), "{major}");
        // A database was made and dropped.
        assert!(found.iter().any(|(at, (limit, _))| at.relation == 0 && *limit == Some(0)), "{major}");
    }
}

#[test]
fn a_chain_with_a_segment_missing_damaged_or_from_elsewhere_breaks() {
    let real = segments(15, 1);
    let told = alone(&real);
    let (start, end) = ends(&told);
    for left_out in 0..told.len() {
        let mut others = told.clone();
        let (name, _) = others.remove(left_out);
        assert!(chained(&others, start, end).is_err(), "without {name}");
    }
    // The same place of another cluster's log.
    let strange = alone(&segments(16, 1));
    let mut crossings = 0;
    for place in 1..told.len().min(strange.len()) {
        let mut mixed = told.clone();
        mixed[place].1 = strange[place].1.clone();
        assert!(chained(&mixed, start, end).is_err(), "{place}");
        // A byte of the record that crosses into it.
        let mut flipped = told.clone();
        if let Some(lead) = flipped[place].1.lead.as_mut().filter(|lead| lead.len > 0) {
            lead.checksum ^= 1;
            crossings += 1;
            assert!(chained(&flipped, start, end).is_err(), "{place}");
        }
    }
    assert!(crossings > 3);
    type Spoil = fn(&mut SegmentChanges);
    type Reason = fn(SegmentName) -> ChainBreak;
    let spoilt: [(Spoil, Reason); 5] = [
        (|one| one.unknown = true, ChainBreak::Unknown),
        (|one| one.minimal = true, ChainBreak::Minimal),
        (|one| one.full_page_writes_off = true, ChainBreak::FullPageWritesOff),
        (|one| one.previous = one.previous.map(|at| at + 8), ChainBreak::Other),
        (|one| one.end = ChangesEnd::Stopped { at: Lsn::new(0x40) }, |_| ChainBreak::Short(Lsn::new(0x40))),
    ];
    for (spoil, reason) in spoilt {
        let mut others = told.clone();
        let place = others.iter().skip(1).position(|(_, one)| one.previous.is_some()).unwrap() + 1;
        spoil(&mut others[place].1);
        assert_eq!(chained(&others, start, end), Err(reason(others[place].0)));
    }
}

#[test]
fn the_stretch_ends_with_the_last_record_before_its_end() {
    let told = alone(&segments(15, 1));
    let size = one_mib();
    let (first, second) = (told[0].0.number(size).unwrap(), told[1].0.number(size).unwrap());
    let names = |start: Lsn, end: Lsn| ChangesChain::new(TimelineId::FIRST, start, end, size).segments();
    // The header of the second segment's first page is no record.
    for end in [second.start(size), second.start(size) + 0x28] {
        assert_eq!(names(first.start(size) + 0x28, end), [told[0].0], "{end}");
    }
    assert_eq!(names(first.start(size), second.start(size) + 0x30), [told[0].0, told[1].0]);
    assert!(chained(&told[..1], first.start(size), second.start(size) + 0x28).is_ok());
    assert!(chained(&told[..1], first.start(size), second.start(size) + 0x30).is_err());
    // Nothing lies between: nobody should ask.
    assert!(ChangesChain::new(TimelineId::FIRST, second.start(size), second.start(size), size).finish().is_err());
}

/// Wherever a segment's end cuts a record: in its length, its header, the headers of its parts, what comes behind.
#[test]
fn a_record_is_told_whichever_of_its_bytes_the_segment_ends_in() {
    use super::super::wal_changes::tests::body;
    let size = one_mib();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let removal = words(&[5, 0, 0b101, 1, 2, 3, 1663, 5, 70, 1663, 5, 71, 1663, 5, 72]);
    let truncation = words(&[77, 1663, 5, 9, 7]);
    let records: [(u8, u8, Vec<u8>); 4] = [
        (10, 0, body(&[(0, 9, 3), (1, 9, 3), (0, 10, 5)], &[7; 90])),
        (1, 0x81, body(&[], &removal)),
        (2, 0x21, body(&[], &truncation)),
        (0, 0xB0, body(&(0..30).map(|n| (0, 9, n)).collect::<Vec<_>>(), &[])),
    ];
    for (manager, info, crossing) in records {
        for room in (8..=24 + crossing.len() as u64).step_by(8) {
            let mut log = Log::new();
            log.record(10, 0, &body(&[(0, 11, 1)], &vec![1; 1_030_000]));
            let end = SegmentNo(1).end(size);
            // Everything up to the end lies in the last page now.
            while (end - log.position()) >= Log::PAGE as u64 {
                log.record(21, 0, &[255, 0]);
            }
            let filler = (end - log.position() - room) as usize - RecordHeader::LEN - 5;
            log.record(21, 0, &body(&[], &vec![1; filler]));
            assert_eq!(end - log.position(), room);
            log.record(manager, info, &crossing);
            log.record(10, 0, &body(&[(0, 12, 1)], b"x"));
            let all = log.segments();
            let told = alone(&all);
            let crosses = 24 + crossing.len() as u64 > room;
            assert_eq!(matches!(told[0].1.end, ChangesEnd::Open { .. }), crosses, "{manager} {room}");
            let found = chained(&told, SegmentNo(1).start(size), log.position());
            assert_eq!(found, Ok(walked(&all)), "{manager} {room}");
            assert!(found.unwrap().len() >= 3, "{manager} {room}");
        }
    }
}

/// A log of records with blocks, of which many cross segment ends.
fn any_log() -> impl Strategy<Value = Log> {
    let record = (0u32..3, 0u32..5000, prop_oneof![0usize..300, 200_000usize..900_000]);
    prop::collection::vec(record, 1..12).prop_map(|records| {
        let mut log = Log::new();
        for (relation, block, len) in records {
            let main = vec![7; len];
            log.record(10, 0, &super::super::wal_changes::tests::body(&[(0, 9 + relation, block)], &main));
        }
        log
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_record_is_told_once_wherever_segments_end(log in any_log()) {
        let all = log.segments();
        let told = alone(&all);
        let found = chained(&told, SegmentNo(1).start(one_mib()), log.position()).unwrap();
        prop_assert_eq!(found, walked(&all));
    }
}
