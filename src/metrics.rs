//! Every metric: its name, unit and help, and the text in which Prometheus reads them.
//!
//! A metric that is not in [`METRICS`] cannot be shown; alert rules in `deploy/` are tested against it. Labels are few
//! and closed. What happened is counted here and nowhere else.
//!
//! Source: the text format at <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only up, from 0 at the agent's start.
    Counter,
    /// Up and down.
    Gauge,
    /// A sum of seconds and how many they were, by step.
    Summary,
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, which ends in its unit.
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// What it says, for people.
    pub help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, help }
}

/// Every counter, in the order of [`Count`].
const COUNTERS: [Metric; 12] = [
    counter("walvault_wal_archived_files_total", "Files of WAL that are durable in the repository, found there or new"),
    counter("walvault_wal_archived_bytes_total", "Bytes of these files before compression"),
    counter("walvault_wal_stored_bytes_total", "Bytes of these files as they are stored"),
    counter("walvault_wal_push_failures_total", "Files that could not be archived when they were tried"),
    counter("walvault_wal_conflicts_total", "Files whose name was taken by other bytes"),
    counter("walvault_wal_fetched_files_total", "Files handed to a recovering server"),
    counter("walvault_wal_prefetch_hits_total", "Segments that were there before the server asked for them"),
    counter("walvault_wal_fetch_failures_total", "Files of which it could not be said whether they exist"),
    counter("walvault_store_retries_total", "Requests to the store that were made again after a failure"),
    counter("walvault_agent_declined_total", "Requests that a command had to carry out itself"),
    counter(
        "walvault_wal_backfilled_files_total",
        "Segments that the archive lacked and that were not asked for: of timelines before, or a standby's",
    ),
    counter("walvault_agent_refused_total", "Connections of users that are not allowed, or too many at once"),
];

/// Every gauge, in the order of [`Level`].
const GAUGES: [Metric; 6] = [
    gauge("walvault_wal_backlog_files", "Finished segments that wait to be archived"),
    gauge("walvault_wal_backlog_bytes", "Bytes of these segments"),
    gauge(
        "walvault_store_breaker_open",
        "1 while the store failed several times in a row and pushes are refused at once",
    ),
    gauge("walvault_wal_prefetched_bytes", "Bytes of segments that wait in the scratch directory"),
    gauge(
        "walvault_wal_promoted_short_bytes",
        "Bytes of the former timeline that were archived and that the last promotion left out; 0 is as it should be",
    ),
    gauge(
        "walvault_wal_promotion_missing_files",
        "Segments before the last promotion that neither the archive nor the new primary has; 0 is as it should be",
    ),
];

const NEWEST: Metric = gauge(
    "walvault_wal_newest_archived_age_seconds",
    "Seconds since the newest archived segment was written; missing until one is archived",
);
const STEPS: Metric = Metric {
    name: "walvault_step_duration_seconds",
    kind: Kind::Summary,
    help: "Seconds that a step took: push, look_ahead, fetch, prefetch",
};

/// Every metric there is.
pub const METRICS: [Metric; COUNTERS.len() + GAUGES.len() + 2] = {
    let mut all = [NEWEST; COUNTERS.len() + GAUGES.len() + 2];
    let mut at = 0;
    while at < COUNTERS.len() {
        all[at] = COUNTERS[at];
        at += 1;
    }
    let mut gauge = 0;
    while gauge < GAUGES.len() {
        all[at + gauge] = GAUGES[gauge];
        gauge += 1;
    }
    all[COUNTERS.len() + GAUGES.len() + 1] = STEPS;
    all
};

/// What a backup leaves in a file for the textfile collector of Prometheus' node exporter, in the order of
/// [`BackupFacts`]. A backup that failed or was not due keeps what the file says of the last one that was taken.
pub const BACKUP_METRICS: [Metric; 6] = [
    gauge("walvault_backup_last_attempt_timestamp_seconds", "When a backup was last begun, in seconds since 1970"),
    gauge("walvault_backup_last_attempt_failed", "1 if the last attempt failed; one that was not due did not"),
    gauge(
        "walvault_backup_last_success_timestamp_seconds",
        "When the last backup was committed, in seconds since 1970",
    ),
    gauge("walvault_backup_last_success_duration_seconds", "Seconds that it took"),
    gauge("walvault_backup_last_success_bytes", "Bytes that a restore of it writes"),
    gauge("walvault_backup_last_success_stored_bytes", "Bytes that it stored"),
];

/// Values of the first two of [`BACKUP_METRICS`], and of the others if a backup was taken.
#[derive(Clone, Copy, Debug)]
pub struct BackupFacts {
    /// When it was begun, in seconds since 1970.
    pub attempted: u64,
    /// Whether it failed.
    pub failed: bool,
    /// When it was committed, how long it took, its bytes, and how many were stored.
    pub taken: Option<[u64; 4]>,
}

/// Returns the text of a cluster's file; `before` is what the file held until now.
pub fn backup_text(cluster: &str, facts: BackupFacts, before: &str) -> String {
    let mut text = String::new();
    let taken = facts.taken.map(|values| values.map(Some)).unwrap_or_default();
    let values = [Some(facts.attempted), Some(u64::from(facts.failed))].into_iter().chain(taken);
    for (metric, value) in BACKUP_METRICS.iter().zip(values) {
        let series = series(metric.name, cluster);
        let kept = || value_of(&series, before);
        let Some(value) = value.or_else(kept) else { continue };
        let _ =
            writeln!(text, "# HELP {} {}\n# TYPE {} gauge\n{series} {value}", metric.name, metric.help, metric.name);
    }
    text
}

/// Names a metric of a cluster.
fn series(name: &str, cluster: &str) -> String {
    let label = cluster.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}{{cluster=\"{label}\"}}")
}

fn value_of(series: &str, text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

fn kept_value(metric: &Metric, cluster: &str, text: &str) -> u64 {
    value_of(&series(metric.name, cluster), text).unwrap_or(0)
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Files that became durable.
    ArchivedFiles,
    /// Their bytes.
    ArchivedBytes,
    /// Their bytes as stored.
    StoredBytes,
    /// Files that could not be archived.
    PushFailures,
    /// Names that were taken by other bytes.
    Conflicts,
    /// Files handed out.
    FetchedFiles,
    /// Of these, the ones that were fetched ahead.
    PrefetchHits,
    /// Files of which nothing could be said.
    FetchFailures,
    /// Requests made again.
    Retries,
    /// Requests that were left to the command.
    Declined,
    /// Segments that were back-filled.
    BackfilledFiles,
    /// Connections that were turned away.
    Refused,
}

/// What is measured now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Segments that wait.
    BacklogFiles,
    /// Their bytes.
    BacklogBytes,
    /// Whether the breaker is open.
    BreakerOpen,
    /// Bytes fetched ahead.
    PrefetchedBytes,
    /// Bytes that a promotion left out.
    PromotedShortBytes,
    /// Segments that a promotion lost.
    PromotionMissingFiles,
}

/// Levels that stay true when the process ends that found them out.
const KEPT_GAUGES: [Level; 2] = [Level::PromotedShortBytes, Level::PromotionMissingFiles];

/// A step whose time is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Archiving a file that was asked for.
    Push,
    /// Archiving one that was not yet.
    LookAhead,
    /// Fetching a file that was asked for.
    Fetch,
    /// Fetching one that was not yet.
    Prefetch,
}

impl Step {
    const ALL: [(Step, &'static str); 4] =
        [(Self::Push, "push"), (Self::LookAhead, "look_ahead"), (Self::Fetch, "fetch"), (Self::Prefetch, "prefetch")];
}

/// The values of one process.
#[derive(Debug, Default)]
pub struct Metrics {
    counters: [AtomicU64; COUNTERS.len()],
    gauges: [AtomicU64; GAUGES.len()],
    steps: [(AtomicU64, AtomicU64); Step::ALL.len()],
    /// Seconds since 1970 at which the newest archived segment was written; 0 for none.
    newest: AtomicU64,
}

impl Metrics {
    /// Counts.
    pub fn add(&self, count: Count, more: u64) {
        self.counters[count as usize].fetch_add(more, Ordering::Relaxed);
    }

    /// Returns what was counted.
    pub fn count(&self, count: Count) -> u64 {
        self.counters[count as usize].load(Ordering::Relaxed)
    }

    /// Notes a level.
    pub fn set(&self, level: Level, value: u64) {
        self.gauges[level as usize].store(value, Ordering::Relaxed);
    }

    /// Returns a level.
    pub fn level(&self, level: Level) -> u64 {
        self.gauges[level as usize].load(Ordering::Relaxed)
    }

    /// Notes how long a step took.
    pub fn took(&self, step: Step, time: Duration) {
        let (micros, count) = &self.steps[step as usize];
        micros.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes when an archived segment was written, in seconds since 1970.
    pub fn archived_written_at(&self, seconds: u64) {
        self.newest.fetch_max(seconds, Ordering::Relaxed);
    }

    /// Returns the text of the file in which a process leaves its counters to whoever counts after it, of a cluster's;
    /// `before` is what the file held until now. Of gauges it has those that tell of a promotion: they stay true.
    pub fn kept_text(&self, cluster: &str, before: &str) -> String {
        let mut text = String::new();
        let own = |values: &[AtomicU64], at: usize| values[at].load(Ordering::Relaxed);
        let counters = COUNTERS.iter().enumerate().map(|(at, metric)| {
            (metric, "counter", own(&self.counters, at).saturating_add(kept_value(metric, cluster, before)))
        });
        let gauges = KEPT_GAUGES.iter().map(|level| {
            let metric = &GAUGES[*level as usize];
            (metric, "gauge", own(&self.gauges, *level as usize).max(kept_value(metric, cluster, before)))
        });
        for (Metric { name, help, .. }, kind, value) in counters.chain(gauges) {
            let series = series(name, cluster);
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{series} {value}");
        }
        text
    }

    /// Goes on counting from what such a file says of a cluster.
    pub fn take_in(&self, cluster: &str, kept: &str) {
        for (metric, counter) in COUNTERS.iter().zip(&self.counters) {
            counter.fetch_add(kept_value(metric, cluster, kept), Ordering::Relaxed);
        }
        for level in KEPT_GAUGES {
            let kept = kept_value(&GAUGES[level as usize], cluster, kept);
            self.gauges[level as usize].fetch_max(kept, Ordering::Relaxed);
        }
    }

    /// Returns the text that Prometheus reads; `now` is in seconds since 1970.
    pub fn text(&self, now: u64) -> String {
        let mut text = String::new();
        let head = |metric: &Metric, text: &mut String| {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Summary => "summary",
            };
            let Metric { name, help, .. } = metric;
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let values = self.counters.iter().chain(&self.gauges);
        for (metric, value) in COUNTERS.iter().chain(&GAUGES).zip(values) {
            head(metric, &mut text);
            let _ = writeln!(text, "{} {}", metric.name, value.load(Ordering::Relaxed));
        }
        head(&NEWEST, &mut text);
        match self.newest.load(Ordering::Relaxed) {
            0 => {}
            newest => {
                let _ = writeln!(text, "{} {}", NEWEST.name, now.saturating_sub(newest));
            }
        }
        head(&STEPS, &mut text);
        for ((_, label), (micros, count)) in Step::ALL.iter().zip(&self.steps) {
            let seconds = micros.load(Ordering::Relaxed) as f64 / 1e6;
            let count = count.load(Ordering::Relaxed);
            let name = STEPS.name;
            let _ =
                writeln!(text, "{name}_sum{{step=\"{label}\"}} {seconds}\n{name}_count{{step=\"{label}\"}} {count}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_name_of_its_own_that_ends_in_its_unit() {
        let mut names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
        for metric in METRICS {
            let total = metric.name.ends_with("_total");
            assert_eq!(total, metric.kind == Kind::Counter, "{}", metric.name);
            let unit =
                ["_files", "_bytes", "_seconds", "_open", "_total"].iter().any(|unit| metric.name.ends_with(unit));
            assert!(unit && metric.name.starts_with("walvault_"), "{}", metric.name);
        }
    }

    #[test]
    fn a_backup_that_fails_keeps_what_is_known_of_the_last_one() {
        let taken = BackupFacts { attempted: 100, failed: false, taken: Some([160, 60, 9000, 700]) };
        let first = backup_text("main", taken, "nonsense");
        for line in [
            "walvault_backup_last_attempt_timestamp_seconds{cluster=\"main\"} 100",
            "walvault_backup_last_attempt_failed{cluster=\"main\"} 0",
            "walvault_backup_last_success_timestamp_seconds{cluster=\"main\"} 160",
            "walvault_backup_last_success_stored_bytes{cluster=\"main\"} 700",
        ] {
            assert!(first.lines().any(|shown| shown == line), "{line}\n{first}");
        }
        let failed = BackupFacts { attempted: 200, failed: true, taken: None };
        let second = backup_text("main", failed, &first);
        assert!(
            second.contains("failed{cluster=\"main\"} 1") && second.contains("timestamp_seconds{cluster=\"main\"} 160")
        );
        // Another cluster's values are not this one's.
        assert!(!backup_text("other", failed, &first).contains("160"));
        assert!(!backup_text("main", failed, "").contains("last_success"));
    }

    #[test]
    fn who_counts_after_others_goes_on_from_what_they_left() {
        let (first, second, agent) = (Metrics::default(), Metrics::default(), Metrics::default());
        first.add(Count::ArchivedFiles, 3);
        first.set(Level::PromotedShortBytes, 700);
        first.set(Level::BacklogFiles, 9);
        second.add(Count::ArchivedFiles, 4);
        second.add(Count::Refused, 1);
        let kept = second.kept_text("main", &first.kept_text("main", "nonsense"));
        assert!(kept.lines().any(|line| line == "walvault_wal_archived_files_total{cluster=\"main\"} 7"), "{kept}");
        assert!(!kept.contains("backlog"), "what waited then waits no more");
        agent.add(Count::ArchivedFiles, 1);
        agent.take_in("other", &kept);
        assert_eq!(agent.count(Count::ArchivedFiles), 1);
        agent.take_in("main", &kept);
        assert_eq!((agent.count(Count::ArchivedFiles), agent.count(Count::Refused)), (8, 1));
        assert_eq!(agent.level(Level::PromotedShortBytes), 700);
    }

    #[test]
    fn every_value_is_shown_under_its_own_name() {
        let metrics = Metrics::default();
        metrics.add(Count::ArchivedFiles, 1);
        metrics.add(Count::Refused, 2);
        metrics.set(Level::BacklogFiles, 3);
        metrics.set(Level::PrefetchedBytes, 4);
        metrics.took(Step::Prefetch, Duration::from_millis(1500));
        let text = metrics.text(1000);
        assert!(!text.contains("\nwalvault_wal_newest_archived_age_seconds "), "no segment was archived yet\n{text}");
        metrics.archived_written_at(990);
        metrics.archived_written_at(980);
        let text = text + &metrics.text(1000);
        for line in [
            "walvault_wal_archived_files_total 1",
            "walvault_agent_refused_total 2",
            "walvault_wal_backlog_files 3",
            "walvault_wal_prefetched_bytes 4",
            "walvault_wal_newest_archived_age_seconds 10",
            "walvault_step_duration_seconds_sum{step=\"prefetch\"} 1.5",
            "walvault_step_duration_seconds_count{step=\"prefetch\"} 1",
            "# TYPE walvault_wal_archived_files_total counter",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
        }
    }
}
