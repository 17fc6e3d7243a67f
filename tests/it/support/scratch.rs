//! Short-lived directories, and the janitor that outlives the test run to remove what is left of it.
//!
//! All files of one run lie in one `wv-<pid>`, under `$WALVAULT_TEST_TMP` or else in memory (`/dev/shm`) where that has
//! room, or else under `/tmp`. The path is short, because a socket's may have 107 bytes; memory, because a data
//! directory is a thousand files, and creating them is most of a test's time on a busy disk. A [`Scratch`] is
//! removed when it is dropped, so also when a test panics. Files that several tests share (server templates, the copy
//! of the program) and everything a killed run leaves behind are the janitor's: a shell that waits for the run's end
//! on a pipe, then kills what still works below the directory and removes it.
//!
//! `WALVAULT_TEST_KEEP=1` keeps the files, to look at after a failure; processes are stopped all the same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::user::ServerUser;

/// Ends everything whose working directory lies in `$0`, releases its servers' shared memory, and removes `$0`.
///
/// PostgreSQL's processes, and the commands they run, all work in their data directory.
const JANITOR: &str = r#"
    cat >/dev/null
    for round in 1 2 3; do
        for process in $(find /proc -maxdepth 2 -path '/proc/[0-9]*/cwd' -lname "$0/*" -printf '%h\n' 2>/dev/null); do
            kill -9 "${process#/proc/}" 2>/dev/null
        done
    done
    find "$0" -name postmaster.pid -exec sed -n 7p {} \; 2>/dev/null | while read -r key id; do ipcrm -m "$id"; done
    [ "$1" = keep ] || rm -rf "$0"
"#;

/// Returns the directory that holds every file of this test run; everybody may read it.
pub fn run_directory() -> &'static Path {
    static RUN: OnceLock<(PathBuf, Child)> = OnceLock::new();
    let (path, _janitor) = RUN.get_or_init(|| {
        let path = create_in(&parent_directory());
        readable_by_all(&path);
        let janitor = Command::new("/bin/sh")
            .args(["-c", JANITOR])
            .arg(&path)
            .arg(if keeping() { "keep" } else { "remove" })
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // An interrupt from the terminal ends the run, and must not end the janitor.
            .process_group(0)
            .spawn()
            .expect("the janitor starts");
        (path, janitor)
    });
    path
}

/// Creates the run's directory; an earlier run, whose number this process has been given again, may have left one.
fn create_in(parent: &Path) -> PathBuf {
    let process = std::process::id();
    let names = std::iter::once(format!("wv-{process}")).chain((1..100).map(|other| format!("wv-{process}-{other}")));
    let free = names.map(|name| parent.join(name)).find(|path| match fs::create_dir(path) {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(error) => panic!("create {path:?}: {error}"),
    });
    free.unwrap_or_else(|| panic!("every name for a directory of process {process} is taken in {parent:?}"))
}

/// Returns where the run's directory is created.
fn parent_directory() -> PathBuf {
    /// Room for the data directories and repositories of a few tests at a time.
    const ENOUGH: u64 = 4 << 30;
    if let Some(path) = std::env::var_os("WALVAULT_TEST_TMP").filter(|path| !path.is_empty()) {
        return PathBuf::from(path);
    }
    let memory = Path::new("/dev/shm");
    let fits = statvfs(memory).is_ok_and(|shm| {
        let may_run_programs = !shm.f_flag.contains(StatVfsMountFlags::NOEXEC);
        may_run_programs && shm.f_bavail.saturating_mul(shm.f_frsize) >= ENOUGH
    });
    if fits { memory.to_owned() } else { PathBuf::from("/tmp") }
}

/// Returns a directory that all tests of this run share, owned by the server user.
pub fn shared_directory(name: &str) -> PathBuf {
    let path = run_directory().join(name);
    fs::create_dir_all(&path).unwrap_or_else(|error| panic!("create {path:?}: {error}"));
    readable_by_all(&path);
    ServerUser::get().take_over_itself(&path);
    path
}

/// Tells whether the files of tests are to be kept.
pub fn keeping() -> bool {
    std::env::var_os("WALVAULT_TEST_KEEP").is_some_and(|value| value == "1")
}

/// A directory of one test, owned by the server user, removed on drop.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Creates an empty directory with a name no other test has.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = run_directory().join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path).unwrap_or_else(|error| panic!("create {path:?}: {error}"));
        readable_by_all(&path);
        ServerUser::get().take_over(&path);
        Self { path }
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of `name` inside; nothing is created.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Creates a directory inside, owned by the server user.
    pub fn create_dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("create {path:?}: {error}"));
        ServerUser::get().take_over(&path);
        path
    }
}

impl Drop for Scratch {
    #[allow(clippy::print_stderr, reason = "who asked to keep the files wants to know where they are")]
    fn drop(&mut self) {
        if keeping() {
            eprintln!("kept {}", self.path.display());
        } else {
            // What cannot be removed now, the janitor removes.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn readable_by_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .unwrap_or_else(|error| panic!("chmod {path:?}: {error}"));
}
