//! Leaves of a manifest, read one after the other.
//!
//! Memory holds one leaf and the stored bytes of some that follow it, whatever the size of the manifest.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use super::RepoError;
use super::backups::PackReader;
use super::lane::Lane;
use super::packs::{KEPT_BYTES, Packs, WholePack};
use crate::format::leaf::{self, Entry, LEAF_LIMIT};
use crate::format::leaf_order::LeafOrder;
use crate::format::relations::{self, Relation};
use crate::format::tables::{LeafRef, Tables};
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
        let packs = Lent::Own(Packs::new(self, &tables.packs));
        Leaves { reader: Reader::new(packs, &tables.leaves), order: Some(LeafOrder::new(&tables.packs)) }
    }

    /// Reads the leaves of relations.
    pub fn relations<'a>(&'a self, tables: &'a Tables) -> RelationLeaves<'a> {
        let packs = Lent::Own(Packs::new(self, &tables.packs));
        RelationLeaves { reader: Reader::new(packs, &tables.relations), last: None }
    }
}

impl<'a> Packs<'a> {
    /// Reads the leaves of files and directories. What was read of them is kept for the next time, if it is not too much.
    pub fn leaves(&'a self, tables: &'a Tables) -> Leaves<'a> {
        let order = Some(LeafOrder::new(&tables.packs));
        Leaves { reader: Reader::new(Lent::Others(self), &tables.leaves), order }
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

/// Packs of its own, or of whoever reads more of them.
enum Lent<'a> {
    Own(Packs<'a>),
    Others(&'a Packs<'a>),
}

impl<'a> Deref for Lent<'a> {
    type Target = Packs<'a>;

    fn deref(&self) -> &Packs<'a> {
        match self {
            Lent::Own(packs) => packs,
            Lent::Others(packs) => packs,
        }
    }
}

/// Reads frames that references name.
struct Reader<'a> {
    packs: Lent<'a>,
    references: &'a [LeafRef],
    /// How many of them lie in each pack.
    in_pack: HashMap<u32, u32>,
    next: usize,
    open: Option<(u32, Open)>,
    raw: Vec<u8>,
}

/// A pack with leaves in it.
enum Open {
    /// Little else is in it.
    Whole(Arc<WholePack>),
    /// The pack, and of it the first and last frame that are at hand, and their stored bytes.
    Parts(Box<PackReader>, Option<(u32, u32, Bytes)>),
}

impl<'a> Reader<'a> {
    fn new(packs: Lent<'a>, references: &'a [LeafRef]) -> Self {
        let mut in_pack = HashMap::new();
        references.iter().for_each(|reference| *in_pack.entry(reference.pack).or_default() += 1);
        Self { packs, references, in_pack, next: 0, open: None, raw: Vec::new() }
    }

    /// Reads the next leaf's bytes and compares them with their digest.
    fn advance(&mut self) -> Result<Option<&'a LeafRef>, RepoError> {
        let Some(reference) = self.references.get(self.next) else { return Ok(None) };
        let mut open = match self.open.take() {
            Some((place, open)) if place == reference.pack => open,
            _ => self.open(reference.pack)?,
        };
        let pack = match &open {
            Open::Whole(whole) => whole.reader(),
            Open::Parts(pack, _) => pack,
        };
        let raw_len = pack.frame(reference.frame)?.raw_len;
        if raw_len > LEAF_LIMIT {
            return Err(pack.wrong(FormatError::TooLarge { bytes: raw_len.into(), limit: LEAF_LIMIT.into() }));
        }
        match &mut open {
            Open::Whole(whole) => whole.decode(reference.frame, &mut self.raw)?,
            Open::Parts(pack, ahead) => {
                if !ahead.as_ref().is_some_and(|(first, last, _)| (*first..=*last).contains(&reference.frame)) {
                    let last = self.last_ahead(pack, reference)?;
                    *ahead = Some((reference.frame, last, pack.read(reference.frame, last)?));
                }
                let (first, _, stored) = ahead.as_ref().expect("read above");
                pack.decode(stored, *first, reference.frame, &mut self.raw)?;
            }
        }
        let differs = Sha256::of(&self.raw) != reference.digest;
        self.open = Some((reference.pack, open));
        if differs {
            return Err(self.wrong(FormatError::Damaged { part: "manifest leaf" }));
        }
        self.next += 1;
        Ok(Some(reference))
    }

    fn open(&self, place: u32) -> Result<Open, RepoError> {
        let pack = self.packs.reference(place);
        let leaves = self.in_pack.get(&place).copied().unwrap_or_default();
        if pack.stored_bytes <= KEPT_BYTES && leaves >= pack.frames.div_ceil(2) {
            return Ok(Open::Whole(self.packs.kept(place)?));
        }
        Ok(Open::Parts(Box::new(self.packs.reader(place)?), None))
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
            Some((_, Open::Whole(whole))) => whole.reader().wrong(source),
            Some((_, Open::Parts(pack, _))) => pack.wrong(source),
            None => RepoError::Object { key: "a manifest".to_owned(), source },
        }
    }
}
