//! What a helper did, for whoever counts after it: it serves no metrics that anybody would scrape in its half minute.
//!
//! When it ends, a helper adds its counters to a file beside the socket, in the text that the textfile collector of
//! Prometheus' node exporter reads. The next agent takes the file, goes on counting from there, and removes it. Whoever
//! writes or takes it holds the door. A helper that is killed takes with it what it had counted.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use tracing::{debug, info};

use super::house::House;
use super::peer;

/// Longest file that makes sense.
const LIMIT: u64 = 64 << 10;

impl House {
    /// Adds what this process counted to what is kept in `file`.
    ///
    /// # Errors
    /// If it cannot be written; then what was kept is as it was.
    pub(super) fn keep_counts(&self, file: &Path) -> io::Result<()> {
        let before = read(file, &self.limits().users).unwrap_or_default();
        let text = self.metrics.kept_text(self.serves().1, &before);
        let fresh = file.with_extension("prom.new");
        // Whoever reads metrics may be another user; there is nothing secret in them.
        let flags = OFlags::NOFOLLOW.bits() as i32;
        let mut made = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(&fresh)?;
        made.write_all(text.as_bytes())?;
        made.set_permissions(fs::Permissions::from_mode(0o644))?;
        fs::rename(&fresh, file)
    }

    /// Goes on counting from what is kept in `file`, and removes it.
    pub(super) fn take_counts(&self, file: &Path) {
        let Some(text) = read(file, &self.limits().users) else { return };
        // Left in place it would be counted once more by whoever comes next.
        if let Err(error) = fs::remove_file(file) {
            return debug!(%error, "what helpers counted cannot be taken");
        }
        self.metrics.take_in(self.serves().1, &text);
        info!("counting on from what helpers did");
    }
}

/// Returns what is kept, if it is of a user whose word is taken.
fn read(file: &Path, users: &[u32]) -> Option<String> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(file).ok()?;
    let found = opened.metadata().ok()?;
    if !found.is_file() || !peer::is_trusted(found.uid(), users) {
        return None;
    }
    let mut text = String::new();
    opened.take(LIMIT).read_to_string(&mut text).ok()?;
    Some(text)
}
