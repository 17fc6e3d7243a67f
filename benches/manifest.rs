//! Writes a synthetic manifest on a volume, reads it back leaf by leaf, and prints seconds and peak megabytes of each.
//!
//! `cargo bench --bench manifest -- 10 100` makes manifests of 10 and 100 million pieces, each of one or two blocks
//! somewhere in many packs, as months of scattered changes leave them; and names 100,000 relations in each. Every phase
//! is a process of its own, so that its peak is its own.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use walvault::format::frame::Compressor;
use walvault::format::leaf::{File, Node, Piece};
use walvault::format::leaf_writer::{Leaf, LeafWriter};
use walvault::format::manifest::{Envelope, Manifest};
use walvault::format::pack::PackWriter;
use walvault::format::relations::{Relation, RelationWriter};
use walvault::format::tables::{LeafRef, PackRef, PackSource, PackTable, Tables};
use walvault::format::{Sha256, sample};
use walvault::pg::system_id::SystemId;
use walvault::repo::{LANE_VERSION, Lane, LaneFacts, Repository};
use walvault::store::{Access, RetryPolicy, Store, StoreUrl};

type Outcome<T> = Result<T, Box<dyn Error>>;

const BACKUP: &str = "20260101T000000Z-000000";
const BLOCK: u64 = 8192;
/// Blocks of a relation's segment file.
const SEGMENT_BLOCKS: u64 = 131_072;
/// Packs that pieces are scattered over, and frames in each: a TiB, compressed to a quarter in packs of 8 MiB.
const PACKS: u32 = 32_768;
const FRAMES: u32 = 128;
const RELATIONS: u32 = 100_000;
const PACK_BYTES: usize = 2 << 20;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", place, pieces] => write(Path::new(place), pieces.parse()?),
        ["read", place] => read(Path::new(place)),
        [] => run(&["10"]),
        ref millions => run(millions),
    }
}

fn run(millions: &[&str]) -> Outcome<()> {
    for million in millions {
        let pieces = million.parse::<u64>()? * 1_000_000;
        let place = tempfile::tempdir()?;
        for phase in [vec!["write", "PLACE", &pieces.to_string()], vec!["read", "PLACE"]] {
            let mut child = Command::new(std::env::current_exe()?);
            for word in phase {
                if word == "PLACE" {
                    child.arg(place.path())
                } else {
                    child.arg(word)
                };
            }
            if !child.status()?.success() {
                return Err("a phase failed".into());
            }
        }
    }
    Ok(())
}

fn lane(place: &Path) -> Outcome<Lane> {
    let url: StoreUrl = format!("file://{}", place.display()).parse()?;
    let (repository, _) = Repository::init(Store::open(&url, &Access::default(), RetryPolicy::default())?, "bench")?;
    let facts = LaneFacts {
        version: LANE_VERSION,
        system_id: SystemId::new(7),
        epoch: 1,
        major: 17,
        catalog_version: 202_406_281,
        segment_size: 16 << 20,
        block_size: BLOCK as u32,
        wal_block_size: BLOCK as u32,
        parent: None,
    };
    Ok(repository.lane_for(&facts)?)
}

/// Packs of leaves, stored as they fill.
struct Shelf<'a> {
    lane: &'a Lane,
    packs: Vec<Option<PackRef>>,
    open: Option<PackWriter>,
    compressor: Compressor,
    stored: u64,
}

impl Shelf<'_> {
    fn add(&mut self, raw: &[u8], entries: u32, first: Vec<u8>) -> Outcome<LeafRef> {
        let number = self.packs.len() as u32 + 1;
        let mut pack = match self.open.take() {
            Some(pack) => pack,
            None => PackWriter::new(&self.lane.pack_identity(BACKUP, number), BLOCK as u32)?,
        };
        let frame = pack.append(raw, &[], &mut self.compressor)?;
        let full = pack.is_full(PACK_BYTES);
        self.open = Some(pack);
        if full {
            self.close()?;
        }
        Ok(LeafRef { pack: number - 1, frame, entries, digest: Sha256::of(raw), first })
    }

    fn close(&mut self) -> Outcome<()> {
        if let Some(pack) = self.open.take() {
            let number = self.packs.len() as u32 + 1;
            let (reference, _) = self.lane.create_pack(&BACKUP.into(), number, pack.finish())?;
            self.stored += reference.stored_bytes;
            self.packs.push(Some(reference));
        }
        Ok(())
    }
}

fn write(place: &Path, pieces: u64) -> Outcome<()> {
    let started = Instant::now();
    let lane = lane(place)?;
    // The packs that pages are in: only their entries in the table, as if an older backup had stored them.
    let pages = |number| PackRef {
        source: PackSource::Lane { backup: "20250101T000000Z-000000".into(), number },
        stored_bytes: 8 << 20,
        frames: FRAMES,
        sha256: Sha256::of(&u64::from(number).to_le_bytes()),
        table_sha256: Sha256::of(&u64::from(number + PACKS).to_le_bytes()),
    };
    let packs = (0..PACKS).map(|number| Some(pages(number + 1))).collect();
    let mut shelf = Shelf { lane: &lane, packs, open: None, compressor: Compressor::new(3), stored: 0 };
    let mut leaves = Vec::new();
    let mut writer = LeafWriter::default();
    let mut seed = 1u64;
    let (mut written, mut files, mut bytes) = (0, 0u64, 0);
    while written < pieces {
        writer.open(format!("base/16384/{:09}", 16_384 + files).as_bytes());
        let mut blocks = 0;
        while blocks < SEGMENT_BLOCKS && written < pieces {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // One block, and now and then two.
            let len = 1 + u64::from(seed >> 60 == 0);
            let (pack, frame) = ((seed >> 33) as u32 % PACKS, (seed >> 20) as u32 % FRAMES);
            let offset = (seed >> 50) as u32 % 30 * BLOCK as u32;
            store(writer.piece(Piece::Frames { pack, frame, offset, len: len * BLOCK }), &mut shelf, &mut leaves)?;
            blocks += len;
            written += 1;
        }
        let size = blocks * BLOCK;
        let file = File { size, mode: 0o600, modified: 1_700_000_000, crc: seed as u32, digest: None, relation: true };
        store(writer.close(&file), &mut shelf, &mut leaves)?;
        files += 1;
        bytes += size;
    }
    store(writer.finish(), &mut shelf, &mut leaves)?;
    let relations = write_relations(&mut shelf)?;
    shelf.close()?;
    let (stored, packs) = (shelf.stored, PackTable::new(shelf.packs));
    let tables = Tables { packs, leaves, relations };
    lane.commit(&manifest(&lane, files, bytes), &tables)?;
    report("write", pieces, started, &format!("{} leaves, {} MB stored", tables.leaves.len(), stored / 1_000_000))
}

fn store(leaf: Option<Leaf>, shelf: &mut Shelf<'_>, leaves: &mut Vec<LeafRef>) -> Outcome<()> {
    if let Some(Leaf { raw, entries, first }) = leaf {
        leaves.push(shelf.add(&raw, entries, first)?);
    }
    Ok(())
}

fn write_relations(shelf: &mut Shelf<'_>) -> Outcome<Vec<LeafRef>> {
    let mut writer = RelationWriter::default();
    let mut leaves = Vec::new();
    for n in 0..RELATIONS {
        let name = format!("table_number_{n:08}").into_bytes();
        let (oid, schema) = (16_384 + n, b"public".to_vec());
        let relation = Relation { database: 5, schema, name, oid, file: oid, tablespace: 1663, kind: b'r' };
        if let Some(leaf) = writer.add(&relation) {
            leaves.push(shelf.add(&leaf.raw, leaf.entries, leaf.database.to_be_bytes().to_vec())?);
        }
    }
    if let Some(leaf) = writer.finish() {
        leaves.push(shelf.add(&leaf.raw, leaf.entries, leaf.database.to_be_bytes().to_vec())?);
    }
    Ok(leaves)
}

fn read(place: &Path) -> Outcome<()> {
    let started = Instant::now();
    let lane = lane(place)?;
    let manifest = lane.manifest(&lane.backups()?[0])?;
    let tables = lane.tables(&manifest)?;
    let mut leaves = lane.leaves(&tables);
    let (mut pieces, mut files) = (0, 0);
    while let Some(entries) = leaves.next_leaf()? {
        for entry in entries {
            if let Node::File(part) = entry.node {
                pieces += part.pieces.len() as u64;
                files += u64::from(part.file.is_some());
            }
        }
    }
    let mut names = lane.relations(&tables);
    let mut relations = 0;
    while let Some(found) = names.next_leaf()? {
        relations += found.len() as u32;
    }
    if files != manifest.envelope.files || relations != RELATIONS {
        return Err("the manifest did not come back".into());
    }
    report("read", pieces, started, &format!("{files} files, {relations} relations"))
}

fn manifest(lane: &Lane, files: u64, bytes: u64) -> Manifest {
    let Manifest { envelope, root } = sample::manifest(&lane.id().to_string(), lane.id().system_id(), BACKUP);
    Manifest { envelope: Envelope { bytes, files, packs: u64::from(PACKS), ..envelope }, root }
}

fn report(phase: &str, pieces: u64, started: Instant, more: &str) -> Outcome<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("VmHWM")?;
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{phase:<5} {:>4} million pieces  {seconds:>6.1} s  peak {:>4} MB  {more}",
        pieces / 1_000_000,
        kib / 1000
    );
    Ok(())
}
