//! The pages of every relation, compared as PostgreSQL compares what it replays with what was written at first.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: usize = 8192;

/// A checksum of each page of each main fork, but for what replay does not keep. Maps of free space and visibility are not
/// kept up by replay, and are judged by what they say.
#[derive(Debug)]
pub struct Pages(BTreeMap<PathBuf, Vec<u32>>);

impl Pages {
    /// Reads the relations of a data directory whose server has nothing left to write.
    #[track_caller]
    pub fn of(data: &Path) -> Self {
        let below = |directory: &Path| -> Vec<PathBuf> {
            fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("a listed entry").path()).collect()
        };
        let spaces = below(&data.join("pg_tblspc")).into_iter().flat_map(|space| below(&space));
        let databases = spaces.chain([data.join("base")]).flat_map(|place| below(&place)).chain([data.join("global")]);
        let mut found = BTreeMap::new();
        for path in databases.flat_map(|directory| below(&directory)) {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if name.chars().all(|c| c.is_ascii_digit() || c == '.') {
                let bytes = fs::read(&path).expect("a relation");
                let short = path.strip_prefix(data).expect("below").to_owned();
                found.insert(short, bytes.chunks(PAGE).map(sum).collect());
            }
        }
        Self(found)
    }

    /// Returns the pages that differ, by file; panics if there are other files.
    #[track_caller]
    pub fn differences(&self, other: &Self) -> BTreeMap<PathBuf, Vec<usize>> {
        assert_eq!(self.0.keys().collect::<Vec<_>>(), other.0.keys().collect::<Vec<_>>());
        let different = |ours: &[u32], theirs: &[u32]| -> Vec<usize> {
            let longest = ours.len().max(theirs.len());
            (0..longest).filter(|page| ours.get(*page) != theirs.get(*page)).collect()
        };
        let files = self.0.iter().map(|(path, ours)| (path.clone(), different(ours, &other.0[path])));
        files.filter(|(_, pages)| !pages.is_empty()).collect()
    }

    /// Panics if a page differs.
    #[track_caller]
    pub fn expect_same(&self, other: &Self, what: &str) {
        let different = self.differences(other);
        assert!(different.is_empty(), "{what}: {different:#?}");
    }
}

fn sum(page: &[u8]) -> u32 {
    let mut page = page.to_vec();
    mask(&mut page);
    crc32c::crc32c(&page)
}

/// Takes out what replay does not keep: position and checksum, hints in the header and of rows, free space.
///
/// Source: `mask_page_lsn_and_checksum`, `mask_page_hint_bits`, `mask_unused_space`, `mask_lp_flags`, `mask_page_content` in
/// `src/backend/access/common/bufmask.c`; `heap_mask`, `btree_mask`, `hash_mask`, `gin_mask`, `seq_mask`.
fn mask(page: &mut [u8]) {
    let word = |page: &[u8], at: usize| usize::from(u16::from_le_bytes([page[at], page[at + 1]]));
    if page.len() < PAGE {
        return;
    }
    let (lower, upper, special) = (word(page, 12), word(page, 14), word(page, 16));
    page[..12].fill(0);
    if upper < lower || upper > page.len() || lower < 24 || special > page.len() {
        return;
    }
    page[20..24].fill(0);
    page[lower..upper].fill(0);
    let end = page.len();
    let opaque = end - special;
    if opaque == 8 && page[special..special + 4] == 0x1717u32.to_le_bytes() {
        // A sequence counts on without a record for each number.
        return page[24..].fill(0);
    }
    if is_void(opaque, word(page, end - 4), word(page, end - 2)) {
        page[12..16].fill(0);
        return page[24..].fill(0);
    }
    for at in (24..lower).step_by(4) {
        let item = u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let (offset, flags, len) = ((item & 0x7FFF) as usize, item >> 15 & 3, (item >> 17) as usize);
        if opaque == 0 && flags == 1 && len >= 23 && offset + len <= end {
            mask_row(&mut page[offset..(offset + len).next_multiple_of(8).min(end)], len);
        } else if opaque > 0 && flags & 1 == 1 {
            // Dead entries of an index are a hint.
            page[at + 1] &= 0x7F;
            page[at + 2] &= 0xFE;
        }
    }
    if opaque > 0 {
        // Flags of a B-tree page hold hints: that there is garbage, and the cycle of a vacuum.
        page[end - 4..].fill(0);
    }
}

/// Whether a page of an index was deleted, or never used: replay makes it anew. The last two words of it tell of which kind it
/// is: of a B-tree, unless it has another one's mark, with the flags before; of 8 bytes the flags of GIN, unless likewise.
fn is_void(opaque: usize, before: usize, last: usize) -> bool {
    const HASH: usize = 0xFF80;
    const GIST: usize = 0xFF81;
    const SP_GIST: usize = 0xFF82;
    const BRIN: std::ops::RangeInclusive<usize> = 0xF091..=0xF093;
    const DELETED: usize = 4;
    match opaque {
        16 if last == HASH => before & 0xF == 0,
        16 if last != GIST => before & DELETED != 0,
        8 if last != SP_GIST && !BRIN.contains(&last) => last & DELETED != 0,
        _ => false,
    }
}

/// Hints of a row, its command's number, and padding behind it.
fn mask_row(row: &mut [u8], len: usize) {
    const FROZEN: u16 = 0x0300;
    const OF_LOCKER: u16 = 0x0C00;
    const OF_TRANSACTIONS: u16 = 0xFFF0;
    let hints = u16::from_le_bytes([row[20], row[21]]);
    let masked = if hints & FROZEN == FROZEN { hints & !OF_LOCKER } else { hints & !OF_TRANSACTIONS };
    row[20..22].copy_from_slice(&masked.to_le_bytes());
    row[8..12].fill(0);
    row[len..].fill(0);
}

#[test]
fn what_a_page_holds_counts_and_what_is_a_hint_does_not() {
    let mut page = vec![0; PAGE];
    // One row of 29 bytes.
    for (at, value) in [(12, 28u16), (14, 8160), (16, PAGE as u16), (18, PAGE as u16 | 4)] {
        page[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    page[24..28].copy_from_slice(&(8160u32 | 1 << 15 | 29 << 17).to_le_bytes());
    page[8160..8189].fill(7);
    let whole = sum(&page);
    for (at, bit, counts) in [
        (0, 1, false),
        (8, 1, false),
        (20, 1, false),
        (25, 0x10, true),
        (5000, 1, false),
        (8160, 1, true),
        (8168, 1, false),
        (8181, 4, false),
        (8185, 1, true),
        (8190, 1, false),
    ] {
        let mut other = page.clone();
        other[at] ^= bit;
        assert_eq!(sum(&other) != whole, counts, "byte {at}");
    }
}
