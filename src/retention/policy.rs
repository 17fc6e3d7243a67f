//! What an operator wants to be kept, and which backups that means.
//!
//! Pure: the answer follows from what the lanes hold and from the time. Three rules stand above every policy: a backup that
//! cannot be restored counts for nothing; the newest one that can be is never given up, unless its lane has a successor
//! that fulfils the policy by itself; what cannot be read is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Datelike, Utc};

use super::holdings::{HeldBackup, LaneHoldings};
use crate::repo::{LaneId, StoredReading};

/// A lane that is silent for less has no successor, whatever the others hold.
const LEAST_SILENCE: chrono::Duration = chrono::Duration::days(7);
/// Servers' clocks and the store's may differ by as much without anything going too early.
const SLACK: chrono::Duration = chrono::Duration::hours(1);

/// What is to be kept. Zero means that the rule is not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// So many of the newest backups.
    pub backups: u64,
    /// Every moment of so many days.
    pub days: u64,
    /// The last backup of each of so many days that have one.
    pub daily: u64,
    /// Of so many weeks.
    pub weekly: u64,
    /// Of so many months.
    pub monthly: u64,
    /// Of so many years.
    pub yearly: u64,
    /// The whole log of so many days; zero for as far back as the backups of the first two rules reach.
    pub wal_days: u64,
    /// Time between the word that something goes and its removal.
    pub grace: Duration,
}

impl Policy {
    /// Whether any rule says which backups are kept. Without one nothing goes by policy.
    pub fn is_set(&self) -> bool {
        [self.backups, self.days, self.daily, self.weekly, self.monthly, self.yearly].iter().any(|rule| *rule > 0)
    }
}

/// A part of the calendar, in UTC, of which the last backup is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Calendar {
    /// A day.
    Day,
    /// A week, from Monday on.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Calendar {
    /// Returns the number of the part that a moment lies in; the next part has the next number.
    fn number(self, moment: DateTime<Utc>) -> i64 {
        let day = i64::from(moment.date_naive().num_days_from_ce());
        match self {
            Calendar::Day => day,
            // The first day of the common era was a Monday.
            Calendar::Week => (day - 1).div_euclid(7),
            Calendar::Month => i64::from(moment.year()) * 12 + i64::from(moment.month0()),
            Calendar::Year => i64::from(moment.year()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Calendar::Day => "day",
            Calendar::Week => "week",
            Calendar::Month => "month",
            Calendar::Year => "year",
        }
    }
}

/// Why a backup is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// An operator says so.
    Pinned(String),
    /// It is restored now, or a recovery that began with it goes on.
    Read(String),
    /// It is among the newest.
    Count,
    /// It lies in the window.
    Window,
    /// The window's first moments are restored from it.
    WindowStart,
    /// It is the last one of a part of the calendar.
    Calendar(Calendar),
    /// It is the newest one of its lane that can be restored.
    Last,
    /// It cannot be restored now, and is younger than one that is kept.
    NotRestorable,
    /// No backup of its lane can be restored: none is given up for that.
    NoneRestorable,
    /// Nothing says which backups are kept.
    NoPolicy,
}

impl std::fmt::Display for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Keep::Pinned(words) => f.write_str(words),
            Keep::Read(words) => f.write_str(words),
            Keep::Count => f.write_str("one of the newest (retain_backups)"),
            Keep::Window => f.write_str("in the window (retain_days)"),
            Keep::WindowStart => f.write_str("the window begins after it (retain_days)"),
            Keep::Calendar(part) => write!(
                f,
                "the last of its {0} (retain_{1})",
                part.name(),
                match part {
                    Calendar::Day => "daily",
                    Calendar::Week => "weekly",
                    Calendar::Month => "monthly",
                    Calendar::Year => "yearly",
                }
            ),
            Keep::Last => f.write_str("the newest that can be restored"),
            Keep::NotRestorable => f.write_str("cannot be restored now, younger than one that is kept"),
            Keep::NoneRestorable => f.write_str("no backup of this lane can be restored now"),
            Keep::NoPolicy => f.write_str("no policy is set"),
        }
    }
}

/// Why a backup goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// No rule keeps it.
    Policy,
    /// No rule keeps it, and its lane has a successor.
    Succeeded(LaneId),
    /// It cannot be restored, and is older than every one that is kept.
    NotRestorable,
    /// An operator wants it to be gone.
    Forgotten,
}

impl std::fmt::Display for Go {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Go::Policy => f.write_str("no rule keeps it"),
            Go::Succeeded(lane) => write!(f, "no rule keeps it, and lane {lane} has succeeded"),
            Go::NotRestorable => f.write_str("cannot be restored, older than every one that is kept"),
            Go::Forgotten => f.write_str("forgotten by an operator"),
        }
    }
}

/// What becomes of one backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Why it is kept; empty if it goes.
    pub keeps: Vec<Keep>,
    /// Why it goes, if it does.
    pub goes: Option<Go>,
    /// Whether it can be restored, as far as listings tell.
    pub restorable: bool,
    /// Whether the log after it is kept too, and not only its own.
    pub continuous: bool,
}

impl Judged {
    /// Whether it stays.
    pub fn is_kept(&self) -> bool {
        self.goes.is_none()
    }
}

/// Returns what becomes of every backup that can be read, lane by lane, and which lane has succeeded each.
pub fn judge(
    lanes: &[LaneHoldings],
    policy: &Policy,
    forgotten: &BTreeSet<String>,
    now: DateTime<Utc>,
) -> Vec<(BTreeMap<String, Judged>, Option<LaneId>)> {
    let restorable: Vec<Vec<&HeldBackup>> = lanes.iter().map(LaneHoldings::restorable).collect();
    let judged = |place: usize| {
        let successor = successor(lanes, &restorable, place, policy, now);
        let one =
            OneLane { lane: &lanes[place], newest_first: newest_first(&restorable[place]), policy, now, successor };
        (one.judge(forgotten), successor)
    };
    (0..lanes.len()).map(judged).collect()
}

fn newest_first<'a>(backups: &[&'a HeldBackup]) -> Vec<&'a HeldBackup> {
    let mut sorted = backups.to_vec();
    sorted.sort_by(|a, b| (b.stopped_at, b.stop, &b.id).cmp(&(a.stopped_at, a.stop, &a.id)));
    sorted
}

/// Returns the lane that took over from one that has fallen silent, and fulfils the policy by itself.
fn successor(
    lanes: &[LaneHoldings],
    restorable: &[Vec<&HeldBackup>],
    place: usize,
    policy: &Policy,
    now: DateTime<Utc>,
) -> Option<LaneId> {
    if !policy.is_set() {
        return None;
    }
    let last_sign = lanes[place].last_sign()?;
    if now - last_sign < LEAST_SILENCE.max(days(policy.days)) {
        return None;
    }
    let fulfils = |other: &usize| {
        let own: Vec<_> = restorable[*other].iter().filter(|backup| backup.stopped_at > last_sign).collect();
        let reaches_back = own.iter().any(|backup| backup.stopped_at <= now - days(policy.days));
        own.len() as u64 >= policy.backups.max(1) && reaches_back
    };
    (0..lanes.len()).filter(|other| *other != place).find(fulfils).map(|other| lanes[other].lane)
}

fn days(days: u64) -> chrono::Duration {
    chrono::Duration::days(days.min(100_000) as i64)
}

/// Says who reads a backup, and until when at least.
pub(super) fn words_of(reading: &StoredReading) -> String {
    format!("read on {} until {} at least", reading.host(), reading.until().format("%Y-%m-%d %H:%M:%SZ"))
}

struct OneLane<'a> {
    lane: &'a LaneHoldings,
    /// Those that can be restored.
    newest_first: Vec<&'a HeldBackup>,
    policy: &'a Policy,
    now: DateTime<Utc>,
    successor: Option<LaneId>,
}

impl OneLane<'_> {
    fn judge(&self, forgotten: &BTreeSet<String>) -> BTreeMap<String, Judged> {
        let restorable: BTreeSet<&str> = self.newest_first.iter().map(|backup| backup.id.as_str()).collect();
        let mut keeps: BTreeMap<&str, Vec<Keep>> = BTreeMap::new();
        if self.policy.is_set() {
            self.count(&mut keeps);
            self.window(&mut keeps);
            self.calendar(&mut keeps);
            if let Some(last) = self.newest_first.first().filter(|_| self.successor.is_none()) {
                keeps.entry(&last.id).or_default().push(Keep::Last);
            }
            self.not_restorable(&restorable, &mut keeps);
        } else {
            self.lane.backups.iter().for_each(|backup| keeps.entry(&backup.id).or_default().push(Keep::NoPolicy));
        }
        let mut judged = BTreeMap::new();
        for backup in &self.lane.backups {
            let mut keeps = keeps.remove(backup.id.as_str()).unwrap_or_default();
            let restorable = restorable.contains(backup.id.as_str());
            let mut goes = match keeps.is_empty() {
                true => Some(match self.successor {
                    Some(lane) => Go::Succeeded(lane),
                    None if restorable => Go::Policy,
                    None => Go::NotRestorable,
                }),
                false => None,
            };
            if forgotten.contains(&backup.id) {
                goes = Some(Go::Forgotten);
            }
            // An operator's last word.
            if let Some(pin) = self.lane.pins.get(&backup.id).filter(|pin| pin.holds(self.now)) {
                keeps.insert(0, Keep::Pinned(pin.words()));
                goes = None;
            }
            // Nobody's word takes it from under whoever reads it now.
            if let Some(reading) = self.lane.readers_of(&backup.id).next() {
                keeps.insert(0, Keep::Read(words_of(reading)));
                goes = None;
            }
            if goes.is_some() {
                keeps.clear();
            }
            judged.insert(backup.id.clone(), Judged { keeps, goes, restorable, continuous: false });
        }
        self.continue_log(&mut judged);
        judged
    }

    fn count<'a>(&'a self, keeps: &mut BTreeMap<&'a str, Vec<Keep>>) {
        if self.successor.is_none() {
            for backup in self.newest_first.iter().take(self.policy.backups as usize) {
                keeps.entry(&backup.id).or_default().push(Keep::Count);
            }
        }
    }

    fn window<'a>(&'a self, keeps: &mut BTreeMap<&'a str, Vec<Keep>>) {
        if self.policy.days == 0 {
            return;
        }
        let begin = self.now - days(self.policy.days) - SLACK;
        for backup in self.newest_first.iter().filter(|backup| backup.stopped_at > begin) {
            keeps.entry(&backup.id).or_default().push(Keep::Window);
        }
        for branch in self.lane.branches_alive_since(begin) {
            let older = self.newest_first.iter().filter(|backup| backup.stopped_at <= begin);
            let mut own = older.filter(|backup| branch.holds(backup.timeline, backup.start, backup.stop));
            if let Some(base) = own.next() {
                let reasons = keeps.entry(&base.id).or_default();
                if !reasons.contains(&Keep::WindowStart) {
                    reasons.push(Keep::WindowStart);
                }
            }
        }
    }

    fn calendar<'a>(&'a self, keeps: &mut BTreeMap<&'a str, Vec<Keep>>) {
        let Policy { daily, weekly, monthly, yearly, .. } = *self.policy;
        for (part, wanted) in
            [(Calendar::Day, daily), (Calendar::Week, weekly), (Calendar::Month, monthly), (Calendar::Year, yearly)]
        {
            let mut seen: Vec<i64> = Vec::new();
            for backup in &self.newest_first {
                let number = part.number(backup.stopped_at);
                // Parts without a backup do not count, but where nothing is added any more they pass.
                let passed = self.successor.is_some() && part.number(self.now) - number >= wanted as i64;
                if seen.contains(&number) || seen.len() as u64 >= wanted || passed {
                    continue;
                }
                seen.push(number);
                keeps.entry(&backup.id).or_default().push(Keep::Calendar(part));
            }
        }
    }

    fn not_restorable<'a>(&'a self, restorable: &BTreeSet<&str>, keeps: &mut BTreeMap<&'a str, Vec<Keep>>) {
        let kept = self.newest_first.iter().filter(|backup| keeps.contains_key(backup.id.as_str()));
        let oldest = kept.map(|backup| backup.stopped_at).min();
        for backup in self.lane.backups.iter().filter(|backup| !restorable.contains(backup.id.as_str())) {
            match oldest {
                None if self.newest_first.is_empty() && self.successor.is_none() => {
                    keeps.entry(&backup.id).or_default().push(Keep::NoneRestorable);
                }
                Some(oldest) if backup.stopped_at >= oldest => {
                    keeps.entry(&backup.id).or_default().push(Keep::NotRestorable);
                }
                _ => {}
            }
        }
    }

    /// Marks the backups after which the log is kept.
    fn continue_log(&self, judged: &mut BTreeMap<String, Judged>) {
        let finest = [
            (Calendar::Day, self.policy.daily),
            (Calendar::Week, self.policy.weekly),
            (Calendar::Month, self.policy.monthly),
            (Calendar::Year, self.policy.yearly),
        ];
        let by_calendar = match self.policy.backups > 0 || self.policy.days > 0 {
            true => None,
            false => finest.into_iter().find(|(_, wanted)| *wanted > 0).map(|(part, _)| part),
        };
        let leads = |keep: &Keep| match keep {
            Keep::Count | Keep::Window | Keep::WindowStart | Keep::Last => true,
            Keep::NotRestorable | Keep::NoneRestorable | Keep::NoPolicy => true,
            Keep::Calendar(part) => by_calendar == Some(*part),
            Keep::Pinned(_) | Keep::Read(_) => false,
        };
        if self.policy.wal_days == 0 {
            judged.values_mut().for_each(|one| one.continuous = one.keeps.iter().any(leads));
            return;
        }
        let begin = self.now - days(self.policy.wal_days) - SLACK;
        let kept: Vec<&&HeldBackup> = self.newest_first.iter().filter(|backup| judged[&backup.id].is_kept()).collect();
        let mut continuous: BTreeSet<String> =
            kept.iter().filter(|backup| backup.stopped_at > begin).map(|backup| backup.id.clone()).collect();
        for branch in &self.lane.branches {
            let mut own = kept.iter().filter(|backup| branch.holds(backup.timeline, backup.start, backup.stop));
            continuous.extend(own.find(|backup| backup.stopped_at <= begin).map(|backup| backup.id.clone()));
        }
        for (id, one) in judged {
            let spared =
                one.keeps.iter().any(|keep| matches!(keep, Keep::NoneRestorable | Keep::NotRestorable | Keep::Last));
            one.continuous = one.is_kept() && (continuous.contains(id) || spared);
        }
    }
}
