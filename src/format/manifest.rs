//! A backup's manifest: two JSON documents and two [tables](super::tables) in one object.
//!
//! The *envelope* says what a first look needs: timeline, positions, totals. The *root* says what a restore needs to
//! begin: the label, `pg_control`, tablespaces, facts of the server. Both are small whatever the cluster's size; what grows
//! with it, packs and leaves, stands in the tables. All are separate frames with digests of their own, so that one is read
//! without the others, and a later release can seal the root and leave envelope and packs readable.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::FormatError;
use super::configuration::StoredConfiguration;
use super::digest::Sha256;
use super::frame::{self, Compressor};
use super::object::{Kind, NewObject, Object, read_u32};
use super::tables::{self, PackTable, Tables};
use crate::pg::lsn::Lsn;
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;

/// Version of both documents. Readers know every version, writers write the last.
/// - 1: first release.
pub const MANIFEST_VERSION: u32 = 1;

/// Largest document or table that makes sense: three million packs.
const DOCUMENT_LIMIT: u32 = 256 << 20;

/// Damaged pages that a root lists; all are counted.
pub const DAMAGED_LISTED: usize = 1000;

/// Documents and tables in the object: envelope, root, packs, leaves.
const PARTS: usize = 4;
/// Bytes that the section has for each: stored length, length, digest of the stored bytes.
const PART_BYTES: usize = 40;

/// What a manifest says without its root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// The backup's name.
    pub backup: String,
    /// The lane it belongs to.
    pub lane: String,
    /// 1 for the manifest that committed the backup; higher ones replace it.
    pub generation: u32,
    /// The backup whose frames it shares, for one that stored only what changed.
    pub parent: Option<String>,
    /// Server major.
    pub major: u16,
    /// Timeline the backup was taken on.
    pub timeline: TimelineId,
    /// First position that recovery reads.
    pub start_lsn: Lsn,
    /// Position that recovery must reach before the copy is consistent.
    pub stop_lsn: Lsn,
    /// When copying began, by the server's clock.
    pub started_at: DateTime<Utc>,
    /// When `stop_lsn` was reached, by the server's clock.
    pub stopped_at: DateTime<Utc>,
    /// Bytes in a WAL segment.
    pub segment_size: u32,
    /// Bytes of all files that a restore writes.
    pub bytes: u64,
    /// Bytes of the packs that this backup stored.
    pub stored_bytes: u64,
    /// Bytes of all packs that it names, whichever backup stored them; `None` if they are those that it stored.
    #[serde(default)]
    pub named_bytes: Option<u64>,
    /// Files that a restore writes.
    pub files: u64,
    /// Notes of the operator's, by key.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Packs that it needs.
    pub packs: u64,
    /// The WAL that makes the copy one moment, as `backup_manifest` lists it: one range a timeline.
    pub wal: Vec<WalRange>,
}

/// A stretch of the log on one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it begins.
    pub start_lsn: Lsn,
    /// Where it ends.
    pub stop_lsn: Lsn,
}

/// What a restore needs besides packs and leaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Root {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// The server's system identifier.
    pub system_id: SystemId,
    /// `backup_label`, byte for byte as the server gave it, but for the lines that name a backup that it built on.
    pub backup_label: String,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Databases by name.
    pub databases: Vec<Database>,
    /// The limits in `pg_control`, which a recovering server must be able to meet.
    pub limits: Limits,
    /// `server_version` as the server prints it.
    pub server_version: String,
    /// Bytes in a data page.
    pub block_size: u32,
    /// Pages in a relation's segment file.
    pub relation_segment_blocks: u32,
    /// Bytes in a WAL page.
    pub wal_block_size: u32,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
    /// Configuration files outside the data directory; `None` if there are none.
    #[serde(default)]
    pub configuration: Option<StoredConfiguration>,
    /// Links in the data directory, which come back as what they led to or not at all.
    #[serde(default)]
    pub links: Vec<Link>,
    /// `global/pg_control`, copied after everything else.
    #[serde(with = "hex_bytes")]
    pub pg_control: Vec<u8>,
    /// Pages whose checksum did not match when they were copied, also after they were read again: the first
    /// [`DAMAGED_LISTED`] that were found.
    pub damaged_pages: Vec<DamagedPage>,
    /// How many there are.
    pub damaged_total: u64,
}

/// A tablespace outside the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its number, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where it was on the server.
    pub path: String,
    /// The same place relative to the data directory, if it lay in there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<String>,
}

/// A link in the data directory that is no tablespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its path, relative to the data directory.
    pub path: String,
    /// Where it led.
    pub target: String,
    /// What is in the backup of it.
    pub kept: LinkKept,
}

/// What a backup holds in place of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKept {
    /// What it led to, as a file or directory of its own.
    Contents,
    /// An empty directory: what belongs there is never copied, such as WAL.
    Emptied,
    /// Nothing.
    Nothing,
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its number, the name of its directory.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its default tablespace.
    pub tablespace: u32,
    /// How many relations' names the relation leaves have of it; `None` if they could not be asked.
    pub relations: Option<u64>,
}

/// Settings whose values on the recovering server must not be lower than these.
///
/// Source: `CheckRequiredParameterValues` in `src/backend/access/transam/xlogrecovery.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // PostgreSQL's own names
pub struct Limits {
    pub max_connections: u32,
    pub max_worker_processes: u32,
    pub max_wal_senders: u32,
    pub max_prepared_transactions: u32,
    pub max_locks_per_transaction: u32,
}

impl Envelope {
    /// Returns the bytes of all packs that the backup names: what a restore fetches at most.
    pub fn named_bytes(&self) -> u64 {
        self.named_bytes.unwrap_or(self.stored_bytes)
    }
}

impl Limits {
    /// Returns the higher of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self.max_prepared_transactions.max(other.max_prepared_transactions),
            max_locks_per_transaction: self.max_locks_per_transaction.max(other.max_locks_per_transaction),
        }
    }

    /// Each with PostgreSQL's name for it.
    pub fn named(self) -> [(&'static str, u32); 5] {
        [
            ("max_connections", self.max_connections),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
        ]
    }
}

/// A page whose checksum did not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPage {
    /// File, relative to the data directory.
    pub path: String,
    /// Page in that file.
    pub page: u32,
}

/// Both documents.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// What expiry and a first look need.
    pub envelope: Envelope,
    /// What a restore needs.
    pub root: Root,
}

impl Manifest {
    /// Returns the object to store under `identity`.
    pub fn encode(&self, tables: &Tables, identity: &str) -> Result<Vec<u8>, FormatError> {
        let mut object = NewObject::new(Kind::Manifest, identity)?;
        let mut compressor = Compressor::new(9);
        let mut section = Vec::with_capacity(PARTS * PART_BYTES);
        let mut raw_len = 0;
        for part in 0..PARTS {
            let raw = match part {
                0 => serde_json::to_vec(&self.envelope).expect("a struct of plain values"),
                1 => serde_json::to_vec(&self.root).expect("a struct of plain values"),
                2 => tables.packs.encode(),
                _ => tables::encode_leaves(&tables.leaves, &tables.relations),
            };
            if raw.len() > DOCUMENT_LIMIT as usize {
                return Err(FormatError::TooLarge { bytes: raw.len() as u64, limit: DOCUMENT_LIMIT.into() });
            }
            let at = object.len();
            let stored = compressor.append(&raw, object.body());
            section.extend_from_slice(&(stored as u32).to_le_bytes());
            section.extend_from_slice(&(raw.len() as u32).to_le_bytes());
            section.extend_from_slice(Sha256::of(&object.body()[at..]).bytes());
            raw_len += raw.len() as u64;
        }
        Ok(object.finish(Sha256::of(&section), raw_len, &section).0)
    }

    /// Reads a manifest that was made for `identity`, without its tables.
    ///
    /// # Errors
    /// Whatever [`Object::open`] finds; [`FormatError::Nonsense`] if the documents make no sense.
    pub fn decode(stored: &[u8], identity: &str) -> Result<Self, FormatError> {
        let parts = Parts::open(stored, identity)?;
        Ok(Self { envelope: parse(&parts.read(0)?)?, root: parse(&parts.read(1)?)? })
    }

    /// Reads a manifest that was made for `identity`, whole.
    ///
    /// # Errors
    /// As [`Manifest::decode`]; also if the tables make no sense.
    pub fn decode_whole(stored: &[u8], identity: &str) -> Result<(Self, Tables), FormatError> {
        let parts = Parts::open(stored, identity)?;
        let packs = PackTable::decode(&parts.read(2)?)?;
        let [leaves, relations] = tables::decode_leaves(&parts.read(3)?, &packs)?;
        Ok((Self::decode(stored, identity)?, Tables { packs, leaves, relations }))
    }
}

/// The frames of a manifest.
struct Parts<'a> {
    frames: Vec<(&'a [u8], u32)>,
}

impl<'a> Parts<'a> {
    fn open(stored: &'a [u8], identity: &str) -> Result<Self, FormatError> {
        let object = Object::open(stored, Kind::Manifest, identity)?;
        let nonsense = |problem: String| FormatError::Nonsense { document: "manifest", problem };
        if object.section.len() != PARTS * PART_BYTES {
            return Err(nonsense(format!("a trailer section of {} bytes", object.section.len())));
        }
        if Sha256::of(object.section) != object.tail.raw {
            return Err(FormatError::Damaged { part: "manifest" });
        }
        let mut frames = Vec::with_capacity(PARTS);
        let mut rest = object.body;
        for part in object.section.chunks_exact(PART_BYTES) {
            let (stored_len, raw_len) = (read_u32(part, 0) as usize, read_u32(part, 4));
            if stored_len > rest.len() || raw_len > DOCUMENT_LIMIT {
                return Err(nonsense(format!("a document of {raw_len} bytes in {stored_len}")));
            }
            let (frame, after) = rest.split_at(stored_len);
            if Sha256::of(frame).bytes()[..] != part[8..] {
                return Err(FormatError::Damaged { part: "manifest" });
            }
            frames.push((frame, raw_len));
            rest = after;
        }
        match rest.is_empty() {
            true => Ok(Self { frames }),
            false => Err(FormatError::Damaged { part: "manifest" }),
        }
    }

    fn read(&self, part: usize) -> Result<Vec<u8>, FormatError> {
        let (frame, raw_len) = self.frames[part];
        frame::decompress(frame, raw_len as usize)
    }
}

/// Bytes as hex digits.
mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        hex::decode(text).map_err(serde::de::Error::custom)
    }
}

fn parse<T: serde::de::DeserializeOwned>(document: &[u8]) -> Result<T, FormatError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let nonsense =
        |error: serde_json::Error| FormatError::Nonsense { document: "manifest", problem: error.to_string() };
    let Version { version } = serde_json::from_slice(document).map_err(nonsense)?;
    if version > MANIFEST_VERSION {
        return Err(FormatError::Version { found: version as u16, known: MANIFEST_VERSION as u16 });
    }
    serde_json::from_slice(document).map_err(nonsense)
}
