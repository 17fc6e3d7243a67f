//! The two tables of a manifest: which packs it needs, and where its leaves are.
//!
//! Binary, because a large cluster has a hundred thousand packs: a place of the pack table is some 75 bytes here and in
//! memory not much more. Pieces and leaves name a pack by its place. A leaf that is shared with an older backup keeps its
//! meaning only if every place that it names holds the same pack in both tables; a place that nothing names any more is
//! vacant, and may be filled again.

use std::sync::Arc;

use super::FormatError;
use super::digest::Sha256;
use super::varint::{self, Reader};

/// Version of both tables.
/// - 1: first release.
pub const TABLES_VERSION: u8 = 1;

const PACKS: &str = "pack table";
const LEAVES: &str = "index of leaves";
const LANE: u8 = 1;
/// Longest key of a leaf's first entry: a path.
const KEY_LIMIT: usize = 4096;
/// Fewest bytes that a leaf's reference takes.
const LEAST_REFERENCE: u64 = 37;

/// Both tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// The packs that the backup needs.
    pub packs: PackTable,
    /// Leaves of files and directories, in the order of their paths.
    pub leaves: Vec<LeafRef>,
    /// Leaves of relations' names, in their order.
    pub relations: Vec<LeafRef>,
}

/// Packs by place, from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackTable(Vec<Option<PackRef>>);

/// A pack that the backup needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackRef {
    /// Whose pack it is.
    pub source: PackSource,
    /// Bytes of the whole object.
    pub stored_bytes: u64,
    /// Frames in it.
    pub frames: u32,
    /// SHA-256 of the whole object.
    pub sha256: Sha256,
    /// SHA-256 of its frame table, which holds the digest of every frame: with it a few frames can be believed without
    /// reading the whole pack.
    pub table_sha256: Sha256,
}

/// Where a pack is; other places can come later, and a reader refuses those it does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackSource {
    /// In this lane.
    Lane {
        /// The backup that stored it.
        backup: Arc<str>,
        /// Its number there, from 1.
        number: u32,
    },
}

/// Where a leaf is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafRef {
    /// Place in the pack table.
    pub pack: u32,
    /// Frame in that pack.
    pub frame: u32,
    /// Entries in it.
    pub entries: u32,
    /// SHA-256 of its contents: equal leaves have equal ones, wherever they are stored.
    pub digest: Sha256,
    /// What its first entry is sorted by: a path, or for relations the database's number in four bytes, high byte first.
    pub first: Vec<u8>,
}

impl PackTable {
    /// Makes a table; a place that is `None` is vacant.
    pub fn new(packs: Vec<Option<PackRef>>) -> Self {
        Self(packs)
    }

    /// Returns the pack at a place, if one is there.
    pub fn get(&self, place: u32) -> Option<&PackRef> {
        self.0.get(place as usize)?.as_ref()
    }

    /// Returns all places in order; one that is `None` is vacant.
    pub fn places(&self) -> &[Option<PackRef>] {
        &self.0
    }

    /// Returns the packs there are.
    pub fn iter(&self) -> impl Iterator<Item = &PackRef> {
        self.0.iter().flatten()
    }

    /// Returns the table as stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![b'W', b'V', b'P', TABLES_VERSION];
        let mut backups: Vec<&Arc<str>> = Vec::new();
        for PackRef { source: PackSource::Lane { backup, .. }, .. } in self.iter() {
            if !backups.iter().rev().any(|known| *known == backup) {
                backups.push(backup);
            }
        }
        varint::put(backups.len() as u64, &mut out);
        for backup in &backups {
            out.push(LANE);
            varint::put(backup.len() as u64, &mut out);
            out.extend_from_slice(backup.as_bytes());
        }
        varint::put(self.0.len() as u64, &mut out);
        for place in &self.0 {
            let Some(pack) = place else {
                out.push(0);
                continue;
            };
            let PackSource::Lane { backup, number } = &pack.source;
            let source = backups.iter().position(|known| *known == backup).expect("gathered above");
            varint::put(source as u64 + 1, &mut out);
            varint::put(u64::from(*number), &mut out);
            varint::put(pack.stored_bytes, &mut out);
            varint::put(u64::from(pack.frames), &mut out);
            out.extend_from_slice(pack.sha256.bytes());
            out.extend_from_slice(pack.table_sha256.bytes());
        }
        out
    }

    /// Reads a table.
    ///
    /// # Errors
    /// [`FormatError::Version`] if it is newer, [`FormatError::Nonsense`] for a source that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = begin(bytes, b"WVP", PACKS)?;
        let count = bounded(&mut reader, 2)?;
        let mut backups: Vec<Arc<str>> = Vec::new();
        for _ in 0..count {
            let kind = reader.byte()?;
            if kind != LANE {
                return Err(reader.nonsense(format!("packs of kind {kind}, which this walvault does not know")));
            }
            let name = std::str::from_utf8(reader.counted()?);
            backups.push(name.map_err(|_| reader.nonsense("a backup whose name is no text"))?.into());
        }
        let count = bounded(&mut reader, 1)?;
        let mut packs = Vec::new();
        for _ in 0..count {
            packs.push(match reader.small()? {
                0 => None,
                source => Some(decode_pack(&mut reader, backups.get(source as usize - 1))?),
            });
        }
        match reader.is_empty() {
            true => Ok(Self(packs)),
            false => Err(reader.nonsense("bytes after the last pack")),
        }
    }
}

fn decode_pack(reader: &mut Reader<'_>, backup: Option<&Arc<str>>) -> Result<PackRef, FormatError> {
    let backup = backup.ok_or_else(|| reader.nonsense("a pack of a backup that is not listed"))?.clone();
    Ok(PackRef {
        source: PackSource::Lane { backup, number: reader.small()? },
        stored_bytes: reader.number()?,
        frames: reader.small()?,
        sha256: digest(reader)?,
        table_sha256: digest(reader)?,
    })
}

/// Returns where leaves are, as stored.
pub fn encode_leaves(leaves: &[LeafRef], relations: &[LeafRef]) -> Vec<u8> {
    let mut out = vec![b'W', b'V', b'I', TABLES_VERSION];
    for list in [leaves, relations] {
        varint::put(list.len() as u64, &mut out);
        for leaf in list {
            varint::put(u64::from(leaf.pack), &mut out);
            varint::put(u64::from(leaf.frame), &mut out);
            varint::put(u64::from(leaf.entries), &mut out);
            out.extend_from_slice(leaf.digest.bytes());
            varint::put(leaf.first.len() as u64, &mut out);
            out.extend_from_slice(&leaf.first);
        }
    }
    out
}

/// Reads where leaves are: of files, and of relations.
///
/// # Errors
/// [`FormatError::Version`] if it is newer, [`FormatError::Nonsense`] if it makes no sense, such as leaves out of order.
pub fn decode_leaves(bytes: &[u8], packs: &PackTable) -> Result<[Vec<LeafRef>; 2], FormatError> {
    let mut reader = begin(bytes, b"WVI", LEAVES)?;
    let lists = [decode_list(&mut reader, packs)?, decode_list(&mut reader, packs)?];
    match reader.is_empty() {
        true => Ok(lists),
        false => Err(reader.nonsense("bytes after the last leaf")),
    }
}

fn decode_list(reader: &mut Reader<'_>, packs: &PackTable) -> Result<Vec<LeafRef>, FormatError> {
    let count = bounded(reader, LEAST_REFERENCE - 1)?;
    let mut leaves: Vec<LeafRef> = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (pack, frame, entries) = (reader.small()?, reader.small()?, reader.small()?);
        let digest = digest(reader)?;
        let first = reader.counted()?.to_vec();
        if packs.get(pack).is_none_or(|pack| frame >= pack.frames) {
            return Err(reader.nonsense(format!("a leaf in frame {frame} of pack {pack}, which is not listed")));
        }
        // A file that goes on, and a database of many relations, begin more than one leaf.
        if first.len() > KEY_LIMIT || leaves.last().is_some_and(|last| last.first > first) {
            return Err(reader.nonsense("leaves out of order"));
        }
        leaves.push(LeafRef { pack, frame, entries, digest, first });
    }
    Ok(leaves)
}

fn begin<'a>(bytes: &'a [u8], name: &[u8; 3], document: &'static str) -> Result<Reader<'a>, FormatError> {
    let mut reader = Reader::new(bytes, document);
    if reader.bytes(3)? != name {
        return Err(FormatError::NotOurs);
    }
    match reader.byte()? {
        TABLES_VERSION => Ok(reader),
        found => Err(FormatError::Version { found: found.into(), known: TABLES_VERSION.into() }),
    }
}

/// Reads a count of things that take at least `each` bytes: one that lies cannot make us allocate.
fn bounded(reader: &mut Reader<'_>, each: u64) -> Result<u64, FormatError> {
    let count = reader.number()?;
    if count > reader.remaining() as u64 / each {
        return Err(reader.nonsense(format!("{count} things in {} bytes", reader.remaining())));
    }
    Ok(count)
}

fn digest(reader: &mut Reader<'_>) -> Result<Sha256, FormatError> {
    Ok(Sha256::from_bytes(reader.bytes(32)?.try_into().expect("32 bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packs() -> PackTable {
        let pack = |backup: &str, number| PackRef {
            source: PackSource::Lane { backup: backup.into(), number },
            stored_bytes: 8 << 20,
            frames: 40,
            sha256: Sha256::of(backup.as_bytes()),
            table_sha256: Sha256::of(b"table"),
        };
        PackTable::new(vec![Some(pack("older", 7)), None, Some(pack("newer", 1)), Some(pack("older", 8))])
    }

    fn leaf(pack: u32, frame: u32, first: &str) -> LeafRef {
        LeafRef { pack, frame, entries: 3, digest: Sha256::of(b"leaf"), first: first.into() }
    }

    #[test]
    fn tables_come_back_with_their_vacant_places() {
        let packs = packs();
        assert_eq!(PackTable::decode(&packs.encode()), Ok(packs.clone()));
        assert_eq!((packs.get(1), packs.get(4), packs.iter().count()), (None, None, 3));
        let (files, relations) = (vec![leaf(0, 39, "a"), leaf(2, 0, "b")], vec![leaf(3, 3, "\0\0\0\u{5}")]);
        assert_eq!(decode_leaves(&encode_leaves(&files, &relations), &packs), Ok([files, relations]));
    }

    #[test]
    fn leaves_out_of_order_or_in_no_pack_are_refused() {
        for leaves in [vec![leaf(0, 0, "b"), leaf(0, 1, "a")], vec![leaf(1, 0, "a")], vec![leaf(0, 40, "a")]] {
            let refused = decode_leaves(&encode_leaves(&leaves, &[]), &packs());
            assert!(matches!(refused, Err(FormatError::Nonsense { .. })), "{leaves:?}");
        }
    }

    #[test]
    fn packs_from_a_place_that_is_not_known_are_refused() {
        let mut bytes = packs().encode();
        bytes[5] = 9;
        let refused = PackTable::decode(&bytes).expect_err("no such kind");
        assert!(refused.to_string().contains("kind 9"), "{refused}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(tail: Vec<u8>) {
            let _ = PackTable::decode(&[b"WVP\x01", &tail[..]].concat());
            let _ = decode_leaves(&[b"WVI\x01", &tail[..]].concat(), &packs());
        }
    }
}
