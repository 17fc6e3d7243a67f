//! Lanes, who writes their timelines, and what is kept apart.

use serde_json::{Value, json};

use super::human;
use super::table::table;
use crate::catalog::{LaneCatalog, TimelineCatalog};
use crate::format::wal::StoredWal;
use crate::pg::segment::SegmentSize;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::pg::wal_parting::Parting;
use crate::repo::{Claim, Contested, Decision, LaneFacts, Resolution, WaitsFor};

/// Returns that a timeline does not count yet, why, and what to do about it.
pub fn waiting(timeline: TimelineId, waits: &WaitsFor) -> String {
    format!(
        "timeline {timeline} began while {}, who writes timeline {}, was at work: if it is no stray copy's, run \
         `walvault lane adopt {timeline}`",
        waits.host, waits.timeline
    )
}

const fn word(claim: Claim) -> &'static str {
    match claim {
        Claim::First => "first to push",
        Claim::Silence => "after a silence",
        Claim::Settled => "settled",
        Claim::Adoption => "adopted",
    }
}

/// Returns lanes and owners for people.
pub fn lanes_text(catalogues: &[LaneCatalog]) -> String {
    let mut text = String::new();
    for catalogue in catalogues {
        let facts = &catalogue.facts;
        text.push_str(&format!("lane {}: {facts}, {} backups\n", catalogue.lane, catalogue.backups.len()));
        let rows: Vec<Vec<String>> = catalogue.timelines.iter().map(|timeline| row(catalogue, timeline)).collect();
        text.push_str(&table(&["TIMELINE", "WRITER", "HOST", "SINCE", "BY", "NEWEST", "COUNTS"], &rows));
        for (timeline, waits) in catalogue.timelines.iter().filter_map(|line| Some((line, line.waits_for.as_ref()?))) {
            text.push_str(&format!("{}\n", waiting(timeline.timeline, waits)));
        }
        for hole in &catalogue.holes {
            text.push_str(&format!("hole: {hole}\n"));
        }
    }
    if text.is_empty() { "nothing archived yet\n".to_owned() } else { text }
}

fn row(catalogue: &LaneCatalog, timeline: &TimelineCatalog) -> Vec<String> {
    let owner = timeline.owner.as_ref();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let newest = timeline.segments.last().and_then(|name| catalogue.segment(*name));
    vec![
        timeline.timeline.to_string(),
        or_dash(owner.map(|owner| owner.writer.clone())),
        or_dash(owner.map(|owner| owner.host.clone())),
        or_dash(owner.map(|owner| owner.since.clone())),
        or_dash(owner.map(|owner| word(owner.claim).to_owned())),
        or_dash(newest.map(|newest| human::time(newest.stored_at))),
        if timeline.waits_for.is_some() { "not yet" } else { "yes" }.to_owned(),
    ]
}

/// Returns lanes and owners for programs.
pub fn lanes_json(catalogues: &[LaneCatalog]) -> Value {
    let lane = |catalogue: &LaneCatalog| {
        let timelines = catalogue.timelines.iter().map(|timeline| {
            let owner = timeline.owner.as_ref();
            let newest = timeline.segments.last().and_then(|name| catalogue.segment(*name));
            json!({
                "timeline": timeline.timeline,
                "writer": owner.map(|owner| owner.writer.clone()),
                "host": owner.map(|owner| owner.host.clone()),
                "since": owner.map(|owner| owner.since.clone()),
                "claim": owner.map(|owner| owner.claim),
                "newest_at": newest.map(|newest| human::rfc3339(newest.stored_at)),
                "waits_for": timeline.waits_for.as_ref().map(|waits| waits.timeline),
            })
        });
        json!({
            "lane": catalogue.lane.to_string(),
            "major": catalogue.facts.major,
            "timelines": timelines.collect::<Vec<_>>(),
            "holes": catalogue.holes,
        })
    };
    json!({ "lanes": catalogues.iter().map(lane).collect::<Vec<_>>() })
}

/// A file that is kept apart, and what was decided about it.
pub type Judged = (Contested, Option<Resolution>);

/// Returns what is kept apart, for people.
pub fn conflicts_text(found: &[Judged]) -> String {
    if found.is_empty() {
        return "no contested file\n".to_owned();
    }
    let row = |(contested, resolution): &Judged| {
        vec![
            contested.id(),
            human::time(contested.stored_at),
            human::bytes(contested.stored_bytes),
            resolution.as_ref().map_or("open", |resolution| decision(resolution.decision)).to_owned(),
        ]
    };
    table(&["CONFLICT", "KEPT AT", "STORED", "DECISION"], &found.iter().map(row).collect::<Vec<_>>())
}

/// Returns what is kept apart, for programs.
pub fn conflicts_json(found: &[Judged]) -> Value {
    let one = |(contested, resolution): &Judged| conflict_json(contested, resolution.as_ref());
    json!({ "conflicts": found.iter().map(one).collect::<Vec<_>>() })
}

/// Returns one file that is kept apart, for programs.
pub fn conflict_json(contested: &Contested, resolution: Option<&Resolution>) -> Value {
    json!({
        "id": contested.id(),
        "writer": contested.writer,
        "name": contested.name.to_string(),
        "sha256": contested.digest,
        "key": contested.key(),
        "stored_bytes": contested.stored_bytes,
        "kept_at": human::rfc3339(contested.stored_at),
        "decision": resolution.map(|resolution| resolution.decision),
    })
}

/// Returns a decision in one word.
pub const fn decision(decision: Decision) -> &'static str {
    match decision {
        Decision::Adopted => "adopted",
        Decision::Discarded => "discarded",
    }
}

/// A file that is kept apart, beside what is archived under its name.
pub struct Compared<'a> {
    /// The file.
    pub contested: &'a Contested,
    /// Its bytes.
    pub kept: &'a StoredWal,
    /// What is archived under its name.
    pub archived: Option<&'a StoredWal>,
    /// What was decided about it.
    pub resolution: Option<Resolution>,
    /// The server's lane.
    pub lane: &'a LaneFacts,
}

impl Compared<'_> {
    /// Where the two begin to differ, in bytes from their start.
    fn differs_at(&self) -> Option<usize> {
        let archived = &self.archived?.raw;
        let kept = &self.kept.raw;
        let first = archived.iter().zip(kept).position(|(one, other)| one != other);
        first.or_else(|| (archived.len() != kept.len()).then_some(archived.len().min(kept.len())))
    }

    /// Where their records begin to differ, if they are segments.
    fn parts_at(&self) -> Option<Parting> {
        let WalFileName::Segment(name) = self.contested.name else { return None };
        let size = SegmentSize::new(self.lane.segment_size).ok()?;
        Parting::find(name, size, [&self.archived?.raw, &self.kept.raw], self.differs_at()?)
    }

    /// Returns it for people.
    pub fn text(&self) -> String {
        let Self { contested, kept, archived, resolution, lane } = self;
        let mut text = String::new();
        let mut line = |name: &str, value: String| text.push_str(&format!("{name:<10}{value}\n"));
        line("conflict", contested.id());
        line("kept", format!("{} bytes, sha256 {}, at {}", kept.raw.len(), kept.digest, contested.key()));
        line(
            "archived",
            match archived {
                None => "nothing under this name".to_owned(),
                Some(archived) => format!("{} bytes, sha256 {}", archived.raw.len(), archived.digest),
            },
        );
        if archived.is_some() {
            let same = "the same bytes".to_owned();
            line("differs", self.differs_at().map_or(same, |at| format!("from byte {at} on")));
        }
        if let Some(Parting { record, voids }) = self.parts_at() {
            line(
                "record",
                format!("the one at {record} is the first that is another one (pg_waldump --start={record})"),
            );
            for (which, _) in ["archived", "kept"].into_iter().zip(voids).filter(|(_, voids)| *voids) {
                let why = "so one server may have written both, before a crash and after";
                line("", format!("the {which} one declares void what a crash had cut off there, {why}"));
            }
        }
        line("server", format!("system {}, PostgreSQL {}", lane.system_id, lane.major));
        line(
            "decision",
            match resolution {
                None => "open".to_owned(),
                Some(resolution) => {
                    let Resolution { decision: made, host, decided_at, .. } = resolution;
                    format!("{} on {host}, {}", decision(*made), human::time(*decided_at))
                }
            },
        );
        text
    }

    /// Returns it for programs.
    pub fn json(&self) -> Value {
        let mut value = conflict_json(self.contested, self.resolution.as_ref());
        value["archived_sha256"] = json!(self.archived.map(|archived| archived.digest.to_string()));
        value["differs_at"] = json!(self.differs_at());
        value["first_other_record"] = json!(self.parts_at().map(|parting| parting.record.to_string()));
        value["postgresql_major"] = json!(self.lane.major);
        value
    }
}
