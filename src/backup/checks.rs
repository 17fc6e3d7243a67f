//! Whose files these are, and whether they are what a backup can be made of.

use std::path::PathBuf;
use std::time::Duration;

use super::perform::{BackupError, BackupOptions};
use crate::instance::{DataDirectory, LocateError, ServerFacts, ServerRole};
use crate::pg::backup_label::{BackupFrom, BackupLabel};
use crate::pg::control::{ControlFile, DbState};
use crate::pg::lsn::Lsn;

/// Checks that this server can be backed up, from this data directory.
pub(super) fn usable(server: &ServerFacts, options: &BackupOptions) -> Result<DataDirectory, BackupError> {
    // What a standby does not archive itself comes from its primary.
    if server.archive_mode == "off" && !server.in_recovery {
        return Err(BackupError::NotArchiving { mode: server.archive_mode.clone() });
    }
    let path = options.data_directory.clone().unwrap_or_else(|| PathBuf::from(&server.data_directory));
    let directory = DataDirectory::open(&path)?;
    if directory.control.system_id != server.system_id {
        return Err(BackupError::OtherSystem { path, found: directory.control.system_id, expected: server.system_id });
    }
    Ok(directory)
}

/// Checks that these are the files of the server that began the backup, and not those of another of its cluster or of an old
/// copy, which have the same system identifier and lack what the log will not bring.
///
/// Source: `do_pg_backup_start` in `src/backend/access/transam/xlog.c` waits for a checkpoint, on a standby for a
/// restartpoint if one can be made, takes the start from the redo point in `pg_control`, and that was written before it ends.
pub(super) fn expect_the_servers(
    directory: &DataDirectory,
    control: &ControlFile,
    (start, role): (Lsn, ServerRole),
) -> Result<(), BackupError> {
    let expected = match role {
        ServerRole::Primary => DbState::InProduction,
        ServerRole::Standby => DbState::InArchiveRecovery,
    };
    if control.state == expected && control.redo >= start {
        return Ok(());
    }
    let (path, state, redo) = (directory.path.clone(), control.state, control.redo);
    Err(BackupError::NotItsFiles { path, state, redo, start })
}

/// Checks that the `pg_control` that was copied last is one that this backup can end with.
///
/// A standby writes no record at a backup's end: recovery takes the end from the minimum recovery point of the `pg_control`
/// in the backup, which covers every page that was copied before it. So the log is needed up to there and, since the server
/// was asked afterwards, up to the end that it gave.
///
/// Source: `do_pg_backup_stop` in `xlog.c`, `ReadBackupLabel` and `InitWalRecovery` in `xlogrecovery.c`.
pub(super) fn expect_the_end(
    role: ServerRole,
    label: &BackupLabel,
    control: &ControlFile,
    stop: Lsn,
) -> Result<(), BackupError> {
    let changed = |what| Err(BackupError::Changed { what });
    match (role, label.from) {
        (ServerRole::Primary, BackupFrom::Primary) => Ok(()),
        (ServerRole::Standby, BackupFrom::Standby) => match control.min_recovery_point {
            _ if control.state != DbState::InArchiveRecovery => changed("the server's role"),
            Some(point) if point.timeline != label.start_timeline => changed("the timeline"),
            Some(point) if point.lsn <= stop => Ok(()),
            _ => changed("pg_control"),
        },
        _ => changed("the server's role"),
    }
}

/// Reads `pg_control` after everything else, until it is whole: the server may be writing it.
pub(super) fn read_control(directory: &DataDirectory) -> Result<(ControlFile, Vec<u8>), BackupError> {
    let path = directory.path.join("global/pg_control");
    let mut last = None;
    for _ in 0..20 {
        let bytes = std::fs::read(&path).map_err(|source| LocateError::Unreadable { path: path.clone(), source })?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((control, bytes)),
            Err(source) => last = Some(LocateError::Control { path: path.clone(), source }),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(last.expect("at least one attempt was made").into())
}
