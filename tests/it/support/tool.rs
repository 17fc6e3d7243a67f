//! PostgreSQL's own programs as judges: each runs as the server user, from the major it judges.

use std::ffi::OsStr;
use std::path::Path;

use super::major::Major;
use super::pg::TestServer;
use super::process::{Outcome, command, run};

/// Runs one of `major`'s programs with these arguments.
#[track_caller]
pub fn tool<A: AsRef<OsStr>>(major: Major, program: &str, arguments: impl IntoIterator<Item = A>) -> Outcome {
    let mut tool = command(major.program(program));
    tool.args(arguments);
    run(tool)
}

/// Compares a data directory with its `backup_manifest`: `pg_verifybackup -n`.
#[track_caller]
pub fn verify_backup(major: Major, data: &Path) -> Outcome {
    tool(major, "pg_verifybackup", [OsStr::new("-n"), data.as_os_str()])
}

/// Checks every page's checksum; the server must have been shut down cleanly.
#[track_caller]
pub fn check_checksums(major: Major, data: &Path) -> Outcome {
    tool(major, "pg_checksums", [OsStr::new("--check"), OsStr::new("-D"), data.as_os_str()])
}

/// Checks every table and index of every database of a running, writable server: `pg_amcheck --heapallindexed`.
///
/// The extension is installed where it is missing. The build of PostgreSQL 16 has none.
#[track_caller]
pub fn check_relations(server: &TestServer) -> Outcome {
    let mut amcheck = command(server.major().program("pg_amcheck"));
    amcheck.args(["--all", "--install-missing", "--heapallindexed", "-U", "postgres", "-p", "5432", "-h"]);
    amcheck.arg(server.socket_dir());
    run(amcheck)
}

/// Returns a field of `pg_controldata`, as `field("Latest checkpoint's TimeLineID")`.
#[track_caller]
pub fn control_data(major: Major, data: &Path, field: &str) -> String {
    let outcome = tool(major, "pg_controldata", [OsStr::new("-D"), data.as_os_str()]).expect_ok();
    let value = outcome.stdout.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {field:?}\n{}", outcome.story())).trim().to_owned()
}

/// Prints the records of WAL files: `pg_waldump` with these arguments.
#[track_caller]
pub fn dump_wal<A: AsRef<OsStr>>(major: Major, arguments: impl IntoIterator<Item = A>) -> Outcome {
    tool(major, "pg_waldump", arguments)
}

/// Copies a running server with `pg_basebackup`, ready to start; further arguments come last.
#[track_caller]
pub fn base_backup(server: &TestServer, to: &Path, arguments: &[&str]) -> Outcome {
    let mut copy = command(server.major().program("pg_basebackup"));
    copy.args(["--checkpoint=fast", "--no-sync", "-d"]).arg(server.conninfo()).arg("-D").arg(to).args(arguments);
    run(copy)
}

/// Turns `data` back to follow `source`: `pg_rewind`; further arguments come last.
#[track_caller]
pub fn rewind(major: Major, data: &Path, source: &TestServer, arguments: &[&str]) -> Outcome {
    let mut rewind = command(major.program("pg_rewind"));
    rewind.args(["--no-sync", "--source-server"]).arg(source.conninfo()).arg("-D").arg(data).args(arguments);
    run(rewind)
}
