//! Backups.

use std::time::Duration;

use serde_json::{Value, json};

use super::human;
use super::table::table;
use crate::backup::{BackupReport, Basis, Method, Slowed, TakenOver};
use crate::catalog::{LaneCatalog, UnreadableBackup};
use crate::format::configuration::StoredConfiguration;
use crate::format::manifest::{Envelope, Link, LinkKept, Manifest};
use crate::instance::ServerRole;

/// Where the files of a backup came from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Whether the server sent them over the replication protocol.
    pub remote: bool,
    /// The server's host and port.
    pub target: String,
    /// What the server was.
    pub role: ServerRole,
    /// Why they came so.
    pub reason: String,
}

/// Returns the list for people.
pub fn list_text(catalogues: &[LaneCatalog]) -> String {
    let mut rows = Vec::new();
    for manifest in catalogues.iter().flat_map(|catalogue| &catalogue.backups) {
        let envelope = &manifest.envelope;
        rows.push(vec![
            envelope.backup.clone(),
            envelope.timeline.to_string(),
            human::time(envelope.stopped_at),
            envelope.start_lsn.to_string(),
            envelope.stop_lsn.to_string(),
            human::bytes(envelope.bytes),
            human::bytes(envelope.stored_bytes),
        ]);
    }
    let mut text = match rows.is_empty() {
        true => "no backups yet\n".to_owned(),
        false => table(&["BACKUP", "TIMELINE", "STOPPED", "START", "STOP", "SIZE", "STORED"], &rows),
    };
    for backup in catalogues.iter().flat_map(|catalogue| &catalogue.unreadable) {
        text.push_str(&unreadable_text(backup));
        text.push('\n');
    }
    text
}

/// Returns a line about a backup whose manifest cannot be read.
pub fn unreadable_text(backup: &UnreadableBackup) -> String {
    format!("warning: backup {} was committed and cannot be read: {}", backup.id, backup.problem)
}

/// Returns the list for programs.
pub fn list_json(catalogues: &[LaneCatalog]) -> Value {
    let manifests = catalogues.iter().flat_map(|catalogue| &catalogue.backups);
    let backups: Vec<Value> = manifests.map(|manifest| envelope_json(&manifest.envelope)).collect();
    let unreadable = catalogues.iter().flat_map(|catalogue| &catalogue.unreadable);
    let unreadable: Vec<Value> =
        unreadable.map(|backup| json!({ "id": backup.id, "problem": backup.problem })).collect();
    json!({ "backups": backups, "unreadable": unreadable })
}

/// Returns one backup for programs.
pub fn envelope_json(envelope: &Envelope) -> Value {
    json!({
        "id": envelope.backup,
        "lane": envelope.lane,
        "timeline": envelope.timeline,
        "start_lsn": envelope.start_lsn,
        "stop_lsn": envelope.stop_lsn,
        "started_at": human::rfc3339(envelope.started_at),
        "stopped_at": human::rfc3339(envelope.stopped_at),
        "parent": envelope.parent,
        "annotations": envelope.annotations,
        "bytes": envelope.bytes,
        "stored_bytes": envelope.stored_bytes,
        "named_bytes": envelope.named_bytes(),
    })
}

/// Returns that no backup was taken, for programs.
pub fn skipped_json(wanted: ServerRole, role: ServerRole) -> Value {
    json!({ "skipped": { "reason": "role", "wanted": wanted.to_string(), "role": role.to_string() } })
}

/// Returns why no backup was taken: its run was over.
pub fn skipped_run_json(run: &str, backup: &str) -> Value {
    json!({ "skipped": { "reason": "run", "run": run, "backup": backup } })
}

/// Returns everything about one backup for people.
pub fn show_text(manifest: &Manifest) -> String {
    let (envelope, root) = (&manifest.envelope, &manifest.root);
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<16}{value}\n"));
    line("backup", envelope.backup.clone());
    line("lane", envelope.lane.clone());
    line("server", format!("PostgreSQL {}", root.server_version));
    line("timeline", envelope.timeline.to_string());
    line("from", format!("{} at {}", envelope.start_lsn, human::time(envelope.started_at)));
    line("to", format!("{} at {}", envelope.stop_lsn, human::time(envelope.stopped_at)));
    line("files", format!("{}, {}", envelope.files, human::bytes(envelope.bytes)));
    line("stored", human::bytes(envelope.stored_bytes));
    line("needs", format!("{} in {} packs", human::bytes(envelope.named_bytes()), envelope.packs));
    line("builds on", envelope.parent.clone().unwrap_or_else(|| "no other backup".to_owned()));
    line("segments", human::bytes(envelope.segment_size.into()));
    for (key, note) in &envelope.annotations {
        line("annotation", format!("{key} = {note}"));
    }
    line("checksums", if root.data_checksums { "on".to_owned() } else { "off".to_owned() });
    for database in &root.databases {
        line("database", format!("{} ({})", database.name, database.oid));
    }
    for tablespace in &root.tablespaces {
        line("tablespace", format!("{} at {}", tablespace.oid, tablespace.path));
    }
    for link in &root.links {
        line("link", link_text(link));
    }
    if let Some(configuration) = &root.configuration {
        line(
            "configuration",
            format!("{} and {} more", configuration.config_file, configuration.entries.len().saturating_sub(1)),
        );
        for file in &configuration.left_out {
            line("left out", format!("{}: {}", file.path, file.problem));
        }
    }
    for page in &root.damaged_pages {
        line("damaged", format!("{} page {}", page.path, page.page));
    }
    text
}

/// Returns everything about one backup for programs.
pub fn show_json(manifest: &Manifest) -> Value {
    let root = &manifest.root;
    let mut value = envelope_json(&manifest.envelope);
    value["files"] = json!(manifest.envelope.files);
    value["packs"] = json!(manifest.envelope.packs);
    value["server_version"] = json!(root.server_version);
    value["system_id"] = json!(root.system_id);
    value["segment_size"] = json!(manifest.envelope.segment_size);
    value["block_size"] = json!(root.block_size);
    value["data_checksums"] = json!(root.data_checksums);
    value["databases"] = json!(root.databases);
    value["tablespaces"] = json!(root.tablespaces);
    value["links"] = json!(root.links);
    value["configuration"] = configuration_json(root.configuration.as_ref());
    value["limits"] = json!(root.limits);
    value["damaged_pages"] = json!(root.damaged_pages);
    value
}

/// Returns what became of a link, for people.
pub fn link_text(link: &Link) -> String {
    let kept = match link.kept {
        LinkKept::Contents => "kept as what it led to",
        LinkKept::Emptied => "kept as an empty directory",
        LinkKept::Nothing => "left out",
    };
    format!("{} to {}: {kept}", link.path, link.target)
}

fn configuration_json(configuration: Option<&StoredConfiguration>) -> Value {
    configuration.map_or(Value::Null, |configuration| {
        json!({
            "config_file": configuration.config_file,
            "hba_file": configuration.hba_file,
            "ident_file": configuration.ident_file,
            "entries": configuration.entries,
            "left_out": configuration.left_out,
        })
    })
}

/// Returns what a finished backup says, for programs.
pub fn taken_json(report: &BackupReport, origin: &Origin) -> Value {
    let mut value = envelope_json(&report.envelope);
    value["source"] = json!({
        "from": if origin.remote { "remote" } else { "local" },
        "server": origin.target,
        "role": origin.role.to_string(),
        "reason": origin.reason,
    });
    let basis = &report.basis;
    value["changes"] = json!({
        "method": basis.method.to_string(),
        "reason": basis.reason,
        "compared_bytes": basis.compared_bytes,
        "unread_bytes": basis.unread_bytes,
        "doubted_files": basis.doubted.files,
    });
    value["taken_over"] = report
        .taken_over
        .as_ref()
        .map_or(Value::Null, |taken| json!({ "backups": taken.backups, "packs": taken.packs, "bytes": taken.bytes }));
    value["slowed"] = report.slowed.map_or(
        Value::Null,
        |slowed| json!({ "paused_seconds": slowed.paused.as_secs_f64(), "times": slowed.tenths as f64 / 10.0 }),
    );
    value
}

fn slowed_text(slowed: Slowed) -> String {
    let (paused, whole, tenths) = (human::duration(slowed.paused), slowed.tenths / 10, slowed.tenths % 10);
    format!(
        "slowed itself: its threads paused for {paused}, since reads took up to {whole}.{tenths} times as long as at their quickest\n"
    )
}

fn taken_over_text(taken: &TakenOver) -> String {
    let backups: Vec<&str> = taken.backups.iter().map(String::as_str).collect();
    let whose = if backups.len() == 1 { "a cut-off backup" } else { "cut-off backups" };
    format!(
        "taken over from {whose}: {} in {} packs of {}\n",
        human::bytes(taken.bytes),
        taken.packs,
        backups.join(", ")
    )
}

fn basis_text(basis: &Basis) -> String {
    let reason = &basis.reason;
    match (&basis.parent, basis.method) {
        (None, _) | (_, Method::Full) => format!("full: {reason}"),
        (Some(parent), Method::Hashes) => format!("builds on {parent}; everything was read: {reason}"),
        (Some(parent), Method::Log | Method::Summaries) => format!("builds on {parent}; {reason}"),
    }
}

/// Returns what a finished backup says.
pub fn taken_text(report: &BackupReport, origin: &Origin, elapsed: Duration) -> String {
    let how = if origin.remote { "sent by" } else { "the files of" };
    let origin = format!("{how} the {} at {}: {}", origin.role, origin.target, origin.reason);
    let (envelope, basis) = (&report.envelope, basis_text(&report.basis));
    let taken_over = report.taken_over.as_ref().map_or_else(String::new, taken_over_text);
    let slowed = report.slowed.map_or_else(String::new, slowed_text);
    format!(
        "backup {}: {} in {} files, {} stored, in {}\n{origin}\n{basis}\n{taken_over}{slowed}restorable from {} ({})\n",
        envelope.backup,
        human::bytes(envelope.bytes),
        envelope.files,
        human::bytes(envelope.stored_bytes),
        human::duration(elapsed),
        human::time(envelope.stopped_at),
        envelope.stop_lsn,
    )
}
