//! `walvault wal list` and `walvault wal show`.

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::exit::Fault;
use super::output;
use crate::error::ErrorKind;
use crate::pg::wal_name::{NameError, WalFileName};
use crate::view;

/// List archived WAL
///
/// One line for each run of consecutive segments; a gap between two runs of one timeline is a hole. Exits 0, or 1 if the
/// repository cannot be read.
#[derive(clap::Args, Debug)]
pub(super) struct ListArgs {}

/// Show one archived file
///
/// Reads and verifies the whole file. Exits 0 if it is intact, 1 if it is missing or damaged.
#[derive(clap::Args, Debug)]
pub(super) struct ShowArgs {
    /// Name of the file
    name: String,
}

pub(super) fn list(cli: &Cli, _: &ListArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let catalogues = context::catalogues(cli, &repository(&settings, PATIENT)?)?;
    if cli.json {
        output::print_json(&view::wal::list_json(&catalogues));
    } else {
        output::print(&view::wal::list_text(&catalogues));
    }
    Ok(0)
}

pub(super) fn show(cli: &Cli, args: &ShowArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let name: WalFileName = args.name.parse().map_err(|error: NameError| CommandError::new(Fault::Usage, error))?;
    let lane = context::lane(cli, &repository(&settings, PATIENT)?)?;
    let stored = lane.read_wal(&name)?.ok_or_else(|| {
        let text = format!("lane {} has no {name}", lane.id());
        CommandError::new(Fault::Failed(ErrorKind::NotFound), text).hint("see `walvault wal list`")
    })?;
    if cli.json {
        output::print_json(&view::wal::show_json(&name, &stored));
    } else {
        output::print(&view::wal::show_text(&name, &stored));
    }
    Ok(0)
}
