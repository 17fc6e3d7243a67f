//! `walvault timelines`.

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::exit::Fault;
use super::output;
use crate::error;
use crate::restore::{SurveyError, chronicle, reach};
use crate::view;

/// Show the timelines as a tree, and the moments that can be restored on each
///
/// Every moment between the end of a backup and the end of the archived log that follows it can be restored. Exits 0, or
/// 1 if the repository cannot be read.
#[derive(clap::Args, Debug)]
pub(super) struct TimelinesArgs {
    /// List restore points, and what was dropped, truncated or rewritten, instead
    #[arg(long)]
    events: bool,
}

pub(super) fn run(cli: &Cli, args: &TimelinesArgs) -> Result<u8, CommandError> {
    if args.events {
        return events(cli);
    }
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

fn events(cli: &Cli) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let repository = repository(&settings, PATIENT)?;
    let mut lanes = Vec::new();
    for catalogue in context::catalogues(cli, &repository)? {
        let Some(lane) = repository.lane(catalogue.lane)? else { continue };
        let told = chronicle(&lane, &catalogue)?;
        lanes.push((catalogue, told));
    }
    let lanes: Vec<_> = lanes.iter().map(|(catalogue, told)| (catalogue, told.as_slice())).collect();
    if cli.json {
        output::print_json(&serde_json::json!({ "events": view::events::json(&lanes) }));
    } else {
        output::print(&view::events::text(&lanes));
    }
    Ok(0)
}

impl From<SurveyError> for CommandError {
    fn from(error: SurveyError) -> Self {
        CommandError::new(Fault::Failed(error.kind()), error)
    }
}
