//! Whether a volume's directory is the volume: what is mounted, and what should be.
//!
//! A mount point without its volume is an empty directory of another file system; whatever is written there is in the way
//! of the volume and lost to everybody who looks for it there.
//!
//! Source: `/etc/fstab`, fstab(5): the second field, with blanks written as `\040`.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const FSTAB: &str = "/etc/fstab";

/// Types of file systems whose bytes lie elsewhere: NFS, SMB three times, FUSE, Ceph, 9P, Lustre, AFS twice.
///
/// Source: statfs(2), `linux/magic.h`.
const REMOTE: [u32; 10] = [
    0x6969,
    0x517B,
    0xFE53_4D42,
    0xFF53_4D42,
    0x6573_5546,
    0x00C3_6400,
    0x0102_1997,
    0x0BD0_0BD0,
    0x5346_414F,
    0x6B41_4653,
];

/// Types of file systems that are known to write well past memory: ext2 to ext4, XFS. Elsewhere, `O_DIRECT` is refused or
/// means nothing, or it is another program or host that would have to keep to it, or a copy of the bytes is made all the
/// same.
///
/// Source: statfs(2), `linux/magic.h`; open(2) under `O_DIRECT`.
const PAST_MEMORY: [u32; 2] = [0xEF53, 0x5846_5342];

/// Returns once it is known that what was written to a file is there: where its bytes go over a network, a write that came
/// to nothing is told by a sync, and by closing the file, whose answer nobody hears. Elsewhere writing itself tells, and
/// nothing is made durable.
///
/// # Errors
/// What became of the writes.
///
/// Source: close(2), nfs(5).
pub fn hear_of_lost_writes(file: &File) -> std::io::Result<()> {
    // What cannot be asked is taken for the worst.
    let remote = rustix::fs::fstatfs(file).map_or(true, |found| is_remote(found.f_type as u32));
    if remote { file.sync_data() } else { Ok(()) }
}

/// Returns whether files of a file system of this type, as statfs(2) tells it, are kept by another host or a program.
pub fn is_remote(kind: u32) -> bool {
    REMOTE.contains(&kind)
}

/// Returns whether large new files are better written past the page cache to a file system of this type, as statfs(2) tells
/// it.
pub(super) fn writes_past_memory(kind: u32) -> bool {
    PAST_MEMORY.contains(&kind)
}

/// Returns the mount point at or above `directory` that `/etc/fstab` names and where nothing is mounted now.
pub fn unmounted(directory: &Path) -> Option<PathBuf> {
    let table = std::fs::read_to_string(FSTAB).unwrap_or_default();
    let points = mount_points(&table);
    directory.ancestors().find(|path| points.iter().any(|point| point == path) && !is_mounted(path)).map(Path::to_owned)
}

/// Returns whether two paths lie on one file system; `None` if one of them cannot be looked at.
pub fn share_a_file_system(one: &Path, other: &Path) -> Option<bool> {
    Some(std::fs::metadata(one).ok()?.dev() == std::fs::metadata(other).ok()?.dev())
}

fn mount_points(table: &str) -> Vec<PathBuf> {
    let lines = table.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let points = lines.filter_map(|line| line.split_whitespace().nth(1)).filter(|point| point.starts_with('/'));
    points
        .map(|point| PathBuf::from(point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")))
        .collect()
}

/// The root of a file system has another device than the directory above it, or is the same directory.
fn is_mounted(point: &Path) -> bool {
    let Some(above) = point.parent() else { return true };
    share_a_file_system(point, above) == Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let table =
            "# comment /x\nUUID=1 / ext4 defaults 0 1\nnfs:/b /mnt/my\\040backup nfs hard 0 0\nx none swap sw 0 0\n";
        assert_eq!(mount_points(table), [PathBuf::from("/"), PathBuf::from("/mnt/my backup")]);
    }

    #[test]
    fn a_file_system_is_known_by_its_type() {
        const OF_LINUX: [(&str, u32, bool, bool); 9] = [
            ("nfs", 0x6969, true, false),
            ("smb2", 0xFE53_4D42, true, false),
            ("fuse", 0x6573_5546, true, false),
            ("ext4", 0xEF53, false, true),
            ("xfs", 0x5846_5342, false, true),
            ("tmpfs", 0x0102_1994, false, false),
            ("overlay", 0x794C_7630, false, false),
            ("btrfs", 0x9123_683E, false, false),
            ("zfs", 0x2FC1_2FC1, false, false),
        ];
        for (name, kind, remote, past_memory) in OF_LINUX {
            assert_eq!((is_remote(kind), writes_past_memory(kind)), (remote, past_memory), "{name}");
        }
        hear_of_lost_writes(&tempfile::tempfile().expect("a file")).expect("nothing was lost");
    }

    #[test]
    fn a_file_system_is_mounted_where_the_device_changes() {
        assert!(is_mounted(Path::new("/")));
        assert!(is_mounted(Path::new("/proc")));
        assert!(!is_mounted(Path::new("/usr/bin")));
        assert_eq!(share_a_file_system(Path::new("/proc"), Path::new("/usr")), Some(false));
        assert_eq!(share_a_file_system(Path::new("/no/such"), Path::new("/usr")), None);
    }
}
