//! `wal push`: one file from `pg_wal` into the repository.
//!
//! PostgreSQL recycles a segment as soon as it hears of success, so success is said only of what is durable: the bytes
//! just stored, or the very same bytes found there already. Other bytes under the same name are never overwritten and
//! never dropped: they are kept apart, and the operator is told.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Writer;
use super::deliver::{Delivered, deliver};
use crate::error::ErrorKind;
use crate::format::digest::{ContentsHasher, PIECE_BYTES};
use crate::format::wal::{self, EncodeError, EncodedWal, ReadAt};
use crate::format::{FormatError, Sha256};
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::system_id::SystemId;
use crate::pg::wal_facts::FactsWalk;
use crate::pg::wal_name::{NameError, WalFileName};
use crate::pg::wal_page::{FirstPage, PageError, PageHeader};
use crate::repo::{Lane, LaneFacts, RepoError};

/// Files other than segments are small; more than this is none that PostgreSQL writes.
const SMALL_FILE_LIMIT: u64 = 16 << 20;

/// A file that PostgreSQL asks to archive.
#[derive(Clone, Debug)]
pub struct WalFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub name: WalFileName,
}

impl WalFile {
    /// Takes the name from the end of the path (`%p`).
    pub fn at(path: &Path) -> Result<Self, PushError> {
        let text = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = text.parse().map_err(|source| PushError::Name { path: path.to_path_buf(), source })?;
        Ok(Self { path: path.to_path_buf(), name })
    }
}

/// A file that is open to be archived: PostgreSQL's own process may have opened it for us.
pub struct OpenWal {
    path: PathBuf,
    name: WalFileName,
    file: File,
    /// Whether `path` leads to the file from here, and so can tell that it was renamed.
    reachable: bool,
}

impl OpenWal {
    /// Opens a file by its path.
    ///
    /// # Errors
    /// [`PushError::Read`].
    pub fn open(file: &WalFile) -> Result<Self, PushError> {
        let WalFile { path, name } = file.clone();
        let opened = File::open(&path).map_err(|source| PushError::Read { path: path.clone(), source })?;
        Ok(Self { path, name, file: opened, reachable: true })
    }

    /// Takes a file that another process opened; `path` is what that process calls it.
    pub fn received(name: WalFileName, path: PathBuf, file: File) -> Self {
        Self { path, name, file, reachable: false }
    }

    /// Its name.
    pub fn name(&self) -> &WalFileName {
        &self.name
    }

    /// Returns what tells this file from what may take its place.
    ///
    /// # Errors
    /// [`PushError::Read`].
    pub fn identity(&self) -> Result<FileIdentity, PushError> {
        let found = if self.reachable { std::fs::metadata(&self.path) } else { self.file.metadata() };
        found.map(|found| FileIdentity::of(&found)).map_err(|source| self.failed(source))
    }

    /// Returns the digest of its contents.
    ///
    /// # Errors
    /// [`PushError::Read`].
    pub fn digest(&self) -> Result<Sha256, PushError> {
        let mut hasher = ContentsHasher::default();
        let mut buffer = vec![0; 2 * PIECE_BYTES];
        let mut place = 0;
        loop {
            match self.file.fill_at(&mut buffer, place).map_err(|source| self.failed(source))? {
                0 => return Ok(hasher.finish()),
                more => hasher.update(&buffer[..more]),
            }
            place += buffer.len() as u64;
        }
    }

    fn failed(&self, source: std::io::Error) -> PushError {
        PushError::Read { path: self.path.clone(), source }
    }
}

/// What tells a file from another one under its name, and from itself after it was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    /// Returns the identity that a file's metadata give.
    pub fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            len: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    /// Bytes in the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// When it was last written to.
    pub fn modified(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.modified.0.max(0) as u64)
    }

    /// Returns whether it was last touched well before `moment`. What was touched just then may be touched again
    /// within the grain of the file system's clock, and look the same.
    pub fn settled_before(&self, moment: SystemTime) -> bool {
        const GRAIN: Duration = Duration::from_secs(2);
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(self.changed.0.max(0) as u64);
        moment.duration_since(changed).is_ok_and(|age| age > GRAIN)
    }

    /// Whether the bytes are the same, as far as this tells; a link or a change of mode does not matter.
    pub fn same_contents(&self, other: &Self) -> bool {
        Self { changed: other.changed, ..*self } == *other
    }
}

/// A file that is durable in the repository.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    /// Whether it was new there.
    pub pushed: Pushed,
    /// SHA-256 of its bytes.
    pub digest: Sha256,
    /// The file that was read.
    pub identity: FileIdentity,
    /// Bytes of the stored object.
    pub stored_bytes: u64,
}

/// How much a push may use.
#[derive(Clone, Copy, Debug)]
pub struct PushOptions {
    /// zstd level.
    pub level: i32,
    /// Threads that compress one file.
    pub threads: usize,
}

/// What became of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is durable in the repository now.
    Stored,
    /// The same bytes were there already.
    AlreadyStored,
}

/// Why a file was not archived.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// Not a name that PostgreSQL gives.
    #[error("{} cannot be archived", path.display())]
    Name {
        /// The path as given.
        path: PathBuf,
        /// What is wrong with its last part.
        source: NameError,
    },
    /// The file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file changed while it was read.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The file has not the size that its kind has.
    #[error("{name} has {found} bytes, a segment of this server has {expected}")]
    Size {
        /// The file.
        name: WalFileName,
        /// Its bytes.
        found: u64,
        /// A segment's bytes.
        expected: u64,
    },
    /// The first page does not belong to this file or this server.
    #[error("{name} is not what its name says")]
    FirstPage {
        /// The file.
        name: WalFileName,
        /// What is wrong.
        source: PageError,
    },
    /// The file was written by another cluster.
    #[error("{name} comes from system {found}, this server is system {expected}")]
    OtherSystem {
        /// The file.
        name: WalFileName,
        /// System identifier in its first page.
        found: SystemId,
        /// System identifier in `pg_control`.
        expected: SystemId,
    },
    /// Other bytes are archived under this name.
    #[error("{name} is archived with other contents: stored {}, offered {offered}; ours were kept as {kept}", stored_digest(.stored))]
    Conflict {
        /// The file.
        name: WalFileName,
        /// SHA-256 of what is archived; `None` if that is damaged.
        stored: Option<Sha256>,
        /// SHA-256 of what was offered.
        offered: Sha256,
        /// Key under which the offered bytes were kept.
        kept: String,
    },
    /// Another server writes the file's timeline.
    #[error(
        "{name} is of a timeline that {owner} writes, and wrote {} s ago; after {} s of silence it is handed over; ours was kept as {kept}",
        silent.as_secs(), grace.as_secs()
    )]
    NotOwner {
        /// The file.
        name: WalFileName,
        /// Host of the timeline's owner.
        owner: String,
        /// How long the owner has been silent.
        silent: Duration,
        /// Silence after which it would be handed over.
        grace: Duration,
        /// Key under which the offered bytes were kept.
        kept: String,
    },
    /// The timeline's owner has not stored it yet, and this is a standby's.
    #[error(
        "{name} is of a timeline that {owner} writes, and not archived there yet; this standby's is compared with it then"
    )]
    NotYet {
        /// The file.
        name: WalFileName,
        /// Host of the timeline's owner.
        owner: String,
    },
    /// The file could not be encoded.
    #[error("encode {name}")]
    Encode {
        /// The file.
        name: WalFileName,
        /// Why.
        source: FormatError,
    },
    /// The repository failed.
    #[error("archive {name}")]
    Repository {
        /// The file.
        name: WalFileName,
        /// Why.
        source: RepoError,
    },
}

fn stored_digest(stored: &Option<Sha256>) -> String {
    stored.map_or_else(|| "bytes that are damaged".to_owned(), |digest| digest.to_string())
}

impl PushError {
    /// Whether it is the file that cannot be archived, and not the repository that cannot take it: such a file an operator
    /// may give up.
    pub fn is_the_files(&self) -> bool {
        match self {
            PushError::Read { .. }
            | PushError::Size { .. }
            | PushError::FirstPage { .. }
            | PushError::Conflict { .. }
            | PushError::NotOwner { .. }
            | PushError::NotYet { .. } => true,
            PushError::Name { .. }
            | PushError::Changed { .. }
            | PushError::OtherSystem { .. }
            | PushError::Encode { .. }
            | PushError::Repository { .. } => false,
        }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            PushError::Name { .. } => ErrorKind::Invalid,
            PushError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            PushError::Read { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                ErrorKind::Denied
            }
            PushError::Read { .. } | PushError::Changed { .. } => ErrorKind::Unavailable,
            PushError::Size { .. } | PushError::FirstPage { .. } | PushError::OtherSystem { .. } => ErrorKind::Corrupt,
            PushError::Conflict { .. } | PushError::NotOwner { .. } => ErrorKind::Conflict,
            PushError::NotYet { .. } => ErrorKind::NotFound,
            PushError::Encode { source, .. } => source.kind(),
            PushError::Repository { source, .. } => source.kind(),
        }
    }
}

/// Archives one file of the server with these facts; returns once it is durable in the repository.
///
/// `lane` is asked for the server's lane once the file is known to be the server's: a stranger's opens none.
///
/// # Errors
/// [`PushError::Conflict`] if other bytes have the name, [`PushError::NotOwner`] if another server writes the timeline: the
/// bytes are kept apart. [`PushError::NotYet`] if that one has not stored what a standby of its offers. After any error
/// nothing is acknowledged.
pub fn push(
    lane: impl FnOnce() -> Result<Lane, RepoError>,
    server: &LaneFacts,
    file: &OpenWal,
    writer: &Writer,
    options: PushOptions,
) -> Result<Receipt, PushError> {
    let name = &file.name;
    let failed = |source| PushError::Repository { name: name.clone(), source };
    let limit = u64::from(server.segment_size).max(SMALL_FILE_LIMIT);
    let source = Source::open(file, limit)?;
    belongs_to_server(name, &source, server)?;
    let lane = lane().map_err(failed)?;
    let encoded = encode(&lane, &source, server, options)?;
    source.is_unchanged(encoded.raw_len)?;
    let receipt = |pushed| Receipt {
        pushed,
        digest: encoded.digest,
        identity: source.before,
        stored_bytes: encoded.object.len() as u64,
    };
    match deliver(&lane, name, &encoded, writer).map_err(failed)? {
        Delivered::Stored => Ok(receipt(Pushed::Stored)),
        Delivered::AlreadyStored => Ok(receipt(Pushed::AlreadyStored)),
        Delivered::Conflict { stored, kept } => {
            Err(PushError::Conflict { name: name.clone(), stored, offered: encoded.digest, kept })
        }
        Delivered::NotOwner { owner, silent, kept } => {
            let silent = silent.to_std().unwrap_or_default();
            Err(PushError::NotOwner { name: name.clone(), owner, silent, grace: writer.grace, kept })
        }
        Delivered::NotYet { owner } => Err(PushError::NotYet { name: name.clone(), owner }),
    }
}

/// A file that is read once, and that must be one file from the first byte to the last: PostgreSQL recycles a segment by
/// renaming and overwriting it.
struct Source<'a> {
    file: &'a OpenWal,
    before: FileIdentity,
    /// The first bytes, which say whose the file is.
    start: Vec<u8>,
}

impl<'a> Source<'a> {
    fn open(file: &'a OpenWal, limit: u64) -> Result<Self, PushError> {
        let before = file.file.metadata().map_err(|source| file.failed(source))?;
        if !before.is_file() || before.len() > limit {
            return Err(file.failed(std::io::Error::other(format!("not a file of at most {limit} bytes"))));
        }
        let mut start = vec![0; PageHeader::LONG];
        let read = file.file.fill_at(&mut start, 0).map_err(|source| file.failed(source))?;
        start.truncate(read);
        Ok(Self { file, before: FileIdentity::of(&before), start })
    }

    fn len(&self) -> u64 {
        self.before.len
    }

    /// Checks that what was read, `found` bytes, is what is there under the name.
    fn is_unchanged(&self, found: u64) -> Result<(), PushError> {
        if self.before.same_contents(&self.file.identity()?) && found == self.len() {
            return Ok(());
        }
        Err(PushError::Changed { path: self.file.path.clone() })
    }
}

/// By position: a file that another process opened has a position that both share. The first bytes come as they were judged.
/// Of a file that grows a byte too much is read, which its length will tell.
impl ReadAt for Source<'_> {
    fn read_at(&self, buffer: &mut [u8], place: u64) -> std::io::Result<usize> {
        let judged = usize::try_from(place).ok().and_then(|place| self.start.get(place..)).unwrap_or_default();
        if !judged.is_empty() {
            return judged.read_at(buffer, 0);
        }
        let most = (self.len() + 1).saturating_sub(place).min(buffer.len() as u64) as usize;
        self.file.file.read_at(&mut buffer[..most], place)
    }
}

/// Checks size and first page of a segment; other files have neither.
fn belongs_to_server(name: &WalFileName, source: &Source<'_>, server: &LaneFacts) -> Result<(), PushError> {
    let Some(segment) = segment_of(name) else { return Ok(()) };
    let expected = u64::from(server.segment_size);
    let (Ok(size), true) = (SegmentSize::new(server.segment_size), source.len() == expected) else {
        return Err(PushError::Size { name: name.clone(), found: source.len(), expected });
    };
    let wrong = |source| PushError::FirstPage { name: name.clone(), source };
    let page = FirstPage::parse(&source.start).map_err(wrong)?;
    if page.system_id != server.system_id {
        return Err(PushError::OtherSystem { name: name.clone(), found: page.system_id, expected: server.system_id });
    }
    page.belongs_to(segment, size, Some(server.system_id)).map_err(wrong)
}

fn segment_of(name: &WalFileName) -> Option<SegmentName> {
    match name {
        WalFileName::Segment(segment) | WalFileName::Partial(segment) => Some(*segment),
        WalFileName::History(_) | WalFileName::BackupHistory { .. } | WalFileName::Other(_) => None,
    }
}

fn encode(lane: &Lane, source: &Source<'_>, server: &LaneFacts, options: PushOptions) -> Result<EncodedWal, PushError> {
    let (name, len) = (&source.file.name, source.len());
    let walk = segment_of(name).zip(SegmentSize::new(server.segment_size).ok());
    let walk = walk.map(|(segment, size)| FactsWalk::new(segment, size, Some(server.system_id)));
    let identity = lane.wal_identity(name);
    wal::encode(&identity, source, len, options.level, options.threads, walk).map_err(|error| match error {
        EncodeError::Read(error) => source.file.failed(error),
        EncodeError::Format(source) => PushError::Encode { name: name.clone(), source },
    })
}

#[cfg(test)]
mod tests;
