//! What expires, and why.

use serde_json::{Value, json};

use super::human;
use super::table::table;
use crate::repo::Pin;
use crate::retention::{Blocked, Deferred, HeldBackup, LaneHoldings, LaneOutcome, LanePlan, Shares};

/// One lane, and what was decided.
type Planned = (LaneHoldings, LanePlan);

/// Returns what would go, for people; `all` also shows what stays.
pub fn plan_text(planned: &[Planned], all: bool) -> String {
    let mut text = String::new();
    for (holdings, plan) in planned {
        text.push_str(&lane_text(holdings, plan));
        for (object, verdict) in holdings.objects.iter().zip(&plan.verdicts) {
            if verdict.goes() || all {
                let word = if verdict.goes() { "goes " } else { "stays" };
                let bytes = human::bytes(object.bytes);
                text.push_str(&format!("{word}  {}  {bytes}  {}\n", object.key(), verdict.because()));
            }
        }
        let (objects, bytes) = going(holdings, plan);
        let objects = human::count(objects);
        text.push_str(&format!("would remove {objects} objects, {}\n", human::bytes(bytes)));
    }
    text
}

/// Returns what would go, for programs.
pub fn plan_json(planned: &[Planned], all: bool) -> Value {
    let lanes: Vec<Value> = planned.iter().map(|(holdings, plan)| lane_json(holdings, plan, all)).collect();
    json!({ "dry_run": true, "lanes": lanes })
}

/// Returns what was done, for people.
pub fn text(outcomes: &[LaneOutcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        text.push_str(&lane_text(&outcome.holdings, &outcome.plan));
        let removed = &outcome.removed;
        if let Some(Deferred { what, host, .. }) = &outcome.deferred {
            text.push_str(&format!("removed   nothing: a {what} is at work on {host}; run it again later\n"));
        } else {
            let objects = human::count(removed.objects);
            text.push_str(&format!("removed   {objects} objects, {}\n", human::bytes(removed.bytes)));
        }
        if outcome.waiting.0 > 0 {
            let (objects, bytes) = (human::count(outcome.waiting.0), human::bytes(outcome.waiting.1));
            let due = outcome.due.map_or_else(String::new, |due| format!(" after {}", human::time(due)));
            text.push_str(&format!("condemned {objects} objects, {bytes}: removed by the first run{due}\n"));
        }
    }
    text
}

/// Returns what was done, for programs.
pub fn json(outcomes: &[LaneOutcome], all: bool) -> Value {
    let lane = |outcome: &LaneOutcome| {
        let mut value = lane_json(&outcome.holdings, &outcome.plan, all);
        value["removed"] = json!({
            "objects": outcome.removed.objects,
            "bytes": outcome.removed.bytes,
            "refused": outcome.removed.refused,
            "refusal": outcome.removed.refusal,
        });
        value["condemned"] = json!({
            "objects": outcome.waiting.0,
            "bytes": outcome.waiting.1,
            "due": outcome.due.map(human::rfc3339),
        });
        value["deferred"] = json!(outcome.deferred.as_ref().map(|deferred| json!({
            "what": deferred.what,
            "host": deferred.host,
            "until": human::rfc3339(deferred.until),
        })));
        value
    };
    json!({ "dry_run": false, "lanes": outcomes.iter().map(lane).collect::<Vec<_>>() })
}

/// The backups of a lane, and what can be restored before and after.
fn lane_text(holdings: &LaneHoldings, plan: &LanePlan) -> String {
    let mut text = format!("lane {}\n", holdings.lane);
    match &plan.blocked {
        Some(Blocked::NoBackup) => {
            text.push_str("no backup is listed: all of it stays\n");
            return text;
        }
        Some(Blocked::Unreadable { backup, problem }) => text.push_str(&format!(
            "backup {backup} cannot be read, so it is not known what it needs, and all of it stays: {problem}\n\
             to give it up: walvault forget {backup}\n"
        )),
        None => {}
    }
    let row = |backup: &HeldBackup| {
        let judged = &plan.backups[&backup.id];
        let keeps: Vec<String> = judged.keeps.iter().map(ToString::to_string).collect();
        let (word, why) = match judged.goes {
            Some(go) => ("goes", go.to_string()),
            None => ("stays", keeps.join("; ")),
        };
        let log = match (judged.goes, judged.continuous) {
            (Some(_), _) => "-",
            (None, true) => "all that follows",
            (None, false) => "its own",
        };
        vec![backup.id.clone(), human::time(backup.stopped_at), word.to_owned(), log.to_owned(), why]
    };
    let mut backups: Vec<&HeldBackup> = holdings.backups.iter().collect();
    backups.sort_by_key(|backup| (backup.stopped_at, backup.stop, backup.id.clone()));
    let rows: Vec<Vec<String>> = backups.iter().map(|backup| row(backup)).collect();
    text.push_str(&table(&["BACKUP", "STOPPED", "", "LOG", "WHY"], &rows));
    let first = |after: bool| {
        let mut restorable = backups.iter().filter(|backup| plan.backups[&backup.id].restorable);
        restorable.find(|backup| !after || plan.backups[&backup.id].continuous)
    };
    if let (Some(before), Some(after)) = (first(false), first(true)) {
        let words = |backup: &HeldBackup| format!("{} (backup {})", human::time(backup.stopped_at), backup.id);
        text.push_str(&format!("restorable from {} on; without this from {} on\n", words(after), words(before)));
    }
    text
}

fn lane_json(holdings: &LaneHoldings, plan: &LanePlan, all: bool) -> Value {
    let blocked = plan.blocked.as_ref().map(|blocked| match blocked {
        Blocked::NoBackup => json!({ "reason": "no_backup" }),
        Blocked::Unreadable { backup, problem } => {
            json!({ "reason": "unreadable", "backup": backup, "problem": problem })
        }
    });
    let backup = |backup: &HeldBackup| {
        let judged = &plan.backups[&backup.id];
        json!({
            "id": backup.id,
            "kept": judged.is_kept(),
            "reasons": match judged.goes {
                Some(go) => vec![go.to_string()],
                None => judged.keeps.iter().map(ToString::to_string).collect(),
            },
            "restorable": judged.restorable,
            "continuous": judged.continuous,
        })
    };
    let objects = holdings.objects.iter().zip(&plan.verdicts).filter(|(_, verdict)| all || verdict.goes());
    let objects = objects.map(|(object, verdict)| {
        json!({
            "key": object.key(),
            "bytes": object.bytes,
            "goes": verdict.goes(),
            "reason": verdict.because().to_string(),
        })
    });
    let (count, bytes) = going(holdings, plan);
    json!({
        "lane": holdings.lane.to_string(),
        "blocked": blocked,
        "successor": plan.successor.map(|lane| lane.to_string()),
        "backups": holdings.backups.iter().map(backup).collect::<Vec<_>>(),
        "objects": objects.collect::<Vec<_>>(),
        "going": { "objects": count, "bytes": bytes },
    })
}

fn going(holdings: &LaneHoldings, plan: &LanePlan) -> (u64, u64) {
    let going = holdings.objects.iter().zip(&plan.verdicts).filter(|(_, verdict)| verdict.goes());
    going.fold((0, 0), |(count, bytes), (object, _)| (count + 1, bytes + object.bytes))
}

/// Returns what was recorded about a backup, for people.
pub fn pin_text(id: &str, pin: &Pin) -> String {
    match (pin.pinned, pin.until) {
        (false, _) => format!("backup {id} is not pinned: the policy decides about it\n"),
        (true, None) => format!("backup {id} is pinned\n"),
        (true, Some(until)) => format!("backup {id} is pinned until {}\n", human::time(until)),
    }
}

/// Returns what was recorded about a backup, for programs.
pub fn pin_json(id: &str, pin: &Pin) -> Value {
    json!({
        "backup": id,
        "pinned": pin.pinned,
        "reason": pin.reason,
        "until": pin.until.map(human::rfc3339),
    })
}

/// Returns what ties a backup to others, for people: lines like those of `show`.
pub fn ties_text(pin: Option<&str>, condemned: bool, shares: &Shares) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<16}{value}\n"));
    if let Some(words) = pin {
        line("pin", words.to_owned());
    }
    if condemned {
        line("condemned", "expire removes it when its time has come, unless it is pinned".to_owned());
    }
    for (backup, packs) in &shares.needs {
        line("needs", format!("{packs} packs of backup {backup}"));
    }
    for (backup, packs) in &shares.needed_by {
        line("needed by", format!("backup {backup}: {packs} packs"));
    }
    text
}
