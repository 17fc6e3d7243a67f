//! Commands run as the server user: how they ended, what they said, and a limit on how long they may take.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::scratch::{Scratch, run_directory, shared_directory};
use super::user::ServerUser;

/// No command of a test may take longer, unless the test says so.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(300);

/// Returns a command for the server user with a small, fixed environment and no standard input.
///
/// Nothing of the test run's own surroundings (`PG*` variables, locale, time zone) reaches it. It leads a process
/// group of its own and works in the run's directory, where the janitor finds it.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", run_directory())
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        // Tests that want a helper say so.
        .env("WALVAULT_HELPER", "0")
        .current_dir(shared_directory("work"))
        .stdin(Stdio::null())
        .process_group(0);
    ServerUser::get().run_as(&mut command);
    command
}

/// Writes a script that everybody may run.
///
/// Another process writes it: a thread that forks while this one has the file open for writing would keep it from being
/// run until that child runs something itself.
#[track_caller]
pub fn script(path: &Path, text: &str) {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""]).arg(path).arg(text);
    let status = shell.status().expect("sh runs");
    assert!(status.success(), "write {path:?}: {status}");
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command with its arguments, for messages.
    pub command: String,
    /// Exit status; none when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// All it wrote to standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// All it wrote to standard error; bytes that are not UTF-8 are replaced.
    pub stderr: String,
    /// From its start until its end was seen.
    pub elapsed: Duration,
}

impl Outcome {
    /// Tells whether the exit status is 0.
    pub fn is_ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Returns itself; panics with everything the command said unless the exit status is 0.
    #[track_caller]
    pub fn expect_ok(self) -> Self {
        self.expect_code(0)
    }

    /// Returns itself; panics with everything the command said unless the exit status is `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(self.code == Some(code), "exit status {code} was expected\n{}", self.story());
        self
    }

    /// Returns standard output as JSON; panics with everything the command said if it is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON: {error}\n{}", self.story()))
    }

    /// Returns the command, its end and its words, for the message of a failed test.
    pub fn story(&self) -> String {
        let end = match (self.code, self.signal) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no known end".to_owned(),
        };
        let Self { command, stdout, stderr, elapsed, .. } = self;
        format!("{command}\n{end} after {elapsed:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }
}

/// Runs `command` to its end, at most [`COMMAND_LIMIT`].
#[track_caller]
pub fn run(command: Command) -> Outcome {
    Running::start(command).wait(COMMAND_LIMIT)
}

/// A command under way; killed with its whole process group on drop.
#[derive(Debug)]
pub struct Running {
    words: String,
    child: Child,
    started: Instant,
    status: Option<ExitStatus>,
    /// Holds what it writes. Not a pipe: a daemon that it leaves behind would keep a pipe open for ever.
    output: Scratch,
}

impl Running {
    /// Starts `command`; its output is collected.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let words = words_of(&command);
        let output = Scratch::new();
        let create = |name: &str| File::create(output.join(name)).expect("a file in a fresh directory");
        command.stdout(create("stdout")).stderr(create("stderr"));
        let child = command.spawn().unwrap_or_else(|error| panic!("start {words}: {error}"));
        Self { words, child, started: Instant::now(), status: None, output }
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("our own child can be waited for");
        }
        self.status.is_none()
    }

    /// Sends `signal` to the command alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            kill_process(pid_of(&self.child), signal).expect("our own child can be signalled");
        }
    }

    /// Tells whether a signal holds it, so that it does nothing until another one comes.
    pub fn is_stopped(&self) -> bool {
        // After the name, which may hold anything: `4711 (name) T ...`
        let status = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        status.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
    }

    /// Returns how many bytes it has read until now, from files and from everything else.
    ///
    /// Source: `rchar` in proc_pid_io(5).
    #[track_caller]
    pub fn bytes_read(&self) -> u64 {
        let told = fs::read_to_string(format!("/proc/{}/io", self.pid())).expect("our own child may be looked at");
        let number = told.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("it says what was read");
        number.parse().expect("a number")
    }

    /// Returns what it has written to standard error until now.
    pub fn complaints(&self) -> String {
        self.outcome().stderr
    }

    /// Kills the command and its process group at once, as a power failure would.
    pub fn kill9(&mut self) {
        if self.is_running() {
            let _ = kill_process_group(pid_of(&self.child), Signal::KILL);
            self.status = Some(self.child.wait().expect("our own child can be waited for"));
        }
    }

    /// Waits for its end; panics, and kills it, when `limit` has passed from now on first.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Outcome {
        let since = Instant::now();
        while self.is_running() {
            if since.elapsed() > limit {
                self.kill9();
                panic!("not finished within {limit:?}\n{}", self.outcome().story());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.outcome()
    }

    fn outcome(&self) -> Outcome {
        let read = |name: &str| {
            let bytes = fs::read(self.output.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Outcome {
            command: self.words.clone(),
            code: self.status.and_then(|status| status.code()),
            signal: self.status.and_then(|status| status.signal()),
            stdout: read("stdout"),
            stderr: read("stderr"),
            elapsed: self.started.elapsed(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Returns every process whose working directory is `directory` or lies in it.
pub fn processes_in(directory: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let working_there =
        |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(directory));
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(working_there)
        .filter_map(Pid::from_raw)
        .collect()
}

/// Kills every process that works in `directory`, and waits until none is left.
pub fn kill_all_in(directory: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = processes_in(directory);
        if found.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in found {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the process id of a child.
pub fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn words_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
