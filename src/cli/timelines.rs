//! `walvault timelines`.

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::output;
use crate::error;
use crate::restore::reach;
use crate::view;

/// Show the timelines as a tree, and the moments that can be restored on each
///
/// Every moment between the end of a backup and the end of the archived log that follows it can be restored. Exits 0, or
/// 1 if the repository cannot be read.
#[derive(clap::Args, Debug)]
pub(super) struct TimelinesArgs {}

pub(super) fn run(cli: &Cli, _: &TimelinesArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let repository = repository(&settings, PATIENT)?;
    let mut lanes = Vec::new();
    for catalogue in context::catalogues(cli, &repository)? {
        let Some(lane) = repository.lane(catalogue.lane)? else { continue };
        let reached = match reach(&lane, &catalogue) {
            Ok(reached) => Some(reached),
            Err(problem) => {
                output::complain(&format!("what can be restored is unknown: {}", error::chain(&problem)));
                None
            }
        };
        lanes.push((catalogue, reached));
    }
    if cli.json {
        output::print_json(&view::timelines::json(&lanes));
    } else {
        output::print(&view::timelines::text(&lanes));
    }
    // What was asked for was not answered in full.
    Ok(u8::from(lanes.iter().any(|(_, reached)| reached.is_none())))
}
