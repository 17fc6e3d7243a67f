//! Frames that are mostly dead are stored again, so that neither restores nor storage decay.
//!
//! A backup that names one page of a frame keeps the frame, and its pack; a restore decompresses the frame for that page.
//! So before a backup, what its parent names of each frame is counted. All pages of a pack that is less than two thirds
//! alive, and those of a frame that is less than half alive, are taken as changed, up to a share of the whole: packs before
//! frames, since only they give storage back, and the emptiest first.

use super::packs::PlaceSet;
use crate::format::frame::FRAME_BYTES;
use crate::format::leaf::{Entry, Node, Piece};
use crate::format::tables::Tables;
use crate::repo::{Lane, RepoError};

/// One backup stores at most so much of the data again: a twelfth.
const SHARE: u64 = 12;
/// A pack of which less than so much is alive is stored again, and goes: two thirds. It is stored whole until then.
const PACK_LIVE: u64 = 2;
const PACK_OF: u64 = 3;
/// Unit in which live bytes are counted.
const UNIT: u64 = 1024;
/// Of a frame all of which counts, however long it is: a leaf of the manifest.
const WHOLE: u16 = u16::MAX;

/// Frames that the next backup does not take over.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    /// Pack and frame, sorted.
    frames: Vec<(u32, u32)>,
    /// Packs of which no leaf is named again.
    pub packs: PlaceSet,
}

impl Renewal {
    /// Whether a frame is to be stored again.
    pub fn has(&self, pack: u32, frame: u32) -> bool {
        self.frames.binary_search(&(pack, frame)).is_ok()
    }

    /// How many frames are to be stored again.
    #[cfg(test)]
    pub fn frames_in_all(&self) -> usize {
        self.frames.len()
    }

    /// Whether any frame that a piece lies in is; of several, all but the last are whole.
    pub fn touches(&self, piece: &Piece) -> bool {
        let Piece::Frames { pack, frame, offset, len } = piece else { return false };
        let further = (u64::from(*offset) + len.saturating_sub(1)) / FRAME_BYTES as u64;
        let last = frame.saturating_add(further.try_into().unwrap_or(u32::MAX));
        let from = self.frames.partition_point(|known| known < &(*pack, *frame));
        self.frames.get(from).is_some_and(|known| *known <= (*pack, last))
    }
}

/// What a backup names of the frames of its packs: two bytes a frame.
#[derive(Debug, Default)]
pub(super) struct Liveness(Vec<Option<Vec<u16>>>);

impl Liveness {
    /// Nothing named yet, of packs with so many frames.
    pub fn new(frames: impl Iterator<Item = Option<u32>>) -> Self {
        Self(frames.map(|frames| frames.map(|frames| vec![0; frames as usize])).collect())
    }

    /// Counts what a backup names.
    pub fn of(lane: &Lane, tables: &Tables) -> Result<Self, RepoError> {
        let mut live = Self::new(tables.packs.places().iter().map(|pack| pack.as_ref().map(|pack| pack.frames)));
        tables.leaves.iter().chain(&tables.relations).for_each(|leaf| live.leaf(leaf.pack, leaf.frame));
        let mut leaves = lane.leaves(tables);
        while let Some(entries) = leaves.next_leaf()? {
            entries.iter().for_each(|entry| live.entry(entry));
        }
        Ok(live)
    }

    fn entry(&mut self, entry: &Entry) {
        let Node::File(part) = &entry.node else { return };
        for piece in &part.pieces {
            if let Piece::Frames { pack, frame, offset, len } = piece {
                self.add(*pack, *frame, *offset, *len);
            }
        }
    }

    /// Counts a stretch of frames, all of which but the last are whole.
    pub fn add(&mut self, pack: u32, mut frame: u32, offset: u32, len: u64) {
        let (mut offset, mut left) = (u64::from(offset), len);
        while left > 0 {
            let here = left.min((FRAME_BYTES as u64).saturating_sub(offset)).max(1);
            if let Some(live) = self.frame(pack, frame) {
                *live = live.saturating_add(here.div_ceil(UNIT) as u16);
            }
            (frame, offset, left) = (frame + 1, 0, left - here);
        }
    }

    fn leaf(&mut self, pack: u32, frame: u32) {
        if let Some(live) = self.frame(pack, frame) {
            *live = WHOLE;
        }
    }

    fn frame(&mut self, pack: u32, frame: u32) -> Option<&mut u16> {
        self.0.get_mut(pack as usize)?.as_mut()?.get_mut(frame as usize)
    }

    /// Decides which frames the next backup stores again, of `bytes` that it has in all; `lengths` tells how long the
    /// frames of a pack are.
    pub fn renewal<E>(&self, bytes: u64, mut lengths: impl FnMut(u32) -> Result<Vec<u32>, E>) -> Result<Renewal, E> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for (place, live) in self.0.iter().enumerate() {
            let Some(live) = live else { continue };
            let suspect = |live: &u16| u64::from(*live) * UNIT * 2 < FRAME_BYTES as u64;
            if live.iter().all(|live| *live == 0) || !live.iter().any(suspect) {
                continue;
            }
            candidates.extend(of_pack(place as u32, live, &lengths(place as u32)?));
        }
        candidates.sort_by_key(|candidate| (!candidate.with_pack, candidate.percent, candidate.pack, candidate.frame));
        let (mut renewal, mut left) = (Renewal::default(), bytes / SHARE);
        for candidate in candidates {
            let Some(rest) = left.checked_sub(candidate.live) else { break };
            left = rest;
            renewal.frames.push((candidate.pack, candidate.frame));
            if candidate.leaf {
                renewal.packs.add(candidate.pack);
            }
        }
        renewal.frames.sort_unstable();
        Ok(renewal)
    }
}

/// A frame that is worth being stored again.
struct Candidate {
    pack: u32,
    frame: u32,
    /// Bytes that are named, and how many of a hundred of what they keep.
    live: u64,
    percent: u64,
    /// Whether all of the pack is stored again, and the percentage is the pack's: only that lets a pack go.
    with_pack: bool,
    leaf: bool,
}

/// Returns what is worth being stored again of one pack: frames less than half alive, and all of a pack that is.
fn of_pack(pack: u32, live: &[u16], lengths: &[u32]) -> Vec<Candidate> {
    let frames: Vec<(u32, u64, u64, bool)> = (0..)
        .zip(live.iter().zip(lengths))
        .map(|(frame, (live, length))| {
            let length = u64::from(*length);
            let leaf = *live == WHOLE;
            (frame, if leaf { length } else { (u64::from(*live) * UNIT).min(length) }, length, leaf)
        })
        .collect();
    let named: u64 = frames.iter().map(|(_, live, ..)| live).sum();
    let stored: u64 = frames.iter().map(|(_, _, length, _)| length).sum();
    let dead_pack = named * PACK_OF < stored * PACK_LIVE;
    let worth = |(_, live, length, _): &&(u32, u64, u64, bool)| *live > 0 && (dead_pack || live * 2 < *length);
    let candidate = |(frame, live, length, leaf): &(u32, u64, u64, bool)| {
        let of_frame = live * 100 / (*length).max(1);
        let percent = if dead_pack { named * 100 / stored.max(1) } else { of_frame };
        Candidate { pack, frame: *frame, live: *live, percent, with_pack: dead_pack, leaf: *leaf }
    };
    frames.iter().filter(worth).map(candidate).collect()
}

#[cfg(test)]
mod tests;
