//! `walvault expire`, and an operator's word about one backup: `pin`, `unpin`, `forget`.

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::exit::Fault;
use super::output;
use crate::clock;
use crate::config::Settings;
use crate::metrics::{ExpireFacts, expire_text};
use crate::repo::{Lane, LeaseError, Repository};
use crate::retention::{self, Blocked, LaneOutcome, Overview, Policy, Request, RetentionError};
use crate::view;

/// Remove backups and log that the policy does not keep
///
/// What is kept is said by the settings retain_backups, retain_days, retain_daily, retain_weekly, retain_monthly and
/// retain_yearly; without any of them nothing goes. What goes is condemned first, and removed by the first run after
/// expire_grace. While a backup is at work nothing is removed. Exits 0 when done, also if nothing was to do; 1 if
/// something could not be judged or removed; 78 without a policy.
#[derive(clap::Args, Debug)]
pub(super) struct ExpireArgs {
    /// Change nothing; print each object that would go, and why; with --verbose also each that stays
    #[arg(long)]
    dry_run: bool,
    /// Wait until what is condemned may go, and remove it
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// Write what became of it to this file too, for the textfile collector of Prometheus' node exporter
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    metrics_file: Option<PathBuf>,
}

/// Keep a backup, whatever the policy says
///
/// With it its own log stays, so that it can be restored to its end. Exits 0 once that is recorded; 1 if there is no such
/// backup, or it is being removed.
#[derive(clap::Args, Debug)]
pub(super) struct PinArgs {
    /// Name of the backup
    id: String,
    /// Why, for whoever finds it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Until when: a day such as 2027-12-31, which counts whole in UTC, or a moment with its zone
    #[arg(long, value_name = "TIME", value_parser = parse_until)]
    until: Option<DateTime<Utc>>,
}

/// Let the policy decide again about a backup that was pinned
///
/// Exits 0 once that is recorded; 1 if there is no such backup.
#[derive(clap::Args, Debug)]
pub(super) struct UnpinArgs {
    /// Name of the backup
    id: String,
}

/// Remove one backup, whatever the policy says
///
/// What other backups need of it stays, and so does the log. It is condemned first, and removed by the first expire or
/// forget after expire_grace. A backup that was pinned is refused, and so is the last one that can be restored, without
/// --force. Exits 0 once it is condemned or removed; 1 otherwise.
#[derive(clap::Args, Debug)]
pub(super) struct ForgetArgs {
    /// Name of the backup
    id: String,
    /// Also if no other backup can be restored
    #[arg(long)]
    force: bool,
}

fn parse_until(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(moment) = DateTime::parse_from_rfc3339(text) {
        return Ok(moment.to_utc());
    }
    let day =
        text.parse::<NaiveDate>().map_err(|_| "no day such as 2027-12-31, and no moment with its zone".to_owned())?;
    let next = day.checked_add_days(Days::new(1)).ok_or("too late")?;
    Ok(next.and_time(NaiveTime::MIN).and_utc())
}

pub(super) fn expire(cli: &Cli, args: &ExpireArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let begun = clock::now();
    let outcome = perform(cli, args, &settings);
    if let Some(file) = &args.metrics_file {
        let attempted = begun.timestamp().cast_unsigned();
        let facts = match &outcome {
            Ok((status, outcomes)) => facts(attempted, *status, outcomes, &settings.retention()),
            Err(_) => ExpireFacts { attempted, failed: true, done: None, restorable: None },
        };
        output::write_metrics(file, |before| expire_text(&settings.cluster, facts, before));
    }
    outcome.map(|(status, _)| status)
}

/// What a file for monitors says of all lanes together; of what can be restored, the lane that has the newest backup.
fn facts(attempted: u64, status: u8, outcomes: &[LaneOutcome], policy: &Policy) -> ExpireFacts {
    let now = clock::now();
    let seconds = |time: DateTime<Utc>| time.timestamp().cast_unsigned();
    let looked = outcomes.iter().map(|outcome| Overview::of(&outcome.holdings, &outcome.plan, policy, now));
    let lanes: Vec<Overview> = looked.collect();
    let removed = outcomes.iter().map(|outcome| outcome.removed.bytes).sum();
    let waiting = outcomes.iter().map(|outcome| outcome.waiting.1).sum();
    let pinned = lanes.iter().map(|lane| lane.pinned.bytes).sum();
    let newest = lanes.iter().max_by_key(|lane| lane.newest);
    ExpireFacts {
        attempted,
        failed: status != 0,
        done: Some([seconds(now), removed, waiting, pinned]),
        restorable: newest.and_then(|lane| Some([seconds(lane.oldest?), seconds(lane.newest?)])),
    }
}

/// Removes what is due, and says so; returns the status and what became of each lane.
fn perform(cli: &Cli, args: &ExpireArgs, settings: &Settings) -> Result<(u8, Vec<LaneOutcome>), CommandError> {
    let request = Request { policy: settings.retention(), forget: None, host: context::host() };
    if !request.policy.is_set() {
        let text = "no policy is set, so nothing is removed";
        return Err(CommandError::new(Fault::Configuration, text)
            .hint("set retain_backups, retain_days, or retain_daily and its relatives, and look at expire --dry-run"));
    }
    let lanes = context::lanes(cli, &repository(settings, PATIENT)?)?;
    if args.dry_run {
        let planned = retention::plan(&lanes, &request)?;
        if cli.json {
            output::print_json(&view::expire::plan_json(&planned, cli.verbose));
        } else {
            output::print(&view::expire::plan_text(&planned, cli.verbose));
        }
        return Ok((status(planned.iter().map(|(_, plan)| &plan.blocked), false), Vec::new()));
    }
    let mut outcomes = retention::perform(&lanes, &request)?;
    while let Some(due) = args.wait.then(|| next_due(&outcomes)).flatten() {
        // The store's clock decides; a little later is no harm.
        let pause =
            (due - clock::now()).to_std().unwrap_or_default().clamp(Duration::from_secs(1), Duration::from_secs(60));
        std::thread::sleep(pause);
        let before = std::mem::replace(&mut outcomes, retention::perform(&lanes, &request)?);
        add(&mut outcomes, before);
    }
    told(cli, &outcomes);
    let refused = outcomes.iter().any(|outcome| !outcome.removed.refused.is_empty());
    Ok((status(outcomes.iter().map(|outcome| &outcome.plan.blocked), refused), outcomes))
}

/// What was removed before counts too.
fn add(outcomes: &mut [LaneOutcome], before: Vec<LaneOutcome>) {
    for (outcome, before) in outcomes.iter_mut().zip(before) {
        outcome.removed.objects += before.removed.objects;
        outcome.removed.bytes += before.removed.bytes;
    }
}

fn next_due(outcomes: &[LaneOutcome]) -> Option<DateTime<Utc>> {
    let able = outcomes.iter().filter(|outcome| outcome.removed.refused.is_empty());
    able.filter_map(|outcome| outcome.due).min()
}

fn told(cli: &Cli, outcomes: &[LaneOutcome]) {
    if cli.json {
        output::print_json(&view::expire::json(outcomes, cli.verbose));
    } else {
        output::print(&view::expire::text(outcomes));
    }
    for outcome in outcomes {
        if let Some(refusal) = &outcome.removed.refusal {
            let (first, count) = (&outcome.removed.refused[0], outcome.removed.refused.len());
            output::complain(&format!(
                "warning: the store does not let {count} objects go, such as {first}: {refusal}; \
                 a lock on objects ends by itself, a right to delete is given by who owns the store"
            ));
        }
    }
}

fn status<'a>(mut blocked: impl Iterator<Item = &'a Option<Blocked>>, refused: bool) -> u8 {
    u8::from(refused || blocked.any(|blocked| matches!(blocked, Some(Blocked::Unreadable { .. }))))
}

/// Finds the lane that has a backup, or had it.
fn lane_of(cli: &Cli, repository: &Repository, id: &str) -> Result<Lane, CommandError> {
    for lane in context::lanes(cli, repository)? {
        let listed = lane.backups()?.iter().any(|backup| backup.id == id);
        let had = |lane: &Lane| -> Result<bool, CommandError> {
            let stones = lane.tombstones()?;
            Ok(stones.last().is_some_and(|last| last.tombstone.kept.iter().any(|kept| kept == id)))
        };
        if listed || had(&lane)? {
            return Ok(lane);
        }
    }
    Err(RetentionError::NoSuchBackup { backup: id.to_owned() }.into())
}

pub(super) fn pin(cli: &Cli, args: &PinArgs) -> Result<u8, CommandError> {
    record(cli, &args.id, true, args.reason.clone(), args.until)
}

pub(super) fn unpin(cli: &Cli, args: &UnpinArgs) -> Result<u8, CommandError> {
    record(cli, &args.id, false, None, None)
}

fn record(
    cli: &Cli,
    id: &str,
    pinned: bool,
    reason: Option<String>,
    until: Option<DateTime<Utc>>,
) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let lane = lane_of(cli, &repository(&settings, PATIENT)?, id)?;
    let pin = retention::pin(&lane, id, pinned, reason, until, &context::host())?;
    if cli.json {
        output::print_json(&view::expire::pin_json(id, &pin));
    } else {
        output::print(&view::expire::pin_text(id, &pin));
    }
    Ok(0)
}

pub(super) fn forget(cli: &Cli, args: &ForgetArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let lane = lane_of(cli, &repository(&settings, PATIENT)?, &args.id)?;
    let grace = settings.retention().grace;
    let outcome = retention::forget(&lane, &args.id, args.force, grace, &context::host())?;
    let outcomes = [outcome];
    told(cli, &outcomes);
    Ok(u8::from(!outcomes[0].removed.refused.is_empty()))
}

impl From<RetentionError> for CommandError {
    fn from(error: RetentionError) -> Self {
        let hint = match &error {
            RetentionError::NoBackup => {
                Some("take a backup first; if there were backups, look where they are".to_owned())
            }
            RetentionError::Vanished { backup } => {
                Some(format!("run it again; if the backup was removed on purpose, `walvault forget {backup}`"))
            }
            RetentionError::NoSuchBackup { .. } => Some("see `walvault list`".to_owned()),
            RetentionError::Moved { .. } | RetentionError::AtWork { .. } => Some("run it again".to_owned()),
            RetentionError::Pinned { backup, .. } => Some(format!("`walvault unpin {backup}` first")),
            RetentionError::LastOne { .. } => Some("take another backup first, or give --force".to_owned()),
            RetentionError::Lease(LeaseError::Held { .. }) => Some("wait for it".to_owned()),
            _ => None,
        };
        let fault = match error {
            RetentionError::NothingThere => Fault::NoPlan,
            ref error => Fault::Failed(error.kind()),
        };
        let error = match error {
            RetentionError::Repository(error) => return error.into(),
            error => error,
        };
        Self { fault, error: Box::new(error), hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_counts_whole_and_a_moment_needs_its_zone() {
        let until = |text| parse_until(text).map(|moment| moment.to_rfc3339());
        assert_eq!(until("2027-12-31").as_deref(), Ok("2028-01-01T00:00:00+00:00"));
        assert_eq!(until("2027-12-31T12:00:00+02:00").as_deref(), Ok("2027-12-31T10:00:00+00:00"));
        for wrong in ["tomorrow", "2027-12-31T12:00:00", "2027-13-01", ""] {
            assert!(until(wrong).is_err(), "{wrong}");
        }
    }
}
