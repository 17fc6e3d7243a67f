//! The server's own `backup_manifest`, compared line by line with what came through the stream.
//!
//! Every file must have the size and the CRC-32C that the server wrote down while it sent it, none may be missing and
//! none too many. So what is stored is what the server read; the checksums that a restore writes are the server's own.
//! Nothing is held but one line.
//!
//! Source: `AddFileToBackupManifest` in `src/backend/backup/backup_manifest.c`.

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::pg::lsn::Lsn;
use crate::pg::system_id::SystemId;

/// Longest line that makes sense: a path of `PATH_MAX` bytes, each as six characters.
const LINE: usize = 64 << 10;

/// Why the manifest does not vouch for what came.
#[derive(Debug, thiserror::Error)]
pub enum ServerManifestError {
    /// It is none, or damaged.
    #[error("the server's manifest {problem}")]
    Form {
        /// What is wrong.
        problem: String,
    },
    /// A file is not what it says.
    #[error("{path} arrived {found}; the server's manifest says {expected}")]
    File {
        /// Which.
        path: String,
        /// What came.
        found: String,
        /// What was sent.
        expected: String,
    },
}

/// What the manifest says of one file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub path: Vec<u8>,
    pub size: u64,
    pub crc: u32,
}

/// What it says besides.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remainder {
    pub system_id: Option<SystemId>,
    /// Start and end of the WAL on each timeline.
    pub ranges: Vec<(u32, Lsn, Lsn)>,
    /// Its own checksum, SHA-256 in hex.
    pub checksum: String,
}

/// Reads it as it comes.
pub(super) struct ServerManifest {
    line: Vec<u8>,
    hash: Sha256,
    remainder: Remainder,
    over: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FileLine {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: String,
    checksum: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RangeLine {
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

impl ServerManifest {
    pub fn new() -> Self {
        Self { line: Vec::new(), hash: Sha256::new(), remainder: Remainder::default(), over: false }
    }

    /// Takes some bytes and hands over every file that is complete with them.
    pub fn take<E: From<ServerManifestError>>(
        &mut self,
        mut bytes: &[u8],
        mut listed: impl FnMut(Listed) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let (some, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            bytes = rest;
            self.line.extend_from_slice(some);
            if self.line.len() > LINE {
                return Err(form("has a line that no server writes").into());
            }
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                if let Some(file) = self.line(&line)? {
                    listed(file)?;
                }
                self.line = line;
                self.line.clear();
            }
        }
        Ok(())
    }

    /// Returns what the manifest says besides, once all of it came.
    pub fn finish(self) -> Result<Remainder, ServerManifestError> {
        match self.over && self.line.is_empty() {
            true => Ok(self.remainder),
            false => Err(form("is cut")),
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Listed>, ServerManifestError> {
        if self.over {
            return Err(form("goes on behind its checksum"));
        }
        let text = std::str::from_utf8(line).map_err(|_| form("is no text"))?.trim_end();
        if let Some(rest) = text.strip_prefix("\"Manifest-Checksum\": \"") {
            let stored = rest.strip_suffix("\"}").ok_or_else(|| form("ends in nonsense"))?;
            let computed = hex::encode(std::mem::take(&mut self.hash).finalize());
            if stored != computed {
                return Err(form(&format!("has checksum {stored}, its lines have {computed}")));
            }
            self.remainder.checksum = computed;
            self.over = true;
            return Ok(None);
        }
        self.hash.update(line);
        let object = text.strip_suffix(',').unwrap_or(text);
        if object.starts_with("{ \"Path\"") || object.starts_with("{ \"Encoded-Path\"") {
            return file(object).map(Some);
        }
        if object.starts_with("{ \"Timeline\"") {
            let range: RangeLine = serde_json::from_str(object).map_err(|error| form(&error.to_string()))?;
            self.remainder.ranges.push((range.timeline, range.start, range.end));
            return Ok(None);
        }
        if let Some(number) = object.strip_prefix("\"System-Identifier\": ") {
            let number = number.parse().map_err(|_| form("names no system"))?;
            self.remainder.system_id = Some(SystemId::new(number));
            return Ok(None);
        }
        let known = ["\"Files\": [", "]", "\"WAL-Ranges\": [", ""];
        let version = "{ \"PostgreSQL-Backup-Manifest-Version\": ";
        match known.contains(&object) || object.strip_prefix(version).is_some_and(|n| matches!(n, "1" | "2")) {
            true => Ok(None),
            false => Err(form(&format!("has the line {object:?}"))),
        }
    }
}

fn file(object: &str) -> Result<Listed, ServerManifestError> {
    let line: FileLine = serde_json::from_str(object).map_err(|error| form(&error.to_string()))?;
    let path = match (line.path, line.encoded_path) {
        (Some(path), None) => Some(path.into_bytes()),
        (None, Some(path)) => hex::decode(path).ok(),
        _ => None,
    };
    let path = path.ok_or_else(|| form(&format!("has no path in {object}")))?;
    let crc = hex::decode(&line.checksum).ok().and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)));
    match crc.filter(|_| line.algorithm == "CRC32C") {
        Some(crc) => Ok(Listed { path, size: line.size, crc }),
        None => Err(form(&format!("has no CRC-32C in {object}"))),
    }
}

fn form(problem: &str) -> ServerManifestError {
    ServerManifestError::Form { problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::pg::backup_manifest::{ManifestVersion, ManifestWriter};
    use crate::pg::timeline::TimelineId;

    fn written(version: ManifestVersion) -> Vec<u8> {
        let mut writer = ManifestWriter::new(Vec::new(), version).expect("memory");
        let modified = DateTime::from_timestamp(1_700_000_000, 0).expect("a time");
        writer.file(b"base/5/1", 8192, modified, 7).expect("memory");
        writer.file(b"odd\xff\"name", 3, modified, 0xffff_ffff).expect("memory");
        writer.finish(&[(TimelineId::FIRST, Lsn::new(40), Lsn::new(256))]).expect("memory")
    }

    fn read(bytes: &[u8], step: usize) -> Result<(Vec<Listed>, Remainder), ServerManifestError> {
        let mut manifest = ServerManifest::new();
        let mut files = Vec::new();
        for some in bytes.chunks(step) {
            manifest.take(some, |file| {
                files.push(file);
                Ok::<(), ServerManifestError>(())
            })?;
        }
        Ok((files, manifest.finish()?))
    }

    #[test]
    fn files_and_ranges_are_read_however_it_is_cut() {
        for (version, system_id) in
            [(ManifestVersion::V1, None), (ManifestVersion::V2(SystemId::new(77)), Some(SystemId::new(77)))]
        {
            let bytes = written(version);
            for step in [1, 5, 100, 10_000] {
                let (files, rest) = read(&bytes, step).expect("a manifest");
                assert_eq!(files[0], Listed { path: b"base/5/1".to_vec(), size: 8192, crc: 7 });
                assert_eq!(files[1], Listed { path: b"odd\xff\"name".to_vec(), size: 3, crc: u32::MAX });
                assert_eq!((rest.system_id, rest.ranges), (system_id, vec![(1, Lsn::new(40), Lsn::new(256))]));
            }
        }
    }

    #[test]
    fn a_manifest_cut_or_changed_anywhere_is_refused() {
        let bytes = written(ManifestVersion::V1);
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length], 64).is_err(), "cut after {length}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(read(&changed, 64).is_err(), "changed at {at}");
        }
        assert!(read(&[bytes, b"\n".to_vec()].concat(), 64).is_err());
    }
}
