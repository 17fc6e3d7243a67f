//! The memory of a restore: how many workers, how much each reads at once, and how much of the manifest is under way.

use crate::repo::{KEPT_BYTES, TABLES_BYTES};

/// Program, stacks, and what the allocator keeps.
const BASE_BYTES: u64 = 13 << 20;
/// What a worker holds besides the pack it reads: a frame, a pack's frame table, tables of decompression, and what a
/// connection has received and not handed over.
const WORKER_BYTES: u64 = 2 << 20;
/// A leaf, decoded; packs of leaves and frame tables that are kept.
const LEAVES_BYTES: u64 = (1 << 20) + KEPT_BYTES + TABLES_BYTES;
/// Windows at once: one is filled while the next is read.
const WINDOWS: u64 = 2;

const LEAST_READ: u64 = 1 << 20;
/// The largest pack that backups make, and its frame table.
const MOST_READ: u64 = 34 << 20;
const LEAST_WINDOW: u64 = 2 << 20;
const MOST_WINDOW: u64 = 64 << 20;

/// Workers, reads and windows of one restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Threads that decompress and write.
    pub workers: usize,
    /// A pack of up to so many bytes may be held whole by each worker; larger ones are read frame by frame.
    pub read_bytes: u64,
    /// Bytes that the entries under way take in memory, and the bookkeeping of their pieces.
    pub window_bytes: u64,
}

impl Budget {
    /// Divides `memory` bytes among at most `workers` threads: fewer if it does not suffice for all.
    pub fn new(memory: u64, workers: usize) -> Self {
        let free = memory.saturating_sub(BASE_BYTES + LEAVES_BYTES);
        let for_workers = free.saturating_sub(WINDOWS * LEAST_WINDOW);
        let workers = (for_workers / (WORKER_BYTES + LEAST_READ)).clamp(1, workers.max(1) as u64);
        // So much that the packs fit which a backup with the same memory makes.
        let for_reads = (for_workers * 15 / 16 / workers).saturating_sub(WORKER_BYTES);
        let read_bytes = for_reads.clamp(LEAST_READ, MOST_READ);
        let left = free.saturating_sub(workers * (WORKER_BYTES + read_bytes));
        let window_bytes = (left / WINDOWS).clamp(LEAST_WINDOW, MOST_WINDOW);
        Self { workers: workers as usize, read_bytes, window_bytes }
    }

    /// Bytes that the whole restore holds at most.
    pub fn memory_bytes(&self) -> u64 {
        let workers = self.workers as u64 * (WORKER_BYTES + self.read_bytes);
        BASE_BYTES + LEAVES_BYTES + workers + WINDOWS * self.window_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_stays_in_the_budget() {
        for memory in [40u64, 48, 64, 100, 256, 1024] {
            for workers in [1, 2, 3, 8, 64] {
                let budget = Budget::new(memory << 20, workers);
                assert!(budget.memory_bytes() <= memory << 20, "{memory} MiB, {workers}: {budget:?}");
                assert!(budget.workers <= workers);
            }
        }
        assert_eq!(Budget::new(256 << 20, 2).read_bytes, MOST_READ);
    }
}
