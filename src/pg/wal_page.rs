//! Headers of WAL pages: what every page says of itself, and what the first page of a segment says of the cluster.
//!
//! Records and how they cross pages are not read here.
//!
//! Source: `XLogPageHeaderData`, `XLogLongPageHeaderData` and `XLOG_PAGE_MAGIC` in
//! `src/include/access/xlog_internal.h` of each major; `XLogReaderValidatePageHeader` in
//! `src/backend/access/transam/xlogreader.c` for what a reader checks.

use std::fmt;

use super::{Lsn, NameError, SegmentName, SegmentSize, SystemId, TimelineId};

/// The number that opens every WAL page: it changes with the format of the log, at least once a major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WalMagic(u16);

impl WalMagic {
    const KNOWN: [(u16, u16); 7] =
        [(0xD106, 13), (0xD10D, 14), (0xD110, 15), (0xD113, 16), (0xD116, 17), (0xD118, 18), (0xD121, 19)];

    /// Makes a magic from the number on a page.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Returns the number on the page.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Returns the major version that writes this format; `None` if it is not one of 13 to 19.
    pub fn major(self) -> Option<u16> {
        Self::KNOWN.iter().find(|known| known.0 == self.0).map(|known| known.1)
    }
}

impl fmt::Display for WalMagic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04X}", self.0)
    }
}

/// Why bytes are not the page that is expected in their place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Fewer bytes than the header has.
    #[error("{found} bytes do not hold the header of a WAL page")]
    Short {
        /// Bytes there are.
        found: usize,
    },
    /// Zeros: nothing was written here yet.
    #[error("the WAL page is empty")]
    Empty,
    /// Not the format of the pages before.
    #[error("the WAL page has magic {found}, the log before it {expected}")]
    Magic {
        /// The magic on the page.
        found: WalMagic,
        /// The magic of the pages before.
        expected: WalMagic,
    },
    /// Flag bits that this format does not have, or a long header where none belongs, or none where one does.
    #[error("the WAL page of magic {magic} has the flags {found:04X}")]
    Flags {
        /// The magic on the page.
        magic: WalMagic,
        /// The flag bits on the page.
        found: u16,
    },
    /// Timeline 0, one later than the file's, or one earlier than on the page before.
    #[error("the WAL page has timeline {found}, possible are {least} to {most}")]
    Timeline {
        /// The timeline on the page.
        found: u32,
        /// The earliest possible one.
        least: u32,
        /// The latest possible one.
        most: u32,
    },
    /// The page belongs elsewhere in the log; files that PostgreSQL recycles hold such pages.
    #[error("the WAL page has address {found}, its place has {expected}")]
    Address {
        /// The address on the page.
        found: Lsn,
        /// The address of its place.
        expected: Lsn,
    },
    /// The address of a segment's first page is not a multiple of the segment size.
    #[error("the WAL page has address {found}, which no segment of {size} bytes begins with")]
    NotAStart {
        /// The address on the page.
        found: Lsn,
        /// Bytes in a segment.
        size: u64,
    },
    /// Written by another cluster.
    #[error("the WAL page comes from system {found}, expected is system {expected}")]
    SystemId {
        /// The cluster on the page.
        found: SystemId,
        /// The cluster it should be.
        expected: SystemId,
    },
    /// Not the cluster's segment size, or none at all.
    #[error("the WAL page has a segment size of {found} bytes{}", .expected.map(|size| format!(", expected are {size}")).unwrap_or_default())]
    SegmentSize {
        /// Bytes in a segment, as the page says.
        found: u32,
        /// The cluster's; `None` if `found` is no size of segments at all.
        expected: Option<u64>,
    },
    /// Not the block size of the segments before, or none at all.
    #[error("the WAL page has a block size of {found} bytes")]
    BlockSize {
        /// Bytes in a WAL page, as the page says.
        found: u32,
    },
    /// The file's name is none of this segment size.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// The 24 bytes at the start of every page, little-endian: magic u16, flags u16, timeline u32, address u64, length of
/// the record continued here u32, four bytes of padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// The format of the page.
    pub magic: WalMagic,
    /// The flag bits, as they stand.
    pub info: u16,
    /// The timeline on which the page was begun; 0 on no real page.
    pub timeline: u32,
    /// The position of the page's first byte.
    pub address: Lsn,
    /// Bytes still missing from the record that the page before left unfinished; 0 if there is none.
    pub remaining: u32,
}

impl PageHeader {
    /// Bytes in the header of all pages but the first of a segment.
    pub const SHORT: usize = 24;
    /// Bytes in the header of a segment's first page.
    pub const LONG: usize = 40;

    const CONTINUES: u16 = 0x1;
    const HAS_LONG_HEADER: u16 = 0x2;

    /// Reads a header; `None` if there are fewer than [`PageHeader::SHORT`] bytes.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SHORT] = bytes.first_chunk()?;
        Some(Self {
            magic: WalMagic(u16_at(bytes, 0)),
            info: u16_at(bytes, 2),
            timeline: u32_at(bytes, 4),
            address: Lsn::new(u64_at(bytes, 8)),
            remaining: u32_at(bytes, 16),
        })
    }

    /// Returns whether the page goes on with a record that began before it.
    pub const fn continues(&self) -> bool {
        self.info & Self::CONTINUES != 0
    }

    /// Returns whether the header is the long one.
    pub const fn is_long(&self) -> bool {
        self.info & Self::HAS_LONG_HEADER != 0
    }

    /// Returns whether the record left unfinished before this page is void: a crash lost its rest.
    pub fn overwrites(&self) -> bool {
        // 19 dropped the flag of removable images and moved this one into its bit.
        let bit = if self.magic.major() == Some(19) { 0x4 } else { 0x8 };
        self.info & bit != 0
    }

    /// Returns whether all flags are ones that the format has; true for a format that is not known.
    pub fn flags_are_known(&self) -> bool {
        match self.magic.major() {
            Some(19) => self.info & !0x7 == 0,
            Some(_) => self.info & !0xF == 0,
            None => true,
        }
    }

    /// Returns the header's length in bytes.
    pub const fn length(&self) -> usize {
        if self.is_long() { Self::LONG } else { Self::SHORT }
    }
}

/// What the first page of a segment says, from its 40 bytes: after those of every page come system identifier u64,
/// segment size u32 and block size u32.
///
/// Its magic may be one that is not known: [`WalMagic::major`] tells. Everything else is plausible then, so the file is
/// a WAL segment, of a newer major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstPage {
    /// The format of the segment.
    pub magic: WalMagic,
    /// The timeline on which the segment was begun: the file's, or one of its ancestors.
    pub timeline: TimelineId,
    /// The position of the segment's first byte.
    pub page_address: Lsn,
    /// The cluster that wrote the segment.
    pub system_id: SystemId,
    /// Bytes in the segment.
    pub segment_size: SegmentSize,
    /// Bytes in each of its pages: a power of two from 1 KiB to 64 KiB.
    pub block_size: u32,
}

impl FirstPage {
    /// Reads the first page of a segment from its first 40 bytes or more.
    ///
    /// # Errors
    /// [`PageError`] names the first field that no segment of any cluster has.
    pub fn parse(bytes: &[u8]) -> Result<Self, PageError> {
        let short = PageError::Short { found: bytes.len() };
        let (Some(header), Some(long)) = (PageHeader::read(bytes), bytes.first_chunk::<{ PageHeader::LONG }>()) else {
            return Err(short);
        };
        if header.magic.number() == 0 {
            return Err(PageError::Empty);
        }
        if !header.is_long() || !header.flags_are_known() {
            return Err(PageError::Flags { magic: header.magic, found: header.info });
        }
        let no_timeline = PageError::Timeline { found: header.timeline, least: 1, most: u32::MAX };
        let timeline = TimelineId::new(header.timeline).ok_or(no_timeline)?;
        let found = u32_at(long, 32);
        let size = SegmentSize::new(found).map_err(|_| PageError::SegmentSize { found, expected: None })?;
        if size.offset_of(header.address) != 0 {
            return Err(PageError::NotAStart { found: header.address, size: size.bytes() });
        }
        let block_size = u32_at(long, 36);
        if !block_size.is_power_of_two() || !(1 << 10..=1 << 16).contains(&block_size) {
            return Err(PageError::BlockSize { found: block_size });
        }
        Ok(Self {
            magic: header.magic,
            timeline,
            page_address: header.address,
            system_id: SystemId::new(u64_at(long, 24)),
            segment_size: size,
            block_size,
        })
    }

    /// Checks that the page opens the segment of this name, in a cluster of this segment size and identity.
    ///
    /// The timeline may be earlier than the name's: the first segment of a timeline begins as a copy of its parent's.
    ///
    /// # Errors
    /// [`PageError`] names the first field that differs.
    pub fn belongs_to(
        &self,
        name: SegmentName,
        size: SegmentSize,
        system_id: Option<SystemId>,
    ) -> Result<(), PageError> {
        if let Some(expected) = system_id.filter(|expected| *expected != self.system_id) {
            return Err(PageError::SystemId { found: self.system_id, expected });
        }
        if self.segment_size != size {
            return Err(PageError::SegmentSize { found: self.segment_size.into(), expected: Some(size.bytes()) });
        }
        let expected = name.number(size)?.start(size);
        if self.page_address != expected {
            return Err(PageError::Address { found: self.page_address, expected });
        }
        let most = name.timeline().number();
        if self.timeline.number() > most {
            return Err(PageError::Timeline { found: self.timeline.number(), least: 1, most });
        }
        Ok(())
    }
}

/// Reads a little-endian number; 0 where the bytes end before it does, so check lengths first.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |field| u16::from_le_bytes(*field))
}

/// Reads a little-endian number; 0 where the bytes end before it does, so check lengths first.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |field| u32::from_le_bytes(*field))
}

/// Reads a little-endian number; 0 where the bytes end before it does, so check lengths first.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |field| u64::from_le_bytes(*field))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    /// The first 40 bytes of segment 3 of a cluster of 16 MiB segments.
    fn page(magic: u16, info: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(magic.to_le_bytes());
        bytes.extend(info.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(0x300_0000u64.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(7_600_000_000_000_000_001u64.to_le_bytes());
        bytes.extend((16u32 << 20).to_le_bytes());
        bytes.extend(8192u32.to_le_bytes());
        bytes
    }

    fn with(at: usize, field: &[u8]) -> Vec<u8> {
        let mut bytes = page(0xD110, 2);
        bytes[at..at + field.len()].copy_from_slice(field);
        bytes
    }

    #[test]
    fn a_first_page_tells_the_cluster_and_the_place() {
        let first = FirstPage::parse(&page(0xD110, 6)).unwrap();
        assert_eq!(first.magic.major(), Some(15));
        assert_eq!(first.page_address, Lsn::new(0x300_0000));
        assert_eq!(first.system_id, SystemId::new(7_600_000_000_000_000_001));
        assert_eq!(first.block_size, 8192);
        let name: SegmentName = "000000020000000000000003".parse().unwrap();
        assert_eq!(first.belongs_to(name, SegmentSize::DEFAULT, Some(first.system_id)), Ok(()));
    }

    #[test]
    fn a_page_of_another_place_cluster_size_or_later_timeline_does_not_belong() {
        let first = FirstPage::parse(&with(4, &[2])).unwrap();
        let belongs = |name: &str, mib: u32, system_id| {
            first.belongs_to(name.parse().unwrap(), SegmentSize::new(mib << 20).unwrap(), system_id).unwrap_err()
        };
        assert!(matches!(belongs("000000020000000000000004", 16, None), PageError::Address { .. }));
        assert!(matches!(belongs("000000010000000000000003", 16, None), PageError::Timeline { most: 1, .. }));
        assert!(matches!(belongs("000000020000000000000030", 1, None), PageError::SegmentSize { .. }));
        let other = Some(SystemId::new(1));
        assert!(matches!(belongs("000000020000000000000003", 16, other), PageError::SystemId { .. }));
    }

    #[test]
    fn the_wrong_field_is_named() {
        type Wrong = fn(&PageError) -> bool;
        let table: [(Vec<u8>, Wrong); 9] = [
            (page(0xD110, 2)[..39].to_vec(), |e| matches!(e, PageError::Short { found: 39 })),
            (vec![0; 40], |e| matches!(e, PageError::Empty)),
            (page(0xD110, 0), |e| matches!(e, PageError::Flags { found: 0, .. })),
            (page(0xD110, 0x12), |e| matches!(e, PageError::Flags { found: 0x12, .. })),
            (with(4, &[0]), |e| matches!(e, PageError::Timeline { found: 0, .. })),
            (with(8, &[1]), |e| matches!(e, PageError::NotAStart { .. })),
            (with(32, &[1]), |e| matches!(e, PageError::SegmentSize { expected: None, .. })),
            (with(36, &[1]), |e| matches!(e, PageError::BlockSize { .. })),
            (with(36, &[0, 0, 2]), |e| matches!(e, PageError::BlockSize { .. })),
        ];
        for (bytes, wrong) in table {
            let error = FirstPage::parse(&bytes).unwrap_err();
            assert!(wrong(&error), "{error}");
        }
    }

    #[test]
    fn a_newer_format_is_told_from_garbage() {
        let newer = FirstPage::parse(&page(0xD1FF, 0x22)).unwrap();
        assert_eq!(newer.magic.major(), None);
        let mut garbage = page(0xD1FF, 2);
        garbage[32] = 7;
        assert!(FirstPage::parse(&garbage).is_err());
    }

    #[test]
    fn nineteen_moved_the_flag_of_a_void_record() {
        let flags = |magic, info| PageHeader::read(&page(magic, info)).unwrap();
        assert!(flags(0xD118, 0x8).overwrites() && !flags(0xD118, 0x4).overwrites());
        assert!(flags(0xD121, 0x4).overwrites() && !flags(0xD121, 0x8).flags_are_known());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = FirstPage::parse(&bytes);
        }
    }
}
