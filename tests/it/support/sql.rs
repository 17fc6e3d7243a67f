//! What a test says to a server in SQL, and what it waits for.
//!
//! `psql` of the server's own major carries the words: each statement is a session of its own, as an operator's is.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::pg::TestServer;
use super::process::{Outcome, command, run};
use super::scratch::Scratch;
use super::session::{Session, words_of};

/// How long a test waits for what a server does in its own time. A busy machine is no failure: only what never comes is.
const WAIT_LIMIT: Duration = Duration::from_secs(180);
/// How long the archiver may show no progress: it sleeps for a minute after three failures.
const IDLE_LIMIT: Duration = Duration::from_secs(120);

impl TestServer {
    /// Makes the server read its settings again.
    #[track_caller]
    pub fn reload(&self) {
        self.sql("select pg_reload_conf()");
    }

    /// Runs `psql` on `sql`, every statement a transaction of its own; rows are lines, columns parted by `|`.
    ///
    /// # Errors
    /// What `psql` said when it could not connect or a statement failed.
    #[track_caller]
    pub fn psql(&self, sql: &str) -> Result<String, String> {
        let outcome = self.psql_outcome("postgres", sql);
        if outcome.is_ok() { Ok(outcome.stdout.trim_end_matches('\n').to_owned()) } else { Err(outcome.stderr) }
    }

    fn psql_outcome(&self, database: &str, sql: &str) -> Outcome {
        let script = Scratch::new();
        let file = script.join("sql");
        fs::write(&file, sql).expect("a file in a fresh directory");
        let mut psql = command(self.major().program("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(self.conninfo().replace("dbname=postgres", &format!("dbname={database}")))
            .arg("-f")
            .arg(file);
        run(psql)
    }

    /// Runs `sql` as [`TestServer::psql`] does; panics if it fails.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    /// Runs `sql` in another database; panics if it fails.
    #[track_caller]
    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        let outcome = self.psql_outcome(database, sql);
        assert!(outcome.is_ok(), "{sql}\n{}\n{}", outcome.story(), self.log());
        outcome.stdout.trim_end_matches('\n').to_owned()
    }

    /// Returns the one row of `sql`; panics on none or several.
    #[track_caller]
    pub fn query_one(&self, sql: &str) -> String {
        let answer = self.sql(sql);
        assert!(!answer.is_empty() && !answer.contains('\n'), "one row was expected of {sql}, not:\n{answer}");
        answer
    }

    /// Opens a session that stays; panics if the server takes none.
    #[track_caller]
    pub fn session(&self) -> Session {
        Session::connect(&self.conninfo())
            .unwrap_or_else(|error| panic!("connect: {}\n{}", words_of(&error), self.log()))
    }

    /// Waits until `sql` answers `expected`; a server that takes no connection yet is asked again.
    #[track_caller]
    pub fn wait_until(&self, sql: &str, expected: &str) {
        let deadline = Instant::now() + WAIT_LIMIT;
        loop {
            let answer = self.psql(sql);
            if answer.as_deref() == Ok(expected) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{sql} did not answer {expected} within {WAIT_LIMIT:?} but {answer:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Waits until the server has left recovery and takes writes.
    #[track_caller]
    pub fn wait_until_writable(&self) {
        self.wait_until("select pg_is_in_recovery()", "f");
    }

    /// Ends the current WAL segment and returns its name; the segment holds something to archive.
    #[track_caller]
    pub fn switch_wal(&self) -> String {
        self.sql("select pg_logical_emit_message(true, 'test', 'before the switch')");
        self.query_one("select pg_walfile_name(pg_switch_wal())")
    }

    /// Waits until the archiver has handed over `segment`.
    #[track_caller]
    pub fn wait_archived(&self, segment: &str) {
        let status = self.pgdata().join("pg_wal/archive_status");
        let archived = || {
            let waiting = status.join(format!("{segment}.ready")).exists();
            // Both the mark and the segment go when the segment is recycled.
            let done =
                status.join(format!("{segment}.done")).exists() || !self.pgdata().join("pg_wal").join(segment).exists();
            done && !waiting
        };
        self.wait_for_archiver(archived, segment);
    }

    /// Waits until nothing waits for the archiver: no segment, no history, no `.backup` file of a backup just taken.
    #[track_caller]
    pub fn wait_nothing_waits(&self) {
        self.wait_for_archiver(|| self.waiting().is_empty(), "all that waits");
    }

    /// Does something while this primary writes and finishes segments, no faster than they are archived.
    pub fn while_it_switches<T>(&self, work: impl FnOnce() -> T) -> T {
        // Also when the work panics: the other thread must not go on for ever.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut session = self.session();
            let (end, over) = (Over(&over), &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    if self.waiting().len() < 3 {
                        let switch = "select pg_logical_emit_message(false, 'a', 'b'); select pg_switch_wal()";
                        session.rows(switch).expect("a switch");
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            let done = work();
            drop(end);
            done
        })
    }

    /// Returns the files that wait for the archiver, in the order of their names.
    #[track_caller]
    pub fn waiting(&self) -> Vec<String> {
        let status = self.pgdata().join("pg_wal/archive_status");
        let names = fs::read_dir(&status).unwrap_or_else(|error| panic!("list {status:?}: {error}"));
        let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut waiting: Vec<String> =
            names.filter_map(|name| name.strip_suffix(".ready").map(str::to_owned)).collect();
        waiting.sort();
        waiting
    }

    /// Waits for something that comes with the archiver's work; panics when that has made no progress for long.
    #[track_caller]
    fn wait_for_archiver(&self, reached: impl Fn() -> bool, what: &str) {
        let (mut before, mut since) = (self.waiting(), Instant::now());
        while !reached() {
            let waiting = self.waiting();
            if waiting.first() != before.first() {
                (before, since) = (waiting, Instant::now());
            }
            assert!(
                since.elapsed() < IDLE_LIMIT,
                "{what} not archived, and no progress in {IDLE_LIMIT:?}: {before:?} wait\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Makes the archiver run another command for every file it has not yet begun with.
    ///
    /// A session that shows the new value was begun by a postmaster that has told all its processes, and the archiver
    /// reads its settings before each file.
    #[track_caller]
    pub fn set_archive_command(&self, command: &str) {
        self.set("archive_command", command);
        self.reload();
        self.wait_until(&format!("select current_setting('archive_command') = $walvault${command}$walvault$"), "t");
    }

    /// Ends the current WAL segment and waits until the archiver has handed it over.
    #[track_caller]
    pub fn archive_all(&self) -> String {
        let segment = self.switch_wal();
        self.wait_archived(&segment);
        segment
    }

    /// Promotes a standby, or ends a paused recovery, and waits until it takes writes.
    #[track_caller]
    pub fn promote(&self) {
        self.query_one("select pg_promote(true, 60)");
        self.wait_until_writable();
    }

    /// Returns the cluster's system identifier.
    #[track_caller]
    pub fn system_id(&self) -> String {
        self.query_one("select system_identifier from pg_control_system()")
    }

    /// Returns the timeline that the server writes.
    #[track_caller]
    pub fn timeline(&self) -> u32 {
        let name = self.query_one("select pg_walfile_name(pg_current_wal_lsn())");
        u32::from_str_radix(&name[..8], 16).expect("a segment's name begins with its timeline")
    }

    /// Creates a tablespace beside the data directory and returns its place.
    #[track_caller]
    pub fn create_tablespace(&self, name: &str) -> PathBuf {
        let place = self.beside(&format!("tablespace-{name}"));
        self.sql(&format!("create tablespace {name} location '{}'", place.display()));
        place
    }
}
