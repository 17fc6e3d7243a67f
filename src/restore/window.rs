//! A stretch of the manifest that is restored at once: entries of several leaves, and their pieces grouped by pack.
//!
//! Windows follow each other in the order of paths; within one, whatever is wanted of a pack is brought out of it
//! together. How large a window is follows from the memory that there is.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::leftovers::Sieve;
use super::selection::Selection;
use crate::format::crc;
use crate::format::frame::FRAME_BYTES;
use crate::format::leaf::{Entry, Node, Piece};
use crate::repo::{Leaves, RepoError};

/// What an entry takes in memory besides its path and pieces, and what a piece takes with its bookkeeping.
const ENTRY_BYTES: u64 = 200;
const PIECE_BYTES: u64 = 80;
/// A job wants about so many bytes of files: a large pack is several workers' work.
const JOB_BYTES: u64 = 64 << 20;
/// Set in a checksum that is known.
const KNOWN: u64 = 1 << 32;

/// Entries of some leaves.
pub(super) struct Window {
    pub entries: Vec<Entry>,
}

impl Window {
    /// Reads leaves until the window is full of what passes the sieve; `None` after the last leaf.
    pub fn read(
        leaves: &mut Leaves<'_>,
        selection: &Selection,
        sieve: &mut Sieve<'_>,
        bytes: u64,
    ) -> Result<Option<Self>, RepoError> {
        let (mut entries, mut taken) = (Vec::new(), 0);
        while taken < bytes {
            let Some(mut more) = leaves.next_leaf()? else { break };
            selection.apply(&mut more);
            more.retain(|entry| sieve.passes(entry));
            taken += more.iter().map(entry_bytes).sum::<u64>();
            entries.extend(more);
        }
        Ok((!entries.is_empty()).then_some(Self { entries }))
    }

    /// Groups the pieces; those that are in place already have their checksums in `in_place`, by their order.
    pub fn wanted(&self, in_place: &[Option<u32>]) -> Wanted<'_> {
        let have = |place: u32| in_place.get(place as usize).copied().flatten();
        let mut parts = Vec::new();
        for (entry, part) in self.files() {
            let mut at = part.at;
            for piece in &part.pieces {
                parts.push(Part { entry, at, piece });
                at += piece.len();
            }
        }
        let key = |part: &Part<'_>| match part.piece {
            Piece::Frames { pack, frame, offset, .. } => Some((*pack, *frame, *offset)),
            Piece::Zeros { .. } | Piece::Inline(_) => None,
        };
        let mut order: Vec<u32> = (0..parts.len() as u32)
            .filter(|place| key(&parts[*place as usize]).is_some() && have(*place).is_none())
            .collect();
        order.sort_by_key(|place| key(&parts[*place as usize]));
        let jobs = jobs(&parts, &order);
        let known =
            |place| have(place).map_or_else(|| known_crc(parts[place as usize].piece), |crc| KNOWN | u64::from(crc));
        let crcs = (0..parts.len() as u32).map(|place| AtomicU64::new(known(place))).collect();
        Wanted { parts, order, jobs, crcs }
    }

    /// The files among the entries, with their places.
    pub fn files(&self) -> impl Iterator<Item = (usize, &crate::format::leaf::Part)> {
        self.entries.iter().enumerate().filter_map(|(place, entry)| match &entry.node {
            Node::File(part) => Some((place, part)),
            Node::Directory { .. } => None,
        })
    }
}

fn entry_bytes(entry: &Entry) -> u64 {
    let pieces = match &entry.node {
        Node::Directory { .. } => 0,
        Node::File(part) => part.pieces.iter().map(piece_bytes).sum(),
    };
    ENTRY_BYTES + entry.path.len() as u64 + pieces
}

fn piece_bytes(piece: &Piece) -> u64 {
    match piece {
        Piece::Frames { .. } | Piece::Zeros { .. } => PIECE_BYTES,
        Piece::Inline(bytes) => PIECE_BYTES + bytes.len() as u64,
    }
}

/// A piece of a file and where it goes.
pub(super) struct Part<'a> {
    pub entry: usize,
    pub at: u64,
    pub piece: &'a Piece,
}

/// What is wanted of each pack.
pub(super) struct Wanted<'a> {
    /// Stretches of files, in the order of files and of their bytes.
    pub parts: Vec<Part<'a>>,
    /// Those that come out of packs, in the order of packs and frames.
    pub order: Vec<u32>,
    /// Stretches of `order` that each want one pack.
    pub jobs: Vec<Job>,
    crcs: Vec<AtomicU64>,
}

/// What one worker brings out of one pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// Place of the pack.
    pub pack: u32,
    /// What is wanted, in the order of packs.
    pub parts: Range<usize>,
    /// Frames of the pack that all jobs of the window want together, if those of pages are as large as they are now.
    pub frames: u32,
}

impl Wanted<'_> {
    /// Notes the checksum of a part that was written.
    pub fn written(&self, part: usize, crc: u32) {
        self.crcs[part].store(KNOWN | u64::from(crc), Ordering::Relaxed);
    }

    /// Returns the checksum of a part; `None` if it was not written.
    pub fn crc(&self, part: usize) -> Option<u32> {
        let crc = self.crcs[part].load(Ordering::Relaxed);
        (crc & KNOWN != 0).then_some(crc as u32)
    }
}

/// Returns the checksum of bytes that are known without a pack.
fn known_crc(piece: &Piece) -> u64 {
    match piece {
        Piece::Frames { .. } => 0,
        Piece::Zeros { len } => KNOWN | u64::from(crc::append_zeros(0, *len)),
        Piece::Inline(bytes) => KNOWN | u64::from(crc32c::crc32c(bytes)),
    }
}

fn jobs(parts: &[Part<'_>], order: &[u32]) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    // Where the last frame ends that is counted, and the bytes of the last job.
    let (mut counted, mut bytes) = (0, 0);
    for at in 0..order.len() {
        let Piece::Frames { pack, frame, offset, len } = parts[order[at] as usize].piece else { continue };
        let known = jobs.last().filter(|job| job.pack == *pack).map_or(0, |job| job.frames);
        if known == 0 {
            counted = 0;
        }
        let end = (u64::from(*frame) + (u64::from(*offset) + len).div_ceil(FRAME_BYTES as u64)) as u32;
        let frames = known + end.saturating_sub(counted.max(*frame));
        counted = counted.max(end);
        match jobs.last_mut() {
            Some(job) if bytes < JOB_BYTES && job.pack == *pack => {
                (job.parts.end, job.frames) = (at + 1, frames);
            }
            _ => {
                jobs.push(Job { pack: *pack, parts: at..at + 1, frames });
                bytes = 0;
            }
        }
        bytes += len;
    }
    // What the last job of a pack knows, all of them know.
    for at in (1..jobs.len()).rev() {
        if jobs[at - 1].pack == jobs[at].pack {
            jobs[at - 1].frames = jobs[at].frames;
        }
    }
    jobs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs_of(pieces: &[Piece]) -> Vec<(u32, Range<usize>, u32)> {
        let parts: Vec<Part<'_>> = pieces.iter().map(|piece| Part { entry: 0, at: 0, piece }).collect();
        let order: Vec<u32> = (0..parts.len() as u32).collect();
        jobs(&parts, &order).into_iter().map(|job| (job.pack, job.parts, job.frames)).collect()
    }

    #[test]
    fn every_job_of_a_pack_knows_the_frames_that_all_of_them_want() {
        let frames = |pack, frame, offset, len| Piece::Frames { pack, frame, offset, len };
        let (large, frame) = (JOB_BYTES, FRAME_BYTES as u64);
        let pieces = [
            // Two small files in one frame, and one that reaches into the next.
            frames(0, 0, 0, 100),
            frames(0, 0, 100, 100),
            frames(0, 0, 200, frame),
            frames(0, 7, 0, large),
            frames(0, 300, 0, 1),
            frames(4, 2, 5, frame),
        ];
        let counted = 2 + (large / frame) as u32 + 1;
        assert_eq!(jobs_of(&pieces), [(0, 0..4, counted), (0, 4..5, counted), (4, 5..6, 2)]);
        assert_eq!(jobs_of(&[]), []);
    }
}
