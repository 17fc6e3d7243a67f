//! Names of relations, asked of every database, for whoever looks for a table later.
//!
//! A backup does not depend on them: what cannot be asked is reported and left out.

use std::collections::BTreeMap;

use super::budget::LEAF_PACK_BYTES;
use super::copy::CopyError;
use super::leaves::{LentLeaves, RelationLeaves};
use super::packs::{PlaceSet, Shelf};
use crate::error;
use crate::format::relations::Relation;
use crate::format::tables::LeafRef;
use crate::instance::{DatabaseFacts, SessionError};

/// What was asked.
#[derive(Debug, Default)]
pub(super) struct RelationNames {
    pub leaves: Vec<LeafRef>,
    /// Packs that they are in.
    pub named: PlaceSet,
    /// For each database that answered, how many relations it has.
    pub counts: BTreeMap<u32, u64>,
    /// Databases that did not, and why.
    pub unknown: Vec<String>,
}

/// Asks one database for its relations, which it hands over until it is told to stop.
pub(super) type Ask<'a> =
    &'a mut dyn FnMut(&DatabaseFacts, &mut dyn FnMut(Relation) -> bool) -> Result<(), SessionError>;

/// Asks every database that lets itself be connected to.
pub(super) fn gather(
    databases: &[DatabaseFacts],
    ask: Ask<'_>,
    shelf: &Shelf<'_>,
    level: i32,
    lent: LentLeaves<'_>,
) -> Result<RelationNames, CopyError> {
    let mut names = RelationNames::default();
    let mut leaves = RelationLeaves::new(shelf, LEAF_PACK_BYTES, level, lent);
    // In the order of their numbers, as the leaves are sorted.
    let mut databases = databases.to_vec();
    databases.sort_by_key(|database| database.oid);
    for database in databases.iter().filter(|database| database.connectable) {
        let (mut count, mut failed) = (0, None);
        let asked = ask(database, &mut |relation| {
            count += 1;
            match leaves.add(&relation) {
                Ok(()) => true,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        match asked {
            Ok(()) => drop(names.counts.insert(database.oid, count)),
            Err(problem) => names.unknown.push(format!("{}: {}", database.name, error::chain(&problem))),
        }
    }
    (names.leaves, names.named) = leaves.finish()?;
    Ok(names)
}
