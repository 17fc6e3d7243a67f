//! The program under test, run as its operators and PostgreSQL run it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::process::{Outcome, Running, command, run};
use super::repo::TestRepo;
use super::scratch::run_directory;

/// Returns a copy of the program that every user may run; the build folder need not be readable for all.
///
/// `WALVAULT_TEST_PROGRAM` names another program to put to the test, such as the static one that is handed out.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let copy = run_directory().join("walvault");
        // Written by another process: a thread that forks while this one has the file open for writing
        // would keep it from being run.
        let status = Command::new("/usr/bin/install")
            .args(["-m", "755"])
            .arg(std::env::var_os("WALVAULT_TEST_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_walvault").into()))
            .arg(&copy)
            .status()
            .expect("install runs");
        assert!(status.success(), "copy the program to {copy:?}: {status}");
        copy
    })
}

/// How the program is called: with which repository, from where, with what around it.
#[derive(Debug, Clone, Default)]
pub struct Walvault {
    repository: Option<String>,
    cluster: Option<String>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
}

impl Walvault {
    /// Calls that name no repository and no cluster.
    pub fn bare() -> Self {
        Self::default()
    }

    /// Calls on `repo`, for the cluster `main`.
    pub fn on(repo: &TestRepo) -> Self {
        Self::bare().repository(repo.url()).cluster("main")
    }

    /// Names the repository by URL.
    pub fn repository(mut self, url: impl Into<String>) -> Self {
        self.repository = Some(url.into());
        self
    }

    /// Names the cluster.
    pub fn cluster(mut self, cluster: impl Into<String>) -> Self {
        self.cluster = Some(cluster.into());
        self
    }

    /// Adds an environment variable; there are no others but PATH, HOME, LC_ALL and TZ.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory, which PostgreSQL makes the data directory.
    pub fn in_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Runs the program to its end.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Outcome {
        run(self.command(arguments))
    }

    /// Starts the program and leaves it running.
    #[track_caller]
    pub fn start<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Running {
        Running::start(self.command(arguments))
    }

    /// Returns the command that would be run.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = command(binary());
        command.args(self.globals()).args(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Returns an `archive_command` that pushes here.
    pub fn archive_command(&self) -> String {
        format!("{} wal push \"%p\"", self.words())
    }

    /// Returns a `restore_command` that fetches from here.
    pub fn restore_command(&self) -> String {
        format!("{} wal fetch %f \"%p\"", self.words())
    }

    /// Returns the program and its global options for a shell.
    fn words(&self) -> String {
        let quoted = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
        let program = binary().to_str().expect("the run's directory is plain text");
        let words = std::iter::once(program.to_owned()).chain(self.globals());
        words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" ")
    }

    fn globals(&self) -> Vec<String> {
        let mut globals = Vec::new();
        for (option, value) in [("--repo", &self.repository), ("--cluster", &self.cluster)] {
            globals.extend(value.iter().flat_map(|value| [option.to_owned(), value.clone()]));
        }
        globals
    }
}
