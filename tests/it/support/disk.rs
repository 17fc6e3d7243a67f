//! A disk that is full, or may only be read, for one command and nobody else.
//!
//! The command gets a mount namespace of its own, so nothing has to be unmounted, however the test ends. Root makes one
//! outright; everybody else makes one within a user namespace.

use std::path::Path;
use std::process::Command;

use super::process::command;
use super::user::ServerUser;

/// What is wrong with the disk below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// What is there can be read, and not a byte written.
    Full,
    /// Mounted read-only.
    ReadOnly,
}

impl Disk {
    /// Fills `$1`: a small file system takes its place, with a copy of its contents.
    const FULL: &'static str = r#"
        kept=$(mktemp -d) && cp -a "$1/." "$kept"
        mount -t tmpfs -o size=$(($(du -sk "$1" | cut -f 1) + 512))k,mode=755 walvault-test "$1"
        chown --reference="$kept" "$1" && chmod --reference="$kept" "$1"
        cp -a "$kept/." "$1" && rm -rf "$kept"
        cat /dev/zero > "$1/filler#" 2>/dev/null
    "#;
    const READ_ONLY: &'static str = r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1""#;

    /// Returns `wanted` as it runs when the disk below `directory` is like this.
    pub fn below(self, directory: &Path, wanted: &Command) -> Command {
        let script = match self {
            Self::Full => Self::FULL,
            Self::ReadOnly => Self::READ_ONLY,
        };
        let mut own = match ServerUser::get().setpriv() {
            Some(setpriv) => {
                let mut own = Command::new("/usr/bin/unshare");
                own.args(["--mount", "/bin/sh", "-c"]).arg(format!("{script}\nshift; exec {setpriv} \"$@\""));
                own
            }
            None => {
                let mut own = command("/usr/bin/unshare");
                own.args(["--user", "--map-root-user", "--mount", "/bin/sh", "-c"]);
                own.arg(format!("{script}\nshift; exec \"$@\""));
                own
            }
        };
        own.arg("sh").arg(directory).arg(wanted.get_program()).args(wanted.get_args());
        own.env_clear().envs(wanted.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(place) = wanted.get_current_dir() {
            own.current_dir(place);
        }
        own
    }
}
