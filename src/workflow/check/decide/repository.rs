//! The repository, the lane in it, and what this host may do there.

use super::{after, with};
use crate::error;
use crate::repo::{Owner, Probe, RepoError};
use crate::store::CreateMode;
use crate::workflow::check::facts::{Facts, LaneState};
use crate::workflow::check::finding::{Code, Finding};
use crate::workflow::check::mend;

/// Difference of clocks that is worth a word.
const CLOCK_WARN: i64 = 60;
/// Difference at which object stores refuse signatures.
const CLOCK_FAIL: i64 = 15 * 60;

pub(super) fn repository(facts: &Facts) -> Finding {
    const CODE: Code = Code::Repository;
    with(CODE, &facts.repository, "is the volume mounted? For a new repository run `walvault init`", |repository| {
        let trust = repository.roots.as_ref().map_or_else(String::new, |roots| format!(", over TLS with {roots}"));
        Finding::ok(CODE, format!("{} opens{trust}", repository.name))
    })
}

pub(super) fn place(facts: &Facts) -> Finding {
    const CODE: Code = Code::Place;
    let Ok(repository) = &facts.repository else { return Finding::not_checked(CODE, "the repository does not open") };
    match repository.shares_disk {
        Some(true) => Finding::warn(
            CODE,
            "the repository is on the data directory's file system: what takes one takes both",
            "put the repository on another machine or disk; is its volume mounted?",
        ),
        Some(false) => Finding::ok(CODE, "on another file system than the data"),
        None if repository.is_volume => Finding::not_checked(CODE, "the data directory is not known"),
        None => Finding::ok(CODE, "not on this host"),
    }
}

pub(super) fn lane(facts: &Facts) -> Finding {
    const CODE: Code = Code::Lane;
    if let Ok(repository) = &facts.repository
        && let Some(headless) = repository.headless.first()
    {
        let text = format!("{headless}/lane.json is missing: half a copy of a repository?");
        return Finding::fail(CODE, text, "copy the repository again, whole, or the missing object from where it came");
    }
    with(CODE, &facts.lane, "see repository", |lane| match lane {
        None => Finding::warn(
            CODE,
            "nothing of this server is in the repository yet",
            "set archive_command, then `select pg_switch_wal();`, then check again",
        ),
        Some(LaneState { misfit: Some(misfit), .. }) => {
            Finding::fail(CODE, misfit, "use a repository of its own for this server, or the right data directory")
        }
        Some(lane) => Finding::ok(
            CODE,
            match lane.others {
                0 => format!("lane {}", lane.id),
                others => format!("lane {}, beside {others} of other servers", lane.id),
            },
        ),
    })
}

/// Judges the lane, where there is one.
fn in_lane(code: Code, facts: &Facts, judge: impl FnOnce(&LaneState) -> Finding) -> Finding {
    after(code, &facts.lane, "the lane does not open", |lane| match lane {
        None => Finding::not_checked(code, "the server has no lane yet"),
        Some(lane) => judge(lane),
    })
}

pub(super) fn owner(facts: &Facts) -> Finding {
    const CODE: Code = Code::Owner;
    let standby = facts.server.as_ref().is_ok_and(|server| server.in_recovery);
    in_lane(CODE, facts, |lane| match &lane.owner {
        None => Finding::ok(CODE, format!("nobody has written timeline {} yet", lane.timeline)),
        Some(Owner { waits_for: Some(waits), .. }) => Finding::warn(
            CODE,
            format!(
                "timeline {} does not count yet: {}, who writes timeline {}, was at work when it began",
                lane.timeline, waits.host, waits.timeline
            ),
            format!("if it was a failover: walvault lane adopt {}; if this is a copy, stop it", lane.timeline),
        ),
        Some(owner) if owner.writer == lane.writer => {
            Finding::ok(CODE, format!("this server writes timeline {}", lane.timeline))
        }
        Some(owner) if standby => Finding::ok(CODE, format!("{} writes timeline {}", owner.host, lane.timeline)),
        Some(owner) => Finding::warn(
            CODE,
            format!(
                "timeline {} was begun by another server, on {} (since {})",
                lane.timeline, owner.host, owner.since
            ),
            "is that one still running, or was this one moved or copied? Two must not write one timeline",
        ),
    })
}

pub(super) fn contested(facts: &Facts) -> Finding {
    const CODE: Code = Code::Contested;
    in_lane(CODE, facts, |lane| match lane.contested.as_slice() {
        [] => Finding::ok(CODE, "no contested file"),
        [first, more @ ..] => Finding::fail(
            CODE,
            format!("{first}{}: two servers write one timeline, or did", and_more(more.len())),
            "see `walvault conflict list`, and `Contested files` in docs/operations.md",
        ),
    })
}

fn and_more(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" and {count} more") }
}

fn refused(code: Code, error: &RepoError) -> Finding {
    let mend = mend::of(error).unwrap_or_else(|| RIGHTS.to_owned());
    Finding::fail(code, error::chain(error).to_string(), mend)
}

fn probed(code: Code, facts: &Facts, judge: impl FnOnce(&Probe) -> Finding) -> Finding {
    if code == Code::Write {
        return with(code, &facts.probe, RIGHTS, judge);
    }
    after(code, &facts.probe, NOTHING_WRITTEN, judge)
}

const RIGHTS: &str = "give the server's user the right, and its disk the room, to read and write the repository";

pub(super) fn write(facts: &Facts) -> Finding {
    const CODE: Code = Code::Write;
    probed(CODE, facts, |probe| match &probe.write {
        Ok(()) => Finding::ok(CODE, "this host may write"),
        Err(error) => refused(CODE, error),
    })
}

const NOTHING_WRITTEN: &str = "nothing could be written";

pub(super) fn read(facts: &Facts) -> Finding {
    const CODE: Code = Code::Read;
    let again = "the store does not give back what it took: find out before you rely on it";
    probed(CODE, facts, |probe| match (&probe.read_back, &probe.listed) {
        (None, _) | (_, None) => Finding::not_checked(CODE, NOTHING_WRITTEN),
        (Some(Err(error)), _) => refused(CODE, error),
        (Some(Ok(false)), _) => Finding::fail(CODE, "what was just written reads otherwise", again),
        (_, Some(Err(error))) => refused(CODE, error),
        (_, Some(Ok(false))) => Finding::fail(CODE, "what was just written is in no listing", again),
        (Some(Ok(true)), Some(Ok(true))) => Finding::ok(CODE, "reads back and lists"),
    })
}

pub(super) fn create_only(facts: &Facts) -> Finding {
    const CODE: Code = Code::CreateOnly;
    probed(CODE, facts, |probe| match &probe.create_only {
        _ if probe.mode == CreateMode::ContentAddressed => Finding::warn(
            CODE,
            "this store overwrites, so each object is named by its contents and listed after it is stored",
            "use a store that refuses a name that is taken, if you can",
        ),
        None if matches!(probe.delete, Some(Err(_))) => {
            Finding::not_checked(CODE, "it takes objects that this host may not delete again; `walvault init` tried it")
        }
        None => Finding::not_checked(CODE, NOTHING_WRITTEN),
        Some(Ok(CreateMode::Conditional)) => Finding::ok(CODE, "creates that race have one winner"),
        Some(Ok(CreateMode::ContentAddressed)) => Finding::fail(
            CODE,
            "of creates that raced not exactly one won: this store would let a second server overwrite WAL",
            "use another store or file system",
        ),
        Some(Err(error)) => refused(CODE, error),
    })
}

pub(super) fn clock(facts: &Facts) -> Finding {
    const CODE: Code = Code::Clock;
    probed(CODE, facts, |probe| {
        let Some(ahead) = probe.clock_ahead else { return Finding::not_checked(CODE, NOTHING_WRITTEN) };
        let seconds = ahead.num_seconds();
        let direction = if seconds > 0 { "ahead of" } else { "behind" };
        let text = format!("the store's clock is {} s {direction} this host's", seconds.abs());
        let mend = "run a time service (chrony, systemd-timesyncd) on both";
        match seconds.abs() {
            CLOCK_FAIL.. => Finding::fail(CODE, text, mend),
            CLOCK_WARN.. => Finding::warn(CODE, text, mend),
            _ => Finding::ok(CODE, "clocks agree"),
        }
    })
}

pub(super) fn delete(facts: &Facts) -> Finding {
    const CODE: Code = Code::Delete;
    let is_volume = !facts.repository.as_ref().is_ok_and(|repository| !repository.is_volume);
    probed(CODE, facts, |probe| match &probe.delete {
        None => Finding::not_checked(CODE, NOTHING_WRITTEN),
        Some(Ok(())) if is_volume => Finding::ok(CODE, "may delete, as whoever may write on a volume"),
        Some(Ok(())) => Finding::warn(
            CODE,
            "this host may delete objects, and needs not: whoever takes the host takes the backups",
            "take the right to delete away from this host's credentials",
        ),
        Some(Err(_)) => {
            Finding::ok(CODE, "may not delete, and needs not; each check leaves one small object below probe/")
        }
    })
}
