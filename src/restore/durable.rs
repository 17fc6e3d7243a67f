//! What was restored, brought to the disk wherever it lies; and what could not be brought there, found out.
//!
//! One call a file system instead of one a file. Linux writes in the background long before that call, and tells of a
//! write that failed only whoever had the file system open by then, and only once: so every file system is opened before
//! anything is written. A kernel that does not tell at all is asked file by file, and so is a file system that lies over
//! another one, or whose files somebody else keeps: it hears of no failure there, or does not even pass the call on.
//!
//! Source: syncfs(2), under "Errors" and "Versions": since 5.8 it tells of writes that failed since the file was opened.
//! `ovl_sync_fs` in `fs/overlayfs/super.c`: what failed above is kept with the file system beneath. `fuse_sync_fs` in
//! `fs/fuse/inode.c`: the program that holds the files is not asked, but for virtiofs. `fs/smb/client` has no
//! `sync_fs` and sends a flush for `fsync` alone.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::store::mount::is_remote;

/// The first kernel whose `syncfs` tells of writes that failed.
const TELLS: (u32, u32) = (5, 8);

/// Types of file systems that lie over another one of this host: overlay, eCryptfs.
///
/// Source: statfs(2), `linux/magic.h`.
const OVER_ANOTHER: [u32; 2] = [0x794C_7630, 0xF15F];

/// The file systems that a restore writes to.
pub(super) struct FileSystems {
    /// Opened before anything was written there.
    places: Vec<Place>,
}

struct Place {
    path: PathBuf,
    file: File,
    /// Whether one call tells of all writes that failed.
    tells: bool,
}

impl FileSystems {
    /// Opens the file systems of a data directory and of the places outside it, all of which are there.
    ///
    /// # Errors
    /// The place that cannot be opened, and what the system said.
    pub fn open<'a>(root: &Path, outside: impl Iterator<Item = &'a Path>) -> Result<Self, (PathBuf, io::Error)> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let open = |path: PathBuf| match File::open(&path) {
            Ok(file) => {
                // What cannot be asked is taken for the worst.
                let kind = rustix::fs::fstatfs(&file).map(|found| found.f_type as u32);
                let tells = kind.is_ok_and(|kind| tells_of_failures(&release, kind));
                Ok(Place { path, file, tells })
            }
            Err(error) => Err((path, error)),
        };
        Ok(Self { places: places(root, outside)?.into_iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Returns once everything in these places is on the disk.
    ///
    /// # Errors
    /// The place or file that is not, and what the system said.
    pub fn sync(&self) -> Result<(), (PathBuf, io::Error)> {
        for Place { path, file, tells } in &self.places {
            rustix::fs::syncfs(file).map_err(|error| (path.clone(), error.into()))?;
            if !tells {
                each(path, &mut |path| File::open(path)?.sync_all())?;
            }
        }
        Ok(())
    }
}

/// Returns where things are written, each once and by the name that no link is in. A link in place of `pg_wal` that was
/// there before leads to such a place too.
fn places<'a>(root: &Path, outside: impl Iterator<Item = &'a Path>) -> Result<BTreeSet<PathBuf>, (PathBuf, io::Error)> {
    let wal = Some(root.join("pg_wal")).filter(|path| path.is_symlink());
    let all = outside.map(Path::to_path_buf).chain(wal).chain([root.to_path_buf()]);
    all.map(|place| place.canonicalize().map_err(|error| (place, error))).collect()
}

/// Whether a kernel of this release tells by `syncfs` of writes to a file system of this type that failed. One that calls
/// itself otherwise does not.
fn tells_of_failures(release: &str, kind: u32) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let tells = numbers.next().zip(numbers.next()).is_some_and(|version| version >= TELLS);
    tells && !OVER_ANOTHER.contains(&kind) && !is_remote(kind)
}

/// Hands over every file and directory at and below a path; links are not followed.
fn each(path: &Path, sync: &mut dyn FnMut(&Path) -> io::Result<()>) -> Result<(), (PathBuf, io::Error)> {
    let failed = |error| (path.to_path_buf(), error);
    let kind = path.symlink_metadata().map_err(failed)?.file_type();
    if kind.is_dir() {
        for entry in std::fs::read_dir(path).map_err(failed)? {
            each(&entry.map_err(failed)?.path(), sync)?;
        }
    }
    if kind.is_dir() || kind.is_file() { sync(path).map_err(failed) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::symlink;

    use super::*;

    const EXT4: u32 = 0xEF53;

    fn tree() -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let top = place.path().canonicalize().unwrap();
        for directory in ["data/base/1", "elsewhere/archive_status", "space"] {
            std::fs::create_dir_all(top.join(directory)).unwrap();
        }
        for file in ["data/base/1/1259", "elsewhere/walvault.plan", "victim"] {
            std::fs::write(top.join(file), file).unwrap();
        }
        symlink(top.join("elsewhere"), top.join("data/pg_wal")).unwrap();
        symlink(top.join("victim"), top.join("data/base/link")).unwrap();
        symlink(top.join("data"), top.join("named")).unwrap();
        (place, top)
    }

    #[test]
    fn a_link_in_place_of_pg_wal_leads_to_a_place_that_is_brought_to_the_disk_too() {
        let (_place, top) = tree();
        let space = top.join("space");
        let expected: BTreeSet<PathBuf> = ["data", "elsewhere", "space"].map(|name| top.join(name)).into();
        for root in ["data", "named"] {
            let found = places(&top.join(root), [space.as_path(), &top.join("elsewhere")].into_iter()).unwrap();
            assert_eq!(found, expected, "{root}");
            assert_eq!(places(&top.join(root), [space.as_path()].into_iter()).unwrap(), expected, "{root}");
        }
        let mut opened = FileSystems::open(&top.join("named"), [space.as_path()].into_iter()).unwrap();
        assert_eq!(opened.places.len(), 3);
        for tells in [false, true] {
            opened.places.iter_mut().for_each(|place| place.tells = tells);
            opened.sync().unwrap();
        }
        // Where one call does not tell, each file is asked, and one that cannot be is told.
        std::fs::remove_dir_all(&space).unwrap();
        opened.sync().unwrap();
        opened.places.iter_mut().for_each(|place| place.tells = false);
        assert_eq!(opened.sync().unwrap_err().0, space);
        assert_eq!(FileSystems::open(&top.join("gone"), std::iter::empty()).err().unwrap().0, top.join("gone"));
    }

    #[test]
    fn where_the_kernel_tells_nothing_every_file_and_directory_is_asked_for_and_one_failure_is_enough() {
        let (_place, top) = tree();
        let mut seen = Vec::new();
        let mut see = |path: &Path| {
            seen.push(path.strip_prefix(&top).unwrap().to_str().unwrap().to_owned());
            Ok(())
        };
        each(&top.join("data"), &mut see).unwrap();
        seen.sort();
        assert_eq!(seen, ["data", "data/base", "data/base/1", "data/base/1/1259"]);
        let broken = top.join("data/base/1/1259");
        let mut fail = |path: &Path| if path == broken { Err(io::Error::other("lost")) } else { Ok(()) };
        assert_eq!(each(&top.join("data"), &mut fail).unwrap_err().0, broken);
    }

    #[test]
    fn a_kernel_that_is_too_old_or_calls_itself_otherwise_is_not_believed() {
        for (release, tells) in [
            ("6.1.0-13-amd64", true),
            ("5.8.0", true),
            ("5.10.227-219.884.amzn2.x86_64", true),
            ("10.0", true),
            ("5.7.19", false),
            ("5.4.0-26-generic", false),
            ("4.18.0-553.el8_10.x86_64", false),
            ("4.4.0", false),
            ("6", false),
            ("", false),
            ("linux-6.1", false),
        ] {
            assert_eq!(tells_of_failures(release, EXT4), tells, "{release:?}");
        }
    }

    #[test]
    fn a_file_system_over_another_one_is_not_believed_and_others_are() {
        const OF_LINUX: [(&str, u32, bool); 9] = [
            ("overlay", 0x794C_7630, false),
            ("fuse", 0x6573_5546, false),
            ("ecryptfs", 0xF15F, false),
            ("cifs", 0xFF53_4D42, false),
            ("smb2", 0xFE53_4D42, false),
            ("ext4", EXT4, true),
            ("xfs", 0x5846_5342, true),
            ("btrfs", 0x9123_683E, true),
            ("nfs", 0x6969, false),
        ];
        for (name, kind, tells) in OF_LINUX {
            assert_eq!(tells_of_failures("6.1.0", kind), tells, "{name}");
            assert!(!tells_of_failures("5.7.19", kind), "{name}");
        }
    }
}
