//! Places outside the data directory that a restore fills: tablespaces, and `pg_wal` where it is to lie elsewhere.

use std::path::{Path, PathBuf};

use super::delta;
use super::perform::Destination;
use super::place::{PlaceError, absolute, check_empty};
use super::plan::Plan;
use super::resume::Held;

/// Places outside the data directory.
pub(super) struct Outside {
    pub tablespaces: Vec<(u32, PathBuf)>,
    pub wal_directory: Option<PathBuf>,
}

impl Outside {
    /// Decides where everything outside the data directory goes; what `interrupted` began to fill may hold something.
    /// Of a directory that is brought to the backup, so may the places that its own links lead to.
    pub fn of(
        destination: &Destination,
        plan: &Plan,
        root: &Path,
        interrupted: Option<&Held>,
        delta: bool,
    ) -> Result<Self, PlaceError> {
        // One that no option names is not taken for the directory's own: two servers' links may lead to one place.
        let named = |place: &Path| {
            let mapped = destination.tablespaces.mapped.values().any(|named| named == place);
            mapped || destination.wal_directory.as_deref() == Some(place) || place.starts_with(root)
        };
        let owns = |place: &Path| {
            interrupted.is_some_and(|held| held.owns(place)) || delta && named(place) && delta::owns(root, place)
        };
        let tablespaces = destination.tablespaces.places(&plan.manifest.root.tablespaces, root, owns)?;
        let wal_directory = destination.wal_directory.as_deref().map(absolute).transpose()?;
        if let Some(place) = &wal_directory {
            check_apart(place, root, &tablespaces)?;
            if !owns(place) {
                check_empty(place)?;
            }
        }
        Ok(Self { tablespaces, wal_directory })
    }

    /// Each place, and the link in the data directory that leads to it.
    pub fn links(&self) -> impl Iterator<Item = (PathBuf, &Path)> {
        let tablespaces = self.tablespaces.iter();
        let tablespaces =
            tablespaces.map(|(oid, place)| (Path::new("pg_tblspc").join(oid.to_string()), place.as_path()));
        let wal = self.wal_directory.iter().map(|place| (PathBuf::from("pg_wal"), place.as_path()));
        tablespaces.chain(wal)
    }
}

/// Checks that a place lies neither in nor around anything else that is written.
pub(super) fn check_apart(place: &Path, root: &Path, tablespaces: &[(u32, PathBuf)]) -> Result<(), PlaceError> {
    let others = tablespaces.iter().map(|(_, place)| place.as_path()).chain([root]);
    if others.into_iter().any(|other| place.starts_with(other) || other.starts_with(place)) {
        return Err(PlaceError::Shared { path: place.to_path_buf() });
    }
    Ok(())
}
