//! Frames out of packs, into files, window by window.
//!
//! Work is grouped by pack: each worker reads what is wanted of a pack with as few requests as [`reads`](super::reads)
//! finds, verifies and decompresses each frame once, and writes its bytes wherever pieces want them. Zeros are never
//! written: a file gets its size when it is made.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::budget::Budget;
use super::delta::{self, InPlace};
use super::leftovers::Kept;
use super::reads::{self, Span};
use super::selection::Selection;
use super::window::{Job, Wanted, Window};
use super::writer::Writer;
use crate::format::FormatError;
use crate::format::crc;
use crate::format::leaf::{Entry, Node, Piece};
use crate::format::tables::Tables;
use crate::pg::data_directory::{Class, DataDirectory, FileKind, SkipReason};
use crate::progress::Progress;
use crate::repo::{FrameReading, PackReader, Packs, RepoError, WholePack};

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
            let handles: Vec<_> = held.iter_mut().map(|held| scope.spawn(|| run(&filling, held))).collect();
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

/// One window being filled, by all workers.
struct Filling<'a> {
    packs: &'a Packs<'a>,
    root: &'a Path,
    /// A pack of so many bytes may be read whole.
    read_bytes: u64,
    window: &'a Window,
    wanted: Wanted<'a>,
    /// Whether something may be there already.
    delta: bool,
    next: AtomicUsize,
    failed: AtomicBool,
    progress: &'a Progress,
}

fn run(filling: &Filling<'_>, held: &mut Held) -> Result<(), FilesError> {
    let mut worker = Worker { filling, held, writer: Writer::new(filling.delta) };
    let result = worker.work();
    worker.writer.close();
    if result.is_err() {
        filling.failed.store(true, Ordering::Relaxed);
    }
    result
}

struct Worker<'a> {
    filling: &'a Filling<'a>,
    held: &'a mut Held,
    /// Parts of one file follow each other.
    writer: Writer,
}

/// What a worker takes along from one window to the next.
#[derive(Default)]
struct Held {
    /// A frame.
    raw: Vec<u8>,
    /// The pack that was read whole last, and its place: the next job may want more of it.
    whole: Option<(u32, Arc<WholePack>)>,
    /// Memory for the next.
    memory: Vec<u8>,
}

impl Held {
    /// Gives up the pack that is held whole; its memory can hold the next, unless somebody else is still at work with it.
    fn let_go(&mut self) {
        if let Some((_, whole)) = self.whole.take()
            && let Ok(whole) = Arc::try_unwrap(whole)
        {
            self.memory = whole.into_memory();
        }
    }

    /// Returns a whole pack, and holds it until another is wanted.
    fn whole(&mut self, packs: &Packs<'_>, place: u32) -> Result<Arc<WholePack>, RepoError> {
        if let Some((held, whole)) = &self.whole
            && *held == place
        {
            return Ok(Arc::clone(whole));
        }
        self.let_go();
        let whole = packs.whole(place, &mut self.memory)?;
        // If somebody else had it, there would be two for one worker.
        self.memory = Vec::new();
        Ok(Arc::clone(&self.whole.insert((place, whole)).1))
    }
}

/// Where frames come from.
enum Source<'a> {
    Whole(&'a WholePack),
    InOrder(Box<FrameReading<'a>>),
}

impl Source<'_> {
    fn expect(&mut self, last: u32) -> Result<(), RepoError> {
        match self {
            Source::Whole(_) => Ok(()),
            Source::InOrder(reading) => reading.expect(last),
        }
    }

    fn decode(&mut self, frame: u32, raw: &mut Vec<u8>) -> Result<(), RepoError> {
        match self {
            Source::Whole(whole) => whole.decode(frame, raw),
            Source::InOrder(reading) => reading.decode(frame, raw),
        }
    }
}

/// A part of which frames are still to come.
struct Active {
    part: usize,
    /// Bytes to skip in the next frame.
    skip: u64,
    /// Bytes still wanted.
    left: u64,
    /// Where the next byte goes.
    at: u64,
    crc: u32,
}

impl Worker<'_> {
    fn work(&mut self) -> Result<(), FilesError> {
        let jobs = self.filling.wanted.jobs.len();
        while !self.filling.failed.load(Ordering::Relaxed) {
            let job = self.filling.next.fetch_add(1, Ordering::Relaxed);
            if job < jobs {
                self.pack(job)?;
            } else if job == jobs {
                self.inline()?;
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Writes what is kept in the leaves themselves.
    fn inline(&mut self) -> Result<(), FilesError> {
        let filling = self.filling;
        for part in &filling.wanted.parts {
            match part.piece {
                Piece::Inline(bytes) => self.write(part.entry, part.at, bytes)?,
                Piece::Zeros { len } if !filling.delta => filling.progress.advance(*len),
                Piece::Zeros { .. } | Piece::Frames { .. } => {}
            }
        }
        Ok(())
    }

    /// Brings everything that a job wants out of its pack.
    fn pack(&mut self, job: usize) -> Result<(), FilesError> {
        let filling = self.filling;
        let job = &filling.wanted.jobs[job];
        let reference = filling.packs.reference(job.pack);
        if !reads::is_worth_reading_whole(reference, job.frames, filling.read_bytes) {
            self.held.let_go();
            let pack = filling.packs.reader(job.pack)?;
            let spans = self.spans(job, &pack)?;
            for group in reads::requests(&reads::runs(&spans), |frame| pack.frame(frame))? {
                let (first, last) = (*group[0].start(), *group[group.len() - 1].end());
                let mut source = Source::InOrder(Box::new(pack.frames(first, last)?));
                self.bring(&mut source, &group, &spans)?;
            }
            return Ok(());
        }
        let whole = self.held.whole(filling.packs, job.pack)?;
        let spans = self.spans(job, whole.reader())?;
        self.bring(&mut Source::Whole(&whole), &reads::runs(&spans), &spans)
    }

    /// Brings frames, and what `spans` want of them. Those that begin before the first run are done.
    fn bring(
        &mut self,
        source: &mut Source<'_>,
        runs: &[RangeInclusive<u32>],
        spans: &[Span],
    ) -> Result<(), FilesError> {
        let begin = spans.partition_point(|span| span.first < *runs[0].start());
        let mut waiting = spans[begin..].iter().peekable();
        let mut active: Vec<Active> = Vec::new();
        let mut raw = std::mem::take(&mut self.held.raw);
        for run in runs {
            source.expect(*run.end())?;
            for frame in run.clone() {
                while let Some(span) = waiting.next_if(|span| span.first <= frame) {
                    active.push(self.start(span));
                }
                source.decode(frame, &mut raw)?;
                for one in &mut active {
                    self.take(one, &raw)?;
                }
                active.retain(|one| one.left > 0);
            }
        }
        self.held.raw = raw;
        Ok(())
    }

    /// Returns the frames that each of a job's parts lies in, in their order.
    fn spans(&self, job: &Job, pack: &PackReader) -> Result<Vec<Span>, FilesError> {
        self.filling.wanted.order[job.parts.clone()].iter().map(|part| self.span(*part as usize, pack)).collect()
    }

    /// Returns the frames that a part lies in.
    fn span(&self, part: usize, pack: &PackReader) -> Result<Span, FilesError> {
        let Piece::Frames { frame: first, offset, len, .. } = self.filling.wanted.parts[part].piece else {
            unreachable!("only frames are in the order of packs")
        };
        let nonsense = |problem: &str| FormatError::Nonsense { document: "manifest leaf", problem: problem.to_owned() };
        if *offset >= pack.frame(*first)?.raw_len {
            return Err(nonsense("a piece begins past the end of its frame").into());
        }
        let end = u64::from(*offset).saturating_add(*len);
        let (mut last, mut covered) = (*first, u64::from(pack.frame(*first)?.raw_len));
        while covered < end {
            last += 1;
            if last as usize >= pack.table().len() {
                return Err(nonsense("a piece runs past the end of its pack").into());
            }
            covered += u64::from(pack.frame(last)?.raw_len);
        }
        Ok(Span { part, first: *first, last })
    }

    fn start(&self, span: &Span) -> Active {
        let wanted = &self.filling.wanted.parts[span.part];
        let skip = match wanted.piece {
            Piece::Frames { offset, .. } => u64::from(*offset),
            Piece::Zeros { .. } | Piece::Inline(_) => 0,
        };
        Active { part: span.part, skip, left: wanted.piece.len(), at: wanted.at, crc: 0 }
    }

    /// Writes what a part wants of one frame.
    fn take(&mut self, one: &mut Active, raw: &[u8]) -> Result<(), FilesError> {
        let entry = self.filling.wanted.parts[one.part].entry;
        let bytes = usize::try_from(one.skip).ok().and_then(|skip| raw.get(skip..)).unwrap_or_default();
        let bytes = &bytes[..bytes.len().min(usize::try_from(one.left).unwrap_or(usize::MAX))];
        self.write(entry, one.at, bytes)?;
        one.crc = crc32c::crc32c_append(one.crc, bytes);
        one.skip = 0;
        one.at += bytes.len() as u64;
        one.left -= bytes.len() as u64;
        if one.left == 0 {
            self.filling.wanted.written(one.part, one.crc);
        }
        Ok(())
    }

    fn write(&mut self, entry: usize, at: u64, bytes: &[u8]) -> Result<(), FilesError> {
        let path = || place(self.filling.root, &self.filling.window.entries[entry].path);
        self.filling.progress.advance(bytes.len() as u64);
        let written = self.writer.write(entry, &path(), at, bytes);
        written.map_err(|source| FilesError::Write { path: path(), source })
    }
}

impl Filling<'_> {
    /// Compares every file with the checksum that it was backed up with; `carried` is that of the bytes before this window
    /// of the file that goes on in it. Returns the same for the next.
    fn compare(&self, carried: u32) -> Result<u32, FilesError> {
        let mut parts = 0;
        let mut crc = carried;
        for (entry, part) in self.window.files() {
            if part.at == 0 {
                crc = 0;
            }
            for piece in &part.pieces {
                let found = self.wanted.crc(parts).ok_or_else(|| self.differs(entry))?;
                crc = crc::join(crc, found, piece.len());
                parts += 1;
            }
            if let Some(file) = &part.file
                && file.crc != crc
            {
                return Err(self.differs(entry));
            }
        }
        Ok(crc)
    }

    fn differs(&self, entry: usize) -> FilesError {
        FilesError::Differs { path: String::from_utf8_lossy(&self.window.entries[entry].path).into_owned() }
    }
}

pub(super) fn place(root: &Path, path: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path))
}
