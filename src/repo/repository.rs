//! `repository.json`: that a repository is here, and how it is written.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::lane::{LANE_VERSION, Lane, LaneFacts};
use super::lane_id::LaneId;
use super::layout::Layout;
use super::{RepoError, versioned};
use crate::format::document;
use crate::store::{CreateMode, Created, Key, Store};

/// Version of what this walvault writes and the newest it reads.
const READER_VERSION: u32 = 1;
const SUFFIX: &str = ".zst";

/// How a repository is written; created once and never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryDocument {
    /// Version that writers write.
    pub format: u32,
    /// Readers older than this must refuse.
    pub minimum_reader: u32,
    /// What keys of zstd objects end in.
    pub suffix: String,
    /// How objects are created once: a [`CreateMode`]'s word.
    pub create: String,
    /// Whether objects are sealed; this walvault knows `none`.
    pub sealing: String,
}

impl RepositoryDocument {
    fn current(create: CreateMode) -> Self {
        Self {
            format: 1,
            minimum_reader: 1,
            suffix: SUFFIX.to_owned(),
            create: create.as_str().to_owned(),
            sealing: "none".to_owned(),
        }
    }

    /// Checks that this walvault can read the repository, and may write to it.
    fn check(&self) -> Result<CreateMode, RepoError> {
        let wanted = self.minimum_reader.max(self.format);
        if wanted > READER_VERSION {
            return Err(RepoError::TooNew { wanted, known: READER_VERSION });
        }
        let other = |name, found: &String, known: &str| RepoError::OtherMode {
            name,
            found: found.clone(),
            known: known.to_owned(),
        };
        if self.sealing != "none" {
            return Err(other("sealing", &self.sealing, "none"));
        }
        CreateMode::from_word(&self.create).ok_or_else(|| other("create", &self.create, "conditional"))
    }
}

/// What `init` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initialised {
    /// The repository is new.
    Created,
    /// It was there already.
    AlreadyThere,
}

/// One cluster's repository.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(super) store: Store,
    pub(super) layout: Layout,
    cluster: String,
    create: CreateMode,
    document: RepositoryDocument,
    /// The store as it is, for the one document that has its plain name in every mode.
    plain: Store,
}

impl Repository {
    /// Creates the repository, or finds that it is there and can be read. A new one's store is tried first: whether it
    /// refuses a name that is taken.
    ///
    /// # Errors
    /// [`RepoError::TooNew`] or [`RepoError::Object`] if something else is there already.
    pub fn init(store: Store, cluster: &str) -> Result<(Self, Initialised), RepoError> {
        let layout = Layout::new(cluster.parse()?, SUFFIX);
        if store.get(&layout.repository()?)?.is_some() {
            return Ok((Self::open(store, cluster)?, Initialised::AlreadyThere));
        }
        let mode = store.create_mode(&layout.probe(&random_name()?)?)?;
        let body = Bytes::from(document::encode(&RepositoryDocument::current(mode)));
        // Under its plain name in every mode, which is read from it; whoever else creates it creates the same bytes.
        let created = match mode {
            CreateMode::Conditional => store.create(&layout.repository()?, vec![body])?,
            CreateMode::ContentAddressed => store.put_alike(&layout.repository()?, body)?,
        };
        let repository = Self::open(store, cluster)?;
        let initialised = match created {
            Created::New => Initialised::Created,
            Created::Existing => Initialised::AlreadyThere,
        };
        Ok((repository, initialised))
    }

    /// Opens a repository that `init` has created.
    ///
    /// Nothing is created: an empty mount point must not become a second repository.
    ///
    /// # Errors
    /// [`RepoError::NotInitialised`], [`RepoError::TooNew`], [`RepoError::Object`].
    pub fn open(store: Store, cluster: &str) -> Result<Self, RepoError> {
        let document = Self::read_document(&store, cluster)?;
        Self::written_as(store, cluster, document)
    }

    fn read_document(store: &Store, cluster: &str) -> Result<RepositoryDocument, RepoError> {
        let key = Layout::new(cluster.parse()?, SUFFIX).repository()?;
        let stored = store
            .get(&key)?
            .ok_or_else(|| RepoError::NotInitialised { cluster: cluster.to_owned(), store: store.name().to_owned() })?;
        document::decode(&stored, "repository.json").map_err(|source| RepoError::object(&key, source))
    }

    /// Opens a repository whose document is known, without asking the store.
    ///
    /// # Errors
    /// [`RepoError::TooNew`], [`RepoError::OtherMode`].
    pub(super) fn written_as(store: Store, cluster: &str, document: RepositoryDocument) -> Result<Self, RepoError> {
        let cluster_key: Key = cluster.parse()?;
        let create = document.check()?;
        let plain = store.clone();
        let store = match create {
            CreateMode::Conditional => store,
            CreateMode::ContentAddressed => store.by_contents(),
        };
        let layout = Layout::new(cluster_key, &document.suffix);
        Ok(Self { store, layout, cluster: cluster.to_owned(), create, document, plain })
    }

    /// Asks the store whether the repository is there still, and written as it was when it was opened.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn is_unchanged(&self) -> Result<bool, RepoError> {
        Ok(Self::read_document(&self.plain, &self.cluster)? == self.document)
    }

    /// How it is written.
    pub fn document(&self) -> &RepositoryDocument {
        &self.document
    }

    /// How its objects are created once.
    pub fn create_mode(&self) -> CreateMode {
        self.create
    }

    /// Returns the same repository, with another limit to the time of one request to its store.
    pub fn with_budget(&self, budget: Duration) -> Self {
        Self { store: self.store.with_budget(budget), plain: self.plain.with_budget(budget), ..self.clone() }
    }

    /// Returns the same repository, with no more time for one request to its store than this.
    pub(super) fn within(&self, limit: Duration) -> Self {
        Self { store: self.store.within(limit), plain: self.plain.within(limit), ..self.clone() }
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The store beneath.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether each request to the store goes over a network, to the same place whenever it is made; a volume may be mounted
    /// anew, and answers for next to nothing.
    pub fn is_in_bucket(&self) -> bool {
        self.store.address().is_some()
    }

    /// Returns the ids of all lanes, in order.
    pub fn lane_ids(&self) -> Result<Vec<LaneId>, RepoError> {
        let children = self.store.list_children(Some(self.layout.cluster()))?;
        let mut lanes: Vec<LaneId> = children.folders.iter().filter_map(|folder| folder.name().parse().ok()).collect();
        lanes.sort();
        Ok(lanes)
    }

    /// Returns the folders that are named like lanes, whether or not there is a repository around them.
    pub fn lane_folders(store: &Store, cluster: &str) -> Result<Vec<LaneId>, RepoError> {
        let children = store.list_children(Some(&cluster.parse()?))?;
        Ok(children.folders.iter().filter_map(|folder| folder.name().parse().ok()).collect())
    }

    /// Opens a lane, if it is there.
    pub fn lane(&self, id: LaneId) -> Result<Option<Lane>, RepoError> {
        let key = self.layout.lane(id)?;
        let Some(stored) = self.store.get(&key)? else { return Ok(None) };
        let facts: LaneFacts =
            document::decode(&stored, "lane.json").map_err(|source| RepoError::object(&key, source))?;
        versioned(&key, facts.version, LANE_VERSION)?;
        if (facts.system_id, facts.epoch) != (id.system_id(), id.epoch()) {
            return Err(RepoError::Taken { key: key.to_string() });
        }
        Ok(Some(Lane::new(self.clone(), id, facts)))
    }

    /// Returns whether a lane that did not open is but a folder that somebody began to make. Its document is stored before
    /// all else that lies in it.
    pub fn is_empty_lane(&self, id: LaneId) -> Result<bool, RepoError> {
        Ok(self.store.list(Some(&self.layout.lane_folder(id)?))?.is_empty())
    }

    /// Opens the lane of a server, creating it if this is the first time that the server is seen.
    ///
    /// # Errors
    /// [`RepoError::OtherLane`] if the lane was made for a server with other facts.
    pub fn lane_for(&self, expected: &LaneFacts) -> Result<Lane, RepoError> {
        let id = LaneId::first(expected.system_id);
        let lane = match self.lane(id)? {
            Some(lane) => lane,
            None => {
                let key = self.layout.lane(id)?;
                // Whoever came first, the document that is there now is the lane's.
                self.store.create(&key, vec![Bytes::from(document::encode(expected))])?;
                self.lane(id)?.ok_or_else(|| RepoError::Missing { key: key.to_string() })?
            }
        };
        if !lane.facts().fits(expected) {
            return Err(RepoError::OtherLane {
                lane: id,
                found: Box::new(lane.facts().clone()),
                expected: Box::new(expected.clone()),
            });
        }
        Ok(lane)
    }
}

/// Returns a name that nothing has.
pub(super) fn random_name() -> Result<String, RepoError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(RepoError::Random)?;
    Ok(hex::encode(random))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::format::FormatError;
    use crate::store::RetryPolicy;

    fn store() -> Store {
        Store::over(Arc::new(InMemory::new()), "memory", RetryPolicy::brisk(1)).expect("a runtime")
    }

    /// What opening a repository with this document says.
    fn opened(document: &RepositoryDocument) -> Result<Repository, RepoError> {
        let store = store();
        let key = "main/repository.json".parse().expect("a key");
        store.create(&key, vec![Bytes::from(document::encode(document))]).expect("an empty store");
        Repository::open(store, "main")
    }

    #[test]
    fn a_repository_written_in_a_way_that_is_not_known_is_refused() {
        let current = RepositoryDocument::current(CreateMode::Conditional);
        assert!(opened(&current).is_ok());
        for newer in [
            RepositoryDocument { minimum_reader: READER_VERSION + 1, ..current.clone() },
            RepositoryDocument { format: READER_VERSION + 1, ..current.clone() },
        ] {
            assert!(matches!(opened(&newer), Err(RepoError::TooNew { .. })), "{newer:?}");
        }
        for other in [
            RepositoryDocument { sealing: "x25519".to_owned(), ..current.clone() },
            RepositoryDocument { create: "by-hope".to_owned(), ..current.clone() },
        ] {
            assert!(matches!(opened(&other), Err(RepoError::OtherMode { .. })), "{other:?}");
        }
    }

    #[test]
    fn a_repository_knows_in_every_mode_whether_it_is_there_still() {
        for mode in [CreateMode::Conditional, CreateMode::ContentAddressed] {
            let repository = opened(&RepositoryDocument::current(mode)).expect("just written");
            assert!(repository.is_unchanged().expect("it is there"));
            let (store, key) = (&repository.plain, "main/repository.json".parse().expect("a key"));
            store.delete(&key).expect("it is there");
            assert!(matches!(repository.is_unchanged(), Err(RepoError::NotInitialised { .. })));
            let sealed = RepositoryDocument { sealing: "x25519".to_owned(), ..repository.document().clone() };
            store.create(&key, vec![Bytes::from(document::encode(&sealed))]).expect("a free name");
            assert!(!repository.is_unchanged().expect("another one is there"));
        }
    }

    #[test]
    fn a_lane_that_says_it_is_another_or_newer_is_refused() {
        let facts = LaneFacts::sample();
        let lane = |facts: &LaneFacts| {
            let (repository, _) = Repository::init(store(), "main").expect("an empty store");
            let key = repository.layout.lane(LaneId::first(LaneFacts::sample().system_id)).expect("a key");
            repository.store.create(&key, vec![Bytes::from(document::encode(facts))]).expect("a free name");
            repository.lane(LaneId::first(LaneFacts::sample().system_id))
        };
        assert!(matches!(lane(&facts), Ok(Some(_))));
        let other = LaneFacts { epoch: 2, ..facts.clone() };
        assert!(matches!(lane(&other), Err(RepoError::Taken { .. })));
        let newer = LaneFacts { version: LANE_VERSION + 1, ..facts };
        let refused = lane(&newer).expect_err("newer than this reader");
        assert!(matches!(refused, RepoError::Object { source: FormatError::Version { .. }, .. }), "{refused}");
    }
}
