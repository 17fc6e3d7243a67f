//! Everything that a stream held, on its way into leaves.

use std::sync::{Arc, Mutex, MutexGuard};

use super::super::gather::{Stretch, Totals};
use super::super::leaves::FileLeaves;
use super::super::packs::PlaceSet;
use super::super::perform::BackupError;
use super::RemoteError;
use super::incremental_file::{BlockSet, Heading};
use super::merge::Merge;
use super::overlay::Older;
use crate::format::crc;
use crate::format::manifest::DamagedPage;
use crate::format::tables::LeafRef;
use crate::pg::data_directory::RelationPath;

/// A file or directory of the stream.
#[derive(Debug)]
pub(super) struct Item {
    pub path: Arc<[u8]>,
    pub mode: u32,
    pub modified: i64,
    /// Bytes; `None` for a directory.
    pub size: Option<u64>,
    pub relation: Option<RelationPath>,
    /// What was stored of it: where in the file, or among its changed blocks, and what.
    pub stretches: Vec<(u64, Stretch)>,
    pub came: Came,
}

/// How a file came.
#[derive(Debug)]
pub(super) enum Came {
    Whole,
    /// Whole, and the older backup has the same bytes under the same name: nothing of it was stored.
    Same,
    /// As the blocks that changed.
    Changes(Box<Changed>),
}

/// What changed of a file.
#[derive(Debug)]
pub(super) struct Changed {
    /// Bytes as it was sent.
    sent: u64,
    /// CRC-32C of the heading as it was sent.
    heading: u32,
    /// Blocks of the older backup's file that count, if they did not change.
    pub truncation: u32,
    /// What was sent.
    pub blocks: BlockSet,
    /// What those blocks add to the file's CRC-32C.
    pub share: u32,
}

impl Changed {
    pub fn new(heading: &Heading, block_size: u32) -> Self {
        let sent = heading.len + heading.blocks.len() as u64 * u64::from(block_size);
        let (truncation, blocks) = (heading.truncation, BlockSet::of(&heading.blocks));
        Self { sent, heading: heading.crc, truncation, blocks, share: 0 }
    }
}

/// What came, sorted by path, none twice.
pub(super) struct Items(Vec<Item>);

/// Everything that was found in the stream.
#[derive(Default)]
pub(super) struct Found {
    pub items: Vec<Item>,
    pub damaged: Vec<DamagedPage>,
    pub damaged_total: u64,
}

impl Found {
    /// Adds what was stored of a file; stretches come in any order.
    pub fn put(&mut self, number: usize, offset: u64, stretch: Stretch) {
        let stretches = &mut self.items[number].stretches;
        // Most files have one and no more; room for four of each would be most of what is held.
        if stretches.is_empty() {
            stretches.reserve_exact(1);
        }
        let at = stretches.partition_point(|(before, _)| *before < offset);
        stretches.insert(at, (offset, stretch));
    }

    /// Notes that a file is what the older backup has.
    pub fn put_same(&mut self, number: usize, stretch: Stretch) {
        self.items[number].came = Came::Same;
        self.put(number, 0, stretch);
    }

    /// Adds changed blocks of a file, and what they add to its checksum.
    pub fn put_changes(&mut self, number: usize, offset: u64, stretch: Stretch, share: u32) {
        if let Came::Changes(changed) = &mut self.items[number].came {
            changed.share ^= share;
        }
        self.put(number, offset, stretch);
    }

    /// Sorts what came.
    pub fn sorted(mut self) -> Result<(Items, Totals), RemoteError> {
        self.items.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        if let Some(twice) = self.items.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(RemoteError::Twice { path: String::from_utf8_lossy(&twice[0].path).into_owned() });
        }
        let files = self.items.iter().filter_map(|item| item.size);
        let totals = Totals {
            files: files.clone().count() as u64,
            bytes: files.sum(),
            damaged: self.damaged,
            damaged_total: self.damaged_total,
            ..Totals::default()
        };
        Ok((Items(self.items), totals))
    }
}

impl Items {
    /// Returns the place of what came under a path.
    pub fn place(&self, path: &[u8]) -> Option<usize> {
        self.0.binary_search_by(|item| item.path.as_ref().cmp(path)).ok()
    }

    /// How many there are, with directories.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns size and CRC-32C of a file as it was sent: whole, or as its changes.
    pub fn sent(&self, path: &[u8], as_changes: bool) -> Option<(u64, u32)> {
        let item = &self.0[self.place(path)?];
        match &item.came {
            Came::Changes(changed) => as_changes.then(|| (changed.sent, item.crc(changed.heading))),
            Came::Whole | Came::Same => Some((item.size.filter(|_| !as_changes)?, item.crc(0))),
        }
    }

    /// Puts everything into leaves, in the order of paths; what did not change is taken from the older backup. Returns the
    /// leaves, the packs of the older backup that they and their pieces name, and the bytes that were taken over.
    pub fn store(
        self,
        leaves: FileLeaves<'_>,
        older: Option<Older<'_>>,
    ) -> Result<(Vec<LeafRef>, PlaceSet, u64), BackupError> {
        let mut merge = Merge::new(leaves, older);
        self.0.into_iter().try_for_each(|item| merge.add(item))?;
        merge.finish()
    }
}

impl Item {
    /// Returns the CRC-32C of what was stored of it, behind something with the CRC-32C `before`.
    pub fn crc(&self, before: u32) -> u32 {
        self.stretches.iter().fold(before, |crc, (_, stretch)| crc::join(crc, stretch.crc, stretch.len))
    }
}

/// Changes of what the older backup does not have.
pub(super) fn no_base(path: &[u8]) -> RemoteError {
    RemoteError::NoBase { path: String::from_utf8_lossy(path).into_owned() }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
