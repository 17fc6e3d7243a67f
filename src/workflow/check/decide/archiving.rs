//! WAL on its way into the archive.

use std::time::Duration;

use super::command::archive_line;
use super::{after, size, spoken, with, with_setting};
use crate::instance::WalDirectory;
use crate::workflow::check::facts::{AgentFacts, Facts, RoundTripEnd};
use crate::workflow::check::finding::{Code, Finding};

/// Files that may wait without a word: a burst.
const WAITING_FILES: u64 = 16;
/// A file that waits longer means that archiving stands still, or cannot keep up.
const WAITING_WARN: Duration = Duration::from_secs(120);
/// A file that waits longer has outlasted every retry.
const WAITING_FAIL: Duration = Duration::from_secs(900);
/// Room that must last at least so long while archiving stands still.
const ROOM_WHILE_STUCK: Duration = Duration::from_secs(86400);
/// Room that should last at least so long, should archiving stand still.
const ROOM: Duration = Duration::from_secs(4 * 3600);
/// Longest `archive_timeout` without a word.
const TIMEOUT_WARN: u64 = 3600;

pub(super) fn archive_mode(facts: &Facts) -> Finding {
    const CODE: Code = Code::ArchiveMode;
    let library = facts.settings.as_ref().ok().and_then(|settings| settings.get("archive_library")).cloned();
    with_setting(CODE, facts, "archive_mode", |value| match (value, library.as_deref().unwrap_or_default()) {
        ("off", _) => {
            let mend = format!("set archive_mode = on and {}, and restart", archive_line(facts));
            Finding::fail(CODE, "archive_mode = off: nothing is archived", mend)
        }
        (_, library) if !library.is_empty() => Finding::fail(
            CODE,
            format!("archive_library = '{library}' archives in place of archive_command"),
            "set archive_library = '' and reload",
        ),
        (value, _) => Finding::ok(CODE, format!("archive_mode {value}")),
    })
}

pub(super) fn archive_timeout(facts: &Facts) -> Finding {
    const CODE: Code = Code::ArchiveTimeout;
    with_setting(CODE, facts, "archive_timeout", |value| match value.parse::<u64>() {
        Ok(0) => {
            let text = "archive_timeout = 0: on a quiet server commits wait in pg_wal for the segment to fill";
            // Nobody tells the repository that the server is there.
            let unheard = match &facts.agent {
                Ok(AgentFacts::Nobody) => ", and without an agent a copy that writes takes its place after owner_grace",
                _ => "",
            };
            Finding::warn(CODE, format!("{text}{unheard}"), "set archive_timeout = 60 and reload")
        }
        Ok(seconds) if seconds > TIMEOUT_WARN => {
            let text = format!(
                "archive_timeout = {}: so much can be lost with the disk",
                spoken(Duration::from_secs(seconds))
            );
            Finding::warn(CODE, text, "set archive_timeout = 60 and reload")
        }
        _ => Finding::ok(CODE, format!("archive_timeout {value} s")),
    })
}

pub(super) fn archiver(facts: &Facts) -> Finding {
    const CODE: Code = Code::Archiver;
    with(CODE, &facts.archiver, "let the role read pg_stat_archiver", |archiver| {
        let ago = |seconds: Option<i64>| spoken(Duration::from_secs(seconds.unwrap_or_default().max(0) as u64));
        let failed = archiver.last_failed.as_deref().unwrap_or("a file");
        if archiver.failing {
            let text =
                format!("archiving fails: {failed}, {} ago, {} failures", ago(archiver.failed_ago), archiver.failures);
            return Finding::fail(CODE, text, "the server's log says why; `archive_command` and the repository below");
        }
        match &archiver.last_archived {
            None => Finding::ok(CODE, "nothing archived yet, and nothing failed"),
            Some(name) => Finding::ok(CODE, format!("archived {name} {} ago", ago(archiver.archived_ago))),
        }
    })
}

fn stuck(wal: &WalDirectory) -> Option<Duration> {
    wal.oldest_ready.as_ref().map(|(_, age)| *age).filter(|age| *age >= WAITING_WARN)
}

pub(super) fn backlog(facts: &Facts) -> Finding {
    const CODE: Code = Code::Backlog;
    with(CODE, &facts.wal, "run the check as the server's user", |wal| {
        let Some((name, age)) = &wal.oldest_ready else { return Finding::ok(CODE, "nothing waits in pg_wal") };
        let running = facts.data.as_ref().map_or(facts.server.is_ok(), |data| data.running);
        let text = format!(
            "{} wait{} in pg_wal, {name} for {}",
            wal.ready,
            if wal.ready == 1 { "s" } else { "" },
            spoken(*age)
        );
        match age {
            _ if !running => Finding::warn(
                CODE,
                format!("{text}; the server is down"),
                "keep this pg_wal: start the server, or push what waits with `walvault wal push`",
            ),
            age if *age >= WAITING_FAIL => {
                Finding::fail(CODE, text, "see the server's log and the findings on archive_command and the repository")
            }
            age if *age >= WAITING_WARN || wal.ready > WAITING_FILES => {
                Finding::warn(CODE, text, "look again in a minute: does it shrink? If not, see the server's log")
            }
            _ => Finding::ok(CODE, text),
        }
    })
}

pub(super) fn disk(facts: &Facts) -> Finding {
    const CODE: Code = Code::Disk;
    after(CODE, &facts.wal, "pg_wal cannot be read", |wal| {
        let percent = wal.free_bytes * 100 / wal.total_bytes.max(1);
        let free = format!("{} free for pg_wal ({percent} %)", size(wal.free_bytes));
        let failing = facts.archiver.as_ref().is_ok_and(|archiver| archiver.failing) || stuck(wal).is_some();
        let room = wal.room_lasts();
        let lasts = room.map_or_else(String::new, |room| format!(", {} at the present rate", spoken(room)));
        if failing && (room.is_some_and(|room| room < ROOM_WHILE_STUCK) || percent < 10) {
            let text = format!("archiving stands still and the disk fills: {free}{lasts}");
            return Finding::fail(CODE, text, "mend archiving now, or make room; delete nothing in pg_wal by hand");
        }
        if percent < 10 || room.is_some_and(|room| room < ROOM) {
            let text = format!("should archiving stand still, the server stops soon: {free}{lasts}");
            return Finding::warn(CODE, text, "give pg_wal a larger file system");
        }
        Finding::ok(CODE, format!("{free}{lasts}"))
    })
}

/// What a primary dies with, unarchived, only its standbys hold, and they recycle it with the next restartpoint.
pub(super) fn failover_window(facts: &Facts) -> Finding {
    const CODE: Code = Code::FailoverWindow;
    // A server that was not reached is another code's finding.
    if !facts.server.as_ref().is_ok_and(|server| server.in_recovery) {
        return Finding::ok(CODE, "this server is no standby, as far as is known");
    }
    let setting = |name: &str| facts.settings.as_ref().ok().and_then(|settings| settings.get(name)).cloned();
    if setting("archive_mode").as_deref() == Some("always") {
        return Finding::ok(CODE, "archive_mode = always: this standby archives what it receives");
    }
    if facts.standby_agent {
        return Finding::ok(CODE, "the agent pushes from this standby what the archive lacks");
    }
    match setting("wal_keep_size") {
        None => Finding::not_checked(CODE, "the role may not read wal_keep_size"),
        Some(kept) if kept == "0" => Finding::warn(
            CODE,
            "if the primary dies with WAL that it had not archived, this standby may have recycled it before it is \
             promoted: up to a restartpoint's worth",
            "run `walvault agent` here with pgdata set, or set wal_keep_size to what may wait to be archived",
        ),
        Some(kept) => Finding::ok(CODE, format!("wal_keep_size {kept} MB holds what a dead primary left")),
    }
}

fn took(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

pub(super) fn round_trip(facts: &Facts) -> Finding {
    const CODE: Code = Code::RoundTrip;
    with(CODE, &facts.round_trip, "see the findings above", |trip| {
        let segment = &trip.segment;
        let fail = |text: String, mend: &str| Finding::fail(CODE, text, mend);
        match &trip.outcome {
            RoundTripEnd::Same => {
                Finding::ok(CODE, format!("{segment} archived in {} and back, the same bytes", took(trip.took)))
            }
            RoundTripEnd::Intact => {
                Finding::ok(CODE, format!("{segment} archived in {} and back, intact", took(trip.took)))
            }
            RoundTripEnd::Other { stored, local } => fail(
                format!("{segment} came back with other bytes: {stored}, in pg_wal {local}"),
                "two servers write one timeline, or the repository is damaged: see `walvault timelines`",
            ),
            RoundTripEnd::Absent => fail(
                format!("the server counts {segment} as archived, and it is not in this repository"),
                "archive_command stores it elsewhere, or nowhere: see archive-command",
            ),
            RoundTripEnd::CommandFailed => {
                fail(format!("archive_command failed on {segment}"), "the server's log says why")
            }
            RoundTripEnd::TooLate => fail(
                format!("{segment} was not archived within {}", spoken(trip.took)),
                "see the findings on archiver and backlog, and the server's log; --timeout waits longer",
            ),
        }
    })
}
