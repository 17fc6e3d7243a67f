//! Leaves of a manifest, read one after the other.
//!
//! Memory holds one leaf and the stored bytes of a few that follow it, whatever the size of the manifest.

use bytes::Bytes;

use super::RepoError;
use super::backups::PackReader;
use super::lane::Lane;
use crate::format::leaf::{self, Entry, LEAF_LIMIT};
use crate::format::leaf_order::LeafOrder;
use crate::format::relations::{self, Relation};
use crate::format::tables::{LeafRef, PackTable, Tables};
use crate::format::{FormatError, Sha256};

/// Stored bytes of leaves read in one request.
const AHEAD_BYTES: u64 = 512 << 10;

/// What a manifest's leaves list, from the first path to the last.
pub struct Leaves<'a> {
    reader: Reader<'a>,
    order: Option<LeafOrder<'a>>,
}

/// Names of relations, from the first database to the last.
pub struct RelationLeaves<'a> {
    reader: Reader<'a>,
    last: Option<Relation>,
}

impl Lane {
    /// Reads the leaves of files and directories. May be asked for again: what the digests pin does not change.
    pub fn leaves<'a>(&'a self, tables: &'a Tables) -> Leaves<'a> {
        let order = Some(LeafOrder::new(&tables.packs));
        Leaves { reader: Reader::new(self, &tables.packs, &tables.leaves), order }
    }

    /// Reads the leaves of relations.
    pub fn relations<'a>(&'a self, tables: &'a Tables) -> RelationLeaves<'a> {
        RelationLeaves { reader: Reader::new(self, &tables.packs, &tables.relations), last: None }
    }
}

impl Leaves<'_> {
    /// Returns the entries of the next leaf, checked against those before it; `None` after the last.
    ///
    /// # Errors
    /// [`RepoError::Object`] for a leaf that is damaged, or that does not follow the one before.
    pub fn next_leaf(&mut self) -> Result<Option<Vec<Entry>>, RepoError> {
        let Some(reference) = self.reader.advance()? else {
            return match self.order.take().map_or(Ok(()), LeafOrder::finish) {
                Ok(()) => Ok(None),
                Err(source) => Err(self.reader.wrong(source)),
            };
        };
        let entries = leaf::decode(&self.reader.raw).map_err(|source| self.reader.wrong(source))?;
        let accepted = self.order.as_mut().map_or(Ok(()), |order| order.accept(reference, &entries));
        accepted.map_err(|source| self.reader.wrong(source))?;
        Ok(Some(entries))
    }
}

impl RelationLeaves<'_> {
    /// Returns the next relations; `None` after the last.
    ///
    /// # Errors
    /// [`RepoError::Object`] for a leaf that is damaged, or that does not follow the one before.
    pub fn next_leaf(&mut self) -> Result<Option<Vec<Relation>>, RepoError> {
        let Some(reference) = self.reader.advance()? else { return Ok(None) };
        let found = relations::decode(&self.reader.raw).map_err(|source| self.reader.wrong(source))?;
        let key = |relation: &Relation| (relation.database, relation.schema.clone(), relation.name.clone());
        let follows = self.last.as_ref().zip(found.first()).is_none_or(|(last, first)| key(last) < key(first));
        if found.len() != reference.entries as usize || !follows {
            let problem = "relation leaves out of order".to_owned();
            return Err(self.reader.wrong(FormatError::Nonsense { document: "relation leaf", problem }));
        }
        self.last = found.last().cloned();
        Ok(Some(found))
    }
}

/// Reads frames that references name.
struct Reader<'a> {
    lane: &'a Lane,
    packs: &'a PackTable,
    references: &'a [LeafRef],
    next: usize,
    open: Option<(u32, PackReader)>,
    /// First and last frame of the open pack that are at hand, and their stored bytes.
    ahead: Option<(u32, u32, Bytes)>,
    raw: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(lane: &'a Lane, packs: &'a PackTable, references: &'a [LeafRef]) -> Self {
        Self { lane, packs, references, next: 0, open: None, ahead: None, raw: Vec::new() }
    }

    /// Reads the next leaf's bytes and compares them with their digest.
    fn advance(&mut self) -> Result<Option<&'a LeafRef>, RepoError> {
        let Some(reference) = self.references.get(self.next) else { return Ok(None) };
        if self.open.as_ref().is_none_or(|(place, _)| *place != reference.pack) {
            let pack = self.packs.get(reference.pack).expect("checked when the table was read");
            self.ahead = None;
            self.open = Some((reference.pack, self.lane.open_pack(pack)?));
        }
        let (_, pack) = self.open.as_ref().expect("opened above");
        let at_hand = |(first, last, _): &(u32, u32, Bytes)| (*first..=*last).contains(&reference.frame);
        if !self.ahead.as_ref().is_some_and(at_hand) {
            let last = self.last_ahead(pack, reference)?;
            self.ahead = Some((reference.frame, last, pack.read(reference.frame, last)?));
        }
        let (first, _, stored) = self.ahead.as_ref().expect("read above");
        if pack.frame(reference.frame)?.raw_len > LEAF_LIMIT {
            return Err(pack.wrong(FormatError::TooLarge {
                bytes: pack.frame(reference.frame)?.raw_len.into(),
                limit: LEAF_LIMIT.into(),
            }));
        }
        pack.decode(stored, *first, reference.frame, &mut self.raw)?;
        if Sha256::of(&self.raw) != reference.digest {
            return Err(pack.wrong(FormatError::Damaged { part: "manifest leaf" }));
        }
        self.next += 1;
        Ok(Some(reference))
    }

    /// Returns the last of the frames that follow each other as the leaves do, up to a limit.
    fn last_ahead(&self, pack: &PackReader, from: &LeafRef) -> Result<u32, RepoError> {
        let start = pack.frame(from.frame)?.at;
        let mut last = from.frame;
        for next in &self.references[self.next + 1..] {
            if (next.pack, next.frame) != (from.pack, last + 1) {
                break;
            }
            let frame = pack.frame(next.frame)?;
            if frame.at + u64::from(frame.stored_len) - start > AHEAD_BYTES {
                break;
            }
            last = next.frame;
        }
        Ok(last)
    }

    fn wrong(&self, source: FormatError) -> RepoError {
        match &self.open {
            Some((_, pack)) => pack.wrong(source),
            None => RepoError::Object { key: "a manifest".to_owned(), source },
        }
    }
}
