//! Single blocks of several files on their way into one frame.

use super::copy::CopyError;
use super::packs::Filling;
use super::remains::Remaining;
use crate::format::frame::FRAME_BYTES;
use crate::format::leaf::Piece;
use crate::format::pack::BlockHash;

/// The frame that is being filled. It has its place before it is there: it has to be closed before anything else goes into
/// the same pack.
#[derive(Default)]
pub(super) struct Mixed {
    raw: Vec<u8>,
    hashes: Vec<BlockHash>,
    /// Pack and frame that it will have.
    place: Option<(u32, u32)>,
}

impl Mixed {
    /// Adds a block; one that is shorter than `block_size` ends the frame.
    pub fn add(
        &mut self,
        packs: &mut Filling<'_>,
        (block, hash): (&[u8], BlockHash),
        block_size: usize,
    ) -> Result<Piece, CopyError> {
        let (pack, frame) = match self.place {
            Some(place) => place,
            None => *self.place.insert(packs.next_place()?),
        };
        let offset = self.raw.len() as u32;
        self.raw.extend_from_slice(block);
        self.hashes.push(hash);
        // Hashes are of consecutive blocks, so one that is shorter is the last.
        if self.raw.len() >= FRAME_BYTES || block.len() < block_size {
            self.close(packs)?;
        }
        Ok(Piece::Frames { pack, frame, offset, len: block.len() as u64 })
    }

    /// As [`Mixed::add`], but for a block that a backup left which was cut off: that one is named.
    pub fn find_or_add(
        &mut self,
        packs: &mut Filling<'_>,
        (block, hash): (&[u8], BlockHash),
        block_size: usize,
    ) -> Result<Piece, CopyError> {
        let Some(Remaining { place, frame, offset }) = packs.remaining_block(block) else {
            return self.add(packs, (block, hash), block_size);
        };
        packs.take_over(place, block.len() as u64);
        Ok(Piece::Frames { pack: place, frame, offset, len: block.len() as u64 })
    }

    /// Puts the frame into its pack.
    pub fn close(&mut self, packs: &mut Filling<'_>) -> Result<(), CopyError> {
        let Some(place) = self.place.take() else { return Ok(()) };
        let appended = packs.put(&self.raw, &self.hashes)?;
        assert_eq!(appended, place, "a frame lies where pieces say that it does");
        self.raw.clear();
        self.hashes.clear();
        Ok(())
    }
}
