//! A file without a name: complete and verified before anybody sees it, and gone with the last descriptor of it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
#[cfg(test)]
use std::sync::OnceLock;

use crate::archive::{FetchError, Found};
use crate::store::mount::hear_of_lost_writes;

/// Writes what was found to such a file in `scratch`.
pub(super) fn written(scratch: Option<&Path>, found: &Found) -> Result<File, FetchError> {
    let path = scratch.unwrap_or(Path::new("scratch_dir"));
    let failed = |source| FetchError::Write { path: path.to_path_buf(), source };
    let mut file = scratch.ok_or(io::ErrorKind::NotFound.into()).and_then(open_nameless).map_err(failed)?;
    found.write_to(path, &mut file)?;
    hear_of_lost_writes(&file).map_err(failed)?;
    Ok(file)
}

fn open_nameless(scratch: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::TMPFILE.bits() as i32;
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(flags).open(scratch) {
        // Not every file system can; then it has a name for a moment, and cannot be linked.
        Err(error) if error.kind() != io::ErrorKind::StorageFull => {
            let mut random = [0; 8];
            getrandom::fill(&mut random).map_err(io::Error::other)?;
            let path = scratch.join(format!("walvault-{}", hex::encode(random)));
            let file = options.create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        opened => opened,
    }
}

/// As [`written`], where no directory can be used.
pub(super) fn in_memory(found: &Found) -> Result<File, FetchError> {
    let path = Path::new("memory");
    let made = rustix::fs::memfd_create("walvault", rustix::fs::MemfdFlags::CLOEXEC);
    let failed = |error: rustix::io::Errno| FetchError::Write { path: path.to_path_buf(), source: error.into() };
    let mut file = File::from(made.map_err(failed)?);
    found.write_to(path, &mut file)?;
    Ok(file)
}

#[cfg(test)]
type Instead = Box<dyn Fn(&File) -> io::Result<()> + Send + Sync>;

/// Makes durable ahead of time what PostgreSQL will wait for.
#[derive(Default)]
pub(super) struct SyncAhead {
    /// What a test does in the place of the kernel.
    #[cfg(test)]
    pub instead: OnceLock<Instead>,
}

impl SyncAhead {
    /// Has the disk take a file that will be linked into the file system `device`: PostgreSQL syncs what was fetched before it
    /// replays it, and finds that done. What will be copied is written anew; to sync it here would be of no use.
    ///
    /// # Errors
    /// What became of the writes. An error is told once, and PostgreSQL's own sync may succeed after it: the file must not be
    /// handed over.
    ///
    /// Source: `durable_rename` in `src/backend/storage/file/fd.c`, which `KeepFileRestoredFromArchive` in
    /// `src/backend/access/transam/xlogarchive.c` calls; fsync(2).
    pub fn linked_into(&self, device: Option<u64>, file: &File) -> io::Result<()> {
        if device != Some(file.metadata()?.dev()) {
            return Ok(());
        }
        #[cfg(test)]
        if let Some(instead) = self.instead.get() {
            return instead(file);
        }
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_leaves_nothing_behind() {
        use std::os::unix::fs::FileExt;
        let directory = tempfile::tempdir().expect("a directory");
        let found = Found::sample(b"bytes");
        for file in [written(Some(directory.path()), &found), in_memory(&found)] {
            let mut bytes = [0; 5];
            file.expect("room").read_exact_at(&mut bytes, 0).expect("just written");
            assert_eq!(&bytes, b"bytes");
        }
        assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 0);
        assert!(written(None, &found).is_err() && written(Some(Path::new("/nowhere")), &found).is_err());
    }

    #[test]
    fn only_what_will_be_linked_is_synced_ahead() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU32, Ordering};
        let directory = tempfile::tempdir().expect("a directory");
        let file = written(Some(directory.path()), &Found::sample(b"bytes")).expect("room");
        let device = file.metadata().expect("a file").dev();
        let (sync, asked) = (SyncAhead::default(), Arc::new(AtomicU32::new(0)));
        sync.linked_into(Some(device), &file).expect("a disk that works");
        let counted = Arc::clone(&asked);
        let failing = move |_: &File| {
            counted.fetch_add(1, Ordering::SeqCst);
            Err(io::ErrorKind::Other.into())
        };
        assert!(sync.instead.set(Box::new(failing)).is_ok());
        for elsewhere in [None, Some(device + 1)] {
            sync.linked_into(elsewhere, &file).expect("nothing was synced");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        assert!(sync.linked_into(Some(device), &file).is_err(), "an error of the disk is told");
    }
}
