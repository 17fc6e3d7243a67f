//! Going on with a restore that was cut off: killed, or stopped by a store or a disk that failed.
//!
//! A restore marks its data directory before anything else, and each place outside it before it fills it; a lock on the
//! mark says that it is at work. A directory with the mark of the same restore is taken up again: what is there is
//! believed only by its checksum, the rest is written. Everything else is refused and left as it is: another restore's
//! directory, one in which a server has started since, one that holds a file that is not this restore's.
//!
//! The mark goes last, after `pg_control`: while the mark is there, a `pg_control` is either absent or byte for byte what
//! restore writes, which a server changes as soon as it starts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::leftovers::{Leftovers, OWN_FILES, remove_if_there};
use super::place::{PlaceError, check_empty, check_no_server};
use super::plan::{Plan, Request};
use super::target::{Purpose, Target};
use crate::format::restore_mark::{MarkedPlace, RESTORE_MARK, RESTORE_MARK_VERSION, RestoreMark};
use crate::pg::system_id::SystemId;

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

pub(super) fn is_absence(error: &io::Error) -> bool {
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
pub(super) fn mark_of<'a>(
    plan: &Plan,
    left_out: &BTreeMap<u32, String>,
    outside: impl Iterator<Item = (PathBuf, &'a Path)>,
) -> RestoreMark {
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
        left_out: left_out.values().cloned().collect(),
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
        Target::BeforeLoss(lost) => format!("before the drop of {lost}"),
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
    let RestoreMark { backup, target, purpose, timeline, left_out, .. } = mark;
    let without = if left_out.is_empty() { String::new() } else { format!(" without {}", left_out.join(", ")) };
    format!("backup {backup} to {target} on timeline {timeline} as {purpose}{without}{places}")
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

    /// The system whose backup was being restored.
    pub fn system_id(&self) -> SystemId {
        self.mark.system_id
    }

    /// Takes the directory over, whatever was being restored there: everything in it will be compared.
    ///
    /// # Errors
    /// [`PlaceError`] if it cannot be made one that does not start.
    pub fn take_over(self) -> Result<Claim, PlaceError> {
        let Held { root, mark, lock } = self;
        disarm(&root)?;
        Ok(Claim { root, mark, _lock: lock })
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

/// Makes a data directory one that does not start, durably, and removes what restore writes itself.
fn disarm(root: &Path) -> Result<(), PlaceError> {
    let path = root.join("global/pg_control");
    let removed = remove_if_there(&path).and_then(|()| match sync(&root.join("global")) {
        Err(error) if is_absence(&error) => Ok(()),
        synced => synced,
    });
    removed.map_err(|source| PlaceError::Io { path, source })?;
    for own in OWN_FILES {
        let path = root.join(own);
        remove_if_there(&path).map_err(|source| PlaceError::Io { path, source })?;
    }
    Ok(())
}

impl Claim {
    /// Marks a server's directory and makes it one that does not start.
    ///
    /// # Errors
    /// [`PlaceError`]; a server may have been quicker.
    pub fn seize(root: &Path, mark: RestoreMark) -> Result<Self, PlaceError> {
        let claim = Self::begin(root, mark)?;
        if let Err(running) = check_no_server(root) {
            remove_marks(root).map_err(|source| PlaceError::Io { path: root.to_path_buf(), source })?;
            return Err(running);
        }
        disarm(root)?;
        Ok(claim)
    }

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

pub(super) fn is_mark(name: &[u8]) -> bool {
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
