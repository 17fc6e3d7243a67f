//! Timelines.

use serde_json::{Value, json};

use super::table::table;
use crate::catalog::{LaneCatalog, TimelineCatalog};
use crate::pg::timeline::Fork;

/// Returns the timelines for people.
pub fn text(catalogues: &[LaneCatalog]) -> String {
    let mut text = String::new();
    for catalogue in catalogues.iter().filter(|catalogue| !catalogue.timelines.is_empty()) {
        text.push_str(&format!("lane {}\n", catalogue.lane));
        let rows: Vec<Vec<String>> = catalogue.timelines.iter().map(|timeline| row(catalogue, timeline)).collect();
        text.push_str(&table(&["TIMELINE", "FROM", "FIRST", "LAST", "HOLES", "WRITER"], &rows));
    }
    match text.is_empty() {
        true => "no WAL archived yet\n".to_owned(),
        false => text,
    }
}

fn row(catalogue: &LaneCatalog, timeline: &TimelineCatalog) -> Vec<String> {
    let runs = timeline.runs(catalogue.segment_size());
    let end = |name: Option<String>| name.unwrap_or_else(|| "-".to_owned());
    vec![
        timeline.timeline.to_string(),
        origin(timeline),
        end(runs.first().map(|run| run.first.to_string())),
        end(runs.last().map(|run| run.last.to_string())),
        runs.len().saturating_sub(1).to_string(),
        timeline.owner.as_ref().map_or_else(|| "-".to_owned(), |owner| owner.host.clone()),
    ]
}

fn fork(timeline: &TimelineCatalog) -> Option<&Fork> {
    timeline.history.as_ref().and_then(|history| history.forks().last())
}

fn origin(timeline: &TimelineCatalog) -> String {
    match fork(timeline) {
        Some(fork) => format!("{} at {}", fork.parent, fork.at),
        None if timeline.timeline.number() > 1 => "unknown: its history is not archived".to_owned(),
        None => "-".to_owned(),
    }
}

/// Returns the timelines for programs.
pub fn json(catalogues: &[LaneCatalog]) -> Value {
    let mut timelines = Vec::new();
    for catalogue in catalogues {
        for timeline in &catalogue.timelines {
            let runs = timeline.runs(catalogue.segment_size());
            timelines.push(json!({
                "lane": catalogue.lane.to_string(),
                "timeline": timeline.timeline,
                "parent": fork(timeline).map(|fork| fork.parent),
                "forked_at": fork(timeline).map(|fork| fork.at),
                "reason": fork(timeline).map(|fork| fork.reason.clone()),
                "first": runs.first().map(|run| run.first),
                "last": runs.last().map(|run| run.last),
                "holes": runs.len().saturating_sub(1),
                "writer": timeline.owner.as_ref().map(|owner| owner.host.clone()),
            }));
        }
    }
    json!({ "timelines": timelines })
}
