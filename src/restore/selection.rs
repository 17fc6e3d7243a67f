//! Databases that a restore leaves out.
//!
//! Their files come back as zeros of their full lengths: without them, replay of the log would fail, which changes every
//! database. Most of what it writes there it makes anew, since the first change of a page after a checkpoint brings the
//! whole page along. Where it does not, it has to find a page that is no new one: see [`BarePages`]. Nobody can connect to
//! a database that was left out, whatever replay has made of it: see [`left_out`](crate::format::left_out).
//!
//! What all databases share always comes back, and so do the databases that `initdb` makes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::bare_pages::{BareError, BarePages};
use super::files::place;
use super::plan::Plan;
use crate::catalog::LaneCatalog;
use crate::error::ErrorKind;
use crate::format::Sha256;
use crate::format::crc;
use crate::format::leaf::{self, Entry, Node, Part, Piece};
use crate::format::left_out::{LEFT_OUT, VERSION_FILE};
use crate::format::manifest::{Database, Root};
use crate::pg::lsn::Lsn;
use crate::pg::page;
use crate::pg::relation_file::{Fork, RelationFile};
use crate::repo::Lane;

/// Databases that are never left out: `initdb` makes them, and others are made of them.
const ALWAYS: [&str; 3] = ["template0", "template1", "postgres"];
/// Databases with smaller numbers are `initdb`'s, whatever they are called by now.
///
/// Source: `FirstNormalObjectId` in `src/include/access/transam.h`.
const FIRST_NORMAL_OID: u32 = 16384;
/// Layout of pages since 8.3 (`PG_PAGE_LAYOUT_VERSION`).
const PAGE_LAYOUT: u16 = 4;
/// Bytes of a page's header before its first item.
const PAGE_HEADER_BYTES: u16 = 24;

/// Databases that an operator asks for, by the names that they had when the backup began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Databases {
    /// All.
    #[default]
    All,
    /// These, beside those that always come back.
    Only(Vec<String>),
    /// All but these.
    Except(Vec<String>),
}

/// Why databases cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum SelectionError {
    /// The backup does not say what its databases are called.
    #[error("backup {backup} does not know the names of its databases, so none can be left out; restore all of it")]
    NoNames {
        /// The backup.
        backup: String,
    },
    /// A name that no database had.
    #[error("there was no database {name} when backup {backup} began; there were {}", .has.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// The backup.
        backup: String,
        /// The names of all.
        has: Vec<String>,
    },
    /// A database that cannot be left out.
    #[error("database {name} cannot be left out: the server makes others of it, or is asked there")]
    Always {
        /// Its name.
        name: String,
    },
    /// The log could not be looked through.
    #[error("find the pages of databases left out that the log changes without bringing them along")]
    Log(#[from] BareError),
}

impl SelectionError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SelectionError::NoNames { .. } | SelectionError::Unknown { .. } | SelectionError::Always { .. } => {
                ErrorKind::Invalid
            }
            SelectionError::Log(source) => source.kind(),
        }
    }
}

/// What a restore leaves out.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    left_out: BTreeMap<u32, String>,
    bare: BarePages,
    block_size: u32,
    relation_segment_blocks: u32,
    checksums: bool,
}

impl Selection {
    /// Decides what is left out, and reads the log of the plan for what has to be there all the same.
    pub fn decide(lane: &Lane, catalog: &LaneCatalog, plan: &Plan, wanted: &Databases) -> Result<Self, SelectionError> {
        let root = &plan.manifest.root;
        let left_out: BTreeMap<u32, String> = left_out(root, &plan.manifest.envelope.backup, wanted)?
            .into_iter()
            .map(|database| (database.oid, database.name.clone()))
            .collect();
        let bare = if left_out.is_empty() {
            BarePages::default()
        } else {
            BarePages::find(lane, catalog, plan, left_out.keys().copied())?
        };
        Ok(Self {
            left_out,
            bare,
            block_size: root.block_size,
            relation_segment_blocks: root.relation_segment_blocks,
            checksums: root.data_checksums,
        })
    }

    #[cfg(test)]
    pub(super) fn leaving_out(oid: u32, name: &str) -> Self {
        let left_out = [(oid, name.to_owned())].into();
        Self { left_out, block_size: 8192, relation_segment_blocks: 131_072, ..Self::default() }
    }

    /// Databases left out, by their numbers.
    pub fn left_out(&self) -> &BTreeMap<u32, String> {
        &self.left_out
    }

    /// Whether anything is left out.
    pub fn is_partial(&self) -> bool {
        !self.left_out.is_empty()
    }

    /// Bytes of these entries that are left out.
    pub(super) fn left_out_bytes(&self, entries: &[Entry]) -> u64 {
        entries.iter().filter(|entry| self.leaves_out(&entry.path).is_some()).map(bytes_of).sum()
    }

    /// Makes of entries what is restored of them. Bare pages come later, see [`Selection::write_bare`].
    pub(super) fn apply(&self, entries: &mut [Entry]) {
        if self.left_out.is_empty() {
            return;
        }
        for entry in entries {
            let Some(name) = self.leaves_out(&entry.path) else { continue };
            let is_version = name == VERSION_FILE;
            let Node::File(part) = &mut entry.node else { continue };
            match (is_version, &mut part.file) {
                (true, Some(file)) if part.at == 0 => {
                    part.pieces = vec![Piece::Inline(LEFT_OUT.to_vec())];
                    file.size = LEFT_OUT.len() as u64;
                    file.crc = crc32c::crc32c(LEFT_OUT);
                    file.digest = Some(Sha256::of(LEFT_OUT));
                }
                _ => empty(part),
            }
        }
    }

    /// Gives files with bare pages the checksums that they have in the end.
    pub(super) fn finish(&self, entries: &mut [Entry]) {
        for entry in entries {
            let pages = self.bare_in(entry);
            let Node::File(Part { file: Some(file), .. }) = &mut entry.node else { continue };
            if !pages.is_empty() {
                file.crc = self.crc_with(&pages, file.size);
            }
        }
    }

    /// Writes the bare pages of these entries, whose files are zeros by now.
    ///
    /// # Errors
    /// The file, and what the system said.
    pub(super) fn write_bare(&self, root: &Path, entries: &[Entry]) -> Result<(), (PathBuf, io::Error)> {
        for entry in entries {
            let pages = self.bare_in(entry);
            if pages.is_empty() {
                continue;
            }
            let path = place(root, &entry.path);
            let write = || -> io::Result<()> {
                let file = File::options().write(true).open(&path)?;
                pages.iter().try_for_each(|(at, block)| file.write_all_at(&self.bare_page(*block), *at))
            };
            write().map_err(|source| (path.clone(), source))?;
        }
        Ok(())
    }

    /// Whether any page is bare.
    pub(super) fn has_bare(&self) -> bool {
        !self.bare.is_empty()
    }

    /// Returns the name of a file that belongs to a database left out.
    fn leaves_out<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let (database, name) = in_database(path)?;
        self.left_out.contains_key(&database).then_some(name)
    }

    /// The bare pages of a file: where in the file, and the block's number in its fork.
    fn bare_in(&self, entry: &Entry) -> Vec<(u64, u32)> {
        let Node::File(Part { file: Some(leaf::File { size, .. }), .. }) = &entry.node else { return Vec::new() };
        let Some((database, name)) =
            in_database(&entry.path).filter(|(database, _)| self.left_out.contains_key(database))
        else {
            return Vec::new();
        };
        let Some(file) = RelationFile::parse(name).filter(|file| matches!(file.fork, Fork::Main | Fork::Init)) else {
            return Vec::new();
        };
        let Some(first) = file.first_block(self.relation_segment_blocks) else { return Vec::new() };
        let blocks = (size / u64::from(self.block_size.max(1))).min(u64::from(self.relation_segment_blocks)) as u32;
        let pages = self.bare.of(database, file.oid, file.fork == Fork::Init, first..first.saturating_add(blocks));
        pages.map(|block| (u64::from(block - first) * u64::from(self.block_size), block)).collect()
    }

    /// A page that holds nothing, and that replay takes for newer than every record.
    fn bare_page(&self, block: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.block_size as usize];
        let size = self.block_size as u16;
        bytes[..8].copy_from_slice(&Lsn::new(u64::MAX).bytes().to_le_bytes());
        bytes[12..14].copy_from_slice(&PAGE_HEADER_BYTES.to_le_bytes());
        bytes[14..16].copy_from_slice(&size.to_le_bytes());
        bytes[16..18].copy_from_slice(&size.to_le_bytes());
        bytes[18..20].copy_from_slice(&(size | PAGE_LAYOUT).to_le_bytes());
        if self.checksums {
            let checksum = page::checksum(&bytes, block);
            bytes[8..10].copy_from_slice(&checksum.to_le_bytes());
        }
        bytes
    }

    /// The checksum of a file of zeros with these pages in it.
    fn crc_with(&self, pages: &[(u64, u32)], size: u64) -> u32 {
        let (mut crc, mut covered) = (0, 0);
        for (at, block) in pages {
            crc = crc::append_zeros(crc, at - covered);
            crc = crc32c::crc32c_append(crc, &self.bare_page(*block));
            covered = at + u64::from(self.block_size);
        }
        crc::append_zeros(crc, size - covered)
    }
}

/// Chooses the databases that are left out.
fn left_out<'a>(root: &'a Root, backup: &str, wanted: &Databases) -> Result<Vec<&'a Database>, SelectionError> {
    let named = match wanted {
        Databases::All => return Ok(Vec::new()),
        Databases::Only(names) | Databases::Except(names) => names,
    };
    if root.databases.is_empty() {
        return Err(SelectionError::NoNames { backup: backup.to_owned() });
    }
    let is_known = |name: &&String| root.databases.iter().any(|database| database.name == **name);
    if let Some(unknown) = named.iter().find(|name| !is_known(name)) {
        let mut has: Vec<String> = root.databases.iter().map(|database| database.name.clone()).collect();
        has.sort();
        return Err(SelectionError::Unknown { name: unknown.clone(), backup: backup.to_owned(), has });
    }
    let always = |database: &Database| database.oid < FIRST_NORMAL_OID || ALWAYS.contains(&database.name.as_str());
    match wanted {
        Databases::Only(_) => {
            let chosen = |database: &&Database| always(database) || named.contains(&database.name);
            Ok(root.databases.iter().filter(|database| !chosen(database)).collect())
        }
        _ => {
            let chosen: Vec<&Database> =
                root.databases.iter().filter(|database| named.contains(&database.name)).collect();
            match chosen.iter().find(|database| always(database)) {
                Some(database) => Err(SelectionError::Always { name: database.name.clone() }),
                None => Ok(chosen),
            }
        }
    }
}

/// Returns the database whose directory a path lies in, and the file's name.
fn in_database(path: &[u8]) -> Option<(u32, &[u8])> {
    let mut names = path.split(|byte| *byte == b'/');
    match names.next()? {
        b"base" => {}
        b"pg_tblspc" => drop((names.next()?, names.next()?)),
        _ => return None,
    }
    let database = std::str::from_utf8(names.next()?).ok()?.parse().ok()?;
    Some((database, names.next_back()?))
}

/// Makes a stretch of a file one of zeros.
fn empty(part: &mut Part) {
    let len = part.end() - part.at;
    part.pieces = if len == 0 { Vec::new() } else { vec![Piece::Zeros { len }] };
    if let Some(file) = &mut part.file {
        file.crc = crc::append_zeros(0, file.size);
        file.digest = None;
    }
}

fn bytes_of(entry: &Entry) -> u64 {
    match &entry.node {
        Node::File(part) => part.end() - part.at,
        Node::Directory { .. } => 0,
    }
}

#[cfg(test)]
mod tests;
