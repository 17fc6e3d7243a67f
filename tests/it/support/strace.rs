//! What the operating system may do to the real program: fail one of its calls, or let the power go before it.
//!
//! `strace` counts the calls of a run, and in another run answers one of them in the kernel's place. The program is the
//! one that operators run; nothing in it knows of the fault. `strace` counts each thread's calls apart, so a point is the
//! n-th call of its kind in whichever thread comes to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::process::Command;

use super::process::{Outcome, command, run};
use super::scratch::Scratch;

/// Calls that look at files: a disk that cannot be read answers EIO.
const READS: [&str; 7] = ["openat", "read", "pread64", "readv", "getdents64", "statx", "lseek"];
/// Calls that change files: a disk may be full, or broken, or the power may go before them.
const WRITES: [&str; 24] = [
    "write",
    "pwrite64",
    "writev",
    "fsync",
    "fdatasync",
    "syncfs",
    "link",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "mkdir",
    "mkdirat",
    "ftruncate",
    "fallocate",
    "unlink",
    "unlinkat",
    "symlink",
    "symlinkat",
    "chmod",
    "fchmod",
    "fchmodat",
    "lchown",
    "copy_file_range",
];

/// What happens instead of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// The disk is broken.
    Io,
    /// The disk is full.
    Full,
    /// The process and all its threads are gone, and the call was not made.
    Kill,
}

/// One call of a run, and what happens instead of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    call: &'static str,
    number: u32,
    blow: Blow,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {} number {}", self.blow, self.call, self.number)
    }
}

/// How a run with a fault ended.
#[derive(Debug)]
pub struct Struck {
    /// The program's end, as its caller sees it.
    pub outcome: Outcome,
    /// Whether the run came to the point at all.
    pub felt: bool,
}

impl Point {
    /// Runs `wanted` once as it is, and returns every point at which another such run could be struck.
    ///
    /// # Panics
    /// If `strace` is not there or may not trace: a test of faults that finds none proves nothing.
    #[track_caller]
    pub fn all_of(wanted: &Command) -> Vec<Self> {
        let log = Scratch::new();
        let names: Vec<String> = READS.iter().chain(&WRITES).map(|call| format!("?{call}")).collect();
        let mut traced = tracer(&log);
        traced.arg("-y").arg("-e").arg(format!("trace={}", names.join(",")));
        run(over(traced, wanted)).expect_ok();
        let text = fs::read_to_string(log.join("log")).unwrap_or_default();
        let mut counts: BTreeMap<(&'static str, &str), u32> = BTreeMap::new();
        let mut found: BTreeSet<(&'static str, u32)> = BTreeSet::new();
        for line in text.lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let Some((call, arguments)) = rest.trim_start().split_once('(') else { continue };
            let Some(known) = READS.iter().chain(&WRITES).find(|known| **known == call) else { continue };
            let number = counts.entry((known, thread)).or_default();
            *number += 1;
            if on_a_file(arguments) {
                found.insert((known, *number));
            }
        }
        let opened = found.iter().any(|(call, _)| *call == "openat");
        assert!(opened, "strace saw no file opened; may it trace here (CAP_SYS_PTRACE)?\n{text}");
        let at = |(call, number): (&'static str, u32)| {
            // Of the thousandth write each error is not news; they take turns.
            let blows = match WRITES.contains(&call) {
                false => &[Blow::Io][..],
                true if number < 50 => &[Blow::Io, Blow::Full, Blow::Kill],
                true if number % 2 == 0 => &[Blow::Io, Blow::Kill],
                true => &[Blow::Full, Blow::Kill],
            };
            blows.iter().map(move |blow| Self { call, number, blow: *blow })
        };
        found.into_iter().flat_map(at).collect()
    }

    /// Tells whether the call changes files.
    pub fn writes(&self) -> bool {
        WRITES.contains(&self.call)
    }

    /// Runs `wanted` with this fault.
    #[track_caller]
    pub fn strike(&self, wanted: &Command) -> Struck {
        let log = Scratch::new();
        let blow = match self.blow {
            Blow::Io => "error=EIO",
            Blow::Full => "error=ENOSPC",
            Blow::Kill => "signal=KILL",
        };
        // A disk that is full stays full. `write` is also how threads wake each other, which no disk keeps from them.
        let ever = if self.blow == Blow::Full && self.call != "write" { "+" } else { "" };
        let mut traced = tracer(&log);
        traced.arg("-e").arg(format!("trace={}", self.call));
        traced.arg("-e").arg(format!("inject={}:{blow}:when={}{ever}", self.call, self.number));
        let outcome = run(over(traced, wanted));
        let text = fs::read_to_string(log.join("log")).unwrap_or_default();
        Struck { felt: text.contains("(INJECTED)") || outcome.signal.is_some(), outcome }
    }
}

/// Tells whether a call names a file: by its path, or by a descriptor whose path `strace` adds. Sockets and the like are
/// not files; no disk makes them fail.
fn on_a_file(arguments: &str) -> bool {
    match arguments.split_once(['<', '"']) {
        Some((before, rest)) => before.starts_with("AT_FDCWD") || rest.starts_with('/') || before.is_empty(),
        None => false,
    }
}

fn tracer(log: &Scratch) -> Command {
    let mut strace = command("/usr/bin/strace");
    strace.args(["-f", "-qq", "--seccomp-bpf", "-o"]).arg(log.join("log"));
    strace
}

/// Puts `wanted` behind the tracer's own words, with its own surroundings.
fn over(mut tracer: Command, wanted: &Command) -> Command {
    tracer.arg("--").arg(wanted.get_program()).args(wanted.get_args());
    tracer.env_clear().envs(wanted.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(place) = wanted.get_current_dir() {
        tracer.current_dir(place);
    }
    tracer
}
