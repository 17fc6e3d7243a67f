//! `walvault lane`.

use clap::Subcommand;

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::exit::Fault;
use super::output;
use crate::archive::{ResolveError, adopt_timeline};
use crate::pg::timeline::TimelineId;
use crate::view;

/// Who writes which timeline
#[derive(Subcommand, Debug)]
pub(super) enum LaneArgs {
    List(ListArgs),
    Adopt(AdoptArgs),
}

/// List lanes, and who writes their timelines
///
/// A timeline that does not count yet began while the owner of its parent was at work: it is stored, and neither served to
/// standbys nor taken for the newest one. Exits 0, or 1 if the repository cannot be read.
#[derive(clap::Args, Debug)]
pub(super) struct ListArgs {}

/// Give a timeline to a writer, and let it count
///
/// Without --writer: to its owner, if it does not count yet, and else to the one other writer whose files were kept apart.
/// Nothing that is stored is changed. Exits 0 once it is recorded; 1 if it is not clear to whom, or the repository failed.
#[derive(clap::Args, Debug)]
pub(super) struct AdoptArgs {
    /// Number of the timeline
    timeline: u32,
    /// Token of the writer, as lane list and conflict list show it
    #[arg(long, value_name = "TOKEN")]
    writer: Option<String>,
}

pub(super) fn run(cli: &Cli, args: &LaneArgs) -> Result<u8, CommandError> {
    match args {
        LaneArgs::List(_) => list(cli),
        LaneArgs::Adopt(args) => adopt(cli, args),
    }
}

fn list(cli: &Cli) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let catalogues = context::catalogues(cli, &repository(&settings, PATIENT)?)?;
    if cli.json {
        output::print_json(&view::owners::lanes_json(&catalogues));
    } else {
        output::print(&view::owners::lanes_text(&catalogues));
    }
    Ok(0)
}

fn adopt(cli: &Cli, args: &AdoptArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let timeline = TimelineId::new(args.timeline).ok_or_else(|| CommandError::misuse("there is no timeline 0"))?;
    let lane = context::lane(cli, &repository(&settings, PATIENT)?)?;
    let owner = adopt_timeline(&lane, timeline, args.writer.as_deref(), &context::host())?;
    if cli.json {
        let value = serde_json::json!({ "timeline": timeline, "writer": owner.writer, "host": owner.host });
        output::print_json(&value);
    } else {
        output::print(&format!("timeline {timeline} is {}'s, on {}, and counts\n", owner.writer, owner.host));
    }
    Ok(0)
}

impl From<ResolveError> for CommandError {
    fn from(error: ResolveError) -> Self {
        let hint = match &error {
            ResolveError::Repository(_) => None,
            ResolveError::NameTaken { .. } => Some("see `Contested files` in docs/operations.md"),
            ResolveError::NothingInTheWay { .. } => Some(
                "see `pg_stat_archiver` for the segment; to give this one up all the same, name it with --from too",
            ),
            ResolveError::Range { .. } => Some("see `walvault wal list`"),
            _ => Some("see `walvault lane list` and `walvault conflict list`"),
        };
        let failure = CommandError::new(Fault::Failed(error.kind()), error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
