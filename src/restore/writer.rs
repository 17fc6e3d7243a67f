//! Writing at places of files, whose bytes go to the disk while the next are still being decompressed.
//!
//! Nothing is durable before everything is synced at the end of a restore. Left alone, the kernel would keep gigabytes of
//! written pages until then, and the disk would be idle first and all that is waited for afterwards.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, fadvise};

use super::delta;

/// So many consecutive bytes are sent to the disk at once.
const STRETCH_BYTES: u64 = 8 << 20;
/// Fewer than these are left to the sync at the end: many small files are best written together.
const LEAST_BYTES: u64 = 1 << 20;

/// One file at a time, open for writing.
pub(super) struct Writer {
    /// Whether bytes that are there already are left alone.
    compares: bool,
    open: Option<Open>,
}

struct Open {
    /// What the caller calls it.
    number: usize,
    file: File,
    /// Written and not sent to the disk.
    written: Range<u64>,
}

impl Writer {
    /// A writer that writes everything, or what differs from what is there.
    pub fn new(compares: bool) -> Self {
        Self { compares, open: None }
    }

    /// Writes into the file of that number, which is there.
    pub fn write(&mut self, number: usize, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.open.as_ref().is_none_or(|open| open.number != number) {
            self.close();
            let file = File::options().read(self.compares).write(true).open(path)?;
            self.open = Some(Open { number, file, written: at..at });
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        match self.compares {
            true => delta::write_where_it_differs(&open.file, bytes, at)?,
            false => open.file.write_all_at(bytes, at)?,
        }
        if open.written.end != at {
            open.send();
            open.written = at..at;
        }
        open.written.end = at + bytes.len() as u64;
        if open.written.end - open.written.start >= STRETCH_BYTES {
            open.send();
        }
        Ok(())
    }

    /// Closes the file that was written last.
    pub fn close(&mut self) {
        if let Some(mut open) = self.open.take() {
            open.send();
        }
    }
}

impl Open {
    /// Lets what was written begin its way to the disk. A hint: what is durable is decided by the sync.
    ///
    /// Source: `POSIX_FADV_DONTNEED` in `mm/fadvise.c` of Linux starts writing the range and does not wait; pages that are
    /// being written stay in memory.
    fn send(&mut self) {
        let len = self.written.end - self.written.start;
        if len >= LEAST_BYTES {
            let _ = fadvise(&self.file, self.written.start, NonZeroU64::new(len), Advice::DontNeed);
        }
        self.written.start = self.written.end;
    }
}
