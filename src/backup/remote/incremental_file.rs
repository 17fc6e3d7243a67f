//! The heading of an `INCREMENTAL.<file>`: which blocks of a relation's file follow, and how long the file is.
//!
//! Magic, number of blocks, truncation length in blocks, and the number of each block that follows, in four bytes each, the
//! low one first; filled up with zeros to a whole block, if any block follows. Whatever else comes is refused: the blocks
//! that a heading names are put over those of an older backup.
//!
//! Source: `sendFile` in `basebackup.c`, `GetIncrementalFileSize` in `basebackup_incremental.c`, `INCREMENTAL_MAGIC` in
//! `src/include/backup/basebackup_incremental.h`; `make_incremental_rfile` in `src/bin/pg_combinebackup/reconstruct.c`.

use crate::format::varint;

const MAGIC: u32 = 0xD3AE_1F0D;
const WORD: usize = 4;
/// Bytes before the numbers of blocks.
const FIXED: usize = 3 * WORD;
/// What its name begins with.
pub(super) const PREFIX: &[u8] = b"INCREMENTAL.";

/// What a heading says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Heading {
    /// Blocks of the file of which those that do not follow are what they were; longer if a block behind them follows.
    pub truncation: u32,
    /// Blocks that follow, rising.
    pub blocks: Vec<u32>,
    /// CRC-32C of the heading as it was sent, with what it is filled up with.
    pub crc: u32,
    /// Its bytes.
    pub len: u64,
}

/// Why it is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadingError {
    /// Something else, or from a machine with another order of bytes.
    #[error("it begins with {found:#010x} where {MAGIC:#010x} belongs")]
    Magic {
        /// The first four bytes.
        found: u32,
    },
    /// More blocks than a file has.
    #[error("it tells of {found} blocks; a file of this server has at most {most}")]
    Blocks {
        /// What it says.
        found: u32,
        /// A file's.
        most: u32,
    },
    /// Not as long as its blocks.
    #[error("it has {found} bytes, with {blocks} blocks it would have {expected}")]
    Size {
        /// Bytes that come.
        found: u64,
        /// Blocks that it says follow.
        blocks: u32,
        /// Bytes that those take.
        expected: u64,
    },
    /// Blocks that do not rise.
    #[error("block {next} follows block {before}")]
    Order {
        /// A block.
        before: u32,
        /// The one after it.
        next: u32,
    },
    /// Not all of it came.
    #[error("it is cut")]
    Cut,
}

/// Reads a heading as it comes.
#[derive(Debug)]
pub(super) struct HeadingReader {
    /// Bytes of the whole file as it is sent.
    size: u64,
    block_size: u32,
    /// Most blocks in a file of the server's.
    most: u32,
    bytes: Vec<u8>,
    /// Bytes of the heading, once that is known.
    len: Option<u64>,
}

impl HeadingReader {
    /// Begins one; `size` is that of the whole file as it is sent.
    pub fn new(size: u64, block_size: u32, most: u32) -> Self {
        Self { size, block_size, most, bytes: Vec::new(), len: None }
    }

    /// Takes what belongs to the heading, and returns it once it is complete.
    pub fn take(&mut self, input: &mut &[u8]) -> Result<Option<Heading>, HeadingError> {
        let len = match self.len {
            Some(len) => len,
            None => {
                self.fill(input, FIXED);
                if self.bytes.len() < FIXED {
                    return Ok(None);
                }
                *self.len.insert(self.judge()?)
            }
        };
        self.fill(input, len as usize);
        if (self.bytes.len() as u64) < len {
            return Ok(None);
        }
        let numbers = &self.bytes[FIXED..FIXED + self.word(1) as usize * WORD];
        let blocks: Vec<u32> = numbers.as_chunks::<WORD>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        if let Some(pair) = blocks.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(HeadingError::Order { before: pair[0], next: pair[1] });
        }
        match blocks.last() {
            Some(last) if *last >= self.most => {
                Err(HeadingError::Blocks { found: last.saturating_add(1), most: self.most })
            }
            // Some servers count on into the relation's next files.
            _ => Ok(Some(Heading {
                truncation: self.word(2).min(self.most),
                blocks,
                crc: crc32c::crc32c(&self.bytes),
                len,
            })),
        }
    }

    fn fill(&mut self, input: &mut &[u8], wanted: usize) {
        let (some, rest) = input.split_at((wanted - self.bytes.len().min(wanted)).min(input.len()));
        self.bytes.extend_from_slice(some);
        *input = rest;
    }

    fn word(&self, number: usize) -> u32 {
        let bytes = &self.bytes[number * WORD..][..WORD];
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }

    /// Looks at what stands before the numbers, and returns how long the heading is.
    fn judge(&self) -> Result<u64, HeadingError> {
        let (magic, blocks) = (self.word(0), self.word(1));
        if magic != MAGIC {
            return Err(HeadingError::Magic { found: magic });
        }
        if blocks > self.most {
            return Err(HeadingError::Blocks { found: blocks, most: self.most });
        }
        let (count, block_size) = (u64::from(blocks), u64::from(self.block_size));
        let words = FIXED as u64 + count * WORD as u64;
        let len = if blocks == 0 { words } else { words.next_multiple_of(block_size) };
        let expected = len + count * block_size;
        match expected == self.size {
            true => Ok(len),
            false => Err(HeadingError::Size { found: self.size, blocks, expected }),
        }
    }
}

/// Numbers of blocks that rise, in as little memory as a bit for each block of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BlockSet {
    /// The distance of each from the one before, as variable-length numbers.
    Few(Box<[u8]>),
    /// A bit for each.
    Many(Box<[u64]>),
}

impl BlockSet {
    pub fn of(blocks: &[u32]) -> Self {
        let mut few = Vec::new();
        let mut next = 0;
        for block in blocks {
            varint::put(u64::from(block - next), &mut few);
            next = block + 1;
        }
        if few.len() <= next as usize / 8 {
            return Self::Few(few.into());
        }
        let mut many = vec![0u64; next.div_ceil(64) as usize];
        blocks.iter().for_each(|block| many[*block as usize / 64] |= 1 << (block % 64));
        if many.len() * 8 < few.len() { Self::Many(many.into()) } else { Self::Few(few.into()) }
    }

    /// Returns the numbers, rising.
    pub fn iter(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        match self {
            Self::Few(bytes) => {
                let mut reader = varint::Reader::new(bytes, "blocks");
                let mut next = 0;
                Box::new(std::iter::from_fn(move || {
                    let block = next + reader.number().ok()? as u32;
                    next = block + 1;
                    Some(block)
                }))
            }
            Self::Many(words) => {
                Box::new((0u32..).zip(words).flat_map(|(at, word)| {
                    (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 64 + bit)
                }))
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Few(bytes) if bytes.is_empty())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u32 = 8192;
    const MOST: u32 = 131_072;

    /// A heading as a server writes it.
    pub fn heading(truncation: u32, blocks: &[u32]) -> Vec<u8> {
        let words = [MAGIC, blocks.len() as u32, truncation].into_iter().chain(blocks.iter().copied());
        let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        if !blocks.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        }
        bytes
    }

    fn sent(heading: &[u8], blocks: usize) -> u64 {
        heading.len() as u64 + blocks as u64 * u64::from(BLOCK)
    }

    fn read(bytes: &[u8], size: u64, step: usize) -> Result<Option<Heading>, HeadingError> {
        let mut reader = HeadingReader::new(size, BLOCK, MOST);
        for mut some in bytes.chunks(step.max(1)) {
            let found = reader.take(&mut some)?;
            if found.is_some() {
                assert!(some.is_empty() || some.len() < step);
                return Ok(found);
            }
            assert!(some.is_empty());
        }
        Ok(None)
    }

    #[test]
    fn a_heading_is_read_however_it_is_cut() {
        let many: Vec<u32> = (0..5000).map(|n| n * 3).collect();
        for (truncation, blocks) in [(7, vec![]), (9, vec![0, 3, 8]), (131_072, many), (0, vec![131_071])] {
            let bytes = heading(truncation, &blocks);
            for step in [1, 5, 12, 13, 8192, 100_000] {
                let found = read(&bytes, sent(&bytes, blocks.len()), step).expect("a heading").expect("all of it");
                assert_eq!((found.truncation, &found.blocks), (truncation, &blocks));
                assert_eq!((found.len, found.crc), (bytes.len() as u64, crc32c::crc32c(&bytes)));
            }
            for length in [0, 11, 12, bytes.len() - 1] {
                if length < bytes.len() {
                    assert_eq!(read(&bytes[..length], sent(&bytes, blocks.len()), 4096), Ok(None), "cut at {length}");
                }
            }
        }
    }

    #[test]
    fn a_file_ends_where_files_end_whatever_its_relation_has() {
        for truncation in [MOST + 1, 190_000, u32::MAX] {
            let bytes = heading(truncation, &[4]);
            let found = read(&bytes, sent(&bytes, 1), 100).expect("a heading").expect("all of it");
            assert_eq!((found.truncation, found.crc), (MOST, crc32c::crc32c(&bytes)));
        }
    }

    #[test]
    fn what_follows_the_heading_is_left_alone() {
        let bytes = [heading(9, &[2]), vec![7; 8192]].concat();
        let mut input = bytes.as_slice();
        let mut reader = HeadingReader::new(bytes.len() as u64, BLOCK, MOST);
        assert!(reader.take(&mut input).expect("a heading").is_some());
        assert_eq!(input, [7; 8192]);
    }

    #[test]
    fn what_no_server_writes_is_refused() {
        let refused = |bytes: &[u8], blocks: usize| read(bytes, sent(bytes, blocks), 8192).expect_err("nonsense");
        for (truncation, blocks) in [(9, vec![3, 3]), (9, vec![4, 3]), (9, vec![1, 2, 0])] {
            let bytes = heading(truncation, &blocks);
            assert!(matches!(refused(&bytes, blocks.len()), HeadingError::Order { .. }), "{blocks:?}");
        }
        for (truncation, blocks) in [(9, vec![MOST]), (9, vec![u32::MAX]), (9, vec![1, MOST])] {
            let bytes = heading(truncation, &blocks);
            assert!(matches!(refused(&bytes, blocks.len()), HeadingError::Blocks { .. }), "{truncation} {blocks:?}");
        }
        let mut many = heading(9, &[1]);
        many[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(refused(&many, 1), HeadingError::Blocks { .. }));
        let bytes = heading(9, &[1, 2]);
        for size in [0, 12, bytes.len() as u64, sent(&bytes, 1), sent(&bytes, 2) + 1, sent(&bytes, 3), u64::MAX] {
            let refused = read(&bytes, size, 8192).expect_err("another size");
            assert!(matches!(refused, HeadingError::Size { .. }), "{size}");
        }
        // An unchanged file has a heading of twelve bytes and nothing else.
        assert!(matches!(read(&heading(9, &[]), 8192, 64), Err(HeadingError::Size { .. })));
        assert!(matches!(read(&[7; 100], 100, 64), Err(HeadingError::Magic { .. })));
        let swapped: Vec<u8> =
            heading(9, &[]).as_chunks::<4>().0.iter().flat_map(|word| word.iter().rev().copied()).collect();
        assert!(matches!(read(&swapped, 12, 64), Err(HeadingError::Magic { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(bytes: Vec<u8>, size: u64, step in 1usize..200) {
            let _ = read(&bytes, size, step);
        }

        #[test]
        fn blocks_come_back(blocks in prop::collection::btree_set(0u32..3000, 0..3000)) {
            let blocks: Vec<u32> = blocks.into_iter().collect();
            let set = BlockSet::of(&blocks);
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), blocks.clone());
            prop_assert_eq!(set.is_empty(), blocks.is_empty());
        }
    }

    #[test]
    fn blocks_take_little_memory() {
        let every = |step: usize| -> Vec<u32> { (0..MOST).step_by(step).collect() };
        for (blocks, most) in [(every(1), 16_384), (every(3), 16_384), (every(1000), 300), (vec![], 0)] {
            let bytes = match BlockSet::of(&blocks) {
                BlockSet::Few(bytes) => bytes.len(),
                BlockSet::Many(words) => words.len() * 8,
            };
            assert!(bytes <= most, "{} blocks in {bytes} bytes", blocks.len());
        }
    }
}
