//! Timelines: the forest, and what can be restored on each branch.

use serde_json::{Value, json};

use super::human;
use super::table::table;
use crate::catalog::{HoleProof, LaneCatalog, TimelineCatalog};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::{Fork, TimelineId};
use crate::restore::{Reach, ReachEnd, Restorable};

/// A lane's timelines, and what can be restored on each, if that is known.
pub type Timelines = (LaneCatalog, Option<Vec<Reach>>);

/// Returns the timelines for people.
pub fn text(lanes: &[Timelines]) -> String {
    let mut text = String::new();
    for (catalogue, reached) in lanes.iter().filter(|(catalogue, _)| !catalogue.timelines.is_empty()) {
        text.push_str(&format!("lane {}\n", catalogue.lane));
        let mut rows = Vec::new();
        for (drawn, timeline) in forest(catalogue) {
            rows.extend(lines(catalogue, timeline, &drawn, reached.as_deref()));
        }
        text.push_str(&table(&["TIMELINE", "FORKED AT", "RESTORABLE", "TO", "THEN", "HOLES", "WRITER"], &rows));
    }
    match text.is_empty() {
        true => "no WAL archived yet\n".to_owned(),
        false => text,
    }
}

/// Returns a lane's timelines as rows of text, one for each stretch that can be restored, every cell filled.
pub(super) fn rows(catalogue: &LaneCatalog, reached: Option<&[Reach]>) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (_, timeline) in forest(catalogue) {
        let own = lines(catalogue, timeline, &timeline.timeline.to_string(), reached);
        let heads = own.first().cloned().unwrap_or_default();
        for mut row in own {
            row.iter_mut()
                .zip(&heads)
                .filter(|(cell, _)| cell.is_empty())
                .for_each(|(cell, head)| cell.clone_from(head));
            rows.push(row);
        }
    }
    rows
}

/// The timelines as a tree, children behind their parents, each with its branch drawn before it.
pub(super) fn forest(catalogue: &LaneCatalog) -> Vec<(String, &TimelineCatalog)> {
    let known = |number: TimelineId| catalogue.timelines.iter().any(|timeline| timeline.timeline == number);
    let parent = |timeline: &TimelineCatalog| fork(timeline).map(|fork| fork.parent).filter(|parent| known(*parent));
    let mut drawn = Vec::new();
    let mut open: Vec<(String, String, &TimelineCatalog)> = Vec::new();
    let roots = catalogue.timelines.iter().filter(|timeline| parent(timeline).is_none());
    open.extend(roots.rev().map(|root| (String::new(), String::new(), root)));
    while let Some((branch, trunk, timeline)) = open.pop() {
        let children: Vec<_> =
            catalogue.timelines.iter().filter(|child| parent(child) == Some(timeline.timeline)).collect();
        for (place, child) in children.iter().enumerate().rev() {
            let (turn, along) = if place + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            open.push((format!("{trunk}{turn}"), format!("{trunk}{along}"), child));
        }
        drawn.push((format!("{branch}{}", timeline.timeline), timeline));
    }
    drawn
}

/// One line for each stretch that can be restored, or one that says that there is none.
fn lines(
    catalogue: &LaneCatalog,
    timeline: &TimelineCatalog,
    drawn: &str,
    reached: Option<&[Reach]>,
) -> Vec<Vec<String>> {
    let own = reached.and_then(|reached| reached.iter().find(|one| one.timeline == timeline.timeline));
    let begin = fork(timeline).map(|fork| fork.at);
    let mut stretches: Vec<[String; 3]> = own.map_or_else(Vec::new, |own| {
        // What ends before the fork is the parent's, and shown there.
        let past = own.restorable.iter().filter(|one| begin.is_none_or(|begin| one.to > begin));
        past.map(|one| stretch(one, begin)).collect()
    });
    if stretches.is_empty() {
        let why = match (reached, own) {
            (None, _) => "unknown".to_owned(),
            (_, None) => "no: its history is not archived".to_owned(),
            (_, Some(own)) if !own.incomplete.is_empty() => {
                format!("no: log is missing for backup {}", own.incomplete.join(", "))
            }
            (_, Some(own)) if own.restorable.is_empty() => "no: no backup lies on this branch".to_owned(),
            _ => "nothing after the fork".to_owned(),
        };
        stretches.push([why, "-".to_owned(), String::new()]);
    }
    let holes = catalogue.gaps(timeline).to_string();
    let writer = timeline.owner.as_ref().map_or_else(|| "-".to_owned(), |owner| owner.host.clone());
    let mut first = Some((drawn.to_owned(), origin(timeline), holes, writer));
    let line = |[from, to, then]: [String; 3]| {
        let (drawn, origin, holes, writer) = first.take().unwrap_or_default();
        vec![drawn, origin, from, to, then, holes, writer]
    };
    stretches.into_iter().map(line).collect()
}

fn stretch(one: &Restorable, begin: Option<Lsn>) -> [String; 3] {
    let from = match begin.filter(|begin| *begin > one.from) {
        Some(begin) => format!("from the fork at {begin}"),
        None => format!("from {} ({})", human::time(one.from_time), one.from),
    };
    let to = match one.to_time {
        Some(time) => format!("{} ({})", human::time(time.to_utc()), one.to),
        None => one.to.to_string(),
    };
    let then = match one.end {
        ReachEnd::Newest => "the newest".to_owned(),
        ReachEnd::Hole { proof: HoleProof::Expired(_), .. } => "the log has expired".to_owned(),
        ReachEnd::Hole { missing, .. } => format!("{missing} is missing"),
        ReachEnd::Broken => "the log is damaged".to_owned(),
    };
    [from, to, then]
}

fn fork(timeline: &TimelineCatalog) -> Option<&Fork> {
    timeline.history.as_ref().and_then(|history| history.forks().last())
}

fn origin(timeline: &TimelineCatalog) -> String {
    match fork(timeline) {
        Some(fork) => fork.at.to_string(),
        None if timeline.timeline.number() > 1 => "unknown".to_owned(),
        None => "-".to_owned(),
    }
}

/// Returns the timelines for programs.
pub fn json(lanes: &[Timelines]) -> Value {
    let timelines = lanes.iter().flat_map(|(catalogue, reached)| lane_json(catalogue, reached.as_deref()));
    json!({ "timelines": timelines.collect::<Vec<_>>() })
}

/// Returns the timelines of one lane for programs.
pub(super) fn lane_json(catalogue: &LaneCatalog, reached: Option<&[Reach]>) -> Vec<Value> {
    let one = |timeline: &TimelineCatalog| {
        let runs = timeline.runs(catalogue.segment_size());
        let own = reached.and_then(|reached| reached.iter().find(|one| one.timeline == timeline.timeline));
        json!({
            "lane": catalogue.lane.to_string(),
            "timeline": timeline.timeline,
            "parent": fork(timeline).map(|fork| fork.parent),
            "forked_at": fork(timeline).map(|fork| fork.at),
            "reason": fork(timeline).map(|fork| fork.reason.clone()),
            "first": runs.first().map(|run| run.first),
            "last": runs.last().map(|run| run.last),
            "holes": catalogue.gaps(timeline),
            "restorable": own.map(|own| own.restorable.iter().map(restorable_json).collect::<Vec<_>>()),
            "incomplete_backups": own.map(|own| own.incomplete.clone()),
            "writer": timeline.owner.as_ref().map(|owner| owner.host.clone()),
        })
    };
    catalogue.timelines.iter().map(one).collect()
}

fn restorable_json(one: &Restorable) -> Value {
    let (end, missing, proof) = match &one.end {
        ReachEnd::Newest => ("newest", None, None),
        ReachEnd::Hole { missing, proof: proof @ HoleProof::Expired(_) } => {
            ("expired", Some(missing), Some(proof.to_string()))
        }
        ReachEnd::Hole { missing, proof } => ("hole", Some(missing), Some(proof.to_string())),
        ReachEnd::Broken => ("damaged", None, None),
    };
    json!({
        "backup": one.backup,
        "backups": one.backups,
        "from_lsn": one.from,
        "from_time": human::rfc3339(one.from_time),
        "to_lsn": one.to,
        "to_time": one.to_time,
        "end": end,
        "missing": missing,
        "proof": proof,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::timeline::History;
    use crate::repo::LaneFacts;

    fn catalogue(histories: &[(u32, &str)]) -> LaneCatalog {
        let timeline = |(number, text): &(u32, &str)| {
            let timeline = TimelineId::new(*number).expect("not zero");
            let history = (!text.is_empty()).then(|| History::parse(timeline, text).expect("a history"));
            TimelineCatalog { timeline, history, segments: Vec::new(), owner: None, waits_for: None }
        };
        let lane = "7-1".parse().expect("a lane");
        LaneCatalog::of(lane, LaneFacts::sample(), histories.iter().map(timeline).collect())
    }

    #[test]
    fn children_hang_on_their_parents() {
        let catalogue = catalogue(&[
            (1, ""),
            (2, "1\t0/2000000\tx\n"),
            (3, "1\t0/2000000\tx\n2\t0/3000000\tx\n"),
            (4, "1\t0/5000000\tx\n"),
            (7, ""),
            (9, "8\t0/5000000\tx\n"),
            (10, "1\t0/2000000\tx\n2\t0/3000000\tx\n3\t0/4000000\tx\n"),
        ]);
        let drawn: Vec<String> = forest(&catalogue).into_iter().map(|(drawn, _)| drawn).collect();
        assert_eq!(drawn, ["1", "├─ 2", "│  └─ 3", "│     └─ 10", "└─ 4", "7", "9"]);
        let text = text(&[(catalogue, Some(Vec::new()))]);
        assert!(text.contains("│     └─ 10  0/4000000"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("7 ") && line.contains("unknown")), "{text}");
    }
}
