//! The helper: an agent that `wal push` and `wal fetch` start where none runs, and that ends when idle.
//!
//! It outlives the command, so it keeps nothing of what the command got: no pipe of the server's, no file that the server has
//! open, no working directory, no process group that the server signals. It writes no log; whoever wants one, or metrics,
//! runs an agent, which takes the helper's place. Whether one is started changes no answer.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{Access, access};

use super::context::{self, CommandError, lenient_settings};
use super::{Cli, agent};
use crate::agent::{Door, Stay, archiving_lags, is_reaped_by_a_server, recovery_is_under_way, serve};
use crate::config::Settings;
use crate::instance::DataDirectory;
use crate::pg::segment::SegmentName;

/// Serve until nobody asks any more; started by commands
#[derive(clap::Args, Debug)]
pub(super) struct HelperArgs {}

/// Starts a helper after a file was archived, if so much waits that it is worth it.
pub(super) fn after_push(cli: &Cli, settings: &Settings, pg_wal: &Path) {
    let wanted = || settings.mebibytes("look_ahead") > 0 && archiving_lags(pg_wal);
    if may_start(settings) && wanted() {
        start(cli);
    }
}

/// Starts a helper after a segment was fetched, if the next ones will be wanted too.
pub(super) fn after_fetch(cli: &Cli, settings: &Settings, server: &DataDirectory, segment: SegmentName) {
    let keeps = || settings.scratch_directory().is_some_and(|path| agent::usable(&path));
    let in_a_row = || recovery_is_under_way(&server.path.join("pg_wal"), segment, server.control.segment_size);
    if may_start(settings) && settings.mebibytes("prefetch") > 0 && in_a_row() && keeps() {
        start(cli);
    }
}

/// Whether a helper can be started at all: it is wanted, its socket has a place that is ours, nobody is there, and nobody
/// comes to harm by its end.
fn may_start(settings: &Settings) -> bool {
    !settings.seconds("helper").is_zero()
        && is_ours(&settings.runtime_directory())
        && fs::read_to_string("/proc/1/comm").is_ok_and(|first| !is_reaped_by_a_server(&first))
        && context::agent(settings).finds_nobody()
}

/// Whether a directory is this user's, or can be made by it: in another user's an agent of that user is meant.
fn is_ours(runtime: &Path) -> bool {
    let writable = |path: &Path| access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    match fs::metadata(runtime) {
        Ok(found) => found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && writable(runtime),
        Err(_) => runtime.parent().is_some_and(writable),
    }
}

fn start(cli: &Cli) {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(env!("CARGO_PKG_NAME"));
    let named = [("--repo", cli.repo.as_deref()), ("--cluster", cli.cluster.as_deref())];
    let named = named.map(|(option, value)| (option, value.map(OsStr::new)));
    for (option, value) in named.into_iter().chain([("--config", cli.config.as_deref().map(Path::as_os_str))]) {
        command.args(value.into_iter().flat_map(|value| [OsStr::new(option), value]));
    }
    command.arg("helper").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Nobody waits for it, and its failure is nobody's: the next command does its work itself.
    drop(command.spawn());
}

pub(super) fn run(cli: &Cli, _: &HelperArgs) -> Result<u8, CommandError> {
    let_go_of_inherited_files();
    // The server signals its children's process groups. It fails only where it is done already.
    let _ = rustix::process::setsid();
    // Whoever reaps an orphan takes any other status for a crash.
    const FAILED: u8 = 1;
    Ok(try_run(cli).map_or(FAILED, |()| 0))
}

fn try_run(cli: &Cli) -> Result<(), CommandError> {
    let settings = lenient_settings(cli)?;
    let idle = settings.seconds("helper");
    let house = agent::house(&settings)?;
    let limits = house.limits();
    house.set_limits(crate::agent::Limits { stay: Stay::UntilIdle(idle), own: None, ..limits });
    // Another one may have been faster, which is as good.
    let door = Door::open(&Door::path_in(&settings.runtime_directory(), &settings.cluster), None)?;
    // Before it was the data directory, and paths in the settings may be meant from there.
    rustix::process::chdir("/").map_err(|error| agent::internal(error.into()))?;
    let running = serve(Arc::clone(&house), door).map_err(agent::internal)?;
    running.wait_until_idle(idle);
    running.stop();
    Ok(())
}

/// Closes every file that this process was given besides the three standard ones: PostgreSQL leaves files of its data
/// directory open for its commands, and the pipe of its logger, which would wait for us at the server's end.
fn let_go_of_inherited_files() {
    let Ok(listed) = fs::read_dir("/proc/self/fd") else { return };
    let files: Vec<RawFd> = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for file in files.into_iter().filter(|file| *file > 2) {
        // Not the listing's own, which is closed by now.
        if fs::symlink_metadata(format!("/proc/self/fd/{file}")).is_ok() {
            // SAFETY: nothing of this process has opened a file yet that is still open: it has only parsed its arguments.
            unsafe { rustix::io::close(file) };
        }
    }
}
