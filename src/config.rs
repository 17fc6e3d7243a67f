//! Settings: flags first, then `WALVAULT_*`, then one file a cluster, `/etc/walvault/<cluster>.toml`.
//!
//! None is needed when repository and cluster are given. Operators set budgets, never queue widths. Every key stands in
//! [`KEYS`] with its unit, range and default; a key that is not there is refused, or, where refusing would stop WAL from
//! moving, reported and passed over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod error;

pub use error::ConfigError;

use crate::retention::Policy;
use crate::store::{Access, Addressing, GcsAccess, Network, RetryPolicy, S3Access, StoreUrl};

/// A setting.
pub struct SettingKey {
    /// Its name in the file; in the environment it is `WALVAULT_` and the name in capitals.
    pub name: &'static str,
    /// What it is for, with its unit.
    pub help: &'static str,
    /// Its default, as text; empty for none.
    pub default: &'static str,
    /// Least and greatest value, for numbers.
    pub range: Option<(u64, u64)>,
}

const fn text(name: &'static str, help: &'static str) -> SettingKey {
    SettingKey { name, help, default: "", range: None }
}

const fn number(name: &'static str, default: &'static str, least: u64, most: u64, help: &'static str) -> SettingKey {
    SettingKey { name, help, default, range: Some((least, most)) }
}

const fn path(name: &'static str, default: &'static str, help: &'static str) -> SettingKey {
    SettingKey { name, help, default, range: None }
}

/// Every setting there is.
pub const KEYS: [SettingKey; 45] = [
    text("repo", "repository: file:///directory, s3://bucket/folder or gs://bucket/folder"),
    text("cluster", "name of the cluster in the repository"),
    text("pgdata", "data directory, where it cannot be found from the path or asked of the server"),
    number("compression_level", "3", 1, 19, "zstd level"),
    number("cpus", "0", 0, 1024, "threads for one command; 0 for as many as the machine has"),
    number(
        "memory",
        "0",
        0,
        1 << 20,
        "MiB that a backup or a restore may use, at least 40; 0 for 48, or 24 for each thread if that is more",
    ),
    number("attempt_timeout", "30", 1, 3600, "seconds for one request to the store"),
    number("push_timeout", "60", 1, 3600, "seconds for one wal push"),
    number("fetch_timeout", "300", 1, 86400, "seconds for one wal fetch in recovery"),
    number("hole_timeout", "90", 0, 86400, "seconds that wal fetch waits in recovery for a segment that must exist"),
    number("standby_timeout", "10", 1, 3600, "seconds for one wal fetch on a standby"),
    number(
        "standby_hole_timeout",
        "60",
        0,
        3600,
        "seconds that wal fetch waits on a standby when the archive is known to hold more",
    ),
    number(
        "owner_grace",
        "900",
        0,
        604_800,
        "seconds of silence after which another server may write a timeline; 0 for none: whoever comes may",
    ),
    number("wal_timeout", "300", 0, 86400, "seconds that a backup waits for its WAL to reach the archive"),
    text("s3_region", "region of the bucket; else AWS_REGION, AWS_DEFAULT_REGION, the profile's, us-east-1"),
    text("s3_endpoint", "server, as in https://s3.example.com; else AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS"),
    SettingKey {
        default: "auto",
        ..text(
            "s3_addressing",
            "where the bucket's name stands: path, virtual-host, or auto: in the host's name on AWS only",
        )
    },
    text("s3_storage_class", "storage class of what is stored, such as STANDARD_IA; else the bucket's"),
    text("s3_profile", "profile in ~/.aws; else AWS_PROFILE"),
    text("s3_access_key_id_file", "file with an access key's id, before all other credentials"),
    text("s3_secret_access_key_file", "file with its secret"),
    text("gcs_endpoint", "server, as in https://storage.example.com; else Google's"),
    text(
        "gcs_credentials_file",
        "file with a service account's key; else GOOGLE_APPLICATION_CREDENTIALS, gcloud's, metadata",
    ),
    text("gcs_storage_class", "storage class of what is stored, such as NEARLINE; else the bucket's"),
    text("ca_file", "PEM certificates to trust instead of the system's, for S3 and GCS; else AWS_CA_BUNDLE for S3"),
    text("proxy", "proxy for S3 and GCS, as in http://proxy:3128; else HTTPS_PROXY, HTTP_PROXY and NO_PROXY"),
    path("runtime_dir", "/run/walvault", "directory of the agent's socket"),
    path(
        "state_dir",
        "/var/lib/walvault",
        "directory of what tells this host from every other one that archives, and of what a push knows of a bucket; used if it exists",
    ),
    path("scratch_dir", "/var/cache/walvault", "directory where the agent keeps segments fetched ahead"),
    text("agent_group", "group that may use the agent's socket; by default only the agent's own user may"),
    text("agent_users", "users, by comma, that agent and commands believe besides their own and root"),
    number("look_ahead", "256", 0, 65536, "MiB of segments that the agent archives before PostgreSQL asks; 0 for none"),
    number("prefetch", "256", 0, 65536, "MiB of segments that the agent fetches before PostgreSQL asks; 0 for none"),
    number("backlog_level", "1", 1, 19, "zstd level of the agent while more than 32 segments wait, if that is lower"),
    number(
        "standby_push_delay",
        "60",
        0,
        86400,
        "seconds until a standby's agent pushes a segment that the archive lacks; it needs pgdata",
    ),
    number(
        "helper",
        "30",
        0,
        3600,
        "seconds without a request after which the helper ends that commands start where no agent runs; 0 for none",
    ),
    number("retain_backups", "0", 0, 1_000_000, "newest backups that expire keeps; 0: no such rule"),
    number("retain_days", "0", 0, 36500, "days of which expire keeps every moment; 0: no such rule"),
    number("retain_daily", "0", 0, 36500, "days of which expire keeps the last backup; 0: no such rule"),
    number("retain_weekly", "0", 0, 5200, "weeks of which expire keeps the last backup; 0: no such rule"),
    number("retain_monthly", "0", 0, 1200, "months of which expire keeps the last backup; 0: no such rule"),
    number("retain_yearly", "0", 0, 100, "years of which expire keeps the last backup; 0: no such rule"),
    number(
        "retain_wal_days",
        "0",
        0,
        36500,
        "days of which expire keeps the whole log; 0: from the oldest backup on that retain_backups or retain_days keeps",
    ),
    number("expire_grace", "86400", 0, 31_536_000, "seconds from when expire condemns something to its removal"),
    text("metrics_listen", "address and port on which the agent serves /metrics and /healthz"),
];

/// What the command line and the environment give.
#[derive(Debug, Default)]
pub struct Given<'a> {
    /// `--repo`.
    pub repository: Option<&'a str>,
    /// `--cluster`.
    pub cluster: Option<&'a str>,
    /// `--config`.
    pub file: Option<&'a Path>,
    /// The environment's `WALVAULT_*`, by lower-case name without the prefix.
    pub environment: BTreeMap<String, String>,
    /// Variables that the tools of the clouds read, as they are; see [`is_of_a_cloud`].
    pub clouds: BTreeMap<String, String>,
}

/// Whether a variable of the environment is one that the tools of a cloud read.
pub fn is_of_a_cloud(name: &str) -> bool {
    name.starts_with("AWS_") || ["GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "HOME"].contains(&name)
}

/// All settings of one command.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The repository's place, as written.
    pub repository: String,
    /// The repository's place.
    pub url: StoreUrl,
    /// The cluster.
    pub cluster: String,
    /// The file that was read, if one was.
    pub file: Option<PathBuf>,
    /// Keys that do not exist, where they were only to be reported.
    pub unknown: Vec<String>,
    /// How the store is reached.
    pub access: Access,
    values: BTreeMap<&'static str, String>,
}

impl Settings {
    /// Gathers the settings. Unknown keys are refused if `strict`, and reported in [`Settings::unknown`] if not.
    pub fn gather(given: &Given<'_>, strict: bool) -> Result<Self, ConfigError> {
        let cluster = given.cluster.map(str::to_owned).or_else(|| given.environment.get("cluster").cloned());
        let cluster = cluster.ok_or(ConfigError::NoCluster)?;
        let (file, named) = config_file(given, &cluster);
        let from_file = read_file(&file, named)?;
        let mut settings = Self {
            repository: String::new(),
            url: StoreUrl::Volume(PathBuf::new()),
            cluster,
            file: from_file.is_some().then(|| file.clone()),
            unknown: Vec::new(),
            access: Access::default(),
            values: BTreeMap::new(),
        };
        settings.take(from_file.unwrap_or_default(), &file.display().to_string(), strict)?;
        let own = given.environment.iter().filter(|(name, _)| *name != "config");
        settings.take(own.map(|(name, value)| (name.clone(), value.clone())).collect(), "the environment", strict)?;
        for key in &KEYS {
            settings.check(key)?;
        }
        let repository = given.repository.or(settings.values.get("repo").map(String::as_str));
        settings.repository = repository.ok_or(ConfigError::NoRepository { file })?.to_owned();
        settings.url = settings.repository.parse().map_err(|source| ConfigError::Url { source })?;
        settings.access = settings.access(&given.clouds)?;
        Ok(settings)
    }

    fn access(&self, clouds: &BTreeMap<String, String>) -> Result<Access, ConfigError> {
        let text = |name: &str| self.values.get(name).filter(|value| !value.is_empty()).cloned();
        let file = |name: &str| text(name).map(PathBuf::from);
        let addressing = match text("s3_addressing").as_deref() {
            None | Some("auto") => Addressing::Auto,
            Some("path") => Addressing::Path,
            Some("virtual-host") => Addressing::VirtualHost,
            Some(other) => {
                let (name, choices) = ("s3_addressing", "auto, path, virtual-host");
                return Err(ConfigError::Choice { name, value: other.to_owned(), choices });
            }
        };
        let s3 = S3Access {
            region: text("s3_region"),
            endpoint: text("s3_endpoint"),
            addressing,
            storage_class: text("s3_storage_class"),
            profile: text("s3_profile"),
            access_key_id_file: file("s3_access_key_id_file"),
            secret_access_key_file: file("s3_secret_access_key_file"),
        };
        let gcs = GcsAccess {
            endpoint: text("gcs_endpoint"),
            credentials_file: file("gcs_credentials_file"),
            storage_class: text("gcs_storage_class"),
        };
        let network = Network { ca_file: file("ca_file"), proxy: text("proxy") };
        Ok(Access { s3, gcs, network, environment: clouds.clone() })
    }

    fn take(&mut self, values: BTreeMap<String, String>, place: &str, strict: bool) -> Result<(), ConfigError> {
        for (name, value) in values {
            match KEYS.iter().find(|key| key.name == name) {
                Some(key) => {
                    self.values.insert(key.name, value);
                }
                None if strict => {
                    let nearest = nearest(&name);
                    return Err(ConfigError::Unknown { place: place.to_owned(), name, nearest });
                }
                None => self.unknown.push(format!(
                    "{place} sets {name}, which is no setting: passed over; did you mean {}?",
                    nearest(&name)
                )),
            }
        }
        Ok(())
    }

    fn check(&self, key: &SettingKey) -> Result<(), ConfigError> {
        let (Some((least, most)), Some(value)) = (key.range, self.values.get(key.name)) else { return Ok(()) };
        match value.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(()),
            _ => Err(ConfigError::Range { name: key.name, value: value.clone(), least, most }),
        }
    }

    /// Returns a number; its default if it is not set.
    fn number(&self, name: &'static str) -> u64 {
        let default = KEYS.iter().find(|key| key.name == name).map_or("0", |key| key.default);
        let value = self.values.get(name).map_or(default, String::as_str);
        value.parse().expect("checked when it was gathered")
    }

    /// Returns a time.
    pub fn seconds(&self, name: &'static str) -> Duration {
        Duration::from_secs(self.number(name))
    }

    /// Returns a text; its default if it is not set, `None` if it has none.
    fn text(&self, name: &'static str) -> Option<&str> {
        let default = KEYS.iter().find(|key| key.name == name).map_or("", |key| key.default);
        Some(self.values.get(name).map_or(default, String::as_str)).filter(|text| !text.is_empty())
    }

    /// Directory of the agent's socket.
    pub fn runtime_directory(&self) -> PathBuf {
        self.text("runtime_dir").map_or_else(PathBuf::new, PathBuf::from)
    }

    /// Directory of what tells this host from every other one, and of what one command leaves to the next.
    pub fn state_directory(&self) -> Option<PathBuf> {
        self.text("state_dir").map(PathBuf::from)
    }

    /// Directory of segments fetched ahead.
    pub fn scratch_directory(&self) -> Option<PathBuf> {
        self.text("scratch_dir").map(PathBuf::from)
    }

    /// Group that may use the agent's socket.
    pub fn agent_group(&self) -> Option<&str> {
        self.text("agent_group")
    }

    /// Users that agent and commands believe.
    pub fn agent_users(&self) -> impl Iterator<Item = &str> {
        self.text("agent_users").unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty())
    }

    /// Where metrics are served.
    pub fn metrics_address(&self) -> Option<&str> {
        self.text("metrics_listen")
    }

    /// Returns a size in bytes of a key in MiB.
    pub fn mebibytes(&self, name: &'static str) -> u64 {
        self.number(name) << 20
    }

    /// zstd level of the agent under a backlog.
    pub fn backlog_level(&self) -> i32 {
        self.number("backlog_level") as i32
    }

    /// The data directory, if it is set.
    pub fn data_directory(&self) -> Option<PathBuf> {
        self.values.get("pgdata").map(PathBuf::from)
    }

    /// What expire keeps.
    pub fn retention(&self) -> Policy {
        Policy {
            backups: self.number("retain_backups"),
            days: self.number("retain_days"),
            daily: self.number("retain_daily"),
            weekly: self.number("retain_weekly"),
            monthly: self.number("retain_monthly"),
            yearly: self.number("retain_yearly"),
            wal_days: self.number("retain_wal_days"),
            grace: self.seconds("expire_grace"),
        }
    }

    /// zstd level.
    pub fn compression_level(&self) -> i32 {
        self.number("compression_level") as i32
    }

    /// Threads for one command.
    pub fn threads(&self) -> usize {
        match self.number("cpus") as usize {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            cpus => cpus,
        }
    }

    /// Bytes that a backup or a restore may use; `mib` is what the command line says.
    pub fn memory(&self, mib: Option<u64>) -> u64 {
        let mib = match mib.unwrap_or_else(|| self.number("memory")) {
            0 => (24 * self.threads() as u64).max(48),
            mib => mib.max(40),
        };
        mib << 20
    }

    /// How requests are repeated when all together may take `budget`.
    pub fn retry_policy(&self, budget: Duration) -> RetryPolicy {
        RetryPolicy { attempt: self.seconds("attempt_timeout").min(budget), budget, ..RetryPolicy::default() }
    }
}

/// Where settings are, a file for each cluster.
const DIRECTORY: &str = "/etc/walvault";

/// Returns the file's place and whether the operator named it: one that was not named need not exist.
fn config_file(given: &Given<'_>, cluster: &str) -> (PathBuf, bool) {
    match given.file.map(Path::to_path_buf).or_else(|| given.environment.get("config").map(PathBuf::from)) {
        Some(file) => (file, true),
        None => (Path::new(DIRECTORY).join(format!("{cluster}.toml")), false),
    }
}

fn read_file(file: &Path, named: bool) -> Result<Option<BTreeMap<String, String>>, ConfigError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if !named && error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ConfigError::Unreadable { file: file.to_path_buf(), source }),
    };
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let begin = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(begin).filter(|byte| *byte == b'\n').count();
        ConfigError::Syntax { file: file.to_path_buf(), line, problem: error.message().replace('\n', " ") }
    })?;
    let plain = |value: toml::Value| match value {
        toml::Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(Some(table.into_iter().map(|(name, value)| (name, plain(value))).collect()))
}

/// Returns the key most like a misspelt one.
fn nearest(name: &str) -> &'static str {
    KEYS.iter().map(|key| key.name).min_by_key(|known| distance(name, known)).unwrap_or("repo")
}

/// Levenshtein's distance: how many letters must change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
