//! A backup's files, made, filled window by window and compared, and dressed with their modes and owner at last.
//!
//! Zeros are never written: a file gets its size when it is made. What [fills](super::filling) a window is grouped by pack.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::budget::Budget;
use super::delta::{self, InPlace};
use super::filling::{self, Filling, Held};
use super::leftovers::Kept;
use super::selection::Selection;
use super::window::Window;
use crate::format::FormatError;
use crate::format::leaf::{Entry, Node};
use crate::format::tables::Tables;
use crate::pg::data_directory::{Class, DataDirectory, FileKind, SkipReason};
use crate::progress::Progress;
use crate::repo::{Packs, RepoError};

/// Why files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The repository failed.
    #[error("read the backup")]
    Repository {
        /// Why.
        #[from]
        source: RepoError,
    },
    /// The manifest and the packs do not fit each other.
    #[error("read the backup's manifest")]
    Format {
        /// Why.
        #[from]
        source: FormatError,
    },
    /// A file came out otherwise than it was backed up.
    #[error("{path} has other contents than were backed up")]
    Differs {
        /// The file.
        path: String,
    },
    /// A file could not be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What a restore brings back.
#[derive(Clone, Copy)]
pub(super) struct Contents<'a> {
    pub packs: &'a Packs<'a>,
    pub tables: &'a Tables,
    pub selection: &'a Selection,
}

/// Hands every leaf to `see`, in order, as it is restored.
pub(super) fn each_leaf<E: From<RepoError>>(
    contents: Contents<'_>,
    mut see: impl FnMut(&[Entry]) -> Result<(), E>,
) -> Result<(), E> {
    let mut leaves = contents.packs.leaves(contents.tables);
    while let Some(mut entries) = leaves.next_leaf()? {
        contents.selection.apply(&mut entries);
        see(&entries)?;
    }
    Ok(())
}

/// What a first look at all leaves found.
#[derive(Debug, Default)]
pub(super) struct Outline {
    /// Files, and the bytes of all of them.
    pub files: u64,
    pub bytes: u64,
    /// Bytes of those that are left out.
    pub left_out_bytes: u64,
    /// Whether a tablespace is a directory and no link.
    pub tablespace_in_place: bool,
}

/// Reads every leaf, so that one that lies is refused before anything is written. No leaf has what restore decides on: how
/// the copy recovers, and from which log.
pub(super) fn outline(contents: Contents<'_>, major: u16) -> Result<Outline, FilesError> {
    let mut outline = Outline::default();
    let rules = DataDirectory::new(major, 0);
    let mut leaves = contents.packs.leaves(contents.tables);
    while let Some(entries) = leaves.next_leaf()? {
        outline.left_out_bytes += contents.selection.left_out_bytes(&entries);
        for entry in &entries {
            if is_reserved(&rules, &entry.path) {
                let problem = format!("{} among the files", String::from_utf8_lossy(&entry.path));
                return Err(FormatError::Nonsense { document: "manifest leaf", problem }.into());
            }
            match &entry.node {
                Node::File(part) => {
                    outline.files += u64::from(part.file.is_some());
                    outline.bytes = outline.bytes.saturating_add(part.end() - part.at);
                }
                Node::Directory { .. } => {
                    let inside = entry.path.strip_prefix(b"pg_tblspc/");
                    outline.tablespace_in_place |= inside.is_some_and(|oid| !oid.contains(&b'/'));
                }
            }
        }
    }
    Ok(outline)
}

/// Whether no backup has a path, whoever took it: a server would take it for an order, or for its log.
fn is_reserved(rules: &DataDirectory, path: &[u8]) -> bool {
    use SkipReason::{EarlierBackup, RecoveryRequest, RunningServer, Wal};
    match rules.classify(path) {
        Class::File(FileKind::ControlFile) => true,
        Class::Skip(reason) => matches!(reason, Wal | EarlierBackup | RecoveryRequest | RunningServer),
        Class::SkipContents(_) | Class::File(_) => false,
    }
}

/// Writes the pages that have to be there in files of databases left out, which are zeros by now.
pub(super) fn bare(contents: Contents<'_>, root: &Path) -> Result<(), FilesError> {
    if !contents.selection.has_bare() {
        return Ok(());
    }
    each_leaf(contents, |entries| {
        let written = contents.selection.write_bare(root, entries);
        written.map_err(|(path, source)| FilesError::Write { path, source })
    })
}

/// Makes directories and the files that are not kept, fills them and compares each with its checksum; their own modes come last, with
/// [`dress`].
pub(super) fn fill(
    contents: Contents<'_>,
    root: &Path,
    kept: &Kept,
    budget: Budget,
    delta: bool,
    progress: &Progress,
) -> Result<(), FilesError> {
    let Contents { packs, tables, selection } = contents;
    let mut leaves = packs.leaves(tables);
    let mut sieve = kept.sieve();
    let mut window = Window::read(&mut leaves, selection, &mut sieve, budget.window_bytes)?;
    // Of a file that goes on in the next window.
    let mut carried = 0;
    let mut held: Vec<Held> = (0..budget.workers.max(1)).map(|_| Held::default()).collect();
    while let Some(mut current) = window {
        let in_place = if delta {
            delta::prepare(packs, root, &mut current, budget.workers, progress)?
        } else {
            make(root, &current.entries, kept)?;
            InPlace::new()
        };
        let filling = Filling {
            packs,
            root,
            read_bytes: budget.read_bytes,
            wanted: current.wanted(&in_place),
            delta,
            window: &current,
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            progress,
        };
        let (results, next) = std::thread::scope(|scope| {
            let handles: Vec<_> = held.iter_mut().map(|held| scope.spawn(|| filling::run(&filling, held))).collect();
            let next = Window::read(&mut leaves, selection, &mut sieve, budget.window_bytes);
            let results = handles
                .into_iter()
                .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            (results.collect::<Vec<Result<(), FilesError>>>(), next)
        });
        results.into_iter().collect::<Result<(), _>>()?;
        carried = filling.compare(carried)?;
        drop(filling);
        window = next?;
    }
    Ok(())
}

/// Makes the directories and, at their sizes, the files.
fn make(root: &Path, entries: &[Entry], kept: &Kept) -> Result<(), FilesError> {
    for entry in entries {
        let path = place(root, &entry.path);
        let made = match &entry.node {
            Node::Directory { .. } => make_directory(&path),
            Node::File(part) => {
                let mut options = File::options();
                options.write(true).create_new(part.at == 0).mode(0o600);
                let size = part.file.as_ref().map(|file| file.size);
                let way = if part.at == 0 { kept.make_way(&path) } else { Ok(()) };
                way.and_then(|()| options.open(&path)).and_then(|file| size.map_or(Ok(()), |size| file.set_len(size)))
            }
        };
        made.map_err(|source| FilesError::Write { path, source })?;
    }
    Ok(())
}

pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        // A tablespace's own directory was made with its link; any other by the restore that was interrupted, which may
        // have given it the mode of one that is only read.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        }
        made => made,
    }
}

/// Gives everything the mode that it was backed up with, and an owner. Last, and whatever the umask: a file that not even
/// its owner may write to, such as a key, had to be filled first.
pub(super) fn dress(contents: Contents<'_>, root: &Path, owner: Option<(u32, u32)>) -> Result<(), FilesError> {
    each_leaf(contents, |entries| {
        for entry in entries {
            let mode = match &entry.node {
                Node::Directory { mode } => *mode,
                Node::File(part) => match &part.file {
                    Some(file) => file.mode,
                    None => continue,
                },
            };
            let path = place(root, &entry.path);
            let set = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
                .and_then(|()| owner.map_or(Ok(()), |(user, group)| lchown(&path, Some(user), Some(group))));
            set.map_err(|source| FilesError::Write { path, source })?;
        }
        Ok(())
    })
}

pub(super) fn place(root: &Path, path: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path))
}
