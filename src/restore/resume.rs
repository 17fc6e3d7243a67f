//! Going on with a restore that was cut off: killed, or stopped by a store or a disk that failed.
//!
//! A restore marks its data directory before anything else, and each place outside it before it fills it; a lock on the
//! mark says that it is at work. A directory with the mark of the same restore is taken up again: what is there is
//! believed only by its checksum, the rest is written. Everything else is refused and left as it is: another restore's
//! directory, one in which a server has started since, one that holds a file that is not this restore's.
//!
//! The mark goes last, after `pg_control`: while the mark is there, a `pg_control` is either absent or byte for byte what
//! restore writes, which a server changes as soon as it starts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, FileType};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::files::place;
use super::place::{PlaceError, check_empty, check_no_server};
use super::plan::{Plan, Request};
use super::target::{Purpose, Target};
use crate::format::digest::Sha256Hasher;
use crate::format::leaf::{self, Entry, Node};
use crate::format::restore_mark::{MarkedPlace, RESTORE_MARK, RESTORE_MARK_VERSION, RestoreMark};
use crate::progress::Progress;

/// What a directory says of the restore that began in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupted {
    /// The lane it reads.
    pub lane: String,
    /// The backup it began with.
    pub backup: String,
    target: String,
    purpose: String,
}

impl Interrupted {
    /// Whether the same target is asked for again, for the same purpose.
    pub fn is_for(&self, request: &Request) -> bool {
        let target = target_words(&request.target, request.exclusive, request.purpose);
        self.target == target && self.purpose == purpose_word(request.purpose)
    }
}

/// Returns the restore that was cut off in a directory, if one was.
///
/// # Errors
/// [`PlaceError::Mark`] if its mark cannot be read.
pub fn interrupted(directory: &Path) -> Result<Option<Interrupted>, PlaceError> {
    let found = read_mark(directory)?;
    Ok(found.map(|RestoreMark { lane, backup, target, purpose, .. }| Interrupted { lane, backup, target, purpose }))
}

fn read_mark(directory: &Path) -> Result<Option<RestoreMark>, PlaceError> {
    let path = directory.join(RESTORE_MARK);
    match std::fs::read(&path) {
        Ok(bytes) => RestoreMark::decode(&bytes).map(Some).map_err(|source| PlaceError::Mark { path, source }),
        Err(error) if is_absence(&error) => Ok(None),
        Err(source) => Err(PlaceError::Io { path, source }),
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A data directory that is this restore's until the claim is released.
#[derive(Debug)]
pub(super) struct Claim {
    root: PathBuf,
    mark: RestoreMark,
    /// Whoever holds the lock on the mark is at work.
    _lock: File,
}

/// The mark of a restore that was cut off, and the right to go on with it.
#[derive(Debug)]
pub(super) struct Held {
    root: PathBuf,
    mark: RestoreMark,
    lock: File,
}

/// Looks at a data directory: nothing there, or a restore that was cut off.
///
/// # Errors
/// [`PlaceError`] for everything else; nothing was touched.
pub(super) fn look(root: &Path) -> Result<Option<Held>, PlaceError> {
    let path = root.join(RESTORE_MARK);
    let lock = match File::options().read(true).write(true).open(&path) {
        Ok(lock) => lock,
        Err(error) if is_absence(&error) => return check_empty(root).map(|()| None),
        Err(source) => return Err(PlaceError::Io { path, source }),
    };
    take_lock(&lock, root)?;
    check_no_server(root)?;
    // The one that had the lock may have finished meanwhile.
    match read_mark(root)? {
        Some(mark) => Ok(Some(Held { root: root.to_path_buf(), mark, lock })),
        None => check_empty(root).map(|()| None),
    }
}

fn take_lock(mark: &File, root: &Path) -> Result<(), PlaceError> {
    match flock(mark, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(PlaceError::Busy { path: root.to_path_buf() }),
        Err(error) => Err(PlaceError::Io { path: root.join(RESTORE_MARK), source: error.into() }),
    }
}

/// Returns the mark of a restore, but for the number that is drawn for it.
pub(super) fn mark_of<'a>(plan: &Plan, outside: impl Iterator<Item = (PathBuf, &'a Path)>) -> RestoreMark {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    RestoreMark {
        version: RESTORE_MARK_VERSION,
        id: String::new(),
        system_id: plan.manifest.root.system_id,
        lane: plan.lane.to_string(),
        backup: plan.manifest.envelope.backup.clone(),
        target: target_words(&plan.target, plan.exclusive, plan.purpose),
        purpose: purpose_word(plan.purpose).to_owned(),
        timeline: plan.timeline(),
        places: outside.map(|(link, place)| MarkedPlace { link: text(&link), place: text(place) }).collect(),
    }
}

fn target_words(target: &Target, exclusive: bool, purpose: Purpose) -> String {
    if purpose == Purpose::Standby {
        return "no target".to_owned();
    }
    let words = match target {
        Target::Latest => "the latest moment".to_owned(),
        Target::Time(time) => format!("time {}", time.to_rfc3339()),
        Target::Lsn(lsn) => format!("position {lsn}"),
        Target::Xid(xid) => format!("transaction {xid}"),
        Target::Name(name) => format!("restore point {name:?}"),
        Target::BeforeDrop(name) => format!("before the drop of {name}"),
        Target::BackupEnd => "the end of the backup".to_owned(),
    };
    if exclusive { format!("{words}, exclusive") } else { words }
}

const fn purpose_word(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Primary => "primary",
        Purpose::Standby => "standby",
        Purpose::Clone => "clone",
    }
}

fn described(mark: &RestoreMark) -> String {
    let places: String = mark.places.iter().map(|marked| format!(", {} at {}", marked.link, marked.place)).collect();
    let RestoreMark { backup, target, purpose, timeline, .. } = mark;
    format!("backup {backup} to {target} on timeline {timeline} as {purpose}{places}")
}

impl Held {
    /// Whether a place outside the data directory is this restore's: marked by it, or not yet filled by anybody.
    pub fn owns(&self, place: &Path) -> bool {
        if !self.mark.places.iter().any(|marked| marked.place == place.to_string_lossy()) {
            return false;
        }
        match read_mark(place) {
            Ok(Some(mark)) => mark.id == self.mark.id,
            // Once `pg_control` is there the places are complete, and lose their marks before the data directory does.
            Ok(None) => check_empty(place).is_ok() || self.root.join("global/pg_control").exists(),
            Err(_) => false,
        }
    }

    /// Compares the restore with the one that is wanted.
    ///
    /// # Errors
    /// [`PlaceError`] if it is another, or if a server has started here since; nothing was touched.
    pub fn same_as(self, plan: &Plan, mut wanted: RestoreMark, control: &[u8]) -> Result<Same, PlaceError> {
        wanted.id.clone_from(&self.mark.id);
        let moves_on = plan.target == Target::Latest || plan.purpose == Purpose::Standby;
        if moves_on && plan.path.iter().any(|part| part.timeline == self.mark.timeline) {
            wanted.timeline = self.mark.timeline;
        }
        if wanted != self.mark {
            let (found, wanted) = (described(&self.mark), described(&wanted));
            return Err(PlaceError::OtherRestore { path: self.root, found, wanted });
        }
        let path = self.root.join("global/pg_control");
        let complete = match std::fs::read(&path) {
            Ok(found) if found == control => true,
            Ok(_) => return Err(PlaceError::Started { path: self.root }),
            Err(error) if is_absence(&error) => false,
            Err(source) => return Err(PlaceError::Io { path, source }),
        };
        Ok(Same { held: self, complete })
    }
}

/// A restore that was cut off, and is the one that is wanted.
#[derive(Debug)]
pub(super) struct Same {
    held: Held,
    /// Whether only the marks had to go.
    complete: bool,
}

impl Same {
    /// Begins to look at what the restore left.
    pub fn leftovers(&self) -> Result<Leftovers<'_>, PlaceError> {
        Leftovers::of(&self.held.root, &self.held.mark)
    }

    /// Takes the restore up again, after everything that is there was found to be its own.
    pub fn claim(self) -> Result<Claim, PlaceError> {
        let Held { root, mark, lock } = self.held;
        if self.complete {
            // From here on the directory is unfinished again.
            let path = root.join("global/pg_control");
            let removed = std::fs::remove_file(&path).and_then(|()| sync(&root.join("global")));
            removed.map_err(|source| PlaceError::Io { path, source })?;
        }
        for own in OWN_FILES {
            // Settings of the first attempt would pass for those of the backup.
            let path = root.join(own);
            remove_if_there(&path).map_err(|source| PlaceError::Io { path, source })?;
        }
        Ok(Claim { root, mark, _lock: lock })
    }
}

impl Claim {
    /// Marks a directory that is empty or does not exist.
    ///
    /// # Errors
    /// [`PlaceError`]; another restore may have been quicker.
    pub fn begin(root: &Path, mut mark: RestoreMark) -> Result<Self, PlaceError> {
        let mut drawn = [0; 16];
        let failed = |source| PlaceError::Io { path: root.to_path_buf(), source };
        getrandom::fill(&mut drawn).map_err(|error| failed(io::Error::other(error)))?;
        mark.id = hex::encode(drawn);
        make_private(root).map_err(failed)?;
        let lock = write_mark(root, &mark)?;
        // The directory's own entry, and those above it that were just made, stand or fall with the mark.
        for above in root.ancestors().skip(1).take(2) {
            sync(above).map_err(failed)?;
        }
        Ok(Self { root: root.to_path_buf(), mark, _lock: lock })
    }

    /// Makes and marks a place outside the data directory, before anything is written there.
    pub fn extend(&self, place: &Path) -> Result<(), PlaceError> {
        make_private(place).map_err(|source| PlaceError::Io { path: place.to_path_buf(), source })?;
        match read_mark(place)? {
            Some(mark) if mark.id == self.mark.id => Ok(()),
            Some(_) => Err(PlaceError::NotEmpty { path: place.to_path_buf() }),
            None => write_mark(place, &self.mark).map(drop),
        }
    }

    /// Takes the marks away: the restore is complete and durable.
    pub fn release<'a>(&'a self, outside: impl Iterator<Item = &'a Path>) -> Result<(), PlaceError> {
        for directory in outside.chain([self.root.as_path()]) {
            remove_marks(directory)
                .and_then(|()| sync(directory))
                .map_err(|source| PlaceError::Io { path: directory.join(RESTORE_MARK), source })?;
        }
        Ok(())
    }
}

fn remove_marks(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if is_mark(entry.file_name().as_bytes()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn is_mark(name: &[u8]) -> bool {
    name == RESTORE_MARK.as_bytes() || is_unnamed_mark(name)
}

/// Whether a file is a mark that was being written when its restore was killed, and that nothing rests on yet.
pub(super) fn is_unnamed_mark(name: &[u8]) -> bool {
    name.strip_prefix(RESTORE_MARK.as_bytes()).is_some_and(|rest| rest.starts_with(b"."))
}

/// Writes a mark that is whole as soon as it has its name, locked from before it has; fails if there is one.
fn write_mark(directory: &Path, mark: &RestoreMark) -> Result<File, PlaceError> {
    let path = directory.join(RESTORE_MARK);
    let unnamed = directory.join(format!("{RESTORE_MARK}.{}", mark.id));
    let write = || -> io::Result<File> {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unnamed)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(&mark.encode())?;
        file.sync_all()?;
        std::fs::hard_link(&unnamed, &path)?;
        std::fs::remove_file(&unnamed)?;
        sync(directory)?;
        Ok(file)
    };
    write().map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => PlaceError::Busy { path: directory.to_path_buf() },
        _ => PlaceError::Io { path, source },
    })
}

/// Makes a directory that only its owner may enter, or takes one that is there. A server refuses others.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Bytes of a file that are read at a time.
const VERIFY_BYTES: usize = 256 << 10;

/// Files that restore writes beside those that leaves list.
const OWN_FILES: [&str; 8] = [
    "backup_label",
    "backup_manifest",
    "global/pg_control",
    "global/pg_control.walvault",
    "pg_wal/walvault.plan",
    "postgresql.auto.conf",
    "recovery.signal",
    "standby.signal",
];

/// Everything below a data directory and its places, in the order of a manifest's paths.
#[derive(Debug)]
pub(super) struct Leftovers<'a> {
    mark: &'a RestoreMark,
    waiting: BinaryHeap<Reverse<(Vec<u8>, PathBuf)>>,
}

impl<'a> Leftovers<'a> {
    fn of(root: &Path, mark: &'a RestoreMark) -> Result<Self, PlaceError> {
        let mut leftovers = Self { mark, waiting: BinaryHeap::new() };
        leftovers.enter(b"", root)?;
        Ok(leftovers)
    }

    fn enter(&mut self, path: &[u8], directory: &Path) -> Result<(), PlaceError> {
        let failed = |source| PlaceError::Io { path: directory.to_path_buf(), source };
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let parts = if path.is_empty() { vec![name.as_bytes()] } else { vec![path, name.as_bytes()] };
            self.waiting.push(Reverse((parts.join(&b'/'), entry.path())));
        }
        Ok(())
    }

    /// Refuses the first thing that this restore would not have made, up to the last of these entries; leaf after leaf.
    pub fn pass(&mut self, entries: &[Entry]) -> Result<(), PlaceError> {
        for entry in entries {
            while self.waiting.peek().is_some_and(|Reverse((path, _))| *path <= entry.path)
                && let Some(Reverse((path, at))) = self.waiting.pop()
            {
                let of_backup = (path == entry.path).then_some(&entry.node);
                self.judge(&path, &at, of_backup)?;
            }
        }
        Ok(())
    }

    /// Refuses what comes after the last entry.
    pub fn end(mut self) -> Result<(), PlaceError> {
        while let Some(Reverse((path, at))) = self.waiting.pop() {
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
                self.enter(path, at)?;
            }
            return Ok(leads_there);
        }
        if kind.is_dir() {
            self.enter(path, at)?;
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
fn is_whole(path: &Path, expected: &leaf::File, buffer: &mut [u8]) -> bool {
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
