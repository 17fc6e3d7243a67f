//! One window of files being filled by all workers, from packs.
//!
//! Each worker takes one job after another: it reads what is wanted of a pack with as few requests as [`reads`] finds,
//! verifies and decompresses each frame once, and writes its bytes wherever pieces want them.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::files::{FilesError, place};
use super::reads::{self, Span};
use super::window::{Job, Wanted, Window};
use super::writer::Writer;
use crate::format::FormatError;
use crate::format::crc;
use crate::format::leaf::Piece;
use crate::progress::Progress;
use crate::repo::{FrameReading, PackReader, Packs, RepoError, WholePack};

/// One window being filled, by all workers.
pub(super) struct Filling<'a> {
    pub packs: &'a Packs<'a>,
    pub root: &'a Path,
    /// A pack of so many bytes may be read whole.
    pub read_bytes: u64,
    pub window: &'a Window,
    pub wanted: Wanted<'a>,
    /// Whether something may be there already.
    pub delta: bool,
    /// The next job.
    pub next: AtomicUsize,
    pub failed: AtomicBool,
    pub progress: &'a Progress,
}

/// Works until there is nothing left to be filled, or another worker failed.
pub(super) fn run(filling: &Filling<'_>, held: &mut Held) -> Result<(), FilesError> {
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
pub(super) struct Held {
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
    pub(super) fn compare(&self, carried: u32) -> Result<u32, FilesError> {
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
