//! Exit statuses: a protocol with PostgreSQL, decided here and nowhere else.
//!
//! What a status means depends on who calls. PostgreSQL reads `archive_command`'s 1 to 125 as *try again* and anything
//! above as the archiver's death; it reads `restore_command`'s 1 to 125 as *there is no such file* and anything above as
//! *stop the recovery*. So each command has its own table, and it covers what goes wrong before the command begins too:
//! usage, configuration, panics.
//!
//! Source: `shell_archive_file` in `src/backend/archive/shell_archive.c`, `RestoreArchivedFile` in
//! `src/backend/access/transam/xlogarchive.c`, `wait_result_is_any_signal` in `src/common/wait_error.c`.

use std::ffi::OsString;
use std::path::Path;

use crate::error::ErrorKind;
use crate::instance::RecoveryMode;
use crate::workflow::check::Level;

/// The command line makes no sense.
pub const USAGE: u8 = 64;
/// The configuration makes no sense.
pub const CONFIGURATION: u8 = 78;
/// Anything above 125, but not 143, which PostgreSQL takes for its own request to stop.
const ABORT_RECOVERY: u8 = 200;

/// What kind of command was called, as far as its exit status goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `wal push`.
    Push,
    /// `wal fetch`, for a server that is doing this.
    Fetch(RecoveryMode),
    /// `backup`.
    Backup,
    /// `restore` and `plan`.
    Restore,
    /// `check`.
    Check,
    /// `status`.
    Status,
    /// Any other.
    Other,
}

/// What went wrong, as far as the exit status goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The command line makes no sense.
    Usage,
    /// The configuration makes no sense, or there is no repository.
    Configuration,
    /// The file or the lane belongs to another server.
    NotThisLane,
    /// A backup's WAL is not in the archive.
    WalMissing,
    /// Another backup is at work.
    LeaseHeld,
    /// Nothing fits the target, or more than one thing does.
    NoPlan,
    /// Anything else.
    Failed(ErrorKind),
    /// A bug.
    Panic,
}

impl Role {
    /// Reads the role from the bare arguments, before anything that could fail is done with them.
    pub fn of(arguments: &[OsString]) -> Self {
        match wal_command(plain_words(arguments)) {
            Some("push") => return Role::Push,
            Some(_) => return Role::Fetch(mode_of(arguments.iter())),
            None => {}
        }
        // The words make no sense as they stand, such as where an option's value is missing. Whoever called may be a
        // recovery: a server that pushes comes to no harm by what a recovery must hear.
        let after_wal = || arguments.iter().skip_while(|argument| *argument != "wal").skip(1);
        if after_wal().any(|argument| argument == "fetch") {
            return Role::Fetch(mode_of(arguments.iter()));
        }
        if after_wal().any(|argument| argument == "push") {
            return Role::Push;
        }
        match arguments {
            _ if arguments.iter().any(|argument| argument == "backup") => Role::Backup,
            _ if arguments.iter().any(|argument| argument == "restore" || argument == "plan") => Role::Restore,
            _ => match plain_words(arguments).next() {
                Some(word) if word == "check" => Role::Check,
                Some(word) if word == "status" => Role::Status,
                _ => Role::Other,
            },
        }
    }
}

/// Returns the words that are neither options nor the values of global ones, which may stand anywhere: a cluster may be
/// called as a command is.
fn plain_words(arguments: &[OsString]) -> impl Iterator<Item = &OsString> {
    let mut words = arguments.iter().skip(1);
    std::iter::from_fn(move || {
        loop {
            let word = words.next()?;
            match word.to_str() {
                Some("--repo" | "--cluster" | "--config" | "--lane") => drop(words.next()),
                Some(option) if option.starts_with('-') => {}
                _ => return Some(word),
            }
        }
    })
}

/// Returns which of the two commands that servers call is meant, if one is: the first of their words behind `wal`.
fn wal_command<'a>(words: impl Iterator<Item = &'a OsString>) -> Option<&'a str> {
    let mut after_wal = words.skip_while(|word| *word != "wal").skip(1).filter_map(|word| word.to_str());
    after_wal.find(|word| ["push", "fetch"].contains(word))
}

/// Returns what the server is doing that the destination among these words belongs to. Which word that is, is not known
/// before the command line was understood; but only a path into `pg_wal` tells more than the working directory does.
fn mode_of<'a>(mut words: impl Iterator<Item = &'a OsString>) -> RecoveryMode {
    let in_pg_wal = |word: &&OsString| Path::new(word).parent().is_some_and(|parent| parent.ends_with("pg_wal"));
    RecoveryMode::of_wal_path(words.find(in_pg_wal).map_or(Path::new(""), Path::new), None)
}

/// Returns the status with which a command leaves when a signal ends it, if it must not die of the signal.
///
/// The archiver takes a command's death for its own, and a standby ends. Archive recovery does too, which is right: it
/// must not take a signal for "there is no such file".
pub fn on_signal(role: Role) -> Option<u8> {
    match role {
        Role::Push | Role::Fetch(RecoveryMode::Standby) => Some(failure(role, Fault::Failed(ErrorKind::Cancelled))),
        Role::Fetch(RecoveryMode::Archive | RecoveryMode::NoSignal)
        | Role::Backup
        | Role::Restore
        | Role::Check
        | Role::Status
        | Role::Other => None,
    }
}

/// Returns the status of a command that failed.
pub fn failure(role: Role, fault: Fault) -> u8 {
    match (role, fault) {
        // A standby asks again; what it must not hear is a status that ends it.
        (Role::Fetch(RecoveryMode::Standby), _) => 1,
        // Archive recovery, and whoever gives no sign, must never hear "there is no such file" by mistake.
        (Role::Fetch(_), _) => ABORT_RECOVERY,
        (Role::Push, Fault::Failed(ErrorKind::Conflict)) => 3,
        (Role::Push, Fault::NotThisLane) => 4,
        (Role::Backup, Fault::LeaseHeld) => 2,
        (Role::Backup, Fault::WalMissing) => 3,
        (Role::Restore, Fault::NoPlan) => 2,
        (Role::Restore, Fault::NotThisLane | Fault::Failed(ErrorKind::Conflict)) => 3,
        // A monitor knows no other word for "cannot be told".
        (Role::Status, _) => UNKNOWN,
        (_, Fault::Usage) => USAGE,
        (Role::Check, _) => judged(Level::Fail),
        (_, Fault::Configuration) => CONFIGURATION,
        (_, _) => 1,
    }
}

/// Returns the status that `check` and `status` leave with, as Nagios and its relatives read it.
pub fn judged(worst: Level) -> u8 {
    match worst {
        Level::Ok | Level::NotChecked => 0,
        Level::Warn => 1,
        Level::Fail => 2,
    }
}

/// What a monitor calls "cannot be told".
pub const UNKNOWN: u8 = 3;

/// The status of a `restore` that is complete but for the databases that it was told to leave out, and that are still there.
pub const LEFT_OUT: u8 = 4;

/// The status with which `wal fetch` says that a file is proven not to exist.
pub const PROVEN_ABSENT: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const FAULTS: [Fault; 17] = [
        Fault::Usage,
        Fault::Configuration,
        Fault::NotThisLane,
        Fault::WalMissing,
        Fault::LeaseHeld,
        Fault::NoPlan,
        Fault::Panic,
        Fault::Failed(ErrorKind::NotFound),
        Fault::Failed(ErrorKind::Conflict),
        Fault::Failed(ErrorKind::Denied),
        Fault::Failed(ErrorKind::Full),
        Fault::Failed(ErrorKind::Busy),
        Fault::Failed(ErrorKind::Unavailable),
        Fault::Failed(ErrorKind::Corrupt),
        Fault::Failed(ErrorKind::Invalid),
        Fault::Failed(ErrorKind::Cancelled),
        Fault::Failed(ErrorKind::Internal),
    ];

    #[test]
    fn no_failure_of_a_fetch_in_recovery_looks_like_the_end_of_the_log() {
        for fault in FAULTS {
            for mode in [RecoveryMode::Archive, RecoveryMode::NoSignal] {
                let status = failure(Role::Fetch(mode), fault);
                assert!(status > 125 && status != 143, "{fault:?} in {mode:?} exits {status}");
            }
        }
    }

    #[test]
    fn no_failure_of_a_fetch_ends_a_standby() {
        for fault in FAULTS {
            assert_eq!(failure(Role::Fetch(RecoveryMode::Standby), fault), 1, "{fault:?}");
        }
    }

    #[test]
    fn no_failure_of_a_push_kills_the_archiver_or_looks_like_success() {
        for fault in FAULTS {
            let status = failure(Role::Push, fault);
            assert!((1..=125).contains(&status), "{fault:?} exits {status}");
        }
        assert_eq!(failure(Role::Push, Fault::Failed(ErrorKind::Conflict)), 3);
        assert_eq!(failure(Role::Push, Fault::NotThisLane), 4);
        assert_eq!(failure(Role::Push, Fault::Usage), 64);
        assert_eq!(failure(Role::Push, Fault::Configuration), 78);
    }

    #[test]
    fn a_signal_never_looks_like_the_end_of_the_log_nor_ends_an_archiver_or_a_standby() {
        assert_eq!(on_signal(Role::Fetch(RecoveryMode::Archive)), None);
        assert_eq!(on_signal(Role::Fetch(RecoveryMode::NoSignal)), None);
        assert_eq!(on_signal(Role::Fetch(RecoveryMode::Standby)), Some(1));
        assert_eq!(on_signal(Role::Push), Some(1));
    }

    #[test]
    fn the_mode_is_found_wherever_the_destination_stands() {
        let data = tempdir_with_standby();
        let destination = data.join("pg_wal/RECOVERYXLOG").into_os_string();
        for line in ["fetch NAME PATH", "fetch --lane 7-1 NAME PATH", "--json fetch NAME PATH --cluster main"] {
            let word = |word: &str| if word == "PATH" { destination.clone() } else { word.into() };
            let words: Vec<OsString> = format!("walvault wal {line}").split(' ').map(word).collect();
            assert_eq!(Role::of(&words), Role::Fetch(RecoveryMode::Standby), "{line}");
        }
        std::fs::remove_dir_all(data).expect("it was made here");
    }

    fn tempdir_with_standby() -> std::path::PathBuf {
        let data = std::env::temp_dir().join(format!("walvault-mode-{}", std::process::id()));
        std::fs::create_dir_all(data.join("global")).expect("the temporary directory is writable");
        std::fs::write(data.join("global/pg_control"), "").expect("the temporary directory is writable");
        std::fs::write(data.join("standby.signal"), "").expect("the temporary directory is writable");
        data
    }

    #[test]
    fn the_role_is_found_whatever_stands_before_it() {
        let role = |line: &str| Role::of(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(role("walvault --cluster main wal push pg_wal/x"), Role::Push);
        assert_eq!(role("walvault --no-such-flag wal push"), Role::Push);
        assert_eq!(role("walvault wal fetch"), Role::Fetch(RecoveryMode::NoSignal));
        assert_eq!(role("walvault --repo file:///x wal fetch a b c"), Role::Fetch(RecoveryMode::NoSignal));
        assert_eq!(role("walvault wal --cluster main fetch a b"), Role::Fetch(RecoveryMode::NoSignal));
        assert_eq!(role("walvault wal --cluster main push a"), Role::Push);
        // A cluster may have any name, and its name may be missing.
        let fetch = Role::Fetch(RecoveryMode::NoSignal);
        assert_eq!(role("walvault wal --cluster push fetch a b"), fetch);
        assert_eq!(role("walvault --cluster wal wal --lane push fetch a b"), fetch);
        assert_eq!(role("walvault wal --cluster fetch push a"), Role::Push);
        assert_eq!(role("walvault --cluster wal fetch a b"), fetch);
        assert_eq!(role("walvault wal --cluster fetch a b"), fetch);
        assert_eq!(role("walvault wal --cluster push a"), Role::Push);
        assert_eq!(role("walvault --cluster push wal fetch a b"), fetch);
        assert_eq!(role("walvault wal --lane push fetch"), fetch);
        assert_eq!(role("walvault backup"), Role::Backup);
        assert_eq!(role("walvault plan --to-latest"), Role::Restore);
        assert_eq!(role("walvault list"), Role::Other);
        assert_eq!(role("walvault --cluster check --json -v check"), Role::Check);
        assert_eq!(role("walvault --cluster=main status"), Role::Status);
        assert_eq!(role("walvault --cluster check list"), Role::Other);
    }
}
