//! The whole story on a scratch server: backup, accident, recovery, standby.
//!
//! Everything goes through the command line that operators type, so what is shown is what they will see; only the bank's
//! own business is plain SQL. Each claim is compared with the server's rows before it is told, and the first that does
//! not hold ends the story. Whatever way it ends, its processes and files go with it ([`stage`]).
//!
//! Words and colours are `view`'s; what happens is told as [`Scene`]s.

mod bank;
mod error;
mod lines;
mod scene;
mod sql;
mod stage;
mod user;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::Value;

pub use error::{DemoError, DemoFailure};
pub use lines::archiving_lines;
pub use scene::{Cost, Evidence, Proof, Scene, Step, Summary};

use crate::instance::Programs;
use crate::pg::lsn::Lsn;
use lines::{quoted, shell_word};
use sql::Sql;
use stage::{Interrupt, Stage, WhenInterrupted};

/// Bytes in a WAL segment of the scratch server: the least there is, so that a short story fills many.
const SEGMENT_BYTES: u64 = 1 << 20;
const RESTORE_POINT: &str = "before_the_accident";
/// Payments before the backup, after it, and after the restore point.
const PAYMENTS: [u64; 3] = [20_000, 30_000, 2_500];
/// Ports number sockets here; nobody listens on the network.
const PORT: u16 = 5432;
const STANDBY_PORT: u16 = 5433;
/// How long anything may take that takes a moment.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the story needs from outside.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// This binary.
    pub program: PathBuf,
    /// Folder of PostgreSQL's programs, if it was given.
    pub pg_bin: Option<PathBuf>,
    /// Folders in which programs are looked for.
    pub path: Vec<PathBuf>,
    /// Where the scratch directory may be created, the best place first.
    pub parents: Vec<PathBuf>,
    /// Variables that commands inherit; none of libpq's, and no setting.
    pub environment: Vec<(OsString, OsString)>,
    /// Whether the scratch directory stays.
    pub keep: bool,
}

/// Plays the story to its end, or until `interrupt` becomes true; returns once nothing of it is left.
///
/// # Errors
/// [`DemoFailure`] with the chapter, the reason and the servers' last words: also if a single proof does not hold.
pub fn demo(
    options: &DemoOptions,
    interrupt: &AtomicBool,
    tell: &mut dyn FnMut(Scene<'_>),
) -> Result<Summary, DemoFailure> {
    let interrupt = Interrupt(interrupt);
    let (stage, programs) =
        set(options, interrupt).map_err(|source| DemoFailure { step: None, source, logs: Vec::new() })?;
    let mut story = Story { stage: &stage, programs: &programs, tell, step: None, began: Instant::now() };
    story.play().map_err(|source| DemoFailure { step: story.step, source, logs: stage.logs() })
}

/// Finds PostgreSQL and a user to run it, and makes the scratch directory.
fn set<'a>(options: &DemoOptions, interrupt: Interrupt<'a>) -> Result<(Stage<'a>, Programs), DemoError> {
    let (programs, _) = Programs::for_new_server(options.pg_bin.as_deref(), &options.path)?;
    let user = user::server_user()?;
    let mut stage = Stage::create(&options.parents, user, &options.program, interrupt, options.keep)?;
    stage.set_environment(environment(options, &stage, programs.folder()));
    Ok((stage, programs))
}

/// What an operator of this server would have in the environment.
fn environment(options: &DemoOptions, stage: &Stage<'_>, programs: &Path) -> Vec<(OsString, OsString)> {
    let folders = std::iter::once(programs.as_os_str()).chain(options.path.iter().map(|folder| folder.as_os_str()));
    let path = folders.collect::<Vec<_>>().join(std::ffi::OsStr::new(":"));
    let mut environment = options.environment.clone();
    environment.extend([
        ("PATH".into(), path),
        ("HOME".into(), stage.directory().into()),
        ("LC_ALL".into(), "C".into()),
        ("PGHOST".into(), stage.path("run").into()),
        ("PGPORT".into(), PORT.to_string().into()),
        ("PGUSER".into(), "postgres".into()),
        ("WALVAULT_REPO".into(), repository_url(stage).into()),
        ("WALVAULT_CLUSTER".into(), "bank".into()),
    ]);
    environment
}

fn repository_url(stage: &Stage<'_>) -> String {
    format!("file://{}", stage.path("repository").display())
}

/// What was known right before the accident.
struct Before {
    evidence: Evidence,
    at: Lsn,
    moment: DateTime<Utc>,
}

struct Story<'a> {
    stage: &'a Stage<'a>,
    programs: &'a Programs,
    tell: &'a mut dyn FnMut(Scene<'_>),
    step: Option<Step>,
    began: Instant,
}

impl Story<'_> {
    fn play(&mut self) -> Result<Summary, DemoError> {
        let version = self.version()?;
        let stage = self.stage;
        (self.tell)(Scene::Opening {
            version: &version,
            programs: self.programs.folder(),
            directory: stage.directory(),
            user: stage.user().map(|user| user.name.as_str()),
        });
        self.server()?;
        let backup = self.backup()?;
        self.traffic()?;
        let before = self.accident()?;
        let (segments, wal) = self.archived()?;
        self.catalogue(&before)?;
        let rescue = self.rescue(&before)?;
        let (standby, followed) = self.standby()?;
        Ok(Summary {
            elapsed: self.began.elapsed(),
            version,
            backup,
            segments,
            wal,
            rescue,
            rescued: before.evidence,
            standby,
            followed,
            accident: before.moment,
        })
    }

    fn server(&mut self) -> Result<(), DemoError> {
        let began = self.begin(Step::Server);
        (self.tell)(Scene::Command(&format!(
            "export WALVAULT_REPO={} WALVAULT_CLUSTER=bank",
            repository_url(self.stage)
        )));
        self.walvault(&["init"])?;
        let data = self.stage.path("bank");
        let place = data.to_string_lossy();
        let segment = format!("--wal-segsize={}", SEGMENT_BYTES >> 20);
        let options = ["--data-checksums", &segment, "--encoding=UTF8", "--locale=C", "--auth=trust"];
        let quick = ["--username=postgres", "--no-sync", "-D", &place];
        self.postgresql("initdb", &[&options[..], &quick].concat())?;
        self.configure(&data)?;
        self.postgresql("pg_ctl", &["start", "-s", "-D", &place, "-l", "bank.log"])?;
        (self.tell)(Scene::Proven(Proof::Up { segment_bytes: SEGMENT_BYTES, elapsed: began.elapsed() }));
        Ok(())
    }

    /// Writes what any archiving server needs, and what keeps this one to itself.
    fn configure(&mut self, data: &Path) -> Result<(), DemoError> {
        let program = self.stage.path("walvault");
        let lines = archiving_lines(&program.to_string_lossy(), "");
        let sockets = self.stage.path("run");
        let own = [
            format!("unix_socket_directories = {}", quoted(&sockets.to_string_lossy())),
            "listen_addresses = ''".to_owned(),
            // Nothing in /dev/shm, which containers keep small.
            "dynamic_shared_memory_type = mmap".to_owned(),
            "shared_buffers = 16MB".to_owned(),
            "max_connections = 20".to_owned(),
        ];
        let path = data.join("postgresql.conf");
        let text =
            std::fs::read_to_string(&path).map(|text| format!("{text}{}\n{}\n", own.join("\n"), lines.join("\n")));
        let written = text.and_then(|text| std::fs::write(&path, text));
        written.map_err(|source| DemoError::Io { action: "write", path, source })?;
        (self.tell)(Scene::Configured(&lines));
        Ok(())
    }

    fn backup(&mut self) -> Result<Cost, DemoError> {
        self.begin(Step::Backup);
        let sql = self.connect(PORT)?;
        bank::open(&sql)?;
        self.pay(&sql, 0, PAYMENTS[0])?;
        let began = Instant::now();
        self.walvault(&["backup", "--fast"])?;
        let elapsed = began.elapsed();
        let list = self.json(&["list"])?;
        let of = |name: &str| list["backups"][0][name].as_u64().ok_or_else(|| answer("list --json", &list));
        Ok(Cost { bytes: of("bytes")?, stored_bytes: of("stored_bytes")?, elapsed })
    }

    fn traffic(&mut self) -> Result<(), DemoError> {
        self.begin(Step::Traffic);
        let sql = self.connect(PORT)?;
        let [first, second, third] = PAYMENTS;
        self.pay(&sql, first, second)?;
        let statement = format!("select pg_create_restore_point('{RESTORE_POINT}')");
        let at = lsn(sql.row("create the restore point", &format!("{statement}::text"))?.get(0)?, &statement)?;
        (self.tell)(Scene::RestorePoint { name: RESTORE_POINT, at });
        self.pay(&sql, first + second, third)?;
        self.prove_archiving(&sql)
    }

    fn prove_archiving(&mut self, sql: &Sql<'_>) -> Result<(), DemoError> {
        const WHAT: &str = "failures of archive_command";
        let row = sql.row(WHAT, "select archived_count, failed_count from pg_stat_archiver")?;
        let (segments, failed) = (row.get::<i64>(0)? as u64, row.get::<i64>(1)?);
        if failed != 0 {
            return Err(DemoError::Disproved { what: WHAT, expected: "none".to_owned(), found: failed.to_string() });
        }
        (self.tell)(Scene::Proven(Proof::Archiving { segments }));
        Ok(())
    }

    fn accident(&mut self) -> Result<Before, DemoError> {
        self.begin(Step::Accident);
        let sql = self.connect(PORT)?;
        let evidence = bank::evidence(&sql)?;
        let row = sql.row("ask for the position", "select pg_current_wal_insert_lsn()::text, clock_timestamp()")?;
        let before = Before { evidence, at: lsn(row.get(0)?, "pg_current_wal_insert_lsn()")?, moment: row.get(1)? };
        (self.tell)(Scene::Before { evidence: &before.evidence, at: before.at });
        (self.tell)(Scene::Statement("drop table payments;"));
        sql.batch("drop the table", "drop table payments")?;
        (self.tell)(Scene::Statement("select count(*) from payments;"));
        match sql.row("look for the table", "select count(*) from payments") {
            Err(DemoError::Sql { source, .. }) if source.as_db_error().is_some() => {
                let said =
                    source.as_db_error().map_or_else(String::new, |error| format!("ERROR:  {}", error.message()));
                (self.tell)(Scene::Output(&said));
            }
            Err(error) => return Err(error),
            Ok(_) => {
                let (expected, found) = ("no table".to_owned(), "a table".to_owned());
                return Err(DemoError::Disproved { what: "payments after DROP TABLE", expected, found });
            }
        }
        drop(sql);
        // Its last segment is archived on the way down.
        self.postgresql("pg_ctl", &["stop", "-s", "-D", &self.stage.path("bank").to_string_lossy()])?;
        Ok(before)
    }

    /// Proves that all WAL of the stopped server is in the archive; returns its segments, its bytes and those stored.
    fn archived(&mut self) -> Result<(u64, (u64, u64)), DemoError> {
        let waiting = self.stage.path("bank/pg_wal/archive_status");
        let left = std::fs::read_dir(&waiting);
        let left = left.map_err(|source| DemoError::Io { action: "list", path: waiting, source })?;
        let ready = left.flatten().filter(|entry| entry.path().extension().is_some_and(|kind| kind == "ready"));
        let ready: Vec<String> = ready.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let runs = self.json(&["wal", "list"])?;
        let found = runs["runs"].as_array().ok_or_else(|| answer("wal list --json", &runs))?;
        if !ready.is_empty() || found.len() != 1 {
            return Err(DemoError::Disproved {
                what: "the archive of the stopped server",
                expected: "one unbroken run of segments".to_owned(),
                found: format!("{} runs, and not archived: {}", found.len(), ready.join(", ")),
            });
        }
        let segments = found[0]["segments"].as_u64().ok_or_else(|| answer("wal list --json", &runs))?;
        (self.tell)(Scene::Proven(Proof::Archived { segments }));
        let stored = bytes_of_wal(&self.stage.path("repository"), false);
        Ok((segments, (segments * SEGMENT_BYTES, stored)))
    }

    fn catalogue(&mut self, before: &Before) -> Result<(), DemoError> {
        self.begin(Step::Catalogue);
        self.walvault(&["list"])?;
        self.walvault(&["timelines"])?;
        self.walvault(&["plan"])?;
        self.walvault(&["plan", "--to-name", RESTORE_POINT])?;
        self.walvault(&["plan", "--to-lsn", &before.at.to_string()])
    }

    fn rescue(&mut self, before: &Before) -> Result<Duration, DemoError> {
        self.begin(Step::Rescue);
        let began = Instant::now();
        let target = before.at.to_string();
        let as_primary = ["--as", "primary", "--target-action", "promote", "--start"];
        self.walvault(&[&["restore", "rescued", "--to-lsn", &target], &as_primary[..]].concat())?;
        let elapsed = began.elapsed();
        let sql = self.connect(PORT)?;
        bank::prove_rows(&sql, "the rescued payments", &before.evidence)?;
        (self.tell)(Scene::Proven(Proof::Rows(&before.evidence)));
        let accounts = bank::prove_books(&sql)?;
        (self.tell)(Scene::Proven(Proof::Books { accounts }));
        // What a promotion archives first: where the new timeline branched off.
        const HISTORY: &str = "the new timeline's history is archived";
        sql.wait_until(HISTORY, "select archived_count > 0 from pg_stat_archiver", PATIENCE)?;
        self.walvault(&["timelines"])?;
        Ok(elapsed)
    }

    fn standby(&mut self) -> Result<(Duration, Duration), DemoError> {
        self.begin(Step::Standby);
        let began = Instant::now();
        let conninfo = format!("host={} port={PORT} user=postgres", self.stage.path("run").display());
        let line = ["restore", "standby", "--as", "standby", "--primary-conninfo", &conninfo, "--start"];
        self.walvault_with(&[("PGPORT", &STANDBY_PORT.to_string())], &line)?;
        let primary = self.connect(PORT)?;
        const STREAMING: &str = "the standby streams";
        let streams = "select count(*) = 1 from pg_stat_replication where state = 'streaming'";
        primary.wait_until(STREAMING, streams, PATIENCE)?;
        let elapsed = began.elapsed();
        (self.tell)(Scene::Proven(Proof::Streaming));

        let standby = self.connect(STANDBY_PORT)?;
        let payment = PAYMENTS.iter().sum::<u64>() + 1;
        bank::pay(&primary, payment - 1, 1)?;
        let committed = Instant::now();
        let arrived = format!("select exists (select from payments where id = {payment})");
        standby.wait_until("a payment arrives on the standby", &arrived, PATIENCE)?;
        let followed = committed.elapsed();
        (self.tell)(Scene::Proven(Proof::Followed { payment, after: followed }));
        let evidence = bank::evidence(&primary)?;
        bank::prove_rows(&standby, "the payments on the standby", &evidence)?;
        (self.tell)(Scene::Proven(Proof::SameRows(&evidence)));
        Ok((elapsed, followed))
    }
}

/// The words that the chapters are told in.
impl<'a> Story<'a> {
    fn begin(&mut self, step: Step) -> Instant {
        self.step = Some(step);
        (self.tell)(Scene::Step(step));
        Instant::now()
    }

    fn version(&self) -> Result<String, DemoError> {
        let mut postgres = self.stage.command(self.programs.program("postgres"));
        postgres.arg("--version");
        let said = self.check("postgres --version", postgres, WhenInterrupted::End)?;
        // `postgres (PostgreSQL) 15.20 (Debian 15.20-1)`
        Ok(said.split_whitespace().nth(2).unwrap_or("of an unknown version").to_owned())
    }

    fn pay(&mut self, sql: &Sql<'_>, last: u64, payments: u64) -> Result<(), DemoError> {
        bank::pay(sql, last, payments)?;
        (self.tell)(Scene::Paid { payments, of: last + payments });
        Ok(())
    }

    fn connect(&self, port: u16) -> Result<Sql<'a>, DemoError> {
        Sql::connect(&self.stage.path("run"), port, self.stage.interrupt())
    }

    /// Runs a command of this binary, as an operator would, and shows it.
    fn walvault(&mut self, words: &[&str]) -> Result<(), DemoError> {
        self.walvault_with(&[], words)
    }

    fn walvault_with(&mut self, variables: &[(&str, &str)], words: &[&str]) -> Result<(), DemoError> {
        let typed = variables.iter().map(|(name, value)| format!("{name}={value}"));
        let typed = typed.chain(["walvault".to_owned()]).chain(words.iter().map(|word| shell_word(word)));
        let line = typed.collect::<Vec<_>>().join(" ");
        (self.tell)(Scene::Command(&line));
        let mut command = self.stage.command(self.stage.path("walvault"));
        command.args(words).envs(variables.iter().copied());
        let said = self.check(&line, command, WhenInterrupted::End)?;
        (self.tell)(Scene::Output(&said));
        Ok(())
    }

    /// Asks this binary for JSON, and does not show it.
    fn json(&self, words: &[&str]) -> Result<Value, DemoError> {
        let mut command = self.stage.command(self.stage.path("walvault"));
        command.args(words).arg("--json");
        let line = format!("walvault {} --json", words.join(" "));
        let said = self.check(&line, command, WhenInterrupted::End)?;
        serde_json::from_str(&said).map_err(|_| DemoError::Answer { line, said })
    }

    /// Runs one of PostgreSQL's programs, as an operator would, and shows the command alone.
    fn postgresql(&mut self, program: &str, words: &[&str]) -> Result<(), DemoError> {
        let typed = std::iter::once(program.to_owned()).chain(words.iter().map(|word| shell_word(word)));
        let line = typed.collect::<Vec<_>>().join(" ");
        (self.tell)(Scene::Command(&line));
        let mut command = self.stage.command(self.programs.program(program));
        command.args(words);
        self.check(&line, command, WhenInterrupted::Finish).map(|_| ())
    }

    /// Runs a command that must succeed; returns what it said.
    fn check(&self, line: &str, command: Command, when: WhenInterrupted) -> Result<String, DemoError> {
        let (status, said) = self.stage.run(command, when)?;
        match status.success() {
            true => Ok(said),
            false => Err(DemoError::Command { line: line.to_owned(), status, said: said.trim_end().to_owned() }),
        }
    }
}

fn lsn(text: String, line: &str) -> Result<Lsn, DemoError> {
    text.parse().map_err(|_| DemoError::Answer { line: line.to_owned(), said: text })
}

fn answer(line: &str, value: &Value) -> DemoError {
    DemoError::Answer { line: line.to_owned(), said: value.to_string() }
}

/// Adds up the files below `wal` folders.
fn bytes_of_wal(directory: &Path, within: bool) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| {
        let path = entry.path();
        match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_of_wal(&path, within || path.ends_with("wal")),
            Ok(found) if within => found.len(),
            _ => 0,
        }
    });
    sizes.sum()
}
