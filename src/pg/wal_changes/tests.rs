//! What single records change, what of it is remembered, and that nothing is trusted that is not known.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::pg::wal_fixture::{Log, one_mib};

const FOURTEEN: u16 = 0xD10D;
const FIFTEEN: u16 = 0xD110;
const EIGHTEEN: u16 = 0xD118;

fn at(relation: u32) -> RelationLocator {
    RelationLocator { tablespace: 1663, database: 5, relation }
}

/// A record's body: references to blocks (fork, relation, block), and main data.
pub(crate) fn body(blocks: &[(u8, u32, u32)], main: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for ((fork, relation, block), id) in blocks.iter().zip(0..) {
        body.extend([id, *fork, 0, 0]);
        body.extend(words(&[1663, 5, *relation, *block]));
    }
    body.push(254);
    body.extend((main.len() as u32).to_le_bytes());
    body.extend(main);
    body
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn of(magic: u16, resource_manager: u8, info: u8, blocks: &[(u8, u32, u32)], main: &[u8]) -> Option<Vec<Effect>> {
    let bytes = [&[0; RecordHeader::LEN][..], &body(blocks, main)].concat();
    let (magic, total_len) = (WalMagic::new(magic), bytes.len());
    let mut found = Vec::new();
    effects(&Beginning { magic, resource_manager, info, total_len, bytes: &bytes }, &mut |effect| found.push(effect))?;
    Some(found)
}

#[test]
fn blocks_of_main_forks_are_changed_whoever_refers_to_them() {
    for manager in (0..=21).filter(|manager| ![2, 4].contains(manager)).chain([200]) {
        // An image of a page, for the log's own.
        let info = if manager == 0 { 0xB0 } else { 0 };
        let found = of(EIGHTEEN, manager, info, &[(0, 9, 3), (1, 9, 4), (2, 9, 5), (3, 9, 6), (0, 10, 70_000)], &[]);
        assert_eq!(found, Some(vec![Effect::Block(at(9), 3), Effect::Block(at(10), 70_000)]), "{manager}");
    }
}

#[test]
fn files_that_are_made_cut_or_removed_are_new_from_there_on() {
    let created = |fork| words(&[1663, 5, 9, fork]);
    assert_eq!(of(FIFTEEN, 2, 0x10 | SPECIAL, &[], &created(0)), Some(vec![Effect::From(at(9), 0)]));
    assert_eq!(of(FIFTEEN, 2, 0x10 | SPECIAL, &[], &created(1)), Some(vec![]));
    let truncated = |flags| words(&[77, 1663, 5, 9, flags]);
    assert_eq!(of(FIFTEEN, 2, 0x20 | SPECIAL, &[], &truncated(7)), Some(vec![Effect::From(at(9), 77)]));
    // Of the maps alone.
    assert_eq!(of(FIFTEEN, 2, 0x20 | SPECIAL, &[], &truncated(6)), Some(vec![]));
    // A commit, a rollback, and those of prepared transactions, behind a list of subtransactions.
    let ended = words(&[5, 0, 0b111, 1, 2, 1, 31, 2, 1663, 5, 9, 1663, 5, 10]);
    for info in [0x00, 0x20, 0x30, 0x40] {
        let found = of(FIFTEEN, 1, 0x80 | SPECIAL | info, &[], &ended);
        assert_eq!(found, Some(vec![Effect::From(at(9), 0), Effect::From(at(10), 0)]), "{info}");
    }
    assert_eq!(of(FIFTEEN, 1, 0x00, &[], &words(&[5, 0])), Some(vec![]));
}

#[test]
fn a_database_that_is_made_or_dropped_is_new_in_its_tablespaces() {
    let of_database = |tablespace| Effect::From(RelationLocator { tablespace, database: 7, relation: 0 }, 0);
    let dropped = words(&[7, 2, 1663, 1700]);
    for (magic, info) in [(FOURTEEN, 0x10), (FIFTEEN, 0x20), (EIGHTEEN, 0x20)] {
        let found = of(magic, 4, info | SPECIAL, &[], &dropped);
        assert_eq!(found, Some(vec![of_database(1663), of_database(1700)]), "{magic:X}");
        assert_eq!(of(magic, 4, SPECIAL, &[], &words(&[7, 1663, 1, 1663])), Some(vec![of_database(1663)]));
        assert_eq!(of(magic, 4, info | SPECIAL, &[], &words(&[7, 3, 1663, 1700])), None);
    }
    assert_eq!(of(FIFTEEN, 4, 0x10 | SPECIAL, &[], &words(&[7, 1663])), Some(vec![of_database(1663)]));
    assert_eq!(of(FOURTEEN, 4, 0x20 | SPECIAL, &[], &dropped), None);
    assert_eq!(of(FIFTEEN, 4, 0x30, &[], &dropped), None);
}

#[test]
fn what_may_change_more_than_is_known_is_not_trusted() {
    for (magic, manager, info) in
        [(FIFTEEN, 10, SPECIAL), (EIGHTEEN, 200, 0x40 | SPECIAL), (FIFTEEN, 2, 0x30 | SPECIAL)]
    {
        assert_eq!(of(magic, manager, info, &[(0, 9, 3)], &[]), None, "{manager}");
    }
    // Records of a major that is not known yet, and of one whose WAL nobody knows.
    assert_eq!(of(0xD121, 10, 0, &[(0, 9, 3)], &[]), None);
    assert_eq!(of(0xD1FF, 10, 0, &[(0, 9, 3)], &[]), None);
    // Cut off, though their checksums held.
    for (manager, info, main) in
        [(2, 0x10, 15), (2, 0x20, 19), (4, 0x00, 7), (0, 0x60, 20), (0, 0x10, 16), (0, 0x80, 0)]
    {
        assert_eq!(of(FIFTEEN, manager, info, &[], &vec![1; main]), None, "{manager} {info}");
    }
}

#[test]
fn lowered_settings_are_noticed() {
    let level = |level| of(FIFTEEN, 0, 0x60, &[], &words(&[1, 2, 3, 4, 5, level, 0]));
    assert_eq!((level(0), level(1)), (Some(vec![Effect::Minimal]), Some(vec![])));
    let change = |on| of(FIFTEEN, 0, 0x80, &[], &[on]);
    assert_eq!((change(0), change(1)), (Some(vec![Effect::FullPageWritesOff]), Some(vec![])));
    for kind in [0x00, 0x10] {
        let checkpoint = |on| of(FIFTEEN, 0, kind, &[], &words(&[1, 0, 1, 1, on, 0]));
        assert_eq!((checkpoint(0), checkpoint(1)), (Some(vec![Effect::FullPageWritesOff]), Some(vec![])));
    }
}

fn changes(log: &Log) -> SegmentChanges {
    let (name, bytes) = log.segments().remove(0);
    SegmentChanges::of_segment(name, &bytes, one_mib(), Some(Log::SYSTEM))
}

#[test]
fn a_segment_tells_each_block_once_and_none_behind_a_limit() {
    let mut log = Log::new();
    for block in [5, 4, 3, 3, 100, 5, 9] {
        log.record(10, 0, &body(&[(0, 9, block), (0, 10, block + 1)], b"x"));
    }
    log.record(2, 0x20 | SPECIAL, &body(&[], &words(&[9, 1663, 5, 10, 1])));
    log.record(2, 0x20 | SPECIAL, &body(&[], &words(&[50, 1663, 5, 10, 1])));
    let found = changes(&log);
    let run = |first, len| Run { first, len };
    let nine = RelationChanges { relation: at(9), limit: None, runs: vec![run(3, 3), run(9, 1), run(100, 1)] };
    let ten = RelationChanges { relation: at(10), limit: Some(9), runs: vec![run(4, 3)] };
    assert_eq!(found.relations, [nine, ten]);
    assert_eq!((found.previous, found.last), (Some(Lsn::new(0x28)), Some(log.previous)));
    assert!(matches!(found.end, ChangesEnd::Stopped { at } if at == log.position()), "{:?}", found.end);
    assert!(!found.unknown && !found.minimal && !found.full_page_writes_off && found.lead.is_none());
    log.record(10, SPECIAL, &body(&[(0, 9, 1)], b"x"));
    assert!(changes(&log).unknown);
}

/// Gathers effects as a walk would.
fn gathered(effects: impl IntoIterator<Item = Effect>) -> SegmentChanges {
    let mut walk = ChangesWalk::default();
    effects.into_iter().for_each(|effect| walk.take(effect));
    walk.finish(&Walker::new(None, one_mib()), None, &SegmentEnd::Clean)
}

#[test]
fn too_many_blocks_of_a_relation_are_all_of_it_from_the_first_on() {
    let blocks = |relation, count: usize| (0..count as u32).map(move |n| Effect::Block(at(relation), 10 + 3 * n));
    let found = gathered(blocks(9, 1000).chain(blocks(10, MOST_ENTRIES + 5)).chain(blocks(11, 1000)));
    assert_eq!((found.relations[0].limit, found.relations[0].runs.len()), (None, 1000));
    assert_eq!((found.relations[1].limit, found.relations[1].runs.len()), (Some(10), 0));
    assert_eq!((found.relations[2].limit, found.relations[2].runs.len()), (None, 1000));
    // The same few blocks, however often, are few.
    let again = gathered((0..3).flat_map(|_| blocks(9, MOST_BLOCKS - 1)).chain([Effect::Block(at(9), 0)]));
    assert_eq!((again.relations[0].limit, again.relations[0].runs.len()), (None, MOST_BLOCKS));
}

#[test]
fn too_many_relations_are_all_of_their_databases() {
    let many = (0..MOST_RELATIONS as u32 + 1).map(|n| Effect::Block(at(100 + n), 1));
    let found = gathered(many.chain([Effect::Block(at(7), 1)]));
    let all = RelationChanges { relation: at(0), limit: Some(0), runs: vec![] };
    assert_eq!(found.relations[0], all);
    assert!(found.relations.len() <= 3, "{}", found.relations.len());
    // Those that came afterwards are told by themselves, which does no harm.
    assert_eq!(found.relations[1].relation, at(7));
}
