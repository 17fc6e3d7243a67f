//! `walvault status`.

use std::path::PathBuf;

use super::context::{self, CommandError, lenient_settings, repository};
use super::{Cli, exit, output};
use crate::error;
use crate::instance::DataDirectory;
use crate::repo::LaneId;
use crate::view;
use crate::workflow::status::{StatusFacts, Threshold, Thresholds};

/// Say in one line how archiving stands, for people and monitors
///
/// Needs no connection to the server; with its data directory it also counts what waits there. Exits as Nagios and its
/// relatives expect: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, which also stands for a wrong command line or
/// configuration.
#[derive(clap::Args, Debug)]
pub(super) struct StatusArgs {
    /// Data directory, if it is on this host [default: the setting pgdata]
    #[arg(long, value_name = "DIR")]
    pgdata: Option<PathBuf>,
    /// Warn when the newest WAL is older, in seconds, and the server has written since
    #[arg(long, value_name = "SECONDS", default_value_t = Thresholds::default().wal_age.warn)]
    wal_warn: u64,
    /// Fail when the newest WAL is older, in seconds, and the server has written since
    #[arg(long, value_name = "SECONDS", default_value_t = Thresholds::default().wal_age.fail)]
    wal_fail: u64,
    /// Warn when the last backup is older, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Thresholds::default().backup_age.warn)]
    backup_warn: u64,
    /// Fail when the last backup is older, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Thresholds::default().backup_age.fail)]
    backup_fail: u64,
    /// Warn when more files wait in pg_wal
    #[arg(long, value_name = "COUNT", default_value_t = Thresholds::default().backlog.warn)]
    backlog_warn: u64,
    /// Fail when more files wait in pg_wal
    #[arg(long, value_name = "COUNT", default_value_t = Thresholds::default().backlog.fail)]
    backlog_fail: u64,
}

pub(super) fn run(cli: &Cli, args: &StatusArgs) -> Result<u8, CommandError> {
    let settings = lenient_settings(cli)?;
    let data = args.pgdata.clone().or_else(|| settings.data_directory());
    let data = data.map(|path| DataDirectory::open(&path)).transpose()?;
    let facts = || -> Result<StatusFacts, CommandError> {
        let repository = repository(&settings, settings.seconds("attempt_timeout"))?;
        let lane = match (&cli.lane, &data) {
            (None, Some(data)) => {
                let id = LaneId::first(data.control.system_id);
                let lane = repository.lane(id)?;
                lane.ok_or_else(|| {
                    CommandError::misuse(format!("nothing of system {} is archived", data.control.system_id))
                })?
            }
            _ => context::lane(cli, &repository)?,
        };
        Ok(StatusFacts::gather(&lane, data.as_ref())?)
    };
    let thresholds = Thresholds {
        wal_age: Threshold { warn: args.wal_warn, fail: args.wal_fail },
        backup_age: Threshold { warn: args.backup_warn, fail: args.backup_fail },
        backlog: Threshold { warn: args.backlog_warn, fail: args.backlog_fail },
        ..Thresholds::default()
    };
    // A repository that is not there is no riddle: archiving fails too.
    let measures = match facts() {
        Ok(facts) => facts.judge(&thresholds),
        Err(failure) => {
            let problem = error::one_line(failure.error.as_ref(), super::LINE_BYTES).replace('|', "/");
            let value = serde_json::json!({ "level": "fail", "measures": [], "problem": problem });
            match cli.json {
                true => output::print_json(&value),
                false => output::print(&format!("CRITICAL: {problem}\n")),
            }
            return Ok(exit::judged(crate::workflow::check::Level::Fail));
        }
    };
    if cli.json {
        output::print_json(&view::status::json(&measures));
    } else {
        output::print(&view::status::text(&measures));
    }
    Ok(exit::judged(view::status::level(&measures)))
}
