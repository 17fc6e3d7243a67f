//! The memory of a backup: how many workers, and how large the packs that each of them fills.
//!
//! Everything that grows with a queue is counted here. What grows with the cluster is counted too: the names of one
//! directory, at [`NAME_BYTES`] each, for a million files; and a hundred bytes for each pack that was stored.

use super::lending::CACHE_BYTES;
use super::remains::{LEAST_WINDOW, PIECE_BYTES};

/// Program, connections, stacks, and what the allocator keeps.
const BASE_BYTES: u64 = 10 << 20;
/// What a worker holds besides its pack: buffers for reading, for a bundle, for compression and for writing to a volume; the
/// frame table.
const WORKER_BYTES: u64 = 4 << 20;
/// The leaves being written: a pack of them, a leaf, and its compression.
const LEAVES_BYTES: u64 = LEAF_PACK_BYTES as u64 + (2 << 20);
/// A file that is being copied, or that waits for one before it: paths, pieces, checksums.
const SLOT_BYTES: u64 = 512;
/// A name in a directory that is being read: digits of a relation file, their end, and where they begin.
const NAME_BYTES: u64 = 14;
const NAMES: u64 = 1_000_000;

/// A backup that this one builds on: a leaf of it and those read ahead, and frame tables. What changed, and how much of its
/// frames is alive, is counted in bits and bytes for each 256 KiB of the cluster, and not here.
const PARENT_BYTES: u64 = CACHE_BYTES as u64 + (3 << 20);

/// Least and greatest size of a pack of pages.
const LEAST_PACK: u64 = 1 << 20;
const MOST_PACK: u64 = 32 << 20;

/// Most memory for what backups left that were cut off: pages of some five gigabytes.
const MOST_REMAINS: u64 = 64 << 20;

/// Bytes of a stream that one worker takes at a time; a buffer of this size for each, and three on the way to them.
pub(super) const REMOTE_RANGE_BYTES: usize = 4 << 20;
/// A file of a stream, of which path and pieces are held until all came; counted for so many files.
const REMOTE_FILE_BYTES: u64 = 256;
const REMOTE_FILES: u64 = 40_000;

/// Size of a pack of leaves.
pub(super) const LEAF_PACK_BYTES: usize = 2 << 20;
/// Files and directories that are listed and not yet in a leaf.
pub(super) const WINDOW_SLOTS: usize = 4096;

/// Workers and packs of one backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Threads that read and compress.
    pub workers: usize,
    /// Bytes at which a pack is stored.
    pub pack_bytes: usize,
}

impl Budget {
    /// Divides `memory` bytes among at most `workers` threads: fewer if it does not suffice for all.
    pub fn new(memory: u64, workers: usize) -> Self {
        let free = memory.saturating_sub(Self::fixed_bytes());
        let workers = (free / (WORKER_BYTES + LEAST_PACK)).clamp(1, workers.max(1) as u64);
        let pack = (free / workers).saturating_sub(WORKER_BYTES).clamp(LEAST_PACK, MOST_PACK);
        Self { workers: workers as usize, pack_bytes: pack as usize }
    }

    /// The same memory with room for what a backup holds that builds on another: smaller packs, and fewer workers where they
    /// would become too small.
    #[must_use]
    pub fn beside_parent(self) -> Self {
        let free = self.workers as u64 * (WORKER_BYTES + self.pack_bytes as u64);
        let free = free.saturating_sub(PARENT_BYTES);
        let workers = (free / (WORKER_BYTES + LEAST_PACK)).clamp(1, self.workers.max(1) as u64);
        let pack = (free / workers).saturating_sub(WORKER_BYTES).clamp(LEAST_PACK, MOST_PACK);
        Self { workers: workers as usize, pack_bytes: pack as usize }
    }

    /// The same memory with room for what backups left that were cut off; and how many pieces of their contents that is.
    #[must_use]
    pub(super) fn beside_remains(self) -> (Self, usize) {
        let spare = (self.pack_bytes as u64).saturating_sub(LEAST_PACK) / 2;
        let window = (spare * self.workers as u64).min(MOST_REMAINS) / PIECE_BYTES as u64;
        let pack = self.pack_bytes as u64 - window * PIECE_BYTES as u64 / self.workers.max(1) as u64;
        // What the least takes is within what the program itself is counted with.
        (Self { pack_bytes: pack as usize, ..self }, (window as usize).max(LEAST_WINDOW))
    }

    /// Divides the same for a backup that comes in a stream, which needs buffers and no list of names.
    pub fn remote(memory: u64, workers: usize) -> Self {
        let buffer = REMOTE_RANGE_BYTES as u64;
        let fixed = BASE_BYTES + LEAVES_BYTES + REMOTE_FILES * REMOTE_FILE_BYTES;
        let free = memory.saturating_sub(fixed + 3 * buffer);
        let each = WORKER_BYTES + buffer;
        let workers = (free / (each + LEAST_PACK)).clamp(1, workers.max(1) as u64);
        let pack = (free / workers).saturating_sub(each).clamp(LEAST_PACK, MOST_PACK);
        Self { workers: workers as usize, pack_bytes: pack as usize }
    }

    /// Bytes that the whole backup holds at most.
    pub fn memory_bytes(&self) -> u64 {
        Self::fixed_bytes() + self.workers as u64 * (WORKER_BYTES + self.pack_bytes as u64)
    }

    fn fixed_bytes() -> u64 {
        BASE_BYTES + LEAVES_BYTES + WINDOW_SLOTS as u64 * SLOT_BYTES + NAMES * NAME_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn beside_a_parent_packs_are_smaller() {
        let (alone, beside) = (Budget::new(64 * MIB, 2), Budget::new(64 * MIB, 2).beside_parent());
        assert!(beside.memory_bytes() + PARENT_BYTES <= 64 * MIB && beside.pack_bytes < alone.pack_bytes);
        assert_eq!(beside.workers, 2);
        // One worker less, before what they hold exceeds what there is.
        for memory in [40, 44, 48, 64, 100, 256, 1024] {
            for workers in [1, 2, 3, 8, 64] {
                let beside = Budget::new(memory * MIB, workers).beside_parent();
                let sum = beside.memory_bytes() + PARENT_BYTES;
                assert!(sum <= memory * MIB, "{memory} MiB, {workers}: {beside:?}");
            }
        }
        assert_eq!(Budget::new(48 * MIB, 2).beside_parent().workers, 2);
    }

    #[test]
    fn beside_remains_packs_are_smaller_and_never_too_small() {
        for (memory, workers) in [(40, 1), (48, 2), (64, 2), (1024, 8)] {
            for alone in [Budget::new(memory * MIB, workers), Budget::new(memory * MIB, workers).beside_parent()] {
                let (beside, window) = alone.beside_remains();
                let least = (LEAST_WINDOW * PIECE_BYTES) as u64;
                let sum = beside.memory_bytes() + (window * PIECE_BYTES) as u64;
                assert!(sum <= alone.memory_bytes() + least && least < MIB / 4, "{alone:?}");
                assert!(beside.pack_bytes as u64 >= LEAST_PACK && window < 1 << 20, "{beside:?} {window}");
            }
        }
        assert!(Budget::new(48 * MIB, 2).beside_remains().1 > 4 * LEAST_WINDOW);
    }

    #[test]
    fn the_sum_stays_in_the_budget_and_uses_it() {
        for memory in [40, 48, 64, 100, 256, 1024] {
            for workers in [1, 2, 3, 8, 64] {
                let budget = Budget::new(memory * MIB, workers);
                assert!(budget.memory_bytes() <= memory * MIB, "{memory} MiB, {workers}: {budget:?}");
                assert!(budget.workers <= workers);
            }
        }
        let two = Budget::new(48 * MIB, 2);
        assert!(two.workers == 2 && two.pack_bytes > 3 << 20, "{two:?}");
        assert!(Budget::new(48 * MIB, 64).workers < 8, "memory limits the workers");
    }
}
