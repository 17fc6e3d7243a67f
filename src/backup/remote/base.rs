//! The backup that a stream of changes builds on: whether one will do, and what the server is told of it.
//!
//! The server sends a file whole that is not in the manifest it was given. So that manifest lists main forks and nothing
//! else: free space maps come whole anyway, and of visibility maps the log does not tell every change.
//!
//! Source: `GetFileBackupMethod` in `basebackup_incremental.c`.

use std::collections::HashSet;
use std::io;

use chrono::DateTime;

use super::super::changed::ChangedBlocks;
use super::super::detection::{Doubt, Situation, Wanted, other_release};
use super::super::parent::{self, PageShape, Parent, is_parents_fault};
use super::super::perform::BackupError;
use super::RemoteError;
use crate::error::{self, ErrorKind};
use crate::format::Sha256;
use crate::format::leaf::{Entry, File, Node, Part};
use crate::instance::replication::{Identification, ReplicationClient};
use crate::instance::{NameSession, SessionError};
use crate::pg::backup_manifest::{ManifestVersion, ManifestWriter};
use crate::pg::data_directory::{Class, DataDirectory, FileKind};
use crate::pg::lsn::Lsn;
use crate::pg::relation_file::Fork;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_summary::Summary;
use crate::repo::{Lane, RepoError};

/// First major that sends changes.
const FIRST_MAJOR: u16 = 17;

/// Small files of the older backup by name and contents: sixteen bytes for each.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptFiles(HashSet<u128>);

impl KeptFiles {
    fn key(path: &[u8], digest: &Sha256) -> u128 {
        let key = Sha256::of(&[digest.bytes(), path].concat());
        u128::from_le_bytes(key.bytes()[..16].try_into().expect("sixteen of 32 bytes"))
    }

    fn add(&mut self, path: &[u8], digest: &Sha256) {
        self.0.insert(Self::key(path, digest));
    }

    /// Whether the older backup has a file of this name with these contents, which may be named again.
    pub fn has(&self, path: &[u8], digest: &Sha256) -> bool {
        !self.0.is_empty() && self.0.contains(&Self::key(path, digest))
    }
}

/// What the server is now.
#[derive(Clone, Copy)]
pub(super) struct Now {
    pub shape: PageShape,
    pub checksums: bool,
    pub standby: bool,
}

/// Finds the backup to build on.
///
/// # Errors
/// The inner one is why everything has to be sent.
pub(super) fn choose(
    lane: &Lane,
    client: &mut ReplicationClient,
    names: &Result<NameSession, SessionError>,
    (identity, now): (&Identification, Now),
    wanted: Wanted,
) -> Result<Result<Parent, String>, BackupError> {
    let full = |reason: &str| Ok(Err(reason.to_owned()));
    let major = client.major();
    match wanted {
        Wanted::Full => return full("asked for with --full"),
        Wanted::ReadAll => return full("asked for with --read-all; what a server sends is not compared"),
        Wanted::Cheapest if major < FIRST_MAJOR => return full("PostgreSQL sends changes only since 17"),
        Wanted::Cheapest => {}
    }
    if client.show("summarize_wal").map_err(RemoteError::from)? != "on" {
        return full("summarize_wal is off");
    }
    let parent = match parent::choose(lane, now.shape, wanted)? {
        Ok(parent) => parent,
        Err(reason) => return Ok(Err(reason)),
    };
    if let Some((before, since)) = other_release(&parent.manifest.root.server_version, client.version()) {
        return Ok(Err(format!("the server was PostgreSQL {before} at the backup to build on, and is {since} now")));
    }
    let position = identity.position;
    let mut situation = parent.situation((major, identity.timeline, now.checksums), position, wanted);
    if now.standby && position < situation.parent_stop {
        return full("the standby has not replayed to the end of the backup to build on");
    }
    if let Err(reason) = situation.judge(lane)? {
        return Ok(Err(reason));
    }
    // Whether they go on to the backup's start, the server looks at itself, and waits for it.
    Ok(match summaries(names, &situation) {
        Ok(found) => match found.first().map(|first| contents(names, *first, &mut ChangedBlocks::default())) {
            Some(Err(reason)) => Err(reason),
            _ => Ok(parent),
        },
        Err(Doubt::Behind(_)) => Ok(parent),
        Err(Doubt::Settled(reason)) => Err(reason),
    })
}

/// Takes in what a summary says, after all that are older.
fn contents(
    names: &Result<NameSession, SessionError>,
    summary: Summary,
    changed: &mut ChangedBlocks,
) -> Result<(), String> {
    let unknown = |problem: &SessionError| error::chain(problem).to_string();
    let names = names.as_ref().map_err(unknown)?;
    names.summary_limits(summary, &mut |row| changed.cut(row)).map_err(|problem| unknown(&problem))?;
    names.summary_blocks(summary, &mut |row| changed.add(row)).map_err(|problem| unknown(&problem))
}

/// Asks for the summaries that tell of every change.
fn summaries(names: &Result<NameSession, SessionError>, situation: &Situation) -> Result<Vec<Summary>, Doubt> {
    let unknown = |problem: &SessionError| {
        let problem = error::chain(problem);
        Doubt::Settled(format!("where relations were cut off cannot be asked by SQL: {problem}"))
    };
    let names = names.as_ref().map_err(unknown)?;
    let (summarizing, available) = names.summaries().map_err(|problem| unknown(&problem))?;
    situation.cover(summarizing, &available)
}

/// Asks what the server's log tells of, between the older backup's start and this one's.
///
/// The server does not send where relations were cut off; and of what it sends it may leave out blocks. It puts its
/// summaries together in the order in which their directory is read, and an older one, in which a relation was cut off,
/// then takes away what a younger one has of it from there on.
///
/// Source: `PrepareForIncrementalBackup` in `basebackup_incremental.c`, `GetWalSummaries` in `walsummary.c`,
/// `BlockRefTableEntrySetLimitBlock` in `blkreftable.c`.
///
/// # Errors
/// Why it cannot be known.
pub(super) fn changes(
    names: &Result<NameSession, SessionError>,
    parent: &Parent,
    (start, timeline): (Lsn, TimelineId),
    (major, checksums): (u16, bool),
) -> Result<ChangedBlocks, String> {
    let situation = parent.situation((major, timeline, checksums), start, Wanted::Cheapest);
    situation.allows_the_log()?;
    let chosen = summaries(names, &situation).map_err(|doubt| match doubt {
        Doubt::Settled(reason) => reason,
        Doubt::Behind(at) => format!("the server has summarized its log only up to {at}"),
    })?;
    let mut changed = ChangedBlocks::default();
    chosen.into_iter().try_for_each(|summary| contents(names, summary, &mut changed))?;
    Ok(changed)
}

enum UploadError {
    Parent(RepoError),
    Write(io::Error),
}

/// Uploads the manifest of the older backup, made from its leaves as they stream by; returns its small files.
///
/// # Errors
/// The inner one is why the server, or the older backup, does not go along.
pub(super) fn upload(
    client: &mut ReplicationClient,
    lane: &Lane,
    parent: &Parent,
    rules: &DataDirectory,
) -> Result<Result<KeptFiles, String>, BackupError> {
    let mut kept = KeptFiles::default();
    let uploaded = client.upload_manifest(|out| {
        let (envelope, root) = (&parent.manifest.envelope, &parent.manifest.root);
        let version = ManifestVersion::of_major(envelope.major, root.system_id);
        let mut writer = ManifestWriter::new(out, version).map_err(UploadError::Write)?;
        let mut leaves = lane.leaves(&parent.tables);
        while let Some(entries) = leaves.next_leaf().map_err(UploadError::Parent)? {
            for Entry { path, node } in &entries {
                let Node::File(part) = node else { continue };
                let Some(file) = &part.file else { continue };
                if is_main_fork(rules, path) {
                    let modified = DateTime::from_timestamp(file.modified, 0).unwrap_or(envelope.stopped_at);
                    writer.file(path, file.size, modified, file.crc).map_err(UploadError::Write)?;
                }
                if let Some(digest) = reusable(part, file, parent) {
                    kept.add(path, &digest);
                }
            }
        }
        let ranges: Vec<_> =
            envelope.wal.iter().map(|range| (range.timeline, range.start_lsn, range.stop_lsn)).collect();
        writer.finish(&ranges).map(drop).map_err(UploadError::Write)
    });
    match uploaded {
        Ok(Ok(())) => Ok(Ok(kept)),
        Ok(Err(UploadError::Parent(problem))) if is_parents_fault(&problem) => {
            Ok(Err(format!("the backup to build on cannot be read: {}", error::chain(&problem))))
        }
        Ok(Err(UploadError::Parent(problem))) => Err(problem.into()),
        Ok(Err(UploadError::Write(problem))) => Ok(Err(format!("its manifest cannot be made: {problem}"))),
        Err(problem) => match problem.is_refusal() && problem.kind() != ErrorKind::Cancelled {
            true => Ok(Err(format!("the server does not take the manifest: {}", error::chain(&problem)))),
            false => Err(RemoteError::from(problem).into()),
        },
    }
}

/// Whether the server may send changes of it.
pub(super) fn is_main_fork(rules: &DataDirectory, path: &[u8]) -> bool {
    matches!(rules.classify(path), Class::File(FileKind::Relation(relation)) if relation.file.fork == Fork::Main)
}

/// Returns the digest of a small file that may be named again.
fn reusable(part: &Part, file: &File, parent: &Parent) -> Option<Sha256> {
    let whole = part.at == 0 && !part.pieces.iter().any(|piece| parent.renewal.touches(piece));
    file.digest.filter(|_| whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_name_and_contents() {
        let mut kept = KeptFiles::default();
        assert!(!kept.has(b"a", &Sha256::of(b"1")));
        kept.add(b"a", &Sha256::of(b"1"));
        assert!(kept.has(b"a", &Sha256::of(b"1")));
        assert!(!kept.has(b"b", &Sha256::of(b"1")) && !kept.has(b"a", &Sha256::of(b"2")));
    }

    #[test]
    fn changes_are_asked_for_of_main_forks_only() {
        let rules = DataDirectory::new(17, 202_406_281);
        for (path, expected) in [
            ("base/5/16384", true),
            ("base/5/16384.1", true),
            ("global/1262", true),
            ("pg_tblspc/16400/PG_17_202406281/5/16384", true),
            // The log does not tell of every change to it.
            ("base/5/16384_vm", false),
            ("base/5/16384_fsm", false),
            ("base/5/16384_init", false),
            ("base/5/pg_filenode.map", false),
            ("pg_xact/0000", false),
            ("global/pg_control", false),
        ] {
            assert_eq!(is_main_fork(&rules, path.as_bytes()), expected, "{path}");
        }
    }
}
