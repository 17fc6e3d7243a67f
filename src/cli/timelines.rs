//! `walvault timelines`.

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::output;
use crate::view;

/// Show the timelines, where each forked off and what is archived of it
///
/// Exits 0, or 1 if the repository cannot be read.
#[derive(clap::Args, Debug)]
pub(super) struct TimelinesArgs {}

pub(super) fn run(cli: &Cli, _: &TimelinesArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let catalogues = context::catalogues(cli, &repository(&settings, PATIENT)?)?;
    if cli.json {
        output::print_json(&view::timelines::json(&catalogues));
    } else {
        output::print(&view::timelines::text(&catalogues));
    }
    Ok(0)
}
