//! Ninety days of backups, on paper: how much a backup keeps stored, and how much a restore decompresses, against a fresh
//! full one. Run with `--nocapture` to see the days.

use std::collections::BTreeMap;
use std::convert::Infallible;

use super::*;

const BLOCK: u32 = 8192;
const BLOCKS_OF_FRAME: usize = FRAME_BYTES / BLOCK as usize;
/// As many as fill a pack of some megabytes, compressed.
const FRAMES_OF_PACK: usize = 80;

/// Where a block is: pack, frame, place in the frame.
type Place = (u32, u32, u32);

/// A data directory and the packs of its last backup.
struct Model {
    blocks: Vec<Place>,
    /// Blocks in each frame of each pack.
    packs: Vec<Vec<u32>>,
    open: Vec<usize>,
    random: u64,
}

impl Model {
    fn new(blocks: usize) -> Self {
        let mut model = Self { blocks: vec![(0, 0, 0); blocks], packs: vec![Vec::new()], open: Vec::new(), random: 88 };
        (0..blocks).for_each(|block| model.store(block));
        model.close();
        model
    }

    fn next(&mut self, end: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.random >> 33) as usize) % end
    }

    fn store(&mut self, block: usize) {
        self.open.push(block);
        if self.open.len() == BLOCKS_OF_FRAME {
            self.close();
        }
    }

    fn close(&mut self) {
        if self.open.is_empty() {
            return;
        }
        if self.packs.last().is_some_and(|pack| pack.len() == FRAMES_OF_PACK) {
            self.packs.push(Vec::new());
        }
        let pack = self.packs.len() as u32 - 1;
        let frames = self.packs.last_mut().expect("one at least");
        frames.push(self.open.len() as u32);
        for (place, block) in self.open.drain(..).enumerate() {
            self.blocks[block] = (pack, frames.len() as u32 - 1, place as u32);
        }
    }

    fn liveness(&self) -> Liveness {
        let mut live = Liveness::new(self.packs.iter().map(|frames| Some(frames.len() as u32)));
        self.blocks.iter().for_each(|(pack, frame, place)| live.add(*pack, *frame, place * BLOCK, BLOCK.into()));
        live
    }

    /// Takes a backup, as `copy` does: a chunk of which more than half is to be stored is stored whole.
    fn back_up(&mut self, changed: &[bool]) {
        let bytes = self.blocks.len() as u64 * u64::from(BLOCK);
        let lengths = |pack: u32| {
            let frames = &self.packs[pack as usize];
            Ok::<_, Infallible>(frames.iter().map(|blocks| blocks * BLOCK).collect::<Vec<u32>>())
        };
        let Ok(renewal) = self.liveness().renewal(bytes, lengths);
        // A backup begins packs of its own.
        self.packs.push(Vec::new());
        for chunk in (0..self.blocks.len()).step_by(BLOCKS_OF_FRAME) {
            let all = chunk..(chunk + BLOCKS_OF_FRAME).min(self.blocks.len());
            let stale = |block: &usize| changed[*block] || renewal.has(self.blocks[*block].0, self.blocks[*block].1);
            let fresh: Vec<usize> = all.clone().filter(stale).collect();
            if fresh.len() * 2 > all.len() {
                self.close();
                all.for_each(|block| self.store(block));
                self.close();
            } else {
                fresh.into_iter().for_each(|block| self.store(block));
            }
        }
        self.close();
    }

    /// Returns what is kept stored, and what a restore decompresses, for each byte.
    fn costs(&self) -> (f64, f64) {
        let mut named: BTreeMap<u32, BTreeMap<u32, u32>> = BTreeMap::new();
        for (pack, frame, _) in &self.blocks {
            named.entry(*pack).or_default().insert(*frame, self.packs[*pack as usize][*frame as usize]);
        }
        let stored: u32 = named.keys().map(|pack| self.packs[*pack as usize].iter().sum::<u32>()).sum();
        let read: u32 = named.values().flat_map(BTreeMap::values).sum();
        let of_all = |blocks: u32| f64::from(blocks) / self.blocks.len() as f64;
        (of_all(stored), of_all(read))
    }
}

/// Returns the highest costs of ninety days; in a soak of a year, with four times as many blocks.
#[allow(clippy::print_stdout, reason = "the days are what one runs it for")]
fn ninety_days(name: &str, mut choose: impl FnMut(&mut Model) -> usize) -> (f64, f64) {
    let soaking = std::env::var_os("WALVAULT_SOAK").is_some();
    let (blocks, days) = if soaking { (256 * 1024, 365) } else { (64 * 1024, 90) };
    let mut model = Model::new(blocks);
    let (mut most_stored, mut most_read) = (1.0, 1.0);
    for day in 1..=days {
        let mut changed = vec![false; model.blocks.len()];
        let mut left = model.blocks.len() / 20;
        while left > 0 {
            let block = choose(&mut model);
            left -= usize::from(!std::mem::replace(&mut changed[block], true));
        }
        let before = model.packs.len();
        model.back_up(&changed);
        let added: u32 = model.packs[before..].iter().flatten().sum();
        let (stored, read) = model.costs();
        if day % 10 == 0 {
            let added = f64::from(added) / model.blocks.len() as f64;
            println!("{name}, day {day}: added {added:.3}, stored {stored:.2}, decompressed {read:.2}");
        }
        (most_stored, most_read) = (f64::max(most_stored, stored), f64::max(most_read, read));
    }
    (most_stored, most_read)
}

#[test]
fn after_ninety_days_of_scattered_change_neither_storage_nor_restores_have_decayed() {
    let (stored, read) = ninety_days("5 % anywhere", |model| model.next(model.blocks.len()));
    assert!(stored < 1.5 && read < 1.5, "{stored} stored, {read} decompressed");
}

#[test]
fn nor_where_most_of_the_change_hits_a_fifth() {
    let (stored, read) = ninety_days("80 % of 5 % in a fifth", |model| {
        let (fifth, hot) = (model.blocks.len() / 5, model.next(5) < 4);
        // Hot blocks lie among the others.
        if hot { model.next(fifth) * 5 } else { model.next(model.blocks.len()) }
    });
    assert!(stored < 1.5 && read < 1.5, "{stored} stored, {read} decompressed");
}

#[test]
fn only_what_is_mostly_dead_is_stored_again_and_only_so_much() {
    const FRAME: u32 = FRAME_BYTES as u32;
    let mut live = Liveness::new([Some(5), None, Some(4)].into_iter());
    // Frames of the first pack: whole, a quarter, dead, a short one that is whole, and whole again.
    live.add(0, 0, 0, FRAME.into());
    live.add(0, 4, 0, FRAME.into());
    live.add(0, 1, 8192, u64::from(FRAME) / 4);
    live.add(0, 3, 0, 8192);
    // Of the third, one frame of four: what keeps the pack is stored again too.
    live.add(2, 1, 0, FRAME.into());
    let lengths = |pack| {
        Ok::<_, Infallible>(if pack == 0 { vec![FRAME, FRAME, FRAME / 16, 8192, FRAME] } else { vec![FRAME; 4] })
    };
    let chosen = |bytes| {
        let Ok(renewal) = live.renewal(bytes, lengths);
        renewal.frames
    };
    assert_eq!(chosen(u64::MAX), [(0, 1), (2, 1)]);
    // A pack that goes comes first.
    assert_eq!(chosen(u64::from(FRAME) * SHARE), [(2, 1)]);
    assert_eq!(chosen(0), []);
}
