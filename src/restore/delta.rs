//! Bringing a directory that exists to a backup: a former primary that went its own way, a damaged one, or what another
//! restore left half done.
//!
//! Whose directory it is, its `pg_control` says, or the mark of a restore. Then `pg_control` goes first and comes back last,
//! so whatever happens in between, nothing starts there. What the backup does not list is removed, within the data directory
//! and the tablespaces that the operator named; what it lists is compared block by block, and written where it differs.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::files::{FilesError, make_directory, place};
use super::leftovers::{Waiting, is_whole, remove_if_there};
use super::place::{PlaceError, check_no_server};
use super::resume::{Held, is_absence, is_mark, look};
use super::window::Window;
use crate::format::crc;
use crate::format::frame::FRAME_BYTES;
use crate::format::leaf::{Entry, Node, Part, Piece};
use crate::format::pack::BlockHash;
use crate::format::restore_mark::RESTORE_MARK;
use crate::format::wal::ReadAt;
use crate::pg::control::ControlFile;
use crate::pg::page::all_zero;
use crate::pg::system_id::SystemId;
use crate::progress::Progress;
use crate::repo::{Block, PackReader, Packs, Stretch};

/// Bytes that are compared and, if they differ, written together.
const BLOCK: usize = 8192;

/// What a directory was before it is brought to a backup.
#[derive(Debug)]
pub(super) enum Before {
    /// Nothing there, or a restore of the same system that was cut off.
    Restore(Option<Box<Held>>),
    /// A server's data directory.
    Server,
}

/// Looks at a directory that is to be brought to a backup of `system_id`.
///
/// # Errors
/// [`PlaceError`] if a server runs there, or it is not known to be the system's; nothing was touched.
pub(super) fn inspect(root: &Path, system_id: SystemId) -> Result<Before, PlaceError> {
    let failed = |source| PlaceError::Io { path: root.to_path_buf(), source };
    let marked = root.join(RESTORE_MARK).symlink_metadata().is_ok();
    let empty = match std::fs::read_dir(root) {
        Ok(mut names) => names.next().is_none(),
        Err(error) if is_absence(&error) => true,
        Err(source) => return Err(failed(source)),
    };
    if empty || marked {
        let held = look(root)?;
        return match held.as_ref().map(Held::system_id) {
            Some(found) if found != system_id => {
                Err(PlaceError::OtherSystem { path: root.to_path_buf(), found, expected: system_id })
            }
            // A restore that had only its mark left to take away can have been started.
            Some(_) => check_no_lock_file(root).map(|()| Before::Restore(held.map(Box::new))),
            None => Ok(Before::Restore(None)),
        };
    }
    check_no_server(root)?;
    check_no_lock_file(root)?;
    let path = root.join("global/pg_control");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if is_absence(&error) => return Err(PlaceError::Unknown { path: root.to_path_buf() }),
        Err(source) => return Err(PlaceError::Io { path, source }),
    };
    match ControlFile::parse(&bytes) {
        Ok(control) if control.system_id == system_id => Ok(Before::Server),
        Ok(control) => {
            Err(PlaceError::OtherSystem { path: root.to_path_buf(), found: control.system_id, expected: system_id })
        }
        Err(_) => Err(PlaceError::Unknown { path: root.to_path_buf() }),
    }
}

/// Of a server in another container or on another host nothing else can be seen from here.
fn check_no_lock_file(root: &Path) -> Result<(), PlaceError> {
    match root.join("postmaster.pid").symlink_metadata() {
        Ok(_) => Err(PlaceError::LockFile { path: root.to_path_buf() }),
        Err(error) if is_absence(&error) => Ok(()),
        Err(source) => Err(PlaceError::Io { path: root.to_path_buf(), source }),
    }
}

/// Whether a place outside the data directory is its own: where a link in it leads.
pub(super) fn owns(root: &Path, place: &Path) -> bool {
    let tablespaces = std::fs::read_dir(root.join("pg_tblspc")).into_iter().flatten();
    let links = tablespaces.filter_map(|entry| Some(entry.ok()?.path())).chain([root.join("pg_wal")]);
    links.filter_map(|link| std::fs::read_link(link).ok()).any(|target| target == place)
}

/// Removes what a backup does not list, in the order of its paths.
pub(super) struct Pruning {
    waiting: Waiting,
    /// Links that the restore makes.
    links: Vec<(Vec<u8>, PathBuf)>,
    /// Things removed.
    pub removed: u64,
}

impl Pruning {
    pub fn of<'a>(root: &Path, links: impl Iterator<Item = (PathBuf, &'a Path)>) -> Result<Self, PlaceError> {
        let links = links.map(|(link, place)| (link.as_os_str().as_bytes().to_vec(), place.to_path_buf())).collect();
        let mut pruning = Self { waiting: Waiting::default(), links, removed: 0 };
        pruning.waiting.enter(b"", root)?;
        Ok(pruning)
    }

    /// Removes what lies up to the last of these entries; leaf after leaf.
    pub fn pass(&mut self, entries: &[Entry]) -> Result<(), PlaceError> {
        for entry in entries {
            while let Some((path, at)) = self.waiting.next_up_to(&entry.path) {
                let of_backup = (path == entry.path).then_some(&entry.node);
                self.settle(&path, &at, of_backup)?;
            }
        }
        Ok(())
    }

    /// Removes what comes after the last entry.
    pub fn end(mut self) -> Result<u64, PlaceError> {
        while let Some((path, at)) = self.waiting.next() {
            self.settle(&path, &at, None)?;
        }
        Ok(self.removed)
    }

    fn settle(&mut self, path: &[u8], at: &Path, of_backup: Option<&Node>) -> Result<(), PlaceError> {
        let failed = |source| PlaceError::Io { path: at.to_path_buf(), source };
        let metadata = at.symlink_metadata().map_err(failed)?;
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if let Some((_, wanted)) = self.links.iter().find(|(link, _)| link == path) {
            if std::fs::read_link(at).is_ok_and(|target| target == *wanted) && at.is_dir() {
                return self.waiting.enter(path, at);
            }
        } else if path == b"pg_wal" && metadata.is_symlink() && at.is_dir() {
            // Where the log lies is the host's affair; what lies there belongs to another history.
            return self.waiting.enter(path, at);
        } else if self.is_beside_own(path) && of_backup.is_none() || is_mark(name) && metadata.is_file() {
            return Ok(());
        } else if metadata.is_dir() && (matches!(of_backup, Some(Node::Directory { .. })) || path == b"pg_tblspc") {
            return self.waiting.enter(path, at);
        } else if metadata.is_file() && matches!(of_backup, Some(Node::File(_))) {
            return Ok(());
        }
        self.removed += 1;
        let removed = if metadata.is_dir() { std::fs::remove_dir_all(at) } else { std::fs::remove_file(at) };
        removed.map_err(failed)
    }

    /// Whether something lies directly in a tablespace, where other releases have directories too.
    fn is_beside_own(&self, path: &[u8]) -> bool {
        let folder = path.iter().rposition(|byte| *byte == b'/').map(|slash| &path[..slash]);
        self.links.iter().any(|(link, _)| Some(link.as_slice()) == folder && link.starts_with(b"pg_tblspc/"))
    }
}

/// What of a window's pieces is in place already: for each piece of each file, in order, its checksum.
pub(super) type InPlace = Vec<Option<u32>>;

/// Makes directories and files where they are missing, and compares those that are there. Pieces are cut where what is in
/// place meets what is not.
pub(super) fn prepare(
    packs: &Packs<'_>,
    root: &Path,
    window: &mut Window,
    workers: usize,
    progress: &Progress,
) -> Result<InPlace, FilesError> {
    let mut there = Vec::with_capacity(window.entries.len());
    for entry in &window.entries {
        let path = place(root, &entry.path);
        let made = match &entry.node {
            Node::Directory { .. } => make_directory(&path).map(|()| false),
            Node::File(part) => make(&path, part),
        };
        there.push(made.map_err(|source| FilesError::Write { path, source })?);
    }
    let next = AtomicUsize::new(0);
    let compared = Mutex::new(Vec::new());
    let entries = &window.entries;
    let run = || -> Result<(), FilesError> {
        let mut comparison = Comparison { packs, buffer: vec![0; FRAME_BYTES], progress };
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(entry) = entries.get(number) else { break };
            let Node::File(part) = &entry.node else { continue };
            let path = place(root, &entry.path);
            let pieces = if there[number] {
                comparison.compare(&path, part)?
            } else {
                part.pieces.iter().map(|piece| (piece.clone(), zeros(piece))).collect()
            };
            compared.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((number, pieces));
        }
        Ok(())
    };
    let results: Vec<Result<(), FilesError>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(run)).collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    results.into_iter().collect::<Result<(), _>>()?;
    let mut compared = compared.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    compared.sort_by_key(|(number, _)| *number);
    let mut in_place = InPlace::new();
    for (number, found) in compared {
        if let Node::File(part) = &mut window.entries[number].node {
            let (pieces, crcs): (Vec<Piece>, InPlace) = found.into_iter().unzip();
            part.pieces = pieces;
            in_place.extend(crcs);
        }
    }
    Ok(in_place)
}

/// Makes a file where none of its own is; returns whether one was there. Its length becomes that of the backup's.
fn make(path: &Path, part: &Part) -> io::Result<bool> {
    let own = |metadata: &Metadata| metadata.is_file() && metadata.nlink() == 1;
    let there = match path.symlink_metadata() {
        Ok(metadata) if part.at > 0 || own(&metadata) => true,
        // Never written over, it may have another name somewhere.
        Ok(_) => remove_if_there(path).map(|()| false)?,
        Err(error) if is_absence(&error) => false,
        Err(error) => return Err(error),
    };
    if there {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    }
    let file = File::options().write(true).create_new(!there).mode(0o600).open(path)?;
    part.file.as_ref().map_or(Ok(()), |facts| file.set_len(facts.size))?;
    Ok(there)
}

/// A piece of a new file is in place if it is zeros.
fn zeros(piece: &Piece) -> Option<u32> {
    match piece {
        Piece::Zeros { len } => Some(crc::append_zeros(0, *len)),
        Piece::Frames { .. } | Piece::Inline(_) => None,
    }
}

struct Comparison<'a> {
    packs: &'a Packs<'a>,
    buffer: Vec<u8>,
    progress: &'a Progress,
}

impl Comparison<'_> {
    /// Compares what is there of a file; returns its pieces, cut, each with its checksum if it is in place.
    fn compare(&mut self, path: &Path, part: &Part) -> Result<Vec<(Piece, Option<u32>)>, FilesError> {
        if let (0, Some(facts), [piece @ Piece::Frames { .. }]) = (part.at, &part.file, part.pieces.as_slice())
            && facts.digest.is_some()
        {
            let whole = is_whole(path, facts, &mut self.buffer);
            self.progress.advance(if whole { facts.size } else { 0 });
            return Ok(vec![(piece.clone(), whole.then_some(facts.crc))]);
        }
        let failed = |source| FilesError::Write { path: path.to_path_buf(), source };
        let file = File::options().read(true).write(true).open(path).map_err(failed)?;
        let mut compared = Vec::new();
        let mut at = part.at;
        for piece in &part.pieces {
            match piece {
                Piece::Zeros { len } => {
                    self.clear(&file, at, *len).map_err(failed)?;
                    compared.push((piece.clone(), zeros(piece)));
                }
                Piece::Inline(_) => compared.push((piece.clone(), None)),
                Piece::Frames { pack, .. } => {
                    let reader = self.packs.reader(*pack)?;
                    self.frames(&reader, &file, at, piece, &mut compared).map_err(|error| match error {
                        FilesError::Write { source, .. } => failed(source),
                        error => error,
                    })?;
                }
            }
            at += piece.len();
        }
        Ok(compared)
    }

    /// Compares a stretch of frames; it is cut only between frames.
    fn frames(
        &mut self,
        reader: &PackReader,
        file: &File,
        at: u64,
        piece: &Piece,
        compared: &mut Vec<(Piece, Option<u32>)>,
    ) -> Result<(), FilesError> {
        let Piece::Frames { pack, frame, offset, len } = *piece else { return Ok(()) };
        let mut blocks: Vec<(u64, Block)> = Vec::new();
        reader.blocks(&Stretch { frame, offset, skip: 0, len }, &mut |at, block| blocks.push((at, block)))?;
        let follow = blocks.iter().try_fold(0, |end, (at, block)| (*at == end).then(|| end + u64::from(block.len)));
        if follow != Some(len) {
            // What no hash tells of is written.
            compared.push((piece.clone(), None));
            return Ok(());
        }
        for blocks in blocks.chunk_by(|(_, one), (_, next)| one.frame == next.frame) {
            let (first, from) = (blocks[0].1, at + blocks[0].0);
            let length: u64 = blocks.iter().map(|(_, block)| u64::from(block.len)).sum();
            self.buffer.resize(length as usize, 0);
            let there = file
                .fill_at(&mut self.buffer, from)
                .map_err(|source| FilesError::Write { path: PathBuf::new(), source })?;
            let (mut rest, mut same, mut sum) = (&self.buffer[..there], there as u64 == length, 0);
            for (_, block) in blocks {
                let Some((bytes, after)) = rest.split_at_checked(block.len as usize) else { break };
                same &= BlockHash::of(bytes) == block.hash;
                sum = crc::join(sum, block.hash.crc, block.len.into());
                rest = after;
            }
            self.progress.advance(if same { length } else { 0 });
            let cut = Piece::Frames { pack, frame: first.frame, offset: first.offset, len: length };
            let crc_of = same.then_some(sum);
            if let Some((last, before)) = compared.last_mut()
                && before.is_some() == same
                && last.join(&cut)
            {
                *before = before.map(|before| crc::join(before, sum, length));
            } else {
                compared.push((cut, crc_of));
            }
        }
        Ok(())
    }

    /// Writes zeros where there are none.
    fn clear(&mut self, file: &File, mut at: u64, len: u64) -> io::Result<()> {
        let end = at + len;
        self.buffer.resize(FRAME_BYTES, 0);
        while at < end {
            let here = (end - at).min(FRAME_BYTES as u64) as usize;
            let there = file.fill_at(&mut self.buffer[..here], at)?;
            if !all_zero(&self.buffer[..there]) {
                self.buffer[..here].fill(0);
                file.write_all_at(&self.buffer[..here], at)?;
            }
            at += here as u64;
        }
        self.progress.advance(len);
        Ok(())
    }
}

/// Writes those blocks that differ from what is there.
pub(super) fn write_where_it_differs(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut there = [0; BLOCK];
    for (number, block) in (0u64..).zip(bytes.chunks(BLOCK)) {
        let from = at + number * BLOCK as u64;
        let read = file.fill_at(&mut there[..block.len()], from)?;
        if there[..read] != *block {
            file.write_all_at(block, from)?;
        }
    }
    Ok(())
}
