//! The recovery settings that a restored directory starts with.
//!
//! They are written to `postgresql.auto.conf`, which the server reads last and wherever its configuration is. What the
//! copy inherited of recovery settings is taken out; every target but the one that is meant is set to nothing, because
//! two targets are fatal.
//!
//! Source: "Recovery" and "Recovery Target" in the manual's chapter on server configuration; `CheckRequiredParameterValues`
//! in `src/backend/access/transam/xlogrecovery.c`.

use std::path::{Path, PathBuf};

use super::configuration::KeptConfiguration;
use super::plan::Plan;
use super::target::{Purpose, Target};
use crate::format::manifest::Limits;
use crate::pg::configuration_file::{self, ConfigurationSource, Language, Statement, quoted, statements};

/// What the server does when it has reached its target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetAction {
    /// Waits, open for reading, for `pg_wal_replay_resume()`.
    #[default]
    Pause,
    /// Opens for writing on a new timeline.
    Promote,
    /// Stops.
    Shutdown,
}

impl TargetAction {
    /// PostgreSQL's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            TargetAction::Pause => "pause",
            TargetAction::Promote => "promote",
            TargetAction::Shutdown => "shutdown",
        }
    }
}

/// The command that the restored server fetches WAL with, as words.
#[derive(Clone, Debug)]
pub struct RecoveryCommand {
    /// The absolute binary and its arguments, without PostgreSQL's placeholders. No secrets.
    pub words: Vec<String>,
}

impl RecoveryCommand {
    /// Returns the shell command, placeholders and all.
    pub fn shell(&self) -> String {
        let words: Vec<String> = self.words.iter().map(|word| shell_word(word)).collect();
        // `%` is PostgreSQL's; a literal one is doubled.
        format!("{} %f \"%p\"", words.join(" ").replace('%', "%%"))
    }
}

fn shell_word(word: &str) -> String {
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+=:@,".contains(c));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

const CLEARED: [&str; 13] = [
    "restore_command",
    "recovery_target",
    "recovery_target_time",
    "recovery_target_lsn",
    "recovery_target_xid",
    "recovery_target_name",
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "recovery_target_action",
    "primary_conninfo",
    "primary_slot_name",
    "archive_cleanup_command",
    "recovery_end_command",
];

/// Every target of PostgreSQL's; all but one are set to nothing.
const TARGETS: [&str; 5] =
    ["recovery_target", "recovery_target_time", "recovery_target_lsn", "recovery_target_xid", "recovery_target_name"];

/// Defaults of the settings that recovery compares, as `initdb` leaves them.
const LIMIT_DEFAULTS: [(&str, u32); 5] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];

/// Returns whether a setting is one that recovery depends on: walvault writes it, and nobody else.
pub fn is_ours(name: &str) -> bool {
    CLEARED.contains(&name)
}

/// What the operator decides about the running copy.
#[derive(Clone, Debug)]
pub(super) struct Choices<'a> {
    pub command: &'a RecoveryCommand,
    pub action: TargetAction,
    pub primary_conninfo: Option<&'a str>,
    /// Further settings, which the operator chose.
    pub settings: &'a [(String, String)],
    /// Whether a tablespace lies in the data directory itself.
    pub tablespaces_in_place: bool,
}

/// Returns the settings in order, each name once.
pub(super) fn settings(plan: &Plan, choices: &Choices<'_>, configuration: &Configuration) -> Vec<(String, String)> {
    let mut settings = Settings::default();
    settings.set("restore_command", choices.command.shell());
    if plan.purpose == Purpose::Standby || choices.action == TargetAction::Pause {
        // Without it a pause at the target is a shutdown, and nobody can look at the copy.
        settings.set("hot_standby", "on");
    }
    if plan.manifest.envelope.major <= 15 {
        // A file left there by an earlier failover would end recovery, and open a copy that is to wait at its target. And
        // whoever finds the file removes it: a copy beside a standby would take its failover away.
        settings.set("promote_trigger_file", "");
    }
    match plan.purpose {
        Purpose::Standby => {
            for target in TARGETS {
                settings.set(target, "");
            }
            // A standby follows every later failover, and a target would leave it paused there.
            settings.set("recovery_target_timeline", "latest");
            settings.set("primary_conninfo", choices.primary_conninfo.unwrap_or_default());
            settings.set("primary_slot_name", "");
        }
        Purpose::Primary | Purpose::Clone => {
            let (name, value) = target(plan);
            // The one that is meant comes last: PostgreSQL calls two targets given as soon as any other is set after
            // it, if only to nothing (`error_multiple_recovery_targets`).
            for other in TARGETS.into_iter().filter(|other| *other != name) {
                settings.set(other, "");
            }
            settings.set(name, value);
            // A position is that of the last record to replay, whichever way it was asked for.
            let left_out = match plan.target {
                Target::Lsn(_) => false,
                Target::BeforeDrop(_) | Target::BeforeLoss(_) => true,
                _ => plan.exclusive,
            };
            settings.set("recovery_target_inclusive", if left_out { "off" } else { "on" });
            // Always a number: `latest` follows a timeline that an earlier recovery of the same backup made. Decimal.
            settings.set("recovery_target_timeline", plan.timeline().to_string());
            settings.set("recovery_target_action", choices.action.as_str());
            // A standby's choice, which would hold back every commit on the way to the target as well.
            settings.set("recovery_min_apply_delay", "0");
            settings.set("primary_conninfo", "");
            settings.set("primary_slot_name", "");
        }
    }
    settings.set("archive_cleanup_command", "");
    settings.set("recovery_end_command", "");
    if plan.purpose == Purpose::Clone {
        silence(&mut settings, plan.manifest.envelope.major);
    }
    if choices.tablespaces_in_place {
        // Or recovery ends in a panic (`CheckTablespaceDirectory`), wherever the option was set when they were made.
        settings.set("allow_in_place_tablespaces", "on");
    }
    for (name, value) in choices.settings {
        settings.set(name, value.as_str());
    }
    for (name, needed) in plan.limits.named() {
        let chosen = choices.settings.iter().rfind(|(chosen, _)| chosen == name);
        let enough = chosen.is_some_and(|(_, value)| value.parse::<u32>().is_ok_and(|value| value >= needed));
        if !enough && !configuration.grants(name, needed) {
            settings.set(name, needed.to_string());
        }
    }
    settings.0
}

/// Everything by which a clone could reach the world that it was copied from: what it sends, and the files of the original
/// outside the data directory that it would write to.
fn silence(settings: &mut Settings, major: u16) {
    settings.set("archive_mode", "off");
    settings.set("archive_command", "");
    if major >= 15 {
        settings.set("archive_library", "");
    }
    settings.set("synchronous_standby_names", "");
    settings.set("max_logical_replication_workers", "0");
    settings.set("external_pid_file", "");
    settings.set("log_directory", "log");
    if major <= 14 {
        // A server empties it when it starts.
        settings.set("stats_temp_directory", "pg_stat_tmp");
    }
}

#[derive(Default)]
struct Settings(Vec<(String, String)>);

impl Settings {
    fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }
}

fn target(plan: &Plan) -> (&'static str, String) {
    match &plan.target {
        Target::Latest | Target::Lsn(_) | Target::BeforeDrop(_) | Target::BeforeLoss(_) => {
            ("recovery_target_lsn", plan.point.record.to_string())
        }
        // With its zone: the server would read it in its own otherwise.
        Target::Time(time) => ("recovery_target_time", time.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()),
        Target::Xid(xid) => ("recovery_target_xid", xid.to_string()),
        Target::Name(name) => ("recovery_target_name", name.clone()),
        Target::BackupEnd => ("recovery_target", "immediate".to_owned()),
    }
}

/// The configuration that the copy will start with, as far as it can be read.
#[derive(Debug, Default)]
pub(super) struct Configuration {
    /// Every setting but those of `postgresql.auto.conf`, in the order of reading; `None` if they cannot be known.
    main: Option<Vec<(String, String)>>,
    auto: String,
}

/// Where the main file is.
pub(super) enum MainFile<'a> {
    /// In the data directory, with whatever it includes as it is on this host.
    Inside,
    /// Put up from the backup.
    PutUp(&'a KeptConfiguration),
    /// Whatever the server will be started with.
    Unknown,
}

/// Files as a server on this host would read them.
struct Disk;

impl ConfigurationSource for Disk {
    fn file(&mut self, path: &Path) -> Option<Vec<u8>> {
        std::fs::read(path).ok()
    }

    fn names(&mut self, path: &Path) -> Option<Vec<PathBuf>> {
        let entries = std::fs::read_dir(path).ok()?;
        entries.map(|entry| Some(PathBuf::from(entry.ok()?.file_name()))).collect()
    }
}

impl Configuration {
    pub fn read(directory: &Path, main: &MainFile<'_>) -> std::io::Result<Self> {
        let auto = match std::fs::read(directory.join("postgresql.auto.conf")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let main = match main {
            MainFile::Inside => configuration_file::settings(&directory.join("postgresql.conf"), &mut Disk),
            MainFile::PutUp(kept) => kept.settings(),
            MainFile::Unknown => None,
        };
        Ok(Self { main, auto: String::from_utf8_lossy(&auto).into_owned() })
    }

    /// Returns the main file's last word on a setting.
    pub fn main_setting(&self, name: &str) -> Option<&str> {
        let settings = self.main.as_ref()?;
        settings.iter().rfind(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Whether a server archives with these settings on top; `None` if that cannot be known. A command that is there counts,
    /// whatever it does.
    pub fn archives(&self, settings: &[(String, String)]) -> Option<bool> {
        let of = |found: &[(String, String)], name: &str| {
            found.iter().rfind(|(set, _)| set == name).map(|(_, value)| value.clone())
        };
        let auto: Vec<(String, String)> = self.auto.lines().filter_map(assignment).collect();
        // PostgreSQL's own default, for each, is nothing or off.
        let main = |name: &str| self.main.as_ref().map(|main| of(main, name).unwrap_or_default());
        let last = |name: &str| of(settings, name).or_else(|| of(&auto, name)).or_else(|| main(name));
        match last("archive_mode")?.to_ascii_lowercase().as_str() {
            "on" | "always" | "true" | "yes" | "1" => {}
            _ => return Some(false),
        }
        let empty = |name: &str| last(name).map(|value| value.is_empty());
        Some(!empty("archive_command")? || !empty("archive_library")?)
    }

    /// Whether a limit is known to be high enough. A configuration that is not known says nothing.
    fn grants(&self, name: &str, needed: u32) -> bool {
        let Some(main) = &self.main else { return false };
        let default = LIMIT_DEFAULTS.iter().find(|(known, _)| *known == name).map_or(0, |(_, default)| *default);
        let auto = self.auto.lines().filter_map(assignment);
        let last = main.iter().cloned().chain(auto).rfind(|(found, _)| found == name);
        last.map_or(Some(default), |(_, value)| value.parse().ok()).is_some_and(|value: u32| value >= needed)
    }

    /// Returns the new `postgresql.auto.conf`: what was in it but for the settings that are written now or cleared.
    pub fn auto_with(&self, settings: &[(String, String)]) -> String {
        let replaced = |name: &str| CLEARED.contains(&name) || settings.iter().any(|(set, _)| set == name);
        let mut text: String = self
            .auto
            .lines()
            .filter(|line| !assignment(line).is_some_and(|(name, _)| replaced(&name)))
            .flat_map(|line| [line, "\n"])
            .collect();
        text.push_str("# written by walvault restore\n");
        for (name, value) in settings {
            text.push_str(&line(name, value));
            text.push('\n');
        }
        text
    }
}

fn line(name: &str, value: &str) -> String {
    format!("{name} = {}", quoted(value))
}

/// Returns the line that sets a plan's target.
pub(super) fn target_line(plan: &Plan) -> String {
    let (name, value) = target(plan);
    line(name, &value)
}

/// Reads a line that sets something.
fn assignment(line: &str) -> Option<(String, String)> {
    match statements(Language::Settings, line.as_bytes()).pop()? {
        Statement::Set(name, value) => Some((name, value)),
        Statement::Reference(_) => None,
    }
}

/// Returns those limits that differ, for messages.
pub(super) fn raised(settings: &[(String, String)], limits: Limits) -> Vec<String> {
    let named = limits.named();
    let is_limit = |name: &str| named.iter().any(|(known, _)| *known == name);
    settings.iter().filter(|(name, _)| is_limit(name)).map(|(name, value)| format!("{name} = {value}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(main: &str, auto: &str) -> Configuration {
        let main = main.lines().filter_map(assignment).collect();
        Configuration { main: Some(main), auto: auto.to_owned() }
    }

    #[test]
    fn a_command_survives_the_shell_and_the_configuration_file() {
        let words = ["/opt/my tools/walvault", "--repo", "file:///a%20b", "wal", "fetch"];
        let command = RecoveryCommand { words: words.map(str::to_owned).to_vec() };
        assert_eq!(command.shell(), "'/opt/my tools/walvault' --repo 'file:///a%%20b' wal fetch %f \"%p\"");
        let settings = [("restore_command".to_owned(), command.shell())];
        let text = configuration("", "restore_command = 'old'\nport = 5433\n").auto_with(&settings);
        assert!(text.starts_with("port = 5433\n"), "{text}");
        assert!(text.contains("restore_command = '''/opt/my tools/walvault'' --repo"), "{text}");
    }

    #[test]
    fn inherited_recovery_settings_go() {
        let auto = "primary_conninfo = 'host=old'\nRecovery_Target_Time='x'\nwork_mem = '4MB'\n";
        assert_eq!(configuration("", auto).auto_with(&[]), "work_mem = '4MB'\n# written by walvault restore\n");
    }

    #[test]
    fn a_copy_archives_only_where_its_configuration_says_so() {
        let on = "archive_mode = on\narchive_command = 'walvault wal push \"%p\"'\n";
        let none: [(String, String); 0] = [];
        let set = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
        assert_eq!(configuration(on, "").archives(&none), Some(true));
        assert_eq!(configuration("", on).archives(&none), Some(true));
        assert_eq!(configuration(&on.replace("= on", "= Always"), "").archives(&none), Some(true));
        assert_eq!(configuration("archive_mode = on\narchive_library = 'x'\n", "").archives(&none), Some(true));
        // A server that never archived, one whose archiving somebody switched off, one without a command.
        assert_eq!(configuration("", "").archives(&none), Some(false));
        assert_eq!(configuration(on, "archive_mode = off\n").archives(&none), Some(false));
        assert_eq!(configuration(on, "archive_command = ''\n").archives(&none), Some(false));
        assert_eq!(configuration(on, "").archives(&set("archive_mode", "off")), Some(false));
        assert_eq!(configuration(on, "archive_mode = off\n").archives(&set("archive_mode", "on")), Some(true));
        // What cannot be read is not known, unless what is read last decides.
        let unknown = Configuration { main: None, auto: String::new() };
        assert_eq!(unknown.archives(&none), None);
        assert_eq!(Configuration { main: None, auto: on.to_owned() }.archives(&none), Some(true));
        assert_eq!(unknown.archives(&set("archive_mode", "off")), Some(false));
    }

    #[test]
    fn a_limit_is_granted_only_by_what_can_be_read() {
        assert!(configuration("max_connections = 200 # many\n", "").grants("max_connections", 200));
        assert!(!configuration("max_connections = 200\n", "max_connections = '50'\n").grants("max_connections", 100));
        assert!(configuration("#max_connections = 10\n", "").grants("max_connections", 100));
        assert!(!configuration("", "").grants("max_connections", 101));
        assert!(!Configuration::default().grants("max_connections", 1));
    }

    #[test]
    fn what_the_main_file_includes_counts_and_what_is_missing_makes_it_unknown() {
        let directory = std::env::temp_dir().join(format!("walvault-settings-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("conf.d")).expect("a scratch directory");
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).expect("a scratch file");
        let read = || Configuration::read(&directory, &MainFile::Inside).expect("readable");
        write("postgresql.conf", "max_connections = 50\ninclude_dir 'conf.d'\n");
        write("conf.d/a.conf", "max_connections = 200\n");
        assert!(read().grants("max_connections", 200) && !read().grants("max_connections", 201));
        write("postgresql.auto.conf", "max_connections = '20'\n");
        assert!(!read().grants("max_connections", 21));
        write("postgresql.conf", "include 'gone.conf'\n");
        assert!(!read().grants("max_connections", 1));
        let unknown = Configuration::read(&directory, &MainFile::Unknown).expect("readable");
        assert!(!unknown.grants("max_connections", 1));
        let _ = std::fs::remove_dir_all(&directory);
    }
}
