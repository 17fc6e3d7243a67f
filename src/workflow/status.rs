//! How archiving stands, in one line for a monitor: a few requests, and no connection to the server.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};

use super::check::Level;
use crate::archive::Promotion;
use crate::clock;
use crate::error;
use crate::instance::{DataDirectory, WalDirectory};
use crate::pg::timeline::TimelineId;
use crate::repo::{Hole, Lane, Purpose, RepoError, StoredBackup};

/// The segment after an archived one is begun while that one is archived.
const SLACK: chrono::Duration = chrono::Duration::seconds(60);

/// Where a number begins to matter, and where it is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Above this it wants mending.
    pub warn: u64,
    /// Above this it fails.
    pub fail: u64,
}

/// Thresholds of everything that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Seconds since WAL was archived, while the server has written more.
    pub wal_age: Threshold,
    /// Seconds since the last backup began.
    pub backup_age: Threshold,
    /// Files that wait in `pg_wal`.
    pub backlog: Threshold,
    /// Bytes of the former timeline that a promotion left out.
    pub promoted_short: Threshold,
    /// Seconds since expire last ran, where it ever did.
    pub expire_age: Threshold,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            wal_age: Threshold { warn: 900, fail: 3600 },
            backup_age: Threshold { warn: 26 * 3600, fail: 8 * 86400 },
            backlog: Threshold { warn: 16, fail: 128 },
            promoted_short: Threshold { warn: 0, fail: 0 },
            expire_age: Threshold { warn: 8 * 86400, fail: 30 * 86400 },
        }
    }
}

/// What a monitor is told about.
#[derive(Clone, Debug)]
pub struct StatusFacts {
    /// When.
    pub now: DateTime<Utc>,
    /// The newest archived segment and when it was stored.
    pub newest_wal: Option<(String, DateTime<Utc>)>,
    /// Whether the server has written since then; `None` where its `pg_wal` cannot be seen.
    pub written_since: Option<bool>,
    /// The newest backup and when it began.
    pub newest_backup: Option<(String, DateTime<Utc>)>,
    /// `pg_wal`, where it can be seen.
    pub wal: Option<Result<WalDirectory, String>>,
    /// Files that are kept apart, and about which nothing was decided.
    pub conflicts: u64,
    /// Parts of the log that were given up since the newest backup began.
    pub holes: Vec<String>,
    /// The last promotion, and when it was archived.
    pub promotion: Option<(Promotion, DateTime<Utc>)>,
    /// When expire gave its last sign, if it ever ran.
    pub last_expire: Option<DateTime<Utc>>,
}

/// One number of a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Its name: stable.
    pub name: &'static str,
    /// Its unit, as Nagios spells it: `s`, or nothing for a count.
    pub unit: &'static str,
    /// The number; `None` if there is nothing to measure.
    pub value: Option<u64>,
    /// Its thresholds.
    pub threshold: Threshold,
    /// How it stands.
    pub level: Level,
    /// In words.
    pub text: String,
}

impl StatusFacts {
    /// Looks at a lane, and at the server's `pg_wal` if it is here.
    pub fn gather(lane: &Lane, data: Option<&DataDirectory>) -> Result<Self, RepoError> {
        let now = clock::now();
        let timelines = lane.wal_timelines()?;
        let newest = newest_of(lane, &timelines)?;
        let newest_wal = match newest {
            Some(timeline) => lane.newest_segment(timeline)?.map(|stored| (stored.name.to_string(), stored.stored_at)),
            None => None,
        };
        // Also one that does not count yet: it may be the failover.
        let last = timelines.last().copied();
        let promotion = match last.filter(|timeline| *timeline != TimelineId::FIRST) {
            Some(timeline) => last_promotion(lane, timeline)?,
            None => None,
        };
        let backups =
            lane.backups()?.into_iter().filter_map(|backup| Some((began(&backup.id)?, backup.id.clone(), backup)));
        let newest_backup = backups.max_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        let conflicts = lane.contested()?.iter().filter(|contested| !contested.resolved).count() as u64;
        let mut holes = Vec::new();
        for hole in lane.holes()? {
            if !is_behind(lane, &hole, newest_backup.as_ref())? {
                holes.push(hole.to_string());
            }
        }
        let last_expire = lane.last_lease(Purpose::Expire)?.map(|last| last.stored_at);
        let written = data.and_then(|data| WalDirectory::last_written(&data.path).ok().flatten());
        let stored = newest_wal.as_ref().map(|(_, stored)| *stored);
        Ok(Self {
            now,
            written_since: written.map(|written| stored.is_none_or(|stored| written > stored + SLACK)),
            newest_wal,
            newest_backup: newest_backup.map(|(began, id, _)| (id, began)),
            promotion,
            wal: data.map(|data| {
                let looked = WalDirectory::look(&data.path, data.control.segment_size, now);
                looked.map_err(|problem| error::chain(&problem).to_string())
            }),
            conflicts,
            holes,
            last_expire,
        })
    }

    /// Judges: one measure each, in a fixed order.
    pub fn judge(&self, thresholds: &Thresholds) -> Vec<Measure> {
        vec![
            self.wal_age(thresholds.wal_age),
            self.backup_age(thresholds.backup_age),
            self.backlog(thresholds.backlog),
            self.conflicts(),
            self.holes(),
            self.promoted_short(thresholds.promoted_short),
            self.expire_age(thresholds.expire_age),
        ]
    }

    fn conflicts(&self) -> Measure {
        let (threshold, value) = (Threshold { warn: 0, fail: 0 }, self.conflicts);
        let text = match value {
            0 => "no conflict".to_owned(),
            count => format!("{count} contested files, see walvault conflict list"),
        };
        Measure { name: "conflicts", unit: "", value: Some(value), threshold, level: threshold.level(value), text }
    }

    fn holes(&self) -> Measure {
        let (threshold, value) = (Threshold { warn: 0, fail: 0 }, self.holes.len() as u64);
        let text = match self.holes.last() {
            None => "nothing given up".to_owned(),
            Some(last) => format!("{last}; take a backup"),
        };
        Measure { name: "given_up", unit: "", value: Some(value), threshold, level: threshold.level(value), text }
    }

    fn age(&self, since: DateTime<Utc>) -> Duration {
        (self.now - since).to_std().unwrap_or_default()
    }

    fn wal_age(&self, threshold: Threshold) -> Measure {
        let measure = |value, level, text| Measure { name: "wal_age", unit: "s", value, threshold, level, text };
        let Some((name, stored)) = &self.newest_wal else {
            return measure(None, Level::Fail, "no WAL archived yet".to_owned());
        };
        let seconds = self.age(*stored).as_secs();
        match self.written_since {
            // A quiet server archives nothing, and loses nothing.
            Some(false) => {
                measure(Some(seconds), Level::Ok, format!("WAL {name} archived {seconds} s ago, nothing since"))
            }
            _ => measure(Some(seconds), threshold.level(seconds), format!("WAL {name} archived {seconds} s ago")),
        }
    }

    fn backup_age(&self, threshold: Threshold) -> Measure {
        let measure = |value, level, text| Measure { name: "backup_age", unit: "s", value, threshold, level, text };
        let Some((id, began)) = &self.newest_backup else {
            return measure(None, Level::Fail, "no backup".to_owned());
        };
        let seconds = self.age(*began).as_secs();
        measure(Some(seconds), threshold.level(seconds), format!("backup {id} {} h ago", seconds / 3600))
    }

    /// Where expire never ran, whoever set no policy wants it so.
    fn expire_age(&self, threshold: Threshold) -> Measure {
        let measure = |value, level, text| Measure { name: "expire_age", unit: "s", value, threshold, level, text };
        let Some(last) = self.last_expire else {
            return measure(None, Level::NotChecked, "expire never ran".to_owned());
        };
        let seconds = self.age(last).as_secs();
        measure(Some(seconds), threshold.level(seconds), format!("expire ran {} h ago", seconds / 3600))
    }

    fn backlog(&self, threshold: Threshold) -> Measure {
        let measure = |value, level, text| Measure { name: "backlog", unit: "", value, threshold, level, text };
        match &self.wal {
            None => measure(None, Level::NotChecked, "pg_wal is not here".to_owned()),
            Some(Err(problem)) => measure(None, Level::Warn, problem.clone()),
            Some(Ok(wal)) => measure(Some(wal.ready), threshold.level(wal.ready), format!("{} waiting", wal.ready)),
        }
    }
}

impl StatusFacts {
    /// An alarm that nobody could end would be switched off: the first backup after the promotion ends it.
    fn promoted_short(&self, threshold: Threshold) -> Measure {
        let name = "promoted_short";
        let measure = |value, level, text| Measure { name, unit: "B", value, threshold, level, text };
        let Some((promotion, when)) = &self.promotion else {
            return measure(None, Level::NotChecked, "no promotion is archived".to_owned());
        };
        let backed_up = self.newest_backup.as_ref().is_some_and(|(_, began)| began > when);
        match promotion.short_by() {
            0 => measure(None, Level::NotChecked, promotion.to_string()),
            short if backed_up => measure(Some(short), Level::Ok, format!("{promotion}; backed up since")),
            short => measure(Some(short), threshold.level(short), promotion.to_string()),
        }
    }
}

/// Returns how a timeline began, if its history is archived and can be read.
fn last_promotion(lane: &Lane, timeline: TimelineId) -> Result<Option<(Promotion, DateTime<Utc>)>, RepoError> {
    let (Some(history), Some(when)) = (lane.history(timeline)?, lane.history_stored_at(timeline)?) else {
        return Ok(None);
    };
    Ok(Promotion::look(lane, &history)?.map(|promotion| (promotion, when)))
}

impl Threshold {
    fn level(self, value: u64) -> Level {
        match value {
            value if value > self.fail => Level::Fail,
            value if value > self.warn => Level::Warn,
            _ => Level::Ok,
        }
    }
}

/// Returns the newest timeline that counts: a stray copy's says nothing of the server that is watched.
fn newest_of(lane: &Lane, timelines: &[TimelineId]) -> Result<Option<TimelineId>, RepoError> {
    for timeline in timelines.iter().rev() {
        if *timeline == TimelineId::FIRST || lane.waits_for(*timeline)?.is_none() {
            return Ok(Some(*timeline));
        }
    }
    Ok(None)
}

/// Whether the newest backup begins behind a hole. Its name tells only a second, and by another clock; its start
/// tells for certain.
fn is_behind(
    lane: &Lane,
    hole: &Hole,
    newest: Option<&(DateTime<Utc>, String, StoredBackup)>,
) -> Result<bool, RepoError> {
    let Some((began, _, backup)) = newest else { return Ok(false) };
    if *began > hole.decided_at {
        return Ok(true);
    }
    let envelope = lane.manifest(backup)?.envelope;
    let same = envelope.timeline == hole.through.timeline();
    let number = hole.through.number(lane.segment_size());
    Ok(same && number.is_ok_and(|number| envelope.start_lsn >= number.end(lane.segment_size())))
}

/// When a backup began, by its name.
fn began(id: &str) -> Option<DateTime<Utc>> {
    let stamp = id.split('-').next()?;
    Some(NaiveDateTime::parse_from_str(stamp, "%Y%m%dT%H%M%SZ").ok()?.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> StatusFacts {
        let now = DateTime::from_timestamp(1_800_000_000, 0).expect("a moment");
        let ago = |seconds| now - chrono::Duration::seconds(seconds);
        StatusFacts {
            now,
            newest_wal: Some(("000000010000000000000001".to_owned(), ago(60))),
            written_since: Some(true),
            newest_backup: Some(("b".to_owned(), ago(7200))),
            wal: Some(Ok(WalDirectory::default())),
            conflicts: 0,
            holes: vec![],
            promotion: None,
            last_expire: None,
        }
    }

    fn levels(facts: &StatusFacts) -> Vec<Level> {
        facts.judge(&Thresholds::default()).iter().map(|measure| measure.level).take(5).collect()
    }

    #[test]
    fn a_promotion_that_left_archived_rows_out_is_an_alarm_until_a_backup_follows() {
        let promotion = |end: &str, aimed| Promotion {
            timeline: TimelineId::new(2).expect("not zero"),
            parent: TimelineId::FIRST,
            fork: "0/5000000".parse().expect("a position"),
            aimed,
            archived_end: Some(end.parse().expect("a position")),
            missing: 0,
        };
        let judged = |promotion, ago: i64| {
            let when = facts().now - chrono::Duration::seconds(ago);
            let facts = StatusFacts { promotion: Some((promotion, when)), ..facts() };
            facts.judge(&Thresholds::default()).remove(5)
        };
        let short = judged(promotion("0/5000100", false), 60);
        assert_eq!((short.value, short.level), (Some(256), Level::Fail));
        assert!(short.text.contains("promoted short: timeline 2 left 1 at 0/5000000"), "{}", short.text);
        assert_eq!(judged(promotion("0/5000100", true), 60).level, Level::NotChecked, "somebody chose the place");
        assert_eq!(judged(promotion("0/5000000", false), 60).level, Level::NotChecked);
        // The backup began two hours ago.
        assert_eq!(judged(promotion("0/5000100", false), 7300).level, Level::Ok);
        assert_eq!(facts().judge(&Thresholds::default())[5].value, None);
    }

    #[test]
    fn each_number_has_its_thresholds() {
        use Level::{Fail, NotChecked, Ok as Fine, Warn};
        assert_eq!(levels(&facts()), [Fine; 5]);
        assert_eq!(levels(&StatusFacts { conflicts: 1, ..facts() }), [Fine, Fine, Fine, Fail, Fine]);
        assert_eq!(levels(&StatusFacts { holes: vec!["x".to_owned()], ..facts() }), [Fine, Fine, Fine, Fine, Fail]);
        let now = facts().now;
        let ago = |seconds| now - chrono::Duration::seconds(seconds);
        let wal = |seconds, written| StatusFacts {
            newest_wal: Some(("x".to_owned(), ago(seconds))),
            written_since: written,
            ..facts()
        };
        assert_eq!(levels(&wal(901, Some(true)))[0], Warn);
        assert_eq!(levels(&wal(3601, Some(true)))[0], Fail);
        assert_eq!(levels(&wal(3601, None))[0], Fail);
        assert_eq!(levels(&wal(360_000, Some(false)))[0], Fine);
        assert_eq!(levels(&wal(-5, Some(true)))[0], Fine);
        assert_eq!(levels(&StatusFacts { newest_wal: None, ..facts() })[0], Fail);
        let backup = |seconds| StatusFacts { newest_backup: Some(("b".to_owned(), ago(seconds))), ..facts() };
        assert_eq!(levels(&backup(27 * 3600))[1], Warn);
        assert_eq!(levels(&backup(9 * 86400))[1], Fail);
        assert_eq!(levels(&StatusFacts { newest_backup: None, ..facts() })[1], Fail);
        let ready = |ready| StatusFacts { wal: Some(Ok(WalDirectory { ready, ..Default::default() })), ..facts() };
        assert_eq!([16, 17, 129].map(|count| levels(&ready(count))[2]), [Fine, Warn, Fail]);
        assert_eq!(levels(&StatusFacts { wal: None, ..facts() })[2], NotChecked);
        assert_eq!(levels(&StatusFacts { wal: Some(Err("denied".to_owned())), ..facts() })[2], Warn);
    }

    #[test]
    fn an_expiry_that_no_longer_runs_is_told_where_one_ever_ran() {
        let judged = |days: i64| {
            let last_expire = Some(facts().now - chrono::Duration::seconds(days * 86400 + 1));
            StatusFacts { last_expire, ..facts() }.judge(&Thresholds::default()).remove(6)
        };
        assert_eq!([0, 8, 30].map(|days| judged(days).level), [Level::Ok, Level::Warn, Level::Fail]);
        let never = facts().judge(&Thresholds::default()).remove(6);
        assert_eq!((never.name, never.value, never.level), ("expire_age", None, Level::NotChecked));
    }

    #[test]
    fn a_backups_name_says_when_it_began() {
        let moment = began("20261121T083000Z-0a1b2c").expect("a moment");
        assert_eq!(moment.to_rfc3339(), "2026-11-21T08:30:00+00:00");
        assert_eq!(began("other"), None);
    }
}
