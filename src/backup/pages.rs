//! Pages of a relation file that is being written while it is read.
//!
//! A checksum that does not match is first of all a page caught half-written: it is read again. If its LSN lies past the
//! backup's start, recovery replaces the whole page from the WAL, whatever was copied. What is left is damage, which is
//! copied and reported, never hidden.
//!
//! Source: `verify_page_checksum` in `src/backend/backup/basebackup.c`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::pg::lsn::Lsn;
use crate::pg::page::{PageHeader, PageVerdict, verify};

const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// What every page of a file is checked against.
pub(super) struct PageCheck<'a> {
    pub file: &'a File,
    pub block_size: usize,
    /// Number of the file's first page in its relation.
    pub first_block: u32,
    /// Where recovery will start.
    pub start_lsn: Lsn,
}

impl PageCheck<'_> {
    /// Checks the pages in `buffer`, read at `offset` of the file, reading again those that do not fit; returns the
    /// pages of the file that are damaged. A last, incomplete page is left alone: the file is being extended.
    pub fn run(&self, buffer: &mut [u8], offset: u64) -> Vec<u32> {
        let first = (offset / self.block_size as u64) as u32;
        let pages = buffer.chunks_exact_mut(self.block_size).zip(first..);
        pages.filter_map(|(page, number)| (!self.settles(page, number)).then_some(number)).collect()
    }

    fn settles(&self, page: &mut [u8], number: u32) -> bool {
        for attempt in 0..ATTEMPTS {
            if self.accepts(page, number) {
                return true;
            }
            std::thread::sleep(PAUSE * attempt);
            let at = u64::from(number) * self.block_size as u64;
            if self.file.read_exact_at(page, at).is_err() {
                // Truncated meanwhile: the truncation is in the WAL.
                return true;
            }
        }
        self.accepts(page, number)
    }

    fn accepts(&self, page: &[u8], number: u32) -> bool {
        match verify(page, self.first_block.wrapping_add(number)) {
            PageVerdict::New | PageVerdict::Good => true,
            _ => PageHeader::read(page).is_some_and(|header| header.upper != 0 && header.lsn >= self.start_lsn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::page::checksum;

    /// A page of the size with an LSN below any backup's start.
    fn page(block_size: usize, block: u32) -> Vec<u8> {
        let mut page: Vec<u8> = (0..block_size).map(|at| (at % 251) as u8).collect();
        page[..8].copy_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
        let (lower, upper, special) = (24u16, 64u16, block_size as u16);
        for (at, value) in [(10, 0), (12, lower), (14, upper), (16, special), (18, block_size as u16 | 4)] {
            page[at..at + 2].copy_from_slice(&u16::to_le_bytes(value));
        }
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn damage_is_found_at_its_page_whatever_the_size_of_blocks() {
        for block_size in (10..=15).map(|power| 1usize << power) {
            let first_block = 131_072;
            let mut bytes: Vec<u8> = (0..6).flat_map(|number| page(block_size, first_block + number)).collect();
            bytes[3 * block_size + 500] ^= 1;
            let path = std::env::temp_dir().join(format!("walvault-pages-{}-{block_size}", std::process::id()));
            std::fs::write(&path, &bytes).expect("a scratch file");
            let file = File::open(&path).expect("just written");
            let start_lsn = Lsn::new(1 << 40);
            let check = PageCheck { file: &file, block_size, first_block, start_lsn };
            // From the second page on, and a last page that is being written.
            let mut buffer = bytes[block_size..6 * block_size - 100].to_vec();
            assert_eq!(check.run(&mut buffer, block_size as u64), [3], "blocks of {block_size}");
            let _ = std::fs::remove_file(&path);
        }
    }
}
