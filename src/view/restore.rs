//! What a finished restore says.

use std::time::Duration;

use serde_json::{Value, json};

use super::human;
use crate::format::manifest::LinkKept;
use crate::restore::{
    PlacedConfiguration, Plan, Purpose, RestoreReport, RestoredConfiguration, Selection, TargetAction,
};
use crate::workflow::{ClosedDatabase, Started};

/// Returns the report for people; its last line says whether the copy archives, and the next command.
pub fn text(
    plan: &Plan,
    report: &RestoreReport,
    action: TargetAction,
    elapsed: Duration,
    running: Option<&Started>,
    closed: Option<&[ClosedDatabase]>,
) -> String {
    let directory = report.data_directory.display();
    let mut text = format!(
        "restored {} in {} files into {directory} in {}\n",
        human::bytes(report.bytes - report.left_out_bytes),
        report.files,
        human::duration(elapsed)
    );
    if let Some(kept) = report.kept {
        text.push_str(&format!("went on with an interrupted restore: {kept} files were there and whole\n"));
    }
    for setting in &report.raised {
        text.push_str(&format!("raised {setting}, which the log needs\n"));
    }
    if let Some(removed) = report.removed {
        text.push_str(&format!(
            "brought to the backup; removed {removed} files and directories that it does not have\n"
        ));
    }
    for link in report.links.iter().filter(|link| link.kept != LinkKept::Nothing) {
        text.push_str(&format!("{} was a link to {}, and lies in the data directory now\n", link.path, link.target));
    }
    for link in report.links.iter().filter(|link| link.kept == LinkKept::Nothing) {
        text.push_str(&format!("{} was a link to {}, and is not in the backup\n", link.path, link.target));
    }
    if let RestoredConfiguration::PutUp(placed) = &report.configuration {
        text.push_str(&put_up_text(placed));
    }
    text.push_str(&left_out_text(report, closed));
    let archiving = match (report.archiving, plan.purpose) {
        (Some(false), Purpose::Clone) => "OFF",
        (Some(false), _) => "OFF, by its own configuration: set archive_mode and archive_command",
        (Some(true), Purpose::Clone) => "ON, as --set says",
        (Some(true), _) => "ON, as in the original",
        (None, _) => "what the configuration says",
    };
    if let Some(running) = running {
        text.push_str(&running_text(plan, running));
        text.push_str(&format!("archiving is {archiving}; next: {}\n", next(plan, action, running)));
        return text;
    }
    text.push_str(match (plan.purpose, action) {
        (Purpose::Standby, _) => "it follows its primary once started\n",
        (_, TargetAction::Pause) => {
            "at the target it waits, open for reading; look, then open it with `select pg_wal_replay_resume()`\n"
        }
        (_, TargetAction::Promote) => "at the target it opens for writing\n",
        (_, TargetAction::Shutdown) => "at the target it stops\n",
    });
    if let RestoredConfiguration::NotRestored { config_file } = &report.configuration {
        text.push_str(&format!(
            "the configuration lay outside the data directory, at {config_file}, and is not restored: the next command puts it \
             up in a new directory and says how to start the server with it\n"
        ));
    }
    text.push_str(&format!("archiving is {archiving}; next: {}\n", start_command(plan, report)));
    text
}

/// What brings the server up, from the directory that was restored and no other.
fn start_command(plan: &Plan, report: &RestoreReport) -> String {
    let directory = report.data_directory.display();
    match &report.configuration {
        RestoredConfiguration::Inside { names_another_directory: false } => format!("pg_ctl -D {directory} start"),
        // Or the server runs in the directory that the configuration names, which may be the original's.
        RestoredConfiguration::Inside { names_another_directory: true } => {
            format!("pg_ctl -D {directory} -o \"-c data_directory={directory}\" start")
        }
        RestoredConfiguration::PutUp(placed) => format!("pg_ctl -D {} start", placed.directory.display()),
        RestoredConfiguration::NotRestored { .. } => {
            let backup = &plan.manifest.envelope.backup;
            format!("walvault config {backup} DIR --pgdata {directory}")
        }
    }
}

fn put_up_text(placed: &PlacedConfiguration) -> String {
    let mut text = format!("configuration put up in {}, {} files\n", placed.directory.display(), placed.files);
    for missing in &placed.missing {
        text.push_str(&format!(
            "not on this host, and never in a backup: {missing}; bring it, or take it out of the configuration\n"
        ));
    }
    text
}

/// Returns what `config` says.
pub fn configuration_text(placed: &PlacedConfiguration, starts: bool) -> String {
    let mut text = put_up_text(placed);
    if starts {
        text.push_str(&format!("next: pg_ctl -D {} start\n", placed.directory.display()));
    }
    text
}

/// Returns what `config` says, for programs.
pub fn configuration_json(placed: &PlacedConfiguration) -> Value {
    json!({ "directory": placed.directory.to_string_lossy(), "files": placed.files, "missing": placed.missing })
}

fn running_text(plan: &Plan, running: &Started) -> String {
    match (plan.purpose, running.promoted_to) {
        (Purpose::Standby, _) => format!("the server runs and has replayed the log to {}\n", running.reached),
        (_, Some(timeline)) => {
            format!("recovery ended at {}, as planned; open for writing on timeline {timeline}\n", running.reached)
        }
        (_, None) => format!("recovery stands at {}, as planned, open for reading\n", running.reached),
    }
}

fn next(plan: &Plan, action: TargetAction, running: &Started) -> &'static str {
    match (plan.purpose, action, running.promoted_to) {
        (Purpose::Standby, _, _) => "select * from pg_stat_wal_receiver",
        (_, TargetAction::Pause, None) => "look, then open it with `select pg_wal_replay_resume()`",
        _ => "walvault backup, the first of the new timeline",
    }
}

/// Returns what is going to be left out, for people.
pub fn left_out_plan(selection: &Selection) -> Option<String> {
    let names: Vec<&str> = selection.left_out().values().map(String::as_str).collect();
    selection
        .is_partial()
        .then(|| format!("leaves out {}: nobody can enter them, and they are to be dropped", names.join(", ")))
}

/// Says plainly that the copy is not whole.
fn left_out_text(report: &RestoreReport, closed: Option<&[ClosedDatabase]>) -> String {
    if report.left_out.is_empty() {
        return String::new();
    }
    let names = |names: Vec<&str>| names.join(", ");
    let left_out = names(report.left_out.iter().map(|(_, name)| name.as_str()).collect());
    let bytes = human::bytes(report.left_out_bytes);
    let mut text = format!("NOT WHOLE: left out, as asked: {left_out} ({bytes} that are zeros here)\n");
    match closed {
        None => text.push_str(&format!(
            "nobody can enter these databases; `drop database` them once the copy is open for writing: no backup of it is \
             taken before. REQUIRED as the first thing then, before anybody else connects, for a database made from one of \
             them could be entered and would be empty: {}\n",
            closing(report)
        )),
        Some(closed) => {
            let (dropped, there): (Vec<_>, Vec<_>) = closed.iter().partition(|database| database.dropped);
            let of = |databases: Vec<&ClosedDatabase>| {
                names(databases.iter().map(|database| database.name.as_str()).collect())
            };
            if !dropped.is_empty() {
                text.push_str(&format!("dropped: {}\n", of(dropped)));
            }
            if !there.is_empty() {
                text.push_str(&format!(
                    "closed for everybody, and still to be dropped before a backup is taken: {}\n",
                    of(there)
                ));
            }
        }
    }
    text
}

/// The statement that closes what was left out, also as a template; `-2` marks a database that can only be dropped. By number:
/// replay may have given one another name, and another database its own.
///
/// Source: `DATCONNLIMIT_INVALID_DB` in `src/include/catalog/pg_database.h`; `have_createdb_privilege` and `createdb` in
/// `src/backend/commands/dbcommands.c`, which take any database as a template from its owner.
fn closing(report: &RestoreReport) -> String {
    let numbers: Vec<String> = report.left_out.iter().map(|(oid, _)| oid.to_string()).collect();
    format!(
        "update pg_database set datallowconn = false, datistemplate = false, datconnlimit = -2 where oid in ({})",
        numbers.join(", ")
    )
}

/// Returns the report for programs.
pub fn json(
    plan: &Plan,
    report: &RestoreReport,
    running: Option<&Started>,
    closed: Option<&[ClosedDatabase]>,
) -> Value {
    let mut value = super::plan::json(plan);
    value["directory"] = json!(report.data_directory.to_string_lossy());
    value["kept_files"] = json!(report.kept);
    value["removed_files"] = json!(report.removed);
    value["raised"] = json!(report.raised);
    value["archiving"] = json!(report.archiving);
    value["links"] = json!(report.links);
    value["configuration"] = match &report.configuration {
        RestoredConfiguration::Inside { .. } => Value::Null,
        RestoredConfiguration::PutUp(placed) => configuration_json(placed),
        RestoredConfiguration::NotRestored { config_file } => json!({ "not_restored": config_file }),
    };
    let database = |(oid, name): &(u32, String)| json!({ "oid": oid, "name": name });
    value["left_out"] = report.left_out.iter().map(database).collect();
    value["left_out_bytes"] = json!(report.left_out_bytes);
    if closed.is_none() && !report.left_out.is_empty() {
        value["close"] = json!(closing(report));
    }
    if let Some(closed) = closed {
        let database =
            |closed: &ClosedDatabase| json!({ "oid": closed.oid, "name": closed.name, "dropped": closed.dropped });
        value["closed"] = closed.iter().map(database).collect();
    }
    value["start"] = json!(start_command(plan, report));
    if let Some(running) = running {
        value["reached_lsn"] = json!(running.reached);
        value["last_transaction_time"] = json!(running.last_transaction);
        value["promoted_to"] = json!(running.promoted_to);
    }
    value
}
