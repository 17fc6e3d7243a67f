//! `walvault wal index`.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::json;

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::output;
use crate::catalog::{
    LaneCatalog, gathering_wanted, indexes_made, perform_changes, perform_gathering, perform_indexing, plan_changes,
    plan_indexing,
};
use crate::repo::{Lane, RepoError};

/// Make the indexes of archived WAL that are missing
///
/// An index lets `plan`, `restore` and `timelines` look through a long log in few requests: one for every 4 GiB of it, and
/// those gathered into one for every 256 GiB. It also gathers what finished log says was changed since the newest backup, so
/// that the next one asks for less. Every backup makes those that are missing, for half a minute at most; they
/// can be deleted and made again. Reads segments that were archived without a hint. Exits 0, or 1 if the repository cannot
/// be read or written.
#[derive(clap::Args, Debug)]
pub(super) struct IndexArgs {}

pub(super) fn run(cli: &Cli, _: &IndexArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let repository = repository(&settings, PATIENT)?;
    let (mut made, mut segments) = (0, 0);
    for catalogue in context::catalogues(cli, &repository)? {
        let Some(lane) = repository.lane(catalogue.lane)? else { continue };
        let (new, members) = make(&lane, &catalogue, None)?;
        made += new;
        segments += members;
    }
    if cli.json {
        output::print_json(&json!({ "indexes": made, "segments": segments }));
    } else {
        output::print(&format!("{made} indexes made, of {segments} segments\n"));
    }
    Ok(0)
}

/// Makes the indexes that a lane lacks, and begins none after `until`; returns how many, and of how many segments.
pub(super) fn make(lane: &Lane, catalogue: &LaneCatalog, until: Option<Instant>) -> Result<(usize, usize), RepoError> {
    let (mut made, mut segments) = (0, 0);
    for job in plan_changes(catalogue) {
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        made += usize::from(perform_changes(lane, catalogue, &job)?);
    }
    // Most lanes have no finished folder without one; then nothing is listed.
    if plan_indexing(catalogue, &HashMap::new()).is_empty() {
        return Ok((made, segments));
    }
    for job in plan_indexing(catalogue, &indexes_made(lane, catalogue)?) {
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        if perform_indexing(lane, catalogue, &job)? {
            made += 1;
            segments += job.segments.len();
        }
    }
    for job in gathering_wanted(lane, catalogue)? {
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        made += usize::from(perform_gathering(lane, &job)?);
    }
    Ok((made, segments))
}
