//! What people and programs see: data on stdout, words on stderr.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::LINE_BYTES;
use super::context::CommandError;
use super::exit::Role;
use crate::error;
use crate::progress::Progress;
use crate::view;

/// Writes to stdout. A reader that went away is no failure of ours.
pub(super) fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Returns how many characters a line of stdout has, if it is a terminal.
pub(super) fn width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Writes a value as JSON to stdout.
pub(super) fn print_json(value: &serde_json::Value) {
    print(&format!("{value:#}\n"));
}

/// Puts what monitors read into a file, whole or not at all; `text` makes it of what the file held. What cannot be written is
/// said, and changes nothing else.
pub(super) fn write_metrics(file: &Path, text: impl FnOnce(&str) -> String) {
    let before = std::fs::read_to_string(file).unwrap_or_default();
    let beside = file.with_extension(format!("{}.new", std::process::id()));
    let written = std::fs::write(&beside, text(&before));
    if let Err(problem) = written.and_then(|()| std::fs::rename(&beside, file)) {
        let _ = std::fs::remove_file(&beside);
        complain(&format!("warning: metrics not written to {}: {problem}", file.display()));
    }
}

/// Writes one line to stderr.
pub(super) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Reports a failure, in one line where the reader is a server's log.
pub(super) fn error(failure: &CommandError, role: Role) {
    match role {
        Role::Push | Role::Fetch(_) => {
            let hint = failure.hint.as_ref().map_or_else(String::new, |hint| format!("; hint: {hint}"));
            let room = LINE_BYTES - "walvault: error: \n".len() - hint.len().min(LINE_BYTES / 2);
            let line = format!("walvault: error: {}{hint}", error::one_line(failure.error.as_ref(), room));
            complain(&error::cut(line, LINE_BYTES - 1));
        }
        Role::Status => print(&format!("UNKNOWN: {}\n", error::one_line(failure.error.as_ref(), LINE_BYTES))),
        Role::Backup | Role::Restore | Role::Check | Role::Other => {
            complain(&format!("error: {}", error::chain(failure.error.as_ref())));
            if let Some(hint) = &failure.hint {
                complain(&format!("hint: {hint}"));
            }
        }
    }
}

/// Does a long piece of work and says on stderr how far it is: on a terminal in one line that is written anew, elsewhere
/// in a line with fields from time to time, for logs and whoever reads them.
pub(super) fn shown<T>(verb: &str, progress: &Progress, quiet: bool, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        // Dropped when the work is over, also by a panic.
        let (working, over) = mpsc::channel::<()>();
        let reporter = (!quiet).then(|| scope.spawn(move || report(verb, progress, &over)));
        let done = work();
        drop(working);
        // The line is gone before anything else is said.
        if let Some(reporter) = reporter {
            let _ = reporter.join();
        }
        done
    })
}

fn report(verb: &str, progress: &Progress, over: &mpsc::Receiver<()>) {
    /// A terminal's line moves; a log is not filled by a backup of a day.
    const TERMINAL: Duration = Duration::from_millis(250);
    const LOG: Duration = Duration::from_secs(30);
    let terminal = std::io::stderr().is_terminal();
    let pause = if terminal { TERMINAL } else { LOG };
    let started = Instant::now();
    while over.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
        if progress.total() == 0 {
            continue;
        }
        if terminal {
            // To the line's start, the text, and what was there before erased to the line's end.
            let line = view::human::progress(verb, progress, started.elapsed());
            let _ = write!(std::io::stderr().lock(), "\r{line}\x1b[K");
        } else {
            complain(&view::human::progress_fields(verb, progress, started.elapsed()));
        }
    }
    if terminal {
        let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
    }
}
