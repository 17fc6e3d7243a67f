//! A file that was found in the archive, on its way to where it is wanted.
//!
//! A segment is verified as it is stored when it is found; its contents come out frame by frame, and are verified once the
//! last one did. So whoever writes them gives the file its name, or a descriptor of it to anybody else, only after that.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::FetchError;
use crate::format::FormatError;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::system_id::SystemId;
use crate::pg::timeline::History;
use crate::pg::wal_name::WalFileName;
use crate::pg::wal_page::FirstPage;
use crate::repo::{Lane, OpenedFile, RepoError};

/// What the archive has of a file.
pub struct Found {
    name: WalFileName,
    contents: Contents,
}

enum Contents {
    /// All bytes of a small file, verified.
    Whole(Vec<u8>),
    Segment {
        segment: SegmentName,
        opened: Box<OpenedFile>,
        size: SegmentSize,
        system_id: SystemId,
    },
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.name, self.bytes())
    }
}

impl Found {
    /// Takes a segment, or the part of one that a promotion left; its size must be that of the lane's segments.
    pub(super) fn stored(segment: SegmentName, opened: OpenedFile, lane: &Lane) -> Result<Self, FetchError> {
        let (name, size) = (WalFileName::Segment(segment), lane.segment_size());
        let (found, expected) = (opened.raw_len(), size.bytes());
        if found != expected {
            return Err(FetchError::Size { name, found, expected });
        }
        let system_id = lane.facts().system_id;
        let opened = Box::new(opened);
        Ok(Self { name, contents: Contents::Segment { segment, opened, size, system_id } })
    }

    /// Takes another file's bytes, which were verified; those of a history must be one.
    pub(super) fn whole(name: &WalFileName, raw: Vec<u8>) -> Result<Self, FetchError> {
        let found = Self { name: name.clone(), contents: Contents::Whole(raw) };
        if matches!(name, WalFileName::History(_)) && found.history().is_none() {
            let source = FormatError::Damaged { part: "timeline history" };
            let source = RepoError::Object { key: name.to_string(), source };
            return Err(FetchError::Repository { name: name.clone(), source });
        }
        Ok(found)
    }

    /// A small file that is nowhere.
    #[cfg(test)]
    pub(crate) fn sample(raw: &[u8]) -> Self {
        Self { name: "sample".parse().expect("any name"), contents: Contents::Whole(raw.to_vec()) }
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        match &self.contents {
            Contents::Whole(raw) => raw.len() as u64,
            Contents::Segment { opened, .. } => opened.raw_len(),
        }
    }

    /// Returns the history that it is, if it is one.
    pub fn history(&self) -> Option<History> {
        match (&self.name, &self.contents) {
            (WalFileName::History(timeline), Contents::Whole(raw)) => {
                History::parse(*timeline, std::str::from_utf8(raw).ok()?).ok()
            }
            _ => None,
        }
    }

    /// Writes it to `file`, which is at `path`; after an error what is in it must not be used.
    ///
    /// # Errors
    /// [`FetchError::Write`], or what is wrong with the contents.
    pub fn write_to(&self, path: &Path, file: &mut File) -> Result<(), FetchError> {
        self.hand_to(&mut |part| {
            file.write_all(part).map_err(|source| FetchError::Write { path: path.to_path_buf(), source })
        })
    }

    /// Hands its bytes to `take` in their order. They are verified, and the first page is what the name says, once this
    /// returns.
    pub(super) fn hand_to(&self, take: &mut dyn FnMut(&[u8]) -> Result<(), FetchError>) -> Result<(), FetchError> {
        let Contents::Segment { segment, opened, size, system_id } = &self.contents else {
            let Contents::Whole(raw) = &self.contents else { return Ok(()) };
            return take(raw);
        };
        let mut first = true;
        let handed = opened.contents_to(&mut |part| {
            if std::mem::take(&mut first) {
                let page = FirstPage::parse(part);
                let fits = page.and_then(|page| page.belongs_to(*segment, *size, Some(*system_id)));
                fits.map_err(|source| FetchError::FirstPage { name: self.name.clone(), source })?;
            }
            take(part)
        });
        handed.map_err(|source| FetchError::Repository { name: self.name.clone(), source })?
    }
}
