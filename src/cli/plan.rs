//! `walvault plan`.

use std::path::PathBuf;

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::exit::Fault;
use super::output;
use crate::catalog::LaneCatalog;
use crate::clock;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::repo::Lane;
use crate::restore::{
    Lost, PlanError, Purpose, RelationName, Request, RestoreError, Target, check_created, choices, parse_time, plan,
};
use crate::view;

/// Show how a target would be reached, or what is in the way
///
/// Writes nothing. Without a target it lists what can be reached. Exits 0 with a plan, 2 if nothing fits the target or
/// more than one branch does, 64 and 78 for a wrong command line or configuration, 1 for everything else.
#[derive(clap::Args, Debug)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    target: TargetArgs,
}

/// What to come back to.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Target")]
pub(super) struct TargetArgs {
    /// The newest moment that the archive holds
    #[arg(long, group = "target")]
    to_latest: bool,
    /// Everything committed at or before a moment: "2026-11-21 14:30:00+01:00", "yesterday 14:30 Europe/Paris",
    /// "10 minutes ago"
    #[arg(long, group = "target", value_name = "TIME")]
    to_time: Option<String>,
    /// Everything whose record ended at or before a position
    #[arg(long, group = "target", value_name = "LSN")]
    to_lsn: Option<Lsn>,
    /// Everything up to the end of a transaction
    #[arg(long, group = "target", value_name = "XID")]
    to_xid: Option<u32>,
    /// A restore point made by pg_create_restore_point()
    #[arg(long, group = "target", value_name = "NAME")]
    to_name: Option<String>,
    /// Before the commit that dropped a table, or truncated it; what others committed meanwhile stays
    #[arg(long, group = "target", value_name = "REL")]
    before_drop: Option<RelationName>,
    /// Before a database was dropped
    #[arg(long, group = "target", value_name = "NAME")]
    before_drop_database: Option<String>,
    /// Before a tablespace was dropped
    #[arg(long, group = "target", value_name = "OID|DIR")]
    before_drop_tablespace: Option<String>,
    /// The end of the backup itself
    #[arg(long, group = "target")]
    to_backup_end: bool,
    /// Leave out the transaction, or what happened at the moment or position, that was named
    #[arg(long)]
    exclusive: bool,
    /// Timeline to end on, where more than one fits
    #[arg(long, value_name = "NUMBER")]
    pub timeline: Option<u32>,
    /// Backup to begin with [default: the one that leaves the least to replay]
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// Let replay create tablespaces in a directory that exists on this host, and below it; repeatable
    #[arg(long, value_name = "DIR", help_heading = "Places")]
    pub allow_tablespace_path: Vec<PathBuf>,
}

impl TargetArgs {
    /// Returns the target, if one was given.
    pub fn target(&self) -> Result<Option<Target>, CommandError> {
        Ok(match self {
            Self { to_latest: true, .. } => Some(Target::Latest),
            Self { to_backup_end: true, .. } => Some(Target::BackupEnd),
            Self { to_time: Some(text), .. } => {
                let time = parse_time(text, clock::now()).map_err(|error| CommandError::new(Fault::Usage, error))?;
                if !is_exact(text) {
                    output::complain(&format!("{text:?} is taken as {}", view::human::rfc3339(time)));
                }
                Some(Target::Time(time))
            }
            Self { to_lsn: Some(lsn), .. } => Some(Target::Lsn(*lsn)),
            Self { to_xid: Some(xid), .. } => Some(Target::Xid(*xid)),
            Self { before_drop: Some(name), .. } => Some(Target::BeforeDrop(name.clone())),
            Self { before_drop_database: Some(name), .. } => Some(Target::BeforeLoss(Lost::Database(name.clone()))),
            Self { before_drop_tablespace: Some(place), .. } => {
                Some(Target::BeforeLoss(Lost::Tablespace(place.clone())))
            }
            Self { to_name: Some(name), .. } => Some(Target::Name(name.clone())),
            _ => None,
        })
    }

    /// Returns the whole request.
    pub fn request(&self, target: Target, purpose: Purpose) -> Result<Request, CommandError> {
        if self.exclusive && !matches!(target, Target::Time(_) | Target::Lsn(_) | Target::Xid(_)) {
            return Err(CommandError::misuse("--exclusive goes with --to-time, --to-lsn or --to-xid"));
        }
        let number = |number| TimelineId::new(number).ok_or_else(|| CommandError::misuse("there is no timeline 0"));
        Ok(Request {
            target,
            purpose,
            exclusive: self.exclusive,
            timeline: self.timeline.map(number).transpose()?,
            backup: self.backup.clone(),
        })
    }
}

/// Whether a moment is written so that it means the same on every day and host, and needs no echo.
fn is_exact(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains(char::is_whitespace)
}

pub(super) fn run(cli: &Cli, args: &PlanArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let target = args.target.target()?;
    let lane = context::lane(cli, &repository(&settings, PATIENT)?)?;
    let catalogue = LaneCatalog::load(&lane)?;
    let Some(target) = target else {
        let choices = choices(&lane, &catalogue)?;
        if cli.json {
            output::print_json(&view::plan::choices_json(&catalogue, &choices));
        } else {
            output::print(&view::plan::choices_text(&catalogue, &choices));
        }
        return Ok(0);
    };
    let plan = decide(&lane, &catalogue, &args.target.request(target, Purpose::Primary)?)?;
    check_created(&plan.tablespaces_created, &args.target.allow_tablespace_path).map_err(RestoreError::from)?;
    let estimate = context::pace(&settings).map(|file| file.load()).unwrap_or_default().estimate(&plan);
    if cli.json {
        output::print_json(&view::plan::estimated_json(&plan, &estimate));
    } else {
        output::print(&view::plan::text(&plan, &estimate));
    }
    Ok(0)
}

/// Plans, and where that fails lists what can be reached instead.
pub(super) fn decide(
    lane: &Lane,
    catalogue: &LaneCatalog,
    request: &Request,
) -> Result<crate::restore::Plan, CommandError> {
    plan(lane, catalogue, request).map_err(|error| {
        let damaged = &catalogue.unreadable;
        damaged.iter().for_each(|backup| output::complain(&view::backups::unreadable_text(backup)));
        if !matches!(error, PlanError::Survey(_))
            && let Ok(choices) = choices(lane, catalogue)
        {
            output::complain(view::plan::choices_text(catalogue, &choices).trim_end());
        }
        error.into()
    })
}

impl From<PlanError> for CommandError {
    fn from(error: PlanError) -> Self {
        let fault = match &error {
            PlanError::Survey(source) => Fault::Failed(source.kind()),
            PlanError::Unreachable { .. } | PlanError::Ambiguous { .. } | PlanError::Waiting { .. } => Fault::NoPlan,
        };
        CommandError::new(fault, error)
    }
}
