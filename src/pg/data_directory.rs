//! What a base backup does with each path of a data directory.
//!
//! The rules of the server's own base backup, and a few names more that would mislead a restored server. Names only:
//! nothing here looks at the disk, follows a link or knows what a backup is.
//!
//! Source: `excludeDirContents`, `excludeFiles`, `sendDir` and `sendTablespace` in `src/backend/backup/basebackup.c`
//! (before 16 in `src/backend/replication/`), `TABLESPACE_VERSION_DIRECTORY` in `src/include/common/relpath.h`.

use std::collections::HashSet;
use std::fmt;

use super::relation_file::{Fork, RelationFile, positive};

/// OID of the tablespace `pg_default`, whose files are under `base/`.
pub const DEFAULT_TABLESPACE: u32 = 1663;
/// OID of the tablespace `pg_global`, whose files are in `global/`.
pub const GLOBAL_TABLESPACE: u32 = 1664;

/// The data directory of a cluster of one release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDirectory {
    major: u16,
    version_directory: String,
}

/// What becomes of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Left out; a directory with all that is in it.
    Skip(SkipReason),
    /// A directory that is made and left empty, but for what is itself of this class; also when it is a link.
    SkipContents(SkipReason),
    /// Copied; a directory is made and read, and its kind is `Other`.
    File(FileKind),
}

/// What kind of file is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A relation's file, made of pages with checksums if the cluster has them. Whether the relation is unlogged, only
    /// the [other names](unlogged) of its directory tell.
    Relation(RelationPath),
    /// `global/pg_control`: copied after everything else.
    ControlFile,
    /// Anything else, and directories.
    Other,
}

/// Where a relation's file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelationPath {
    /// OID of its tablespace; 1663 and 1664 for `base` and `global`.
    pub tablespace: u32,
    /// OID of its database; 0 for relations all databases share.
    pub database: u32,
    /// Its name.
    pub file: RelationFile,
}

/// Why a path is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// WAL and its bookkeeping come from the archive.
    Wal,
    /// Slots of this server would hold WAL, or promise changes, in the restored one.
    ReplicationSlots,
    /// The server empties or rebuilds it when it starts.
    RebuiltAtStart,
    /// Scratch data of a query or of a write not finished.
    Temporary,
    /// A temporary relation: its session ends with the server.
    TemporaryRelation,
    /// It tells of the running server, not of its data.
    RunningServer,
    /// It belongs to an earlier backup this cluster was restored from.
    EarlierBackup,
    /// It would tell the restored server how to recover; that is decided at restore.
    RecoveryRequest,
    /// A tablespace's directory of another release, left there by `pg_upgrade`.
    OtherRelease,
    /// A file of the macOS desktop.
    Desktop,
}

impl DataDirectory {
    /// Makes the rules for the release that `pg_control` names.
    pub fn new(major: u16, catalog_version: u32) -> Self {
        Self { major, version_directory: format!("PG_{major}_{catalog_version}") }
    }

    /// Returns the name of this release's directory in every tablespace, like `PG_16_202307071`.
    pub fn version_directory(&self) -> &str {
        &self.version_directory
    }

    /// Returns what a base backup does with `path`: relative to the data directory, `/` between names, no `.` or `..`,
    /// tablespaces under `pg_tblspc/<oid>`.
    ///
    /// The server leaves out `backup_label` and its like at any depth; here only in the data directory itself, where
    /// alone they have a meaning.
    pub fn classify(&self, path: &[u8]) -> Class {
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        if let Some(reason) = names.iter().find_map(|name| skipped_anywhere(name)) {
            return Class::Skip(reason);
        }
        match names[..] {
            [name] => in_root(name),
            [directory, ref below @ ..] if emptied(directory).is_some() => self.in_emptied(directory, below),
            [b"global", b"pg_control"] => Class::File(FileKind::ControlFile),
            [b"global", name] => relation(GLOBAL_TABLESPACE, 0, name),
            [b"base", database, name] => match oid(database) {
                Some(database) => relation(DEFAULT_TABLESPACE, database, name),
                None => Class::File(FileKind::Other),
            },
            [b"pg_tblspc", tablespace, ref below @ ..] => self.in_tablespace(tablespace, below),
            _ => Class::File(FileKind::Other),
        }
    }

    fn in_emptied(&self, directory: &[u8], below: &[&[u8]]) -> Class {
        let reason = emptied(directory).unwrap_or(SkipReason::RebuiltAtStart);
        match (directory, below) {
            (b"pg_wal", [b"archive_status"]) => Class::SkipContents(reason),
            (b"pg_wal", [b"summaries"]) if self.major >= 17 => Class::SkipContents(reason),
            _ => Class::Skip(reason),
        }
    }

    fn in_tablespace(&self, tablespace: &[u8], below: &[&[u8]]) -> Class {
        match *below {
            [release, ..] if release != self.version_directory.as_bytes() => Class::Skip(SkipReason::OtherRelease),
            [_, database, name] => match (oid(tablespace), oid(database)) {
                (Some(tablespace), Some(database)) => relation(tablespace, database, name),
                _ => Class::File(FileKind::Other),
            },
            _ => Class::File(FileKind::Other),
        }
    }
}

/// Returns the file numbers of the unlogged relations among the names in one database's directory.
///
/// Of these only the init fork is copied, see [`RelationFile`]: a server that recovers makes the others from it.
pub fn unlogged<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> HashSet<u32> {
    let files = names.into_iter().filter_map(RelationFile::parse);
    files.filter(|file| file.fork == Fork::Init && !file.temporary()).map(|file| file.oid).collect()
}

impl RelationFile {
    /// Returns whether it is left out, given the [`unlogged`] relations of its directory.
    pub fn is_reset_by_recovery(&self, unlogged: &HashSet<u32>) -> bool {
        self.fork != Fork::Init && unlogged.contains(&self.oid)
    }
}

/// Names that mean the same in every directory.
fn skipped_anywhere(name: &[u8]) -> Option<SkipReason> {
    match name {
        b".DS_Store" => Some(SkipReason::Desktop),
        _ if name.starts_with(b"pgsql_tmp") => Some(SkipReason::Temporary),
        _ if name.starts_with(b"pg_internal.init") => Some(SkipReason::RebuiltAtStart),
        _ => None,
    }
}

fn in_root(name: &[u8]) -> Class {
    if let Some(reason) = emptied(name) {
        return Class::SkipContents(reason);
    }
    Class::Skip(match name {
        b"postgresql.auto.conf.tmp" | b"current_logfiles.tmp" => SkipReason::Temporary,
        b"postmaster.pid" | b"postmaster.opts" => SkipReason::RunningServer,
        // Recovery renames both to `.old` once it has read them; renamed back, they would misplace its start.
        b"backup_label" | b"backup_label.old" | b"tablespace_map" | b"tablespace_map.old" => SkipReason::EarlierBackup,
        b"backup_manifest" => SkipReason::EarlierBackup,
        // The mark of the restore that made the directory, if a power cut kept it from being removed.
        _ if name == b"walvault.restore" || name.starts_with(b"walvault.restore.") => SkipReason::EarlierBackup,
        b"standby.signal" | b"recovery.signal" => SkipReason::RecoveryRequest,
        // Since 12 the server refuses to start beside the first.
        b"recovery.conf" | b"recovery.done" => SkipReason::RecoveryRequest,
        _ => return Class::File(FileKind::Other),
    })
}

/// Why a directory of the data directory is kept empty, if it is.
fn emptied(directory: &[u8]) -> Option<SkipReason> {
    match directory {
        b"pg_wal" => Some(SkipReason::Wal),
        b"pg_replslot" => Some(SkipReason::ReplicationSlots),
        b"pg_dynshmem" | b"pg_notify" | b"pg_serial" | b"pg_snapshots" | b"pg_stat_tmp" | b"pg_subtrans" => {
            Some(SkipReason::RebuiltAtStart)
        }
        _ => None,
    }
}

fn relation(tablespace: u32, database: u32, name: &[u8]) -> Class {
    match RelationFile::parse(name) {
        Some(file) if file.temporary() && database != 0 => Class::Skip(SkipReason::TemporaryRelation),
        Some(file) if !file.temporary() => Class::File(FileKind::Relation(RelationPath { tablespace, database, file })),
        _ => Class::File(FileKind::Other),
    }
}

fn oid(name: &[u8]) -> Option<u32> {
    positive(std::str::from_utf8(name).ok()?)
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wal => "WAL comes from the archive",
            Self::ReplicationSlots => "slots belong to this server",
            Self::RebuiltAtStart => "rebuilt when the server starts",
            Self::Temporary => "temporary file",
            Self::TemporaryRelation => "temporary relation",
            Self::RunningServer => "tells of the running server",
            Self::EarlierBackup => "belongs to an earlier backup",
            Self::RecoveryRequest => "recovery is decided at restore",
            Self::OtherRelease => "tablespace of another release",
            Self::Desktop => "not a file of PostgreSQL",
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn classify(major: u16, path: &str) -> Class {
        DataDirectory::new(major, 202307071).classify(path.as_bytes())
    }

    fn relation_at(tablespace: u32, database: u32, name: &str) -> Class {
        let file = RelationFile::parse(name.as_bytes()).unwrap();
        Class::File(FileKind::Relation(RelationPath { tablespace, database, file }))
    }

    proptest! {
        #[test]
        fn any_path_has_a_class(path: Vec<u8>) {
            DataDirectory::new(16, 202307071).classify(&path);
        }
    }

    #[test]
    fn relations_are_told_with_their_database_and_tablespace() {
        assert_eq!(classify(16, "base/5/16384_fsm.1"), relation_at(1663, 5, "16384_fsm.1"));
        assert_eq!(classify(16, "global/1262"), relation_at(1664, 0, "1262"));
        assert_eq!(classify(16, "pg_tblspc/16500/PG_16_202307071/5/16384"), relation_at(16500, 5, "16384"));
    }

    #[test]
    fn files_that_are_not_pages_are_not_called_relations() {
        for path in [
            "PG_VERSION",
            "postgresql.conf",
            "base",
            "base/5",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/x/1",
            "base/1",
            "base/5/1/2",
            "global/pg_filenode.map",
            "pg_xact/0000",
            "pg_multixact/offsets/0000",
            "pg_tblspc",
            "pg_tblspc/16500",
            "pg_tblspc/16500/PG_16_202307071",
            "pg_tblspc/16500/PG_16_202307071/5",
            "pg_tblspc/x/PG_16_202307071/5/16384",
            "pg_logical/snapshots/1",
            "log/1",
            "extension/pg_notify/1",
            "extension/backup_label",
            "global/t1_16384",
            "postmaster.pid.bak",
            "backup_labels",
            "",
        ] {
            assert_eq!(classify(16, path), Class::File(FileKind::Other), "{path}");
        }
        assert_eq!(classify(16, "global/pg_control"), Class::File(FileKind::ControlFile));
    }

    #[test]
    fn directories_the_server_refills_are_kept_empty() {
        for directory in [
            "pg_wal",
            "pg_replslot",
            "pg_dynshmem",
            "pg_notify",
            "pg_serial",
            "pg_snapshots",
            "pg_stat_tmp",
            "pg_subtrans",
        ] {
            assert!(matches!(classify(16, directory), Class::SkipContents(_)), "{directory}");
            for inside in ["0000", "slot/state", "000000010000000000000001"] {
                assert!(
                    matches!(classify(16, &format!("{directory}/{inside}")), Class::Skip(_)),
                    "{directory}/{inside}"
                );
            }
        }
    }

    #[test]
    fn pg_wal_keeps_the_directories_of_its_release() {
        assert_eq!(classify(16, "pg_wal/archive_status"), Class::SkipContents(SkipReason::Wal));
        assert_eq!(classify(16, "pg_wal/archive_status/x.done"), Class::Skip(SkipReason::Wal));
        assert_eq!(classify(16, "pg_wal/summaries"), Class::Skip(SkipReason::Wal));
        assert_eq!(classify(17, "pg_wal/summaries"), Class::SkipContents(SkipReason::Wal));
    }

    #[test]
    fn what_would_mislead_a_restored_server_is_left_out() {
        for (path, reason) in [
            ("postmaster.pid", SkipReason::RunningServer),
            ("postmaster.opts", SkipReason::RunningServer),
            ("backup_label", SkipReason::EarlierBackup),
            ("backup_label.old", SkipReason::EarlierBackup),
            ("tablespace_map", SkipReason::EarlierBackup),
            ("tablespace_map.old", SkipReason::EarlierBackup),
            ("backup_manifest", SkipReason::EarlierBackup),
            ("walvault.restore", SkipReason::EarlierBackup),
            ("walvault.restore.new", SkipReason::EarlierBackup),
            ("standby.signal", SkipReason::RecoveryRequest),
            ("recovery.signal", SkipReason::RecoveryRequest),
            ("recovery.conf", SkipReason::RecoveryRequest),
            ("recovery.done", SkipReason::RecoveryRequest),
            ("postgresql.auto.conf.tmp", SkipReason::Temporary),
            ("current_logfiles.tmp", SkipReason::Temporary),
            ("base/pgsql_tmp", SkipReason::Temporary),
            ("base/pgsql_tmp/pgsql_tmp77.0", SkipReason::Temporary),
            ("pg_tblspc/16500/PG_16_202307071/pgsql_tmp/x", SkipReason::Temporary),
            ("global/pg_internal.init", SkipReason::RebuiltAtStart),
            ("base/5/pg_internal.init.77", SkipReason::RebuiltAtStart),
            ("base/5/t3_16384", SkipReason::TemporaryRelation),
            ("base/5/t0_16384_fsm.1", SkipReason::TemporaryRelation),
            ("pg_tblspc/16500/PG_16_202307071/5/t3_16384", SkipReason::TemporaryRelation),
            ("pg_tblspc/16500/PG_15_202209061", SkipReason::OtherRelease),
            ("pg_tblspc/16500/PG_15_202209061/5/16384", SkipReason::OtherRelease),
            ("base/.DS_Store", SkipReason::Desktop),
        ] {
            assert_eq!(classify(16, path), Class::Skip(reason), "{path}");
        }
    }

    #[test]
    fn an_init_fork_makes_a_relation_unlogged() {
        let names: [&[u8]; 6] = [b"100", b"100_init", b"100_fsm", b"101", b"t1_102_init", b"103_init.x"];
        let unlogged = unlogged(names);
        assert_eq!(unlogged, HashSet::from([100]));
        let reset = |name: &str| RelationFile::parse(name.as_bytes()).unwrap().is_reset_by_recovery(&unlogged);
        for (name, expected) in [("100", true), ("100.1", true), ("100_vm", true), ("100_init", false), ("101", false)]
        {
            assert_eq!(reset(name), expected, "{name}");
        }
    }
}
