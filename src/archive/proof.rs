//! Whether a segment that lies in `pg_wal` is finished: whole, never to be written to again.
//!
//! A name proves nothing. PostgreSQL recycles a file under a name that lies in the future, a receiver writes one from its
//! start on, and nobody hands either of them to `archive_command`. What proves it is a walk: every page at its address,
//! every record's checksum and back-link, to the segment's end; into the next one for a record that crosses; and nothing
//! but zeros after a switch. A file may be recycled while it is read, so that its name still leads to it, unchanged, is
//! looked at after the last byte.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::FileIdentity;
use crate::catalog::Branch;
use crate::format::Sha256;
use crate::format::digest::ContentsHasher;
use crate::format::wal::ReadAt;
use crate::pg::page::zero_tail;
use crate::pg::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::pg::system_id::SystemId;
use crate::pg::wal_page::{FirstPage, PageHeader};
use crate::pg::wal_walk::{OpenRecord, SegmentEnd, SegmentWalk, Walker};

/// Bytes walked at a time: a multiple of every size of a page.
const PART: usize = 1 << 20;

/// Segments of one branch in a `pg_wal`.
#[derive(Debug)]
pub struct WalFolder<'a> {
    directory: &'a Path,
    branch: Branch,
    size: SegmentSize,
    system_id: SystemId,
    present: BTreeSet<SegmentName>,
}

/// A file that was proven to be a finished segment.
#[derive(Debug)]
pub struct Finished {
    /// Which one.
    pub name: SegmentName,
    /// SHA-256 of the bytes that were walked.
    pub digest: Sha256,
    /// Where it is.
    pub path: PathBuf,
    /// The file, open.
    pub file: File,
    identity: FileIdentity,
}

/// What a look at a segment found.
#[derive(Debug)]
pub enum Proof {
    /// It is finished.
    Finished(Box<Finished>),
    /// It is not, or it cannot be told.
    NotProven(String),
    /// The name leads nowhere, or to another file than a moment ago.
    Vanished,
}

/// Answers with an archived segment's bytes, if it is archived.
pub type Archived<'a> = dyn Fn(SegmentName) -> Option<Vec<u8>> + 'a;

/// A segment that was walked from its first byte to its last.
struct Read {
    end: SegmentEnd,
    /// Bytes before the zeros that it ends with.
    filled: u64,
    finished: Finished,
}

impl Finished {
    /// Returns whether the name still leads to this file, and nothing was written to it.
    pub fn is_unchanged(&self) -> bool {
        let found = std::fs::symlink_metadata(&self.path).map(|found| FileIdentity::of(&found));
        found.is_ok_and(|found| self.identity.same_contents(&found))
    }
}

impl<'a> WalFolder<'a> {
    /// Looks at what `directory` has of a branch, beginning with the part `from` on; names alone are looked at.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn look(directory: &'a Path, branch: Branch, size: SegmentSize, system_id: SystemId) -> io::Result<Self> {
        let mut present = BTreeSet::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_str().and_then(|name| name.parse::<SegmentName>().ok());
            // A pipe would never open, and a link leads to what is not the server's.
            if let Some(name) = name
                && entry.file_type().is_ok_and(|kind| kind.is_file())
            {
                present.insert(name);
            }
        }
        present.retain(|name| name.number(size).is_ok_and(|number| branch.segment(number, size) == *name));
        Ok(Self { directory, branch, size, system_id, present })
    }

    /// The segments of the branch that have a name here, in the order of the log.
    pub fn segments(&self) -> impl Iterator<Item = SegmentName> {
        // Names order by timeline first, and along a branch timelines only rise.
        self.present.iter().copied()
    }

    /// Bytes in a segment.
    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// The branch.
    pub fn branch(&self) -> &Branch {
        &self.branch
    }

    /// Finds out whether a segment is finished. `archived` answers for segments before it that are not here any more.
    ///
    /// # Errors
    /// If a file cannot be read; one that is gone is [`Proof::Vanished`].
    pub fn prove(&self, segment: SegmentName, archived: &Archived<'_>) -> io::Result<Proof> {
        let Ok(number) = segment.number(self.size) else {
            return Ok(Proof::NotProven("no segment of this size has that name".to_owned()));
        };
        // The checksum of a record that began before it is computed by a walk from there.
        let (mut first, mut before) = (number, Vec::new());
        let Some(start) = self.start_of(segment)? else { return Ok(Proof::Vanished) };
        // Most files that are none are told by their first bytes, and not read whole again and again.
        let first_page = FirstPage::parse(&start);
        if let Err(why) = first_page.and_then(|page| page.belongs_to(segment, self.size, Some(self.system_id))) {
            return Ok(Proof::NotProven(format!("it is another file: {why}")));
        }
        let mut begins_inside = continues(&start);
        while begins_inside {
            let Some(previous) = first.previous() else { break };
            first = previous;
            let start = match self.start_of(self.name(first))? {
                Some(start) => start,
                None => match archived(self.name(first)) {
                    Some(raw) => {
                        let start = raw[..raw.len().min(PageHeader::LONG)].to_vec();
                        before.push((first, raw));
                        start
                    }
                    None => {
                        let why = format!("it begins inside a record, and {} is gone", self.name(first));
                        return Ok(Proof::NotProven(why));
                    }
                },
            };
            begins_inside = continues(&start);
        }
        self.walk(first, number, &before)
    }

    /// Returns the first bytes of a segment that is here.
    fn start_of(&self, name: SegmentName) -> io::Result<Option<Vec<u8>>> {
        match File::open(self.directory.join(name.to_string())) {
            Ok(file) => {
                let mut start = vec![0; PageHeader::LONG];
                let found = file.fill_at(&mut start, 0)?;
                start.truncate(found);
                Ok(Some(start))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Walks from `first` over `number`, and on until the last record that begins there is complete.
    fn walk(&self, first: SegmentNo, number: SegmentNo, before: &[(SegmentNo, Vec<u8>)]) -> io::Result<Proof> {
        let mut walker = Walker::new(Some(self.system_id), self.size);
        let mut at = first;
        while at < number {
            let end = match before.iter().find(|(archived, _)| *archived == at) {
                Some((_, raw)) => walker.segment(self.name(at), raw, &mut |_| ()),
                None => match self.read(&mut walker, at)? {
                    Some(read) => read.end,
                    None => return Ok(Proof::Vanished),
                },
            };
            if let SegmentEnd::Stopped { why, .. } = end {
                return Ok(Proof::NotProven(format!("the log does not lead to it: {why}")));
            }
            at = at.next();
        }
        let Some(Read { end, filled, finished }) = self.read(&mut walker, number)? else {
            return Ok(Proof::Vanished);
        };
        Ok(match end {
            SegmentEnd::Inside => Proof::NotProven("it lies inside a record whose beginning is gone".to_owned()),
            SegmentEnd::Stopped { at, why } => Proof::NotProven(format!("its records end at {at}: {why}")),
            SegmentEnd::Switched { at } if filled > self.size.offset_of(at) && self.size.offset_of(at) > 0 => {
                Proof::NotProven("what follows its switch record is not written yet".to_owned())
            }
            SegmentEnd::Open(open) if !self.completes(&mut walker, number, open)? => {
                Proof::NotProven(format!("the record at {} goes on in a segment that is not there yet", open.start))
            }
            SegmentEnd::Clean | SegmentEnd::Switched { .. } | SegmentEnd::Open(_) if finished.is_unchanged() => {
                Proof::Finished(Box::new(finished))
            }
            _ => Proof::Vanished,
        })
    }

    /// Follows a record that crosses segments to its end, or to the one that declares it void.
    fn completes(&self, walker: &mut Walker, number: SegmentNo, open: OpenRecord) -> io::Result<bool> {
        let mut at = number.next();
        loop {
            let Some(read) = self.read(walker, at)? else { return Ok(false) };
            if walker.last_complete().is_some_and(|(start, _)| start >= open.start) {
                return Ok(true);
            }
            match read.end {
                SegmentEnd::Open(still) if still.start == open.start => at = at.next(),
                _ => return Ok(false),
            }
        }
    }

    fn name(&self, number: SegmentNo) -> SegmentName {
        self.branch.segment(number, self.size)
    }

    /// Walks one segment and digests it; `None` if it is not there.
    fn read(&self, walker: &mut Walker, number: SegmentNo) -> io::Result<Option<Read>> {
        let name = self.name(number);
        let path = self.directory.join(name.to_string());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let (mut walk, mut hasher) = (SegmentWalk::new(name), ContentsHasher::default());
        let (mut place, mut filled) = (0, 0);
        let mut buffer = vec![0; PART];
        // A file that grows past a segment is none; the walk says so.
        while place <= self.size.bytes() {
            let found = file.fill_at(&mut buffer, place)?;
            let part = &buffer[..found];
            if part.is_empty() {
                break;
            }
            walk.part(walker, part, &mut |_| ());
            hasher.update(part);
            match zero_tail(part) {
                0 => {}
                some => filled = place + some as u64,
            }
            place += found as u64;
        }
        let finished = Finished { name, digest: hasher.finish(), path, file, identity: FileIdentity::of(&metadata) };
        Ok(Some(Read { end: walk.end(walker), filled, finished }))
    }
}

/// Returns whether a segment begins with the rest of a record, by its first bytes.
fn continues(start: &[u8]) -> bool {
    PageHeader::read(start).is_some_and(|header| header.continues() && !header.overwrites())
}
