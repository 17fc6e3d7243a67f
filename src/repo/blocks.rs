//! The blocks of a stretch of frames, with their hashes: what tells whether a block elsewhere is the same.

use super::RepoError;
use super::backups::PackReader;
use crate::format::pack::BlockHash;

/// Consecutive frames of a pack, from somewhere in the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// First frame.
    pub frame: u32,
    /// Where in it a piece begins.
    pub offset: u32,
    /// Bytes of the piece that are passed over.
    pub skip: u64,
    /// Bytes after those.
    pub len: u64,
}

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its frame.
    pub frame: u32,
    /// Where in the frame it begins.
    pub offset: u32,
    /// Its bytes: a whole block's, or those at the end of a file.
    pub len: u32,
    /// Of those bytes.
    pub hash: BlockHash,
}

impl PackReader {
    /// Hands over the blocks that lie whole in a stretch, each with where it begins in the stretch. Frames of small files
    /// have none.
    ///
    /// # Errors
    /// [`RepoError::Object`] if the pack has no such frames.
    pub fn blocks(&self, stretch: &Stretch, found: &mut dyn FnMut(u64, Block)) -> Result<(), RepoError> {
        let block_size = u64::from(self.table().block_size.max(1));
        let (mut place, mut offset, mut skip) = (stretch.frame, u64::from(stretch.offset), stretch.skip);
        let mut at = 0;
        while at < stretch.len {
            let frame = self.frame(place)?;
            let length = u64::from(frame.raw_len);
            let rest = length.saturating_sub(offset);
            if rest <= skip {
                (place, offset, skip) = (place + 1, 0, skip - rest);
                continue;
            }
            offset += std::mem::take(&mut skip);
            let here = (stretch.len - at).min(length - offset);
            // Hashes are of the blocks of the frame: those that begin before the stretch do not lie whole in it.
            let first = offset.div_ceil(block_size);
            for (number, hash) in (first..).zip(self.table().blocks(frame).skip(first as usize)) {
                let start = number * block_size;
                let len = block_size.min(length - start);
                if start + len > offset + here {
                    break;
                }
                found(at + (start - offset), Block { frame: place, offset: start as u32, len: len as u32, hash });
            }
            at += here;
            (place, offset) = (place + 1, 0);
        }
        Ok(())
    }
}
