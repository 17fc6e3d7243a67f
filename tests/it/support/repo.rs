//! A repository on a volume, and the ways to damage it.
//!
//! Objects are named by key, as `main/<lane>/wal/...`; a pattern may hold `*`, which also stands for slashes.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use super::scratch::Scratch;
use super::snapshot::Snapshot;
use super::user::ServerUser;

/// An empty place for a repository, owned by the server user, removed on drop.
#[derive(Debug)]
pub struct TestRepo {
    scratch: Scratch,
    root: PathBuf,
}

impl TestRepo {
    /// Creates the directory; nothing is in it.
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let root = scratch.create_dir("repo");
        Self { scratch, root }
    }

    /// Returns the repository's URL.
    pub fn url(&self) -> String {
        format!("file://{}", self.root.display())
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Returns the keys of all files, sorted.
    #[track_caller]
    pub fn objects(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let mut open = vec![self.root.clone()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("list {directory:?}: {error}")) {
                let path = entry.expect("a listed entry").path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let key = path.strip_prefix(&self.root).expect("it was found below the root");
                    keys.push(key.to_string_lossy().into_owned());
                }
            }
        }
        keys.sort();
        keys
    }

    /// Returns the keys that `pattern` describes, sorted.
    #[track_caller]
    pub fn find_all(&self, pattern: &str) -> Vec<String> {
        self.objects().into_iter().filter(|key| matches(pattern, key)).collect()
    }

    /// Returns the one key that `pattern` describes; panics with all keys otherwise.
    #[track_caller]
    pub fn find(&self, pattern: &str) -> String {
        let mut found = self.find_all(pattern);
        assert!(
            found.len() == 1,
            "{pattern} describes {} of these objects:\n{}",
            found.len(),
            self.objects().join("\n")
        );
        found.remove(0)
    }

    /// Returns an object's bytes.
    #[track_caller]
    pub fn read(&self, key: &str) -> Vec<u8> {
        fs::read(self.file(key)).unwrap_or_else(|error| panic!("read {key}: {error}"))
    }

    /// Removes an object.
    #[track_caller]
    pub fn remove(&self, key: &str) {
        fs::remove_file(self.file(key)).unwrap_or_else(|error| panic!("remove {key}: {error}"));
    }

    /// Cuts an object off after `bytes`, which must be fewer than it has.
    #[track_caller]
    pub fn truncate(&self, key: &str, bytes: u64) {
        let had = self.read(key).len() as u64;
        assert!(bytes < had, "{key} has {had} bytes only");
        self.change(key, |file| file.set_len(bytes));
    }

    /// Turns one bit over: `bit` counts from 0 at the object's first byte's lowest bit.
    #[track_caller]
    pub fn flip_bit(&self, key: &str, bit: u64) {
        let (offset, mask) = (bit / 8, 1u8 << (bit % 8));
        self.change(key, |file| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset)?;
            file.write_all_at(&[byte[0] ^ mask], offset)
        });
    }

    /// Puts other bytes in an object's place.
    #[track_caller]
    pub fn replace(&self, key: &str, bytes: &[u8]) {
        self.change(key, |file| file.set_len(0).and_then(|()| file.write_all_at(bytes, 0)));
    }

    /// Makes every attempt of the server user to read an object fail with "permission denied".
    #[track_caller]
    pub fn make_unreadable(&self, key: &str) {
        let file = self.file(key);
        if rustix::process::getuid().is_root() {
            lchown(&file, Some(0), Some(0)).unwrap_or_else(|error| panic!("chown {key}: {error}"));
        }
        set_mode(&file, 0o000);
    }

    /// Undoes [`TestRepo::make_unreadable`].
    #[track_caller]
    pub fn make_readable(&self, key: &str) {
        let file = self.file(key);
        ServerUser::get().take_over(&file);
        set_mode(&file, 0o600);
    }

    /// Copies the whole repository, damage included.
    #[track_caller]
    pub fn duplicate(&self) -> Self {
        let copy = Self::new();
        fs::remove_dir(&copy.root).expect("it is empty");
        let mut command = std::process::Command::new("/usr/bin/cp");
        command.arg("-a").arg(&self.root).arg(&copy.root);
        assert!(command.status().expect("cp runs").success(), "copy {:?}", self.root);
        copy
    }

    /// Returns what the repository holds now; not what somebody is just writing, which has no name of an object yet.
    #[track_caller]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.root).only(|name| !name.contains('#'))
    }

    fn file(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Writes to an object whatever its mode says, and leaves the mode as it was.
    #[track_caller]
    fn change(&self, key: &str, change: impl FnOnce(&fs::File) -> std::io::Result<()>) {
        let path = self.file(key);
        let mode = fs::metadata(&path).unwrap_or_else(|error| panic!("find {key}: {error}")).permissions().mode();
        set_mode(&path, mode | 0o600);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        file.and_then(|file| change(&file)).unwrap_or_else(|error| panic!("change {key}: {error}"));
        set_mode(&path, mode);
    }
}

#[track_caller]
fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .unwrap_or_else(|error| panic!("chmod {path:?}: {error}"));
}

/// Tells whether `pattern` describes all of `key`; `*` stands for any characters.
fn matches(pattern: &str, key: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == key,
        Some((head, rest)) => key.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len()).filter(|&at| tail.is_char_boundary(at)).any(|at| matches(rest, &tail[at..]))
        }),
    }
}
