//! Leaves of a manifest: which files a backup holds, and the place of every byte of them.
//!
//! A leaf lists entries in the order of their paths. It is kept as a frame of a pack, so a leaf that did not change can be
//! shared with an older backup by reference. Pieces are sorted, disjoint and cover their file exactly: each says how many
//! bytes it covers, so there is no gap and no overlap to express; readers check the sum. What is known of a file only
//! when all of it was read stands behind its pieces, so that a leaf is written while the file is still being copied, and a
//! file of very many pieces goes on in the next leaf.
//!
//! One leaf is read here; what must hold from one to the next is checked by [`super::leaf_order`].

use super::FormatError;
use super::digest::Sha256;
use super::frame::FRAME_BYTES;
use super::varint::{self, Reader};

/// Version of the leaf encoding.
/// - 1: first release.
pub const LEAF_VERSION: u8 = 1;

const NAME: &str = "manifest leaf";
/// A leaf is closed once it has this many bytes; one path may make it longer.
pub const LEAF_BYTES: usize = 128 * 1024;
/// Most bytes of a leaf that a reader takes.
pub const LEAF_LIMIT: u32 = 1 << 20;
/// Longest path in a backup, in bytes (`PATH_MAX`).
const PATH_LIMIT: usize = 4096;
/// Files up to this size may be kept in the leaf itself.
pub const INLINE_LIMIT: usize = 64;

const FILE: u8 = 1;
const DIRECTORY: u8 = 2;
const CONTINUED: u8 = 3;

const FRAMES: u8 = 1;
const ZEROS: u8 = 2;
const INLINE: u8 = 3;

const GOES_ON: u8 = 0;
const ENDS: u8 = 1;

const HAS_DIGEST: u8 = 1;
const IS_RELATION: u8 = 2;

/// One directory, or one stretch of a file, below the data directory. There are no links: tablespaces are listed in the
/// root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the data directory, `/`-separated, as the bytes the file system has.
    pub path: Vec<u8>,
    /// What it is.
    pub node: Node,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory; empty ones matter to PostgreSQL.
    Directory {
        /// Permission bits.
        mode: u32,
    },
    /// A regular file, or what one leaf has of it.
    File(Part),
}

/// What one leaf has of a file: nearly always all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where in the file its pieces begin: 0, unless a leaf before began the file.
    pub at: u64,
    /// Where its bytes are, from the first to the last.
    pub pieces: Vec<Piece>,
    /// The file's facts; `None` if it goes on in the next leaf.
    pub file: Option<File>,
}

/// What is known of a file once all of it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Bytes of the file as it was copied.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Seconds since 1970 of the last modification; never a reason to read less, only to read more.
    pub modified: i64,
    /// CRC-32C of the whole file, as `backup_manifest` wants it.
    pub crc: u32,
    /// SHA-256 of the whole file; small files have it, because they share frames with others.
    pub digest: Option<Sha256>,
    /// Whether it is a relation file, made of pages.
    pub relation: bool,
}

/// Where a stretch of a file's bytes is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// In consecutive frames of a pack, from `offset` bytes into the first.
    Frames {
        /// Place in the manifest's table of packs.
        pack: u32,
        /// First frame.
        frame: u32,
        /// Bytes to skip in the first frame.
        offset: u32,
        /// Bytes covered.
        len: u64,
    },
    /// Nowhere: they are zeros.
    Zeros {
        /// Bytes covered.
        len: u64,
    },
    /// Here.
    Inline(Vec<u8>),
}

impl Part {
    /// Returns where in the file its pieces end.
    pub fn end(&self) -> u64 {
        self.pieces.iter().fold(self.at, |end, piece| end.saturating_add(piece.len()))
    }
}

impl Piece {
    /// Bytes of the file that the piece covers.
    pub fn len(&self) -> u64 {
        match self {
            Piece::Frames { len, .. } | Piece::Zeros { len } => *len,
            Piece::Inline(bytes) => bytes.len() as u64,
        }
    }

    /// Returns whether it covers nothing; such a piece is never written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes in the piece that follows it in the file, if both are one stretch; returns whether they were. Only frames of
    /// [`FRAME_BYTES`] are gone over to the next: one that ends earlier joins nothing behind it.
    pub fn join(&mut self, next: &Piece) -> bool {
        match (self, next) {
            (Piece::Zeros { len }, Piece::Zeros { len: more }) => *len += more,
            (
                Piece::Frames { pack, frame, offset, len },
                Piece::Frames { pack: next_pack, frame: next_frame, offset: next_offset, len: more },
            ) if pack == next_pack && goes_on_at(*frame, *offset, *len) == (u64::from(*next_frame), *next_offset) => {
                *len += more;
            }
            _ => return false,
        }
        true
    }
}

/// Returns the frame and the offset in it at which a stretch of frames ends, if all but the last are whole.
fn goes_on_at(frame: u32, offset: u32, len: u64) -> (u64, u32) {
    let end = u64::from(offset).saturating_add(len);
    (u64::from(frame) + end / FRAME_BYTES as u64, (end % FRAME_BYTES as u64) as u32)
}

/// Appends an entry to a leaf that [`start`] began.
pub fn append(entry: &Entry, out: &mut Vec<u8>) {
    match &entry.node {
        Node::Directory { mode } => append_directory(&entry.path, *mode, out),
        Node::File(part) => {
            let mut pieces = Vec::new();
            part.pieces.iter().for_each(|piece| append_piece(piece, &mut pieces));
            append_part(&entry.path, part.at, part.pieces.len() as u64, &pieces, part.file.as_ref(), out);
        }
    }
}

pub(super) fn append_directory(path: &[u8], mode: u32, out: &mut Vec<u8>) {
    out.push(DIRECTORY);
    append_path(path, out);
    varint::put(u64::from(mode), out);
}

fn append_path(path: &[u8], out: &mut Vec<u8>) {
    varint::put(path.len() as u64, out);
    out.extend_from_slice(path);
}

/// Appends a part whose `count` pieces are encoded already.
pub(super) fn append_part(path: &[u8], at: u64, count: u64, pieces: &[u8], file: Option<&File>, out: &mut Vec<u8>) {
    out.push(if at == 0 { FILE } else { CONTINUED });
    append_path(path, out);
    if at > 0 {
        varint::put(at, out);
    }
    varint::put(count, out);
    out.extend_from_slice(pieces);
    let Some(file) = file else { return out.push(GOES_ON) };
    out.push(ENDS);
    varint::put(file.size, out);
    varint::put(u64::from(file.mode), out);
    varint::put_signed(file.modified, out);
    out.extend_from_slice(&file.crc.to_le_bytes());
    out.push(if file.digest.is_some() { HAS_DIGEST } else { 0 } | if file.relation { IS_RELATION } else { 0 });
    if let Some(digest) = &file.digest {
        out.extend_from_slice(digest.bytes());
    }
}

pub(super) fn append_piece(piece: &Piece, out: &mut Vec<u8>) {
    match piece {
        Piece::Frames { pack, frame, offset, len } => {
            out.push(FRAMES);
            varint::put(u64::from(*pack), out);
            varint::put(u64::from(*frame), out);
            varint::put(u64::from(*offset), out);
            varint::put(*len, out);
        }
        Piece::Zeros { len } => {
            out.push(ZEROS);
            varint::put(*len, out);
        }
        Piece::Inline(bytes) => {
            out.push(INLINE);
            varint::put(bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        }
    }
}

/// Returns the first bytes of a leaf.
pub fn start() -> Vec<u8> {
    vec![b'W', b'V', b'L', LEAF_VERSION]
}

/// Reads a leaf.
///
/// # Errors
/// [`FormatError::Version`] if it is newer; [`FormatError::Nonsense`] for a path that leaves the data directory, entries
/// out of order, or pieces that do not cover their file.
pub fn decode(bytes: &[u8]) -> Result<Vec<Entry>, FormatError> {
    let mut reader = Reader::new(bytes, NAME);
    if reader.bytes(3)? != b"WVL" {
        return Err(FormatError::NotOurs);
    }
    let version = reader.byte()?;
    if version != LEAF_VERSION {
        return Err(FormatError::Version { found: version.into(), known: LEAF_VERSION.into() });
    }
    let mut entries: Vec<Entry> = Vec::new();
    while !reader.is_empty() {
        let entry = decode_entry(&mut reader)?;
        if let Some(last) = entries.last() {
            if last.path >= entry.path {
                return Err(reader.nonsense("entries out of order"));
            }
            if matches!(&last.node, Node::File(part) if part.file.is_none()) {
                return Err(reader.nonsense("a file that goes on in the next leaf and is not the last of its own"));
            }
            if matches!(&entry.node, Node::File(part) if part.at > 0) {
                return Err(reader.nonsense("the rest of a file that is not the first of its leaf"));
            }
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn decode_entry(reader: &mut Reader<'_>) -> Result<Entry, FormatError> {
    let kind = reader.byte()?;
    let path = reader.counted()?.to_vec();
    if !stays_inside(&path) {
        return Err(reader.nonsense(format!("path {:?} leaves the data directory", String::from_utf8_lossy(&path))));
    }
    let node = match kind {
        DIRECTORY => Node::Directory { mode: reader.small()? & 0o777 },
        FILE => Node::File(decode_part(reader, 0)?),
        CONTINUED => match reader.number()? {
            0 => return Err(reader.nonsense("the rest of a file from its beginning")),
            at => Node::File(decode_part(reader, at)?),
        },
        other => return Err(reader.nonsense(format!("an entry of kind {other}"))),
    };
    Ok(Entry { path, node })
}

fn decode_part(reader: &mut Reader<'_>, at: u64) -> Result<Part, FormatError> {
    let count = reader.number()?;
    // Each piece takes at least two bytes: a count that lies cannot make us allocate.
    if count > reader.remaining() as u64 / 2 {
        return Err(reader.nonsense(format!("{count} pieces in {} bytes", reader.remaining())));
    }
    let mut pieces = Vec::with_capacity(count as usize);
    let mut end = at;
    for _ in 0..count {
        let piece = decode_piece(reader)?;
        if piece.is_empty() {
            return Err(reader.nonsense("a piece that covers nothing"));
        }
        end = end.checked_add(piece.len()).ok_or_else(|| reader.nonsense("pieces of more than 2^64 bytes"))?;
        pieces.push(piece);
    }
    let file = match reader.byte()? {
        GOES_ON if end == at => return Err(reader.nonsense("a part of a file without a piece")),
        GOES_ON => None,
        ENDS => Some(decode_file(reader)?),
        other => return Err(reader.nonsense(format!("a file that ends with {other}"))),
    };
    if let Some(file) = &file
        && file.size != end
    {
        return Err(reader.nonsense(format!("pieces cover {end} bytes of a file of {}", file.size)));
    }
    Ok(Part { at, pieces, file })
}

fn decode_file(reader: &mut Reader<'_>) -> Result<File, FormatError> {
    let size = reader.number()?;
    let mode = reader.small()? & 0o777;
    let modified = reader.signed()?;
    let crc = u32::from_le_bytes(reader.bytes(4)?.try_into().expect("4 bytes"));
    let flags = reader.byte()?;
    if flags & !(HAS_DIGEST | IS_RELATION) != 0 {
        return Err(reader.nonsense(format!("file flags {flags:#x}")));
    }
    let digest = match flags & HAS_DIGEST {
        0 => None,
        _ => Some(Sha256::from_bytes(reader.bytes(32)?.try_into().expect("32 bytes"))),
    };
    Ok(File { size, mode, modified, crc, digest, relation: flags & IS_RELATION != 0 })
}

fn decode_piece(reader: &mut Reader<'_>) -> Result<Piece, FormatError> {
    match reader.byte()? {
        FRAMES => Ok(Piece::Frames {
            pack: reader.small()?,
            frame: reader.small()?,
            offset: reader.small()?,
            len: reader.number()?,
        }),
        ZEROS => Ok(Piece::Zeros { len: reader.number()? }),
        INLINE => Ok(Piece::Inline(reader.counted()?.to_vec())),
        other => Err(reader.nonsense(format!("a piece of kind {other}"))),
    }
}

/// Returns whether a path is relative, has no empty, `.` or `..` part and no NUL.
pub fn stays_inside(path: &[u8]) -> bool {
    !path.is_empty()
        && path.len() <= PATH_LIMIT
        && !path.contains(&0)
        && path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn whole(pieces: Vec<Piece>) -> Part {
        let size = pieces.iter().map(Piece::len).sum();
        let file = facts(size);
        Part { at: 0, pieces, file: Some(file) }
    }

    pub fn facts(size: u64) -> File {
        File { size, mode: 0o600, modified: -5, crc: 0xDEAD_BEEF, digest: Some(Sha256::of(b"x")), relation: true }
    }

    fn file(path: &str, pieces: Vec<Piece>) -> Entry {
        Entry { path: path.as_bytes().to_vec(), node: Node::File(whole(pieces)) }
    }

    fn sample() -> Vec<Entry> {
        vec![
            Entry { path: b"base".to_vec(), node: Node::Directory { mode: 0o700 } },
            file("base/1/1259", vec![Piece::Frames { pack: 3, frame: 9, offset: 100, len: 300_000 }]),
            file("base/1/1260", vec![Piece::Zeros { len: 8192 }, Piece::Inline(b"tail".to_vec())]),
        ]
    }

    fn encode(entries: &[Entry]) -> Vec<u8> {
        let mut bytes = start();
        entries.iter().for_each(|entry| append(entry, &mut bytes));
        bytes
    }

    fn refused(entries: &[Entry]) -> bool {
        matches!(decode(&encode(entries)), Err(FormatError::Nonsense { .. }))
    }

    #[test]
    fn a_leaf_comes_back() {
        assert_eq!(decode(&encode(&sample())), Ok(sample()));
    }

    #[test]
    fn entries_out_of_order_are_refused() {
        let mut entries = sample();
        entries.swap(0, 1);
        assert!(refused(&entries));
    }

    #[test]
    fn paths_that_climb_out_are_refused() {
        for path in ["../etc/passwd", "/etc/passwd", "base/../../x", "base//x", "base/./x", "", "base/x/", "a\0b"] {
            let entry = Entry { path: path.as_bytes().to_vec(), node: Node::Directory { mode: 0 } };
            assert!(refused(&[entry]), "{path:?} was accepted");
        }
    }

    #[test]
    fn pieces_that_do_not_cover_their_file_are_refused() {
        for size in [0, 9, 11] {
            let part = Part { file: Some(facts(size)), ..whole(vec![Piece::Zeros { len: 10 }]) };
            assert!(refused(&[Entry { path: b"a".to_vec(), node: Node::File(part) }]), "{size}");
        }
        assert!(refused(&[file("a", vec![Piece::Zeros { len: 0 }])]));
    }

    #[test]
    fn a_file_goes_on_only_from_the_end_of_one_leaf_to_the_start_of_the_next() {
        let pieces = vec![Piece::Zeros { len: 10 }];
        let first = |path: &str| Entry {
            path: path.as_bytes().to_vec(),
            node: Node::File(Part { file: None, ..whole(pieces.clone()) }),
        };
        let rest = |path: &str| Entry {
            path: path.as_bytes().to_vec(),
            node: Node::File(Part { at: 10, file: Some(facts(20)), pieces: pieces.clone() }),
        };
        assert!(decode(&encode(&[file("a", pieces.clone()), first("b")])).is_ok());
        assert!(decode(&encode(&[rest("a"), file("b", pieces.clone())])).is_ok());
        assert!(refused(&[first("a"), file("b", pieces.clone())]));
        assert!(refused(&[file("a", pieces.clone()), rest("b")]));
        assert!(refused(&[first("a"), rest("a")]));
        assert!(refused(&[Entry {
            path: b"a".to_vec(),
            node: Node::File(Part { at: 0, pieces: Vec::new(), file: None })
        }]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(tail: Vec<u8>) {
            let mut bytes = start();
            bytes.extend(tail);
            let _ = decode(&bytes);
        }
    }
}
