//! `walvault verify`.

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::output;
use crate::verify::{plan, read};
use crate::view;

/// Verify that everything the backups need is there
///
/// Compares manifests with listings: every pack, and the log from each backup on, without a hole. With --read it reads
/// every pack and every segment, compares their digests, and walks the log record by record. Changes nothing. Exits 0 if
/// all is well, 1 if something is wrong or was not to be found out.
#[derive(clap::Args, Debug)]
pub(super) struct VerifyArgs {
    /// Read and compare every byte
    #[arg(long)]
    read: bool,
}

pub(super) fn run(cli: &Cli, args: &VerifyArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let repository = repository(&settings, PATIENT)?;
    let mut lanes = Vec::new();
    for catalogue in context::catalogues(cli, &repository)? {
        let Some(lane) = repository.lane(catalogue.lane)? else { continue };
        let mut found = plan(&lane, &catalogue)?;
        let done = args.read.then(|| read(&lane, &catalogue, &mut found)).transpose()?;
        lanes.push((catalogue.lane, found, done));
    }
    if cli.json {
        output::print_json(&view::verify::json(&lanes));
    } else {
        output::print(&view::verify::text(&lanes));
    }
    Ok(u8::from(lanes.iter().any(|(_, found, _)| !found.problems.is_empty())))
}
