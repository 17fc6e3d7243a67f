//! Plans and choices.

use std::time::Duration;

use serde_json::{Value, json};

use super::table::table;
use super::{human, owners};
use crate::catalog::LaneCatalog;
use crate::restore::{Choice, Estimate, Plan, Purpose, RemovedTable, Target};

/// Returns what will be done and how long it will take, for people.
pub fn text(plan: &Plan, estimate: &Estimate) -> String {
    let envelope = &plan.manifest.envelope;
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<10}{value}\n"));
    line("target", target(plan));
    line("backup", format!("{} of {}", envelope.backup, human::time(envelope.stopped_at)));
    line("path", path(plan));
    if plan.purpose != Purpose::Standby {
        let time = plan.point.time.map_or_else(String::new, |time| match &plan.target {
            Target::Time(_) | Target::BeforeDrop(_) => format!(", before the transaction that ended at {time}"),
            _ => format!(" ({time})"),
        });
        line("ends", format!("at {} on timeline {}{time}", plan.point.reach, plan.timeline()));
    }
    if let Some(commit) = plan.last_commit.filter(|_| plan.purpose != Purpose::Standby) {
        let time = commit.time.map_or_else(String::new, |time| format!(" of {time}"));
        line("commit", format!("transaction {}{time} at {} is the last", commit.xid, commit.end));
    }
    for (oid, path) in plan.tablespaces_created.iter().filter(|(_, path)| !path.is_empty()) {
        line("creates", format!("tablespace {oid} at {path}, a directory that must exist when the log is replayed"));
    }
    line("restores", format!("{} in {} files", human::bytes(envelope.bytes), envelope.files));
    let log = plan.wal.len() as u64 * u64::from(envelope.segment_size);
    let range = match &plan.wal[..] {
        [] => "no segment".to_owned(),
        [only] => format!("1 segment, {only}"),
        [first, .., last] => format!("{} segments, {first} to {last}", plan.wal.len()),
    };
    line("replays", format!("{range} ({})", human::bytes(log)));
    let stored = envelope.named_bytes() + plan.wal_stored_bytes;
    let (backup, log) = (human::bytes(envelope.named_bytes()), human::bytes(plan.wal_stored_bytes));
    line("fetches", format!("{} ({backup} of the backup and {log} of log, compressed)", human::bytes(stored)));
    line("takes", takes(estimate));
    text
}

fn takes(estimate: &Estimate) -> String {
    let Estimate { restore, replay, measured_at, .. } = *estimate;
    let Some(measured_at) = measured_at else {
        return "unknown: nothing was restored and started on this host yet, or there is no state_dir".to_owned();
    };
    let about = |time: Option<Duration>, verb: &str| match time {
        Some(time) => format!("about {} to {verb}", human::duration(time)),
        None => format!("unknown how long to {verb}"),
    };
    let total = restore.zip(replay).map(|(restore, replay)| format!("about {}: ", human::duration(restore + replay)));
    let parts = format!("{}{}, {}", total.unwrap_or_default(), about(restore, "restore"), about(replay, "replay"));
    format!("{parts}; as measured on this host, last {}", human::time(measured_at))
}

/// Returns what a plan will take, for programs; seconds are null where they are not known.
fn estimate_json(estimate: &Estimate) -> Value {
    json!({
        "fetch_bytes": estimate.fetch_bytes,
        "write_bytes": estimate.write_bytes,
        "replay_bytes": estimate.replay_bytes,
        "restore_seconds": estimate.restore.map(|time| time.as_secs_f64()),
        "replay_seconds": estimate.replay.map(|time| time.as_secs_f64()),
        "measured_at": estimate.measured_at.map(human::rfc3339),
    })
}

fn target(plan: &Plan) -> String {
    if plan.purpose == Purpose::Standby {
        return "none: a standby follows its primary".to_owned();
    }
    let at_or_before = if plan.exclusive { "before" } else { "at or before" };
    match &plan.target {
        Target::Latest => "the newest moment archived".to_owned(),
        Target::Time(time) => format!("everything committed {at_or_before} {}", human::rfc3339(*time)),
        Target::Lsn(lsn) => {
            format!("everything that ended {at_or_before} {lsn}: the record at {} is the last", plan.point.record)
        }
        Target::Xid(xid) if plan.exclusive => format!("everything before the end of transaction {xid}"),
        Target::Xid(xid) => format!("everything up to the end of transaction {xid}"),
        Target::Name(name) => format!("restore point {name:?}"),
        Target::BeforeDrop(name) => match &plan.removed {
            Some(removed) => before_drop(removed),
            None => format!("before {name} was dropped"),
        },
        Target::BeforeLoss(lost) => format!("everything before {lost} was dropped, at {}", plan.point.record),
        Target::BackupEnd => "the end of the backup".to_owned(),
    }
}

fn before_drop(removed: &RemovedTable) -> String {
    let RemovedTable { name, database, emptied, xid, at, .. } = removed;
    let did = if *emptied { "truncated" } else { "dropped" };
    let time = removed.time.map_or_else(String::new, |time| format!(" of {time}"));
    format!("everything committed before transaction {xid}{time}, which {did} {name} of database {database} at {at}")
}

fn path(plan: &Plan) -> String {
    let parts = plan.path.iter().map(|part| match part.end {
        Some(end) => format!("timeline {} to {end}", part.timeline),
        None => format!("timeline {}", part.timeline),
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// Returns what will be done and how long it will take, for programs.
pub fn estimated_json(plan: &Plan, estimate: &Estimate) -> Value {
    let mut value = json(plan);
    value["estimate"] = estimate_json(estimate);
    value
}

/// Returns what will be done, for programs.
pub fn json(plan: &Plan) -> Value {
    let envelope = &plan.manifest.envelope;
    let path = plan.path.iter();
    let path: Vec<Value> =
        path.map(|part| json!({ "timeline": part.timeline, "begin": part.begin, "end": part.end })).collect();
    json!({
        "lane": plan.lane.to_string(),
        "backup": envelope.backup,
        "timeline": plan.timeline(),
        "path": path,
        "target": target(plan),
        "reach_lsn": plan.point.reach,
        "record_lsn": plan.point.record,
        "record_time": plan.point.time,
        "removed": plan.removed.as_ref().map(|removed| json!({
            "relation": removed.name,
            "database": removed.database,
            "by": if removed.emptied { "truncate" } else { "drop" },
            "xid": removed.xid,
            "time": removed.time,
            "lsn": removed.at,
        })),
        "last_commit": plan.last_commit.map(|last| json!({ "xid": last.xid, "time": last.time, "lsn": last.end })),
        "bytes": envelope.bytes,
        "files": envelope.files,
        "stored_bytes": envelope.named_bytes(),
        "wal_stored_bytes": plan.wal_stored_bytes,
        "wal_segments": plan.wal.len(),
        "wal_first": plan.wal.first(),
        "wal_last": plan.wal.last(),
        "tablespaces_created": plan.tablespaces_created.iter().map(|(oid, path)| json!({ "oid": oid, "path": path })).collect::<Vec<_>>(),
        "limits": plan.limits,
    })
}

/// Returns what can be reached, for people.
pub fn choices_text(catalogue: &LaneCatalog, choices: &[Choice]) -> String {
    let mut text = String::new();
    match catalogue.backups.first() {
        Some(first) => text.push_str(&format!(
            "restorable from {} ({}), the end of backup {}\n",
            first.envelope.stop_lsn,
            human::time(first.envelope.stopped_at),
            first.envelope.backup
        )),
        None => text.push_str("there is no backup to restore\n"),
    }
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows: Vec<Vec<String>> = choices
        .iter()
        .map(|choice| {
            vec![
                choice.timeline.to_string(),
                or_dash(choice.forked_at.map(|lsn| lsn.to_string())),
                or_dash(choice.newest.map(|lsn| lsn.to_string())),
                or_dash(choice.newest_time.map(human::time)),
            ]
        })
        .collect();
    if !rows.is_empty() {
        text.push_str(&table(&["TIMELINE", "FORKED AT", "NEWEST", "LAST TRANSACTION"], &rows));
    }
    for (choice, waits) in choices.iter().filter_map(|choice| Some((choice, choice.waits_for.as_ref()?))) {
        text.push_str(&format!("{}\n", owners::waiting(choice.timeline, waits)));
    }
    for hole in &catalogue.holes {
        text.push_str(&format!("hole: {hole}; only a backup that begins after it leads on\n"));
    }
    text
}

/// Returns what can be reached, for programs.
pub fn choices_json(catalogue: &LaneCatalog, choices: &[Choice]) -> Value {
    let timelines: Vec<Value> = choices
        .iter()
        .map(|choice| {
            json!({
                "timeline": choice.timeline,
                "forked_at": choice.forked_at,
                "newest_lsn": choice.newest,
                "newest_time": choice.newest_time.map(human::rfc3339),
                "waits_for": choice.waits_for.as_ref().map(|waits| waits.timeline),
            })
        })
        .collect();
    let first = catalogue.backups.first().map(|first| &first.envelope);
    json!({
        "lane": catalogue.lane.to_string(),
        "restorable_from_lsn": first.map(|first| first.stop_lsn),
        "restorable_from_time": first.map(|first| human::rfc3339(first.stopped_at)),
        "timelines": timelines,
    })
}
