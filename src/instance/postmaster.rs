//! Whether a server runs in a data directory, and where it listens.
//!
//! Source: `src/include/utils/pidfile.h`: one line each for pid, data directory, start time, port, socket directory.

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
    fn a_process_that_is_gone_is_not_running() {
        assert!(is_alive(std::process::id() as i32));
        assert!(!is_alive(i32::MAX));
    }
}
