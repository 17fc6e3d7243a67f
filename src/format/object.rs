//! The one shape of stored objects: a front frame, a body, a trailer frame.
//!
//! Front and trailer are zstd skippable frames and the body is ordinary zstd frames, so `zstd -d` alone gives the
//! contents back. The front says what the object is and for which name it was made, so a renamed or misplaced object is
//! found out. The last bytes of the trailer, the *tail*, have a fixed size and say where the trailer starts and what the
//! contents' digest is. `docs/format.md` gives every offset.

use super::digest::{self, ContentsHasher, PIECE_BYTES, Sha256, Sha256Hasher};
use super::room::Room;
use super::{FormatError, frame};

/// Version of the object shape. Readers know every version, writers write the last.
/// - 1: first release.
pub const OBJECT_VERSION: u16 = 1;

/// Bytes of the front frame, its skippable-frame header included.
pub const FRONT_BYTES: usize = 256;
/// Bytes of the tail, which end every object.
pub const TAIL_BYTES: usize = 96;
/// Longest identity that the front frame has room for.
pub const IDENTITY_BYTES: usize = 120;

const FRONT_MAGIC: u32 = 0x184D_2A57;
const TRAILER_MAGIC: u32 = 0x184D_2A58;
const SKIPPABLE_HEADER: usize = 8;
const NAME: &[u8; 8] = b"WALVAULT";
const TAIL_NAME: &[u8; 4] = b"WVTL";

/// Feature bits that a reader must know, or refuse the object. None is defined yet; bit 0 is kept for sealing.
const KNOWN_FEATURES: u32 = 0;

/// What an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// A file that PostgreSQL handed to `archive_command`: segment, `.partial`, `.history`, `.backup` or another.
    Wal = 1,
    /// Frames of a backup.
    Pack = 2,
    /// A backup's manifest.
    Manifest = 3,
    /// The facts of many segments.
    Index = 4,
}

impl Kind {
    fn from_number(number: u16) -> Result<Self, FormatError> {
        match number {
            1 => Ok(Kind::Wal),
            2 => Ok(Kind::Pack),
            3 => Ok(Kind::Manifest),
            4 => Ok(Kind::Index),
            number => Err(FormatError::UnknownKind { number }),
        }
    }
}

/// What the front frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// What the object holds.
    pub kind: Kind,
    /// `<lane>/<logical name>` that the object was made for.
    pub identity: String,
    /// Random bytes that keep equal contents from having equal digests here.
    pub salt: [u8; 16],
    /// SHA-256 of the salt and the contents' SHA-256.
    pub salted: Sha256,
    /// Bytes of the contents.
    pub raw_len: u64,
}

/// What the tail says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// What the object holds, as in the front.
    pub kind: Kind,
    /// Digest of the contents: for a WAL file [`digest::of_contents`], else SHA-256; of the section for packs, whose frames
    /// have their own digests.
    pub raw: Sha256,
    /// SHA-256 of all stored bytes before the tail.
    pub before_tail: Sha256,
    /// Bytes of the contents, as in the front.
    pub raw_len: u64,
    /// Where the trailer frame starts in the object.
    pub trailer_at: u64,
    /// CRC-32C of the section.
    pub section_crc: u32,
}

/// An object's identity, its contents' digest and its encoded parts, ready to be stored.
pub struct NewObject {
    kind: Kind,
    identity: String,
    body: Vec<u8>,
}

impl NewObject {
    /// Starts an object; `body` grows by [`NewObject::body`].
    ///
    /// # Errors
    /// [`FormatError::Identity`] if the front frame has no room for `identity`.
    pub fn new(kind: Kind, identity: impl Into<String>) -> Result<Self, FormatError> {
        Self::reusing(Vec::new(), kind, identity)
    }

    /// As [`NewObject::new`], in memory that is used again.
    pub fn reusing(mut body: Vec<u8>, kind: Kind, identity: impl Into<String>) -> Result<Self, FormatError> {
        let identity = identity.into();
        if identity.len() > IDENTITY_BYTES || identity.is_empty() || !identity.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(FormatError::Identity { identity });
        }
        // The front is written last, into the room left here: it holds the digest of what follows.
        body.clear();
        body.resize(FRONT_BYTES, 0);
        Ok(Self { kind, identity, body })
    }

    /// Returns the buffer to append zstd frames to; what is in it already must stay.
    pub fn body(&mut self) -> &mut Vec<u8> {
        &mut self.body
    }

    /// Bytes so far, the front's room included.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    /// Returns whether no frame was appended yet.
    pub fn is_empty(&self) -> bool {
        self.body.len() == FRONT_BYTES
    }

    /// Returns the whole object and the SHA-256 of all its bytes. `raw` and `raw_len` describe the contents, `section` is
    /// the trailer's own part.
    pub fn finish(self, raw: Sha256, raw_len: u64, section: &[u8]) -> (Vec<u8>, Sha256) {
        let mut salt = [0; 16];
        // Without randomness the digest is merely not salted; nothing rests on it before sealing does.
        let _ = getrandom::fill(&mut salt);
        self.finish_salted(raw, raw_len, section, salt)
    }

    fn finish_salted(self, raw: Sha256, raw_len: u64, section: &[u8], salt: [u8; 16]) -> (Vec<u8>, Sha256) {
        let front = Front { kind: self.kind, identity: self.identity, salt, salted: salted(&salt, &raw), raw_len };
        let mut object = self.body;
        object[..FRONT_BYTES].copy_from_slice(&front.encode());
        let trailer_at = object.len() as u64;
        object.extend_from_slice(&TRAILER_MAGIC.to_le_bytes());
        object.extend_from_slice(&((section.len() + TAIL_BYTES) as u32).to_le_bytes());
        object.extend_from_slice(section);
        let section_crc = crc32c::crc32c(section);
        let mut hasher = Sha256Hasher::default();
        hasher.update(&object);
        let before_tail = hasher.clone().finish();
        let tail = Tail { kind: self.kind, raw, before_tail, raw_len, trailer_at, section_crc }.encode();
        hasher.update(&tail);
        object.extend_from_slice(&tail);
        (object, hasher.finish())
    }
}

fn salted(salt: &[u8; 16], raw: &Sha256) -> Sha256 {
    Sha256::of_parts([&salt[..], &raw.bytes()[..]])
}

impl Front {
    fn encode(&self) -> [u8; FRONT_BYTES] {
        let mut bytes = [0; FRONT_BYTES];
        bytes[0..4].copy_from_slice(&FRONT_MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&((FRONT_BYTES - SKIPPABLE_HEADER) as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(NAME);
        bytes[16..18].copy_from_slice(&OBJECT_VERSION.to_le_bytes());
        bytes[18..20].copy_from_slice(&(self.kind as u16).to_le_bytes());
        // 20..24 must-understand and 24..28 may-ignore feature bits, 28..32 reserved: all zero.
        bytes[32..48].copy_from_slice(&self.salt);
        bytes[48..80].copy_from_slice(self.salted.bytes());
        bytes[80..88].copy_from_slice(&self.raw_len.to_le_bytes());
        // 88..128 is kept for sealing.
        bytes[128] = self.identity.len() as u8;
        bytes[129..129 + self.identity.len()].copy_from_slice(self.identity.as_bytes());
        let crc = crc32c::crc32c(&bytes[..FRONT_BYTES - 4]);
        bytes[FRONT_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the front frame from an object's first bytes.
    ///
    /// # Errors
    /// [`FormatError::Truncated`], [`FormatError::NotOurs`], [`FormatError::Damaged`], or what is newer than this reader.
    pub fn decode(object: &[u8]) -> Result<Self, FormatError> {
        let bytes = object.get(..FRONT_BYTES).ok_or(FormatError::Truncated { part: "front frame" })?;
        if read_u32(bytes, 0) != FRONT_MAGIC || &bytes[8..16] != NAME {
            return Err(FormatError::NotOurs);
        }
        if read_u32(bytes, FRONT_BYTES - 4) != crc32c::crc32c(&bytes[..FRONT_BYTES - 4]) {
            return Err(FormatError::Damaged { part: "front frame" });
        }
        check_version(read_u16(bytes, 16))?;
        let features = read_u32(bytes, 20);
        if features & !KNOWN_FEATURES != 0 {
            return Err(FormatError::UnknownFeatures { bits: features });
        }
        let identity = bytes.get(129..129 + usize::from(bytes[128])).filter(|text| text.len() <= IDENTITY_BYTES);
        let identity = identity.and_then(|text| std::str::from_utf8(text).ok());
        Ok(Self {
            kind: Kind::from_number(read_u16(bytes, 18))?,
            identity: identity.ok_or(FormatError::Damaged { part: "front frame" })?.to_owned(),
            salt: bytes[32..48].try_into().expect("16 bytes"),
            salted: read_digest(bytes, 48),
            raw_len: read_u64(bytes, 80),
        })
    }

    /// Returns whether the front was made for contents with this digest.
    pub fn is_for(&self, raw: &Sha256) -> bool {
        self.salted == salted(&self.salt, raw)
    }

    /// Checks that the object was made as `kind` for `identity`.
    ///
    /// # Errors
    /// [`FormatError::Misplaced`] with both names.
    pub fn expect(&self, kind: Kind, identity: &str) -> Result<(), FormatError> {
        if self.kind == kind && self.identity == identity {
            return Ok(());
        }
        Err(FormatError::Misplaced { found: self.identity.clone(), expected: identity.to_owned() })
    }
}

impl Tail {
    fn encode(&self) -> [u8; TAIL_BYTES] {
        let mut bytes = [0; TAIL_BYTES];
        bytes[0..32].copy_from_slice(self.raw.bytes());
        bytes[32..64].copy_from_slice(self.before_tail.bytes());
        bytes[64..72].copy_from_slice(&self.raw_len.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.trailer_at.to_le_bytes());
        bytes[80..82].copy_from_slice(&OBJECT_VERSION.to_le_bytes());
        bytes[82..84].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[84..88].copy_from_slice(&self.section_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..88]);
        bytes[88..92].copy_from_slice(&crc.to_le_bytes());
        bytes[92..96].copy_from_slice(TAIL_NAME);
        bytes
    }

    /// Reads the tail from the last bytes of an object that is `object_len` bytes long.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] if the object does not end in a tail, [`FormatError::Damaged`] if it lies.
    pub fn decode(last: &[u8], object_len: u64) -> Result<Self, FormatError> {
        let truncated = FormatError::Truncated { part: "tail" };
        let bytes = last.len().checked_sub(TAIL_BYTES).map(|at| &last[at..]).ok_or(truncated)?;
        if &bytes[92..96] != TAIL_NAME {
            return Err(FormatError::Truncated { part: "tail" });
        }
        let damaged = FormatError::Damaged { part: "tail" };
        if read_u32(bytes, 88) != crc32c::crc32c(&bytes[..88]) {
            return Err(damaged);
        }
        check_version(read_u16(bytes, 80))?;
        let tail = Self {
            kind: Kind::from_number(read_u16(bytes, 82))?,
            raw: read_digest(bytes, 0),
            before_tail: read_digest(bytes, 32),
            raw_len: read_u64(bytes, 64),
            trailer_at: read_u64(bytes, 72),
            section_crc: read_u32(bytes, 84),
        };
        let room = object_len.checked_sub((TAIL_BYTES + SKIPPABLE_HEADER) as u64);
        match room {
            Some(room) if (FRONT_BYTES as u64..=room).contains(&tail.trailer_at) => Ok(tail),
            _ => Err(damaged),
        }
    }

    /// Returns the section's bytes: `last` ends the object and reaches back at least to the trailer.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] or [`FormatError::Damaged`]; the section's CRC is checked.
    pub fn section<'a>(&self, last: &'a [u8], object_len: u64) -> Result<&'a [u8], FormatError> {
        let damaged = FormatError::Damaged { part: "trailer" };
        let from_end = usize::try_from(object_len - self.trailer_at).map_err(|_| FormatError::Memory)?;
        let trailer = last.len().checked_sub(from_end).map(|at| &last[at..]);
        let trailer = trailer.ok_or(FormatError::Truncated { part: "trailer" })?;
        let declared = read_u32(trailer, 4) as usize;
        if read_u32(trailer, 0) != TRAILER_MAGIC || declared + SKIPPABLE_HEADER != trailer.len() {
            return Err(damaged);
        }
        let section = &trailer[SKIPPABLE_HEADER..trailer.len() - TAIL_BYTES];
        if crc32c::crc32c(section) != self.section_crc {
            return Err(damaged);
        }
        Ok(section)
    }
}

/// A whole object in memory, its frames checked against each other; the contents are not read yet.
pub struct Object<'a> {
    /// The front frame.
    pub front: Front,
    /// The tail.
    pub tail: Tail,
    /// The body's zstd frames.
    pub body: &'a [u8],
    /// The trailer's own part.
    pub section: &'a [u8],
}

impl<'a> Object<'a> {
    /// Opens an object that must have been made as `kind` for `identity`; every stored byte is verified.
    ///
    /// # Errors
    /// Whatever is wrong with front, tail or digest; [`FormatError::Misplaced`] if it was made for another name.
    pub fn open(stored: &'a [u8], kind: Kind, identity: &str) -> Result<Self, FormatError> {
        let front = Front::decode(stored)?;
        front.expect(kind, identity)?;
        let len = stored.len() as u64;
        let tail = Tail::decode(stored, len)?;
        let before_tail = &stored[..stored.len() - TAIL_BYTES];
        if Sha256::of(before_tail) != tail.before_tail {
            return Err(FormatError::Damaged { part: "object" });
        }
        if tail.kind != front.kind || tail.raw_len != front.raw_len || !front.is_for(&tail.raw) {
            return Err(FormatError::Damaged { part: "tail" });
        }
        let section = tail.section(stored, len)?;
        let trailer_at = usize::try_from(tail.trailer_at).map_err(|_| FormatError::Memory)?;
        Ok(Self { front, body: &stored[FRONT_BYTES..trailer_at], tail, section })
    }

    /// Returns the contents, decompressed and compared with their digest.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] before anything is allocated beyond `limit` bytes, [`FormatError::Body`] if damaged.
    pub fn contents(&self, limit: u64) -> Result<Vec<u8>, FormatError> {
        if self.tail.raw_len > limit {
            return Err(FormatError::TooLarge { bytes: self.tail.raw_len, limit });
        }
        let raw_len = usize::try_from(self.tail.raw_len).map_err(|_| FormatError::Memory)?;
        let raw = frame::decompress(self.body, raw_len)?;
        let found = match self.tail.kind {
            Kind::Wal => digest::of_contents(&raw),
            Kind::Pack | Kind::Manifest | Kind::Index => Sha256::of(&raw),
        };
        if found != self.tail.raw {
            return Err(FormatError::Damaged { part: "contents" });
        }
        Ok(raw)
    }

    /// Hands the contents of a WAL file to `take` one stretch after the other, in order, without holding them whole: each
    /// but the last is a multiple of [`PIECE_BYTES`]. Returns once all of them were handed over and their digest is the one
    /// in the tail; until then nothing may be made of them.
    ///
    /// # Errors
    /// As [`Object::contents`], within the outer result what `take` fails with.
    pub fn contents_to<E>(
        &self,
        limit: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, FormatError> {
        if self.tail.raw_len > limit {
            return Err(FormatError::TooLarge { bytes: self.tail.raw_len, limit });
        }
        let mut hasher = ContentsHasher::default();
        let (mut rest, mut left) = (self.body, self.tail.raw_len);
        let (mut raw, mut filled) = (Room::take(), 0);
        while !rest.is_empty() {
            let (frame, raw_len) = frame::first(rest, left)?;
            frame::decompress_to(frame, &mut raw.first(filled + raw_len)[filled..])?;
            filled += raw_len;
            rest = &rest[frame.len()..];
            left -= raw_len as u64;
            // Whole pieces, which have whole pages, however the frames were cut.
            if filled.is_multiple_of(PIECE_BYTES) || rest.is_empty() {
                let raw = raw.first(filled);
                hasher.update(raw);
                if let Err(error) = take(raw) {
                    return Ok(Err(error));
                }
                filled = 0;
            }
        }
        if left > 0 {
            return Err(FormatError::Body { problem: format!("holds {left} bytes too few") });
        }
        if self.tail.kind != Kind::Wal || hasher.finish() != self.tail.raw {
            return Err(FormatError::Damaged { part: "contents" });
        }
        Ok(Ok(()))
    }
}

fn check_version(found: u16) -> Result<(), FormatError> {
    match found {
        OBJECT_VERSION => Ok(()),
        found => Err(FormatError::Version { found, known: OBJECT_VERSION }),
    }
}

pub(super) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"))
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

pub(super) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn read_digest(bytes: &[u8], at: usize) -> Sha256 {
    Sha256::from_bytes(bytes[at..at + 32].try_into().expect("32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Vec<u8>, Vec<u8>) {
        let raw = b"the write-ahead log of a small cluster ".repeat(50);
        let mut object = NewObject::new(Kind::Wal, "7-1/000000010000000000000001").expect("a short identity");
        frame::Compressor::new(3).append(&raw, object.body());
        let (stored, digest) = object.finish_salted(Sha256::of(&raw), raw.len() as u64, b"section", [5; 16]);
        assert_eq!(digest, Sha256::of(&stored));
        (raw, stored)
    }

    fn read(stored: &[u8]) -> Result<Vec<u8>, FormatError> {
        Object::open(stored, Kind::Wal, "7-1/000000010000000000000001")?.contents(1 << 20)
    }

    #[test]
    fn contents_and_section_come_back() {
        let (raw, stored) = sample();
        let object = Object::open(&stored, Kind::Wal, "7-1/000000010000000000000001").expect("just made");
        assert_eq!(object.section, b"section");
        assert_eq!(object.contents(1 << 20).expect("just made"), raw);
    }

    #[test]
    fn an_object_is_a_zst_file() {
        let (raw, stored) = sample();
        assert_eq!(zstd::decode_all(&stored[..]).expect("plain zstd"), raw);
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let (_, mut stored) = sample();
        for at in 0..stored.len() * 8 {
            stored[at / 8] ^= 1 << (at % 8);
            assert!(read(&stored).is_err(), "bit {at} was flipped and nobody noticed");
            stored[at / 8] ^= 1 << (at % 8);
        }
    }

    #[test]
    fn every_cut_is_refused() {
        let (_, stored) = sample();
        for len in 0..stored.len() {
            assert!(read(&stored[..len]).is_err(), "cut to {len} bytes and nobody noticed");
        }
    }

    #[test]
    fn an_object_under_another_name_is_refused() {
        let (_, stored) = sample();
        let opened = Object::open(&stored, Kind::Wal, "7-1/000000010000000000000002");
        assert!(matches!(opened, Err(FormatError::Misplaced { .. })));
        let opened = Object::open(&stored, Kind::Pack, "7-1/000000010000000000000001");
        assert!(matches!(opened, Err(FormatError::Misplaced { .. })));
    }

    #[test]
    fn what_is_newer_is_refused_by_name() {
        let (_, stored) = sample();
        let altered = |at: usize, byte: u8| {
            let mut stored = stored.clone();
            stored[at] = byte;
            let crc = crc32c::crc32c(&stored[..FRONT_BYTES - 4]);
            stored[FRONT_BYTES - 4..FRONT_BYTES].copy_from_slice(&crc.to_le_bytes());
            read(&stored).expect_err("newer than this reader")
        };
        assert!(matches!(altered(16, 9), FormatError::Version { found: 9, .. }));
        assert!(matches!(altered(18, 77), FormatError::UnknownKind { number: 77 }));
        assert!(matches!(altered(20, 1), FormatError::UnknownFeatures { bits: 1 }));
    }

    #[test]
    fn contents_larger_than_the_caller_expects_are_refused() {
        let (raw, stored) = sample();
        let object = Object::open(&stored, Kind::Wal, "7-1/000000010000000000000001").expect("just made");
        let refused = object.contents(raw.len() as u64 - 1);
        assert!(matches!(refused, Err(FormatError::TooLarge { .. })));
    }
}
