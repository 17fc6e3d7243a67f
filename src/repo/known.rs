//! What a push knows of the repository without asking: `repository.json`, the server's `lane.json`, and the timelines
//! that are its writer's own. With them a push is one request.
//!
//! The documents are created once and never changed, and an owner loses its timeline only after a silence or by an
//! operator's word, so what was read of them stays true for a while, as long as the repository is there. Whether it *is*
//! there only the store knows: somebody may remove it and make another. So they count for [`FRESH`] and are then read
//! again, and a push that fails forgets them. What was pushed in between has its usual name, and is found as soon as the
//! repository is made again.
//!
//! Between two commands the facts wait in a file of `<state_dir>/known-<user>`, which may be lost at any moment. It
//! is believed only if nobody else can have written it, if it is whole, and if it is of this very place. Of a volume
//! nothing is kept: its documents cost nothing to read, and tell a volume from the empty directory below a mount point.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::RepoError;
use super::lane::{Lane, LaneFacts};
use super::lane_id::LaneId;
use super::repository::{Repository, RepositoryDocument};
use crate::format::{Sha256, document};
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;
use crate::store::Store;

/// How long facts count after they were read.
pub const FRESH: Duration = Duration::from_secs(300);

/// Longest file that makes sense.
const LIMIT: u64 = 64 << 10;

/// Timelines that are known to be a writer's own, by all who use one open lane, and when the store was asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims(Arc<Mutex<BTreeMap<Claim, DateTime<Utc>>>>);

type Claim = (TimelineId, String);

impl Claims {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Claim, DateTime<Utc>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// Returns whether a timeline is known at `now` to be this writer's own, without asking the store. It is for [`FRESH`], and for
    /// less than half the silence after which another writer may take over.
    pub fn is_known_to_be_of(&self, timeline: TimelineId, writer: &str, grace: Duration, now: DateTime<Utc>) -> bool {
        let asked = self.claims.all().get(&(timeline, writer.to_owned())).copied();
        asked.is_some_and(|asked| is_fresh(asked, now, FRESH.min(grace / 2)))
    }

    /// Remembers that a timeline is this writer's own by the word of the store, which was asked at `asked`.
    pub fn remember_owner(&self, timeline: TimelineId, writer: &str, asked: DateTime<Utc>) {
        self.claims.all().insert((timeline, writer.to_owned()), asked);
    }
}

/// What is remembered of one server's lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    /// The program that wrote it: another one may mean something else by it.
    program: String,
    read_at: DateTime<Utc>,
    place: String,
    repository: RepositoryDocument,
    lane: LaneFacts,
    claims: BTreeSet<Claim>,
}

/// What is known of one server's lane, and where it is kept until the next command.
#[derive(Debug)]
pub struct Known {
    /// `None` where nothing can be kept.
    file: Option<PathBuf>,
    place: String,
    now: DateTime<Utc>,
    facts: Option<Facts>,
}

impl Known {
    /// Takes up what an earlier command left in `directory`, if that counts still at `now`.
    pub fn take_up(
        directory: Option<&Path>,
        store: &Store,
        cluster: &str,
        system: SystemId,
        now: DateTime<Utc>,
    ) -> Self {
        let place = place_of(store, cluster);
        let file = place
            .as_ref()
            .zip(directory)
            .map(|(place, directory)| folder_in(directory).join(format!("{}{system}.json", beginning_of_names(place))));
        let place = place.unwrap_or_default();
        let facts = file.as_deref().and_then(read).filter(|facts| facts.count(&place, system, now));
        Self { file, place, now, facts }
    }

    /// Returns the repository, without asking the store if it is known.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn repository(&self, store: Store, cluster: &str) -> Result<Repository, RepoError> {
        match &self.facts {
            Some(facts) => Repository::written_as(store, cluster, facts.repository.clone()),
            None => Repository::open(store, cluster),
        }
    }

    /// Returns the lane of a server, without asking the store if it is known to fit.
    ///
    /// # Errors
    /// As [`Repository::lane_for`].
    pub fn lane_for(&self, repository: &Repository, expected: &LaneFacts) -> Result<Lane, RepoError> {
        let Some(facts) = self.facts.as_ref().filter(|facts| facts.lane.fits(expected)) else {
            return repository.lane_for(expected);
        };
        let lane = Lane::new(repository.clone(), LaneId::first(expected.system_id), facts.lane.clone());
        lane.claims.all().extend(facts.claims.iter().map(|claim| (claim.clone(), facts.read_at)));
        Ok(lane)
    }

    /// Keeps what was learnt through a lane for the next command. That it cannot be kept is no failure.
    pub fn keep(&self, lane: &Lane) {
        let claims: BTreeSet<Claim> = lane.claims.all().keys().cloned().collect();
        let learnt = self.facts.as_ref().is_none_or(|facts| facts.claims != claims);
        let Some(file) = self.file.as_deref().filter(|_| learnt) else { return };
        let facts = Facts {
            program: PROGRAM.to_owned(),
            // All of it ends when the oldest of it does.
            read_at: self.facts.as_ref().map_or(self.now, |facts| facts.read_at),
            place: self.place.clone(),
            repository: lane.repository().document().clone(),
            lane: lane.facts().clone(),
            claims,
        };
        let _ = write(file, &document::encode(&facts));
    }

    /// Forgets it, so that the next command asks the store.
    pub fn forget(&self) {
        self.file.iter().for_each(|file| drop(fs::remove_file(file)));
    }

    /// Forgets every server's lane of a cluster: its repository was just made or looked at.
    pub fn forget_all(directory: &Path, store: &Store, cluster: &str) {
        let Some(place) = place_of(store, cluster) else { return };
        let beginning = beginning_of_names(&place);
        let Ok(entries) = fs::read_dir(folder_in(directory)) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&beginning) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// A stamp of the future tells of a clock that was wrong, then or now.
fn is_fresh(read_at: DateTime<Utc>, now: DateTime<Utc>, limit: Duration) -> bool {
    (now - read_at).to_std().is_ok_and(|age| age < limit)
}

const PROGRAM: &str = env!("CARGO_PKG_VERSION");

impl Facts {
    fn count(&self, place: &str, system: SystemId, now: DateTime<Utc>) -> bool {
        let fresh = is_fresh(self.read_at, now, FRESH);
        let ours = (self.program.as_str(), self.place.as_str()) == (PROGRAM, place);
        fresh && ours && (self.lane.system_id, self.lane.epoch) == (system, LaneId::first(system).epoch())
    }
}

/// Names a cluster's repository, by the server that holds it too: another endpoint's bucket of that name is another.
fn place_of(store: &Store, cluster: &str) -> Option<String> {
    Some(format!("{cluster} in {} at {}", store.name(), store.address()?))
}

fn beginning_of_names(place: &str) -> String {
    format!("{}-", &Sha256::of(place.as_bytes()).to_string()[..32])
}

/// A folder for each user: nobody believes another's.
fn folder_in(directory: &Path) -> PathBuf {
    directory.join(format!("known-{}", rustix::process::geteuid().as_raw()))
}

/// Whether nobody but us and root can have put it there.
fn is_ours(found: &fs::Metadata) -> bool {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    found.uid() == rustix::process::geteuid().as_raw() && found.mode() & WRITABLE_BY_OTHERS == 0
}

fn read(file: &Path) -> Option<Facts> {
    let folder = fs::symlink_metadata(file.parent()?).ok()?;
    if !folder.is_dir() || !is_ours(&folder) {
        return None;
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags as i32).open(file).ok()?;
    let found = opened.metadata().ok()?;
    if !found.is_file() || !is_ours(&found) {
        return None;
    }
    let mut bytes = Vec::new();
    opened.take(LIMIT).read_to_end(&mut bytes).ok()?;
    document::decode(&bytes, "what is known").ok()
}

/// Puts a file in its place in one step. It is not made durable: what a crash leaves is whole or is not believed.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let fresh = file.with_extension("new");
    let flags = OFlags::NOFOLLOW.bits() as i32;
    let mut options = OpenOptions::new();
    let mut made = options.write(true).create(true).truncate(true).mode(0o600).custom_flags(flags).open(&fresh)?;
    made.write_all(bytes)?;
    fs::rename(&fresh, file)
}

#[cfg(test)]
mod tests;
