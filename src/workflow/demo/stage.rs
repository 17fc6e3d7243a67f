//! The scratch directory, the commands that run in it, and how all of it goes away.
//!
//! Every process of the story works in the directory or below, and is found by that; so a server that an interrupted
//! command left half started is stopped like any other.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::error::DemoError;
use super::user::{ServerUser, is_open_to_all};
use crate::instance::running_server;

/// Longest name of a socket, without its closing zero: `sun_path` of `struct sockaddr_un` has 108 bytes.
const SOCKET_BYTES: usize = 107;
/// How often a child is asked whether it has ended.
const LOOK: Duration = Duration::from_millis(2);
/// How long a command or server may take to end when it is told to.
const LEAVE: Duration = Duration::from_secs(10);
/// How long a command that is to finish may take after an interrupt.
const FINISH: Duration = Duration::from_secs(60);

/// What an interrupt means for a command under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenInterrupted {
    /// It is told to end.
    End,
    /// It finishes: `initdb`'s server dies of any signal at once, and its shared memory stays for ever.
    Finish,
}

/// Whether somebody wants the story to end.
#[derive(Clone, Copy)]
pub(super) struct Interrupt<'a>(pub &'a AtomicBool);

impl Interrupt<'_> {
    pub fn check(self) -> Result<(), DemoError> {
        if self.0.load(Ordering::Relaxed) { Err(DemoError::Interrupted) } else { Ok(()) }
    }

    pub fn pause(self, time: Duration) -> Result<(), DemoError> {
        std::thread::sleep(time);
        self.check()
    }
}

/// The scratch directory; stops what runs in it and removes it when dropped.
pub(super) struct Stage<'a> {
    directory: PathBuf,
    /// Whom everything runs as; the caller without it.
    user: Option<ServerUser>,
    environment: Vec<(OsString, OsString)>,
    interrupt: Interrupt<'a>,
    keep: bool,
}

impl<'a> Stage<'a> {
    /// Creates the directory in the first of `parents` that will do, and puts `program` there as `walvault`.
    pub fn create(
        parents: &[PathBuf],
        user: Option<ServerUser>,
        program: &Path,
        interrupt: Interrupt<'a>,
        keep: bool,
    ) -> Result<Self, DemoError> {
        let fits = |parent: &&PathBuf| {
            let socket = parent.join(format!("walvault-demo-{}/run/.s.PGSQL.65535", u32::MAX));
            socket.as_os_str().len() <= SOCKET_BYTES
                && may_run_programs(parent)
                && (user.is_none() || is_open_to_all(parent, true))
        };
        let no_place = || DemoError::NoPlace { tried: parents.to_vec() };
        let parent = parents.iter().find(fits).ok_or_else(no_place)?;
        let directory = create_in(parent)?;
        let stage = Self { directory, user, environment: Vec::new(), interrupt, keep };
        stage.give(&stage.directory)?;
        stage.subdirectory("run")?;
        stage.place(program)?;
        Ok(stage)
    }

    /// Sets the variables that commands get; they get no others.
    pub fn set_environment(&mut self, environment: Vec<(OsString, OsString)>) {
        self.environment = environment;
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub fn user(&self) -> Option<&ServerUser> {
        self.user.as_ref()
    }

    pub fn interrupt(&self) -> Interrupt<'a> {
        self.interrupt
    }

    fn subdirectory(&self, name: &str) -> Result<(), DemoError> {
        let path = self.path(name);
        let created = std::fs::create_dir(&path);
        created.map_err(|source| DemoError::Io { action: "create", path: path.clone(), source })?;
        self.give(&path)
    }

    fn give(&self, path: &Path) -> Result<(), DemoError> {
        let Some(user) = &self.user else { return Ok(()) };
        let given = chown(path, Some(user.uid), Some(user.gid));
        given.map_err(|source| DemoError::Io { action: "hand over", path: path.into(), source })
    }

    /// A short name for this binary, which the server's user can run: what is built in a home may be closed to it.
    fn place(&self, program: &Path) -> Result<(), DemoError> {
        let path = self.path("walvault");
        let placed = if self.user.is_none() || is_open_to_all(program, false) {
            symlink(program, &path)
        } else {
            std::fs::copy(program, &path)
                .and_then(|_| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)))
        };
        placed.map_err(|source| DemoError::Io { action: "put the program at", path, source })
    }

    /// Returns a command that runs here.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.directory)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        // An interrupt from the terminal is the story's, which then ends its commands in order.
        command.stdin(Stdio::null()).process_group(0);
        if let Some(user) = &self.user {
            // Supplementary groups go with the change of user.
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// Runs a command to its end; returns how it ended and what it said on both channels, in order.
    pub fn run(&self, mut command: Command, when: WhenInterrupted) -> Result<(ExitStatus, String), DemoError> {
        self.interrupt.check()?;
        // A file and not a pipe: a server that the command starts would keep a pipe open.
        let path = self.path("said");
        let failed = |action| move |source| DemoError::Io { action, path: path.clone(), source };
        let said = File::create(self.path("said")).map_err(failed.clone()("write"))?;
        let again = said.try_clone().map_err(failed.clone()("write"))?;
        let program = PathBuf::from(command.get_program());
        let spawned = command.stdout(said).stderr(again).spawn();
        let user = || self.user.as_ref().map(|user| user.name.clone());
        let child = spawned.map_err(|source| DemoError::Run { program: program.clone(), user: user(), source })?;
        let status = self.wait(child, when).map_err(|error| match error {
            Waiting::Interrupted => DemoError::Interrupted,
            Waiting::Failed(source) => DemoError::Run { program, user: user(), source },
        })?;
        let said = std::fs::read(self.path("said")).map_err(failed("read"))?;
        Ok((status, String::from_utf8_lossy(&said).into_owned()))
    }

    fn wait(&self, mut child: Child, when: WhenInterrupted) -> Result<ExitStatus, Waiting> {
        let mut interrupted = None;
        loop {
            if let Some(status) = child.try_wait().map_err(Waiting::Failed)? {
                return if interrupted.is_some() { Err(Waiting::Interrupted) } else { Ok(status) };
            }
            if self.interrupt.pause(LOOK).is_err() {
                let since: &mut Instant = interrupted.get_or_insert_with(Instant::now);
                if when == WhenInterrupted::End || since.elapsed() > FINISH {
                    end(&mut child);
                    return Err(Waiting::Interrupted);
                }
            }
        }
    }

    /// Returns the last lines of every server's log, under its name.
    pub fn logs(&self) -> Vec<(String, String)> {
        const LINES: usize = 10;
        let mut logs = Vec::new();
        for data in self.subdirectories() {
            let name = data.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            for path in [self.path(&format!("{name}.log")), data.join("walvault-start.log")] {
                let Ok(bytes) = std::fs::read(&path) else { continue };
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let lines: Vec<&str> = text.lines().collect();
                logs.push((name.clone(), lines[lines.len().saturating_sub(LINES)..].join("\n")));
            }
        }
        logs
    }

    fn subdirectories(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
    }

    /// Stops every server here and whatever else is left.
    fn stop_all(&self) {
        // Who keeps the directories wants them whole; otherwise nothing in them matters any more.
        let how = if self.keep { Signal::INT } else { Signal::QUIT };
        let began = Instant::now();
        let mut told = Vec::new();
        loop {
            for server in self.subdirectories().iter().filter_map(|directory| running_server(directory)) {
                if !told.contains(&server.pid) {
                    told.push(server.pid);
                    Pid::from_raw(server.pid).map(|pid| kill_process(pid, how));
                }
            }
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            if began.elapsed() > LEAVE {
                for pid in left {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            if began.elapsed() > 2 * LEAVE {
                break;
            }
            std::thread::sleep(LOOK);
        }
        self.subdirectories().iter().for_each(|data| release_shared_memory(data));
    }

    /// Returns the story's processes: those that work here and are what it starts.
    fn processes(&self) -> Vec<Pid> {
        const NAMES: [&str; 4] = ["postgres", "pg_ctl", "initdb", "walvault"];
        let ours = |process: &PathBuf| {
            std::fs::read_link(process.join("cwd")).is_ok_and(|place| place.starts_with(&self.directory))
                && std::fs::read_to_string(process.join("comm")).is_ok_and(|name| NAMES.contains(&name.trim_end()))
        };
        let processes = std::fs::read_dir("/proc").into_iter().flatten();
        let processes = processes.filter_map(|entry| Some(entry.ok()?.path())).filter(ours);
        processes.filter_map(|process| Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?)).collect()
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        self.stop_all();
        if self.keep {
            return;
        }
        let began = Instant::now();
        // A command of a server that has just ended may still write a last file.
        while std::fs::remove_dir_all(&self.directory).is_err() && self.directory.exists() && began.elapsed() < LEAVE {
            std::thread::sleep(LOOK);
        }
    }
}

enum Waiting {
    Interrupted,
    Failed(std::io::Error),
}

/// Ends a command and all that it started in its process group.
fn end(child: &mut Child) {
    let group = Pid::from_child(child);
    let began = Instant::now();
    let _ = kill_process_group(group, Signal::TERM);
    while matches!(child.try_wait(), Ok(None)) {
        if began.elapsed() > LEAVE {
            let _ = kill_process_group(group, Signal::KILL);
            let _ = child.wait();
            return;
        }
        std::thread::sleep(LOOK);
    }
}

/// Creates a directory for the server's user alone, with a name that nobody has.
fn create_in(parent: &Path) -> Result<PathBuf, DemoError> {
    let process = std::process::id();
    let names = std::iter::once(format!("walvault-demo-{process}"));
    let names = names.chain((1..100).map(|other| format!("walvault-demo-{process}-{other}")));
    let mut taken = None;
    for path in names.map(|name| parent.join(name)) {
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => taken = Some((path, error)),
            Err(source) => return Err(DemoError::Io { action: "create", path, source }),
        }
    }
    let (path, source) = taken.expect("the loop ran");
    Err(DemoError::Io { action: "create", path, source })
}

fn may_run_programs(directory: &Path) -> bool {
    statvfs(directory).is_ok_and(|mount| !mount.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

/// Releases the small shared memory segment of a server that was killed, which no one else would release.
///
/// Source: `LOCK_FILE_LINE_SHMEM_KEY` in `src/include/utils/pidfile.h`.
fn release_shared_memory(data: &Path) {
    let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else { return };
    if let Some(id) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
        let _ = Command::new("ipcrm").args(["-m", id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_stage_goes_away_with_all_that_is_in_it_unless_it_is_kept() {
        let never = AtomicBool::new(false);
        // A place of its own: beside it, another test's stage would get the name of one that has gone.
        let place = tempfile::tempdir().expect("a directory");
        let parent = place.path().to_owned();
        let create = |keep| {
            let program = Path::new("/bin/true");
            Stage::create(std::slice::from_ref(&parent), None, program, Interrupt(&never), keep).expect("a stage")
        };
        let stage = create(false);
        let gone = stage.directory().to_owned();
        assert!(stage.path("walvault").exists());
        assert_eq!(stage.directory().metadata().expect("it is there").mode() & 0o777, 0o700);
        drop(stage);
        assert!(!gone.exists());
        let stage = create(true);
        let kept = stage.directory().to_owned();
        drop(stage);
        assert!(kept.exists());
        std::fs::remove_dir_all(kept).expect("it is ours");
    }

    #[test]
    fn a_place_that_is_too_long_for_a_socket_is_passed_over() {
        let never = AtomicBool::new(false);
        let parent = std::env::temp_dir().join("a-name-of-sixty-bytes-that-leaves-no-room-for-what-comes-after");
        let created = Stage::create(&[parent], None, Path::new("/bin/true"), Interrupt(&never), false);
        assert!(matches!(created, Err(DemoError::NoPlace { .. })));
    }

    #[test]
    fn an_interrupted_command_ends_at_once() {
        let stop = AtomicBool::new(false);
        let place = tempfile::tempdir().expect("a directory");
        let stage = Stage::create(&[place.path().to_owned()], None, Path::new("/bin/true"), Interrupt(&stop), false)
            .expect("a stage");
        let began = Instant::now();
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                stop.store(true, Ordering::Relaxed);
            });
            let mut sleep = stage.command("/bin/sleep");
            sleep.arg("600");
            stage.run(sleep, WhenInterrupted::End)
        });
        assert!(matches!(outcome, Err(DemoError::Interrupted)));
        // It would have slept for ten minutes.
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
