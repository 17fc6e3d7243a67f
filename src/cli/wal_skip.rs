//! `walvault wal skip`.

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::output;
use crate::archive::give_up;
use crate::pg::segment::SegmentName;

/// Give up segments that cannot be archived, so that archiving goes on behind them
///
/// Records a hole. The archiver then passes a segment in it that cannot be read, is damaged, or has a name that another
/// server's bytes have; one that can be archived still is. Nothing is ever replayed across the hole: take a backup at
/// once. Exits 0 once it is recorded; 1 if it was not.
#[derive(clap::Args, Debug)]
pub(super) struct SkipArgs {
    /// The last segment to give up
    #[arg(long, value_name = "SEGMENT")]
    through: SegmentName,
    /// The first segment to give up [default: the first one that is not archived]. One that is archived, whole and
    /// uncontested is given up only if it is named here
    #[arg(long, value_name = "SEGMENT")]
    from: Option<SegmentName>,
    /// Why, for whoever finds the hole
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
}

pub(super) fn run(cli: &Cli, args: &SkipArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let lane = context::lane(cli, &repository(&settings, PATIENT)?)?;
    let hole = give_up(&lane, args.from, args.through, &args.reason, &context::host())?;
    if cli.json {
        output::print_json(&serde_json::json!(hole));
    } else {
        output::print(&format!("hole: {hole}\nnothing can be replayed across it: take a backup now\n"));
    }
    Ok(0)
}
