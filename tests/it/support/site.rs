//! A server that archives into a repository, what is backed up of it, and what comes back.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::major::Major;
use super::pg::{ServerBuilder, TestServer};
use super::process::Outcome;
use super::repo::TestRepo;
use super::scratch::Scratch;
use super::snapshot::Snapshot;
use super::tool;
use super::walvault::Walvault;

/// One server and the repository that it archives into, as the cluster `main`.
#[derive(Debug)]
pub struct Site {
    /// The server.
    pub server: TestServer,
    /// The repository.
    pub repo: TestRepo,
    /// The program, called on that repository.
    pub walvault: Walvault,
}

impl Site {
    /// Starts a server of `major` with segments of 16 MiB.
    #[track_caller]
    pub fn start(major: Major) -> Self {
        Self::of(TestServer::builder(major))
    }

    /// Starts a server that archives.
    #[track_caller]
    pub fn of(builder: ServerBuilder) -> Self {
        let repo = TestRepo::new();
        let walvault = Walvault::on(&repo);
        walvault.run(["init"]).expect_ok();
        let server = builder.archive_command(walvault.archive_command()).start();
        Self { server, repo, walvault }
    }

    /// Takes a backup and returns what `--json` says of it.
    #[track_caller]
    pub fn backup(&self) -> Value {
        self.try_backup(&[]).expect_ok().json()
    }

    /// Tries to take a backup; further arguments come last.
    #[track_caller]
    pub fn try_backup(&self, arguments: &[&str]) -> Outcome {
        backup_of(&self.server, &self.walvault, arguments)
    }

    /// Returns the names of the backups that are listed, oldest first.
    #[track_caller]
    pub fn listed(&self) -> Vec<String> {
        let list = self.walvault.run(["list", "--json"]).expect_ok().json();
        let backups = list["backups"].as_array().expect("an array").iter();
        backups.map(|backup| backup["id"].as_str().expect("a name").to_owned()).collect()
    }

    /// Plans; panics unless the exit status is `code`.
    #[track_caller]
    pub fn plan(&self, arguments: &[&str], code: i32) -> Outcome {
        self.walvault.run(["plan", "--json"].iter().chain(arguments)).expect_code(code)
    }

    /// Restores into a new directory, which `pg_verifybackup` must accept; nothing is started.
    #[track_caller]
    pub fn restore(&self, arguments: &[&str]) -> Restored {
        let production = Production::of(&self.server);
        let restored = Restored::by(&self.walvault, self.server.major(), arguments);
        Restored { production: Some(production), ..restored }
    }

    /// Tries to restore into `directory`.
    #[track_caller]
    pub fn try_restore(&self, directory: &Path, arguments: &[&str]) -> Outcome {
        let words = [OsStr::new("restore"), OsStr::new("--json"), directory.as_os_str()];
        self.walvault.run(words.into_iter().chain(arguments.iter().map(OsStr::new)))
    }

    /// Panics unless a restore is refused with `code` and every one of `words`, and nothing is written.
    #[track_caller]
    pub fn expect_refused(&self, arguments: &[&str], code: i32, words: &[&str]) -> Outcome {
        let place = Scratch::new();
        let outcome = self.try_restore(&place.join("data"), arguments).expect_code(code);
        for word in words {
            assert!(outcome.stderr.contains(word), "{word:?} was expected\n{}", outcome.story());
        }
        assert!(!place.join("data").exists(), "{}", outcome.story());
        outcome
    }
}

/// Tries to take a backup of any server; further arguments come last.
#[track_caller]
pub fn backup_of(server: &TestServer, walvault: &Walvault, arguments: &[&str]) -> Outcome {
    let conninfo = server.conninfo();
    walvault.run(["backup", "--json", "--fast", "--dbname", &conninfo].iter().chain(arguments))
}

/// A restored directory, and the server over it.
#[derive(Debug)]
pub struct Restored {
    /// The server; not started until a test does.
    pub server: TestServer,
    /// What `restore --json` said: the plan, and what was done.
    pub report: Value,
    /// What it said to people.
    pub words: String,
    production: Option<Production>,
    place: Scratch,
}

/// The server that was copied, which a copy on the same host leaves as it is.
#[derive(Debug)]
struct Production {
    data: PathBuf,
    tablespaces: Vec<PathBuf>,
    /// What it held, if it was not running: then nothing but a copy can change it.
    at_rest: Option<Vec<(PathBuf, Snapshot)>>,
}

impl Production {
    fn of(server: &TestServer) -> Self {
        let (data, tablespaces) = (server.pgdata().to_owned(), tablespaces_of(server.pgdata()));
        let places = || tablespaces.iter().filter(|place| place.exists()).chain([&data]);
        let at_rest = || places().map(|place| (place.clone(), Snapshot::of(place))).collect();
        let at_rest = (!server.is_started()).then(at_rest);
        Self { data, tablespaces, at_rest }
    }

    /// Panics if the copy in `copy` leads into the original, or has changed it.
    #[track_caller]
    fn expect_left_alone(&self, copy: &Path) {
        for place in tablespaces_of(copy) {
            let shared = self.tablespaces.iter().chain([&self.data]).find(|own| place.starts_with(own));
            assert!(shared.is_none(), "the copy in {copy:?} has a tablespace in {place:?}, which is the original's");
        }
        for (place, before) in self.at_rest.iter().flatten() {
            before.expect_unchanged(place);
        }
    }
}

/// Returns where the tablespaces of a data directory are that are not in it.
fn tablespaces_of(data: &Path) -> Vec<PathBuf> {
    let links = fs::read_dir(data.join("pg_tblspc")).into_iter().flatten();
    links.filter_map(|link| fs::read_link(link.ok()?.path()).ok()).collect()
}

impl Restored {
    /// Restores with any call of the program.
    #[track_caller]
    pub fn by(walvault: &Walvault, major: Major, arguments: &[&str]) -> Self {
        Self::by_with_code(walvault, major, arguments, 0)
    }

    /// Restores with any call of the program, which leaves with this status.
    #[track_caller]
    pub fn by_with_code(walvault: &Walvault, major: Major, arguments: &[&str], code: i32) -> Self {
        let place = Scratch::new();
        let data = place.join("data");
        let words = [OsStr::new("restore"), OsStr::new("--json"), data.as_os_str()];
        let outcome = walvault.run(words.into_iter().chain(arguments.iter().map(OsStr::new))).expect_code(code);
        tool::verify_backup(major, &data).expect_ok();
        let report = outcome.json();
        Self { server: TestServer::over(major, &data), report, words: outcome.stderr, production: None, place }
    }

    /// Returns a path beside the data directory; nothing is created.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// Starts the server; it opens for writing.
    #[track_caller]
    pub fn promoted(&mut self) -> &TestServer {
        self.server.start();
        self.server.wait_until_writable();
        self.expect_original_left_alone();
        &self.server
    }

    /// Starts the server; it waits at its target.
    #[track_caller]
    pub fn paused(&mut self) -> &TestServer {
        self.server.start();
        self.server.wait_until("select pg_get_wal_replay_pause_state()", "paused");
        self.expect_original_left_alone();
        &self.server
    }

    #[track_caller]
    fn expect_original_left_alone(&self) {
        self.production.iter().for_each(|production| production.expect_left_alone(self.server.pgdata()));
    }

    /// Panics unless the server stands where the plan said: replayed to that position, or, once it has opened for
    /// writing, branched off there.
    #[track_caller]
    pub fn expect_planned_end(&self) {
        let reach = self.report["reach_lsn"].as_str().expect("a position");
        if self.server.query_one("select pg_is_in_recovery()") == "t" {
            assert_eq!(self.server.query_one("select pg_last_wal_replay_lsn()"), reach, "{:#}", self.report);
            return;
        }
        let planned = (self.report["timeline"].as_u64().expect("a number"), reach.to_owned());
        assert_eq!(branched_off(&self.server), planned, "{:#}", self.report);
    }

    /// Adds a line to `postgresql.auto.conf`, which wins over every other.
    #[track_caller]
    pub fn set(&self, name: &str, value: &str) {
        let file = OpenOptions::new().append(true).open(self.server.pgdata().join("postgresql.auto.conf"));
        let written = file.and_then(|mut file| writeln!(file, "{name} = '{value}'"));
        written.unwrap_or_else(|error| panic!("set {name}: {error}"));
    }

    /// Ends the server and lets PostgreSQL check every page.
    #[track_caller]
    pub fn expect_sound_pages(&mut self) {
        self.server.stop(super::Stop::Fast);
        tool::check_checksums(self.server.major(), self.server.pgdata()).expect_ok();
    }
}

/// Returns the parent of the timeline that a server writes, and where it branched off, by its history file.
#[track_caller]
pub fn branched_off(server: &TestServer) -> (u64, String) {
    let history = server.pgdata().join(format!("pg_wal/{:08X}.history", server.timeline()));
    let text = fs::read_to_string(&history).unwrap_or_else(|error| panic!("read {history:?}: {error}"));
    let last = text.lines().rfind(|line| !line.trim().is_empty()).expect("a history has a line");
    let mut fields = last.split('\t');
    let mut field = || fields.next().expect("parent, position, reason").to_owned();
    (field().parse().expect("a timeline is a number"), field())
}
