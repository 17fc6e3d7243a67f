//! A PostgreSQL server of one test.
//!
//! The server is a child of the test run and listens on a socket in its own directory only. What a copy of the data
//! directory should inherit stands in `postgresql.conf`; what belongs to this place (socket, log) is given on the
//! command line, so that a restored directory can be started by [`TestServer::over`] as it is.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use super::budget::within;
use super::major::Major;
use super::process::{command, kill_all_in, pid_of, run};
use super::scratch::Scratch;
use super::template::Template;
use super::user::ServerUser;

/// A server is up, or has given up, within this time.
const START_LIMIT: Duration = Duration::from_secs(180);
/// A server has stopped within this time; a fast stop waits for a checkpoint and the archiver.
const STOP_LIMIT: Duration = Duration::from_secs(180);

/// How a server is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended, a shutdown checkpoint is written and archived.
    Fast,
    /// At once; the next start recovers.
    Immediate,
}

/// A server to be.
#[derive(Debug)]
pub struct ServerBuilder {
    template: Template,
    settings: Vec<(String, String)>,
    environment: Vec<(OsString, OsString)>,
    listen: String,
}

impl ServerBuilder {
    /// Has the server listen on an address of this host's too, of which each test has one of its own.
    pub fn listen(mut self, address: &str) -> Self {
        self.listen = address.to_owned();
        self
    }

    /// Sets the size of a WAL segment in MiB: 1, 16 (the default) or 64.
    pub fn segment_mib(mut self, segment_mib: u32) -> Self {
        self.template.segment_mib = segment_mib;
        self
    }

    /// Makes another cluster, with a system identifier of its own, for every other number; the default is 0.
    pub fn identity(mut self, identity: u32) -> Self {
        self.template.identity = identity;
        self
    }

    /// Adds a line to `postgresql.conf`; a later one wins.
    pub fn set(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.settings.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets `archive_command`; until then finished segments wait in `pg_wal`.
    pub fn archive_command(self, command: impl AsRef<str>) -> Self {
        self.set("archive_command", command)
    }

    /// Sets an environment variable of the server and of the commands it runs.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Creates the data directory; the server is not started.
    #[track_caller]
    pub fn create(self) -> TestServer {
        let scratch = Scratch::new();
        let data = scratch.join("data");
        self.template.copy_to(&data);
        let mut server = TestServer::at(self.template.major, scratch, data);
        server.environment = self.environment;
        server.listen = self.listen;
        for (name, value) in FIRST_SETTINGS {
            server.set(name, value);
        }
        for (name, value) in &self.settings {
            server.set(name, value);
        }
        server
    }

    /// Creates the data directory and starts the server.
    #[track_caller]
    pub fn start(self) -> TestServer {
        let mut server = self.create();
        server.start();
        server
    }
}

/// What every created server begins with: ready to archive and to be followed, in no need of a durable disk, and changing
/// nothing by itself: a transaction of autovacuum's would come between a commit and what a test makes of it.
const FIRST_SETTINGS: [(&str, &str); 9] = [
    ("autovacuum", "off"),
    ("fsync", "off"),
    ("wal_level", "replica"),
    ("archive_mode", "on"),
    ("max_wal_senders", "10"),
    ("max_connections", "30"),
    ("hot_standby", "on"),
    ("shared_buffers", "16MB"),
    ("log_line_prefix", "%m [%p] "),
];

/// A server and its data directory; stopped and removed on drop.
#[derive(Debug)]
pub struct TestServer {
    major: Major,
    scratch: Scratch,
    data: PathBuf,
    environment: Vec<(OsString, OsString)>,
    config_file: Option<PathBuf>,
    listen: String,
    child: Option<Child>,
}

impl TestServer {
    /// Begins a new server of `major`.
    pub fn builder(major: Major) -> ServerBuilder {
        let template = Template { major, segment_mib: 16, identity: 0 };
        ServerBuilder { template, settings: Vec::new(), environment: Vec::new(), listen: String::new() }
    }

    /// Takes charge of a data directory that something else made; the directory stays when the server is dropped.
    pub fn over(major: Major, data: &Path) -> Self {
        Self::at(major, Scratch::new(), data.to_owned())
    }

    fn at(major: Major, scratch: Scratch, data: PathBuf) -> Self {
        scratch.create_dir("s");
        Self { major, scratch, data, environment: Vec::new(), config_file: None, listen: String::new(), child: None }
    }

    /// Sets an environment variable of the server and of the commands it runs, from its next start.
    pub fn set_env(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.environment.push((name.into(), value.into()));
    }

    /// Starts the server from this configuration file, outside the data directory.
    pub fn set_config_file(&mut self, path: &Path) {
        self.config_file = Some(path.to_owned());
    }

    /// Adds a line to `postgresql.conf`; read at the next start or reload.
    #[track_caller]
    pub fn set(&self, name: &str, value: &str) {
        let path = self.data.join("postgresql.conf");
        let mut file =
            OpenOptions::new().append(true).open(&path).unwrap_or_else(|error| panic!("open {path:?}: {error}"));
        let line = format!("{name} = '{}'\n", value.replace('\\', r"\\").replace('\'', "''"));
        file.write_all(line.as_bytes()).unwrap_or_else(|error| panic!("write {path:?}: {error}"));
    }

    /// Returns the server's major version.
    pub fn major(&self) -> Major {
        self.major
    }

    /// Returns the data directory.
    pub fn pgdata(&self) -> &Path {
        &self.data
    }

    /// Returns a directory of the server user's beside the data directory, for this test's own files.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.scratch.create_dir(name)
    }

    /// Returns the directory of the server's socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.scratch.join("s")
    }

    /// Returns a libpq connection string of the superuser.
    pub fn conninfo(&self) -> String {
        // Patience for a machine that is busy with other tests.
        format!("host={} port=5432 user=postgres dbname=postgres connect_timeout=60", self.socket_dir().display())
    }

    /// Tells whether the server was started and not stopped again.
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Returns the postmaster's process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server was started").id()
    }

    /// Returns all that the server has logged.
    pub fn log(&self) -> String {
        fs::read(self.scratch.join("log")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Starts the server and waits until it takes connections (a standby: read-only ones).
    #[track_caller]
    pub fn start(&mut self) {
        if let Err(refusal) = self.try_start() {
            panic!("PostgreSQL {} did not start: {refusal}\n{}", self.major, self.log());
        }
    }

    /// Starts the server; answers its exit status if it ends before it takes connections.
    ///
    /// # Errors
    /// The exit status of a server that gave up; [`TestServer::log`] says why.
    #[track_caller]
    pub fn try_start(&mut self) -> Result<(), ExitStatus> {
        self.launch();
        let deadline = Instant::now() + START_LIMIT;
        while !self.is_ready() {
            if let Some(status) = self.ended() {
                return Err(status);
            }
            assert!(Instant::now() < deadline, "neither up nor down within {START_LIMIT:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Starts the server and does not wait for anything.
    #[track_caller]
    pub fn launch(&mut self) {
        assert!(self.ended().is_some() || self.child.is_none(), "the server is running");
        let log = OpenOptions::new().create(true).append(true).open(self.scratch.join("log")).expect("a log file");
        let again = |log: &File| log.try_clone().expect("a second handle");
        let mut postgres = command(self.major.program("postgres"));
        postgres
            .arg("-D")
            .arg(&self.data)
            .arg("-k")
            .arg(self.socket_dir())
            .args(["-p", "5432", "-c", &format!("listen_addresses={}", self.listen), "-c", "logging_collector=off"])
            .args(["-c", "log_destination=stderr", "-c", "external_pid_file="])
            // A killed server must leave nothing behind outside its directory.
            .args(self.config_file.iter().flat_map(|path| ["-c".to_owned(), format!("config_file={}", path.display())]))
            .args(["-c", "dynamic_shared_memory_type=mmap"])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdout(again(&log))
            .stderr(log);
        self.child = Some(postgres.spawn().expect("postgres starts"));
    }

    /// Tells whether the postmaster has written that connections are welcome.
    ///
    /// Source: `LOCK_FILE_LINE_PM_STATUS` in `src/include/miscadmin.h` and `src/include/utils/pidfile.h`.
    fn is_ready(&self) -> bool {
        let file = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = file.lines().map(str::trim).collect();
        lines.first() == Some(&self.pid().to_string().as_str()) && matches!(lines.get(7), Some(&("ready" | "standby")))
    }

    /// Returns the exit status once the server has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("our own child can be waited for")
    }

    /// Waits until the server has ended by itself, as at the end of a recovery that fails or is told to shut down.
    #[track_caller]
    pub fn wait_for_end(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        within(
            limit,
            || {
                status = self.ended();
                status.is_some()
            },
            "the server ends by itself",
        );
        status.expect("it has just ended")
    }

    /// Stops the server and waits for its end; nothing happens if it is not running.
    #[track_caller]
    pub fn stop(&mut self, how: Stop) {
        let Some(mut child) = self.child.take() else { return };
        let signal = match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        // Fails only if it has ended and was waited for.
        let _ = kill_process(pid_of(&child), signal);
        let deadline = Instant::now() + STOP_LIMIT;
        while child.try_wait().expect("our own child can be waited for").is_none() {
            if Instant::now() > deadline {
                self.child = Some(child);
                self.kill9();
                panic!("{how:?} stop not within {STOP_LIMIT:?}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops the server and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop(Stop::Fast);
        self.start();
    }

    /// Kills the postmaster, all its processes and the commands they run, at once: a power failure.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The postmaster first: it must not answer the death of the others.
            let _ = child.kill();
            kill_all_in(&self.data);
            let _ = child.wait();
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return self.release_shared_memory() };
        let _ = kill_process(pid_of(child), Signal::QUIT);
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill9();
        self.release_shared_memory();
    }
}

impl TestServer {
    /// Removes the small shared memory segment of a killed server, which no one else would remove.
    ///
    /// Source: `LOCK_FILE_LINE_SHMEM_KEY` in `src/include/utils/pidfile.h`.
    fn release_shared_memory(&self) {
        let Ok(file) = fs::read_to_string(self.data.join("postmaster.pid")) else { return };
        if let Some(id) = file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            let mut ipcrm = command("/usr/bin/ipcrm");
            ipcrm.args(["-m", id]);
            run(ipcrm);
        }
    }
}
