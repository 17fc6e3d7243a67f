//! Chains of streams of a server that is played, each read back and compared with what the server had.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use object_store::memory::InMemory;

use super::super::super::changed::ChangedBlocks;
use super::super::super::leaves::{FileLeaves, LentLeaves};
use super::super::super::remains::Remains;
use super::super::super::renewal::{Liveness, Renewal};
use super::super::RemoteError;
use super::super::base::KeptFiles;
use super::super::copy;
use super::super::incremental_file::tests::heading;
use super::super::incremental_file::{Heading, HeadingReader};
use super::super::worker::Pages;
use super::*;
use crate::format::Sha256;
use crate::format::leaf::{Node, Part};
use crate::format::tables::Tables;
use crate::pg::data_directory::{Class, DataDirectory, FileKind, RelationPath};
use crate::pg::lsn::Lsn;
use crate::pg::wal_summary::ChangedBlock;
use crate::repo::{Lane, LaneFacts, Packs, Repository};
use crate::store::{RetryPolicy, Store, Verb};

const BLOCK: usize = 8192;
const SEGMENT: u32 = 131_072;
const LEVEL: i32 = 1;

/// Numbers that look like chance and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most.max(1)
    }

    /// A block that does not get smaller by compression.
    fn noise(&mut self) -> Vec<u8> {
        (0..BLOCK / 4).flat_map(|_| (self.below(1 << 31) as u32).to_le_bytes()).collect()
    }

    fn block(&mut self) -> Vec<u8> {
        let seed = self.below(u64::MAX);
        (0..BLOCK as u64).map(|at| (seed.wrapping_mul(at + 7) >> 13) as u8).collect()
    }
}

/// A relation's file of the server, and what its log says of it since the backup before.
#[derive(Clone, Default)]
struct Relation {
    blocks: Vec<Vec<u8>>,
    changed: BTreeSet<u32>,
    limit: Option<u32>,
    /// Whether the backup before has it.
    listed: bool,
    /// A block that the server forgets to send.
    forgotten: Option<u32>,
    /// Whether its changes come from a file that somebody left behind.
    stray: bool,
}

impl Relation {
    fn write(&mut self, at: usize, block: Vec<u8>) {
        if at >= self.blocks.len() {
            self.blocks.resize(at + 1, vec![0; BLOCK]);
        }
        self.blocks[at] = block;
        self.changed.insert(at as u32);
    }

    fn truncate(&mut self, to: usize) {
        self.blocks.truncate(to);
        self.limit = Some(self.limit.map_or(to as u32, |limit| limit.min(to as u32)));
        self.changed.retain(|block| *block < to as u32);
    }

    fn bytes(&self) -> Vec<u8> {
        self.blocks.concat()
    }

    /// As the server sends it: whole, or a heading and the blocks that changed.
    fn sent(&self) -> (Option<Vec<u8>>, Vec<u8>) {
        if !self.stray && (!self.listed || self.limit == Some(0) || self.blocks.is_empty()) {
            return (None, self.bytes());
        }
        let blocks: Vec<u32> = self.changed.iter().copied().filter(|block| Some(*block) != self.forgotten).collect();
        let contents = blocks.iter().flat_map(|block| self.blocks[*block as usize].clone()).collect();
        (Some(heading(self.blocks.len() as u32, &blocks)), contents)
    }
}

fn path(number: u32) -> Vec<u8> {
    format!("base/5/{number}").into_bytes()
}

fn relation_path(path: &[u8]) -> RelationPath {
    match DataDirectory::new(17, 202_406_281).classify(path) {
        Class::File(FileKind::Relation(relation)) => relation,
        other => panic!("{other:?}"),
    }
}

fn lane() -> Lane {
    lane_and_store().0
}

fn lane_and_store() -> (Lane, Store) {
    let store = Store::over(Arc::new(InMemory::new()), "memory", RetryPolicy::brisk(1)).expect("a runtime");
    let (repository, _) = Repository::init(store.clone(), "main").expect("an empty store");
    (repository.lane_for(&LaneFacts::sample()).expect("a new lane"), store)
}

fn read_heading(bytes: &[u8], size: usize) -> Heading {
    let mut reader = HeadingReader::new(size as u64, BLOCK as u32, SEGMENT);
    reader.take(&mut &bytes[..]).expect("a heading").expect("all of it")
}

const BUDGET: Budget = Budget { workers: 2, pack_bytes: 1 << 20 };

/// Takes a backup of what the server has, on top of another.
fn back_up(
    lane: &Lane,
    id: &str,
    server: &BTreeMap<u32, Relation>,
    older: Option<(&Tables, &Renewal)>,
) -> Result<(Tables, u64), BackupError> {
    back_up_beside(lane, id, server, older, None)
}

/// The same, beside what a backup left that was cut off.
fn back_up_beside<'a>(
    lane: &'a Lane,
    id: &str,
    server: &BTreeMap<u32, Relation>,
    older: Option<(&Tables, &Renewal)>,
    remains: Option<Remains<'a>>,
) -> Result<(Tables, u64), BackupError> {
    let budget = BUDGET;
    let shelf = Shelf::new(lane, id, BLOCK as u32, older.map(|(tables, _)| &tables.packs)).beside(remains);
    let pages =
        Pages { block_size: BLOCK as u32, relation_segment_blocks: SEGMENT, checksums: false, start_lsn: Lsn::new(1) };
    let copied = copy::copy(&shelf, budget, LEVEL, pages, &KeptFiles::default(), |intake| {
        // In no order, as directories are read.
        for (number, relation) in server.iter().rev() {
            let path = path(*number);
            match relation.sent() {
                (None, bytes) => {
                    intake.file(path.clone(), (0o600, 7), bytes.len() as u64, Some(relation_path(&path)))?;
                    bytes.chunks(30_000).try_for_each(|some| intake.bytes(some))?;
                }
                (Some(heading), bytes) => {
                    let heading = read_heading(&heading, heading.len() + bytes.len());
                    intake.changes(path.clone(), (0o600, 7), relation_path(&path), heading)?;
                    bytes.chunks(30_001).try_for_each(|some| intake.bytes(some))?;
                }
            }
            intake.end()?;
        }
        Ok(Ok(()))
    });
    let (items, _) = copied??;
    for (number, relation) in server {
        let (heading, bytes) = relation.sent();
        let sent = [heading.clone().unwrap_or_default(), bytes].concat();
        let expected = Some((sent.len() as u64, crc32c::crc32c(&sent)));
        assert_eq!(items.sent(&path(*number), heading.is_some()), expected, "as the server's manifest would list it");
        assert_eq!(items.sent(&path(*number), heading.is_none()), None);
    }
    let mut limits = ChangedBlocks::default();
    for (number, relation) in server {
        let row =
            |block, limit| ChangedBlock { tablespace: 1663, database: 5, relation: *number, fork: 0, block, limit };
        relation.limit.into_iter().for_each(|block| limits.cut(row(block, true)));
        relation.changed.iter().for_each(|block| limits.add(row(*block, false)));
    }
    let lending =
        older.map(|(tables, renewal)| Lending::new(lane, tables, (BLOCK as u32, SEGMENT), renewal, Some(limits)));
    let lent =
        older.map_or_else(LentLeaves::default, |(tables, renewal)| LentLeaves::new(&tables.leaves, &renewal.packs));
    let leaves = FileLeaves::new(&shelf, 1 << 20, LEVEL, lent);
    let older = lending.as_ref().map(|lending| Older::new(lending, &shelf, budget, LEVEL));
    let (leaves, named, taken) = items.store(leaves, older)?;
    Ok((Tables { packs: shelf.table(&named), leaves, relations: Vec::new() }, taken))
}

/// Reads everything back: bytes, and the checksum that the leaf has of them.
fn read_back(lane: &Lane, tables: &Tables) -> BTreeMap<Vec<u8>, (Vec<u8>, u32)> {
    let packs = Packs::new(lane, &tables.packs);
    let mut frames: BTreeMap<(u32, u32), Vec<u8>> = BTreeMap::new();
    let mut leaves = lane.leaves(tables);
    let mut found: BTreeMap<Vec<u8>, (Vec<u8>, u32)> = BTreeMap::new();
    while let Some(entries) = leaves.next_leaf().expect("what was just stored") {
        for entry in entries {
            let Node::File(Part { pieces, file, .. }) = entry.node else { continue };
            let (bytes, crc) = found.entry(entry.path).or_default();
            for piece in pieces {
                match piece {
                    Piece::Zeros { len } => bytes.resize(bytes.len() + len as usize, 0),
                    Piece::Inline(inline) => bytes.extend(inline),
                    Piece::Frames { pack, mut frame, mut offset, mut len } => {
                        while len > 0 {
                            let raw = frames.entry((pack, frame)).or_insert_with(|| {
                                let reader = packs.reader(pack).expect("a pack");
                                let mut raw = Vec::new();
                                let stored = reader.read(frame, frame).expect("a frame");
                                reader.decode(&stored, frame, frame, &mut raw).expect("a frame");
                                raw
                            });
                            let some = &raw[offset as usize..raw.len().min(offset as usize + len as usize)];
                            bytes.extend_from_slice(some);
                            (len, frame, offset) = (len - some.len() as u64, frame + 1, 0);
                        }
                    }
                }
            }
            *crc = file.map_or(*crc, |file| file.crc);
        }
    }
    found
}

/// Whether a backup names a frame that was to be stored again.
fn names_any(lane: &Lane, tables: &Tables, renewal: &Renewal) -> bool {
    let mut leaves = lane.leaves(tables);
    let mut named = false;
    while let Some(entries) = leaves.next_leaf().expect("what was just stored") {
        let parts = entries.iter().filter_map(|entry| match &entry.node {
            Node::File(part) => Some(part),
            Node::Directory { .. } => None,
        });
        named |= parts.flat_map(|part| &part.pieces).any(|piece| renewal.touches(piece));
    }
    named
}

#[track_caller]
fn expect_same(lane: &Lane, tables: &Tables, server: &BTreeMap<u32, Relation>, what: &str) {
    let found = read_back(lane, tables);
    assert_eq!(found.len(), server.len(), "{what}");
    for (number, relation) in server {
        let (bytes, crc) = &found[&path(*number)];
        let expected = relation.bytes();
        let pages = bytes.chunks(BLOCK).zip(expected.chunks(BLOCK)).enumerate();
        let wrong: Vec<usize> = pages.filter(|(_, (one, other))| one != other).map(|(at, _)| at).collect();
        assert_eq!((bytes.len(), wrong), (expected.len(), vec![]), "{what}, relation {number}");
        assert_eq!(*crc, crc32c::crc32c(&expected), "{what}, relation {number}");
    }
}

fn renewal_of(lane: &Lane, tables: &Tables, bytes: u64) -> Renewal {
    let live = Liveness::of(lane, tables).expect("what was just stored");
    live.renewal(bytes, |pack| lane.frame_lengths(tables, pack)).expect("what was just stored")
}

/// What happens to a relation between two backups.
fn work(relation: &mut Relation, dice: &mut Dice) {
    for _ in 0..=dice.below(3) {
        let len = relation.blocks.len() as u64;
        match dice.below(8) {
            0..3 => {
                for _ in 0..=dice.below(len / 3) {
                    let at = dice.below(len.max(1)) as usize;
                    relation.write(at, dice.block());
                }
            }
            3 => relation.truncate((len - dice.below(len / 2)) as usize),
            // It grows: with rows, and with pages that the log does not tell of.
            4 => (0..dice.below(20)).for_each(|n| relation.write((len + n) as usize, dice.block())),
            5 => relation.blocks.resize((len + dice.below(30)) as usize, vec![0; BLOCK]),
            // A page that is logged and empty.
            6 => relation.write(dice.below(len.max(1)) as usize, vec![0; BLOCK]),
            _ => {}
        }
    }
}

#[test]
fn whatever_happens_between_two_backups_is_what_comes_back() {
    let (mut taken_in_all, mut renewed) = (0, 0);
    for seed in 0..2 {
        let mut dice = Dice(seed);
        let lane = lane();
        let mut server: BTreeMap<u32, Relation> = BTreeMap::new();
        let mut before: Option<Tables> = None;
        for round in 0..9 {
            // A relation is dropped, one is made, the others are worked on.
            if round > 0 && dice.below(3) == 0 {
                let gone = *server.keys().nth(dice.below(server.len() as u64) as usize).expect("there are some");
                server.remove(&gone);
            }
            for _ in 0..if round == 0 { 8 } else { 1 } {
                let mut relation = Relation::default();
                // Small ones share frames, large ones have their own.
                let blocks = if dice.below(2) == 0 { dice.below(14) } else { 20 + dice.below(60) };
                (0..blocks).for_each(|at| relation.write(at as usize, dice.block()));
                server.insert(16384 + dice.below(1000) as u32, relation);
            }
            server.values_mut().filter(|relation| relation.listed).for_each(|relation| work(relation, &mut dice));
            let bytes = server.values().map(|relation| relation.blocks.len() as u64 * BLOCK as u64).sum();
            let renewal = before.as_ref().map(|tables| renewal_of(&lane, tables, bytes));
            let older = before.as_ref().zip(renewal.as_ref());
            let backup = back_up(&lane, &format!("b{round}"), &server, older);
            let (tables, taken) = backup.unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error:?}"));
            expect_same(&lane, &tables, &server, &format!("seed {seed}, round {round}"));
            taken_in_all += taken;
            if let Some(renewal) = renewal {
                assert!(!names_any(&lane, &tables, &renewal), "seed {seed}, round {round}");
                renewed += renewal.frames_in_all();
            }
            for relation in server.values_mut() {
                *relation = Relation { blocks: relation.blocks.clone(), listed: true, ..Relation::default() };
            }
            before = Some(tables);
        }
    }
    assert!(taken_in_all > 10 << 20 && renewed > 3, "{taken_in_all} bytes taken over, {renewed} frames renewed");
}

fn one(blocks: usize) -> BTreeMap<u32, Relation> {
    let mut dice = Dice(77);
    let mut relation = Relation::default();
    (0..blocks).for_each(|at| relation.write(at, dice.block()));
    BTreeMap::from([(16384, relation)])
}

fn settled(server: &BTreeMap<u32, Relation>) -> BTreeMap<u32, Relation> {
    let settle = |relation: &Relation| Relation { blocks: relation.blocks.clone(), listed: true, ..Default::default() };
    server.iter().map(|(number, relation)| (*number, settle(relation))).collect()
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    let (lane, renewal) = (lane(), Renewal::default());
    let server = one(100);
    let (tables, _) = back_up(&lane, "a", &server, None).expect("a full one");
    let mut server = settled(&server);
    let relation = server.get_mut(&16384).expect("the only one");
    relation.truncate(40);
    // It grows again, by pages of which the log tells only one.
    relation.blocks.resize(60, vec![0; BLOCK]);
    relation.write(50, vec![9; BLOCK]);
    let (next, taken) = back_up(&lane, "b", &server, Some((&tables, &renewal))).expect("what changed");
    expect_same(&lane, &next, &server, "cut off and grown");
    assert_eq!(taken, 40 * BLOCK as u64);
}

#[test]
fn a_block_that_the_log_tells_of_and_the_server_forgets_makes_the_stream_useless() {
    let (lane, renewal) = (lane(), Renewal::default());
    let server = one(100);
    let (tables, _) = back_up(&lane, "a", &server, None).expect("a full one");
    for (id, cut, forgotten) in [("b", None, 7), ("c", Some(40), 44), ("d", Some(40), 12)] {
        let mut server = settled(&server);
        let relation = server.get_mut(&16384).expect("the only one");
        cut.into_iter().for_each(|cut| relation.truncate(cut));
        [12, 7, 41, 44].into_iter().for_each(|block| relation.write(block, vec![9; BLOCK]));
        relation.forgotten = Some(forgotten);
        let refused = back_up(&lane, id, &server, Some((&tables, &renewal))).expect_err("a block is missing");
        assert!(
            matches!(&refused, BackupError::Remote(RemoteError::Unsent { path, block })
                if path == "base/5/16384" && *block == forgotten),
            "{refused:?}"
        );
    }
}

#[test]
fn a_file_that_did_not_change_is_named_again_and_nothing_is_stored() {
    let (lane, renewal) = (lane(), Renewal::default());
    for blocks in [3, 100] {
        let server = one(blocks);
        let (id, again) = (format!("a{blocks}"), format!("b{blocks}"));
        let (tables, _) = back_up(&lane, &id, &server, None).expect("a full one");
        let server = settled(&server);
        let (next, taken) = back_up(&lane, &again, &server, Some((&tables, &renewal))).expect("what changed");
        expect_same(&lane, &next, &server, "unchanged");
        assert_eq!(taken, (blocks * BLOCK) as u64);
        assert!(lane.list_packs_of(&again).expect("a listing").is_empty(), "even the leaf is the same");
    }
}

#[test]
fn changes_of_what_is_not_there_are_refused() {
    let (lane, renewal) = (lane(), Renewal::default());
    let (tables, _) = back_up(&lane, "a", &one(10), None).expect("a full one");
    let mut server = settled(&one(10));
    let mut stranger = Relation { listed: true, ..Relation::default() };
    stranger.write(3, vec![1; BLOCK]);
    server.insert(20000, stranger);
    let refused = back_up(&lane, "b", &server, Some((&tables, &renewal))).expect_err("no such file");
    assert!(
        matches!(&refused, BackupError::Remote(RemoteError::NoBase { path }) if path == "base/5/20000"),
        "{refused:?}"
    );
}

#[test]
fn changes_of_a_relation_that_began_anew_are_no_servers() {
    let (lane, renewal) = (lane(), Renewal::default());
    let server = one(20);
    let (tables, _) = back_up(&lane, "a", &server, None).expect("a full one");
    let mut server = settled(&server);
    let relation = server.get_mut(&16384).expect("the only one");
    relation.write(3, vec![9; BLOCK]);
    // A server sends what was dropped or made since whole, or not at all; what is named so was left behind by somebody.
    relation.limit = Some(0);
    relation.stray = true;
    let refused = back_up(&lane, "b", &server, Some((&tables, &renewal))).expect_err("not the server's");
    assert!(matches!(&refused, BackupError::Remote(RemoteError::NoBase { .. })), "{refused:?}");
}

/// Small relations, which share frames without hashes, and of each a block that changed.
fn many_small(relations: u32, blocks: usize) -> [BTreeMap<u32, Relation>; 2] {
    let mut dice = Dice(5);
    let relation = |dice: &mut Dice| {
        let mut relation = Relation::default();
        (0..blocks).for_each(|at| relation.write(at, dice.noise()));
        relation
    };
    let before: BTreeMap<u32, Relation> = (0..relations).map(|number| (20_000 + number, relation(&mut dice))).collect();
    let mut after = settled(&before);
    after.values_mut().for_each(|relation| relation.write(1, dice.noise()));
    [before, after]
}

#[test]
fn a_distant_older_backup_is_asked_a_few_times_and_not_for_each_file() {
    let (lane, store) = lane_and_store();
    let renewal = Renewal::default();
    let [before, after] = many_small(150, 12);
    let (tables, _) = back_up(&lane, "a", &before, None).expect("a full one");
    let (packs, frames) =
        (tables.packs.iter().count() as u64, tables.packs.iter().map(|pack| pack.frames).sum::<u32>());
    assert!(packs > 8 && frames > 70, "{packs} packs of {frames} frames");
    let requests = || store.requests().of(Verb::GetRange) + store.requests().of(Verb::Get);
    let asked = requests();
    let (next, _) = back_up(&lane, "b", &after, Some((&tables, &renewal))).expect("what changed");
    let asked = requests() - asked;
    expect_same(&lane, &next, &after, "many small ones");
    // Of each pack its table and, once for each window, its frames; and the leaves.
    assert!(asked <= 4 * packs + 4, "{asked} requests for {packs} packs of {frames} frames");
    assert!(asked < u64::from(frames), "{asked} requests for {packs} packs of {frames} frames");
}

#[test]
fn changes_that_a_cut_off_backup_stored_are_named_and_not_stored_again() {
    let lane = lane();
    let mut server = one(200);
    let large: Vec<Vec<u8>> = std::iter::repeat_with({
        let mut dice = Dice(3);
        move || dice.noise()
    })
    .take(200)
    .collect();
    server.get_mut(&16384).expect("the only one").blocks = large;
    let (tables, _) = back_up(&lane, "20260101T000001Z-a", &server, None).expect("a full one");
    let renewal = Renewal::default();
    let mut server = settled(&server);
    let mut dice = Dice(9);
    let relation = server.get_mut(&16384).expect("the only one");
    (0..200).filter(|at| at % 3 == 0).for_each(|at| relation.write(at, dice.noise()));
    // A new one comes whole.
    let mut new = Relation::default();
    (0..100).for_each(|at| new.write(at, dice.noise()));
    server.insert(20_000, new);
    let stored =
        |id: &str| -> u64 { lane.list_packs_of(id).expect("a listing").iter().map(|pack| pack.stored_bytes).sum() };
    let first = "20260101T000002Z-b";
    back_up(&lane, first, &server, Some((&tables, &renewal))).expect("it is never committed");
    // Since then a block of each changed once more.
    server.get_mut(&16384).expect("one").write(6, dice.noise());
    server.get_mut(&20_000).expect("the other").write(50, dice.noise());
    let again = "20260101T000003Z-c";
    let (_, remains) = Remains::beside(BUDGET, &lane, again, BLOCK as u32).expect("a listing");
    assert!(remains.is_some());
    let (next, _) = back_up_beside(&lane, again, &server, Some((&tables, &renewal)), remains).expect("what changed");
    expect_same(&lane, &next, &server, "resumed");
    let (whole, rest) = (stored(first), stored(again));
    assert!(whole > 1 << 20 && rest * 10 < whole, "{rest} bytes stored again of {whole}");
}

#[test]
fn a_damaged_older_backup_is_its_own_fault() {
    let (lane, renewal) = (lane(), Renewal::default());
    let (tables, _) = back_up(&lane, "a", &one(100), None).expect("a full one");
    let mut packs = tables.packs.places().to_vec();
    for pack in packs.iter_mut().flatten() {
        pack.table_sha256 = Sha256::of(b"another");
    }
    let tables = Tables { packs: crate::format::tables::PackTable::new(packs), ..tables };
    let mut server = settled(&one(100));
    server.get_mut(&16384).expect("the only one").write(3, vec![1; BLOCK]);
    let refused = back_up(&lane, "b", &server, Some((&tables, &renewal))).expect_err("another table");
    assert!(matches!(&refused, BackupError::Copy(CopyError::Parent { .. })), "{refused:?}");
}
