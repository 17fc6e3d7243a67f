//! Archived WAL.

use serde_json::{Value, json};

use super::human;
use super::table::table;
use crate::catalog::LaneCatalog;
use crate::format::wal::StoredWal;
use crate::pg::wal_name::WalFileName;

/// Returns the runs of segments for people.
pub fn list_text(catalogues: &[LaneCatalog]) -> String {
    let mut rows = Vec::new();
    for catalogue in catalogues {
        for timeline in &catalogue.timelines {
            for (index, run) in timeline.runs(catalogue.segment_size()).iter().enumerate() {
                let note = if index > 0 { "after a hole" } else { "" };
                rows.push(vec![
                    catalogue.lane.to_string(),
                    timeline.timeline.to_string(),
                    run.first.to_string(),
                    run.last.to_string(),
                    run.count.to_string(),
                    note.to_owned(),
                ]);
            }
        }
    }
    match rows.is_empty() {
        true => "no WAL archived yet\n".to_owned(),
        false => table(&["LANE", "TIMELINE", "FIRST", "LAST", "SEGMENTS", ""], &rows),
    }
}

/// Returns the runs of segments for programs.
pub fn list_json(catalogues: &[LaneCatalog]) -> Value {
    let mut runs = Vec::new();
    for catalogue in catalogues {
        for timeline in &catalogue.timelines {
            for run in timeline.runs(catalogue.segment_size()) {
                runs.push(json!({
                    "lane": catalogue.lane.to_string(),
                    "timeline": timeline.timeline,
                    "first": run.first,
                    "last": run.last,
                    "segments": run.count,
                }));
            }
        }
    }
    json!({ "runs": runs })
}

/// Returns one file for people.
pub fn show_text(name: &WalFileName, stored: &StoredWal) -> String {
    let mut text = format!("{name}: {}, intact, sha256 {}\n", human::bytes(stored.raw.len() as u64), stored.digest);
    if let WalFileName::History(_) | WalFileName::BackupHistory { .. } = name {
        text.push_str(&String::from_utf8_lossy(&stored.raw));
    }
    let Some(facts) = &stored.facts else { return text };
    text.push_str(&format!("{} records, {} commits, {} aborts\n", facts.records, facts.commits, facts.aborts));
    if let (Some(first), Some(end)) = (facts.first_record, facts.last_complete_end) {
        text.push_str(&format!("records from {first} to {end}\n"));
    }
    if let (Some(min), Some(max)) = (facts.min_time, facts.max_time) {
        text.push_str(&format!("transactions ended from {min} to {max}\n"));
    }
    for point in &facts.restore_points {
        text.push_str(&format!("restore point {:?} at {}\n", point.name, point.end));
    }
    text
}

/// Returns one file for programs.
pub fn show_json(name: &WalFileName, stored: &StoredWal) -> Value {
    json!({ "name": name.to_string(), "bytes": stored.raw.len(), "sha256": stored.digest, "facts": stored.facts })
}
