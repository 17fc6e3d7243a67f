//! What goes, and whether it does.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{after, size, spoken};
use crate::retention::Overview;
use crate::workflow::check::facts::Facts;
use crate::workflow::check::finding::{Code, Finding};

/// Age of the oldest backup at which somebody ought to have said what is kept.
const GROWS: Duration = Duration::from_secs(30 * 86400);
/// Time within which a timer of a week has run, and one of a day several times.
const RUNS: Duration = Duration::from_secs(8 * 86400);
/// Age of a pin without an end that is worth a word.
const OLD_PIN: Duration = Duration::from_secs(365 * 86400);

fn in_lane(code: Code, facts: &Facts, judge: impl FnOnce(&Overview) -> Finding) -> Finding {
    after(code, &facts.retention, "what the lane holds could not be found out", |overview| match overview {
        None => Finding::not_checked(code, "the server has no lane yet"),
        Some(overview) => judge(overview),
    })
}

fn age(facts: &Facts, since: DateTime<Utc>) -> Duration {
    (facts.now - since).to_std().unwrap_or_default()
}

pub(super) fn retention(facts: &Facts) -> Finding {
    const CODE: Code = Code::Retention;
    in_lane(CODE, facts, |overview| {
        if let Some(blocked) = &overview.blocked {
            // That is another code's finding.
            return Finding::not_checked(CODE, format!("nothing goes: {blocked}"));
        }
        let oldest = overview.oldest.map(|oldest| age(facts, oldest));
        let old = |pin: &&crate::retention::PinnedBackup| {
            pin.endless && pin.since.is_none_or(|since| age(facts, since) >= OLD_PIN)
        };
        if overview.backups > 0 && overview.restorable == 0 {
            let text = format!("none of {} backups can be restored, so none goes", overview.backups);
            let told =
                facts.holdings.as_ref().is_ok_and(|held| !held.missing_packs.is_empty() || !held.holes.is_empty());
            return match told {
                true => Finding::not_checked(CODE, text),
                false => Finding::fail(CODE, text, "take a backup; `walvault verify` says what is missing"),
            };
        }
        if let Some(pin) = overview.pins.iter().find(old) {
            let since = pin.since.map_or_else(String::new, |since| format!(", for {}", spoken(age(facts, since))));
            let held = size(overview.pinned.bytes);
            let text = format!("backup {} is {}{since}; pins hold {held}", pin.backup, pin.words);
            return Finding::warn(CODE, text, format!("`walvault unpin {}`, or pin it with --until", pin.backup));
        }
        match (overview.policy, oldest) {
            (false, Some(oldest)) if oldest >= GROWS && overview.last.is_none() => Finding::warn(
                CODE,
                format!("no policy is set, so nothing ever goes; the oldest backup is {} old", spoken(oldest)),
                "set retain_days or retain_backups, look at `walvault expire --dry-run`, and let a timer run it",
            ),
            (false, _) => Finding::ok(CODE, "no policy is set here: nothing goes"),
            (true, oldest) => {
                let from = oldest.map_or_else(String::new, |oldest| format!(", the oldest {} old", spoken(oldest)));
                let held = match overview.pinned.bytes {
                    0 => String::new(),
                    bytes => format!("; pins hold {}", size(bytes)),
                };
                Finding::ok(CODE, format!("keeps {} of {} backups{from}{held}", overview.kept, overview.backups))
            }
        }
    })
}

pub(super) fn expire(facts: &Facts) -> Finding {
    const CODE: Code = Code::Expire;
    in_lane(CODE, facts, |overview| {
        let mend = "let a timer run `walvault expire`, such as walvault-expire@.timer";
        let going = format!("{} objects, {}, are to go", overview.going.objects, size(overview.going.bytes));
        let readers = match overview.readers.as_slice() {
            [] => String::new(),
            [only] => format!("; {only}"),
            [first, more @ ..] => format!("; {first} and {} more", more.len()),
        };
        let Some(last) = &overview.last else {
            return match (overview.policy, overview.going.objects) {
                (true, 1..) => Finding::warn(CODE, format!("expire never ran, and {going}"), mend),
                _ => Finding::ok(CODE, format!("nothing is to go{readers}")),
            };
        };
        let ago = age(facts, last.at);
        let ran = format!("ran {} ago on {}", spoken(ago), last.host);
        if last.broke_off {
            return Finding::warn(CODE, format!("{ran}, and broke off; {going}"), "run it again: it goes on");
        }
        match (overview.policy, overview.going.objects) {
            (true, 1..) if ago >= RUNS => Finding::warn(CODE, format!("{ran}, and {going}"), mend),
            // Whoever runs it elsewhere has the policy there.
            (false, _) if ago >= RUNS => Finding::warn(CODE, format!("{ran}, and not since"), mend),
            (true, 1..) => {
                let waits = size(overview.condemned.bytes);
                Finding::ok(CODE, format!("{ran}; {going}, {waits} of it condemned{readers}"))
            }
            _ => Finding::ok(CODE, format!("{ran}; nothing is to go{readers}")),
        }
    })
}
