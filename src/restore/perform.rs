//! Doing: a plan becomes a directory that PostgreSQL can start, in an order that no interruption can turn into one that
//! starts and is wrong.
//!
//! `pg_control` is written last, after everything else is on disk: without it nothing starts. And what is written is not
//! quite what was copied: its checkpoint is made one that no log holds, so that a directory whose `backup_label` was
//! deleted does not start either.
//!
//! What was written stays after a failure, marked, so that the same restore can go on from there (see [`resume`]).
//!
//! [`resume`]: super::resume

use std::io;
use std::os::unix::fs::{OpenOptionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use super::backup_manifest::{self, ManifestError, Replaced};
use super::budget::Budget;
use super::configuration::{KeptConfiguration, PlacedConfiguration};
use super::delta::{self, Before, Pruning};
use super::durable::FileSystems;
use super::files::{self, Contents, FilesError, Outline, place};
use super::leftovers::{Kept, remove_if_there};
use super::outside::{Outside, check_apart};
use super::place::{PlaceError, Tablespaces, absolute, check_created, check_distinct, check_empty};
use super::plan::Plan;
use super::resume::{Claim, look, make_private, mark_of};
use super::selection::Selection;
use super::settings::{self, Choices, Configuration, MainFile, RecoveryCommand, TargetAction};
use super::target::Purpose;
use crate::error::ErrorKind;
use crate::format::FormatError;
use crate::format::manifest::{Link, Manifest};
use crate::format::recovery_plan::RECOVERY_PLAN_PATH;
use crate::pg::control::{ControlError, ControlFile};
use crate::pg::system_id::SystemId;
use crate::progress::Progress;
use crate::repo::{Lane, Packs, RepoError};

const CONTROL: &[u8] = b"global/pg_control";
const LABEL: &str = "backup_label";

/// Where a restore writes and how the copy will start.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The new data directory.
    pub data_directory: PathBuf,
    /// New places for tablespaces.
    pub tablespaces: Tablespaces,
    /// Existing directories in which replaying the log may create tablespaces.
    pub allowed_tablespace_paths: Vec<PathBuf>,
    /// Where `pg_wal` lies, if not in the data directory.
    pub wal_directory: Option<PathBuf>,
    /// Where configuration files go that lay outside the data directory.
    pub configuration_directory: Option<PathBuf>,
    /// User and group that everything is given to.
    pub owner: Option<(u32, u32)>,
    /// Command that fetches WAL.
    pub command: RecoveryCommand,
    /// What the server does at its target.
    pub action: TargetAction,
    /// How a standby reaches its primary.
    pub primary_conninfo: Option<String>,
    /// Token of the writer that a server in this place is.
    pub writer: String,
    /// Further settings, such as another port.
    pub settings: Vec<(String, String)>,
    /// Workers and how much of the manifest is under way.
    pub budget: Budget,
    /// Whether a directory that is there is brought to the backup.
    pub delta: bool,
    /// Databases that are left out.
    pub selection: Selection,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct RestoreReport {
    /// Where.
    pub data_directory: PathBuf,
    /// Files written.
    pub files: u64,
    /// Bytes of those files.
    pub bytes: u64,
    /// Files that an interrupted restore had left whole; `None` if this one did not go on with another.
    pub kept: Option<u64>,
    /// Things that were there and that the backup does not have; `None` if the directory was new.
    pub removed: Option<u64>,
    /// Settings that were raised because the log needs them, as `name = value`.
    pub raised: Vec<String>,
    /// Whether the running copy archives, by its configuration; `None` if that is not known here.
    pub archiving: Option<bool>,
    /// What the server has to be started with.
    pub configuration: RestoredConfiguration,
    /// Links that came back as something else.
    pub links: Vec<Link>,
    /// Databases left out, by number and name.
    pub left_out: Vec<(u32, String)>,
    /// Bytes of the files that are zeros for that.
    pub left_out_bytes: u64,
}

/// Where the restored server's configuration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoredConfiguration {
    /// In the data directory.
    Inside {
        /// Whether the configuration names another data directory, which a plain start would take.
        names_another_directory: bool,
    },
    /// In a directory of its own.
    PutUp(PlacedConfiguration),
    /// Nowhere: it lay outside the data directory.
    NotRestored {
        /// Where the main file was.
        config_file: String,
    },
}

/// Why there is no restored directory.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A place cannot be written to.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Files could not be brought out of the repository.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The backup's `pg_control` makes no sense.
    #[error("read the backup's pg_control")]
    Control {
        /// Why.
        #[from]
        source: ControlError,
    },
    /// The backup is another server's.
    #[error("the backup's pg_control is of system {found}, its manifest of system {expected}")]
    OtherSystem {
        /// In `pg_control`.
        found: SystemId,
        /// In the manifest.
        expected: SystemId,
    },
    /// A place for configuration that nobody needs.
    #[error("the backup's configuration lies in the data directory and comes back with it; leave --config-dir out")]
    NoConfiguration,
    /// The main configuration file is not in the backup.
    #[error("{config_file} could not be read when the backup was taken, so there is no configuration to put up")]
    NoMainFile {
        /// The file.
        config_file: String,
    },
    /// A file could not be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl From<RepoError> for RestoreError {
    fn from(source: RepoError) -> Self {
        Self::Files(FilesError::from(source))
    }
}

impl RestoreError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RestoreError::Place(_) | RestoreError::NoConfiguration | RestoreError::NoMainFile { .. } => {
                ErrorKind::Invalid
            }
            RestoreError::Files(FilesError::Repository { source }) => source.kind(),
            RestoreError::Files(FilesError::Format { source }) => source.kind(),
            RestoreError::Files(FilesError::Differs { .. }) => ErrorKind::Corrupt,
            RestoreError::Control { .. } => ErrorKind::Corrupt,
            RestoreError::OtherSystem { .. } => ErrorKind::Conflict,
            RestoreError::Write { source, .. } | RestoreError::Files(FilesError::Write { source, .. }) => {
                match source.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
                    io::ErrorKind::PermissionDenied => ErrorKind::Denied,
                    _ => ErrorKind::Unavailable,
                }
            }
        }
    }
}

/// Carries a plan out.
///
/// # Errors
/// [`PlaceError`] before anything is written. After any other error what was written stays, and cannot be started.
pub fn perform(
    lane: &Lane,
    plan: &Plan,
    destination: &Destination,
    progress: &Progress,
) -> Result<RestoreReport, RestoreError> {
    let root = absolute(&destination.data_directory)?;
    let (interrupted, seized) = match destination.delta {
        false => (look(&root)?, false),
        true => match delta::inspect(&root, plan.manifest.root.system_id)? {
            Before::Restore(held) => (held.map(|held| *held), false),
            Before::Server => (None, true),
        },
    };
    // Whatever is in a directory that is not empty is compared.
    let delta = seized || destination.delta && interrupted.is_some();
    let outside = Outside::of(destination, plan, &root, interrupted.as_ref(), delta)?;
    check_created(&plan.tablespaces_created, &destination.allowed_tablespace_paths)?;
    let tables = lane.tables(&plan.manifest).map_err(FilesError::from)?;
    let packs = Packs::new(lane, &tables.packs);
    let contents = Contents { packs: &packs, tables: &tables, selection: &destination.selection };
    let configuration = KeptConfiguration::load(lane, &plan.manifest, &tables)?;
    let configuration_directory = configuration_directory(destination, configuration.as_ref(), &root, &outside)?;
    let outline = files::outline(contents, plan.manifest.envelope.major)?;
    check_totals(plan, &outline)?;
    let control = control_of(plan)?;
    let in_place = outline.tablespace_in_place;
    let restored =
        Restored { root: &root, plan, contents, tablespace_in_place: in_place, control, kept: configuration.as_ref() };
    progress.expect(plan.manifest.envelope.bytes);
    let mark = mark_of(plan, destination.selection.left_out(), outside.links());
    let (claim, kept) = match interrupted {
        None if seized => (Claim::seize(&root, mark)?, Kept::default()),
        Some(held) if delta => (held.take_over()?, Kept::default()),
        None => (Claim::begin(&root, mark)?, Kept::default()),
        Some(held) => {
            let same = held.same_as(plan, mark, &restored.control)?;
            let mut leftovers = same.leftovers()?;
            files::each_leaf(contents, |entries| leftovers.pass(entries).map_err(RestoreError::from))?;
            leftovers.end()?;
            let claim = same.claim()?;
            let mut kept = Kept::resumed();
            let workers = destination.budget.workers;
            files::each_leaf(contents, |entries| {
                kept.verify(&root, entries, workers, progress);
                Ok::<(), FilesError>(())
            })?;
            (claim, kept)
        }
    };
    let removed = if delta { Some(restored.prune(&outside)?) } else { None };
    restored.make_directories(&outside, &claim)?;
    let disks = restored.disks(&outside)?;
    files::fill(contents, &root, &kept, destination.budget, delta, progress)?;
    files::bare(contents, &root)?;
    let (raised, names_another_directory, archiving) = restored.settings(destination)?;
    let configuration = match (&configuration, &configuration_directory) {
        (None, _) => RestoredConfiguration::Inside { names_another_directory },
        (Some(kept), None) => RestoredConfiguration::NotRestored { config_file: kept.config_file().to_owned() },
        (Some(kept), Some(place)) => RestoredConfiguration::PutUp(restored.put_up(kept, place, destination.owner)?),
    };
    restored.write(LABEL, plan.manifest.root.backup_label.as_bytes())?;
    if plan.purpose != Purpose::Standby {
        let mut left = plan.for_fetch(settings::target_line(plan));
        left.primary = (plan.purpose == Purpose::Primary).then(|| destination.writer.clone());
        restored.write(RECOVERY_PLAN_PATH, &left.encode())?;
    }
    restored.backup_manifest()?;
    files::dress(contents, &root, destination.owner)?;
    if let Some(owner) = destination.owner {
        restored.give_to(owner, &outside)?;
    }
    disks.sync().map_err(|(path, source)| RestoreError::Write { path, source })?;
    restored.finish(destination.owner)?;
    restored.release(&claim, &outside)?;
    Ok(RestoreReport {
        files: plan.manifest.envelope.files,
        bytes: plan.manifest.envelope.bytes,
        kept: kept.files(),
        removed,
        raised,
        archiving,
        configuration,
        left_out: destination.selection.left_out().iter().map(|(oid, name)| (*oid, name.clone())).collect(),
        left_out_bytes: outline.left_out_bytes,
        links: plan.manifest.root.links.iter().filter(|link| !is_linked_again(link, destination)).cloned().collect(),
        data_directory: root,
    })
}

/// Checks that the leaves list as much as the envelope says.
fn check_totals(plan: &Plan, outline: &Outline) -> Result<(), FilesError> {
    let Manifest { envelope, root } = &plan.manifest;
    let (files, bytes) = (outline.files + 1, outline.bytes.saturating_add(root.pg_control.len() as u64));
    if (files, bytes) == (envelope.files, envelope.bytes) {
        return Ok(());
    }
    let problem =
        format!("{files} files of {bytes} bytes are listed instead of {} of {}", envelope.files, envelope.bytes);
    Err(FormatError::Nonsense { document: "manifest", problem }.into())
}

/// Returns where configuration is put up, if it is; nothing there is ever overwritten.
fn configuration_directory(
    destination: &Destination,
    kept: Option<&KeptConfiguration>,
    root: &Path,
    outside: &Outside,
) -> Result<Option<PathBuf>, RestoreError> {
    let Some(place) = &destination.configuration_directory else { return Ok(None) };
    let kept = kept.ok_or(RestoreError::NoConfiguration)?;
    if !kept.has_main_file() {
        return Err(RestoreError::NoMainFile { config_file: kept.config_file().to_owned() });
    }
    let place = absolute(place)?;
    check_apart(&place, root, &outside.tablespaces)?;
    // What an interrupted restore put up there is not looked at: it is quick to make again.
    check_empty(&place)?;
    if outside.wal_directory.as_deref().is_some_and(|wal| wal.starts_with(&place) || place.starts_with(wal)) {
        return Err(PlaceError::Shared { path: place }.into());
    }
    Ok(Some(place))
}

/// Whether the restore makes such a link of its own.
fn is_linked_again(link: &Link, destination: &Destination) -> bool {
    link.path == "pg_wal" && destination.wal_directory.is_some()
}

/// Returns `pg_control` as the restored directory gets it.
fn control_of(plan: &Plan) -> Result<Vec<u8>, RestoreError> {
    let bytes = &plan.manifest.root.pg_control;
    let found = ControlFile::parse(bytes)?.system_id;
    let expected = plan.manifest.root.system_id;
    if found != expected {
        return Err(RestoreError::OtherSystem { found, expected });
    }
    Ok(ControlFile::poisoned(bytes)?)
}

struct Restored<'a> {
    root: &'a Path,
    plan: &'a Plan,
    contents: Contents<'a>,
    tablespace_in_place: bool,
    control: Vec<u8>,
    kept: Option<&'a KeptConfiguration>,
}

impl Restored<'_> {
    /// Removes what is in the directory and not in the backup; returns how many things.
    fn prune(&self, outside: &Outside) -> Result<u64, RestoreError> {
        let mut pruning = Pruning::of(self.root, outside.links())?;
        files::each_leaf(self.contents, |entries| pruning.pass(entries).map_err(RestoreError::from))?;
        Ok(pruning.end()?)
    }

    /// Makes the places outside the data directory and the links to them. `tablespace_map` is never written: PostgreSQL
    /// would link again from it, to where the tablespaces once were.
    fn make_directories(&self, outside: &Outside, claim: &Claim) -> Result<(), RestoreError> {
        if !outside.tablespaces.is_empty() {
            let path = self.root.join("pg_tblspc");
            make_private(&path).map_err(|source| RestoreError::Write { path, source })?;
        }
        for (link, place) in outside.links() {
            claim.extend(place)?;
            let link = self.root.join(link);
            match symlink(place, &link) {
                // A restore that was interrupted made it: what else it could be was looked at.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && link.is_symlink() => {}
                made => made.map_err(|source| RestoreError::Write { path: link, source })?,
            }
        }
        Ok(check_distinct(outside.links().map(|(_, place)| place).chain([self.root]))?)
    }

    /// Takes the marks away, which a directory keeps until it is complete. One whose marks cannot be taken away is not.
    fn release(&self, claim: &Claim, outside: &Outside) -> Result<(), RestoreError> {
        claim.release(outside.links().map(|(_, place)| place)).inspect_err(|_| {
            // The error to report is the one that made this necessary.
            let _ = remove_if_there(&place(self.root, CONTROL));
        })?;
        Ok(())
    }

    /// Gives what no leaf lists to one user; `pg_control` follows when it is written.
    fn give_to(&self, (user, group): (u32, u32), outside: &Outside) -> Result<(), RestoreError> {
        let give = |path: PathBuf| {
            lchown(&path, Some(user), Some(group)).map_err(|source| RestoreError::Write { path, source })
        };
        let own = [LABEL, "postgresql.auto.conf", "recovery.signal", "standby.signal", RECOVERY_PLAN_PATH];
        let own = own.iter().chain(&["backup_manifest"]).map(|name| self.root.join(name)).filter(|path| path.exists());
        let links = outside.links().flat_map(|(link, place)| [self.root.join(link), place.to_path_buf()]);
        let tablespaces =
            [self.root.to_path_buf(), self.root.join("pg_tblspc")].into_iter().filter(|path| path.exists());
        tablespaces.chain(links).chain(own).try_for_each(give)
    }

    /// Puts up the configuration that lay outside.
    fn put_up(
        &self,
        kept: &KeptConfiguration,
        place: &Path,
        owner: Option<(u32, u32)>,
    ) -> Result<PlacedConfiguration, RestoreError> {
        let failed = |source| RestoreError::Write { path: place.to_path_buf(), source };
        let placed = kept.put_up(place, Some(self.root), owner).map_err(failed)?;
        sync_file_system(place).map_err(failed)?;
        Ok(placed)
    }

    /// Writes the settings; returns those that were raised, whether the configuration names another data directory, and
    /// whether the copy archives.
    fn settings(&self, destination: &Destination) -> Result<(Vec<String>, bool, Option<bool>), RestoreError> {
        let path = self.root.join("postgresql.auto.conf");
        let failed = |source| RestoreError::Write { path: path.clone(), source };
        let main = match (self.kept, &destination.configuration_directory) {
            (None, _) => MainFile::Inside,
            (Some(kept), Some(_)) => MainFile::PutUp(kept),
            (Some(_), None) => MainFile::Unknown,
        };
        let configuration = Configuration::read(self.root, &main).map_err(failed)?;
        let choices = Choices {
            command: &destination.command,
            action: destination.action,
            primary_conninfo: destination.primary_conninfo.as_deref(),
            settings: &destination.settings,
            tablespaces_in_place: self.has_tablespaces_in_place(),
        };
        let settings = settings::settings(self.plan, &choices, &configuration);
        self.write("postgresql.auto.conf", configuration.auto_with(&settings).as_bytes())?;
        let signal = match self.plan.purpose {
            Purpose::Standby => "standby.signal",
            Purpose::Primary | Purpose::Clone => "recovery.signal",
        };
        self.write(signal, b"")?;
        let named = configuration.main_setting("data_directory").filter(|named| !named.is_empty());
        let another = self.kept.is_none() && named.is_some_and(|named| Path::new(named) != self.root);
        let archives = configuration.archives(&settings);
        Ok((settings::raised(&settings, self.plan.limits), another, archives))
    }

    /// Whether a tablespace is a directory and no link, or the log makes one that is.
    fn has_tablespaces_in_place(&self) -> bool {
        self.tablespace_in_place || self.plan.tablespaces_created.iter().any(|(_, path)| path.is_empty())
    }

    fn backup_manifest(&self) -> Result<(), RestoreError> {
        let label = self.plan.manifest.root.backup_label.as_bytes();
        let replaced =
            [Replaced { path: CONTROL, bytes: &self.control }, Replaced { path: LABEL.as_bytes(), bytes: label }];
        let path = self.root.join("backup_manifest");
        remove_if_there(&path).map_err(|source| RestoreError::Write { path: path.clone(), source })?;
        backup_manifest::write(&path, &self.plan.manifest, &replaced, |see| {
            files::each_leaf(self.contents, |entries| match self.contents.selection.has_bare() {
                false => see(entries),
                true => {
                    let mut entries = entries.to_vec();
                    self.contents.selection.finish(&mut entries);
                    see(&entries)
                }
            })
        })
        .map_err(|error| match error {
            ManifestError::Repository(source) => FilesError::from(source).into(),
            ManifestError::Write(source) => RestoreError::Write { path, source },
        })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RestoreError> {
        let path = self.root.join(name);
        write_private(&path, bytes).map_err(|source| RestoreError::Write { path, source })
    }

    /// The file systems that everything is brought to at once, opened before anything is written there.
    fn disks(&self, outside: &Outside) -> Result<FileSystems, RestoreError> {
        let disks = FileSystems::open(self.root, outside.links().map(|(_, place)| place));
        disks.map_err(|(path, source)| RestoreError::Write { path, source })
    }

    /// The last step: until here the directory cannot be started.
    fn finish(&self, owner: Option<(u32, u32)>) -> Result<(), RestoreError> {
        let path = place(self.root, CONTROL);
        let unfinished = path.with_extension("walvault");
        let written = write_private(&unfinished, &self.control)
            .and_then(|()| owner.map_or(Ok(()), |(user, group)| lchown(&unfinished, Some(user), Some(group))))
            .and_then(|()| std::fs::File::open(&unfinished)?.sync_all())
            .and_then(|()| std::fs::rename(&unfinished, &path))
            .and_then(|()| sync_directory(&self.root.join("global")))
            .and_then(|()| sync_directory(self.root.parent().unwrap_or(self.root)));
        written.map_err(|source| RestoreError::Write { path, source })
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    remove_if_there(path)?;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(std::fs::File::open(path)?)?)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests;
