//! A directory of a mounted volume (local disk, persistent volume, NFS) as an object store.
//!
//! An object is a file; its key is its path below the root. A file appears under its name whole and durable or not at
//! all: it is written under an unfinished name (`<name>#<random>`, which no [`Key`] can spell), synced, linked to its
//! name and its directory synced. Reading is `object_store`'s [`LocalFileSystem`]; writing, listing and deleting are
//! ours, because that library
//! - does not sync directories it finds, although the process that made them may have died before it synced them,
//! - answers "already exists" for a file that may not be durable yet,
//! - does not sync a directory it deleted from,
//! - leaves an entry it cannot examine out of a listing without a word,
//! - makes the root anew when the volume has gone.
//!
//! Directories are made with mode 0750: the group that may read the data directory (`initdb --allow-group-access`) may
//! read the repository, others may not enter it. The root is never made here except by [`create_root`].
//!
//! Source: what has to be synced, `durable_rename` in `src/common/file_utils.c` and fsync(2); that a link whose reply
//! was lost on NFS is recognised by its inode, open(2); that a missing name is remembered, nfs(5) under `lookupcache`.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Location;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rustix::fs::OFlags;
use tokio::task::spawn_blocking;

use super::tree::{self, Entry};
use super::{Key, mount};

mod direct;

const DIRECTORY_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

/// The calls that room and durability depend on; a test watches them or makes them fail.
pub(super) trait Disk: fmt::Debug + Send + Sync {
    /// Appends `bytes` to `file`.
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()>;
    /// Has what is written to `file` from here on go past memory to the disk, or through it again. Fails where that is not
    /// known to be good.
    fn direct(&self, file: &File, past: bool) -> io::Result<()>;
    /// Returns once what `file`, a file or directory at `path`, holds is on stable storage.
    fn sync(&self, file: &File, path: &Path) -> io::Result<()>;
    /// Gives `file` the further name `path`, which must be free.
    fn link(&self, file: &Path, path: &Path) -> io::Result<()>;
    /// Opens and closes the directory `path`.
    fn enter(&self, path: &Path) -> io::Result<()>;
}

#[derive(Debug)]
struct Kernel;

impl Disk for Kernel {
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn direct(&self, file: &File, past: bool) -> io::Result<()> {
        if past && !mount::writes_past_memory(rustix::fs::fstatfs(file)?.f_type as u32) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(rustix::fs::fcntl_setfl(file, if past { OFlags::DIRECT } else { OFlags::empty() })?)
    }

    fn sync(&self, file: &File, _: &Path) -> io::Result<()> {
        file.sync_all()
    }

    fn link(&self, file: &Path, path: &Path) -> io::Result<()> {
        fs::hard_link(file, path)
    }

    fn enter(&self, path: &Path) -> io::Result<()> {
        File::open(path).map(drop)
    }
}

/// What was being done to which path when the operating system refused.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", .path.display())]
pub(super) struct VolumeError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The root is not the directory that was opened, so nothing found or missed below it means anything.
#[derive(Debug, thiserror::Error)]
#[error("{} is no longer the directory that was opened; is the volume mounted?", .0.display())]
struct RootChanged(PathBuf);

/// An object store in a directory that exists already.
#[derive(Clone)]
pub(super) struct Volume(Arc<Inner>);

struct Inner {
    reader: LocalFileSystem,
    root: PathBuf,
    /// Device and inode of the root when it was opened.
    identity: (u64, u64),
    /// Directories whose entries up to the root this process has seen to be durable.
    settled: Mutex<HashSet<PathBuf>>,
    disk: Box<dyn Disk>,
    /// Whom everything that root makes belongs to: else what root leaves would be in the way of the root's own user.
    owner: Option<(u32, u32)>,
}

impl Volume {
    /// Opens the store in `root`, following links in it once and for all.
    ///
    /// # Errors
    /// If there is no such directory. Never of kind not found: whether the objects exist is not known then.
    pub(super) fn open(root: &Path) -> Result<Self> {
        Self::open_on(root, Box::new(Kernel))
    }

    fn open_on(root: &Path, disk: Box<dyn Disk>) -> Result<Self> {
        let root = fs::canonicalize(root).map_err(failed("open", root))?;
        let found = fs::metadata(&root).map_err(failed("open", &root))?;
        if !found.is_dir() {
            return Err(failed("open", &root)(io::ErrorKind::NotADirectory.into()));
        }
        let reader = LocalFileSystem::new_with_prefix(&root)?;
        let identity = (found.dev(), found.ino());
        let as_root = rustix::process::geteuid().is_root() && found.uid() != 0;
        let owner = as_root.then(|| (found.uid(), found.gid()));
        Ok(Self(Arc::new(Inner { reader, root, identity, settled: Mutex::default(), disk, owner })))
    }

    /// Runs `job` on a thread that may block.
    async fn blocking<T: Send + 'static>(&self, job: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = Arc::clone(&self.0);
        spawn_blocking(move || job(&inner)).await?
    }
}

/// Makes the root directory `path` durably, if it is missing; its parent must exist.
///
/// Returns whether it was missing.
pub(super) fn create_root(path: &Path) -> Result<bool> {
    let made = make_directory(path)?;
    let parent = path.parent().unwrap_or(path);
    sync(&Kernel, parent)?;
    Ok(made)
}

impl Inner {
    fn create(&self, key: &Key, body: &PutPayload) -> Result<()> {
        self.check_root()?;
        let path = self.root.join(key.as_str());
        let folder = path.parent().unwrap_or(&self.root);
        self.settle(folder)?;
        // Saves writing a segment that was pushed before; the link below decides.
        if fs::symlink_metadata(&path).is_ok() {
            return self.already_there(key, &path);
        }
        let staged = self.stage(&path, body)?;
        match self.disk.link(&staged.0, &path) {
            Ok(()) => {}
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed("link", &path)(error)),
            // NFS may carry a link out, lose the reply and ask again.
            Err(_) if same_file(&staged.0, &path) => {}
            Err(_) => return self.already_there(key, &path),
        }
        drop(staged);
        sync(&*self.disk, folder)
    }

    /// Writes `body` durably under an unfinished name beside `path`.
    fn stage(&self, path: &Path, body: &PutPayload) -> Result<Staged> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("#{:016x}", random().map_err(failed("name", path))?));
        let staged = PathBuf::from(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(FILE_MODE);
        let mut file = options.open(&staged).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                // Somebody removed a directory known to exist; the next attempt makes it again.
                self.settled().clear();
            }
            failed("create", &staged)(error)
        })?;
        let staged = Staged(staged);
        if let Some((user, group)) = self.owner {
            // Where root is nobody, as on NFS, it may not, and the file is as readable as it can be made.
            let _ = fchown(&file, Some(user), Some(group));
        }
        direct::write(&*self.disk, &mut file, body).map_err(failed("write", path))?;
        // Also flushes to an NFS server, so that closing the file has nothing left to report.
        self.disk.sync(&file, &staged.0).map_err(failed("sync", path))?;
        if is_bulk(path) {
            // For packs that went through memory after all: read long after, if ever, and the server beside it needs the
            // room. What this does not do costs nothing else.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
        Ok(staged)
    }

    /// Answers that the object exists, once that is durable: whoever made it may have died before it was.
    fn already_there(&self, key: &Key, path: &Path) -> Result<()> {
        sync(&*self.disk, path)?;
        sync(&*self.disk, path.parent().unwrap_or(&self.root))?;
        Err(Error::AlreadyExists {
            path: key.to_string(),
            source: io::Error::from(io::ErrorKind::AlreadyExists).into(),
        })
    }

    /// Makes the directories from the root to `folder` exist durably; once a process for each.
    fn settle(&self, folder: &Path) -> Result<()> {
        let above: Vec<_> = folder.ancestors().take_while(|path| *path != self.root).collect();
        for path in above.into_iter().rev() {
            if self.settled().contains(path) {
                continue;
            }
            make_directory(path)?;
            self.give(path);
            sync(&*self.disk, path.parent().unwrap_or(&self.root))?;
            self.settled().insert(path.to_owned());
        }
        Ok(())
    }

    /// Gives a directory of root's to whom the volume's root belongs, also one that an earlier call left. As for files, where
    /// that is not allowed it stays as it is.
    fn give(&self, directory: &Path) {
        if let Some((user, group)) = self.owner
            && fs::symlink_metadata(directory).is_ok_and(|found| found.uid() == 0)
        {
            let _ = lchown(directory, Some(user), Some(group));
        }
    }

    fn settled(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let path = self.root.join(key.as_str());
        match fs::remove_file(&path) {
            Ok(()) => sync(&*self.disk, path.parent().unwrap_or(&self.root)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.check_root()?;
                // An earlier delete may not have become durable; where the folder is missing too, there was none.
                let folder = path.parent().unwrap_or(&self.root);
                match File::open(folder) {
                    Ok(file) => self.disk.sync(&file, folder).map_err(failed("sync", folder))?,
                    Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
                    Err(other) => return Err(failed("sync", folder)(other)),
                }
                Err(Error::NotFound { path: key.to_string(), source: error.into() })
            }
            Err(error) => Err(failed("delete", &path)(error)),
        }
    }

    /// Returns the root's entries below `prefix`, going into folders if `deep`.
    fn walk(&self, prefix: Option<&Location>, deep: bool, found: &mut dyn FnMut(Entry) -> bool) -> Result<()> {
        self.check_root()?;
        let folder = prefix.map(key_of).transpose()?;
        if let Some(folder) = &folder {
            self.look_afresh(&self.root.join(folder.as_str()));
        }
        tree::walk(&self.root, folder.as_ref(), deep, found)?;
        // An empty answer from a volume that went away in between is no answer.
        self.check_root()
    }

    /// Makes the kernel forget that `path` was missing a moment ago.
    ///
    /// An NFS client believes for up to a minute that a name it missed is still missing. Opening a directory makes it
    /// ask the server whether the directory has changed; one that is new itself is seen once the one above it was.
    fn look_afresh(&self, path: &Path) {
        let folders: Vec<_> = path.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.root)).collect();
        // Where one cannot be entered there is nothing below to ask about, and the question itself will say so.
        let _ = folders.into_iter().rev().try_for_each(|folder| self.disk.enter(folder));
    }

    /// Fails unless the root is still the directory that was opened.
    fn check_root(&self) -> Result<()> {
        let found = fs::metadata(&self.root).map_err(failed("examine", &self.root))?;
        if (found.dev(), found.ino()) == self.identity {
            return Ok(());
        }
        Err(Error::Generic { store: NAME, source: RootChanged(self.root.clone()).into() })
    }
}

/// An unfinished file; removed when dropped.
struct Staged(PathBuf);

impl Drop for Staged {
    fn drop(&mut self) {
        // A file left behind costs room and nothing else: no listing shows it and no key names it.
        let _ = fs::remove_file(&self.0);
    }
}

fn make_directory(path: &Path) -> Result<bool> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("make directory", path)(error)),
        Err(_) if path.is_dir() => Ok(false),
        Err(_) => Err(failed("make directory", path)(io::ErrorKind::NotADirectory.into())),
    }
}

/// Whether an object is a backup's pages, by the folder that it lies in.
fn is_bulk(path: &Path) -> bool {
    path.ancestors().nth(2).and_then(Path::file_name).is_some_and(|folder| folder == "packs")
}

fn sync(disk: &dyn Disk, path: &Path) -> Result<()> {
    File::open(path).and_then(|file| disk.sync(&file, path)).map_err(failed("sync", path))
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (fs::symlink_metadata(one), fs::symlink_metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Gives an error of the operating system its place; one value of [`Error`] for all, so that none says "not found".
pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Generic { store: NAME, source: VolumeError { doing, path, source }.into() }
}

const NAME: &str = "volume";

fn key_of(location: &Location) -> Result<Key> {
    location.as_ref().parse().map_err(|source: super::KeyError| Error::NotSupported { source: source.into() })
}

fn not_offered(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: NAME.to_owned() }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {}", self.0.root.display())
    }
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Volume").field(&self.0.root).finish()
    }
}

#[async_trait]
impl ObjectStore for Volume {
    async fn put_opts(&self, location: &Location, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if !matches!(options.mode, PutMode::Create) {
            return Err(not_offered("overwriting"));
        }
        let key = key_of(location)?;
        self.blocking(move |volume| volume.create(&key, &payload)).await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(&self, _: &Location, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(not_offered("multipart upload"))
    }

    async fn get_opts(&self, location: &Location, options: GetOptions) -> Result<GetResult> {
        let found = self.0.reader.get_opts(location, options.clone()).await;
        if !matches!(found, Err(Error::NotFound { .. })) {
            return found;
        }
        let key = key_of(location)?;
        let look = move |volume: &Inner| {
            volume.look_afresh(&volume.root.join(key.as_str()));
            Ok(())
        };
        self.blocking(look).await?;
        let found = self.0.reader.get_opts(location, options).await;
        if matches!(found, Err(Error::NotFound { .. })) {
            self.blocking(Inner::check_root).await?;
        }
        found
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Location>>) -> BoxStream<'static, Result<Location>> {
        let volume = self.clone();
        locations
            .and_then(move |location| {
                let volume = volume.clone();
                async move {
                    let key = key_of(&location)?;
                    volume.blocking(move |volume| volume.delete(&key)).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, Result<ObjectMeta>> {
        /// Entries that go out together, and how many of such go out ahead of who reads them.
        const TOGETHER: usize = 128;
        const AHEAD: usize = 8;
        let (volume, prefix) = (self.clone(), prefix.cloned());
        // Entries go out while they are found, so that a long listing shows signs of life.
        let (sender, receiver) = tokio::sync::mpsc::channel(AHEAD);
        let walk = move || {
            let mut found = Vec::with_capacity(TOGETHER);
            let walked = volume.0.walk(prefix.as_ref(), true, &mut |entry| {
                if let Entry::Object(meta) = entry {
                    found.push(Ok(meta));
                }
                found.len() < TOGETHER || sender.blocking_send(std::mem::take(&mut found)).is_ok()
            });
            found.extend(walked.err().map(Err));
            // Nobody listens any more if this fails.
            let _ = sender.blocking_send(found);
        };
        let job = spawn_blocking(walk);
        let entries = stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|e| (e, receiver)) });
        let entries = entries.flat_map(stream::iter);
        // A walk that panicked closes the channel too; its end must not pass for the end of the listing.
        let ending = stream::once(job).filter_map(|ended| async { ended.err().map(|error| Err(error.into())) });
        entries.chain(ending).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> Result<ListResult> {
        let prefix = prefix.cloned();
        let collect = move |volume: &Inner| {
            let mut found = ListResult { common_prefixes: vec![], objects: vec![], extensions: Default::default() };
            volume.walk(prefix.as_ref(), false, &mut |entry| {
                match entry {
                    Entry::Object(meta) => found.objects.push(meta),
                    Entry::Folder(location) => found.common_prefixes.push(location),
                }
                true
            })?;
            Ok(found)
        };
        self.blocking(collect).await
    }

    async fn copy_opts(&self, _: &Location, _: &Location, _: CopyOptions) -> Result<()> {
        Err(not_offered("copying"))
    }
}

#[cfg(test)]
mod tests;
