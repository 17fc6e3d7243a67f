//! What happened in the archived log: restore points, tables and databases that went.

use serde_json::{Value, json};

use super::human;
use super::table::table;
use crate::catalog::LaneCatalog;
use crate::restore::{Chronicle, Event, Happening, Removal};

/// Returns an event as a sentence without its place: `table public.orders of database shop dropped`.
pub fn sentence(event: &Event) -> String {
    let or_number = |name: &Option<String>, oid: u32| name.clone().unwrap_or_else(|| oid.to_string());
    match &event.what {
        Happening::RestorePoint { name } => format!("restore point {name:?}"),
        Happening::Relation { name, database, removal } => {
            format!("table {name} of database {database} {}", word(*removal))
        }
        Happening::DatabaseDropped { oid, name } => format!("database {} dropped", or_number(name, *oid)),
        Happening::TablespaceCreated { oid, path } => format!("tablespace {oid} created at {path}"),
        Happening::TablespaceDropped { oid, path } => format!("tablespace {} dropped", or_number(path, *oid)),
    }
}

/// Returns what kind of event it is, as JSON and the report's classes have it.
pub fn kind(event: &Event) -> &'static str {
    match &event.what {
        Happening::RestorePoint { .. } => "restore_point",
        Happening::Relation { removal: Removal::Dropped, .. } => "drop",
        Happening::Relation { removal: Removal::Truncated, .. } => "truncate",
        Happening::Relation { removal: Removal::Rewritten, .. } => "rewrite",
        Happening::Relation { removal: Removal::Unclear, .. } => "removal",
        Happening::DatabaseDropped { .. } => "drop_database",
        Happening::TablespaceCreated { .. } => "create_tablespace",
        Happening::TablespaceDropped { .. } => "drop_tablespace",
    }
}

const fn word(removal: Removal) -> &'static str {
    match removal {
        Removal::Dropped => "dropped",
        Removal::Truncated => "truncated",
        Removal::Rewritten => "rewritten",
        Removal::Unclear => "dropped, truncated or rewritten",
    }
}

/// Returns when an event was, for people; `about` where its record does not say.
pub fn time(event: &Event) -> String {
    match (event.time, event.exact) {
        // As fine as a target can be given.
        (Some(time), true) => time.to_utc().format("%Y-%m-%d %H:%M:%S%.6fZ").to_string(),
        (Some(time), false) => format!("about {}", human::time(time.to_utc())),
        (None, _) => "unknown".to_owned(),
    }
}

/// Returns the events of lanes for people, each lane's in the order of the log of its timelines.
pub fn text(lanes: &[(&LaneCatalog, &[Chronicle])]) -> String {
    let mut rows = Vec::new();
    let mut notes = String::new();
    for (_, chronicles) in lanes {
        for told in *chronicles {
            let row = |event: &Event| {
                let xid = event.xid.map_or_else(|| "-".to_owned(), |xid| xid.to_string());
                vec![time(event), told.timeline.to_string(), event.at.to_string(), xid, sentence(event)]
            };
            rows.extend(told.events.iter().map(row));
            notes.push_str(&note(told));
        }
    }
    let table = match rows.is_empty() {
        true => "no restore points, and nothing that a backup knows was dropped\n".to_owned(),
        false => table(&["TIME", "TIMELINE", "LSN", "XID", "WHAT"], &rows),
    };
    table + &notes
}

/// Returns what a timeline's events leave out.
fn note(told: &Chronicle) -> String {
    let mut note = String::new();
    let on = told.timeline;
    if told.unread > 0 {
        note.push_str(&format!("timeline {on}: nothing is known of {} segments that are damaged\n", told.unread));
    }
    if told.unnamed > 0 {
        let count = human::count(told.unnamed);
        note.push_str(&format!("timeline {on}: {count} more commits removed tables that no backup has the names of\n"));
    }
    if told.incomplete {
        note.push_str(&format!("timeline {on}: some segments held more than is listed of them\n"));
    }
    note
}

/// Returns the events of lanes for programs.
pub fn json(lanes: &[(&LaneCatalog, &[Chronicle])]) -> Value {
    let events = lanes.iter().flat_map(|(catalogue, chronicles)| {
        chronicles.iter().flat_map(move |told| {
            told.events.iter().map(move |event| {
                let mut value = event_json(event);
                value["lane"] = json!(catalogue.lane.to_string());
                value["timeline"] = json!(told.timeline);
                value
            })
        })
    });
    Value::Array(events.collect())
}

fn event_json(event: &Event) -> Value {
    let mut value = json!({
        "kind": kind(event),
        "lsn": event.at,
        "end_lsn": event.end,
        "time": event.time,
        "exact": event.exact,
        "xid": event.xid,
    });
    match &event.what {
        Happening::RestorePoint { name } => value["name"] = json!(name),
        Happening::Relation { name, database, .. } => {
            value["relation"] = json!(name);
            value["database"] = json!(database);
        }
        Happening::DatabaseDropped { oid, name } => {
            value["oid"] = json!(oid);
            value["database"] = json!(name);
        }
        Happening::TablespaceCreated { oid, path } => {
            value["oid"] = json!(oid);
            value["path"] = json!(path);
        }
        Happening::TablespaceDropped { oid, path } => {
            value["oid"] = json!(oid);
            value["path"] = json!(path);
        }
    }
    value
}
