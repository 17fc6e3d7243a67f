//! `backup_manifest`: every file of a base backup with its size and checksum, as `pg_verifybackup` reads it.
//!
//! [`ManifestWriter`] writes one file after the other and holds none; [`BackupManifest`] reads a manifest whole.
//!
//! Source: `src/backend/backup/backup_manifest.c` (before 16 in `src/backend/replication/`),
//! `src/common/parse_manifest.c`, and "Backup Manifest Format" in the manual.

use std::io::{self, Write};

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::lsn::Lsn;
use super::system_id::SystemId;
use super::timeline::TimelineId;

const TIME_FORMAT: &str = "%Y-%m-%d %H:%M:%S GMT";

/// Which form a manifest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestVersion {
    /// PostgreSQL 13 to 16.
    V1,
    /// PostgreSQL 17 and later; names the cluster.
    V2(SystemId),
}

impl ManifestVersion {
    /// Returns the version that the tools of a major read and write.
    pub fn of_major(major: u16, system_id: SystemId) -> Self {
        if major < 17 { Self::V1 } else { Self::V2(system_id) }
    }
}

/// Writes a manifest, byte for byte as the server would.
///
/// Without [`finish`](Self::finish) what was written is no manifest.
pub struct ManifestWriter<W: Write> {
    out: Hashing<W>,
    files: u64,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins a manifest on `out`, which is best buffered.
    pub fn new(out: W, version: ManifestVersion) -> io::Result<Self> {
        let mut out = Hashing { out, hash: Sha256::new() };
        match version {
            ManifestVersion::V1 => writeln!(out, "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,")?,
            ManifestVersion::V2(system_id) => {
                writeln!(out, "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,")?;
                writeln!(out, "\"System-Identifier\": {system_id},")?;
            }
        }
        write!(out, "\"Files\": [")?;
        Ok(Self { out, files: 0 })
    }

    /// Adds a file.
    ///
    /// `path` is relative to the data directory, tablespaces under `pg_tblspc/<oid>`, and of any bytes; no path comes
    /// twice, and neither `backup_manifest` nor anything in `pg_wal` comes at all. `size` is in bytes, `crc32c` of them.
    pub fn file(&mut self, path: &[u8], size: u64, last_modified: DateTime<Utc>, crc32c: u32) -> io::Result<()> {
        write!(self.out, "{}\n{{ ", self.separator())?;
        match std::str::from_utf8(path) {
            Ok(path) => write!(self.out, "\"Path\": {}", serde_json::Value::from(path))?,
            Err(_) => write!(self.out, "\"Encoded-Path\": \"{}\"", hex::encode(path))?,
        }
        let last_modified = last_modified.format(TIME_FORMAT);
        // The server prints its checksum's memory, and its memory is little-endian.
        let checksum = hex::encode(crc32c.to_le_bytes());
        write!(self.out, ", \"Size\": {size}, \"Last-Modified\": \"{last_modified}\"")?;
        write!(self.out, ", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum}\" }}")?;
        self.files += 1;
        Ok(())
    }

    /// Adds the WAL the backup needs, one range a timeline, the newest first as the server does; ends the manifest.
    ///
    /// Returns the flushed writer.
    pub fn finish(mut self, wal_ranges: &[(TimelineId, Lsn, Lsn)]) -> io::Result<W> {
        write!(self.out, "{}],\n\"WAL-Ranges\": [", if self.files == 0 { "" } else { "\n" })?;
        for (index, (timeline, start, end)) in wal_ranges.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(self.out, "{separator}\n{{ \"Timeline\": {timeline}, ")?;
            write!(self.out, "\"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}")?;
        }
        write!(self.out, "\n],\n")?;
        let Hashing { mut out, hash } = self.out;
        writeln!(out, "\"Manifest-Checksum\": \"{}\"}}", hex::encode(hash.finalize()))?;
        out.flush()?;
        Ok(out)
    }

    fn separator(&self) -> &'static str {
        if self.files == 0 { "" } else { "," }
    }
}

/// Passes bytes on and hashes them.
struct Hashing<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A manifest read whole, its own checksum verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupManifest {
    /// Its form, and the cluster if it names one.
    pub version: ManifestVersion,
    /// The backup's files, in the order of the manifest.
    pub files: Vec<ManifestFile>,
    /// The WAL the backup needs: timeline, first byte, byte after the last.
    pub wal_ranges: Vec<(TimelineId, Lsn, Lsn)>,
}

/// One file of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative to the data directory, as written by a stranger: not checked to stay inside it.
    pub path: Vec<u8>,
    /// Bytes.
    pub size: u64,
    /// When the file was last changed, UTC, whole seconds.
    pub last_modified: DateTime<Utc>,
    /// Checksum of its bytes; `None` if the backup was taken without.
    pub checksum: Option<FileChecksum>,
}

/// The checksum of one file of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileChecksum {
    /// CRC-32C as a number.
    Crc32c(u32),
    /// A SHA-2 digest of 28, 32, 48 or 64 bytes.
    Sha2(Vec<u8>),
}

/// Bytes that are not a `backup_manifest`, or a damaged one.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The last line is not a checksum of those before.
    #[error("backup_manifest does not end with its checksum")]
    NoChecksum,
    /// The manifest was changed after it was written.
    #[error("backup_manifest has checksum {stored}, its lines have {computed}")]
    Checksum {
        /// SHA-256 in the manifest, hex.
        stored: String,
        /// SHA-256 of the lines before, hex.
        computed: String,
    },
    /// Not the JSON of a manifest.
    #[error("read backup_manifest")]
    Json(#[from] serde_json::Error),
    /// A version that is not known.
    #[error("backup_manifest is of version {version}, 1 and 2 are known")]
    UnknownVersion {
        /// Version found.
        version: u64,
    },
    /// A value PostgreSQL does not write.
    #[error("backup_manifest has {value:?} as {key}")]
    Value {
        /// Key of the value.
        key: &'static str,
        /// The value.
        value: String,
    },
}

impl BackupManifest {
    /// Reads a manifest of any known version.
    ///
    /// # Errors
    /// [`ManifestError::Checksum`] before anything else is looked at.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let covered = bytes.strip_suffix(b"\n").and_then(|bytes| bytes.iter().rposition(|byte| *byte == b'\n'));
        let (covered, last_line) = bytes.split_at(covered.ok_or(ManifestError::NoChecksum)? + 1);
        let stored = last_line.strip_prefix(b"\"Manifest-Checksum\": \"").and_then(|rest| rest.strip_suffix(b"\"}\n"));
        let stored = String::from_utf8_lossy(stored.ok_or(ManifestError::NoChecksum)?).into_owned();
        let computed = hex::encode(Sha256::digest(covered));
        if stored != computed {
            return Err(ManifestError::Checksum { stored, computed });
        }
        serde_json::from_slice::<JsonManifest>(bytes)?.try_into()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct JsonManifest {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u64,
    #[serde(rename = "System-Identifier")]
    system_id: Option<u64>,
    files: Vec<JsonFile>,
    #[serde(rename = "WAL-Ranges")]
    wal_ranges: Vec<JsonRange>,
    #[serde(rename = "Manifest-Checksum")]
    _checksum: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct JsonFile {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Last-Modified")]
    last_modified: String,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    checksum: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct JsonRange {
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

impl TryFrom<JsonManifest> for BackupManifest {
    type Error = ManifestError;

    fn try_from(json: JsonManifest) -> Result<Self, ManifestError> {
        let version = match (json.version, json.system_id) {
            (1, None) => ManifestVersion::V1,
            (2, Some(number)) => ManifestVersion::V2(SystemId::new(number)),
            (1 | 2, found) => return Err(value("System-Identifier", format!("{found:?}"))),
            (version, _) => return Err(ManifestError::UnknownVersion { version }),
        };
        let files = json.files.into_iter().map(ManifestFile::try_from).collect::<Result<_, _>>()?;
        let range = |range: JsonRange| {
            let timeline = TimelineId::new(range.timeline).ok_or_else(|| value("Timeline", range.timeline.to_string()));
            Ok::<_, ManifestError>((timeline?, range.start, range.end))
        };
        Ok(Self { version, files, wal_ranges: json.wal_ranges.into_iter().map(range).collect::<Result<_, _>>()? })
    }
}

impl TryFrom<JsonFile> for ManifestFile {
    type Error = ManifestError;

    fn try_from(json: JsonFile) -> Result<Self, ManifestError> {
        let path = match (json.path, json.encoded_path) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(path)) => hex::decode(&path).map_err(|_| value("Encoded-Path", path))?,
            (path, _) => return Err(value("Path", format!("{path:?}"))),
        };
        let last_modified = NaiveDateTime::parse_from_str(&json.last_modified, TIME_FORMAT)
            .map_err(|_| value("Last-Modified", json.last_modified))?
            .and_utc();
        let checksum = FileChecksum::parse(json.algorithm, json.checksum)?;
        Ok(Self { path, size: json.size, last_modified, checksum })
    }
}

impl FileChecksum {
    fn parse(algorithm: Option<String>, checksum: Option<String>) -> Result<Option<Self>, ManifestError> {
        let (algorithm, text) = match (algorithm, checksum) {
            (None, None) => return Ok(None),
            (Some(algorithm), Some(text)) => (algorithm, text),
            (algorithm, _) => return Err(value("Checksum-Algorithm", format!("{algorithm:?}"))),
        };
        let bytes = hex::decode(&text).unwrap_or_default();
        match (&algorithm[..], bytes.len()) {
            ("CRC32C", 4) => Ok(bytes.first_chunk().map(|bytes| Self::Crc32c(u32::from_le_bytes(*bytes)))),
            ("SHA224", 28) | ("SHA256", 32) | ("SHA384", 48) | ("SHA512", 64) => Ok(Some(Self::Sha2(bytes))),
            _ => Err(value("Checksum", format!("{algorithm} {text}"))),
        }
    }
}

fn value(key: &'static str, value: String) -> ManifestError {
    ManifestError::Value { key, value }
}

#[cfg(test)]
mod tests;
