//! The report: one HTML page that needs nothing else, for whoever has to decide what to come back to.
//!
//! Everything that was archived or typed by somebody is escaped; the page's policy lets no other script run than its own,
//! and nothing be loaded. The drawing is in [`chart`]; the tables below it say the same in words.

mod chart;
mod html;

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use self::html::{Table, escaped};
use super::{backups, events, human, timelines};
use crate::catalog::LaneCatalog;
use crate::format::Sha256;
use crate::pg::timeline::TimelineId;
use crate::repo::Contested;
use crate::restore::{Chronicle, Event, Reach};

/// How a file begins that a report may be written over.
pub const MARK: &str = "<!doctype html>\n<!-- walvault report -->\n";

/// Events in the table; the page stays one that can be sent about.
const EVENTS: usize = 500;
const STYLE: &str = include_str!("report/page.css");
const SCRIPT: &str = include_str!("report/page.js");

/// What is reported.
#[derive(Debug)]
pub struct Report {
    /// The cluster's name.
    pub cluster: String,
    /// Where the repository is.
    pub repository: String,
    /// When it was looked at.
    pub made_at: DateTime<Utc>,
    /// Its lanes.
    pub lanes: Vec<LaneReport>,
}

/// One lane.
#[derive(Debug)]
pub struct LaneReport {
    /// What it holds.
    pub catalogue: LaneCatalog,
    /// What can be restored, if that is known.
    pub reached: Option<Vec<Reach>>,
    /// What happened; empty if that is not known.
    pub chronicles: Vec<Chronicle>,
    /// Files that are kept apart.
    pub contested: Vec<Contested>,
    /// Why something is not known.
    pub problems: Vec<String>,
}

impl LaneReport {
    fn chronicle(&self, timeline: TimelineId) -> Option<&Chronicle> {
        self.chronicles.iter().find(|told| told.timeline == timeline)
    }

    fn holes(&self) -> usize {
        self.chronicles.iter().map(|told| told.gaps.len()).sum::<usize>() + self.catalogue.holes.len()
    }

    /// First and last moment that can be restored on any branch.
    fn span(&self) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let all = || self.reached.iter().flatten().flat_map(|reach| &reach.restorable);
        let first = all().map(|one| one.from_time).min()?;
        let last = all().map(|one| one.to_time.map_or(one.from_time, |time| time.to_utc())).max()?;
        Some((first, last.max(first)))
    }

    fn events(&self) -> Vec<(TimelineId, &Event)> {
        let mut all: Vec<(TimelineId, &Event)> =
            self.chronicles.iter().flat_map(|told| told.events.iter().map(|event| (told.timeline, event))).collect();
        all.sort_by_key(|(timeline, event)| (event.time, *timeline, event.at));
        all
    }
}

/// Returns the page.
pub fn html(report: &Report) -> String {
    let hash = |text: &str| format!("'sha256-{}'", html::base64(Sha256::of(text.as_bytes()).bytes()));
    let policy = format!("default-src 'none'; style-src {}; script-src {}", hash(STYLE), hash(SCRIPT));
    let title = format!("{}: what can be restored", escaped(&report.cluster));
    let mut page = String::from(MARK);
    page.push_str(&format!(
        "<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <main>\n<header>\n<h1>{title}</h1>\n<p class=\"muted\">Repository <code>{}</code>, as it was on {}. All times \
         are UTC, by the clocks of the servers that wrote them.</p>\n</header>\n",
        escaped(&report.repository),
        human::time(report.made_at),
    ));
    if report.lanes.is_empty() {
        page.push_str("<p>Nothing is archived or backed up yet.</p>\n");
    }
    for lane in &report.lanes {
        page.push_str(&section(lane));
    }
    page.push_str(&format!(
        "<footer>Made by walvault {}. What is shaded can be restored to any moment; what is missing is named. \
         <code>walvault plan --to-time …</code> says how.</footer>\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    ));
    page
}

fn section(lane: &LaneReport) -> String {
    let catalogue = &lane.catalogue;
    let mut text = format!("<section>\n<h2>Lane {}</h2>\n", escaped(&catalogue.lane.to_string()));
    text.push_str(&format!("<p class=\"muted\">{}</p>\n", escaped(&catalogue.facts.to_string())));
    for problem in &lane.problems {
        text.push_str(&format!("<p class=\"warn\">{}</p>\n", escaped(problem)));
    }
    text.push_str(&facts(lane));
    text.push_str(&chart::figure(lane));
    text.push_str(&timeline_table(lane));
    text.push_str(&backup_table(lane));
    text.push_str(&hole_table(lane));
    text.push_str(&event_table(lane));
    text.push_str(&contested_table(lane));
    text.push_str("</section>\n");
    text
}

fn facts(lane: &LaneReport) -> String {
    let backups = &lane.catalogue.backups;
    let stored: u64 = backups.iter().map(|manifest| manifest.envelope.stored_bytes).sum();
    let moment = |time: Option<DateTime<Utc>>| match (time, &lane.reached) {
        (Some(time), _) => (time.format("%Y-%m-%d").to_string(), time.format("%H:%M:%S UTC").to_string()),
        (None, Some(_)) => ("nothing".to_owned(), "no backup with its log".to_owned()),
        (None, None) => ("unknown".to_owned(), String::new()),
    };
    let span = lane.span();
    let open = lane.contested.iter().filter(|file| !file.resolved).count();
    let facts = [
        ("Restorable from", moment(span.map(|(first, _)| first))),
        ("Restorable to", moment(span.map(|(_, last)| last))),
        ("Backups", (backups.len().to_string(), format!("{} stored", human::bytes(stored)))),
        ("Timelines", (lane.catalogue.timelines.len().to_string(), String::new())),
        ("Holes in the log", (lane.holes().to_string(), String::new())),
        ("Contested files", (open.to_string(), if open == 0 { String::new() } else { "not decided about".to_owned() })),
    ];
    let fact = |(name, (value, more)): (&str, (String, String))| {
        format!("<div><dt>{name}</dt><dd>{}<small>{}</small></dd></div>\n", escaped(&value), escaped(&more))
    };
    format!("<dl class=\"facts\">\n{}</dl>\n", facts.map(fact).concat())
}

fn timeline_table(lane: &LaneReport) -> String {
    let mut table = Table::new("Timelines", &["Timeline", "Forked at", "Restorable", "To", "Then", "Holes", "Writer"]);
    for row in timelines::rows(&lane.catalogue, lane.reached.as_deref()) {
        table.row(&row);
    }
    let mut text = table.html("No WAL is archived yet.");
    for timeline in &lane.catalogue.timelines {
        if let Some(waits) = &timeline.waits_for {
            let waiting = super::owners::waiting(timeline.timeline, waits);
            text.push_str(&format!("<p class=\"warn\">{}</p>\n", escaped(&waiting)));
        }
    }
    text
}

fn backup_table(lane: &LaneReport) -> String {
    let mut table =
        Table::new("Backups", &["Backup", "Timeline", "Started", "Stopped", "Start", "Stop", "Size", "Stored"]);
    for manifest in &lane.catalogue.backups {
        let envelope = &manifest.envelope;
        table.row(&[
            envelope.backup.clone(),
            envelope.timeline.to_string(),
            human::time(envelope.started_at),
            human::time(envelope.stopped_at),
            envelope.start_lsn.to_string(),
            envelope.stop_lsn.to_string(),
            human::bytes(envelope.bytes),
            human::bytes(envelope.stored_bytes),
        ]);
    }
    let mut text = table.html("There is no backup.");
    for backup in &lane.catalogue.unreadable {
        text.push_str(&format!("<p class=\"warn\">{}</p>\n", escaped(&backups::unreadable_text(backup))));
    }
    text
}

fn hole_table(lane: &LaneReport) -> String {
    let mut table = Table::new("Holes", &["Missing from", "Segments", "After", "Before"]);
    let time = |time: Option<crate::pg::pg_time::PgTime>| {
        time.map_or_else(|| "unknown".to_owned(), |time| human::time(time.to_utc()))
    };
    for gap in lane.chronicles.iter().flat_map(|told| &told.gaps) {
        table.row(&[gap.first.to_string(), gap.segments.to_string(), time(gap.after), time(gap.before)]);
    }
    let mut text = if lane.holes() == 0 { String::new() } else { table.html("Nothing is missing between segments.") };
    for hole in &lane.catalogue.holes {
        text.push_str(&format!("<p class=\"warn\">Given up: {}</p>\n", escaped(&hole.to_string())));
    }
    text
}

fn event_table(lane: &LaneReport) -> String {
    let all = lane.events();
    let left_out = all.len().saturating_sub(EVENTS);
    let mut table = Table::new("Events", &["Time", "Timeline", "Position", "Transaction", "What"]);
    for (timeline, event) in &all[left_out..] {
        let xid = event.xid.map_or_else(|| "–".to_owned(), |xid| xid.to_string());
        table.row(&[events::time(event), timeline.to_string(), event.at.to_string(), xid, events::sentence(event)]);
    }
    let mut text = table.html("No restore points, and nothing that a backup knows was dropped.");
    if left_out > 0 {
        let left_out = human::count(left_out as u64);
        text.push_str(&format!(
            "<p class=\"muted\">{left_out} earlier ones are left out; <code>report --json</code> has all.</p>\n"
        ));
    }
    text
}

fn contested_table(lane: &LaneReport) -> String {
    if lane.contested.is_empty() {
        return String::new();
    }
    let mut table = Table::new("Contested files", &["Writer", "File", "Stored", "State"]);
    for file in &lane.contested {
        let state = if file.resolved { "decided" } else { "open" };
        table.row(&[file.writer.clone(), file.name.to_string(), human::time(file.stored_at), state.to_owned()]);
    }
    table.html("")
}

/// Returns what the page shows, for programs.
pub fn json(report: &Report) -> Value {
    let lanes = report.lanes.iter().map(|lane| {
        let catalogue = &lane.catalogue;
        let (first, last) = lane.span().unzip();
        let gaps = lane.chronicles.iter().flat_map(|told| &told.gaps);
        let gaps = gaps.map(|gap| {
            json!({ "first": gap.first, "segments": gap.segments, "after_time": gap.after, "before_time": gap.before })
        });
        let listed: BTreeSet<TimelineId> = catalogue.timelines.iter().map(|timeline| timeline.timeline).collect();
        let waiting = catalogue.timelines.iter().filter(|timeline| timeline.waits_for.is_some());
        json!({
            "lane": catalogue.lane.to_string(),
            "restorable_from": first.map(human::rfc3339),
            "restorable_to": last.map(human::rfc3339),
            "timelines": timelines::lane_json(catalogue, lane.reached.as_deref()),
            "waiting": waiting.map(|timeline| timeline.timeline).collect::<Vec<_>>(),
            "timeline_count": listed.len(),
            "backups": catalogue.backups.iter().map(|one| backups::envelope_json(&one.envelope)).collect::<Vec<_>>(),
            "holes": gaps.collect::<Vec<_>>(),
            "given_up": catalogue.holes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "events": events::json(&[(catalogue, lane.chronicles.as_slice())]),
            "contested": lane.contested.iter().map(|file| json!({ "id": file.id(), "resolved": file.resolved })).collect::<Vec<_>>(),
            "problems": lane.problems,
        })
    });
    json!({
        "cluster": report.cluster,
        "repository": report.repository,
        "made_at": human::rfc3339(report.made_at),
        "lanes": lanes.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests;
