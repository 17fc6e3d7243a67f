//! A timeline's history as the server itself has it, for when the archive cannot be asked.
//!
//! A promotion is past the point of return when PostgreSQL asks for the history of the timeline that it leaves:
//! `standby.signal` is gone by then, and an answer above 125 ends the server with its new timeline half made. So a store
//! that is gone must not matter for that name. The first timeline has no history, whoever is asked; every other history
//! was written to `pg_wal` when it was received, restored or made, and never changes.
//!
//! Source: `writeTimeLineHistory` in `src/backend/access/transam/timeline.c`, called by `StartupXLOG` in `xlog.c` after
//! the signal files are removed.

use std::io::Write;
use std::path::Path;

use super::backfill::history_in;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;

/// Returns whether a name is one that no server ever gives to a file: nothing needs to be asked to know that it is
/// absent.
pub fn never_exists(name: &WalFileName) -> bool {
    *name == WalFileName::History(TimelineId::FIRST)
}

/// Puts the history that lies in the server's `pg_wal` where it was wanted; returns whether a sound one was there.
///
/// # Errors
/// If it cannot be written.
pub fn copy_own_history(wal: &Path, name: &WalFileName, destination: &Path) -> std::io::Result<bool> {
    let WalFileName::History(timeline) = name else { return Ok(false) };
    if !matches!(history_in(wal, *timeline), Ok(Some(_))) {
        return Ok(false);
    }
    let own = std::fs::read(wal.join(name.to_string()))?;
    super::fetch::put_in_place(destination, |error| error, &mut |file| file.write_all(&own))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_a_sound_history_is_taken_from_the_servers_own_directory() {
        let wal = tempfile::tempdir().unwrap();
        let name = |text: &str| text.parse::<WalFileName>().unwrap();
        let wanted = wal.path().join("RECOVERYHISTORY");
        let copied = |text: &str| copy_own_history(wal.path(), &name(text), &wanted).unwrap();
        assert!(!copied("00000002.history"));
        std::fs::write(wal.path().join("00000002.history"), "1\t0/3000000\tno recovery target specified\n").unwrap();
        std::fs::write(wal.path().join("00000003.history"), "2\t0/3").unwrap();
        std::fs::write(wal.path().join("00000004.history"), "").unwrap();
        std::fs::write(wal.path().join("000000010000000000000001"), "x").unwrap();
        for other in ["00000004.history", "00000005.history", "000000010000000000000001"] {
            assert!(!copied(other), "{other}");
        }
        assert!(!wanted.exists());
        assert!(copied("00000002.history"));
        assert_eq!(std::fs::read(&wanted).unwrap(), std::fs::read(wal.path().join("00000002.history")).unwrap());
        assert!(never_exists(&name("00000001.history")) && !never_exists(&name("00000002.history")));
    }
}
