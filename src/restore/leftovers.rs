//! What an interrupted restore left behind: which of it may lie there, and which files are whole already.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, FileType};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::OFlags;

use super::files::place;
use super::place::PlaceError;
use super::resume::{is_absence, is_mark};
use crate::format::digest::Sha256Hasher;
use crate::format::leaf::{self, Entry, Node};
use crate::format::restore_mark::RestoreMark;
use crate::progress::Progress;

/// Bytes of a file that are read at a time.
const VERIFY_BYTES: usize = 256 << 10;

/// Files that restore writes beside those that leaves list.
pub(super) const OWN_FILES: [&str; 8] = [
    "backup_label",
    "backup_manifest",
    "global/pg_control",
    "global/pg_control.walvault",
    "pg_wal/walvault.plan",
    "postgresql.auto.conf",
    "recovery.signal",
    "standby.signal",
];

/// What lies in a directory and waits to be looked at, in the order of a backup's paths.
#[derive(Debug, Default)]
pub(super) struct Waiting(BinaryHeap<Reverse<(Vec<u8>, PathBuf)>>);

impl Waiting {
    /// Adds what lies in a directory, which a backup calls `path`.
    pub fn enter(&mut self, path: &[u8], directory: &Path) -> Result<(), PlaceError> {
        let failed = |source| PlaceError::Io { path: directory.to_path_buf(), source };
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let parts = if path.is_empty() { vec![name.as_bytes()] } else { vec![path, name.as_bytes()] };
            self.0.push(Reverse((parts.join(&b'/'), entry.path())));
        }
        Ok(())
    }

    /// Takes the next thing: its path, and where it is.
    pub fn next(&mut self) -> Option<(Vec<u8>, PathBuf)> {
        self.0.pop().map(|Reverse(next)| next)
    }

    /// Takes the next thing that lies no further than `path`.
    pub fn next_up_to(&mut self, path: &[u8]) -> Option<(Vec<u8>, PathBuf)> {
        self.0.peek().is_some_and(|Reverse((next, _))| next.as_slice() <= path).then(|| self.next())?
    }
}

/// Everything below a data directory and its places, in the order of a manifest's paths.
#[derive(Debug)]
pub(super) struct Leftovers<'a> {
    mark: &'a RestoreMark,
    waiting: Waiting,
}

impl<'a> Leftovers<'a> {
    pub fn of(root: &Path, mark: &'a RestoreMark) -> Result<Self, PlaceError> {
        let mut leftovers = Self { mark, waiting: Waiting::default() };
        leftovers.waiting.enter(b"", root)?;
        Ok(leftovers)
    }

    /// Refuses the first thing that this restore would not have made, up to the last of these entries; leaf after leaf.
    pub fn pass(&mut self, entries: &[Entry]) -> Result<(), PlaceError> {
        for entry in entries {
            while let Some((path, at)) = self.waiting.next_up_to(&entry.path) {
                let of_backup = (path == entry.path).then_some(&entry.node);
                self.judge(&path, &at, of_backup)?;
            }
        }
        Ok(())
    }

    /// Refuses what comes after the last entry.
    pub fn end(mut self) -> Result<(), PlaceError> {
        while let Some((path, at)) = self.waiting.next() {
            self.judge(&path, &at, None)?;
        }
        Ok(())
    }

    fn judge(&mut self, path: &[u8], at: &Path, of_backup: Option<&Node>) -> Result<(), PlaceError> {
        let kind = std::fs::symlink_metadata(at).map(|metadata| metadata.file_type());
        let kind = kind.map_err(|source| PlaceError::Io { path: at.to_path_buf(), source })?;
        match self.accepts(path, at, kind, of_backup)? {
            true => Ok(()),
            false => Err(PlaceError::Foreign { path: at.to_path_buf() }),
        }
    }

    fn accepts(
        &mut self,
        path: &[u8],
        at: &Path,
        kind: FileType,
        of_backup: Option<&Node>,
    ) -> Result<bool, PlaceError> {
        let marked = self.mark.places.iter().find(|marked| marked.link.as_bytes() == path);
        if let Some(marked) = marked {
            let leads_there = std::fs::read_link(at).is_ok_and(|target| target.to_string_lossy() == marked.place);
            if leads_there && at.is_dir() {
                self.waiting.enter(path, at)?;
            }
            return Ok(leads_there);
        }
        if kind.is_dir() {
            self.waiting.enter(path, at)?;
            return Ok(matches!(of_backup, Some(Node::Directory { .. })) || path == b"pg_tblspc");
        }
        let own = OWN_FILES.iter().any(|own| own.as_bytes() == path) || self.is_mark_of_a_place(path);
        Ok(kind.is_file() && (own || matches!(of_backup, Some(Node::File(_)))))
    }

    fn is_mark_of_a_place(&self, path: &[u8]) -> bool {
        let links = self.mark.places.iter().map(|marked| marked.link.as_bytes());
        let mut names = links.filter_map(|link| path.strip_prefix(link)?.strip_prefix(b"/"));
        is_mark(path) || names.any(is_mark)
    }
}

/// Which of a backup's files are in place already, whole.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// For each file in the order of paths, a bit; empty if the restore did not begin earlier.
    whole: Vec<u64>,
    files: u64,
    kept: u64,
    resumed: bool,
}

impl Kept {
    /// Nothing yet of a restore that began earlier.
    pub fn resumed() -> Self {
        Self { resumed: true, ..Self::default() }
    }

    /// Reads every file of a leaf that is there and compares it with what was backed up; leaf after leaf. Nothing else is
    /// believed: neither a size nor a time says what a crash left in a file.
    pub fn verify(&mut self, root: &Path, entries: &[Entry], workers: usize, progress: &Progress) {
        let mut numbered: Vec<(u64, &Entry, &leaf::File)> = Vec::new();
        for entry in entries {
            let Node::File(part) = &entry.node else { continue };
            self.files += u64::from(part.at == 0);
            if let Some(file) = &part.file {
                numbered.push((self.files - 1, entry, file));
            }
        }
        self.whole.resize(self.files.div_ceil(64) as usize, 0);
        let next = AtomicUsize::new(0);
        let found = Mutex::new(Vec::new());
        let run = || {
            let mut buffer = vec![0; VERIFY_BYTES];
            while let Some((number, entry, file)) = numbered.get(next.fetch_add(1, Ordering::Relaxed)) {
                if is_whole(&place(root, &entry.path), file, &mut buffer) {
                    progress.advance(file.size);
                    found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(*number);
                }
            }
        };
        std::thread::scope(|scope| (0..workers.max(1)).for_each(|_| drop(scope.spawn(run))));
        for number in found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            self.whole[(number / 64) as usize] |= 1 << (number % 64);
            self.kept += 1;
        }
    }

    /// How many files need no writing; `None` if the restore did not begin earlier.
    pub fn files(&self) -> Option<u64> {
        self.resumed.then_some(self.kept)
    }

    /// Goes through all leaves again, in the same order.
    pub fn sieve(&self) -> Sieve<'_> {
        Sieve { kept: self, files: 0 }
    }

    /// Makes way for an entry: what a file's place holds is not the file.
    pub fn make_way(&self, path: &Path) -> io::Result<()> {
        if !self.resumed { Ok(()) } else { remove_if_there(path) }
    }
}

/// Removes a file, which may not be there: never written over, it may have another name somewhere.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if !is_absence(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Lets those entries pass that are still to be written.
#[derive(Debug)]
pub(super) struct Sieve<'a> {
    kept: &'a Kept,
    files: u64,
}

impl Sieve<'_> {
    /// Whether the next entry is still to be made.
    pub fn passes(&mut self, entry: &Entry) -> bool {
        let Node::File(part) = &entry.node else { return true };
        self.files += u64::from(part.at == 0);
        let number = self.files.saturating_sub(1);
        let bits = self.kept.whole.get((number / 64) as usize).copied().unwrap_or(0);
        bits & (1 << (number % 64)) == 0
    }
}

/// Whether a file is what was backed up, by size, checksum and, where there is one, digest. What cannot be read is not.
pub(super) fn is_whole(path: &Path, expected: &leaf::File, buffer: &mut [u8]) -> bool {
    let mut compare = || -> io::Result<bool> {
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let mut file = File::options().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() != expected.size || metadata.nlink() != 1 {
            return Ok(false);
        }
        let mut crc = 0;
        let mut digest = expected.digest.map(|_| Sha256Hasher::default());
        loop {
            let read = file.read(buffer)?;
            if read == 0 {
                break;
            }
            crc = crc32c::crc32c_append(crc, &buffer[..read]);
            if let Some(digest) = &mut digest {
                digest.update(&buffer[..read]);
            }
        }
        Ok(crc == expected.crc && digest.map(Sha256Hasher::finish) == expected.digest)
    };
    compare().unwrap_or(false)
}
