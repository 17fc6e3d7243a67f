//! The `backup_manifest` of a restored directory, so that PostgreSQL's own `pg_verifybackup` can judge it.
//!
//! It is written over the restored bytes: `pg_control` and `backup_label` as they are here, not as they were copied.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use chrono::DateTime;

use crate::format::leaf::{Entry, Node, Part};
use crate::format::manifest::Manifest;
use crate::pg::backup_manifest::{ManifestVersion, ManifestWriter};
use crate::repo::RepoError;

/// A file whose bytes are not those of the backup.
pub(super) struct Replaced<'a> {
    pub path: &'a [u8],
    pub bytes: &'a [u8],
}

/// Why the manifest could not be written.
#[derive(Debug)]
pub(super) enum ManifestError {
    Repository(RepoError),
    Write(io::Error),
}

impl From<RepoError> for ManifestError {
    fn from(source: RepoError) -> Self {
        Self::Repository(source)
    }
}

impl From<io::Error> for ManifestError {
    fn from(source: io::Error) -> Self {
        Self::Write(source)
    }
}

/// Looks at the entries of one leaf.
type See<'a> = &'a mut dyn FnMut(&[Entry]) -> Result<(), ManifestError>;

/// Writes the manifest to `path`; `each_leaf` goes through what is restored.
pub(super) fn write(
    path: &Path,
    manifest: &Manifest,
    replaced: &[Replaced<'_>],
    each_leaf: impl FnOnce(See<'_>) -> Result<(), ManifestError>,
) -> Result<(), ManifestError> {
    let envelope = &manifest.envelope;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let out = io::BufWriter::new(file);
    let mut writer = ManifestWriter::new(out, ManifestVersion::of_major(envelope.major, manifest.root.system_id))?;
    each_leaf(&mut |entries| {
        for entry in entries {
            let Node::File(Part { file: Some(file), .. }) = &entry.node else { continue };
            if replaced.iter().any(|replaced| replaced.path == entry.path.as_slice()) {
                continue;
            }
            let modified = DateTime::from_timestamp(file.modified, 0).unwrap_or(envelope.stopped_at);
            writer.file(&entry.path, file.size, modified, file.crc)?;
        }
        Ok(())
    })?;
    for file in replaced {
        writer.file(file.path, file.bytes.len() as u64, envelope.stopped_at, crc32c::crc32c(file.bytes))?;
    }
    let ranges: Vec<_> = envelope.wal.iter().map(|range| (range.timeline, range.start_lsn, range.stop_lsn)).collect();
    Ok(writer.finish(&ranges)?.flush()?)
}
