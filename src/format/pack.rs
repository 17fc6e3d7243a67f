//! Packs: many frames of a backup in one object, and the table that finds and verifies each of them.
//!
//! The table is the trailer's section. A frame's SHA-256 is of its stored bytes, so it is verified before anything is
//! decompressed. Frames of large files also have, for every block of the file, a CRC-32C and a short hash of the raw
//! bytes: from these come the checksums in `backup_manifest`, and whether a block on disk differs from the backup's.

use super::FormatError;
use super::digest::Sha256;
use super::frame::{self, Compressor};
use super::object::{FRONT_BYTES, Kind, NewObject, TAIL_BYTES, Tail, read_u32, read_u64};

/// Most bytes that one frame may hold: what a reader allocates on a table's word. Nearly all hold
/// [`frame::FRAME_BYTES`].
pub const CONTENTS_LIMIT: u32 = 4 << 20;

/// Frames and block hashes after which a pack is full: a table of half a megabyte, whoever reads it.
const FRAMES_LIMIT: usize = 1024;
const BLOCKS_LIMIT: usize = 32 * 1024;

const TABLE: &str = "frame table";
const HEADER_BYTES: usize = 8;
/// Before the section, the header of the skippable frame that it stands in.
const SKIPPABLE_BYTES: usize = 8;
const FRAME_BYTES: usize = 44;
const BLOCK_BYTES: usize = 12;

/// What a block's raw bytes hash to. Together they tell a changed block from an unchanged one; neither protects against
/// an adversary, which the SHA-256 of the stored frame does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHash {
    /// CRC-32C.
    pub crc: u32,
    /// XXH3, 64 bits, no seed.
    pub xxh3: u64,
}

impl BlockHash {
    /// Hashes one block.
    pub fn of(block: &[u8]) -> Self {
        Self { crc: crc32c::crc32c(block), xxh3: xxhash_rust::xxh3::xxh3_64(block) }
    }
}

/// One frame, as the table describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameEntry {
    /// Where the frame starts in the object.
    pub at: u64,
    /// Bytes stored.
    pub stored_len: u32,
    /// Bytes of contents.
    pub raw_len: u32,
    /// SHA-256 of the stored bytes.
    pub digest: Sha256,
    /// Place of its first block hash among all of the pack's.
    first_block: u32,
    blocks: u32,
}

impl FrameEntry {
    /// Returns the frame's contents.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] if the stored bytes are not those the table describes.
    pub fn read(&self, stored: &[u8], raw: &mut Vec<u8>) -> Result<(), FormatError> {
        if stored.len() != self.stored_len as usize || Sha256::of(stored) != self.digest {
            return Err(FormatError::Damaged { part: "frame" });
        }
        frame::decompress_into(stored, self.raw_len as usize, raw)
    }
}

/// Gathers frames until the pack is large enough.
pub struct PackWriter {
    object: NewObject,
    frames: Vec<FrameEntry>,
    blocks: Vec<BlockHash>,
    block_size: u32,
    raw_len: u64,
}

/// A pack ready to be stored.
pub struct FinishedPack {
    /// The whole object.
    pub object: Vec<u8>,
    /// SHA-256 of the whole object.
    pub digest: Sha256,
    /// SHA-256 of the frame table.
    pub table_digest: Sha256,
    /// Frames in it.
    pub frames: u32,
}

impl PackWriter {
    /// Starts a pack; `block_size` is how many bytes a block hash covers.
    pub fn new(identity: &str, block_size: u32) -> Result<Self, FormatError> {
        Self::reusing(Vec::new(), identity, block_size)
    }

    /// As [`PackWriter::new`], in memory that an earlier pack was in.
    pub fn reusing(buffer: Vec<u8>, identity: &str, block_size: u32) -> Result<Self, FormatError> {
        let object = NewObject::reusing(buffer, Kind::Pack, identity)?;
        Ok(Self { object, frames: Vec::new(), blocks: Vec::new(), block_size, raw_len: 0 })
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.object.len()
    }

    /// Returns whether it holds no frame.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Returns whether the pack should be stored: it has `limit` bytes, or as many frames as keep its table small, however
    /// well they were compressed.
    pub fn is_full(&self, limit: usize) -> bool {
        self.len() >= limit || self.frames.len() >= FRAMES_LIMIT || self.blocks.len() >= BLOCKS_LIMIT
    }

    /// Place that the next frame gets.
    pub fn next_frame(&self) -> u32 {
        self.frames.len() as u32
    }

    /// Adds a frame and returns its place. `blocks` are the hashes of `raw`'s blocks, or none.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] above [`CONTENTS_LIMIT`]: no reader would take it.
    pub fn append(
        &mut self,
        raw: &[u8],
        blocks: &[BlockHash],
        compressor: &mut Compressor,
    ) -> Result<u32, FormatError> {
        if raw.len() > CONTENTS_LIMIT as usize {
            return Err(FormatError::TooLarge { bytes: raw.len() as u64, limit: CONTENTS_LIMIT.into() });
        }
        let at = self.object.len();
        let stored_len = compressor.append(raw, self.object.body());
        let digest = Sha256::of(&self.object.body()[at..]);
        let first_block = self.blocks.len() as u32;
        self.blocks.extend_from_slice(blocks);
        self.raw_len += raw.len() as u64;
        self.frames.push(FrameEntry {
            at: at as u64,
            stored_len: stored_len as u32,
            raw_len: raw.len() as u32,
            digest,
            first_block,
            blocks: blocks.len() as u32,
        });
        Ok(self.next_frame() - 1)
    }

    /// Closes the pack.
    pub fn finish(self) -> FinishedPack {
        let mut section = Vec::with_capacity(self.section_len());
        section.extend_from_slice(&(self.frames.len() as u32).to_le_bytes());
        section.extend_from_slice(&self.block_size.to_le_bytes());
        for entry in &self.frames {
            section.extend_from_slice(&entry.stored_len.to_le_bytes());
            section.extend_from_slice(&entry.raw_len.to_le_bytes());
            section.extend_from_slice(&entry.blocks.to_le_bytes());
            section.extend_from_slice(entry.digest.bytes());
        }
        for block in &self.blocks {
            section.extend_from_slice(&block.crc.to_le_bytes());
            section.extend_from_slice(&block.xxh3.to_le_bytes());
        }
        let frames = self.next_frame();
        let table_digest = Sha256::of(&section);
        let (object, digest) = self.object.finish(table_digest, self.raw_len, &section);
        FinishedPack { object, digest, table_digest, frames }
    }

    fn section_len(&self) -> usize {
        HEADER_BYTES + FRAME_BYTES * self.frames.len() + BLOCK_BYTES * self.blocks.len()
    }
}

/// The table of one pack's frames.
#[derive(Debug)]
pub struct FrameTable {
    frames: Vec<FrameEntry>,
    /// Block hashes as stored: most readers want none of them.
    hashes: Vec<u8>,
    /// Bytes that a block hash covers.
    pub block_size: u32,
    /// SHA-256 of the table as stored.
    pub digest: Sha256,
}

impl FrameTable {
    /// Reads the table from a pack's trailer: `last` ends the object, which is `object_len` bytes long.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] if `last` does not reach back to the trailer, [`FormatError::Damaged`] or
    /// [`FormatError::Nonsense`] if the table lies.
    pub fn decode(last: &[u8], object_len: u64) -> Result<Self, FormatError> {
        let tail = Tail::decode(last, object_len)?;
        if tail.kind != Kind::Pack {
            return Err(FormatError::NotOurs);
        }
        let section = tail.section(last, object_len)?;
        if Sha256::of(section) != tail.raw {
            return Err(FormatError::Damaged { part: TABLE });
        }
        Self::decode_section(section, tail.raw, tail.trailer_at)
    }

    /// Returns how many bytes at the end of a pack hold its table, if it has no more than so many frames and they are of pages
    /// of 8 KiB; of smaller pages it may be more.
    pub fn most_bytes(frames: u32) -> u64 {
        let blocks = frame::FRAME_BYTES / 8192;
        (SKIPPABLE_BYTES + HEADER_BYTES + TAIL_BYTES) as u64
            + u64::from(frames) * (FRAME_BYTES + blocks * BLOCK_BYTES) as u64
    }

    fn decode_section(section: &[u8], digest: Sha256, trailer_at: u64) -> Result<Self, FormatError> {
        let nonsense = |problem: String| FormatError::Nonsense { document: TABLE, problem };
        let header = section.get(..HEADER_BYTES).ok_or(FormatError::Truncated { part: TABLE })?;
        let count = read_u32(header, 0) as usize;
        let after = section.len() - HEADER_BYTES;
        let entries = count.checked_mul(FRAME_BYTES).filter(|bytes| *bytes <= after);
        let entries = entries.ok_or_else(|| nonsense(format!("{count} frames in {after} bytes")))?;
        let (entries, hashes) = section[HEADER_BYTES..].split_at(entries);
        let mut frames = Vec::with_capacity(count);
        let mut at = FRONT_BYTES as u64;
        let mut first_block = 0u64;
        for entry in entries.chunks_exact(FRAME_BYTES) {
            let (stored_len, raw_len, blocks) = (read_u32(entry, 0), read_u32(entry, 4), read_u32(entry, 8));
            if raw_len > CONTENTS_LIMIT {
                return Err(nonsense(format!("a frame of {raw_len} bytes")));
            }
            let of_frame = Sha256::from_bytes(entry[12..44].try_into().expect("32 bytes"));
            frames.push(FrameEntry {
                at,
                stored_len,
                raw_len,
                digest: of_frame,
                first_block: first_block as u32,
                blocks,
            });
            at += u64::from(stored_len);
            first_block += u64::from(blocks);
        }
        if at != trailer_at {
            return Err(nonsense(format!("frames end at {at} and the trailer starts at {trailer_at}")));
        }
        if first_block.checked_mul(BLOCK_BYTES as u64) != Some(hashes.len() as u64) {
            return Err(nonsense(format!("{first_block} block hashes in {} bytes", hashes.len())));
        }
        Ok(Self { frames, hashes: hashes.to_vec(), block_size: read_u32(header, 4), digest })
    }

    /// Returns a frame's entry.
    ///
    /// # Errors
    /// [`FormatError::Nonsense`] if the pack has no such frame.
    pub fn frame(&self, place: u32) -> Result<&FrameEntry, FormatError> {
        self.frames.get(place as usize).ok_or_else(|| FormatError::Nonsense {
            document: TABLE,
            problem: format!("frame {place} of {} is asked for", self.frames.len()),
        })
    }

    /// Returns the hashes of a frame's blocks, in order; none for a frame of small files.
    pub fn blocks(&self, frame: &FrameEntry) -> impl ExactSizeIterator<Item = BlockHash> {
        let first = frame.first_block as usize * BLOCK_BYTES;
        let hashes = self.hashes[first..first + frame.blocks as usize * BLOCK_BYTES].chunks_exact(BLOCK_BYTES);
        hashes.map(|block| BlockHash { crc: read_u32(block, 0), xxh3: read_u64(block, 4) })
    }

    /// Frames in the pack.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Returns whether the pack has no frame.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that the table takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        (self.frames.len() * size_of::<FrameEntry>() + self.hashes.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Vec<Vec<u8>>, FinishedPack) {
        let raws: Vec<Vec<u8>> = (1..=3u8).map(|n| vec![n; 8192 * usize::from(n)]).collect();
        let mut pack = PackWriter::new("7-1/packs/b/1", 8192).expect("a short identity");
        let mut compressor = Compressor::new(3);
        for raw in &raws {
            let hashes: Vec<BlockHash> = raw.chunks(8192).map(BlockHash::of).collect();
            pack.append(raw, &hashes, &mut compressor).expect("small frames");
        }
        (raws, pack.finish())
    }

    #[test]
    fn frames_come_back_by_their_table() {
        let (raws, pack) = sample();
        let table = FrameTable::decode(&pack.object, pack.object.len() as u64).expect("just made");
        let mut raw = Vec::new();
        for (place, expected) in raws.iter().enumerate() {
            let entry = table.frame(place as u32).expect("in the table");
            let at = entry.at as usize;
            entry.read(&pack.object[at..at + entry.stored_len as usize], &mut raw).expect("just made");
            assert_eq!(&raw, expected);
            assert_eq!(table.blocks(entry).len(), place + 1);
            assert_eq!(table.blocks(entry).next(), Some(BlockHash::of(&expected[..8192])));
        }
        assert!(table.frame(3).is_err());
    }

    #[test]
    fn a_frame_that_no_reader_would_take_is_not_written() {
        let mut pack = PackWriter::new("7-1/packs/b/1", 8192).expect("a short identity");
        let mut compressor = Compressor::new(1);
        let most = vec![7; CONTENTS_LIMIT as usize];
        pack.append(&most, &[], &mut compressor).expect("the most there may be");
        let more = vec![7; CONTENTS_LIMIT as usize + 1];
        assert!(matches!(pack.append(&more, &[], &mut compressor), Err(FormatError::TooLarge { .. })));
        let pack = pack.finish();
        let table = FrameTable::decode(&pack.object, pack.object.len() as u64).expect("just made");
        assert_eq!(table.frame(0).map(|frame| frame.raw_len), Ok(CONTENTS_LIMIT));
    }

    #[test]
    fn a_pack_is_a_zst_file() {
        let (raws, pack) = sample();
        assert_eq!(zstd::decode_all(&pack.object[..]).expect("plain zstd"), raws.concat());
    }

    #[test]
    fn every_flipped_bit_of_the_trailer_is_refused() {
        let (_, pack) = sample();
        let len = pack.object.len() as u64;
        let trailer_at = Tail::decode(&pack.object, len).expect("just made").trailer_at as usize;
        for bit in trailer_at * 8..pack.object.len() * 8 {
            let mut object = pack.object.clone();
            object[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameTable::decode(&object, len).is_err(), "bit {bit}");
        }
    }
}
