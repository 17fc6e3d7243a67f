//! The digest of an archived file's contents: a tree of two levels, so that several threads can work on one file, and zeros
//! cost nothing.
//!
//! Contents of at most [`PIECE_BYTES`] have their plain SHA-256. Longer ones are cut into pieces of that size, of which the
//! last may be shorter; their digest is that of the pieces' digests, in order, followed by the length of the contents as
//! 8 bytes, little-endian. `docs/format.md` says so too.

use super::{Sha256, Sha256Hasher};
use crate::pg::page::zero_tail;

/// Bytes in a piece.
pub const PIECE_BYTES: usize = 1 << 20;

/// The digest of a piece of zeros, of which nearly empty segments are made.
const ZEROS: Sha256 = Sha256::from_bytes([
    0x30, 0xE1, 0x49, 0x55, 0xEB, 0xF1, 0x35, 0x22, 0x66, 0xDC, 0x2F, 0xF8, 0x06, 0x7E, 0x68, 0x10, 0x46, 0x07, 0xE7,
    0x50, 0xAB, 0xB9, 0xD3, 0xB3, 0x65, 0x82, 0xB8, 0xAF, 0x90, 0x9F, 0xCB, 0x58,
]);

/// Returns the digest of contents that are in memory.
pub fn of_contents(contents: &[u8]) -> Sha256 {
    let mut digest = ContentsHasher::default();
    digest.update(contents);
    digest.finish()
}

/// Returns the digests of the pieces of a stretch that begins with a piece; from `zeros` on it is known to be zero.
pub fn pieces_of(stretch: &[u8], zeros: usize) -> Vec<Sha256> {
    let pieces: Vec<&[u8]> = stretch.chunks(PIECE_BYTES).collect();
    let (read, known) = pieces.split_at(zeros.div_ceil(PIECE_BYTES).min(pieces.len()));
    let mut digests = Sha256::of_each(read);
    // The last piece may be shorter, and then nobody knows the digest of its zeros.
    let of_zeros = |piece: &&[u8]| if piece.len() == PIECE_BYTES { ZEROS } else { Sha256::of(piece) };
    digests.extend(known.iter().map(of_zeros));
    digests
}

/// Returns the digest of contents of `len` bytes whose pieces have these digests.
pub fn of_pieces<'a>(pieces: impl IntoIterator<Item = &'a Sha256>, len: u64) -> Sha256 {
    let mut pieces = pieces.into_iter();
    if len <= PIECE_BYTES as u64 {
        return pieces.next().copied().unwrap_or_else(|| Sha256::of(&[]));
    }
    let mut digest = Sha256Hasher::default();
    pieces.for_each(|piece| digest.update(piece.bytes()));
    digest.update(&len.to_le_bytes());
    digest.finish()
}

/// The digest of contents in the making, which come one stretch after the other.
#[derive(Clone, Default)]
pub struct ContentsHasher {
    pieces: Vec<Sha256>,
    /// The piece that is not complete.
    open: Sha256Hasher,
    len: u64,
}

impl ContentsHasher {
    /// Adds the next bytes. It goes fastest by whole pieces.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let begun = (self.len % PIECE_BYTES as u64) as usize;
            let whole = if begun == 0 { bytes.len() / PIECE_BYTES * PIECE_BYTES } else { 0 };
            let taken = if whole > 0 { whole } else { bytes.len().min(PIECE_BYTES - begun) };
            let (now, after) = bytes.split_at(taken);
            if whole > 0 {
                self.pieces.extend(pieces_of(now, zero_tail(now)));
            } else {
                self.open.update(now);
                if begun + taken == PIECE_BYTES {
                    self.pieces.push(std::mem::take(&mut self.open).finish());
                }
            }
            self.len += taken as u64;
            bytes = after;
        }
    }

    /// Returns the digest of all that was added.
    pub fn finish(mut self) -> Sha256 {
        if !self.len.is_multiple_of(PIECE_BYTES as u64) {
            self.pieces.push(self.open.finish());
        }
        of_pieces(&self.pieces, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(len: usize) -> Vec<u8> {
        (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    /// As the definition says it, without anything that makes it fast.
    fn plainly(contents: &[u8]) -> Sha256 {
        if contents.len() <= PIECE_BYTES {
            return Sha256::of(contents);
        }
        let mut list: Vec<u8> = contents.chunks(PIECE_BYTES).flat_map(|piece| *Sha256::of(piece).bytes()).collect();
        list.extend((contents.len() as u64).to_le_bytes());
        Sha256::of(&list)
    }

    #[test]
    fn contents_have_one_digest_however_they_come() {
        const P: usize = PIECE_BYTES;
        for len in [0, 1, P - 1, P, P + 1, 2 * P, 3 * P + 5, 4 * P] {
            let contents = sample(len);
            let expected = plainly(&contents);
            assert_eq!(of_contents(&contents), expected, "{len} bytes");
            for step in [1000, P - 1, P, 2 * P, 5 * P / 2] {
                let mut digest = ContentsHasher::default();
                contents.chunks(step).for_each(|stretch| digest.update(stretch));
                assert_eq!(digest.finish(), expected, "{len} bytes by {step}");
            }
        }
    }

    #[test]
    fn zeros_that_are_known_count_like_zeros_that_are_read() {
        const P: usize = PIECE_BYTES;
        for (len, zeros) in [(4 * P, 0), (4 * P, 1), (4 * P, P), (4 * P, 2 * P + 1), (3 * P + 7, P), (4 * P, 4 * P)] {
            let mut contents = sample(len);
            contents[zeros..].fill(0);
            assert_eq!(of_pieces(&pieces_of(&contents, zeros), len as u64), plainly(&contents), "{zeros} of {len}");
        }
    }

    #[test]
    fn a_byte_more_or_less_is_another_digest() {
        let contents = vec![0; 3 * PIECE_BYTES + 1];
        let digests: std::collections::BTreeSet<Sha256> =
            [0, 1, 2].map(|less| of_contents(&contents[..contents.len() - less])).into();
        assert_eq!(digests.len(), 3);
    }
}
