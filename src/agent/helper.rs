//! When a helper is worth starting: an agent that commands start where there is none, and that ends when idle.
//!
//! One file alone is archived, or fetched, just as well by the command itself. A helper pays when there is something to be
//! ahead of: a backlog, or a recovery that asks for one segment after the other. What a command can see of that without
//! remembering anything lies in `pg_wal`.

use std::path::Path;

use super::ahead::waiting_in;
use crate::pg::segment::{SegmentName, SegmentSize};

/// Segments that wait from which on a helper is worth it: as many as are archived at a time.
const BACKLOG: usize = 4;

/// Whether enough segments wait in a server's `pg_wal`.
pub fn archiving_lags(pg_wal: &Path) -> bool {
    waiting_in(pg_wal).is_ok_and(|waiting| waiting.flatten().take(BACKLOG).count() == BACKLOG)
}

/// Whether a recovery that just got a segment got the two before it too: it will ask for the next ones.
///
/// Source: a restored segment takes its own name in `pg_wal`, `KeepFileRestoredFromArchive` in
/// `src/backend/access/transam/xlogarchive.c`.
pub fn recovery_is_under_way(pg_wal: &Path, segment: SegmentName, size: SegmentSize) -> bool {
    let Ok(number) = segment.number(size) else { return false };
    let before = std::iter::successors(number.previous(), |number| number.previous()).take(2);
    let here = |number| pg_wal.join(SegmentName::from_number(segment.timeline(), number, size).to_string()).is_file();
    before.filter(|number| here(*number)).count() == 2
}

/// Whether orphans become children of a PostgreSQL server: one runs as the first process of its container, and this is
/// what that process is called. It takes the death of a child that it does not know for the crash of one of its own, and
/// ends every session.
///
/// Source: `CleanupBackend` and `process_pm_child_exit` in `src/backend/postmaster/postmaster.c`.
pub fn is_reaped_by_a_server(first_process: &str) -> bool {
    ["postgres", "postmaster"].contains(&first_process.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_is_worth_it_for_a_backlog_and_for_a_recovery_in_a_row() {
        let directory = tempfile::tempdir().expect("a directory");
        let (wal, status) = (directory.path(), directory.path().join("archive_status"));
        assert!(!archiving_lags(wal), "no directory of what waits");
        std::fs::create_dir(&status).expect("room");
        let put = |name: &str| std::fs::write(wal.join(name), "").expect("room");
        let names = ["000000010000000000000007", "000000010000000000000008", "000000010000000000000009"];
        for name in names {
            put(&format!("archive_status/{name}.ready"));
            put(&format!("archive_status/{name}.done"));
        }
        put("archive_status/00000002.history.ready");
        assert!(!archiving_lags(wal));
        put("archive_status/00000001000000000000000A.ready");
        assert!(archiving_lags(wal));

        let asked = |name: &str| {
            let segment = name.parse().expect("a segment");
            recovery_is_under_way(wal, segment, SegmentSize::DEFAULT)
        };
        put(names[1]);
        assert!(!asked(names[2]) && !asked("000000010000000000000000"));
        put(names[0]);
        assert!(asked(names[2]) && !asked(names[1]) && !asked("000000020000000000000009"));
    }

    #[test]
    fn a_server_that_is_the_first_process_is_known_by_its_name() {
        assert!(is_reaped_by_a_server("postgres\n") && is_reaped_by_a_server("postmaster\n"));
        assert!(["systemd\n", "tini\n", "patroni\n", "manager", ""].iter().all(|name| !is_reaped_by_a_server(name)));
    }
}
