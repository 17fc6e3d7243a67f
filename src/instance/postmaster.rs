//! Whether a server runs in a data directory, and where it listens.
//!
//! Source: `src/include/utils/pidfile.h`: one line each for pid, data directory, start time, port, socket directory,
//! listening address, and the shared memory's key and id.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What `postmaster.pid` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postmaster {
    /// Process id.
    pub pid: i32,
    /// Port, also part of the socket's name.
    pub port: Option<u16>,
    /// First socket directory.
    pub socket_directory: Option<PathBuf>,
}

/// Returns the server that runs in a data directory, if one does.
///
/// A file that a crash left behind names a process that is gone. A file that cannot be read counts as running: a data
/// directory is never touched on a guess.
pub fn running_server(data_directory: &Path) -> Option<Postmaster> {
    let text = match std::fs::read_to_string(data_directory.join("postmaster.pid")) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(_) => return Some(Postmaster { pid: 0, port: None, socket_directory: None }),
    };
    let postmaster = parse(&text)?;
    is_alive(postmaster.pid).then_some(postmaster)
}

/// Returns whether a server certainly runs in a data directory: processes have its shared memory attached, which shows in
/// every container that shares the server's IPC namespace, as those of one pod do; or the process that `postmaster.pid`
/// names works in that very directory. Where neither can be seen, nothing is certain.
///
/// Source: `PGSharedMemoryIsInUse` and `InternalIpcMemoryCreate` in `src/backend/port/sysv_shmem.c`; proc(5) on
/// `/proc/sysvipc/shm` and `/proc/<pid>/cwd`.
pub fn certainly_runs(data_directory: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(data_directory.join("postmaster.pid")) else { return false };
    let attached = || {
        let memory = shared_memory(&text)?;
        let listed = std::fs::read_to_string("/proc/sysvipc/shm").ok()?;
        Some(is_attached(memory, &listed))
    };
    let works_here = || {
        let pid = parse(&text)?.pid;
        let identity = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        let working = identity(&PathBuf::from(format!("/proc/{pid}/cwd")))?;
        Some(Some(working) == identity(data_directory))
    };
    attached().unwrap_or(false) || works_here().unwrap_or(false)
}

/// Returns key and id of the server's shared memory. The key is a C `int` that is written as an unsigned long.
fn shared_memory(text: &str) -> Option<(i32, i64)> {
    let mut words = text.lines().nth(6)?.split_ascii_whitespace();
    let (key, id) = (words.next()?.parse::<u64>().ok()?, words.next()?.parse().ok()?);
    Some((key as u32 as i32, id))
}

/// Returns whether anybody has a piece of shared memory attached, by the kernel's list of them.
fn is_attached(memory: (i32, i64), listed: &str) -> bool {
    listed.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<i64>().ok());
        let key = number(0).and_then(|key| i32::try_from(key).ok());
        key.zip(number(1)) == Some(memory) && number(6).is_some_and(|attached| attached > 0)
    })
}

/// Returns the variables that a server was started with, and gives to the commands it runs; `None` if they are not ours to
/// know.
pub fn environment_of(postmaster: &Postmaster) -> Option<Vec<(String, String)>> {
    let bytes = std::fs::read(format!("/proc/{}/environ", postmaster.pid)).ok()?;
    let pairs = bytes.split(|byte| *byte == 0).filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='));
    Some(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

fn parse(text: &str) -> Option<Postmaster> {
    let mut lines = text.lines();
    // A single-user server writes its pid with a minus sign.
    let pid: i32 = lines.next()?.trim().parse().ok().map(i32::abs)?;
    let port = lines.nth(2).and_then(|line| line.trim().parse().ok());
    let socket = lines.next().map(str::trim).filter(|line| line.starts_with('/'));
    Some(Postmaster { pid, port, socket_directory: socket.map(PathBuf::from) })
}

fn is_alive(pid: i32) -> bool {
    match rustix::process::Pid::from_raw(pid) {
        // EPERM: it lives and belongs to somebody else.
        Some(pid) => rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_read() {
        let text = "4711\n/data\n1700000000\n5433\n/run/postgresql\nlocalhost\n  5433001   0\nready   \n";
        let expected = Postmaster { pid: 4711, port: Some(5433), socket_directory: Some("/run/postgresql".into()) };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse("-9\n"), Some(Postmaster { pid: 9, port: None, socket_directory: None }));
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_server_is_certain_to_run_by_its_memory_or_by_where_it_works() {
        let text = |key: &str| {
            format!("4711\n/data\n1700000000\n5433\n/run/postgresql\nlocalhost\n  {key}    131072\nready   \n")
        };
        assert_eq!(shared_memory(&text("  5433001")), Some((5_433_001, 131_072)));
        assert_eq!(shared_memory(&text("18446744073709551611")), Some((-5, 131_072)));
        assert_eq!(shared_memory("4711\n/data\n"), None);
        let listed = "       key      shmid perms                  size  cpid  lpid nattch   uid\n\
                              -5     131072   600                    56  4711  4720      6   105\n\
                         5433001     131073   600                    56  4711  4720      0   105\n";
        assert!(is_attached((-5, 131_072), listed));
        // Of a server that is gone, of another one, and of none.
        assert!(!is_attached((5_433_001, 131_073), listed));
        assert!(!is_attached((-5, 131_073), listed) && !is_attached((7, 131_072), listed) && !is_attached((-5, 1), ""));

        let here = std::env::current_dir().expect("there is one");
        let beside = tempfile::tempdir().expect("a directory");
        let lock = |text: &str| std::fs::write(beside.path().join("postmaster.pid"), text).expect("room");
        assert!(!certainly_runs(beside.path()));
        // A process that lives, and works elsewhere: as a number that is used again, or another container's.
        lock(&std::process::id().to_string());
        assert!(running_server(beside.path()).is_some() && !certainly_runs(beside.path()));
        let working = format!("/proc/{}/cwd", std::process::id());
        assert_eq!(std::fs::canonicalize(working).expect("it is ours"), here);
    }

    #[test]
    fn a_process_that_is_gone_is_not_running() {
        assert!(is_alive(std::process::id() as i32));
        assert!(!is_alive(i32::MAX));
    }
}
