//! What a directory tree holds, read completely or not at all.
//!
//! Entries whose names no [`Key`] can have are not objects: unfinished files, hidden files, `lost+found`'s like.
//! An entry that vanishes while it is looked at was deleted; any other failure to look at it fails the whole walk.

use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::path::Path;

use object_store::path::Path as Location;
use object_store::{ObjectMeta, Result};

use super::Key;
use super::volume::failed;

/// One thing found.
pub(super) enum Entry {
    /// A file whose path is a key.
    Object(ObjectMeta),
    /// A directory whose path is a key; it may be empty.
    Folder(Location),
}

/// Gives `found` each entry of `folder` (of the root, if `None`), and of the folders in it if `deep`, until it answers
/// false. A folder that does not exist has no entries.
///
/// Links are followed; that a loop of them ends is [`Key::MAX_BYTES`]'s doing.
pub(super) fn walk(root: &Path, folder: Option<&Key>, deep: bool, found: &mut dyn FnMut(Entry) -> bool) -> Result<()> {
    let mut waiting = vec![folder.cloned()];
    while let Some(folder) = waiting.pop() {
        let path = folder.as_ref().map_or_else(|| root.to_owned(), |key| root.join(key.as_str()));
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if vanished(&error) || error.kind() == io::ErrorKind::NotADirectory => continue,
            Err(error) => return Err(failed("list", &path)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed("list", &path))?;
            let Some(key) = entry.file_name().to_str().and_then(|name| child(folder.as_ref(), name)) else { continue };
            let metadata = match examine(&entry) {
                Ok(metadata) => metadata,
                Err(error) if vanished(&error) => continue,
                Err(error) => return Err(failed("examine", &entry.path())(error)),
            };
            let location = Location::from(key.as_str());
            let go_on = if metadata.is_dir() {
                if deep {
                    waiting.push(Some(key));
                }
                found(Entry::Folder(location))
            } else if metadata.is_file() {
                found(Entry::Object(meta(location, &metadata, &path)?))
            } else {
                continue;
            };
            if !go_on {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Looks at what an entry is, or what it leads to. Asked of its folder, the kernel need not follow the whole path for each
/// of very many files.
fn examine(entry: &DirEntry) -> io::Result<Metadata> {
    match entry.metadata()? {
        link if link.is_symlink() => fs::metadata(entry.path()),
        metadata => Ok(metadata),
    }
}

fn child(folder: Option<&Key>, name: &str) -> Option<Key> {
    match folder {
        Some(folder) => folder.join(name).ok(),
        None => name.parse().ok(),
    }
}

fn vanished(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn meta(location: Location, found: &Metadata, path: &Path) -> Result<ObjectMeta> {
    let last_modified = found.modified().map_err(failed("examine", path))?.into();
    Ok(ObjectMeta { location, last_modified, size: found.len(), e_tag: None, version: None })
}
