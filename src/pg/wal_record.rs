//! One WAL record: its header, its checksum, and its body taken apart.
//!
//! What the main data of a record means is read in `wal_event`; how records lie in pages, in `wal_walk`.
//!
//! Source: `XLogRecord` and what follows it in `src/include/access/xlogrecord.h`; `DecodeXLogRecord` and
//! `ValidXLogRecord` in `src/backend/access/transam/xlogreader.c`.

use serde::{Deserialize, Serialize};

use super::wal_page::{u32_at, u64_at};
use super::{Lsn, WalMagic};

/// A complete record whose checksum holds.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The position of the record's first byte; what `recovery_target_lsn` is compared with.
    pub start: Lsn,
    /// The position after the record and its padding; for a segment switch, the start of the next segment.
    pub end: Lsn,
    /// The format of the log it stands in.
    pub magic: WalMagic,
    /// The transaction that wrote it; 0 if none did.
    pub xid: u32,
    /// The number of the resource manager that replays it.
    pub resource_manager: u8,
    /// Its kind, in the resource manager's own numbering, in the high four bits; flags in the low four.
    pub info: u8,
    /// The whole record, header included, without page headers and padding.
    pub data: &'a [u8],
}

impl<'a> Record<'a> {
    /// Takes the body apart.
    ///
    /// # Errors
    /// [`BodyError`] if the parts do not add up to the record: with a checksum that holds, a format not known here.
    pub fn body(&self) -> Result<RecordBody<'a>, BodyError> {
        RecordBody::decode(self.data, self.magic)
    }

    /// Returns the record's kind: `info` without the flags in its low four bits.
    pub const fn kind(&self) -> u8 {
        self.info & 0xF0
    }

    /// Returns whether the rest of the segment after this record is padding.
    pub const fn is_switch(&self) -> bool {
        is_switch(self.resource_manager, self.info)
    }
}

/// Resource manager 0, kind `XLOG_SWITCH`.
pub(super) const fn is_switch(resource_manager: u8, info: u8) -> bool {
    resource_manager == 0 && info & 0xF0 == 0x40
}

/// The 24 bytes at the start of a record, little-endian: total length u32, transaction u32, start of the record before
/// u64, info u8, resource manager u8, two bytes of padding, checksum u32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Bytes in the record, header included.
    pub total_len: u32,
    /// The transaction that wrote it; 0 if none did.
    pub xid: u32,
    /// The start of the record before.
    pub previous: Lsn,
    /// Kind and flags.
    pub info: u8,
    /// The number of the resource manager.
    pub resource_manager: u8,
    /// CRC-32C of the bytes after the header, then of the header up to this field.
    pub checksum: u32,
}

impl RecordHeader {
    /// Bytes in a header.
    pub const LEN: usize = 24;

    /// Reads a header; `None` if there are fewer than [`RecordHeader::LEN`] bytes.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.first_chunk()?;
        Some(Self {
            total_len: u32_at(bytes, 0),
            xid: u32_at(bytes, 4),
            previous: Lsn::new(u64_at(bytes, 8)),
            info: bytes[16],
            resource_manager: bytes[17],
            checksum: u32_at(bytes, 20),
        })
    }
}

/// Returns the checksum that a complete record should carry; `None` if it is shorter than its header.
pub fn record_checksum(record: &[u8]) -> Option<u32> {
    let (header, body) = record.split_at_checked(RecordHeader::LEN)?;
    Some(crc32c::crc32c_append(crc32c::crc32c(body), &header[..20]))
}

/// A relation file, by the three numbers in its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelationLocator {
    /// The tablespace's OID.
    pub tablespace: u32,
    /// The database's OID; 0 for a shared relation.
    pub database: u32,
    /// The number that names the relation's files.
    pub relation: u32,
}

/// Which of a relation's files a block lies in.
///
/// Source: `ForkNumber` in `src/include/common/relpath.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RelationFork {
    /// The rows or index entries.
    Main,
    /// `_fsm`: the free space map.
    FreeSpaceMap,
    /// `_vm`: the visibility map.
    VisibilityMap,
    /// `_init`: the empty form of an unlogged relation.
    Init,
}

/// A block that a record changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockReference {
    /// The relation.
    pub relation: RelationLocator,
    /// Which of its files.
    pub fork: RelationFork,
    /// The block's number in that file, counted from the start of its first segment.
    pub block: u32,
    /// Whether the record holds an image of the whole block.
    pub has_image: bool,
}

/// A record's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordBody<'a> {
    /// The blocks it changes, at most 33.
    pub blocks: Vec<BlockReference>,
    /// The resource manager's own data; empty if there is none.
    pub main: &'a [u8],
    /// The replication origin it was replayed from.
    pub origin: Option<u16>,
    /// The top-level transaction, where a subtransaction names it.
    pub toplevel_xid: Option<u32>,
}

/// Why the body of a record could not be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The record ends inside one of its parts.
    #[error("the record ends inside the header of a part")]
    Cut,
    /// A part of unknown kind.
    #[error("the record has a part of kind {0}")]
    UnknownPart(u8),
    /// Block numbers that do not rise.
    #[error("block reference {0} of the record is out of order")]
    OutOfOrder(u8),
    /// A fork number that no relation has.
    #[error("the record refers to fork {0}")]
    UnknownFork(u8),
    /// A block in the relation of the block before, where there is none before.
    #[error("block reference {0} of the record names no relation")]
    NoRelation(u8),
    /// The lengths in the headers do not fill the record.
    #[error("the parts of the record hold {stated} bytes, there are {found}")]
    Length {
        /// Bytes according to the headers of the parts.
        stated: u64,
        /// Bytes after those headers.
        found: u64,
    },
    /// A format whose image headers are not known.
    #[error("records of WAL magic {0} are not known")]
    UnknownFormat(WalMagic),
}

impl<'a> RecordBody<'a> {
    /// Takes apart a complete record, header included, of a log of this format.
    ///
    /// # Errors
    /// [`BodyError`] if its parts do not add up.
    pub fn decode(record: &'a [u8], magic: WalMagic) -> Result<Self, BodyError> {
        Self::begun(record, record.len(), magic)
    }

    /// As [`RecordBody::decode`], of a record of `total_len` bytes of which only the first are at hand; `main` has as many
    /// of its own as there are.
    ///
    /// # Errors
    /// [`BodyError::Cut`] also if the headers of the parts are not all at hand.
    pub fn begun(beginning: &'a [u8], total_len: usize, magic: WalMagic) -> Result<Self, BodyError> {
        let mut blocks = Vec::new();
        let Heads { origin, toplevel_xid, main } =
            visit_blocks(beginning, total_len, magic, |block| blocks.push(block))?;
        Ok(Self { blocks, main, origin, toplevel_xid })
    }
}

/// What a record holds besides its blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads<'a> {
    pub origin: Option<u16>,
    pub toplevel_xid: Option<u32>,
    /// The resource manager's own data, as far as it is at hand.
    pub main: &'a [u8],
}

/// Hands over every block that a record refers to, of which the beginning is at hand; keeps nothing.
///
/// # Errors
/// As [`RecordBody::begun`]; by then some blocks may have been handed over.
pub(super) fn visit_blocks(
    beginning: &[u8],
    total_len: usize,
    magic: WalMagic,
    mut visit: impl FnMut(BlockReference),
) -> Result<Heads<'_>, BodyError> {
    let major = magic.major().ok_or(BodyError::UnknownFormat(magic))?;
    let missing = total_len.checked_sub(beginning.len()).ok_or(BodyError::Cut)? as u64;
    let mut headers = Parts { rest: beginning.get(RecordHeader::LEN..).ok_or(BodyError::Cut)?, major };
    let (mut origin, mut toplevel_xid, mut same) = (None, None, None);
    // The headers of all parts come first; their contents fill the record's end in the same order, main data last.
    let mut contents: u64 = 0;
    let mut main_len: u64 = 0;
    let mut next_id = 0;
    while headers.rest.len() as u64 + missing > contents {
        match headers.byte()? {
            SHORT_DATA => {
                main_len = headers.byte()?.into();
                contents += main_len;
                break;
            }
            LONG_DATA => {
                main_len = headers.u32()?.into();
                contents += main_len;
                break;
            }
            ORIGIN => origin = Some(headers.u16()?),
            TOPLEVEL_XID => toplevel_xid = Some(headers.u32()?),
            id if id > HIGHEST_BLOCK_ID => return Err(BodyError::UnknownPart(id)),
            id if id < next_id => return Err(BodyError::OutOfOrder(id)),
            id => {
                next_id = id + 1;
                let (block, len) = headers.block(id, same)?;
                same = Some(block.relation);
                visit(block);
                contents += len;
            }
        }
    }
    let found = headers.rest.len() as u64 + missing;
    if found != contents {
        return Err(BodyError::Length { stated: contents, found });
    }
    let main = usize::try_from(contents - main_len).ok().and_then(|at| headers.rest.get(at..)).unwrap_or_default();
    Ok(Heads { origin, toplevel_xid, main })
}

const HIGHEST_BLOCK_ID: u8 = 32;
const TOPLEVEL_XID: u8 = 252;
const ORIGIN: u8 = 253;
const LONG_DATA: u8 = 254;
const SHORT_DATA: u8 = 255;

/// A part of a record, as one segment holds it: a few of its bytes, and what stands for all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordPart {
    /// Bytes in the part.
    pub len: u64,
    /// CRC-32C of them.
    pub checksum: u32,
    /// The first of them: all if there are few.
    pub beginning: Vec<u8>,
}

impl RecordPart {
    /// Bytes that are kept: more than the headers of 33 blocks take.
    pub const KEPT: usize = 1024;

    /// Makes a part of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut part = Self::default();
        part.add(bytes);
        part
    }

    /// Adds the bytes that follow.
    pub fn add(&mut self, bytes: &[u8]) {
        let room = if self.is_whole() { Self::KEPT.saturating_sub(self.beginning.len()) } else { 0 };
        self.beginning.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        self.len += bytes.len() as u64;
    }

    /// Adds the part that the next segment holds.
    pub fn join(&mut self, next: &Self) {
        if self.is_whole() {
            self.beginning.extend_from_slice(&next.beginning);
        }
        self.checksum = crc32c::crc32c_combine(self.checksum, next.checksum, next.len as usize);
        self.len += next.len;
    }

    fn is_whole(&self) -> bool {
        self.beginning.len() as u64 == self.len
    }

    /// Returns the header of the record that the part begins, if all of it is there and its checksum holds.
    pub fn header(&self) -> Option<RecordHeader> {
        let header = RecordHeader::read(&self.beginning)?;
        let first = &self.beginning[..RecordHeader::LEN];
        let body_len = usize::try_from(self.len).ok()?.checked_sub(RecordHeader::LEN)?;
        // The record's checksum is of the body first and the header after it, the part's of both as they lie.
        let body = self.checksum ^ crc32c::crc32c_combine(crc32c::crc32c(first), 0, body_len);
        let whole = u64::from(header.total_len) == self.len;
        (whole && crc32c::crc32c_append(body, &first[..20]) == header.checksum).then_some(header)
    }
}

/// The headers of a record's parts, read from the front.
struct Parts<'a> {
    rest: &'a [u8],
    major: u16,
}

impl Parts<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BodyError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(BodyError::Cut)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, BodyError> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, BodyError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, BodyError> {
        self.take().map(u32::from_le_bytes)
    }

    /// Reads a block reference, and how many bytes of the record's end are its.
    fn block(&mut self, id: u8, same: Option<RelationLocator>) -> Result<(BlockReference, u64), BodyError> {
        const HAS_IMAGE: u8 = 0x10;
        const SAME_RELATION: u8 = 0x80;
        let flags = self.byte()?;
        let mut len = u64::from(self.u16()?);
        let fork = match flags & 0x0F {
            0 => RelationFork::Main,
            1 => RelationFork::FreeSpaceMap,
            2 => RelationFork::VisibilityMap,
            3 => RelationFork::Init,
            other => return Err(BodyError::UnknownFork(other)),
        };
        let has_image = flags & HAS_IMAGE != 0;
        if has_image {
            len += self.image()?;
        }
        let relation = if flags & SAME_RELATION != 0 {
            same.ok_or(BodyError::NoRelation(id))?
        } else {
            RelationLocator { tablespace: self.u32()?, database: self.u32()?, relation: self.u32()? }
        };
        Ok((BlockReference { relation, fork, block: self.u32()?, has_image }, len))
    }

    /// Reads the header of a block's image and returns the image's stored length.
    fn image(&mut self) -> Result<u64, BodyError> {
        const HAS_HOLE: u8 = 0x01;
        // Before 15 one bit said pglz; since then three bits name the method, and the old one means "apply".
        let compressed: u8 = if self.major < 15 { 0x02 } else { 0x04 | 0x08 | 0x10 };
        let len = self.u16()?;
        let _hole_offset = self.u16()?;
        let info = self.byte()?;
        if info & HAS_HOLE != 0 && info & compressed != 0 {
            let _hole_length = self.u16()?;
        }
        Ok(len.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    const FIFTEEN: WalMagic = WalMagic::new(0xD110);

    fn record(body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; RecordHeader::LEN];
        bytes.extend(body);
        bytes
    }

    fn block(id: u8, flags: u8, len: u16) -> Vec<u8> {
        let mut bytes = vec![id, flags];
        bytes.extend(len.to_le_bytes());
        bytes
    }

    #[test]
    fn a_body_with_every_part_is_taken_apart() {
        let mut parts = vec![253, 7, 0, 252, 9, 0, 0, 0];
        parts.extend(block(0, 0x10, 2));
        // An image of 5 bytes with a hole, compressed: two more bytes for the hole's length.
        parts.extend([5, 0, 0, 0, 0x01 | 0x02 | 0x04, 3, 0]);
        parts.extend([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 40, 0, 0, 0]);
        parts.extend(block(2, 0x80 | 0x02, 0));
        parts.extend([41, 0, 0, 0]);
        parts.extend([255, 4]);
        parts.extend(b"image");
        parts.extend(b"ab");
        parts.extend(b"main");
        let bytes = record(&parts);
        let body = RecordBody::decode(&bytes, FIFTEEN).unwrap();
        let relation = RelationLocator { tablespace: 1, database: 2, relation: 3 };
        let first = BlockReference { relation, fork: RelationFork::Main, block: 40, has_image: true };
        let second = BlockReference { relation, fork: RelationFork::VisibilityMap, block: 41, has_image: false };
        assert_eq!(
            body,
            RecordBody { blocks: vec![first, second], main: b"main", origin: Some(7), toplevel_xid: Some(9) }
        );
    }

    #[test]
    fn fourteen_marks_compressed_images_with_another_bit() {
        let mut parts = block(0, 0x10, 0);
        parts.extend([1, 0, 0, 0, 0x01 | 0x02, 3, 0]);
        parts.extend([0; 16]);
        parts.push(b'i');
        let bytes = record(&parts);
        assert!(RecordBody::decode(&bytes, WalMagic::new(0xD10D)).is_ok());
        assert!(RecordBody::decode(&bytes, FIFTEEN).is_err());
    }

    #[test]
    fn bodies_that_do_not_add_up_are_refused() {
        let table: [(&[u8], BodyError); 8] = [
            (&[255], BodyError::Cut),
            (&[255, 4, 1, 2, 3], BodyError::Length { stated: 4, found: 3 }),
            (&[255, 1, 1, 2], BodyError::Length { stated: 1, found: 2 }),
            (&[254, 255, 255, 255, 255, 0], BodyError::Length { stated: 0xFFFF_FFFF, found: 1 }),
            (&[33, 0, 0, 0], BodyError::UnknownPart(33)),
            (&[0, 0x04, 0, 0], BodyError::UnknownFork(4)),
            (&[0, 0x80, 0, 0, 1, 0, 0, 0], BodyError::NoRelation(0)),
            (&[1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], BodyError::OutOfOrder(1)),
        ];
        for (parts, error) in table {
            assert_eq!(RecordBody::decode(&record(parts), FIFTEEN), Err(error));
        }
        assert_eq!(RecordBody::decode(&[0; 23], FIFTEEN), Err(BodyError::Cut));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_apart_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = RecordBody::decode(&bytes, FIFTEEN);
            let _ = record_checksum(&bytes);
        }
    }
}
