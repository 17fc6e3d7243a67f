//! Whether a volume's directory is the volume: what is mounted, and what should be.
//!
//! A mount point without its volume is an empty directory of another file system; whatever is written there is in the way
//! of the volume and lost to everybody who looks for it there.
//!
//! Source: `/etc/fstab`, fstab(5): the second field, with blanks written as `\040`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const FSTAB: &str = "/etc/fstab";

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
    fn a_file_system_is_mounted_where_the_device_changes() {
        assert!(is_mounted(Path::new("/")));
        assert!(is_mounted(Path::new("/proc")));
        assert!(!is_mounted(Path::new("/usr/bin")));
        assert_eq!(share_a_file_system(Path::new("/proc"), Path::new("/usr")), Some(false));
        assert_eq!(share_a_file_system(Path::new("/no/such"), Path::new("/usr")), None);
    }
}
