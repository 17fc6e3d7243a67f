//! What a finished restore says.

use std::time::Duration;

use serde_json::{Value, json};

use super::human;
use crate::format::manifest::LinkKept;
use crate::restore::{PlacedConfiguration, Plan, Purpose, RestoreReport, RestoredConfiguration, TargetAction};
use crate::workflow::Started;

/// Returns the report for people; its last line says whether the copy archives, and the next command.
pub fn text(
    plan: &Plan,
    report: &RestoreReport,
    action: TargetAction,
    elapsed: Duration,
    running: Option<&Started>,
) -> String {
    let directory = report.data_directory.display();
    let mut text = format!(
        "restored {} in {} files into {directory} in {}\n",
        human::bytes(report.bytes),
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
    let archiving = match (report.archiving, &report.configuration) {
        (false, _) => "OFF",
        (true, RestoredConfiguration::NotRestored { .. }) => "what the configuration says",
        (true, _) => "ON, as in the original",
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

/// Returns the report for programs.
pub fn json(plan: &Plan, report: &RestoreReport, running: Option<&Started>) -> Value {
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
    value["start"] = json!(start_command(plan, report));
    if let Some(running) = running {
        value["reached_lsn"] = json!(running.reached);
        value["last_transaction_time"] = json!(running.last_transaction);
        value["promoted_to"] = json!(running.promoted_to);
    }
    value
}
