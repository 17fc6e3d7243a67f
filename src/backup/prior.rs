//! What an older backup has of each file, asked in the order of paths while its leaves stream by.
//!
//! Holds one leaf. Whoever asks for the next file gives up what is left of the one before.

use std::collections::VecDeque;

use crate::format::leaf::{Entry, File, Node, Part, Piece};
use crate::repo::{Leaves, RepoError};

/// A part of a piece that the older backup has of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lent {
    /// Where in the file the part begins.
    pub at: u64,
    /// Bytes of it.
    pub len: u64,
    /// Bytes of the piece before it.
    pub skip: u64,
    /// The piece, whole.
    pub piece: Piece,
}

/// A file that the older backup has as it was then, with few pieces.
#[derive(Clone, Debug)]
pub(super) struct LentFile {
    pub pieces: Vec<Piece>,
    pub file: File,
}

/// A walk through the older backup's files.
pub(super) struct Prior<'a> {
    leaves: Leaves<'a>,
    entries: VecDeque<Entry>,
    open: Option<Open>,
}

struct Open {
    pieces: VecDeque<Piece>,
    /// Where in the file the first of them begins.
    at: u64,
    /// The file's facts, once its last pieces are at hand.
    file: Option<File>,
}

impl<'a> Prior<'a> {
    pub fn new(leaves: Leaves<'a>) -> Self {
        Self { leaves, entries: VecDeque::new(), open: None }
    }

    /// Goes to a file; returns whether the older backup has it. Paths must rise.
    pub fn seek(&mut self, path: &[u8]) -> Result<bool, RepoError> {
        self.open = None;
        while let Some(entry) = self.peek()? {
            if entry.path.as_slice() > path {
                return Ok(false);
            }
            let found = entry.path == path;
            if let Some(Entry { node: Node::File(part), .. }) = self.entries.pop_front()
                && found
                && part.at == 0
            {
                self.open = Some(open(part));
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn peek(&mut self) -> Result<Option<&Entry>, RepoError> {
        while self.entries.is_empty() {
            match self.leaves.next_leaf()? {
                Some(entries) => self.entries = entries.into(),
                None => return Ok(None),
            }
        }
        Ok(self.entries.front())
    }

    /// Returns the file's facts, if all of it is at hand.
    pub fn facts(&self) -> Option<&File> {
        self.open.as_ref()?.file.as_ref()
    }

    /// Returns the file, if all of it is at hand and in no more than `most` pieces.
    pub fn whole(&self, most: usize) -> Option<LentFile> {
        let Open { pieces, at: 0, file: Some(file) } = self.open.as_ref()? else { return None };
        (pieces.len() <= most).then(|| LentFile { pieces: pieces.iter().cloned().collect(), file: file.clone() })
    }

    /// Returns what there is of the file from `from` to `to`; what lies before is given up.
    pub fn take(&mut self, from: u64, to: u64) -> Result<Vec<Lent>, RepoError> {
        let mut lent = Vec::new();
        while let Some(open) = &mut self.open {
            let Some(piece) = open.pieces.front() else {
                if open.file.is_some() || !self.go_on()? {
                    break;
                }
                continue;
            };
            if open.at >= to {
                break;
            }
            let end = open.at + piece.len();
            if end > from {
                let (at, stop) = (open.at.max(from), end.min(to));
                lent.push(Lent { at, len: stop - at, skip: at - open.at, piece: piece.clone() });
            }
            if end > to {
                break;
            }
            open.at = end;
            open.pieces.pop_front();
        }
        Ok(lent)
    }

    /// Goes to the next leaf's part of the file that is open.
    fn go_on(&mut self) -> Result<bool, RepoError> {
        match self.peek()? {
            // The order of leaves is checked as they are read: this is the same file.
            Some(Entry { node: Node::File(part), .. }) if part.at > 0 => {}
            _ => return Ok(false),
        }
        if let Some(Entry { node: Node::File(part), .. }) = self.entries.pop_front() {
            self.open = Some(open(part));
        }
        Ok(true)
    }
}

fn open(part: Part) -> Open {
    Open { pieces: part.pieces.into(), at: part.at, file: part.file }
}
