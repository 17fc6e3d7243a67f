//! What can be restored.

use std::time::Duration;

use super::{after, spoken, with};
use crate::workflow::check::facts::{Facts, Holdings};
use crate::workflow::check::finding::{Code, Finding};

/// Age of the newest backup that is worth a word: a day and some.
const BACKUP_WARN: Duration = Duration::from_secs(26 * 3600);
/// Age that means that several backups did not happen.
const BACKUP_FAIL: Duration = Duration::from_secs(8 * 86400);
/// Age of the newest moment that can be restored, while the server writes.
const MOMENT_WARN: Duration = Duration::from_secs(3600);

/// Log that is worth a word when it is not in the archive for long; a quiet server writes a little all the time.
const BEHIND_WARN: u64 = 1 << 20;

fn held(code: Code, facts: &Facts, judge: impl FnOnce(&Holdings) -> Finding) -> Finding {
    match code {
        Code::Backup => with(code, &facts.holdings, "let the server's user read the repository, all of it", judge),
        _ => after(code, &facts.holdings, "the backups and segments could not be listed", judge),
    }
}

pub(super) fn backup(facts: &Facts) -> Finding {
    const CODE: Code = Code::Backup;
    let mend = format!("{} backup, and the same from cron or a timer", super::server::call(facts));
    held(CODE, facts, |holdings| {
        let Some((id, ended)) = &holdings.newest_backup else {
            return Finding::fail(CODE, "there is no backup: nothing can be restored", mend);
        };
        let age = (facts.now - *ended).to_std().unwrap_or_default();
        let text = format!(
            "{} backup{}, the newest {id} {} ago",
            holdings.backups,
            if holdings.backups == 1 { "" } else { "s" },
            spoken(age)
        );
        match age {
            age if age >= BACKUP_FAIL => Finding::fail(CODE, text, mend),
            age if age >= BACKUP_WARN => Finding::warn(CODE, text, mend),
            _ => Finding::ok(CODE, text),
        }
    })
}

/// Judges a list that ought to be empty.
fn none_of(code: Code, facts: &Facts, list: impl FnOnce(&Holdings) -> &[String], sound: &str, mend: &str) -> Finding {
    held(code, facts, |holdings| match list(holdings) {
        [] if holdings.backups == 0 && code != Code::Manifests => Finding::not_checked(code, "there is no backup"),
        [] => Finding::ok(code, sound),
        [only] => Finding::fail(code, only, mend),
        [first, more @ ..] => Finding::fail(code, format!("{first} (and {} more)", more.len()), mend),
    })
}

pub(super) fn manifests(facts: &Facts) -> Finding {
    let mend = "bring the object back from a copy of the repository, or take a new backup";
    none_of(Code::Manifests, facts, |holdings| &holdings.unreadable, "every manifest reads", mend)
}

pub(super) fn packs(facts: &Facts) -> Finding {
    let mend = "half a copy of a repository? Copy it again, whole, or take a new backup";
    none_of(Code::Packs, facts, |holdings| &holdings.missing_packs, "every pack is there", mend)
}

pub(super) fn holes(facts: &Facts) -> Finding {
    let mend =
        "find it in the pg_wal of this server, its standbys or the old primary, and `walvault wal push` it; or back up";
    none_of(Code::Holes, facts, |holdings| &holdings.holes, "no hole after the oldest backup", mend)
}

pub(super) fn promotion(facts: &Facts) -> Finding {
    const CODE: Code = Code::Promotion;
    held(CODE, facts, |holdings| match &holdings.promotion {
        None => Finding::ok(CODE, "no promotion is archived"),
        Some(promotion) if promotion.short_by() > 0 => Finding::fail(
            CODE,
            promotion.to_string(),
            format!(
                "look for what is missing in a copy restored with `walvault restore --to-latest --timeline {}`; \
                 `walvault backup` when that is settled",
                promotion.parent
            ),
        ),
        Some(promotion) if promotion.missing > 0 => Finding::warn(
            CODE,
            promotion.to_string(),
            "find them in the pg_wal of the old primary or another standby and `walvault wal push` them; or back up",
        ),
        Some(promotion) => Finding::ok(CODE, promotion.to_string()),
    })
}

pub(super) fn restorable(facts: &Facts) -> Finding {
    const CODE: Code = Code::Restorable;
    held(CODE, facts, |holdings| {
        let Some(reach) = holdings.reach else { return Finding::not_checked(CODE, "there is no backup to begin with") };
        let age = (facts.now - reach.time).to_std().unwrap_or_default();
        let text = format!("{}, {} ago, at {}", reach.time.format("%Y-%m-%d %H:%M:%SZ"), spoken(age), reach.end);
        let written = facts.server.as_ref().ok().and_then(|server| server.position);
        // An idle server ends no segment, and loses nothing by that.
        let behind = written.map(|written| written.bytes().saturating_sub(reach.end.bytes()));
        match behind {
            Some(behind) if age >= MOMENT_WARN && behind >= BEHIND_WARN => Finding::warn(
                CODE,
                format!("only up to {text}; the server has written {} since", super::size(behind)),
                "see archive-timeout, archiver and holes",
            ),
            _ => Finding::ok(CODE, format!("up to {text}")),
        }
    })
}
