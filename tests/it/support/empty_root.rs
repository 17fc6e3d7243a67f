//! A container's world: a root with the program in it and nothing else, read-only, and one volume; the user is any number.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Gid, Uid, chownat};

use super::process::{Outcome, command, run};
use super::scratch::Scratch;
use super::user::ServerUser;
use super::walvault;

/// Who the program runs as: a number that no password file knows, in root's group, as OpenShift does it.
const USER: u32 = 54321;

/// The root and its volume, removed on drop.
#[derive(Debug)]
pub struct EmptyRoot {
    scratch: Scratch,
    with_proc: bool,
    environment: Vec<(String, String)>,
}

impl EmptyRoot {
    /// Makes the root; a program that is not static gets the files that load it.
    #[track_caller]
    pub fn new() -> Self {
        let scratch = Scratch::new();
        for directory in ["root", "root/proc", "root/opt", "root/volume", "volume"] {
            scratch.create_dir(directory);
        }
        let root = Self { scratch, with_proc: true, environment: Vec::new() };
        for file in loaders(walvault::binary()) {
            let place = root.scratch.join("root").join(file.strip_prefix("/").expect("ldd gives absolute paths"));
            fs::create_dir_all(place.parent().expect("a file in a directory")).expect("a directory of ours");
            copy(&file, &place);
        }
        copy(walvault::binary(), &root.scratch.join("root/walvault"));
        root
    }

    /// Leaves out /proc, which every container engine mounts.
    pub fn without_proc(mut self) -> Self {
        self.with_proc = false;
        self
    }

    /// Sets a variable; there are no others.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Returns the volume, which the program finds at `/volume`.
    pub fn volume(&self) -> PathBuf {
        self.scratch.join("volume")
    }

    /// Gives the volume, and all that is in it now, to the program's user.
    pub fn hand_over(&self) {
        fn give(path: &Path) {
            chownat(
                rustix::fs::CWD,
                path,
                Some(Uid::from_raw(USER)),
                Some(Gid::ROOT),
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            )
            .unwrap_or_else(|error| panic!("chown {path:?}: {error}"));
            if path.is_dir() && !path.is_symlink() {
                fs::read_dir(path).expect("a directory").for_each(|entry| give(&entry.expect("an entry").path()));
            }
        }
        // Only root can; anybody else is that user inside.
        if ServerUser::get().setpriv().is_some() {
            give(&self.volume());
        }
    }

    /// Runs a program of the root or the volume, by its path there.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> Outcome {
        const MOUNTS: &str = r#"
            /usr/bin/mount --bind "$1" "$1"
            /usr/bin/mount --bind "$2" "$1/volume"
            [ "$3" = no ] || /usr/bin/mount --rbind /proc "$1/proc"
            /usr/bin/mount -o remount,bind,ro "$1"
            root=$1; shift 3
        "#;
        let mut own = match ServerUser::get().setpriv() {
            Some(_) => {
                let mut own = Command::new("/usr/bin/unshare");
                let enter = format!("exec /usr/sbin/chroot --userspec={USER}:0 --groups= \"$root\" \"$@\"");
                own.args(["--mount", "/bin/sh", "-euc"]).arg(format!("{MOUNTS}{enter}"));
                own
            }
            None => {
                let mut own = command("/usr/bin/unshare");
                let enter = format!("exec /usr/bin/unshare --user --map-user={USER} --root=\"$root\" \"$@\"");
                own.args(["--user", "--map-root-user", "--mount", "/bin/sh", "-euc"]).arg(format!("{MOUNTS}{enter}"));
                own
            }
        };
        own.arg("sh").arg(self.scratch.join("root")).arg(self.volume()).arg(if self.with_proc { "yes" } else { "no" });
        own.arg(program).args(arguments).current_dir("/");
        own.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        run(own)
    }
}

/// Returns the loader and the libraries of a program; none if it is static.
fn loaders(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("/usr/bin/ldd").arg(program).output().expect("ldd runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    text.lines().filter_map(path).collect()
}

/// Copies a file by another process: a thread that forks meanwhile would have the copy open for writing, and it could not be
/// run.
fn copy(file: &Path, to: &Path) {
    let copied = Command::new("/bin/cp").arg(file).arg(to).status().expect("cp runs");
    assert!(copied.success(), "copy {file:?}");
}
