//! Leaves of relations: which name stood for which file when the backup began.
//!
//! Information: nothing that a restore writes rests on them. They find the files of a table that is asked for by name, and
//! say which table a damaged page belongs to. Sorted by database, schema and name, so that one relation, or one database,
//! is found by reading few leaves.

use super::FormatError;
use super::varint::{self, Reader};

/// Version of the encoding.
/// - 1: first release.
pub const RELATIONS_VERSION: u8 = 1;

const NAME: &str = "relation leaf";
/// A leaf is closed once it has this many bytes.
const LEAF_BYTES: usize = 128 * 1024;

/// One relation of one database.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Relation {
    /// OID of the database.
    pub database: u32,
    /// Schema, in UTF-8; in a database of encoding `SQL_ASCII`, whatever bytes it has.
    pub schema: Vec<u8>,
    /// Name, likewise.
    pub name: Vec<u8>,
    /// OID of the relation.
    pub oid: u32,
    /// Number in the names of its files; 0 if it has none.
    pub file: u32,
    /// OID of the tablespace that they are in.
    pub tablespace: u32,
    /// `relkind` of `pg_class`, a letter.
    pub kind: u8,
}

impl Relation {
    /// Returns schema and name for people; bytes that are not UTF-8 are replaced.
    pub fn full_name(&self) -> String {
        format!("{}.{}", String::from_utf8_lossy(&self.schema), String::from_utf8_lossy(&self.name))
    }
}

/// Fills leaves in the order of relations.
#[derive(Debug)]
pub struct RelationWriter {
    raw: Vec<u8>,
    entries: u32,
    first: u32,
}

/// A leaf that is full.
#[derive(Debug)]
pub struct RelationLeaf {
    /// Its bytes.
    pub raw: Vec<u8>,
    /// Entries in it.
    pub entries: u32,
    /// Database of the first.
    pub database: u32,
}

impl Default for RelationWriter {
    fn default() -> Self {
        Self { raw: vec![b'W', b'V', b'R', RELATIONS_VERSION], entries: 0, first: 0 }
    }
}

impl RelationWriter {
    /// Adds a relation; returns a leaf if one is full.
    pub fn add(&mut self, relation: &Relation) -> Option<RelationLeaf> {
        if self.entries == 0 {
            self.first = relation.database;
        }
        self.entries += 1;
        let out = &mut self.raw;
        varint::put(relation.database.into(), out);
        for text in [&relation.schema, &relation.name] {
            varint::put(text.len() as u64, out);
            out.extend_from_slice(text);
        }
        for number in [relation.oid, relation.file, relation.tablespace] {
            varint::put(number.into(), out);
        }
        out.push(relation.kind);
        (self.raw.len() >= LEAF_BYTES).then(|| std::mem::take(self).leaf())
    }

    /// Returns the last leaf, if anything is in it.
    pub fn finish(self) -> Option<RelationLeaf> {
        (self.entries > 0).then(|| self.leaf())
    }

    fn leaf(self) -> RelationLeaf {
        RelationLeaf { raw: self.raw, entries: self.entries, database: self.first }
    }
}

/// Reads a leaf of relations.
///
/// # Errors
/// [`FormatError::Version`] if it is newer; [`FormatError::Nonsense`] if they are out of order.
pub fn decode(bytes: &[u8]) -> Result<Vec<Relation>, FormatError> {
    let mut reader = Reader::new(bytes, NAME);
    if reader.bytes(3)? != b"WVR" {
        return Err(FormatError::NotOurs);
    }
    let version = reader.byte()?;
    if version != RELATIONS_VERSION {
        return Err(FormatError::Version { found: version.into(), known: RELATIONS_VERSION.into() });
    }
    let mut relations: Vec<Relation> = Vec::new();
    while !reader.is_empty() {
        let relation = Relation {
            database: reader.small()?,
            schema: reader.counted()?.to_vec(),
            name: reader.counted()?.to_vec(),
            oid: reader.small()?,
            file: reader.small()?,
            tablespace: reader.small()?,
            kind: reader.byte()?,
        };
        let key = |relation: &Relation| (relation.database, relation.schema.clone(), relation.name.clone());
        if relations.last().is_some_and(|last| key(last) >= key(&relation)) {
            return Err(reader.nonsense("relations out of order"));
        }
        relations.push(relation);
    }
    Ok(relations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn relation(database: u32, name: &str) -> Relation {
        let (schema, name) = (b"public".to_vec(), name.as_bytes().to_vec());
        Relation { database, schema, name, oid: 16384, file: 16390, tablespace: 1663, kind: b'r' }
    }

    #[test]
    fn relations_come_back_over_several_leaves() {
        let all: Vec<Relation> = (0..20_000).map(|n| relation(5 + n / 10_000, &format!("table_{n:06}"))).collect();
        let mut writer = RelationWriter::default();
        let mut leaves: Vec<RelationLeaf> = all.iter().filter_map(|relation| writer.add(relation)).collect();
        leaves.extend(writer.finish());
        assert!(leaves.len() > 3);
        let read: Vec<Relation> = leaves.iter().flat_map(|leaf| decode(&leaf.raw).expect("just written")).collect();
        assert_eq!(read, all);
        assert_eq!(leaves.iter().map(|leaf| leaf.entries).sum::<u32>(), 20_000);
    }

    #[test]
    fn relations_out_of_order_are_refused() {
        let mut writer = RelationWriter::default();
        writer.add(&relation(5, "b"));
        writer.add(&relation(5, "a"));
        let leaf = writer.finish().expect("two relations");
        assert!(matches!(decode(&leaf.raw), Err(FormatError::Nonsense { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(tail: Vec<u8>) {
            let _ = decode(&[b"WVR\x01", &tail[..]].concat());
        }
    }
}
