//! What a host can do in a repository, found out by doing it on scratch objects.
//!
//! Each try is one that the other commands depend on. Scratch objects lie in a folder of their own, have names that are
//! never used twice, hold nothing, and are deleted again where that is allowed.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::RepoError;
use super::repository::{Repository, random_name};
use crate::clock;
use crate::store::CreateMode;

/// What came of each try; one that was not made says why.
#[derive(Debug)]
pub struct Probe {
    /// Creating an object.
    pub write: Result<(), RepoError>,
    /// Reading the same bytes back; `None` if nothing was written.
    pub read_back: Option<Result<bool, RepoError>>,
    /// Finding it in a listing; `None` if nothing was written.
    pub listed: Option<Result<bool, RepoError>>,
    /// How the repository creates objects once.
    pub mode: CreateMode,
    /// How the store would do it: conditional if of creates that race one wins and its bytes stay. `None` if nothing was
    /// written or could be deleted again, or the repository asks no condition of its store.
    pub create_only: Option<Result<CreateMode, RepoError>>,
    /// How far the store's clock is ahead of this host's, as far as it is certain; `None` if not known.
    pub clock_ahead: Option<chrono::Duration>,
    /// Deleting what was written; `None` if nothing was.
    pub delete: Option<Result<(), RepoError>>,
}

impl Repository {
    /// Tries what this host can do here, in at most `budget` for each request.
    pub fn probe(&self, budget: Duration) -> Result<Probe, RepoError> {
        let store = self.store.with_budget(budget);
        let run = random_name()?;
        let folder = self.layout.probe(&run)?;
        let key = folder.join("written")?;
        let body = Bytes::from(format!("written by walvault check, may be deleted: {run}\n"));
        let before = clock::now();
        let write = store.create(&key, vec![body.clone()]);
        let after = clock::now();
        let mut probe = Probe {
            write: Ok(()),
            read_back: None,
            listed: None,
            mode: self.create_mode(),
            create_only: None,
            clock_ahead: None,
            delete: None,
        };
        if let Err(error) = write {
            probe.write = Err(error.into());
            return Ok(probe);
        }
        probe.read_back = Some(store.get(&key).map(|read| read.as_ref() == Some(&body)).map_err(RepoError::from));
        let listing = store.list(Some(&folder));
        probe.clock_ahead = listing.as_ref().ok().and_then(|objects| {
            let object = objects.iter().find(|object| object.key == key)?;
            Some(ahead(object.last_modified, before, after))
        });
        probe.listed = Some(listing.map(|found| found.iter().any(|object| object.key == key)).map_err(RepoError::from));
        let deleted = store.delete(&key).map(drop).map_err(RepoError::from);
        // What cannot be taken away again is not strewn about.
        if probe.mode == CreateMode::Conditional && deleted.is_ok() {
            probe.create_only = Some(store.race(&folder.join("race")?).map_err(RepoError::from));
        }
        probe.delete = Some(deleted);
        Ok(probe)
    }
}

/// How far a stamp lies outside the time in which it was given; the stamp may be cut to whole seconds.
fn ahead(stamp: DateTime<Utc>, before: DateTime<Utc>, after: DateTime<Utc>) -> chrono::Duration {
    let second = chrono::Duration::seconds(1);
    if stamp > after + second {
        stamp - after
    } else if stamp < before - second {
        stamp - before
    } else {
        chrono::Duration::zero()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::store::fault::{Fault, FaultStore, When};
    use crate::store::{RetryPolicy, Store, Verb};

    #[test]
    fn a_sound_store_passes_every_try_and_nothing_stays() {
        let store = Store::over(Arc::new(InMemory::new()), "memory", RetryPolicy::brisk(1)).expect("a runtime");
        let (repository, _) = Repository::init(store.clone(), "main").expect("an empty store");
        let before = store.list(None).expect("a listing");
        let probe = repository.probe(Duration::from_secs(5)).expect("keys");
        assert!(probe.write.is_ok());
        assert!(matches!(probe.read_back, Some(Ok(true))), "{probe:?}");
        assert!(matches!(probe.listed, Some(Ok(true))), "{probe:?}");
        assert!(matches!(probe.create_only, Some(Ok(CreateMode::Conditional))), "{probe:?}");
        assert_eq!(probe.clock_ahead, Some(chrono::Duration::zero()));
        assert!(matches!(probe.delete, Some(Ok(()))), "{probe:?}");
        assert_eq!(store.list(None).expect("a listing"), before);
    }

    #[test]
    fn a_store_that_lets_the_last_writer_win_is_found_out() {
        let backend = FaultStore::in_memory().overwriting();
        let store = Store::over(Arc::new(backend), "gateway", RetryPolicy::brisk(1)).expect("a runtime");
        let (repository, _) = Repository::init(store, "main").expect("an empty store");
        let probe = repository.probe(Duration::from_secs(5)).expect("keys");
        assert!(matches!(probe.create_only, Some(Ok(CreateMode::ContentAddressed))), "{probe:?}");
        assert!(matches!(probe.delete, Some(Ok(()))), "{probe:?}");
    }

    #[test]
    fn each_refusal_is_one_try_that_failed() {
        for verb in [Verb::Create, Verb::Get, Verb::List, Verb::Delete] {
            let backend = FaultStore::in_memory();
            let store = Store::over(Arc::new(backend.clone()), "bucket", RetryPolicy::brisk(1)).expect("a runtime");
            let (repository, _) = Repository::init(store, "main").expect("an empty store");
            backend.script(When::every(verb), Fault::Before(std::io::ErrorKind::PermissionDenied));
            let probe = repository.probe(Duration::from_secs(5)).expect("keys");
            let failed = |tried: &Option<Result<bool, RepoError>>| matches!(tried, Some(Err(_)));
            assert_eq!(probe.write.is_err(), verb == Verb::Create, "{probe:?}");
            assert_eq!(failed(&probe.read_back), verb == Verb::Get, "{probe:?}");
            assert_eq!(failed(&probe.listed), verb == Verb::List, "{probe:?}");
            assert_eq!(matches!(probe.delete, Some(Err(_))), verb == Verb::Delete, "{probe:?}");
        }
    }

    #[test]
    fn a_stamp_within_the_try_is_no_difference() {
        let at = |seconds: i64| DateTime::from_timestamp(1_000_000 + seconds, 0).expect("a moment");
        let seconds = |ahead: chrono::Duration| ahead.num_seconds();
        assert_eq!(seconds(ahead(at(0), at(0), at(1))), 0);
        assert_eq!(seconds(ahead(at(-1), at(0), at(1))), 0);
        assert_eq!(seconds(ahead(at(61), at(0), at(1))), 60);
        assert_eq!(seconds(ahead(at(-60), at(0), at(1))), -60);
    }
}
