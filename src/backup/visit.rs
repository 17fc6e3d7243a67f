//! A stretch of a file of the server's, read so that its page cache is left as it was found.
//!
//! What was not in memory before is put out again once it was read: a backup reads every page once, and would push out what
//! the server needs. What was there stays, whoever brought it. The kernel's own reading ahead is switched off, since it would
//! bring pages from beyond the stretch, which then look as if the server had them; what comes next is asked for here.
//!
//! Source: mincore(2), which tells those who may write to a file; to others all of it seems to be there, and nothing is put
//! out. posix_fadvise(2).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::Advice;

use crate::format::wal::ReadAt;

/// Bytes that are asked for ahead of where they are read.
const AHEAD: u64 = 1 << 20;

/// A stretch that is being read.
pub(super) struct Visit {
    file: File,
    /// Where the stretch ends.
    end: u64,
    /// Pages that were in memory before; `None` if that is not known.
    before: Option<Residency>,
    /// Up to where was asked for.
    asked: u64,
    sequential: bool,
}

impl Visit {
    /// Opens a file to read `len` bytes from `offset` on, all of them if it is `sequential`; `None` if the file is gone.
    pub fn open(path: &Path, offset: u64, len: u64, sequential: bool) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let before = Residency::of(&file, offset, len);
        if before.is_some() {
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
        }
        Ok(Some(Self { file, end: offset + len, before, asked: offset, sequential }))
    }

    /// The file, for whoever has to look at a page again.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Fills as much of the buffer as the file has. Returns how much that was, and how long it took if the disk had to be
    /// asked now.
    pub fn read(&mut self, buffer: &mut [u8], at: u64) -> io::Result<(usize, Option<Duration>)> {
        let len = buffer.len() as u64;
        let cold = self.before.as_ref().is_some_and(|before| before.lacks(at, len)) && self.asked <= at;
        self.ask_ahead(at + len);
        let began = Instant::now();
        let read = self.file.fill_at(buffer, at)?;
        Ok((read, (cold && read > 0).then(|| began.elapsed())))
    }

    /// Asks for what is read next, where it is not in memory, in stretches long enough to be worth a request.
    fn ask_ahead(&mut self, from: u64) {
        let Some(before) = self.before.as_ref().filter(|_| self.sequential) else { return };
        let until = (from + AHEAD).min(self.end);
        let from = self.asked.max(from);
        if from + AHEAD / 2 > until && until < self.end || from >= until {
            return;
        }
        if before.lacks(from, until - from) {
            advise(&self.file, from, until - from, Advice::WillNeed);
        }
        self.asked = until;
    }

    /// Puts out of memory what was not there before, of bytes that were read and are not needed again.
    pub fn leave(&self, at: u64, len: u64) {
        let Some(before) = &self.before else { return };
        before.lacking(at, len, |at, len| advise(&self.file, at, len, Advice::DontNeed));
    }
}

fn advise(file: &File, at: u64, len: u64, advice: Advice) {
    // What it does not do costs memory, not the backup.
    let _ = rustix::fs::fadvise(file, at, std::num::NonZeroU64::new(len), advice);
}

/// Which pages of a stretch were in memory.
struct Residency {
    page: u64,
    /// Number of the first page.
    first: u64,
    pages: u64,
    /// A bit for each page.
    there: Vec<u64>,
}

impl Residency {
    /// Asks the kernel; `None` if it does not tell.
    fn of(file: &File, offset: u64, len: u64) -> Option<Self> {
        let page = rustix::param::page_size() as u64;
        let first = offset / page;
        let pages = (offset + len).div_ceil(page) - first;
        let bytes = usize::try_from(pages * page).ok().filter(|bytes| *bytes > 0)?;
        let mut told = vec![0u8; usize::try_from(pages).ok()?];
        let start = libc::off_t::try_from(first * page).ok()?;
        // SAFETY: nothing reads or writes through the mapping, which is private to this function and unmapped before it
        // ends; `told` has a byte for each of its pages.
        let answered = unsafe {
            let at =
                libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, libc::MAP_SHARED, file.as_raw_fd(), start);
            if at == libc::MAP_FAILED {
                return None;
            }
            let answered = libc::mincore(at, bytes, told.as_mut_ptr().cast());
            libc::munmap(at, bytes);
            answered
        };
        (answered == 0).then(|| Self::new(page, first, &told))
    }

    /// Of a stretch whose pages are told of by a byte each, of which only the lowest bit counts.
    fn new(page: u64, first: u64, told: &[u8]) -> Self {
        let mut there = vec![0u64; told.len().div_ceil(64)];
        for (number, _) in told.iter().enumerate().filter(|(_, byte)| **byte & 1 != 0) {
            there[number / 64] |= 1 << (number % 64);
        }
        Self { page, first, pages: told.len() as u64, there }
    }

    fn has(&self, number: u64) -> bool {
        self.there.get((number / 64) as usize).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    /// Numbers, in the stretch, of the pages that hold such bytes.
    fn numbers(&self, at: u64, len: u64) -> std::ops::Range<u64> {
        if len == 0 {
            return 0..0;
        }
        let from = (at / self.page).saturating_sub(self.first);
        let to = (at + len).div_ceil(self.page).saturating_sub(self.first).min(self.pages);
        from..to.max(from)
    }

    /// Whether any of such bytes was not in memory.
    fn lacks(&self, at: u64, len: u64) -> bool {
        self.numbers(at, len).any(|number| !self.has(number))
    }

    /// Hands over the stretches of such bytes, in whole pages, that were not in memory.
    fn lacking(&self, at: u64, len: u64, mut found: impl FnMut(u64, u64)) {
        let numbers = self.numbers(at, len);
        let mut next = numbers.start;
        while next < numbers.end {
            if self.has(next) {
                next += 1;
                continue;
            }
            let run = (next..numbers.end).take_while(|number| !self.has(*number)).count() as u64;
            found((self.first + next) * self.page, run * self.page);
            next += run;
        }
    }
}

/// Returns how many bytes of a file are in memory; `None` if its file system has nothing else.
#[cfg(test)]
pub(super) fn in_memory(path: &Path) -> Option<u64> {
    const TMPFS: u64 = 0x0102_1994;
    let file = File::open(path).ok()?;
    if rustix::fs::fstatfs(&file).ok()?.f_type as u64 == TMPFS {
        return None;
    }
    let len = file.metadata().ok()?.len();
    if len == 0 {
        return Some(0);
    }
    let residency = Residency::of(&file, 0, len)?;
    Some((0..residency.pages).filter(|number| residency.has(*number)).count() as u64 * residency.page)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_was_there_is_left_and_whatever_was_not_goes(
            told in prop::collection::vec(any::<u8>(), 1..200),
            first in 0u64..5,
            at in 0u64..300,
            len in 0u64..300,
        ) {
            const PAGE: u64 = 4096;
            let residency = Residency::new(PAGE, first, &told);
            let mut gone = vec![false; 1000];
            residency.lacking(at * PAGE / 2, len * PAGE / 2, |from, bytes| {
                assert!(from.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE) && bytes > 0);
                gone[(from / PAGE) as usize..((from + bytes) / PAGE) as usize].fill(true);
            });
            for (page, gone) in (0u64..).zip(gone) {
                let there = page.checked_sub(first).and_then(|at| told.get(at as usize)).map(|byte| byte & 1 != 0);
                let wanted = len > 0 && page >= at / 2 && page < (at + len).div_ceil(2);
                prop_assert_eq!(gone, there == Some(false) && wanted, "page {}", page);
            }
            let lacks = residency.lacks(at * PAGE / 2, len * PAGE / 2);
            prop_assert_eq!(lacks, { let mut any = false; residency.lacking(at * PAGE / 2, len * PAGE / 2, |_, _| any = true); any });
        }
    }

    /// On a file system that has pages to put out: where tests put their files it has none.
    #[test]
    fn pages_that_were_in_memory_stay_and_no_others() {
        const LEN: u64 = 8 << 20;
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = place.path().join("relation");
        let bytes: Vec<u8> = (0..LEN).map(|at| (at / 4096 % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.sync_all().unwrap();
        let there = |from: u64, len: u64| {
            let residency = Residency::of(&file, from, len).unwrap();
            (0..residency.pages).filter(|number| residency.has(*number)).count() as u64 * residency.page
        };
        advise(&file, 0, LEN, Advice::DontNeed);
        if in_memory(&path).is_none() {
            return;
        }
        rustix::fs::fadvise(&file, 0, None, Advice::Random).unwrap();
        let hot = [(1 << 20, 64 << 10), (3 << 20, 512 << 10), (LEN - 8192, 8192)];
        let held: u64 = hot.iter().map(|(_, len)| len).sum();
        let mut buffer = vec![0; 256 << 10];
        // The kernel may take a page at any time, and does not bring one by itself.
        let left_as_found = (0..40).any(|_| {
            advise(&file, 0, LEN, Advice::DontNeed);
            // The server's: a few stretches.
            for (at, len) in hot {
                (0..len / 4096).for_each(|page| file.read_exact_at(&mut buffer[..4096], at + page * 4096).unwrap());
            }
            assert!(there(0, LEN) <= held);
            // Two tasks, one after the other: what the first brings of the second's is no page of the server's.
            let mut waited = 0;
            for from in [0, LEN / 2] {
                let mut visit = Visit::open(&path, from, LEN / 2, true).unwrap().unwrap();
                let mut at = from;
                while at < from + LEN / 2 {
                    let (read, took) = visit.read(&mut buffer, at).unwrap();
                    assert!(buffer[..read] == bytes[at as usize..at as usize + read]);
                    waited += usize::from(took.is_some());
                    visit.leave(at, read as u64);
                    at += read as u64;
                }
            }
            assert!(waited > 0, "the disk was asked");
            assert!(there(0, LEN) <= held, "what was not there is there now");
            hot.iter().all(|(at, len)| there(*at, *len) == *len)
        });
        assert!(left_as_found, "what was there is put out");
        // Nothing at all is there, and the file is gone.
        assert!(Visit::open(&place.path().join("none"), 0, 10, true).unwrap().is_none());
    }
}
