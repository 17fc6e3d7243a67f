//! Data pages: header, checksum, and whether the server would accept one.
//!
//! Pure functions over one page in memory; `DataDirectory` tells which files are made of pages. Numbers are
//! little-endian.
//!
//! Source: `PageHeaderData` in `src/include/storage/bufpage.h`, `PageIsVerified` (14 to 17 `PageIsVerifiedExtended`) in
//! `src/backend/storage/page/bufpage.c`, `pg_checksum_page` in `src/include/storage/checksum_impl.h`.

use super::lsn::Lsn;

/// Bytes in a data page of a cluster: a power of two from 1 to 32 KiB, 8 KiB unless PostgreSQL was built otherwise.
///
/// Source: `BLCKSZ` in `src/include/pg_config_manual.h` and `configure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSize(u32);

impl BlockSize {
    /// The size packaged servers use.
    pub const DEFAULT: BlockSize = BlockSize(8192);

    /// Makes a size from bytes; `None` if PostgreSQL cannot be built with it.
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 1 << 10 && bytes <= 1 << 15 { Some(Self(bytes)) } else { None }
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u32 {
        self.0
    }
}

/// The start of every data page.
///
/// Layout: `pd_lsn` as two u32, high half first, at 0; `pd_checksum` 8; `pd_flags` 10; `pd_lower` 12; `pd_upper` 14;
/// `pd_special` 16; `pd_pagesize_version` 18; each u16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// End of the last WAL record that changed the page; not kept up by hint bits, free space and visibility maps.
    pub lsn: Lsn,
    /// The stored checksum; 0 where checksums are off.
    pub checksum: u16,
    /// `PD_*` bits.
    pub flags: u16,
    /// Start of free space, an offset in the page.
    pub lower: u16,
    /// End of free space; 0 only on a page never initialised.
    pub upper: u16,
    /// Start of the access method's own part.
    pub special: u16,
    /// Page size, and layout version in the lowest 8 bits.
    pub pagesize_version: u16,
}

/// What the server would say of a page it reads with checksums on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageVerdict {
    /// All zeros: allocated, never written. Zeros in the header alone make a page [`Malformed`](Self::Malformed).
    New,
    /// The checksum matches and the header makes sense.
    Good,
    /// The page is not what was written, or was written as another block.
    Bad {
        /// Checksum in the page.
        stored: u16,
        /// Checksum of its bytes and block number.
        computed: u16,
    },
    /// The header makes no sense, so the server refuses the page whatever its checksum; or the length is no block's.
    Malformed,
}

/// Bytes of [`PageHeader`] that are read.
const HEADER_BYTES: usize = 20;
const CHECKSUM_AT: usize = 8;
/// `PD_VALID_FLAG_BITS`.
const KNOWN_FLAGS: u16 = 0x0007;

impl PageHeader {
    /// Reads the header; `None` if the page is shorter than one.
    pub fn read(page: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = page.first_chunk()?;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u64::from(u16_at(at + 2)) << 16 | u64::from(u16_at(at));
        Some(Self {
            lsn: Lsn::new(u32_at(0) << 32 | u32_at(4)),
            checksum: u16_at(CHECKSUM_AT),
            flags: u16_at(10),
            lower: u16_at(12),
            upper: u16_at(14),
            special: u16_at(16),
            pagesize_version: u16_at(18),
        })
    }

    /// Returns whether the server would accept the header on a page of `page_bytes`; the only check without checksums.
    ///
    /// A new page's header is not sane: it is all zeros, and accepted for that.
    pub fn is_sane(&self, page_bytes: usize) -> bool {
        self.upper != 0
            && self.flags & !KNOWN_FLAGS == 0
            && self.lower <= self.upper
            && self.upper <= self.special
            && usize::from(self.special) <= page_bytes
            && self.special.is_multiple_of(8)
    }
}

/// Returns the server's verdict on one whole page that stands at `block` of its relation.
///
/// `block` counts through all files of the relation. A page read while the server wrote it may be `Bad` or `Malformed`
/// for that alone; the caller reads again, and compares its LSN with the start of the backup.
pub fn verify(page: &[u8], block: u32) -> PageVerdict {
    let block_size = u32::try_from(page.len()).ok().and_then(BlockSize::new);
    let (Some(_), Some(header)) = (block_size, PageHeader::read(page)) else { return PageVerdict::Malformed };
    if header.upper == 0 {
        return if all_zero(page) { PageVerdict::New } else { PageVerdict::Malformed };
    }
    let computed = checksum(page, block);
    if header.checksum != computed {
        PageVerdict::Bad { stored: header.checksum, computed }
    } else if header.is_sane(page.len()) {
        PageVerdict::Good
    } else {
        PageVerdict::Malformed
    }
}

/// Returns the checksum PostgreSQL stores in a page at `block`, never 0; the stored one is taken for zero.
///
/// The page is one whole block, of any [`BlockSize`]; bytes past a multiple of 128 would not count.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, as just asked; the function needs nothing else.
        return unsafe { checksum_avx2(page, block) };
    }
    fold(page, block)
}

/// The same loop compiled for AVX2: baseline x86-64 has no 32-bit vector multiplication.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn checksum_avx2(page: &[u8], block: u32) -> u16 {
    fold(page, block)
}

const LANES: usize = 32;
const ROW_BYTES: usize = LANES * 4;
const PRIME: u32 = 16_777_619;
const SEEDS: [u32; LANES] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C, //
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB, //
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4, //
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// Always inlined, so that each caller compiles it with its own instructions.
#[inline(always)]
fn fold(page: &[u8], block: u32) -> u16 {
    let mut sums = SEEDS;
    if let Some((first, rows)) = page.as_chunks().0.split_first() {
        add_row(&mut sums, &without_checksum(first));
        rows.iter().for_each(|row| add_row(&mut sums, row));
    }
    for _ in 0..2 {
        add_row(&mut sums, &[0; ROW_BYTES]);
    }
    let folded = sums.iter().fold(block, |folded, sum| folded ^ sum);
    (folded % 65_535 + 1) as u16
}

#[inline(always)]
fn add_row(sums: &mut [u32; LANES], row: &[u8; ROW_BYTES]) {
    for (sum, word) in sums.iter_mut().zip(row.as_chunks().0) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

#[inline(always)]
fn without_checksum(row: &[u8; ROW_BYTES]) -> [u8; ROW_BYTES] {
    let mut row = *row;
    row[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
    row
}

/// Bytes that [`all_zero`] and [`zero_tail`] look at together, in vector registers.
const STRIDE: usize = 256;

/// Returns whether every byte is zero; true for none.
pub fn all_zero(bytes: &[u8]) -> bool {
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    strides.iter().all(is_zero) && rest.iter().all(|byte| *byte == 0)
}

/// Returns the length of the part before the zeros that `bytes` ends with: `bytes[zero_tail(bytes)..]` is all zero, and
/// the byte before is not.
pub fn zero_tail(bytes: &[u8]) -> usize {
    let (rest, strides) = bytes.as_rchunks::<STRIDE>();
    let zero_strides = strides.iter().rev().take_while(|stride| is_zero(stride)).count();
    let end = rest.len() + (strides.len() - zero_strides) * STRIDE;
    bytes[..end].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

#[inline(always)]
fn is_zero(stride: &[u8; STRIDE]) -> bool {
    stride.iter().fold(0, |union, byte| union | byte) == 0
}

#[cfg(test)]
mod tests;
