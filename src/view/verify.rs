//! What a verification found.

use serde_json::{Value, json};

use super::human;
use crate::repo::LaneId;
use crate::verify::{Problem, Read, Verification};

/// One lane's verification, and what was read for it, if anything was.
pub type Verified = (LaneId, Verification, Option<Read>);

/// Returns what was found, for people.
pub fn text(lanes: &[Verified]) -> String {
    let mut text = String::new();
    for (lane, found, read) in lanes {
        let (packs, segments) = (human::count(found.packs.len() as u64), human::count(found.segments() as u64));
        text.push_str(&format!("lane {lane}: {} backups, {packs} packs, {segments} segments\n", found.backups));
        for problem in &found.problems {
            text.push_str(&format!("wrong     {}\n", words(problem)));
        }
        text.push_str(&match (found.problems.len(), read) {
            (0, Some(read)) => {
                format!("verified  every byte of it ({} of packs)\n", human::bytes(read.pack_bytes))
            }
            (0, None) => "verified  all of it is there; --read compares every byte\n".to_owned(),
            (wrong, _) => format!("{wrong} things are wrong\n"),
        });
    }
    match text.is_empty() {
        true => "nothing archived yet\n".to_owned(),
        false => text,
    }
}

fn words(problem: &Problem) -> String {
    match problem {
        Problem::Manifest { backup, problem } => format!("backup {backup} cannot be restored: {problem}"),
        Problem::PackMissing { backup, pack } => {
            format!("pack {pack} is missing: backup {backup} and others that need it cannot be restored")
        }
        Problem::PackDamaged { backup, pack, problem } => {
            format!("pack {pack} is damaged, which backup {backup} needs: {problem}")
        }
        Problem::NoHistory { backup, timeline } => {
            format!("backup {backup} lies on no known branch: {timeline} has no history that leads to it")
        }
        Problem::BackupLog { backup } => format!("backup {backup} cannot be restored: log that it needs is missing"),
        Problem::Hole { missing, proof } => {
            format!("segment {missing} is missing, since {proof}: nothing past it can be restored")
        }
        Problem::SegmentDamaged { segment, problem } => format!("segment {segment} is damaged: {problem}"),
        Problem::LogBroken { segment, at, problem } => {
            format!("the log ends at {at} in segment {segment}, and later segments are there: {problem}")
        }
    }
}

/// Returns what was found, for programs.
pub fn json(lanes: &[Verified]) -> Value {
    let lanes = lanes.iter().map(|(lane, found, read)| {
        json!({
            "lane": lane.to_string(),
            "backups": found.backups,
            "packs": found.packs.len(),
            "segments": found.segments(),
            "read": read.is_some(),
            "pack_bytes_read": read.map(|read| read.pack_bytes),
            "problems": found.problems.iter().map(problem_json).collect::<Vec<_>>(),
        })
    });
    json!({ "lanes": lanes.collect::<Vec<_>>() })
}

fn problem_json(problem: &Problem) -> Value {
    let (kind, backup, pack, segment) = match problem {
        Problem::Manifest { backup, .. } => ("manifest", Some(backup), None, None),
        Problem::PackMissing { backup, pack } => ("pack_missing", Some(backup), Some(pack), None),
        Problem::PackDamaged { backup, pack, .. } => ("pack_damaged", Some(backup), Some(pack), None),
        Problem::NoHistory { backup, .. } => ("no_history", Some(backup), None, None),
        Problem::BackupLog { backup } => ("backup_log", Some(backup), None, None),
        Problem::Hole { missing, .. } => ("hole", None, None, Some(missing)),
        Problem::SegmentDamaged { segment, .. } => ("segment_damaged", None, None, Some(segment)),
        Problem::LogBroken { segment, .. } => ("log_broken", None, None, Some(segment)),
    };
    json!({ "kind": kind, "backup": backup, "pack": pack, "segment": segment, "text": words(problem) })
}
