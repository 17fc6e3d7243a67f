//! Runs: a name that whoever schedules gives to one backup, so that two schedulers, or one that tries again, take it once.
//!
//! The name is a note of the backup's, and its manifest the only thing that says that the run is over: what was not
//! committed was not taken.

use super::perform::{BackupError, BackupOptions};
use crate::pg::system_id::SystemId;
use crate::repo::{Lane, LaneId, RepoError, Repository};

/// Key of the note that names a run.
pub const RUN: &str = "run";

/// How many backups are looked at, from the newest on.
const LOOKED_AT: usize = 100;

/// Returns the backup that a run has taken of a server, if it has.
pub fn taken_in_run(repository: &Repository, system_id: SystemId, run: &str) -> Result<Option<String>, RepoError> {
    let Some(lane) = repository.lane(LaneId::first(system_id))? else { return Ok(None) };
    taken_on(&lane, run)
}

/// Looks once more, when nobody else can commit any longer.
pub(super) fn expect_open(lane: &Lane, options: &BackupOptions) -> Result<(), BackupError> {
    let Some(run) = options.annotations.get(RUN) else { return Ok(()) };
    match taken_on(lane, run)? {
        Some(backup) => Err(BackupError::RunTaken { run: run.clone(), backup }),
        None => Ok(()),
    }
}

fn taken_on(lane: &Lane, run: &str) -> Result<Option<String>, RepoError> {
    for backup in lane.backups()?.iter().rev().take(LOOKED_AT) {
        match lane.manifest(backup) {
            Ok(manifest) if manifest.envelope.annotations.get(RUN).is_some_and(|name| name == run) => {
                return Ok(Some(manifest.envelope.backup));
            }
            // One that is gone since it was listed, or damaged, says nothing; `verify` tells of it.
            Ok(_) | Err(RepoError::Missing { .. } | RepoError::Object { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
